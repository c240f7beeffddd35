"""The GPT, under the original README's name; it is nanoscale/model/gpt.py."""

from nanoscale.model.gpt import GPT

__all__ = ["GPT"]
