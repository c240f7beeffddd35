"""The runs a law is fitted to: checked, in order of x, ready for a solver.

The one idea: rows are sorted here once, so that no order of rows and no unit of x or of the loss
can change a fit, its resamples or its text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from nanoscale.errors import UserError
from nanoscale.laws.points import numbers, plain_labels

SIZES_NEEDED = 4


@dataclass(frozen=True)
class Runs:
    """One (x, loss) per run in order of x; runs of one size are replicates."""

    x_name: str
    x: np.ndarray  # (n,)
    loss: np.ndarray  # (n,)
    size: np.ndarray  # (n,) 0, 1, ... in order of x
    labels: list[object]
    seeds: list[object] | None
    centre: float  # of ln x
    scale: float  # of the loss

    @classmethod
    def of(
        cls,
        x: Iterable[float],
        loss: Iterable[float],
        size: Iterable[object] | None,
        seed: Iterable[object] | None,
        x_name: str,
    ) -> Runs:
        """Check and sort the columns; `UserError` for runs that no law can be fitted to."""
        x, loss = numbers(x, x_name), numbers(loss, "loss")
        labels = x.tolist() if size is None else plain_labels(size)
        seeds = None if seed is None else plain_labels(seed)
        _check_lengths({x_name: x, "loss": loss, "size": labels, "seed": seeds})
        order = np.lexsort((loss, x))
        x, loss = x[order], loss[order]
        labels = [labels[i] for i in order]
        seeds = None if seeds is None else [seeds[i] for i in order]
        index = {label: i for i, label in enumerate(dict.fromkeys(labels))}
        _check_sizes(x, labels, x_name)
        _check_twins(labels, seeds)
        centre, scale = float(np.log(x).mean()), float(np.exp(np.log(loss).mean()))
        size = np.array([index[label] for label in labels])
        return cls(x_name, x, loss, size, labels, seeds, centre, scale)

    @property
    def u(self) -> np.ndarray:
        """ln x about 0."""
        return np.log(self.x) - self.centre

    @property
    def y(self) -> np.ndarray:
        """ln L about 0."""
        return np.log(self.loss / self.scale)

    @property
    def n_sizes(self) -> int:
        """Number of model sizes."""
        return int(self.size.max()) + 1


def _check_lengths(columns: dict[str, object]) -> None:
    lengths = {name: len(values) for name, values in columns.items() if values is not None}
    if len(set(lengths.values())) > 1:
        got = ", ".join(f"{name} {n}" for name, n in lengths.items())
        raise UserError(f"columns differ in length ({got}); give one value per run")


def _check_sizes(x: np.ndarray, labels: list[object], x_name: str) -> None:
    distinct = len(np.unique(x))
    if len(x) and distinct == 1:
        raise UserError(f"all runs have {x_name} = {x[0]:g}; a law needs runs of different sizes")
    sizes = min(len(set(labels)), distinct)
    if sizes < SIZES_NEEDED:
        raise UserError(
            f"{sizes} sizes are too few for a law of 3 parameters; train at least "
            f"{SIZES_NEEDED} sizes (6 for a useful interval)"
        )


def _check_twins(labels: list[object], seeds: list[object] | None) -> None:
    """A run listed twice would pass for two seeds without noise."""
    runs = list(zip(labels, seeds, strict=True)) if seeds else []
    twice = next((run for run in runs if runs.count(run) > 1), None)
    if twice:
        raise UserError(f"size {twice[0]!r} with seed {twice[1]!r} appears twice; keep one of them")
