"""Plans: what each cell of a study still needs, why, and what that will cost.

The one idea: a plan is read from run folders alone, so it is true whoever made them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from nanoscale.data.gauge import duration
from nanoscale.errors import UserError, counted, one_of
from nanoscale.experiments.cells import Cell
from nanoscale.experiments.neighbours import Neighbours
from nanoscale.experiments.records import RunEntry
from nanoscale.experiments.timing import RunTimes
from nanoscale.experiments.worker import Job
from nanoscale.spec.identity import RunSpec
from nanoscale.spec.memory import memory_estimate
from nanoscale.store.folder import FAILED, FINISHED, WAITING, RunFolder
from nanoscale.store.lease import Held, Owner
from nanoscale.store.resume import check_same, lost_state, renew

NEW, CACHED, RESUME, RETRY = "new", "cached", "resume", "retry"
ELSEWHERE, LEFT_OUT = "elsewhere", "left out"
PLANS = (NEW, CACHED, RESUME, RETRY, ELSEWHERE, LEFT_OUT)
_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class PlannedRun:
    """A cell, the folder of its run, and what that needs: one of PLANS."""

    cell: Cell
    folder: RunFolder
    plan: str

    @property
    def to_do(self) -> bool:
        return self.plan not in (CACHED, LEFT_OUT)

    @property
    def flops_to_do(self) -> float:
        """Training FLOPs that it still takes, from its checkpoint on."""
        if not self.to_do:
            return 0.0
        saved = 0 if self.plan == NEW else self.folder.status().checkpoint_step or 0
        begun = self.cell.branch_step
        updates = self.cell.spec.config.max_iters - begun
        return self.cell.flops * (1 - max(0, saved - begun) / max(updates, 1))

    @property
    def entry(self) -> RunEntry:
        """The cell's entry in the study's record, with the folder that its run has."""
        return replace(self.cell.entry, folder=self.folder.path.name)

    @property
    def job(self) -> Job:
        return Job(self.folder, self.cell.flops, str(self.cell.entry), self.cell.branch_step)

    def make_ready(self) -> None:
        """Give the run its folder and today's config.

        Keys that are no part of its identity (where the data lie, the micro-batch) may have
        changed; a run that goes on keeps what rounding depends on.
        """
        lost = self.plan == CACHED and self.folder.damage()
        if self.plan in (CACHED, ELSEWHERE) and not lost:
            return
        folder, spec = self.folder, self.cell.spec
        with suppress(Held):  # another runner was faster: its run is waited for
            if not folder.exists():
                folder.create(spec)
            else:
                renew(folder, spec)


def folder_of(spec: RunSpec, store: Path) -> RunFolder:
    """The run's folder in a store of runs; idle keys may have named it (see `spelled_ids`)."""
    folders = [RunFolder(store / name) for name in (spec.name, *spec.spelled_names)]
    return next((folder for folder in folders if folder.exists()), folders[0])


def planned(cell: Cell, store: Path) -> PlannedRun:
    """What a cell's run, in a store of runs, needs.

    Nothing (cached), a start, to go on, another try, or its owner's time.

    Raises:
        UserError: the folder of that name holds another run.
    """
    folder = folder_of(cell.spec, store)
    if not folder.exists():
        return PlannedRun(cell, folder, NEW)
    check_same(folder, cell.spec)
    state = folder.state()
    plan = ELSEWHERE
    if state in FINISHED or lost_state(folder):
        plan = CACHED
    elif state == FAILED:
        plan = RETRY
    elif state == WAITING:
        plan = NEW if folder.status().checkpoint_step is None else RESUME
    return PlannedRun(cell, folder, plan)


def within(runs: Sequence[PlannedRun], budget: float) -> list[PlannedRun]:
    """The runs, of which those are left out that a budget of FLOPs does not pay for.

    It pays for the cheapest first. What is cached counts too, so the same call chooses the same
    runs.
    """
    spent = 0.0
    paid = set()
    for run in sorted(runs, key=lambda run: run.cell.flops):
        spent += run.cell.flops
        if spent <= budget or run.plan == CACHED:
            paid.add(run.cell.id)
    return [run if run.cell.id in paid else replace(run, plan=LEFT_OUT) for run in runs]


def in_turn(runs: Sequence[PlannedRun]) -> list[list[Cell]]:
    """The cells to be done, in parts that follow each other: of stages with as many threads."""
    of_stage: dict[str | None, list[Cell]] = {}
    for run in runs:
        if run.to_do:
            of_stage.setdefault(run.cell.stage, []).append(run.cell)
    parts: dict[float, list[Cell]] = {}
    for cells in of_stage.values():
        parts.setdefault(most_threads(cells), []).extend(cells)
    return [*parts.values()]


def most_threads(cells: Iterable[Cell]) -> float:
    """Of them all; infinite for one that takes what there is."""
    return max(cell.spec.config.threads or math.inf for cell in cells)


def read_budget(budget: float | str | None) -> tuple[float | None, float | None]:
    """A budget as (FLOPs, seconds), of which at most one is given: `1e15`, or `"90 min"`.

    Raises:
        UserError: it is neither.
    """
    if budget is None:
        return None, None
    match = re.fullmatch(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([a-z]*)\s*", str(budget))
    if match and match[2] in ("", *_UNITS):
        with suppress(ValueError):
            value = float(match[1])
            if 0 < value < math.inf:
                return (None, value * _UNITS[match[2]]) if match[2] else (value, None)
    raise UserError(
        f"budget={budget}: expected training FLOPs, as in 1e15, or a time in "
        f"{one_of(_UNITS)}, as in 90min"
    )


# -- in words -------------------------------------------------------------------------------------
def plan_line(runs: Sequence[PlannedRun]) -> str:
    """`12 runs: 8 new, 4 cached; 3.2e+12 FLOPs to do`."""
    plans = [run.plan for run in runs]
    counts = [f"{plans.count(plan)} {plan}" for plan in PLANS if plan in plans]
    line = f"{counted(len(runs), 'run')}: {', '.join(counts)}"
    flops = sum(run.flops_to_do for run in runs)
    return f"{line}; {flops:.3g} FLOPs to do" if flops else line


def dry_lines(
    runs: Iterable[PlannedRun], neighbours: Neighbours, parts: Sequence[RunTimes]
) -> list[str]:
    """A dry run's lines: each cell's plan, FLOPs, memory, time and why; then the time in all.

    `parts` are of those that are to be done, one part after another.
    """
    lines = []
    known = {id: seconds for part in parts for id, seconds in part.seconds.items()}
    left = dict.fromkeys(known, 0.0)
    for run in runs:
        seconds = 0.0
        if run.to_do:
            seconds = known[run.cell.id] * run.flops_to_do / max(run.cell.flops, 1)
            left[run.cell.id] = seconds
        time = " " * 12
        if math.isnan(seconds):
            time = "      ?"
        elif seconds:
            time = f"{duration(seconds):>12}"
        gib = memory_estimate(run.cell.spec.config)["total"] / 2**30
        need = f"{run.cell.flops:9.3g} FLOPs {gib:7.3f} GiB {time}"
        title = run.cell.entry.title
        lines.append(f"  {run.plan:9} {need}  {title}  ({why(run, neighbours)})")
    return [*lines, *total_line([(sum(left[id] for id in part.seconds), part) for part in parts])]


def total_line(parts: Sequence[tuple[float, RunTimes]]) -> list[str]:
    """`about 2 min 10 s on 2 workers, by a calibration of 4.2 s`; none for no time at all.

    Of parts that follow each other, each with the seconds of its runs.
    """
    seconds = sum(of_runs / times.workers for of_runs, times in parts)
    measured = sum(times.measured for _, times in parts)
    how = f"a calibration of {duration(measured)}" if measured else ""
    if math.isnan(seconds):
        more = f", and {how} came to no update" if how else ""
        return [f"time unknown: no run has finished here yet whose speed could tell{more}"]
    if not seconds:
        return []
    first, *later = dict.fromkeys(times.workers for of_runs, times in parts if of_runs)
    on = ", then ".join([counted(first, "worker"), *map(str, later)])
    line = f"{duration(seconds)} on {on}"
    if all(times.at_most for _, times in parts):
        return [f"at most {line}, too little to measure"]
    return [f"about {line}, by {how}" if how else f"about {line}"]


def why(run: PlannedRun, neighbours: Neighbours) -> str:
    """Why a cell has its plan, in a few words."""
    if run.plan == NEW:
        return neighbours.difference(run.cell.spec)
    if run.plan == LEFT_OUT:
        return "beyond the budget"
    status = run.folder.status()
    if run.plan == CACHED:
        if damage := run.folder.damage():
            return damage
        loss = (run.folder.metrics() or {}).get("val_loss")
        return status.state if loss is None else f"{status.state}, val_loss {loss:.4f}"
    if run.plan == RESUME:
        return f"after step {status.checkpoint_step} of {status.max_iters}"
    if run.plan == RETRY:
        return f"failed: {status.reason or 'no reason was recorded'}"
    return f"{run.folder.holder() or Owner()} is training it"
