"""The runs of a ladder: checked, in order of x, ready for a solver.

The one idea: rows are sorted here once, so that no order of rows and no unit of x or of the loss
can change a fit, its resamples or its text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from nanoscale.errors import UserError
from nanoscale.laws.arrays import Array, Index
from nanoscale.laws.points import RowLabels, check_lengths, check_range, numbers, plain_labels

SIZES_NEEDED = 4


@dataclass(frozen=True)
class Runs:
    """One (x, loss) per run in order of x; runs of one size are replicates."""

    x_name: str
    x: Array  # (n,)
    loss: Array  # (n,)
    size: Index  # (n,) 0, 1, ... in order of x
    labels: list[object]  # of the sizes, as given
    seeds: list[object]  # None each where none are given

    @classmethod
    def of(
        cls,
        x: Iterable[float],
        loss: Iterable[float],
        size: RowLabels | None,
        seed: RowLabels | None,
        x_name: str,
    ) -> Runs:
        """Check and sort the columns; `UserError` for runs that no law can be fitted to."""
        at = numbers(x, x_name)
        losses = numbers(loss, "loss")
        labels = at.tolist() if size is None else plain_labels(size)
        seeds: list[object] = [None] * len(at)
        columns = [(x_name, at), ("loss", losses), ("size", labels)]
        if seed is not None:
            seeds = plain_labels(seed)
            columns.append(("seed", seeds))
        check_lengths(*columns)

        order = np.lexsort((losses, at))
        at = at[order]
        labels = [labels[i] for i in order]
        seeds = [seeds[i] for i in order]
        _check_sizes(at, labels, x_name)
        if seed is not None:
            _check_twins(labels, seeds)

        number = {label: i for i, label in enumerate(dict.fromkeys(labels))}
        size_index = np.array([number[label] for label in labels])
        return cls(x_name, at, losses[order], size_index, labels, seeds)

    @property
    def n_sizes(self) -> int:
        """Number of model sizes."""
        return int(self.size.max()) + 1


def _check_sizes(x: Array, labels: list[object], x_name: str) -> None:
    distinct = len(np.unique(x))
    if len(x) and distinct == 1:
        raise UserError(f"all runs have {x_name} = {x[0]:g}; a law needs runs of different sizes")
    if len(x):
        check_range(x_name, x)
    sizes = min(len(set(labels)), distinct)
    if sizes < SIZES_NEEDED:
        raise UserError(
            f"{sizes} sizes are too few for a law of 3 parameters; train at least "
            f"{SIZES_NEEDED} sizes (6 for a useful interval)"
        )


def _check_twins(labels: list[object], seeds: list[object]) -> None:
    """A run listed twice would pass for two seeds without noise."""
    for (size, seed), count in Counter(zip(labels, seeds, strict=True)).items():
        if count > 1:
            raise UserError(f"size {size!r} with seed {seed!r} appears twice; keep one of them")
