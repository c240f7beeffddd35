"""Watching a study that others run: its run folders, looked at until nothing moves any more."""

from __future__ import annotations

import time

from nanoscale.errors import counted
from nanoscale.experiments.failures import ENDED
from nanoscale.experiments.progress import open_progress
from nanoscale.experiments.results import Study, state_of
from nanoscale.experiments.worker import Job
from nanoscale.store.folder import RUNNING

LOOK_SECONDS, IDLE_SECONDS = 0.5, 10.0


def watch(study: Study) -> None:
    """Show the runs of a study as they start and end; until all have ended or nobody runs any."""
    jobs = []
    for entry, folder in study.runs():
        if not entry.left_out:
            jobs.append(Job(folder, entry.flops, str(entry)))
    waiting = [job for job in jobs if state_of(job.folder) not in ENDED]
    ended = len(jobs) - len(waiting)
    study.say(f"{counted(len(jobs), 'run')}, {ended} have ended")

    moved = time.monotonic()
    with open_progress(study.name, waiting) as shown:
        while waiting and time.monotonic() - moved < IDLE_SECONDS:
            for job in list(waiting):
                state = state_of(job.folder)
                if state in ENDED:
                    waiting.remove(job)
                    shown.ended(job)
                elif state == RUNNING and job.path not in shown.running:
                    shown.started(job)
                elif state != RUNNING:
                    continue
                moved = time.monotonic()
            shown.tick()
            time.sleep(LOOK_SECONDS if waiting else 0)

    if waiting:
        command = study.asked.command or study.retry_command
        wait = "1 run waits and nobody runs it"
        if len(waiting) > 1:
            wait = f"{len(waiting)} runs wait and nobody runs them"
        study.say(f"{wait}: {command}")
