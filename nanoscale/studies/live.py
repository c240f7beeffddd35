"""A study as it runs, as a page on this machine alone: states, curves as they grow, time left.

The one idea: the page is made anew from the run folders when it is asked for, and asks for itself
again; nothing is kept, and nothing but that page is served.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from nanoscale.data.gauge import duration
from nanoscale.errors import UserError, program
from nanoscale.experiments.failures import ENDED
from nanoscale.experiments.progress import read
from nanoscale.experiments.records import RunEntry, describe
from nanoscale.experiments.results import Study, state_of
from nanoscale.spec.values import Json
from nanoscale.store.folder import RUNNING, RunFolder
from nanoscale.studies.conclusion import REPORT
from nanoscale.studies.study_facts import answer_in

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RunNow: TypeAlias = tuple[RunEntry, RunFolder, str]  # and its state
HERE = "127.0.0.1"
REFRESH_SECONDS = 5
CURVE_POINTS = 200  # of a run's curve


def server_of(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of the study's page on 127.0.0.1, begun and not yet serving.

    Raises:
        UserError: the port is taken.
    """
    page = LivePage(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            ours = {f"{name}:{server.server_port}" for name in (HERE, "localhost")}
            if self.headers.get("Host", "").lower() not in ours:  # a name elsewhere that leads here
                self.send_error(403)
            elif self.path != "/":
                self.send_error(404)
            else:
                self.answer(page.now())

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """A line per request would bury everything else."""

    try:
        server = ThreadingHTTPServer((HERE, port), Handler)
    except (OSError, OverflowError) as e:
        why = e.strerror if isinstance(e, OSError) else "expected 65535 or less"
        raise UserError(f"--port={port}: {why}; leave it out for one that is free") from e
    return server


@dataclass
class LivePage:
    """The page of a study, made anew once it is older than `REFRESH_SECONDS`."""

    folder: Path
    made: float = -REFRESH_SECONDS
    body: bytes = b""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def now(self) -> bytes:
        with self.lock:
            if time.monotonic() - self.made >= REFRESH_SECONDS:
                self.body = page_text(self.folder).encode()
                self.made = time.monotonic()
            return self.body


def page_text(folder: Path) -> str:
    """The page as its run folders are now; what cannot be read just now is said in its place."""
    from pandas import DataFrame

    from nanoscale.report import StudyPage

    try:
        study = Study.open(folder)
        runs = [(entry, run, state_of(run)) for entry, run in study.runs()]
        runs.sort(key=lambda run: run[-1] != RUNNING)
        rows = [row_of(*run) for run in runs]
        drawn = curves(runs)
        lines = [*answer_at_the_end(study, runs), how_far(runs)]
        question = study.asked.question
    except (OSError, UserError) as e:  # a file is being replaced, or the study is gone
        lines, rows, drawn, question = [str(e)], [], None, ""
    return StudyPage(
        title=folder.name,
        question=question,
        summary_lines=lines,
        figures=[] if drawn is None else [("Training loss of every run so far.", drawn)],
        tables=[("The runs.", DataFrame(rows))] if rows else [],
        commands=[("This page", f"{program()} report {folder.name} --serve")],
        refresh=REFRESH_SECONDS,
    ).html()


def answer_at_the_end(study: Study, runs: Sequence[RunNow]) -> list[str]:
    """What the study's page says, once nothing of it runs or waits."""
    if any(state not in ENDED and not entry.left_out for entry, _, state in runs):
        return []
    lines: list[str] = answer_in(study.folder).get("lines") or []
    return [*map(str, lines), f"its page: {study.folder / REPORT}"] if lines else []


def how_far(runs: Sequence[RunNow]) -> str:
    """`3 of 10 runs have ended, 2 are running; about 4 min 20 s left`."""
    ended, left, rate, waiting, running = 0, 0.0, 0.0, 0.0, 0
    for entry, folder, state in runs:
        if state in ENDED:
            ended += 1
        elif state == RUNNING:
            running += 1
            now = read(folder)
            if now.seconds_left:
                left = max(left, now.seconds_left)
                rate += entry.flops * (1 - now.done()) / now.seconds_left
        elif not entry.left_out:
            waiting += entry.flops
    line = f"{ended} of {len(runs)} runs have ended, {running or 'none'} "
    line += "are running" if running > 1 else "is running"
    if not rate:
        return line
    return f"{line}; about {duration(max(left, left / 2 + waiting / rate))} left"


def row_of(entry: RunEntry, folder: RunFolder, state: str) -> dict[str, Json]:
    """A run's line."""
    now = read(folder)
    left = now.seconds_left if state == RUNNING else None
    return {
        "state": state,
        "step": now.step,
        "of": now.max_iters or None,
        "loss": now.loss,
        "left": None if left is None else duration(left),
        "run": describe(entry.values),
    }


def curves(runs: Sequence[RunNow]) -> Figure | None:
    """The training loss of every run so far."""
    from nanoscale.report import loss_curves_figure

    points: list[dict[str, Json]] = []
    for entry, folder, state in runs:
        rows = [row for row in folder.rows() if row.get("train_loss") and row.get("tokens_seen")]
        size = describe(entry.values) if state == RUNNING else "not running"
        for row in rows[:: 1 + len(rows) // CURVE_POINTS]:
            points.append(
                {
                    "run": entry.id,
                    "size": size,
                    "tokens_seen": row["tokens_seen"],
                    "train_loss": row["train_loss"],
                }
            )
    return loss_curves_figure(points, "train_loss") if points else None
