"""Options of the commands that read: `--key=value` or `--key value`, names, and their refusals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nanoscale.errors import UserError, did_you_mean


def parse(
    arguments: Sequence[str], command: Any, known: Sequence[str], switches: Sequence[str] = ()
) -> tuple[list[str] | None, dict[str, str]]:
    """Positional arguments, and options (`--key=value`, `--key value`); None after the help."""
    names, options, rest = [], {}, iter(arguments)
    for argument in rest:
        if argument in ("--help", "-h"):
            print(f"usage: {usage_of(command)}")
            return None, {}
        key, equals, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and key in known and not equals:
            value = next(rest, "")
        if not argument.startswith("-"):
            names.append(argument)
        elif (key in known and value) or (key in switches and not equals):
            options[key] = value
        else:
            hint = did_you_mean(key, [*known, *switches])
            raise UserError(f"{argument}: unknown option{hint or f'; usage: {usage_of(command)}'}")
    return names, options


def number(key: str, text: str) -> float | int:
    """An option's number: a whole one where it can be."""
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"--{key}={text}: expected a number") from None
    return int(value) if value.is_integer() else value


def usage_of(command: Any) -> str:
    """A command's usage, which is its docstring, in one line."""
    return " ".join(command.__doc__.split())
