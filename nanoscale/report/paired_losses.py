"""Two arms side by side: their losses, paired by seed, and the difference with its interval.

Left, every run; a line joins the runs of one seed. Right, what the lines say: B - A per size and
over all of them, on an axis of its own, with the band in which the arms count as equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanoscale.checks.comparison import Comparison, SizeComparison
from nanoscale.checks.paired import Estimate
from nanoscale.report.marks import Dash, bar, headed, label, mark
from nanoscale.report.style import (
    INK,
    LOSS_NAMES,
    MARGIN,
    MINUS,
    MUTED,
    OF_VERDICTS,
    PAPER,
    RULE,
    SIZES,
    quantities,
    sheet,
    styled,
    ticks_on,
)

COLOUR_A, COLOUR_B = SIZES[1], SIZES[6]
_GAP = MARGIN + 26  # points between the panels: the right one's tick labels have a sign
_STEP, HALF = 2.6, 0.5  # from size to size, and from its middle to an arm
_UNITS = {"nats": "nats per token", "bits": "bits per byte"}


@styled()
def compare_figure(comparison: Comparison) -> Figure:
    """Losses on the left, differences on the right.

    Dots are runs, thick lines means; on the right small dots are pairs of seeds, bars 95 %
    intervals, and the diamond the mean over sizes. The light band is +-rope.
    """
    more = len(comparison.cells) - 1
    width = 5.6 + 0.75 * more
    inner = 72 * width - MARGIN - 8 - _GAP  # points
    figure, (losses, differences) = sheet(
        width,
        4.1,
        2,
        across=2,
        above=74,
        wspace=2 * _GAP / inner,
        width_ratios=[2.2 + 1.35 * more, 1.7 + 0.9 * more],
    )
    for i, cell in enumerate(comparison.cells):
        _losses(losses, cell, _STEP * i)
    _differences(differences, comparison)
    _sizes(losses, differences, comparison)
    losses.set_xlim(-1.1, _STEP * more + 1.1)
    for axes in (losses, differences):
        axes.tick_params(axis="x", length=0, pad=5)
        axes.locator_params(axis="y", nbins=7)

    x_label = ", ".join(comparison.keys) if more else ""
    first, second = comparison.labels
    loss = f"{LOSS_NAMES[comparison.loss]} ({_UNITS[comparison.unit]})"
    difference = f"{second} {MINUS} {first} ({comparison.unit})"
    headed(losses, loss, x_label)
    headed(differences, difference, x_label, left=MARGIN + 8)
    _heads(losses, differences, comparison)
    return figure


def _sizes(losses: Axes, differences: Axes, comparison: Comparison) -> None:
    """What stands where on both x axes."""
    names = []
    for cell in comparison.cells:
        names.append("\n".join(quantities([value])[0] for value in cell.cell.values()))
    count = len(names)
    if count > 1:
        ticks_on(losses.xaxis, [_STEP * i for i in range(count)], names)
        ticks_on(differences.xaxis, range(count + 1), [*names, "mean"])
    else:
        ticks_on(losses.xaxis, [-HALF, HALF], comparison.labels)
        ticks_on(differences.xaxis, [0], [names[0] or "difference"])


# -- losses -------------------------------------------------------------------------------------
def _losses(axes: Axes, cell: SizeComparison, middle: float) -> None:
    """Both arms at one size: a dot per run, a line per pair, dashes at the means.

    A dot is hollow where the other arm has no run of the seed.
    """
    losses = np.array([(row.a, row.b) for row in cell.seeds], float)  # (seeds, arms); NaN: no run
    paired = np.isfinite(losses).all(axis=1)
    both = (middle - HALF, middle + HALF)
    axes.plot(both, losses[paired].T, color=MUTED, linewidth=0.9, alpha=0.55)
    arms = ((cell.a, both[0], COLOUR_A, -1), (cell.b, both[1], COLOUR_B, 1))
    for of_arm, (arm, x, colour, outwards) in zip(losses.T, arms, strict=True):
        run = np.isfinite(of_arm)
        axes.scatter(
            np.full(run.sum(), x),
            of_arm[run],
            s=22,
            linewidths=0.9,
            zorder=4,
            edgecolors=np.where(paired, PAPER, colour)[run],
            facecolors=np.where(paired, colour, PAPER)[run],
        )
        ends = (x + 0.16 * outwards, x + 0.42 * outwards)
        bar(axes, ends, (arm.mean, arm.mean), colour, 2.4, zorder=3)


# -- differences --------------------------------------------------------------------------------
def _differences(axes: Axes, comparison: Comparison) -> None:
    """B - A per size, and over sizes where there are several."""
    rope, cells, total = comparison.rope, comparison.cells, comparison.difference
    axes.axhspan(
        -rope,
        rope,
        color=RULE,
        alpha=0.55,
        linewidth=0,
        zorder=0,
    )
    axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
    for i, cell in enumerate(cells):
        pairs = [row.difference for row in cell.seeds if row.difference is not None]
        if cell.difference.paired_by:
            x = i + _beside(pairs)
            axes.scatter(
                x,
                pairs,
                s=11,
                color=MUTED,
                alpha=0.75,
                linewidths=0,
                zorder=3,
            )
        if len(cells) > 1:
            _estimate(axes, i, cell.difference, COLOUR_B)

    place, right = (len(cells), len(cells) + 0.6) if len(cells) > 1 else (0, 0.7)
    of_windows = total.interval == "windows"
    dash: str | Dash = (0, (1.5, 1)) if of_windows else "-"
    colour = OF_VERDICTS[comparison.verdict]
    _estimate(axes, place, total, colour, shape="D", size=7, dash=dash)
    axes.set_xlim(-0.7, right)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -1.6 * rope), max(high, 1.6 * rope))
    beside = axes.get_yaxis_transform()
    label(
        axes,
        f"equal: ±{rope:g}",
        (1, rope),
        (-2, -1),
        on=beside,
        size=7.5,
        ha="right",
        va="top",
    )
    if of_windows:
        label(axes, "evaluation noise only:\none seed per arm", (0.5, 0), (0, 4), ha="center")


def _beside(values: Sequence[float]) -> np.ndarray:
    """Places left of the estimate, in a few columns by rank, so that near values do not touch."""
    rank = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    columns = 2 if len(values) < 6 else 4
    return np.asarray(-0.17 - 0.09 * (rank % columns))


def _estimate(
    axes: Axes,
    x: float,
    difference: Estimate,
    colour: str,
    *,
    shape: str = "o",
    size: float = 5.5,
    dash: str | Dash = "-",
) -> None:
    if not math.isnan(difference.ci95[0]):
        bar(axes, (x, x), difference.ci95, colour, 1.8, dash=dash)
    mark(
        axes,
        x,
        difference.value,
        colour,
        shape=shape,
        size=size,
        rim=1.0,
        zorder=5,
    )


# -- words --------------------------------------------------------------------------------------
def _heads(losses: Axes, differences: Axes, comparison: Comparison) -> None:
    """Who is compared, the verdict and its numbers."""
    first, second = comparison.labels
    verdict, above = comparison.verdict, (-MARGIN, 52)
    last = label(losses, second, (0, 1), above, colour=COLOUR_B, size=10, weight="bold")
    last = label(losses, "  against  ", (1, 0), on=last, size=10, va="bottom")
    label(
        losses,
        first,
        (1, 0),
        on=last,
        colour=COLOUR_A,
        size=10,
        weight="bold",
        va="bottom",
    )
    label(
        differences,
        verdict,
        (1, 1),
        (0, 52),
        colour=OF_VERDICTS[verdict],
        size=10,
        weight="bold",
        ha="right",
    )
    label(losses, _numbers(comparison), (0, 1), (-MARGIN, 35), size=8.5)


def _numbers(comparison: Comparison) -> str:
    """The difference, its interval, p and pairs; and the compute it is worth, where known."""
    difference, compute = comparison.difference, comparison.compute_multiplier
    low, high = ("?" if math.isnan(end) else f"{end:+.4f}" for end in difference.ci95)
    text = f"difference {difference.value:+.4f} [{low}, {high}] {comparison.unit}"
    if not math.isnan(difference.p_value):
        text += f", p = {difference.p_value:.2g}"
    if difference.n_pairs > 1:
        text += f", {difference.n_pairs} pairs of seeds"
    text = text.replace("-", MINUS)
    least, most = compute.ci95
    if not math.isnan(least):
        text += f"; worth {compute.value:.2g} [{least:.2g}, {most:.2g}] times the FLOPs"
    return text
