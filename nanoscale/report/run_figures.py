"""What a study's runs measured, drawn from tables of them: curves, lines, a grid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nanoscale.checks.best_setting import may_be_best
from nanoscale.errors import UserError, did_you_mean
from nanoscale.experiments.replicates import candidates, replicates_of
from nanoscale.report.links import series
from nanoscale.report.marks import End, end_labels, headed, label, mark
from nanoscale.report.style import (
    ACCENT,
    HEAT,
    INK,
    LOSS,
    LOSS_NAMES,
    MUTED,
    PAPER,
    WIDTH,
    linear_ticks,
    log_axis,
    quantities,
    sheet,
    size_colours,
    styled,
    ticks_on,
)
from nanoscale.spec.values import Json

MOST_LABELS, MOST_LETTERS = 20, 40  # at the ends of lines: the lowest ones, cut
MOST_TICKS = 7  # values of x that are all on its axis
HEAT_MARGIN = 48.0  # points, as its y axis is named beside it
Table = pd.DataFrame | Iterable[Mapping[str, Json]]  # a row per run, say


# -- tables -------------------------------------------------------------------------------------
def table_of(rows: Table, needed: Iterable[str]) -> pd.DataFrame:
    """`rows` as a DataFrame that has the `needed` columns."""
    table = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    for column in needed:
        if column not in table.columns:
            hint = did_you_mean(column, map(str, table.columns))
            raise UserError(f"the table has no column {column!r}{hint}")
    return table


def positive(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The rows that log axes can show in every one of `columns`; at least one."""
    for column in columns:
        values = pd.to_numeric(table[column], errors="coerce")
        table = table.assign(**{column: values})[np.isfinite(values) & (values > 0)]
        if table.empty:
            raise UserError(f"no run has a positive finite {column!r}: there is nothing to draw")
    return table


# -- curves -------------------------------------------------------------------------------------
@styled()
def loss_curves_figure(rows: Table, value: str = "val_loss") -> Figure:
    """Every run's loss against tokens on log axes, sizes in order.

    rows: one per evaluation, with `run`, `tokens_seen`, the `value` that is drawn and, if there are
    any, `size`; runs of one size share a colour and one label, at the end of their lowest run. Rows
    without a loss, or before the first token, are left out.
    """
    table = table_of(rows, ("tokens_seen", value, "run"))
    table = positive(table, "tokens_seen", value).sort_values("tokens_seen", kind="stable")
    group = "size" if "size" in table.columns else "run"
    tokens, loss = table["tokens_seen"], table[value]
    figure, (axes,) = sheet(WIDTH, 4.4, right=_room_for(table[group]))
    ends = _curves(axes, table, group, value)
    log_axis(axes, "x", tokens.min() / 1.1, tokens.max() * 1.05)
    high = max(loss.quantile(0.98), table.groupby("run")[value].last().max())
    log_axis(axes, "y", loss.min() / 1.03, high * 1.05)
    end_labels(axes, ends)
    headed(axes, f"{LOSS_NAMES[value]} (nats per token)", "tokens seen")
    return figure


def _curves(axes: Axes, table: pd.DataFrame, group: str, value: str) -> list[End]:
    """Draw every run; the end of each group's lowest run, of the lowest groups if they are many."""
    groups = sorted(table.groupby(group, sort=False), key=lambda of: of[1]["tokens_seen"].max())
    ends = []
    for (key, rows), colour in zip(groups, size_colours(len(groups)), strict=True):
        finals = []
        for name, run in rows.groupby("run", sort=False):
            last = run.iloc[-1]
            end = End(_shortened(key), last["tokens_seen"], last[value])
            with series(axes, end.text):
                axes.plot(run["tokens_seen"], run[value], color=colour, linewidth=1.3, label=name)
                mark(axes, end.x, end.y, colour, label=name)
            finals.append(end)
        ends.append(min(finals, key=attrgetter("y")))

    lowest = sorted(ends, key=attrgetter("y"))[:MOST_LABELS]
    return [end for end in ends if end in lowest]


def _room_for(names: Iterable[object]) -> float:
    """Points to keep free at the right for the longest of the labels."""
    return 14 + 5 * max((len(_shortened(name)) for name in names), default=0)


def _shortened(name: object) -> str:
    text = str(name)
    return text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 1]}…"


# -- lines --------------------------------------------------------------------------------------
@styled()
def lines_figure(
    rows: Table,
    *,
    x: str,
    y: Mapping[str, str],
    group: str | None = None,
    x_label: str = "",
    mark_lowest: bool = False,
) -> Figure:
    """Measured quantities against one knob (batch size, depth, ...), a panel per quantity.

    Runs at one x and group are drawn as dots and joined at their mean.

    Args:
        rows: one per run.
        x: the column of the knob, and `x_label` what the axis says.
        y: column -> label of its panel.
        group: one line per value of that column.
        mark_lowest: ring each line's minimum: where a learning rate is best, say.

    >>> import nanoscale as ns
    >>> runs = [{"batch_size": b, "val_loss": 2 + 0.1 / b} for b in (8, 16, 32)]
    >>> figure = ns.lines_figure(runs, x="batch_size", y={"val_loss": "loss (nats)"})
    >>> figure.savefig("batch.png")
    """
    table = table_of(rows, (x, *y)).sort_values(x, kind="stable")
    right = 8.0
    if group:
        table = table_of(table, [group])
        right = _room_for(table[group])
    figure, grid = sheet(WIDTH, 3.7, len(y), across=len(y), right=right, wspace=0.3)
    for axes, (column, name) in zip(grid, y.items(), strict=True):
        measured = positive(table, x)
        measured = measured[np.isfinite(measured[column].astype(float))]
        ends = _lines(axes, measured, x, column, group, mark_lowest)
        _knob(axes, measured[x])
        if group:
            end_labels(axes, ends)
        headed(axes, name, x_label or x)
    return figure


def _lines(
    axes: Axes, table: pd.DataFrame, x: str, y: str, group: str | None, ring: bool
) -> list[End]:
    """One for each value of `group`; where they end."""
    groups = list(table.groupby(group)) if group else [(None, table)]
    ends = []
    for (key, rows), colour in zip(groups, size_colours(len(groups)), strict=True):
        mean = rows.groupby(x)[y].mean()
        at, values = mean.index.to_numpy(), mean.to_numpy()
        end = End(quantities([key])[0], at[-1], values[-1])
        with series(axes, end.text):
            axes.plot(at, values, color=colour, linewidth=1.3)
            mark(axes, rows[x], rows[y], colour)
        if ring:
            best = values.argmin()
            axes.plot(at[best], values[best], "o", markersize=11, color=ACCENT, fillstyle="none")
        ends.append(end)
    return ends


def _knob(axes: Axes, values: pd.Series) -> None:
    """Axes of a quantity over a knob that took these values."""
    margin = (values.max() / values.min()) ** 0.06
    log_axis(axes, "x", values.min() / margin, values.max() * margin)
    distinct = sorted(values.unique())
    if len(distinct) <= MOST_TICKS:
        ticks_on(axes.xaxis, distinct)
    axes.margins(y=0.12)
    linear_ticks(axes.yaxis, 5)


# -- a grid -------------------------------------------------------------------------------------
@styled()
def heatmap_figure(rows: Table, x: str, y: str, value: str) -> Figure:
    """The loss over a grid of two knobs, learning rate by weight decay say; lower is better.

    The best cell is framed, with a dotted line every one that is tied with it (`ns.rank`); a cell
    without a finite value (a run diverged, or has not run) is hatched. Shades run from the best to
    twice the median's distance from it, so that one bad corner does not hide the valley.

    Args:
        rows: one per run; runs of one cell, over seeds, are averaged.
        x, y: the columns of the two knobs.
        value: the column of the loss.

    >>> import nanoscale as ns
    >>> runs = [{"lr": lr, "wd": wd, "loss": 2 + lr + wd} for lr in (0.1, 0.2) for wd in (0, 1)]
    >>> figure = ns.heatmap_figure(runs, "lr", "wd", "loss")
    """
    table = table_of(rows, (x, y, value))
    losses = pd.to_numeric(table[value], errors="coerce")
    cells = losses.groupby([table[y], table[x]])
    grid = cells.mean(skipna=False).unstack()
    down, across = grid.shape
    width = min(WIDTH, 1.6 + 0.86 * across)
    figure, (axes,) = sheet(width, 1.25 + 0.44 * down, left=HEAT_MARGIN)
    _cells(axes, grid.to_numpy())
    _frame_best(axes, grid, table.assign(**{value: losses}), [y, x], value)
    axes.set(xlim=(-0.5, across - 0.5), ylim=(-0.5, down - 0.5))
    ticks_on(axes.xaxis, range(across), quantities(list(grid.columns)))
    ticks_on(axes.yaxis, range(down), quantities(list(grid.index)))
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_ylabel(y)
    headed(axes, LOSS, x, left=HEAT_MARGIN)
    return figure


def _cells(axes: Axes, values: np.ndarray) -> None:
    known = values[np.isfinite(values)]
    if not len(known):
        raise UserError("no run of the grid has a finite value; lower the learning rates")
    best = known.min()
    reach = max(2 * (np.median(known) - best), 1e-12)
    decimals = max(0, 3 - int(np.floor(np.log10(best)))) if best > 0 else 3
    for place, value in np.ndenumerate(values):
        if not np.isfinite(value):
            _frame(
                axes,
                place,
                facecolor="none",
                edgecolor=MUTED,
                hatch="////",
                alpha=0.7,
                linewidth=0,
            )
            continue
        shade = round((1 - min((value - best) / reach, 1)) * (len(HEAT) - 1))
        _frame(axes, place, facecolor=HEAT[shade], edgecolor=PAPER)
        label(
            axes,
            f"{value:.{decimals}f}",
            place[::-1],
            on="data",
            colour=PAPER if shade >= 4 else INK,
            size=8.5,
            ha="center",
            va="center",
            weight="bold" if value == best else "normal",
        )


def _frame_best(
    axes: Axes, grid: pd.DataFrame, table: pd.DataFrame, keys: Sequence[str], value: str
) -> None:
    """A frame about the best cell; a dotted one about each that is tied with it."""
    settings = candidates(replicates_of(table.to_dict("records"), keys, value))
    stays = may_be_best([setting.losses for setting in settings])
    values = grid.to_numpy()
    down: list[Any] = list(grid.index)
    across: list[Any] = list(grid.columns)
    known: list[tuple[int, int]] = []
    for setting, may_be in zip(settings, stays, strict=True):
        row, column = map(setting.values.get, keys)
        place = (down.index(row), across.index(column))
        told_apart = len(setting.losses) > 1 or not known
        if np.isfinite(values[place]) and may_be and told_apart:
            known.append(place)
    for place in reversed(known):  # the best one's over its neighbours'
        line = "-" if place == known[0] else ":"
        _frame(
            axes, place, fill=False, edgecolor=ACCENT, linewidth=2, linestyle=line, clip_on=False
        )


def _frame(axes: Axes, place: Sequence[int], **look: Any) -> None:
    """A cell's edges."""
    row, column = place
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **look))
