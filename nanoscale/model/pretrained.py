"""Weights from elsewhere: what they dictate of a config, and their tensors under our names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from nanoscale.errors import UserError
from nanoscale.model.importing import imported
from nanoscale.spec.config import ResolvedConfig, from_flat
from nanoscale.spec.identity import RunSpec
from nanoscale.spec.resolve import resolve
from nanoscale.spec.values import Value


@dataclass(frozen=True)
class Pretrained:
    """Weights that a run can begin with.

    `keys` are the config keys that the weights dictate, by dotted name: all of the architecture,
    block_size being how many positions there are. `tensors` are float32, on the CPU, as
    `spec.architecture.tensors` names and shapes them. What their tokens mean is said by a
    tokenizer.json, by the `spec` of a run of ours or by the `dataset` that nanoGPT names.
    """

    keys: Mapping[str, Value]
    tensors: Mapping[str, Tensor]
    tokenizer: Path | None = None
    warnings: tuple[str, ...] = ()  # what our parts compute a little otherwise than theirs
    dataset: str | None = None
    spec: RunSpec | None = None
    step: int | None = None  # of a checkpoint
    file: str | None = None  # its name

    @cached_property
    def config(self) -> ResolvedConfig:
        """A config of their model; a `UserError` where the keys make none."""
        config = from_flat(self.keys)
        assert config.vocab_size is not None, "the weights dictate it"
        return resolve(config, config.vocab_size)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the names, shapes and values of the tensors."""
        sha = hashlib.sha256()
        for name in sorted(self.tensors):
            tensor = self.tensors[name].detach().to("cpu", torch.float32).contiguous()
            sha.update(f"{name} {list(tensor.shape)}\n".encode())
            sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return sha.hexdigest()


def in_float32(tensor: Tensor, name: str, path: Path) -> Tensor:
    """A tensor of a checkpoint in float32; a `UserError` where it is no array of plain floats."""
    dense = tensor.layout == torch.strided and not tensor.is_meta
    if not dense or not tensor.is_floating_point() or not tensor.dim():
        raise UserError(f"{path}: {name} is no array of floats")
    return tensor.float()


def read_hugging_face(folder: Path) -> Pretrained:
    """The weights in a folder of Hugging Face's form: config.json and safetensors.

    Raises:
        UserError: a model that our parts cannot hold, or a file that is damaged; it says which.
    """
    keys, tensors, warnings = imported(folder)
    tokenizer = folder / "tokenizer.json"
    return Pretrained(keys, tensors, tokenizer if tokenizer.is_file() else None, tuple(warnings))
