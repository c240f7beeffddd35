"""A fitted law in pictures: its frontier, its surface, its residuals.

The one idea: whatever reads N and D is drawn alike, from the fit and the runs that it is of. Axes
say their convention; a point's colour is its N, small to large.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nanoscale.report.marks import (
    BEYOND,
    HALO,
    Columns,
    checked,
    colour_key,
    colours_of,
    headed,
    label,
    law_line,
    notes,
    runs,
)
from nanoscale.report.style import (
    ACCENT,
    HEAT,
    INK,
    MARGIN,
    MUTED,
    PAPER,
    TWO_HEADS,
    WIDTH,
    interval,
    log_axis,
    log_ticks,
    quantities,
    raised,
    sheet,
    styled,
)

if TYPE_CHECKING:
    from nanoscale.laws import Fit, LawFit
    from nanoscale.laws.arrays import Array
    from nanoscale.laws.band import Band

BINNED = 32  # points from which residuals get a running median
_MESH = 121  # points of a side of the surface
_Ends = tuple[float, float]


# -- the least loss at each budget --------------------------------------------------------------
@styled()
def frontier_figure(
    points: Columns,
    law: Band | None,
    fit: Fit | None = None,
    *,
    x: str = "C",
    hull: Sequence[int] = (),
    labels: Mapping[str, str],
) -> Figure:
    """Loss against compute, the runs on the lower envelope, and the law's least loss at each C.

    points: `x`, `loss` and, for colours, `N`. law: its loss over x, dashed beyond the points. fit:
    whose equation and floor are told. hull: rows of the points on the envelope, in order of x.
    """
    at, loss = checked(points, x, "loss")
    sizes = points.get("N")
    figure, (axes,) = sheet(WIDTH, 4.4)
    right = 1.4 * at.max() if law is None else law.x[-1]
    log_axis(axes, "x", at.min() / 1.4, right)
    runs(axes, at, loss, colours_of(sizes, len(at)))
    _envelope(axes, at[list(hull)], loss[list(hull)])

    low = [loss.min()]
    if law is not None:
        law_line(axes, law, at.max(), width=1.5, alpha=0.18, zorder=6)
        low.append(law.low[-1])
    low += floor(axes, fit, MUTED)
    high = float(np.quantile(loss, 0.995))
    room = (high / min(low)) ** 0.12
    log_axis(axes, "y", min(low) / room, max(high, loss.max()) * 1.02)

    notes(axes, _told(law, fit, sizes is not None, len(hull) > 0))
    colour_key(axes, sizes, labels["N"])
    headed(axes, labels["loss"], labels[x])
    return figure


def _envelope(axes: Axes, x: Array, loss: Array) -> None:
    """The runs on it, ringed and joined."""
    axes.plot(
        x,
        loss,
        "-o",
        color=ACCENT,
        linewidth=0.9,
        markersize=7,
        markerfacecolor="none",
        markeredgewidth=0.9,
        zorder=5,
    )


def floor(axes: Axes, fit: Fit | None, colour: str) -> list[float]:
    """The line of E and where it lies, if it is known."""
    if fit is None or "E" not in fit.params or "E" in fit.not_identified:
        return []
    value = fit.params["E"]
    axes.axhline(value, color=colour, linewidth=1, linestyle=(0, (5, 3)))
    text = f"E = {value:.2f}{interval(fit.ci95.get('E'), '.2f')}"
    label(axes, text, (0, value), (4, 4), on=axes.get_yaxis_transform(), colour=colour)
    return [value]


def _told(law: Band | None, fit: Fit | None, of_sizes: bool, hull: bool) -> list[tuple[str, str]]:
    """What stands in the corner, and its colours."""
    lines = []
    if law is not None and fit is not None:
        lines.append((raised(fit.equation()), INK))
    if law is not None:
        what = "law: least loss at C" if of_sizes else "law"
        lines.append((what + _band_of(law), MUTED))
    if fit is not None and fit.not_identified:
        lines.append((f"not identified: {', '.join(fit.not_identified)}", MUTED))
    if hull:
        lines.append(("envelope of the runs", ACCENT))
    return lines


def _band_of(law: Band) -> str:
    return ", 95 % band" if law.is_wide else ""


# -- over N and D -------------------------------------------------------------------------------
@styled()
def surface_figure(
    points: Columns,
    fit: LawFit,
    best: Band | None = None,
    *,
    labels: Mapping[str, str],
) -> Figure:
    """The law's loss over N and D, the runs on it, lines of equal compute, the best path.

    points: `N`, `D`. best: N of least loss at each C, with its interval; a law that did not
    converge has none, and it is said.
    """
    n, d = checked(points, "N", "D")
    n_ends = (n.min() / 1.6, n.max() * 2.5)
    d_ends = (d.min() / 1.6, d.max() * 2.5)
    left = MARGIN + 8
    figure, (axes,) = sheet(6.6, 5.4, left=left, right=46)
    axes.grid(False)
    log_axis(axes, "x", *n_ends)
    log_axis(axes, "y", *d_ends)
    _levels(axes, fit, n_ends, d_ends)
    _budgets(axes, n_ends, d_ends)
    runs(axes, n, d, INK, zorder=4)

    if fit.status != "converged":
        state = fit.status.replace("_", " ")
        notes(axes, [(f"the law is {state}: no N* is drawn", ACCENT)], above=True)
    elif best is not None:
        most = (6 * n * d).max()
        _optimum(axes, best, most)
    y_label = f"{labels['N']}; shades and numbers: the law's loss"
    headed(axes, labels["D"], y_label, left=left)
    return figure


def _levels(axes: Axes, fit: LawFit, n: _Ends, d: _Ends) -> None:
    """Shades of the law's loss, each with as much of the plane, between round losses."""
    sides = np.geomspace(*n, _MESH), np.geomspace(*d, _MESH)
    loss = fit(*np.meshgrid(*sides))  # (d, n)
    shades = HEAT[-2::-1]  # the darkest would hide the runs
    shares = np.arange(1, len(shades)) / len(shades)
    levels = _round_levels(np.quantile(loss, shares))
    colours = shades[: len(levels) + 1]
    axes.contourf(
        *sides,
        loss,
        levels=levels,
        colors=colours,
        extend="both",
        zorder=0,
    )
    lines = axes.contour(
        *sides,
        loss,
        levels=levels,
        colors=PAPER,
        linewidths=0.8,
        zorder=1,
    )
    decimals = max(len(f"{level:g}".partition(".")[2]) for level in levels)
    for text in axes.clabel(lines, fmt=f"%.{decimals}f", fontsize=8, colors=INK):
        text.set_path_effects(HALO)


def _round_levels(wanted: Array) -> list[float]:
    """These losses, with as few digits as keep them apart."""
    levels: list[float] = []
    for digits in range(2, 8):
        levels = sorted({float(f"{loss:.{digits}g}") for loss in wanted})
        if len(levels) == len(wanted):
            break
    return levels


def _budgets(axes: Axes, n: _Ends, d: _Ends) -> None:
    """Thin lines of equal compute, named where they leave at the right or the left."""
    corner = d[0] * (d[1] / d[0]) ** 0.05
    budgets = log_ticks(6 * n[0] * d[0], 6 * n[1] * d[1])
    for budget, name in zip(budgets, quantities(budgets), strict=True):
        product = budget / 6  # N D
        left = max(n[0], product / d[1])
        right = min(n[1], product / d[0])
        top, bottom = product / left, product / right
        axes.plot([left, right], [top, bottom], color=MUTED, linewidth=0.6)
        if right == n[1]:
            label(axes, name, (right, bottom), (4, 0), on="data", size=7.5, va="center")
        elif left == n[0] and top > corner:
            end = (left, top)
            label(
                axes,
                name,
                end,
                (7, 0),
                on="data",
                size=7.5,
                path_effects=HALO,
                zorder=6,
            )
    label(axes, "C, FLOPs", (1, 1), (4, 9), size=7.5)


def _optimum(axes: Axes, best: Band, reach: float) -> None:
    """The path of least loss: N over C, drawn at D = C / 6 N."""
    product = best.x / 6  # N D
    there_and_back = np.concatenate([product, product[::-1]])
    ends = np.concatenate([best.low, best.high[::-1]])
    axes.fill(
        ends,
        there_and_back / ends,
        color=PAPER,
        alpha=0.45,
        linewidth=0,
        zorder=3,
    )
    for end in (best.low, best.high):
        axes.plot(end, product / end, color=ACCENT, linewidth=0.6, zorder=3)
    for part, dash in zip(best.split(reach), ("-", BEYOND), strict=True):
        d = part.x / 6 / part.y
        axes.plot(
            part.y,
            d,
            color=ACCENT,
            linewidth=1.8,
            linestyle=dash,
            zorder=5,
        )
    notes(axes, [(f"line: least loss at C{_band_of(best)}", ACCENT)], above=True)


# -- what is left -------------------------------------------------------------------------------
@styled()
def residuals_figure(
    points: Columns,
    fit: LawFit,
    *,
    labels: Mapping[str, str],
) -> Figure:
    """How far each run lies from the law, against C, N, D and the law's own loss.

    points: `loss`, what the law reads and, of those that are known, `C`, `N` and `D`. The line is a
    running median, where there are enough points: a law that fits has it at 0 everywhere.
    """
    loss, *x = checked(points, "loss", *fit.x_names)
    law = fit(*x)
    off = 100 * (loss / law - 1)
    shown = {labels[key]: np.asarray(points[key], float) for key in "CND" if key in points}
    shown["loss of the law"] = law
    sizes = points.get("N")
    height = 2.5 * math.ceil(len(shown) / 2) + 0.7
    figure, grid = sheet(
        WIDTH,
        height,
        len(shown),
        across=2,
        above=TWO_HEADS,
        wspace=0.06,
        hspace=0.42,
        sharey=True,
    )
    for axes, (name, at) in zip(grid, shown.items(), strict=True):
        _against(axes, at, off, colours_of(sizes, len(off)))
        axes.set_xlabel(name, labelpad=4)

    first = grid[0]
    limit = 1.15 * max(np.abs(off).max(), 1e-3)
    first.set_ylim(-limit, limit)
    first.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    label(first, "run over law (%)", (0, 1), (-MARGIN, 9), size=9)
    told = [(f"root mean square {np.sqrt(np.mean(off**2)):.2g} %", MUTED)]
    if len(off) >= BINNED:
        told.append(("running median", ACCENT))
    notes(grid[1], told, above=True)
    colour_key(first, sizes, "N")
    return figure


def _against(axes: Axes, x: Array, off: Array, colours: Sequence[str]) -> None:
    """How far the runs are off over x, and the running median."""
    room = (x.max() / x.min()) ** 0.04
    log_axis(axes, "x", x.min() / room, x.max() * room, most=5)
    axes.axhline(0, color=INK, linewidth=0.8)
    runs(axes, x, off, colours)
    if len(off) < BINNED:
        return
    at, middle = [], []
    for rows in np.array_split(np.argsort(x, kind="stable"), min(12, len(x) // 10)):
        at.append(np.exp(np.log(x[rows]).mean()))
        middle.append(np.median(off[rows]))
    axes.plot(at, middle, color=ACCENT, linewidth=1.6, zorder=5)
