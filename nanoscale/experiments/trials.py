"""Trials as runs: a search's proposals become cells and jobs, run folders become its results.

What a search has tried is its study's record, in order; the results are in the run folders. So a
killed search goes on, a finished one runs nothing, and one asked for more trials runs those alone.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from nanoscale.errors import UserError, counted, make_folder
from nanoscale.experiments.cells import Cell, combinations
from nanoscale.experiments.failures import ENDED
from nanoscale.experiments.journal import write_journal
from nanoscale.experiments.neighbours import Neighbours
from nanoscale.experiments.planning import CACHED, folder_of, planned
from nanoscale.experiments.progress import Expected, outcome
from nanoscale.experiments.records import BestRun, RunEntry, describe
from nanoscale.experiments.results import Study
from nanoscale.experiments.samplers import Result, Space
from nanoscale.experiments.search import Search, SearchPlan, Trial
from nanoscale.experiments.space import Dimension
from nanoscale.experiments.worker import Job
from nanoscale.spec.config import LENGTH_KEYS, ResolvedConfig, flatten
from nanoscale.spec.counting import flops_per_iter
from nanoscale.spec.identity import IDLE_SOMEWHERE, SWITCHES, idle_keys, scientific
from nanoscale.spec.schedule import cooldown_start
from nanoscale.spec.values import Json, Overrides, Value
from nanoscale.store.folder import COMPLETE, DIVERGED, RunFolder
from nanoscale.store.resume import past_difference

HEADS = ("n_head", "n_kv_head")  # follow the width
CARRIED = {"SP": (), "muP": ("n_embd",), "CompleteP": ("n_embd", "n_layer")}
MOST_COSTED = 16  # trials whose mean is what a trial is expected to cost
_FEW = 64  # combinations of choices and ends that are all tried
# Keys whose numbers follow from those of others: min_lr from the LR, the length from the size, ...
FOLLOWING = (
    *("warmup_iters", "branch_from", "min_lr", "max_iters", "lr_decay_iters", "beta2"),
    *("n_kv_head", "init_seed", "data_seed"),
)
_BATCH_KEYS = ("batch_size", "gradient_accumulation_steps")

MakeCell = Callable[[Overrides], Cell]


class Trials:
    """A search bound to the run folders of its study, and to what is known of its space.

    `make` turns a row of config keys over the base into a cell. Trials of an earlier call are never
    run again, in whatever study; `budget` is of FLOPs, of which the runs at the target have theirs
    for sure.

    Raises:
        UserError: values of the space make no run, or the rungs no search.
    """

    def __init__(
        self, study: Study, plan: SearchPlan, make: MakeCell, store: Path, budget: float
    ) -> None:
        self.study = study
        self.plan = plan
        self.make_target = make
        self.store = store
        self.refusals: list[str] = []  # of combinations that make no run
        self.said = False  # that there are some
        any_values = self.check()
        self.idle_at_times = self.check_keys(any_values)
        self.costs = self.mean_costs(any_values)
        self.expected = Search(plan).left(self.costs)
        self.target_cells = self.at_target(any_values)
        self.targets_flops = sum(cell.flops for cell in self.target_cells)
        self.last_rung = self.at_last_rung(any_values)
        self.budget = budget - self.targets_flops

        self.earlier = earlier_trials(study)
        ours = {entry.folder for entry in self.earlier}
        known = known_results(Neighbours(store), self.at_last_rung, self.last_rung, plan, ours)
        self.search = Search(plan, known, self.possible)
        self.underway: dict[int, Job] = {}  # by the trial's number, as the next
        self.cells: dict[tuple[int, int], Cell] = {}  # by number and rung, begun or done
        self.spent = 0
        self.broke = False

    # -- values to cells -----------------------------------------------------------------------
    def make(self, row: Overrides) -> Cell:
        """A cell of the proxy's size."""
        return self.make_target({**self.plan.proxy, **row})

    def at_rung(self, values: Overrides, rung: int, below: Cell | None = None) -> Cell:
        """The cell of a trial at a rung, going on from `below`, that of the rung below."""
        if not self.plan.has_rungs:
            return self.make(values)
        lengths = self.plan.rungs
        row = {**values, "lr_schedule": "wsd", "max_iters": lengths[0]}
        # one warmup in updates for all rungs: their pasts must be equal
        warmup = self.make(row).spec.config.warmup_iters
        row |= {"max_iters": lengths[rung], "warmup_frac": None, "warmup_iters": warmup}
        row["checkpoint_steps"] = [cooldown_start(self.make(row).spec.config)]
        if below is not None:
            parent = folder_of(below.spec, self.store).path
            row["branch_from"] = f"{parent}@{cooldown_start(below.spec.config)}"
        return self.make(row)

    def at_last_rung(self, values: Overrides) -> Cell:
        return self.at_rung(values, len(self.plan.rungs) - 1)

    def at_target(self, values: Overrides) -> list[Cell]:
        """The cells of the plan's seeds at the base's own size, scheduled as the trials are."""
        row = dict(self.at_last_rung(values).values)
        for key in ("checkpoint_steps", *self.plan.proxy):
            row.pop(key, None)

        cells = []
        for seed in self.plan.seeds:
            cell = self.make_target({**row, "seed": seed})
            sizes = flatten(cell.config)
            shown = {key: sizes[key] for key in self.plan.proxy}
            cells.append(replace(cell, values={**shown, **cell.values}))
        return cells

    def possible(self, values: Overrides) -> bool:
        """Whether values of the space make a run, in the proxy's size and at the target."""
        try:
            self.at_rung(values, 0)
            self.at_target(values)
        except UserError as e:
            self.refusals.append(str(e))
            return False
        return True

    def check(self) -> Overrides:
        """Values that make a run.

        Raises:
            UserError: none do; or a choice or an end of a range goes with no values of the others.
        """
        values = self.some(self.plan.space)
        extremes = {key: axis.extremes() for key, axis in self.plan.space.items()}
        for key, ends in extremes.items():
            for end in ends:
                self.some({**self.plan.space, key: Dimension((end,))}, f" with {key}={end}")
        if math.prod(map(len, extremes.values())) <= _FEW:
            for row in combinations(extremes):
                self.possible(row)
        return values

    def check_keys(self, values: Overrides) -> list[str]:
        """Warnings of keys that change nothing in some trials.

        Raises:
            UserError: a key changes nothing in any, so trials that differ in it alone are one run.
        """
        texts = []
        for key in self.plan.space:
            acts, needs = self.acts(key, values)
            why = (
                f"it acts only with {needs[0]}; set that, or"
                if needs
                else "its values are one run;"
            )
            if not acts:
                raise UserError(f"{key} changes no trial: {why} search another key")
            if needs:
                texts.append(f"{key} acts only with {needs[0]}; in other trials it changes nothing")
        return texts

    def acts(self, key: str, values: Overrides) -> tuple[bool, list[str]]:
        """Whether a key changes a trial, and what it acts with where it does not."""
        space = self.plan.space
        switches = []
        if key in IDLE_SOMEWHERE:
            switches = [switch for switch in SWITCHES if switch in space and switch != key]
        acts = False
        needs = []
        for row in combinations({switch: space[switch].extremes() for switch in switches}):
            ids = set()
            tried = 0
            for value in space[key].extremes():
                with suppress(UserError):  # a combination that makes no run says nothing
                    cell = self.at_rung({**values, **row, key: value}, 0)
                    ids.add(cell.id)
                    tried += 1
            if tried < 2 or len(ids) > 1:
                acts = True
            else:
                needs += [text for name, text in idle_keys(cell.config).items() if name == key]
        return acts, needs

    def some(self, space: Space, which: str = "") -> Overrides:
        """The first values of a space that make a run; a refusal says `which` do not."""
        before = len(self.refusals)
        plan = replace(self.plan, space=space, sampler="random")
        try:
            return Search(plan, possible=self.possible).draw(0)
        except UserError:
            first = self.refusals[before]
            raise UserError(f"no combination{which} makes a run: {first}") from None

    def mean_costs(self, values: Overrides) -> list[float]:
        """The FLOPs that each rung adds for a trial, in the mean of some: sizes may differ."""
        first = self.costs_at(values)
        search = Search(replace(self.plan, sampler="random"), possible=self.possible)
        costs = []
        for number in range(min(self.plan.trials, MOST_COSTED)):
            with suppress(UserError):
                costs.append(self.costs_at(search.draw(number)))
        return [statistics.fmean(rung) for rung in zip(*costs or [first], strict=True)]

    def costs_at(self, values: Overrides) -> list[int]:
        """The FLOPs that each rung adds for a trial at `values`.

        Raises:
            UserError: a rung cannot go on from the one below it.
        """
        rungs = list(self.plan.rungs)
        cells = [self.at_rung(values, rung) for rung in range(len(rungs))]
        costs = [cells[0].flops]
        first = cells[0].spec.config
        cooldown = round(first.cooldown_frac * first.max_iters)
        end_of_trunk = first.max_iters - cooldown
        if self.plan.has_rungs and first.warmup_iters >= end_of_trunk:
            raise UserError(
                f"rungs={rungs}: the warmup of {first.warmup_iters} updates leaves nothing of "
                f"{first.max_iters}; set warmup_frac=0.05"
            )

        for below, cell in pairwise(cells):
            start = cooldown_start(below.spec.config)
            why = past_difference(below.spec, cell.spec, start)
            if why:
                raise UserError(
                    f"rungs={rungs}: a longer run cannot go on from a shorter one: {why}"
                )
            longer = cell.spec.config
            costs.append(flops_per_iter(longer) * (longer.max_iters - start))
        return costs

    # -- what is said ---------------------------------------------------------------------------
    def title(self) -> str:
        """What is asked, what it may cost, what is known."""
        plan = self.plan
        at = then = ""
        if plan.proxy:
            at = f" at {describe(plan.proxy)}"
        if plan.seeds:
            then = f", and {counted(len(plan.seeds), 'run')} of the best, {self.targets_flops:.3g}"
        known = counted(len(self.search.known), "run")
        are = "is" if known == "1 run" else "are"
        return (
            f"{counted(plan.trials, 'trial')} of {', '.join(plan.space)} by {plan.sampler}{at}: "
            f"about {self.expected.flops:.3g} FLOPs{then}; {known} of other studies {are} known, "
            f"{len(self.earlier)} of this one"
        )

    def expected_cells(self) -> list[Cell]:
        """About what will be run: as many trials to the last rung as the search costs."""
        trials = self.expected.flops / max(self.last_rung.flops, 1)
        return [self.last_rung] * math.ceil(trials) + self.target_cells

    def left(self) -> Expected:
        """About what is still to be begun."""
        return Expected() if self.broke else self.search.left(self.costs)

    def warnings(self) -> list[str]:
        """What keeps the proxy's best values from being the target's; what is never proposed."""
        rules = self.last_rung.spec.config.parametrization
        carried = [*HEADS, *CARRIED.get(rules.mode, CARRIED["CompleteP"])]
        if rules.base_tokens is not None:
            carried += LENGTH_KEYS
        if rules.base_batch_tokens is not None:
            carried += _BATCH_KEYS
        uncarried = [
            f"no rule of {rules.mode} carries the best values over {key}, in which the proxy "
            "differs from the target"
            for key in self.plan.proxy
            if key not in carried
        ]
        return uncarried + self.idle_at_times + self.impossible()

    def impossible(self) -> list[str]:
        """Once, as soon as it is known: that some combinations make no run."""
        if self.said or not self.refusals:
            return []
        self.said = True
        return [f"combinations that make no run are never proposed, as {self.refusals[0]}"]

    # -- the way of a trial ---------------------------------------------------------------------
    def replay(self) -> bool:
        """Take up what an earlier call has tried, in its order; whether there is more to do."""
        make_folder(self.study.folder)
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
        if trials:
            self.study.say(self.so_far())
        fewer = len(trials) < self.plan.trials
        return bool(self.underway) or fewer or self.search.promotable() is not None

    def so_far(self) -> str:
        """`3 of 5 trials ended before, 2 go on; about 1e12 FLOPs to do`."""
        waiting = len(self.underway)
        flops = self.left().flops + sum(job.flops for job in self.underway.values())
        line = f"{len(self.search.trials) - waiting} of {counted(self.plan.trials, 'trial')}"
        line += " ended before"
        if waiting:
            line += f", {waiting} go on"
        return f"{line}; about {flops:.3g} FLOPs to do" if flops else line

    def begin(self, trial: Trial) -> str:
        """Make the run of a trial's next rung part of the study; what it needs."""
        number, rung = trial.number, len(trial.losses)
        cell = self.at_rung(trial.values, rung, self.cells.get((number, rung - 1)))
        run = planned(cell, self.store)
        run.make_ready()
        self.cells[number, rung] = cell
        entry = replace(run.entry, trial=number, rung=rung, trial_values=trial.values)
        self.study.entries.append(entry)
        self.spent += cell.flops
        self.underway[number] = replace(run.job, title=entry.title)
        return self.study.plan.setdefault(cell.id, run.plan)

    def collect(self) -> None:
        """Tell the search of the runs that have ended."""
        for number, job in list(self.underway.items()):
            if job.folder.state() in ENDED:
                del self.underway[number]
                self.search.tell(self.search.trials[number], loss_of(job.folder))

    def more(self, free: int) -> list[Job]:
        """Up to `free` new jobs; none while none can be known, or the budget is spent."""
        self.collect()
        jobs: list[Job] = []
        while len(jobs) < free and not self.broke:
            trial = self.search.propose()
            concerns = self.impossible()
            self.study.concerns += concerns
            self.study.warn(concerns)
            if trial is None:
                break
            try:
                plan = self.begin(trial)
            except UserError as e:  # the run of the rung below has left nothing to go on from
                self.study.say(f"trial {trial.number} is none: {e}")
                self.search.tell(trial, None)
                continue
            if self.spent > self.budget:
                self.broke = True
                self.take_back(trial)
            elif plan == CACHED:
                job = self.underway[trial.number]
                self.study.say(f"cached {job.title}{outcome(job.folder, job.folder.state())}")
                self.collect()
            else:
                jobs.append(self.underway[trial.number])
        if jobs:
            self.study.save_record()
        return jobs

    def take_back(self, trial: Trial) -> None:
        """Undo the beginning of a trial that the budget does not pay for."""
        self.spent -= self.underway.pop(trial.number).flops
        self.study.entries.pop()
        trial.running = False
        if not trial.losses:
            self.search.trials.remove(trial)

    # -- the end --------------------------------------------------------------------------------
    def conclude(self) -> list[str]:
        """Write what the search has left beside its runs; the lines that say what it found."""
        self.collect()
        study, search = self.study, self.search
        study.outcome = search.outcome()

        trials, runs = counted(len(search.trials), "trial"), counted(len(study), "run")
        line = f"{trials}, {runs}, {self.spent:.3g} FLOPs"
        if self.broke:
            line += "; the budget pays for no more"
        best = search.best()
        said = "no trial has a loss"
        if best is not None:
            loss = best.losses[-1]
            spec = self.cells[best.number, len(best.losses) - 1].spec
            study.best_trial = BestRun(
                trial=best.number,
                values=best.values,
                val_loss=loss,
                folder=folder_of(spec, self.store).path.name,
            )
            values = describe(best.values)
            said = f"best: trial {best.number}, {values}: val_loss {loss:.4f}"
        study.save()
        return [line, said]

    def journal(self) -> None:
        """Have the trials where Optuna's dashboard reads them."""
        if self.plan.sampler != "random":  # which goes without Optuna; `nanoscale table` has it
            write_journal(self.study)

    def targets(self) -> list[Cell]:
        """The cells in which the best values are trained anew; none without a best trial."""
        best = self.search.best()
        return [] if best is None else self.at_target(best.values)


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
        if _same(before) == _same(study):
            return [entry for entry in before.entries if entry.trial is not None]
    return []


def _same(study: Study) -> dict[str, Json]:
    """What a study's trials depend on."""
    plan = {"proxy": {}, **(study.asked.search or {})}
    return plan | {"trials": None, "seeds": None, "base": study.asked.base_params}


def known_results(
    neighbours: Neighbours, cell_at: MakeCell, cell: Cell, plan: SearchPlan, but: set[str]
) -> list[Result]:
    """(values, loss) of the finished runs of any study that are trials of a space.

    `cell_at` makes a trial's cell at the last rung, of which `cell` is one; `but` are folders that
    do not count.
    """
    known: list[Result] = []
    for folder, config in neighbours.alike(cell.spec, {*plan.space, *FOLLOWING}):
        values = {key: config[key] for key in plan.space}
        for key, value in values.items():
            if value is None:  # a relative form, as it was typed
                values[key] = folder.spec().typed.get(key)
        if folder.path.name in but or not all(
            axis.holds(values[key]) for key, axis in plan.space.items()
        ):
            continue
        with suppress(UserError):
            trial = _hashed_alike(cell_at(values).spec.config)
            loss = loss_of(folder)
            if loss is not None and trial == _hashed_alike(folder.spec().config):
                known.append((values, loss))
    return known


def _hashed_alike(config: ResolvedConfig) -> dict[str, Value]:
    """What a run depends on, but for its warmup, that of the shortest rung or its own."""
    return scientific(config) | {"warmup_iters": None}
