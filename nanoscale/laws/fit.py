"""Any law through any table of runs: the certified optimum, and intervals by resampling.

The one idea: what is reported is what is bootstrapped. Point fit and resamples minimise the same
objective by the same solver, so an interval belongs to its number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from nanoscale.errors import UserError, did_you_mean, one_of
from nanoscale.laws import bootstrap, solver
from nanoscale.laws.forms import Law, number
from nanoscale.laws.objectives import Objective
from nanoscale.laws.points import (
    LEVELS_WANTED,
    check_points,
    kept,
    levels,
    numbers,
    plain_labels,
    predictors,
    rise_together,
)
from nanoscale.laws.problem import Problem, problem_of
from nanoscale.laws.registry import law_of
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

SCHEMA = 1
STARTS, FEWER_STARTS, MANY_POINTS = 64, 16, 10_000
MOST_AT_ONCE = 1 << 24  # resamples times points: some hundred MB
MOST_SEED = 2**32 - 1
POINTS_PER_PARAMETER = 4  # below, pairs resamples repeat points until nothing is identified
NEEDS_GROUPS = {"cluster": "the run that each point is of", "stratified": "cells that seeds share"}


@dataclass(frozen=True, kw_only=True)
class LawFit(Fit):
    """A law through a table. `draws` (R, p) are the parameters of the resamples."""

    schema: int
    predictors: list[str]
    exponents: dict[str, float]  # a and b of N* ~ C^a, D* ~ C^b
    condition_number: float
    resampling: str
    lost: int  # resamples that did not converge
    dropped_worst: int
    data: str  # a fingerprint of the points
    draws: np.ndarray = field(repr=False)

    def predict(self, **x: float) -> dict[str, float | list[float]]:
        """The loss at e.g. N=1e9, D=2e10, and its 95 % interval (of the law, not of a run)."""
        at = [np.array([float(x[name])]) for name in self.form.predictors]
        value = self.form.loss(np.array(list(self.params.values())), *at)[0]
        return {"loss": float(value), **self._doubt("loss", self.form.loss(self.draws, *at)[:, 0])}

    def optimum(self, C: float) -> dict[str, float | list[float]]:
        """N* and D* of least loss at C = 6 N D FLOPs, with 95 % intervals."""
        params = np.array(list(self.params.values()))
        found, draws = self.form.optimum(params, C), self.form.optimum(self.draws, C)
        record = {"N": float(found[0]), "D": float(found[1])}
        for name, values in zip("ND", draws, strict=True):
            record |= self._doubt(name, values)
        return record

    def _doubt(self, name: str, draws: np.ndarray) -> dict[str, list[float]]:
        return {f"{name}_ci95": bootstrap.interval(draws).tolist()} if len(draws) else {}

    def summary(self) -> list[str]:
        """The lines a user sees: the law, every parameter's interval, what they rest on."""
        lines = [self.equation()]
        values = self.params | self.exponents
        width = max(map(len, values))
        unknown = dict(self.not_identified)
        for name in self.exponents.keys() & self.ci95.keys():
            low, high = self.ci95[name]
            if high > RATIO * low:
                unknown[name] = f"its 95 % interval reaches from {low:.2g} to {high:.2g}"
        for name, value in values.items():
            if name in unknown:
                lines.append(f"  {name:{width}}  not identified ({unknown[name]})")
                continue
            what = {"a": "  N* ~ C^a", "b": "  D* ~ C^b"}.get(name, "")
            inside = f" {self.interval(name)}" if name in self.ci95 else ""
            lines.append(f"  {name:{width}}  {number(value, self.se.get(name))}{inside}{what}")
        dropped = f" ({self.dropped_worst} highest losses dropped)" if self.dropped_worst else ""
        delta = "" if self.delta is None else f", delta {self.delta:g}"
        by = (
            f"95 % intervals from {self.resamples:,} {self.resampling} resamples; "
            if self.ci95
            else ""
        )
        lines.append(
            f"{self.n_points} points{dropped}; {self.objective_name}{delta}: objective "
            f"{self.objective:.6g}; {by}{self.status}, {self.starts_agreeing()}"
        )
        return lines


def fit_law(
    columns: Mapping[str, Iterable[float]],
    loss: Iterable[float],
    *,
    law: str | Law = "chinchilla",
    objective: str = "log-huber",
    delta: float = 1e-3,
    drop_worst: int = 0,
    resamples: int = 4000,
    resampling: str = "pairs",
    groups: Iterable[object] | None = None,
    weights: np.ndarray | None = None,
    rng_seed: int = 0,
) -> LawFit:
    """Fit `law` to one loss per point.

    columns: predictor -> values; of N, D and C any two give the third (C = 6 N D). A law of one
    predictor takes the only column there is. objective: log-huber, lad, mse or envelope (see
    `objectives`). drop_worst: the highest losses to leave out. resampling: pairs, cluster,
    stratified, residual, wild or parametric (see `bootstrap`), by `groups` where it needs them;
    no intervals with 0 resamples. weights: (R, n) counts of your own in place of drawn ones, for
    the points that are kept, in their order. Raises `UserError` for input that no law can be
    fitted to.

    >>> import nanoscale as ns
    >>> N = [1e6, 2e6, 4e6, 8e6] * 3
    >>> D = [1e8] * 4 + [2e8] * 4 + [8e8] * 4
    >>> losses = [1.7 + 400 / n**0.34 + 410 / d**0.28 for n, d in zip(N, D)]
    >>> fit = ns.fit_law({"N": N, "D": D}, losses, resamples=0)
    >>> fit.status, round(fit.exponents["a"], 3)
    ('converged', 0.452)
    """
    form, rule = law_of(law), Objective.of(objective, delta)
    loss = numbers(loss, "loss")
    names, x = predictors(form, columns, len(loss))
    labels = None if groups is None else np.array([str(g) for g in plain_labels(groups)])
    _check_resampling(resampling, resamples if weights is None else 0, labels, len(loss), rng_seed)
    keep = kept(loss, drop_worst)
    x, loss, labels = x[:, keep], loss[keep], None if labels is None else labels[keep]
    check_points(form, names, x)
    problem = problem_of(form, x, loss)
    scaled, ones = loss[None] / problem.scale, np.ones((1, len(loss)))
    best = solver.solve(
        problem, rule, scaled, ones, STARTS if len(loss) < MANY_POINTS else FEWER_STARTS
    )
    draws = np.empty((0, len(form.names)))
    lost = 0
    if weights is not None:
        resampling, resamples = "given", len(weights)
    if resamples and best.converged[0]:
        parts = _resampled(
            problem, rule, best.theta, scaled, resampling, resamples, labels, weights, rng_seed
        )
        refits = [solver.resolve(problem, rule, *part, best.theta[0]) for part in parts]
        draws = problem.params(np.concatenate([one.theta[one.converged] for one in refits]))
        lost = resamples - len(draws)
    return _result(
        problem,
        rule,
        best,
        draws,
        names=names,
        x=x,
        loss=loss,
        lost=lost,
        resampling=resampling,
        resamples=resamples,
        dropped_worst=int(drop_worst),
        rng_seed=rng_seed,
    )


def _resampled(
    problem, rule, theta, scaled, resampling, resamples, labels, weights, rng_seed
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(losses (R or 1, n), weights (R or 1, n)) of all resamples, as many at once as there is room
    for; those after the first of these parts have seeds of their own.
    """
    n = scaled.shape[1]
    at_once = max(1, MOST_AT_ONCE // n)
    if weights is not None:
        weights = np.asarray(weights, float)
        if weights.ndim != 2 or weights.shape[1] != n or not (weights >= 0).all():
            raise UserError(
                f"weights of shape {weights.shape}: expected (resamples, {n}), none below 0"
            )
    raw, y = rule.raw and resampling != "parametric", scaled[0]
    fitted = problem.at(theta).m[0]
    for first in range(0, resamples, at_once):
        some = min(at_once, resamples - first)
        seed = (
            int(np.random.SeedSequence([rng_seed, first]).generate_state(1)[0])
            if first
            else (rng_seed)
        )
        if weights is not None:
            yield scaled, weights[first : first + some]
        elif resampling in ("pairs", *NEEDS_GROUPS):
            yield scaled, bootstrap.point_weights(resampling, n, labels, some, seed)
        else:
            means = (fitted, y) if raw else (np.log(fitted), np.log(y))
            draws = bootstrap.residual_draws(resampling, *means, theta.shape[1], labels, some, seed)
            yield (np.maximum(draws, 1e-9) if raw else np.exp(draws)), np.ones((1, n))


def _result(
    problem: Problem,
    rule: Objective,
    best: solver.Solution,
    draws: np.ndarray,
    *,
    names,
    x,
    loss,
    lost,
    resampling,
    resamples,
    dropped_worst,
    rng_seed,
) -> LawFit:
    form, theta = problem.law, best.theta
    params = problem.params(theta[0])
    ones = np.ones((1, len(loss)))
    flatness, direction = solver.condition(problem, theta[0], ones)
    ends = bootstrap.interval(draws) if len(draws) else None
    bounds = bounds_hit(problem, theta[0], names)
    reasons = _reasons(problem, best, ends, names, flatness, direction)
    exponents = {k: float(v) for k, v in form.exponents(params).items()}
    se, ci95 = _doubt(form, draws)
    scaled = loss / problem.scale
    residual = rule.residual(scaled if rule.raw else np.log(scaled), problem.at(theta).m)
    unit = problem.scale**2 if rule.raw else 1.0
    return LawFit(
        law=form.name,
        form=form,
        x_names=names,
        predictors=list(names),
        objective_name=rule.name,
        delta=rule.delta if rule.has_delta else None,
        n_points=len(loss),
        params=named(form, params),
        objective=float(rule.reported(residual, ones)[0] * unit),
        status=status_of(best.converged[0] or flatness > FLAT, bounds, reasons),
        not_identified=reasons,
        agreement_of_starts=float(best.agreeing[0] / best.starts),
        n_starts=best.starts,
        se=se,
        ci95=ci95,
        exponents=exponents,
        condition_number=flatness,
        resampling=resampling,
        resamples=resamples,
        lost=lost,
        rng_seed=rng_seed,
        warnings=_warnings(form, names, x, loss, best, lost, resampling, resamples),
        schema=SCHEMA,
        dropped_worst=dropped_worst,
        data=digest(x, loss),
        draws=draws,
    )


def _reasons(problem, best, ends, names, flatness, direction) -> dict[str, str]:
    reasons = not_identified(problem, best.theta[0], ends, names)
    if not best.converged[0]:
        why = f", as the fit is flat (condition number {flatness:.0e})" if flatness > FLAT else ""
        reasons = dict.fromkeys(problem.law.names, NO_FIT + why)
    elif flatness > FLAT:
        moving = [n for n, d in zip(problem.law.names, direction, strict=True) if abs(d) > 0.1]
        reason = f"the fit is flat along {', '.join(moving)} (condition number {flatness:.0e})"
        reasons = {
            n: reasons.get(n, reason) for n in problem.law.names if n in moving or n in reasons
        }
    return reasons


def _doubt(form: Law, draws: np.ndarray) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Standard errors and 95 % intervals of parameters and exponents."""
    if len(draws) < 2:
        return {}, {}
    columns = dict(zip(form.names, draws.T, strict=True)) | form.exponents(draws)
    return (
        {k: float(v.std(ddof=1)) for k, v in columns.items()},
        {k: bootstrap.interval(v).tolist() for k, v in columns.items()},
    )


def _warnings(form, names, x, loss, best, lost, resampling, resamples) -> list[str]:
    found = warnings_of(
        loss, best.agreeing[0], best.starts, lost, resamples, "give them at full precision"
    )
    n, p = len(loss), len(form.names)
    if resamples and resampling == "pairs" and n < POINTS_PER_PARAMETER * p:
        found.append(
            f"pairs resamples of {n} points repeat so many that {p} parameters are hardly "
            "pinned down: resample noise as measured, with --resample=parametric"
        )
    for name, values in zip(names, x, strict=True):
        if levels(values) < LEVELS_WANTED and name not in form.constant:
            found.append(
                f"{name} has only {levels(values)} values: intervals of its exponent are "
                f"too narrow below {LEVELS_WANTED}; add one"
            )
    if rise_together(np.log(x)):
        found.append(
            f"{names[0]} and {names[1]} rise together, so nothing tells their terms "
            f"apart: vary {names[1]} at fixed {names[0]}, or fit --law=power"
        )
    return found


def _check_resampling(
    method: str, resamples: int, labels: np.ndarray | None, n: int, rng_seed: int
) -> None:
    if method not in bootstrap.METHODS:
        hint = did_you_mean(method, bootstrap.METHODS) or f"; choose {one_of(bootstrap.METHODS)}"
        raise UserError(f"resampling {method!r}: no such way{hint}")
    if method in NEEDS_GROUPS and labels is None:
        raise UserError(f"resampling {method} needs groups: {NEEDS_GROUPS[method]}")
    if labels is not None and len(labels) != n:
        raise UserError(
            f"columns differ in length (groups {len(labels)}, loss {n}); give one value per run"
        )
    if resamples:
        bootstrap.check_resamples(resamples)
    if not 0 <= rng_seed <= MOST_SEED:
        raise UserError(f"rng_seed = {rng_seed}: expected 0 to {MOST_SEED}")
