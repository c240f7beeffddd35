"""Law against law: how other forms do on the runs that a law was fitted to.

The one idea: a law is judged by what it foresees, so every form is fitted below the same budgets
and asked for the runs above them; AICc beside it says what its parameters cost. Of a loss ten times
further out the forms that the runs allow give the spread, which no interval of one form holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from nanoscale.data.gauge import each
from nanoscale.errors import UserError, counted
from nanoscale.laws import bootstrap
from nanoscale.laws.arrays import Array, Index
from nanoscale.laws.fit import LawFit
from nanoscale.laws.forms import Law
from nanoscale.laws.holdout import RUNS_PER_PARAMETER, FitOptions, Past, thresholds
from nanoscale.laws.points import Points, RowLabels, TableColumns, compute
from nanoscale.laws.record import Record
from nanoscale.laws.registry import law_of

NAMES = (
    "power",
    "two-powers",
    "broken",
    "chinchilla",
    "kaplan",
    "kaplan-floor",
    "repetition",
    "repetition-nd",
)
AHEAD = 10.0  # times the largest budget
ALLOWED = 10.0  # AICc above the least, beyond which a law has no support (Burnham & Anderson 2004)
MORE_SUPPORT = 4.0  # AICc below the law's own, from which another has more


@dataclass(frozen=True, kw_only=True)
class Rival(Record):
    """One law through the runs. Errors are (law - loss) / loss, by their size."""

    law: str
    n_parameters: int
    status: str  # of the fit to all runs, without intervals
    in_sample_error: float
    aicc: float | None  # None where there are too few runs
    holdout_error: float | None  # mean over budgets; None where it cannot be fitted below each
    loss_ahead: float

    @property
    def fitted(self) -> bool:
        """Whether the solver came to an optimum."""
        return self.status != "max_iter"


@dataclass(frozen=True, kw_only=True)
class Rivals(Record):
    """The laws that the runs can be asked about, the one that was fitted among them.

    `loss_ci95`: of the loss ahead, by the fitted law and stretched over those that the runs allow;
    None without resamples, and where they do not allow the fitted law itself.
    """

    law: str
    ahead: dict[str, float]  # predictor -> where losses are compared
    budgets: list[float]  # FLOPs below which laws were fitted
    n_units: int  # runs, or places where there are several of one
    rivals: list[Rival]
    reasons: dict[str, str]  # law -> why it is not there
    loss_ci95: list[float] | None
    preferred: str | None  # a law that both AICc and the hold-outs prefer

    @property
    def own(self) -> Rival:
        """The law that was fitted."""
        return next(rival for rival in self.rivals if rival.law == self.law)

    @property
    def warnings(self) -> list[str]:
        """One, where another law is preferred."""
        if self.preferred is None:
            return []
        other = next(rival for rival in self.rivals if rival.law == self.preferred)
        held_out = "it could not be held out"
        if other.holdout_error is not None:
            held_out = (
                f"of the runs held out it misses {_percent(other.holdout_error)} in place of "
                f"{_percent(self.own.holdout_error)}"
            )
        return [
            f"the data prefer law {other.law} to {self.law}: AICc {_shown(other.aicc)} in place of "
            f"{_shown(self.own.aicc)}, and {held_out}; --law={other.law} fits it"
        ]

    def text(self) -> list[str]:
        """A line per law under its heading."""
        at = ", ".join(f"{name}={value:.3g}" for name, value in self.ahead.items())
        width = max(len(rival.law) for rival in self.rivals)
        budgets = counted(len(self.budgets), "budget")
        lines = [
            f"law against law: mean errors, of the runs above {budgets} by the law of those "
            f"below, and in sample; AICc over {self.n_units} places or runs; the loss at {at}, "
            f"{AHEAD:g} times the largest",
            f"  {'':{width}}  held out  in sample     AICc    loss",
        ]
        for r in self.rivals:
            doubt = "" if r.fitted else "  (no fit)"
            lines.append(
                f"  {r.law:{width}}  {_percent(r.holdout_error):>8}  "
                f"{_percent(r.in_sample_error):>9}  {_shown(r.aicc):>7}  {r.loss_ahead:6.4g}{doubt}"
            )
        lines += [f"  {law}: {reason}" for law, reason in self.reasons.items()]
        if any(rival.holdout_error is None for rival in self.rivals):
            lines.append(
                "  held out -: too few runs below the smallest of the budgets, or no fit there"
            )
        if any(rival.aicc is None for rival in self.rivals):
            lines.append(f"  AICc -: {self.n_units} are too few for so many parameters")
        allowed = ", ".join(rival.law for rival in allowed_of(self.rivals)) or self.law
        line = f"  the runs allow {allowed} (AICc within {ALLOWED:g} of the least)"
        if self.loss_ci95 is not None:
            low, high = self.loss_ci95
            line += f": loss [{low:.4g}, {high:.4g}]"
        return [*lines, line]


def allowed_of(rivals: list[Rival]) -> list[Rival]:
    """Those whose AICc is near the least; none where it is not known."""
    known = [(rival.aicc, rival) for rival in rivals if rival.aicc is not None and rival.fitted]
    least = min((aicc for aicc, _ in known), default=0.0)
    return [rival for aicc, rival in known if aicc <= least + ALLOWED]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def rivals_of(
    fit: LawFit,
    columns: TableColumns,
    loss: Iterable[float],
    *,
    groups: RowLabels | None = None,
    drop_worst: int = 0,
    laws: Iterable[str] = NAMES,
) -> Rivals:
    """The laws of these names on the points of `fit`, by its objective.

    Those that read what the columns have: laws of one predictor read C where N and D are there.
    Raises `UserError` for a law of no such name.
    """
    loss = [*loss]
    laws = [laws] if isinstance(laws, str) else laws
    points = Points.of(fit.form, columns, loss, drop_worst)
    unit = points.groups(groups) if groups is not None else _cells(points)
    options: FitOptions = {"objective": fit.objective_name}
    if fit.delta is not None:
        options["delta"] = fit.delta

    budgets = points.x[0] if points.budgets is None else points.budgets
    pasts = {}
    for law in _candidates(fit.form, points, laws):
        pasts[law.name] = Past.of(
            _read_by(law, points), points.loss, 0, None, {**options, "law": law}
        )
    at = _budgets(budgets, [len(past.form.names) for past in pasts.values()])
    rivals, reasons = [], {}
    for name, past in each([*pasts.items()], "laws"):
        try:
            rivals.append(_rival(past, unit, budgets, at))
        except UserError as e:
            reasons[name] = str(e)
    place = _ahead(points)
    own = next(rival for rival in rivals if rival.law == fit.law)
    return Rivals(
        law=fit.law,
        ahead=place,
        budgets=at,
        n_units=int(unit.max()) + 1,
        rivals=rivals,
        reasons=reasons,
        loss_ci95=_stretched(fit, place, rivals),
        preferred=preferred_of(own, rivals),
    )


def _budgets(budgets: Array, n_params: list[int]) -> list[float]:
    """Those below which the law of most parameters that the runs allow can be fitted."""
    for count in sorted(n_params, reverse=True):
        at = thresholds(budgets, RUNS_PER_PARAMETER * count)
        if at:
            return at
    return []


def _candidates(own: Law, points: Points, names: Iterable[str]) -> list[Law]:
    """The fitted law, and those of others that its columns allow."""
    known = {*points.names}
    laws = [own]
    for law in map(law_of, names):
        of_one = len(law.predictors) == 1 and (len(known) == 1 or points.budgets is not None)
        if law.name != own.name and (of_one or {*law.predictors} <= known):
            laws.append(law)
    return laws


def _read_by(law: Law, points: Points) -> dict[str, Array]:
    """Predictor -> values, of what it reads."""
    if {*law.predictors} <= {*points.names}:
        return {name: points.columns[name] for name in law.predictors}
    C = compute(points.columns)
    return points.columns if C is None else {"C": C}


def _cells(points: Points) -> Index:
    """Of every point, its place; seeds share one."""
    return np.unique(points.x, axis=1, return_inverse=True)[1].ravel()


def _rival(past: Past, unit: Index, budgets: Array, at: list[float]) -> Rival:
    """One law; `UserError` for one that cannot be fitted to all points."""
    points = past.points
    fit = past.fit(np.ones(len(points.loss), bool), 0)
    error = fit(*points.x) / points.loss - 1
    place = _ahead(points)
    return Rival(
        law=fit.law,
        n_parameters=len(fit.params),
        status=fit.status,
        in_sample_error=float(np.abs(error).mean()),
        aicc=_aicc(np.log1p(error), unit, len(fit.params)),
        holdout_error=_held_out(past, budgets, at),
        loss_ahead=fit.predict(**place).loss,
    )


def _held_out(past: Past, budgets: Array, at: list[float]) -> float | None:
    """Mean over the budgets of the mean error of the runs above."""
    errors = []
    for threshold in at:
        try:
            errors.append(past.held_out(budgets, threshold, 0).mean_abs_error)
        except UserError:
            return None
    return float(np.mean(errors)) if errors else None


def _aicc(residual: Array, unit: Index, n_params: int) -> float | None:
    """n ln(mean square) + 2 k + 2 k (k + 1) / (n - k - 1) of k = parameters + 1 over n units.

    Points of one unit (seeds, checkpoints of a run) count as one, by their mean square. Source:
    Hurvich & Tsai 1989, Biometrika 76.
    """
    counts = np.bincount(unit)
    squares = np.bincount(unit, residual**2) / counts
    n, k = len(counts), n_params + 1
    if n <= k + 1 or not squares.any():
        return None
    penalty = 2 * k + 2 * k * (k + 1) / (n - k - 1)
    return float(n * math.log(squares.mean()) + penalty)


def _ahead(points: Points) -> dict[str, float]:
    """The largest run made ten times as large: N and D each by the root of ten."""
    budgets = points.x[0] if points.budgets is None else points.budgets
    largest = points.x[:, budgets.argmax()]
    factor = AHEAD if len(points.names) == 1 else math.sqrt(AHEAD)
    return {name: float(factor * x) for name, x in zip(points.names, largest, strict=True)}


def _stretched(fit: LawFit, place: dict[str, float], rivals: list[Rival]) -> list[float] | None:
    """The fitted law's interval at a place, over the laws whose AICc is near the least."""
    own = fit.predict(**place).loss_ci95
    allowed = allowed_of(rivals)
    if own is None or (allowed and fit.law not in [rival.law for rival in allowed]):
        return None
    others = np.reshape([rival.loss_ahead for rival in allowed], (-1, 1))
    ends: list[float] = bootstrap.widened(np.reshape(own, (2, 1)), others)[:, 0].tolist()
    return ends


def preferred_of(own: Rival, rivals: list[Rival]) -> str | None:
    """The law of least AICc, where that is below the own law's and it foresees better; where one
    cannot be held out, far below."""
    if own.aicc is None:
        return None
    better = []
    for rival in rivals:
        if rival.aicc is None or not rival.fitted:
            continue
        more = own.aicc - rival.aicc
        foresees = more > ALLOWED
        if rival.holdout_error is not None and own.holdout_error is not None:
            foresees = rival.holdout_error < own.holdout_error
        if more > MORE_SUPPORT and foresees:
            better.append((rival.aicc, rival.law))
    return min(better)[1] if better else None
