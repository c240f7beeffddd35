"""What residuals say of their noise: the scale that an objective is read in.

The one idea: an objective is a sum of rho(r), and all that its minimum's certainty needs of the
noise is psi = rho' and its mean slope at these residuals.
"""

from __future__ import annotations

import math

import numpy as np

from nanoscale.laws.arrays import Array
from nanoscale.laws.objectives import Objective

LAD_WIDTH = 1e-6  # in noise sd, within which lad is no corner
SMOOTH = 1.06  # Silverman's factor, of the width that the residuals' density at 0 is taken over


def psi_of(rule: Objective, r: Array) -> Array:
    """(n,) derivatives of the objective by its residuals."""
    if rule.raw:
        return 2 * r
    psi = np.clip(r, -rule.delta, rule.delta)
    return rule.lopsided(psi, r)


def spread_of(r: Array, n_params: int) -> float:
    """The sd of residuals (n,), outliers left aside."""
    left = len(r) - n_params
    sd = math.sqrt((r * r).sum() / left)
    middle = float(np.median(np.abs(r)))
    return min(1.4826 * middle, sd) or sd


def bend_of(rule: Objective, r: Array, n_params: int) -> Array:
    """(n,) derivatives of psi; for a Huber, in the mean over residuals of about this size.

    Within delta there may be few, and n_params of them by the fit itself: these are left out, and
    the rest are counted over the width of a density estimate at least.
    """
    if rule.raw:
        return np.full(len(r), 2.0)
    n = len(r)
    spread = spread_of(r, n_params)
    smooth = SMOOTH * spread * n**-0.2
    width = max(smooth, rule.delta)
    inside = np.abs(r) <= width
    near = max(int(inside.sum()), n_params + 1)
    left = (near - n_params) / near * n / (n - n_params)
    bend = np.where(inside, rule.delta / width, 0.0) * left
    return rule.lopsided(bend, r)


def unit_of(rule: Objective, r: Array, n_params: int) -> float:
    """What the objective rises by per unit of S, of residuals (n,): mean psi^2 / 2 mean psi'."""
    psi = psi_of(rule, r)
    bend = bend_of(rule, r, n_params)
    squares = psi @ psi / (len(r) - n_params)
    return float(squares / (2 * bend.mean()))


def asymptotic_variance(rule: Objective, noise: float | Array) -> float:
    """Of one point's noise as the objective sees it: E psi^2 / (E psi')^2 (Huber 1981).

    noise: the sd of a normal, or what it is drawn from (m,).
    """
    if not isinstance(noise, float):
        return _variance_of(rule, noise)
    if rule.raw:
        return noise**2
    k = LAD_WIDTH if rule.name == "lad" else rule.delta / noise
    inside = math.erf(k / math.sqrt(2))
    outside = 1 - inside
    bell = math.exp(-k * k / 2)
    density = bell / math.sqrt(2 * math.pi)
    squares = inside - 2 * k * density + k * k * outside
    return noise**2 * squares / inside**2


def _variance_of(rule: Objective, residuals: Array) -> float:
    delta = rule.delta
    psi = np.clip(residuals, -delta, delta)
    inside = np.abs(residuals) <= delta
    slope = max(float(inside.mean()), 1 / len(residuals))
    squares = psi**2
    return float(squares.mean()) / slope**2
