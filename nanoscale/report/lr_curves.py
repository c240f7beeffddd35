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

from nanoscale.checks.lr_verdict import SizeOptimum, TransferVerdict
from nanoscale.errors import UserError
from nanoscale.report.links import series
from nanoscale.report.marks import DOTTED, HALO, End, apart, bar, headed, label, mark
from nanoscale.report.style import (
    ACCENT,
    INK,
    LOSS,
    MINUS,
    OF_VERDICTS,
    PAPER,
    log_axis,
    round_numbers,
    sheet,
    size_colours,
    styled,
    ticks_on,
)

LR_NAMES = {"learning_rate": "learning rate", "muon_lr": "Muon learning rate"}
_ACROSS = 3  # panels in a row
LABEL_ROOM = 0.14  # of the curves' width, left of them


@styled()
def transfer_figure(verdicts: Mapping[str, TransferVerdict]) -> Figure:
    """A panel per verdict, under its title, in rows of three.

    Small dots are runs with a finite loss, bars the standard errors of their means, strong lines
    the fitted parabolas, diamonds their minima with 95 % intervals, crosses at the top diverged
    LRs.
    """
    low, high = _loss_range([size for verdict in verdicts.values() for size in verdict.sizes])
    count = len(verdicts)
    across = 2 if count == 4 else min(count, _ACROSS)
    row = 3.6
    width, height = 3.3 * across + 0.5, row * math.ceil(count / across)
    if count == 1:
        width, height, row = 5.4, 4.0, 4.0
    figure, panels = sheet(
        width,
        height,
        count,
        across,
        above=56,
        wspace=0.07,
        hspace=104 / (72 * row - 96),
        sharey=True,
    )
    for axes, (title, verdict) in zip(panels, verdicts.items(), strict=True):
        _panel(axes, verdict, low, high)
        is_first = axes in panels[::across]
        axes.tick_params(left=is_first)
        axes.spines["left"].set_visible(is_first)
        headed(axes, LOSS if is_first else "", LR_NAMES.get(verdict.lr, verdict.lr))
        _head(axes, title, verdict)
    _name_base(panels[0], next(iter(verdicts.values())), low)
    return figure


def _name_base(axes: Axes, verdict: TransferVerdict, low: float) -> None:
    if math.isfinite(verdict.base_lr):
        text = f"best LR at\n{verdict.size} {verdict.base:g}"
        label(axes, text, (verdict.base_lr, low), (5, 5), on="data", colour=ACCENT)


def _loss_range(sizes: Sequence[SizeOptimum]) -> tuple[float, float]:
    """The valleys of every panel, and of the slopes as much again; walls leave at the top."""
    means: list[float] = []
    valleys: list[float] = []
    for size in sizes:
        losses = [cell.loss for cell in size.cells]
        if losses:
            means += losses
            valleys.append(min(losses))
        valleys += _parabola(size)[1].tolist()
    if not means:
        raise UserError("no run has a finite loss: there is nothing to draw")
    low, top = min(means), max(valleys)
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
    if math.isfinite(verdict.base_lr):
        axes.axvline(
            verdict.base_lr,
            color=ACCENT,
            linewidth=1.1,
            dashes=(5, 3),
            zorder=1,
        )

    colours = size_colours(len(verdict.sizes))
    for size, colour in zip(verdict.sizes, colours, strict=True):
        with series(axes, f"{size.size:g}"):
            _curve(axes, verdict, size, colour, high)
    if diverged:
        label(axes, "diverged", (max(diverged), high), (4, 6), on="data", ha="right")
    known = [size for size in verdict.sizes if size.bracketed]
    optima = [size.optimum_lr for size in known]
    losses = [size.min_loss for size in known]
    axes.plot(
        optima,
        losses,
        color=INK,
        linewidth=0.9,
        linestyle=DOTTED,
        zorder=5,
    )
    _labels(axes, verdict.sizes, colours)


def _lr_axis(axes: Axes, lrs: Sequence[float]) -> None:
    """All LRs, with room for the labels of the curves at the left."""
    span = math.log2(max(lrs) / min(lrs)) or 1.0
    left = min(lrs) * 2 ** (-LABEL_ROOM * span)
    right = max(lrs) * 2 ** (0.04 * span)
    log_axis(axes, "x", left, right)
    if right > 5 * left:  # a panel is narrow
        ticks_on(axes.xaxis, round_numbers(left, right, (1, 3)))


def _curve(
    axes: Axes, verdict: TransferVerdict, size: SizeOptimum, colour: str, high: float
) -> None:
    lr, loss = [cell.lr for cell in size.cells], [cell.loss for cell in size.cells]
    axes.plot(
        lr,
        loss,
        color=colour,
        linewidth=0.9,
        alpha=0.45,
        zorder=2,
    )
    runs = verdict.runs
    drawn = (runs.size == size.size) & np.isfinite(runs.loss)
    x, y = runs.lr[drawn], runs.loss[drawn]
    mark(
        axes,
        x,
        y,
        colour,
        size=2.2,
        rim=0,
        alpha=0.35,
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
    if not size.bracketed:
        return
    if math.isfinite(size.ci95[0]):
        bar(axes, size.ci95, [size.min_loss] * 2, INK, 1.4, zorder=6)
    mark(axes, size.optimum_lr, size.min_loss, colour, shape="D", rim=1, zorder=7)


def _labels(axes: Axes, sizes: Sequence[SizeOptimum], colours: Sequence[str]) -> None:
    """Each size at the left end of its curve, moved apart where two would touch."""
    low, high = axes.get_ylim()
    visible = high - 0.09 * (high - low)
    ends = []
    for size, colour in zip(sizes, colours, strict=True):
        seen = [cell for cell in size.cells if cell.loss < visible]
        if seen:
            ends.append(End(f"{size.size:g}", seen[0].lr, seen[0].loss, colour))
    for end, (x, y) in zip(ends, apart(axes, ends, gap=10.5), strict=True):
        with series(axes, end.text):
            label(
                axes,
                end.text,
                (x - 0.025, y),
                colour=end.colour,
                size=8.5,
                ha="right",
                va="center",
                weight="bold",
                path_effects=HALO,
                zorder=8,
            )


def _head(axes: Axes, title: str, verdict: TransferVerdict) -> None:
    """Title, drift and verdict, one above the other."""
    drift = verdict.drift
    low, high = drift.ci95
    text = "drift not known"
    if math.isfinite(drift.value):
        text = f"drift {drift.value:+.2f}"
        if math.isfinite(low):
            text += f" [{low:+.2f}, {high:+.2f}]"
    text = f"{text.replace('-', MINUS)} octaves per doubling"
    label(axes, text, (0, 1), (0, 24), size=8.5)
    label(axes, title, (0, 1), (0, 39), colour=INK, size=10, weight="bold")
    colour = OF_VERDICTS[verdict.verdict]
    label(
        axes,
        verdict.verdict,
        (1, 1),
        (0, 39),
        colour=colour,
        size=9,
        weight="bold",
        ha="right",
    )
