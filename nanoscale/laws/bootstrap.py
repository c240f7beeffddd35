"""Intervals: how far the fit moves under the noise of a run, and when the smallest sizes go.

The one idea: the noise is only known to its degrees of freedom, so every resample draws its own sd,
sd * sqrt(dof / chi2(dof)), before it draws the losses; three seeds at two sizes then cover as
Student's t does and not as a normal would. No law is named here: a law is its fitted values.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from nanoscale.errors import UserError

SEEDS_NEEDED, SIZES_NEEDED = 3, 2  # below these, seed noise does not count as measured
LEVEL = (0.025, 0.975)
FEWEST = 100  # resamples that an interval needs


@dataclass(frozen=True)
class Noise:
    """Noise of ln L of one run (so relative to the loss); None where it cannot be had."""

    seed_sd: float | None  # pooled within sizes
    seed_dof: int
    residual_sd: float  # about the fitted law, n - parameters degrees of freedom
    residual_dof: int
    seeds_measured: bool

    @property
    def used(self) -> float:
        """The larger of the two; residuals alone where seeds were not measured."""
        return max(self.residual_sd, self.seed_sd) if self.seeds_measured else self.residual_sd

    @property
    def dof(self) -> int:
        """Degrees of freedom of `used`."""
        return self.residual_dof if self.used == self.residual_sd else self.seed_dof

    def to_json(self) -> dict:
        """Plain types, with `used` and its `dof`."""
        return {**asdict(self), "used": self.used, "dof": self.dof}


def seed_noise(y: np.ndarray, size: np.ndarray) -> tuple[float | None, int, bool]:
    """Pooled sd of ln L within sizes, its degrees of freedom, and whether that is a measurement.

    y: (n,) ln L; size: (n,) integer label of each run's model size.
    """
    counts = np.bincount(size)
    mean = np.bincount(size, y) / counts
    dof = int((counts - 1).sum())
    if dof == 0:
        return None, 0, False
    sd = float(np.sqrt(((y - mean[size]) ** 2).sum() / dof))
    return sd, dof, bool((counts >= SEEDS_NEEDED).sum() >= SIZES_NEEDED and sd > 0)


def noise_of(y: np.ndarray, size: np.ndarray, fitted: np.ndarray, n_params: int) -> Noise:
    """Noise of the runs y = ln L (n,) about `fitted` (n,)."""
    sd, dof, measured = seed_noise(y, size)
    left = len(y) - n_params
    residual_sd = float(np.sqrt(((y - fitted) ** 2).sum() / left))
    return Noise(sd, dof, residual_sd, left, measured)


def resampled(fitted: np.ndarray, noise: Noise, resamples: int, rng_seed: int) -> np.ndarray:
    """(resamples, n): new ln L of the same runs around `fitted` (n,)."""
    rng = np.random.default_rng(rng_seed)
    sd = noise.used * np.sqrt(noise.dof / rng.chisquare(noise.dof, resamples))
    return fitted + sd[:, None] * rng.standard_normal((resamples, len(fitted)))


def check_resamples(resamples: int) -> None:
    """`UserError` for too few of them."""
    if resamples < FEWEST:
        raise UserError(
            f"{resamples} resamples are too few for a 95 % interval; use at least {FEWEST}"
        )


def interval(draws: np.ndarray) -> np.ndarray:
    """(2, ...): the central 95 % of draws (R, ...)."""
    return np.quantile(draws, LEVEL, axis=0)


def widened(ends: np.ndarray, others: np.ndarray) -> np.ndarray:
    """`ends` (2, p) stretched until it holds every row of `others` (k, p); NaN rows do nothing."""
    low = np.fmin.reduce(others, axis=0, initial=np.inf)
    high = np.fmax.reduce(others, axis=0, initial=-np.inf)
    return np.stack([np.minimum(ends[0], low), np.maximum(ends[1], high)])


def without_smallest(size: np.ndarray, keep: int) -> list[np.ndarray]:
    """Masks (n,) that leave out the smallest 1, 2, ... sizes while `keep` sizes remain.

    size: (n,) 0, 1, ... in order of x.
    """
    return [size >= k for k in range(1, size.max() + 2 - keep)]


# -- resamples of points and of residuals -------------------------------------------------------
METHODS = ("pairs", "cluster", "stratified", "residual", "wild", "parametric")
WEBB = np.sqrt([0.5, 1.0, 1.5])  # and their negatives: mean 0, variance 1 (Webb 2023)


def point_weights(
    method: str, n: int, groups: np.ndarray | None, resamples: int, rng_seed: int
) -> np.ndarray:
    """(resamples, n): how often every point is in every resample.

    pairs: n points with replacement. cluster: whole groups with replacement, for points of one
    run. stratified: points with replacement within each group, for seeds of one cell. The stream is
    that of `numpy.random.seed` and `choice`, so that pairs with seed 42 are those of Epoch AI's
    notebook (Besiroglu et al. 2024).
    """
    rng = np.random.RandomState(rng_seed)
    if method == "pairs":
        return _counts(rng, n, resamples)
    _, index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if method == "cluster":
        return _counts(rng, len(sizes), resamples)[:, index]
    weights = np.empty((resamples, n))
    for group, size in enumerate(sizes):
        weights[:, index == group] = _counts(rng, size, resamples)
    return weights


def _counts(rng: np.random.RandomState, n: int, resamples: int) -> np.ndarray:
    drawn = rng.randint(0, n, (resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n).astype(float)


def residual_draws(
    method: str,
    fitted: np.ndarray,
    y: np.ndarray,
    n_params: int,
    groups: np.ndarray | None,
    resamples: int,
    rng_seed: int,
) -> np.ndarray:
    """(resamples, n): new y about `fitted` (n,) from the residuals of y (n,).

    residual: centred residuals with replacement. wild: every residual times a random number of
    mean 0 and variance 1 (Webb's six points), one per group. Both widened to n - n_params degrees
    of freedom. parametric: see `resampled`; groups are sizes with seeds.
    """
    n = len(y)
    if method == "parametric":
        index = np.unique(groups, return_inverse=True)[1] if groups is not None else np.arange(n)
        return resampled(fitted, noise_of(y, index, fitted, n_params), resamples, rng_seed)
    rng = np.random.default_rng(rng_seed)
    residual = (y - fitted) * np.sqrt(n / (n - n_params))
    if method == "residual":
        return fitted + (residual - residual.mean())[rng.integers(n, size=(resamples, n))]
    index = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    factor = rng.choice(np.concatenate([WEBB, -WEBB]), size=(resamples, index.max() + 1))
    return fitted + residual * factor[:, index]
