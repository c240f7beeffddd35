"""The pool: runs every job once, longest first, on a backend's slots, and outlives their failures.

A job is a run folder and its FLOPs. The pool starts jobs, waits for exits, ends runs that exceed
their limits and tries again where that may help; what came out is in the run folders.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from nanoscale.experiments import machine
from nanoscale.experiments.backends import GRACE_SECONDS, Backend, Exit
from nanoscale.experiments.failures import ALIKE, MEMORY, TIME, Failure, settle, try_again
from nanoscale.experiments.machine import Slot
from nanoscale.signals import on_stop_signal
from nanoscale.store import lease
from nanoscale.store.folder import FAILED, FINISHED, RUNNING, RunFolder

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
    """Of one run: seconds and bytes it may take, and how often a crashed one is tried again; of
    all: seconds, of which the cheapest runs get the first.
    """

    time_limit: float | None = None
    memory_limit: float | None = None
    retries: int = 1
    seconds: float | None = None
    cheapest_first: bool = False


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

    def __init__(
        self, backend: Backend, slots: Sequence[Slot], watch: Watch, limits: Limits | None = None
    ) -> None:
        self.backend, self.watch, self.limits = backend, watch, limits or Limits()
        self.free = list(slots)
        self.running: dict[os.PathLike, Running] = {}
        self.queue: deque[Job] = deque()
        self.tries: Counter[os.PathLike] = Counter()
        self.alike: tuple[str, int] = ("", 0)  # the last failure, and how many runs in a row had it
        self.closing = ""  # why no run is started any more
        self.limits_seen = 0.0

    def run(self, jobs: Sequence[Job], more: Callable[[int], Sequence[Job]] | None = None) -> str:
        """Run the jobs, longest first, which packs them best; why not all were run, if not.

        `more(n)` gives up to n further jobs whenever n slots have nothing to do.

        Raises:
            KeyboardInterrupt: on Ctrl-C or SIGTERM, once every run has saved and left.
        """
        sign = 1 if self.limits.cheapest_first else -1
        self.queue = deque(sorted(jobs, key=lambda job: sign * job.flops))
        self.began = time.monotonic()
        try:
            with interrupts() as count:
                asked = 0
                self.refill(more)
                while self.running or (self.queue and not self.closing):
                    if len(count) > asked:
                        asked = len(count)
                        self.close("interrupted", kill=asked > 1)
                    if not self.closing:
                        self.start_what_can()
                    for gone in self.backend.poll(POLL_SECONDS):
                        self.take_back(gone)
                    self.refill(more)
                    self.enforce()
                    self.watch.tick()
        finally:
            self.backend.close()
        if count:
            raise KeyboardInterrupt
        return self.closing if self.queue else ""

    def refill(self, more: Callable[[int], Sequence[Job]] | None) -> None:
        """Ask for more jobs where slots would be idle."""
        idle = len(self.free) - len(self.queue)
        if more is not None and idle > 0 and not self.closing:
            self.queue.extend(more(idle))

    def close(self, why: str, kill: bool = False) -> None:
        """Start nothing more; let the running ones save and leave."""
        self.closing = why
        self.backend.stop(kill=kill)

    def start_what_can(self) -> None:
        """Fill the free slots from the queue; drop what was done elsewhere meanwhile."""
        kept: deque[Job] = deque()
        while self.queue and self.free:
            job = self.queue.popleft()
            state = job.folder.state()
            if job.folder.path in self.running:  # two trials may be one run
                kept.append(job)
            elif state == RUNNING:
                kept.append(job)
                self.watch.elsewhere(job)
            elif state in (*FINISHED, FAILED):
                self.watch.ended(job)
            else:
                slot = self.free.pop(0)
                self.running[job.folder.path] = Running(
                    job, slot, machine.memory_kills(), time.monotonic()
                )
                self.backend.start(job.folder.path, slot)
                self.watch.started(job)
        self.queue.extendleft(reversed(kept))

    def take_back(self, gone: Exit) -> None:
        """Free the slot of a run that ended; settle its state; see to its failure, if any."""
        one = self.running.pop(gone.folder)
        job = one.job
        self.free.append(one.slot)
        starved = machine.memory_kills() > one.kills_before
        # what leaves because we close is no failure: it has saved, or goes on from its checkpoint
        failure = None if self.closing else settle(job.folder, gone.code, starved, one.verdict)
        if failure is None and job.folder.state() not in FINISHED:
            self.queue.append(job)  # interrupted, or another process's meanwhile
            if self.closing:
                self.watch.ended(job)
            return
        self.tries[gone.folder] += 1
        how = failure and try_again(
            job.folder, failure, self.tries[gone.folder], self.limits.retries
        )
        if failure and how:
            self.watch.again(job, failure, how)
            self.queue.appendleft(job)
            return
        self.watch.ended(job)
        self.remember(job.folder, failure)

    def remember(self, folder: RunFolder, failure: Failure | None) -> None:
        """Count failures alike; enough runs in a row stop the study."""
        likeness = failure.likeness(folder) if failure else ""
        before, runs = self.alike
        self.alike = (likeness, runs + 1 if likeness == before else 1)
        if failure and self.alike[1] >= ALIKE and not self.closing:
            self.close(f"{ALIKE} runs in a row failed alike: {failure.reason}; mend that first")

    def enforce(self) -> None:
        """Ask runs beyond their limits to save and leave; kill those that do not."""
        now = time.monotonic()
        if now - self.limits_seen < LIMITS_SECONDS:
            return
        self.limits_seen = now
        most = self.limits.seconds
        if most is not None and now - self.began > most and not self.closing:
            self.close(f"the budget of {most:g} seconds is spent")
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
            return Failure(
                TIME,
                f"it ran longer than time_limit={seconds:g} seconds; what it has "
                "saved is kept, and the next call goes on from there",
            )
        holder = one.job.folder.holder() if size is not None else None
        here = holder is not None and holder.get("machine") == lease.machine()
        used = machine.memory_of(holder["pid"]) if here else 0
        if size is not None and used > size:
            return Failure(
                MEMORY,
                f"it took {used / 2**30:.2f} GiB of memory, more than memory_limit={size:g} bytes",
            )
        return None


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of raising in the middle of our bookkeeping."""
    caught: list[int] = []
    with on_stop_signal(caught.append):
        yield caught
