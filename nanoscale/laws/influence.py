"""Which runs a conclusion hangs on: exact refits without each point or run, and without the worst.

The one idea: leaving a run out is a weight of 0, so all refits are one batch of the solver that
made the fit, from its optimum, with other starts checked; nothing is linearised. The conclusion is
that the target lies within bounds; the fewest runs without which it does not are sought by taking
away the most influential, again and again (greedy and exact, where Broderick, Giordano and Meager
2020 is at once and approximate).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from nanoscale.data.gauge import each
from nanoscale.errors import UserError, nearest_or_all
from nanoscale.laws import solver
from nanoscale.laws.arrays import Array, batches
from nanoscale.laws.certified import Certified
from nanoscale.laws.fit import STARTS, LawFit
from nanoscale.laws.objectives import Objective
from nanoscale.laws.points import Points, RowLabels, TableColumns, check_points
from nanoscale.laws.problem import problem_of
from nanoscale.laws.record import Record
from nanoscale.spec.values import Json

_AT_ONCE = 500  # refits
MOST_TOGETHER = 5  # runs that are taken away together
STANDARD_ERRORS = 2.0  # of the jackknife, that bound a conclusion without an interval
PREDICTED_LOSS = "loss"  # the name of a target that is one
USUAL_DELTA = 1e-3  # of objectives that have none of their own

_Values = Mapping[str, Array]  # parameters, exponents, predicted loss -> that of every refit (R,)
_Place = Mapping[str, float]  # predictor -> value
_Bounds = tuple[float, float]  # within which a conclusion stands


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

    def to_json(self) -> dict[str, Json]:
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
    columns: TableColumns,
    loss: Iterable[float],
    *,
    drop_worst: int = 0,
    groups: RowLabels | None = None,
    target: str | None = None,
    at: _Place | None = None,
    bounds: _Bounds | None = None,
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
    removals = _Removals.of(refits, labels, target)
    if bounds is None:
        ends, bounds_are = _usual_bounds(fit, removals, at)
    else:
        ends, bounds_are = _given_bounds(bounds, removals), "the bounds given"
    removals = replace(removals, ends=ends)
    return Influence(
        unit="row" if groups is None else "run",
        target=removals.target,
        value=removals.value,
        bounds=list(ends),
        bounds_are=bounds_are,
        se=removals.se,
        single=removals.single(),
        worst=removals.fewest(worst),
    )


# -- the conclusion -------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Removals:
    """Units to leave out, and the conclusion: a target, of those `before`, is within its ends."""

    refits: _Refits
    units: list[object]
    absent: Array  # (units, n) 1 at the points of each
    target: str
    before: dict[str, float]
    alone: _Values  # without each unit (units,)
    ends: _Bounds = (-np.inf, np.inf)

    @classmethod
    def of(cls, refits: _Refits, labels: Sequence[object], target: str | None) -> _Removals:
        """labels (n,): the unit of every point."""
        units = list(dict.fromkeys(labels))
        index = [units.index(label) for label in labels]
        absent = np.eye(len(units))[:, index]
        alone = refits.values(1 - absent)
        with_all = refits.values(np.ones((1, len(labels))))
        before = {}
        for name, values in with_all.items():
            before[name] = float(values[0])
        return cls(refits, units, absent, _target(target, before), before, alone)

    @property
    def value(self) -> float:
        """The target's, with all units."""
        return self.before[self.target]

    @cached_property
    def se(self) -> float:
        """The target's standard error, by the jackknife over units; NaN is no fit."""
        values = self.alone[self.target]
        known = values[np.isfinite(values)]
        n = len(known)
        return float(np.sqrt((n - 1) * known.var())) if n > 1 else 0.0

    def single(self) -> list[Removal]:
        """Each unit's, those that move the target most first."""
        single = [self.found([i], self.alone, i) for i in range(len(self.units))]
        return sorted(single, key=self.moved, reverse=True)

    def found(self, gone: Sequence[int], values: _Values, i: int) -> Removal:
        """What the i-th refit, which is without the units that are `gone`, says."""
        units = [self.units[k] for k in gone]
        now = {name: float(refits[i]) for name, refits in values.items()}
        value = now[self.target]
        if not np.isfinite(value):
            return Removal(units)

        change = {}
        for name, was in self.before.items():
            change[name] = now[name] - was
        in_se = None
        if self.se:
            in_se = change[self.target] / self.se
        low, high = self.ends
        outside = not low <= value <= high
        return Removal(units, now, change, in_se, outside)

    def moved(self, removal: Removal) -> float:
        """How far, whichever way; below 0 for no fit."""
        return -1.0 if removal.change is None else abs(removal.change[self.target])

    def fewest(self, most: int) -> list[Removal]:
        """What leads outside with the fewest units, or furthest: upwards or downwards."""

        def order(path: list[Removal]) -> tuple[bool, int, float]:
            last = path[-1]
            return not last.outside, len(path), -self.moved(last)

        paths = [self._path(1, most), self._path(-1, most)]
        found = [path for path in paths if path]
        return min(found, key=order, default=[])

    def _path(self, sign: int, most: int) -> list[Removal]:
        """The units that move the target most to one side, one more at a time, until it is out."""
        gone: list[int] = []
        path: list[Removal] = []
        while len(gone) < min(most, len(self.units) - 1):
            left = [i for i in range(len(self.units)) if i not in gone]
            kept = 1 - self.absent[gone].sum(0)
            values = self.refits.values(kept - self.absent[left])
            moved = sign * values[self.target]
            if not np.isfinite(moved).any():
                break
            best = int(np.nanargmax(moved))
            gone.append(left[best])
            path.append(self.found(gone, values, best))
            if path[-1].outside:
                break
        return path


def _target(name: str | None, values: Mapping[str, float]) -> str:
    """The name of what is asked; `UserError` for what the fit does not have."""
    if name is None:
        usual = [key for key in (PREDICTED_LOSS, "a") if key in values]
        return usual[0] if usual else [*values][-1]
    if name not in values:
        raise UserError(f"target {name!r}: not of this fit{nearest_or_all(name, values)}")
    return name


def _given_bounds(bounds: _Bounds, removals: _Removals) -> _Bounds:
    low, high = bounds
    value = removals.value
    if not low <= value <= high:
        raise UserError(
            f"bounds [{low:g}, {high:g}]: {removals.target} = {value:g} is not within them, so "
            "there is no conclusion to change"
        )
    return float(low), float(high)


def _usual_bounds(fit: LawFit, removals: _Removals, at: _Place | None) -> tuple[_Bounds, str]:
    """Within which the conclusion stands, and what they are."""
    ends = fit.ci95.get(removals.target)
    if ends is None and at:
        ends = fit.predict(**at).loss_ci95
    if ends is not None:
        low, high = ends
        return (low, high), "its 95 % interval"
    value = removals.value
    room = STANDARD_ERRORS * removals.se
    return (value - room, value + room), "two jackknife standard errors"


# -- the refits -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Refits:
    """The points of a fit, ready to be fitted again under any weights."""

    points: Points
    best: Certified  # what all refits start from
    at: list[Array]  # predictors of a loss that is predicted, if one is

    @classmethod
    def of(cls, fit: LawFit, points: Points, at: _Place | None) -> _Refits:
        """Solve for all points."""
        form = fit.form
        names = form.predictors
        x = []
        if at is not None:
            missing = [name for name in names if name not in at]
            if missing:
                raise UserError(f"a predicted loss needs {', '.join(names)}: no {missing[0]}")
            x = [np.array([float(at[name])]) for name in names]
        problem = problem_of(form, points.x, points.loss)
        rule = Objective(fit.objective_name, fit.delta or USUAL_DELTA)
        return cls(points, Certified.of(problem, points.loss, rule, STARTS), x)

    def values(self, weights: Array) -> dict[str, Array]:
        """Parameters, exponents and the predicted loss, (R,) each, for weights (R, n) of 0 and 1.

        NaN where what is left cannot be fitted.
        """
        form = self.best.problem.law
        params = np.full((len(weights), len(form.names)), np.nan)
        enough = np.flatnonzero([self._enough(row > 0) for row in weights])
        for some in each(list(batches(len(enough), _AT_ONCE)), "parts of the refits"):
            rows = enough[some]
            params[rows] = self._refitted(weights[rows])
        values = dict(zip(form.names, params.T, strict=True))
        values |= form.exponents(params)
        if self.at:
            values[PREDICTED_LOSS] = form.loss(params, *self.at)[:, 0]
        return values

    def _refitted(self, weights: Array) -> Array:
        """Parameters (R, p) of so many refits; NaN where the solver did not converge."""
        best = self.best
        refits = solver.resolve(best.on(best.loss, weights), best.theta)
        params = best.problem.params(refits.theta)
        params[~refits.converged] = np.nan
        return params

    def _enough(self, keep: Array) -> bool:
        points = self.points
        try:
            check_points(self.best.problem.law, points.names, points.x[:, keep])
        except UserError:
            return False
        return True
