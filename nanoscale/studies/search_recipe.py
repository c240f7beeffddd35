"""`recipe = "search"`: trials of a space (see `experiments.search`); the best, and what matters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanoscale.errors import UserError
from nanoscale.experiments.search import SearchPlan
from nanoscale.experiments.space import read_space
from nanoscale.spec.sources import flatten_keys
from nanoscale.studies.grid_recipe import best
from nanoscale.studies.recipe import Answer, FileTable, Picture, Question, Recipe

if TYPE_CHECKING:
    from pandas import DataFrame

    from nanoscale.experiments import Study

TRIALS = 32


def rows(table: FileTable) -> Question:
    """The plan in [search] and [search.space]; its trials are rows as they come."""
    where = f"{table.path}, [search.space]"
    options = {key: value for key, value in table.values.items() if key != "space"}
    options["proxy"] = flatten_keys(options.get("proxy", {}))
    for key in ("rungs", "seeds"):
        if not isinstance(options.setdefault(key, []), list):
            raise UserError(
                f"{table.where()}: {key}={options[key]!r}: expected a list, as in [1, 2, 3]"
            )

    space = read_space(table.values.get("space"), where)
    trials = options.pop("trials", TRIALS)
    rungs = tuple(options.pop("rungs")) or (0,)
    plan = SearchPlan(space, trials, rungs=rungs, **options)
    return Question([], where, search=plan)


def figures(study: Study, frame: DataFrame, answer: Answer) -> list[Picture]:
    """Loss against each key, and over the two that matter most."""
    from nanoscale.report import contour_figure, search_figure

    outcome = study.outcome
    if outcome is None or not any(trial.losses[-1] is not None for trial in outcome.trials):
        return []

    space = (study.asked.search or {})["space"]
    every_key = search_figure(outcome, space)
    caption = (
        "Validation loss of every trial against each key, the most important first; the diamond "
        "is the best trial."
    )
    pictures = [Picture("search", caption, every_key)]

    contour = contour_figure(outcome, space)
    if contour is not None:
        caption = (
            "Validation loss over the two most important ranges, smoothed, at the first length; "
            "points are trials."
        )
        pictures.append(Picture("contour", caption, contour))
    return pictures


RECIPE = Recipe(
    tables=("trials", "sampler", "seed", "rungs", "promote", "space", "proxy", "seeds"),
    rows=rows,
    conclude=best,
    figures=figures,
)
