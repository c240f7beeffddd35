"""Approach 1: the runs of which no mixture in log-log has a lower loss at their compute.

The one idea: the lower convex hull of ln L over ln C is where compute was spent best, so a line of
log10 N on log10 C through its runs says how N* grows. Hoffmann et al. 2022, section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from nanoscale.errors import UserError
from nanoscale.laws.arrays import Array, Index
from nanoscale.laws.isoflop import exponents, grid_of, intervals, line
from nanoscale.laws.points import by_budget
from nanoscale.laws.record import Optimum, Record

RUNS_NEEDED, RUNS_WANTED = 3, 6  # on the envelope
EQUAL_C = 0.01  # relative: none of such runs is on the envelope for being the cheapest


@dataclass(frozen=True, kw_only=True)
class Envelope(Record):
    """Approach 1: N* and D* by C along the envelope."""

    runs: list[int]  # their rows, in order of C
    exponents: dict[str, float]
    intercepts: dict[str, float]  # of log10 N* and log10 D* at C = 1
    ci95: dict[str, list[float]]
    resamples: int
    warnings: list[str]

    def optimum(self, C: float) -> Optimum:
        """N* and D* at C FLOPs."""
        N = 10 ** (self.exponents["a"] * np.log10(C) + self.intercepts["N"])
        D = 10 ** (self.exponents["b"] * np.log10(C) + self.intercepts["D"])
        return Optimum(float(N), float(D))


def envelope(
    columns: Mapping[str, Iterable[float]],
    loss: Iterable[float],
    *,
    resamples: int = 400,
    rng_seed: int = 0,
) -> Envelope:
    """Approach 1: N* and D* by C through the lower convex hull of ln L over ln C.

    Intervals from runs drawn with replacement: rough, as an envelope rests on few runs. Raises
    `UserError` where fewer than 3 runs are on it.
    """
    grid, losses = grid_of(columns, loss, "N", 2)
    x = np.log10(6 * grid.N * grid.D)
    for runs in by_budget(10**x, EQUAL_C):  # whole updates leave runs of one budget a little apart
        x[runs] = x[runs].mean()
    y = np.log10(losses)
    runs = hull(x, y)
    if len(runs) < RUNS_NEEDED:
        raise UserError(
            f"{len(runs)} runs are on the envelope of loss over C; Approach 1 needs "
            f"{RUNS_NEEDED}: add budgets, or fit the surface (Approach 3)"
        )
    slope, intercept = line(x[runs], grid.x[None, runs])[0].tolist()
    slopes = _resampled_slopes(x, y, grid.x, resamples, rng_seed)
    warnings = []
    if len(runs) < RUNS_WANTED:
        warnings.append(f"only {len(runs)} runs are on the envelope")
    return Envelope(
        runs=runs.tolist(),
        exponents=exponents("N", slope),
        intercepts={"N": intercept, "D": float(-np.log10(6) - intercept)},
        ci95=intervals(exponents("N", slopes)),
        resamples=resamples,
        warnings=warnings,
    )


def _resampled_slopes(x: Array, y: Array, size: Array, resamples: int, rng_seed: int) -> Array:
    """Those of size on x, where enough of the drawn runs are on their envelope."""
    rng = np.random.default_rng(rng_seed)
    n = len(x)
    slopes = []
    for _ in range(resamples):
        drawn = rng.integers(n, size=n)
        rows = drawn[hull(x[drawn], y[drawn])]
        if len(rows) >= RUNS_NEEDED:
            slopes.append(line(x[rows], size[None, rows])[0, 0])
    return np.array(slopes)


def hull(x: Array, y: Array) -> Index:
    """Indices of the falling part of the lower convex hull of (x, y), from left to right."""
    kept: list[int] = []
    for i in np.lexsort((y, x)):
        if kept and x[i] == x[kept[-1]]:
            continue
        while len(kept) > 1 and not _turns_up(x, y, kept[-2], kept[-1], i):
            kept.pop()
        kept.append(int(i))
    return np.array(kept)[: int(np.argmin(y[kept])) + 1]


def _turns_up(x: Array, y: Array, a: int, b: int, c: int) -> bool:
    """Whether the slope from a to c is above that from a to b."""
    rise = (x[b] - x[a]) * (y[c] - y[a])
    return bool(rise > (y[b] - y[a]) * (x[c] - x[a]))
