"""How long the runs of a plan will take: at the speed of finished runs of their size, or measured.

What is measured are updates of the plan's smallest and largest model, in runs of some seconds that
the plan's own backend makes in a folder that is gone afterwards.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from nanoscale.data.dataset import VAL, dataset_folder
from nanoscale.errors import UserError
from nanoscale.experiments.cells import Cell
from nanoscale.experiments.machine import Slot, on_gpu
from nanoscale.experiments.neighbours import Neighbours
from nanoscale.experiments.pool import POLL_SECONDS
from nanoscale.experiments.worker import Backend
from nanoscale.spec.config import ResolvedConfig
from nanoscale.spec.counting import flops_per_iter
from nanoscale.spec.identity import RunSpec
from nanoscale.store.folder import RunFolder

BRIEF = 20.0  # seconds of all runs together, below which measuring takes as long as they do
SLOW_START, SLOW_UPDATE, SLOW_SPEED = 0.5, 0.02, 1e9  # seconds, seconds, FLOP/s: slower is none
UPDATES, WARM_SECONDS = 200, 1.5  # updates, and seconds of them, of a run that is measured
COLD, MOST_MEASURED = 2, 8  # updates that are slower than the rest; runs
MOST_SECONDS, MOST_COLD_SECONDS = 8.0, 20.0  # seconds: once one of them is warm, until one is
MOST_FLOPS = {False: 3e10, True: 3e12}  # of an update that is measured: on a CPU, on a GPU


@dataclass(frozen=True)
class RunTimes:
    """Seconds of each cell's run, by its id (NaN: unknown), and where they are from."""

    seconds: Mapping[str, float]
    workers: int  # that share them
    at_most: bool = False  # too little to be worth measuring
    measured: float = 0.0  # seconds that a calibration took


def estimate(
    cells: Sequence[Cell], neighbours: Neighbours, backend: Backend, slots: Sequence[Slot]
) -> RunTimes:
    """How long each cell's run will take, from its beginning; a cell may be several runs."""
    workers = len(slots)
    known = {cell.id: neighbours.seconds(cell) for cell in cells}
    unknown = [cell for cell in cells if math.isnan(known[cell.id])]
    most = {cell.id: _at_most(cell) for cell in unknown}
    if not unknown:
        return RunTimes(known, workers)
    if sum(most[cell.id] for cell in unknown) < BRIEF:
        return RunTimes(known | most, workers, at_most=True)

    began = time.monotonic()
    speeds: dict[int, float] = {}
    if backend.local:  # else the runs' machine is another
        with suppress(UserError, OSError):
            speeds = measured(unknown, backend, slots)
    took = time.monotonic() - began if backend.local else 0.0
    if not speeds:
        far = {cell.id: neighbours.seconds(cell, math.inf) for cell in unknown}
        return RunTimes(known | far, workers, measured=took)
    sizes = sorted(speeds)
    logs = [math.log(speeds[size]) for size in sizes]
    for cell in unknown:
        size = flops_per_iter(cell.spec.config)
        speed = math.exp(np.interp(math.log(size), np.log(sizes), logs))
        known[cell.id] = (cell.flops + _evaluation_flops(cell.spec.config)) / speed
    return RunTimes(known, workers, measured=took)


def _at_most(cell: Cell) -> float:
    updates = cell.flops / flops_per_iter(cell.spec.config)
    flops = cell.flops + _evaluation_flops(cell.spec.config)
    return SLOW_START + updates * SLOW_UPDATE + flops / SLOW_SPEED


def _evaluation_flops(config: ResolvedConfig) -> float:
    """Of all evaluations of a run, which pass forward alone."""
    sets = max(1, len(config.val_sets))
    tokens = sets * min(config.final_eval_tokens, _held(config.dataset, config.data_root))
    if config.eval_interval:
        each = config.eval_iters * config.batch_size * config.block_size
        tokens += (1 + config.max_iters // config.eval_interval) * (sets + 1) * each
    return tokens / config.tokens_per_iter * flops_per_iter(config) / 3


def _held(dataset: str, root: str) -> float:
    """At most how many validation tokens a dataset has."""
    with suppress(UserError, OSError):
        return (dataset_folder(dataset, root) / f"{VAL}.bin").stat().st_size / 2
    return math.inf


# -- a calibration --------------------------------------------------------------------------------
def measured(cells: Sequence[Cell], backend: Backend, slots: Sequence[Slot]) -> dict[int, float]:
    """FLOP/s by the FLOPs of an update, of the smallest and the largest of the cells.

    As many runs go on at once as those of the plan will, which slow each other down. What comes to
    no update in time is left out.
    """
    by_size = {flops_per_iter(cell.spec.config): cell.spec for cell in cells}
    sizes = sorted({min(by_size), max(by_size)})
    count = max(len(sizes), min(len(slots), MOST_MEASURED))
    speeds: dict[int, list[float]] = {}
    with TemporaryDirectory(prefix="nanoscale-", ignore_cleanup_errors=True) as home:
        folders = []
        for number, size in zip(range(count), cycle(sizes), strict=False):
            folders.append((size, RunFolder(Path(home) / str(number))))
            folders[-1][1].create(short_run(by_size[size]))
        try:
            for first in range(0, count, len(slots)):
                some = folders[first : first + len(slots)]
                _watch([folder for _, folder in some], backend, slots)
        finally:
            backend.close()
        for cold in (COLD, 0):  # what is cold counts where nothing is warm
            for size, folder in folders:
                if found := _speeds(folder)[cold:]:
                    speeds.setdefault(size, []).extend(found)
            if speeds:
                break
    # all updates over all their time: some have to wait for other processes
    return {size: statistics.harmonic_mean(found) for size, found in speeds.items()}


def short_run(spec: RunSpec) -> RunSpec:
    """A run of few and affordable updates that records each, and nothing beside."""
    config = spec.config
    most = MOST_FLOPS[on_gpu(config.device)]
    of_sequence = flops_per_iter(config) / config.sequences_per_iter
    affordable = max(1, int(most / of_sequence))
    if affordable < config.sequences_per_iter:
        batch = min(config.batch_size, affordable)
        config = replace(config, batch_size=batch, gradient_accumulation_steps=1)
    config = replace(
        config,
        n_layer=max(1, min(config.n_layer, int(config.n_layer * most / of_sequence))),
        max_iters=UPDATES,
        eval_interval=0,
        final_eval_tokens=1,
        log_interval=1,
        checkpoint_seconds=0.0,
        checkpoint_steps=(),
        keep="none",
        init_from="scratch",
        branch_from=None,
        compile=False,
        tensorboard_log=False,
        wandb_log=False,
        trackio_log=False,
        trackers=None,
        profile=False,
    )
    return replace(spec, config=config, parent=None, weights=None)


def _watch(folders: Sequence[RunFolder], backend: Backend, slots: Sequence[Slot]) -> None:
    """Have them run at once until they have gone on for long enough, and no longer."""
    started = time.monotonic()
    running = {folder.path for folder in folders}
    warm: dict[Path, float] = {}
    try:
        for folder, slot in zip(folders, slots, strict=False):
            backend.start(folder.path, slot)
        while running:
            running -= {gone.folder for gone in backend.poll(POLL_SECONDS)}
            now = time.monotonic()
            for folder in folders:
                if len(folder.rows()) > COLD:
                    warm.setdefault(folder.path, now)
            if len(warm) == len(folders) and now > max(warm.values()) + WARM_SECONDS:
                break
            if now > started + (MOST_SECONDS if warm else MOST_COLD_SECONDS):
                break
    finally:
        backend.stop(kill=True)


def _speeds(folder: RunFolder) -> list[float]:
    """FLOP/s of each update that is recorded."""
    config = folder.spec().config
    of_token = flops_per_iter(config) / config.tokens_per_iter
    rows = [row for row in folder.rows() if row.get("tokens_per_second")]
    return [of_token * row["tokens_per_second"] for row in rows]
