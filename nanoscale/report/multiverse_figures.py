"""One exponent under every analysis that could be defended, and which choices made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanoscale.report.marks import HALO, bar, headed, label
from nanoscale.report.style import (
    ACCENT,
    INK,
    MUTED,
    PAPER,
    SIZES,
    WIDTH,
    linear_ticks,
    points_of,
    quantities,
    sheet,
    styled,
)

if TYPE_CHECKING:
    from nanoscale.laws import LawFit
    from nanoscale.laws.multiverse import Analysis, Multiverse

FEW = 60  # analyses that have a dot with a rim each
RIGHT = 112  # points right of the axes: what each choice is worth
LONGEST_BAR = 95  # points of it
_CHOICES = {
    "convention": "counting of N, D and C",
    "approach": "approach",
    "objective": "objective",
    "delta": "delta",
    "dropped": "highest losses dropped",
}
_APPROACHES = {"1": "envelope", "2": "parabola", "2 cubic": "cubic", "3": "surface"}
COLOURS_OF_APPROACHES = {"1": SIZES[0], "2": SIZES[2], "2 cubic": SIZES[4], "3": SIZES[7]}


def _options(analyses: Sequence[Analysis], key: str) -> dict[object, str]:
    """In how many ways a choice was made, and what each is called."""
    taken = dict.fromkeys(getattr(row, key) for row in analyses)
    taken.pop(None, None)
    names = quantities(list(taken)) if key == "delta" else list(map(str, taken))
    if key == "approach":
        names = [f"{name.split()[0]}, {_APPROACHES[name]}" for name in names]
    return dict(zip(taken, names, strict=True))


@styled()
def multiverse_figure(record: Multiverse, fit: LawFit | None = None) -> Figure:
    """The exponent a under every analysis, sorted, and below it which choices each one made.

    At the right of each choice: by how much a moves with it, all else equal. fit: the one that was
    asked for, whose a stands beside.
    """
    fitted = [row for row in record.rows if row.a is not None]
    rows = sorted(fitted, key=attrgetter("a"))
    choices, longest, lines = {}, 22, 0
    for key in _CHOICES:
        options = _options(record.rows, key)
        if len(options) > 1:
            choices[key] = options
            longest = max(longest, *map(len, options.values()))
            lines += 1 + len(options)
    left = 14 + 4.5 * longest
    figure, (top, below) = sheet(
        max(WIDTH, 4.6 + (left + RIGHT) / 72),
        3.2 + 0.155 * lines,
        2,
        left=left,
        right=RIGHT,
        below=14,
        hspace=0.06,
        sharex=True,
        height_ratios=(160, 11.2 * lines + 1),
    )
    if fit is not None:
        _asked(top, fit)
    _exponents(top, rows)
    _matrix(below, rows, choices, record.spread)
    for axes in (top, below):
        axes.tick_params(bottom=False, labelbottom=False)
    headed(top, "a of N* ~ C^a, one mark per analysis, sorted")
    text = f"{len(rows)} analyses"
    lost = len(record.rows) - len(rows)
    if lost:
        text += f"; {lost} have no fit"
    label(top, text, (1, 0), (0, 5), size=8.5, ha="right", path_effects=HALO)
    return figure


def _asked(axes: Axes, fit: LawFit) -> None:
    a, ends = fit.exponents["a"], fit.ci95.get("a")
    text = "this fit"
    if ends:
        axes.axhspan(
            *ends,
            color=ACCENT,
            alpha=0.10,
            linewidth=0,
            zorder=0,
        )
        text += "\nand its 95 % interval"
    axes.axhline(a, color=ACCENT, linewidth=1.1)
    beside = axes.get_yaxis_transform()
    label(axes, text, (1, a), (5, 0), on=beside, colour=ACCENT, va="center")


def _exponents(axes: Axes, rows: Sequence[Analysis]) -> None:
    area, rim = (30, 0.6) if len(rows) <= FEW else (10, 0)
    axes.scatter(
        range(len(rows)),
        np.array([row.a for row in rows], float),
        s=area,
        c=[COLOURS_OF_APPROACHES[row.approach] for row in rows],
        linewidths=rim,
        edgecolors=PAPER,
        zorder=3,
    )
    axes.set_xlim(-0.02 * len(rows) - 0.6, 1.02 * len(rows) - 0.4)
    axes.margins(y=0.1)
    linear_ticks(axes.yaxis, 6)
    axes.spines["bottom"].set_visible(False)


def _matrix(
    axes: Axes,
    rows: Sequence[Analysis],
    choices: Mapping[str, Mapping[object, str]],
    spread: Mapping[str, float | None],
) -> None:
    """A line per option with a mark under every analysis that took it."""
    width, _ = points_of(axes)
    mark_width = float(np.clip(0.5 * width / len(rows), 0.5, 3))
    beside = axes.get_yaxis_transform()
    largest = max(filter(None, spread.values()), default=1.0)
    y = 0.0
    for key, options in choices.items():
        y += 0.1
        label(
            axes,
            _CHOICES[key],
            (0, y),
            (-6, 0),
            on=beside,
            colour=INK,
            ha="right",
            va="center",
            weight="bold",
        )
        _worth(axes, y, spread.get(key), largest)
        y += 0.9
        for option, name in options.items():
            at = [i for i, row in enumerate(rows) if getattr(row, key) == option]
            axes.plot(
                at,
                [y] * len(at),
                "|",
                color=COLOURS_OF_APPROACHES[str(option)] if key == "approach" else MUTED,
                markersize=6.5,
                markeredgewidth=mark_width,
                zorder=3,
            )
            label(axes, name, (0, y), (-6, 0), on=beside, ha="right", va="center")
            y += 1
    axes.set(ylim=(y, -0.6), yticks=[])
    axes.spines[:].set_visible(False)


def _worth(axes: Axes, y: float, moved: float | None, largest: float) -> None:
    """By how much a moves with a choice, in words and as a bar."""
    beside = axes.get_yaxis_transform()
    text = "n/a" if moved is None else f"moves a by {moved:.3f}"
    label(axes, text, (1, y), (5, 0), on=beside, colour=INK, va="center")
    if moved is not None:
        width, _ = points_of(axes)
        start = 1 + 5 / width
        end = start + LONGEST_BAR * moved / largest / width
        bar(axes, [start, end], [y + 0.9] * 2, ACCENT, 4, on=beside)
