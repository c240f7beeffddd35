"""What a search found: loss against each key, and over the two that matter most.

The one idea: a search's answer is a valley per key, so each has a panel of its own over one loss
axis, the most important first. Trials that went further (rungs) are drawn stronger; the best is the
diamond.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

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
    log_axis,
    styled,
)

ACROSS = 3  # panels in a row
MOST = 6  # keys shown
SHOWN = 0.75  # share of the losses, from the best, that the loss axis holds
LEVELS = len(HEAT)


def search_figure(
    trials: Sequence[Mapping[str, Any]],
    space: Mapping[str, Any],
    importance: Mapping[str, float] | None = None,
) -> Figure:
    """A panel per key: loss of every trial against its value.

    trials: `{"values": {key: value}, "losses": [one per rung reached]}`; space: key -> list of
    choices, or {"low", "high", "log"}; importance: key -> share.
    """
    done = finished(trials)
    keys = ranked(space, importance)[:MOST]
    losses = np.array([t["losses"][-1] for t in done])
    low, high = losses.min(), float(np.quantile(losses, SHOWN))
    room = max(high - low, 1e-3 * abs(low))
    across = min(len(keys), ACROSS)
    down = math.ceil(len(keys) / across)
    with styled():
        figure = canvas(3.1 * across + 0.6, 2.7 * down + 0.3)
        grid = figure.subplots(down, across, squeeze=False, sharey=True)
        width, height = figure.get_size_inches() * 72
        figure.subplots_adjust(
            MARGIN / width, 42 / height, 1 - 10 / width, 1 - 40 / height, wspace=0.08, hspace=0.62
        )
        for i, axes in enumerate(grid.flat):
            if i >= len(keys):
                axes.set_visible(False)
                continue
            _slice(axes, keys[i], space[keys[i]], done)
            axes.set_ylim(low - 0.06 * room, high + 0.10 * room)
            share = (
                f"   {100 * importance[keys[i]]:.0f} % of the difference"
                if importance and keys[i] in importance
                else ""
            )
            axes.set_title(keys[i], loc="left", size=9, color=INK, weight="bold", pad=6)
            axes.text(1, 1.04, share, transform=axes.transAxes, ha="right", color=MUTED, size=8)
        grid[0, 0].text(
            0,
            1.20,
            "validation loss (nats per token)",
            ha="left",
            color=MUTED,
            transform=grid[0, 0].transAxes,
        )
    return figure


def contour_figure(
    trials: Sequence[Mapping[str, Any]],
    space: Mapping[str, Any],
    importance: Mapping[str, float] | None = None,
) -> Figure | None:
    """The loss over the two most important ranges, from the trials that went furthest; None where
    there are fewer than two ranges or ten trials.
    """
    keys = [key for key in ranked(space, importance) if isinstance(space[key], Mapping)][:2]
    done = finished(trials)
    if len(keys) < 2 or len(done) < 10:
        return None
    x, y = (np.array([float(t["values"][key]) for t in done]) for key in keys)
    losses = np.array([t["losses"][0] for t in done])
    top = np.quantile(losses, SHOWN)
    with styled():
        figure = canvas(5.4, 4.2)
        axes = figure.subplots()
        u, v = (_unit(values, space[key]) for values, key in zip((x, y), keys, strict=True))
        mesh = np.linspace(0, 1, 80)
        surface = np.minimum(smooth(u, v, losses, mesh), top)
        levels = np.linspace(losses.min(), top, LEVELS + 1)
        gx, gy = (_value(mesh, space[key]) for key in keys)
        axes.contourf(
            gx, gy, surface, levels=levels, cmap=ListedColormap(HEAT[::-1]), extend="both"
        )
        axes.plot(x, y, "o", color=INK, markersize=3, markeredgecolor=PAPER, markeredgewidth=0.5)
        best = int(np.argmin([t["losses"][-1] - 10 * len(t["losses"]) for t in done]))
        axes.plot(x[best], y[best], "D", color=ACCENT, markersize=7, markeredgecolor=PAPER)
        for name, key in zip("xy", keys, strict=True):
            if space[key].get("log"):
                log_axis(axes, name, space[key]["low"], space[key]["high"])
            else:
                getattr(axes, f"set_{name}lim")(space[key]["low"], space[key]["high"])
        axes.set_xlabel(keys[0])
        axes.set_title(keys[1], loc="left", size=9, color=MUTED)
    return figure


def finished(trials: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The trials with a finite loss."""
    done = [t for t in trials if t["losses"] and math.isfinite(t["losses"][-1] or math.nan)]
    if not done:
        raise UserError("no trial has a finite loss: there is nothing to draw")
    return done


def ranked(space: Mapping[str, Any], importance: Mapping[str, float] | None) -> list[str]:
    """The keys, the most important first."""
    return sorted(space, key=lambda key: -(importance or {}).get(key, 0.0))


def smooth(u: np.ndarray, v: np.ndarray, losses: np.ndarray, mesh: np.ndarray) -> np.ndarray:
    """(mesh, mesh) losses by a kernel as wide as trials are apart, so that noise makes no hills."""
    width = 0.6 / math.sqrt(len(u))
    du, dv = mesh[:, None] - u, mesh[:, None] - v
    weights = np.exp(-(dv[:, None] ** 2 + du[None] ** 2) / (2 * width**2)) + 1e-9
    return weights @ losses / weights.sum(-1)


def _unit(values: np.ndarray, span: Mapping[str, Any]) -> np.ndarray:
    low, high = span["low"], span["high"]
    if span.get("log"):
        return np.log(values / low) / math.log(high / low)
    return (values - low) / (high - low)


def _value(unit: np.ndarray, span: Mapping[str, Any]) -> np.ndarray:
    low, high = span["low"], span["high"]
    return low * (high / low) ** unit if span.get("log") else low + unit * (high - low)


def _slice(axes: Axes, key: str, span: Any, done: Sequence[Mapping[str, Any]]) -> None:
    """One key's panel."""
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    choices = None if isinstance(span, Mapping) else list(span)
    where = [choices.index(t["values"][key]) if choices else float(t["values"][key]) for t in done]
    most = max(len(t["losses"]) for t in done)
    for rung in range(1, most + 1):
        chosen = [i for i, t in enumerate(done) if len(t["losses"]) == rung]
        colour = SIZES[min(len(SIZES) - 1, 2 + 2 * rung)] if most > 1 else SIZES[4]
        axes.plot(
            [where[i] for i in chosen],
            [done[i]["losses"][-1] for i in chosen],
            "o",
            color=colour,
            markersize=3 + 1.2 * rung,
            markeredgecolor=PAPER,
            markeredgewidth=0.6,
            alpha=0.55 + 0.45 * rung / most,
        )
    best = min(range(len(done)), key=lambda i: (-len(done[i]["losses"]), done[i]["losses"][-1]))
    axes.plot(
        where[best],
        done[best]["losses"][-1],
        "D",
        color=ACCENT,
        markersize=7,
        markeredgecolor=PAPER,
    )
    if choices:
        axes.set_xticks(range(len(choices)), [str(c) for c in choices])
        axes.set_xlim(-0.5, len(choices) - 0.5)
    elif span.get("log"):
        log_axis(axes, "x", span["low"], span["high"])
    else:
        axes.set_xlim(span["low"], span["high"])
