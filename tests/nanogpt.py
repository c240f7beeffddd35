"""nanoGPT's checkpoint and its model's loss, written from its format and the papers alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": 24}
CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # (fan_in, fan_out) on the hub
State = dict[str, Tensor]


def nanogpt_state(bias: bool = True, seed: int = 0, **sizes: int) -> State:
    """Random tensors under nanoGPT's names: q, k and v are one, the head is the table."""
    size = SIZES | sizes
    d = size["n_embd"]
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    state = {
        "transformer.wte.weight": normal(size["vocab_size"], d),
        "transformer.wpe.weight": normal(size["block_size"], d),
    }
    layers = {"ln_1": (d,), "attn.c_attn": (3 * d, d), "attn.c_proj": (d, d), "ln_2": (d,)}
    layers |= {"mlp.c_fc": (4 * d, d), "mlp.c_proj": (d, 4 * d)}
    named = {
        f"h.{i}.{name}": shape for i in range(size["n_layer"]) for name, shape in layers.items()
    }
    for name, shape in (named | {"ln_f": (d,)}).items():
        state[f"transformer.{name}.weight"] = normal(*shape) + (len(shape) == 1)
        if bias:
            state[f"transformer.{name}.bias"] = normal(shape[0])
    return state | {"lm_head.weight": state["transformer.wte.weight"]}


def nanogpt_checkpoint(state: State, dataset: str = "tiny", **sizes: int) -> dict[str, Any]:
    """What nanoGPT's train.py saves."""
    size = SIZES | sizes
    bias = "transformer.ln_f.bias" in state
    return {
        "model": state,
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]},
        "model_args": size | {"bias": bias, "dropout": 0.0},
        "iter_num": 3,
        "best_val_loss": torch.tensor(3.1),
        "config": {"dataset": dataset, "batch_size": 12, "init_from": "scratch"},
    }


def save_nanogpt(path: Path, state: State, **told: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(nanogpt_checkpoint(state, **told), path)
    return path


def in_hub_form(folder: Path, state: State, **sizes: int) -> Path:
    """GPT-2's files as OpenAI's weights lie on the hub."""
    from safetensors.torch import save_file

    size = SIZES | sizes
    theirs = {}
    for name, tensor in state.items():
        if name != "lm_head.weight":
            laid = tensor.T if name.endswith(CONV1D) else tensor
            theirs[name.removeprefix("transformer.")] = laid.contiguous()
    folder.mkdir(parents=True)
    save_file(theirs, folder / "model.safetensors", metadata={"format": "pt"})
    record = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "n_positions": size["block_size"],
        **{key: size[key] for key in ("n_layer", "n_head", "n_embd", "vocab_size")},
    }
    (folder / "config.json").write_text(json.dumps(record))
    return folder


def nanogpt_losses(state: State, X: Tensor, Y: Tensor, n_head: int = SIZES["n_head"]) -> Tensor:
    """GPT-2's loss of each token in float64, (B, T), by Radford et al. 2019 with exact GELU."""
    weights = {name.removeprefix("transformer."): t.double() for name, t in state.items()}

    def linear(x: Tensor, name: str) -> Tensor:
        y = x @ weights[f"{name}.weight"].T
        return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        y = scaled * weights[f"{name}.weight"]
        return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y

    B, T = X.shape
    x = weights["wte.weight"][X] + weights["wpe.weight"][:T]
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("h."))
    for i in range(layers):
        qkv = linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn")
        q, k, v = (part.view(B, T, n_head, -1).transpose(1, 2) for part in qkv.chunk(3, -1))
        scores = (q @ k.transpose(2, 3)) / math.sqrt(q.size(-1))
        mixed = scores.masked_fill(future, -math.inf).softmax(-1) @ v
        x = x + linear(mixed.transpose(1, 2).reshape(B, T, -1), f"h.{i}.attn.c_proj")
        hidden = linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + linear(hidden, f"h.{i}.mlp.c_proj")
    logits = norm(x, "ln_f") @ weights["lm_head.weight"].T
    return logits.logsumexp(-1) - logits.gather(-1, Y[..., None])[..., 0]
