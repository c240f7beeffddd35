"""Plans: what each cell of a study still needs, why, and what that will cost.

The one idea: a plan is read from run folders alone, so it is true whoever made them. Time comes
from finished runs of the same store, by the FLOP/s that the nearest sizes reached there.
"""

from __future__ import annotations

import math
import os
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nanoscale.errors import UserError, one_of
from nanoscale.experiments.cells import Cell
from nanoscale.experiments.progress import duration
from nanoscale.spec.config import ResolvedConfig, flatten
from nanoscale.spec.counting import flops_per_iter
from nanoscale.spec.identity import RunSpec, config_from_dict, scientific
from nanoscale.spec.memory import memory_estimate
from nanoscale.store.files import read_json, write_json
from nanoscale.store.folder import CONFIG, FAILED, FINISHED, RUNNING, WAITING, RunFolder
from nanoscale.store.lease import Held

NEW, CACHED, RESUME, RETRY = "new", "cached", "resume", "retry"
ELSEWHERE, LEFT_OUT = "elsewhere", "left out"
PLANS = (NEW, CACHED, RESUME, RETRY, ELSEWHERE, LEFT_OUT)
NUMERICS = ("device", "threads", "compile")  # kept when a run goes on: they round differently
MOST_NEIGHBOURS = 2000  # runs of a store that are read to explain and to time, newest first
MOST_KEYS = 4  # named of a difference
UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
NEAREST = 5  # speeds whose median counts


# -- what a run needs -----------------------------------------------------------------------------
def plan_of(folder: RunFolder) -> str:
    """What a run needs: nothing (cached), a start, to go on, another try, or its owner's time."""
    if not folder.exists():
        return NEW
    state = folder.state()
    if state in FINISHED:
        return CACHED
    if state == WAITING:
        return RESUME if folder.status().get("checkpoint_step") is not None else NEW
    return {FAILED: RETRY, RUNNING: ELSEWHERE}[state]


def within(cells: Iterable[Cell], budget: float | None) -> set[str]:
    """The ids of the cells that a budget of FLOPs pays for, the cheapest first.

    What is cached counts too, so the same call chooses the same runs.
    """
    chosen, spent = set(), 0.0
    for cell in sorted(cells, key=lambda cell: cell.flops):
        spent += cell.flops
        if budget is None or spent <= budget:
            chosen.add(cell.spec.id)
    return chosen


def read_budget(budget: float | str | None) -> tuple[float | None, float | None]:
    """A budget as (FLOPs, seconds), of which at most one is given: `1e15`, or `"90 min"`.

    Raises:
        UserError: it is neither.
    """
    if budget is None:
        return None, None
    match = re.fullmatch(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([a-z]*)\s*", str(budget))
    with suppress(ValueError):
        if match and match[2] in ("", *UNITS) and 0 < (value := float(match[1])) < math.inf:
            return (value, None) if not match[2] else (None, value * UNITS[match[2]])
    raise UserError(
        f"budget={budget}: expected training FLOPs, as in 1e15, or a time in "
        f"{one_of(UNITS)}, as in 90min"
    )


def make_ready(folder: RunFolder, spec: RunSpec, plan: str) -> None:
    """Give the run its folder and today's config: keys that are no part of its identity (where the
    data lie, the micro-batch) may have changed; a run that goes on keeps what rounding depends on.
    """
    if plan in (CACHED, ELSEWHERE):
        return
    with suppress(Held):  # another runner was faster: its run is waited for
        if not folder.exists():
            folder.create(spec)
            return
        with folder.take():
            status = folder.status()
            if status["state"] not in FINISHED:
                write_json(folder / CONFIG, with_old(spec, folder).to_json())
                if status["state"] != WAITING:
                    folder.set_status(state=WAITING, kind=None, reason=None)


def with_old(spec: RunSpec, folder: RunFolder) -> RunSpec:
    """`spec` with what a folder's run must keep: its numerics, a micro-batch that was halved."""
    old, now = folder.spec().config, spec.config
    kept = {"micro_batch_size": now.micro_batch_size or old.micro_batch_size}
    if folder.status().get("checkpoint_step") is not None:
        kept |= {key: getattr(old, key) for key in NUMERICS}
    return replace(spec, config=replace(now, **kept))


# -- in words -------------------------------------------------------------------------------------
def plan_line(plan: Mapping[str, str], cells: Sequence[Cell]) -> str:
    """`12 runs: 8 new, 4 cached; 3.2e+12 FLOPs to do`."""
    plans = list(plan.values())
    counts = ", ".join(f"{plans.count(p)} {p}" for p in PLANS if p in plans)
    left = sum(cell.flops for cell in cells if plan[cell.spec.id] not in (CACHED, LEFT_OUT))
    return f"{len(cells)} runs: {counts}" + (f"; {left:.3g} FLOPs to do" if left else "")


def dry_lines(
    cells: Sequence[Cell],
    plan: Mapping[str, str],
    folders: Mapping[str, RunFolder],
    store: Store,
    workers: int,
) -> list[str]:
    """A dry run's lines: each cell's plan, FLOPs, memory, time and why; then the time in all."""
    lines, total = [], 0.0
    for cell in cells:
        todo, folder = plan[cell.spec.id], folders[cell.spec.id]
        seconds = store.seconds(cell) if todo not in (CACHED, LEFT_OUT) else 0.0
        total += seconds if seconds is not None else math.nan
        size = memory_estimate(cell.spec.config)["total"] / 2**30
        time = "      ?" if seconds is None else f"{duration(seconds) if seconds else '':>12}"
        lines.append(
            f"  {todo:9} {cell.flops:9.3g} FLOPs {size:7.3f} GiB {time}  {cell}  "
            f"({why(todo, folder, cell.spec, store)})"
        )
    if not math.isfinite(total):
        return [*lines, "time unknown: no run has finished here yet whose speed could tell"]
    return (
        [
            *lines,
            f"about {duration(total / workers)} on {workers} worker" + ("s" if workers > 1 else ""),
        ]
        if total
        else lines
    )


def why(plan: str, folder: RunFolder, spec: RunSpec, store: Store) -> str:
    """Why a cell has its plan, in a few words."""
    if plan == NEW:
        return store.difference(spec)
    if plan == LEFT_OUT:
        return "beyond the budget"
    status = folder.status()
    if plan == CACHED:
        loss = (folder.metrics() or {}).get("val_loss")
        return status["state"] + (f", val_loss {loss:.4f}" if loss is not None else "")
    if plan == RESUME:
        return f"after step {status['checkpoint_step']} of {status['max_iters']}"
    if plan == RETRY:
        return f"failed: {status.get('reason') or 'no reason was recorded'}"
    holder = folder.holder() or {}
    return f"process {holder.get('pid')} on {holder.get('host')} is training it"


# -- the store ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Neighbour:
    """A run of the store: what it depends on, and how fast it went if it has finished."""

    name: str
    config: ResolvedConfig
    keys: frozenset[tuple[str, str]]
    flops_per_iter: int
    speed: float | None  # FLOP/s


class Store:
    """The runs below an output root, as far as plans need them; read when first asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def runs(self) -> list[Neighbour]:
        try:
            entries = [e for e in os.scandir(self.folder) if e.is_dir()]
        except OSError:
            return []
        newest = sorted(entries, key=lambda e: -e.stat().st_mtime)[:MOST_NEIGHBOURS]
        found = []
        for entry in newest:
            with suppress(UserError):  # a folder that is no run, or of another version
                found.append(neighbour(RunFolder(entry.path)))
        return found

    def difference(self, spec: RunSpec) -> str:
        """How a new run differs from the one most like it."""
        keys = keys_of(spec.config, spec.data_fingerprint, spec.parent)
        nearest = min(self.runs, key=lambda run: len(run.keys ^ keys), default=None)
        if nearest is None:
            return "the first run here"
        ours, theirs = dict(keys), dict(nearest.keys)
        names = sorted(k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k))
        if not names:
            return f"as {nearest.name}, which another version made"
        said = [
            f"{k} {ours.get(k, 'default')} for {theirs.get(k, 'default')}"
            for k in names[:MOST_KEYS]
        ]
        more = f" and {len(names) - MOST_KEYS} more keys" if len(names) > MOST_KEYS else ""
        return f"as {nearest.name} but {', '.join(said)}{more}"

    def alike(self, spec: RunSpec, free: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """(folder's name, values) of the runs that differ from `spec` in `free` keys at most."""

        def fixed(keys: frozenset[tuple[str, str]]) -> set[tuple[str, str]]:
            return {item for item in keys if item[0] not in free}

        wanted = fixed(keys_of(spec.config, spec.data_fingerprint, spec.parent))
        for run in self.runs:
            if fixed(run.keys) == wanted:
                yield run.name, flatten(run.config)

    def seconds(self, cell: Cell) -> float | None:
        """How long a cell will take: its FLOPs at the speed of the nearest sizes; None: unknown."""
        size = flops_per_iter(cell.spec.config)
        timed = sorted(
            (abs(math.log(run.flops_per_iter / size)), run.speed) for run in self.runs if run.speed
        )
        if not timed:
            return None
        return cell.flops / statistics.median(speed for _, speed in timed[:NEAREST])


def neighbour(folder: RunFolder) -> Neighbour:
    """A run folder as a neighbour, of whatever version."""
    record = read_json(folder / CONFIG)
    try:
        config = config_from_dict(record["config"])
        keys = keys_of(config, record["data"]["fingerprint"], record["branch_from"])
    except (KeyError, TypeError) as e:
        raise UserError(f"{folder.path}: not a run's config ({e})") from e
    metrics = folder.metrics() or {}
    seconds, flops = metrics.get("wall_seconds"), metrics.get("flops")
    return Neighbour(
        folder.path.name,
        config,
        keys,
        flops_per_iter(config),
        flops / seconds if seconds and flops else None,
    )


def keys_of(
    config: ResolvedConfig, data_fingerprint: str, parent: str | None
) -> frozenset[tuple[str, str]]:
    """What a run's identity depends on, beside the version of its numerics."""
    items = {key: str(value) for key, value in scientific(config).items()}
    items["data"] = data_fingerprint[:8]
    if parent:
        items["branch_from"] = parent
    return frozenset(items.items())
