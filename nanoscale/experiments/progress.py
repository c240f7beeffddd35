"""Progress of a study: a live table on a terminal, plain lines anywhere else.

It reads `status.json` and the last row of `metrics.jsonl`, never log text; the time left follows
from the FLOPs done and left, since runs of a study differ in size by orders of magnitude.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoscale.data.gauge import LIVE_SECONDS, PLAIN_SECONDS, duration
from nanoscale.errors import UserError
from nanoscale.experiments.failures import Failure, end_of, log_tail
from nanoscale.experiments.worker import Job
from nanoscale.store.folder import COMPLETE, FAILED, ROWS, WAITING, RunFolder
from nanoscale.store.lease import Owner

if TYPE_CHECKING:
    from IPython.display import HTML
    from rich.console import Group

TAIL_BYTES = 1 << 16
TRY_LINES = 5  # of a failed try's log
LINES_KEPT = 8  # of what is said in a notebook
RUN_COLUMNS = ("run", "state", "step", "loss", "tokens/s", "left")
LOADING = "loading torch"  # what a run does that has been started and has not begun


@dataclass(frozen=True)
class Reading:
    """How far a run is: completed updates of all, and its last row's numbers (None: no row yet)."""

    state: str
    step: int
    max_iters: int
    loss: float | None
    tokens_per_second: float | None
    tokens: int | None  # seen so far

    def done(self, since: int = 0) -> float:
        """The share that it has made of its updates after the first `since`."""
        updates = self.max_iters - since
        return min(1.0, max(0, self.step - since) / updates) if updates > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At the speed of the last row."""
        if not (self.step and self.tokens and self.tokens_per_second):
            return None
        return (self.max_iters - self.step) * self.tokens / self.step / self.tokens_per_second


def read(folder: RunFolder) -> Reading:
    """The run's progress now; a file being replaced counts as not there yet."""
    state = ""
    step = max_iters = 0
    with suppress(UserError):
        status = folder.status()
        state, step, max_iters = status.state, status.step, status.max_iters
    row = last_row(folder)
    step = max(row.get("step", 0), step)
    loss, speed, tokens = map(row.get, ("train_loss", "tokens_per_second", "tokens_seen"))
    return Reading(state, step, max_iters, loss, speed, tokens)


def last_row(folder: RunFolder) -> dict[str, Any]:
    """The last whole row of `metrics.jsonl`, from the end of the file alone; {} without one."""
    lines = end_of(folder / ROWS, TAIL_BYTES).split(b"\n")
    try:
        row: object = json.loads(lines[-2])  # what follows the last newline is torn
    except (ValueError, IndexError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


@dataclass(frozen=True)
class Expected:
    """About how many runs a search will still ask for, and their FLOPs."""

    runs: int = 0
    flops: float = 0.0


class Progress:
    """Counts, FLOPs and time of one call's runs; prints a line per start and per end.

    `later` says what will still be asked for beside `jobs` and those that are added.
    """

    def __init__(self, name: str, jobs: Sequence[Job], later: Callable[[], Expected]) -> None:
        self.name = name
        self.later = later
        self.asked = 0
        self.running: dict[Path, Job] = {}
        self.ended_runs = self.failed_runs = 0
        self.began = self.shown = time.monotonic()
        self.past: dict[Path, float] = {}  # FLOPs that took no time of this call
        self.flops_asked = self.flops_ended = 0.0
        self.told: set[str] = set()
        self.add(jobs)

    def add(self, jobs: Sequence[Job]) -> None:
        """Further jobs of this call."""
        for job in jobs:
            self.asked += 1
            if job.path not in self.past:  # two trials may be one run
                self.past[job.path] = done_flops(job)
                self.flops_asked += job.flops - self.past[job.path]

    @property
    def total(self) -> int:
        """How many runs this call will have brought to an end."""
        return self.asked + self.later().runs

    @property
    def flops_to_do(self) -> float:
        """FLOPs that this call will take in all."""
        return self.flops_asked + self.later().flops

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None: ...

    # -- what the pool tells ----------------------------------------------------------------
    def started(self, job: Job) -> None:
        self.running[job.path] = job
        step = read(job.folder).step
        self.say(f"start {job.title}" + (f", after step {step}" if step else ""))

    def ended(self, job: Job) -> None:
        self.running.pop(job.path, None)
        self.ended_runs += 1
        state = job.folder.state()
        self.failed_runs += state == FAILED
        done = job.flops if state == COMPLETE else done_flops(job)
        took = done - self.past.get(job.path, 0.0)
        self.past[job.path] = done  # of another trial that is the same run, nothing is left
        self.flops_ended += took
        self.flops_asked -= job.flops - done if took else 0.0
        self.say(
            f"{state} {job.title}{outcome(job.folder, state)}  "
            f"({self.ended_runs}/{self.total}, {self.time_left()})"
        )

    def elsewhere(self, job: Job) -> None:
        if job.title not in self.told:
            self.told.add(job.title)
            owner = job.folder.holder() or Owner()
            self.say(f"wait for {job.title}: {owner} is training it")

    def again(self, job: Job, failure: Failure, how: str) -> None:
        self.running.pop(job.path, None)
        self.say(f"failed {job.title}: {failure.reason}; {how}")
        for line in log_tail(job.folder, TRY_LINES):
            self.say(f"    {line}")

    def tick(self) -> None:
        if time.monotonic() - self.shown > PLAIN_SECONDS and self.running:
            self.shown = time.monotonic()
            runs = "; ".join(run_line(job) for job in self.running.values())
            self.say(f"{self.ended_runs}/{self.total} done, {self.spent()}: {runs}")

    # -- what a table of them shows ----------------------------------------------------------
    def standing(self) -> str:
        """Counts, FLOPs and the time left."""
        waiting = self.total - self.ended_runs - len(self.running)
        failed = f", {self.failed_runs} failed" if self.failed_runs else ""
        return (
            f"{self.name}: {self.ended_runs}/{self.total} done{failed}, {waiting} waiting, "
            f"{self.spent()}"
        )

    def cells(self) -> list[tuple[str, ...]]:
        """A row per running run, of `RUN_COLUMNS`."""
        rows: list[tuple[str, ...]] = []
        for job in self.running.values():
            run = read(job.folder)
            row = (
                job.title,
                LOADING if run.state in ("", WAITING) else run.state,
                f"{run.step:,}/{run.max_iters:,}",
                text(run.loss, "{:.4f}"),
                text(run.tokens_per_second, "{:,.0f}"),
                "" if run.seconds_left is None else duration(run.seconds_left),
            )
            rows.append(row)
        return rows

    # -- words ------------------------------------------------------------------------------
    def say(self, line: str) -> None:
        print(f"[{self.name}] {line}", flush=True)

    def spent(self) -> str:
        """FLOPs of this call so far, of all that it will take, and the time left."""
        return f"{self.flops_done():.3g} of {self.flops_to_do:.3g} FLOPs, {self.time_left()}"

    def time_left(self) -> str:
        """Time to the end at the speed of this call so far."""
        done = self.flops_done()
        elapsed = time.monotonic() - self.began
        if self.ended_runs >= self.total:
            return f"{duration(elapsed)} in all"
        if done <= 0:
            return "time left unknown"
        return f"{duration(elapsed * max(0.0, self.flops_to_do - done) / done)} left"

    def flops_done(self) -> float:
        """FLOPs of this call so far."""
        done = self.flops_ended
        for path, job in self.running.items():
            done += done_flops(job) - self.past.get(path, 0.0)
        return done


class LiveProgress(Progress):
    """The same, with a table of the running runs that stays below the printed lines."""

    def __enter__(self) -> LiveProgress:
        from rich.live import Live

        # no refresh thread: the pool ticks
        self.live = Live(self.table(), auto_refresh=False, transient=True)
        self.live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def say(self, line: str) -> None:
        self.live.console.print(line, markup=False, highlight=False)

    def tick(self) -> None:
        if time.monotonic() - self.shown > LIVE_SECONDS:
            self.shown = time.monotonic()
            self.live.update(self.table(), refresh=True)

    def table(self) -> Group:
        from rich.console import Group
        from rich.table import Table

        table = Table(*RUN_COLUMNS[:2])
        for column in RUN_COLUMNS[2:]:
            table.add_column(column, justify="right")
        for cells in self.cells():
            table.add_row(*cells)
        return Group(self.standing(), table)


class NotebookProgress(Progress):
    """The same in a notebook: one output that is replaced, with what was said last below it."""

    def __enter__(self) -> NotebookProgress:
        from IPython.display import display

        self.said: list[str] = []
        self.handle = display(self.html(), display_id=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.show()

    def say(self, line: str) -> None:
        self.said = [*self.said, line][-LINES_KEPT:]
        self.show()

    def tick(self) -> None:
        if time.monotonic() - self.shown > LIVE_SECONDS:
            self.show()

    def show(self) -> None:
        self.shown = time.monotonic()
        self.handle.update(self.html())

    def html(self) -> HTML:
        """The table, and the last lines."""
        from html import escape

        from IPython.display import HTML

        rows = [RUN_COLUMNS, *self.cells()] if self.running else []
        cells = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
        table = "".join(f"<tr>{row}</tr>" for row in cells)
        said = escape("\n".join(self.said))
        return HTML(f"<p>{escape(self.standing())}</p><table>{table}</table><pre>{said}</pre>")


def open_progress(
    name: str, jobs: Sequence[Job], later: Callable[[], Expected] = Expected
) -> Progress:
    """A live table where standard output is a terminal or a notebook that can show one."""
    kind = Progress
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        kind = LiveProgress
    elif in_notebook():
        kind = NotebookProgress
    return kind(name, jobs, later)


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def done_flops(job: Job) -> float:
    """FLOPs of the updates that a run has made."""
    return job.flops * read(job.folder).done(job.since)


def outcome(folder: RunFolder, state: str) -> str:
    """What a run came to: its loss, or why there is none."""
    if state == FAILED:
        return f": {folder.status().reason}"
    metrics = (folder.metrics() if state == COMPLETE else None) or {}
    loss, seconds = metrics.get("val_loss"), metrics.get("wall_seconds")
    if loss is None:
        return ""
    took = "" if seconds is None else f", {duration(seconds)}"
    return f": val_loss {loss:.4f}{took}"


def run_line(job: Job) -> str:
    """`n_layer=4 step 120/1000 loss 2.31`."""
    run = read(job.folder)
    loss = text(run.loss, " loss {:.4f}")
    return f"{job.title} step {run.step}/{run.max_iters}{loss}"


def text(value: float | None, form: str) -> str:
    """A number in a form, as in "{:.4f}"; "" for none."""
    return "" if value is None else form.format(value)
