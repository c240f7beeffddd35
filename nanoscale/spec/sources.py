"""What people type, turned into a config: files and `--key=value` flags, left to right.

A source is a set of dotted keys from one place (one file, or neighbouring flags). Values are
coerced by the field they are for, a later source wins, and every refusal quotes what was typed.
"""

from __future__ import annotations

import ast
import functools
import json
import os.path
import sys
import tomllib
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, get_args, get_origin

from nanoscale.errors import UserError, did_you_mean, one_of, program
from nanoscale.spec.config import (
    EXCLUSIVE,
    MODE,
    ExperimentConfig,
    all_fields,
    flatten,
    from_flat,
)
from nanoscale.spec.config_file import run_config_file
from nanoscale.spec.options import Kind
from nanoscale.spec.shipped import named, names
from nanoscale.spec.values import Json, Overrides, Typed, Value, once_each

COMMAND_LINE = "the command line"
FIELDS = all_fields()
PATHS = {name for name, key in FIELDS.items() if key.path}
ALIASES = {(MODE, mode.lower()): mode for mode in FIELDS[MODE].choices}
WANTED: dict[Kind, str] = {bool: "True or False", int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Source:
    """Values from one place: `name` is how messages call it, e.g. a path or `the command line`."""

    name: str
    values: Overrides

    def spelled(self, text: str) -> str:
        """A key, or what is wrong with one, as messages begin with it."""
        return f"--{text}" if self.name == COMMAND_LINE else f"{self.name}: {text}"


# -- what people call -----------------------------------------------------------------------
def load_config(*sources: str | Path, **overrides: object) -> ExperimentConfig:
    """The config that `train` would read from the same files and flags, left to right.

    Each of `sources` is a config file (.py, .toml, .yaml, .json) or a flag, `"--key=value"`.
    A `.py` file is run, whatever is in it: read one before you load it.
    `overrides` come last; a nested key is `parametrization={"mode": "muP"}`.

    >>> import nanoscale as ns
    >>> config = ns.load_config("--n_layer=2", "--max_tokens=1e6", n_embd=64, n_head=4)
    >>> config.n_layer, config.n_embd, config.max_iters, config.max_tokens
    (2, 64, None, 1000000.0)

    Raises:
        UserError: a file, a key, a value or a combination is bad; the message says which.
    """
    given = parse_arguments([str(source) for source in sources])
    if overrides:
        given.append(Source("load_config", flatten_keys(overrides)))
    return build(given)


def build(sources: Iterable[Source]) -> ExperimentConfig:
    """The config that the sources describe, left to right over the defaults."""
    return from_flat(layered(sources))


# -- coercion -------------------------------------------------------------------------------
def coerce(key: str, value: object, kind: Kind | None = None) -> Any:
    """`value` (text or a parsed literal) as `kind`, by default the type of field `key`.

    Raises:
        UserError: the value does not fit; the message says what would.
    """
    kind = kind or FIELDS[key].kind
    if isinstance(kind, types.UnionType):  # X | None
        if str(value).lower() in ("none", "null"):
            return None
        kind = get_args(kind)[0]
    if kind is str:
        text = _text(key, value)
        return os.path.expanduser(text) if key in PATHS else text

    literal = _literal(value)
    if get_origin(kind) is tuple:
        items: Sequence[object] = [literal]
        of = get_args(kind)[0]
        if isinstance(literal, (list, tuple)):
            items = literal
        elif isinstance(literal, str) and of is str:  # names, without quotes
            items = [part.strip() for part in literal.strip().strip("[]()").split(",")]
        return tuple(coerce(key, item, of) for item in items)

    converted = _truth(literal) if kind is bool else _number(literal, kind)
    if converted is None:
        raise UserError(f"{key}={value}: expected {WANTED[kind]}")
    return converted


def _literal(value: object) -> object:
    """Text as the Python literal it spells (`true`, `1e-3`, `[1, 2]`), else unchanged."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise UserError(f"{key}={value}: expected text")
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]
    return ALIASES.get((key, value.lower()), value)


def _truth(literal: object) -> bool | None:
    """True, False, 1 and 0 as a bool; None: it is none."""
    return bool(literal) if isinstance(literal, int) and literal in (0, 1) else None


def _number(literal: object, kind: Kind) -> float | None:
    """A finite number as `kind`, float or int; None: it is none, or not whole."""
    if not isinstance(literal, (int, float)) or isinstance(literal, bool):
        return None
    if not abs(literal) <= sys.float_info.max:  # also NaN
        return None
    if kind is float:
        return float(literal)
    return int(literal) if literal == int(literal) else None


SMALL_CONFIG = "shakespeare_char_cpu_fast"
CONFIGS = "config"  # the folder of those that have a name


def small_run() -> str:
    """A command whose run is seconds on a CPU."""
    return f"{program()} train {SMALL_CONFIG}"


# -- files ----------------------------------------------------------------------------------
def read_file(path: str, known: Overrides) -> Source:
    """A config file as a source, by its path or by the name of one that comes with the package.

    `known` are the values in scope of a `.py` file.
    """
    path = str(named(Path(path), CONFIGS))
    text = _text_of(Path(path), path)
    try:
        values = run_config_file(path, text, known) if path.endswith(".py") else _parse(path, text)
        if not isinstance(values, Mapping):
            raise UserError(f"{path}: expected keys and values, found {type(values).__name__}")
        return Source(path, once_each(_leaves(values)))
    except RecursionError as e:
        raise UserError(f"{path}: nested too deeply; expected keys and values") from e
    except ValueError as e:
        raise UserError(f"{path}: {e}") from e


def _text_of(file: Path, path: str) -> str:
    endings = (".py", *LANGUAGES)
    if file.suffix not in endings:
        hint = did_you_mean(path, names(CONFIGS))
        if file.is_dir():
            hint = f"; a run folder is --out_dir={path}"
        raise UserError(f"{path}: config files end in {one_of(endings)}{hint}")
    if not file.is_file():
        here = [str(p) for p in file.parent.glob("*") if p.suffix in endings]
        hint = did_you_mean(path, [*here, *names(CONFIGS)])
        raise UserError(f"{path}: no such config file{hint}")
    try:
        return file.read_text(encoding="utf-8-sig")  # an editor may begin it with a mark
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({type(e).__name__})") from e


def flatten_keys(values: Mapping[Any, Any]) -> dict[str, Json]:
    """`{'parametrization': {'mode': 'muP'}}` as `{'parametrization.mode': 'muP'}`.

    Raises:
        UserError: naming a key given twice, once dotted and once in a table.
    """
    try:
        return once_each(_leaves(values))
    except ValueError as e:
        raise UserError(str(e)) from e


def _leaves(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Json]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _yaml(text: str) -> object:
    import yaml

    class Loader(yaml.SafeLoader):
        """PyYAML's, which keeps the last of two equal keys in silence."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            once_each([(key.value, key) for key, _ in node.value if key.tag != MERGE])
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader) or {}
    except yaml.YAMLError as e:
        raise ValueError(e) from e


MERGE = "tag:yaml.org,2002:merge"  # `<<`: may stand more than once


def _json(text: str) -> object:
    return json.loads(text, object_pairs_hook=once_each)


LANGUAGES: dict[str, tuple[str, Callable[[str], object]]] = {
    ".toml": ("TOML", tomllib.loads),
    ".json": ("JSON", _json),
    ".yaml": ("YAML", _yaml),
    ".yml": ("YAML", _yaml),
}


def _parse(path: str, text: str) -> object:
    """What a file of TOML, JSON or YAML holds."""
    language, load = LANGUAGES[Path(path).suffix]
    try:
        return load(text)
    except ValueError as e:
        raise UserError(f"{path}: not valid {language}: {e}") from e


# -- layering -------------------------------------------------------------------------------
def layered(sources: Iterable[Source]) -> dict[str, Value]:
    """The values of the sources, left to right over the defaults."""
    return functools.reduce(apply, sources, flatten(ExperimentConfig()))


def apply(values: Mapping[str, Value], source: Source) -> dict[str, Value]:
    """`values` with one source over them: coerced, known keys only, one member per quantity."""
    for name in source.values:
        if name not in FIELDS:
            raise UserError(f"{source.spelled(name)}: unknown key{_nearest_key(name, source)}")
    try:
        new = {name: coerce(name, value) for name, value in source.values.items()}
        for name, value in new.items():
            if name != MODE:  # checked with the file of rules that may name it
                FIELDS[name].check(value, name)
    except UserError as e:
        raise UserError(source.spelled(str(e))) from e

    result = {**values, **new}
    for group in EXCLUSIVE:
        given = [name for name in group if new.get(name) is not None]
        if len(given) > 1:
            raise UserError(
                f"{source.name} sets both {' and '.join(given)}, which say the same thing; keep one"
            )
        if given:
            result |= dict.fromkeys(group) | new
    return result


def _nearest_key(name: str, source: Source) -> str:
    nested = [key for key in FIELDS if key.endswith(f".{name}")]
    near = did_you_mean(f"parametrization.{name}", nested) or did_you_mean(name, FIELDS)
    yours = ", and a name of your own begins with _" if source.name.endswith(".py") else ""
    return near or f"; --help lists all{yours}"


def parse_flag(argument: str) -> tuple[str, str]:
    """`--key=value` as (key, value); only the first `=` separates."""
    if not argument.startswith("--"):
        raise UserError(f"{argument}: flags are written --key=value")
    key, equals, value = argument[2:].partition("=")
    if equals:
        return key, value
    if key in FIELDS:
        example = "True" if FIELDS[key].kind is bool else "VALUE"
        hint = f"; write --{key}={example}"
    else:
        hint = did_you_mean(key, FIELDS)
    raise UserError(f"--{key}: a flag needs a value, as in --key=value{hint}")


def parse_arguments(arguments: Sequence[str]) -> list[Source]:
    """`[config.py ...] [--key=value ...]` as sources; neighbouring flags are one source.

    Each is checked before the next is read, and a `.py` file sees the values before it.
    """
    sources: list[Source] = []
    for are_flags, group in groupby(arguments, key=lambda argument: argument.startswith("-")):
        if are_flags:
            sources.append(Source(COMMAND_LINE, dict(map(parse_flag, group))))
        else:
            for path in group:
                sources.append(read_file(path, layered(sources)))
        layered(sources)  # refuses what is wrong in them before more is read
    return sources


def typed(sources: Iterable[Source]) -> dict[str, Json]:
    """What was typed, as one flat dict of plain values, for the record."""
    merged = Typed()
    for source in sources:
        for name, value in source.values.items():
            merged.places[name] = "" if source.name == COMMAND_LINE else f" ({source.name})"
            plain = isinstance(value, (str, int, float, list, type(None)))
            merged[name] = value if plain else repr(value)
    return merged


# -- help -----------------------------------------------------------------------------------
def help_text(title: str) -> str:
    """Every key with its default and one line of meaning, grouped as the config is."""
    lines = [title]
    group = None
    for name, key in FIELDS.items():
        section = "parametrization" if "." in name else key.group
        if section != group:
            lines += ["", section]
            group = section
        values = " | ".join(key.choices) or getattr(key.kind, "__name__", None) or key.kind
        lines.append(f"  --{name}={key.default}".ljust(38) + f" {key.doc} ({values})")
    return "\n".join(lines)
