"""`recipe = "isoflop"`: sizes at budgets of equal compute; the best size of each, and of a bigger.

Every budget is spent on every size (Hoffmann et al. 2022, section 3.2). Where the lowest loss of a
budget lies near an end of its sizes, others are trained beyond that end, until there are two on
either side. The law is of N = C / 6 D, a run's exact training FLOPs per token over 6, so that
C = 6 N D holds exactly; a size in parameters follows from its shape.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from nanoscale.checks.coordinates import UNSURE
from nanoscale.errors import UserError
from nanoscale.experiments.cells import Cell
from nanoscale.experiments.records import describe
from nanoscale.laws.arrays import Array
from nanoscale.laws.band import Ends, ends_text
from nanoscale.laws.isoflop import BUDGETS_NEEDED, BUDGETS_WANTED
from nanoscale.laws.plan import FEW_UPDATES, SHAPE, equal_cost
from nanoscale.laws.predict import FAR
from nanoscale.laws.questions import MAGNITUDE
from nanoscale.laws.record import Optimum
from nanoscale.spec.config import LENGTH_KEYS, ResolvedConfig
from nanoscale.spec.counting import flops_per_iter, parameter_counts
from nanoscale.spec.values import Overrides
from nanoscale.store.folder import COMPLETE
from nanoscale.studies.branches import is_positive
from nanoscale.studies.designs import USUAL_NOISE, width_at
from nanoscale.studies.narrowing import Narrowing, next_run
from nanoscale.studies.planned_runs import PlannedRuns, of_cells
from nanoscale.studies.recipe import Answer, FileTable, Picture, Question, Recipe, Stage
from nanoscale.studies.row_runs import cell_of, replicated
from nanoscale.studies.runs import curves
from nanoscale.studies.table_fit import OURS

if TYPE_CHECKING:
    from pandas import DataFrame

    from nanoscale.experiments import Study
    from nanoscale.laws.fit import LawFit
    from nanoscale.laws.isoflop import IsoFlop
    from nanoscale.studies.table_fit import TableFit

BUDGET = "max_flops"  # the key that a budget is
VALLEY_SIZES = 4  # of a budget: a parabola and what is left of it
LEAST_STEP = 1.2  # from a budget to the next, so that runs are told apart by what they cost
EITHER_SIDE = 2  # sizes on either side of a budget's lowest loss
MOST_BEYOND = 4  # sizes beyond an end of those in the file
C_AND_N = (
    "C: training FLOPs, exact; N: C / 6 D, a run's FLOPs per token over 6, which for a small model "
    "is more than its parameters (the table's N, total)"
)


@dataclass(frozen=True)
class SizeAtBudget:
    """One size at one budget, and what its seeds came to."""

    row: Overrides  # without its seed
    config: ResolvedConfig
    loss: float = math.nan  # the mean; infinite where one diverged, NaN where one is missing
    last_seed: int = 0

    @property
    def N(self) -> int:
        return parameter_counts(self.config)["total"]

    @property
    def budget(self) -> float:
        return float(str(self.row[BUDGET]))

    @property
    def compute_size(self) -> float:
        """N = C / 6 D."""
        return flops_per_iter(self.config) / (6 * self.config.tokens_per_iter)

    @property
    def text(self) -> str:
        return describe({key: self.row[key] for key in self.row if key != BUDGET})

    def scaled(self, ratio: float) -> SizeAtBudget:
        """The model of its shape that is nearest to `ratio` times its FLOPs per token."""
        model = equal_cost(ratio * self.compute_size, self.config)
        shape = {key: getattr(model, key) for key in SHAPE}
        return SizeAtBudget({**self.row, **shape}, replace(self.config, **shape))


@dataclass(frozen=True)
class BudgetGrid:
    """The table [isoflop], read."""

    budgets: Sequence[float]
    sizes: Sequence[tuple[Overrides, Sequence[int]]]  # each with its seeds

    def rows_of(self, size: Overrides, seeds: Sequence[int]) -> list[Overrides]:
        return [{**size, "seed": seed} for seed in seeds]

    def first_rows(self) -> list[Overrides]:
        """Every size at every budget."""
        rows = []
        for budget in self.budgets:
            for size, seeds in self.sizes:
                rows += self.rows_of({**size, BUDGET: budget}, seeds)
        return rows

    def beyond(self, study: Study) -> list[Overrides]:
        """Sizes beyond those at an end of which a budget's lowest loss lies."""
        seeds = self.sizes[0][1]
        rows = []
        for sizes in sizes_by_budget(study).values():
            most = len(self.sizes)
            for size in missing(sizes, EITHER_SIDE, most):
                rows += self.rows_of(size.row, seeds)
        return rows


def rows(table: FileTable) -> Question:
    """Every budget in [isoflop] on every size in [[isoflop.sizes]], and the sizes beyond."""
    budgets = table.values.get("budgets")
    if not isinstance(budgets, list) or not all(map(is_positive, budgets)):
        raise UserError(
            f"{table.where()}: budgets={budgets!r}: give the FLOPs of each, as in "
            "budgets = [1e13, 2e13, 4e13]"
        )
    budgets = sorted(map(float, budgets))
    near = any(b < LEAST_STEP * a for a, b in pairwise(budgets))
    if near or len(budgets) < BUDGETS_NEEDED:
        raise UserError(
            f"{table.where()}: budgets={budgets!r}: give at least {BUDGETS_NEEDED}, better "
            f"{BUDGETS_WANTED}, each at least {LEAST_STEP:g} times the one before"
        )
    at = table.values.get("at", FAR * budgets[-1])
    if not is_positive(at):
        raise UserError(f"{table.where()}: at={at!r}: expected FLOPs above 0, as in 1e15")
    refine = table.values.get("refine", True)
    if not isinstance(refine, bool):
        raise UserError(f"{table.where()}: refine={refine!r}: expected true or false")
    for key in LENGTH_KEYS:
        if key in table.base:
            raise UserError(f"{table.path}, [base]: {key}: the budgets say how long runs are")

    sizes = table.sizes("the budgets say how long runs are")
    if len(sizes) < VALLEY_SIZES:
        raise UserError(
            f"{table.where('sizes')}: {len(sizes)} sizes show no valley; give at least "
            f"{VALLEY_SIZES}"
        )
    grid = BudgetGrid(budgets, sizes)
    return Question(
        grid.first_rows(),
        table.where("sizes"),
        {"at": float(at)},
        [Stage(grid.beyond)] if refine else [],
        width=lambda study, cells: foreseen_width(cells, float(at)),
    )


def foreseen_width(cells: Sequence[Cell], at: float) -> list[str]:
    """How well N* at a budget will about be known."""
    runs = by_exact_compute(of_cells(cells, None, ladder=False))
    answer = width_at(runs, f"N*@{at:g}", USUAL_NOISE)
    return [
        f"foreseen: N* at {at:.3g} FLOPs within a factor of {answer.width:.2g} (95 %, by "
        f"{answer.worlds} worlds of Hoffmann et al.'s law, noise {100 * USUAL_NOISE:g} %)"
    ]


def by_exact_compute(runs: PlannedRuns) -> PlannedRuns:
    """The same with N = C / 6 D."""
    N: Array = runs.values["C"] / (6 * runs.values["D"])
    return replace(runs, values={**runs.values, "N": N})


# -- valleys as they are ---------------------------------------------------------------------------
def sizes_by_budget(study: Study) -> dict[float, list[SizeAtBudget]]:
    """The sizes of every budget, from the smallest."""
    table: dict[float, list[SizeAtBudget]] = defaultdict(list)
    for row, seeds in replicated(study):
        config = cell_of(study, row).spec.config
        losses = [math.nan if loss is None else loss for loss in seeds.values()]
        size = SizeAtBudget(row, config, sum(losses) / len(losses), max(seeds))
        table[size.budget].append(size)
    for sizes in table.values():
        sizes.sort(key=lambda size: size.N)
    return dict(sorted(table.items()))


def missing(sizes: Sequence[SizeAtBudget], margin: int, given: float) -> list[SizeAtBudget]:
    """What a budget lacks for `margin` sizes on either side of its lowest loss; none where a model
    would make hardly an update, and none far beyond those that were `given`."""
    known = [size for size in sizes if math.isfinite(size.loss)]
    if len(known) < VALLEY_SIZES or len(sizes) >= given + MOST_BEYOND:
        return []
    lowest = known.index(min(known, key=lambda size: size.loss))
    ratio = (known[-1].N / known[0].N) ** (1 / (len(known) - 1))
    found = []
    for step in range(1, margin - lowest + 1):
        found.append(known[0].scaled(ratio**-step))
    for step in range(1, margin - (len(known) - 1 - lowest) + 1):
        found.append(known[-1].scaled(ratio**step))

    there = {size.N for size in sizes}
    return [size for size in found if size.N not in there and _updates(size) >= FEW_UPDATES]


def _updates(size: SizeAtBudget) -> float:
    return size.budget / flops_per_iter(size.config)


# -- the answer ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class BestSize:
    """N* and D* at a budget, by one of the approaches."""

    C: float
    optimum: Optimum
    exponent: float
    exponent_ci95: Ends
    approach: str

    @classmethod
    def of(cls, result: TableFit, C: float) -> BestSize | None:
        """By the surface; by the valleys where that does not know; None where nothing does."""
        found: list[tuple[str, LawFit | IsoFlop]] = [("Approach 3", result.fit)]
        parabola = result.isoflop.parabola if result.isoflop is not None else ""
        if not isinstance(parabola, str):
            found.append(("Approach 2", parabola.isoflop))
        for approach, fit in found:
            if "a" in fit.ci95:
                optimum = fit.optimum(C)
                ends = optimum.N_ci95
                if ends is not None and ends[1] < MAGNITUDE * ends[0]:
                    return cls(C, optimum, fit.exponents["a"], fit.ci95["a"], approach)
        return None

    def lines(self, like: ResolvedConfig) -> list[str]:
        """The answer, and the nearest model of the shape of `like`."""
        best = self.optimum
        model = equal_cost(best.N, like)
        shape = describe({key: getattr(model, key) for key in SHAPE})
        size = parameter_counts(model)["total"]
        return [
            f"at {self.C:.3g} FLOPs the best size is N* = {best.N:.3g}{ends_text(best.N_ci95)} on "
            f"D* = {best.D:.3g}{ends_text(best.D_ci95)} tokens ({self.approach})",
            f"the nearest model: {shape}, {size:,} parameters",
            f"N* ~ C^{self.exponent:.3f}{ends_text(self.exponent_ci95)}",
        ]


def surface_of(study: Study, frame: DataFrame) -> TableFit:
    """The surface through the finished runs."""
    from nanoscale.studies.table_fit import FitSettings, fit_table

    settings = FitSettings(d=OURS["d"], c=OURS["c"], resampling="parametric")
    return fit_table(frame[frame["state"] == COMPLETE], settings, name=study.name)


def narrow(study: Study, frame: DataFrame) -> Narrowing | None:
    """A further seed of a size at a budget, or a size that a valley lacks."""
    result = surface_of(study, frame)
    C = study.asked.extras["at"]
    ends = result.fit.optimum(C).N_ci95
    if ends is None:
        return None
    candidates = {}
    for sizes in sizes_by_budget(study).values():
        for size in [*sizes, *missing(sizes, 1, math.inf)]:
            N = size.compute_size
            candidates[N, size.budget / (6 * N)] = size
    places = np.array([*candidates]).T
    cost = np.array([size.budget for size in candidates.values()])
    points, noise = result.points, result.basis.noise.used
    best = next_run(result.fit, points.x, noise, f"N*@{C}", places, cost)
    N, D = best.x
    size = candidates[N, D]
    row = {**size.row, "seed": size.last_seed + 1}
    return Narrowing(f"N* at {C:.3g} FLOPs", ends[1] / ends[0], [row], best.cost, best.left)


def conclude(study: Study, frame: DataFrame) -> Answer:
    """N* and D* at the budget asked, kept in fits/isoflop.json, and all that was found beside."""
    by_budget = sizes_by_budget(study)
    labels = [f"{value:.3g} FLOPs" for value in frame[BUDGET].astype(float)]
    at = study.asked.extras["at"]
    try:
        result = surface_of(study, frame).ask(isoflop=True, multiverse=True)
    except UserError as error:
        lines = [f"no answer: {error}", *bracketing(by_budget)]
        return Answer(lines, None, labels, verdict=UNSURE)

    best = BestSize.of(result, at)
    finished = frame.loc[frame["state"] == COMPLETE, "run"].tolist()
    record = result.to_json() | {"conventions": [C_AND_N], "runs": finished}
    if best is not None:
        record["best"] = {"C": best.C, "approach": best.approach, **vars(best.optimum)}

    largest = min([*by_budget.values()][-1], key=lambda size: size.loss)
    lines = [f"no best size at {at:.3g} FLOPs: these runs leave it open"]
    if best is not None:
        lines = best.lines(largest.config)
    lines += bracketing(by_budget)
    assert result.isoflop is not None
    assert result.multiverse is not None
    lines += [*result.isoflop.text(), *result.multiverse.text(), C_AND_N]
    return Answer(
        lines,
        result,
        labels,
        result.warnings,
        commands={"The surface, the valleys and all that is said of them": FIT_AGAIN},
        verdict=UNSURE if best is None else "",
        numbers=record,
        files={"fits/isoflop.json": record},
    )


def bracketing(by_budget: Mapping[float, Sequence[SizeAtBudget]]) -> list[str]:
    """The budgets whose lowest loss has no size on one side of it, and the run that it lacks."""
    lines = []
    for budget, sizes in by_budget.items():
        for size in missing(sizes, 1, math.inf):
            lines.append(
                f"the valley at {budget:.3g} FLOPs has no end: train {size.text} there "
                f"({size.N:,} parameters)"
            )
    return lines


def figures(study: Study, frame: DataFrame, answer: Answer) -> list[Picture]:
    """The valleys, the surface, the frontier, how the exponent moves with choices, the curves."""
    if answer.result is None:
        return []
    from nanoscale.studies.fit_gallery import gallery

    drawn = gallery(answer.result)
    pictures = []
    for name, caption in CAPTIONS.items():
        if name in drawn:
            pictures.append(Picture(name, caption, drawn[name]))
    done = frame.assign(size=answer.labels)[frame["state"] == COMPLETE]
    return [*pictures, *curves(study, done)]


FIT_AGAIN = f"fit --d={OURS['d']} --c={OURS['c']} --resample=parametric --isoflop --multiverse"
CAPTIONS = {
    "isoflop_parabola": "The valleys: loss against size at every budget, and the sizes at their "
    "lowest points against the budget (Approach 2).",
    "surface": "The fitted surface of loss over N and D (Approach 3), with its best sizes.",
    "frontier": "The least loss at every budget.",
    "multiverse": "The exponent a of N* ~ C^a under every defensible choice.",
}

RECIPE = Recipe(
    tables=("budgets", "at", "refine", "seeds", "sizes"),
    rows=rows,
    conclude=conclude,
    figures=figures,
    narrow=narrow,
)
