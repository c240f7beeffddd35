"""What a seed does to the losses of one size, taken out; and the noise that is left.

The one idea: loss = LR + shift of the seed + rest. A seed shifts its whole curve, which hardly
moves the optimum, so shifts are taken out first and only the rest is noise. Every step is linear,
so the covariance of the means is exact. L learning rates, S seeds, n runs: nothing here is larger
than L x n or L x S.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

Numbers = np.ndarray
Interval = tuple[float, float]
_RANK = 1e-9  # of the largest eigenvalue: what is below it is 0 but for rounding
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
class SeedShifts:
    """The mean loss of every LR without the shifts of its seeds, and sums of squares."""

    mean: Numbers  # (L,)
    root: Numbers  # (L, L): sd^2 * root @ root.T is the covariance of mean
    n_seeds: int
    rest: Squares  # of the runs about LR + shift
    shift: Squares  # of the shifts, which sum to zero
    shift_of_noise: float  # what one unit of noise adds to the shifts' squares

    @classmethod
    def of(cls, cell: Numbers, y: Numbers, seed: Numbers, near: Numbers) -> SeedShifts:
        """Least squares over the LRs `near` (mask of L). cell (n,): the index of each run's LR; y,
        seed: (n,)."""
        index = np.unique(seed, return_inverse=True)[1]
        table = np.zeros((len(near), index.max() + 1))  # runs by LR and seed
        np.add.at(table, (cell, index), 1)
        inside = near[cell]
        own = np.cumsum(near)[cell[inside]] - 1  # the index among those near
        of = index[inside]
        solver = _ShiftSolver.of(table[near], own, of)
        means = solver.to_means @ y[inside]
        sums = np.bincount(of, y[inside], len(solver.count))
        shift = sums / solver.count - solver.part.T @ means
        rest = y[inside] - means[own] - shift[of]

        runs = table.sum(1)[:, None]
        to_all = (cell == np.arange(len(near))[:, None]) / runs
        to_all[:, inside] -= solver.to_shifts(table / runs, of)
        return cls(
            mean=to_all @ y,
            root=np.linalg.cholesky(to_all @ to_all.T),
            n_seeds=int(np.count_nonzero(table[near].sum(0))),
            rest=Squares(float(rest @ rest), len(rest) - len(means) - solver.rank),
            shift=Squares(float(shift @ shift), solver.rank),
            shift_of_noise=solver.of_noise,
        )


@dataclass(frozen=True)
class _ShiftSolver:
    """What solves losses for the means of L learning rates without the shifts of S seeds, that is
    of all that were run at several LRs; others have none.

    The shifts are eliminated from the normal equations, which leaves L unknowns. Where no seed
    without a shift ties the level of LRs down, the shifts of least norm are taken.
    """

    to_means: Numbers  # (L, n)
    part: Numbers  # (L, S) of a seed's runs at an LR
    count: Numbers  # (S,) runs, inf for a seed without a shift
    rank: int
    of_noise: float  # the squares of the shifts for one unit of noise

    def to_shifts(self, weight: Numbers, index: Numbers) -> Numbers:
        """(K, n) what makes losses the shifts, K times weighted (K, S). index (n,): the seeds."""
        return np.asarray((weight / self.count)[:, index] - weight @ self.part.T @ self.to_means)

    @classmethod
    def of(cls, table: Numbers, cell: Numbers, index: Numbers) -> _ShiftSolver:
        """table (L, S): runs; cell, index (n,): the LR and the seed of each."""
        shared = np.count_nonzero(table, axis=0) > 1
        count = np.where(shared, table.sum(0), math.inf)
        part = table / count
        left = np.diag(table.sum(1)) - part @ table.T
        values, vectors = np.linalg.eigh(left)
        free = values < _RANK * values[-1]
        solve = vectors[:, ~free] / values[~free] @ vectors[:, ~free].T
        lrs = np.arange(len(table))[:, None]
        to_means = solve @ ((cell == lrs) - part[:, index])

        # along what is free, from shifts to LRs, until the shifts are shortest
        along = part.T @ vectors[:, free]  # (S, free)
        to_free = np.linalg.pinv(along) if free.any() else along.T
        of_noise = np.sum(1 / count) + np.sum(part * (solve @ part))
        of_free = along / count[:, None] + part.T @ (solve @ (part @ along))
        of_noise -= np.sum(to_free.T * of_free)
        rank = int(shared.sum() - free.sum())
        first = cls(to_means, part, count, rank, float(of_noise))
        moved = vectors[:, free] @ first.to_shifts(to_free, index)
        return replace(first, to_means=to_means + moved)


@dataclass(frozen=True)
class SeedNoise:
    """Noise of one run's loss (nats), pooled over sizes: `sd` of the rest, `shift_sd` of a seed."""

    sd: float  # NaN where nothing measures it
    dof: int
    source: str  # seeds, residuals (of the parabolas) or none
    shift_sd: float

    @classmethod
    def of(cls, sizes: Sequence[SeedShifts], misfit: Squares) -> SeedNoise:
        """From the seeds; where these say too little, from them and `misfit`, the residuals of the
        parabolas."""
        source = "seeds"
        noise = Squares.pooled(size.rest for size in sizes)
        if noise.dof < SEED_DOF_NEEDED or noise.total <= 0:
            source = "residuals"
            noise += misfit
        if noise.dof == 0:
            return cls(math.nan, 0, "none", 0.0)

        shift = Squares.pooled(size.shift for size in sizes)
        excess = 0.0
        if shift.dof:
            gain = sum(size.shift_of_noise for size in sizes)
            from_noise = gain * noise.total / noise.dof
            excess = max(0.0, (shift.total - from_noise) / shift.dof)
        return cls(math.sqrt(noise.mean), noise.dof, source, math.sqrt(excess))

    def at(self, size: SeedShifts) -> SeedNoise:
        """One size's: its own seeds, and the pooled noise as `PRIOR_DOF` degrees of freedom more.

        Small or nearly diverging models are noisier than others, and must not blur those.
        """
        if self.source != "seeds":
            return self
        prior = min(PRIOR_DOF, self.dof)
        dof = size.rest.dof + prior
        total = size.rest.total + prior * self.sd**2
        sd = math.sqrt(total / dof)
        return replace(self, dof=dof, sd=sd)

    def draws(self, rng: np.random.Generator, resamples: int) -> Numbers:
        """(R,) sds: this one is known only to its degrees of freedom."""
        if self.source == "none":
            return np.full(resamples, math.nan)
        squares = rng.chisquare(self.dof, resamples)
        widths = np.sqrt(self.dof / squares)
        return np.asarray(self.sd * widths)
