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
from typing import Any, Literal, TypeGuard, TypeVar

import numpy as np
from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
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
    "text.parse_math": False,  # a $ in a name is a $
    "axes.labelcolor": MUTED,
    "axes.labelpad": 6,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
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
LETTER = 6.0  # points of a letter of a tick's label
WIDTH = 7.6  # inches of a figure as wide as a page's text
ONE_HEAD, TWO_HEADS = 26.0, 40.0  # points above the axes, for a line of words or two
_STEPS = (1, 2, 2.5, 5, 10)  # from tick to tick of a linear axis
_DIGITS = ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))  # of the ticks in a decade of a log axis
ONE_VALUE = 1.02  # the ratio of an axis' ends below which it as good as holds one value
LOSS = "validation loss (nats per token)"
LOSS_NAMES = {
    "val_loss": "validation loss",
    "best_val_loss": "lowest validation loss",
    "train_loss": "training loss",
    "val_bits_per_byte": "validation loss",
}
OF_VERDICTS = {  # their colours
    "pass": INK,
    "better": INK,
    "equal": INK,
    "fail": ACCENT,
    "worse": ACCENT,
    "inconclusive": MUTED,
}
XY = Literal["x", "y"]
Item = TypeVar("Item")


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


def sheet(
    width: float,
    height: float,
    count: int = 1,
    across: int = 1,
    *,
    above: float = ONE_HEAD,
    left: float = MARGIN,
    right: float = 8,
    below: float = 40,
    wspace: float = 0.2,
    hspace: float = 0.2,
    **shape: Any,
) -> tuple[Figure, list[Axes]]:
    """A figure (inches) with `count` axes in rows of `across`, these points from its edges.

    wspace, hspace: between axes, as shares of one. shape: what axes share and their ratios, in the
    words of `Figure.subplots`.
    """
    figure = canvas(width, height)
    down = math.ceil(count / across)
    grid = list(figure.subplots(down, across, squeeze=False, **shape).flat)
    for axes in grid[count:]:
        axes.set_visible(False)
    wide, high = 72 * width, 72 * height
    figure.subplots_adjust(
        left / wide, below / high, 1 - right / wide, 1 - above / high, wspace, hspace
    )
    return figure, grid[:count]


def size_colours(n: int) -> list[str]:
    """`n` colours from the smallest to the largest; neighbours share one beyond eight."""
    return evenly(SIZES, n) if n > 1 else [SIZES[-3]]


def evenly(items: Sequence[Item], n: int) -> list[Item]:
    """`n` of them from the first to the last, in even steps."""
    return [items[int(place)] for place in np.linspace(0, len(items) - 1, n).round()]


# -- numbers ------------------------------------------------------------------------------------
def is_number(value: object) -> TypeGuard[float]:
    """Whether it is one, and no truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)


def quantities(values: Sequence[object]) -> list[str]:
    """`values` for the ticks of one axis, in one notation: 0.003, 250, words, or powers of ten."""
    sizes = [abs(value) for value in values if is_number(value) and value]
    far = bool(sizes) and (min(sizes) < 1e-3 or max(sizes) >= 1e5)
    short = max(map(_digits, sizes), default=0) <= 2
    write = _power if far and short else _plain
    return [write(value) for value in values]


def _digits(value: float) -> int:
    """The significant ones."""
    mantissa = f"{value:.12e}".split("e")[0]
    return len(mantissa.strip("-0.").replace(".", ""))


def printed(number: str) -> str:
    """A number as it is set in print."""
    return number.replace(",", THIN).replace("-", MINUS)


def _plain(value: object) -> str:
    return printed(f"{value:,.6g}" if isinstance(value, Real) else str(value))


def _power(value: object) -> str:
    """Nothing but a number other than 0 has one."""
    if not is_number(value) or not value:
        return _plain(value)
    mantissa, exponent = f"{value:.1e}".split("e")
    power = "10" + str(int(exponent)).translate(SUPERSCRIPTS)
    mantissa = printed(mantissa.removesuffix(".0"))
    return power if mantissa == "1" else f"{mantissa}{TIMES}{power}"


def raised(text: str) -> str:
    """`C^0.15` with its exponent raised."""
    return re.sub(r"\^([\d.]+|g)", lambda m: m[1].translate(SUPERSCRIPTS), text)


def interval(ends: Sequence[float] | None, form: str) -> str:
    """` [low, high]` after a number; nothing where no interval is known."""
    return f" [{ends[0]:{form}}, {ends[1]:{form}}]" if ends else ""


# -- axes ---------------------------------------------------------------------------------------
def log_ticks(low: float, high: float, most: int = 8) -> list[float]:
    """At most these round numbers of [low, high], evenly spread on a log axis if it is long."""
    ratio = high / low
    ticks: list[float] = []
    if ratio < 5:
        even = MaxNLocator(6, steps=_STEPS).tick_values(low, high)
        ticks = [float(tick) for tick in even if low <= tick <= high]
    else:
        sets = _DIGITS if ratio >= 10 else _DIGITS[:1]
        for digits in sets:
            ticks = round_numbers(low, high, digits)
            if len(ticks) <= most:
                break
    return thinned(ticks, most)


def round_numbers(low: float, high: float, digits: Sequence[int]) -> list[float]:
    """The numbers of [low, high] that are one of `digits` times a power of ten."""
    numbers = []
    first = math.floor(math.log10(low))
    last = math.ceil(math.log10(high))
    for power in range(first, last + 1):
        numbers += [digit * 10.0**power for digit in digits]
    return [number for number in numbers if low <= number <= high]


def thinned(ticks: Sequence[float], most: int) -> list[float]:
    """Every second, third, ... of them, so that there are at most so many."""
    return list(ticks[:: max(1, math.ceil(len(ticks) / most))])


def log_axis(axes: Axes, which: XY, low: float, high: float, *, most: int = 8) -> None:
    """Make the x or y axis logarithmic from `low` to `high`, with round numbers on it.

    most: of ticks; fewer for an axis of half a figure.
    """
    if high / low < ONE_VALUE:
        low /= ONE_VALUE
        high *= ONE_VALUE
    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    axis = axes.xaxis if which == "x" else axes.yaxis
    ticks = log_ticks(low, high, most)
    width, _ = points_of(axes)
    while which == "x" and len(ticks) > 1 and _meet(ticks, width / math.log(high / low)):
        ticks = log_ticks(low, high, len(ticks) - 1)
    ticks_on(axis, ticks)


def _meet(ticks: Sequence[float], scale: float) -> bool:
    """Whether labels of numbers along x, `scale` points per factor e, touch."""
    widths = np.array([LETTER * len(text) for text in quantities(ticks)])
    return bool((scale * np.diff(np.log(ticks)) < (widths[1:] + widths[:-1]) / 2 + LETTER).any())


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
    return [float(place) for place in moved[np.argsort(order)]]
