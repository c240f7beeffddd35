"""What figures draw with: dots, diamonds, bars, bands, and words beside them.

The one idea: everything is labelled where it is, so no figure has a legend, and what is not known
looks it: a line is dashed and faint from the last run on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.patheffects import AbstractPathEffect, withStroke
from matplotlib.text import Annotation
from matplotlib.transforms import Transform
from numpy.typing import ArrayLike

from nanoscale.errors import UserError
from nanoscale.report.links import SERIES
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
    from nanoscale.laws.arrays import Array
    from nanoscale.laws.band import Band

Dash = tuple[float, tuple[float, float]]
BEYOND: Dash = (0, (4, 3))  # the dash of what no run has reached
DOTTED: Dash = (0, (1, 1.6))
MANY = 400  # points from which dots lose their rims
HALO: list[AbstractPathEffect] = [withStroke(linewidth=2.5, foreground=PAPER)]
ROUNDING = 1.0001  # a curve's end that is the last run's x may lie a rounding beyond it
Columns = Mapping[str, Sequence[float] | np.ndarray]


# -- words --------------------------------------------------------------------------------------
def label(
    axes: Axes,
    text: str,
    place: tuple[float, float],
    offset: tuple[float, float] = (0, 0),
    *,
    on: str | Transform | Artist = "axes fraction",
    colour: str = MUTED,
    size: float = 8,
    **look: Any,
) -> Annotation:
    """Text `offset` points from a place of the coordinates `on`, also outside of the axes.

    look: the rest, in the words of `Axes.annotate`.
    """
    return axes.annotate(
        text,
        place,
        offset,
        xycoords=on,
        textcoords="offset points",
        color=colour,
        size=size,
        annotation_clip=False,
        **look,
    )


def headed(
    axes: Axes, y_label: str, x_label: str = "", *, title: str = "", left: float = MARGIN
) -> None:
    """Title and the quantity on y above the axes, `left` points before them, where ticks begin;
    the quantity on x below."""
    label(axes, y_label, (0, 1), (-left, 9), size=9)
    label(axes, title, (0, 1), (-left, 23), colour=INK, size=9.5, weight="bold")
    axes.set_xlabel(x_label)


def notes(axes: Axes, lines: Sequence[tuple[str, str]], above: bool = False) -> None:
    """(text, colour) lines in the upper right corner, or from the right end above the axes."""
    start, step, va = (9, 13, "baseline") if above else (-2, -14, "top")
    for row, (text, colour) in enumerate(lines):
        label(
            axes,
            text,
            (1, 1),
            (0, start + step * row),
            colour=colour,
            size=10 if colour == INK and not row else 8.5,
            ha="right",
            va=va,
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


def apart(axes: Axes, ends: Sequence[End], gap: float) -> Array:
    """(n, 2) where they are as shares of the axes, moved to be `gap` points apart in y."""
    drawn = [(end.x, end.y) for end in ends]
    on_page = axes.transData.transform(drawn)
    places: Array = axes.transAxes.inverted().transform(on_page)
    _, height = points_of(axes)
    places[:, 1] = spread(places[:, 1].tolist(), gap / height)
    return places


def end_labels(
    axes: Axes,
    ends: Sequence[End],
    *,
    at: float = 1.015,
    gap: float = 11,
    clear: float = 5,
    size: float = 8,
) -> None:
    """One label per line right of the axes, at least `gap` points apart, each with a thin leader;
    each is of the `series` of its text.

    at: of the axes' width; clear: points between a leader and the line's end.
    """
    for end, (_, y) in zip(ends, apart(axes, ends, gap), strict=True):
        named = axes.annotate(
            end.text,
            (end.x, end.y),
            (at, y),
            textcoords="axes fraction",
            color=end.colour,
            size=size,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": RULE, "linewidth": 0.6, "shrinkB": clear},
            gid=SERIES + end.text,
        )
        assert named.arrow_patch is not None
        named.arrow_patch.set_gid(SERIES + end.text)


# -- points -------------------------------------------------------------------------------------
def checked(columns: Columns, *names: str, positive: bool = True) -> list[Array]:
    """Columns as arrays of one length; `UserError` for none, or a number no log axis can show."""
    arrays = [np.asarray(columns[name], float) for name in names]
    count = len(arrays[0])
    for name, values in zip(names, arrays, strict=True):
        if not count or len(values) != count:
            raise UserError(f"{name} has {len(values)} values: there is nothing to draw")
        if not np.isfinite(values).all() or (positive and values.min() <= 0):
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
    low, high = u.min(), u.max()
    steps = (u - low) / (high - low) * len(SIZES)
    colours = [*SIZES, SIZES[-1]]  # the largest value ends the last step
    return [colours[int(step)] for step in steps]


def runs(axes: Axes, x: Array, y: Array, colours: str | Sequence[str], zorder: float = 3) -> None:
    """A dot per run, smaller and fainter where they are many."""
    area, rim, alpha = dots(len(x))
    axes.scatter(
        x,
        y,
        s=area,
        c=colours,
        edgecolors=PAPER,
        linewidths=rim,
        alpha=alpha,
        zorder=zorder,
    )


def colour_key(axes: Axes, values: ArrayLike | None, name: str) -> None:
    """What the colours of `colours_of` mean, if they are of values, above the axes at the right."""
    if values is None:
        return
    ends = (np.min(values), np.max(values))
    low, high = (float(f"{end:.1e}") for end in ends)
    if low == high:
        return
    first, last = quantities([low, high])
    label(axes, last, (1, 1), (0, 9), size=8.5, ha="right")

    width, height = points_of(axes)
    step, end = 8, 8 + 4.2 * len(last)  # points: of a square, and right of them all
    left = end + step * np.arange(len(SIZES), 0, -1)
    axes.scatter(
        1 - left / width,
        np.full(len(SIZES), 1 + 12 / height),
        s=40,
        marker="s",
        c=SIZES,
        linewidths=0,
        transform=axes.transAxes,
        clip_on=False,
    )
    label(axes, f"{name}  {first}", (1, 1), (-left[0] - 8, 9), size=8.5, ha="right")


def mark(
    axes: Axes,
    x: ArrayLike,
    y: ArrayLike,
    colour: str,
    *,
    shape: str = "o",
    size: float = 6,
    rim: float = 0.8,
    edge: str = PAPER,
    zorder: float = 4,
    **look: Any,
) -> None:
    """Dots (`o`), or diamonds (`D`): estimates. look: the rest, in the words of `Axes.scatter`."""
    axes.scatter(
        x,
        y,
        s=size**2,
        c=colour,
        marker=shape,
        edgecolors=edge,
        linewidths=rim,
        zorder=zorder,
        **look,
    )


def bar(
    axes: Axes,
    x: ArrayLike,
    y: ArrayLike,
    colour: str,
    width: float,
    zorder: float = 4,
    *,
    on: Transform | None = None,
    dash: str | Dash = "-",
) -> None:
    """An interval: a line with ends that are where they are; `on` an edge of the axes, if given."""
    axes.plot(
        x,
        y,
        color=colour,
        linewidth=width,
        linestyle=dash,
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
        axes.plot(
            part.x,
            part.y,
            color=colour,
            linewidth=width,
            linestyle=dash,
            zorder=zorder,
        )


def shade(axes: Axes, band: Band, colour: str, alpha: float) -> None:
    """An interval over x."""
    axes.fill_between(band.x, band.low, band.high, color=colour, alpha=alpha, linewidth=0)


def law_line(
    axes: Axes, band: Band, reach: float, *, width: float, alpha: float, zorder: float = 3
) -> None:
    """A law and its interval; beyond `reach` it is half as dark, and said to be extrapolated."""
    seen, beyond = band.split(reach)
    shade(axes, seen, INK, alpha)
    shade(axes, beyond, INK, alpha / 2)
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
