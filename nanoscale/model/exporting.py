"""A model in the form of transformers: multipliers folded into weights, tensors under its names.

What a scheme multiplies by in the forward pass has no place in a model of transformers, but every
such number can be moved into a tensor beside it, exactly: see `folded_into`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from nanoscale.errors import UserError
from nanoscale.spec.config import ResolvedConfig
from nanoscale.spec.families import Family, their_config, their_tensors
from nanoscale.spec.parametrization import Multipliers, rules_of

NEEDS_EXTRA = "needs safetensors: run `pip install 'nanoscale[hf]'`"


def folded_into(name: str, config: ResolvedConfig, multiplier: Multipliers) -> float:
    """What a tensor takes into itself, so that the forward pass multiplies by nothing.

    But for 1 / sqrt(head size), which is everyone's. A tied head sees the embedding multiplier in
    its weight, so the last norm takes it out again.
    """
    layer = name.rpartition(".")[0]
    if layer.endswith((".wte", ".wpe")):
        return multiplier.embedding
    if layer.endswith(".q_norm" if config.use_qk_norm else ".c_q"):  # turning commutes with it
        return multiplier.attention * math.sqrt(config.head_dim)
    if layer.endswith(".c_proj"):
        return multiplier.residual
    if layer.endswith(".ln_f"):
        tied = multiplier.embedding if config.tie_embeddings else 1.0
        return multiplier.logits / tied
    return 1.0


def exported(
    family: Family, config: ResolvedConfig, ours: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of a model under a family's names and in its shapes, float32."""
    multiplier = rules_of(config).multipliers
    biased = family.biased(their_config(family, config, None))
    found = {}
    for theirs, specs in their_tensors(family, config, biased).items():
        parts = []
        for spec in specs:
            tensor = torch.zeros(spec.shape)
            if spec.name in ours:
                factor = folded_into(spec.name, config, multiplier)
                tensor = _with_all_heads(ours[spec.name].float() * factor, spec.shape, config)
            parts.append(tensor)
        whole = torch.cat(parts)
        found[theirs] = turned(family, theirs, whole).contiguous()
    return found


def _with_all_heads(tensor: Tensor, shape: tuple[int, ...], config: ResolvedConfig) -> Tensor:
    """Keys or values of every query head, where a family has no groups of heads."""
    if tensor.shape == shape:
        return tensor
    heads = tensor.view(config.kv_heads, config.head_dim, *tensor.shape[1:])
    return heads.repeat_interleave(config.n_head // config.kv_heads, dim=0).view(shape)


def turned(family: Family, theirs: str, tensor: Tensor) -> Tensor:
    """A matrix as the family lays it, or back to ours: GPT-2's in blocks are (fan_in, fan_out)."""
    return tensor.t() if family.conv1d and tensor.dim() == 2 and ".h." in theirs else tensor


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """One file of tensors; `format` in its metadata is what transformers asks for.

    Raises:
        UserError: safetensors is not installed.
        OSError: the disk refuses.
    """
    try:
        from safetensors import SafetensorError  # type: ignore[import-not-found, unused-ignore]
        from safetensors.torch import save_file  # type: ignore[import-not-found, unused-ignore]
    except ImportError as e:
        raise UserError(f"an export {NEEDS_EXTRA}") from e
    path.touch()
    mode = path.stat().st_mode  # the library's own file would be for its owner alone
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as e:
        number = re.search(r"os error (\d+)", str(e))
        if number is None:
            raise
        raise OSError(int(number[1]), str(e)) from e  # the disk's refusal, in its words
    path.chmod(mode)
