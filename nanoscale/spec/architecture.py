"""The one list of a model's tensors, from its config alone: no torch, no weights.

The model, the counts, the parametrization, the optimizer groups, `nanoscale params` and the exports
all derive from `tensors(config)`, so a tensor is named and classified in one place.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal, get_args

from nanoscale.spec.config import ExperimentConfig

Role = Literal[
    "embedding",
    "position",
    "hidden",
    "residual_out",
    "block_norm",
    "qk_norm",
    "final_norm",
    "bias",
    "readout",
]
ROLES: tuple[Role, ...] = get_args(Role)
MATRIX_ROLES = ("hidden", "residual_out")  # the matrices inside blocks: what Muon updates


@dataclass(frozen=True)
class TensorSpec:
    """One parameter: `shape` as torch stores it, (fan_out, fan_in) for matrices.

    `base_fan_in` is the same tensor's in the parametrization's base model.
    """

    name: str
    role: Role
    shape: tuple[int, ...]
    fan_in: int
    fan_out: int
    base_fan_in: int

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def in_block(self) -> bool:
        return ".h." in self.name


def ffn_width(n_embd: int, use_swiglu: bool, multiple_of: int) -> int:
    """Hidden width of the MLP: 4 d, or 8/3 d rounded up to `multiple_of` for SwiGLU (LLaMA)."""
    if not use_swiglu:
        return 4 * n_embd
    width = 8 * n_embd // 3
    return multiple_of * -(-width // multiple_of)


@dataclass(frozen=True)
class Widths:
    """Of a model: the residual stream's, and the MLP's hidden one."""

    embd: int
    ffn: int


def widths(config: ExperimentConfig) -> Widths:
    """The model's own."""
    return _widths_at(config, config.n_embd)


def base_widths(config: ExperimentConfig) -> Widths:
    """The parametrization's base model's, under the same flags."""
    return _widths_at(config, config.parametrization.base_n_embd)


def _widths_at(config: ExperimentConfig, n_embd: int) -> Widths:
    return Widths(n_embd, ffn_width(n_embd, config.use_swiglu, config.multiple_of))


def kv_width(config: ExperimentConfig) -> int:
    """Of all key heads together, and of all value heads."""
    return config.kv_heads * config.head_dim


def tensors(config: ExperimentConfig) -> list[TensorSpec]:
    """Every parameter of the model, in the model's own order; a tied head is not listed twice."""
    assert config.vocab_size is not None, "the vocabulary comes from the dataset"
    d, V, T = config.n_embd, config.vocab_size, config.block_size
    specs = [TensorSpec("transformer.wte.weight", "embedding", (V, d), V, d, V)]
    if not config.use_rope:
        specs.append(TensorSpec("transformer.wpe.weight", "position", (T, d), T, d, T))
    for layer in range(config.n_layer):
        specs += _block(config, f"transformer.h.{layer}")
    specs += _norm(config, "transformer.ln_f", "final_norm")
    if not config.tie_embeddings:
        base = config.parametrization.base_n_embd
        specs.append(TensorSpec("lm_head.weight", "readout", (V, d), d, V, base))
    return specs


def _block(config: ExperimentConfig, at: str) -> list[TensorSpec]:
    return [
        *_norm(config, f"{at}.ln_1", "block_norm"),
        *_attention(config, f"{at}.attn"),
        *_norm(config, f"{at}.ln_2", "block_norm"),
        *_mlp(config, f"{at}.mlp"),
    ]


def _attention(config: ExperimentConfig, at: str) -> list[TensorSpec]:
    d, kv = config.n_embd, kv_width(config)
    base = config.parametrization.base_n_embd
    specs = _linear(config, f"{at}.c_q", "hidden", (d, d), base)
    specs += _linear(config, f"{at}.c_k", "hidden", (kv, d), base)
    specs += _linear(config, f"{at}.c_v", "hidden", (kv, d), base)
    if config.use_qk_norm:
        head = config.head_dim
        base_head = config.parametrization.base_head_dim
        for name in (f"{at}.q_norm.weight", f"{at}.k_norm.weight"):
            specs.append(TensorSpec(name, "qk_norm", (head,), head, head, base_head))
    return specs + _linear(config, f"{at}.c_proj", "residual_out", (d, d), base)


def _mlp(config: ExperimentConfig, at: str) -> list[TensorSpec]:
    own, base = widths(config), base_widths(config)
    inner = ("c_gate", "c_up") if config.use_swiglu else ("c_fc",)
    specs = []
    for name in inner:
        specs += _linear(config, f"{at}.{name}", "hidden", (own.ffn, own.embd), base.embd)
    return specs + _linear(config, f"{at}.c_proj", "residual_out", (own.embd, own.ffn), base.ffn)


def _linear(
    config: ExperimentConfig, name: str, role: Role, shape: tuple[int, int], base_fan_in: int
) -> list[TensorSpec]:
    fan_out, fan_in = shape
    specs = [TensorSpec(f"{name}.weight", role, shape, fan_in, fan_out, base_fan_in)]
    if config.bias:
        specs.append(TensorSpec(f"{name}.bias", "bias", (fan_out,), fan_in, fan_out, base_fan_in))
    return specs


def _norm(config: ExperimentConfig, name: str, role: Role) -> list[TensorSpec]:
    d, base = config.n_embd, config.parametrization.base_n_embd
    specs = [TensorSpec(f"{name}.weight", role, (d,), d, d, base)]
    if config.bias and not config.use_rmsnorm:
        specs.append(TensorSpec(f"{name}.bias", "bias", (d,), d, d, base))
    return specs
