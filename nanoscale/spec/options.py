"""What is said beside a field of a config: its meaning, its bounds, whether it names the run."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field, fields
from types import GenericAlias, UnionType
from typing import Any, get_type_hints

from nanoscale.errors import UserError, one_of

Kind = type | UnionType | GenericAlias  # a field's type, as in `int | None` or `tuple[int, ...]`


def option(default: object, doc: str, **beside: Any) -> Any:
    """A field: its default, one line of help, and what else a `ConfigKey` may say of it."""
    return field(default=default, metadata={"doc": doc, **beside})


@dataclass(frozen=True, kw_only=True)
class ConfigKey:
    """One key of a config: what a user may type for it, and what it means."""

    name: str  # as typed; a nested one with a dot
    kind: Kind
    default: Any
    doc: str
    group: str = ""
    hashed: bool = True  # it is part of a run's identity
    elided: bool = False  # at its default, records leave it out: it came later than they
    tuned: bool = False  # a comparison may take each side's best value of it
    path: bool = False  # it names a place on the disk, where ~ is the home of the user
    choices: tuple[str, ...] = ()
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def check(self, value: Any, spelled: str) -> None:
        """Refuse a value outside the choices or bounds; messages call the key `spelled`."""
        if value is None:
            return
        if self.choices and value not in self.choices:
            raise UserError(f"{spelled}={value}: choose {one_of(self.choices)}")

        bounds = (
            ("at least", self.least, operator.ge),
            ("above", self.above, operator.gt),
            ("at most", self.most, operator.le),
            ("below", self.below, operator.lt),
        )
        for words, bound, within in bounds:  # `not >=` rather than `<`: NaN is within no bound
            if bound is not None and not within(value, bound):
                raise UserError(f"{spelled}={value}: must be {words} {bound}")


def keys_of(config: type, prefix: str = "") -> dict[str, ConfigKey]:
    """Name -> key of a dataclass of options, in their order; a dataclass in it adds a dot."""
    kinds = get_type_hints(config)
    table: dict[str, ConfigKey] = {}
    for f in fields(config):
        name, kind = f"{prefix}{f.name}", kinds[f.name]
        if f.metadata:
            table[name] = ConfigKey(name=name, kind=kind, default=f.default, **f.metadata)
        else:
            table |= keys_of(kind, f"{name}.")
    return table
