"""`recipe = "grid"`: every combination of lists; the best cell, and the loss over what varies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanoscale.errors import UserError
from nanoscale.experiments.cells import combinations, grid_lists
from nanoscale.experiments.records import describe
from nanoscale.store.folder import COMPLETE
from nanoscale.studies.recipe import Answer, FileTable, Picture, Question, Recipe
from nanoscale.studies.runs import curves, numeric, varied

if TYPE_CHECKING:
    from pandas import DataFrame

    from nanoscale.experiments import Study


def rows(table: FileTable) -> Question:
    """Every combination of the lists in [grid]."""
    if not table.values:
        raise UserError(f"{table.where()}: give at least one key a list, as in n_layer = [2, 4, 8]")
    lists = grid_lists(table.values, None, table.where())
    return Question(combinations(lists), table.where())


def best(study: Study, frame: DataFrame) -> Answer:
    """The best run in one line, and what became of a search's best values at its target."""
    run = study.best
    if run is None:
        return Answer(["no run has finished with a loss"])
    where = describe(run.values) or run.folder
    line = f"lowest val_loss {run.val_loss:.4f} at {where}"
    if study.damage_of_best:
        line += f" (its run is damaged: {study.damage_of_best})"
    if study.target is None:
        return Answer([line])
    return Answer([line, str(study.target)])


def figures(study: Study, frame: DataFrame, answer: Answer) -> list[Picture]:
    """The loss over the one or two numbers that vary, and every run's curve."""
    from nanoscale.report import heatmap_figure, lines_figure

    done = frame[frame["state"] == COMPLETE]
    if done.empty:
        return []

    pictures = []
    knobs = [key for key in varied(study) if key != "seed" and numeric(frame[key])]
    if len(knobs) == 1 and (frame[knobs[0]] > 0).all():
        drawn = lines_figure(done, x=knobs[0], y={"val_loss": "validation loss"})
        pictures.append(Picture("grid", f"Final validation loss against {knobs[0]}.", drawn))
    elif len(knobs) == 2:
        drawn = heatmap_figure(frame, knobs[0], knobs[1], "val_loss")
        caption = f"Final validation loss over {knobs[0]} and {knobs[1]}."
        pictures.append(Picture("grid", caption, drawn))
    return [*pictures, *curves(study, done)]


RECIPE = Recipe(tables=None, rows=rows, conclude=best, figures=figures)
