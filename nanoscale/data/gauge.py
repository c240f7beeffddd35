"""How far a long preparation is, how long it takes yet: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PLAIN_SECONDS, LIVE_SECONDS = 30.0, 0.5  # between two looks


class Gauge:
    """Lines of what is done, and how long the rest takes at the speed since the first look.

    A context: on a terminal its bar stays below the printed lines until the end.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.begun: int | None = None  # what was done at the first look
        self.started = self.shown = time.monotonic()

    def __enter__(self) -> Gauge:
        return self

    def __exit__(self, *_: object) -> None: ...

    def show(self, done: int, total: int | None, words: str) -> None:
        """Say how much is done of a total, which may be unknown, if it is time for that."""
        if self.is_due(done, PLAIN_SECONDS):
            print(f"[{self.title}] {words}{self.left(done, total)}", flush=True)

    def is_due(self, done: int, seconds: float) -> bool:
        """Whether the last look was that long ago."""
        now = time.monotonic()
        if self.begun is None:
            self.begun = done
            self.started = now
        if now - self.shown <= seconds:
            return False
        self.shown = now
        return True

    def left(self, done: int, total: int | None) -> str:
        """`, 12.5 %, eta 4 min 20 s`; "" where the total or the speed is unknown."""
        if total is None or self.begun is None or done <= self.begun:
            return ""
        elapsed = time.monotonic() - self.started
        seconds = elapsed * max(total - done, 0) / (done - self.begun)
        return f", {100 * min(done / total, 1):.1f} %, eta {duration(seconds)}"


class LiveGauge(Gauge):
    """The same as a bar."""

    bar: Progress
    task: TaskID

    def __enter__(self) -> LiveGauge:
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            "{task.fields[words]}",
        )
        self.bar = Progress(*columns, auto_refresh=False, transient=True)
        self.bar.start()
        self.task = self.bar.add_task(self.title, words="")
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def show(self, done: int, total: int | None, words: str) -> None:
        if self.is_due(done, LIVE_SECONDS):
            words += self.left(done, total)
            self.bar.update(self.task, total=total, completed=done, words=words)
            self.bar.refresh()


def open_gauge(title: str) -> Gauge:
    """A bar where standard output is a terminal that can show one."""
    live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    kind = LiveGauge if live else Gauge
    return kind(title)


def duration(seconds: float) -> str:
    """`8.3 s`, `4 min 20 s` or `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
