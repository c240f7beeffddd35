"""A search in parallel coordinates: an axis per key, a line per trial, the loss at the right.

The one idea: what good trials share is where their lines run together. The best tenth is drawn over
the others, in colours that darken towards the best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nanoscale.report.marks import HALO, label
from nanoscale.report.search_figures import MOST, Axis, Domain, Domains, DrawnTrials, ranked
from nanoscale.report.style import (
    ACCENT,
    HEAT,
    INK,
    LOSS_NAMES,
    MUTED,
    RULE,
    WIDTH,
    log_ticks,
    quantities,
    sheet,
    styled,
)
from nanoscale.spec.values import Json

if TYPE_CHECKING:
    from nanoscale.experiments.records import SearchOutcome
    from nanoscale.laws.arrays import Array

FEW_TICKS = 5
BEST_SHARE = 0.1
GREY = 0.25  # opacity of the others


@styled()
def parallel_figure(found: SearchOutcome, space: Domains) -> Figure | None:
    """The trials over all keys that were searched, the most important first, and their loss.

    None where there is one key alone: that is a plot of loss against it.
    """
    trials = DrawnTrials.of(found)
    domains = ranked(space, found)[:MOST]
    if len(domains) < 2:
        return None
    figure, (axes,) = sheet(WIDTH, 3.6, left=44, right=54, above=34, below=22)
    axes.set(xlim=(0, len(domains)), ylim=(-0.03, 1.03))
    axes.set_axis_off()
    heights = [_on_axis(axes, k, key, domain, trials) for k, (key, domain) in enumerate(domains)]
    heights.append(_loss_axis(axes, len(domains), trials.losses))
    order = np.argsort(-trials.losses)  # the best last, over the others
    worse = len(order) - max(1, round(BEST_SHARE * len(order)))
    lines = np.array(heights)[:, order]
    axes.plot(lines[:, :worse], color=MUTED, linewidth=0.7, alpha=GREY, zorder=2)
    good = lines[:, worse:].T
    for place, line in enumerate(good, start=len(HEAT) - len(good)):
        colour = ACCENT if place == len(HEAT) - 1 else HEAT[max(place, 2)]
        axes.plot(line, color=colour, linewidth=1.5, zorder=3)
    return figure


def _on_axis(axes: Axes, x: int, key: str, domain: Domain, trials: DrawnTrials) -> Array:
    """Draw a key's axis; (n,) how high the trials are on it, from 0 to 1."""
    if isinstance(domain, Mapping):
        axis = Axis.of(domain)
        ticks = _ticks(axis)
        _vertical(axes, x, key, axis.unit(np.array(ticks)), quantities(ticks))
        return axis.unit(trials.numbers(key))
    places = np.linspace(0, 1, len(domain)) if len(domain) > 1 else np.array([0.5])
    _vertical(axes, x, key, places, [str(choice) for choice in domain])
    chosen: list[Json] = [values[key] for values in trials.values]
    heights: Array = places[[list(domain).index(choice) for choice in chosen]]
    return heights


def _ticks(axis: Axis) -> list[float]:
    if axis.log:
        return log_ticks(axis.low, axis.high, FEW_TICKS)
    ticks = MaxNLocator(FEW_TICKS - 1).tick_values(axis.low, axis.high)
    return [float(tick) for tick in ticks if axis.low <= tick <= axis.high]


def _loss_axis(axes: Axes, x: int, losses: Array) -> Array:
    """The loss, the lowest at the top; what is far worse than most lies at the foot."""
    low = float(losses.min())
    high = max(float(np.quantile(losses, 0.75)), low + 1e-9)
    ticks = np.linspace(low, high, FEW_TICKS)
    unit = 1 - (ticks - low) / (high - low)
    texts = [f"{tick:.3f}" for tick in ticks]
    _vertical(axes, x, LOSS_NAMES["val_loss"], unit, texts)
    heights: Array = 1 - (np.minimum(losses, high) - low) / (high - low)
    return heights


def _vertical(
    axes: Axes, x: int, name: str, places: Sequence[float] | Array, texts: Sequence[str]
) -> None:
    axes.axvline(x, color=RULE, linewidth=1, zorder=1)
    label(axes, name, (x, 1.03), (0, 12), on="data", colour=INK, size=9, ha="center")
    for place, text in zip(places, texts, strict=True):
        label(
            axes,
            text,
            (x, float(place)),
            (5, 0),
            on="data",
            size=8,
            va="center",
            path_effects=HALO,
            zorder=5,
        )
