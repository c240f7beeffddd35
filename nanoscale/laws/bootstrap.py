"""Intervals: how far the fit moves under the noise of a run, and when the smallest sizes go.

The one idea: the noise is only known to its degrees of freedom, so every resample draws its own sd,
sd * sqrt(dof / chi2(dof)), before it draws the losses; three seeds at two sizes then cover as
Student's t does and not as a normal would. No law is named here: a law is its fitted values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nanoscale.errors import UserError
from nanoscale.laws.arrays import Array, Index, Mask
from nanoscale.laws.record import Record
from nanoscale.spec.values import Json

DOF_NEEDED = 4  # of seeds, as three at two sizes have, for their noise to count as measured
LEVEL = (0.025, 0.975)
FEWEST = 100  # resamples that an interval needs
PLENTY = 1_000_000

Labels = Index | Sequence[object]  # of n points


@dataclass(frozen=True)
class Noise(Record):
    """Noise of ln L of one run (so relative to the loss); None where it cannot be had."""

    seed_sd: float | None  # pooled within sizes
    seed_dof: int
    residual_sd: float  # about the fitted law, n - parameters degrees of freedom
    residual_dof: int
    seeds_measured: bool

    @property
    def used(self) -> float:
        """The larger of the two; residuals alone where seeds were not measured."""
        if self.seed_sd is None or not self.seeds_measured:
            return self.residual_sd
        return max(self.residual_sd, self.seed_sd)

    @property
    def dof(self) -> int:
        """Degrees of freedom of `used`."""
        return self.residual_dof if self.used == self.residual_sd else self.seed_dof

    def to_json(self) -> dict[str, Json]:
        """Plain types, with `used` and its `dof`."""
        return super().to_json() | {"used": self.used, "dof": self.dof}


def seed_noise(y: Array, size: Index) -> tuple[float | None, int, bool]:
    """Pooled sd of ln L within sizes, its degrees of freedom, and whether that is a measurement.

    y: (n,) ln L; size: (n,) integer label of each run's model size.
    """
    counts = np.bincount(size)
    dof = len(y) - len(counts)
    if dof == 0:
        return None, 0, False
    mean = np.bincount(size, y) / counts
    sd = _sd(y - mean[size], dof)
    return sd, dof, dof >= DOF_NEEDED and sd > 0


def _sd(residual: Array, dof: int) -> float:
    return float(np.sqrt((residual**2).sum() / dof))


def noise_of(y: Array, size: Index, fitted: Array, n_params: int) -> Noise:
    """Noise of the runs y = ln L (n,) about `fitted` (n,)."""
    sd, dof, measured = seed_noise(y, size)
    left = len(y) - n_params
    return Noise(sd, dof, _sd(y - fitted, left), left, measured)


def resampled(fitted: Array, noise: Noise, resamples: int, rng_seed: int) -> Array:
    """(resamples, n): new ln L of the same runs around `fitted` (n,)."""
    rng = np.random.default_rng(rng_seed)
    sd = noise.used * np.sqrt(noise.dof / rng.chisquare(noise.dof, resamples))
    return fitted + sd[:, None] * rng.standard_normal((resamples, len(fitted)))


def check_resamples(resamples: int) -> None:
    """`UserError` for too few of them, or more than a machine holds."""
    if resamples > PLENTY:
        raise UserError(f"{resamples:,} resamples: at most {PLENTY:,}; 4,000 do")
    if resamples < FEWEST:
        raise UserError(
            f"{resamples} resamples are too few for a 95 % interval; use at least {FEWEST}"
        )


def interval(draws: Array) -> Array:
    """(2, ...): the central 95 % of draws (R, ...)."""
    return np.quantile(draws, LEVEL, axis=0)


def widened(ends: Array, others: Array) -> Array:
    """`ends` (2, p) stretched until it holds every row of `others` (k, p); NaN rows do nothing."""
    low = np.fmin.reduce(others, axis=0, initial=np.inf)
    high = np.fmax.reduce(others, axis=0, initial=-np.inf)
    return np.stack([np.minimum(ends[0], low), np.maximum(ends[1], high)])


def without_smallest(size: Index, keep: int) -> list[Mask]:
    """Masks (n,) that leave out the smallest 1, 2, ... sizes while `keep` sizes remain.

    size: (n,) 0, 1, ... in order of x.
    """
    return [size >= k for k in range(1, size.max() + 2 - keep)]


# -- resamples of points and of residuals -------------------------------------------------------
OF_POINTS = ("pairs", "cluster", "stratified")
METHODS = (*OF_POINTS, "residual", "wild", "parametric")
WEBB = np.sqrt([0.5, 1.0, 1.5])  # and their negatives: mean 0, variance 1 (Webb 2023)


def point_weights(
    method: str, n: int, groups: Labels | None, resamples: int, rng_seed: int
) -> Array:
    """(resamples, n): how often every point is in every resample.

    pairs: n points with replacement. cluster: whole groups with replacement, for points of one
    run. stratified: points with replacement within each group, for seeds of one cell. The stream is
    that of `numpy.random.seed` and `choice`, so that pairs with seed 42 are those of Epoch AI's
    notebook (Besiroglu et al. 2024).
    """
    rng = np.random.RandomState(rng_seed)
    if method == "pairs":
        return _counts(rng, n, resamples)
    index = numbered(groups, n)
    sizes = np.bincount(index)
    if method == "cluster":
        return _counts(rng, len(sizes), resamples)[:, index]
    weights = np.empty((resamples, n))
    for group, size in enumerate(sizes):
        weights[:, index == group] = _counts(rng, size, resamples)
    return weights


def numbered(groups: Labels | None, n: int) -> Index:
    """Labels as numbers 0, 1, ... (n,); each point its own without any."""
    if groups is None:
        return np.arange(n)
    return np.unique(np.asarray(groups), return_inverse=True)[1]


def _counts(rng: np.random.RandomState, n: int, resamples: int) -> Array:
    """(resamples, n): how often each of n is drawn in n draws."""
    drawn = rng.randint(0, n, (resamples, n)) + n * np.arange(resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=resamples * n)
    return counts.reshape(resamples, n).astype(float)


def residual_draws(
    method: str,
    fitted: Array,
    y: Array,
    n_params: int,
    groups: Labels | None,
    resamples: int,
    rng_seed: int,
) -> Array:
    """(resamples, n): new y about `fitted` (n,) from the residuals of y (n,).

    residual: centred residuals with replacement. wild: every residual times a random number of
    mean 0 and variance 1 (Webb's six points), one per group. Both widened to n - n_params degrees
    of freedom. parametric: see `resampled`; groups are sizes with seeds.
    """
    n = len(y)
    index = numbered(groups, n)
    if method == "parametric":
        return resampled(fitted, noise_of(y, index, fitted, n_params), resamples, rng_seed)

    rng = np.random.default_rng(rng_seed)
    residual = (y - fitted) * np.sqrt(n / (n - n_params))
    if method == "residual":
        drawn = rng.integers(n, size=(resamples, n))
        moved = (residual - residual.mean())[drawn]
    else:
        moved = residual * _webb(rng, resamples, index.max() + 1)[:, index]
    return np.asarray(fitted + moved)


def run_draws(fitted: Array, residual: Array, run: Index, resamples: int, rng_seed: int) -> Array:
    """(resamples, n): new y about `fitted` (n,) of few runs, whose residuals move together.

    residual: (n,) of every run about the law of the others. Each run's times a random number of
    mean 0 and variance 1, and all by an sd of their own, as of runs - 1 degrees of freedom: the
    wild cluster bootstrap with the jackknife's residuals, as Student's t (MacKinnon, Nielsen & Webb
    2023).
    """
    rng = np.random.default_rng(rng_seed)
    runs = run.max() + 1
    factor = _webb(rng, resamples, runs)
    factor *= np.sqrt((runs - 1) / rng.chisquare(runs - 1, (resamples, 1)))
    moved: Array = fitted + residual * factor[:, run]
    return moved


def _webb(rng: np.random.Generator, resamples: int, groups: int) -> Array:
    return rng.choice(np.concatenate([WEBB, -WEBB]), size=(resamples, groups))
