"""Which runs a conclusion hangs on: exact refits without each point or run, and without the worst.

The one idea: leaving a run out is a weight of 0, so all refits are one batch of the solver that
made the fit, from its optimum, with other starts checked; nothing is linearised. The conclusion is
that the target lies within bounds; the fewest runs without which it does not are sought by taking
away the most influential, again and again (greedy and exact, where Broderick, Giordano and Meager
2020 is at once and approximate).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np

from nanoscale.errors import UserError, did_you_mean, one_of
from nanoscale.laws import solver
from nanoscale.laws.fit import STARTS, LawFit
from nanoscale.laws.objectives import Objective
from nanoscale.laws.points import check_points, kept, numbers, plain_labels, predictors
from nanoscale.laws.problem import Problem, problem_of
from nanoscale.store.files import plain

CHUNK = 500  # refits at a time
WORST = 5  # runs taken away together, at most
SPREAD = 2.0  # jackknife standard errors that bound a conclusion without an interval
LOSS = "loss"  # the name of a target that is a predicted loss


@dataclass(frozen=True)
class Removal:
    """The fit without some units, which are rows (from 0), or runs."""

    units: list[object]
    values: dict[str, float] | None  # parameters, exponents, predicted loss; None: no fit
    change: dict[str, float] | None  # of them
    in_se: float | None  # the target's change, in its standard error
    outside: bool  # whether the target leaves its bounds


@dataclass(frozen=True)
class Influence:
    """What a fit owes to each unit. `single` is sorted by the target's change, largest first."""

    unit: str  # row, of the table and from 0, or run
    target: str
    value: float
    bounds: list[float]  # within which the conclusion stands
    bounds_are: str
    se: float  # of the target, by the jackknife over units
    single: list[Removal]  # those without a fit last
    worst: list[Removal]  # cumulative: without the first, the first two, ... until outside

    def to_json(self) -> dict[str, object]:
        """Plain types; `text` is the line."""
        return plain(asdict(self) | {"text": self.text()})

    def text(self) -> str:
        """Which run would change the conclusion, in one line."""
        within = f"[{', '.join(f'{end:.4g}' for end in self.bounds)}], {self.bounds_are}"
        first, lost = self.single[0], sum(one.values is None for one in self.single)
        needed = f"; {lost} cannot be left out, as no law is fitted without them" if lost else ""
        line = f"{self.target} = {self.value:.4g}"
        if first.values is None:
            return f"{line}{needed}"
        if first.outside:
            many = sum(one.outside for one in self.single)
            return (
                f"{line}: without {self._named(first)} alone it is {self._at(first)}, outside "
                f"{within}; {many} of {len(self.single)} alone do so{needed}"
            )
        together = "".join(
            f"; without the worst {len(last.units)} ({self._named(last)}) it is {self._at(last)}, "
            f"{'outside' if last.outside else 'still inside'}"
            for last in self.worst[-1:]
        )
        return (
            f"{line}: no single one moves it out of {within} (most: {self._named(first)}, to "
            f"{self._at(first)}){together}{needed}"
        )

    def _named(self, removal: Removal) -> str:
        plural = "s" * (len(removal.units) > 1)
        return f"{self.unit}{plural} {', '.join(map(str, removal.units))}"

    def _at(self, removal: Removal) -> str:
        return f"{removal.values[self.target]:.4g}"


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
    worst: int = WORST,
) -> Influence:
    """What leaving out each point of `fit`, or each run, does to it.

    columns, loss (n,), drop_worst: as given to `fit_law`. groups (n,): the run of each point.
    target: a parameter, an exponent, or `loss` with `at`, such as N=1e9, D=2e10; by default a.
    bounds: where the conclusion stands, such as (0.5, inf); by default the fit's 95 % interval, or
    twice the jackknife's standard error. worst: the most units to take away together. Raises
    `UserError` for another table than the fit's, or a target that it does not have.
    """
    refits = _Refits.of(fit, columns, loss, drop_worst, at)
    n = len(refits.rows)
    labels = refits.rows.tolist() if groups is None else plain_labels(groups)
    if groups is not None:
        if len(labels) != len(refits.keep):
            raise UserError(
                f"columns differ in length (groups {len(labels)}, loss "
                f"{len(refits.keep)}); give one value per run"
            )
        labels = [labels[i] for i in refits.rows]
    units = list(dict.fromkeys(labels))
    index = np.array([units.index(label) for label in labels])
    absent = (index[None] == np.arange(len(units))[:, None]).astype(float)  # (units, n)
    before = {k: v[0] for k, v in refits.values(np.ones((1, n))).items()}
    key = _target(target or (LOSS if at else "a" if "a" in before else fit.form.names[-1]), before)
    found = refits.values(1 - absent)
    there = found[key][np.isfinite(found[key])]
    se = float(np.sqrt((len(there) - 1) * there.var())) if len(there) > 1 else 0.0
    ends, are = _bounds(fit, key, before[key], se, bounds, at)

    def removal(values: Mapping[str, np.ndarray], i: int, of: Sequence[object]) -> Removal:
        if not np.isfinite(values[key][i]):
            return Removal(list(of), None, None, None, False)
        now = {k: float(v[i]) for k, v in values.items()}
        change = {k: now[k] - float(before[k]) for k in now}
        return Removal(
            list(of),
            now,
            change,
            change[key] / se if se else None,
            not ends[0] <= now[key] <= ends[1],
        )

    single = sorted(
        (removal(found, i, [unit]) for i, unit in enumerate(units)),
        key=lambda one: -abs(one.change[key]) if one.change else 1.0,
    )
    paths = [_greedy(refits, absent, units, key, ends, sign, worst, removal) for sign in (1, -1)]
    paths = [path for path in paths if path] or [[]]
    best = min(
        paths,
        key=lambda p: (not (p and p[-1].outside), len(p), -abs(p[-1].change[key]) if p else 0.0),
    )
    return Influence(
        unit="row" if groups is None else "run",
        target=key,
        value=float(before[key]),
        bounds=[float(end) for end in ends],
        bounds_are=are,
        se=se,
        single=single,
        worst=best,
    )


def without_highest(
    fit: LawFit, columns: Mapping[str, Iterable[float]], loss: Iterable[float], most: int = 10
) -> list[dict[str, object]]:
    """The fit without the 0, 1, ... `most` highest losses, which are its outlier rule.

    Each has `dropped`, the `row` that went last, and parameters and exponents (None: no fit).
    """
    refits = _Refits.of(fit, columns, loss, 0, None)
    if not 0 <= most < len(refits.rows):
        raise UserError(f"most = {most}: expected 0 to {len(refits.rows) - 1}")
    order = np.argsort(refits.loss, kind="stable")[::-1][:most]
    weights = np.ones((most + 1, len(refits.rows)))
    for k, row in enumerate(order):
        weights[k + 1 :, row] = 0.0
    values = refits.values(weights)
    return [
        plain(
            {"dropped": k, "row": int(order[k - 1]) if k else None}
            | {name: float(v[k]) for name, v in values.items()}
        )
        for k in range(most + 1)
    ]


@dataclass(frozen=True)
class _Refits:
    """The points of a fit, ready to be fitted again under any weights."""

    fit: LawFit
    keep: np.ndarray  # (table,) mask
    rows: np.ndarray  # (n,) in the table
    names: tuple[str, ...]
    x: np.ndarray  # (P, n)
    loss: np.ndarray  # (n,)
    at: list[np.ndarray] | None

    @classmethod
    def of(
        cls, fit: LawFit, columns, loss, drop_worst: int, at: Mapping[str, float] | None
    ) -> _Refits:
        loss = numbers(loss, "loss")
        names, x = predictors(fit.form, columns, len(loss))
        keep = kept(loss, drop_worst)
        missing = [name for name in fit.form.predictors if at is not None and name not in at]
        if missing:
            raise UserError(
                f"a predicted loss needs {', '.join(fit.form.predictors)}: no {missing[0]}"
            )
        there = None if at is None else [np.array([float(at[k])]) for k in fit.form.predictors]
        return cls(fit, keep, np.flatnonzero(keep), names, x[:, keep], loss[keep], there)

    @cached_property
    def optimum(self) -> tuple[Problem, Objective, np.ndarray, np.ndarray]:
        """The problem, its objective, the losses (1, n) over its scale, and where all lead (p,)."""
        problem = problem_of(self.fit.form, self.x, self.loss)
        rule = Objective(self.fit.objective_name, self.fit.delta or 1e-3)
        scaled = self.loss[None] / problem.scale
        best = solver.solve(problem, rule, scaled, np.ones(scaled.shape), STARTS)
        return problem, rule, scaled, best.theta[0]

    def values(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Parameters, exponents and the predicted loss, (R,) each, for weights (R, n) of 0 and 1.

        NaN where what is left cannot be fitted.
        """
        form, (problem, rule, scaled, best) = self.fit.form, self.optimum
        params = np.full((len(weights), len(form.names)), np.nan)
        enough = np.flatnonzero([self._enough(w > 0) for w in weights])
        for rows in (enough[i : i + CHUNK] for i in range(0, len(enough), CHUNK)):
            found = solver.resolve(problem, rule, scaled, weights[rows], best)
            params[rows[found.converged]] = problem.params(found.theta[found.converged])
        values = dict(zip(form.names, params.T, strict=True)) | form.exponents(params)
        if self.at is not None:
            values[LOSS] = form.loss(params, *self.at)[:, 0]
        return values

    def _enough(self, keep: np.ndarray) -> bool:
        try:
            check_points(self.fit.form, self.names, self.x[:, keep])
        except UserError:
            return False
        return True


def _greedy(refits, absent, units, key, ends, sign, worst, removal) -> list[Removal]:
    """The units that move the target most to one side, one more at a time, until it is outside."""
    gone: list[int] = []
    path: list[Removal] = []
    while len(gone) < min(worst, len(units) - 1) and not (path and path[-1].outside):
        left = [i for i in range(len(units)) if i not in gone]
        values = refits.values(1 - absent[gone].sum(0) - absent[left])
        moved = sign * values[key]
        if not np.isfinite(moved).any():
            break
        best = int(np.nanargmax(moved))
        gone.append(left[best])
        path.append(removal(values, best, [units[i] for i in gone]))
    return path


def _target(name: str, there: Mapping[str, float]) -> str:
    if name not in there:
        hint = did_you_mean(name, there) or f"; choose {one_of(there)}"
        raise UserError(f"target {name!r}: not of this fit{hint}")
    return name


def _bounds(fit, key, value, se, bounds, at) -> tuple[tuple[float, float], str]:
    if bounds is not None:
        low, high = bounds
        if not low <= value <= high:
            raise UserError(
                f"bounds [{low:g}, {high:g}]: {key} = {value:g} is not within them, so "
                "there is no conclusion to change"
            )
        return (low, high), "the bounds given"
    ends = fit.ci95.get(key) or (fit.predict(**at).get("loss_ci95") if at else None)
    if ends is not None:
        return tuple(ends), "its 95 % interval"
    return (value - SPREAD * se, value + SPREAD * se), "two jackknife standard errors"
