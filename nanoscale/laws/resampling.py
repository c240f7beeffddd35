"""How a fit is resampled, as a value: checked before any work, drawn in parts as memory allows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from nanoscale.data.gauge import part
from nanoscale.errors import UserError, nearest_or_all
from nanoscale.laws import bootstrap, solver
from nanoscale.laws.arrays import Array, ArrayPair, Index, batches
from nanoscale.laws.certified import Certified

GIVEN = "given"  # the method's name where weights are given in place of drawn ones
WILD_CLUSTER = "wild-cluster"  # `bootstrap.run_draws`
EVERY_WAY = (*bootstrap.METHODS, WILD_CLUSTER)
_RUN = "the run that each point is of"
NEEDS_GROUPS = {
    "cluster": _RUN,
    WILD_CLUSTER: _RUN,
    "stratified": "cells that seeds share",
}
FEWEST_RUNS, FEW_RUNS = 5, 12  # no interval holds below; up to here those of few runs do
MOST_AT_ONCE = 1 << 24  # resamples times points: some hundred MB
MOST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Resampling:
    """`count` resamples by one of `EVERY_WAY`, or as `weights` (count, n) say."""

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
        if method not in EVERY_WAY:
            hint = nearest_or_all(method, EVERY_WAY)
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

    @property
    def runs(self) -> int | None:
        """How many runs are resampled whole; None where points are."""
        if self.groups is None or self.method not in ("cluster", WILD_CLUSTER):
            return None
        return int(self.groups.max()) + 1

    @property
    def too_few(self) -> str:
        """Why there are no intervals; empty where there are."""
        if not self.count or self.runs is None or self.runs >= FEWEST_RUNS:
            return ""
        return f"{self.runs} runs are too few for an interval: train {FEWEST_RUNS}, better more"

    def by_run(self, run: Index) -> Resampling:
        """The same of whole runs, (n,) of the points, in the way that holds for so many."""
        few = run.max() < FEW_RUNS
        return replace(self, method=WILD_CLUSTER if few else "cluster", groups=run)

    def refits(self, best: Certified) -> Array:
        """(R, p): parameters of the resamples that converged, each solved as certainly."""
        draws = [np.empty((0, len(best.theta)))]
        if self.too_few:
            return draws[0]
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
        if self.method == WILD_CLUSTER and self.groups is not None:
            residual = _left_out(best, fitted, y, self.groups)
            draws = bootstrap.run_draws(fitted, residual, self.groups, count, seed)
        else:
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


def _left_out(best: Certified, fitted: Array, y: Array, run: Index) -> Array:
    """(n,): what every run's points are off by the law of the other runs."""
    runs = np.arange(run.max() + 1)
    others = (run != runs[:, None]).astype(float)
    refit = solver.resolve(best.on(best.loss, others), best.theta)
    m = best.problem.at(refit.theta).m
    of_others = m if best.rule.raw else np.log(m)
    off = y - of_others[run, np.arange(len(run))]
    return np.where(refit.converged[run], off, y - fitted)
