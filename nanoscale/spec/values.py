"""The types of plain values: what JSON holds, and what a config's field can hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

Json: TypeAlias = "Mapping[str, Json] | Sequence[Json] | str | float | bool | None"
Value: TypeAlias = "str | float | bool | tuple[int, ...] | None"  # of a config's field
Overrides: TypeAlias = "Mapping[str, Json]"  # dotted config keys and their values
