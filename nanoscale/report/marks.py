"""What figures draw with: dots, diamonds, bars, bands, and words beside them.

The one idea: everything is labelled where it is, so no figure has a legend, and what is not known
looks it: a line is dashed and faint from the last run on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import AbstractPathEffect, withStroke
from matplotlib.transforms import Transform
from numpy.typing import ArrayLike

from nanoscale.errors import UserError
from nanoscale.report.style import (
    INK,
    MARGIN,
    MUTED,
    PAPER,
    RULE,
    SIZES,
    points_of,
    quantities,
    spread,
)

if TYPE_CHECKING:
    from nanoscale.laws.band import Band

BEYOND = (0, (4, 3))  # the dash of what no run has reached
DOTTED = (0, (1, 1.6))
MANY = 400  # points from which dots lose their rims
HALO: list[AbstractPathEffect] = [withStroke(linewidth=2.5, foreground=PAPER)]
ROUNDING = 1.0001  # a curve's end that is the last run's x may lie a rounding beyond it
Columns = Mapping[str, Sequence[float] | np.ndarray]
LABELS = {
    "N": "N: parameters",
    "D": "D: training tokens",
    "C": "C: training FLOPs, 6 N D",
    "loss": "loss (nats per token)",
}


# -- words --------------------------------------------------------------------------------------
def label(
    axes: Axes,
    text: str,
    place: tuple[float, float],
    offset: tuple[float, float] = (0, 0),
    *,
    on: str | Transform = "axes fraction",
    colour: str = MUTED,
    size: float = 8,
    ha: str = "left",
    va: str = "baseline",
    weight: str = "normal",
    halo: bool = False,
    zorder: float = 3,
) -> None:
    """`text`, if there is any, at `place` of the coordinates `on`, moved by `offset` points."""
    if not text:
        return
    axes.annotate(
        text,
        place,
        offset,
        xycoords=on,
        textcoords="offset points",
        color=colour,
        size=size,
        ha=ha,
        va=va,
        weight=weight,
        path_effects=HALO if halo else [],
        zorder=zorder,
    )


def headed(axes: Axes, y_label: str, *, title: str = "", left: float = MARGIN) -> None:
    """Title and the quantity on y above the axes, `left` points before them, where ticks begin."""
    label(axes, y_label, (0, 1), (-left, 9), size=9)
    label(axes, title, (0, 1), (-left, 23), colour=INK, size=9.5, weight="bold")


def notes(axes: Axes, lines: Sequence[tuple[str, str]], above: bool = False) -> None:
    """(text, colour) lines in the upper right corner, or from the right end above the axes."""
    for row, (text, colour) in enumerate(lines):
        axes.annotate(
            text,
            (1, 1),
            (0, 9 + 13 * row if above else -2 - 14 * row),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="right",
            va="baseline" if above else "top",
            color=colour,
            size=10 if colour == INK and not row else 8.5,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.5, "alpha": 0.85},
            zorder=8,
        )


@dataclass(frozen=True)
class End:
    """Where a line ends, and what it is called."""

    text: str
    x: float
    y: float
    colour: str = MUTED


def end_labels(
    axes: Axes, ends: Sequence[End], *, at: float = 1.015, gap: float = 11, clear: float = 5
) -> None:
    """One label per line right of the axes, at least `gap` points apart, each with a thin leader.

    at: of the axes' width; clear: points between a leader and the line's end.
    """
    _, height = points_of(axes)
    on_page = axes.transData.transform([(end.x, end.y) for end in ends])
    in_axes = axes.transAxes.inverted().transform(on_page)
    for end, y in zip(ends, spread(in_axes[:, 1].tolist(), gap / height), strict=True):
        axes.annotate(
            end.text,
            (end.x, end.y),
            (at, y),
            xycoords="data",
            textcoords="axes fraction",
            color=end.colour,
            size=8,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": RULE, "linewidth": 0.6, "shrinkB": clear},
        )


# -- points -------------------------------------------------------------------------------------
def checked(columns: Columns, *names: str, positive: bool = True) -> list[np.ndarray]:
    """Columns as arrays of one length; `UserError` for none, or a number no log axis can show."""
    arrays = [np.asarray(columns[name], float) for name in names]
    for name, values in zip(names, arrays, strict=True):
        if not len(values) or len(values) != len(arrays[0]):
            raise UserError(f"{name} has {len(values)} values: there is nothing to draw")
        if not np.isfinite(values).all() or (positive and (values <= 0).any()):
            raise UserError(f"{name} has a value that is not a positive finite number")
    return arrays


def dots(n: int) -> tuple[float, float, float]:
    """(area, width of the rim, opacity) of one of n dots."""
    area = float(np.clip(420 / math.sqrt(n), 4, 34))
    return (area, 0.6, 1.0) if n <= MANY else (area, 0.0, 0.5)


def colours_of(values: ArrayLike | None, n: int) -> list[str]:
    """A colour for each of n points, by ln of its value in even steps; one for all without."""
    if values is None or np.min(values) == np.max(values):
        return [SIZES[4]] * n
    u = np.log(np.asarray(values, float))
    steps = (u - u.min()) / (u.max() - u.min()) * len(SIZES)
    last = len(SIZES) - 1
    return [SIZES[min(int(step), last)] for step in steps]


def runs(axes: Axes, x: np.ndarray, y: np.ndarray, sizes: ArrayLike | None) -> None:
    """A dot per run, coloured by size."""
    area, rim, alpha = dots(len(x))
    colours = colours_of(sizes, len(x))
    axes.scatter(x, y, s=area, c=colours, edgecolors=PAPER, linewidths=rim, alpha=alpha, zorder=3)


def colour_key(axes: Axes, values: ArrayLike, name: str) -> None:
    """What the colours of `runs` mean, above the axes at their right end."""
    low, high = (float(f"{end:.1e}") for end in (np.min(values), np.max(values)))
    if low == high:
        return
    first, last = quantities([low, high])
    width, height = points_of(axes)
    step, end = 8, 8 + 4.2 * len(last)  # points: of a square, and right of them all
    axes.scatter(
        [1 - (end + step * (len(SIZES) - i)) / width for i in range(len(SIZES))],
        [1 + 12 / height] * len(SIZES),
        s=40,
        marker="s",
        c=SIZES,
        linewidths=0,
        transform=axes.transAxes,
        clip_on=False,
    )
    label(axes, last, (1, 1), (0, 9), size=8.5, ha="right")
    left = end + step * len(SIZES) + 8
    label(axes, f"{name}  {first}", (1, 1), (-left, 9), size=8.5, ha="right")


def mark(
    axes: Axes,
    x: ArrayLike,
    y: ArrayLike,
    colour: str,
    *,
    shape: str = "o",
    size: float = 6,
    rim: float = 0.8,
    alpha: float = 1,
    zorder: float = 4,
) -> None:
    """Dots (`o`), or diamonds (`D`): estimates."""
    axes.plot(
        x,
        y,
        shape,
        color=colour,
        markersize=size,
        markeredgecolor=PAPER,
        markeredgewidth=rim,
        alpha=alpha,
        zorder=zorder,
    )


def bar(
    axes: Axes,
    x: ArrayLike,
    y: ArrayLike,
    colour: str,
    width: float,
    zorder: float = 4,
    on: Transform | None = None,
) -> None:
    """An interval: a line with ends that are where they are; `on` an edge of the axes, if given."""
    axes.plot(
        x,
        y,
        color=colour,
        linewidth=width,
        solid_capstyle="butt",
        zorder=zorder,
        transform=on or axes.transData,
        clip_on=on is None,
    )


# -- lines --------------------------------------------------------------------------------------
def line(
    axes: Axes, band: Band, reach: float, colour: str, *, width: float, zorder: float = 3
) -> None:
    """Solid up to `reach`, dashed beyond: what no run has seen looks it."""
    for part, dash in zip(band.split(reach), ("-", BEYOND), strict=True):
        axes.plot(part.x, part.y, color=colour, linewidth=width, linestyle=dash, zorder=zorder)


def shade(
    axes: Axes, x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str, alpha: float
) -> None:
    """An interval over x."""
    axes.fill_between(x, low, high, color=colour, alpha=alpha, linewidth=0)


def law_line(
    axes: Axes, band: Band, reach: float, *, width: float, alpha: float, zorder: float = 3
) -> None:
    """A law and its interval; beyond `reach` it is half as dark, and said to be extrapolated."""
    seen, beyond = band.split(reach)
    shade(axes, seen.x, seen.low, seen.high, INK, alpha)
    shade(axes, beyond.x, beyond.low, beyond.high, INK, alpha / 2)
    line(axes, band, reach, INK, width=width, zorder=zorder)
    if len(beyond) > 1:
        middle = len(beyond) // 2
        axes.annotate(
            "extrapolated",
            (beyond.x[middle], beyond.high[middle]),
            (0, 5),
            textcoords="offset points",
            ha="center",
            va="bottom",
            color=MUTED,
            size=8,
            style="italic",
        )
