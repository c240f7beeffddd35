"""Two arms side by side: their losses, paired by seed, and the difference with its interval.

Left, every run; a line joins the runs of one seed. Right, what the lines say: B - A per size and
over all of them, on an axis of its own, with the band in which the arms count as equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanoscale.report.style import (
    ACCENT,
    INK,
    MARGIN,
    MINUS,
    MUTED,
    PAPER,
    RULE,
    SIZES,
    canvas,
    quantities,
    styled,
    ticks_on,
)

ARMS = {"a": SIZES[1], "b": SIZES[6]}
VERDICTS = {"better": INK, "worse": ACCENT, "equal": INK, "inconclusive": MUTED}
GAP = MARGIN + 26  # points between the panels: the right one's tick labels have a sign
STEP, HALF = 2.6, 0.5  # from size to size, and from its middle to an arm
NAMES = {
    "val_loss": "validation loss",
    "best_val_loss": "lowest validation loss",
    "train_loss": "training loss",
    "val_bits_per_byte": "validation loss",
}
ABOVE = {"xycoords": "axes fraction", "annotation_clip": False, "textcoords": "offset points"}


def compare_figure(record: Mapping) -> Figure:
    """The figure of a record of `nanoscale compare`: losses on the left, differences on the right.

    Dots are runs, thick lines means; on the right small dots are pairs of seeds, bars 95 %
    intervals, and the diamond the mean over sizes. The light band is +-rope.
    """
    cells = record["cells"]
    several = len(cells) > 1
    with styled():
        figure = canvas(5.6 + 0.75 * (len(cells) - 1), 4.1)
        ratios = [2.2 + 1.35 * (len(cells) - 1), 1.7 + 0.9 * (len(cells) - 1)]
        losses, differences = figure.subplots(1, 2, width_ratios=ratios)
        width, height = figure.get_size_inches() * 72
        figure.subplots_adjust(
            MARGIN / width,
            40 / height,
            1 - 8 / width,
            1 - 74 / height,
            wspace=2 * GAP / (width - MARGIN - 8 - GAP),
        )
        for i, cell in enumerate(cells):
            _losses(losses, cell, STEP * i)
        _differences(differences, record)
        names = ["\n".join(_short(v) for v in cell["cell"].values()) for cell in cells]
        if several:
            ticks_on(losses.xaxis, [STEP * i for i in range(len(cells))], names)
            ticks_on(differences.xaxis, range(len(cells) + 1), [*names, "mean"])
            for axes in (losses, differences):
                axes.set_xlabel(", ".join(record["keys"]), labelpad=6)
        else:
            ticks_on(losses.xaxis, [-HALF, HALF], record["labels"])
            ticks_on(differences.xaxis, [0], names if names[0] else ["difference"])
        for axes in (losses, differences):
            axes.tick_params(axis="x", length=0, pad=5)
            axes.locator_params(axis="y", nbins=7)
            axes.grid(axis="y", color=RULE, linewidth=0.6)
        losses.set_xlim(-1.1, STEP * (len(cells) - 1) + 1.1)
        _heads(losses, differences, record)
    return figure


def _short(value: object) -> str:
    return quantities([value])[0]


def _losses(axes: Axes, cell: Mapping, middle: float) -> None:
    """Both arms at one size: a dot per run, a line per pair, the means."""
    place = {"a": middle - HALF, "b": middle + HALF}
    for row in cell["seeds"]:
        if None not in (row["a"], row["b"]):
            axes.plot(
                [place["a"], place["b"]],
                [row["a"], row["b"]],
                color=MUTED,
                linewidth=0.9,
                alpha=0.55,
                zorder=2,
            )
    for side, x in place.items():
        runs = [row for row in cell["seeds"] if row[side] is not None]
        alone = [None in (row["a"], row["b"]) for row in runs]
        axes.scatter(
            [x] * len(runs),
            [row[side] for row in runs],
            s=22,
            linewidths=0.9,
            zorder=4,
            edgecolors=[ARMS[side] if one else PAPER for one in alone],
            facecolors=[PAPER if one else ARMS[side] for one in alone],
        )
        out = -1 if side == "a" else 1
        axes.plot(
            [x + 0.16 * out, x + 0.42 * out],
            [cell[side]["mean"]] * 2,
            color=ARMS[side],
            linewidth=2.4,
            solid_capstyle="butt",
            zorder=3,
        )


def _differences(axes: Axes, record: Mapping) -> None:
    """B - A per size, and over sizes where there are several."""
    rope, cells = record["rope"], record["cells"]
    several = len(cells) > 1
    axes.axhspan(-rope, rope, color=RULE, alpha=0.55, linewidth=0, zorder=0)
    axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
    for i, cell in enumerate(cells):
        pairs = [row["b"] - row["a"] for row in cell["seeds"] if None not in (row["a"], row["b"])]
        if cell["difference"]["paired_by"]:
            axes.scatter(
                i + _beside(pairs), pairs, s=11, color=MUTED, alpha=0.75, linewidths=0, zorder=3
            )
        if several:
            _estimate(axes, i, cell["difference"], "o", ARMS["b"])
    total = record["difference"]
    _estimate(
        axes,
        len(cells) if several else 0,
        total,
        "D",
        VERDICTS[record["verdict"]],
        dashed=total["interval"] == "windows",
    )
    axes.set_xlim(-0.7, len(cells) - (0.3 if not several else -0.6))
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -1.6 * rope), max(high, 1.6 * rope))
    axes.annotate(
        f"equal: ±{rope:g}",
        (1, rope),
        (-2, -1),
        textcoords="offset points",
        size=7.5,
        xycoords=("axes fraction", "data"),
        ha="right",
        va="top",
        color=MUTED,
    )
    if total["interval"] == "windows":
        axes.annotate(
            "evaluation noise only:\none seed per arm",
            (0.5, 0),
            (0, 4),
            size=8,
            xycoords="axes fraction",
            textcoords="offset points",
            ha="center",
            color=MUTED,
        )


def _beside(values: Sequence[float]) -> np.ndarray:
    """Places left of the estimate, in a few columns by rank, so that near values do not touch."""
    order = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return -0.17 - 0.09 * (order % (2 if len(values) < 6 else 4))


def _estimate(
    axes: Axes, x: float, difference: Mapping, marker: str, colour: str, dashed: bool = False
) -> None:
    low, high = difference["ci95"]
    if low is not None:
        axes.plot(
            [x, x],
            [low, high],
            color=colour,
            linewidth=1.8,
            zorder=4,
            linestyle=(0, (1.5, 1)) if dashed else "-",
            solid_capstyle="butt",
        )
    axes.plot(
        x,
        difference["value"],
        marker,
        color=colour,
        markersize=7 if marker == "D" else 5.5,
        markeredgecolor=PAPER,
        markeredgewidth=1.0,
        zorder=5,
    )


def _heads(losses: Axes, differences: Axes, record: Mapping) -> None:
    """Who is compared and the verdict, its numbers, and the quantity on each y axis."""
    unit = {"nats": "nats per token", "bits": "bits per byte"}[record["unit"]]
    first, second = record["labels"]
    start = losses.annotate(
        second, (0, 1), (-MARGIN, 52), color=ARMS["b"], size=10, weight="bold", **ABOVE
    )
    for text, colour, weight in (("  against  ", MUTED, "normal"), (first, ARMS["a"], "bold")):
        start = losses.annotate(
            text,
            (1, 0),
            (0, 0),
            xycoords=start,
            textcoords="offset points",
            va="bottom",
            color=colour,
            size=10,
            weight=weight,
            annotation_clip=False,
        )
    differences.annotate(
        record["verdict"],
        (1, 1),
        (0, 52),
        color=VERDICTS[record["verdict"]],
        size=10,
        weight="bold",
        ha="right",
        **ABOVE,
    )
    losses.annotate(_numbers(record), (0, 1), (-MARGIN, 35), color=MUTED, size=8.5, **ABOVE)
    losses.annotate(
        f"{NAMES[record['loss']]} ({unit})", (0, 1), (-MARGIN, 9), color=MUTED, size=9, **ABOVE
    )
    differences.annotate(
        f"{second} {MINUS} {first} ({record['unit']})",
        (0, 1),
        (-MARGIN - 8, 9),
        color=MUTED,
        size=9,
        **ABOVE,
    )


def _numbers(record: Mapping) -> str:
    """The difference, its interval, p and pairs; and the compute it is worth, where known."""
    difference, compute = record["difference"], record["compute_multiplier"]
    ends = ["?" if v is None else f"{v:+.4f}" for v in difference["ci95"]]
    text = f"difference {difference['value']:+.4f} [{ends[0]}, {ends[1]}] {record['unit']}"
    if difference["p_value"] is not None:
        text += f", p = {difference['p_value']:.2g}"
    if difference["n_pairs"] > 1:
        text += f", {difference['n_pairs']} pairs of seeds"
    text = text.replace("-", MINUS)
    if compute["value"] is not None and compute["ci95"][0] is not None:
        low, high = compute["ci95"]
        text += f"; worth {compute['value']:.2g} [{low:.2g}, {high:.2g}] times the FLOPs"
    return text
