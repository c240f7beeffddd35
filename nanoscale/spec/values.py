"""The types of plain values: what JSON holds, and what a config's field can hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

Json: TypeAlias = "Mapping[str, Json] | Sequence[Json] | str | float | bool | None"
Value: TypeAlias = "str | float | bool | tuple[int, ...] | None"  # of a config's field
Overrides: TypeAlias = "Mapping[str, Json]"  # dotted config keys and their values


class Typed(dict[str, Json]):
    """What was typed, and `places`: how a message says where each key stands, if in a file."""

    def __init__(self) -> None:
        self.places: dict[str, str] = {}


def once_each(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """The pairs as a dict, where JSON and YAML would let the last of two equal keys win.

    Raises:
        ValueError: naming a key that stands twice.
    """
    values: dict[Any, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"{key!r} stands twice; keep one")
        values[key] = value
    return values
