"""`recipe = "ladder"`: models of growing size at one ratio of tokens to parameters; their law."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from nanoscale.checks.coordinates import UNSURE
from nanoscale.errors import UserError
from nanoscale.experiments.cells import combinations, grid_lists
from nanoscale.experiments.records import describe
from nanoscale.laws.predict import FAR
from nanoscale.spec.sources import FIELDS
from nanoscale.store.folder import COMPLETE
from nanoscale.studies.narrowing import Narrowing, next_run
from nanoscale.studies.recipe import MIN_SIZES, Answer, FileTable, Picture, Question, Recipe
from nanoscale.studies.row_runs import cell_of, replicated
from nanoscale.studies.runs import curves

if TYPE_CHECKING:
    from pandas import DataFrame

    from nanoscale.experiments import Study
    from nanoscale.laws.forecast import ForecastPoint

OF_SIZE = ("model", "data")  # groups of keys in which sizes differ
C_CONVENTION = "C: training FLOPs, exact (matrix products, forward and backward)"


def rows(table: FileTable) -> Question:
    """Every size in [[ladder.sizes]] with each of its seeds."""
    where = table.where("sizes")
    least = table.values.get("min_sizes", MIN_SIZES)
    if table.base.get("tokens_per_param") is None:
        raise table.no_ratio()
    if not isinstance(least, int) or least < MIN_SIZES:
        raise UserError(
            f"{table.where()}: min_sizes={least!r}: expected a whole number, at least {MIN_SIZES}"
        )
    sizes = table.sizes("all sizes share [base]'s tokens_per_param")
    if len(sizes) < least:
        raise UserError(f"{where}: {len(sizes)} sizes are too few for a law; give at least {least}")

    runs = []
    for size, seeds in sizes:
        values = {key: [value] for key, value in size.items()}
        runs += combinations(values | grid_lists({}, seeds, where))
    return Question(runs, where, min_sizes=least)


def conclude(study: Study, frame: DataFrame) -> Answer:
    """The power law through the finished runs, kept in fits/power.json, and what it says."""
    from nanoscale.laws import fit_power_law

    labels = size_labels(study, frame)
    done = frame.assign(size=labels)[frame["state"] == COMPLETE]
    least = study.asked.min_sizes
    finished = done["size"].nunique()
    if finished < least:
        line = f"no law: {finished} sizes have finished, {least} are needed"
        return Answer([line], labels=labels, verdict=UNSURE)

    fit = fit_power_law(done["flops"], done["val_loss"], size=done["size"], seed=done["seed"])
    ratio = study.asked.base_params["tokens_per_param"]
    convention_of_n = (
        f"one ladder at {ratio:g} training tokens per parameter, N: all parameters (total)"
    )
    conventions = [C_CONVENTION, convention_of_n]
    record = fit.to_json() | {"conventions": conventions, "runs": done["run"].tolist()}
    return Answer(
        [fit.in_words(), *fit.summary(), *conventions],
        fit,
        labels,
        fit.warnings,
        commands={"The law": "fit"},
        numbers=record,
        files={"fits/power.json": record},
    )


def narrow(study: Study, frame: DataFrame) -> Narrowing | None:
    """A further seed of one of the sizes, for the loss at ten times the largest budget."""
    from nanoscale.laws import fit_power_law

    done = frame.assign(size=size_labels(study, frame))[frame["state"] == COMPLETE]
    if done["size"].nunique() < study.asked.min_sizes:
        return None
    fit = fit_power_law(done["flops"], done["val_loss"], size=done["size"], seed=done["seed"])
    C = FAR * float(done["flops"].max())
    ends = fit.predict(x=C).loss_ci95
    if ends is None:
        return None
    candidates = {}
    for row, seeds in replicated(study):
        candidates[float(cell_of(study, row).flops)] = {**row, "seed": max(seeds) + 1}
    places = np.array([[*candidates]])
    x = done["flops"].to_numpy(float)[None]
    best = next_run(fit, x, fit.noise.used, f"L@{C}", places, places[0])
    of = f"the loss at {C:.3g} FLOPs"
    return Narrowing(of, ends[1] / ends[0], [candidates[best.cost]], best.cost, best.left)


def size_labels(study: Study, frame: DataFrame) -> list[str]:
    """How each run's size is called: its total N, or its shape where two shapes share that."""
    shapes = []
    for entry, _ in study.runs():
        kept = {k: v for k, v in entry.values.items() if k != "seed" and FIELDS[k].group in OF_SIZE}
        shapes.append(describe(kept))
    counts = list(map(short, frame["total_params"]))
    return counts if len({*counts}) == len({*shapes}) else shapes


def short(n: float | None) -> str:
    """`0.213M`: a parameter count for a label; `?` where a run, or every run, has none yet."""
    return "?" if n is None or math.isnan(n) else f"{n / 1e6:.3g}M"


def figures(
    study: Study, frame: DataFrame, answer: Answer, forecast: ForecastPoint | None = None
) -> list[Picture]:
    """The law over the runs, with what it forecast, and every run's curve."""
    from nanoscale.report import law_figure

    sized = frame.assign(size=answer.labels)
    done = sized[sized["state"] == COMPLETE]
    if done.empty:
        return []

    points = done.rename(columns={"flops": "x", "val_loss": "loss"})
    caption = (
        "Final validation loss of every run against its training compute, and below it the "
        "distance from the law."
    )
    if forecast is not None:
        caption = caption.replace("every run", "every run of the ladder")
        caption += " The bar is the sealed forecast's 95 % interval; the dot on it what came of it."
    drawn = law_figure(points, answer.result, forecast=forecast)
    return [Picture("law", caption, drawn), *curves(study, done)]


RECIPE = Recipe(
    tables=("seeds", "min_sizes", "sizes"),
    rows=rows,
    conclude=conclude,
    figures=figures,
    narrow=narrow,
    refits_without_smallest=True,
)
