"""The run that would narrow a study's answer most per FLOP, and the runs that were added so.

The one idea: what is added is kept beside the study, as rows like those of its file, so that the
study's own command goes on with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nanoscale.errors import UserError, counted
from nanoscale.experiments.records import describe
from nanoscale.laws.arrays import Array
from nanoscale.laws.design import Design
from nanoscale.laws.fit import LawFit
from nanoscale.laws.information import NextRun, next_runs
from nanoscale.laws.questions import LawQuestion
from nanoscale.spec.values import Json, Overrides
from nanoscale.store.files import read_json, write_json

ADDED = "added.json"  # the rows, beside study.json
LEAST = 1e-3  # of a parameter over its law's largest: one that is 0 has no logarithm


@dataclass(frozen=True)
class Narrowing:
    """How well a study's answer is known, and what would narrow it most per FLOP."""

    of: str  # what the answer is of
    width: float  # of its 95 % interval, one end over the other
    rows: Sequence[Overrides]
    flops: float
    left: float  # share of ln width that is to be expected after them

    @property
    def then(self) -> float:
        """The width to expect after them."""
        return float(self.width**self.left)

    def lines(self) -> list[str]:
        """What a user reads."""
        runs = "; ".join(map(describe, self.rows))
        return [
            f"{self.of} is known within a factor of {self.width:.4g} (95 %)",
            f"most per FLOP would say {counted(len(self.rows), 'run')} of {self.flops:.3g} FLOPs "
            f"({runs}): then a factor of about {self.then:.4g}",
        ]

    def to_json(self) -> dict[str, Json]:
        return asdict(self) | {"then": self.then}


def next_run(
    fit: LawFit, x: Array, noise: float, question: str, places: Array, cost: Array
) -> NextRun:
    """Of candidates at places (P, m) that narrow a `LawQuestion` of a law through points (P, n)
    the one that does most per FLOP; noise: sd of ln L of a run."""
    params = np.array([*fit.params.values()])
    truth = np.maximum(params, LEAST * float(fit(*x).min()))
    design = Design(fit.form, x, truth, noise)
    runs = next_runs(design, LawQuestion.parse(question, fit.form), places, cost)
    return max(runs, key=lambda run: run.per_flop)


# -- what was added ---------------------------------------------------------------------------
def added_rows(folder: Path) -> list[Overrides]:
    """The rows that were added to the study of a folder.

    Raises:
        UserError: the file is not what `add_rows` leaves.
    """
    path = folder / ADDED
    if not path.is_file():
        return []
    record: Any = read_json(path)
    rows = record.get("rows") if isinstance(record, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: not what `nanoscale next` leaves; move it away to go on without")
    return rows


def add_rows(folder: Path, rows: Sequence[Overrides]) -> None:
    """Keep more of them."""
    write_json(folder / ADDED, {"rows": [*added_rows(folder), *map(dict, rows)]})
