"""What a page's figures answer to: a dot leads to its run's row, a series can be hidden.

The one idea: figures know nothing of pages. A dot as high as a run's loss is that run's, and so is
what its id labels; what is drawn inside `series` carries its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

SERIES = "series:"  # begins the id of what belongs to one, in a drawing
ROW = "run-"  # begins the id of a run's row in a page


def link_runs(figure: Figure, runs: Mapping[float, str]) -> None:
    """Make every dot whose height is a run's loss, and every curve of a run, a link to its row.

    runs: loss -> id.
    """
    links = {loss: f"#{ROW}{run}" for loss, run in runs.items()}
    by_label = {run: f"#{ROW}{run}" for run in runs.values()}
    for axes in figure.axes:
        for curve in axes.lines:
            curve.set_url(by_label.get(str(curve.get_label())))
        for dots in axes.collections:
            own = by_label.get(str(dots.get_label()))
            heights = np.ma.getdata(dots.get_offsets())[:, 1]
            dots.set_urls([links.get(y, own) for y in heights.tolist()])


@contextmanager
def series(axes: Axes, name: str) -> Iterator[None]:
    """What is drawn on the axes meanwhile is one series, which a page can hide and show."""
    before = {*axes.get_children()}
    yield
    for artist in axes.get_children():
        if artist not in before:
            artist.set_gid(SERIES + name)
