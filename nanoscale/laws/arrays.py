"""What the modules of this folder call their arrays; shapes trail in comments and docstrings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
ArrayPair = tuple[Array, Array]
Mask = npt.NDArray[np.bool_]  # which rows
Index = npt.NDArray[np.intp]  # of rows, or labels 0, 1, ... of them
Chosen = Index | Mask  # rows


def put(
    rows: Chosen, arrays: Sequence[npt.NDArray[Any]], others: Sequence[npt.NDArray[Any]]
) -> None:
    """Overwrite some rows of every array with those of another."""
    for mine, theirs in zip(arrays, others, strict=True):
        mine[rows] = theirs


def batches(count: int, size: int) -> Iterator[slice]:
    """The rows 0, ..., count - 1 in slices of at most `size`, but of one at least."""
    size = max(1, size)
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))
