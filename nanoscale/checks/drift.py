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

from nanoscale.checks.optimum import LrCurve, Parabolas
from nanoscale.checks.seed_shifts import Interval, Numbers, SeedNoise, Squares

CENTRAL = (0.025, 0.975)
UNKNOWN: Interval = (math.nan, math.nan)
TINY = 1e-12  # octaves^2: the least variance of an optimum that a weight knows


@dataclass(frozen=True)
class Transferred:
    """What a size loses or gains at another size's optimum."""

    loss: float
    se: float
    draws: Numbers  # (R,) losses, as that optimum moves


@dataclass(frozen=True)
class LrGrid:
    """All sizes' optima and their resamples."""

    curves: Sequence[LrCurve]
    base: int  # index of the size whose optimum is transferred
    noise: SeedNoise  # pooled over sizes
    noises: Sequence[SeedNoise]  # of each size (the pooled one where there is no parabola)
    draws: Sequence[Parabolas | None]  # of each size, R of them
    optimum: Numbers  # (K,)
    optima: Numbers  # (K, R)

    @classmethod
    def of(
        cls,
        curves: Sequence[LrCurve],
        base: int,
        rng: np.random.Generator,
        resamples: int,
    ) -> LrGrid:
        """Gaussian noise on the mean losses; its sd is drawn too, as seeds are few."""
        misfit = Squares.pooled(curve.misfit for curve in curves)
        noise = SeedNoise.of([curve.seeds for curve in curves if curve.seeds], misfit)
        count = len(curves)
        noises = [noise] * count
        draws: list[Parabolas | None] = [None] * count
        optimum = np.full(count, math.nan)
        optima = np.full((count, resamples), math.nan)

        for k, curve in enumerate(curves):
            steps = rng.standard_normal((len(curve.x), resamples))
            if not curve.fit or not curve.seeds:
                continue
            noises[k] = noise.at(curve.seeds)
            sd = noises[k].draws(rng, resamples)
            resampled = curve.resampled(sd * steps)
            draws[k] = resampled
            if curve.valley:
                optimum[k] = curve.valley.lowest()[0]
                optima[k] = resampled.lowest()
        return cls(curves, base, noise, noises, draws, optimum, optima)

    def at_base(self, k: int) -> Transferred:
        """Size k at the base's optimum."""
        curve = self.curves[k]
        draws = self.draws[k]
        x = self.optimum[self.base]
        if not curve.fit or not draws or not curve.seeds:
            unknown = np.full_like(self.optima[k], math.nan)
            loss = math.inf if curve.diverges(x) else math.nan
            return Transferred(loss, math.nan, unknown)
        loss = float(curve.fit.loss(x)[0])
        moved = np.clip(self.optima[self.base], curve.x[0], curve.x[-1])
        at_moved = draws.loss(moved)
        if not math.isfinite(loss):
            return Transferred(loss, math.nan, at_moved)
        variance = draws.loss(x).var() + self.noise.shift_sd**2 / curve.seeds.n_seeds
        return Transferred(loss, math.sqrt(variance), at_moved)


def interval(draws: Numbers) -> Interval:
    """The central 95 % of draws (R,)."""
    low, high = np.quantile(draws, CENTRAL)
    return float(low), float(high)


@dataclass(frozen=True)
class Drift:
    """Slope of log2 optimum over log2 size, its interval, and the sizes' scatter (octaves)."""

    value: float = math.nan
    ci95: Interval = UNKNOWN
    scatter: float = math.nan


def drift_of(grid: LrGrid, rng: np.random.Generator) -> Drift:
    """The line through the optima that are known.

    Scatter is the sd of the optima about the line beyond what their noise explains (method of
    moments; DerSimonian and Laird 1986). It enters the weights and, known to K - 2 degrees of
    freedom only, every resample. So the interval is the noise's where that explains how the sizes
    lie, and Student's t of the residuals where it does not.
    """
    known = np.isfinite(grid.optimum)
    optimum = grid.optimum[known]
    draws = grid.optima[known]
    size = np.log2([curve.size for curve in grid.curves])[known]
    if len(size) < 2:
        return Drift()
    low, high = np.quantile(draws, CENTRAL, axis=1)
    sd = (high - low) / (2 * 1.96)
    variance = np.maximum(sd**2, TINY)
    if np.isnan(variance).any():  # no noise is known: equal weights, and no interval
        slope = _slope(size, np.ones_like(size))
        return Drift(float(slope @ optimum))

    scatter = 0.0
    dof = len(size) - 2
    if dof:
        scatter = _scatter(size, optimum, 1 / variance, dof)
        squares = rng.chisquare(dof, draws.shape[1])
        wide = scatter * np.sqrt(dof / squares)
        draws = draws + wide * rng.standard_normal(draws.shape)
    slope = _slope(size, 1 / (variance + scatter**2))
    return Drift(float(slope @ optimum), interval(slope @ draws), scatter)


def _slope(size: Numbers, weight: Numbers) -> Numbers:
    """(K,): the weighted least-squares slope over size is this times the values."""
    c = size - np.average(size, weights=weight)
    return np.asarray(weight * c / (weight @ c**2))


def _scatter(size: Numbers, optimum: Numbers, weight: Numbers, dof: int) -> float:
    """The sd of the optima about their line beyond what their noise explains."""
    c = size - np.average(size, weights=weight)
    slope = _slope(size, weight) @ optimum
    level = np.average(optimum, weights=weight)
    rest = optimum - level - slope * c
    excess = weight @ rest**2 - dof

    # what one unit of scatter's square adds to the weighted squares
    total = weight.sum()
    of_mean = weight @ weight / total
    squares = weight @ c**2
    of_slope = weight**2 @ c**2 / squares
    gain = total - of_mean - of_slope
    return math.sqrt(max(0.0, excess / gain))
