"""Failures by kind, and what each calls for.

A refusal is final until its cause is mended; memory that did not suffice calls for half the
micro-batch, which changes no result; anything else that kills a process calls for another try.
A diverged run is no failure: it is a result. Three runs in a row that fail alike stop the study.
"""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass, replace
from pathlib import Path

from nanoscale.errors import BAD_INPUT, INTERRUPTED
from nanoscale.store.files import write_json
from nanoscale.store.folder import CONFIG, FAILED, FINISHED, LOG, WAITING, RunFolder
from nanoscale.store.lease import Held

REFUSED, MEMORY, TIME, CRASH = "refused", "memory", "time", "crash"
ENDED = (*FINISHED, FAILED)  # states of a run that is over, until it is asked for again
ALIKE = 3  # runs in a row that fail alike before a study stops
KILLED = 9  # the number of SIGKILL, a name that Windows lacks
LOG_TAIL_BYTES = 1 << 14
OUT_OF_MEMORY = re.compile("OutOfMemory|MemoryError|[Oo]ut of memory|allocate")


@dataclass(frozen=True)
class Failure:
    """Why a run has no result: its kind, and one line."""

    kind: str
    reason: str

    def likeness(self, folder: RunFolder) -> str:
        """What two failures of the same cause share: the reason without names and numbers."""
        return self.kind + re.sub(r"\d+", "#", self.reason.replace(str(folder.path), ""))


def settle(
    folder: RunFolder, code: int | None, starved: bool, verdict: Failure | None
) -> Failure | None:
    """Give a run whose process is gone its state; the failure, or None: it has ended, or waits.

    `code` is the process's exit code (see `backends.Exit`); `starved`: the kernel killed processes
    for memory meanwhile; `verdict`: the failure for which we ended it ourselves.
    """
    if folder.status().state in FINISHED:
        return None
    try:
        with folder.take():
            if folder.status().state in FINISHED:
                return None
            if code == INTERRUPTED and verdict is None:  # saved, or another process had it first
                return None

            failure = verdict or failure_of(folder, code, starved)
            folder.set_status(state=FAILED, kind=failure.kind, reason=failure.reason)
            return failure
    except Held:  # by another runner's process, or by our own that is still saving
        return None


def failure_of(folder: RunFolder, code: int | None, starved: bool) -> Failure:
    """What the exit code, the status and the log say."""
    if code is None:
        return Failure(CRASH, "its process was lost with what had started it")
    if code < 0:
        if code == -KILLED and starved:
            return Failure(MEMORY, "its process was killed as the machine was out of memory")
        return Failure(CRASH, f"its process was killed by {signal_name(-code)}")

    reason = folder.status().reason
    if not reason:
        last = log_tail(folder, 1) or [f"its process left with exit code {code}"]
        reason = last[0].removeprefix("error: ")
    if code == BAD_INPUT:
        return Failure(REFUSED, reason.partition("UserError: ")[2] or reason)
    return Failure(MEMORY if OUT_OF_MEMORY.search(reason) else CRASH, reason)


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def try_again(folder: RunFolder, failure: Failure, tries: int, retries: int) -> str:
    """Prepare another try of a failed run and say how; "" if that would be of no use.

    A crash has `retries` more tries, of which `tries` count the first and those since; memory that
    did not suffice has one for every half of the micro-batch; a refusal and a run out of time have
    none.
    """
    if failure.kind in (REFUSED, TIME):
        return ""
    try:
        with folder.take():
            how = ""
            if failure.kind == MEMORY:
                how = halve_micro_batch(folder)
            elif tries <= retries:
                how = f"try {tries + 1} of {retries + 1}"
            if how:
                folder.set_status(state=WAITING, reason=None)
            return how
    except Held:
        return "another process has it by now"


def halve_micro_batch(folder: RunFolder) -> str:
    """Halve a run's micro-batch, no part of its identity, and say so; "" if it is one sequence."""
    spec = folder.spec()
    size = spec.config.micro_batch_size or spec.config.batch_size
    if size == 1:
        return ""
    half = (size + 1) // 2
    spec = replace(spec, config=replace(spec.config, micro_batch_size=half))
    write_json(folder / CONFIG, spec.to_json())
    return f"again with micro_batch_size={half}, which changes no result"


def log_tail(folder: RunFolder, lines: int) -> list[str]:
    """The last lines of the run's log that say something."""
    text = end_of(folder / LOG, LOG_TAIL_BYTES).decode(errors="replace")
    return [line for line in text.splitlines() if line.strip()][-lines:]


def end_of(path: Path, size: int) -> bytes:
    """At most the last `size` bytes of a file; none if it cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read()
    except OSError:
        return b""
