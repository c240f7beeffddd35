"""What the modules of this folder call their arrays; shapes trail in comments and docstrings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]  # which rows
Index = npt.NDArray[np.intp]  # of rows, or labels 0, 1, ... of them


def put(
    rows: Index | Mask, arrays: Sequence[npt.NDArray[Any]], others: Sequence[npt.NDArray[Any]]
) -> None:
    """Overwrite some rows of every array with those of another."""
    for mine, theirs in zip(arrays, others, strict=True):
        mine[rows] = theirs
