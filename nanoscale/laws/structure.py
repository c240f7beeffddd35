"""Checkpoints of one run among the points of a table, found by how they lie and by what is left.

The one idea: three things together say that points share a run, and none of them alone: one size
whose tokens rise, a label (or the size itself) that holds them together, and residuals that go
together more than noise would. A grid of isoFLOP budgets has the first two at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.special import chdtrc, ndtr

from nanoscale.laws.arrays import Array, Index
from nanoscale.laws.points import RowLabels, by_budget
from nanoscale.laws.record import Record

CHECKPOINTS = 3  # of a run, on average, below which it has no course
OF_BUDGET = 3  # of a budget, on average: an isoFLOP grid
CHANCE = 0.01  # at which residuals of independent points pass for those of runs
NOISELESS = 1e-7  # sd of residuals: below, rounding is all there is
ONE_SIZE = 1e-3  # in ln N, of one run: N that follows from C and D is rounded


@dataclass(frozen=True)
class RunsFound(Record):
    """The runs that points are of."""

    column: str  # that names them; N where their size does
    runs: int
    p_value: float  # of independent noise
    index: Index = field(repr=False)  # (n,) of the points, from 0


def find_runs(
    points: Mapping[str, Array], residual: Array, labels: Mapping[str, RowLabels]
) -> RunsFound | None:
    """Which run each of the points (n,) is of; None where nothing says that they share runs.

    points: predictors, of which N and D are asked, or the only one. residual: (n,) of ln L. labels:
    columns of the table that may name the run. Of several that do, that of the fewest runs; N after
    all others.
    """
    if residual.std() < NOISELESS:
        return None
    if len(points) == 1:
        return _courses_in(next(iter(points.values())), residual, labels)
    if not {"N", "D"} <= points.keys():
        return None
    N, D = points["N"], points["D"]
    of_budget = len(N) / len(by_budget(N * D))
    of_tokens = len(N) / len(by_budget(D))
    if of_budget > max(OF_BUDGET, of_tokens):  # isoFLOP: many sizes, each at its own D
        return None
    every = []
    for column, values in labels.items():
        every.append((column, np.unique([*map(str, values)], return_inverse=True)[1]))
    every.sort(key=lambda named: named[1].max())
    size = size_of(N)
    if _rise(D, size):  # unlabelled runs come one checkpoint after another
        every.append(("N", size))
    for column, run in every:
        p_value = _dependence(residual, run, D) if _are_courses(N, D, run) else 1.0
        if p_value < CHANCE:
            return RunsFound(column, int(run.max()) + 1, p_value, run)
    return None


def _courses_in(x: Array, residual: Array, labels: Mapping[str, RowLabels]) -> RunsFound | None:
    """By names (numbers may be a size's) whose rows stand together and rise in the only predictor
    (n,)."""
    for column, values in labels.items():
        names = [*map(str, values)]
        run = np.unique(names, return_inverse=True)[1]
        runs = int(run.max()) + 1
        together = np.count_nonzero(np.diff(run)) == runs - 1
        if runs < 2 or len(x) < CHECKPOINTS * runs or not (together and _rise(x, run)):
            continue
        if any(name.replace(".", "", 1).isdigit() for name in names):
            continue
        p_value = _dependence(residual, run, x)
        if p_value < CHANCE:
            return RunsFound(column, runs, p_value, run)
    return None


def size_of(N: Array) -> Index:
    """(n,): 0, 1, ... of the sizes N (n,), those that rounding alone tells apart being one."""
    order = np.argsort(N, kind="stable")
    steps = np.diff(np.log(N[order]), prepend=np.log(N.min())) > ONE_SIZE
    sizes = np.empty(len(N), int)
    sizes[order] = np.cumsum(steps)
    return sizes


def _rise(D: Array, size: Index) -> bool:
    """Whether every size meets its D (n,) from the least to the most, in the order of the rows."""
    order = np.argsort(size, kind="stable")
    same = np.diff(size[order]) == 0
    return bool((np.diff(D[order])[same] > 0).all())


def _are_courses(N: Array, D: Array, run: Index) -> bool:
    """Whether each of several runs is of one size, and meets no D twice."""
    runs = run.max() + 1
    if runs < 2 or len(run) < CHECKPOINTS * runs:
        return False
    size = size_of(N)
    of_one_size = len(np.unique([run, size], axis=1).T) == runs
    return of_one_size and len(np.unique([run, D], axis=1).T) == len(run)


def _dependence(residual: Array, run: Index, D: Array) -> float:
    """The chance that residuals (n,) of independent points go together so, within runs.

    By ranks, as noise may have heavy tails: of levels that differ between runs (Kruskal & Wallis
    1952), or of neighbours that are alike (Wald & Wolfowitz 1943); the smaller of the two, doubled.
    """
    order = np.lexsort([D, run])
    ordered = _ranks(residual)[order]
    within = np.diff(run[order]) == 0
    products = (ordered[1:] * ordered[:-1])[within]
    neighbours = ndtr(-products.sum() / np.sqrt(len(products)))
    return min(1.0, 2 * float(min(chance_of_levels(residual, run), neighbours)))


def chance_of_levels(numbers: Array, group: Index) -> float:
    """The chance that groups of one kind of numbers (n,) differ so (Kruskal & Wallis 1952).

    group: (n,) 0, 1, ... of each number.
    """
    n = len(numbers)
    counts = np.bincount(group)
    between = (np.bincount(group, _ranks(numbers)) ** 2 / counts).sum()
    return float(chdtrc(len(counts) - 1, between * (n - 1) / n))


def _ranks(numbers: Array) -> Array:
    """(n,) of mean 0 and variance 1."""
    ranks = np.argsort(np.argsort(numbers, kind="stable"), kind="stable").astype(float)
    return np.asarray((ranks - ranks.mean()) / ranks.std())
