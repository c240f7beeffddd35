"""A profile of a few updates: `trace.json.gz`, and lines that say where a step goes.

torch's profiler sees torch's operations; our kernels, one call of which may be a whole update,
leave spans of their own, which are put beside them. A profile changes no number of a run.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from nanoscale.errors import disk_errors
from nanoscale.model.distributed import Ranks
from nanoscale.model.spans import KernelLook, Span
from nanoscale.spec.values import Json
from nanoscale.store.files import atomic_write
from nanoscale.training.state import Run
from nanoscale.training.step_profile import (
    OF_KERNELS,
    STEP,
    STEP_PARTS,
    StepProfile,
    events_of,
    step_profile,
    table,
)

WARM_UP = 5  # updates before those that are recorded: caches fill, models are compiled
MOST_UPDATES = 10
MOST_BATCHES = 64  # of all recorded updates: a viewer has to hold the trace
VIEWER = "ui.perfetto.dev"
STEPS_OF_TORCH = "ProfilerStep#"  # counted from its own beginning
Say = Callable[[str], None]


@dataclass(frozen=True)
class Window:
    """Which of the updates to come are recorded."""

    skipped: int
    recorded: int

    @classmethod
    def of(cls, left: int, batches: int) -> Window:
        """Of `left` updates, each of `batches` micro-batches; the last of few, which are warm."""
        skipped = max(0, min(WARM_UP, left - 1))
        most = max(1, min(MOST_UPDATES, MOST_BATCHES // batches))
        return cls(skipped, min(most, left - skipped))

    @property
    def end(self) -> int:
        return self.skipped + self.recorded


@contextmanager
def profiling(run: Run, path: Path, say: Say, left: int) -> Iterator[Profiler]:
    """Profile some of the `left` updates of a run, each made in the `step` of what this yields.

    The trace goes to `path` and the lines to `say` as soon as the window has passed, or, of what
    there is, where the updates end before. What is raised inside leaves no trace.
    """
    profiler = Profiler(run, path, say, left)
    run.profiler = profiler
    try:
        with profiler.torch:
            try:
                yield profiler
            except BaseException:
                profiler.discarded = True
                raise
            finally:
                profiler.look_away()
    finally:
        run.profiler = None
    if not profiler.recorded:
        say(f"profile: the run ended before update {profiler.begins}; nothing was recorded")


class Profiler:
    """torch's profiler over a window of updates, and a look at the kernels."""

    def __init__(self, run: Run, path: Path, say: Say, left: int) -> None:
        config = run.config
        share = config.sequences_per_iter // run.ranks.world
        batches = -(-share // (config.micro_batch_size or config.batch_size))
        self.run = run
        self.path = path
        self.say = say
        self.window = Window.of(left, batches)
        self.begins = run.step + self.window.skipped + 1  # the first update that is recorded
        self.made = 0  # updates
        self.recorded = 0
        self.seconds: list[float] = []  # of each update
        self.discarded = False
        self.found: StepProfile | None = None
        self.look = KernelLook() if run.numerics.ours else None
        self.torch = torch_profiler(run.device, self.window, self.write)
        if not self.window.skipped:
            self.look_on()

    # -- what is recorded -------------------------------------------------------------------------
    @property
    def recording(self) -> bool:
        return self.window.skipped <= self.made < self.window.end

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A range of that name; a GPU has done what was asked of it before and within."""
        warms_up = self.made == self.window.skipped - 1  # torch forgets it
        if not self.recording and not warms_up:
            yield
            return
        wait(self.run.device)
        with record_function(name):
            yield
            wait(self.run.device)

    @contextmanager
    def step(self) -> Iterator[None]:
        """One update, and all that comes with it."""
        if self.made >= self.window.end:
            yield
            return
        started = time.perf_counter()
        with self.part(f"step {self.run.step + 1}"):
            yield
        self.seconds.append(time.perf_counter() - started)
        self.recorded += self.recording
        self.made += 1
        if self.made == self.window.skipped:
            self.look_on()
        if self.made == self.window.end:
            self.look_away()
            self.run.profiler = None
        self.torch.step()

    def look_on(self) -> None:
        if self.look is not None:
            self.look.begin()

    def look_away(self) -> None:
        if self.look is not None:
            self.look.end()

    @property
    def unprofiled_ms(self) -> float | None:
        """A step without a profile: not the first, nor the last before, which warms torch's up."""
        seconds = self.seconds[1 : self.window.skipped - 1]
        if not seconds:
            return None
        return fmean(seconds) * 1000

    # -- what comes of it -------------------------------------------------------------------------
    def write(self, torchs: profile) -> None:
        """The trace and the lines, of what was recorded."""
        if self.discarded or not self.recorded:
            return
        with disk_errors(self.path):
            trace = exported(torchs)
        trace["traceName"] = self.path.name
        lost = 0
        if self.look is not None:
            trace["traceEvents"] += records_of(self.look.spans(), trace)
            lost = self.look.lost
            self.look = None  # and its memory

        events = events_of(trace["traceEvents"])
        self.found = step_profile(events, self.unprofiled_ms)
        text = json.dumps(trace)
        with atomic_write(self.path) as temporary:
            temporary.write_bytes(gzip.compress(text.encode(), compresslevel=6))
        for line in told(self.found, self.path, self.run.ranks):
            self.say(line)
        if lost:
            self.say(f"warning: the trace lacks {lost:,} spans of the kernels")


def torch_profiler(
    device: torch.device, window: Window, ready: Callable[[profile], None]
) -> profile:
    """torch's profiler of a window, which calls `ready` at its end."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    else:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it says on stderr that it begins
    warm_up = min(1, window.skipped)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Profiler won't be using warmup")
        when = schedule(
            skip_first=window.skipped - warm_up,
            wait=0,
            warmup=warm_up,
            active=window.recorded,
            repeat=1,
        )
    return profile(activities=activities, schedule=when, on_trace_ready=ready)


def wait(device: torch.device) -> None:
    """Until a GPU has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if device.type == "mps":
        torch.mps.synchronize()


def exported(torchs: profile) -> dict[str, Any]:
    """What torch recorded, as Chrome's Trace Event Format has it."""
    with tempfile.TemporaryDirectory(prefix="nanoscale-") as folder:
        path = Path(folder) / "trace.json"
        torchs.export_chrome_trace(str(path))
        text = path.read_text(encoding="utf-8")
    trace: dict[str, Any] = json.loads(text)
    kept = []
    for record in trace["traceEvents"]:
        if not record["name"].startswith(STEPS_OF_TORCH):
            kept.append(record)
    trace["traceEvents"] = kept
    return trace


def records_of(spans: Iterable[Span], trace: dict[str, Any]) -> list[dict[str, Json]]:
    """Spans as events of the trace that torch began.

    This thread has there the number that torch knows, which in a forked process is its parent's.
    """
    origin = int(trace.get("baseTimeNanoseconds", 0))
    step = next(record for record in trace["traceEvents"] if STEP.fullmatch(record["name"]))
    here = threading.get_native_id()
    threads = {here: step["tid"]}
    records: list[dict[str, Json]] = []
    for span in spans:
        name = span.name
        if name not in STEP_PARTS:
            name = f"{OF_KERNELS}::{name}"
        record: dict[str, Json] = {
            "ph": "X",
            "cat": OF_KERNELS,
            "name": name,
            "pid": step["pid"],
            "tid": threads.setdefault(span.thread, span.thread),
            "ts": (span.begin - origin) / 1000,
            "dur": max(0, span.end - span.begin) / 1000,
        }
        records.append(record)

    for number, thread in enumerate(threads.values()):
        if number > 0:
            records.append(name_of_thread(step["pid"], thread, f"kernels, thread {number + 1}"))
    return records


def name_of_thread(process: int, thread: int, name: str) -> dict[str, Json]:
    """The event that gives a thread its name in a viewer."""
    return {
        "ph": "M",
        "name": "thread_name",
        "pid": process,
        "tid": thread,
        "args": {"name": name},
    }


def told(found: StepProfile, path: Path, ranks: Ranks) -> Iterator[str]:
    """The table, and where the trace is."""
    last = found.first + found.steps - 1
    line = f"profile of updates {found.first} to {last}"
    if ranks.world > 1:
        line += f" on rank {ranks.rank} of {ranks.world}"
    line += f": {found.step_ms:.3f} ms a step"
    if found.unprofiled_ms is not None:
        line += f", {found.unprofiled_ms:.3f} ms before, unprofiled"
    yield line
    yield from table(found)
    yield f"trace: {path}; open it at {VIEWER}"
