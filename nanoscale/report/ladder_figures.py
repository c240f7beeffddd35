"""A ladder in one picture: its runs, the law through them, and how far each lies from it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanoscale.report.law_figures import floor
from nanoscale.report.links import series
from nanoscale.report.marks import ROUNDING, bar, headed, label, law_line, mark, notes, shade
from nanoscale.report.run_figures import Table, positive, table_of
from nanoscale.report.style import (
    ACCENT,
    INK,
    LOSS,
    MUTED,
    ONE_HEAD,
    TWO_HEADS,
    WIDTH,
    log_axis,
    raised,
    sheet,
    size_colours,
    styled,
    ticks_on,
)

if TYPE_CHECKING:
    from nanoscale.laws import LadderFit
    from nanoscale.laws.band import Band
    from nanoscale.laws.forecast import ForecastPoint

_BELOW = 2.0  # rooms below the lowest, for the words that stand below it
X_LABEL = "training compute C (FLOPs, exact, forward + backward)"


@styled()
def law_figure(
    points: Table,
    fit: LadderFit | None,
    *,
    title: str = "",
    forecast: ForecastPoint | None = None,
) -> Figure:
    """A ladder and the law through it on log axes; below, how far each run lies from the law.

    Args:
        points: one row per run with `x`, `loss` and, if there are any, `size` and `seed`; runs
            without a finite loss are left out.
        fit: of the ladder, or None for the runs alone, as they stand for a fit that did not
            converge.
        title: above the figure.
        forecast: of a bigger run, with its interval and what came of it.

    >>> import nanoscale as ns
    >>> C = [1e15, 3e15, 1e16, 3e16, 1e17]
    >>> losses = [1.5 + 100 / c**0.12 for c in C]
    >>> law = ns.fit_power_law(C, losses, resamples=100)
    >>> figure = ns.law_figure([{"x": c, "loss": loss} for c, loss in zip(C, losses)], law)
    """
    table = positive(table_of(points, ("x", "loss")), "x", "loss").sort_values("x", kind="stable")
    if fit is not None and fit.status == "max_iter":
        fit = None
    height, ratios = (4.0, [1.0]) if fit is None else (5.1, [3.6, 1])
    figure, grid = sheet(
        WIDTH,
        height,
        len(ratios),
        above=TWO_HEADS if title else ONE_HEAD,
        hspace=0.24,
        sharex=True,
        height_ratios=ratios,
    )
    top, bottom = grid[0], grid[-1]
    ends = [table["x"].min() * 0.7, table["x"].max() * 1.4]
    losses = list(table["loss"])
    if fit is not None:
        law = _curve_of(fit)
        ends = [law.x[0], law.x[-1]]
        losses += [law.y[-1], law.low[-1], *_law(top, fit, law, table)]
        _residuals(bottom, law, table)
    _runs(top, table)
    if forecast is not None:
        ends[1] = max(ends[1], 1.6 * forecast.C)
        losses += _forecast(top, forecast)

    room = (max(losses) / min(losses)) ** 0.09
    log_axis(top, "x", *ends)
    log_axis(top, "y", min(losses) / room**_BELOW, max(losses) * room)
    headed(top, LOSS, title=title)
    bottom.set_xlabel(X_LABEL)
    return figure


def _curve_of(fit: LadderFit) -> Band:
    from nanoscale.laws.band import Band  # who has a fit has loaded it

    curve = fit.curve
    return Band(*map(np.array, (curve.x, curve.loss, curve.lo, curve.hi)))


def _sizes(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame, str]]:
    """(label, its rows, colour) of every size in the order of the table; rows alone without."""
    labelled = "size" in table.columns
    groups = list(table.groupby("size" if labelled else "x", sort=False))
    sizes = []
    for (key, rows), colour in zip(groups, size_colours(len(groups)), strict=True):
        sizes.append((str(key) if labelled else "", rows, colour))
    return sizes


def _runs(axes: Axes, table: pd.DataFrame) -> None:
    for name, rows, colour in _sizes(table):
        x, losses = rows["x"], rows["loss"]
        seeds = f"\n{len(rows)} seeds" if len(rows) > 1 else ""
        lowest = (x.iloc[0], losses.min())
        with series(axes, name):
            mark(axes, x, losses, colour)
            label(axes, name + seeds, lowest, (0, -9), on="data", ha="center", va="top")


def _law(axes: Axes, fit: LadderFit, law: Band, table: pd.DataFrame) -> list[float]:
    """The law, what it is, and E where it is known, which is returned."""
    law_line(axes, law, ROUNDING * table["x"].max(), width=1.3, alpha=0.16)
    lines = [(raised(fit.equation()), INK), ("band: 95 % interval", MUTED)]
    if fit.not_identified:
        lines.append((f"{', '.join(fit.not_identified)} not identified", MUTED))
    notes(axes, lines)
    return floor(axes, fit, ACCENT)


def _forecast(axes: Axes, made: ForecastPoint) -> list[float]:
    """The forecast with its interval, and what was observed; the losses that they take."""
    low, high = made.ci95
    bar(axes, [made.C, made.C], [low, high], ACCENT, 2.4)
    mark(axes, [made.C], [made.loss], ACCENT, shape="D")
    told = f"forecast {made.loss:.3f}"
    if made.observed is not None:
        mark(axes, [made.C], [made.observed], INK)
        told += f"\nobserved {made.observed:.3f}"
    foot = min(low, made.observed or low)
    label(axes, told, (made.C, foot), (0, -7), on="data", ha="center", va="top", colour=ACCENT)
    return [low, high, made.observed or made.loss]


def _residuals(axes: Axes, law: Band, table: pd.DataFrame) -> None:
    """Loss over law, in per cent, read off the fit's own curve."""
    near, _ = law.split(1.2 * table["x"].max())
    low, high = 100 * (near.low / near.y - 1), 100 * (near.high / near.y - 1)
    axes.grid(False)
    axes.axhline(0, color=INK, linewidth=0.8)
    shade(axes, replace(near, low=low, high=high), INK, 0.16)

    worst = 0.0
    for name, rows, colour in _sizes(table):
        expected = np.exp(np.interp(np.log(rows["x"]), np.log(law.x), np.log(law.y)))
        off = 100 * (rows["loss"] / expected - 1)
        with series(axes, name):
            mark(axes, rows["x"], off, colour)
        worst = max(worst, off.abs().max())

    limit = 1.35 * max(worst, 1e-6)
    axes.set_ylim(-limit, limit)
    step = float(f"{worst:.1g}")
    ticks_on(axes.yaxis, [-step, 0, step])
    headed(axes, "run over law (%)")
