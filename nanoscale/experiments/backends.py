"""Backends: whoever starts `nanoscale run FOLDER` for each run and says how it ended.

The run folder is the truth, so a backend only starts, reports exits and stops; it may die at any
moment. Five verbs are the whole interface; local processes are here, through our own fork server
(torch imported once, a fork of some milliseconds per run) or one plain process per run.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nanoscale.errors import UserError, disk_errors
from nanoscale.experiments import machine
from nanoscale.experiments.machine import Slot
from nanoscale.spec.config import flatten
from nanoscale.spec.sources import FIELDS
from nanoscale.store.folder import LOG, RunFolder

BATCH = ("batch_size", "block_size", "micro_batch_size")
GRACE_SECONDS = 60.0  # between asking a run to save and killing it
PACKAGE_PARENT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Exit:
    """A run's process is gone. `code` is its exit code, -n if signal n killed it, None: unknown."""

    folder: Path
    code: int | None


class Backend(Protocol):
    """Starts runs and reports their exits; never decides what runs."""

    local: bool  # whether runs share this machine's cores

    def slots(self, device: str, threads: int | None, workers: int | None) -> list[Slot]:
        """Where runs of a study on `device` with `threads` CPU threads each can go at once."""

    def start(self, folder: Path, slot: Slot) -> None:
        """Start the run in `folder`; its output is appended to the folder's log."""

    def poll(self, timeout: float) -> list[Exit]:
        """The exits since the last call; waits up to `timeout` seconds for the first."""

    def stop(self, kill: bool = False, folders: Sequence[Path] | None = None) -> None:
        """Ask runs to save and leave (`kill`: at once), by default all; exits come from `poll`."""

    def close(self) -> None:
        """Let go of everything; the next `start` begins anew."""


@dataclass(frozen=True)
class Worker:
    """What runs one folder: `command` FOLDER as a process, `entry`(["run", FOLDER]) in a fork."""

    command: tuple[str, ...] = (sys.executable, "-P", "-m", "nanoscale", "run")
    entry: str = "nanoscale.commands.main:main"
    preload: tuple[str, ...] = ("nanoscale.training.loop",)


def local_backend() -> Backend:
    """The fork server where pipes can be waited on (not Windows), else a process per run."""
    return Subprocess() if os.name == "nt" else ForkServer()


def shape_of(folder: RunFolder) -> str:
    """Equal for runs that can share compiled code; "" for one that has none.

    A hint: torch guards what it has compiled, so what is forgotten here costs time alone.
    """
    with suppress(UserError):  # no config: the run itself will say so
        config = folder.spec().config
        values = flatten(config) if config.compile else {}
        return str(
            {
                key: value
                for key, value in values.items()
                if key in BATCH or FIELDS[key].group in ("model", "machine")
            }
            or ""
        )
    return ""


def worker_environment(slot: Slot) -> dict[str, str]:
    """Ours and the slot's, with this package importable from wherever the worker starts."""
    paths = [str(PACKAGE_PARENT), os.environ.get("PYTHONPATH", "")]
    return os.environ | slot.env | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


class Local:
    """What local backends share: this machine's slots."""

    local = True

    def slots(self, device: str, threads: int | None, workers: int | None) -> list[Slot]:
        return machine.slots(device, threads, workers)


# -- the fork server ----------------------------------------------------------------------------
class ForkServer(Local):
    """Runs as forks of one server process (see `forkserver`), spoken to in JSON lines.

    The server leads its own session, so Ctrl-C reaches only us; when our end of its pipe closes,
    however we died, it asks its children to save, waits for them and leaves.
    """

    def __init__(self, worker: Worker | None = None, fork: bool = True) -> None:
        self._worker, self._fork = worker or Worker(), fork
        self._server: subprocess.Popen[bytes] | None = None
        self._running: set[Path] = set()
        self._unread = b""

    def start(self, folder: Path, slot: Slot) -> None:
        if self._server is None:
            self._launch(slot)
        self._running.add(folder)
        self._send(
            {
                "start": str(folder),
                "command": [*self._worker.command, str(folder)],
                "env": dict(slot.env),
                "cpus": list(slot.cpus),
                "shape": shape_of(RunFolder(folder)),
            }
        )

    def poll(self, timeout: float) -> list[Exit]:
        if self._server is None:
            time.sleep(timeout)
            return []
        if not select.select([self._server.stdout], [], [], timeout)[0]:
            return []
        data = os.read(self._server.stdout.fileno(), 1 << 16)
        if not data:
            return self._server_died()
        *lines, self._unread = (self._unread + data).split(b"\n")
        exits = [Exit(Path(m["exit"]), m["code"]) for m in map(json.loads, lines)]
        self._running -= {gone.folder for gone in exits}
        return exits

    def stop(self, kill: bool = False, folders: Sequence[Path] | None = None) -> None:
        names = None if folders is None else [str(folder) for folder in folders]
        self._send({"stop": "kill" if kill else "save", "folders": names})

    def close(self) -> None:
        if self._server is not None:
            self._server.stdin.close()
            self._server.wait()
            self._server.stdout.close()
        self._server, self._unread = None, b""
        self._running.clear()

    def _launch(self, slot: Slot) -> None:
        command = [
            sys.executable,
            "-P",
            "-m",
            "nanoscale.experiments.forkserver",
            "--entry",
            self._worker.entry,
            "--preload",
            *self._worker.preload,
        ]
        # libgomp reads its settings once, at import, hence the slot's environment; numpy's OpenBLAS
        # starts its threads then, and a process with threads cannot be forked
        environment = worker_environment(slot) | {"OPENBLAS_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            command if self._fork else [*command, "--no-fork"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._server is not None:
            with suppress(BrokenPipeError):  # a dead server shows when it is read
                self._server.stdin.write(json.dumps(message).encode() + b"\n")

    def _server_died(self) -> list[Exit]:
        """Every run went with the server; the next start launches another."""
        lost = [Exit(folder, None) for folder in sorted(self._running)]
        self.close()
        return lost


# -- a process per run --------------------------------------------------------------------------
class Subprocess(Local):
    """One plain process per run. If we are killed the runs go on, and a re-run waits for them."""

    def __init__(self, worker: Worker | None = None) -> None:
        self._worker = worker or Worker()
        self._running: dict[Path, subprocess.Popen[bytes]] = {}

    def start(self, folder: Path, slot: Slot) -> None:
        with disk_errors(folder), open(folder / LOG, "ab") as log:
            process = subprocess.Popen(
                [*self._worker.command, str(folder)],
                env=worker_environment(slot),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._running[folder] = process
        if slot.cpus:
            with suppress(OSError):  # it may be gone already
                os.sched_setaffinity(process.pid, slot.cpus)

    def poll(self, timeout: float) -> list[Exit]:
        until = time.monotonic() + timeout
        while True:
            gone = [
                Exit(folder, process.returncode)
                for folder, process in self._running.items()
                if process.poll() is not None
            ]
            if gone or time.monotonic() >= until:
                break
            time.sleep(min(0.02, timeout))
        for one in gone:
            del self._running[one.folder]
        return gone

    def stop(self, kill: bool = False, folders: Sequence[Path] | None = None) -> None:
        for folder, process in self._running.items():
            if folders is None or folder in folders:
                process.kill() if kill else process.terminate()

    def close(self) -> None:
        self.stop()
        for process in self._running.values():
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()
