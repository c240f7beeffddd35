"""What every fit says of itself: its law, how certain the solver is, and what is not known.

The one idea: a fit is a value that carries its own doubt. The solver's certainty, the intervals
and the parameters that the runs do not pin down are fields of the result, printed and stored.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

import numpy as np

from nanoscale.laws.arrays import Array
from nanoscale.laws.certified import Certified
from nanoscale.laws.forms import Law, Parameter, number
from nanoscale.laws.problem import Problem
from nanoscale.laws.record import Record
from nanoscale.spec.values import Json

RATIO = 4.0  # ends of an interval further apart than this do not identify a parameter
NONE = 1e-6  # of an interval's upper end: a lower end that is nothing
FLAT = 1e10  # condition number beyond which rounding alone decides a direction
ROUNDED_DECIMALS = 4
OF_RESIDUALS = 0.1  # rounding that matters, of the residuals' standard deviation
LOST = 0.01  # share of resamples without a fit that is worth a warning
NO_FIT = "the solver did not converge"


@dataclass(frozen=True, kw_only=True)
class Fit(Record):
    """A fitted law and its doubt; `objective` is the sum over points."""

    law: str
    form: Law = field(repr=False)
    x_names: tuple[str, ...] = field(repr=False)  # what the predictors are called
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

    def __call__(self, *x: Array | float) -> Array:
        """The law's loss at its predictors."""
        return self.form.at(self.params.values(), x)

    def equation(self, *, with_intervals: bool = False) -> str:
        """`L(C) = 1.23 + 45.6 / C^0.123`; a parameter that is not identified stays a letter."""
        form = self.form
        shown = dict(zip(form.predictors, self.x_names, strict=True))
        for p in form.parameters:
            with_interval = with_intervals and p.kind != "coefficient"
            shown[p.name] = self.shown(p.name, with_interval)
        formula = form.formula.format(**shown)
        return f"L({', '.join(self.x_names)}) = {formula}"

    def shown(self, name: str, with_interval: bool) -> str:
        """A parameter to the digits that its standard error leaves."""
        if name in self.not_identified:
            return name
        value = self.params[name]
        if with_interval:
            return self.with_interval(name, value)
        return number(value, self.se.get(name))

    def with_interval(self, name: str, value: float) -> str:
        """The value of a parameter or an exponent, and its interval where there is one."""
        text = number(value, self.se.get(name))
        return f"{text} {self.interval(name)}" if name in self.ci95 else text

    def interval(self, name: str) -> str:
        """`[low, high]`."""
        ends = [number(end, self.se[name]) for end in self.ci95[name]]
        return f"[{', '.join(ends)}]"

    def starts_agreeing(self) -> str:
        """`64 of 64 starts agree`."""
        agreeing = round(self.agreement_of_starts * self.n_starts)
        return f"{agreeing} of {self.n_starts} starts agree"

    def summary(self) -> list[str]:
        """The lines a user sees."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Json]:
        """Plain types at full precision; a number that is not finite is None."""
        return super().to_json() | {
            "not_identified": list(self.not_identified),
            "reasons": self.not_identified,
            "equation": self.equation(),
            "summary": self.summary(),
        }


def named(law: Law, values: Array) -> dict[str, float]:
    """Parameter -> value."""
    return dict(zip(law.names, values.tolist(), strict=True))


# -- what the runs do not pin down ----------------------------------------------------------------
def bounds_hit(problem: Problem, theta: Array, x_names: tuple[str, ...]) -> dict[str, str]:
    """Parameter -> reason, for an optimum theta (p,) on the edge of what is searched."""
    law = problem.law
    low = theta <= problem.lower
    high = theta >= problem.upper
    reasons: dict[str, str] = {}
    for i, p in enumerate(law.parameters):
        if low[i] or high[i]:
            reasons |= _at_its_end(law, p, theta[i], bool(high[i]))

    called = dict(zip(law.predictors, x_names, strict=True))
    for term in law.terms:
        if low[law.names.index(term.coefficient)]:
            predictors = " and ".join(called[x] for x in term.powers)
            reason = f"the loss does not fall with {predictors} beyond its smallest values"
            reasons |= dict.fromkeys([term.coefficient, *term.powers.values()], reason)
    return reasons


def _at_its_end(law: Law, p: Parameter, value: float, high: bool) -> dict[str, str]:
    """Parameter -> reason, of one at an end of its bounds and those that move with it."""
    if p.kind == "exponent":
        reason = f"the best fit has {p.name} = {value:g}, an end of the range searched"
        return dict.fromkeys([*_coefficients_of(law, p.name), p.name], reason)
    if p.range:
        reason = f"the best fit has {p.name} = {p.range[int(high)]:g}, an end of its range"
        return {p.name: reason}
    if p.kind == "floor":
        return {p.name: f"the best fit has {p.name} = 0, its bound"}
    return {}


def not_identified(
    problem: Problem, theta: Array, ends: Array | None, x_names: tuple[str, ...]
) -> dict[str, str]:
    """Parameter -> why the runs do not pin it down; ends (2, p) of the 95 % intervals."""
    law = problem.law
    reasons = bounds_hit(problem, theta, x_names)
    if ends is not None:
        for p, (low, high) in zip(law.parameters, ends.T, strict=True):
            if p.judged and p.name not in reasons and high > RATIO * low:
                reasons[p.name] = _too_wide(p, low, high)
    for p in law.parameters:
        if p.name in reasons and p.kind == "exponent":
            for coefficient in _coefficients_of(law, p.name):
                reasons.setdefault(coefficient, f"it moves with {p.name}")
    return {name: reasons[name] for name in law.names if name in reasons}


def _too_wide(p: Parameter, low: float, high: float) -> str:
    reaches = "its 95 % interval reaches from"
    if low <= NONE * high and p.kind == "floor":
        return f"{reaches} 0 to {high:.3g}: a floor cannot be told from none"
    return f"{reaches} {low:.2g} to {high:.2g}, over a factor {RATIO:g}"


def _coefficients_of(law: Law, exponent: str) -> list[str]:
    return [term.coefficient for term in law.terms if exponent in term.powers.values()]


def status_of(converged: bool, bounds: dict[str, str], reasons: dict[str, str]) -> str:
    """The one word for a fit."""
    if not converged:
        return "max_iter"
    if bounds:
        return "bound_hit"
    return "not_identified" if reasons else "converged"


# -- what is suspicious ---------------------------------------------------------------------------
def rounded_to(loss: Array) -> int | None:
    """Decimals to which all losses seem rounded, or None."""
    for decimals in range(ROUNDED_DECIMALS + 1):
        error = np.abs(loss - np.round(loss, decimals)).max()
        if error < 1e-12 * loss.max():
            return decimals
    return None


def warnings_of(loss: Array, best: Certified, lost: int, resamples: int, remedy: str) -> list[str]:
    """What is suspicious about any fit: rounded losses, starts that disagree, lost resamples.

    Rounding that is lost in the residuals is not.
    """
    warnings = []
    solution = best.solution
    decimals = rounded_to(loss)
    off = loss - best.fitted * best.problem.scale
    if decimals is not None and 10.0**-decimals / math.sqrt(12) >= OF_RESIDUALS * off.std():
        plural = "" if decimals == 1 else "s"
        warnings.append(f"the losses look rounded to {decimals} decimal{plural}: {remedy}")
    agreeing = solution.agreeing[0]
    if agreeing < solution.starts / 2:
        warnings.append(f"only {agreeing} of {solution.starts} starts agree on the fit")
    if lost > LOST * resamples:
        warnings.append(f"{lost} resamples did not converge and are left out")
    return warnings


def digest(*arrays: Array) -> str:
    """A fingerprint of the numbers that a fit rests on."""
    hashed = hashlib.sha256()
    for array in arrays:
        hashed.update(array.astype("<f8").tobytes())
    return hashed.hexdigest()[:16]
