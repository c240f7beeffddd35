"""One size's best learning rate: the vertex of a parabola around its lowest mean loss.

The one idea: where the parabola lies is a choice by the same noisy losses as its fit, so a resample
makes it anew: noise is added to the means, and the window around their lowest is found again. On a
plateau the lowest is anywhere, and its resamples say so. LRs are in log2; L learning rates, R sets
of means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from nanoscale.checks.seed_shifts import Interval, Numbers, SeedShifts, Squares

_REACH = 1.05  # octaves on either side of the lowest mean: one, and room for rounded LRs
RISE = 0.05  # nats: well above the noise, and where a valley is still about a parabola
FEWEST_LRS = 4
_BEYOND = 2.0  # octaves: how far from all that was run a resample's optimum may be
_STEPS = (0.5, 1.0, 0.25, 0.75, 1.5, 2.0)  # octaves, in the order of LRs to run next
_APART = 0.1  # octaves: nearer than that, another LR says nothing new
_ROUNDED = 0.01  # octaves: an LR so near to one that was run is printed as that one
_SAME = 1e-6  # octaves: LRs that differ by rounding are one


@dataclass(frozen=True)
class Parabolas:
    """R weighted parabolas c0 + c1 u + c2 u^2, u = log2 LR - centre, each through means around its
    own lowest; beyond its window, straight lines through the means."""

    x: Numbers  # (L,)
    ends: Interval  # between which an optimum may lie: diverged LRs, or `_BEYOND` the others
    diverged: Interval  # the nearest on either side
    means: Numbers  # (L, R)
    coef: Numbers  # (3, R)
    low: Numbers  # (R,) the windows' ends
    high: Numbers

    @classmethod
    def of(cls, x: Numbers, runs: Numbers, means: Numbers, below: float, above: float) -> Parabolas:
        """Least squares through the means (L, R), each weighted by its runs."""
        masks = window(x, means)  # each without a gap
        first = masks.argmax(0)
        last = len(x) - 1 - masks[::-1].argmax(0)
        coef = np.empty((3, means.shape[1]))
        kinds, which = np.unique(first * len(x) + last, return_inverse=True)
        for k, kind in enumerate(kinds):
            some = which == k
            start, end = divmod(kind, len(x))
            near = slice(start, end + 1)
            powers = (x[near, None] - x.mean()) ** np.arange(3)
            weighted = powers.T * runs[near]
            coef[:, some] = np.linalg.solve(weighted @ powers, weighted @ means[near, some])
        ends = (
            x[0] - _BEYOND if math.isinf(below) else below,
            x[-1] + _BEYOND if math.isinf(above) else above,
        )
        return cls(x, ends, (below, above), means, coef, x[first], x[last])

    @property
    def centre(self) -> float:
        return float(self.x.mean())

    def parabola(self, x: Numbers | float) -> Numbers:
        level, slope, bend = self.coef
        u = x - self.centre
        return np.asarray(level + u * (slope + u * bend))

    def lowest(self) -> Numbers:
        """(R,) where the parabolas are lowest within their windows, which at the ends of all that
        was run reach further; at the lower end of those that bend downwards."""
        low = np.where(self.low == self.x[0], self.ends[0], self.low)
        high = np.where(self.high == self.x[-1], self.ends[1], self.high)
        _, slope, bend = self.coef
        with np.errstate(divide="ignore", invalid="ignore"):
            vertex = self.centre - slope / (2 * bend)
            vertex = np.clip(vertex, low, high)
        lower_end = np.where(slope > 0, low, high)
        return np.where(bend <= 0, lower_end, vertex)  # NaN, where no noise is known

    def loss(self, x: Numbers | float) -> Numbers:
        """(R,) at x (R,): inf from a diverged LR on; NaN, not known, beyond the last LR with a
        finite loss."""
        x = np.broadcast_to(x, self.low.shape)
        left = np.clip(np.searchsorted(self.x, x) - 1, 0, len(self.x) - 2)
        each = np.arange(len(x))
        lower = self.means[left, each]
        higher = self.means[left + 1, each]
        line = lower + (higher - lower) * (x - self.x[left]) / np.diff(self.x)[left]
        fitted = (x >= self.low) & (x <= self.high)
        value = np.where(fitted, self.parabola(x), line)

        not_run = (x < self.x[0] - _ROUNDED) | (x > self.x[-1] + _ROUNDED)
        value = np.where(not_run, math.nan, value)
        below, above = self.diverged
        diverged = (x < below + _SAME) | (x > above - _SAME)
        return np.where(diverged, math.inf, value)


@dataclass(frozen=True)
class LrCurve:
    """One size: its mean losses around the lowest one, and the parabola if there are 3 of them."""

    size: float
    x: Numbers  # (L,) the LRs between the diverged ones next to the lowest mean
    mean: Numbers  # (L,) of their losses, without the seeds' shifts
    runs: Numbers  # (L,)
    diverged: Numbers  # every LR with a diverged run
    n_lrs: int  # finite or diverged
    below: float = -math.inf  # the nearest diverged LR on that side
    above: float = math.inf
    seeds: SeedShifts | None = None
    fit: Parabolas | None = None  # one
    problem: str = ""  # why the optimum is not bracketed
    wanted: tuple[float, ...] = ()  # LRs that would bracket it

    @property
    def valley(self) -> Parabolas | None:
        """The fit, where its vertex is the optimum."""
        return None if self.problem else self.fit

    def diverges(self, x: float) -> bool:
        return x < self.below + _SAME or x > self.above - _SAME

    def not_run(self, at: float, sides: Sequence[int]) -> tuple[float, ...]:
        """Up to two LRs around `at`, between the diverged ones, that are none of those run."""
        found: list[float] = []
        for step in _STEPS:
            for side in sides:
                x = at + side * step
                inside = self.below + _APART < x < self.above - _APART
                if inside and np.abs(self.x - x).min() > _APART:
                    found.append(x)
        return tuple(sorted(found[:2]))

    @property
    def misfit(self) -> Squares:
        """Of the mean losses about the parabola, times their runs."""
        if not self.fit:
            return Squares()
        inside = (self.x >= self.fit.low) & (self.x <= self.fit.high)
        off = self.mean - self.fit.parabola(self.x)
        return Squares(float(self.runs @ (inside * off**2)), int(inside.sum()) - 3)

    def resampled(self, noise: Numbers) -> Parabolas:
        """The parabolas of means to which noise (L, R), of sd 1 a run, is added."""
        assert self.seeds
        means = self.mean[:, None] + self.seeds.root @ noise
        return Parabolas.of(self.x, self.runs, means, self.below, self.above)


# -- from runs to curves ------------------------------------------------------------------------
def curve_of(size: float, x: Numbers, y: Numbers, seed: Numbers) -> LrCurve:
    """The curve of one size from its runs (n,): log2 LR, loss (finite, or inf: diverged), seed."""
    lrs = np.unique(x)
    apart = np.diff(lrs, prepend=-math.inf) > _SAME
    lrs = lrs[apart]
    cell = np.searchsorted(lrs, x, side="right") - 1
    runs = np.bincount(cell)
    mean = np.bincount(cell, y) / runs  # inf where a seed diverged
    diverged = lrs[np.isinf(mean)]

    # what lies between the diverged LRs next to the lowest mean
    lowest = lrs[mean.argmin()]
    lower = diverged[diverged < lowest]
    higher = diverged[diverged > lowest]
    below = max(lower, default=-math.inf)
    above = min(higher, default=math.inf)
    between = np.isfinite(mean) & (lrs > below) & (lrs < above)
    curve = LrCurve(
        size,
        x=lrs[between],
        mean=mean[between],
        runs=runs[between],
        diverged=diverged,
        n_lrs=len(lrs),
        below=below,
        above=above,
    )
    if not between.any():
        wanted = tuple(lrs[0] - np.arange(1, 4))
        return replace(curve, above=lrs[0], problem="every LR diverged", wanted=wanted)
    kept = between[cell]
    own = np.cumsum(between)[cell[kept]] - 1
    return _fitted(curve, own, y[kept], seed[kept])


def _fitted(curve: LrCurve, cell: Numbers, y: Numbers, seed: Numbers) -> LrCurve:
    """With a parabola where there are LRs enough, and means without the seeds' shifts: those that
    are seen in its window, as losses near a divergence scatter in other ways."""
    if len(curve.x) >= 3:
        near = window(curve.x, curve.mean[:, None])[:, 0]
        seeds = SeedShifts.of(cell, y, seed, near)
        curve = replace(curve, mean=seeds.mean, seeds=seeds)
        curve = replace(curve, fit=curve.resampled(np.zeros((len(near), 1))))
    problem, wanted = unbracketed(curve, int(curve.mean.argmin()))
    return replace(curve, problem=problem, wanted=wanted)


def window(x: Numbers, means: Numbers) -> Numbers:
    """Mask (L, R): the LRs within an octave of the lowest mean; the 4 nearest where those are
    fewer.

    A flat valley takes more of them: up to two octaves away, as long as the losses on the way are
    within `RISE` of the lowest. Otherwise chosen by LR and not by loss, so that noise does not
    choose; of two equally far the lower loss, which keeps a steep wall out.
    """
    lowest = means.argmin(0)
    distance = np.abs(x[:, None] - x[lowest])
    wall = means > means.min(0) + RISE
    walls = np.cumsum(wall, axis=0)
    left = np.arange(len(x))[:, None] < lowest
    passed = np.abs(walls - np.take_along_axis(walls, lowest[None], 0)) + (left & wall)
    near = (distance <= _REACH) | ((passed == 0) & (distance <= 2 * _REACH))

    few = near.sum(0) < FEWEST_LRS
    if few.any():
        order = np.lexsort((means, distance.round(3)), axis=0)
        nearest = order.argsort(0) < FEWEST_LRS
        near = np.where(few, nearest, near)
    return np.asarray(near)


def unbracketed(curve: LrCurve, lowest: int) -> tuple[str, tuple[float, ...]]:
    """Why the minimum lies beyond what was run, and the LRs that would show it; or nothing."""
    x = curve.x
    fit = curve.fit
    at = x[lowest]
    open_below = math.isinf(curve.below)
    open_above = math.isinf(curve.above)
    if at == x[0] and open_below:
        return f"its lowest loss is at the lowest LR, {2**at:.3g}", (at - 2, at - 1)
    if at == x[-1] and open_above:
        return f"its lowest loss is at the highest LR, {2**at:.3g}", (at + 1, at + 2)
    if fit is None:
        return "fewer than 3 LRs around it have a finite loss", curve.not_run(at, (-1, 1))
    _, slope, bend = fit.coef[:, 0]
    if bend <= 0:
        return "its losses do not bend upwards", curve.not_run(at, (-1, 1))

    low = float(fit.low[0])
    high = float(fit.high[0])
    if low == x[0] and not open_below:
        low = curve.below
    if high == x[-1] and not open_above:
        high = curve.above
    vertex = fit.centre - slope / (2 * bend)
    if low < vertex < high:
        return "", ()
    wanted = curve.not_run(low, (-1,)) if vertex <= low else curve.not_run(high, (1,))
    return f"its parabola has no minimum between {2**low:.3g} and {2**high:.3g}", wanted
