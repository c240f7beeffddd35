"""The points of a table that a law is fitted to: checked once, before any solver sees them.

The one idea: what a law reads follows from its predictors, so a table's columns become one value
(`Points`) that fits, profiles, refits and predictions share; input that no law can be fitted to is
refused here in one line.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from nanoscale.errors import UserError, cut
from nanoscale.laws.arrays import Array, Index, Mask
from nanoscale.laws.forms import Law

TableColumns: TypeAlias = Mapping[str, Iterable[float]]  # a table's, by name
RowLabels: TypeAlias = Iterable[object]  # of rows: sizes, seeds, runs

SAME_BUDGET = 0.1  # runs whose C differs by less, relative to the smallest, share a budget
_SAME = 0.01  # values of a predictor this near in ln are one level
MOST_LEVELS = 10  # counted
LEVELS_NEEDED, LEVELS_WANTED = 3, 4  # of a predictor that has an exponent
WIDEST = 1e30  # range of a predictor, which no runs have; far beyond, powers overflow
TOGETHER = 0.999  # correlation of two predictors' logarithms that tells nothing apart


@dataclass(frozen=True)
class Points:
    """Predictors x (P, n) and losses (n,) of the rows that are kept of a table."""

    names: tuple[str, ...]  # what the predictors are called
    x: Array
    loss: Array
    keep: Mask  # (rows of the table,)

    @classmethod
    def of(
        cls,
        form: Law,
        columns: TableColumns,
        loss: Iterable[float],
        drop_worst: int = 0,
    ) -> Points:
        """What `form` reads of a table, without its `drop_worst` highest losses.

        columns: predictor -> values; of N, D and C any two give the third (C = 6 N D). A law of
        one predictor takes the only column there is. Raises `UserError` for other columns.
        """
        losses = numbers(loss, "loss")
        if not len(losses):
            raise UserError("no runs: the columns are empty; give one value per run")
        names, x = predictors(form, columns, losses)
        keep = kept(losses, drop_worst)
        return cls(names, x[:, keep], losses[keep], keep)

    @property
    def columns(self) -> dict[str, Array]:
        """Predictor -> values (n,)."""
        return dict(zip(self.names, self.x, strict=True))

    @property
    def budgets(self) -> Array | None:
        """C (n,) in FLOPs; None where neither it nor N and D are known."""
        return compute(self.columns)

    def part(self, rows: Mask) -> Points:
        """Some of them."""
        keep = self.keep.copy()
        keep[keep] = rows
        return Points(self.names, self.x[:, rows], self.loss[rows], keep)

    def labels(self, groups: RowLabels) -> list[object]:
        """Those of the rows kept; groups: a label per row of the table."""
        labels = plain_labels(groups)
        check_lengths(("groups", labels), ("loss", self.keep))
        return [*itertools.compress(labels, self.keep)]

    def groups(self, groups: RowLabels) -> Index:
        """`labels` as numbers (n,) 0, 1, ..., in order of their text."""
        text = [*map(str, self.labels(groups))]
        return np.unique(text, return_inverse=True)[1]


# -- columns --------------------------------------------------------------------------------------
def numbers(values: Iterable[float], name: str) -> Array:
    """Positive finite numbers (n,)."""
    try:
        array = np.array(list(values), dtype=float)  # None becomes NaN
        if array.ndim > 1:
            raise ValueError(f"it has {array.ndim} dimensions")
    except (TypeError, ValueError) as e:
        raise UserError(f"{name} must be a list of numbers, one per run ({e})") from e

    bad = ~(np.isfinite(array) & (array > 0))
    if bad.any():
        raise UserError(
            f"{name} has {bad.sum()} value(s) that are not positive finite numbers (first: "
            f"{array[bad][0]} in row {bad.argmax()}); leave diverged and unfinished runs out"
        )
    return array


def positive(value: float, name: str) -> float:
    """A finite number above 0; `UserError` for another."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if 0 < number < math.inf:
        return number
    kind = "finite number" if number == math.inf else "number"
    raise UserError(f"{name}={cut(value)}: expected a {kind} above 0")


def number_columns(columns: TableColumns, loss: Array) -> dict[str, Array]:
    """Columns of positive finite numbers, (n,) each as the losses are."""
    given = {}
    for name, values in columns.items():
        given[name] = numbers(values, name)
        check_lengths((name, given[name]), ("loss", loss))
    return given


def plain_labels(values: RowLabels) -> list[object]:
    """Labels without numpy's types."""
    return [v.item() if isinstance(v, np.generic) else v for v in values]


def check_lengths(*columns: tuple[str, Sized]) -> None:
    """`UserError` for columns, by their names, that are not equally long."""
    if len({len(values) for _, values in columns}) > 1:
        got = ", ".join(f"{name} {len(values)}" for name, values in columns)
        raise UserError(f"columns differ in length ({got}); give one value per run")


def predictors(form: Law, columns: TableColumns, loss: Array) -> tuple[tuple[str, ...], Array]:
    """Names and values (P, n) of what `form` reads."""
    given = number_columns(columns, loss)
    names = form.predictors
    if len(names) == 1:
        names = tuple(given)
        if len(names) != 1:
            raise UserError(
                f"law {form.name} is of one predictor, and {len(names)} columns are "
                f"given ({', '.join(names) or 'none'}); give one"
            )
    if {"N", "D"} <= {*names}:
        given = with_compute(given)
    missing = [name for name in names if name not in given]
    if missing:
        raise UserError(
            f"law {form.name} reads {', '.join(names)}, and there is no {' and no '.join(missing)}"
        )
    return names, np.array([given[name] for name in names])


@np.errstate(over="ignore")
def with_compute(given: Mapping[str, Array]) -> dict[str, Array]:
    """N and D from any two of N, D and C = 6 N D, beside what else is given."""
    known = {"N", "D", "C"} & given.keys()
    if len(known) == 3:
        raise UserError("N, D and C are all given; give two, the third follows from C = 6 N D")
    if len(known) < 2:
        raise UserError("give two of N, D and C; the third follows from C = 6 N D")

    columns = dict(given)
    if "D" not in known:
        columns["D"] = given["C"] / (6 * given["N"])
    if "N" not in known:
        columns["N"] = given["C"] / (6 * given["D"])
    return columns


def compute(values: Mapping[str, Array]) -> Array | None:
    """C by predictor: 6 N D, or as it is; None where neither is known."""
    if {"N", "D"} <= values.keys():
        return 6 * values["N"] * values["D"]
    return values.get("C")


# -- rows -----------------------------------------------------------------------------------------
def kept(loss: Array, drop_worst: int) -> Mask:
    """Mask (n,) that leaves out the `drop_worst` highest losses."""
    n = len(loss)
    try:
        drop_worst = operator.index(drop_worst)
        known = 0 <= drop_worst < n
    except TypeError:
        known = False
    if not known:
        raise UserError(
            f"drop_worst = {drop_worst}: expected 0 to {n - 1} (a whole number), as there are "
            f"{n} losses"
        )
    keep = np.ones(n, bool)
    keep[np.argsort(loss, kind="stable")[n - drop_worst :]] = False
    return keep


def levels(values: Array) -> int:
    """Number of distinct values (n,), those within one percent being one; counted to 10."""
    ordered = np.sort(np.log(values))
    count = 0
    at = 0
    while at < len(ordered) and count < MOST_LEVELS:
        at = int(np.searchsorted(ordered, ordered[at] + _SAME, "right"))
        count += 1
    return count


def by_budget(C: Array, within: float = SAME_BUDGET) -> list[Index]:
    """Indices of the runs of every budget, in order of C (n,)."""
    order = np.argsort(C, kind="stable")
    first = 0
    starts = []
    for at, row in enumerate(order):
        if not at or C[row] > (1 + within) * C[order[first]]:
            first = at
            starts.append(at)
    return np.split(order, starts[1:])


def rise_together(log_x: Array) -> bool:
    """Whether two predictors, by their logarithms (2, n), say the same; not so of one or three."""
    return len(log_x) == 2 and abs(np.corrcoef(*log_x)[0, 1]) > TOGETHER


def check_range(name: str, values: Array) -> None:
    """`UserError` for values (n,) too far apart to be of runs."""
    low, high = values.min(), values.max()
    if high / WIDEST > low:
        raise UserError(
            f"{name} reaches from {low:.3g} to {high:.3g}, over a factor {WIDEST:g}: write all its "
            "values in one unit"
        )


def check_points(form: Law, names: tuple[str, ...], x: Array) -> None:
    """`UserError` for too few points x (P, n) or values of a predictor, or too far apart."""
    for name, values in zip(names, x, strict=True):
        check_range(name, values)
        seen = levels(values)
        if seen < LEVELS_NEEDED and name not in form.constant:
            plural = "s" if seen > 1 else ""
            raise UserError(
                f"{name} has {seen} value{plural}; a law with an exponent "
                f"of {name} needs at least {LEVELS_NEEDED}, better {LEVELS_WANTED}"
            )

    distinct = np.unique(x, axis=1).shape[1]
    p = len(form.names)
    if distinct <= p:
        raise UserError(
            f"{distinct} different points are too few for a law of {p} "
            f"parameters; give at least {p + 1}"
        )
