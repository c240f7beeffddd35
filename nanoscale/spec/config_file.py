"""A `.py` config file, run: what it sets, however it sets it.

nanoGPT's config files are assignments, and its forks' take a base file in by `exec`, by an import
of everything, or through `globals()`. So what counts is the scope after the file, not its syntax.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import io
import os
import sys
import traceback
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeGuard

from nanoscale.errors import UserError
from nanoscale.spec.config import nest
from nanoscale.spec.values import Overrides

NESTED = "parametrization"
MAIN = "__main__"
INSTALLED = {"site-packages", "dist-packages"}
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


class Main(types.ModuleType):
    """The file as `sys.modules` holds a script that runs: its attributes are its scope's names."""

    def __init__(self, scope: Scope) -> None:
        super().__init__(MAIN)
        object.__setattr__(self, "_scope", scope)

    @property
    def __dict__(self) -> Scope:  # type: ignore[override]
        scope: Scope = object.__getattribute__(self, "_scope")
        return scope

    def __getattr__(self, name: str) -> Any:
        if name not in self.__dict__:
            raise AttributeError(f"the config file has no name {name!r}")
        return self.__dict__[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__[name] = value

    def __delattr__(self, name: str) -> None:
        del self.__dict__[name]


def run_config_file(path: str, text: str, known: Overrides) -> dict[str, object]:
    """The values that the file at `path` sets, over the `known` ones that it sees.

    It runs as `__main__`, as nanoGPT's do. A name that is a key counts, however it was set. Any
    other is returned too, to be refused, where it may be a key misspelt (see `Names`).

    Raises:
        UserError: the file does not run; it says at which line.
    """
    top, nested = nest(known)
    parts = types.SimpleNamespace(**nested)
    taken: dict[str, str] = {}
    opened = opener(path, taken)
    scope = Scope(top | {NESTED: parts, "__builtins__": vars(builtins) | {"open": opened}})
    scope["__file__"] = path
    scope["__name__"] = MAIN
    try:
        tree = ast.parse(text, filename=path)
        with importable(path, Main(scope), taken):
            exec(compile(tree, path, "exec"), scope)
    except KeyboardInterrupt:
        raise
    except BaseException as e:  # the user's own code: what it raises is theirs to read
        line = getattr(e, "lineno", None) or _last_line(e, path)
        raise UserError(f"{path}, line {line}: {type(e).__name__}: {e}") from e

    names = Names(tree, taken)
    values = {}
    for name in sorted(scope.changed()):
        value = scope[name]
        if name.startswith("_") or value is parts or value is scope:
            continue
        if name in top or name == NESTED or names.may_be_key(name, value):
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
def opener(path: str, taken: dict[str, str]) -> Any:
    """`open` that also finds what lies beside the config file: from here first, as ever.

    The Python files that it opens are `taken`.
    """
    beside = Path(path).parent

    def open_here_or_beside(file: Any, *how: Any, **options: Any) -> IO[Any]:
        if isinstance(file, (str, os.PathLike)):
            if not os.path.exists(file) and (beside / file).is_file():
                file = beside / file
            if str(file).endswith(".py"):
                taken[str(file)] = str(file)
                if how in ((), ("r",)) and "mode" not in options:
                    options = {"encoding": "utf-8-sig"} | options  # as we read the config file
        stream: IO[Any] = open(file, *how, **options)
        return stream

    return open_here_or_beside


@contextmanager
def importable(path: str, main: Main, taken: dict[str, str]) -> Iterator[None]:
    """Let the config file be `__main__`, and import what lies beside it, or here.

    Each file's modules are its own: they are `taken`, by name, and forgotten.
    """
    folders = [str(Path(path).parent.resolve()), os.getcwd()]
    search, modules = list(sys.path), dict(sys.modules)
    sys.path[:0] = folders
    sys.modules[MAIN] = main
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = search
        sys.modules[MAIN] = modules[MAIN]
        for name in set(sys.modules) - set(modules):
            place = _place(sys.modules[name])
            package = name.partition(".")[0]
            own = package not in modules and any(map(place.is_relative_to, folders))
            if own and not INSTALLED.intersection(place.parts):
                taken[name] = str(place)
                del sys.modules[name]


def _place(module: types.ModuleType) -> Path:
    """The file of a module; of a package that has none, its folder."""
    folder = next(iter(getattr(module, "__path__", [])), "/")
    return Path(getattr(module, "__file__", None) or folder)


# -- the file's syntax ----------------------------------------------------------------------------
class Names:
    """The names of a file, and of those that it has `taken` in, that are no keys."""

    def __init__(self, tree: ast.Module, taken: Mapping[str, str]) -> None:
        self.assigned: set[str] = set()
        self.helpers: set[str] = set()
        for file in (tree, *map(_parsed, taken.values())):
            variables = set(_variables(file))
            assigned = _named(node for node in _targets(file) if node not in variables)
            helpers = _named(variables)
            used = _named(ast.walk(file))
            for module, name, called in _imported(file):
                if module not in taken:
                    helpers |= set(dir(sys.modules.get(module))) if name == "*" else {called}
                elif called in used:
                    helpers.add(called)
                else:
                    assigned.add(called)
            self.assigned |= assigned
            self.helpers |= helpers - assigned

    def may_be_key(self, name: str, value: object) -> bool:
        """Whether it may be a key misspelt: no variable of a loop or a `with`, and no import of
        another's or to be used. What came from no file that we know, by `globals()` say, may be one
        where it is plain.
        """
        if callable(value) or isinstance(value, (types.ModuleType, io.IOBase)):
            return False
        return name not in self.helpers and (name in self.assigned or isinstance(value, PLAIN))


def _parsed(path: str) -> ast.Module:
    """The syntax of a file that was taken in; nothing, where that cannot be read."""
    try:
        return ast.parse(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return ast.Module([], [])


def _named(nodes: Iterable[ast.AST]) -> set[str]:
    return {node.id for node in nodes if isinstance(node, ast.Name)}


def _variables(tree: ast.Module) -> Iterator[ast.AST]:
    """The variables of loops and of `with`."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.For, ast.comprehension)):
            yield from ast.walk(node.target)
        elif isinstance(node, ast.withitem) and node.optional_vars:
            yield from ast.walk(node.optional_vars)


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


def _imported(tree: ast.Module) -> Iterator[tuple[str, str, str]]:
    """What the file imports by name: (module, its name there, what it is called here)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.module or "", alias.name, alias.asname or alias.name


def _last_line(error: BaseException, path: str) -> int | str | None:
    """The last line of the file at `path` in the error's traceback."""
    line: int | str | None = "?"
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == path:
            line = frame.lineno
    return line
