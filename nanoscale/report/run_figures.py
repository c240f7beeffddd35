"""The figures of a study, drawn from tables of runs and the JSON of a fit.

The one idea: everything is labelled where it is, so no figure has a legend, and what is not
known (a band, an extrapolation, a parameter that is not identified, a diverged run) looks it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from nanoscale.errors import UserError, did_you_mean
from nanoscale.report.style import (
    ACCENT,
    HEAT,
    INK,
    MUTED,
    PAPER,
    RULE,
    canvas,
    headed,
    log_axis,
    place,
    quantities,
    raised,
    size_colours,
    spread,
    styled,
    ticks_on,
)

MOST_LABELS, MOST_LETTERS = 20, 40  # at the ends of lines: the lowest ones, cut
HEAT_MARGIN = 48.0  # points, as its y axis is named beside it
Table = pd.DataFrame | Iterable[Mapping[str, object]]


def table_of(rows: Table, needed: Iterable[str]) -> pd.DataFrame:
    """`rows` as a DataFrame that has the `needed` columns."""
    table = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    for column in needed:
        if column not in table.columns:
            hint = did_you_mean(column, map(str, table.columns))
            raise UserError(f"the table has no column {column!r}{hint}")
    return table


def law_figure(
    points: Table,
    fit: Mapping[str, object] | None,
    *,
    x_label: str = "training compute C (FLOPs, exact, forward + backward)",
    y_label: str = "validation loss (nats per token)",
    title: str = "",
) -> Figure:
    """A ladder and the law through it on log axes; below, how far each run lies from the law.

    points: one row per run with `x`, `loss` and, if there are any, `size` and `seed`; runs without
    a finite loss are left out. fit: the JSON of a fit (equation, curve, params, ci95, status,
    not_identified), or None for the runs alone, as for a fit that did not converge.
    """
    table = _positive(table_of(points, ("x", "loss")), "x", "loss").sort_values("x", kind="stable")
    fit = None if fit and fit["status"] == "max_iter" else fit
    with styled():
        figure = canvas(7.6, 5.1 if fit else 4.0)
        heights = (3.6, 1) if fit else (1,)
        rows = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)
        top, bottom = rows[0, 0], rows[-1, 0]
        place(figure, title, hspace=0.24)
        if fit:
            _law(top, fit, table)
            _residuals(bottom, fit, table)
        _runs(top, table)
        _law_limits(top, fit, table)
        headed(top, title, y_label)
        bottom.set_xlabel(x_label, labelpad=6)
    return figure


def _positive(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The rows that log axes can show in every one of `columns`; at least one."""
    for column in columns:
        values = pd.to_numeric(table[column], errors="coerce")
        table = table.assign(**{column: values})[np.isfinite(values) & (values > 0)]
        if table.empty:
            raise UserError(f"no run has a positive finite {column!r}: there is nothing to draw")
    return table


def _sizes(table: pd.DataFrame, column: str = "size") -> list[tuple[object, pd.DataFrame, str]]:
    """(label, its rows, colour) in the order of the table; every row alone without `column`."""
    keys = table[column] if column in table.columns else table["x"]
    groups = [(key, table[keys == key]) for key in dict.fromkeys(keys)]
    return [(*g, c) for g, c in zip(groups, size_colours(len(groups)), strict=True)]


def _runs(axes: Axes, table: pd.DataFrame) -> None:
    labelled = "size" in table.columns
    for label, rows, colour in _sizes(table):
        _dots(axes, rows["x"], rows["loss"], colour)
        seeds = f"\n{len(rows)} seeds" if len(rows) > 1 else ""
        axes.annotate(
            f"{label if labelled else ''}{seeds}", (rows["x"].iloc[0], rows["loss"].min()),
            (0, -9), textcoords="offset points", ha="center", va="top", color=MUTED, size=8,
        )  # fmt: skip


def _dots(axes: Axes, x: Iterable[float], y: Iterable[float], colour: str) -> None:
    axes.plot(
        x, y, "o", color=colour, markersize=6, markeredgecolor=PAPER, markeredgewidth=0.8, zorder=4
    )


def _law(axes: Axes, fit: Mapping, table: pd.DataFrame) -> None:
    """Curve and band, solid and dark where there are runs, dashed and faint beyond; E, if known."""
    curve = {k: np.array(v, float) for k, v in fit["curve"].items()}
    inside = curve["x"] <= table["x"].max() * 1.0001
    beyond = ~inside
    beyond[np.flatnonzero(inside)[-1]] = True
    for part, alpha, dash in ((inside, 0.16, "-"), (beyond, 0.08, (0, (4, 3)))):
        x, loss, low, high = (curve[k][part] for k in ("x", "loss", "lo", "hi"))
        axes.fill_between(x, low, high, color=INK, alpha=alpha, linewidth=0, zorder=1)
        axes.plot(x, loss, color=INK, linewidth=1.3, linestyle=dash, zorder=3)
    middle = np.flatnonzero(beyond)[beyond.sum() // 2]
    axes.annotate(
        "extrapolated", (curve["x"][middle], curve["hi"][middle]), (0, 5), color=MUTED,
        textcoords="offset points", ha="center", va="bottom", size=8, style="italic",
    )  # fmt: skip
    notes = [raised(fit["equation"]), "band: 95 % interval", *_unknown(fit)]
    for row, note in enumerate(notes):
        axes.annotate(
            note, (1, 1), (0, -2 - 14 * row), xycoords="axes fraction", ha="right", va="top",
            textcoords="offset points", color=MUTED if row else INK, size=8 if row else 10,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
    if "E" in fit["params"] and "E" not in fit["not_identified"]:
        _floor(axes, fit["params"]["E"], fit["ci95"]["E"])


def _unknown(fit: Mapping) -> list[str]:
    return [f"{', '.join(fit['not_identified'])} not identified"] if fit["not_identified"] else []


def _floor(axes: Axes, value: float, ends: list[float]) -> None:
    axes.axhline(value, color=ACCENT, linewidth=1, linestyle=(0, (5, 3)), zorder=2)
    axes.annotate(
        f"E = {value:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]", (0, value), (4, 4), color=ACCENT,
        xycoords=axes.get_yaxis_transform(), textcoords="offset points", size=8,
    )  # fmt: skip


def _law_limits(axes: Axes, fit: Mapping | None, table: pd.DataFrame) -> None:
    x, loss = [table["x"].min() * 0.7, table["x"].max() * 1.4], list(table["loss"])
    if fit:
        x = [fit["curve"]["x"][0], fit["curve"]["x"][-1]]
        loss += [fit["curve"]["loss"][-1], fit["curve"]["lo"][-1]]
        known = "E" in fit["params"] and "E" not in fit["not_identified"]
        loss += [fit["params"]["E"]] if known else []
    room = (max(loss) / min(loss)) ** 0.09
    log_axis(axes, "x", *x)
    log_axis(axes, "y", min(loss) / room**1.4, max(loss) * room)
    axes.grid(axis="y", color=RULE, linewidth=0.6)


def _residuals(axes: Axes, fit: Mapping, table: pd.DataFrame) -> None:
    """Loss over law, in per cent, read off the fit's own curve."""
    x, loss = (np.log(np.array(fit["curve"][k], float)) for k in ("x", "loss"))
    low, high = (np.log(np.array(fit["curve"][k], float)) for k in ("lo", "hi"))
    inside = np.exp(x) <= table["x"].max() * 1.2
    axes.axhline(0, color=INK, linewidth=0.8, zorder=2)
    axes.fill_between(
        np.exp(x[inside]), *(100 * np.expm1(b - loss)[inside] for b in (low, high)),
        color=INK, alpha=0.16, linewidth=0, zorder=1,
    )  # fmt: skip
    worst = 0.0
    for _, rows, colour in _sizes(table):
        law = np.interp(np.log(rows["x"]), x, loss)
        off = 100 * np.expm1(np.log(rows["loss"]) - law)
        _dots(axes, rows["x"], off, colour)
        worst = max(worst, off.abs().max())
    limit = 1.35 * max(worst, 1e-6)
    axes.set_ylim(-limit, limit)
    step = float(f"{worst:.1g}")
    ticks_on(axes.yaxis, [-step, 0, step])
    headed(axes, "", "run over law (%)")


def loss_curves_figure(
    rows: Table,
    *,
    x: str = "tokens_seen",
    y: str = "val_loss",
    run: str = "run",
    size: str = "size",
    x_label: str = "tokens seen",
    y_label: str = "validation loss (nats per token)",
    title: str = "",
) -> Figure:
    """Every run's loss against tokens (or steps, or FLOPs) on log axes, sizes in order.

    rows: one per evaluation, with the columns named; runs of one `size` share a colour and one
    label, at the end of their lowest run. Rows without a loss, or at x = 0, are left out.
    """
    table = _positive(table_of(rows, (x, y, run)), x, y).sort_values(x, kind="stable")
    group = size if size in table.columns else run
    with styled():
        figure = canvas(7.6, 4.4)
        axes = figure.add_subplot()
        place(figure, title, right=_label_room(table[group]))
        ends = _curves(axes, table, x, y, run, group)
        log_axis(axes, "x", table[x].min() / 1.1, table[x].max() * 1.05)
        log_axis(axes, "y", table[y].min() / 1.03, table[y].quantile(0.98) * 1.05)
        axes.grid(axis="y", color=RULE, linewidth=0.6)
        _end_labels(axes, ends)
        headed(axes, title, y_label)
        axes.set_xlabel(x_label, labelpad=6)
    return figure


def _curves(
    axes: Axes, table: pd.DataFrame, x: str, y: str, run: str, group: str
) -> list[tuple[str, float, float]]:
    """Draw every run; (label, x, y) of the end of each group's lowest run."""
    order = table.groupby(group, sort=False)[x].max().sort_values(kind="stable").index
    ends = []
    for key, colour in zip(order, size_colours(len(order)), strict=True):
        runs = [one for _, one in table[table[group] == key].groupby(run, sort=False)]
        for one in runs:
            axes.plot(one[x], one[y], color=colour, linewidth=1.3)
            _dots(axes, one[x].iloc[-1:], one[y].iloc[-1:], colour)
        last = min((one.iloc[-1] for one in runs), key=lambda end: end[y])
        ends.append((_shortened(key), last[x], last[y]))
    lowest = sorted(ends, key=lambda end: end[2])[:MOST_LABELS]
    return [end for end in ends if end in lowest]


def _label_room(names: Iterable[object]) -> float:
    """Points to keep free at the right for the longest of the labels."""
    return 14 + 5 * max((len(_shortened(name)) for name in names), default=0)


def _shortened(name: object) -> str:
    return text if len(text := str(name)) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 1]}…"


def _end_labels(axes: Axes, ends: list[tuple[str, float, float]]) -> None:
    """One label per line at the right edge, moved apart where they would touch."""
    height = axes.bbox.height / axes.figure.dpi * 72  # points
    to_axes = axes.transData.transform([(x, y) for _, x, y in ends])
    places = axes.transAxes.inverted().transform(to_axes)
    moved = spread(places[:, 1].tolist(), 11 / height)
    for (label, x, y), at in zip(ends, moved, strict=True):
        axes.annotate(
            label, (x, y), (1.015, at), xycoords="data", textcoords="axes fraction",
            color=MUTED, size=8, va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": RULE, "linewidth": 0.6, "shrinkB": 5},
        )  # fmt: skip


def lines_figure(
    rows: Table,
    *,
    x: str,
    y: Mapping[str, str],
    group: str | None = None,
    x_label: str = "",
    mark_lowest: bool = False,
    title: str = "",
) -> Figure:
    """Measured quantities against one knob (batch size, depth, ...), a panel per quantity.

    rows: one per run. y: column -> label of its panel. group: one line per value of that column;
    runs at one x and group are drawn as dots and joined at their mean. `mark_lowest` rings each
    line's minimum: where a learning rate is best, say.
    """
    table = table_of(rows, (x, *y, *([group] if group else ())))
    table = table.sort_values(x, kind="stable")
    with styled():
        figure = canvas(7.6, 3.7)
        panels = figure.subplots(1, len(y), squeeze=False)[0]
        place(figure, title, right=_label_room(table[group]) if group else 8, wspace=0.3)
        for i, (axes, (column, label)) in enumerate(zip(panels, y.items(), strict=True)):
            _panel(axes, table, x, column, group, mark_lowest)
            headed(axes, "" if i else title, label)
            axes.set_xlabel(x_label or x, labelpad=6)
    return figure


def _panel(axes: Axes, table: pd.DataFrame, x: str, y: str, group: str | None, ring: bool) -> None:
    table = _positive(table, x)
    table = table[np.isfinite(table[y].astype(float))]
    keys = sorted(table[group].unique()) if group else [None]
    ends = []
    for key, colour in zip(keys, size_colours(len(keys)), strict=True):
        rows = table if group is None else table[table[group] == key]
        mean = rows.groupby(x)[y].mean()
        axes.plot(mean.index, mean, color=colour, linewidth=1.3)
        _dots(axes, rows[x], rows[y], colour)
        if ring:
            axes.plot(mean.idxmin(), mean.min(), "o", markersize=11, color=ACCENT, fillstyle="none")
        ends.append((quantities([key])[0], mean.index[-1], mean.iloc[-1]))
    margin = (table[x].max() / table[x].min()) ** 0.06
    log_axis(axes, "x", table[x].min() / margin, table[x].max() * margin)
    values = sorted(table[x].unique())
    if len(values) <= 7:
        ticks_on(axes.xaxis, values)
    axes.margins(y=0.12)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    if group:
        _end_labels(axes, ends)


def heatmap_figure(
    rows: Table,
    x: str,
    y: str,
    value: str,
    *,
    x_label: str = "",
    y_label: str = "",
    value_label: str = "validation loss (nats per token)",
    title: str = "",
) -> Figure:
    """The loss over a grid of two knobs, learning rate by weight decay say; lower is better.

    rows: one per run; runs of one cell are averaged. The best cell is framed, a cell without a
    finite value (diverged, or not run) is hatched. Shades run from the best to twice the median's
    distance from it, so that one bad corner does not hide the valley.
    """
    table = table_of(rows, (x, y, value))
    losses = pd.to_numeric(table[value], errors="coerce")
    grid = losses.groupby([table[y], table[x]]).mean(skipna=False).unstack()
    with styled():
        figure = canvas(min(7.6, 1.6 + 0.86 * grid.shape[1]), 1.25 + 0.44 * grid.shape[0])
        axes = figure.add_subplot()
        place(figure, title, left=HEAT_MARGIN)
        _cells(axes, grid.to_numpy())
        ticks_on(axes.xaxis, range(grid.shape[1]), quantities(grid.columns))
        ticks_on(axes.yaxis, range(grid.shape[0]), quantities(grid.index))
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)
        axes.set_xlabel(x_label or x, labelpad=6)
        axes.set_ylabel(y_label or y, labelpad=6)
        headed(axes, title, value_label, left=HEAT_MARGIN)
    return figure


def _cells(axes: Axes, values: np.ndarray) -> None:
    known = values[np.isfinite(values)]
    if not len(known):
        raise UserError("no run of the grid has a finite value; lower the learning rates")
    best = known.min()
    reach = max(2 * (np.median(known) - best), 1e-12)
    decimals = max(0, 3 - int(np.floor(np.log10(best)))) if best > 0 else 3
    for (row, column), value in np.ndenumerate(values):
        corner = (column - 0.5, row - 0.5)
        if not np.isfinite(value):
            axes.add_patch(
                Rectangle(
                    corner,
                    1,
                    1,
                    facecolor="none",
                    edgecolor=MUTED,
                    hatch="////",
                    alpha=0.7,
                    linewidth=0,
                )
            )
            continue
        shade = round((1 - min((value - best) / reach, 1)) * (len(HEAT) - 1))
        axes.add_patch(Rectangle(corner, 1, 1, facecolor=HEAT[shade], edgecolor=PAPER))
        axes.text(
            column, row, f"{value:.{decimals}f}", ha="center", va="center", size=8.5,
            color=PAPER if shade >= 4 else INK, weight="bold" if value == best else "normal",
        )  # fmt: skip
    row, column = np.argwhere(values == best)[0]
    axes.add_patch(
        Rectangle(
            (column - 0.5, row - 0.5),
            1,
            1,
            fill=False,
            edgecolor=ACCENT,
            linewidth=2,
            clip_on=False,
        )
    )
    axes.set_xlim(-0.5, values.shape[1] - 0.5)
    axes.set_ylim(-0.5, values.shape[0] - 0.5)
