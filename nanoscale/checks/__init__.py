"""Checks: does a parametrization keep what it promises? Verdicts from intervals.

Arithmetic on records, no more: `transfer` judges the best learning rate over size (`optimum` finds
one size's, `drift` how it moves), `coordinates` the activations over width and depth.
"""
