"""The figure of a coordinate check: every activation against size, flat where the rules are right.

Small multiples on log axes that all span the same number of octaves, so that equal slopes look
equal, with a rose of slopes to read them by; above, sizes; below, changes by one update. A panel
that fails says so in the accent colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanoscale.checks.coordinate_verdict import CoordinateVerdict
from nanoscale.errors import UserError
from nanoscale.report.marks import End, end_labels, label
from nanoscale.report.style import (
    ACCENT,
    INK,
    MUTED,
    PAPER,
    log_axis,
    printed,
    round_numbers,
    sheet,
    size_colours,
    styled,
    thinned,
    ticks_on,
)

_ROWS = {
    "size": ("embedding", "attn", "mlp", "last_block", "logits", "scores"),
    "change": ("embedding", "attn", "mlp", "last_block"),
}
TITLES = {
    "size": "root mean square of the activations",
    "change": "and of their change by one update, same tokens",
}
WORDS = {
    "attn": "attention out",
    "mlp": "MLP out",
    "last_block": "last block",
    "scores": "attention scores",
}
_STEPS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
_COLUMNS = 6
LEAST_OCTAVES = 3.0  # so that noise does not fill a panel


@styled()
def coordinates_figure(verdict: CoordinateVerdict) -> Figure:
    """A panel per activation, its size above and its change by one update below."""
    steps = [step for step in _STEPS if step < verdict.steps] + [verdict.steps]
    rows = [_panels(verdict, family, steps) for family in _ROWS]
    panels = [panel for row in rows for panel in row]
    if not panels:
        raise UserError("the check holds no activations: there is nothing to draw")
    octaves = max(LEAST_OCTAVES, *(1.15 * panel.reach for panel in panels))
    figure, grid = sheet(
        8.6,
        5.55,
        count=2 * _COLUMNS,
        across=_COLUMNS,
        above=44.64,
        left=30.24,
        right=37.44,
        below=32.4,
        wspace=0.42 * 6 / 5.56,
        hspace=0.56,
    )
    for i, (family, row) in enumerate(zip(_ROWS, rows, strict=True)):
        line = grid[i * _COLUMNS : (i + 1) * _COLUMNS]
        above = (-24.48, 32.4)  # points
        label(line[0], TITLES[family], (0, 1), above, colour=INK, size=9.5, weight="bold")
        for axes in line[len(row) :]:
            axes.set_axis_off()
        for axes, panel in zip(line, row, strict=False):
            _draw(axes, verdict, panel, octaves)
        if row:
            _step_labels(line[len(row) - 1], row[-1], verdict.sizes[-1], steps)
    _rose(grid[-1], verdict, octaves)
    return figure


@dataclass(frozen=True)
class _Panel:
    """An activation's sizes, or its changes."""

    name: str
    quantity: str
    values: np.ndarray  # (steps, sizes) means over seeds; NaN where there is none

    @property
    def known(self) -> np.ndarray:
        known: np.ndarray = self.values[np.isfinite(self.values)]
        return known

    @property
    def reach(self) -> float:
        """Octaves from the smallest to the largest value."""
        known = self.known
        return math.log2(known.max() / known.min()) if len(known) else 0.0

    @property
    def middle(self) -> float:
        known = self.known
        return math.sqrt(known.max() * known.min()) if len(known) else 1.0


def _panels(verdict: CoordinateVerdict, family: str, steps: Sequence[int]) -> list[_Panel]:
    """Of what was measured, in order."""
    panels = []
    for name in _ROWS[family]:
        quantity = f"{family}: {name}"
        if quantity in verdict.values:
            values = np.array(verdict.values[quantity], float)  # (sizes, all steps)
            shown = values[:, np.array(steps) - 1].T
            panels.append(_Panel(WORDS.get(name, name), quantity, shown))
    return panels


def _draw(axes: Axes, verdict: CoordinateVerdict, panel: _Panel, octaves: float) -> None:
    for line, colour in zip(panel.values, size_colours(len(panel.values)), strict=True):
        axes.plot(
            verdict.sizes,
            line,
            "-o",
            color=colour,
            linewidth=1.3,
            markersize=4,
            markeredgecolor=PAPER,
            markeredgewidth=0.6,
            clip_on=False,
        )
    _scales(axes, verdict.sizes, panel.middle, octaves)
    ticks = round_numbers(*axes.get_ylim(), (1, 3))
    ticks_on(axes.yaxis, thinned(ticks, most=4))
    axes.set_xlabel(verdict.sweep, labelpad=2, size=8)
    _heading(axes, verdict, panel)


def _scales(axes: Axes, sizes: Sequence[int], middle: float, octaves: float) -> None:
    first, last = sizes[0], sizes[-1]
    room = (last / first) ** 0.07
    log_axis(axes, "x", first / room, last * room)
    ticks_on(axes.xaxis, sizes)
    half = 2 ** (octaves / 2)
    log_axis(axes, "y", middle / half, middle * half)
    axes.tick_params(labelsize=7, pad=2)


def _rose(axes: Axes, verdict: CoordinateVerdict, octaves: float) -> None:
    """What slopes look like in these panels."""
    _scales(axes, verdict.sizes, 1.0, octaves)
    axes.set_axis_off()
    first, last = verdict.sizes[0], verdict.sizes[-1]
    doublings = math.log2(last / first)
    steepest = math.floor(2 * min(1.0, octaves / 2 / doublings)) / 2 or 0.25
    label(axes, "slopes to scale", (0, 1), (-4, 17), colour=INK, size=8.5)
    for slope in np.linspace(-steepest, steepest, 5):
        end = 2 ** (slope * doublings)
        axes.plot((first, last), (1, end), color=MUTED, linewidth=0.8 if slope else 1.6)
        text = printed(f"{slope:+.3g}") if slope else "0"
        label(axes, text, (last, end), (4, 0), on="data", size=7.5, va="center")


def _heading(axes: Axes, verdict: CoordinateVerdict, panel: _Panel) -> None:
    """The activation's name; under it the judged slope that lies farthest out."""
    label(axes, panel.name, (0, 1), (-4, 17), colour=INK, size=8.5)
    judged = [finding for finding in verdict.findings if finding.quantity == panel.quantity]
    if not judged:
        return
    worst = max(judged, key=attrgetter("beyond"))
    colour, weight = (ACCENT, "bold") if worst.verdict == "fail" else (MUTED, "normal")
    low, high = worst.ci95
    text = printed(f"{worst.slope:+.2f} ± {(high - low) / 2:.2f}")
    label(axes, text, (0, 1), (-4, 6), colour=colour, size=7.5, weight=weight)


def _step_labels(axes: Axes, panel: _Panel, x: float, steps: Sequence[int]) -> None:
    """Which step a line is, at its right end; the colours are the same in all panels."""
    ends: list[End] = []
    for step, y in zip(steps, panel.values[:, -1], strict=True):
        if np.isfinite(y):
            ends.append(End(str(step) if ends else f"step {step}", x, y))
    if ends:
        end_labels(
            axes,
            ends,
            at=1.05,
            gap=9.5,
            clear=4,
            size=7.5,
        )
