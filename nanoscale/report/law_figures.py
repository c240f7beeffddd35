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
    LABELS,
    Columns,
    checked,
    colour_key,
    dots,
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
    WIDTH,
    canvas,
    interval,
    log_axis,
    log_ticks,
    panels,
    place,
    quantities,
    raised,
    styled,
)

if TYPE_CHECKING:
    from nanoscale.laws import Fit, LawFit
    from nanoscale.laws.band import Band

BINNED = 32  # points from which residuals get a running median
_MESH = 121  # points of a side of the surface
Span = tuple[float, float]


# -- the least loss at each budget --------------------------------------------------------------
def frontier_figure(
    points: Columns,
    law: Band | None,
    fit: Fit | None = None,
    *,
    x: str = "C",
    hull: Sequence[int] = (),
    labels: Mapping[str, str] = LABELS,
) -> Figure:
    """Loss against compute, the runs on the lower envelope, and the law's least loss at each C.

    points: `x`, `loss` and, for colours, `N`. law: its loss over x, dashed beyond the points. fit:
    whose equation and floor are told. hull: rows of the points on the envelope, in order of x.
    """
    at, loss = checked(points, x, "loss")
    sizes = points.get("N")
    with styled():
        figure = canvas(WIDTH, 4.4)
        axes = figure.add_subplot()
        place(figure)
        log_axis(axes, "x", at.min() / 1.4, 1.4 * at.max() if law is None else law.x[-1])
        runs(axes, at, loss, sizes)
        _envelope(axes, at[list(hull)], loss[list(hull)])

        low, high = [loss.min()], float(np.quantile(loss, 0.995))
        if law is not None:
            law_line(axes, law, at.max(), width=1.5, alpha=0.18, zorder=6)
            low.append(law.low[-1])
        low += floor(axes, fit, MUTED)
        axes.grid(axis="y")
        room = (high / min(low)) ** 0.12
        log_axis(axes, "y", min(low) / room, max(high, loss.max()) * 1.02)

        notes(axes, _told(law, fit, sizes is not None, len(hull) > 0))
        if sizes is not None:
            colour_key(axes, sizes, labels["N"])
        headed(axes, labels["loss"])
        axes.set_xlabel(labels[x], labelpad=6)
    return figure


def _envelope(axes: Axes, x: np.ndarray, loss: np.ndarray) -> None:
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
    axes.axhline(value, color=colour, linewidth=1, linestyle=(0, (5, 3)), zorder=2)
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
        lines.append((what + (", 95 % band" if law.is_wide else ""), MUTED))
    if fit is not None and fit.not_identified:
        lines.append((f"not identified: {', '.join(fit.not_identified)}", MUTED))
    if hull:
        lines.append(("envelope of the runs", ACCENT))
    return lines


# -- over N and D -------------------------------------------------------------------------------
def surface_figure(
    points: Columns,
    fit: LawFit,
    best: Band | None = None,
    *,
    labels: Mapping[str, str] = LABELS,
) -> Figure:
    """The law's loss over N and D, the runs on it, lines of equal compute, the best path.

    points: `N`, `D`. best: N of least loss at each C, with its interval; a law that did not
    converge has none, and it is said.
    """
    n, d = checked(points, "N", "D")
    spans = [(values.min() / 1.6, values.max() * 2.5) for values in (n, d)]
    with styled():
        figure = canvas(6.6, 5.4)
        axes = figure.add_subplot()
        place(figure, left=MARGIN + 8, right=46)
        log_axis(axes, "x", *spans[0])
        log_axis(axes, "y", *spans[1])
        _levels(axes, fit, *spans)
        _budgets(axes, *spans)
        area, rim, alpha = dots(len(n))
        axes.scatter(
            n, d, s=area, color=INK, edgecolors=PAPER, linewidths=rim, alpha=alpha, zorder=4
        )

        if fit.status != "converged":
            state = fit.status.replace("_", " ")
            notes(axes, [(f"the law is {state}: no N* is drawn", ACCENT)], above=True)
        elif best is not None:
            _optimum(axes, best, (6 * n * d).max())
        headed(axes, labels["D"], left=MARGIN + 8)
        axes.set_xlabel(f"{labels['N']}; shades and numbers: the law's loss", labelpad=6)
    return figure


def _levels(axes: Axes, fit: LawFit, n: Span, d: Span) -> None:
    """Shades of the law's loss, each with as much of the plane, between round losses."""
    sides = np.geomspace(*n, _MESH), np.geomspace(*d, _MESH)
    loss = fit(*np.meshgrid(*sides))  # (d, n)
    shades = HEAT[len(HEAT) - 2 :: -1]  # the darkest would hide the runs
    wanted = np.quantile(loss, np.arange(1, len(shades)) / len(shades))
    levels: list[float] = []
    for digits in range(2, 8):
        levels = sorted({float(f"{v:.{digits}g}") for v in wanted})
        if len(levels) == len(wanted):
            break

    ends = min(levels[0], loss.min()) - 1, max(levels[-1], loss.max()) + 1
    axes.contourf(
        *sides,
        loss,
        levels=[ends[0], *levels, ends[1]],
        colors=shades[: len(levels) + 1],
        zorder=0,
    )
    lines = axes.contour(*sides, loss, levels=levels, colors=PAPER, linewidths=0.8, zorder=1)
    decimals = max(len(f"{v:g}".partition(".")[2]) for v in levels)
    for text in axes.clabel(lines, fmt=f"%.{decimals}f", fontsize=8, colors=INK):
        text.set_path_effects(HALO)


def _budgets(axes: Axes, n: Span, d: Span) -> None:
    """Thin lines of equal compute, named where they leave at the right or the left."""
    budgets = log_ticks(6 * n[0] * d[0], 6 * n[1] * d[1])
    for c, name in zip(budgets, quantities(budgets), strict=True):
        left, right = max(n[0], c / 6 / d[1]), min(n[1], c / 6 / d[0])
        axes.plot(
            [left, right], [c / 6 / left, c / 6 / right], color=MUTED, linewidth=0.6, zorder=2
        )
        if right == n[1]:
            end = (right, c / 6 / right)
            label(axes, name, end, (4, 0), on=axes.transData, size=7.5, va="center")
        elif left == n[0] and c / 6 / left > d[0] * (d[1] / d[0]) ** 0.05:
            end = (left, c / 6 / left)
            label(axes, name, end, (7, 0), on=axes.transData, size=7.5, halo=True, zorder=6)
    label(axes, "C, FLOPs", (1, 1), (4, 9), size=7.5)


def _optimum(axes: Axes, best: Band, reach: float) -> None:
    """The path of least loss: N over C, drawn at D = C / 6 N."""
    ends = np.concatenate([best.low, best.high[::-1]])
    budgets = np.concatenate([best.x, best.x[::-1]])
    axes.fill(ends, budgets / 6 / ends, color=PAPER, alpha=0.45, linewidth=0, zorder=3)
    for end in (best.low, best.high):
        axes.plot(end, best.x / 6 / end, color=ACCENT, linewidth=0.6, zorder=3)
    for part, dash in zip(best.split(reach), ("-", BEYOND), strict=True):
        axes.plot(
            part.y, part.x / 6 / part.y, color=ACCENT, linewidth=1.8, linestyle=dash, zorder=5
        )
    wide = ", 95 % band" if best.is_wide else ""
    notes(axes, [(f"line: least loss at C{wide}", ACCENT)], above=True)


# -- what is left -------------------------------------------------------------------------------
def residuals_figure(
    points: Columns,
    fit: LawFit,
    *,
    labels: Mapping[str, str] = LABELS,
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
    limit = 1.15 * max(np.abs(off).max(), 1e-3)
    sizes = points.get("N")
    with styled():
        figure = canvas(WIDTH, 2.5 * math.ceil(len(shown) / 2) + 0.7)
        grid = panels(figure, len(shown), across=2)
        place(figure, heads=2, wspace=0.06, hspace=0.42)
        for axes, (name, at) in zip(grid, shown.items(), strict=True):
            axes.set_ylim(-limit, limit)
            room = (at.max() / at.min()) ** 0.04
            log_axis(axes, "x", at.min() / room, at.max() * room, most=5)
            axes.grid(axis="y")
            axes.axhline(0, color=INK, linewidth=0.8, zorder=2)
            runs(axes, at, off, sizes)
            if len(off) >= BINNED:
                _median(axes, at, off)
            axes.set_xlabel(name, labelpad=4)

        grid[0].yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
        headed(grid[0], "run over law (%)")
        told = [(f"root mean square {np.sqrt(np.mean(off**2)):.2g} %", MUTED)]
        if len(off) >= BINNED:
            told.append(("running median", ACCENT))
        notes(grid[1], told, above=True)
        if sizes is not None:
            colour_key(grid[0], sizes, "N")
    return figure


def _median(axes: Axes, x: np.ndarray, off: np.ndarray) -> None:
    bins = np.array_split(np.argsort(x, kind="stable"), min(12, len(x) // 10))
    at = [np.exp(np.log(x[rows]).mean()) for rows in bins]
    middle = [np.median(off[rows]) for rows in bins]
    axes.plot(at, middle, color=ACCENT, linewidth=1.6, zorder=5)
