"""How a fit is resampled, as a value: checked before any work, drawn in parts as memory allows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nanoscale.errors import UserError, did_you_mean, one_of
from nanoscale.laws import bootstrap, solver
from nanoscale.laws.arrays import Array, Index
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
            hint = did_you_mean(method, bootstrap.METHODS)
            raise UserError(
                f"resampling {method!r}: no such way"
                + (hint or f"; choose {one_of(bootstrap.METHODS)}")
            )
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
        for loss, weights in self._parts(best):
            refit = solver.resolve(best.problem, best.rule, loss, weights, best.theta)
            draws.append(best.problem.params(refit.theta[refit.converged]))
        return np.concatenate(draws)

    def _parts(self, best: Certified) -> Iterator[tuple[Array, Array]]:
        """Losses and weights, each (R or 1, n), of as many resamples at once as there is room for.

        Those after the first of these parts have seeds of their own.
        """
        at_once = max(1, MOST_AT_ONCE // best.scaled.shape[1])
        seed = self.rng_seed
        for first in range(0, self.count, at_once):
            rows = range(first, min(first + at_once, self.count))
            if first:
                sequence = np.random.SeedSequence([self.rng_seed, first])
                seed = int(sequence.generate_state(1)[0])
            yield self._part(best, rows, seed)

    def _part(self, best: Certified, rows: range, seed: int) -> tuple[Array, Array]:
        if self.weights is not None:
            return best.scaled, self.weights[rows.start : rows.stop]
        n = best.scaled.shape[1]
        if self.method in bootstrap.OF_POINTS:
            drawn = bootstrap.point_weights(self.method, n, self.groups, len(rows), seed)
            return best.scaled, drawn

        raw = best.rule.raw and self.method != "parametric"
        fitted, y = best.fitted, best.scaled[0]
        if not raw:
            fitted, y = np.log(fitted), np.log(y)
        draws = bootstrap.residual_draws(
            self.method, fitted, y, len(best.theta), self.groups, len(rows), seed
        )
        return np.maximum(draws, 1e-9) if raw else np.exp(draws), best.ones
