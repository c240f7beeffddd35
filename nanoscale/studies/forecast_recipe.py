"""`recipe = "forecast"`: a ladder, its law, and a bigger run whose loss is sealed beforehand.

In stages, each of which reads what those before it left: the parametrization is checked, the noise
of seeds measured, the learning rate tuned, the ladder trained, with branches of other lengths, its
law fitted and its forecast of the run in [forecast.held_out] written to `predictions/`. Only then
that run is trained, and the forecast judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nanoscale.checks.coordinate_bands import SweptSize
from nanoscale.checks.coordinates import FAIL, UNSURE
from nanoscale.errors import UserError, counted, make_folder
from nanoscale.experiments.cells import Cell, grid_lists
from nanoscale.experiments.planning import folder_of
from nanoscale.experiments.results import RUNS
from nanoscale.laws.forecast import too_few_budgets
from nanoscale.spec.config import LENGTH_KEYS
from nanoscale.spec.sources import Source, flatten_keys
from nanoscale.spec.values import Overrides
from nanoscale.store.files import read_json, write_json
from nanoscale.store.folder import FINISHED
from nanoscale.studies import ladder_recipe
from nanoscale.studies.branches import Branches, ladder_ratio, read_ratios
from nanoscale.studies.coordinate_study import LEAST_SIZES, CoordinatePlan
from nanoscale.studies.designs import USUAL_NOISE, width_at
from nanoscale.studies.planned_runs import of_cells
from nanoscale.studies.recipe import CHECK, Answer, FileTable, Picture, Question, Recipe, Stage
from nanoscale.studies.row_runs import cell_of, loss_of_row, scale_of_row, whole_flops
from nanoscale.studies.seals import (
    LADDER_LAW,
    PREDICTIONS,
    SCORE,
    SealedRun,
    SealFound,
    Sealing,
    config_of,
    forecast_point,
    is_of,
    seal_in,
    seal_once,
    verify_study,
)
from nanoscale.studies.table_fit import LADDER_STAGE
from nanoscale.studies.tuning import FOUND, NOISE, TUNE, TunedLr, Tuning, found_in

if TYPE_CHECKING:
    from pandas import DataFrame

    from nanoscale.experiments import Study

BRANCHES, FIT, FORECAST, SEAL, CONFIRM = "branches", "fit", "forecast", "seal", "confirm"
TIMES_LARGER = 3.0  # the run held out, in FLOPs, than any other of the study


@dataclass(frozen=True)
class Size:
    """One size of the ladder."""

    row: Overrides
    seeds: Sequence[int]
    others: Sequence[float]  # tokens per parameter, of branches


@dataclass(frozen=True)
class MainJob:
    """The table [forecast], read; its methods are the rows of the stages."""

    sizes: Sequence[Size]
    ratio: float
    noise_seeds: Sequence[int]
    tuning: Tuning | None
    held_out: Overrides
    where: str  # the table stands
    known: dict[str, TunedLr] = field(default_factory=dict, compare=False)  # by the tuning's stage

    # -- before the ladder ----------------------------------------------------------------------
    def noise_rows(self, study: Study) -> list[Overrides]:
        """The smallest size, once per seed."""
        return [{**self.sizes[0].row, "seed": seed} for seed in self.noise_seeds]

    def noise(self, study: Study) -> float | None:
        """sd of ln L over them."""
        losses = [loss_of_row(study, row) for row in self.noise_rows(study)]
        logs = [math.log(loss) for loss in losses if loss is not None and math.isfinite(loss)]
        return float(np.std(logs, ddof=1)) if len(logs) > 1 else None

    def tune_rows(self, study: Study) -> Sequence[Overrides]:
        """The LRs of the small model and, once those are known, of the middle one."""
        return () if self.tuning is None else self.tuning.rows(study, self.noise(study))

    def tune_foreseen(self, study: Study) -> Sequence[Overrides]:
        return () if self.tuning is None else self.tuning.foreseen(study, self.noise(study))

    def tune_done(self, study: Study) -> None:
        self.tuned(study)
        self.keep_found(study)

    def tuned(self, study: Study) -> TunedLr | None:
        """The LR as the stage before the ladder left it, of which later runs change nothing; None
        where none is looked for."""
        if self.tuning is None:
            return None
        if TUNE not in self.known:
            self.known[TUNE] = self.tuning.found(study, self.noise(study))
        return self.known[TUNE]

    def with_lr(self, study: Study, row: Overrides, tuned: TunedLr | None) -> Overrides:
        """A row at the LR of its own N and D."""
        if tuned is None:
            return row
        return {**row, tuned.key: tuned.rule.at(*scale_of_row(study, row))}

    # -- the ladder -----------------------------------------------------------------------------
    def branches(self, study: Study, tuned: TunedLr | None) -> list[Branches]:
        """Of every size that has some, with its first seed."""
        found = []
        for size in self.sizes:
            if size.others:
                row = self.with_lr(study, {**size.row, "seed": size.seeds[0]}, tuned)
                found.append(Branches(row, self.ratio, size.others))
        return found

    def branch_rows(self, study: Study) -> list[Overrides]:
        """Their trunks and the lengths that are none of the ladder's."""
        rows = [b.rows(study) for b in self.branches(study, self.tuned(study))]
        return [row for several in rows for row in several]

    def branches_foreseen(self, study: Study) -> list[Overrides]:
        rows = [b.foreseen(study) for b in self.branches(study, self.known.get(TUNE))]
        return [row for several in rows for row in several]

    def ladder_rows(self, study: Study) -> list[Overrides]:
        """Every size with each of its seeds."""
        return self.ladder_at(study, self.tuned(study))

    def ladder_foreseen(self, study: Study) -> list[Overrides]:
        """The same, at the base's LR while no better one is known."""
        return self.ladder_at(study, self.known.get(TUNE))

    def ladder_at(self, study: Study, tuned: TunedLr | None) -> list[Overrides]:
        branched = iter(self.branches(study, tuned))
        rows = []
        for size in self.sizes:
            of_size = [
                self.with_lr(study, {**size.row, "seed": seed}, tuned) for seed in size.seeds
            ]
            if size.others:
                of_size[0] = next(branched).of_ladder(study)
            rows += of_size
        return rows

    @property
    def ladder_plan(self) -> list[Overrides]:
        """Those as the file has them."""
        return [{**size.row, "seed": seed} for size in self.sizes for seed in size.seeds]

    def keep_found(self, study: Study) -> None:
        """Write down what the stages so far came to."""
        record: dict[str, Any] = {}
        noise, tuned = self.noise(study), self.known.get(TUNE)
        if noise is not None:
            record[NOISE] = {"sd": noise}
        if tuned is not None:
            record[TUNE] = tuned.to_json() | {"summary": tuned.lines()}
        if record:
            make_folder(study.folder)
            write_json(study.folder / FOUND, record)

    # -- the forecast ---------------------------------------------------------------------------
    def held_out_row(self, study: Study) -> Overrides:
        return self.with_lr(study, self.held_out, self.tuned(study))

    def held_out_foreseen(self, study: Study) -> list[Overrides]:
        row = self.with_lr(study, self.held_out, self.known.get(TUNE))
        if seal_in(study.folder) is None:
            not_blind(study, cell_of(study, row))
        return [row]

    def sealing(self, study: Study) -> Sealing | None:
        """The forecast by the ladder as it is; None, which is said, where there can be none."""
        waiting = [entry for entry, run in study.runs() if run.state() not in FINISHED]
        if waiting:
            study.say(f"{counted(len(waiting), 'run')} left out or not finished: no forecast")
            return None
        cell = cell_of(study, self.held_out_row(study))
        N, D = scale_of_row(study, self.held_out_row(study))
        return Sealing.of_study(study, {"N": N, "D": D, "C": float(cell.flops)})

    def say_forecast(self, study: Study) -> list[Overrides]:
        """No run."""
        if seal_in(study.folder) is None:
            sealing = self.sealing(study)
            study.say(*([] if sealing is None else sealing.lines()))
        return []

    def seal(self, study: Study) -> list[Overrides]:
        """No run; the seal, if it is not there and may be made."""
        if seal_in(study.folder) is not None:
            return []
        cell = cell_of(study, self.held_out_row(study))
        if not_blind(study, cell):
            study.verdict = "inconclusive"
            return []
        sealing = self.sealing(study)
        if sealing is None or sealing.made.ci95 is None:
            study.verdict = "inconclusive"
            return []
        run = SealedRun(cell.id, cell.spec.name, cell.flops, config_of(cell.spec))
        made = seal_once(study.folder, sealing.text(run))
        if made is not None:
            study.say(f"sealed before run {cell.id} is made: {made[0]}, SHA-256 {made[1]}")
        return []

    def confirm_rows(self, study: Study) -> list[Overrides]:
        """The run held out, once its forecast is sealed; no other than that was forecast."""
        sealed = seal_in(study.folder)
        if sealed is None:
            return []
        row = self.held_out_row(study)
        now = cell_of(study, row).id
        if now == sealed.run_id:
            return [row] if self.may_be_judged(study, row, sealed) else []
        study.verdict = "fail"
        study.say(
            f"{sealed.path} forecasts run {sealed.run_id}, and the study's is now {now}: it was "
            "changed since; give the study another name"
        )
        return []

    def may_be_judged(self, study: Study, row: Overrides, sealed: SealFound) -> bool:
        """Whether the seal is of the study as it is; a run is trained under no other."""
        if not study.entries or loss_of_row(study, row) is not None:
            return True
        if is_of(sealed, study):
            return True
        study.verdict = "fail"
        study.say(
            f"{sealed.path} is of other runs than the study's now: it was changed since, and the "
            "run held out is not trained; give the study another name"
        )
        return False

    def check(self, cells: Sequence[Cell]) -> None:
        """Refuse a run that is hardly bigger than those that are fitted."""
        bigger = [cell.flops for cell in cells if cell.stage == CONFIRM]
        others = [whole_flops(cell.spec.config) for cell in cells if cell.stage != CONFIRM]
        largest = max(others, default=1)
        if bigger and bigger[0] < TIMES_LARGER * largest:
            times = bigger[0] / largest
            raise UserError(
                f"{self.where}: held_out: {bigger[0]:.3g} FLOPs are {times:.2g} times the largest "
                "run's, branches and all; a forecast is of a run of at least "
                f"{TIMES_LARGER:g} times"
            )

    def width(self, study: Study, cells: Sequence[Cell]) -> list[str]:
        """How wide the forecast's interval will about be, or why there will be none."""
        bigger = next((cell for cell in cells if cell.stage == CONFIRM), None)
        if bigger is None:  # the stages asked for end before
            return []
        runs = of_cells([cell for cell in cells if cell.stage == LADDER_STAGE], None, ladder=True)
        noise = self.noise(study) or USUAL_NOISE
        answer = width_at(runs, f"L@{float(bigger.flops)}", noise)
        half = 50 * answer.width / float(np.mean(answer.ends))
        lines = [
            f"foreseen at {bigger.flops:.3g} FLOPs: the law's loss to {half:.2g} % (95 %, by "
            f"{answer.worlds} worlds, noise {100 * noise:.2g} %), and wider by what the law does "
            "without its smallest sizes and by its drift"
        ]
        missing = too_few_budgets(runs.values["C"], LADDER_LAW.form)
        return [*lines, f"foreseen: no interval: {missing}"] if missing else lines


def not_blind(study: Study, cell: Cell) -> bool:
    """Whether the run that is to be forecast is there already, which is said."""
    there = folder_of(cell.spec, study.output_root / RUNS).exists()
    if there:
        study.say(f"not blind: run {cell.id}, which was to be forecast, is there already")
    return there


# -- the question ---------------------------------------------------------------------------------
def rows(table: FileTable) -> Question:
    """The stages that the table asks for, each with its rows."""
    job, least = read_job(table)
    stages = [
        Stage(job.noise_rows, job.noise_rows, NOISE, job.keep_found),
        Stage(job.branch_rows, job.branches_foreseen, BRANCHES),
        Stage(job.ladder_rows, job.ladder_foreseen, LADDER_STAGE),
        Stage(nothing, name=FIT),
        Stage(job.say_forecast, name=FORECAST),
        Stage(job.seal, name=SEAL),
        Stage(job.confirm_rows, job.held_out_foreseen, CONFIRM),
    ]
    if job.tuning is not None:
        stages.insert(1, Stage(job.tune_rows, job.tune_foreseen, TUNE, job.tune_done))
    asked = table.values.get(CHECK)
    return Question(
        [],
        table.where("sizes"),
        {"held_out": job.held_out},
        stages,
        min_sizes=least,
        fitted=job.ladder_plan,
        coordinates=None if asked is None else read_check(table, job.sizes[0].row),
        check=job.check,
        width=job.width,
    )


def nothing(study: Study) -> list[Overrides]:
    """No run: the law is fitted when the study is concluded."""
    return []


def read_job(table: FileTable) -> tuple[MainJob, int]:
    """The table, checked, and the sizes that a law needs."""
    held_out = table.values.get("held_out")
    if not isinstance(held_out, dict) or not held_out:
        raise UserError(
            f"{table.where()}: give the bigger run to forecast in [forecast.held_out], as in "
            "n_layer = 6, n_embd = 96"
        )
    plain = table.tables("sizes")
    branched = [read_ratios(table, size) for size in plain]
    ladder = ladder_recipe.rows(replace(table, values={**table.values, "sizes": plain}))
    row = flatten_keys(held_out)
    lengths = [key for key in LENGTH_KEYS if key in row]
    if lengths:
        raise UserError(
            f"{table.where()}: held_out: {lengths[0]}: it has [base]'s tokens_per_param, as all "
            "sizes do"
        )
    if any(row.items() <= run.items() for run in ladder.rows):
        raise UserError(f"{table.where()}: held_out is one of the sizes; forecast a bigger run")

    sizes = []
    for size, others in zip(plain, branched, strict=True):
        seeds = table.take_seeds(size)
        sizes.append(Size(size, seeds, others))
    shapes = [size.row for size in sizes]
    noise = table.part(NOISE, ("seeds",))
    job = MainJob(
        sizes=sizes,
        ratio=ladder_ratio(table),
        noise_seeds=[] if noise is None else noise_seeds(table, noise),
        tuning=Tuning.of(table, shapes) if TUNE in table.values else None,
        held_out=row,
        where=table.where(),
    )
    return job, ladder.min_sizes


def noise_seeds(table: FileTable, values: Mapping[str, Any]) -> list[int]:
    """Of [forecast.noise], three by default."""
    where = f"{table.path}, [{table.name}.{NOISE}]"
    seeds: list[int] = grid_lists({}, values.get("seeds", [1, 2, 3]), where)["seed"]
    if len({*seeds}) < 2:
        raise UserError(f"{where}: seeds={seeds}: one seed shows no noise; give three")
    return seeds


def read_check(table: FileTable, smallest: Overrides) -> Callable[[Overrides], CoordinatePlan]:
    """The coordinate check that [forecast.check] asks for, by the base."""
    values = table.part(CHECK, ("widths", "depths", "steps", "seeds")) or {}
    where = f"{table.path}, [{table.name}.{CHECK}]"
    sweep: SweptSize = "width" if "widths" in values else "depth"
    sizes = values.get(f"{sweep}s", [])
    whole = isinstance(sizes, list) and all(isinstance(size, int) for size in sizes)
    if not whole or len({*sizes}) < LEAST_SIZES or min(sizes) < 1:
        raise UserError(f"{where}: give {LEAST_SIZES} or more widths or depths, as in [32, 64, 96]")
    steps, seeds = values.get("steps", 10), values.get("seeds", 3)
    for name, count in (("steps", steps), ("seeds", seeds)):
        if not isinstance(count, int) or count < 1:
            raise UserError(f"{where}: {name}={count!r}: expected a whole number above 0")

    def plan(base: Overrides) -> CoordinatePlan:
        config = Source(where, {**base, **smallest})
        flags = []
        if "n_head" in base and "n_head" not in smallest:  # their number stays, and they grow
            flags = [Source(where, {"n_head": base["n_head"]})]
        return CoordinatePlan.of(sweep, sorted({*sizes}), steps, seeds, [config], flags)

    return plan


# -- what the stages found ------------------------------------------------------------------------
def found_lines(study: Study) -> tuple[list[str], list[str]]:
    """What a user reads of it, and doubts."""
    lines, doubts = [], []
    noise, tuned = found_in(study.folder)
    if tuned is not None:
        lines += tuned.lines()
        doubts += tuned.doubts
    if noise is not None:
        lines.append(f"noise of the smallest size's seeds: {100 * noise:.2g} % of the loss")
    check = study.folder / f"{CHECK}.json"
    if check.is_file():
        verdict: Any = read_json(check)
        if not isinstance(verdict, dict) or not {"sweep", "verdict"} <= verdict.keys():
            raise UserError(f"{check}: no verdict of a coordinate check; delete it")
        lines.append(f"coordinate check over {verdict['sweep']}s: {verdict['verdict']}")
        if verdict["verdict"] == "inconclusive":
            doubts.append("the coordinate check of the parametrization does not decide")
    return lines, doubts


def saved_by_branches(study: Study) -> list[str]:
    """What branching off a trunk has saved."""
    spent = whole = 0
    for entry, folder in study.runs():
        if "warmup_iters" in entry.values and folder.exists():
            spent += entry.flops
            whole += whole_flops(folder.spec().config)
    if not whole or spent == whole:
        return []
    return [f"branches: {spent:.3g} FLOPs in place of {whole:.3g}, {100 * spent / whole:.0f} %"]


# -- the answer -----------------------------------------------------------------------------------
def ladder_of(study: Study) -> Study:
    """The study's runs at the ladder's own length."""
    kept = [entry for entry in study.entries if entry.stage == LADDER_STAGE]
    return replace(study, entries=kept)


def unsealed(ladder: Study) -> str:
    """Why there is no forecast to tell of."""
    if not ladder.entries:
        return "nothing is forecast yet: the ladder has not begun"
    waiting = sum(run.state() not in FINISHED for _, run in ladder.runs())
    if waiting:
        return f"nothing is forecast yet: the ladder waits for {counted(waiting, 'run')}"
    budgets = ladder.frame()["flops"].to_numpy(float)
    missing = too_few_budgets(budgets, LADDER_LAW.form)
    return f"nothing is forecast: {missing}" if missing else "no forecast is sealed"


def conclude(study: Study, frame: DataFrame) -> Answer:
    """The ladder's law, the forecast, and how it did, kept in predictions/score.json."""
    ladder = ladder_of(study)
    told, doubts = found_lines(study)
    told += saved_by_branches(study)
    answer = Answer([])
    if ladder.entries:
        answer = ladder_recipe.conclude(ladder, ladder.frame())
    lines = [*answer.lines, *told]
    warnings = [*answer.warnings, *doubts]
    if seal_in(study.folder) is None:
        lines = [unsealed(ladder), *lines]
        return replace(answer, lines=lines, warnings=warnings, verdict=UNSURE)

    found = verify_study(study.folder)
    score = {}
    if found.score is not None and not found.problems:
        score = {f"{PREDICTIONS}/{SCORE}": found.score.to_json()}
    if found.problems:
        study.verdict = FAIL
    return replace(
        answer,
        lines=[found.headline(), *lines, *found.grounds()],
        warnings=warnings,
        commands={"The forecast, from its seal": "verify"},
        verdict=found.verdict,
        numbers=found.to_json() | {"law": answer.numbers},
        files={**answer.files, **score},
    )


def figures(study: Study, frame: DataFrame, answer: Answer) -> list[Picture]:
    """Those of the ladder, with the forecast and what came of it."""
    ladder = ladder_of(study)
    if not ladder.entries:
        return []
    return ladder_recipe.figures(ladder, ladder.frame(), answer, forecast_point(study.folder))


RECIPE = Recipe(
    tables=("seeds", "min_sizes", "sizes", "held_out", CHECK, NOISE, TUNE),
    rows=rows,
    conclude=conclude,
    figures=figures,
    refits_without_smallest=True,
)
