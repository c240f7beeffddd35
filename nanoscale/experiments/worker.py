"""The worker contract: a backend starts `nanoscale run FOLDER` for a run and says how it ended.

The folder holds the run's config and all that it leaves, so a backend carries nothing, and it may
die at any moment. Five verbs are its whole interface.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nanoscale.errors import disk_errors
from nanoscale.experiments.machine import Slot
from nanoscale.model.launch import without_launcher
from nanoscale.processes import apart
from nanoscale.store.folder import LOG, RunFolder

GRACE_SECONDS = 60.0  # between asking a run to save and killing it
UTF8 = {"PYTHONIOENCODING": "utf-8"}  # of a worker's log, whatever the console's is
PACKAGE_PARENT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Job:
    """A run to be done: where, how many training FLOPs, and what the user calls it."""

    folder: RunFolder
    flops: int  # from its branch on
    title: str
    since: int = 0  # the update at which it branches

    @property
    def path(self) -> Path:
        return self.folder.path


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
    """What runs one folder: `command` FOLDER as a process, `entry`(["run", FOLDER]) in a fork.

    `entry` is MODULE:FUNCTION. A fork server imports `preload` first, once for all its runs: what
    loads torch and the loop. Both are names, as nothing here imports torch.
    """

    command: tuple[str, ...] = (sys.executable, "-P", "-m", "nanoscale", "run")
    entry: str = "nanoscale.commands.main:dispatch"
    preload: tuple[str, ...] = ("nanoscale.training.loop",)


NANOSCALE = Worker()


@dataclass(frozen=True)
class RunRequest:
    """A run that a fork server is asked for, in one line of JSON."""

    folder: str
    command: Sequence[str]  # of a new Python, where forking is not safe
    env: Mapping[str, str]  # of its slot, as are the CPUs
    cpus: Sequence[int]
    shape: str  # equal for runs that may share a process; "": it may not

    @property
    def log(self) -> str:
        return os.path.join(self.folder, LOG)


def environment_of(slot: Slot) -> dict[str, str]:
    """The slot's, with this package importable from wherever the worker starts: over ours."""
    theirs = os.environ.get("PYTHONPATH")
    path = f"{PACKAGE_PARENT}{os.pathsep}{theirs}" if theirs else str(PACKAGE_PARENT)
    return {**slot.env, "PYTHONPATH": path}


def whole_environment(over: Mapping[str, str]) -> dict[str, str]:
    """A worker's: ours, with `over` over it, and without what makes us one process of many.

    A study that torchrun or a scheduler has started would else wait for ranks that never come.
    """
    return without_launcher(os.environ) | UTF8 | dict(over)


def open_process(
    command: Sequence[str], folder: Path, env: Mapping[str, str], own_session: bool
) -> subprocess.Popen[bytes]:
    """`command` FOLDER as a process that appends to the folder's log."""
    with disk_errors(folder), open(folder / LOG, "ab") as log:
        return subprocess.Popen(
            [*command, str(folder)],
            env=env,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=own_session,  # which Windows leaves to the flags
            creationflags=apart() if own_session else 0,
        )
