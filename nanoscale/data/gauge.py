"""How far long work is, and how long it takes yet: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PLAIN_SECONDS, LIVE_SECONDS = 30.0, 0.5  # between two looks
UNSEEN_SECONDS = 2.0  # seconds that a computation may last unseen
MILLIONTHS = 10**6  # of a computation, in which its share is told
_T = TypeVar("_T")


class Gauge:
    """Lines of what is done, and how long the rest takes at the speed since the first look.

    A context: on a terminal its bar stays below the printed lines until the end.
    """

    def __init__(self, title: str, file: TextIO | None = None) -> None:
        self.title = title
        self.file = file  # None: standard output
        self.begun: int | None = None  # what was done at the first look
        self.started = self.shown = time.monotonic()

    def __enter__(self) -> Gauge:
        return self

    def __exit__(self, *_: object) -> None: ...

    def show(self, done: int, total: int | None, words: str) -> None:
        """Say how much is done of a total, which may be unknown, if it is time for that."""
        if self.is_due(done, PLAIN_SECONDS):
            print(f"[{self.title}] {words}{self.left(done, total)}", file=self.file, flush=True)

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
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            "{task.fields[words]}",
        )
        console = Console(file=self.file)
        self.bar = Progress(*columns, console=console, auto_refresh=False, transient=True)
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


def open_gauge(title: str, file: TextIO | None = None) -> Gauge:
    """A bar where the file, or standard output, is a terminal that can show one."""
    live = (file or sys.stdout).isatty() and os.environ.get("TERM") != "dumb"
    kind = LiveGauge if live else Gauge
    return kind(title, file)


# -- a computation, in parts of parts -------------------------------------------------------------
At = Callable[..., None]  # (count, size=1): so many are done, and so many under way


class Computation:
    """What a verb works out, and how far it is; shown on standard error once a part lasts.

    parts: the outermost first, each with how many are done and under way, of how many of what.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.parts: list[tuple[int, int, int, str]] = []
        self.gauge: Gauge | None = None

    @contextmanager
    def part(self, total: int, noun: str) -> Iterator[At]:
        """What is under way of the part that is, if any is."""
        outermost = not self.parts
        place = len(self.parts)
        self.parts.append((0, 1, total, noun))
        if outermost:
            self.began = time.monotonic()

        def at(count: int, size: int = 1) -> None:
            self.parts[place] = count, size, total, noun
            self.look()

        try:
            yield at
        finally:
            del self.parts[place:]
            if outermost and self.gauge is not None:
                self.gauge.__exit__(None, None, None)
                self.gauge = None

    def look(self) -> None:
        """Show how far it is, if it lasts."""
        if time.monotonic() - self.began < UNSEEN_SECONDS:
            return
        if self.gauge is None:
            self.gauge = open_gauge(self.title, sys.stderr)
            self.gauge.__enter__()
            self.gauge.begun, self.gauge.started = 0, self.began
            self.gauge.shown = -PLAIN_SECONDS
        share = 0.0
        for count, size, total, _ in reversed(self.parts):
            share = (count + size * share) / max(total, 1)
        several = [(total, noun) for _, _, total, noun in self.parts if total > 1]
        total, noun = several[0] if several else (1, "fits")
        words = f"{int(share * total):,} of {total:,} {noun}"
        self.gauge.show(round(share * MILLIONTHS), MILLIONTHS, words)


_computation: ContextVar[Computation | None] = ContextVar("computation", default=None)


@contextmanager
def watched(title: str) -> Iterator[None]:
    """Computations in here are shown where they last."""
    token = _computation.set(Computation(title))
    try:
        yield
    finally:
        _computation.reset(token)


@contextmanager
def part(total: int, noun: str) -> Iterator[At]:
    """So many of something are worked out in here; tell what this gives where it is."""
    computation = _computation.get()
    if computation is None:
        yield _unseen
        return
    with computation.part(total, noun) as at:
        yield at


def _unseen(count: int, size: int = 1) -> None: ...


def each(items: Sequence[_T], noun: str) -> Iterator[_T]:
    """The items one after another, each a part of a computation."""
    with part(len(items), noun) as at:
        for count, item in enumerate(items):
            at(count)
            yield item


def duration(seconds: float) -> str:
    """`8.3 s`, `4 min 20 s` or `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
