"""The one list of a model's tensors, from its config alone: no torch, no weights.

The model, the counts, the parametrization, the optimizer groups, `nanoscale params` and the exports
all derive from `tensors(config)`, so a tensor is named and classified in one place.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from nanoscale.spec.config import ExperimentConfig

ROLES = (
    "embedding",
    "position",
    "hidden",
    "residual_out",
    "block_norm",
    "qk_norm",
    "final_norm",
    "bias",
    "readout",
)
MATRIX_ROLES = ("hidden", "residual_out")  # the matrices inside blocks: what Muon updates


@dataclass(frozen=True)
class TensorSpec:
    """One parameter: `shape` as torch stores it, (fan_out, fan_in) for matrices.

    `base_fan_in` is the same tensor's in the parametrization's base model.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    fan_in: int
    base_fan_in: int

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def in_block(self) -> bool:
        return ".h." in self.name


def ffn_width(config: ExperimentConfig, n_embd: int) -> int:
    """Of the MLP between: 4 d, or 8/3 d rounded up to `multiple_of` for SwiGLU (LLaMA)."""
    if not config.use_swiglu:
        return 4 * n_embd
    width = 8 * n_embd // 3
    return config.multiple_of * -(-width // config.multiple_of)


def kv_width(config: ExperimentConfig) -> int:
    """Of all key heads together, and of all value heads."""
    return config.kv_heads * config.head_dim


def tensors(config: ExperimentConfig) -> list[TensorSpec]:
    """Every parameter of the model, in the model's own order; a tied head is not listed twice."""
    assert config.vocab_size is not None, "the vocabulary comes from the dataset"
    d, V, T = config.n_embd, config.vocab_size, config.block_size
    specs = [TensorSpec("transformer.wte.weight", "embedding", (V, d), V, V)]
    if not config.use_rope:
        specs.append(TensorSpec("transformer.wpe.weight", "position", (T, d), T, T))
    for layer in range(config.n_layer):
        specs += _attention(config, f"transformer.h.{layer}")
        specs += _mlp(config, f"transformer.h.{layer}")
    specs += _norm(config, "transformer.ln_f", "final_norm")
    if not config.tie_embeddings:
        specs += _layer("lm_head", "readout", (V, d), config.parametrization.base_n_embd)
    return specs


def _attention(config: ExperimentConfig, block: str) -> list[TensorSpec]:
    """A block's first half."""
    d, kv = config.n_embd, kv_width(config)
    base = config.parametrization.base_n_embd
    base_head = config.parametrization.base_head_dim
    specs = _norm(config, f"{block}.ln_1", "block_norm")
    for name, width in (("c_q", d), ("c_k", kv), ("c_v", kv)):
        specs += _layer(f"{block}.attn.{name}", "hidden", (width, d), base, config.bias)
    if config.use_qk_norm:
        for name in ("q_norm", "k_norm"):
            specs += _layer(f"{block}.attn.{name}", "qk_norm", (config.head_dim,), base_head)
    specs += _layer(f"{block}.attn.c_proj", "residual_out", (d, d), base, config.bias)
    return specs


def _mlp(config: ExperimentConfig, block: str) -> list[TensorSpec]:
    """A block's second half."""
    d, base = config.n_embd, config.parametrization.base_n_embd
    ffn = ffn_width(config, d)
    base_ffn = ffn_width(config, base)
    inner = ("c_gate", "c_up") if config.use_swiglu else ("c_fc",)
    specs = _norm(config, f"{block}.ln_2", "block_norm")
    for name in inner:
        specs += _layer(f"{block}.mlp.{name}", "hidden", (ffn, d), base, config.bias)
    specs += _layer(f"{block}.mlp.c_proj", "residual_out", (d, ffn), base_ffn, config.bias)
    return specs


def _norm(config: ExperimentConfig, name: str, role: str) -> list[TensorSpec]:
    bias = config.bias and not config.use_rmsnorm
    return _layer(name, role, (config.n_embd,), config.parametrization.base_n_embd, bias)


def _layer(
    name: str, role: str, shape: tuple[int, ...], base_fan_in: int, bias: bool = False
) -> list[TensorSpec]:
    """A layer's weight, (fan_out, fan_in) or (width,), and its bias."""
    fan_in = shape[-1]
    specs = [TensorSpec(f"{name}.weight", role, shape, fan_in, base_fan_in)]
    if bias:
        specs.append(TensorSpec(f"{name}.bias", "bias", shape[:1], fan_in, base_fan_in))
    return specs
