"""nanoGPT's own ckpt.pt (github.com/karpathy/nanoGPT): its tensors under our names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanoscale.errors import UserError
from nanoscale.model.pretrained import Pretrained, in_float32
from nanoscale.spec.values import Value

_SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
_OF_COMPILE = "_orig_mod."  # torch.compile's prefix of every name
_BUFFERS = (".attn.bias", ".attn.masked_bias")  # the causal mask, where attention is not torch's
_HEAD, _TABLE = "lm_head.weight", "transformer.wte.weight"


def of_nanogpt(path: Path, payload: Mapping[str, Any]) -> Pretrained:
    """The weights in a nanoGPT checkpoint that was read with the restricted reader.

    Raises:
        UserError: its sizes or its tensors are not there.
    """
    sizes, state = payload["model_args"], payload.get("model")
    if not isinstance(sizes, dict) or not isinstance(state, dict):
        raise UserError(f"{path}: holds no model_args and model, as nanoGPT's checkpoints do")
    keys: dict[str, Value] = {}
    for key in _SIZES:
        if type(sizes.get(key)) is not int:
            raise UserError(f"{path}: its model_args have no {key}, as nanoGPT's do")
        keys[key] = sizes[key]
    tensors = _renamed(path, state)
    if sizes["n_layer"] > len(state):
        raise UserError(f"{path}: {sizes['n_layer']} blocks, more than it holds tensors")
    keys["bias"] = "transformer.ln_f.bias" in tensors
    keys["tie_embeddings"] = _is_tied(tensors)
    if keys["tie_embeddings"]:
        tensors.pop(_HEAD, None)
    told = payload.get("config")
    dataset = told.get("dataset") if isinstance(told, dict) else None
    named = dataset if isinstance(dataset, str) else None
    step = payload.get("iter_num")
    made = step if isinstance(step, int) else None
    return Pretrained(keys, tensors, dataset=named, step=made, file=path.name)


def _renamed(path: Path, state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Its tensors by our names: q, k and v are three, and no buffer is one."""
    tensors = {}
    made = 0
    for key, tensor in state.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise UserError(f"{path}: its model holds {key!r}, which is no tensor by a name")
        name = key.removeprefix(_OF_COMPILE)
        if name.endswith(_BUFFERS):
            continue
        values = in_float32(tensor, key, path)
        made += 1
        if ".c_attn." not in name:
            tensors[name] = values
            continue
        for part, rows in zip("qkv", values.chunk(3), strict=False):
            tensors[name.replace("c_attn", f"c_{part}")] = rows.clone()
        made += 2
    if len(tensors) != made:
        raise UserError(f"{path}: holds a tensor twice, under two names")
    return tensors


def _is_tied(tensors: Mapping[str, Tensor]) -> bool:
    head, table = tensors.get(_HEAD), tensors.get(_TABLE)
    return head is None or (table is not None and torch.equal(head, table))
