"""The pool: runs every job once, longest first, on a backend's slots, and outlives their failures.

A job is a run folder and its FLOPs. The pool starts jobs, waits for exits and gives a state to runs
whose process died too suddenly to write one; what came out is in the run folders.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from nanoscale.errors import INTERRUPTED
from nanoscale.experiments.backends import Backend, Exit
from nanoscale.experiments.machine import Slot
from nanoscale.records import FAILED, FINISHED, LOG, RUNNING, RunFolder
from nanoscale.signals import on_stop_signal

POLL_SECONDS = 0.25
LOG_TAIL_BYTES = 1 << 14


@dataclass(frozen=True)
class Job:
    """A run to be done: where, how many training FLOPs, and what the user calls it."""

    folder: RunFolder
    flops: int
    title: str


class Watch(Protocol):
    """Whoever shows the progress."""

    def started(self, job: Job) -> None: ...

    def ended(self, job: Job) -> None: ...

    def elsewhere(self, job: Job) -> None: ...

    def tick(self) -> None: ...


class Pool:
    """Jobs on slots. A run that another live process owns is waited for, never started twice."""

    def __init__(self, backend: Backend, slots: Sequence[Slot], watch: Watch) -> None:
        self.backend, self.watch = backend, watch
        self.free = list(slots)
        self.running: dict[os.PathLike, tuple[Job, Slot]] = {}
        self.queue: deque[Job] = deque()

    def run(self, jobs: Sequence[Job]) -> None:
        """Run the jobs, longest first, which packs them best.

        Raises:
            KeyboardInterrupt: on Ctrl-C or SIGTERM, once every run has saved and left.
        """
        self.queue = deque(sorted(jobs, key=lambda job: -job.flops))
        try:
            with interrupts() as count:
                asked = 0
                while self.running or (self.queue and not count):
                    if len(count) > asked:
                        asked = len(count)
                        self.backend.stop(kill=asked > 1)
                    if not count:
                        self.start_what_can()
                    for gone in self.backend.poll(POLL_SECONDS):
                        self.take_back(gone, stopping=bool(count))
                    self.watch.tick()
        finally:
            self.backend.close()
        if count:
            raise KeyboardInterrupt

    def start_what_can(self) -> None:
        """Fill the free slots from the queue; drop what was done elsewhere meanwhile."""
        kept: deque[Job] = deque()
        while self.queue and self.free:
            job = self.queue.popleft()
            state = job.folder.state()
            if state == RUNNING:
                kept.append(job)
                self.watch.elsewhere(job)
            elif state in (*FINISHED, FAILED):
                self.watch.ended(job)
            else:
                slot = self.free.pop(0)
                self.running[job.folder.path] = (job, slot)
                self.backend.start(job.folder.path, slot)
                self.watch.started(job)
        self.queue.extendleft(reversed(kept))

    def take_back(self, gone: Exit, stopping: bool) -> None:
        """Free the slot of a run that ended, and settle its state unless we ended it."""
        job, slot = self.running.pop(gone.folder)
        self.free.append(slot)
        if not stopping:
            settle(job.folder, gone.code)
        self.watch.ended(job)


def settle(folder: RunFolder, code: int | None) -> None:
    """Write FAILED, with the reason, for a run whose process ended without a state of its own."""
    if folder.status()["state"] in (*FINISHED, FAILED) or code == INTERRUPTED:
        return  # an interrupted run has saved; it is WAITING, to be continued
    folder.set_status(state=FAILED, reason=reason_of(folder, code), pid=None, host=None)


def reason_of(folder: RunFolder, code: int | None) -> str:
    """Why a run has no result, in one line."""
    if code is None:
        return "its process was lost with the fork server"
    if code < 0:
        name = signal.Signals(-code).name if -code in iter(signal.Signals) else f"signal {-code}"
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"its process was killed by {name}{hint}"
    last = log_tail(folder, 1)
    return last[0].removeprefix("error: ") if last else f"its process left with exit code {code}"


def log_tail(folder: RunFolder, lines: int) -> list[str]:
    """The last lines of the run's log that say something."""
    try:
        with open(folder / LOG, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-lines:]


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of raising in the middle of our bookkeeping."""
    caught: list[int] = []
    with on_stop_signal(caught.append):
        yield caught
