"""What the modules of this folder answer: frozen values, each with one `to_json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from nanoscale.store.files import plain


@dataclass(frozen=True)
class Record:
    """A value whose fields, in order, are its JSON; a field with `repr=False` is not written."""

    def to_json(self) -> dict[str, Any]:
        """Plain types at full precision; a number that is not finite is None."""
        values = asdict(self)
        for field in fields(self):
            if not field.repr:
                del values[field.name]
        record: dict[str, Any] = plain(values)
        return record


@dataclass(frozen=True)
class Optimum(Record):
    """N* and D* at a budget, and their 95 % intervals; None without resamples."""

    N: float
    D: float
    N_ci95: list[float] | None = None
    D_ci95: list[float] | None = None
