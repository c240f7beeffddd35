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
    from nanoscale.experiments.records import SearchOutcome
    from nanoscale.laws.arrays import Array

_ACROSS = 3  # panels in a row
MOST = 6  # keys shown
_SHOWN = 0.75  # share of the losses, from the best, that the loss axis holds
LEVELS = len(HEAT)
_MESH = 80  # points of a side of the smooth surface
_FEWEST = 10  # trials for one
Domain = Sequence[Json] | Mapping[str, float]  # choices, or low, high and whether by its log
Domains = Mapping[str, Domain]  # of the keys that were searched


@dataclass(frozen=True)
class Axis:
    low: float
    high: float
    log: bool

    @classmethod
    def of(cls, domain: Mapping[str, float]) -> Axis:
        return cls(domain["low"], domain["high"], bool(domain.get("log")))

    def unit(self, values: Array) -> Array:
        """From 0 at the low end to 1 at the high one."""
        scale = np.log if self.log else np.asarray
        low, high = scale(self.low), scale(self.high)
        units: Array = (scale(values) - low) / (high - low)
        return units

    def mesh(self) -> Array:
        """Values in even steps."""
        spaced = np.geomspace if self.log else np.linspace
        return spaced(self.low, self.high, _MESH)

    def on(self, axes: Axes, which: XY) -> None:
        """Make it the x or y axis."""
        if self.log:
            log_axis(axes, which, self.low, self.high)
        else:
            ends = (self.low, self.high)
            axes.set(**{f"{which}lim": ends})


@dataclass(frozen=True)
class DrawnTrials:
    """Those with a finite loss, (n,) each."""

    values: Sequence[Mapping[str, Json]]
    losses: Array  # at the furthest rung
    first: Array  # losses, at the first rung
    rungs: Array

    @classmethod
    def of(cls, found: SearchOutcome) -> DrawnTrials:
        done = []
        for trial in found.trials:
            losses = np.array(trial.losses, float)  # NaN: none
            if np.isfinite(losses[-1:]).any():
                done.append((trial.values, losses[-1], losses[0], len(losses)))
        if not done:
            raise UserError("no trial has a finite loss: there is nothing to draw")
        values, *numbers = zip(*done, strict=True)
        return cls(values, *map(np.array, numbers))

    @property
    def best(self) -> int:
        """The lowest of those that went furthest."""
        return int(np.lexsort((self.losses, -self.rungs))[0])

    def numbers(self, key: str) -> Array:
        return np.array([values[key] for values in self.values], float)


@styled()
def search_figure(found: SearchOutcome, space: Domains) -> Figure:
    """A panel per key: loss of every trial against its value."""
    trials = DrawnTrials.of(found)
    importance = found.importance or {}
    domains = ranked(space, found)[:MOST]
    low, high = trials.losses.min(), np.quantile(trials.losses, _SHOWN)
    room = max(high - low, 1e-3 * abs(low))
    across = min(len(domains), _ACROSS)
    down = math.ceil(len(domains) / across)
    figure, grid = sheet(
        3.1 * across + 0.6,
        2.7 * down + 0.3,
        len(domains),
        across,
        above=TWO_HEADS,
        right=10,
        below=42,
        wspace=0.08,
        hspace=0.62,
        sharey=True,
    )
    for axes, (key, domain) in zip(grid, domains, strict=True):
        _slice(axes, key, domain, trials)
        axes.set_title(
            key,
            loc="left",
            size=9,
            color=INK,
            weight="bold",
            pad=6,
        )
        if key in importance:
            share = f"{100 * importance[key]:.0f} % of the difference"
            label(axes, share, (1, 1.04), ha="right")
    grid[0].set_ylim(low - 0.06 * room, high + 0.10 * room)
    label(grid[0], LOSS, (0, 1.20), size=9)
    return figure


@styled()
def contour_figure(found: SearchOutcome, space: Domains) -> Figure | None:
    """The loss over the two most important ranges, smoothed, at the first rung; points are trials.

    None where there are fewer than two ranges or ten trials.
    """
    trials = DrawnTrials.of(found)
    ranges = []
    for key, domain in ranked(space, found):
        if isinstance(domain, Mapping):
            ranges.append((key, Axis.of(domain)))
    if len(ranges) < 2 or len(trials.values) < _FEWEST:
        return None
    (x_key, x_range), (y_key, y_range) = ranges[:2]
    x, y = trials.numbers(x_key), trials.numbers(y_key)
    top = np.quantile(trials.first, _SHOWN)
    surface = smooth(x_range.unit(x), y_range.unit(y), trials.first, np.linspace(0, 1, _MESH))
    figure = canvas(5.4, 4.2)
    axes = figure.subplots()
    axes.grid(False)
    axes.contourf(
        x_range.mesh(),
        y_range.mesh(),
        np.minimum(surface, top),
        levels=np.linspace(trials.first.min(), top, LEVELS + 1),
        cmap=ListedColormap(HEAT[::-1]),
        extend="both",
    )
    mark(axes, x, y, INK, size=3, rim=0.5, zorder=2)
    best = trials.best
    mark(
        axes,
        x[best],
        y[best],
        ACCENT,
        shape="D",
        size=7,
        rim=1,
        zorder=2,
    )
    x_range.on(axes, "x")
    y_range.on(axes, "y")
    axes.set_xlabel(x_key, labelpad=4)
    axes.set_title(y_key, loc="left", size=9, color=MUTED)
    return figure


def smooth(u: Array, v: Array, losses: Array, mesh: Array) -> Array:
    """(v, u) losses by a kernel as wide as trials are apart, so that noise makes no hills."""
    width = 0.6 / math.sqrt(len(u))
    du = mesh[:, None] - u  # (mesh, trials)
    dv = mesh[:, None] - v
    squared = dv[:, None] ** 2 + du[None] ** 2
    near = 2 * width**2
    weights = np.exp(-squared / near) + 1e-9
    smooth: Array = weights @ losses / weights.sum(-1)
    return smooth


def _slice(axes: Axes, key: str, domain: Domain, trials: DrawnTrials) -> None:
    """One key's panel."""
    if isinstance(domain, Mapping):
        where = trials.numbers(key)
        Axis.of(domain).on(axes, "x")
    else:
        where = np.array([domain.index(values[key]) for values in trials.values])
        axes.set_xticks(range(len(domain)), list(map(str, domain)))
        axes.set_xlim(-0.5, len(domain) - 0.5)

    most = trials.rungs.max()
    for rung in range(1, most + 1):
        here = trials.rungs == rung
        shade = min(2 + 2 * rung, len(SIZES) - 1) if most > 1 else 4
        mark(
            axes,
            where[here],
            trials.losses[here],
            SIZES[shade],
            size=3 + 1.2 * rung,
            rim=0.6,
            alpha=0.55 + 0.45 * rung / most,
            zorder=2,
        )
    best = trials.best
    mark(
        axes,
        where[best],
        trials.losses[best],
        ACCENT,
        shape="D",
        size=7,
        rim=1,
        zorder=2,
    )


def ranked(space: Domains, found: SearchOutcome) -> list[tuple[str, Domain]]:
    """The keys and their domains, the most important first."""
    importance = found.importance or {}
    return sorted(space.items(), key=lambda item: -importance.get(item[0], 0.0))
