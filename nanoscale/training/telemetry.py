"""What a run tells while it runs: lines for people, rows, throughput."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping

from nanoscale.errors import disk_errors
from nanoscale.spec.config import ResolvedConfig
from nanoscale.spec.counting import flops_per_iter
from nanoscale.spec.identity import RunSpec
from nanoscale.spec.values import Json
from nanoscale.store.files import row_line
from nanoscale.store.folder import LOG, ROWS, RunFolder
from nanoscale.training.records import Timing
from nanoscale.training.tracked_run import TrackedRun
from nanoscale.training.trackers import Trackers, wanted


class Log:
    """Lines for people: on standard output and in the folder's `log.txt`, each once."""

    def __init__(self, folder: RunFolder) -> None:
        with disk_errors(folder / LOG):
            self.file = (folder / LOG).open("a", encoding="utf-8", newline="\n")
        try:  # a worker's standard output may be that very file
            same = os.path.samestat(os.fstat(sys.stdout.fileno()), os.fstat(self.file.fileno()))
        except (OSError, ValueError):
            same = False
        self.echo = not same

    def __call__(self, line: str) -> None:
        if self.echo:
            print(line, flush=True)
        with disk_errors(self.file.name):
            print(line, file=self.file, flush=True)

    def close(self) -> None:
        self.file.close()


# -- rows -----------------------------------------------------------------------------------------
class RowWriter:
    """Appends rows to `metrics.jsonl`, and tells the trackers that the config asks for.

    `warn` says that one of those has failed.

    Raises:
        UserError: a tracker refuses to begin, or the disk does.
    """

    def __init__(self, folder: RunFolder, spec: RunSpec, warn: Callable[[str], None]) -> None:
        self.path = folder / ROWS
        self.trackers = Trackers(TrackedRun.of(folder, spec), wanted(spec.config), warn)
        with disk_errors(self.path):
            self.file = self.path.open("a", encoding="utf-8", newline="\n")

    def write(self, step: int, row: Mapping[str, Json]) -> None:
        with disk_errors(self.path):
            print(row_line(row), end="", file=self.file, flush=True)
        self.trackers.row(step, row)

    def sync(self) -> None:
        """Have all rows on the disk, where they outlive a power cut."""
        with disk_errors(self.path):
            os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()
        self.trackers.close()


# -- throughput -----------------------------------------------------------------------------------
class Meter:
    """Seconds spent in updates since the last row, and in all.

    `peak` is the FLOP/s of all devices, `spent` the seconds of the run's earlier processes.
    """

    def __init__(self, config: ResolvedConfig, peak: float | None, spent: float = 0.0) -> None:
        self.tokens = config.tokens_per_iter
        self.flops = flops_per_iter(config)
        self.peak = peak
        self.spent = spent
        self.started = time.perf_counter()
        self.seconds = 0.0
        self.steps = 0
        self.total_seconds = 0.0
        self.total_steps = -1  # without the first: it pays for compilation and cold caches

    def add(self, seconds: float) -> None:
        self.seconds += seconds
        self.steps += 1
        if self.total_steps >= 0:
            self.total_seconds += seconds
        self.total_steps += 1

    def wall_seconds(self) -> float:
        """Since the run's beginning, over all its processes."""
        return self.spent + time.perf_counter() - self.started

    def row(self) -> Timing:
        """Of the updates since the last row; starts the next one."""
        timing = self.timing(self.seconds, self.steps)
        self.seconds = 0.0
        self.steps = 0
        return timing

    def total(self) -> Timing:
        """Of all updates of this process but the first."""
        return self.timing(self.total_seconds, self.total_steps)

    def timing(self, seconds: float, steps: int) -> Timing:
        """What `steps` updates in `seconds` amount to."""
        if steps <= 0 or not seconds:
            return Timing(None, None, None, self.wall_seconds())
        rate = steps / seconds
        return Timing(
            time_ms=seconds / steps * 1000,
            mfu=self.flops * rate / self.peak if self.peak else None,
            tokens_per_second=self.tokens * rate,
            wall_seconds=self.wall_seconds(),
        )
