"""`recipe = "grid"`: every combination of lists; the best setting, and the loss over the knobs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from nanoscale.checks.coordinates import UNSURE
from nanoscale.errors import UserError
from nanoscale.experiments.cells import combinations, grid_lists
from nanoscale.store.folder import COMPLETE
from nanoscale.studies.ranking import Ranking, study_ranking
from nanoscale.studies.recipe import Answer, FileTable, Picture, Question, Recipe
from nanoscale.studies.runs import curves, numeric

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
    """The setting of lowest mean loss over seeds, and what is tied with it."""
    ranking = study_ranking(study)
    tables = []
    if ranking.replicated:
        caption = "The settings by their mean loss over seeds, and which are tied with the best."
        table = ranking.frame()
        # as text: one run that went astray takes no digits from the others
        for column in ("mean val_loss", "95 % from", "to"):
            table[column] = [f"{x:.4f}" if math.isfinite(x) else None for x in table[column]]
        tables.append((caption, table))
    return Answer(
        [*ranking.summary(), *ranking.warnings],
        ranking,
        tables=tables,
        verdict=UNSURE if ranking.best is None else "",
        numbers=ranking.to_json(),
    )


def figures(study: Study, frame: DataFrame, answer: Answer) -> list[Picture]:
    """The loss over the one or two numbers that vary, and every run's curve."""
    from nanoscale.report import heatmap_figure, lines_figure

    done = frame[(frame["state"] == COMPLETE) & frame["val_loss"].notna()]
    if done.empty:
        return []

    pictures = []
    knobs = [key for key in study.setting_keys if numeric(frame[key])]
    if len(knobs) == 1 and (frame[knobs[0]] > 0).all():
        drawn = lines_figure(done, x=knobs[0], y={"val_loss": "validation loss"})
        pictures.append(Picture("grid", f"Final validation loss against {knobs[0]}.", drawn))
    elif len(knobs) == 2:
        drawn = heatmap_figure(frame, knobs[0], knobs[1], "val_loss")
        caption = f"Final validation loss over {knobs[0]} and {knobs[1]}; the best is framed."
        if isinstance(answer.result, Ranking) and answer.result.tied:
            caption += " Dotted frames: tied with it."
        pictures.append(Picture("grid", caption, drawn))
    return [*pictures, *curves(study, done)]


RECIPE = Recipe(tables=None, rows=rows, conclude=best, figures=figures)
