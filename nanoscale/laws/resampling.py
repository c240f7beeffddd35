"""How a fit is resampled, as a value: checked before any work, drawn in parts as memory allows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nanoscale.data.gauge import part
from nanoscale.errors import UserError, nearest_or_all
from nanoscale.laws import bootstrap, solver
from nanoscale.laws.arrays import Array, ArrayPair, Index, batches
from nanoscale.laws.certified import Certified

GIVEN = "given"  # the method's name where weights are given in place of drawn ones
NEEDS_GROUPS = {"cluster": "the run that each point is of", "stratified": "cells that seeds share"}
MOST_AT_ONCE = 1 << 24  # resamples times points: some hundred MB
MOST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Resampling:
    """`count` resamples by a method of `bootstrap`, or as `weights` (count, n) say."""

    method: str
    count: int
    groups: Index | None  # (n,)
    weights: Array | None
    rng_seed: int

    @classmethod
    def of(
        cls,
        method: str,
        count: int,
        groups: Index | None,
        weights: Array | None,
        rng_seed: int,
        n: int,
    ) -> Resampling:
        """Check a user's choice for n points; `UserError` for one that cannot be."""
        if method not in bootstrap.METHODS:
            hint = nearest_or_all(method, bootstrap.METHODS)
            raise UserError(f"resampling {method!r}: no such way{hint}")
        if method in NEEDS_GROUPS and groups is None:
            raise UserError(f"resampling {method} needs groups: {NEEDS_GROUPS[method]}")
        if not 0 <= rng_seed <= MOST_SEED:
            raise UserError(f"rng_seed = {rng_seed}: expected 0 to {MOST_SEED}")
        if weights is None:
            if count:
                bootstrap.check_resamples(count)
            return cls(method, count, groups, None, rng_seed)

        weights = np.asarray(weights, float)
        if weights.ndim != 2 or weights.shape[1] != n or not (weights >= 0).all():
            raise UserError(
                f"weights of shape {weights.shape}: expected (resamples, {n}), none below 0"
            )
        return cls(GIVEN, len(weights), groups, weights, rng_seed)

    def refits(self, best: Certified) -> Array:
        """(R, p): parameters of the resamples that converged, each solved as certainly."""
        draws = [np.empty((0, len(best.theta)))]
        n = best.loss.shape[1]
        with part(self.count, "resamples") as at:
            for rows in batches(self.count, MOST_AT_ONCE // n):
                at(rows.start, rows.stop - rows.start)
                loss, weights = self._drawn(best, rows)
                refit = solver.resolve(best.on(loss, weights), best.theta)
                draws.append(best.problem.params(refit.theta[refit.converged]))
        return np.concatenate(draws)

    def _drawn(self, best: Certified, rows: slice) -> ArrayPair:
        """Losses and weights, each (R or 1, n), of some resamples."""
        if self.weights is not None:
            return best.loss, self.weights[rows]
        n = best.loss.shape[1]
        count = rows.stop - rows.start
        seed = self._seed(rows.start)
        if self.method in bootstrap.OF_POINTS:
            drawn = bootstrap.point_weights(self.method, n, self.groups, count, seed)
            return best.loss, drawn

        raw = best.rule.raw and self.method != "parametric"
        fitted = best.fitted if raw else np.log(best.fitted)
        y = best.loss[0] if raw else np.log(best.loss[0])
        draws = bootstrap.residual_draws(
            self.method, fitted, y, len(best.theta), self.groups, count, seed
        )
        losses = np.maximum(draws, 1e-9) if raw else np.exp(draws)
        return losses, best.w

    def _seed(self, first: int) -> int:
        """That of the resamples from `first` on; later parts have seeds of their own."""
        if not first:
            return self.rng_seed
        sequence = np.random.SeedSequence([self.rng_seed, first])
        return int(sequence.generate_state(1)[0])
