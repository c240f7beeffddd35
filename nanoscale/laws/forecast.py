"""A forecast of one run, with an interval that is meant to hold when the run is made.

The one idea: a forecast misses by the law's own uncertainty and a run's noise, which resamples
hold, and by what they cannot: that the law's form, or how well the runs are tuned, drifts further
out. How far it drifts is asked of these very runs. Below one budget after another the law is fitted
and compared with the runs above; what it misses there, beside what its resamples foresaw, is a
drift of `s` in ln L per e-fold of compute, of which a posterior is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Unpack

import numpy as np

from nanoscale.data.gauge import each
from nanoscale.errors import UserError, counted
from nanoscale.laws import bootstrap
from nanoscale.laws.arrays import Array, Mask
from nanoscale.laws.fit import LawFit
from nanoscale.laws.forms import Law
from nanoscale.laws.holdout import RUNS_PER_PARAMETER, FitOptions, Past, thresholds
from nanoscale.laws.points import RowLabels, TableColumns, compute
from nanoscale.laws.predict import Basis, new_runs
from nanoscale.laws.record import Record
from nanoscale.laws.runs import SIZES_NEEDED

USUAL_DRIFT = 0.005  # half of all tables drift less: the scale of a half-Cauchy prior (see LOG)
DRIFTS = np.geomspace(1e-4, 0.3, 90)  # on which the posterior is kept
PAST_RESAMPLES = 100  # of a law of the past
FARTHEST = 1e4  # times the budgets of the runs
STEPS_NEEDED = 2  # budgets below which a law was fitted
DRAWS_NEEDED = 20  # of a law's resamples that have a result


@dataclass(frozen=True)
class ForecastPoint:
    """A forecast as it is drawn, with what was observed once that is known."""

    C: float
    loss: float
    ci95: tuple[float, float]
    observed: float | None


@dataclass(frozen=True, kw_only=True)
class LawDrift(Record):
    """How far the law drifts in ln L per e-fold of compute, by what smaller runs foresaw."""

    median: float
    ci95: list[float]
    steps: int  # budgets below which a law was fitted
    farthest: float  # times the largest budget fitted, that one was compared at
    weights: Array = field(repr=False)  # of `DRIFTS`, (90,)


@dataclass(frozen=True, kw_only=True)
class Forecast(Record):
    """The loss of a run not yet made.

    `run_ci95` is of the law and a run's noise, as `predict` says it; `ci95` holds the drift too.
    `refused`: why there is no interval to be judged by, and what would give one.
    """

    at: dict[str, float]
    distance: float | None  # in C, times the largest of the runs
    law: str
    loss: float
    run_ci95: list[float] | None
    ci95: list[float] | None
    drift: LawDrift | None
    refused: list[str]

    def text(self) -> list[str]:
        """What a user reads."""
        place = ", ".join(f"{name}={value:.3g}" for name, value in self.at.items())
        far = "" if self.distance is None else f", {self.distance:.3g} times the largest C"
        line = f"at {place}{far}: loss {self.loss:.4g}"
        if self.ci95 is None or self.drift is None:
            return [line, *(f"no interval: {reason}" for reason in self.refused)]
        low, high = self.ci95
        half = 50 * math.log(high / low)
        low_drift, high_drift = (100 * end for end in self.drift.ci95)
        lines = [
            f"{line} [{low:.4g}, {high:.4g}], 95 % of a run (half-width {half:.2g} %)",
            f"drift of the law: {100 * self.drift.median:.2g} % [{low_drift:.2g}, "
            f"{high_drift:.2g}] per e-fold of C, by {counted(self.drift.steps, 'budget')} foreseen "
            f"from below, to {self.drift.farthest:.3g} times theirs",
        ]
        if self.run_ci95 is not None:
            low, high = self.run_ci95
            lines.append(f"without it: [{low:.4g}, {high:.4g}]")
        return lines


@np.errstate(all="ignore")
def forecast(
    fit: LawFit,
    columns: TableColumns,
    loss: Iterable[float],
    at: Mapping[str, float],
    *,
    drop_worst: int = 0,
    groups: RowLabels | None = None,
    **options: Unpack[FitOptions],
) -> Forecast:
    """The loss of a new run at `at`, by predictor, from a fit and the points that it is of.

    `options` are those of the fit. Raises `UserError` for a place that the law does not read.

    >>> import nanoscale as ns
    >>> from nanoscale.laws.forecast import forecast
    >>> C = [10 ** (15 + k / 4) for k in range(12)]
    >>> loss = [1.7 + 900 / c**0.2 for c in C]
    >>> fit = ns.fit_law({"C": C}, loss, law="power", resamples=200)
    >>> found = forecast(fit, {"C": C}, loss, {"C": 1e19}, law="power")
    >>> found.ci95[0] < 1.7 + 900 / 1e19**0.2 < found.ci95[1]
    True
    """
    loss = [*loss]
    place = fit.place(at)
    past = Past.of(columns, loss, drop_worst, groups, {**options, "law": fit.form})
    basis = Basis.of(fit, columns, loss, drop_worst)
    C = compute(dict(zip(past.points.names, place, strict=True)))
    distance = None if C is None else basis.distance(C[0])
    check_reach(C, distance)
    drift = drift_of(past)
    laws = finite_rows(fit.losses(*place))
    refused = refusals(fit, laws, past, drift)
    run_ends = ends = None
    if not refused and drift is not None and C is not None:
        runs = new_runs(laws, basis.noise, fit.rng_seed)  # (R, 1)
        of_runs = bootstrap.interval(runs)
        run_ends = of_runs[:, 0].tolist()
        away = folds_beyond(C[0], basis.reach["C"]) * drawn(drift, len(runs), fit.rng_seed)
        drifted = bootstrap.interval(runs * np.exp(away[:, None]))
        ends = bootstrap.widened(drifted, of_runs)[:, 0].tolist()
    return Forecast(
        at=dict(at),
        distance=distance,
        law=fit.law,
        loss=fit.predict(**at).loss,
        run_ci95=run_ends,
        ci95=ends,
        drift=drift,
        refused=refused,
    )


def check_reach(C: Array | None, distance: float | None) -> None:
    """Refuse a run about which no law says anything."""
    if C is not None and distance is not None and not 1 / FARTHEST <= distance <= FARTHEST:
        raise UserError(
            f"{C[0]:.3g} FLOPs are {distance:.3g} times the largest budget of the runs; a law says "
            f"nothing beyond {FARTHEST:,.0f} times"
        )


def folds_beyond(C: float, reach: Sequence[float]) -> float:
    """ln of how many times C is beyond the smallest or the largest budget; 0 between them."""
    low, high = reach
    return max(0.0, math.log(C / high), math.log(low / C))


def refusals(fit: LawFit, laws: Array, past: Past, drift: LawDrift | None) -> list[str]:
    """Why there is no interval to be judged by; `laws` (R, 1) are the resamples' losses."""
    reasons = []
    if fit.status == "max_iter":
        reasons.append("the fit has not converged")
    if len(laws) < DRAWS_NEEDED:
        reasons.append("the fit has no resamples, or too few that fit; 4,000 are the default")
    if past.points.budgets is None:
        reasons.append("the law reads no compute, by which its past could be asked")
    elif drift is None:
        reasons.append(too_few(past.form))
    return reasons


def too_few_budgets(budgets: Array, form: Law) -> str | None:
    """Why a ladder at these budgets (n,) will have no interval of its forecast, if so."""
    steps = 0
    for threshold in thresholds(budgets, runs_needed(form)):
        steps += len(np.unique(budgets[budgets < threshold])) >= SIZES_NEEDED
    return None if steps >= STEPS_NEEDED else too_few(form)


def too_few(form: Law) -> str:
    """That no past says how far the law drifts, and what would."""
    return (
        f"what this law foresaw is known at fewer than {STEPS_NEEDED} budgets: add runs at other "
        f"budgets, or seeds at the smaller ones, so that {STEPS_NEEDED} of them have "
        f"{runs_needed(form)} runs below, and a ladder {SIZES_NEEDED} sizes"
    )


def runs_needed(form: Law) -> int:
    """Below a budget, for the law to foresee it."""
    return RUNS_PER_PARAMETER * len(form.names)


def drift_of(past: Past) -> LawDrift | None:
    """By the points of `past`; None where too few budgets have enough runs below them.

    The errors above one budget are of one law, so all of them count as one observation.
    """
    budgets = past.points.budgets
    if budgets is None:
        return None
    log_weights = -np.log1p((DRIFTS / USUAL_DRIFT) ** 2) + np.log(DRIFTS)
    steps, farthest = 0, 1.0
    for threshold in each(thresholds(budgets, runs_needed(past.form)), "hold-outs"):
        try:
            error, known, fold = foreseen(past, budgets < threshold, budgets)
        except UserError:
            continue
        variance = known + (DRIFTS[:, None] * fold) ** 2
        log_weights += (-0.5 * np.log(variance) - 0.5 * error**2 / variance).mean(1)
        steps += 1
        farthest = max(farthest, float(np.exp(fold.max())))
    return drift_from(log_weights, steps, farthest) if steps >= STEPS_NEEDED else None


def drift_from(log_weights: Array, steps: int, farthest: float) -> LawDrift:
    """Of a posterior over `DRIFTS`, (90,), not yet normed."""
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    low, median, high = np.interp([0.025, 0.5, 0.975], weights.cumsum(), DRIFTS)
    return LawDrift(
        median=float(median),
        ci95=[float(low), float(high)],
        steps=steps,
        farthest=farthest,
        weights=weights,
    )


def foreseen(past: Past, below: Mask, budgets: Array) -> tuple[Array, Array, Array]:
    """Of the runs above: ln(loss / law), the variance that the law foresaw, ln of the distance."""
    fit = past.fit(below, PAST_RESAMPLES)
    seen, above = past.points.part(below), past.points.part(~below)
    laws = np.log(finite_rows(fit.losses(*above.x)))
    if len(laws) < DRAWS_NEEDED:
        raise UserError("the law below has too few resamples")
    noise = Basis.of(fit, seen.columns, seen.loss).noise.used
    error = np.log(above.loss / fit(*above.x))
    return error, laws.var(0) + noise**2, np.log(budgets[~below] / budgets[below].max())


def finite_rows(laws: Array) -> Array:
    """Of resamples' losses (R, n), those that are numbers everywhere."""
    kept: Array = laws[np.isfinite(laws).all(1)]
    return kept


def drawn(drift: LawDrift, count: int, rng_seed: int) -> Array:
    """(count,) drifts per e-fold, of either sign."""
    rng = np.random.default_rng([rng_seed, 1])
    sizes = rng.choice(DRIFTS, size=count, p=drift.weights)
    return np.asarray(sizes * rng.standard_normal(count))
