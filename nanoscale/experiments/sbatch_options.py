"""sbatch's options as a user gives them, checked, and as lines that sbatch reads.

`{"partition": "gpu", "exclusive": True, "c": 4, "comment": "a b"}`: a flag alone is true, a short
name is one letter, `cpus_per_task` is `cpus-per-task`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from nanoscale.errors import UserError
from nanoscale.spec.values import Json

_NAME = re.compile("[A-Za-z]|[a-z][a-z0-9-]+")
_PLAIN = re.compile(r"[\w@%+=:,./~\[\]-]+", re.ASCII)  # what needs no quotes
_LONG = {"a": "array", "c": "cpus-per-task", "W": "wait"}  # of the short names that matter here
# What makes the array, or how its tasks end: the script has its own.
_OURS = ("array", "no-requeue", "open-mode", "requeue", "signal", "test-only", "wait", "wrap")

SbatchOptions = Mapping[str, str | None]  # by name without dashes; None: a flag alone


def read_sbatch_options(options: Mapping[str, Json]) -> dict[str, str | None]:
    """What a user asks of sbatch, by name; a flag that is false is not there.

    Raises:
        UserError: what sbatch would refuse, or what the script itself has.
    """
    read: dict[str, str | None] = {}
    for typed, value in options.items():
        where = f"backend_options: {typed}={value!r}"
        name = str(typed).lstrip("-").replace("_", "-")
        if not _NAME.fullmatch(name):
            raise UserError(f"{where}: expected the name of an option of sbatch, as in partition")
        long = _LONG.get(name, name)
        if long in _OURS:
            raise UserError(f"{where}: the runner sees to {long} itself; leave it out")
        if long in (_LONG.get(other, other) for other in read):
            raise UserError(f"{where}: {long} is given twice; leave one out")
        if value is not False:
            read[name] = _text(where, value)
    return read


def _text(where: str, value: Json) -> str | None:
    if value is True:
        return None
    if not isinstance(value, (str, int, float)):
        raise UserError(f"{where}: expected a text, a number, or true for a flag alone")
    text = str(value)
    if not text or not text.isprintable():
        raise UserError(f"{where}: expected some text in one line, or true for a flag alone")
    return text


def sbatch_lines(options: SbatchOptions) -> list[str]:
    """The options as lines at the head of a script."""
    lines = []
    for name, value in options.items():
        option = f"#SBATCH -{name}" if len(name) == 1 else f"#SBATCH --{name}"
        if value is not None:
            option += " " if len(name) == 1 else "="
            option += quoted(value)
        lines.append(option)
    return lines


def quoted(value: str) -> str:
    """One word to sbatch, which knows quotes, backslashes even in them, and # for a comment."""
    if _PLAIN.fullmatch(value):
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
