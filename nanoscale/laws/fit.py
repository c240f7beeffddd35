"""Any law through any table of runs: the certified optimum, and intervals by resampling.

The one idea: what is reported is what is bootstrapped. Point fit and resamples minimise the same
objective by the same solver, so an interval belongs to its number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from nanoscale.errors import UserError
from nanoscale.laws import bootstrap, solver
from nanoscale.laws.arrays import Array, Index
from nanoscale.laws.certified import Certified
from nanoscale.laws.forms import Law
from nanoscale.laws.objectives import Objective
from nanoscale.laws.points import (
    LEVELS_WANTED,
    Points,
    RowLabels,
    check_points,
    levels,
    positive,
    rise_together,
)
from nanoscale.laws.problem import problem_of
from nanoscale.laws.reach import not_reached
from nanoscale.laws.record import Optimum, PredictedLoss
from nanoscale.laws.registry import law_of
from nanoscale.laws.resampling import Resampling
from nanoscale.laws.result import (
    FLAT,
    NO_FIT,
    RATIO,
    Fit,
    bounds_hit,
    digest,
    named,
    not_identified,
    status_of,
    warnings_of,
)
from nanoscale.laws.structure import RunsFound, find_runs
from nanoscale.spec.values import Json

SCHEMA = 1
STARTS, FEWER_STARTS, MANY_POINTS = 64, 16, 10_000
POINTS_PER_PARAMETER = 4  # below, pairs resamples repeat points until nothing is identified
_MEANING = {"a": "  N* ~ C^a", "b": "  D* ~ C^b"}  # of the exponents
MOVING = 0.1  # of a parameter's share in the flattest direction


@dataclass(frozen=True, kw_only=True)
class LawFit(Fit):
    """A law through a table. `draws` (R, p) are the parameters of the resamples.

    runs_found: of which the points were found to be checkpoints, where nothing else was asked.
    """

    schema: int
    predictors: list[str]
    exponents: dict[str, float]  # a and b of N* ~ C^a, D* ~ C^b
    condition_number: float
    resampling: str
    lost: int  # resamples that did not converge
    dropped_worst: int
    data: str  # a fingerprint of the points
    draws: Array = field(repr=False)
    runs_found: RunsFound | None = field(default=None, repr=False)

    @property
    def _values(self) -> Array:
        return np.array(list(self.params.values()))

    @np.errstate(all="ignore")
    def predict(self, **x: float) -> PredictedLoss:
        """The loss at e.g. N=1e9, D=2e10, and its 95 % interval (of the law, not of a run).

        Raises `UserError` where a predictor is missing, or no number above 0, for another name,
        and where the law's loss is no finite number.
        """
        at = self.place(x)
        loss = finite(self.form.loss(self._values, *at)[0], "the law's loss", x)
        return PredictedLoss(loss, _ends(self.losses(*at)[:, 0]))

    def place(self, x: Mapping[str, float]) -> list[Array]:
        """Each predictor (1,), by what it is called; that of a law of one may be called x."""
        read = self.x_names if {*self.x_names} <= x.keys() else self.form.predictors
        wanted = ", ".join(self.x_names)
        if not {*read} <= x.keys():
            raise UserError(f"the law reads {wanted}; got {', '.join(x) or 'nothing'}")
        unknown = [name for name in x if name not in read]
        if unknown:
            raise UserError(f"{unknown[0]}: the law reads {wanted}")
        return [np.array([positive(x[name], name)]) for name in read]

    def losses(self, *x: Array) -> Array:
        """(R, n): what the resamples' laws say at predictors (n,)."""
        return self.form.loss(self.draws, *x)

    @np.errstate(all="ignore")
    def optimum(self, C: float) -> Optimum:
        """N* and D* of least loss at C = 6 N D FLOPs, with 95 % intervals.

        Source: Hoffmann et al. 2022, equation 4. Raises `UserError` for a law without N and D,
        and for a C that is no number above 0 or so far off that N* or D* is none.
        """
        C = positive(C, "C")
        N, D = (
            finite(size, "the optimum", {"C": C}) for size in self.form.optimum(self._values, C)
        )
        draws_N, draws_D = self.form.optimum(self.draws, C)
        return Optimum(N, D, _ends(draws_N), _ends(draws_D))

    def summary(self) -> list[str]:
        """The lines a user sees: the law, every parameter's interval, what they rest on."""
        values = self.params | self.exponents
        width = max(map(len, values))
        lines = [self.equation()]
        for name, value in values.items():
            text = self._unknown(name)
            if text is None:
                text = self.with_interval(name, value) + _MEANING.get(name, "")
            lines.append(f"  {name:{width}}  {text}")
        return [*lines, self._basis()]

    def to_json(self) -> dict[str, Json]:
        """Plain types at full precision, with the runs that were found as `runs`."""
        record = super().to_json()
        if self.runs_found is not None:
            record["runs"] = self.runs_found.to_json()
        return record

    def _unknown(self, name: str) -> str | None:
        """Why a parameter or an exponent is not identified; None where it is."""
        reason = self.not_identified.get(name)
        if name in self.exponents and name in self.ci95:
            low, high = self.ci95[name]
            if high > RATIO * low:
                reason = f"its 95 % interval reaches from {low:.2g} to {high:.2g}"
        return None if reason is None else f"not identified ({reason})"

    def _basis(self) -> str:
        """What the fit rests on."""
        line = f"{self.n_points} points"
        if self.dropped_worst:
            line += f" ({self.dropped_worst} highest losses dropped)"
        line += f"; {self.objective_name}"
        if self.delta is not None:
            line += f", delta {self.delta:g}"
        line += f": objective {self.objective:.6g}; "
        if self.ci95:
            line += f"95 % intervals from {self.resamples:,} {self.resampling} resamples"
            if self.runs_found is not None:
                found = self.runs_found
                line += f" of {found.runs} runs (found by {found.column}, p = {found.p_value:.1g})"
            line += "; "
        return f"{line}{self.status}, {self.starts_agreeing()}"


def finite(value: float | Array, what: str, at: Mapping[str, float]) -> float:
    """The number; `UserError` where it is not finite."""
    if not np.isfinite(value):
        place = ", ".join(f"{name}={x:g}" for name, x in at.items())
        raise UserError(f"{place}: {what} there is no finite number; ask nearer to the runs")
    return float(value)


def _ends(draws: Array) -> list[float] | None:
    """The 95 % of draws (R,), if there are any."""
    if not len(draws):
        return None
    ends: list[float] = bootstrap.interval(draws).tolist()
    return ends


@np.errstate(all="ignore")
def fit_law(
    columns: Mapping[str, Iterable[float]],
    loss: Iterable[float],
    *,
    law: str | Law = "chinchilla",
    objective: str = "log-huber",
    delta: float = 1e-3,
    drop_worst: int = 0,
    resamples: int = 4000,
    resampling: str | None = None,
    groups: RowLabels | None = None,
    labels: Mapping[str, RowLabels] | None = None,
    weights: Array | None = None,
    rng_seed: int = 0,
) -> LawFit:
    """Fit `law` to one loss per point; the estimator of `nanoscale fit`, but for ladders.

    The default is Approach 3 of Hoffmann et al. 2022, certified: the least sum of Huber losses of
    ln L, with percentile intervals of resampled points. (A ladder's own, for few runs with seeds,
    is `fit_power_law`.)

    Args:
        columns: predictor -> values; of N, D and C any two give the third (C = 6 N D). A law of one
            predictor takes the only column there is.
        loss: one per point.
        law: its name, or one of your own.
        objective: log-huber, lad, mse or envelope (see `objectives`).
        delta: of the Huber loss of ln L.
        drop_worst: the highest losses to leave out.
        resamples: for the intervals; 0 gives none.
        resampling: pairs, cluster, wild-cluster, stratified, residual, wild or parametric (see
            `bootstrap`), by `groups` where it needs them; None for what the points ask for: whole
            `groups` where they are given, or whole runs where some points are checkpoints of one
            (`find_runs`), and pairs where not. Fewer than 5 runs give no intervals.
        groups: of each point, what is resampled together.
        labels: columns of the table that may name the run of a checkpoint, as N may.
        weights: (R, n) counts of your own in place of drawn ones, for the points that are kept, in
            their order.
        rng_seed: of the resamples.

    Raises:
        UserError: no law can be fitted to that.

    >>> import numpy as np
    >>> from nanoscale.laws import fit_law
    >>> N, D = np.meshgrid(np.geomspace(1e7, 1e9, 4), np.geomspace(1e9, 1e11, 4))
    >>> losses = 1.69 + 406.4 / N**0.34 + 410.7 / D**0.28
    >>> fit = fit_law({"N": N.ravel(), "D": D.ravel()}, losses.ravel(), resamples=0)
    >>> fit.status, round(fit.params["alpha"], 6), round(fit.exponents["a"], 6)
    ('converged', 0.34, 0.451613)
    >>> print(fit.equation())
    L(N, D) = 1.690 + 406.4 / N^0.3400 + 410.7 / D^0.2800
    """
    form = law_of(law)
    rule = Objective.of(objective, delta)
    points = Points.of(form, columns, loss, drop_worst)
    n = len(points.loss)
    index = None if groups is None else points.groups(groups)
    plan = Resampling.of(resampling or "pairs", resamples, index, weights, rng_seed, n)
    check_points(form, points.names, points.x)

    problem = problem_of(form, points.x, points.loss)
    starts = STARTS if n < MANY_POINTS else FEWER_STARTS
    best = Certified.of(problem, points.loss, rule, starts)
    found = None
    if resampling is None and weights is None and resamples and best.converged:
        found = _runs_in(points, best, index, labels or {})
        if found is not None:
            plan = plan.by_run(found.index)
        elif index is not None and index.max() + 1 < n:
            plan = plan.by_run(index)
    draws = plan.refits(best) if best.converged else np.empty((0, len(form.names)))
    return _result(best, points, plan, draws, drop_worst, found)


def _runs_in(
    points: Points, best: Certified, index: Index | None, labels: Mapping[str, RowLabels]
) -> RunsFound | None:
    """The runs that points are checkpoints of, by groups, by columns or by N."""
    named = {name: points.labels(values) for name, values in labels.items()}
    if index is not None and not named:
        named = {"group": index.tolist()}
    return find_runs(points.columns, best.residual, named)


def _result(
    best: Certified,
    points: Points,
    plan: Resampling,
    draws: Array,
    drop_worst: int,
    found: RunsFound | None,
) -> LawFit:
    form = best.problem.law
    rule = best.rule
    exponents = form.exponents(best.params)
    flatness, direction = solver.condition(best, best.theta)
    bounds = bounds_hit(best.problem, best.theta, points.names)
    reasons = _reasons(best, draws, points, flatness, direction)
    if plan.too_few:
        reasons |= dict.fromkeys(form.names, plan.too_few)
    se, ci95 = _doubt(form, draws)
    resamples = 0 if plan.too_few else plan.count
    lost = resamples - len(draws) if best.converged else 0
    unit = best.problem.scale**2 if rule.raw else 1.0
    objective = rule.reported(best.residual[None], best.w)[0] * unit
    certain = best.converged or flatness > FLAT
    return LawFit(
        law=form.name,
        form=form,
        x_names=points.names,
        predictors=list(points.names),
        objective_name=rule.name,
        delta=rule.own_delta,
        n_points=len(points.loss),
        params=named(form, best.params),
        objective=float(objective),
        status=status_of(certain, bounds, reasons),
        not_identified=reasons,
        agreement_of_starts=best.agreement,
        n_starts=best.solution.starts,
        se=se,
        ci95=ci95,
        exponents={name: float(value) for name, value in exponents.items()},
        condition_number=flatness,
        resampling=plan.method,
        resamples=resamples,
        runs_found=found,
        lost=lost,
        rng_seed=plan.rng_seed,
        warnings=_warnings(best, points, plan, lost),
        schema=SCHEMA,
        dropped_worst=int(drop_worst),
        data=digest(points.x, points.loss),
        draws=draws,
    )


def _reasons(
    best: Certified, draws: Array, points: Points, flatness: float, direction: Array
) -> dict[str, str]:
    """Parameter -> why it is not identified."""
    names = best.problem.law.names
    if not best.converged:
        why = f", as the fit is flat (condition number {flatness:.0e})" if flatness > FLAT else ""
        return dict.fromkeys(names, NO_FIT + why)

    ends = bootstrap.interval(draws) if len(draws) else None
    reasons = not_reached(best.problem, draws, points)
    reasons |= not_identified(best.problem, best.theta, ends, points.names)
    if flatness <= FLAT:
        return {name: reasons[name] for name in names if name in reasons}
    moving = [n for n, share in zip(names, direction, strict=True) if abs(share) > MOVING]
    along = f"the fit is flat along {', '.join(moving)} (condition number {flatness:.0e})"
    flat = dict.fromkeys(moving, along) | reasons
    return {name: flat[name] for name in names if name in flat}


def _doubt(form: Law, draws: Array) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Standard errors and 95 % intervals of parameters and exponents."""
    if len(draws) < 2:
        return {}, {}
    se, ci95 = {}, {}
    columns = dict(zip(form.names, draws.T, strict=True))
    columns |= form.exponents(draws)
    for name, values in columns.items():
        se[name] = float(values.std(ddof=1))
        ci95[name] = bootstrap.interval(values).tolist()
    return se, ci95


def _warnings(best: Certified, points: Points, plan: Resampling, lost: int) -> list[str]:
    form = best.problem.law
    n = len(points.loss)
    p = len(form.names)
    warnings = warnings_of(points.loss, best, lost, plan.count, "give them at full precision")
    if plan.count and plan.method == "pairs" and n < POINTS_PER_PARAMETER * p:
        warnings.append(
            f"pairs resamples of {n} points repeat so many that {p} parameters are hardly "
            "pinned down: resample noise as measured, with --resample=parametric"
        )
    for name, values in points.columns.items():
        seen = levels(values)
        if seen < LEVELS_WANTED and name not in form.constant:
            warnings.append(
                f"{name} has only {seen} values: intervals of its exponent are "
                f"too narrow below {LEVELS_WANTED}; add one"
            )
    if rise_together(np.log(points.x)):
        first, second = points.names
        warnings.append(
            f"{first} and {second} rise together, so nothing tells their terms "
            f"apart: vary {second} at fixed {first}, or leave --law out for the law of C"
        )
    return warnings
