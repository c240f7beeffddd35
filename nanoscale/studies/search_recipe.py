"""`recipe = "search"`: trials of a space (see `experiments.search`); the best, and what matters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from nanoscale.checks.best_setting import mean_interval
from nanoscale.checks.coordinates import UNSURE
from nanoscale.errors import UserError
from nanoscale.experiments.records import BestRun, describe
from nanoscale.experiments.search import SearchPlan
from nanoscale.experiments.space import read_space
from nanoscale.spec.sources import flatten_keys
from nanoscale.spec.values import Json
from nanoscale.studies.ranking import is_bound
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


def best(study: Study, frame: DataFrame) -> Answer:
    """The best trial and how far to believe it; what became of its values at the target."""
    run = study.best
    if run is None:
        return Answer(["no run has finished with a loss"], verdict=UNSURE)
    line = f"lowest val_loss {run.val_loss:.4f} at {describe(run.values) or run.folder}"
    if study.damage_of_best:
        line += f" (its run is damaged: {study.damage_of_best})"
    numbers: dict[str, Json] = {"best": run.to_json()}
    if study.target is not None:
        numbers["target"] = asdict(study.target)
    return Answer([line, *_doubts(study, run), *_target(study)], numbers=numbers)


def _doubts(study: Study, run: BestRun) -> Iterator[str]:
    """That the lowest of many is flattered by the choice, and what would know better; edges."""
    asked = study.asked
    trials = len(study.outcome.trials) if study.outcome else 0
    if trials > 1:
        line = f"the lowest of {trials} trials of one seed each is optimistic"
        if study.target is None:
            how = f"with three seeds, run_hpo({study.name!r}, ..., seeds=...)"
            if asked.command:
                how = f"with three seeds in its search table, {asked.command}"
            line += f"; {how} trains its values anew (3 runs)"
        yield line

    space = read_space((asked.search or {})["space"], study.name)
    for key, axis in space.items():
        value = run.values.get(key)
        end = axis.edge(value)
        if end and not is_bound(key, value):
            where = f"{key}={value} is at the {end} end of what is searched"
            yield f"edge of the space: {where}; better may lie beyond"


def _target(study: Study) -> Iterator[str]:
    target = study.target
    if target is not None:
        low, high = mean_interval({str(n): loss for n, loss in enumerate(target.losses)})
        yield target.told("" if math.isnan(low) else f" [{low:.4f}, {high:.4f}]")


def figures(study: Study, frame: DataFrame, answer: Answer) -> list[Picture]:
    """Loss against each key, over the two that matter most, and the trials over all of them."""
    from nanoscale.report import contour_figure, parallel_figure, search_figure

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

    parallel = parallel_figure(outcome, space)
    if parallel is not None:
        caption = (
            "Every trial over all that was searched, the most important first, and its loss, the "
            "lowest at the top; the best tenth in colour, the best in orange."
        )
        pictures.append(Picture("parallel", caption, parallel))
    return pictures


RECIPE = Recipe(
    tables=("trials", "sampler", "seed", "rungs", "promote", "space", "proxy", "seeds"),
    rows=rows,
    conclude=best,
    figures=figures,
)
