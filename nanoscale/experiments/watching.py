"""Watching a study that others run: its run folders, looked at until nothing moves any more."""

from __future__ import annotations

import time

from nanoscale.experiments.pool import Job
from nanoscale.experiments.progress import open_progress
from nanoscale.experiments.results import Study, state_of
from nanoscale.store.folder import FAILED, FINISHED, RUNNING

LOOK_SECONDS, IDLE_SECONDS = 0.5, 10.0


def watch(study: Study) -> None:
    """Show the runs of a study as they start and end; until all have ended or nobody runs any."""
    jobs = {
        entry.id: Job(folder, entry.flops, str(entry))
        for entry, folder in study.runs()
        if not entry.left_out
    }
    waiting = {
        run: job for run, job in jobs.items() if state_of(job.folder) not in (*FINISHED, FAILED)
    }
    print(f"[{study.name}] {len(jobs)} runs, {len(jobs) - len(waiting)} have ended")
    seen: set[str] = set()
    moved = time.monotonic()
    with open_progress(study.name, list(waiting.values())) as shown:
        while waiting and time.monotonic() - moved < IDLE_SECONDS:
            for run, job in list(waiting.items()):
                state = state_of(job.folder)
                if state == RUNNING:
                    moved = time.monotonic()
                    if run not in seen:
                        shown.started(job)
                        seen.add(run)
                elif state in (*FINISHED, FAILED):
                    shown.ended(waiting.pop(run))
                    moved = time.monotonic()
            shown.tick()
            time.sleep(LOOK_SECONDS if waiting else 0)
    if waiting:
        print(
            f"[{study.name}] {len(waiting)} runs wait and nobody runs them: "
            f"{study.asked.command or 'nanoscale retry ' + study.name}"
        )
