"""What is asked of a law: a number that follows from its parameters, and what a good answer is.

The one idea: exponents, optima and losses are all functions of the parameters, so one interval, one
derivative and one word for "not identified" serve them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nanoscale.errors import UserError, did_you_mean
from nanoscale.laws.forms import Law
from nanoscale.laws.result import RATIO

MAGNITUDE = 10.0  # ends of an interval of N* or D* further apart plan nothing


@dataclass(frozen=True)
class Question:
    """A number asked of a law. Widths of a `ratio` are of the interval's ends' ratio."""

    text: str
    of: Callable[[np.ndarray], np.ndarray]  # params (..., p) -> (...)
    needs: tuple[str, ...]  # parameters without which there is no answer
    ratio: bool = False
    limit: float = RATIO  # of the ends' ratio, from which it is not identified
    at: float | None = None  # FLOPs of the run it is about

    @classmethod
    def parse(cls, text: str, form: Law) -> Question:
        """`alpha`, `a`, `N*@1e21`, `D*@1e21`, `L@1e21` (least loss at C), `L@1e9,2e10` (at N, D).

        Raises `UserError` for what `form` does not answer.
        """
        text = text.replace(" ", "")
        kinds = {p.name: p.kind for p in form.parameters}
        if text in kinds:
            i = form.names.index(text)
            judged = form.parameters[i].judged
            return cls(
                text, lambda p: p[..., i], (text,), not judged, RATIO if judged else math.inf
            )
        if text in ("a", "b") and form.balance is not None:
            needs = tuple(n for n, kind in kinds.items() if kind == "exponent")
            return cls(text, lambda p: form.exponents(p)[text], needs)
        what, at, where = text.replace("*", "").partition("@")
        values = _values(text, where) if at else []
        if what in ("N", "D") and form.balance is not None and len(values) == 1:
            return cls(
                text,
                lambda p: form.optimum(p, values[0])["ND".index(what)],
                tuple(n for n, kind in kinds.items() if kind != "floor"),
                True,
                MAGNITUDE,
                values[0],
            )
        if what == "L" and len(values) == len(form.predictors):
            return cls(
                text,
                lambda p: form.function(*np.moveaxis(p, -1, 0), *values),
                form.names,
                at=float(flops(form, np.array(values))),
            )
        if what == "L" and form.balance is not None and len(values) == 1:
            return cls(
                text,
                lambda p: form.function(*np.moveaxis(p, -1, 0), *form.optimum(p, values[0])),
                form.names,
                at=values[0],
            )
        known = [
            *form.names,
            *(("a", "b", "N*@1e21", "D*@1e21", "L@1e21") if form.balance else ("L@1e21",)),
        ]
        raise UserError(
            f"question {text!r}: the {form.name} law answers {', '.join(known)}"
            f"{did_you_mean(text, known)}"
        )

    def width(self, ends: np.ndarray) -> np.ndarray:
        """(...): of ends (2, ...)."""
        return ends[1] / ends[0] if self.ratio else ends[1] - ends[0]


def _values(text: str, where: str) -> list[float]:
    try:
        values = [float(v) for v in where.split(",")]
    except ValueError:
        values = [math.nan]
    if not all(0 < v < math.inf for v in values):
        raise UserError(f"question {text!r}: expected numbers above 0 behind @, as in L@1e21")
    return values


def flops(form: Law, x: np.ndarray) -> np.ndarray:
    """(m,): C = 6 N D of points x (P, m); x itself for a law of compute alone."""
    values = dict(zip(form.predictors, x, strict=True))
    return 6 * values["N"] * values["D"] if {"N", "D"} <= values.keys() else x[0]
