"""Files written whole or not at all, JSON in and out, and rows whose torn last line is ignored.

A file is written beside its target and takes its place by a rename; numbers keep full precision and
non-finite ones are null. Lines end in \\n on every system, as seals are known by their bytes.

Under Windows a file cannot be replaced in the moment in which another process reads it, nor be read
while it is replaced; both are tried again for a moment.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from nanoscale.errors import UserError, disk_errors
from nanoscale.spec.values import Json

BUSY_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)  # pauses, while another process has a file open
Done = TypeVar("Done")


def patiently(act: Callable[[], Done]) -> Done:
    """What `act` returns, which is tried again where a file is not to be had at once.

    Raises:
        PermissionError: of the last try.
    """
    for pause in BUSY_SECONDS:
        try:
            return act()
        except PermissionError:
            time.sleep(pause)
    return act()


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path that takes `path`'s place when the block ends well, else disappears."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        try:
            yield temporary
            with open(temporary, "r+b") as file:  # Windows syncs what one may write alone
                os.fsync(file.fileno())  # a rename must never outlive its contents
            patiently(lambda: os.replace(temporary, path))
        finally:
            with suppress(OSError):
                temporary.unlink()


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder under a temporary name that becomes `path` when the block ends well, else goes.

    Raises:
        UserError: something stands there already, or the disk refuses.
    """
    if os.path.lexists(path):
        raise UserError(f"{path} is there already; choose another folder, or delete it first")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        try:
            temporary.mkdir()
            yield temporary
            for name in os.listdir(temporary):
                with open(temporary / name, "r+b") as file:
                    os.fsync(file.fileno())
            os.rename(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def plain(value: Any) -> Any:
    """`value` in JSON's types; non-finite numbers become None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    number = isinstance(value, float)
    if number and not math.isfinite(value):
        return None
    return value


def json_text(value: Any) -> str:
    """`value` as indented JSON."""
    return json.dumps(plain(value), indent=2, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json_text(value))


def read_json(path: Path, remedy: str = "restore it, or make it anew") -> Any:
    """The JSON in `path`; a UserError, with the remedy for a broken one, if it is not to be had."""
    try:
        return json.loads(patiently(lambda: path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; is this a run folder?") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as e:
        raise UserError(f"{path}: not valid JSON ({e}); {remedy}") from e
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e


def row_line(row: Mapping[str, Json]) -> str:
    """One row of `metrics.jsonl`."""
    return json.dumps(plain(row), separators=(",", ":"), allow_nan=False) + "\n"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; none if it is missing; a torn last line is ignored."""
    try:
        lines = patiently(path.read_bytes).split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e
    # every whole row ends in a newline, so what follows the last one is torn (or empty)
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            rows.append(_row(line))
        except (ValueError, RecursionError) as e:
            raise UserError(
                f"{path}: a broken row ({e}, line {number}); the file was changed from outside: "
                "restore it, or delete it to go on without its rows"
            ) from e
    return rows


def _row(line: bytes) -> dict[str, Any]:
    """A step and numbers, each of them perhaps unknown, with statistics."""
    row = json.loads(line)
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        raise ValueError("it has no step")
    for key, value in row.items():
        if key != "statistics" and not isinstance(value, (int, float, type(None))):
            raise ValueError(f"{key} is no number")
    return row


def cut_rows(path: Path, last_step: int) -> None:
    """Drop the rows after `last_step`, atomically: what a resumed run will write again."""
    rows = read_rows(path)
    write_text(path, "".join(row_line(r) for r in rows if r["step"] <= last_step))


def move_aside(path: Path) -> Path:
    """Rename a folder to the first free `<name>.old-<k>` and return the new path."""
    if Path.cwd().is_relative_to(path.resolve()):
        raise UserError(
            f"{path} holds another run and cannot be moved aside while you are in it; "
            "choose another folder"
        )
    k = 1
    while (aside := path.with_name(f"{path.name}.old-{k}")).exists():
        k += 1
    with disk_errors(path):
        os.rename(path, aside)
    return aside
