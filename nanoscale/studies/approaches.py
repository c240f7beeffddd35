"""Approaches 1 and 2 beside a fitted surface, which is Approach 3, and the multiverse of them all.

The one idea: each answer is a record, and what is printed and drawn is made from it. An approach
that the table does not allow stays in the record, with the reason.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from nanoscale.errors import UserError
from nanoscale.laws import LawFit
from nanoscale.laws.arrays import Array
from nanoscale.laws.band import Band
from nanoscale.laws.envelope import Envelope, envelope
from nanoscale.laws.isoflop import MOST_LOST, Bias, IsoFlop, bias, isoflop
from nanoscale.laws.multiverse import Multiverse, multiverse
from nanoscale.laws.points import Points
from nanoscale.laws.predict import FAR
from nanoscale.spec.values import Json
from nanoscale.store.files import plain

DELTAS = (1e-4, 1e-3, 1e-2)
DROPPED = (0, 1, 2, 5)
_CURVE = 61  # points of a line that is drawn

_T = TypeVar("_T")


@dataclass(frozen=True)
class Valleys:
    """Approach 2 along N: its valleys, N* over C through them, and its bias on this grid.

    bias: what the fitted surface predicts of it at ten times the largest budget; None where the
    surface has no optimum.
    """

    isoflop: IsoFlop
    loss: Array  # (n,)
    line: Band
    bias: Bias | None

    @classmethod
    def of(cls, fit: LawFit, points: Points, degree: int) -> Valleys:
        """`UserError` where fewer than two budgets have a minimum."""
        found = isoflop(points.columns, points.loss, degree=degree)
        budgets = [valley.C for valley in found.valleys if valley.used]
        C = np.geomspace(min(budgets) / 1.5, FAR * max(budgets), _CURVE)
        optima = []
        for at in C:
            best = found.optimum(at)
            low, high = best.N_ci95 or (best.N, best.N)
            optima.append((best.N, low, high))
        line = Band(C, *np.array(optima).T)
        largest = float((6 * found.grid.N * found.grid.D).max())
        return cls(
            found, points.loss, line, bias(found, fit, FAR * largest) if fit.exponents else None
        )

    def to_json(self) -> dict[str, Json]:
        """The record, with the rows and the curve of every valley."""
        grid = self.isoflop.grid
        curves = grid.coefficients(self.loss[None])
        valleys = []
        for valley, rows, curve in zip(self.isoflop.valleys, grid.rows, curves, strict=True):
            drawn = None
            if np.isfinite(curve).all():
                drawn = {"centre": float(grid.x[rows].mean()), "coefficients": curve[0].tolist()}
            valleys.append(vars(valley) | {"rows": rows.tolist(), "curve": drawn})
        line = {"C": self.line.x, "N": self.line.y, "lo": self.line.low, "hi": self.line.high}
        drawn_line = {name: values.tolist() for name, values in line.items()}
        record = self.isoflop.to_json() | {"valleys": valleys, "line": drawn_line}
        if self.bias is not None:
            record["bias"] = self.bias.to_json()
        return record

    def text(self) -> list[str]:
        """The exponent, the budgets it is of, and what this grid gets wrong."""
        found = self.isoflop
        used = sum(valley.used for valley in found.valleys)
        line = f"{exponent_text(found)}, {used} of {len(found.valleys)} budgets"
        flags = Counter(flag for valley in found.valleys for flag in valley.flags)
        if flags:
            counts = ", ".join(f"{count} {flag}" for flag, count in flags.items())
            line += f" ({counts})"
        lines = [line]
        if found.lost > MOST_LOST * found.resamples:
            lines.append(
                f"  {found.lost} of {found.resamples} resamples have a budget without a minimum"
                ": flat valleys beside the noise"
            )
        return lines + self._bias_text()

    def _bias_text(self) -> list[str]:
        error = self.bias
        if error is None:
            return ["  its bias is not known: the law has no optimum"]
        if not math.isfinite(error.bias["N"]):
            return [f"  its bias is not known: {'; '.join(error.warnings)}"]
        a, n = (round(error.bias[key], 3) + 0.0 for key in ("a", "N"))  # no -0.000
        line = (
            f"  on the fitted surface this grid errs by {a:+.3f} in a and {100 * n:+.1f} % in N* "
            f"at {error.C:.2g} FLOPs; corrected: a {error.corrected['a']:.3f}, N* "
            f"{error.corrected['N']:.3g}"
        )
        return [line, *(f"  {warning}" for warning in error.warnings)]


@dataclass(frozen=True)
class Approaches:
    """Approach 1 (`envelope`) and Approach 2 (`parabola`, `cubic`), or why there is none."""

    envelope: Envelope | str
    parabola: Valleys | str
    cubic: Valleys | str
    surface: LawFit

    @classmethod
    def of(cls, fit: LawFit, points: Points) -> Approaches:
        """Beside `fit`, through the points that it was made of."""
        return cls(
            envelope=_tried(envelope, points.columns, points.loss),
            parabola=_tried(Valleys.of, fit, points, 2),
            cubic=_tried(Valleys.of, fit, points, 3),
            surface=fit,
        )

    def to_json(self) -> dict[str, Json]:
        """Each with `exponents` and `ci95`, or the `error` for which it has none."""
        record: dict[str, Json] = {}
        for name in ("envelope", "parabola", "cubic"):
            approach = getattr(self, name)
            found = {"error": approach} if isinstance(approach, str) else approach.to_json()
            record[name] = plain(found)
        fit = self.surface
        surface = {"exponents": fit.exponents, "ci95": fit.ci95, "status": fit.status}
        return record | {"surface": plain(surface)}

    def text(self) -> list[str]:
        """The exponent a by each, with its interval."""
        first, surface = self.envelope, self.surface
        said = first
        if not isinstance(first, str):
            said = f"{exponent_text(first)}, {len(first.runs)} runs on the envelope"
        lines = [f"Approach 1: {said}"]
        for name, found in (("parabola", self.parabola), ("cubic", self.cubic)):
            first_line, *others = [found] if isinstance(found, str) else found.text()
            lines += [f"Approach 2, {name}: {first_line}", *others]
        doubt = "" if surface.status == "converged" else f" (the surface is {surface.status})"
        return [*lines, f"Approach 3: {exponent_text(surface)}{doubt}"]


def exponent_text(fit: LawFit | Envelope | IsoFlop) -> str:
    """a and its interval, if they are known."""
    if "a" not in fit.exponents:
        return "no exponent a"
    text = f"a {fit.exponents['a']:.3f}"
    if "a" in fit.ci95:
        low, high = fit.ci95["a"]
        text += f" [{low:.3f}, {high:.3f}]"
    return text


def _tried(approach: Callable[..., _T], *args: object) -> _T | str:
    try:
        return approach(*args)
    except UserError as e:
        return str(e)


@dataclass(frozen=True)
class TableMultiverse(Multiverse):
    """Over the ways of counting that a table has columns for."""

    conventions: list[str]

    @classmethod
    def of(
        cls,
        conventions: Mapping[str, Mapping[str, Sequence[float]]],
        loss: Sequence[float],
        delta: float,
        drop_worst: int,
    ) -> TableMultiverse:
        """The exponent a under every choice, a fit's own delta and outliers among them."""
        dropped = sorted({*DROPPED, drop_worst})
        found = multiverse(
            conventions,
            loss,
            deltas=sorted({*DELTAS, delta}),
            dropped=[count for count in dropped if count < len(loss)],
        )
        return cls(**vars(found), conventions=list(conventions))

    def text(self) -> list[str]:
        """How far a moves in all, and with each choice."""
        without = sum(row.a is None for row in self.rows)
        lost = f", {without} without a fit" if without else ""
        known = [(moved, choice) for choice, moved in self.spread.items() if moved is not None]
        moves = ", ".join(f"{moved:.3f} with {choice}" for moved, choice in sorted(known)[::-1])
        a = self.a
        return [
            f"multiverse: {len(self.rows)} analyses{lost}: a from {a['lowest']:.3f} to "
            f"{a['highest']:.3f}, median {a['median']:.3f}",
            f"  all else equal a moves by {moves}",
        ]
