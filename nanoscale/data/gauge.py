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
    """Lines of what is done, begun at `begun` of a total.

    A context: on a terminal its bar stays below the printed lines until the end.
    """

    def __init__(self, title: str, begun: int) -> None:
        self.title = title
        self.begun = begun
        self.started = self.shown = time.monotonic()

    def __enter__(self) -> Gauge:
        return self

    def __exit__(self, *_: object) -> None: ...

    def show(self, done: int, total: int | None, words: str) -> None:
        """Say how much is done of a total, which may be unknown, if it is time for that."""
        if time.monotonic() - self.shown > PLAIN_SECONDS:
            self.shown = time.monotonic()
            print(f"[{self.title}] {words}{self.left(done, total)}", flush=True)

    def left(self, done: int, total: int | None) -> str:
        """`, 12.5 %, eta 4 min 20 s` at the speed so far; "" where the total is unknown."""
        if total is None or done <= self.begun:
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
        self.task = self.bar.add_task(self.title, completed=self.begun, words="")
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def show(self, done: int, total: int | None, words: str) -> None:
        if time.monotonic() - self.shown > LIVE_SECONDS:
            self.shown = time.monotonic()
            self.bar.update(
                self.task, total=total, completed=done, words=words + self.left(done, total)
            )
            self.bar.refresh()


def open_gauge(title: str, begun: int = 0) -> Gauge:
    """A bar where standard output is a terminal that can show one."""
    live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    kind = LiveGauge if live else Gauge
    return kind(title, begun)


def duration(seconds: float) -> str:
    """`8.3 s`, `4 min 20 s` or `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
