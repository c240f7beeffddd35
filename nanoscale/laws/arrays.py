"""What the modules of this folder call their arrays; shapes trail in comments and docstrings."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]  # which rows
Index = npt.NDArray[np.intp]  # of rows, or labels 0, 1, ... of them
