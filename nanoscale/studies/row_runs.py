"""The run that a row of a study file is: its cell, its scale, and what became of it."""

from __future__ import annotations

from nanoscale.experiments.cells import Cell, make_cells
from nanoscale.experiments.planning import folder_of
from nanoscale.experiments.results import RUNS, Study
from nanoscale.experiments.trials import loss_of
from nanoscale.spec.config import ResolvedConfig
from nanoscale.spec.counting import flops_per_iter, parameter_counts
from nanoscale.spec.sources import Source
from nanoscale.spec.values import Json, Overrides
from nanoscale.store.folder import RunFolder

DEFAULTS: Overrides = {
    "data_order": "epoch",
    "min_lr_frac": 0.1,
    "warmup_frac": 0.05,
    "lr_decay_iters": None,
    "compile": False,
}  # of every study file


def cell_of(study: Study, row: Overrides) -> Cell:
    """The cell of a row over what the study's runs share."""
    where = study.asked.command or "study.json"
    base = Source(where, study.asked.base_params)
    (cell,) = make_cells(DEFAULTS, [base], [row], where)
    return cell


def folder_of_row(study: Study, row: Overrides) -> RunFolder:
    """Where its run is, or would be."""
    return folder_of(cell_of(study, row).spec, study.output_root.absolute() / RUNS)


def loss_of_row(study: Study, row: Overrides) -> float | None:
    """What its run came to: infinite if it diverged, None if it has no result."""
    folder = folder_of_row(study, row)
    return loss_of(folder) if folder.exists() else None


def replicated(study: Study) -> list[tuple[dict[str, Json], dict[int, float | None]]]:
    """The study's rows without their seeds, each with what its seeds came to (`loss_of_row`)."""
    rows: dict[str, tuple[dict[str, Json], dict[int, float | None]]] = {}
    for entry, folder in study.runs():
        row = {key: value for key, value in entry.values.items() if key != "seed"}
        _, seeds = rows.setdefault(str(row), (row, {}))
        seeds[int(str(entry.values["seed"]))] = loss_of(folder) if folder.exists() else None
    return [*rows.values()]


def scale_of_row(study: Study, row: Overrides) -> tuple[int, int]:
    """Its N (total) and D."""
    return scale_of_run(cell_of(study, row).spec.config)


def scale_of_run(config: ResolvedConfig) -> tuple[int, int]:
    """N (total) and D, in tokens."""
    return parameter_counts(config)["total"], config.max_iters * config.tokens_per_iter


def whole_flops(config: ResolvedConfig) -> int:
    """Training FLOPs of a run and, of a branch, of its past."""
    return flops_per_iter(config) * config.max_iters
