"""What changes are worth: FLOPs over the base's at equal loss, size by size."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanoscale.checks.worth import Worth
from nanoscale.errors import UserError
from nanoscale.report.links import series
from nanoscale.report.marks import End, bar, end_labels, headed, mark
from nanoscale.report.style import INK, WIDTH, log_axis, sheet, size_colours, styled

_APART = 0.02  # of the width in ln C, from one arm's bars to the next one's
_LETTER = 4.6  # points of a letter of a name


@styled()
def worth_figure(found: Mapping[str, Worth]) -> Figure:
    """A line per arm over the FLOPs compared, its bars 95 % intervals; at 1 nothing is changed."""
    if not found:
        raise UserError("no arm has a worth: there is nothing to draw")
    right = 12 + _LETTER * max(map(len, found))
    figure, (axes,) = sheet(WIDTH, 4.2, right=right)
    every = [at for one in found.values() for at in one.at]
    flops = np.array([at.flops for at in every])
    ends = np.array([at.ci95 for at in every])
    width = np.log(flops.max() / flops.min())
    colours = size_colours(len(found))
    names = []
    for k, (name, one) in enumerate(found.items()):
        beside = np.exp(_APART * width * (k - (len(found) - 1) / 2))
        names.append(_arm(axes, name, one, float(beside), colours[k]))
    axes.axhline(1, color=INK, linewidth=0.8, zorder=1)
    log_axis(axes, "x", flops.min() / 1.3, flops.max() * 1.3)
    low, high = min(ends.min(), 0.95), max(ends.max(), 1.05)
    log_axis(axes, "y", float(low) / 1.03, float(high) * 1.03)
    end_labels(axes, names)
    headed(
        axes,
        "times the base's FLOPs for the same loss",
        "C: training FLOPs, geometric mean of the arm's and the base's",
    )
    return figure


def _arm(axes: Axes, name: str, found: Worth, beside: float, colour: str) -> End:
    """One line, its points a factor beside their place; where it ends."""
    x = [beside * at.flops for at in found.at]
    y = [at.value for at in found.at]
    with series(axes, name):
        for place, at in zip(x, found.at, strict=True):
            bar(axes, (place, place), at.ci95, colour, 1.2)
        axes.plot(x, y, color=colour, linewidth=1.4)
        mark(axes, x, y, colour)
    return End(name, x[-1], y[-1], colour)
