"""What people type, turned into a config: files and `--key=value` flags, left to right.

A source is a set of dotted keys from one place (one file, or neighbouring flags). Values are
coerced by the field they are for, a later source wins, and every refusal quotes what was typed.
"""

from __future__ import annotations

import ast
import json
import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from nanoscale.errors import UserError, did_you_mean, one_of
from nanoscale.spec.config import (
    EXCLUSIVE,
    MODE,
    ExperimentConfig,
    ParametrizationConfig,
    all_fields,
    check_bounds,
    flatten,
    from_flat,
)

ALIASES = {"parametrization.mode": {"mup": "muP", "sp": "SP", "completep": "CompleteP"}}


@dataclass(frozen=True)
class Source:
    """Values from one place: `name` is how messages call it, e.g. a path or `the command line`."""

    name: str
    values: Mapping[str, Any]


# -- coercion -------------------------------------------------------------------------------
def field_types() -> dict[str, Any]:
    """Dotted key -> annotated type."""
    table = get_type_hints(ExperimentConfig)
    table.pop("parametrization")
    nested = get_type_hints(ParametrizationConfig)
    return table | {f"parametrization.{key}": kind for key, kind in nested.items()}


FIELDS, TYPES = all_fields(), field_types()


def coerce(key: str, value: Any, kind: Any = None) -> Any:
    """`value` (text or a parsed literal) as the type of field `key`.

    Raises:
        UserError: the value does not fit; the message says what would.
    """
    kind = kind or TYPES[key]
    options = get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if types.NoneType in options:
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
            return None
        kind = next(k for k in options if k is not types.NoneType)
    if kind is str:
        return _text(key, value)
    literal = _literal(value)
    if getattr(kind, "__origin__", None) is tuple:
        items = literal if isinstance(literal, (list, tuple)) else (literal,)
        return tuple(coerce(key, item, get_args(kind)[0]) for item in items)
    wanted = {bool: "True or False", int: "a whole number", float: "a number"}[kind]
    if kind is bool and literal in (True, False) and not isinstance(literal, float):
        return bool(literal)
    is_number = isinstance(literal, (int, float)) and not isinstance(literal, bool)
    if kind is not bool and is_number and abs(literal) <= sys.float_info.max:
        if kind is float:
            return float(literal)
        if literal == int(literal):
            return int(literal)
    raise UserError(f"{key}={value}: expected {wanted}")


def _literal(value: Any) -> Any:
    """Text as the Python literal it spells (`true`, `1e-3`, `[1, 2]`), else unchanged."""
    if not isinstance(value, str):
        return value
    words = {"true": True, "false": False}
    if value.strip().lower() in words:
        return words[value.strip().lower()]
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"{key}={value}: expected text")
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]
    return ALIASES.get(key, {}).get(value.lower(), value)


# -- files ----------------------------------------------------------------------------------
def read_file(path: str, known: Mapping[str, Any]) -> Source:
    """A config file as a source; `known` are the values in scope of a `.py` file."""
    readers = {
        ".py": _read_python,
        ".toml": _read_toml,
        ".json": _read_json,
        ".yaml": _read_yaml,
        ".yml": _read_yaml,
    }
    file = Path(path)
    if file.suffix not in readers:
        raise UserError(f"{path}: config files end in {one_of(readers)}")
    if not file.is_file():
        here = [str(p) for p in file.parent.glob("*") if p.suffix in readers]
        raise UserError(f"{path}: no such config file{did_you_mean(path, here)}")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({type(e).__name__})") from e
    try:
        values = readers[file.suffix](path, text, known)
        if not isinstance(values, Mapping):
            raise UserError(f"{path}: expected keys and values, found {type(values).__name__}")
        return Source(path, flatten_keys(values))
    except RecursionError as e:
        raise UserError(f"{path}: nested too deeply; expected keys and values") from e


def flatten_keys(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{'parametrization': {'mode': 'muP'}}` as `{'parametrization.mode': 'muP'}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= flatten_keys(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def _read_python(path: str, text: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """Run a nanoGPT-style file of assignments and return the names it assigned."""
    nested = types.SimpleNamespace(**{k.split(".")[1]: v for k, v in known.items() if "." in k})
    scope = {k: v for k, v in known.items() if "." not in k} | {"parametrization": nested}
    try:
        tree = ast.parse(text, filename=path)
        exec(compile(tree, path, "exec"), scope)
    except (Exception, SystemExit) as e:  # the user's own code: what it raises is theirs to read
        line = getattr(e, "lineno", None) or _last_line(e, path)
        raise UserError(f"{path}, line {line}: {type(e).__name__}: {e}") from e
    stored = [
        n
        for statement in tree.body
        for n in ast.walk(statement)
        if isinstance(getattr(n, "ctx", None), ast.Store)
        and not isinstance(statement, (ast.FunctionDef, ast.ClassDef))
    ]
    names = {n.id for n in stored if isinstance(n, ast.Name) and not n.id.startswith("_")}
    values = {name: scope[name] for name in sorted(names) if name in scope}
    values |= {
        f"parametrization.{n.attr}": getattr(scope["parametrization"], n.attr)
        for n in stored
        if isinstance(n, ast.Attribute) and getattr(n.value, "id", None) == "parametrization"
    }
    return values


def _last_line(error: BaseException, path: str) -> int | str:
    line: int | str = "?"
    trace = error.__traceback__
    while trace is not None:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == path else line
        trace = trace.tb_next
    return line


def _read_toml(path: str, text: str, known: Mapping[str, Any]) -> Any:
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise UserError(f"{path}: not valid TOML: {e}") from e


def _read_json(path: str, text: str, known: Mapping[str, Any]) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        raise UserError(f"{path}: not valid JSON: {e}") from e


def _read_yaml(path: str, text: str, known: Mapping[str, Any]) -> Any:
    import yaml

    try:
        return yaml.safe_load(text) or {}
    except (yaml.YAMLError, ValueError) as e:  # ValueError: an impossible date
        raise UserError(f"{path}: not valid YAML: {e}") from e


# -- layering -------------------------------------------------------------------------------
def apply(values: dict[str, Any], source: Source) -> dict[str, Any]:
    """`values` with one source over them: coerced, known keys only, one member per quantity."""
    for key in source.values:
        if key not in FIELDS:
            spelled = f"--{key}" if source.name == COMMAND_LINE else f"{source.name}: {key}"
            nested = [name for name in FIELDS if name.endswith(f".{key}")]
            hint = did_you_mean(f"parametrization.{key}", nested) or did_you_mean(key, FIELDS)
            raise UserError(f"{spelled}: unknown key{hint or '; --help lists all'}")
    try:
        new = {key: coerce(key, value) for key, value in source.values.items()}
        for key, value in new.items():
            if key != MODE:  # checked with the file of rules that may name it
                check_bounds(key, value, FIELDS[key])
    except UserError as e:
        prefix = "--" if source.name == COMMAND_LINE else f"{source.name}: "
        raise UserError(f"{prefix}{e}") from e
    result = values | new
    for group in EXCLUSIVE:
        named = [key for key in group if new.get(key) is not None]
        if len(named) > 1:
            raise UserError(
                f"{source.name} sets both {' and '.join(named)}, which say the same thing; keep one"
            )
        if named:
            result |= {key: None for key in group if key != named[0]}
    return result


def build(sources: Iterable[Source]) -> ExperimentConfig:
    """The config that the sources describe, left to right over the defaults."""
    values = flatten(ExperimentConfig())
    for source in sources:
        values = apply(values, source)
    return from_flat(values)


COMMAND_LINE = "the command line"


def parse_flag(argument: str) -> tuple[str, str]:
    """`--key=value` as (key, value); only the first `=` separates."""
    key, equals, value = argument[2:].partition("=")
    if not equals:
        example = "True" if TYPES.get(key) is bool else "VALUE"
        hint = did_you_mean(key, FIELDS) if key not in FIELDS else f"; write --{key}={example}"
        raise UserError(f"--{key}: a flag needs a value, as in --key=value{hint}")
    return key, value


def parse_arguments(arguments: Sequence[str]) -> list[Source]:
    """`[config.py ...] [--key=value ...]` as sources; neighbouring flags are one source."""
    sources: list[Source] = []
    values = flatten(ExperimentConfig())
    flags: dict[str, Any] = {}

    def close_flags() -> None:
        nonlocal values
        if flags:
            sources.append(Source(COMMAND_LINE, dict(flags)))
            values = apply(values, sources[-1])
            flags.clear()

    for argument in arguments:
        if argument.startswith("--"):
            key, value = parse_flag(argument)
            flags[key] = value
            continue
        if argument.startswith("-"):
            raise UserError(f"{argument}: flags are written --key=value")
        close_flags()
        sources.append(read_file(argument, values))
        values = apply(values, sources[-1])
    close_flags()
    return sources


def typed(sources: Iterable[Source]) -> dict[str, Any]:
    """What was typed, as one flat dict of plain values, for the record."""
    merged: dict[str, Any] = {}
    for source in sources:
        merged |= dict(source.values)
    return {
        k: v if isinstance(v, (str, int, float, bool, list, type(None))) else repr(v)
        for k, v in merged.items()
    }


def help_text(title: str) -> str:
    """Every key with its default and one line of meaning, grouped as the config is."""
    lines, group = [title, ""], None
    for key, f in FIELDS.items():
        section = "parametrization" if "." in key else f.metadata["group"]
        if section != group:
            lines += ["", section] if group else [section]
            group = section
        shown = " | ".join(f.metadata["choices"]) or getattr(TYPES[key], "__name__", TYPES[key])
        lines.append(f"  --{key}={f.default}".ljust(38) + f" {f.metadata['doc']} ({shown})")
    return "\n".join(lines)
