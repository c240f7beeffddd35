"""One size's best learning rate: the vertex of a parabola through its mean losses, and its noise.

The one idea: loss = LR + shift of the seed + rest. A seed shifts its whole curve, which hardly
moves the optimum, so shifts are taken out first and only the rest is noise. Every step from the
losses to the parabola's coefficients is linear, so their covariance is exact. LRs are in log2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

REACH = 1.05  # octaves on either side of the lowest mean: one, and room for rounded LRs
RISE = 0.05  # nats: well above the noise, and where a valley is still about a parabola
FEWEST_LRS = 4
BEYOND = 2.0  # octaves: how far from all that was run a resample's optimum may be
SAME = 1e-6  # octaves: LRs that differ by rounding are one
PRIOR_DOF = 6  # that the pooled noise counts for in one size's
SEED_DOF_NEEDED = 4  # below this, the seeds alone do not measure their noise


@dataclass(frozen=True)
class Fit:
    """A weighted parabola c0 + c1 u + c2 u^2 with u = log2 LR - centre, and sums of squares."""

    window: tuple[float, float]  # the lowest and the highest LR it goes through
    centre: float
    coef: np.ndarray  # (3,)
    root: np.ndarray  # (3, 3): sd^2 * root @ root.T is the covariance of coef
    n_seeds: int
    shifts: dict[float, float]  # seed -> its shift; they sum to zero
    rest: tuple[float, int]  # of the runs about LR + shift: sum of squares, degrees of freedom
    misfit: tuple[float, int]  # of the mean losses about the parabola, times their runs
    shift: tuple[float, int, float]  # of the shifts, and what one unit of noise adds to it


@dataclass(frozen=True)
class Curve:
    """One size: its mean losses around the lowest one, and the parabola if there are 3 of them."""

    size: float
    x: np.ndarray  # (L,) the LRs between the diverged ones next to the lowest mean
    mean: np.ndarray  # (L,) of their losses, without the seeds' shifts
    runs: np.ndarray  # (L,)
    diverged: np.ndarray  # every LR with a diverged run
    n_lrs: int  # finite or diverged
    fit: Fit | None
    problem: str = ""  # why the optimum is not bracketed
    wanted: tuple[float, ...] = ()  # LRs that would bracket it

    @property
    def below(self) -> float:
        """The nearest diverged LR on that side, or minus infinity."""
        return max(self.diverged[self.diverged < self.x[0]], default=-math.inf)

    @property
    def above(self) -> float:
        """The nearest diverged LR on that side, or infinity."""
        return min(self.diverged[self.diverged > self.x[-1]], default=math.inf)

    def lowest(self, coef: np.ndarray) -> np.ndarray:
        """LR of the minimum for coefficients (..., 3); at its lower end if it bends downwards.

        It lies between the diverged LRs, and at most `BEYOND` the others.
        """
        low = self.below if math.isfinite(self.below) else self.x[0] - BEYOND
        high = self.above if math.isfinite(self.above) else self.x[-1] + BEYOND
        with np.errstate(divide="ignore", invalid="ignore"):
            vertex = np.clip(self.fit.centre - coef[..., 1] / (2 * coef[..., 2]), low, high)
        return np.where(coef[..., 2] > 0, vertex, np.where(coef[..., 1] > 0, low, high))

    def parabola(self, coef: np.ndarray, x: np.ndarray | float) -> np.ndarray:
        """Loss for coefficients (..., 3) at x (...)."""
        u = x - self.fit.centre
        return coef[..., 0] + u * (coef[..., 1] + u * coef[..., 2])

    def loss(self, coef: np.ndarray, x: np.ndarray | float) -> np.ndarray:
        """The parabola in its window; beyond, straight lines through the mean losses.

        inf from a diverged LR on; NaN, not known, beyond the last LR with a finite loss.
        """
        x, (low, high) = np.asarray(x, float), self.fit.window
        value = np.where(
            (x >= low) & (x <= high), self.parabola(coef, x), np.interp(x, self.x, self.mean)
        )
        value = np.where((x < self.x[0] - 1e-9) | (x > self.x[-1] + 1e-9), math.nan, value)
        return np.where((x <= self.below) | (x >= self.above), math.inf, value)


# -- from runs to curves ------------------------------------------------------------------------
def curve_of(size: float, x: np.ndarray, y: np.ndarray, seed: np.ndarray) -> Curve:
    """The curve of one size from its runs (n,): log2 LR, loss (finite, or inf: diverged), seed."""
    lrs = np.unique(x)
    lrs = lrs[np.diff(lrs, prepend=-math.inf) > SAME]
    cell = np.searchsorted(lrs, x, side="right") - 1
    x, mean = lrs[cell], np.bincount(cell, y) / np.bincount(cell)  # inf where a seed diverged
    walls = lrs[np.isinf(mean)]
    if len(walls) == len(lrs):
        return Curve(
            size,
            lrs[:0],
            mean[:0],
            mean[:0],
            walls,
            len(lrs),
            None,
            "every LR diverged",
            tuple(lrs[0] - np.arange(1, 4)),
        )
    lowest = lrs[mean.argmin()]
    between = (lrs > max(walls[walls < lowest], default=-math.inf)) & (
        lrs < min(walls[walls > lowest], default=math.inf)
    )
    kept = between[cell]
    x, y, seed, lrs, mean = x[kept], y[kept], seed[kept], lrs[between], mean[between]
    fit = fit_of(x, y, seed, lrs[window(lrs, mean)]) if len(lrs) >= 3 else None
    if fit:
        y = y - [fit.shifts.get(s, 0.0) for s in seed]
    cell = np.searchsorted(lrs, x)
    curve = Curve(
        size,
        lrs,
        np.bincount(cell, y) / np.bincount(cell),
        np.bincount(cell),
        walls,
        len(between),
        fit,
    )
    problem, wanted = unbracketed(curve, int(mean.argmin()))
    return replace(curve, problem=problem, wanted=wanted)


def window(x: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Mask (L,): the LRs within an octave of the lowest mean; the 4 nearest where those are fewer.

    A flat valley takes more of them: up to two octaves away, as long as the losses on the way are
    within `RISE` of the lowest. Otherwise chosen by LR and not by loss, so that noise does not
    choose; of two equally far the lower loss, which keeps a steep wall out.
    """
    lowest, distance = int(mean.argmin()), np.abs(x - x[mean.argmin()])
    near = distance <= REACH
    flat = mean <= mean[lowest] + RISE
    flat[:lowest] = np.logical_and.accumulate(flat[:lowest][::-1])[::-1]
    flat[lowest:] = np.logical_and.accumulate(flat[lowest:])
    near |= flat & (distance <= 2 * REACH)
    if near.sum() < FEWEST_LRS:
        near = np.zeros(len(x), bool)
        near[np.lexsort((mean, distance.round(3)))[:FEWEST_LRS]] = True
    return near


def fit_of(x: np.ndarray, y: np.ndarray, seed: np.ndarray, lrs: np.ndarray) -> Fit:
    """Least squares through the mean losses at `lrs` (L,), each weighted by its number of runs.

    The shift of every seed that was run at more than one LR is taken out first, so that an LR is
    not off by the seeds that it lacks. x, y, seed: (n,).
    """
    inside = np.isin(x, lrs)
    x, y, seed = x[inside], y[inside], seed[inside]
    cells = (x[:, None] == lrs).astype(float)  # (n, L)
    runs = cells.sum(0)
    shared = [s for s in np.unique(seed) if (seed == s).sum() > 1]
    seeds = (seed[:, None] == np.array(shared)).astype(float)  # (n, S)
    within = seeds - cells @ (cells.T @ seeds / runs[:, None])
    solve = np.linalg.pinv(np.where(np.abs(within) < 1e-12, 0, within))  # (S, n)
    shift, rank = solve @ y, round(np.trace(solve @ within))
    to_means = (cells / runs).T @ (np.eye(len(y)) - seeds @ solve)  # (L, n)
    means, centre = to_means @ y, lrs.mean()
    powers = (lrs - centre)[:, None] ** np.arange(3)  # (L, 3)
    to_coef = np.linalg.solve((powers.T * runs) @ powers, powers.T * runs)  # (3, L)
    coef, noise_to_coef = to_coef @ means, to_coef @ to_means
    rest, misfit = y - cells @ means - seeds @ shift, means - powers @ coef
    return Fit(
        window=(float(lrs[0]), float(lrs[-1])),
        centre=float(centre),
        coef=coef,
        root=np.linalg.cholesky(noise_to_coef @ noise_to_coef.T),
        n_seeds=len(np.unique(seed)),
        shifts=dict(zip(shared, shift, strict=True)),
        rest=(float(rest @ rest), len(y) - len(lrs) - rank),
        misfit=(float(runs @ misfit**2), len(lrs) - 3),
        shift=(float(shift @ shift), rank, float((solve**2).sum())),
    )


def unbracketed(curve: Curve, lowest: int) -> tuple[str, tuple[float, ...]]:
    """Why the minimum lies beyond what was run, and the LRs that would show it; or nothing."""
    x, fit = curve.x, curve.fit
    open_below, open_above = math.isinf(curve.below), math.isinf(curve.above)
    if lowest == 0 and open_below:
        return f"its lowest loss is at the lowest LR, {2 ** x[0]:.3g}", (x[0] - 2, x[0] - 1)
    if lowest == len(x) - 1 and open_above:
        return f"its lowest loss is at the highest LR, {2 ** x[-1]:.3g}", (x[-1] + 1, x[-1] + 2)
    if fit is None:
        return "fewer than 3 LRs around it have a finite loss", (x[lowest] - 1, x[lowest] - 0.5)
    if fit.coef[2] <= 0:
        return "its losses do not bend upwards", (x[lowest] - 0.5, x[lowest] + 0.5)
    low, high = fit.window
    low = low if open_below or low > x[0] else curve.below
    high = high if open_above or high < x[-1] else curve.above
    vertex = fit.centre - fit.coef[1] / (2 * fit.coef[2])
    if low < vertex < high:
        return "", ()
    beyond = (low - 1, low - 0.5) if vertex <= low else (high + 0.5, high + 1)
    return f"its parabola has no minimum between {2**low:.3g} and {2**high:.3g}", beyond


# -- noise --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Noise:
    """Noise of one run's loss (nats), pooled over sizes: `sd` of the rest, `shift_sd` of a seed."""

    sd: float  # NaN where nothing measures it
    dof: int
    source: str  # seeds, residuals (of the parabolas) or none
    shift_sd: float

    @classmethod
    def of(cls, fits: Sequence[Fit]) -> Noise:
        """From the seeds; where these say too little, from them and the parabolas' residuals."""
        total, dof = (sum(f.rest[i] for f in fits) for i in (0, 1))
        source = "seeds"
        if dof < SEED_DOF_NEEDED or total <= 0:
            source = "residuals"
            total, dof = (sum(f.rest[i] + f.misfit[i] for f in fits) for i in (0, 1))
        if dof == 0:
            return cls(math.nan, 0, "none", 0.0)
        shift, shift_dof, from_noise = (sum(f.shift[i] for f in fits) for i in (0, 1, 2))
        excess = (shift - from_noise * total / dof) / shift_dof if shift_dof else 0.0
        return cls(math.sqrt(total / dof), dof, source, math.sqrt(max(excess, 0.0)))

    def at(self, fit: Fit) -> Noise:
        """One size's: its own seeds, and the pooled noise as `PRIOR_DOF` degrees of freedom more.

        Small or nearly diverging models are noisier than others, and must not blur those.
        """
        if self.source != "seeds":
            return self
        (total, own), prior = fit.rest, min(PRIOR_DOF, self.dof)
        return replace(
            self, dof=own + prior, sd=math.sqrt((total + prior * self.sd**2) / (own + prior))
        )

    def draws(self, rng: np.random.Generator, resamples: int) -> np.ndarray:
        """(R,) sds: this one is known only to its degrees of freedom."""
        if self.source == "none":
            return np.full(resamples, math.nan)
        return self.sd * np.sqrt(self.dof / rng.chisquare(self.dof, resamples))
