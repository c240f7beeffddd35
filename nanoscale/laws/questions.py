"""What is asked of a law: a number that follows from its parameters, and what a good answer is.

The one idea: exponents, optima and losses are all functions of the parameters, so one interval, one
derivative and one word for "not identified" serve them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from nanoscale.errors import UserError, did_you_mean
from nanoscale.laws.arrays import Array
from nanoscale.laws.forms import Law
from nanoscale.laws.points import compute
from nanoscale.laws.result import RATIO

MAGNITUDE = 10.0  # ends of an interval of N* or D* further apart plan nothing


@dataclass(frozen=True)
class LawQuestion:
    """A number asked of a law. Widths of a `ratio` are of the interval's ends' ratio."""

    text: str
    of: Callable[[Array], Array]  # params (..., p) -> (...)
    needs: tuple[str, ...]  # parameters without which there is no answer
    ratio: bool = False
    limit: float = RATIO  # of the ends' ratio, from which it is not identified
    at: float | None = None  # FLOPs of the run it is about

    @classmethod
    def parse(cls, text: str, form: Law) -> LawQuestion:
        """`alpha`, `a`, `N*@1e21`, `D*@1e21`, `L@1e21` (least loss at C), `L@1e9,2e10` (at N, D).

        Raises `UserError` for what `form` does not answer.
        """
        text = text.replace(" ", "")
        if text in form.names:
            return _parameter(text, form)
        balanced = form.balance is not None
        if balanced and text in ("a", "b"):
            exponents = [p.name for p in form.parameters if p.kind == "exponent"]
            return cls(text, lambda params: form.exponents(params)[text], tuple(exponents))

        name, at, where = text.replace("*", "").partition("@")
        values = _values(text, where) if at else []
        if name == "L" and len(values) == len(form.predictors):
            C = float(flops(form, np.array(values)))
            return cls(text, lambda params: _loss(form, params, values), form.names, at=C)
        if balanced and len(values) == 1 and name in ("N", "D", "L"):
            return _optimal(text, name, values[0], form)

        known = [*form.names, "L@1e21"]
        if balanced:
            known[-1:] = ["a", "b", "N*@1e21", "D*@1e21", "L@1e21"]
        raise UserError(
            f"question {text!r}: the {form.name} law answers {', '.join(known)}"
            f"{did_you_mean(text, known)}"
        )

    def width(self, ends: Array) -> Array:
        """(...): of ends (2, ...)."""
        low, high = ends
        width: Array = high / low if self.ratio else high - low
        return width


def _parameter(name: str, form: Law) -> LawQuestion:
    i = form.names.index(name)
    judged = form.parameters[i].judged
    limit = RATIO if judged else math.inf
    return LawQuestion(name, lambda params: params[..., i], (name,), not judged, limit)


def _optimal(text: str, name: str, C: float, form: Law) -> LawQuestion:
    """N*, D* or the least loss at a budget of C FLOPs."""

    def answer(params: Array) -> Array:
        N, D = form.optimum(params, C)
        if name == "L":
            return _loss(form, params, (N, D))
        return N if name == "N" else D

    if name == "L":
        return LawQuestion(text, answer, form.names, at=C)
    needs = [p.name for p in form.parameters if p.kind != "floor"]
    return LawQuestion(text, answer, tuple(needs), True, MAGNITUDE, C)


def _loss(form: Law, params: Array, x: Iterable[Array | float]) -> Array:
    """(...): for params (..., p), at predictors that are numbers or (...) each."""
    return form.at(np.moveaxis(params, -1, 0), x)


def _values(text: str, where: str) -> list[float]:
    try:
        values = [float(value) for value in where.split(",")]
    except ValueError:
        values = [math.nan]
    if not all(0 < value < math.inf for value in values):
        raise UserError(f"question {text!r}: expected numbers above 0 behind @, as in L@1e21")
    return values


def flops(form: Law, x: Array) -> Array:
    """(m,): C = 6 N D of points x (P, m); x itself for a law of compute alone."""
    budgets = compute(dict(zip(form.predictors, x, strict=True)))
    return x[0] if budgets is None else budgets
