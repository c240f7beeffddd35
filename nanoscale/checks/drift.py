"""How optima move with size: resamples of every size's curve, and the line through the optima.

The one idea: one set of resamples answers everything. What is not known (an optimum that is not
bracketed, a loss at an LR beyond those that were run) is NaN, and so is all that rests on it.
K sizes, R resamples, LRs in log2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nanoscale.checks.optimum import Curve, Noise

LEVEL = (0.025, 0.975)
TINY = 1e-12  # octaves^2: the least variance of an optimum that a weight knows


@dataclass(frozen=True)
class Grid:
    """All sizes' optima and their resamples."""

    curves: Sequence[Curve]
    base: int  # index of the size whose optimum is transferred
    noise: Noise  # pooled over sizes
    noises: Sequence[Noise]  # of each size (the pooled one where there is no parabola)
    coefs: np.ndarray  # (K, R, 3) the parabolas
    optimum: np.ndarray  # (K,)
    optima: np.ndarray  # (K, R)

    @classmethod
    def of(
        cls, curves: Sequence[Curve], base: int, rng: np.random.Generator, resamples: int
    ) -> Grid:
        """Gaussian noise around the fitted coefficients; its sd is drawn too, as seeds are few."""
        noise = Noise.of([c.fit for c in curves if c.fit])
        noises = [noise.at(c.fit) if c.fit else noise for c in curves]
        coefs = np.full((len(curves), resamples, 3), math.nan)
        optimum, optima = np.full(len(curves), math.nan), np.full(coefs.shape[:2], math.nan)
        for k, curve in enumerate(curves):
            steps = rng.standard_normal((resamples, 3))
            if curve.fit:
                sd = noises[k].draws(rng, resamples)[:, None]
                coefs[k] = curve.fit.coef + sd * steps @ curve.fit.root.T
            if not curve.problem:
                optimum[k], optima[k] = curve.lowest(curve.fit.coef), curve.lowest(coefs[k])
        return cls(curves, base, noise, noises, coefs, optimum, optima)

    def at_base(self, k: int) -> tuple[float, float, np.ndarray]:
        """Size k at the base's optimum: loss, its standard error, (R,) losses as that moves."""
        curve, x = self.curves[k], self.optimum[self.base]
        if not curve.fit:
            return math.nan, math.nan, np.full(self.optima.shape[1], math.nan)
        loss = float(curve.loss(curve.fit.coef, x))
        moved = curve.loss(self.coefs[k], np.clip(self.optima[self.base], curve.x[0], curve.x[-1]))
        if not math.isfinite(loss):
            return loss, math.nan, moved
        variance = curve.loss(self.coefs[k], x).var() + self.noise.shift_sd**2 / curve.fit.n_seeds
        if not curve.fit.window[0] <= x <= curve.fit.window[1]:
            variance += self.noises[k].sd ** 2 / curve.runs[np.abs(curve.x - x).argmin()]
        return loss, math.sqrt(variance), moved


def interval(draws: np.ndarray) -> tuple[float, float]:
    """The central 95 % of draws (R,)."""
    low, high = np.quantile(draws, LEVEL)
    return float(low), float(high)


def drift_of(grid: Grid, rng: np.random.Generator) -> tuple[float, tuple[float, float], float]:
    """Slope of log2 optimum over log2 size, its interval, and the sizes' scatter (octaves).

    Scatter is the sd of the optima about the line beyond what their noise explains (method of
    moments; DerSimonian and Laird 1986). It enters the weights and, known to K - 2 degrees of
    freedom only, every resample. So the interval is the noise's where that explains how the sizes
    lie, and Student's t of the residuals where it does not.
    """
    known = np.isfinite(grid.optimum)
    m, draws = grid.optimum[known], grid.optima[known]
    s = np.log2([c.size for c in grid.curves])[known]
    if len(s) < 2:
        return math.nan, (math.nan, math.nan), math.nan
    low, high = np.quantile(draws, LEVEL, axis=1)
    variance = np.maximum(((high - low) / (2 * 1.96)) ** 2, TINY)
    if np.isnan(variance).any():  # no noise is known: equal weights, and no interval
        return float(_slope(s, np.ones_like(s)) @ m), (math.nan, math.nan), math.nan
    dof, scatter = len(s) - 2, 0.0
    if dof:
        scatter = _scatter(s, m, 1 / variance, dof)
        wide = scatter * np.sqrt(dof / rng.chisquare(dof, draws.shape[1]))
        draws = draws + wide * rng.standard_normal(draws.shape)
    slope = _slope(s, 1 / (variance + scatter**2))
    return float(slope @ m), interval(slope @ draws), scatter


def _slope(s: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(K,): the weighted least-squares slope over s is this times the values."""
    c = s - np.average(s, weights=weight)
    return weight * c / (weight @ c**2)


def _scatter(s: np.ndarray, m: np.ndarray, weight: np.ndarray, dof: int) -> float:
    c = s - np.average(s, weights=weight)
    rest = m - np.average(m, weights=weight) - (_slope(s, weight) @ m) * c
    left = weight.sum() - weight @ weight / weight.sum() - weight**2 @ c**2 / (weight @ c**2)
    return math.sqrt(max(0.0, (weight @ rest**2 - dof) / left))
