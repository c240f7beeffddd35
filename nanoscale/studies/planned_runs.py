"""The runs of a plan, none of which is made: from a table of them, or from a study file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nanoscale.errors import UserError
from nanoscale.experiments.cells import Cell, make_cells
from nanoscale.experiments.tables import read_table
from nanoscale.laws.arrays import Array, Index
from nanoscale.laws.points import with_compute
from nanoscale.spec.sources import Source
from nanoscale.studies.row_runs import DEFAULTS, scale_of_run, whole_flops
from nanoscale.studies.study_file import read_study
from nanoscale.studies.table_faults import check_counts, check_units, odd_ratio, with_numbers
from nanoscale.studies.table_fit import OURS, SCALES, columns_in, numbers_of

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class PlannedRuns:
    """The runs of a plan, each as often as it has seeds."""

    values: dict[str, Array]  # N, D and C: (n,)
    notes: list[str]
    groups: Index | None = None  # (n,) the run of each point
    ladder: bool = False  # fitted in compute alone, with the noise that seeds measure


def planned_runs(name: str, columns: Mapping[str, str], seeds: int | None) -> PlannedRuns:
    """Of a table (.csv, .jsonl or .parquet) or a study file (.toml).

    columns: of a table, which are n, d, c and group. seeds: times that each run is made; by
    default once, and those of a study file as it says.
    """
    path = Path(name)
    if path.suffix != ".toml":
        return _of_table(read_table(name), columns, seeds or 1)
    if columns:
        raise UserError(
            f"{name} is a study file, whose N and D are known; --{next(iter(columns))} "
            "is of a table"
        )
    return _of_study(path, seeds)


def _of_table(table: DataFrame, columns: Mapping[str, str], seeds: int) -> PlannedRuns:
    if table.empty:
        raise UserError("the table has no rows; it needs one per planned run")
    names = columns_in(table, columns)
    group = names.pop("group", "run")
    for key in SCALES:
        for usual in (OURS[key], key.upper()):
            if len(names) < 2 and key not in names and usual in table:
                names[key] = usual
    if len(names) < 2:
        raise UserError(
            "which columns are N and D? give two of --n, --d and --c (C = 6 N D), as "
            f"in --n=total_params; the table has {', '.join(map(str, table.columns))}"
        )

    check_counts(names)
    table, notes = with_numbers(table, names)
    read = {}
    for key, name in names.items():
        read[key.upper()] = np.repeat(numbers_of(table, name), seeds)
    check_units(names, {key: counts.tolist() for key, counts in read.items()})
    notes += odd_ratio(read)
    values = with_compute(read)
    values["C"] = 6 * values["N"] * values["D"]
    if group not in table or table[group].nunique() == len(table):
        return PlannedRuns(values, notes)

    labels = np.unique(list(map(str, table[group])), return_inverse=True)[1]
    groups = labels[:, None] * seeds + np.arange(seeds)  # each seed is a run of its own
    return PlannedRuns(values, notes, groups.ravel())


def _of_study(path: Path, seeds: int | None) -> PlannedRuns:
    """N (total), D (tokens) and exact C of a study file's runs."""
    file = read_study(path)
    question = file.question
    planned = question.fitted or question.rows
    if not planned:
        raise UserError(
            f"{path}: a {file.recipe_name} has no rows before it runs; give a grid or a "
            "ladder, or a table of planned runs"
        )
    base = Source(f"{path}, [base]", file.base)
    cells = make_cells(DEFAULTS, [base], planned, question.where)
    return of_cells(cells, seeds, file.recipe.refits_without_smallest)


def of_cells(cells: Sequence[Cell], seeds: int | None, ladder: bool) -> PlannedRuns:
    """N (total), D (tokens) and exact C of runs; `ladder`: they are fitted as one."""
    points: dict[tuple[int, int, int], set[int | None]] = {}
    for cell in cells:
        config = cell.spec.config
        N, D = scale_of_run(config)
        points.setdefault((N, D, whole_flops(config)), set()).add(config.seed)

    rows: list[tuple[int, int, int]] = []
    for point, point_seeds in points.items():
        rows += [point] * (seeds or len(point_seeds))
    notes = []
    runs = sum(map(len, points.values()))
    if runs < len(cells):
        notes.append(
            f"{len(cells)} cells are {runs} runs of different "
            "N, D and seed: the others count as tuning, of which the best remains"
        )
    if ladder:
        notes.append(
            "the study's own interval also takes in its refits without the smallest "
            "sizes, and so may be wider"
        )
    values = dict(zip("NDC", np.array(rows, float).T, strict=True))
    return PlannedRuns(values, notes, ladder=ladder)
