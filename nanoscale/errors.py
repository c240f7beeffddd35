"""The one way to refuse: a `UserError` becomes one line on stderr and exit code 2.

Exit codes of every command: 0 done; 1 a check, a run or a verdict failed; 2 bad input;
3 inconclusive; 130 interrupted (state saved).
"""

from __future__ import annotations

import codecs
import difflib
import errno
import functools
import io
import os
import runpy
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import CodeType
from typing import Any, TypeVar, cast

from nanoscale.paths import from_here

DONE, FAILURE, BAD_INPUT, INCONCLUSIVE, INTERRUPTED = 0, 1, 2, 3, 130
RANK_0_SECONDS = 15.0  # longer than torchrun takes to see that a process has ended


_OTHER = "choose another folder"
_OTHER_DISK = f"free some space or {_OTHER}"
_OTHER_FOLDER = "choose a folder you may write to"
_FILE_IN_THE_WAY = f"a file stands where a folder is needed; {_OTHER}"
REMEDIES = {  # of the disk's refusals
    errno.ENOSPC: _OTHER_DISK,
    errno.EDQUOT: _OTHER_DISK,
    errno.EFBIG: _OTHER_DISK,
    errno.EACCES: _OTHER_FOLDER,
    errno.EPERM: _OTHER_FOLDER,
    errno.EROFS: _OTHER_FOLDER,
    errno.ENOTDIR: _FILE_IN_THE_WAY,
    errno.EEXIST: _FILE_IN_THE_WAY,
    errno.EISDIR: "a folder stands where a file is needed",
    errno.ENAMETOOLONG: "choose a shorter name",
}

PACKAGES = (  # that we need; nanoGPT's own list has few of them
    "click",
    "jinja2",
    "matplotlib",
    "numpy",
    "packaging",
    "pandas",
    "psutil",
    "rich",
    "scipy",
    "torch",
    "yaml",
)
SPELT = {"±": "+-", "…": "...", "×": "x", "−": "-"}


class UserError(Exception):
    """Bad input: the message names what was typed and the remedy, in one line."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest of `choices`, or an empty string."""
    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def one_of(choices: Iterable[object]) -> str:
    """`'a', 'b' or 'c'`, for messages."""
    words = [repr(c) for c in choices]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def cut(value: object, most: int = 40) -> str:
    """What was typed, or stands in a file, short enough for a message."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


@functools.cache
def program() -> str:
    """What a user types for `nanoscale`: that, where a shell finds it, or by this very Python."""
    found = shutil.which("nanoscale")
    if found and Path(found).parent == Path(sys.executable).parent:
        return "nanoscale"
    python = from_here(sys.executable)
    away = python.startswith("..") or os.path.isabs(python)
    return f"{'python' if away else python} -m nanoscale"


def counted(n: int, noun: str) -> str:
    """`1 run` or `3 runs`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def nearest_or_all(word: str, choices: Collection[str]) -> str:
    """`did_you_mean`, or `; choose 'a', 'b' or 'c'` where none of `choices` is near."""
    return did_you_mean(word, choices) or f"; choose {one_of(choices)}"


@contextmanager
def disk_errors(path: object) -> Iterator[None]:
    """Turn the disk's refusals (full, read-only, a file in the way) into a `UserError`."""
    try:
        yield
    except OSError as e:
        if e.errno not in REMEDIES:
            raise
        reason = os.strerror(e.errno).lower()
        raise UserError(f"cannot write {path}: {reason}; {REMEDIES[e.errno]}") from e


def make_folder(path: Path) -> None:
    """Make a folder and those above it; a `UserError` where the disk refuses."""
    with disk_errors(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as e:  # below /proc, say
            raise UserError(f"cannot make {path}: no folder can be made there; {_OTHER}") from e


def missing_folders(path: Path) -> list[Path]:
    """The folders that `make_folder(path)` would make, deepest first."""
    return [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]


@contextmanager
def made_folder(path: Path) -> Iterator[None]:
    """`make_folder(path)`; where the block fails, no folder made for it is left empty."""
    made = missing_folders(path)
    try:
        make_folder(path)
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()  # not a tree's removal: others may have begun in it
        raise


@contextmanager
def users_errors(said: str) -> Iterator[None]:
    """Turn whatever a user's own Python file raises into a `UserError` that begins with `said`."""
    try:
        yield
    except UserError as e:
        raise UserError(f"{said}: {e}") from e
    except KeyboardInterrupt:
        raise
    except BaseException as e:
        raise UserError(f"{said}: {type(e).__name__}: {e}") from e


Function = TypeVar("Function", bound=Callable[..., Any])
Registered = TypeVar("Registered")


def registered_in(
    file: str | Path, registry: dict[str, Registered], said: str, how: str = ""
) -> dict[str, Registered]:
    """What a user's own Python file adds to a registry, which itself stays as it was.

    Raises:
        UserError: the file is not there, fails or adds nothing (`how` says what it lacks; without
            it, a file may).
    """
    before = dict(registry)
    try:
        with users_errors(said):
            if not Path(file).is_file():
                raise UserError("no such file")
            runpy.run_path(str(file))
            found = {name: made for name, made in registry.items() if before.get(name) is not made}
            if not found and how:
                raise UserError(how)
    finally:
        registry.clear()
        registry.update(before)
    return found


def guarded(function: Function, said: str) -> Function:
    """A user's own function; what it raises is a `UserError` with `said` and the file and line."""

    @functools.wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        try:
            return function(*args, **named)
        except UserError:
            raise
        except Exception as e:
            place = _place_in(e, getattr(function, "__code__", None))
            raise UserError(f"{said}{place}: {type(e).__name__}: {e}") from e

    return cast("Function", call)


def _place_in(error: Exception, code: CodeType | None) -> str:
    """`, FILE, line N`: where in the file of `code` an error came about."""
    file = getattr(code, "co_filename", None)
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    return f", {file}, line {lines[-1]}" if lines else ""


def spelt(error: UnicodeError) -> tuple[str, int]:
    """What a terminal that lacks a character shows instead."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(SPELT.get(c, "?") for c in text), error.end


codecs.register_error("nanoscale", spelt)


def say(line: str) -> None:
    """A last line on stderr: of the processes of one run by the first alone.

    The others wait for torchrun to end them with it, or say what befell them alone.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0":
        time.sleep(RANK_0_SECONDS)
    print(line, file=sys.stderr)


def exit_code_of(main: Callable[[], int | None]) -> int:
    """Run `main`, print a refusal as one line, return the exit code."""
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper) and (out.errors == "strict" or out.encoding != "utf-8"):
        out.reconfigure(errors="nanoscale")
    try:
        code = main() or DONE
        sys.stdout.flush()  # here, where a reader that went away is no error
        return code
    except UserError as e:
        say(f"error: {' '.join(str(e).split())}")
        return BAD_INPUT
    except ModuleNotFoundError as e:
        if e.name not in PACKAGES:
            raise
        remedy = "run `pip install -e .` in the clone"
        say(f"error: {e.name} is not installed: {remedy}")
        return BAD_INPUT
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # the reader of our output went away (`nanoscale ... | head`): not an error, say no more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as e:
        # A name that no disk holds, a folder one may not enter: looking whether it is there fails.
        # Other failures may pass: a run that has one is tried again, which exit code 2 forbids.
        if e.errno not in (errno.ENAMETOOLONG, errno.EACCES):
            raise
        said = f"error: {e.filename}: {e.strerror}"
        say(" ".join(said.split()))
        return BAD_INPUT
