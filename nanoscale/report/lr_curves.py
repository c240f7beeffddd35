"""Loss against learning rate, a curve per size: does the valley stay where it is?

One panel per setting, side by side over one loss axis. In each, the vertical line is the best LR of
the base size: the optima of a setting that transfers lie on it, others walk away from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from nanoscale.errors import UserError
from nanoscale.report.figures import table_of
from nanoscale.report.style import (
    ACCENT,
    INK,
    MARGIN,
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

LR_NAMES = {"learning_rate": "learning rate", "muon_lr": "Muon learning rate"}
VERDICTS = {"pass": INK, "fail": ACCENT, "inconclusive": MUTED}
ACROSS = 3  # panels in a row
LABEL_ROOM = 0.14  # of the curves' width, left of them
Panel = tuple[str, Mapping, "pd.DataFrame | Sequence[Mapping]"]


def transfer_figure(
    panels: Sequence[Panel], *, y_label: str = "validation loss (nats per token)"
) -> Figure:
    """A panel per (title, record of `checks.transfer`, its runs), in rows of three.

    The runs have the record's columns of size, LR and loss; those without a finite loss are left
    out. Small dots are runs, bars the standard errors of their means, strong lines the fitted
    parabolas, diamonds their minima with 95 % intervals, crosses at the top diverged LRs.
    """
    drawn = [(title, record, _runs(record, table)) for title, record, table in panels]
    low, high = _loss_range([record for _, record, _ in drawn])
    across = min(len(drawn), ACROSS) if len(drawn) != 4 else 2
    down = math.ceil(len(drawn) / across)
    with styled():
        figure = canvas(*((5.4, 4.0) if len(drawn) == 1 else (3.3 * across + 0.5, 3.6 * down)))
        grid = figure.subplots(down, across, squeeze=False, sharey=True)
        width, height = figure.get_size_inches() * 72
        figure.subplots_adjust(
            MARGIN / width,
            40 / height,
            1 - 8 / width,
            1 - 56 / height,
            wspace=0.07,
            hspace=104 / (height / down - 96),
        )
        for i, axes in enumerate(grid.flat):
            if i >= len(drawn):
                axes.set_visible(False)
                continue
            title, record, runs = drawn[i]
            _panel(axes, record, runs, low, high)
            _head(axes, title, record, "" if i % across else y_label)
            if i % across:
                axes.tick_params(left=False)
                axes.spines["left"].set_visible(False)
            if i == 0 and record["base_lr"] is not None:
                axes.annotate(
                    f"best LR at\n{record['size']} {record['base']:g}", (record["base_lr"], low),
                    (5, 5), textcoords="offset points", color=ACCENT, size=8,
                )  # fmt: skip
    return figure


def _runs(record: Mapping, table: object) -> pd.DataFrame:
    """The runs with a finite loss: size, lr, loss."""
    names = [record[key] for key in ("size", "lr", "loss")]
    runs = table_of(table, names)[names].apply(pd.to_numeric, errors="coerce")
    runs.columns = ["size", "lr", "loss"]
    return runs[np.isfinite(runs).all(axis=1)]


def _loss_range(records: Sequence[Mapping]) -> tuple[float, float]:
    """The valleys of every panel, and of the slopes as much again; walls leave at the top."""
    sizes = [size for record in records for size in record["sizes"]]
    means = np.array([cell["loss"] for size in sizes for cell in size["cells"]])
    if not len(means):
        raise UserError("no run has a finite loss: there is nothing to draw")
    floors = [min(cell["loss"] for cell in size["cells"]) for size in sizes if size["cells"]]
    near = [v for size in sizes for v in _parabola(size)[1]]
    low, top = min(floors), max([*floors, *near])
    high = max(top, min(np.quantile(means, 0.8), top + 0.6 * (top - low)))
    room = max(high - low, 1e-3 * abs(low))
    return low - 0.07 * room, high + 0.10 * room


def _parabola(size: Mapping) -> tuple[np.ndarray, np.ndarray]:
    """(LR, loss) of the fitted curve over the LRs it was fitted to; empty where there is none."""
    if not size["parabola"]:
        return np.empty(0), np.empty(0)
    lr = np.geomspace(*size["parabola"]["window"], 61)
    u = np.log2(lr / size["parabola"]["centre_lr"])
    return lr, np.polynomial.polynomial.polyval(u, size["parabola"]["coefficients"])


def _panel(axes: Axes, record: Mapping, runs: pd.DataFrame, low: float, high: float) -> None:
    lrs = [x for s in record["sizes"] for x in [c["lr"] for c in s["cells"]] + s["diverged_lrs"]]
    span = math.log2(max(lrs) / min(lrs)) or 1.0
    ends = min(lrs) * 2 ** (-LABEL_ROOM * span), max(lrs) * 2 ** (0.04 * span)
    log_axis(axes, "x", *ends)
    if ends[1] > 5 * ends[0]:  # a panel is narrow
        ticks = [d * 10.0**k for k in range(-12, 3) for d in (1, 3)]
        ticks_on(axes.xaxis, [t for t in ticks if ends[0] <= t <= ends[1]])
    axes.set_ylim(low, high)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    if record["base_lr"] is not None:
        axes.axvline(record["base_lr"], color=ACCENT, linewidth=1.1, dashes=(5, 3), zorder=1)
    colours = size_colours(len(record["sizes"]))
    for size, colour in zip(record["sizes"], colours, strict=True):
        _curve(axes, size, runs[runs["size"] == size["size"]], colour, high)
    gone = [lr for size in record["sizes"] for lr in size["diverged_lrs"]]
    if gone:
        axes.annotate(
            "diverged",
            (max(gone), high),
            (4, 6),
            textcoords="offset points",
            size=8,
            ha="right",
            color=MUTED,
            annotation_clip=False,
        )
    known = [s for s in record["sizes"] if s["bracketed"]]
    axes.plot(
        [s["optimum_lr"] for s in known],
        [s["min_loss"] for s in known],
        color=INK,
        linewidth=0.9,
        linestyle=(0, (1, 1.6)),
        zorder=5,
    )
    _labels(axes, record, colours)
    axes.set_xlabel(LR_NAMES.get(record["lr"], record["lr"]), labelpad=6)


def _curve(axes: Axes, size: Mapping, runs: pd.DataFrame, colour: str, high: float) -> None:
    cells = size["cells"]
    lr, loss = [c["lr"] for c in cells], [c["loss"] for c in cells]
    axes.plot(lr, loss, color=colour, linewidth=0.9, alpha=0.45, zorder=2)
    axes.plot(
        runs["lr"],
        runs["loss"],
        "o",
        color=colour,
        markersize=2.2,
        alpha=0.35,
        markeredgewidth=0,
        zorder=2,
    )
    axes.errorbar(
        lr,
        loss,
        yerr=[c["se"] or 0 for c in cells],
        fmt="o",
        color=colour,
        markersize=3.4,
        markeredgecolor=PAPER,
        markeredgewidth=0.5,
        elinewidth=1.0,
        zorder=3,
    )
    axes.plot(*_parabola(size), color=colour, linewidth=2.0, zorder=4)
    axes.plot(
        size["diverged_lrs"],
        [high] * len(size["diverged_lrs"]),
        "x",
        color=colour,
        markersize=5,
        markeredgewidth=1.3,
        clip_on=False,
        zorder=6,
    )
    if not size["bracketed"]:
        return
    if size["ci95"][0] is not None:
        axes.plot(
            size["ci95"],
            [size["min_loss"]] * 2,
            color=INK,
            linewidth=1.4,
            zorder=6,
            solid_capstyle="butt",
        )
    axes.plot(
        size["optimum_lr"],
        size["min_loss"],
        "D",
        color=colour,
        markersize=6,
        markeredgecolor=PAPER,
        markeredgewidth=1.0,
        zorder=7,
    )


def _labels(axes: Axes, record: Mapping, colours: Sequence[str]) -> None:
    """Each size at the left end of its curve, moved apart where two would touch."""
    low, high = axes.get_ylim()
    visible = high - 0.09 * (high - low)
    ends = [
        next(((c["lr"], c["loss"]) for c in size["cells"] if c["loss"] < visible), None)
        for size in record["sizes"]
    ]
    shown = [i for i, end in enumerate(ends) if end]
    places = axes.transAxes.inverted().transform(axes.transData.transform([ends[i] for i in shown]))
    gap = 10.5 / (axes.bbox.height / axes.figure.dpi * 72)
    moved = spread(places[:, 1].tolist(), gap)
    for i, (x, _), y in zip(shown, places, moved, strict=True):
        axes.text(
            x - 0.025, y, f"{record['sizes'][i]['size']:g}", transform=axes.transAxes, ha="right",
            va="center", color=colours[i], size=8.5, weight="bold", zorder=8,
            path_effects=[withStroke(linewidth=2.5, foreground=PAPER)],
        )  # fmt: skip


def _head(axes: Axes, title: str, record: Mapping, y_label: str) -> None:
    """Title, drift and verdict, and the quantity on y, one above the other."""
    ends = record["drift"]["ci95"]
    drift = (
        "drift not known"
        if record["drift"]["value"] is None
        else (
            f"drift {record['drift']['value']:+.2f}"
            + ("" if ends[0] is None else f" [{ends[0]:+.2f}, {ends[1]:+.2f}]")
        )
    )
    drift = f"{drift.replace('-', MINUS)} octaves per doubling"
    verdict, above = (
        record["verdict"],
        {"xycoords": "axes fraction", "annotation_clip": False, "textcoords": "offset points"},
    )
    axes.annotate(y_label, (0, 1), (-MARGIN, 9), color=MUTED, size=9, **above)
    axes.annotate(drift, (0, 1), (0, 24), color=MUTED, size=8.5, **above)
    axes.annotate(title, (0, 1), (0, 39), color=INK, size=10, weight="bold", **above)
    axes.annotate(
        verdict,
        (1, 1),
        (0, 39),
        color=VERDICTS[verdict],
        size=9,
        weight="bold",
        ha="right",
        **above,
    )
