"""Trials as runs: a search's proposals become cells and jobs, run folders become its results.

What a search has tried is its study's record, in order; the results are in the run folders. So a
killed search goes on, a finished one runs nothing, and one asked for more trials runs those alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nanoscale.errors import UserError, disk_errors
from nanoscale.experiments.cells import Cell
from nanoscale.experiments.planning import CACHED, Store, make_ready, plan_of
from nanoscale.experiments.pool import Job
from nanoscale.experiments.records import BestRun, RunEntry, describe
from nanoscale.experiments.results import Study
from nanoscale.experiments.search import Search, SearchPlan, Trial
from nanoscale.spec.config import LENGTH_KEYS, flatten
from nanoscale.spec.counting import flops_per_iter
from nanoscale.spec.schedule import cooldown_start
from nanoscale.store.folder import COMPLETE, DIVERGED, FAILED, FINISHED, RunFolder
from nanoscale.store.resume import past_difference

HEADS = ("n_head", "n_kv_head")  # follow the width
CARRIED = {"SP": (), "muP": ("n_embd",), "CompleteP": ("n_embd", "n_layer")}
BATCH_KEYS = ("batch_size", "gradient_accumulation_steps")

MakeCell = Callable[[Mapping[str, Any]], Cell]


class Ladder:
    """How values become cells: a trial's at each rung, of the proxy's size; the best at the base's.

    `make` turns a row of config keys over the base into a cell.
    """

    def __init__(self, plan: SearchPlan, make: MakeCell) -> None:
        self.plan, self.make_target = plan, make
        self.make: MakeCell = lambda row: make({**plan.proxy, **row})

    def cell(self, values: Mapping[str, Any], rung: int, parent: Path | None) -> Cell:
        """The cell of a trial at a rung; `parent` is the folder of the rung below."""
        if self.plan.rungs == (0,):
            return self.make(values)
        length = self.plan.rungs[rung]
        first = self.make({**values, "lr_schedule": "wsd", "max_iters": self.plan.rungs[0]})
        # one warmup in updates for all rungs: their pasts must be equal
        row = {
            **values,
            "lr_schedule": "wsd",
            "max_iters": length,
            "warmup_frac": None,
            "warmup_iters": first.spec.config.warmup_iters,
        }
        row["checkpoint_steps"] = [cooldown_start(self.make(row).spec.config)]
        if parent is not None:
            before = self.make(row | {"max_iters": self.plan.rungs[rung - 1]})
            row["branch_from"] = f"{parent}@{cooldown_start(before.spec.config)}"
        return self.make(row)

    def targets(self, values: Mapping[str, Any]) -> list[Cell]:
        """The cells of the plan's seeds at the base's own size, scheduled as the trials are."""
        row = dict(values)
        if self.plan.rungs != (0,):
            last = self.cell(values, len(self.plan.rungs) - 1, None)
            row = {
                key: value
                for key, value in last.values.items()
                if key != "checkpoint_steps" and key not in self.plan.proxy
            }
        cells = [self.make_target({**row, "seed": seed}) for seed in self.plan.seeds]
        sizes = flatten(cells[0].config) if cells else {}
        return [
            replace(cell, values={key: sizes[key] for key in self.plan.proxy} | cell.values)
            for cell in cells
        ]

    def check(self, values: Mapping[str, Any]) -> list[int]:
        """Refuse values that make no run, and rungs whose pasts differ; FLOPs that each rung adds.

        Every choice and every end of a range is tried, the other keys at `values`.
        """
        for key, dimension in self.plan.space.items():
            for value in dimension.extremes():
                self.cell({**values, key: value}, 0, None)
                self.targets({**values, key: value})
        return self.costs(values)

    def costs(self, values: Mapping[str, Any]) -> list[int]:
        """The FLOPs that each rung adds for a trial at `values`."""
        costs, below = [], None
        if self.plan.rungs != (0,):
            c = self.cell(values, 0, None).spec.config
            if c.warmup_iters >= c.max_iters - round(c.cooldown_frac * c.max_iters):
                raise UserError(
                    f"rungs={list(self.plan.rungs)}: the warmup of {c.warmup_iters} "
                    f"updates leaves nothing of {c.max_iters}; set warmup_frac=0.05"
                )
        for rung in range(len(self.plan.rungs)):
            cell = self.cell(values, rung, None)
            start = 0 if below is None else cooldown_start(below.spec.config)
            if below is not None:
                why = past_difference(below.spec, cell.spec, start)
                if why:
                    raise UserError(
                        f"rungs={list(self.plan.rungs)}: a longer run cannot go on "
                        f"from a shorter one: {why}"
                    )
            costs.append(
                flops_per_iter(cell.spec.config) * (self.plan.rungs[rung] - start)
                if below
                else cell.flops
            )
            below = cell
        return costs


@dataclass
class Underway:
    """A trial at a rung, and the run that is it."""

    trial: Trial
    cell: Cell
    folder: RunFolder


class Trials:
    """A search bound to the run folders of its study, and to what is known of its space."""

    def __init__(
        self,
        study: Study,
        plan: SearchPlan,
        ladder: Ladder,
        store: Store,
        folder_of: Callable[[Cell], RunFolder],
        budget: float | None,
    ) -> None:
        self.study, self.plan, self.ladder = study, plan, ladder
        self.folder_of = folder_of
        any_values = Search(replace(plan, sampler="random")).draw(0)
        costs = ladder.check(any_values)
        self.expected = plan.expected(costs)  # runs, FLOPs
        self.targets_flops = sum(cell.flops for cell in ladder.targets(any_values))
        self.last_rung = ladder.cell(any_values, len(costs) - 1, None)
        self.budget = None if budget is None else budget - self.targets_flops
        self.earlier = earlier_trials(study)
        own = {entry.folder for entry in self.earlier}
        self.search = Search(
            plan,
            [
                (values, loss)
                for folder, values, loss in known_results(store, self.last_rung, plan)
                if folder not in own
            ],
        )
        self.underway: list[Underway] = []
        self.last: dict[int, Path] = {}  # trial number -> the folder of its newest rung
        self.spent = 0
        self.broke = False

    def title(self) -> str:
        """What is asked, what it may cost, what is known."""
        plan = self.plan
        then = (
            f", and {len(plan.seeds)} runs of the best, {self.targets_flops:.3g}"
            if plan.seeds
            else ""
        )
        at = f" at {describe(plan.proxy)}" if plan.proxy else ""
        return (
            f"{plan.trials} trials of {', '.join(plan.space)} by {plan.sampler}{at}: about "
            f"{self.expected[1]:.3g} FLOPs{then}; {len(self.search.known)} runs of other "
            f"studies are known, {len(self.earlier)} of this one"
        )

    def warnings(self) -> list[str]:
        """What keeps the proxy's best values from being the target's."""
        rules = self.last_rung.spec.config.parametrization
        carried = {*HEADS, *CARRIED.get(rules.mode, CARRIED["CompleteP"])}
        carried.update(LENGTH_KEYS if rules.base_tokens is not None else ())
        carried.update(BATCH_KEYS if rules.base_batch_tokens is not None else ())
        return [
            f"no rule of {rules.mode} carries the best values over {key}, in which the proxy "
            "differs from the target"
            for key in self.plan.proxy
            if key not in carried
        ]

    def replay(self) -> None:
        """Take up what an earlier call has tried, in its order."""
        with disk_errors(self.study.folder):
            self.study.folder.mkdir(parents=True, exist_ok=True)
        for entry in self.earlier:
            while len(self.search.trials) < entry.trial:  # those that made no run
                self.search.tell(self.search.add({}), None)
            if entry.rung == 0:
                trial = self.search.add(entry.trial_values)
            else:
                trial = self.search.trials[entry.trial]
                if len(trial.losses) != entry.rung:
                    continue  # the rung below is gone, or failed: it comes first
                trial.running, trial.failed = True, False
            self.begin(trial)
            self.collect()

    def conclude(self) -> list[str]:
        """Write what the search has left beside its runs; the lines that say what it found."""
        self.collect()
        if self.plan.sampler != "random":
            self.search.write_journal(self.study.folder / "optuna.journal", self.study.name)
        lines = self.summary()
        self.study.outcome = self.search.outcome()
        self.study.save()
        return lines

    def targets(self) -> list[Cell]:
        """The cells in which the best values are trained anew; none without a best trial."""
        best = self.search.best()
        return [] if best is None else self.ladder.targets(best.values)

    def begin(self, trial: Trial) -> Underway:
        """Make the run of a trial's next rung part of the study."""
        rung = len(trial.losses)
        cell = self.ladder.cell(trial.values, rung, self.last.get(trial.number))
        one = Underway(trial, cell, self.folder_of(cell))
        plan = plan_of(one.folder)
        make_ready(one.folder, cell.spec, plan)
        self.last[trial.number] = one.folder.path
        self.study.plan.setdefault(cell.spec.id, plan)
        self.study.entries.append(
            replace(cell.entry, trial=trial.number, rung=rung, trial_values=trial.values)
        )
        self.underway.append(one)
        self.spent += cell.flops
        return one

    def collect(self) -> None:
        """Tell the search of the runs that have ended."""
        for one in list(self.underway):
            state = one.folder.state()
            if state in (*FINISHED, FAILED):
                self.underway.remove(one)
                self.search.tell(one.trial, loss_of(one.folder, state))

    def more(self, free: int) -> list[Job]:
        """Up to `free` new jobs; none while none can be known, or the budget is spent."""
        self.collect()
        jobs: list[Job] = []
        while len(jobs) < free and not self.broke:
            trial = self.search.propose()
            if trial is None:
                break
            try:
                one = self.begin(trial)
            except UserError as e:  # a combination that makes no run
                print(f"[{self.study.name}] trial {trial.number} is none: {e}")
                self.search.tell(trial, None)
                continue
            if self.budget is not None and self.spent > self.budget:
                self.broke = True
                self.take_back(one)
                break
            if self.study.plan[one.cell.spec.id] == CACHED:
                self.collect()
            else:
                jobs.append(job_of(one))
        if jobs:
            self.study.save_record()
        return jobs

    def take_back(self, one: Underway) -> None:
        """Undo the beginning of a trial that the budget does not pay for."""
        self.underway.remove(one)
        self.study.entries.pop()
        self.spent -= one.cell.flops
        one.trial.running = False
        if not one.trial.losses:
            self.search.trials.remove(one.trial)

    def unfinished(self) -> bool:
        """Whether a run waits, or the plan asks for more."""
        search = self.search
        return (
            bool(self.underway)
            or len(search.trials) < search.plan.trials
            or bool(search.promotable())
        )

    def waiting(self) -> list[Job]:
        """Jobs of what an earlier call has left unfinished."""
        return [job_of(one) for one in self.underway]

    def summary(self) -> list[str]:
        """What the search has found, kept in the record too."""
        best, n = self.search.best(), len(self.search.trials)
        lines = [
            f"{n} trials, {len(self.study)} runs, {self.spent:.3g} FLOPs"
            + ("; the budget pays for no more" if self.broke else "")
        ]
        if best is None:
            return [*lines, "no trial has a loss"]
        self.study.best_trial = BestRun(
            trial=best.number,
            values=best.values,
            val_loss=best.losses[-1],
            folder=self.last[best.number].name,
        )
        return [
            *lines,
            f"best: trial {best.number}, {describe(best.values)}: val_loss {best.losses[-1]:.4f}",
        ]


def job_of(one: Underway) -> Job:
    rung = f", rung {len(one.trial.losses)}" if one.cell.spec.config.branch_from else ""
    return Job(
        one.folder, one.cell.flops, f"trial {one.trial.number}{rung}: {describe(one.trial.values)}"
    )


def loss_of(folder: RunFolder, state: str) -> float | None:
    """A run's loss: inf if it diverged, None if it failed."""
    loss = (folder.metrics() or {}).get("val_loss") if state == COMPLETE else None
    return math.inf if state == DIVERGED else loss


def earlier_trials(study: Study) -> list[RunEntry]:
    """The runs of an earlier call of the same search, but for its trials' number and its seeds."""
    with suppress(UserError):
        before = Study.open(study.folder)
        if before.asked.base_params == study.asked.base_params and _plan(before) == _plan(study):
            return [entry for entry in before.entries if entry.trial is not None]
    return []


def _plan(study: Study) -> dict[str, Any]:
    """What a study's trials depend on."""
    plan = {"proxy": {}} | dict(study.asked.search or {})
    return plan | {"trials": None, "seeds": None}


def known_results(
    store: Store, cell: Cell, plan: SearchPlan
) -> list[tuple[str, dict[str, Any], float]]:
    """(folder, values, loss) of the finished runs of any study that are trials of this space.

    `cell` is any trial's at the last rung.
    """
    found = []
    for name, values in store.alike(cell.spec, {*plan.space, "warmup_iters", "branch_from"}):
        inside = {key: values[key] for key in plan.space}
        if all(value is not None and plan.space[key].holds(value) for key, value in inside.items()):
            folder = RunFolder(store.folder / name)
            with suppress(UserError):
                loss = loss_of(folder, folder.state())
                if loss is not None:
                    found.append((name, inside, loss))
    return found
