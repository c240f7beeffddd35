"""What a run's files say of it, typed: JSON is read and written here, attributes are used above."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

FURTHER = "val_loss_"  # and the name of a further validation set
NUMBERS = ("val_loss", "best_val_loss", "flops", "wall_seconds", "tokens_seen", "total_params")


def further_key(name: str) -> str:
    """The key of a further validation set's loss, in rows and tables."""
    return FURTHER + name


def is_sound(metrics: Mapping[str, Any]) -> bool:
    """Whether a run's results, as far as they are there, are of the kinds that they are read as."""
    provenance = metrics.get("provenance") or {}
    params = metrics.get("params") or {}
    sets = metrics.get("val_sets") or {}
    if not _are_maps(provenance, params, sets, metrics.get("numerics") or {}):
        return False
    data = provenance.get("data") or {}
    if not _are_maps(data, params.get("by_convention", {}), *sets.values()):
        return False
    texts = [provenance.get("git_commit") or ""]
    if data:
        texts.append(data.get("fingerprint"))
    numbers = [metrics.get(name) for name in NUMBERS]
    numbers += [of.get("loss") for of in sets.values()]
    known = all(isinstance(text, str) for text in texts)
    return known and _are_maps(data.get("parts", {})) and all(map(_is_amount, numbers))


def _are_maps(*values: object) -> bool:
    return all(isinstance(value, dict) for value in values)


def _is_amount(value: object) -> bool:
    """None, or a number from 0 on."""
    if value is None:
        return True
    return type(value) in (int, float) and 0 <= float(str(value)) < math.inf


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
