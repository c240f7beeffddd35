"""Approach 2 in pictures: the valleys of equal compute, and N* against C through their floors.

The one idea: what is not known looks it. A budget without a minimum on its grid is hollow and in no
line, a minimum that the noise swallows is faint, and a budget too small for a curve is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanoscale.errors import UserError
from nanoscale.report.links import series
from nanoscale.report.marks import (
    BEYOND,
    DOTTED,
    HALO,
    MANY,
    ROUNDING,
    Dash,
    End,
    bar,
    dots,
    end_labels,
    headed,
    label,
    line,
    mark,
    shade,
)
from nanoscale.report.style import (
    ACCENT,
    INK,
    MARGIN,
    PAPER,
    WIDTH,
    evenly,
    interval,
    log_axis,
    quantities,
    sheet,
    size_colours,
    styled,
)

if TYPE_CHECKING:
    from nanoscale.laws.arrays import Array
    from nanoscale.laws.band import Band
    from nanoscale.laws.isoflop import IsoFlop, Valley

MOST_NAMED = 9  # budgets that are named, of those drawn
FAINT = 0.4


@dataclass(frozen=True)
class _Drawn:
    """A budget with enough points for a curve, and how it is drawn."""

    valley: Valley
    n: Array  # (k,) sizes of its runs
    loss: Array  # (k,)
    coefficients: Array  # of the curve, highest power first, in log10 N about its mean
    colour: str
    name: str  # its C

    @property
    def faint(self) -> bool:
        """Whether its minimum is lost in the noise: the interval has no end."""
        return self.valley.used and not self.valley.ci95

    @property
    def alpha(self) -> float:
        return FAINT if self.faint else 1

    @property
    def face_and_edge(self) -> tuple[str, str]:
        """The colours of its marks: hollow if it is in no line."""
        return (self.colour, PAPER) if self.valley.used else (PAPER, self.colour)

    def at(self, n: Array) -> Array:
        """The curve."""
        losses: Array = np.polyval(self.coefficients, np.log10(n) - np.log10(self.n).mean())
        return losses


@styled()
def valleys_figure(
    found: IsoFlop,
    loss: Sequence[float],
    best: Band,
    surface: Band | None = None,
    *,
    labels: Mapping[str, str],
) -> Figure:
    """Loss over N at each budget with the fitted curves; beside it N* against C.

    found: Approach 2 along N, through runs of these losses. best: its line of N* over C. Budgets in
    no line are hollow; those with too few points for a curve are not drawn. surface: N* of the
    fitted surface over C, for comparison.
    """
    drawn = _drawn(found, np.asarray(loss, float))
    room = MARGIN + 4
    figure, (left, right) = sheet(
        WIDTH,
        4.5,
        2,
        across=2,
        left=room,
        below=54,
        wspace=0.52,
        width_ratios=(1.25, 1),
    )
    _curves(left, drawn)
    _names(left, drawn)
    _left_out(left, drawn, len(found.valleys))
    headed(left, labels["loss"], labels["N"], left=room)

    _vertices(right, drawn, best, surface)
    a = f"a = {found.exponents['a']:.3f}{interval(found.ci95.get('a'), '.3f')}"
    told = [(f"N* ~ C^a, {a}", ACCENT)]
    if surface is not None:
        told.append(("dotted: the fitted surface's own", INK))
    for row, (text, colour) in enumerate(told):
        label(
            right,
            text,
            (0, 1),
            (6, -3 - 13 * row),
            colour=colour,
            size=8.5,
            va="top",
            path_effects=HALO,
            zorder=8,
        )
    headed(right, f"N*{labels['N'].removeprefix('N')}", labels["C"])
    return figure


def _drawn(found: IsoFlop, loss: Array) -> list[_Drawn]:
    curves = [curve for (curve,) in found.grid.coefficients(loss[None])]
    known = np.flatnonzero(np.isfinite(curves).all(axis=1))
    if not len(known):
        raise UserError("no budget has enough points for a curve: there is no valley to draw")
    names = quantities([float(f"{found.valleys[i].C:.1e}") for i in known])
    drawn = []
    for i, colour, name in zip(known, size_colours(len(known)), names, strict=True):
        rows = found.grid.rows[i]
        n = found.grid.N[rows]
        drawn.append(_Drawn(found.valleys[i], n, loss[rows], curves[i], colour, name))
    return drawn


# -- loss over N --------------------------------------------------------------------------------
def _curves(axes: Axes, drawn: Sequence[_Drawn]) -> None:
    """Every budget's runs and curve, on axes that hold them."""
    n = np.concatenate([one.n for one in drawn])
    losses = np.concatenate([one.loss for one in drawn])
    low, high = losses.min(), losses.max()
    log_axis(axes, "x", n.min() / 1.25, n.max() * 1.15, most=5)
    ratio = high / low
    log_axis(axes, "y", low / ratio**0.1, high * ratio**0.05)
    for one in drawn:
        with series(axes, one.name):
            _valley(axes, one, len(n))


def _valley(axes: Axes, one: _Drawn, shown: int) -> None:
    """One of them, of `shown` runs in all."""
    valley = one.valley
    area, rim, alpha = dots(shown)
    face, edge = one.face_and_edge
    width = 1.3
    dash: str | Dash = "-"
    if not valley.used:
        rim, width, dash = 0.9, 0.9, BEYOND
    axes.scatter(
        one.n,
        one.loss,
        s=area,
        c=face,
        alpha=alpha * one.alpha,
        edgecolors=edge,
        linewidths=rim,
        zorder=3,
    )
    at = np.geomspace(one.n.min(), one.n.max(), 61)
    axes.plot(
        at,
        one.at(at),
        color=one.colour,
        linewidth=width,
        linestyle=dash,
        alpha=one.alpha,
    )
    if not valley.used or valley.vertex is None or valley.loss is None:
        return
    if valley.ci95:
        bar(axes, valley.ci95, [valley.loss] * 2, INK, 1.2)
    size, edge_width = (5.5, 0.8) if shown <= MANY else (3.5, 0.4)
    mark(
        axes,
        valley.vertex,
        valley.loss,
        face,
        shape="D",
        size=size,
        rim=edge_width,
        alpha=one.alpha,
        zorder=5,
    )


def _names(axes: Axes, drawn: Sequence[_Drawn]) -> None:
    """C of some budgets at the right, with a line to the end of each one's curve."""
    clear = [one for one in drawn if not one.faint] or drawn
    ends = []
    for one in evenly(clear, min(MOST_NAMED, len(clear))):
        last = one.n.max()
        ends.append(End(one.name, last, float(one.at(last)), one.colour))
    end_labels(axes, ends, at=1.03, clear=4)
    label(axes, "C, FLOPs", (1.03, 1), (0, 9))


def _left_out(axes: Axes, drawn: Sequence[_Drawn], budgets: int) -> None:
    """What hollow and faint marks mean, and how many budgets are not drawn at all."""
    hollow = sum(not one.valley.used for one in drawn)
    faint = sum(one.faint for one in drawn)
    few = budgets - len(drawn)
    said = {
        f"hollow: no minimum on its grid ({hollow})": hollow,
        f"faint: minimum lost in the noise ({faint})": faint,
        f"not drawn: too few points ({few} of {budgets} budgets)": few,
    }
    told = "; ".join(text for text, count in said.items() if count)
    label(axes, told, (0, 0), (0, -50))


# -- N* over C ----------------------------------------------------------------------------------
def _vertices(axes: Axes, drawn: Sequence[_Drawn], best: Band, surface: Band | None) -> None:
    """N* of every budget, with its interval, and the line through those that count."""
    budgets, vertices, reached = [], [], []
    for one in drawn:
        valley = one.valley
        if valley.vertex is None:
            continue
        budgets.append(valley.C)
        vertices.append(valley.vertex)
        if valley.used and valley.ci95:
            reached += valley.ci95
        with series(axes, one.name):
            _vertex(axes, one, valley.vertex)

    shade(axes, best, ACCENT, 0.16)
    line(axes, best, ROUNDING * max(budgets), ACCENT, width=1.4)
    if surface is not None:
        axes.plot(
            surface.x,
            surface.y,
            color=INK,
            linewidth=1,
            linestyle=DOTTED,
            zorder=3,
        )
    reached += vertices
    low = max(min(reached), min(vertices) / 4)
    high = min(max(reached), max(vertices) * 4)
    log_axis(axes, "x", min(budgets) / 1.6, best.x[-1], most=5)
    log_axis(axes, "y", min(low, best.y[0]) / 1.3, max(high, best.y[-1]) * 1.6, most=7)


def _vertex(axes: Axes, one: _Drawn, n: float) -> None:
    """N* of one budget, with its interval."""
    valley = one.valley
    if valley.used and valley.ci95:
        axes.plot([valley.C] * 2, valley.ci95, color=one.colour, linewidth=1.1, zorder=4)
    face, edge = one.face_and_edge
    mark(
        axes,
        valley.C,
        n,
        face,
        shape="D",
        size=5.5,
        edge=edge,
        alpha=one.alpha,
        zorder=5,
    )
