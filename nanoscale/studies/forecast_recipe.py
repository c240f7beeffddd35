"""`recipe = "forecast"`: a ladder, its law, and a bigger run whose loss is sealed beforehand.

The ladder's runs come first. Once all have finished, the law through them forecasts the run in
[forecast.held_out], the forecast is written to `predictions/`, and only then that run is trained
and the forecast judged.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nanoscale.errors import UserError, make_folder
from nanoscale.experiments.cells import Cell, make_cells
from nanoscale.experiments.planning import folder_of
from nanoscale.experiments.results import RUNS
from nanoscale.spec.sources import Source, flatten_keys
from nanoscale.spec.values import Overrides
from nanoscale.store.files import write_json
from nanoscale.store.folder import FINISHED
from nanoscale.studies import ladder_recipe
from nanoscale.studies.recipe import Answer, FileTable, Picture, Question, Recipe
from nanoscale.studies.seals import (
    PREDICTIONS,
    SCORE,
    SealedRun,
    config_of,
    fitted,
    forecast_of,
    seal_in,
    seal_text,
    verify_study,
    without_run,
    write_seal,
)
from nanoscale.studies.table_fit import FitSettings, fit_table

if TYPE_CHECKING:
    from pandas import DataFrame

    from nanoscale.experiments import Study

TIMES_LARGER = 3.0  # the run held out, in FLOPs, than any other of the study
LAW = FitSettings(law="power", c="flops", loss="val_loss")


def rows(table: FileTable) -> Question:
    """The ladder, and once it has finished the run held out."""
    held_out = table.values.get("held_out")
    if not isinstance(held_out, dict) or not held_out:
        raise UserError(
            f"{table.where()}: give the bigger run to forecast in [forecast.held_out], as in "
            "n_layer = 6, n_embd = 96"
        )
    ladder = ladder_recipe.rows(table)
    row = flatten_keys(held_out)
    if any(row.items() <= run.items() for run in ladder.rows):
        raise UserError(f"{table.where()}: held_out is one of the sizes; forecast a bigger run")
    return replace(ladder, extras={"held_out": row}, more=lambda study: held_out_of(study, row))


def held_out_of(study: Study, row: Overrides) -> list[Overrides]:
    """The run held out, once its forecast is sealed; none while it cannot be."""
    if seal_in(study.folder) is not None:
        return [row]
    if any(folder.state() not in FINISHED for _, folder in study.runs()):
        return []
    cell = cell_of(study, row)
    check_size(study, cell)
    if folder_of(cell.spec, study.output_root / RUNS).exists():
        study.say(f"not blind: run {cell.id}, which was to be forecast, is there already")
        return []

    table = fitted(study)
    found = fit_table(table, LAW, name=study.name)
    made = forecast_of(found, {"C": float(cell.flops)})
    study.say(*made.text())
    if made.ci95 is None:
        return []
    run = SealedRun(cell.id, cell.spec.name, cell.flops, config_of(cell.spec))
    text = seal_text(table, LAW, found, made, run)
    make_folder(study.folder / PREDICTIONS)
    path, sha256 = write_seal(study.folder / PREDICTIONS, text)
    study.say(f"sealed before run {cell.id} is made: {path}, SHA-256 {sha256}")
    return [row]


def cell_of(study: Study, row: Overrides) -> Cell:
    """The run of a row, over what the study's runs share."""
    from nanoscale.studies.stages import DEFAULTS

    base = Source("study.json", study.asked.base_params)
    (cell,) = make_cells(DEFAULTS, [base], [row], "[forecast.held_out]")
    return cell


def check_size(study: Study, cell: Cell) -> None:
    """Refuse a run that is hardly bigger than those that are fitted."""
    largest = max(entry.flops for entry in study.entries)
    if cell.flops < TIMES_LARGER * largest:
        raise UserError(
            f"[forecast.held_out]: {cell.flops:.3g} FLOPs are {cell.flops / largest:.2g} times the "
            f"largest run's; a forecast is of a run of at least {TIMES_LARGER:g} times"
        )


# -- the answer -----------------------------------------------------------------------------------
def ladder_of(study: Study) -> Study:
    """The study without the run held out."""
    sealed = seal_in(study.folder)
    if sealed is None:
        return study
    return without_run(study, sealed.run_id)


def conclude(study: Study, frame: DataFrame) -> Answer:
    """The ladder's law, the forecast, and how it did, kept in predictions/score.json."""
    ladder = ladder_of(study)
    answer = ladder_recipe.conclude(ladder, ladder.frame())
    sealed = seal_in(study.folder)
    if sealed is None:
        study.inconclusive = True
        line = "nothing was forecast: see above for what is lacking"
        return replace(answer, lines=[*answer.lines, line])

    found = verify_study(study.folder)
    if found.score is not None and not found.problems:
        write_json(study.folder / PREDICTIONS / SCORE, vars(found.score))
    lines = found.text()
    if found.score is None:
        lines.append(f"run {sealed.run_id} has not finished: the forecast waits for it")
    return replace(answer, lines=[*answer.lines, *lines])


def figures(study: Study, frame: DataFrame, answer: Answer) -> list[Picture]:
    """Those of the ladder."""
    ladder = ladder_of(study)
    return ladder_recipe.figures(ladder, ladder.frame(), answer)


RECIPE = Recipe(
    tables=("seeds", "min_sizes", "sizes", "held_out"),
    rows=rows,
    conclude=conclude,
    figures=figures,
    refits_without_smallest=True,
)
