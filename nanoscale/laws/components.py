"""Where the noise of a ladder comes from: its seeds, and its sizes about their law.

The one idea: the runs of one size share what that size has too much or too little of (a learning
rate that suits it less), so seeds do not average it away; each part of the variance is known to its
own degrees of freedom, and a resample draws both before it draws the losses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import fdtrc

from nanoscale.laws.arrays import Array, Index
from nanoscale.laws.bootstrap import DOF_NEEDED
from nanoscale.laws.record import Record


@dataclass(frozen=True)
class Components(Record):
    """Sums of squares of ln L within sizes and of the sizes' means about a law, unweighted.

    Source: the method of unweighted means (Thomas & Hultquist 1978, Annals of Statistics 6).
    """

    seed_squares: float
    seed_dof: int
    size_squares: float  # of means, so of their variance
    size_dof: int  # sizes less the law's parameters
    seeds_per_size: float  # harmonic mean

    @classmethod
    def of(cls, y: Array, size: Index, fitted: Array, n_params: int) -> Components:
        """Those of y = ln L (n,) about fitted (n,); size (n,) 0, 1, ... of each run."""
        counts = np.bincount(size)
        mean = np.bincount(size, y) / counts
        off = mean - np.bincount(size, fitted) / counts
        within = y - mean[size]
        return cls(
            seed_squares=float(within @ within),
            seed_dof=len(y) - len(counts),
            size_squares=float(off @ off),
            size_dof=len(counts) - n_params,
            seeds_per_size=float(len(counts) / (1 / counts).sum()),
        )

    @property
    def measured(self) -> bool:
        """Whether the noise of seeds is known apart from that of sizes."""
        return self.seed_dof >= DOF_NEEDED and self.seed_squares > 0

    @property
    def seed_variance(self) -> float:
        """Of one run; 0 without seeds."""
        return self.seed_squares / self.seed_dof if self.seed_dof else 0.0

    @property
    def mean_variance(self) -> float:
        """Of a size's mean about the law: the larger of what sizes show and what seeds alone do."""
        return max(self.size_squares / self.size_dof, self.seed_variance / self.seeds_per_size)

    @property
    def size_sd(self) -> float:
        """What the sizes have beside their seeds' noise; 0 where the seeds' explains it."""
        return float(np.sqrt(self.mean_variance - self.seed_variance / self.seeds_per_size))

    @property
    def misfit(self) -> float:
        """How many times further the sizes are from the law than their seeds allow."""
        alone = self.seed_variance / self.seeds_per_size
        return float(np.sqrt(self.size_squares / self.size_dof / alone))

    @property
    def misfit_p(self) -> float:
        """The lack-of-fit test: chance of such a misfit where the law holds and seeds are all."""
        return float(fdtrc(self.size_dof, self.seed_dof, self.misfit**2))

    def resampled(self, fitted: Array, size: Index, resamples: int, rng_seed: int) -> Array:
        """(resamples, n): new ln L of the same runs about fitted (n,).

        Both variances are drawn from what is known of them, that of sizes never below nothing
        (generalized inference: Weerahandi 1993, JASA 88).
        """
        rng = np.random.default_rng(rng_seed)
        of_seeds = self.seed_squares / rng.chisquare(self.seed_dof, resamples)
        of_means = self.size_squares / rng.chisquare(self.size_dof, resamples)
        of_sizes = np.maximum(of_means - of_seeds / self.seeds_per_size, 0)
        sizes = rng.standard_normal((resamples, int(size.max()) + 1))
        seeds = rng.standard_normal((resamples, len(size)))
        moved = np.sqrt(of_sizes)[:, None] * sizes
        drawn: Array = fitted + moved[:, size] + np.sqrt(of_seeds)[:, None] * seeds
        return drawn
