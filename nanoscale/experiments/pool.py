"""The pool: runs every job once, longest first, on a backend's slots, and outlives their failures.

A job is a run folder and its FLOPs. The pool starts jobs, waits for exits, ends runs that exceed
their limits and tries again where that may help; what came out is in the run folders.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from nanoscale.experiments import machine
from nanoscale.experiments.backends import GRACE_SECONDS, Backend, Exit
from nanoscale.experiments.failures import ALIKE, MEMORY, TIME, Failure, settle, try_again
from nanoscale.experiments.machine import Slot
from nanoscale.records import FAILED, FINISHED, RUNNING, RunFolder
from nanoscale.signals import on_stop_signal

POLL_SECONDS = 0.25
LIMITS_SECONDS = 1.0


@dataclass(frozen=True)
class Job:
    """A run to be done: where, how many training FLOPs, and what the user calls it."""

    folder: RunFolder
    flops: int
    title: str


@dataclass(frozen=True)
class Limits:
    """Of one run: seconds and bytes it may take; and how often a crashed one is tried again."""

    time_limit: float | None = None
    memory_limit: float | None = None
    retries: int = 1


@dataclass
class Running:
    """A job on its slot."""

    job: Job
    slot: Slot
    kills_before: int  # see machine.memory_kills
    began: float
    verdict: Failure | None = None  # why we have asked it to leave
    kill_at: float = float("inf")


class Watch(Protocol):
    """Whoever shows the progress."""

    def started(self, job: Job) -> None: ...

    def ended(self, job: Job) -> None: ...

    def elsewhere(self, job: Job) -> None: ...

    def again(self, job: Job, failure: Failure, how: str) -> None: ...

    def tick(self) -> None: ...


class Pool:
    """Jobs on slots. A run that another live process owns is waited for, never started twice."""

    def __init__(self, backend: Backend, slots: Sequence[Slot], watch: Watch,
                 limits: Limits | None = None) -> None:
        self.backend, self.watch, self.limits = backend, watch, limits or Limits()
        self.free = list(slots)
        self.running: dict[os.PathLike, Running] = {}
        self.queue: deque[Job] = deque()
        self.tries: Counter[os.PathLike] = Counter()
        self.alike: tuple[str, int] = ("", 0)  # the last failure, and how many runs in a row had it
        self.stopped_by: Failure | None = None
        self.limits_seen = 0.0

    def run(self, jobs: Sequence[Job]) -> Failure | None:
        """Run the jobs, longest first, which packs them best; the failure that stopped them all.

        Raises:
            KeyboardInterrupt: on Ctrl-C or SIGTERM, once every run has saved and left.
        """
        self.queue = deque(sorted(jobs, key=lambda job: -job.flops))
        try:
            with interrupts() as count:
                asked = 0
                while self.running or (self.queue and not self.stopping(count)):
                    if len(count) > asked:
                        asked = len(count)
                        self.backend.stop(kill=asked > 1)
                    if not self.stopping(count):
                        self.start_what_can()
                    for gone in self.backend.poll(POLL_SECONDS):
                        self.take_back(gone, bool(count))
                    self.enforce()
                    self.watch.tick()
        finally:
            self.backend.close()
        if count:
            raise KeyboardInterrupt
        return self.stopped_by

    def stopping(self, count: Sequence[int]) -> bool:
        return bool(count) or self.stopped_by is not None

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
                self.running[job.folder.path] = Running(job, slot, machine.memory_kills(),
                                                        time.monotonic())
                self.backend.start(job.folder.path, slot)
                self.watch.started(job)
        self.queue.extendleft(reversed(kept))

    def take_back(self, gone: Exit, interrupted: bool) -> None:
        """Free the slot of a run that ended; settle its state; see to its failure, if any."""
        one = self.running.pop(gone.folder)
        job = one.job
        self.free.append(one.slot)
        if interrupted:
            self.watch.ended(job)
            return
        starved = machine.memory_kills() > one.kills_before
        failure = settle(job.folder, gone.code, starved, one.verdict)
        if failure is None and job.folder.state() not in FINISHED and self.stopped_by is None:
            self.queue.append(job)  # interrupted from outside, or another process's meanwhile
            return
        self.tries[gone.folder] += 1
        how = failure and try_again(job.folder, failure, self.tries[gone.folder],
                                    self.limits.retries)
        if failure and how and self.stopped_by is None:
            self.watch.again(job, failure, how)
            self.queue.appendleft(job)
            return
        self.watch.ended(job)
        self.remember(job.folder, failure)

    def remember(self, folder: RunFolder, failure: Failure | None) -> None:
        """Count failures alike; after enough runs in a row let the others save and leave."""
        likeness = failure.likeness(folder) if failure else ""
        before, runs = self.alike
        self.alike = (likeness, runs + 1 if likeness == before else 1)
        if failure and self.alike[1] >= ALIKE and self.stopped_by is None:
            self.stopped_by = failure
            self.backend.stop()

    def enforce(self) -> None:
        """Ask runs beyond their limits to save and leave; kill those that do not."""
        now = time.monotonic()
        if now - self.limits_seen < LIMITS_SECONDS:
            return
        self.limits_seen = now
        for path, one in self.running.items():
            if one.verdict is None:
                one.verdict = self.beyond(one, now)
                if one.verdict is not None:
                    one.kill_at = now + GRACE_SECONDS
                    self.backend.stop(folders=[path])
            elif now > one.kill_at:
                one.kill_at = float("inf")
                self.backend.stop(kill=True, folders=[path])

    def beyond(self, one: Running, now: float) -> Failure | None:
        """Which limit a run exceeds, if any."""
        seconds, size = self.limits.time_limit, self.limits.memory_limit
        if seconds is not None and now - one.began > seconds:
            return Failure(TIME, f"it ran longer than time_limit={seconds:g} seconds; what it has "
                                 "saved is kept, and the next call goes on from there")
        holder = one.job.folder.holder() if size is not None else None
        used = machine.memory_of(holder["pid"]) if holder and holder["pid"] else 0
        if size is not None and used > size:
            return Failure(MEMORY, f"it took {used / 2**30:.2f} GiB of memory, more than "
                                   f"memory_limit={size:g} bytes")
        return None


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of raising in the middle of our bookkeeping."""
    caught: list[int] = []
    with on_stop_signal(caught.append):
        yield caught
