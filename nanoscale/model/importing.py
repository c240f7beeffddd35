"""A folder of transformers' form as our keys and tensors; no code of its own is ever run.

Weights are read from safetensors alone: a pickle runs what it holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanoscale.errors import UserError
from nanoscale.model.exporting import NEEDS_EXTRA, turned
from nanoscale.spec.architecture import TensorSpec, tensors
from nanoscale.spec.config import ExperimentConfig, from_flat
from nanoscale.spec.families import Family, family_named, inexact, our_keys, their_tensors
from nanoscale.spec.values import Json, Value

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl")
# Constants that old files carry: masks of GPT-2, frequencies of Llama
CONSTANTS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


@dataclass(frozen=True)
class Stored:
    """One tensor in an open file, read when it is asked for."""

    path: Path
    name: str
    file: Any  # safetensors'

    def read(self, shape: Sequence[int]) -> Tensor:
        """The tensor in float32; a `UserError` where it is of another shape or no plain floats."""
        tensor: Tensor = self.file.get_tensor(self.name)
        if list(tensor.shape) != list(shape):
            raise UserError(
                f"{self.path}: {self.name} is {list(tensor.shape)}, but config.json beside it "
                f"makes it {list(shape)}"
            )
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise UserError(f"{self.path}: {self.name} is {tensor.dtype}; take plain floats")
        return tensor.float()


def imported(folder: Path) -> tuple[dict[str, Value], dict[str, Tensor], list[str]]:
    """Our keys and tensors of the model in a folder, and warnings of what ours compute otherwise.

    Raises:
        UserError: no such model, a part that ours cannot hold, or a file that is damaged.
    """
    record = read_record(folder / "config.json")
    where = str(folder / "config.json")
    family = family_named(record, where)
    keys = our_keys(family, record, where)
    config = from_flat(keys)
    biased = family.biased(record)
    stored = stored_tensors(folder, family, config.tie_embeddings)
    if config.n_layer > len(stored):
        raise UserError(f"{where}: {config.n_layer} blocks, more than its files hold tensors")
    expected = their_tensors(family, config, biased)
    check_names(folder, expected, stored)

    ours: dict[str, Tensor] = {}
    for theirs, specs in expected.items():
        ours |= parts_of(family, theirs, specs, stored[theirs])
    # LayerNorm has biases there whether ours had any: they count where they are not 0
    biases = [name for name in ours if name.endswith(".bias")]
    keys["bias"] = bool(biased) or any(bool(ours[name].any()) for name in biases)
    complete = from_flat(keys)
    return keys, with_biases(complete, ours), list(inexact(family, record, where))


def parts_of(
    family: Family, theirs: str, specs: Sequence[TensorSpec], stored: Stored
) -> dict[str, Tensor]:
    """Those of our tensors that one of theirs is made of."""
    rows = [spec.shape[0] for spec in specs]
    shape = (sum(rows), *specs[0].shape[1:])
    laid = turned(family, theirs, torch.empty(shape, device="meta")).shape
    whole = turned(family, theirs, stored.read(laid)).contiguous()
    parts = torch.split(whole, rows)
    return {spec.name: part.clone() for spec, part in zip(specs, parts, strict=True)}


def with_biases(config: ExperimentConfig, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a config in its order: biases that the family lacks are 0."""
    ours = {}
    for spec in tensors(config):
        value = found.get(spec.name)
        ours[spec.name] = torch.zeros(spec.shape) if value is None else value
    return ours


def check_names(folder: Path, expected: Mapping[str, object], stored: Mapping[str, object]) -> None:
    """Refuse a folder that has fewer tensors than its config.json says, or more."""
    for name in expected:
        if name not in stored:
            raise UserError(f"{folder}: its files hold no tensor {name}; fetch the model again")
    for name in stored:
        if name not in expected:
            raise UserError(f"{folder}: tensor {name} is of a part that config.json does not name")


# -- files ----------------------------------------------------------------------------------------
def read_record(path: Path) -> dict[str, Json]:
    """The object in a JSON file.

    Raises:
        UserError: there is no such file, or it is broken.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror}); is this a model?") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: not valid JSON ({e}); fetch the model again") from e
    if not isinstance(record, dict):
        raise UserError(f"{path}: not a JSON object; fetch the model again")
    return record


def stored_tensors(folder: Path, family: Family, tied: bool) -> dict[str, Stored]:
    """Every tensor of a folder by the name that a whole model gives it.

    A base model's file names them without the root; constants and a tied head's copy are left out.
    """
    found: dict[str, Stored] = {}
    for file in weight_files(folder):
        found |= tensors_in(folder / file)
    rooted = any(name.startswith(family.root) for name in found)
    named = {}
    for name, stored in found.items():
        if name.endswith(CONSTANTS) or (tied and name == "lm_head.weight"):
            continue
        bare = not rooted and name != "lm_head.weight"
        named[family.root + name if bare else name] = stored
    return named


def weight_files(folder: Path) -> list[str]:
    """The names of a folder's safetensors: one file, or those that its index lists.

    Raises:
        UserError: there are none, or pickles alone, or one of the list is not there.
    """
    files = sorted(path.name for path in folder.glob("*.safetensors") if path.is_file())
    if WEIGHTS in files:
        if len(files) > 1 and not (folder / INDEX).is_file():
            raise UserError(
                f"{folder}: {', '.join(files)}, and no {INDEX} that says which are the model's; "
                f"leave {WEIGHTS} alone there"
            )
        return [WEIGHTS]
    if (folder / INDEX).is_file():
        listed = read_record(folder / INDEX).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise UserError(f"{folder / INDEX}: it lists no files; fetch the model again")
        names = sorted(set(map(str, listed.values())))
        for name in names:
            if name not in files:
                raise UserError(f"{folder / INDEX}: {name!r} is not there; fetch the model again")
        return names
    pickles = [path.name for pattern in PICKLES for path in sorted(folder.glob(pattern))]
    if pickles:
        raise UserError(
            f"{folder / pickles[0]}: a pickle may hold code, so it is not read; take the model as "
            "safetensors"
        )
    there = f" ({', '.join(files)} alone)" if files else ""
    raise UserError(f"{folder}: no {WEIGHTS} there{there}; fetch the model again")


def tensors_in(path: Path) -> dict[str, Stored]:
    """The tensors of one file.

    Raises:
        UserError: safetensors is not installed, or the file is no whole one.
    """
    try:
        from safetensors import safe_open  # type: ignore[import-not-found, unused-ignore]
    except ImportError as e:
        raise UserError(f"{path} {NEEDS_EXTRA}") from e
    try:
        file = safe_open(path, framework="pt")
        names = list(file.keys())  # type: ignore[no-untyped-call, unused-ignore]
    except Exception as e:  # whatever a stranger's bytes provoke in the reader
        raise UserError(f"{path}: not a whole safetensors file ({e}); fetch the model again") from e
    return {name: Stored(path, name, file) for name in names}
