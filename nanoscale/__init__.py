"""Scaling studies and hyperparameter optimisation of small GPTs."""

__version__ = "0.2.0"
