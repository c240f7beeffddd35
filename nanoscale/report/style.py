"""How every figure looks: its colours, its axes with their ticks, and how numbers are set.

The one idea: every colour has a name and a twin for dark screens, and is used by its name alone.
Sizes are ordered, so their colours run through lightness as well as hue (colour-blind safe).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any, Literal, TypeGuard

import numpy as np
from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

# name -> (light, dark); what is drawn is the light one, and no two names share it
COLOURS = {
    "paper": ("#fdfdfc", "#15171a"),
    "ink": ("#1f2328", "#e6e8eb"),
    "muted": ("#68707b", "#9aa2ad"),
    "rule": ("#e3e4e2", "#2d3137"),
    "accent": ("#b3541e", "#f0a36b"),
    "s1": ("#23a194", "#0d8d82"),
    "s2": ("#009da6", "#1e99a0"),
    "s3": ("#008ba8", "#3ca3bd"),
    "s4": ("#0078a8", "#5cabd6"),
    "s5": ("#1f63a3", "#7db3ec"),
    "s6": ("#344e99", "#9fbafd"),
    "s7": ("#413889", "#c1c1ff"),
    "s8": ("#472275", "#e1c9ff"),
    "h1": ("#edf5fb", "#1d262e"),
    "h2": ("#cfdfec", "#283744"),
    "h3": ("#b0c8dc", "#344a5d"),
    "h4": ("#91b1cc", "#3f5d75"),
    "h5": ("#4478a1", "#5f92bb"),
    "h6": ("#226493", "#6eabdc"),
    "h7": ("#004b81", "#7ec6ff"),
}
LIGHT = {name: pair[0] for name, pair in COLOURS.items()}
PAPER, INK, MUTED, RULE, ACCENT = (LIGHT[k] for k in ("paper", "ink", "muted", "rule", "accent"))
SIZES = [LIGHT[f"s{i}"] for i in range(1, 9)]
HEAT = [LIGHT[f"h{i}"] for i in range(1, 8)]  # worst to best

RC: dict[Any, object] = {  # the names that matplotlib knows are a type of its own
    "font.family": "sans-serif",
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "nanoscale",
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 3.5,
    "ytick.major.size": 3.5,
    "xtick.minor.width": 0.4,
    "xtick.minor.size": 2,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "lines.solid_capstyle": "round",
    "lines.dash_capstyle": "butt",
    "hatch.linewidth": 0.6,
}


MINUS, TIMES, THIN = "\u2212", "\u00d7", "\u202f"  # as numbers are set in print
SUPERSCRIPTS = str.maketrans("0123456789-.g", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻·ᵍ")
MARGIN = 34.0  # points left of every axes, for its tick labels
WIDTH = 7.6  # inches of a figure as wide as a page's text
_STEPS = (1, 2, 2.5, 5, 10)  # from tick to tick of a linear axis
ONE_VALUE = 1.02  # the ratio of an axis' ends below which it as good as holds one value
LOSS = "validation loss (nats per token)"
XY = Literal["x", "y"]


@contextmanager
def styled() -> Iterator[None]:
    """Draw and write in this style alone, whatever the process has set, and leave no trace."""
    with rc_context():
        rcdefaults()
        rcParams.update(RC)
        yield


def canvas(width: float, height: float) -> Figure:
    """An empty figure (inches) with its own Agg canvas; pyplot's state is never touched."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def size_colours(n: int) -> list[str]:
    """`n` colours from the smallest to the largest; neighbours share one beyond eight."""
    places = np.linspace(0, len(SIZES) - 1, n) if n > 1 else [len(SIZES) - 3]
    return [SIZES[round(float(p))] for p in places]


# -- numbers ------------------------------------------------------------------------------------
def is_number(value: object) -> TypeGuard[float]:
    """Whether it is one, and no truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)


def quantities(values: Sequence[object]) -> list[str]:
    """`values` for the ticks of one axis, in one notation: 0.003, 250, words, or powers of ten."""
    numbers = [v for v in values if is_number(v) and v]
    far = any(not 1e-3 <= abs(v) < 1e5 for v in numbers)
    short = all(_digits(v) <= 2 for v in numbers)
    if not (far and short):
        return [_plain(v) for v in values]
    return [_power(v) if is_number(v) and v else _plain(v) for v in values]


def _digits(value: float) -> int:
    """The significant ones."""
    mantissa = f"{value:.12e}".split("e")[0]
    return len(mantissa.strip("-0.").replace(".", ""))


def _plain(value: object) -> str:
    text = f"{value:,.6g}" if isinstance(value, Real) else str(value)
    return text.replace(",", THIN).replace("-", MINUS)


def _power(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    power = "10" + str(int(exponent)).translate(SUPERSCRIPTS)
    mantissa = mantissa.removesuffix(".0").replace("-", MINUS)
    return power if mantissa == "1" else f"{mantissa}{TIMES}{power}"


def raised(text: str) -> str:
    """`C^0.15` with its exponent raised."""
    return re.sub(r"\^([\d.]+|g)", lambda m: m[1].translate(SUPERSCRIPTS), text)


def interval(ends: Sequence[float] | None, form: str) -> str:
    """` [low, high]` after a number; nothing where no interval is known."""
    return f" [{ends[0]:{form}}, {ends[1]:{form}}]" if ends else ""


# -- axes ---------------------------------------------------------------------------------------
def log_ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers of [low, high], evenly spread on a log axis if it is long."""
    if high / low < 5:
        ticks = MaxNLocator(6, steps=_STEPS).tick_values(low, high)
        return [float(t) for t in ticks if low <= t <= high]
    return _few(low, high, ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)), most=8)


def round_numbers(low: float, high: float, digits: Sequence[int]) -> list[float]:
    """The numbers of [low, high] that are one of `digits` times a power of ten."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    numbers = [d * 10.0**k for k in decades for d in digits]
    return [n for n in numbers if low <= n <= high]


def _few(low: float, high: float, choices: Sequence[Sequence[int]], most: int) -> list[float]:
    """The round numbers of the first choice of digits with at most `most` of them, or some."""
    ticks: list[float] = []
    for digits in choices:
        ticks = round_numbers(low, high, digits)
        if len(ticks) <= most:
            return ticks
    return ticks[:: math.ceil(len(ticks) / most)]


def axis_of(axes: Axes, which: XY) -> Axis:
    """Its x or y axis."""
    return axes.xaxis if which == "x" else axes.yaxis


def log_axis(axes: Axes, which: XY, low: float, high: float, *, most: int | None = None) -> None:
    """Make the x or y axis logarithmic from `low` to `high`, with round numbers on it.

    most: of ticks, for an axis of half a figure.
    """
    if high / low < ONE_VALUE:
        low, high = low / ONE_VALUE, high * ONE_VALUE
    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})

    ticks = log_ticks(low, high)
    if most is not None and len(ticks) > most:
        if high / low < 10:
            ticks = ticks[:: math.ceil(len(ticks) / most)]
        else:
            ticks = _few(low, high, ((1, 2, 5), (1, 3), (1,)), most)
    ticks_on(axis_of(axes, which), ticks)


def ticks_on(axis: Axis, ticks: Sequence[float], labels: Sequence[str] | None = None) -> None:
    """Exactly these ticks, with the quantities themselves as labels unless given."""
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter(labels or quantities(ticks)))
    axis.set_minor_locator(NullLocator())


def linear_ticks(axis: Axis, most: int) -> None:
    """Round numbers, at most `most` and one, on a linear axis."""
    axis.set_major_locator(MaxNLocator(most, steps=_STEPS))


def points_of(axes: Axes) -> tuple[float, float]:
    """Width and height of the axes in points."""
    dpi = axes.figure.dpi
    return axes.bbox.width / dpi * 72, axes.bbox.height / dpi * 72


def panels(figure: Figure, count: int, across: int) -> list[Axes]:
    """`count` axes that share the y axis, in rows of `across`."""
    down = math.ceil(count / across)
    grid = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    for axes in grid[count:]:
        axes.set_visible(False)
    return list(grid[:count])


def place(
    figure: Figure,
    *,
    heads: int = 1,
    left: float = MARGIN,
    right: float = 8,
    below: float = 40,
    **gaps: float,
) -> None:
    """Put the axes these points from the figure's edges; `heads` lines stand above them."""
    width, height = figure.get_size_inches() * 72
    above = 12 + 14 * heads
    figure.subplots_adjust(
        left / width, below / height, 1 - right / width, 1 - above / height, **gaps
    )


def note(
    axes: Axes,
    text: str,
    at: tuple[float, float],
    offset: tuple[float, float],
    *,
    size: float = 8.5,
    color: str = MUTED,
    weight: str = "normal",
    ha: Literal["left", "center", "right"] = "left",
) -> Annotation:
    """Text `offset` points from a place of the axes (0 to 1), also outside of them."""
    return axes.annotate(
        text,
        at,
        offset,
        xycoords="axes fraction",
        textcoords="offset points",
        size=size,
        color=color,
        weight=weight,
        ha=ha,
        annotation_clip=False,
    )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """`places` moved apart to at least `gap`, in order and with their middle kept."""
    order = np.argsort(places, kind="stable")
    moved = np.array(places, float)[order]
    for _ in range(200):
        short = np.maximum(gap - np.diff(moved), 0)
        if short.max(initial=0) < gap * 1e-3:
            break
        moved[:-1] -= short / 2
        moved[1:] += short / 2
    result = np.empty(len(moved))
    result[order] = moved
    return [float(place) for place in result]
