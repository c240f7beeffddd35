"""Checkpoint files, read as from a stranger: by torch's restricted unpickler, which runs no code.

A file holds tensors and plain types only; in one of ours a SHA-256 over everything in it is stored
beside and verified.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanoscale.errors import UserError
from nanoscale.spec.identity import RunSpec

FORMAT, CHECKPOINT_SCHEMA = "nanoscale", 1
ANEW = "delete it to start from the beginning"


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


def opened(path: Path, remedy: str) -> dict[str, Any]:
    """What a file of torch's holds, without running any code of it.

    Raises:
        UserError: missing, truncated, foreign, or holding code; it ends with the `remedy`.
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
            f"{path}: not a readable checkpoint, truncated or foreign{code}; {remedy}"
        ) from e
    return payload if isinstance(payload, dict) else {}


def check_bytes(path: Path) -> None:
    """Refuse a file of torch's whose bytes are not those that were written, by the CRCs of its zip.

    torch does not look at them. Those of torch before 1.6 are no zip and have none.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError) as e:
        raise UserError(f"{path}: damaged ({e}); copy it again") from e
    if damaged is not None:
        raise UserError(f"{path}: damaged ({damaged} does not match its checksum); copy it again")


def load(path: Path) -> dict[str, Any]:
    """The content of a checkpoint of ours, verified; `spec` is a `RunSpec`.

    Raises:
        UserError: missing, truncated, damaged, not ours, or holding code.
    """
    payload = opened(path, ANEW)
    if payload.get("format") != FORMAT:
        kind = (
            "a nanoGPT checkpoint" if "model_args" in payload else "a checkpoint of another program"
        )
        raise UserError(f"{path}: {kind}; nanoscale continues only its own")
    return verified(path, payload)


def verified(path: Path, payload: dict[str, Any], remedy: str = ANEW) -> dict[str, Any]:
    """The content of a file in our format, once its checksum is seen to match."""
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
        raise UserError(f"{path}: damaged (its checksum does not match); {remedy}")
    payload["spec"] = RunSpec.from_json(payload.get("spec"), path)
    return payload
