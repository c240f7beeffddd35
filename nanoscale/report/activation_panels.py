"""The figure of a coordinate check: every activation against size, flat where the rules are right.

Small multiples on log axes that all span the same number of octaves, so that equal slopes look
equal, with a rose of slopes to read them by; above, sizes; below, changes by one update. A panel
that fails says so in the accent colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanoscale.checks.coordinate_verdict import CoordinateVerdict
from nanoscale.errors import UserError
from nanoscale.report.style import (
    ACCENT,
    INK,
    MINUS,
    MUTED,
    PAPER,
    RULE,
    canvas,
    log_axis,
    size_colours,
    spread,
    styled,
    ticks_on,
)

_ROWS = (
    ("size", ("embedding", "attn", "mlp", "last_block", "logits", "scores")),
    ("change", ("embedding", "attn", "mlp", "last_block")),
)
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
_WIDTH, HEIGHT, ROW = 8.6, 5.55, 1.75  # inches: the figure, and a row's axes
LEFT, _GAP, _COLUMNS = 0.42, 0.42, 6
BOTTOMS = (3.18, 0.45)  # of the rows
LEAST_OCTAVES = 3.0  # so that noise does not fill a panel


def coordinates_figure(verdict: CoordinateVerdict) -> Figure:
    """A panel per activation, its size above and its change by one update below."""
    panels = [
        [(family, name) for name in names if f"{family}: {name}" in verdict.values]
        for family, names in _ROWS
    ]
    if not any(panels):
        raise UserError("the check holds no activations: there is nothing to draw")
    steps = [t for t in _STEPS if t < verdict.steps] + [verdict.steps]
    reach = max(_reach(_values(verdict, panel, steps)) for row in panels for panel in row)
    octaves = max(LEAST_OCTAVES, 1.15 * reach)
    with styled():
        figure = canvas(_WIDTH, HEIGHT)
        for row, bottom, (family, _) in zip(panels, BOTTOMS, _ROWS, strict=True):
            figure.text(
                (LEFT - 0.34) / _WIDTH,
                (bottom + ROW + 0.45) / HEIGHT,
                TITLES[family],
                size=9.5,
                weight="bold",
            )
            for j, panel in enumerate(row):
                axes = _axes(figure, j, bottom)
                _panel(axes, verdict, panel, steps, octaves)
                if j == len(row) - 1:
                    _step_labels(axes, _values(verdict, panel, steps), verdict.sizes[-1], steps)
        _rose(_axes(figure, _COLUMNS - 1, BOTTOMS[1]), verdict, octaves)
    return figure


def _axes(figure: Figure, column: int, bottom: float) -> Axes:
    wide = (_WIDTH - LEFT - 0.1) / _COLUMNS
    return figure.add_axes(
        ((LEFT + column * wide) / _WIDTH, bottom / HEIGHT, (wide - _GAP) / _WIDTH, ROW / HEIGHT)
    )


def _values(verdict: CoordinateVerdict, panel: tuple[str, str], steps: Sequence[int]) -> np.ndarray:
    """(steps, sizes) means over seeds; NaN where there is none."""
    values = np.array(verdict.values[": ".join(panel)], float)  # (sizes, all steps)
    return values[:, [t - 1 for t in steps]].T


def _reach(values: np.ndarray) -> float:
    """Octaves from the smallest to the largest value."""
    known = values[np.isfinite(values)]
    return math.log2(known.max() / known.min()) if len(known) else 0.0


def _panel(
    axes: Axes,
    verdict: CoordinateVerdict,
    panel: tuple[str, str],
    steps: Sequence[int],
    octaves: float,
) -> None:
    values = _values(verdict, panel, steps)
    for line, colour in zip(values, size_colours(len(steps)), strict=True):
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
    known = values[np.isfinite(values)]
    middle = math.sqrt(known.max() * known.min()) if len(known) else 1.0
    _scales(axes, verdict, middle, octaves)
    low, high = axes.get_ylim()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [d * 10.0**k for k in decades for d in (1, 3) if low <= d * 10.0**k <= high]
    ticks_on(axes.yaxis, ticks[:: math.ceil(len(ticks) / 4)])
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_xlabel(verdict.sweep, labelpad=2, size=8)
    _heading(axes, verdict, panel)


def _scales(axes: Axes, verdict: CoordinateVerdict, middle: float, octaves: float) -> None:
    sizes = verdict.sizes
    room = (sizes[-1] / sizes[0]) ** 0.07
    log_axis(axes, "x", sizes[0] / room, sizes[-1] * room)
    ticks_on(axes.xaxis, sizes)
    log_axis(axes, "y", middle / 2 ** (octaves / 2), middle * 2 ** (octaves / 2))
    axes.tick_params(labelsize=7, pad=2)


def _rose(axes: Axes, verdict: CoordinateVerdict, octaves: float) -> None:
    """What slopes look like in these panels."""
    _scales(axes, verdict, 1.0, octaves)
    axes.set_axis_off()
    first, last = verdict.sizes[0], verdict.sizes[-1]
    doublings = math.log2(last / first)
    steepest = math.floor(2 * min(1.0, octaves / 2 / doublings)) / 2 or 0.25
    axes.annotate(
        "slopes to scale",
        (0, 1),
        (-4, 17),
        xycoords="axes fraction",
        textcoords="offset points",
        size=8.5,
        color=INK,
    )
    for slope in (-steepest, -steepest / 2, 0, steepest / 2, steepest):
        end = 2 ** (slope * doublings)
        axes.plot((first, last), (1, end), color=MUTED, linewidth=1.6 if slope == 0 else 0.8)
        axes.annotate(
            f"{slope:+.3g}".replace("-", MINUS) if slope else "0",
            (last, end),
            (4, 0),
            textcoords="offset points",
            size=7.5,
            color=MUTED,
            va="center",
            annotation_clip=False,
        )


def _heading(axes: Axes, verdict: CoordinateVerdict, panel: tuple[str, str]) -> None:
    """The activation's name; under it the judged slope that lies farthest out."""
    judged = [f for f in verdict.findings if f.quantity == ": ".join(panel)]
    axes.annotate(
        WORDS.get(panel[1], panel[1]),
        (0, 1),
        (-4, 17),
        xycoords="axes fraction",
        textcoords="offset points",
        size=8.5,
        color=INK,
    )
    if not judged:
        return
    worst = max(judged, key=lambda finding: finding.beyond)
    failed = worst.verdict == "fail"
    half = (worst.ci95[1] - worst.ci95[0]) / 2
    text = f"{worst.slope:+.2f} ± {half:.2f}".replace("-", MINUS)
    axes.annotate(
        text,
        (0, 1),
        (-4, 6),
        xycoords="axes fraction",
        textcoords="offset points",
        size=7.5,
        color=ACCENT if failed else MUTED,
        weight="bold" if failed else "normal",
    )


def _step_labels(axes: Axes, values: np.ndarray, x: float, steps: Sequence[int]) -> None:
    """Which step a line is, at its right end; the colours are the same in all panels."""
    there = [(t, line[-1]) for t, line in zip(steps, values, strict=True) if np.isfinite(line[-1])]
    if not there:
        return
    points = axes.transData.transform([(x, y) for _, y in there])
    places = axes.transAxes.inverted().transform(points)[:, 1].tolist()
    height = axes.bbox.height / axes.figure.dpi * 72
    for (t, y), at in zip(there, spread(places, 9.5 / height), strict=True):
        axes.annotate(
            f"step {t}" if t == there[0][0] else str(t),
            (x, y),
            (1.05, at),
            textcoords="axes fraction",
            color=MUTED,
            size=7.5,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": RULE, "linewidth": 0.6, "shrinkB": 4},
        )
