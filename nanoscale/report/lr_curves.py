"""Loss against learning rate, a curve per size: does the valley stay where it is?

One panel per setting, side by side over one loss axis. In each, the vertical line is the best LR of
the base size: the optima of a setting that transfers lie on it, others walk away from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from nanoscale.checks.lr_verdict import SizeOptimum, TransferVerdict
from nanoscale.errors import UserError
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
    note,
    size_colours,
    spread,
    styled,
    ticks_on,
)

LR_NAMES = {"learning_rate": "learning rate", "muon_lr": "Muon learning rate"}
_VERDICT_COLOURS = {"pass": INK, "fail": ACCENT, "inconclusive": MUTED}
_ACROSS = 3  # panels in a row
LABEL_ROOM = 0.14  # of the curves' width, left of them


def transfer_figure(
    verdicts: Mapping[str, TransferVerdict], *, y_label: str = "validation loss (nats per token)"
) -> Figure:
    """A panel per verdict, under its title, in rows of three.

    Small dots are runs with a finite loss, bars the standard errors of their means, strong lines
    the fitted parabolas, diamonds their minima with 95 % intervals, crosses at the top diverged
    LRs.
    """
    low, high = _loss_range([size for verdict in verdicts.values() for size in verdict.sizes])
    count = len(verdicts)
    across = 2 if count == 4 else min(count, _ACROSS)
    down = math.ceil(count / across)
    with styled():
        figure = canvas(*(5.4, 4.0) if count == 1 else (3.3 * across + 0.5, 3.6 * down))
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
        panels = list(grid.flat)
        for axes in panels[count:]:
            axes.set_visible(False)
        for i, (title, verdict) in enumerate(verdicts.items()):
            first_in_row = i % across == 0
            _panel(panels[i], verdict, low, high)
            _head(panels[i], title, verdict, y_label if first_in_row else "")
            if not first_in_row:
                panels[i].tick_params(left=False)
                panels[i].spines["left"].set_visible(False)
        _name_base(panels[0], next(iter(verdicts.values())), low)
    return figure


def _name_base(axes: Axes, verdict: TransferVerdict, low: float) -> None:
    if math.isfinite(verdict.base_lr):
        axes.annotate(
            f"best LR at\n{verdict.size} {verdict.base:g}",
            (verdict.base_lr, low),
            (5, 5),
            textcoords="offset points",
            color=ACCENT,
            size=8,
        )


def _loss_range(sizes: Sequence[SizeOptimum]) -> tuple[float, float]:
    """The valleys of every panel, and of the slopes as much again; walls leave at the top."""
    means = np.array([cell.loss for size in sizes for cell in size.cells])
    if not len(means):
        raise UserError("no run has a finite loss: there is nothing to draw")
    floors = [min(cell.loss for cell in size.cells) for size in sizes if size.cells]
    near = [loss for size in sizes for loss in _parabola(size)[1]]
    low, top = min(floors), max([*floors, *near])
    high = max(top, min(np.quantile(means, 0.8), top + 0.6 * (top - low)))
    room = max(high - low, 1e-3 * abs(low))
    return low - 0.07 * room, high + 0.10 * room


def _parabola(size: SizeOptimum) -> tuple[np.ndarray, np.ndarray]:
    """(LR, loss) of the fitted curve over the LRs it was fitted to; empty where there is none."""
    if not size.parabola:
        return np.empty(0), np.empty(0)
    low, high = size.parabola.window
    lr = np.geomspace(low, high, 61)
    u = np.log2(lr / size.parabola.centre_lr)
    return lr, np.polynomial.polynomial.polyval(u, np.array(size.parabola.coefficients))


# -- a panel ------------------------------------------------------------------------------------
def _panel(axes: Axes, verdict: TransferVerdict, low: float, high: float) -> None:
    diverged = [lr for size in verdict.sizes for lr in size.diverged_lrs]
    _lr_axis(axes, [cell.lr for size in verdict.sizes for cell in size.cells] + diverged)
    axes.set_ylim(low, high)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    if math.isfinite(verdict.base_lr):
        axes.axvline(verdict.base_lr, color=ACCENT, linewidth=1.1, dashes=(5, 3), zorder=1)

    colours = size_colours(len(verdict.sizes))
    for size, colour in zip(verdict.sizes, colours, strict=True):
        _curve(axes, verdict, size, colour, high)
    if diverged:
        axes.annotate(
            "diverged",
            (max(diverged), high),
            (4, 6),
            textcoords="offset points",
            size=8,
            ha="right",
            color=MUTED,
            annotation_clip=False,
        )
    known = [size for size in verdict.sizes if size.bracketed]
    axes.plot(
        [size.optimum_lr for size in known],
        [size.min_loss for size in known],
        color=INK,
        linewidth=0.9,
        linestyle=(0, (1, 1.6)),
        zorder=5,
    )
    _labels(axes, verdict.sizes, colours)
    axes.set_xlabel(LR_NAMES.get(verdict.lr, verdict.lr), labelpad=6)


def _lr_axis(axes: Axes, lrs: Sequence[float]) -> None:
    """All LRs, with room for the labels of the curves at the left."""
    span = math.log2(max(lrs) / min(lrs)) or 1.0
    left = min(lrs) * 2 ** (-LABEL_ROOM * span)
    right = max(lrs) * 2 ** (0.04 * span)
    log_axis(axes, "x", left, right)
    if right > 5 * left:  # a panel is narrow
        ticks = [digit * 10.0**k for k in range(-12, 3) for digit in (1, 3)]
        ticks_on(axes.xaxis, [tick for tick in ticks if left <= tick <= right])


def _curve(
    axes: Axes, verdict: TransferVerdict, size: SizeOptimum, colour: str, high: float
) -> None:
    lr, loss = [cell.lr for cell in size.cells], [cell.loss for cell in size.cells]
    axes.plot(lr, loss, color=colour, linewidth=0.9, alpha=0.45, zorder=2)
    runs = verdict.runs
    drawn = (runs.size == size.size) & np.isfinite(runs.loss)
    axes.plot(
        runs.lr[drawn],
        runs.loss[drawn],
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
        yerr=np.nan_to_num([cell.se for cell in size.cells]),
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
        size.diverged_lrs,
        [high] * len(size.diverged_lrs),
        "x",
        color=colour,
        markersize=5,
        markeredgewidth=1.3,
        clip_on=False,
        zorder=6,
    )
    if size.bracketed:
        _optimum(axes, size, colour)


def _optimum(axes: Axes, size: SizeOptimum, colour: str) -> None:
    if math.isfinite(size.ci95[0]):
        axes.plot(
            size.ci95,
            (size.min_loss, size.min_loss),
            color=INK,
            linewidth=1.4,
            zorder=6,
            solid_capstyle="butt",
        )
    axes.plot(
        size.optimum_lr,
        size.min_loss,
        "D",
        color=colour,
        markersize=6,
        markeredgecolor=PAPER,
        markeredgewidth=1.0,
        zorder=7,
    )


def _labels(axes: Axes, sizes: Sequence[SizeOptimum], colours: Sequence[str]) -> None:
    """Each size at the left end of its curve, moved apart where two would touch."""
    low, high = axes.get_ylim()
    visible = high - 0.09 * (high - low)
    ends, names = [], []
    for size, colour in zip(sizes, colours, strict=True):
        seen = [(cell.lr, cell.loss) for cell in size.cells if cell.loss < visible]
        if seen:
            ends.append(seen[0])
            names.append((f"{size.size:g}", colour))
    places = axes.transAxes.inverted().transform(axes.transData.transform(ends))
    height = axes.bbox.height / axes.figure.dpi * 72  # points
    moved = spread(places[:, 1].tolist(), 10.5 / height)
    for (name, colour), (x, _), y in zip(names, places, moved, strict=True):
        axes.text(
            x - 0.025,
            y,
            name,
            transform=axes.transAxes,
            ha="right",
            va="center",
            color=colour,
            size=8.5,
            weight="bold",
            zorder=8,
            path_effects=[withStroke(linewidth=2.5, foreground=PAPER)],
        )


def _head(axes: Axes, title: str, verdict: TransferVerdict, y_label: str) -> None:
    """Title, drift and verdict, and the quantity on y, one above the other."""
    drift = verdict.drift
    low, high = drift.ci95
    text = "drift not known"
    if math.isfinite(drift.value):
        text = f"drift {drift.value:+.2f}"
        if math.isfinite(low):
            text += f" [{low:+.2f}, {high:+.2f}]"
    text = f"{text.replace('-', MINUS)} octaves per doubling"
    colour = _VERDICT_COLOURS[verdict.verdict]
    note(axes, y_label, (0, 1), (-MARGIN, 9), size=9)
    note(axes, text, (0, 1), (0, 24))
    note(axes, title, (0, 1), (0, 39), color=INK, size=10, weight="bold")
    note(axes, verdict.verdict, (1, 1), (0, 39), color=colour, size=9, weight="bold", ha="right")
