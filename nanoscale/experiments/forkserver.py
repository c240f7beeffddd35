"""A process that imports torch once and forks a child per run: 40 times cheaper than a new Python.

It is started by name, never through `multiprocessing`, so a script without a main guard, one read
from standard input and a notebook can all have it. It speaks JSON lines: `{"start": folder, ...}` and
`{"stop": "save" | "kill"}` come in, `{"exit": folder, "code": n}` goes out. When its input closes
(whoever started it is gone, by SIGKILL too) it asks the children to save, waits, and leaves.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from typing import Any

from nanoscale.errors import exit_code_of
from nanoscale.records import LOG

GRACE_SECONDS = 60.0  # between asking a child to save and killing it
PR_SET_PDEATHSIG = 1  # of Linux's prctl
WATCHED = (signal.SIGCHLD, signal.SIGTERM)


class Server:
    """The children of one server, and its two pipes."""

    def __init__(self, entry: str, fork: bool, output: int) -> None:
        self.entry, self.fork, self.output = entry, fork, output
        self.children: dict[int, str] = {}  # pid -> run folder
        self.kill_at: float | None = None
        self.leaving = False
        self.unread = b""
        # a signal writes a byte here, which wakes select: no polling, and no thread to fork with
        self.wake, self.alarm = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(self.alarm, False)
        signal.set_wakeup_fd(self.alarm, warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._leave)

    def serve(self) -> None:
        """Obey until the input closes; then wait for the children."""
        while not self.leaving or self.children:
            wait = None if self.kill_at is None else max(0.0, self.kill_at - time.monotonic())
            inputs = [self.wake] if self.leaving else [self.wake, sys.stdin.fileno()]
            ready = select.select(inputs, [], [], wait)[0]
            with suppress(BlockingIOError):
                os.read(self.wake, 4096)
            self._reap()
            if sys.stdin.fileno() in ready:
                self._read()
            if self.kill_at is not None and time.monotonic() >= self.kill_at:
                self.stop("kill")

    def stop(self, how: str) -> None:
        """Ask every child to save and leave, or kill it and all that it started."""
        self.kill_at = None if how == "kill" else time.monotonic() + GRACE_SECONDS
        for pid in self.children:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL) if how == "kill" else os.kill(pid, signal.SIGTERM)

    def _leave(self, *_: Any) -> None:
        self.leaving = True
        self.stop("save")

    def _read(self) -> None:
        data = os.read(sys.stdin.fileno(), 1 << 16)
        if not data:
            return self._leave()
        *lines, self.unread = (self.unread + data).split(b"\n")
        for message in map(json.loads, lines):
            if "stop" in message:
                self.stop(message["stop"])
            else:
                self._start(message)

    def _start(self, message: dict[str, Any]) -> None:
        try:
            pid = self._fork(message) if self.fork else _spawn(message)
        except OSError as e:
            with open(os.path.join(message["start"], LOG), "a") as log:
                log.write(f"the run's process could not be started: {e}\n")
            return self._report(message["start"], 1)
        self.children[pid] = message["start"]

    def _reap(self) -> None:
        for pid in list(self.children):
            if os.waitpid(pid, os.WNOHANG)[0]:
                pass

    def _report(self, folder: str, code: int) -> None:
        with suppress(BrokenPipeError):
            os.write(self.output, json.dumps({"exit": folder, "code": code}).encode() + b"\n")
