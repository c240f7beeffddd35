"""A fitted law in pictures: its frontier, its surface, its residuals; and what all of them share.

The one idea: a figure gets arrays and the record of a fit, never a law, so every law that reads N
and D is drawn alike. Axes say their convention; a point's colour is its N, small to large.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from nanoscale.errors import UserError
from nanoscale.report.style import (
    ACCENT,
    HEAT,
    INK,
    MARGIN,
    MUTED,
    PAPER,
    RULE,
    SIZES,
    canvas,
    headed,
    log_axis,
    log_ticks,
    place,
    quantities,
    raised,
    styled,
    ticks_on,
)

LABELS = {
    "N": "N: parameters",
    "D": "D: training tokens",
    "C": "C: training FLOPs, 6 N D",
    "loss": "loss (nats per token)",
}
BEYOND = (0, (4, 3))  # the dash of what no run has reached
MANY = 400  # points from which dots lose their rims
BINNED = 32  # points from which residuals get a running median
HALO = [withStroke(linewidth=2.5, foreground=PAPER)]
Columns = Mapping[str, Sequence[float]]


def frontier_figure(
    points: Columns,
    path: Columns | None,
    fit: Mapping[str, object] | None = None,
    *,
    x: str = "C",
    hull: Sequence[int] = (),
    labels: Mapping[str, str] = LABELS,
    title: str = "",
) -> Figure:
    """Loss against compute, the runs on the lower envelope, and the law's least loss at each C.

    points: `x`, `loss` and, for colours, `N`. path: `x`, `loss`, `lo`, `hi` in order of x, dashed
    beyond the points. fit: a record (equation, params, ci95, not_identified). hull: rows of the
    points on the envelope, in order of x.
    """
    at, loss = checked(points, x, "loss")
    with styled():
        figure = canvas(7.6, 4.4)
        axes = figure.add_subplot()
        place(figure, title)
        log_axis(axes, "x", at.min() / 1.4, (path[x][-1] if path else 1.4 * at.max()))
        runs(axes, at, loss, points.get("N"))
        if len(hull):
            axes.plot(at[list(hull)], loss[list(hull)], color=ACCENT, linewidth=0.9, zorder=5)
            axes.plot(
                at[list(hull)],
                loss[list(hull)],
                "o",
                color="none",
                markersize=7,
                markeredgecolor=ACCENT,
                markeredgewidth=0.9,
                zorder=5,
            )
        low, high = loss.min(), float(np.quantile(loss, 0.995))
        if path:
            _path(axes, path, x, at.max())
            low = min(low, path["lo"][-1])
        low = min(low, _floor(axes, fit))
        axes.grid(axis="y", color=RULE, linewidth=0.6)
        log_axis(axes, "y", low / (high / low) ** 0.12, max(high, loss.max()) * 1.02)
        said = [(raised(str(fit["equation"])), INK)] if path and fit else []
        what = "law: least loss at C" if "N" in points else "law"
        said += [(what + ", 95 % band" * _wide(path), MUTED)] if path else []
        said += (
            [(f"not identified: {', '.join(fit['not_identified'])}", MUTED)]
            if fit and fit["not_identified"]
            else []
        )
        said += [("envelope of the runs", ACCENT)] if len(hull) else []
        notes(axes, said)
        if "N" in points:
            colour_key(axes, points["N"], labels["N"])
        headed(axes, title, labels["loss"])
        axes.set_xlabel(labels[x], labelpad=6)
    return figure


def _path(axes: Axes, path: Columns, x: str, reach: float) -> None:
    at, loss, low, high = (np.array(path[key], float) for key in (x, "loss", "lo", "hi"))
    inside = at <= reach
    beyond = ~inside
    beyond[max(int(inside.sum()) - 1, 0)] = True
    for part, alpha, dash in ((inside, 0.18, "-"), (beyond, 0.09, BEYOND)):
        axes.fill_between(
            at[part], low[part], high[part], color=INK, alpha=alpha, linewidth=0, zorder=1
        )
        axes.plot(at[part], loss[part], color=INK, linewidth=1.5, linestyle=dash, zorder=6)
    if (~inside).any():
        middle = np.flatnonzero(beyond)[beyond.sum() // 2]
        axes.annotate(
            "extrapolated",
            (at[middle], high[middle]),
            (0, 5),
            ha="center",
            va="bottom",
            textcoords="offset points",
            color=MUTED,
            size=8,
            style="italic",
        )


def _wide(path: Columns) -> bool:
    return list(path["lo"]) != list(path["hi"])


def _floor(axes: Axes, fit: Mapping | None) -> float:
    """The line of E, where it is known; where it lies."""
    if not fit or "E" not in fit["params"] or "E" in fit["not_identified"]:
        return math.inf
    value, ends = fit["params"]["E"], fit["ci95"].get("E")
    interval = f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else ""
    axes.axhline(value, color=MUTED, linewidth=1, linestyle=(0, (5, 3)), zorder=2)
    axes.annotate(
        f"E = {value:.2f}{interval}",
        (0, value),
        (4, 4),
        size=8,
        color=MUTED,
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
    )
    return value


def surface_figure(
    points: Columns,
    surface: Mapping[str, Sequence],
    path: Columns | None = None,
    *,
    note: str = "",
    labels: Mapping[str, str] = LABELS,
    title: str = "",
) -> Figure:
    """The law's loss over N and D, the runs on it, lines of equal compute, the best path.

    points: `N`, `D`. surface: `N` (n,), `D` (d,) and `loss` (d, n) of the law, which also are the
    axes' ends. path: `C` and `N` of least loss, with the ends `N_lo` and `N_hi` of its interval.
    note: what to say above it where there is no path.
    """
    n, d = checked(points, "N", "D")
    ends = [(float(min(surface[k])), float(max(surface[k]))) for k in "ND"]
    with styled():
        figure = canvas(6.6, 5.4)
        axes = figure.add_subplot()
        place(figure, title, left=MARGIN + 8, right=46)
        for which, (low, high) in zip("xy", ends, strict=True):
            log_axis(axes, which, low, high)
        _bands(axes, surface)
        _budgets(axes, *ends)
        size, rim, alpha = dots(len(n))
        axes.scatter(
            n, d, s=size, color=INK, edgecolors=PAPER, linewidths=rim, alpha=alpha, zorder=4
        )
        if path:
            _optimum(axes, path, (6 * n * d).max())
        notes(axes, [(note, ACCENT)] * bool(note), above=True)
        headed(axes, title, labels["D"], left=MARGIN + 8)
        axes.set_xlabel(f"{labels['N']}; shades and numbers: the law's loss", labelpad=6)
    return figure


def _bands(axes: Axes, surface: Mapping[str, Sequence]) -> None:
    loss = np.asarray(surface["loss"], float)
    shades = HEAT[len(HEAT) - 2 :: -1]  # the darkest would hide the runs
    for digits in range(2, 8):  # each shade has as much of the plane, between round losses
        wanted = np.quantile(loss, np.arange(1, len(shades)) / len(shades))
        levels = sorted({float(f"{v:.{digits}g}") for v in wanted})
        if len(levels) == len(wanted):
            break
    axes.contourf(
        surface["N"],
        surface["D"],
        loss,
        zorder=0,
        colors=shades[: len(levels) + 1],
        levels=[min(levels[0], loss.min()) - 1, *levels, max(levels[-1], loss.max()) + 1],
    )
    lines = axes.contour(
        surface["N"], surface["D"], loss, levels=levels, colors=PAPER, linewidths=0.8, zorder=1
    )
    decimals = max(len(f"{v:g}".partition(".")[2]) for v in levels)
    drawn = axes.clabel(lines, fmt=lambda v: f"{v:.{decimals}f}", fontsize=8, colors=INK)
    for text in drawn:
        text.set_path_effects(HALO)


def _budgets(axes: Axes, n: tuple[float, float], d: tuple[float, float]) -> None:
    """Thin lines of equal compute, named where they leave at the right or the left."""
    budgets = log_ticks(6 * n[0] * d[0], 6 * n[1] * d[1])
    at = {"textcoords": "offset points", "color": MUTED, "size": 7.5, "annotation_clip": False}
    for c, label in zip(budgets, quantities(budgets), strict=True):
        ends = np.array([max(n[0], c / 6 / d[1]), min(n[1], c / 6 / d[0])])
        axes.plot(ends, c / 6 / ends, color=MUTED, linewidth=0.6, zorder=2)
        if ends[1] == n[1]:
            axes.annotate(label, (ends[1], c / 6 / ends[1]), (4, 0), va="center", **at)
        elif ends[0] == n[0] and c / 6 / n[0] > d[0] * (d[1] / d[0]) ** 0.05:
            axes.annotate(label, (n[0], c / 6 / n[0]), (7, 0), path_effects=HALO, zorder=6, **at)
    axes.annotate("C, FLOPs", (1, 1), (4, 9), xycoords="axes fraction", **at)


def _optimum(axes: Axes, path: Columns, reach: float) -> None:
    c, best, low, high = (np.array(path[k], float) for k in ("C", "N", "N_lo", "N_hi"))
    ends = np.concatenate([low, high[::-1]])
    axes.fill(
        ends,
        np.concatenate([c, c[::-1]]) / 6 / ends,
        color=PAPER,
        alpha=0.45,
        linewidth=0,
        zorder=3,
    )
    for end in (low, high):
        axes.plot(end, c / 6 / end, color=ACCENT, linewidth=0.6, zorder=3)
    inside = c <= reach
    beyond = ~inside
    beyond[max(int(inside.sum()) - 1, 0)] = True
    for part, dash in ((inside, "-"), (beyond, BEYOND)):
        axes.plot(
            best[part],
            c[part] / 6 / best[part],
            color=ACCENT,
            linewidth=1.8,
            linestyle=dash,
            zorder=5,
        )
    wide = ", 95 % band" if (low < high).any() else ""
    notes(axes, [(f"line: least loss at C{wide}", ACCENT)], above=True)


def residuals_figure(
    points: Columns,
    predicted: Sequence[float],
    *,
    labels: Mapping[str, str] = LABELS,
    title: str = "",
) -> Figure:
    """How far each run lies from the law, against C, N, D and the law's own loss.

    points: `loss` and any of `C`, `N`, `D`. The line is a running median, where there are enough
    points: a law that fits has it at 0 everywhere.
    """
    (loss,) = checked(points, "loss")
    law = np.asarray(predicted, float)
    off = 100 * (loss / law - 1)
    panels = {labels[k]: np.asarray(points[k], float) for k in "CND" if k in points}
    panels["loss of the law"] = law
    down = math.ceil(len(panels) / 2)
    limit = 1.15 * max(np.abs(off).max(), 1e-3)
    with styled():
        figure = canvas(7.6, 2.5 * down + 0.7)
        grid = figure.subplots(down, 2, squeeze=False, sharey=True)
        place(figure, "two lines", wspace=0.06, hspace=0.42, left=MARGIN)
        for i, axes in enumerate(grid.flat):
            if i >= len(panels):
                axes.set_visible(False)
                continue
            (label, at) = list(panels.items())[i]
            axes.set_ylim(-limit, limit)
            room = (at.max() / at.min()) ** 0.04
            narrow_axis(axes, "x", at.min() / room, at.max() * room)
            axes.grid(axis="y", color=RULE, linewidth=0.6)
            axes.axhline(0, color=INK, linewidth=0.8, zorder=2)
            runs(axes, at, off, points.get("N"))
            _median(axes, at, off)
            axes.set_xlabel(label, labelpad=4)
        grid[0, 0].yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
        headed(grid[0, 0], title, "run over law (%)")
        sd = float(np.sqrt(np.mean(off**2)))
        notes(
            grid[0, 1],
            [(f"root mean square {sd:.2g} %", MUTED)]
            + [("running median", ACCENT)] * (len(law) >= BINNED),
            above=True,
        )
        if "N" in points:
            colour_key(grid[0, 0], points["N"], "N")
    return figure


def _median(axes: Axes, x: np.ndarray, off: np.ndarray) -> None:
    if len(x) < BINNED:
        return
    bins = np.array_split(np.argsort(x, kind="stable"), min(12, len(x) // 10))
    at = [float(np.exp(np.log(x[rows]).mean())) for rows in bins]
    axes.plot(
        at, [float(np.median(off[rows])) for rows in bins], color=ACCENT, linewidth=1.6, zorder=5
    )


# -- what the figures share ---------------------------------------------------------------------
def checked(columns: Columns, *names: str, positive: bool = True) -> list[np.ndarray]:
    """Columns as arrays of one length; `UserError` for none, or a number no log axis can show."""
    arrays = [np.asarray(columns[name], float) for name in names]
    for name, values in zip(names, arrays, strict=True):
        if not len(values) or len(values) != len(arrays[0]):
            raise UserError(f"{name} has {len(values)} values: there is nothing to draw")
        if not np.isfinite(values).all() or (positive and (values <= 0).any()):
            raise UserError(f"{name} has a value that is not a positive finite number")
    return arrays


def dots(n: int) -> tuple[float, float, float]:
    """(area, width of the rim, opacity) of one of n dots."""
    area = float(np.clip(420 / math.sqrt(n), 4, 34))
    return (area, 0.6, 1.0) if n <= MANY else (area, 0.0, 0.5)


def colours_of(values: Sequence[float] | None, n: int) -> list[str]:
    """A colour for each of n points, by ln of its value in even steps; one for all without."""
    if values is None or min(values) == max(values):
        return [SIZES[4]] * n
    u = np.log(np.asarray(values, float))
    steps = (u - u.min()) / (u.max() - u.min()) * len(SIZES)
    return [SIZES[min(int(step), len(SIZES) - 1)] for step in steps]


def runs(axes: Axes, x: np.ndarray, y: np.ndarray, sizes: Sequence[float] | None) -> None:
    """A dot per run, coloured by size."""
    area, rim, alpha = dots(len(x))
    axes.scatter(
        x,
        y,
        s=area,
        c=colours_of(sizes, len(x)),
        edgecolors=PAPER,
        linewidths=rim,
        alpha=alpha,
        zorder=3,
    )


def notes(axes: Axes, lines: Sequence[tuple[str, str]], above: bool = False) -> None:
    """(text, colour) lines in the upper right corner, or from the right end above the axes."""
    for row, (text, colour) in enumerate(lines):
        axes.annotate(
            text,
            (1, 1),
            (0, 9 + 13 * row if above else -2 - 14 * row),
            ha="right",
            xycoords="axes fraction",
            va="baseline" if above else "top",
            color=colour,
            textcoords="offset points",
            size=10 if colour == INK and not row else 8.5,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.5, "alpha": 0.85},
            zorder=8,
            annotation_clip=False,
        )


def narrow_axis(axes: Axes, which: str, low: float, high: float, most: int = 5) -> None:
    """`log_axis` with at most `most` ticks, for an axis of half a figure."""
    log_axis(axes, which, low, high)
    axis, (low, high) = getattr(axes, f"{which}axis"), getattr(axes, f"get_{which}lim")()
    ticks = list(axis.get_ticklocs())
    if len(ticks) <= most:
        return
    if high / low < 10:
        ticks_on(axis, ticks[:: math.ceil(len(ticks) / most)])
        return
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [d * 10.0**k for k in decades for d in digits if low <= d * 10.0**k <= high]
        if len(ticks) <= most:
            break
    ticks_on(axis, ticks[:: math.ceil(len(ticks) / most)])


def colour_key(axes: Axes, values: Sequence[float], label: str) -> None:
    """What the colours of `runs` mean, above the axes at their right end."""
    low, high = (float(f"{v:.1e}") for v in (min(values), max(values)))
    if low == high:
        return
    first, last = quantities([low, high])
    width, height = (v / axes.figure.dpi * 72 for v in (axes.bbox.width, axes.bbox.height))
    end, up, step = 8 + 4.2 * len(last), 12, 8  # points
    axes.scatter(
        [1 - (end + step * (len(SIZES) - i)) / width for i in range(len(SIZES))],
        [1 + up / height] * len(SIZES),
        s=40,
        marker="s",
        c=SIZES,
        linewidths=0,
        transform=axes.transAxes,
        clip_on=False,
    )
    for text, left in ((last, 0), (f"{label}  {first}", end + step * len(SIZES) + 8)):
        axes.annotate(
            text,
            (1, 1),
            (-left, 9),
            xycoords="axes fraction",
            ha="right",
            size=8.5,
            textcoords="offset points",
            color=MUTED,
            annotation_clip=False,
        )
