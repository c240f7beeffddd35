"""Muon, under the original README's name: `from muon import Muon`. It is nanoscale/model/muon.py."""

from nanoscale.model.muon import Muon

__all__ = ["Muon"]
