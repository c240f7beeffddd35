"""One size's best learning rate: the vertex of a parabola through its mean losses, and its noise.

The one idea: loss = LR + shift of the seed + rest. A seed shifts its whole curve, which hardly
moves the optimum, so shifts are taken out first and only the rest is noise. Every step from the
losses to the parabola's coefficients is linear, so their covariance is exact. LRs are in log2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

Numbers = np.ndarray
_REACH = 1.05  # octaves on either side of the lowest mean: one, and room for rounded LRs
RISE = 0.05  # nats: well above the noise, and where a valley is still about a parabola
FEWEST_LRS = 4
_BEYOND = 2.0  # octaves: how far from all that was run a resample's optimum may be
_SAME = 1e-6  # octaves: LRs that differ by rounding are one
PRIOR_DOF = 6  # that the pooled noise counts for in one size's
SEED_DOF_NEEDED = 4  # below this, the seeds alone do not measure their noise


@dataclass(frozen=True)
class Squares:
    """A sum of squares and its degrees of freedom."""

    total: float = 0.0
    dof: int = 0

    def __add__(self, other: Squares) -> Squares:
        return Squares(self.total + other.total, self.dof + other.dof)

    @property
    def mean(self) -> float:
        return self.total / self.dof

    @classmethod
    def pooled(cls, parts: Iterable[Squares]) -> Squares:
        return sum(parts, cls())


@dataclass(frozen=True)
class ParabolaFit:
    """A weighted parabola c0 + c1 u + c2 u^2 with u = log2 LR - centre, and sums of squares."""

    window: tuple[float, float]  # the lowest and the highest LR it goes through
    centre: float
    coef: Numbers  # (3,)
    root: Numbers  # (3, 3): sd^2 * root @ root.T is the covariance of coef
    n_seeds: int
    shifts: dict[int, float]  # seed -> its shift; they sum to zero
    rest: Squares  # of the runs about LR + shift
    misfit: Squares  # of the mean losses about the parabola, times their runs
    shift: Squares  # of the shifts
    shift_of_noise: float  # what one unit of noise adds to the shifts' squares

    def loss(self, coef: Numbers, x: Numbers | float) -> Numbers:
        """Loss for coefficients (3, ...) at x (...)."""
        level, slope, bend = coef
        u = x - self.centre
        return np.asarray(level + u * (slope + u * bend))


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
    fit: ParabolaFit | None = None
    problem: str = ""  # why the optimum is not bracketed
    wanted: tuple[float, ...] = ()  # LRs that would bracket it

    @property
    def valley(self) -> ParabolaFit | None:
        """The fit, where its vertex is the optimum."""
        return None if self.problem else self.fit

    def lowest(self, coef: Numbers) -> Numbers:
        """LR of the minimum for coefficients (3, ...); at its lower end if it bends downwards.

        It lies between the diverged LRs, and at most `BEYOND` the others.
        """
        assert self.fit
        low = self.below
        high = self.above
        if math.isinf(low):
            low = self.x[0] - _BEYOND
        if math.isinf(high):
            high = self.x[-1] + _BEYOND
        _, slope, bend = coef

        with np.errstate(divide="ignore", invalid="ignore"):
            vertex = self.fit.centre - slope / (2 * bend)
            vertex = np.clip(vertex, low, high)
        lower_end = np.where(slope > 0, low, high)
        return np.where(bend > 0, vertex, lower_end)

    def loss(self, coef: Numbers, x: Numbers | float) -> Numbers:
        """The parabola in its window; beyond, straight lines through the mean losses.

        inf from a diverged LR on; NaN, not known, beyond the last LR with a finite loss.
        """
        assert self.fit
        x = np.asarray(x, float)
        low, high = self.fit.window
        fitted = (x >= low) & (x <= high)
        line = np.interp(x, self.x, self.mean)
        parabola = self.fit.loss(coef, x)
        value = np.where(fitted, parabola, line)

        first = self.x[0] - 1e-9
        last = self.x[-1] + 1e-9
        not_run = (x < first) | (x > last)
        value = np.where(not_run, math.nan, value)
        diverged = (x <= self.below) | (x >= self.above)
        return np.where(diverged, math.inf, value)


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
        return replace(curve, problem="every LR diverged", wanted=wanted)
    kept = between[cell]
    cell = cell[kept]
    x = lrs[cell]
    return _fitted(curve, x, y[kept], seed[kept])


def _fitted(curve: LrCurve, x: Numbers, y: Numbers, seed: Numbers) -> LrCurve:
    """With a parabola where there are LRs enough, and means without the seeds' shifts."""
    lrs = curve.x
    mean = curve.mean
    fit = None
    if len(lrs) >= 3:
        fit = fit_of(x, y, seed, lrs[window(lrs, mean)])
        y = y - [fit.shifts.get(s, 0.0) for s in seed]
    cell = np.searchsorted(lrs, x)
    level = np.bincount(cell, y) / curve.runs
    curve = replace(curve, mean=level, fit=fit)
    lowest = int(mean.argmin())
    problem, wanted = unbracketed(curve, lowest)
    return replace(curve, problem=problem, wanted=wanted)


def window(x: Numbers, mean: Numbers) -> Numbers:
    """Mask (L,): the LRs within an octave of the lowest mean; the 4 nearest where those are fewer.

    A flat valley takes more of them: up to two octaves away, as long as the losses on the way are
    within `RISE` of the lowest. Otherwise chosen by LR and not by loss, so that noise does not
    choose; of two equally far the lower loss, which keeps a steep wall out.
    """
    lowest = int(mean.argmin())
    distance = np.abs(x - x[lowest])
    near = distance <= _REACH

    walls = np.flatnonzero(mean > mean[lowest] + RISE)
    left = max(walls[walls < lowest], default=-1)
    right = min(walls[walls > lowest], default=len(x))
    flat = slice(left + 1, right)
    near[flat] |= distance[flat] <= 2 * _REACH

    if near.sum() < FEWEST_LRS:
        order = np.lexsort((mean, distance.round(3)))
        near = np.isin(x, x[order[:FEWEST_LRS]])
    return np.asarray(near)


def fit_of(x: Numbers, y: Numbers, seed: Numbers, lrs: Numbers) -> ParabolaFit:
    """Least squares through the mean losses at `lrs` (L,), each weighted by its number of runs.

    The shift of every seed that was run at more than one LR is taken out first, so that an LR is
    not off by the seeds that it lacks. x, y, seed: (n,).
    """
    inside = np.isin(x, lrs)
    x = x[inside]
    y = y[inside]
    seed = seed[inside]
    cells = (x[:, None] == lrs).astype(float)  # (n, L)
    runs = cells.sum(0)
    shared, seeds, solve, rank = _shift_solver(cells, seed)
    shift = solve @ y

    # from losses to means without shifts, from means to the parabola
    to_means = (cells / runs).T @ (np.eye(len(y)) - seeds @ solve)  # (L, n)
    means = to_means @ y
    powers, to_coef = _parabola_solver(lrs, runs)
    coef = to_coef @ means
    noise_to_coef = to_coef @ to_means  # (3, n)

    rest = y - cells @ means - seeds @ shift
    misfit = means - powers @ coef
    return ParabolaFit(
        window=(float(lrs[0]), float(lrs[-1])),
        centre=float(lrs.mean()),
        coef=coef,
        root=np.linalg.cholesky(noise_to_coef @ noise_to_coef.T),
        n_seeds=len(np.unique(seed)),
        shifts=dict(zip(shared, shift, strict=True)),
        rest=Squares(float(rest @ rest), len(y) - len(lrs) - rank),
        misfit=Squares(float(runs @ misfit**2), len(lrs) - 3),
        shift=Squares(float(shift @ shift), rank),
        shift_of_noise=float((solve**2).sum()),
    )


def _parabola_solver(lrs: Numbers, runs: Numbers) -> tuple[Numbers, Numbers]:
    """Powers of log2 LR - centre (L, 3), and what solves means for their coefficients (3, L)."""
    powers = (lrs - lrs.mean())[:, None] ** np.arange(3)
    weighted = powers.T * runs
    return powers, np.linalg.solve(weighted @ powers, weighted)


def _shift_solver(cells: Numbers, seed: Numbers) -> tuple[Numbers, Numbers, Numbers, int]:
    """The seeds run at more than one LR, where each was (n, S), what solves losses for their
    shifts (S, n), and its rank. cells (n, L): the LR of every run."""
    known, count = np.unique(seed, return_counts=True)
    shared = known[count > 1]
    seeds = (seed[:, None] == shared).astype(float)
    runs = cells.sum(0)[:, None]  # (L, 1)
    of_lrs = cells.T @ seeds / runs  # (L, S) each seed's part of an LR's runs
    within = seeds - cells @ of_lrs
    within[np.abs(within) < 1e-12] = 0
    solve = np.linalg.pinv(within)
    rank = round(np.trace(solve @ within))
    return shared, seeds, solve, rank


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
        return "fewer than 3 LRs around it have a finite loss", (at - 1, at - 0.5)
    _, slope, bend = fit.coef
    if bend <= 0:
        return "its losses do not bend upwards", (at - 0.5, at + 0.5)

    low, high = fit.window
    if low == x[0] and not open_below:
        low = curve.below
    if high == x[-1] and not open_above:
        high = curve.above
    vertex = fit.centre - slope / (2 * bend)
    if low < vertex < high:
        return "", ()
    beyond = (high + 0.5, high + 1)
    if vertex <= low:
        beyond = (low - 1, low - 0.5)
    return f"its parabola has no minimum between {2**low:.3g} and {2**high:.3g}", beyond


# -- noise --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class SeedNoise:
    """Noise of one run's loss (nats), pooled over sizes: `sd` of the rest, `shift_sd` of a seed."""

    sd: float  # NaN where nothing measures it
    dof: int
    source: str  # seeds, residuals (of the parabolas) or none
    shift_sd: float

    @classmethod
    def of(cls, fits: Sequence[ParabolaFit]) -> SeedNoise:
        """From the seeds; where these say too little, from them and the parabolas' residuals."""
        source = "seeds"
        noise = Squares.pooled(fit.rest for fit in fits)
        if noise.dof < SEED_DOF_NEEDED or noise.total <= 0:
            source = "residuals"
            noise = Squares.pooled(fit.rest + fit.misfit for fit in fits)
        if noise.dof == 0:
            return cls(math.nan, 0, "none", 0.0)

        shift = Squares.pooled(fit.shift for fit in fits)
        excess = 0.0
        if shift.dof:
            gain = sum(fit.shift_of_noise for fit in fits)
            from_noise = gain * noise.total / noise.dof
            excess = max(0.0, (shift.total - from_noise) / shift.dof)
        return cls(math.sqrt(noise.mean), noise.dof, source, math.sqrt(excess))

    def at(self, fit: ParabolaFit) -> SeedNoise:
        """One size's: its own seeds, and the pooled noise as `PRIOR_DOF` degrees of freedom more.

        Small or nearly diverging models are noisier than others, and must not blur those.
        """
        if self.source != "seeds":
            return self
        prior = min(PRIOR_DOF, self.dof)
        dof = fit.rest.dof + prior
        total = fit.rest.total + prior * self.sd**2
        sd = math.sqrt(total / dof)
        return replace(self, dof=dof, sd=sd)

    def draws(self, rng: np.random.Generator, resamples: int) -> Numbers:
        """(R,) sds: this one is known only to its degrees of freedom."""
        if self.source == "none":
            return np.full(resamples, math.nan)
        squares = rng.chisquare(self.dof, resamples)
        widths = np.sqrt(self.dof / squares)
        return np.asarray(self.sd * widths)
