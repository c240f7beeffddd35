"""What differs between systems about names of files: how they divide, and which may not be."""

from __future__ import annotations

import os
import re
import shlex
from contextlib import suppress
from pathlib import Path

FORBIDDEN = '/\\:*?"<>|'  # in a name, by one system or another
DEVICES = {"CON", "PRN", "AUX", "NUL"} | {f"COM{n}" for n in range(10)}
DEVICES |= {f"LPT{n}" for n in range(10)}


def last_part(name: str) -> str:
    """A name without the folders before it, however a system divides them."""
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1]


def is_device(name: str) -> bool:
    """Whether Windows takes a file of that name for a device."""
    return name.partition(".")[0].strip().upper() in DEVICES


def from_here(path: str | Path) -> str:
    """The path from the working folder, with / on every system; whole where it is on a drive of
    another letter."""
    with suppress(ValueError):
        path = os.path.relpath(path)
    return Path(path).as_posix()


def in_a_shell(path: str | Path) -> str:
    """The path as one word of a command, also of shells that know no quotes around a backslash."""
    return shlex.quote(Path(path).as_posix())
