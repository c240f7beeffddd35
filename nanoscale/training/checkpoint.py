"""Checkpoints: whole or absent, checksummed, plain tensors by name, safe to load from strangers.

A file holds tensors and plain types only and is read with torch's restricted unpickler, which runs
no code; a SHA-256 over everything in it is stored beside and verified.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanoscale.errors import UserError
from nanoscale.spec.identity import RunSpec
from nanoscale.store.files import atomic_write

FORMAT, CHECKPOINT_SCHEMA = "nanoscale", 1


def digest(payload: dict[str, Any]) -> str:
    """SHA-256 over every tensor's path, type, shape and bytes, and over the plain values."""
    h = hashlib.sha256()

    def visit(path: str, value: Any) -> None:
        if isinstance(value, dict):
            for key in sorted(value):
                visit(f"{path}/{key}", value[key])
        elif isinstance(value, Tensor):
            h.update(f"{path} {value.dtype} {tuple(value.shape)}\n".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            h.update(flat.view(torch.uint8).numpy().data)
        else:
            h.update(f"{path} {json.dumps(value)}\n".encode())

    visit("", payload)
    return h.hexdigest()


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


def load(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, verified; `spec` is a `RunSpec`.

    Raises:
        UserError: missing, truncated, damaged, not ours, or holding code.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        with warnings.catch_warnings(action="ignore"):
            payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # whatever a stranger's bytes provoke in the reader
        holds_code = isinstance(e, pickle.UnpicklingError)
        code = " (it may hold code: none was run)" if holds_code else ""
        raise UserError(
            f"{path}: not a readable checkpoint, truncated or foreign{code}; delete it "
            "to start from the beginning"
        ) from e
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        of_nanogpt = isinstance(payload, dict) and "model_args" in payload
        kind = "a nanoGPT checkpoint" if of_nanogpt else "a checkpoint of another program"
        raise UserError(f"{path}: {kind}; nanoscale continues only its own")
    schema = payload.get("schema")
    if schema != CHECKPOINT_SCHEMA:
        raise UserError(
            f"{path}: checkpoint schema {schema}, this version reads {CHECKPOINT_SCHEMA}"
        )
    checksum = payload.pop("checksum", None)
    try:
        intact = digest(payload) == checksum
    except (TypeError, ValueError, RuntimeError):  # a stranger's odd keys or tensors
        intact = False
    if not intact:
        raise UserError(
            f"{path}: damaged (its checksum does not match); delete it to start from the beginning"
        )
    payload["spec"] = RunSpec.from_json(payload.get("spec"), path)
    return payload
