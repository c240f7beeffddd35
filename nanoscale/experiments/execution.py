"""Execution: planned runs brought to a result by a pool on a backend, and what came of it said."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from nanoscale.data.gauge import duration
from nanoscale.errors import UserError
from nanoscale.experiments.cells import Cell
from nanoscale.experiments.machine import Slot, on_gpu
from nanoscale.experiments.planning import PlannedRun, most_threads
from nanoscale.experiments.pool import Limits, MoreJobs, Pool
from nanoscale.experiments.progress import Expected, open_progress
from nanoscale.experiments.results import TABLE, Study, failure_lines
from nanoscale.experiments.worker import Backend, Job
from nanoscale.processes import physical_cores
from nanoscale.store.files import write_json
from nanoscale.store.folder import CELL


@dataclass(frozen=True)
class Execution:
    """How runs are run: by whom, how many at once (None: as many as fit), within which limits.

    keep: the backend stays ready from one call to the next; whoever sets it closes the backend.
    """

    backend: Backend
    workers: int | None
    limits: Limits
    keep: bool = False

    def bring(self, study: Study, runs: Sequence[PlannedRun]) -> None:
        """Bring planned runs to a result, those that are to be done; their folders come first."""
        for run in runs:
            run.make_ready()
        study.save_record()
        jobs = [run.job for run in runs if run.to_do]
        self.run(study, jobs, [run.cell for run in runs])

    def run(
        self,
        study: Study,
        jobs: Sequence[Job],
        cells: Sequence[Cell],
        more: MoreJobs | None = None,
        later: Callable[[], Expected] = Expected,
    ) -> None:
        """Run `jobs`, and what `more` adds; write the study's table; say what came of it.

        `cells` say on which device and threads; `later` is about what `more` will still add.

        Raises:
            KeyboardInterrupt: once every run has saved, and the table is written.
        """
        began = time.monotonic()
        stopped = ""
        tell_whose(study, jobs)

        def more_told(free: int) -> Sequence[Job]:
            added = more(free) if more else []
            tell_whose(study, added)
            return added

        try:
            if jobs or more:
                slots = self.slots(study, cells)
                with open_progress(study.name, jobs, later) as progress:
                    pool = Pool(self.backend, slots, progress, self.limits, self.keep)
                    stopped = pool.run(jobs, more_told if more else None)
        except KeyboardInterrupt:
            study.say("interrupted; every run has saved, the same command continues")
            raise
        finally:
            study.save()

        study.warn(study.mixed())
        study.say(*failure_lines(study))
        if stopped:
            study.say(f"stopped: {stopped}; the same command goes on")
        took = duration(time.monotonic() - began)
        study.say(f"{study.counts()} in {took}; table: {study.folder / TABLE}")

    def slots(self, study: Study, cells: Sequence[Cell]) -> list[Slot]:
        """The backend's slots, for the cells' device and their largest number of threads."""
        device = cells[0].spec.config.device
        wanted = most_threads(cells)
        threads = None if wanted == math.inf else int(wanted)
        slots = self.backend.slots(device, threads, self.workers)
        if self.backend.local and not on_gpu(device):
            free = len(physical_cores())
            each = threads or free
            if len(slots) > max(1, free // each):
                text = (
                    f"{len(slots)} workers of {each} threads share {free} cores and slow each "
                    "other down; leave workers out to fit them"
                )
                study.warn([text])
        return slots


def tell_whose(study: Study, jobs: Sequence[Job]) -> None:
    """Write into the folders of runs with trackers which cell of which study they are.

    That is how they are called there. It is no part of a run, which may be of several studies.
    """
    for job in jobs:
        with suppress(UserError):  # no config: the run itself will say so
            if job.folder.spec().config.is_tracked:
                write_json(job.folder / CELL, {"study": study.name, "cell": job.title})
