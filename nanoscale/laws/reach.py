"""What runs do not reach: a predictor that hardly varies, and resamples that end at a bound.

The one idea: an interval can be narrow because the search ended, or because the form of the law
fills in what no run has seen; neither identifies a parameter.
"""

from __future__ import annotations

from nanoscale.laws.arrays import Array
from nanoscale.laws.forms import Law
from nanoscale.laws.points import Points
from nanoscale.laws.problem import Problem

SPAN = 2.0  # largest over smallest of a predictor, below which it has no exponent
AT_BOUND = 0.025  # share of resamples: from here the end of a 95 % interval is the bound
_ROUNDED = 1e-7


def not_reached(problem: Problem, draws: Array, points: Points) -> dict[str, str]:
    """Parameter -> why the runs do not reach it; draws (R, p) of the parameters."""
    law = problem.law
    reasons = _ended(problem, draws) if len(draws) else {}
    for predictor, name in zip(law.predictors, points.names, strict=True):
        values = points.columns[name]
        span = float(values.max() / values.min())
        if span < SPAN and predictor not in law.constant:
            reason = f"{name} spans a factor of {span:.3g}, and an exponent needs {SPAN:g}"
            reasons |= dict.fromkeys(_of(law, predictor), reason)
    return reasons


def _of(law: Law, predictor: str) -> list[str]:
    """The parameters that a predictor says; all exponents of a law that is no sum of powers."""
    if not law.terms:
        return [p.name for p in law.parameters if p.kind == "exponent"]
    names = []
    for term in law.terms:
        if predictor in term.powers:
            names += [term.coefficient, term.powers[predictor]]
    return names


def _ended(problem: Problem, draws: Array) -> dict[str, str]:
    """Parameter -> reason, of those whose resamples end at a bound of the search."""
    law = problem.law
    theta = problem.theta(draws)
    at_bound = (theta <= problem.lower + _ROUNDED) | (theta >= problem.upper - _ROUNDED)
    shares = dict(zip(law.names, at_bound.mean(0).tolist(), strict=True))
    reasons: dict[str, str] = {}
    for name, share in shares.items():
        if share > AT_BOUND:
            reason = f"{100 * share:.0f} % of the resamples end at a bound of {name}"
            moving = [name]
            for term in law.terms:
                if name in (term.coefficient, *term.powers.values()):
                    moving += [term.coefficient, *term.powers.values()]
            reasons |= dict.fromkeys(moving, reason)
    return reasons
