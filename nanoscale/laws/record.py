"""What the modules of this folder answer: frozen values, each with one `to_json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from nanoscale.store.files import plain


@dataclass(frozen=True)
class Record:
    """A value whose fields, in order, are its JSON; a field with `repr=False` is not written."""

    def to_json(self) -> dict[str, Any]:
        """Plain types at full precision; a number that is not finite is None."""
        shown = [field.name for field in fields(self) if field.repr]
        return {name: _written(getattr(self, name)) for name in shown}


def _written(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_json()
    if is_dataclass(value):
        return _written(vars(value))
    if isinstance(value, Mapping):
        return {str(key): _written(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_written(inner) for inner in value]
    return plain(value)


@dataclass(frozen=True)
class Optimum(Record):
    """N* and D* at a budget, and their 95 % intervals; None without resamples."""

    N: float
    D: float
    N_ci95: list[float] | None = None
    D_ci95: list[float] | None = None


@dataclass(frozen=True)
class PredictedLoss(Record):
    """A loss where no run has been, and 95 % intervals; None without resamples."""

    loss: float
    loss_ci95: list[float] | None = None  # of the law
    run_ci95: list[float] | None = None  # of one new run
