"""How far a law may be off, in pictures: the cloud of its resamples, and its hold-outs.

The one idea: an exponent is never shown alone. It stands in the cloud of its resamples, and beside
what smaller budgets would have predicted. (Among other analyses: `multiverse_figures`.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from nanoscale.errors import UserError
from nanoscale.report.marks import (
    BEYOND,
    HALO,
    Columns,
    bar,
    checked,
    dots,
    headed,
    label,
    mark,
    notes,
)
from nanoscale.report.style import (
    ACCENT,
    INK,
    MARGIN,
    MUTED,
    SIZES,
    TIMES,
    TWO_HEADS,
    WIDTH,
    linear_ticks,
    log_axis,
    printed,
    quantities,
    sheet,
    styled,
)

if TYPE_CHECKING:
    from nanoscale.laws.arrays import Array
    from nanoscale.laws.holdout import RolloutStep
    from nanoscale.laws.rivals import Rivals

IN_95 = math.sqrt(-2 * math.log(0.05))  # sd of the ellipse that holds 95 % of a 2-D normal
MIDDLE_95 = (0.025, 0.975)
_SHOWN = (0.002, 0.998)  # quantiles of the resamples that a cloud's axes hold
_FAR = 4.0  # times the usual error, from which a rollout's error or interval leaves its axes


# -- resamples ----------------------------------------------------------------------------------
@styled()
def cloud_figure(
    draws: Columns,
    fitted: Mapping[str, float],
    pairs: Sequence[tuple[str, str]],
    *,
    names: Mapping[str, str],
) -> Figure:
    """The fits of all resamples, two parameters to a panel, about the fit itself.

    draws: name -> one value per resample; fitted: name -> the fit's. The ellipse holds 95 % of a
    normal of their covariance: where points leave it, an interval must come from the points.
    """
    left, many = MARGIN + 6, len(pairs)
    width = WIDTH if many > 1 else 5.2
    figure, grid = sheet(
        width,
        4.1,
        many,
        across=many,
        above=TWO_HEADS,
        left=left,
        wspace=0.24,
    )
    for axes, (x, y) in zip(grid, pairs, strict=True):
        u, v = checked(draws, x, y, positive=False)
        _cloud(axes, u, v)
        mark(
            axes,
            fitted[x],
            fitted[y],
            ACCENT,
            shape="D",
            size=7,
            rim=1,
            zorder=6,
        )
        headed(axes, names.get(y, y), names.get(x, x), left=left)
    resamples = printed(f"{len(u):,}")
    told = [
        (f"{resamples} resamples", SIZES[4]),
        ("the fit", ACCENT),
        ("dashed: a normal's 95 % ellipse; bars: 95 % intervals", MUTED),
    ]
    notes(axes, told, above=True)
    return figure


def _cloud(axes: Axes, u: Array, v: Array) -> None:
    area, _, alpha = dots(len(u))
    axes.scatter(
        u,
        v,
        s=area,
        color=SIZES[4],
        linewidths=0,
        alpha=0.5 * alpha,
        zorder=3,
    )
    axes.set(xlim=_span(u), ylim=_span(v))

    # along the eigenvectors of the covariance, as far as their standard deviations say
    variance, direction = np.linalg.eigh(np.cov(u, v))
    width, height = 2 * IN_95 * np.sqrt(np.maximum(variance, 0))
    angle = math.degrees(math.atan2(direction[1, 0], direction[0, 0]))
    ellipse = Ellipse((u.mean(), v.mean()), width, height, angle=angle, fill=False)
    ellipse.set(edgecolor=INK, linewidth=1.1, linestyle=BEYOND, zorder=5)
    axes.add_patch(ellipse)

    across, up = axes.get_xaxis_transform(), axes.get_yaxis_transform()
    bar(axes, np.quantile(u, MIDDLE_95), [0, 0], INK, 2.5, 5, on=across)
    bar(axes, [0, 0], np.quantile(v, MIDDLE_95), INK, 2.5, 5, on=up)
    for axis in (axes.xaxis, axes.yaxis):
        linear_ticks(axis, 5)
    axes.grid(True)


def _span(values: Array) -> tuple[float, float]:
    """What an axis holds of resamples: all but the farthest."""
    low, high = np.quantile(values, _SHOWN)
    room = 0.1 * max(high - low, 1e-12)
    return low - room, high + room


# -- hold-outs ----------------------------------------------------------------------------------
@styled()
def rollout_figure(rows: Sequence[RolloutStep], *, labels: Mapping[str, str]) -> Figure:
    """Fit below a budget, predict above it: the error, for one budget after another.

    rows: in order of threshold.
    """
    if not rows:
        raise UserError("no budget leaves enough runs below and one above: there is no rollout")
    c = [row.threshold for row in rows]
    figure, (axes,) = sheet(WIDTH, 4.3, below=84)
    room = (max(c) / min(c)) ** 0.08 if len(c) > 1 else 2.0
    log_axis(axes, "x", min(c) / room, max(c) * room)
    axes.axhline(0, color=INK, linewidth=0.8)
    _sizes_of_error(axes, c, [row.mean_abs_error for row in rows], SIZES[2])
    _sizes_of_error(axes, c, [row.in_sample_error for row in rows], MUTED)

    limit = _limit(rows)
    axes.set_ylim(-limit, 1.35 * limit)
    for row in rows:
        _bias(axes, row, limit)
        _below(axes, row.threshold, _counts(row))
    _below(axes, axes.get_xlim()[0], ("fitted", "held out", "reach"), offset=-4, ha="right")

    told = [
        ("mean error of held-out runs, with the fit's 95 % interval", ACCENT),
        ("their mean size of error", SIZES[2]),
        ("that of the fitted runs", MUTED),
    ]
    notes(axes, told)
    headed(axes, "law over run (%)", f"budget below which runs are fitted, {labels['C']}")
    return figure


def _sizes_of_error(axes: Axes, c: list[float], errors: list[float], colour: str) -> None:
    per_cent = [100 * error for error in errors]
    axes.plot(
        c,
        per_cent,
        "o-",
        color=colour,
        linewidth=1,
        markersize=3.5,
        zorder=3,
    )


def _bias(axes: Axes, row: RolloutStep, limit: float) -> None:
    """One mean error and its interval; what leaves the axes ends in an arrow, with its value."""
    at, bias = row.threshold, 100 * row.bias
    ends = [100 * end for end in row.bias_ci95 or ()]
    bar(axes, [at] * len(ends), np.clip(ends, -limit, limit), INK, 1.6)
    for end in ends:
        if abs(end) > limit:
            arrow = "^" if end > 0 else "v"
            tip = math.copysign(0.97 * limit, end)
            axes.plot(at, tip, arrow, color=INK, markersize=5, zorder=5)

    shown = float(np.clip(bias, -0.88 * limit, 0.88 * limit))
    mark(
        axes,
        at,
        shown,
        ACCENT,
        shape="D",
        size=6.5,
        rim=1,
        zorder=6,
    )
    if shown != bias:
        label(
            axes,
            printed(f"{bias:+.3g} %"),
            (at, shown),
            (8, 0),
            on="data",
            colour=ACCENT,
            va="center",
            path_effects=HALO,
        )


def _limit(rows: Sequence[RolloutStep]) -> float:
    """Per cent that the axes hold: all, but nothing beyond `FAR` times the usual size of error."""
    sizes, means, ends = [], [], [0.0]
    for row in rows:
        sizes.append(row.mean_abs_error)
        means.append(abs(row.bias))
        ends += map(abs, row.bias_ci95 or ())
    usual = _FAR * float(np.median(sizes))
    return 115 * max(min(max(means), usual), min(max(ends), usual), usual / _FAR, 1e-6)


def _counts(row: RolloutStep) -> tuple[str, str, str]:
    """The runs that a budget rests on, and how far they reach."""
    reach = quantities([float(f"{row.distance:.3g}")])[0]
    return str(row.n_fitted), str(row.n_held_out), reach + TIMES


def _below(
    axes: Axes, x: float, lines: Sequence[str], offset: float = 0, ha: str = "center"
) -> None:
    """Lines of text under the axis at `x`."""
    on = axes.get_xaxis_transform()
    for row, text in enumerate(lines):
        label(
            axes,
            text,
            (x, 0),
            (offset, -46 - 10 * row),
            on=on,
            size=7.5,
            ha=ha,
            va="top",
        )


# -- law against law ----------------------------------------------------------------------------
@styled()
def rivals_figure(record: Rivals) -> Figure:
    """What each law misses of the runs that were held out, and the loss that it says ten times
    further out, with the interval over those that the runs allow."""
    rivals = [rival for rival in record.rivals if rival.fitted]
    names = [rival.law for rival in rivals]
    figure, (missed, ahead) = sheet(
        WIDTH,
        1.1 + 0.28 * len(rivals),
        2,
        2,
        left=14 + 5.6 * max(map(len, names)),
        sharey=True,
    )
    errors = []
    for rival in rivals:
        errors += [
            100 * rival.in_sample_error,
            100 * (rival.holdout_error or rival.in_sample_error),
        ]
    log_axis(missed, "x", min(errors) / 1.3, max(errors) * 1.3)
    if record.loss_ci95 is not None:
        ahead.axvspan(*record.loss_ci95, color=ACCENT, alpha=0.10, linewidth=0, zorder=0)
    for y, rival in enumerate(rivals):
        colour = ACCENT if rival.law == record.law else INK
        _dot(missed, 100 * rival.in_sample_error, y, MUTED)
        if rival.holdout_error is not None:
            _dot(missed, 100 * rival.holdout_error, y, colour)
        _dot(ahead, rival.loss_ahead, y, colour)
    missed.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    linear_ticks(ahead.xaxis, 4)
    places = quantities([float(f"{value:.2g}") for value in record.ahead.values()])
    at = ", ".join(f"{name} = {value}" for name, value in zip(record.ahead, places, strict=True))
    headed(missed, "", "mean error of runs held out, and in sample (grey; %)")
    headed(ahead, "", f"loss at {at}")
    return figure


def _dot(axes: Axes, x: float, y: float, colour: str) -> None:
    axes.plot([x], [y], "o", color=colour, markersize=5.5, zorder=3)
