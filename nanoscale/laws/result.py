"""What every fit says of itself: its law, how certain the solver is, and what is not known.

The one idea: a fit is a value that carries its own doubt. The solver's certainty, the intervals
and the parameters that the runs do not pin down are fields of the result, printed and stored.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields

import numpy as np

from nanoscale.laws.forms import Law, number
from nanoscale.laws.problem import Problem
from nanoscale.store.files import plain

RATIO = 4.0  # ends of an interval further apart than this do not identify a parameter
NONE = 1e-6  # of an interval's upper end: a lower end that is nothing
FLAT = 1e10  # condition number beyond which rounding alone decides a direction
ROUNDED_DECIMALS = 4
LOST = 0.01  # share of resamples without a fit that is worth a warning
NO_FIT = "the solver did not converge"


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A fitted law and its doubt; `objective` is the sum over points."""

    law: str
    form: Law = field(repr=False)
    x_names: tuple[str, ...]  # what the predictors are called
    objective_name: str
    delta: float | None  # of log-huber and envelope
    n_points: int
    params: dict[str, float]
    objective: float
    status: str  # converged, bound_hit, not_identified, max_iter
    not_identified: dict[str, str]  # parameter -> reason
    agreement_of_starts: float  # share of n_starts that ended at the best objective
    n_starts: int
    se: dict[str, float]
    ci95: dict[str, list[float]]
    resamples: int
    rng_seed: int
    warnings: list[str]

    def __call__(self, *x: np.ndarray | float) -> np.ndarray:
        """The law's loss at its predictors."""
        return self.form.at(self.params.values(), x)

    def equation(self, *, with_intervals: bool = False) -> str:
        """`L(C) = 1.23 + 45.6 / C^0.123`; a parameter that is not identified stays a letter."""
        kinds = {p.name: p.kind for p in self.form.parameters}
        shown = {
            name: self.shown(name, with_intervals and kinds[name] != "coefficient")
            for name in self.params
        }
        names = dict(zip(self.form.predictors, self.x_names, strict=True))
        return f"L({', '.join(self.x_names)}) = {self.form.formula.format(**shown, **names)}"

    def shown(self, name: str, with_interval: bool) -> str:
        """A parameter to the digits that its standard error leaves."""
        if name in self.not_identified:
            return name
        text = number(self.params[name], self.se.get(name))
        return text + (f" {self.interval(name)}" if with_interval and name in self.ci95 else "")

    def interval(self, name: str) -> str:
        """`[low, high]`."""
        return f"[{', '.join(number(end, self.se[name]) for end in self.ci95[name])}]"

    def starts_agreeing(self) -> str:
        """`64 of 64 starts agree`."""
        return f"{round(self.agreement_of_starts * self.n_starts)} of {self.n_starts} starts agree"

    def summary(self) -> list[str]:
        """The lines a user sees."""
        raise NotImplementedError

    def to_json(self) -> dict[str, object]:
        """Plain types at full precision; a number that is not finite is None."""
        hidden = {"form", "x_names", "draws"}
        record = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in hidden}
        record["not_identified"] = list(self.not_identified)
        record["reasons"] = self.not_identified
        record["equation"] = self.equation()
        record["summary"] = self.summary()
        return plain(record)


def named(law: Law, values: np.ndarray) -> dict[str, float]:
    """Parameter -> value."""
    return dict(zip(law.names, values.tolist(), strict=True))


def bounds_hit(problem: Problem, theta: np.ndarray, x_names: tuple[str, ...]) -> dict[str, str]:
    """Parameter -> reason, for an optimum on the edge of what is searched."""
    law, reasons = problem.law, {}
    called = dict(zip(law.predictors, x_names, strict=True))
    low, high = theta <= problem.lower, theta >= problem.upper
    for i, p in enumerate(law.parameters):
        if p.kind == "floor" and low[i]:
            reasons[p.name] = f"the best fit has {p.name} = 0, its bound"
        if p.kind == "exponent" and (low[i] or high[i]):
            reason = f"the best fit has {p.name} = {theta[i]:g}, an end of the range searched"
            reasons |= dict.fromkeys([*_coefficients_of(law, p.name), p.name], reason)
        if p.range and p.kind != "exponent" and (low[i] or high[i]):
            reasons[p.name] = (
                f"the best fit has {p.name} = {p.range[int(high[i])]:g}, an end of its range"
            )
    for term in law.terms:
        if low[law.names.index(term.coefficient)]:
            of = " and ".join(called[x] for x in term.powers)
            reasons |= dict.fromkeys(
                [term.coefficient, *term.powers.values()],
                f"the loss does not fall with {of} beyond its smallest values",
            )
    return reasons


def not_identified(
    problem: Problem, theta: np.ndarray, ends: np.ndarray | None, x_names: tuple[str, ...]
) -> dict[str, str]:
    """Parameter -> why the runs do not pin it down; ends (2, p) of the 95 % intervals."""
    law, reasons = problem.law, bounds_hit(problem, theta, x_names)
    for i, p in enumerate(law.parameters):
        if ends is None or p.name in reasons or not p.judged or ends[1, i] <= RATIO * ends[0, i]:
            continue
        low, high = ends[:, i]
        reasons[p.name] = (
            f"its 95 % interval reaches from 0 to {high:.3g}: a floor cannot be told from none"
            if low <= NONE * high and p.kind == "floor"
            else f"its 95 % interval reaches from {low:.2g} to {high:.2g}, over a factor {RATIO:g}"
        )
    for p in law.parameters:
        if p.name in reasons and p.kind == "exponent":
            for coefficient in _coefficients_of(law, p.name):
                reasons.setdefault(coefficient, f"it moves with {p.name}")
    return {name: reasons[name] for name in law.names if name in reasons}


def _coefficients_of(law: Law, exponent: str) -> list[str]:
    return [term.coefficient for term in law.terms if exponent in term.powers.values()]


def status_of(converged: bool, bounds: dict[str, str], reasons: dict[str, str]) -> str:
    """The one word for a fit."""
    if not converged:
        return "max_iter"
    if bounds:
        return "bound_hit"
    return "not_identified" if reasons else "converged"


def rounded_to(loss: np.ndarray) -> int | None:
    """Decimals to which all losses seem rounded, or None."""
    for decimals in range(ROUNDED_DECIMALS + 1):
        if np.abs(loss - np.round(loss, decimals)).max() < 1e-12 * loss.max():
            return decimals
    return None


def warnings_of(
    loss: np.ndarray, agreeing: int, starts: int, lost: int, resamples: int, remedy: str
) -> list[str]:
    """What is suspicious about any fit: rounded losses, starts that disagree, lost resamples."""
    found, decimals = [], rounded_to(loss)
    if decimals is not None:
        places = f"{decimals} decimal{'s' * (decimals != 1)}"
        found.append(f"the losses look rounded to {places}: {remedy}")
    if agreeing < starts / 2:
        found.append(f"only {agreeing} of {starts} starts agree on the fit")
    if lost > LOST * resamples:
        found.append(f"{lost} resamples did not converge and are left out")
    return found


def digest(*arrays: np.ndarray) -> str:
    """A fingerprint of the numbers that a fit rests on."""
    joined = b"".join(np.ascontiguousarray(a, dtype="<f8").tobytes() for a in arrays)
    return hashlib.sha256(joined).hexdigest()[:16]
