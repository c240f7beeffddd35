"""What a figure holds, by its marks."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.collections import PathCollection

DIAMOND = 5  # corners of its path; a circle has more


def dots(axes: Axes) -> list[tuple[float, float]]:
    """(x, y) of every dot and diamond, sorted."""
    return sorted((x, y) for drawn in marks(axes) for x, y in drawn.get_offsets().tolist())


def diamonds(axes: Axes) -> list[PathCollection]:
    return [drawn for drawn in marks(axes) if len(drawn.get_paths()[0].vertices) == DIAMOND]


def marks(axes: Axes) -> list[PathCollection]:
    return [drawn for drawn in axes.collections if isinstance(drawn, PathCollection)]
