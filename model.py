"""The GPT, under the original README's name: `from model import GPT`. It is nanoscale/model/gpt.py."""

from nanoscale.model.gpt import GPT

__all__ = ["GPT"]
