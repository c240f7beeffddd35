"""What a run's files say of it, typed: JSON is read and written here, attributes are used above."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

FURTHER = "val_loss_"  # and the name of a further validation set


def further_key(name: str) -> str:
    """The key of a further validation set's loss, in rows and tables."""
    return FURTHER + name


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands: `status.json`. What nobody has set yet is None."""

    schema: int
    id: str
    state: str
    step: int  # completed updates
    max_iters: int
    checkpoint_step: int | None  # of the newest checkpoint
    reason: str | None = None  # of a failure, or of a refusal
    kind: str | None = None  # of a failure
    updated: float | None = None  # seconds since the epoch
    began: float | None = None  # likewise

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> RunStatus:
        values: dict[str, Any] = {f.name: record.get(f.name) for f in fields(cls)}
        return cls(**values)
