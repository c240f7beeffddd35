"""The pool: runs every job once, longest first, on a backend's slots, and outlives their failures.

A job is a run folder and its FLOPs. The pool starts jobs, waits for exits, ends runs that exceed
their limits and tries again where that may help; what came out is in the run folders.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanoscale.errors import UserError
from nanoscale.experiments.failures import ALIKE, ENDED, MEMORY, TIME, Failure, settle, try_again
from nanoscale.experiments.machine import Slot
from nanoscale.experiments.progress import Progress
from nanoscale.experiments.worker import GRACE_SECONDS, Backend, Exit, Job
from nanoscale.processes import boot, memory_kills, memory_of
from nanoscale.signals import on_stop_signal
from nanoscale.store.folder import FINISHED, RUNNING, RunFolder

POLL_SECONDS = 0.25
LIMITS_SECONDS = 1.0  # between two looks at the limits


MoreJobs = Callable[[int], Sequence[Job]]  # up to so many further jobs


@dataclass(frozen=True)
class Limits:
    """What runs may take. A run beyond a limit saves, leaves, and counts as failed."""

    time_limit: float = math.inf  # seconds of one run
    memory_limit: float = math.inf  # bytes of one run
    retries: int = 1  # of a run that crashed
    seconds: float = math.inf  # of all runs, of which the cheapest get the first
    cheapest_first: bool = False


@dataclass
class Running:
    """A job on its slot."""

    job: Job
    slot: Slot
    began: float
    kills_before: int  # by the kernel, until it began
    verdict: Failure | None = None  # why we have asked it to leave
    kill_at: float = math.inf


class Pool:
    """Jobs on slots. A run that another live process owns is waited for, never started twice.

    keep: the backend is left as it is where all went well, for the next pool.
    """

    def __init__(
        self,
        backend: Backend,
        slots: Sequence[Slot],
        watch: Progress,
        limits: Limits,
        keep: bool = False,
    ) -> None:
        self.backend = backend
        self.keep = keep
        self.watch = watch
        self.limits = limits
        self.free = list(slots)
        self.running: dict[Path, Running] = {}
        self.queue: list[Job] = []
        self.tries: Counter[Path] = Counter()
        self.last_failure = ""  # its likeness, and how many runs in a row had it
        self.alike = 0
        self.closing = ""  # why no run is started any more
        self.refusal: UserError | None = None  # what the backend, or a search, cannot go on from
        self.limits_seen = 0.0

    def run(self, jobs: Sequence[Job], more: MoreJobs | None = None) -> str:
        """Run the jobs, longest first, which packs them best; why not all were run, if not.

        `more(n)` gives up to n further jobs whenever n slots have nothing to do. What fails is not
        raised: it is in the run folders.

        Raises:
            KeyboardInterrupt: on Ctrl-C or SIGTERM, once every run has saved and left.
            UserError: the backend starts no more runs; likewise, once every run has left.
        """
        longest_first = not self.limits.cheapest_first
        self.queue = sorted(jobs, key=lambda job: job.flops, reverse=longest_first)
        self.began = time.monotonic()
        whole = False
        signals: list[int] = []  # heard of here, never in the middle of our bookkeeping
        heard = 0
        try:
            with on_stop_signal(signals.append):
                self.refill(more)
                while self.running or (self.queue and not self.closing):
                    if len(signals) > heard:
                        if not heard:
                            self.watch.say("stopping: every run saves first; Ctrl-C again kills")
                        heard = len(signals)
                        self.close("interrupted", kill=heard > 1)
                    try:
                        self.turn(more)
                    except UserError as e:
                        if self.refusal is not None:
                            raise
                        self.refusal = e
                        self.close(str(e))
            whole = not self.closing
        finally:
            if not (whole and self.keep):
                self.backend.close()

        if signals:
            raise KeyboardInterrupt
        if self.refusal is not None:
            raise self.refusal
        return self.closing if self.queue else ""

    def turn(self, more: MoreJobs | None) -> None:
        """Start what can start, and see to what has ended or must end."""
        if not self.closing:
            self.start_what_can()
        for gone in self.backend.poll(POLL_SECONDS):
            self.take_back(gone)
        self.refill(more)
        self.enforce_limits()
        self.watch.tick()

    def refill(self, more: MoreJobs | None) -> None:
        """Ask for more jobs where slots would be idle."""
        idle = len(self.free) - len(self.queue)
        if more is not None and idle > 0 and not self.closing:
            jobs = more(idle)
            self.watch.add(jobs)
            self.queue.extend(jobs)

    def close(self, why: str, kill: bool = False) -> None:
        """Start nothing more; let the running ones save and leave."""
        self.closing = why
        self.backend.stop(kill=kill)

    def start_what_can(self) -> None:
        """Fill the free slots from the queue; drop what was done elsewhere meanwhile."""
        for job in list(self.queue):
            if not self.free:
                return
            state = job.folder.state()
            if job.path in self.running:  # two trials may be one run
                continue
            if state == RUNNING:
                self.watch.elsewhere(job)
                continue
            self.queue.remove(job)
            if state in ENDED:
                self.watch.ended(job)
                continue
            slot = self.free.pop(0)
            run = Running(job, slot, time.monotonic(), memory_kills())
            self.backend.start(job.path, slot)
            self.running[job.path] = run
            self.watch.started(job)

    def take_back(self, gone: Exit) -> None:
        """Free the slot of a run that ended; settle its state; see to its failure, if any."""
        run = self.running.pop(gone.folder)
        self.free.append(run.slot)
        job = run.job
        failure = None
        if not self.closing:  # what leaves then has saved, or goes on from its checkpoint
            starved = memory_kills() > run.kills_before
            failure = settle(job.folder, gone.code, starved, run.verdict)

        if failure is None and job.folder.state() not in FINISHED:
            self.queue.append(job)  # interrupted, or another process's meanwhile
            if self.closing:
                self.watch.ended(job)
            return

        self.tries[gone.folder] += 1
        if failure is not None:
            how = try_again(job.folder, failure, self.tries[gone.folder], self.limits.retries)
            if how:
                self.watch.again(job, failure, how)
                self.queue.insert(0, job)
                return
        self.watch.ended(job)
        self.count_alike(job.folder, failure)

    def count_alike(self, folder: RunFolder, failure: Failure | None) -> None:
        """Enough runs in a row whose failures are alike stop the study."""
        if failure is None:
            self.last_failure = ""
            return
        likeness = failure.likeness(folder)
        if likeness != self.last_failure:
            self.alike = 0
        self.alike += 1
        self.last_failure = likeness
        if self.alike >= ALIKE and not self.closing:
            self.close(f"{ALIKE} runs in a row failed alike: {failure.reason}; mend that first")

    # -- limits ---------------------------------------------------------------------------------
    def enforce_limits(self) -> None:
        """Ask runs beyond their limits to save and leave; kill those that do not."""
        now = time.monotonic()
        if now - self.limits_seen < LIMITS_SECONDS:
            return
        self.limits_seen = now

        budget = self.limits.seconds
        if now - self.began > budget and not self.closing:
            self.close(f"the budget of {budget:g} seconds is spent")
        for path, run in self.running.items():
            if run.verdict is None:
                run.verdict = self.verdict_on(run, now)
                if run.verdict is not None:
                    run.kill_at = now + GRACE_SECONDS
                    self.backend.stop(folders=[path])
            elif now > run.kill_at:
                run.kill_at = math.inf
                self.backend.stop(kill=True, folders=[path])

    def verdict_on(self, run: Running, now: float) -> Failure | None:
        """Which limit a run exceeds, if any."""
        seconds = self.limits.time_limit
        if now - run.began > seconds:
            return Failure(
                TIME,
                f"it ran longer than time_limit={seconds:g} seconds; what it has saved is kept, "
                "and the next call goes on from there",
            )

        size = self.limits.memory_limit
        if size == math.inf:
            return None
        owner = run.job.folder.holder()
        if owner is None or owner.pid is None or owner.machine != boot():
            return None
        used = memory_of(owner.pid)
        if used <= size:
            return None
        gib = used / 2**30
        return Failure(
            MEMORY, f"it took {gib:.2f} GiB of memory, more than memory_limit={size:g} bytes"
        )
