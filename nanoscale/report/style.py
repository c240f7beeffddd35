"""How every figure looks: colours, axes, ticks, and the way to SVG.

The one idea: a figure is drawn once, in named colours. In a page each name is a CSS variable, so
the same SVG is legible on paper, on a light and on a dark screen; in a file it is the light one.
Sizes are ordered, so their colours run through lightness as well as hue (colour-blind safe).
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from nanoscale.errors import UserError
from nanoscale.store.files import atomic_write

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

RC = {
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
MARGIN = 34.0  # points left of every axes, for its tick labels
SUPERSCRIPTS = str.maketrans("0123456789-.g", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻·ᵍ")
LEVEL = {high: low for low, high in SUPERSCRIPTS.items()} | {ord("⁻"): MINUS}


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


def svg(figure: Figure, prefix: str = "") -> str:
    """The figure as one `<svg>` element for a page: colours are variables, fonts are the page's.

    `prefix` keeps the ids of several figures of one page apart. Equal figures give equal text.
    """
    buffer = io.StringIO()
    with styled():
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].rstrip()
    text = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"; font-family: [^\";]*", "", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"([⁰¹²³⁴⁵⁶⁷⁸⁹⁻ᵍ][⁰¹²³⁴⁵⁶⁷⁸⁹·]*)(?=</text>)", _tspan, text)
    for name, colour in LIGHT.items():
        text = text.replace(colour, f"var(--{name}, {colour})")
    return re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}", text)


def _tspan(match: re.Match) -> str:
    """Raised digits as the page's own, smaller: few fonts have all of the raised ones."""
    return f'<tspan dy="-.45em" font-size="72%">{match[1].translate(LEVEL)}</tspan>'


def save(figure: Figure, path: str | Path) -> Path:
    """Write the figure in the format of the path's ending (png, pdf, svg), atomically."""
    path = Path(path)
    kind = path.suffix.lstrip(".").lower()
    if kind not in ("png", "pdf", "svg"):
        raise UserError(f"cannot draw {path.name!r}; end the name in .png, .pdf or .svg")
    undated = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind)
    with styled(), atomic_write(path) as part:
        figure.savefig(
            part, format=kind, dpi=200, metadata=undated, bbox_inches="tight", pad_inches=0.12
        )
    return path


def size_colours(n: int) -> list[str]:
    """`n` colours from the smallest to the largest; neighbours share one beyond eight."""
    places = np.linspace(0, len(SIZES) - 1, n) if n > 1 else [len(SIZES) - 3]
    return [SIZES[round(float(p))] for p in places]


def quantities(values: Sequence[object]) -> list[str]:
    """`values` for the ticks of one axis, in one notation: 0.003, 250, words, or powers of ten."""
    numbers = [v for v in values if isinstance(v, Real) and v]
    far = any(not 1e-3 <= abs(v) < 1e5 for v in numbers)
    short = all(len(f"{v:.12e}".split("e")[0].strip("-0.").replace(".", "")) <= 2 for v in numbers)
    return [_power(v) if far and short and v in numbers else _plain(v) for v in values]


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


def log_ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers of [low, high], evenly spread on a log axis if it is long."""
    if high / low < 5:
        ticks = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        return [float(t) for t in ticks if low <= t <= high]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [d * 10.0**k for k in decades for d in digits if low <= d * 10.0**k <= high]
        if len(ticks) <= 8:
            return ticks
    return ticks[:: math.ceil(len(ticks) / 8)]


def log_axis(axes: Axes, which: str, low: float, high: float) -> None:
    """Make the x or y axis logarithmic from `low` to `high`, with round numbers on it."""
    set_scale, set_lim = getattr(axes, f"set_{which}scale"), getattr(axes, f"set_{which}lim")
    axis = getattr(axes, f"{which}axis")
    if high / low < 1.02:  # one value, as good as
        low, high = low / 1.02, high * 1.02
    set_scale("log")
    set_lim(low, high)
    ticks_on(axis, log_ticks(low, high))


def ticks_on(axis: Axis, ticks: Sequence[float], labels: Sequence[str] | None = None) -> None:
    """Exactly these ticks, with the quantities themselves as labels unless given."""
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter(labels or quantities(ticks)))
    axis.set_minor_locator(NullLocator())


def place(
    figure: Figure,
    title: str,
    *,
    left: float = MARGIN,
    right: float = 8,
    below: float = 40,
    **gaps: float,
) -> None:
    """Put the axes these points from the figure's edges, with room above for what heads them."""
    width, height = figure.get_size_inches() * 72
    above = 40 if title else 26
    figure.subplots_adjust(
        left / width, below / height, 1 - right / width, 1 - above / height, **gaps
    )


def headed(axes: Axes, title: str, y_label: str, left: float = MARGIN) -> None:
    """Title and the quantity on y above the axes, `left` points before them, where ticks begin."""
    lines = [(title, INK, "bold", 9.5), (y_label, MUTED, "normal", 9)]
    for row, (text, colour, weight, size) in enumerate(reversed([t for t in lines if t[0]])):
        axes.annotate(
            text, (0, 1), (-left, 9 + 14 * row), xycoords="axes fraction", size=size,
            textcoords="offset points", color=colour, weight=weight, annotation_clip=False,
        )  # fmt: skip


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
    return result.tolist()
