"""A `.py` config file, run: what it sets, however it sets it.

nanoGPT's config files are assignments, and its forks' take a base file in by `exec`, by an import
of everything, or through `globals()`. So what counts is the scope after the file, not its syntax.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import os
import sys
import traceback
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeGuard

from nanoscale.errors import UserError
from nanoscale.spec.config import nest
from nanoscale.spec.values import Overrides

NESTED = "parametrization"
PLAIN = (bool, int, float, str, list, tuple, dict, type(None))  # what a key's value can be


class Scope(dict[str, Any]):
    """Names and values of a file that runs, and the names that it has `given`.

    Python stores a module's names by the methods below where its scope is no plain dict.
    """

    def __init__(self, known: Overrides) -> None:
        super().__init__(known)
        self.known = dict(known)
        self.given: set[str] = set()

    def __setitem__(self, name: str, value: Any) -> None:
        self.given.add(name)
        super().__setitem__(name, value)

    def update(self, *values: Any, **more: Any) -> None:
        for name, value in dict(*values, **more).items():
            self[name] = value

    def changed(self) -> set[str]:
        """The names set, to whatever value, and those that came otherwise to another object."""
        otherwise = {name for name in self if self[name] is not self.known.get(name, self)}
        return {name for name in self.given | otherwise if isinstance(name, str) and name in self}


def run_config_file(path: str, text: str, known: Overrides) -> dict[str, object]:
    """The values that the file at `path` sets, over the `known` ones that it sees.

    A name that is a key counts, however it was set. Any other is returned too, to be refused,
    where it may be a key misspelt: assigned in the file itself, or come to a plain value.

    Raises:
        UserError: the file does not run; it says at which line.
    """
    top, nested = nest(known)
    parts = types.SimpleNamespace(**nested)
    scope = Scope(top | {NESTED: parts, "__builtins__": vars(builtins) | {"open": opener(path)}})
    scope["__file__"] = path
    try:
        tree = ast.parse(text, filename=path)
        with importable(path):
            exec(compile(tree, path, "exec"), scope)
    except (Exception, SystemExit) as e:  # the user's own code: what it raises is theirs to read
        line = getattr(e, "lineno", None) or _last_line(e, path)
        raise UserError(f"{path}, line {line}: {type(e).__name__}: {e}") from e

    assigned = {node.id for node in _targets(tree) if isinstance(node, ast.Name)}
    imported = _imported(tree)
    values = {}
    for name in sorted(scope.changed()):
        value = scope[name]
        stray = isinstance(value, PLAIN) and name not in imported
        counts = name in top or name == NESTED or name in assigned or stray
        if counts and not name.startswith("_") and value is not parts:
            values[name] = value
    if scope.get(NESTED) is parts:
        values |= _parts(parts, nested, tree)
    return values


def _parts(parts: types.SimpleNamespace, before: Overrides, tree: ast.Module) -> dict[str, object]:
    """What was set of the parametrization, attribute by attribute."""
    values = {}
    assigned = {node.attr for node in _targets(tree) if _of_parts(node)}
    for name, value in vars(parts).items():
        if name in assigned or value is not before.get(name, parts):
            values[f"{NESTED}.{name}"] = value
    return values


# -- base files -----------------------------------------------------------------------------------
def opener(path: str) -> Any:
    """`open` that also finds what lies beside the config file: from here first, as ever."""
    beside = Path(path).parent

    def open_here_or_beside(file: Any, *how: Any, **options: Any) -> IO[Any]:
        named = isinstance(file, (str, os.PathLike)) and not os.path.exists(file)
        if named and (beside / file).is_file():
            file = beside / file
        stream: IO[Any] = open(file, *how, **options)
        return stream

    return open_here_or_beside


@contextmanager
def importable(path: str) -> Iterator[None]:
    """Let modules beside the config file, or here, be imported by it; each file's are its own."""
    folders = [str(Path(path).parent.resolve()), os.getcwd()]
    search, modules = list(sys.path), set(sys.modules)
    sys.path[:0] = folders
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = search
        for name in set(sys.modules) - modules:
            file = getattr(sys.modules[name], "__file__", None) or ""
            if os.path.dirname(file) in folders:
                del sys.modules[name]


# -- the file's syntax ----------------------------------------------------------------------------
def _targets(tree: ast.Module) -> Iterator[ast.AST]:
    """What the statements of a file assign to, but for what functions and classes hold."""
    for statement in tree.body:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            continue
        for node in ast.walk(statement):
            if isinstance(getattr(node, "ctx", None), ast.Store):
                yield node


def _of_parts(node: ast.AST) -> TypeGuard[ast.Attribute]:
    """Whether a target is an attribute of the parametrization."""
    return isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == NESTED


def _imported(tree: ast.Module) -> set[str]:
    """The names that the file imports one by one."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def _last_line(error: BaseException, path: str) -> int | str | None:
    """The last line of the file at `path` in the error's traceback."""
    line: int | str | None = "?"
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == path:
            line = frame.lineno
    return line
