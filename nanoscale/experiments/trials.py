"""Trials as runs: a search's proposals become cells and jobs, run folders become its results.

What a search has tried is its study's record, in order; the results are in the run folders. So a
killed search goes on, a finished one runs nothing, and one asked for more trials runs those alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from nanoscale.errors import UserError, disk_errors
from nanoscale.experiments.cells import Cell
from nanoscale.experiments.neighbours import Neighbours
from nanoscale.experiments.planning import CACHED, PlannedRun, planned
from nanoscale.experiments.pool import Job
from nanoscale.experiments.records import BestRun, Json, Row, RunEntry, describe
from nanoscale.experiments.results import Study
from nanoscale.experiments.samplers import write_journal
from nanoscale.experiments.search import Search, SearchPlan, Trial
from nanoscale.spec.config import LENGTH_KEYS, flatten
from nanoscale.spec.counting import flops_per_iter
from nanoscale.spec.schedule import cooldown_start
from nanoscale.store.folder import COMPLETE, DIVERGED, FAILED, FINISHED, RunFolder
from nanoscale.store.resume import past_difference

HEADS = ("n_head", "n_kv_head")  # follow the width
CARRIED = {"SP": (), "muP": ("n_embd",), "CompleteP": ("n_embd", "n_layer")}
_BATCH_KEYS = ("batch_size", "gradient_accumulation_steps")

MakeCell = Callable[[Row], Cell]


# -- values to cells ----------------------------------------------------------------------------
class TrialCells:
    """How values become cells: a trial's at each rung, of the proxy's size; the best at the base's.

    `make_target` turns a row of config keys over the base into a cell.
    """

    def __init__(self, plan: SearchPlan, make_target: MakeCell) -> None:
        self.plan = plan
        self.make_target = make_target

    def make(self, row: Row) -> Cell:
        """A cell of the proxy's size."""
        return self.make_target({**self.plan.proxy, **row})

    def at_rung(self, values: Row, rung: int, parent: Path | None = None) -> Cell:
        """The cell of a trial at a rung; `parent` is the folder of the rung below."""
        if not self.plan.has_rungs:
            return self.make(values)
        lengths = self.plan.rungs
        row = {**values, "lr_schedule": "wsd", "max_iters": lengths[0]}
        # one warmup in updates for all rungs: their pasts must be equal
        warmup = self.make(row).spec.config.warmup_iters
        row |= {"max_iters": lengths[rung], "warmup_frac": None, "warmup_iters": warmup}
        row["checkpoint_steps"] = [cooldown_start(self.make(row).spec.config)]
        if parent is not None:
            below = self.make(row | {"max_iters": lengths[rung - 1]}).spec.config
            row["branch_from"] = f"{parent}@{cooldown_start(below)}"
        return self.make(row)

    def targets(self, values: Row) -> list[Cell]:
        """The cells of the plan's seeds at the base's own size, scheduled as the trials are."""
        row = dict(values)
        if self.plan.has_rungs:
            row = dict(self.at_rung(values, len(self.plan.rungs) - 1).values)
            for key in ("checkpoint_steps", *self.plan.proxy):
                row.pop(key)

        cells = []
        for seed in self.plan.seeds:
            cell = self.make_target({**row, "seed": seed})
            sizes = flatten(cell.config)
            shown = {key: sizes[key] for key in self.plan.proxy}
            cells.append(replace(cell, values={**shown, **cell.values}))
        return cells

    def check(self, values: Row) -> None:
        """Refuse a space with values that make no run.

        Every choice and every end of a range is tried, the other keys at `values`.
        """
        for key, dimension in self.plan.space.items():
            for value in dimension.extremes():
                self.at_rung({**values, key: value}, 0)
                self.targets({**values, key: value})

    def costs(self, values: Row) -> list[int]:
        """The FLOPs that each rung adds for a trial at `values`.

        Raises:
            UserError: a rung cannot go on from the one below it.
        """
        rungs = list(self.plan.rungs)
        below = self.at_rung(values, 0)
        costs = [below.flops]
        first = below.spec.config
        end_of_trunk = first.max_iters - round(first.cooldown_frac * first.max_iters)
        if self.plan.has_rungs and first.warmup_iters >= end_of_trunk:
            raise UserError(
                f"rungs={rungs}: the warmup of {first.warmup_iters} updates leaves nothing of "
                f"{first.max_iters}; set warmup_frac=0.05"
            )

        for rung in range(1, len(rungs)):
            cell = self.at_rung(values, rung)
            start = cooldown_start(below.spec.config)
            why = past_difference(below.spec, cell.spec, start)
            if why:
                raise UserError(
                    f"rungs={rungs}: a longer run cannot go on from a shorter one: {why}"
                )
            costs.append(flops_per_iter(cell.spec.config) * (rungs[rung] - start))
            below = cell
        return costs


# -- cells to runs ------------------------------------------------------------------------------
@dataclass
class Underway:
    """A trial at a rung, and the run that it is."""

    trial: Trial
    run: PlannedRun

    @property
    def job(self) -> Job:
        trial = self.trial
        rung = f", rung {len(trial.losses)}" if self.run.cell.spec.config.branch_from else ""
        title = f"trial {trial.number}{rung}: {describe(trial.values)}"
        return replace(self.run.job, title=title)


class Trials:
    """A search bound to the run folders of its study, and to what is known of its space.

    Trials of an earlier call are never run again, in whatever study; `budget` is of FLOPs, of which
    the runs at the target have theirs for sure.

    Raises:
        UserError: values of the space make no run, or the rungs no search.
    """

    def __init__(
        self, study: Study, plan: SearchPlan, make: MakeCell, store: Path, budget: float | None
    ) -> None:
        self.study = study
        self.plan = plan
        self.cells = TrialCells(plan, make)
        self.store = store
        any_values = Search(replace(plan, sampler="random")).draw(0)
        self.cells.check(any_values)
        costs = self.cells.costs(any_values)
        self.expected = plan.expected(costs)
        self.targets_flops = sum(cell.flops for cell in self.cells.targets(any_values))
        self.last_rung = self.cells.at_rung(any_values, len(costs) - 1)
        self.budget = math.inf if budget is None else budget - self.targets_flops

        self.earlier = earlier_trials(study)
        known = known_results(Neighbours(store), self.last_rung, plan)
        for entry in self.earlier:
            known.pop(entry.folder, None)
        self.search = Search(plan, list(known.values()))
        self.underway: list[Underway] = []
        self.last: dict[int, Path] = {}  # trial number -> the folder of its newest rung
        self.spent = 0
        self.broke = False

    # -- what is said ---------------------------------------------------------------------------
    def title(self) -> str:
        """What is asked, what it may cost, what is known."""
        plan = self.plan
        at = f" at {describe(plan.proxy)}" if plan.proxy else ""
        then = ""
        if plan.seeds:
            then = f", and {len(plan.seeds)} runs of the best, {self.targets_flops:.3g}"
        return (
            f"{plan.trials} trials of {', '.join(plan.space)} by {plan.sampler}{at}: about "
            f"{self.expected.flops:.3g} FLOPs{then}; {len(self.search.known)} runs of other "
            f"studies are known, {len(self.earlier)} of this one"
        )

    def warnings(self) -> list[str]:
        """What keeps the proxy's best values from being the target's."""
        rules = self.last_rung.spec.config.parametrization
        carried = [*HEADS, *CARRIED.get(rules.mode, CARRIED["CompleteP"])]
        if rules.base_tokens is not None:
            carried += LENGTH_KEYS
        if rules.base_batch_tokens is not None:
            carried += _BATCH_KEYS
        return [
            f"no rule of {rules.mode} carries the best values over {key}, in which the proxy "
            "differs from the target"
            for key in self.plan.proxy
            if key not in carried
        ]

    # -- the way of a trial ---------------------------------------------------------------------
    def replay(self) -> None:
        """Take up what an earlier call has tried, in its order."""
        with disk_errors(self.study.folder):
            self.study.folder.mkdir(parents=True, exist_ok=True)
        trials = self.search.trials
        for entry in self.earlier:
            if entry.trial is None or entry.trial_values is None:
                continue
            while len(trials) < entry.trial:  # those that made no run
                self.search.tell(self.search.add({}), None)
            if entry.rung == 0:
                trial = self.search.add(entry.trial_values)
            else:
                trial = trials[entry.trial]
                if len(trial.losses) != entry.rung:
                    continue  # the rung below is gone, or failed: it comes first
                trial.running = True
                trial.failed = False
            self.begin(trial)
            self.collect()

    def begin(self, trial: Trial) -> Underway:
        """Make the run of a trial's next rung part of the study."""
        rung = len(trial.losses)
        cell = self.cells.at_rung(trial.values, rung, self.last.get(trial.number))
        run = planned(cell, self.store)
        run.make_ready()
        self.last[trial.number] = run.folder.path
        self.study.plan.setdefault(cell.id, run.plan)
        self.study.entries.append(
            replace(cell.entry, trial=trial.number, rung=rung, trial_values=trial.values)
        )
        self.spent += cell.flops
        self.underway.append(Underway(trial, run))
        return self.underway[-1]

    def collect(self) -> None:
        """Tell the search of the runs that have ended."""
        for begun in list(self.underway):
            folder = begun.run.folder
            if folder.state() in (*FINISHED, FAILED):
                self.underway.remove(begun)
                self.search.tell(begun.trial, loss_of(folder))

    def more(self, free: int) -> list[Job]:
        """Up to `free` new jobs; none while none can be known, or the budget is spent."""
        self.collect()
        jobs: list[Job] = []
        while len(jobs) < free and not self.broke:
            trial = self.search.propose()
            if trial is None:
                break
            try:
                begun = self.begin(trial)
            except UserError as e:  # a combination that makes no run
                self.study.say(f"trial {trial.number} is none: {e}")
                self.search.tell(trial, None)
                continue
            if self.spent > self.budget:
                self.broke = True
                self.take_back(begun)
            elif self.study.plan[begun.run.cell.id] == CACHED:
                self.collect()
            else:
                jobs.append(begun.job)
        if jobs:
            self.study.save_record()
        return jobs

    def take_back(self, begun: Underway) -> None:
        """Undo the beginning of a trial that the budget does not pay for."""
        self.underway.remove(begun)
        self.study.entries.pop()
        self.spent -= begun.run.cell.flops
        begun.trial.running = False
        if not begun.trial.losses:
            self.search.trials.remove(begun.trial)

    def unfinished(self) -> bool:
        """Whether a run waits, or the plan asks for more."""
        fewer = len(self.search.trials) < self.plan.trials
        return bool(self.underway) or fewer or self.search.promotable() is not None

    def waiting(self) -> list[Job]:
        """Jobs of what an earlier call has left unfinished."""
        return [begun.job for begun in self.underway]

    # -- the end --------------------------------------------------------------------------------
    def conclude(self) -> list[str]:
        """Write what the search has left beside its runs; the lines that say what it found."""
        self.collect()
        study, search = self.study, self.search
        if self.plan.sampler != "random":
            journal = study.folder / "optuna.journal"
            write_journal(journal, study.name, self.plan.space, search.told())
        study.outcome = search.outcome()

        line = f"{len(search.trials)} trials, {len(study)} runs, {self.spent:.3g} FLOPs"
        if self.broke:
            line += "; the budget pays for no more"
        best = search.best()
        said = "no trial has a loss"
        if best is not None:
            loss = best.losses[-1]
            folder = self.last[best.number].name
            study.best_trial = BestRun(
                trial=best.number, values=best.values, val_loss=loss, folder=folder
            )
            said = f"best: trial {best.number}, {describe(best.values)}: val_loss {loss:.4f}"
        study.save()
        return [line, said]

    def targets(self) -> list[Cell]:
        """The cells in which the best values are trained anew; none without a best trial."""
        best = self.search.best()
        return [] if best is None else self.cells.targets(best.values)


# -- what is known ------------------------------------------------------------------------------
def loss_of(folder: RunFolder) -> float | None:
    """A run's loss: inf if it diverged, None if it has none."""
    state = folder.state()
    if state == DIVERGED:
        return math.inf
    metrics = folder.metrics() if state == COMPLETE else None
    return (metrics or {}).get("val_loss")


def earlier_trials(study: Study) -> list[RunEntry]:
    """The runs of an earlier call of the same search, but for its trials' number and its seeds."""
    with suppress(UserError):
        before = Study.open(study.folder)
        if before.asked.base_params == study.asked.base_params and _same(before) == _same(study):
            return [entry for entry in before.entries if entry.trial is not None]
    return []


def _same(study: Study) -> dict[str, Json]:
    """What a study's trials depend on."""
    plan = {"proxy": {}, **(study.asked.search or {})}
    return plan | {"trials": None, "seeds": None}


def known_results(
    neighbours: Neighbours, cell: Cell, plan: SearchPlan
) -> dict[str, tuple[Row, float]]:
    """Folder's name -> (values, loss) of the finished runs of any study that are trials of a space.

    `cell` is any trial's at the last rung.
    """
    known: dict[str, tuple[Row, float]] = {}
    free = {*plan.space, "warmup_iters", "branch_from"}
    for folder, config in neighbours.alike(cell.spec, free):
        values = {key: config[key] for key in plan.space}
        if all(plan.space[key].holds(value) for key, value in values.items()):
            with suppress(UserError):
                loss = loss_of(folder)
                if loss is not None:
                    known[folder.path.name] = (values, loss)
    return known
