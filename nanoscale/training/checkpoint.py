"""Checkpoints: written whole or not at all, checksummed, plain tensors by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanoscale.model.checkpoint_file import CHECKPOINT_SCHEMA, FORMAT
from nanoscale.model.checkpoint_file import digest as digest
from nanoscale.model.checkpoint_file import load as load
from nanoscale.spec.identity import RunSpec
from nanoscale.store.files import atomic_write


def only_plain(value: Any) -> Any:
    """`value` as dicts of tensors and JSON's own types, so that the restricted reader takes it."""
    if isinstance(value, dict):
        return {str(key): only_plain(v) for key, v in value.items()}
    return value if isinstance(value, Tensor) else json.loads(json.dumps(value, allow_nan=False))


def save(path: Path, spec: RunSpec, **content: Any) -> None:
    """Write a checkpoint of `spec` with `content` (nested dicts of tensors and plain types)."""
    payload = only_plain(
        {"format": FORMAT, "schema": CHECKPOINT_SCHEMA, "spec": spec.to_json(), **content}
    )
    payload["checksum"] = digest(payload)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(payload, file)
        except RuntimeError as e:
            if isinstance(e.__context__, OSError):  # the disk's refusal, behind the zip writer's
                raise e.__context__ from None
            raise
