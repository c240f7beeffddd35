"""What a search found: loss against each key, and over the two that matter most.

The one idea: a search's answer is a valley per key, so each has a panel of its own over one loss
axis, the most important first. Trials that went further (rungs) are drawn stronger; the best is the
diamond.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from nanoscale.errors import UserError
from nanoscale.report.marks import label, mark
from nanoscale.report.style import (
    ACCENT,
    HEAT,
    INK,
    LOSS,
    MUTED,
    SIZES,
    TWO_HEADS,
    XY,
    canvas,
    log_axis,
    sheet,
    styled,
)
from nanoscale.spec.values import Json

if TYPE_CHECKING:
    from nanoscale.experiments.records import SearchOutcome, TrialResult

_ACROSS = 3  # panels in a row
MOST = 6  # keys shown
_SHOWN = 0.75  # share of the losses, from the best, that the loss axis holds
LEVELS = len(HEAT)
_MESH = 80  # points of a side of the smooth surface
_FEWEST = 10  # trials for one
_Domain = Sequence[Json] | Mapping[str, float]  # choices, or low, high and whether by its log
_Domains = Mapping[str, _Domain]  # of the keys that were searched


@dataclass(frozen=True)
class _Range:
    low: float
    high: float
    log: bool = False

    def unit(self, values: np.ndarray) -> np.ndarray:
        """From 0 at the low end to 1 at the high one."""
        scale = np.log if self.log else np.asarray
        low, high = scale(self.low), scale(self.high)
        units: np.ndarray = (scale(values) - low) / (high - low)
        return units

    def mesh(self) -> np.ndarray:
        """Values in even steps."""
        spaced = np.geomspace if self.log else np.linspace
        return spaced(self.low, self.high, _MESH)

    def on(self, axes: Axes, which: XY) -> None:
        """Make it the x or y axis."""
        if self.log:
            log_axis(axes, which, self.low, self.high)
        else:
            axes.set(**{f"{which}lim": (self.low, self.high)})


@dataclass(frozen=True)
class _Trial:
    """One with a finite loss."""

    values: Mapping[str, Json]
    loss: float  # at the furthest rung
    first: float
    rungs: int


@styled()
def search_figure(found: SearchOutcome, space: _Domains) -> Figure:
    """A panel per key: loss of every trial against its value."""
    trials = _finished(found.trials)
    importance = found.importance or {}
    keys = _ranked(space, importance)[:MOST]
    losses = [trial.loss for trial in trials]
    low, high = min(losses), float(np.quantile(losses, _SHOWN))
    room = max(high - low, 1e-3 * abs(low))
    across = min(len(keys), _ACROSS)
    down = math.ceil(len(keys) / across)
    figure, grid = sheet(
        3.1 * across + 0.6,
        2.7 * down + 0.3,
        len(keys),
        across,
        above=TWO_HEADS,
        right=10,
        below=42,
        wspace=0.08,
        hspace=0.62,
        sharey=True,
    )
    for axes, key in zip(grid, keys, strict=True):
        _slice(axes, key, space[key], trials)
        axes.set_title(key, loc="left", size=9, color=INK, weight="bold", pad=6)
        if key in importance:
            share = f"{100 * importance[key]:.0f} % of the difference"
            label(axes, share, (1, 1.04), ha="right")
    grid[0].set_ylim(low - 0.06 * room, high + 0.10 * room)
    label(grid[0], LOSS, (0, 1.20), size=9)
    return figure


@styled()
def contour_figure(found: SearchOutcome, space: _Domains) -> Figure | None:
    """The loss over the two most important ranges, smoothed, at the first rung; points are trials.

    None where there are fewer than two ranges or ten trials.
    """
    trials = _finished(found.trials)
    ranges = []
    for key in _ranked(space, found.importance or {}):
        known = _range_of(space[key])
        if known is not None:
            ranges.append((key, known))
    if len(ranges) < 2 or len(trials) < _FEWEST:
        return None
    (x_key, x_range), (y_key, y_range) = ranges[:2]
    x, y = _numbers(trials, x_key), _numbers(trials, y_key)
    losses = np.array([trial.first for trial in trials])
    top = float(np.quantile(losses, _SHOWN))
    surface = smooth(x_range.unit(x), y_range.unit(y), losses, np.linspace(0, 1, _MESH))
    figure = canvas(5.4, 4.2)
    axes = figure.subplots()
    axes.contourf(
        x_range.mesh(),
        y_range.mesh(),
        np.minimum(surface, top),
        levels=np.linspace(losses.min(), top, LEVELS + 1),
        cmap=ListedColormap(HEAT[::-1]),
        extend="both",
    )
    mark(axes, x, y, INK, size=3, rim=0.5, zorder=2)
    best = _best(trials)
    mark(axes, x[best], y[best], ACCENT, shape="D", size=7, rim=1, zorder=2)
    x_range.on(axes, "x")
    y_range.on(axes, "y")
    axes.set_xlabel(x_key, labelpad=4)
    axes.set_title(y_key, loc="left", size=9, color=MUTED)
    return figure


def smooth(u: np.ndarray, v: np.ndarray, losses: np.ndarray, mesh: np.ndarray) -> np.ndarray:
    """(v, u) losses by a kernel as wide as trials are apart, so that noise makes no hills."""
    width = 0.6 / math.sqrt(len(u))
    du, dv = mesh[:, None] - u, mesh[:, None] - v  # (mesh, trials)
    squared = dv[:, None] ** 2 + du[None] ** 2
    weights = np.exp(-squared / (2 * width**2)) + 1e-9
    smooth: np.ndarray = weights @ losses / weights.sum(-1)
    return smooth


def _slice(axes: Axes, key: str, domain: _Domain, trials: Sequence[_Trial]) -> None:
    """One key's panel."""
    axes.grid(axis="y")
    known = _range_of(domain)
    if known is None:
        choices = list(domain)
        where = np.array([choices.index(trial.values[key]) for trial in trials])
        axes.set_xticks(range(len(choices)), list(map(str, choices)))
        axes.set_xlim(-0.5, len(choices) - 0.5)
    else:
        where = _numbers(trials, key)
        known.on(axes, "x")

    losses = np.array([trial.loss for trial in trials])
    rungs = np.array([trial.rungs for trial in trials])
    most = rungs.max()
    for rung in range(1, most + 1):
        here = rungs == rung
        mark(
            axes,
            where[here],
            losses[here],
            SIZES[min(len(SIZES) - 1, 2 + 2 * rung)] if most > 1 else SIZES[4],
            size=3 + 1.2 * rung,
            rim=0.6,
            alpha=0.55 + 0.45 * rung / most,
            zorder=2,
        )
    best = _best(trials)
    mark(axes, where[best], losses[best], ACCENT, shape="D", size=7, rim=1, zorder=2)


# -- trials -------------------------------------------------------------------------------------
def _finished(trials: Sequence[TrialResult]) -> list[_Trial]:
    done = []
    for trial in trials:
        losses = [math.nan if loss is None else loss for loss in trial.losses]
        if losses and math.isfinite(losses[-1]):
            done.append(_Trial(trial.values, losses[-1], losses[0], len(losses)))
    if not done:
        raise UserError("no trial has a finite loss: there is nothing to draw")
    return done


def _best(trials: Sequence[_Trial]) -> int:
    """The lowest of those that went furthest."""
    return min(range(len(trials)), key=lambda i: (-trials[i].rungs, trials[i].loss))


def _numbers(trials: Sequence[_Trial], key: str) -> np.ndarray:
    return np.array([trial.values[key] for trial in trials], float)


def _ranked(space: _Domains, importance: Mapping[str, float]) -> list[str]:
    """The keys, the most important first."""
    return sorted(space, key=lambda key: -importance.get(key, 0.0))


def _range_of(domain: _Domain) -> _Range | None:
    """None: choices."""
    if not isinstance(domain, Mapping):
        return None
    return _Range(domain["low"], domain["high"], bool(domain.get("log")))
