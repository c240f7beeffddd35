"""How much of an update is signal, over widths: a line per direction that could be taken."""

from __future__ import annotations

from matplotlib.figure import Figure

from nanoscale.checks.noise import NoiseReport
from nanoscale.report.marks import End, end_labels, headed
from nanoscale.report.style import PAPER, log_axis, printed, sheet, size_colours, styled, ticks_on


@styled()
def signal_figure(report: NoiseReport) -> Figure:
    """Cosines between the updates of two streams, means over seeds; at the right the slopes."""
    figure, (axes,) = sheet(6.2, 3.6, right=150)
    lowest = 1.0
    ends = []
    colours = size_colours(len(report.signal))
    for (direction, over), colour in zip(report.signal.items(), colours, strict=True):
        axes.plot(
            report.sizes,
            over.means,
            "-o",
            color=colour,
            linewidth=1.5,
            markersize=5,
            markeredgecolor=PAPER,
            clip_on=False,
        )
        lowest = min(lowest, *over.means)
        text = direction
        if over.slope is not None:
            text += printed(f" {over.slope.slope:+.2f}")
        ends.append(End(text, report.sizes[-1], over.means[-1]))
    first, last = report.sizes[0], report.sizes[-1]
    room = (last / first) ** 0.04
    log_axis(axes, "x", first / room, last * room)
    ticks_on(axes.xaxis, report.sizes)
    log_axis(axes, "y", max(lowest, 0.01) * 0.9, 1.0)
    headed(axes, f"signal fraction, {report.tokens:,} tokens per update", "width")
    end_labels(axes, ends)
    return figure
