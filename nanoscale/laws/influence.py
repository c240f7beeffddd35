"""Which runs a conclusion hangs on: exact refits without each point or run, and without the worst.

The one idea: leaving a run out is a weight of 0, so all refits are one batch of the solver that
made the fit, from its optimum, with other starts checked; nothing is linearised. The conclusion is
that the target lies within bounds; the fewest runs without which it does not are sought by taking
away the most influential, again and again (greedy and exact, where Broderick, Giordano and Meager
2020 is at once and approximate).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanoscale.errors import UserError, did_you_mean, one_of
from nanoscale.laws import solver
from nanoscale.laws.arrays import Array
from nanoscale.laws.fit import STARTS, LawFit
from nanoscale.laws.objectives import Objective
from nanoscale.laws.points import Points, check_points
from nanoscale.laws.problem import Problem, problem_of
from nanoscale.laws.record import Record
from nanoscale.store.files import plain

_AT_ONCE = 500  # refits
MOST_TOGETHER = 5  # runs that are taken away together
STANDARD_ERRORS = 2.0  # of the jackknife, that bound a conclusion without an interval
PREDICTED_LOSS = "loss"  # the name of a target that is one
USUAL_DELTA = 1e-3  # of objectives that have none of their own

Values = Mapping[str, Array]  # parameters, exponents, predicted loss -> that of every refit (R,)


@dataclass(frozen=True)
class Removal:
    """The fit without some units, which are rows (from 0), or runs."""

    units: list[object]
    values: dict[str, float] | None = None  # parameters, exponents, predicted loss; None: no fit
    change: dict[str, float] | None = None  # of them
    in_se: float | None = None  # the target's change, in its standard error
    outside: bool = False  # whether the target leaves its bounds


@dataclass(frozen=True)
class Influence(Record):
    """What a fit owes to each unit. `single` is sorted by the target's change, largest first."""

    unit: str  # row, of the table and from 0, or run
    target: str
    value: float
    bounds: list[float]  # within which the conclusion stands
    bounds_are: str
    se: float  # of the target, by the jackknife over units
    single: list[Removal]  # those without a fit last
    worst: list[Removal]  # cumulative: without the first, the first two, ... until outside

    def to_json(self) -> dict[str, Any]:
        """Plain types; `text` is the line."""
        return super().to_json() | {"text": self.text()}

    def text(self) -> str:
        """Which run would change the conclusion, in one line."""
        first = self.single[0]
        low, high = self.bounds
        line = f"{self.target} = {self.value:.4g}"
        within = f"[{low:.4g}, {high:.4g}], {self.bounds_are}"
        lost = sum(removal.values is None for removal in self.single)
        needed = f"; {lost} cannot be left out, as no law is fitted without them" if lost else ""
        if first.values is None:
            return line + needed
        if first.outside:
            many = sum(removal.outside for removal in self.single)
            return (
                f"{line}: without {self._named(first)} alone it is {self._at(first)}, outside "
                f"{within}; {many} of {len(self.single)} alone do so{needed}"
            )
        line += (
            f": no single one moves it out of {within} (most: {self._named(first)}, to "
            f"{self._at(first)})"
        )
        if self.worst:
            last = self.worst[-1]
            where = "outside" if last.outside else "still inside"
            line += (
                f"; without the worst {len(last.units)} ({self._named(last)}) it is "
                f"{self._at(last)}, {where}"
            )
        return line + needed

    def _named(self, removal: Removal) -> str:
        plural = "s" if len(removal.units) > 1 else ""
        return f"{self.unit}{plural} {', '.join(map(str, removal.units))}"

    def _at(self, removal: Removal) -> str:
        return "no fit" if removal.values is None else f"{removal.values[self.target]:.4g}"


def influence_of(
    fit: LawFit,
    columns: Mapping[str, Iterable[float]],
    loss: Iterable[float],
    *,
    drop_worst: int = 0,
    groups: Iterable[object] | None = None,
    target: str | None = None,
    at: Mapping[str, float] | None = None,
    bounds: tuple[float, float] | None = None,
    worst: int = MOST_TOGETHER,
) -> Influence:
    """What leaving out each point of `fit`, or each run, does to it.

    columns, loss (n,), drop_worst: as given to `fit_law`. groups (n,): the run of each point.
    target: a parameter, an exponent, or `loss` with `at`, such as N=1e9, D=2e10; by default a.
    bounds: where the conclusion stands, such as (0.5, inf); by default the fit's 95 % interval, or
    twice the jackknife's standard error. worst: the most units to take away together. Raises
    `UserError` for another table than the fit's, or a target that it does not have.
    """
    points = Points.of(fit.form, columns, loss, drop_worst)
    refits = _Refits.of(fit, points, at)
    labels = np.flatnonzero(points.keep).tolist() if groups is None else points.labels(groups)
    units, absent = _units(labels)
    before = {name: float(v[0]) for name, v in refits.values(np.ones((1, len(labels)))).items()}
    key = _target(target, before, at)
    alone = refits.values(1 - absent)
    se = _jackknife(alone[key])
    ends, bounds_are = _bounds(fit, key, before[key], se, bounds, at)
    conclusion = _Conclusion(key, before, se, ends)

    single = [conclusion.without([unit], alone, i) for i, unit in enumerate(units)]
    single.sort(key=conclusion.moved, reverse=True)
    paths = [_greedy(refits, absent, units, conclusion, sign, worst) for sign in (1, -1)]
    return Influence(
        unit="row" if groups is None else "run",
        target=key,
        value=before[key],
        bounds=list(ends),
        bounds_are=bounds_are,
        se=se,
        single=single,
        worst=_shortest(paths, conclusion),
    )


def without_highest(
    fit: LawFit, columns: Mapping[str, Iterable[float]], loss: Iterable[float], most: int = 10
) -> list[dict[str, float | None]]:
    """The fit without the 0, 1, ... `most` highest losses, which are its outlier rule.

    Each has `dropped`, the `row` that went last, and parameters and exponents (None: no fit).
    """
    points = Points.of(fit.form, columns, loss)
    n = len(points.loss)
    if not 0 <= most < n:
        raise UserError(f"most = {most}: expected 0 to {n - 1}")
    order = np.argsort(points.loss, kind="stable")[::-1][:most]
    weights = np.ones((most + 1, n))
    for k, row in enumerate(order):
        weights[k + 1 :, row] = 0.0
    values = _Refits.of(fit, points, None).values(weights)
    rows = []
    for k in range(most + 1):
        gone = {"dropped": k, "row": int(order[k - 1]) if k else None}
        rows.append(plain(gone | {name: float(v[k]) for name, v in values.items()}))
    return rows


# -- the conclusion -------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Conclusion:
    """That a target, whose value is among those `before`, lies within its ends."""

    target: str
    before: dict[str, float]
    se: float
    ends: tuple[float, float]

    def without(self, units: Sequence[object], values: Values, i: int) -> Removal:
        """What the i-th refit, which is without `units`, says of it."""
        now = {name: float(v[i]) for name, v in values.items()}
        if not np.isfinite(now[self.target]):
            return Removal(list(units))
        change = {name: now[name] - self.before[name] for name in now}
        low, high = self.ends
        return Removal(
            list(units),
            now,
            change,
            change[self.target] / self.se if self.se else None,
            not low <= now[self.target] <= high,
        )

    def moved(self, removal: Removal) -> float:
        """How far, whichever way; below 0 for no fit."""
        return -1.0 if removal.change is None else abs(removal.change[self.target])


def _units(labels: Sequence[object]) -> tuple[list[object], Array]:
    """What may be left out, each once, and which points it is, as weights (units, n) of 0 and 1."""
    units = list(dict.fromkeys(labels))
    index = np.array([units.index(label) for label in labels])
    return units, (index == np.arange(len(units))[:, None]).astype(float)


def _jackknife(values: Array) -> float:
    """The standard error of what has these values (units,) without each unit; NaN is no fit."""
    known = values[np.isfinite(values)]
    return float(np.sqrt((len(known) - 1) * known.var())) if len(known) > 1 else 0.0


def _greedy(
    refits: _Refits,
    absent: Array,
    units: Sequence[object],
    conclusion: _Conclusion,
    sign: int,
    most: int,
) -> list[Removal]:
    """The units that move the target most to one side, one more at a time, until it is outside."""
    gone: list[int] = []
    path: list[Removal] = []
    while len(gone) < min(most, len(units) - 1) and not (path and path[-1].outside):
        left = [i for i in range(len(units)) if i not in gone]
        values = refits.values(1 - absent[gone].sum(0) - absent[left])
        moved = sign * values[conclusion.target]
        if not np.isfinite(moved).any():
            break
        best = int(np.nanargmax(moved))
        gone.append(left[best])
        path.append(conclusion.without([units[i] for i in gone], values, best))
    return path


def _shortest(paths: Sequence[list[Removal]], conclusion: _Conclusion) -> list[Removal]:
    """The one that leads outside, with the fewest units, and the furthest."""

    def order(path: list[Removal]) -> tuple[bool, int, float]:
        last = path[-1]
        return not last.outside, len(path), -conclusion.moved(last)

    return min((path for path in paths if path), key=order, default=[])


def _target(name: str | None, values: Mapping[str, float], at: Mapping[str, float] | None) -> str:
    """The name of what is asked; `UserError` for what the fit does not have."""
    if name is None:
        usual = [PREDICTED_LOSS] if at else ["a"]
        return next((key for key in usual if key in values), [*values][-1])
    if name not in values:
        hint = did_you_mean(name, values) or f"; choose {one_of(values)}"
        raise UserError(f"target {name!r}: not of this fit{hint}")
    return name


def _bounds(
    fit: LawFit,
    target: str,
    value: float,
    se: float,
    bounds: tuple[float, float] | None,
    at: Mapping[str, float] | None,
) -> tuple[tuple[float, float], str]:
    """Within which the conclusion stands, and what they are."""
    if bounds is not None:
        low, high = bounds
        if not low <= value <= high:
            raise UserError(
                f"bounds [{low:g}, {high:g}]: {target} = {value:g} is not within them, so "
                "there is no conclusion to change"
            )
        return (float(low), float(high)), "the bounds given"
    ends = fit.ci95.get(target)
    if ends is None and at:
        ends = fit.predict(**at).loss_ci95
    if ends is not None:
        low, high = ends
        return (low, high), "its 95 % interval"
    room = STANDARD_ERRORS * se
    return (value - room, value + room), "two jackknife standard errors"


# -- the refits -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Refits:
    """The points of a fit, ready to be fitted again under any weights."""

    fit: LawFit
    points: Points
    problem: Problem
    rule: Objective
    loss: Array  # (1, n) over the problem's scale
    optimum: Array  # (p,) coordinates of the fit
    at: list[Array] | None  # predictors of a loss that is predicted

    @classmethod
    def of(cls, fit: LawFit, points: Points, at: Mapping[str, float] | None) -> _Refits:
        """Solve what all refits start from."""
        x = None
        if at is not None:
            missing = [name for name in fit.form.predictors if name not in at]
            if missing:
                raise UserError(
                    f"a predicted loss needs {', '.join(fit.form.predictors)}: no {missing[0]}"
                )
            x = [np.array([float(at[name])]) for name in fit.form.predictors]
        problem = problem_of(fit.form, points.x, points.loss)
        rule = Objective(fit.objective_name, fit.delta or USUAL_DELTA)
        loss = points.loss[None] / problem.scale
        best = solver.solve(solver.Task(problem, rule, loss, np.ones(loss.shape)), STARTS)
        return cls(fit, points, problem, rule, loss, best.theta[0], x)

    def values(self, weights: Array) -> dict[str, Array]:
        """Parameters, exponents and the predicted loss, (R,) each, for weights (R, n) of 0 and 1.

        NaN where what is left cannot be fitted.
        """
        form = self.fit.form
        params = np.full((len(weights), len(form.names)), np.nan)
        enough = np.flatnonzero([self._enough(row > 0) for row in weights])
        for first in range(0, len(enough), _AT_ONCE):
            rows = enough[first : first + _AT_ONCE]
            task = solver.Task(self.problem, self.rule, self.loss, weights[rows])
            refits = solver.resolve(task, self.optimum)
            done = refits.converged
            params[rows[done]] = self.problem.params(refits.theta[done])
        values = dict(zip(form.names, params.T, strict=True)) | form.exponents(params)
        if self.at is not None:
            values[PREDICTED_LOSS] = form.loss(params, *self.at)[:, 0]
        return values

    def _enough(self, keep: Array) -> bool:
        try:
            check_points(self.fit.form, self.points.names, self.points.x[:, keep])
        except UserError:
            return False
        return True
