"""Muon, under the original README's name; it is nanoscale/model/muon.py."""

from nanoscale.model.muon import Muon

__all__ = ["Muon"]
