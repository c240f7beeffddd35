"""Leases: one process at a time may write into a folder, on this host or on any that shares it.

Claim n is the file `lease-n.json`, made exclusively (by a link, else O_EXCL) by one of those who
saw claim n-1 dead, and removed when its owner is done. Who has made a file looks once more
for other living claims, and yields to them: someone slow may have claimed a number whose time was
over.

Death is a gone process on the same machine, where that can be seen, or a heartbeat missed `MISSED`
times over. Heartbeats are times of the file system, compared with its own clock, so hosts' clocks
may differ.
"""

from __future__ import annotations

import json
import os
import random
import re
import socket
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from nanoscale.errors import UserError, disk_errors
from nanoscale.processes import began, boot, lives

BEAT_SECONDS, MISSED = 10.0, 12
NAME = re.compile(r"lease-(\d+)\.json")


@dataclass(frozen=True)
class Owner:
    """Whose a claim is; nobody is known while its file is being written."""

    pid: int | None = None
    host: str | None = None
    machine: str | None = None  # as `processes.boot` says it
    process_started: float = 0.0  # seconds, as `processes.began` says them; 0: it does not

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Held(UserError):
    """Another live process holds the folder."""

    def __init__(self, folder: Path, holder: Owner) -> None:
        who = str(holder) if holder.pid else "another process"
        super().__init__(f"{folder}: {who} is training there; wait for it or choose another folder")


class Lease:
    """A claim of this process; a context that ends it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = json.dumps(asdict(this_process())).encode()
        self.ended = threading.Event()

    def beat(self) -> Lease:
        """Keep the claim alive from a thread, for work that takes longer than a moment."""
        threading.Thread(target=self._beat, name="lease", daemon=True).start()
        return self

    def _beat(self) -> None:
        while not self.ended.wait(BEAT_SECONDS):
            with suppress(OSError):  # a disk away for a while, or a lost claim: `check` tells
                os.utime(self.path)

    def check(self) -> None:
        """Refuse to write on once others took us for dead (a host cut off) and went on."""
        if not self.is_ours():
            raise Held(self.path.parent, holder(self.path.parent) or Owner())

    def is_ours(self) -> bool:
        """Whether the claim still stands: its number may be another's by now."""
        try:
            return self.path.read_bytes() == self.record
        except OSError:
            return False

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        if self.is_ours():
            with suppress(OSError):
                self.path.unlink()


def take(folder: Path) -> Lease:
    """Claim an existing folder.

    Raises:
        Held: another live process has it.
    """
    while True:
        if found := holder(folder):
            raise Held(folder, found)
        seen = claims(folder)
        number = max(seen, default=0) + 1
        lease = Lease(_path(folder, number))
        if not _create(lease.path, lease.record):
            continue  # someone else was faster
        if holder(folder, but=number) is None:
            for dead in seen:  # whoever came since yields, and takes its own claim away
                with suppress(OSError):
                    _path(folder, dead).unlink()
            return lease
        with lease:
            time.sleep(random.uniform(0.01, 0.05))  # two that yield to each other: not in step


def holder(folder: Path, but: int | None = None) -> Owner | None:
    """The live process that holds the folder, or None: it is free.

    `but` is a claim that does not count.
    """
    for number in claims(folder):
        path = _path(folder, number)
        owner = _read(path)
        if number != but and owner is not None and _lives(path, owner):
            return owner
    return None


def claims(folder: Path) -> list[int]:
    """The numbers of the claims on a folder, dead ones too."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return sorted(int(m[1]) for m in map(NAME.fullmatch, names) if m)


# -- owners -------------------------------------------------------------------------------------
def this_process() -> Owner:
    """Who we are: enough to tell later, from the same machine, whether this process still lives."""
    pid = os.getpid()
    return Owner(pid, socket.gethostname(), boot(), began(pid) or 0.0)


def _lives(path: Path, owner: Owner) -> bool:
    """Whether the owner of a claim lives, as far as can be told from here."""
    if owner.machine == boot() and owner.pid is not None:
        known = lives(owner.pid, owner.process_started)
        if known is not None:
            return known
    try:
        beat = path.stat().st_mtime
    except OSError:
        return False
    return _clock(path.parent) - beat < BEAT_SECONDS * MISSED


def _clock(folder: Path) -> float:
    """Now, by the clock of the folder's file system; by ours where we may not write."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock.", suffix=".tmp") as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


# -- files --------------------------------------------------------------------------------------
def _path(folder: Path, number: int) -> Path:
    return folder / f"lease-{number}.json"


def _create(path: Path, record: bytes) -> bool:
    """Make a claim's file with its owner's record; False if it is there already.

    The file appears with the record in it, so that a kill leaves no claim of nobody.
    """
    own = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    with disk_errors(path.parent):
        try:
            own.write_bytes(record)
            with suppress(OSError):  # it is there, or this disk has no links: see the count
                os.link(own, path)
            with suppress(OSError):  # whose copy was cleared away meanwhile
                if own.stat().st_nlink == 2:
                    return True
            return _create_then_write(path, record)
        finally:
            with suppress(OSError):
                own.unlink()


def _create_then_write(path: Path, record: bytes) -> bool:
    """The same in two steps."""
    try:
        file = open(path, "xb")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(record)
    except OSError:
        path.unlink()
        raise
    return True


def _read(path: Path) -> Owner | None:
    """A claim's owner; None if it is gone, one without a pid while it is being written."""
    try:
        return Owner(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):
        return Owner()
