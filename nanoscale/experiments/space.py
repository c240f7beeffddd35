"""Search spaces: which values a key may take, drawn from uniform numbers or by Optuna.

`{"low": 1e-4, "high": 1e-1, "log": True}` is a range, whole numbers where the key's are; a list is
a choice. Drawn numbers have five digits, so that they name runs alike everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeGuard

from nanoscale.errors import UserError, did_you_mean, one_of
from nanoscale.experiments.cells import plain
from nanoscale.spec.sources import FIELDS, coerce
from nanoscale.spec.values import Json, Overrides

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

RANGE = ("low", "high", "log")
Choice: TypeAlias = "bool | int | float | str | None"
_EDGE = 0.05  # of a range, in its own measure


@dataclass(frozen=True)
class Dimension:
    """One key of a space: a choice, or a range of floats or whole numbers."""

    choices: tuple[Choice, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    def at(self, u: float) -> Choice:
        """The value at `u` in [0, 1) of the dimension's own measure."""
        if self.choices:
            return self.choices[int(u * len(self.choices))]
        high = self.high + 1 if self.whole else self.high
        value = self.low + u * (high - self.low)
        if self.log:
            value = self.low * (high / self.low) ** u
        return min(int(value), int(self.high)) if self.whole else five_digits(value)

    def extremes(self) -> tuple[Choice, ...]:
        """Every choice, or both ends of the range."""
        return self.choices or (self.at(0.0), self.at(1.0 - 1e-12))

    def holds(self, value: Json) -> bool:
        """Whether `value` lies in the dimension; None never does."""
        if self.choices:
            return value is not None and value in self.choices
        return isinstance(value, (int, float)) and self.low <= value <= self.high

    def edge(self, value: Json) -> str:
        """`low` or `high`: an end of numeric choices, or the last 5 % of a range; "" for none."""
        numbers = [end for end in self.extremes() if _is_number(end)]
        if len(numbers) < 2 or not _is_number(value):
            return ""
        low, high = min(numbers), max(numbers)
        near = 0.0 if self.choices else _EDGE
        part = (value - low) / (high - low)
        if self.log:
            part = math.log(value / low) / math.log(high / low)
        if part <= near:
            return "low"
        return "high" if part >= 1 - near else ""

    def to_json(self) -> Json:
        if self.choices:
            return list(self.choices)
        return {"low": self.low, "high": self.high, "log": self.log}

    def optuna(self) -> BaseDistribution:
        """The same as Optuna says it."""
        from optuna import distributions

        if self.choices:
            return distributions.CategoricalDistribution(self.choices)
        if self.whole:
            return distributions.IntDistribution(int(self.low), int(self.high), log=self.log)
        return distributions.FloatDistribution(self.low, self.high, log=self.log)


def read_space(space: object, where: str) -> dict[str, Dimension]:
    """Key -> dimension; `where` is how messages call the space.

    Raises:
        UserError: a key is unknown, or its values are neither a list nor a range.
    """
    if not isinstance(space, Mapping) or not space:
        raise UserError(
            f"{where}: give at least one key a range or a list, as in "
            "learning_rate = {low = 1e-4, high = 1e-1, log = true}"
        )
    return dict(_dimensions(space, where))


def _dimensions(space: Overrides, where: str, prefix: str = "") -> Iterator[tuple[str, Dimension]]:
    """Nested tables as dotted keys, down to the ranges."""
    for name, values in space.items():
        key = prefix + name
        if isinstance(values, Mapping) and not set(RANGE) & set(values):
            yield from _dimensions(values, where, f"{key}.")
        else:
            yield key, _dimension(f"{where}: {key}", key, values)


def _dimension(name: str, key: str, values: object) -> Dimension:
    if key not in FIELDS:
        raise UserError(f"{name}: unknown key{did_you_mean(key, FIELDS)}")
    field = FIELDS[key]
    if not field.hashed:
        raise UserError(f"{name} says where or how a run runs, not what it is; search another key")
    if isinstance(values, Mapping):
        return _range(name, key, values)

    values = plain(values)
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise UserError(f"{name}={values!r}: expected a list, or a range with {one_of(RANGE[:2])}")
    choices = tuple(coerce(key, plain(value)) for value in values)
    if len(choices) < 2:
        raise UserError(
            f"{name}={list(values)}: a choice has at least two values; one belongs to the base"
        )
    if len(set(choices)) < len(choices):
        raise UserError(f"{name}={list(values)}: a value stands there twice; give each once")
    return Dimension(choices)


def _range(name: str, key: str, values: Overrides) -> Dimension:
    for word in values:
        if word not in RANGE:
            raise UserError(f"{name}: unknown {word!r}{did_you_mean(word, RANGE)}")
    kind = str(FIELDS[key].kind)
    whole = "float" not in kind
    if whole and "int" not in kind:
        raise UserError(f"{name}: its values are no numbers; give a list")
    try:
        low = coerce(key, plain(values["low"]))
        high = coerce(key, plain(values["high"]))
    except KeyError as e:
        raise UserError(f"{name}: a range needs {e}") from None

    log = values.get("log", False)
    if not isinstance(log, bool):
        raise UserError(f"{name}: log={log!r}: expected true or false")
    if not low < high or (log and low <= 0):
        also = ", both above 0 for log" if log else ""
        raise UserError(f"{name}: low={low}, high={high}: expected low < high{also}")
    return Dimension((), low, high, log, whole)


def _is_number(value: Json) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def five_digits(value: float) -> float:
    """`value` to five significant digits."""
    return float(f"{value:.5g}") if math.isfinite(value) else value
