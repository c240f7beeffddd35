"""Runs as processes of this machine: forks of a server that has torch, or one new Python each."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from nanoscale.errors import UserError
from nanoscale.experiments import machine
from nanoscale.experiments.machine import Slot
from nanoscale.experiments.worker import (
    GRACE_SECONDS,
    NANOSCALE,
    Backend,
    Exit,
    RunRequest,
    Worker,
    environment_of,
    open_process,
    whole_environment,
)
from nanoscale.processes import ask_to_end, end_group, forks, pin
from nanoscale.spec.config import flatten
from nanoscale.spec.sources import FIELDS
from nanoscale.spec.values import Json
from nanoscale.store.folder import RunFolder

_BATCH = ("batch_size", "block_size", "micro_batch_size")


def local_backend() -> Backend:
    """The fork server where a process with torch can be forked (Linux), else a process per run."""
    return ForkServer() if forks() else Subprocess()


class Local:
    """What local backends share: this machine's slots."""

    local = True
    slots = staticmethod(machine.slots)


# -- the fork server ----------------------------------------------------------------------------
@dataclass(frozen=True)
class ServerPipes:
    """A fork server's process, what it is told, and what it tells: JSON lines both ways."""

    process: subprocess.Popen[bytes]
    requests: IO[bytes]
    exits: IO[bytes]


class ForkServer(Local):
    """Runs as forks of one server process (see `forkserver`), launched with the first of them.

    The server leads its own session, so Ctrl-C reaches only us; when our end of its pipe closes,
    however we died, it asks its children to save, waits for them and leaves. `fork=False` lets it
    start a new Python for every run, as it does by itself where forking is not safe.
    """

    def __init__(self, worker: Worker = NANOSCALE, fork: bool = True) -> None:
        self._worker = worker
        self._fork = fork
        self._server: ServerPipes | None = None
        self._threads: str | None = None  # with which the server was launched
        self._running: set[Path] = set()
        self._unread = b""

    def start(self, folder: Path, slot: Slot) -> None:
        threads = environment_of(slot).get("OMP_NUM_THREADS")
        if not self._running and threads != self._threads:
            self.close()  # libgomp reads it once
        if self._server is None:
            self._server = self._launch(slot)
            self._threads = threads
        self._running.add(folder)
        command = [*self._worker.command, str(folder)]
        shape = shape_of(RunFolder(folder))
        self._send(start=vars(RunRequest(str(folder), command, slot.env, slot.cpus, shape)))

    def poll(self, timeout: float) -> list[Exit]:
        if self._server is None:
            time.sleep(timeout)
            return []
        pipe = self._server.exits
        if not select.select([pipe], [], [], timeout)[0]:
            return []

        data = os.read(pipe.fileno(), 1 << 16)
        if not data:
            return self._server_died()
        *lines, self._unread = (self._unread + data).split(b"\n")
        exits = []
        for line in lines:
            message = json.loads(line)
            exits.append(Exit(Path(message["exit"]), message["code"]))
        self._running.difference_update(gone.folder for gone in exits)
        return exits

    def stop(self, kill: bool = False, folders: Sequence[Path] | None = None) -> None:
        names = None if folders is None else [str(folder) for folder in folders]
        self._send(stop="kill" if kill else "save", folders=names)

    def close(self) -> None:
        if self._server is not None:
            self._server.requests.close()
            self._server.process.wait()
            self._server.exits.close()
        self._server = None
        self._unread = b""
        self._running.clear()

    def _launch(self, slot: Slot) -> ServerPipes:
        how = "fork" if self._fork else "spawn"
        command = [sys.executable, "-P", "-m", "nanoscale.experiments.forkserver"]
        command += [how, self._worker.entry, *self._worker.preload]
        # libgomp reads its settings once, at import, hence the slot's environment; numpy's OpenBLAS
        # starts its threads then, and a process with threads cannot be forked
        process = subprocess.Popen(
            command,
            env=whole_environment(environment_of(slot) | {"OPENBLAS_NUM_THREADS": "1"}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )
        assert process.stdin is not None  # both were asked for
        assert process.stdout is not None
        return ServerPipes(process, process.stdin, process.stdout)

    def _send(self, **message: Json) -> None:
        if self._server is not None:
            with suppress(BrokenPipeError):  # a dead server shows when it is read
                self._server.requests.write(json.dumps(message).encode() + b"\n")

    def _server_died(self) -> list[Exit]:
        """Every run went with the server; the next start launches another."""
        lost = [Exit(folder, None) for folder in sorted(self._running)]
        self.close()
        return lost


def shape_of(folder: RunFolder) -> str:
    """Equal for runs that can share compiled code; "" for one that has none.

    A hint: torch guards what it has compiled, so what is forgotten here costs time alone.
    """
    with suppress(UserError):  # no config: the run itself will say so
        config = folder.spec().config
        if config.compile:
            shape = {}
            for key, value in flatten(config).items():
                if key in _BATCH or FIELDS[key].group in ("model", "machine"):
                    shape[key] = value
            return str(shape)
    return ""


# -- a process per run --------------------------------------------------------------------------
class Subprocess(Local):
    """One plain process per run. If we are killed the runs go on, and a re-run waits for them."""

    def __init__(self, worker: Worker = NANOSCALE) -> None:
        self._worker = worker
        self._running: dict[Path, subprocess.Popen[bytes]] = {}

    def start(self, folder: Path, slot: Slot) -> None:
        env = whole_environment(environment_of(slot))
        process = open_process(self._worker.command, folder, env, own_session=True)
        self._running[folder] = process
        pin(process.pid, slot.cpus)

    def poll(self, timeout: float) -> list[Exit]:
        until = time.monotonic() + timeout
        exits: list[Exit] = []
        while True:
            for folder, process in list(self._running.items()):
                code = process.poll()
                if code is not None:
                    del self._running[folder]
                    exits.append(Exit(folder, code))
            if exits or time.monotonic() >= until:
                return exits
            time.sleep(min(0.02, timeout))

    def stop(self, kill: bool = False, folders: Sequence[Path] | None = None) -> None:
        for folder, process in self._running.items():
            if folders is None or folder in folders:
                end_group(process.pid) if kill else ask_to_end(process)

    def close(self) -> None:
        self.stop()
        for process in self._running.values():
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                end_group(process.pid)
                process.wait()
        self._running.clear()
