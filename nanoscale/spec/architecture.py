"""The one list of a model's tensors, from its config alone: no torch, no weights.

The model, the counts, the parametrization, the optimizer groups, `nanoscale params` and the exports
all derive from `tensors(config)`, so a tensor is named and classified in one place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

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
ROLES: tuple[Role, ...] = Role.__args__
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
    """The widths that a block's tensors are made of."""

    embd: int
    kv: int
    ffn: int


def widths(config: ExperimentConfig) -> Widths:
    """The model's own widths."""
    return Widths(
        config.n_embd,
        config.kv_heads * config.head_dim,
        ffn_width(config.n_embd, config.use_swiglu, config.multiple_of),
    )


@dataclass(frozen=True)
class BaseWidths:
    """The fan-ins of the base model, `base_n_embd` wide."""

    embd: int
    ffn: int


def base_widths(config: ExperimentConfig) -> BaseWidths:
    """The base model's, under the same flags."""
    base = config.parametrization.base_n_embd
    return BaseWidths(base, ffn_width(base, config.use_swiglu, config.multiple_of))


def tensors(config: ExperimentConfig) -> list[TensorSpec]:
    """Every parameter of the model, in the model's own order; a tied head is not listed twice."""
    assert config.vocab_size is not None, "the vocabulary comes from the dataset"
    w, base = widths(config), base_widths(config)
    d, V = config.n_embd, config.vocab_size
    specs = [TensorSpec("transformer.wte.weight", "embedding", (V, d), V, d, V)]
    if not config.use_rope:
        T = config.block_size
        specs.append(TensorSpec("transformer.wpe.weight", "position", (T, d), T, d, T))
    for i in range(config.n_layer):
        specs += _block(config, f"transformer.h.{i}", w, base)
    specs += _norm(config, "transformer.ln_f", "final_norm", w, base)
    if not config.tie_embeddings:
        specs.append(TensorSpec("lm_head.weight", "readout", (V, d), d, V, base.embd))
    return specs


def _block(config: ExperimentConfig, at: str, w: Widths, base: BaseWidths) -> Iterator[TensorSpec]:
    linear = _Linear(config.bias)
    yield from _norm(config, f"{at}.ln_1", "block_norm", w, base)
    yield from linear(f"{at}.attn.c_q", "hidden", (w.embd, w.embd), base.embd)
    yield from linear(f"{at}.attn.c_k", "hidden", (w.kv, w.embd), base.embd)
    yield from linear(f"{at}.attn.c_v", "hidden", (w.kv, w.embd), base.embd)
    if config.use_qk_norm:
        h, base_h = config.head_dim, config.parametrization.base_head_dim
        for norm in ("q_norm", "k_norm"):
            yield TensorSpec(f"{at}.attn.{norm}.weight", "qk_norm", (h,), h, h, base_h)
    yield from linear(f"{at}.attn.c_proj", "residual_out", (w.embd, w.embd), base.embd)
    yield from _norm(config, f"{at}.ln_2", "block_norm", w, base)
    for name in ("c_gate", "c_up") if config.use_swiglu else ("c_fc",):
        yield from linear(f"{at}.mlp.{name}", "hidden", (w.ffn, w.embd), base.embd)
    yield from linear(f"{at}.mlp.c_proj", "residual_out", (w.embd, w.ffn), base.ffn)


@dataclass(frozen=True)
class _Linear:
    bias: bool

    def __call__(
        self, name: str, role: Role, shape: tuple[int, int], base_fan_in: int
    ) -> Iterator[TensorSpec]:
        fan_out, fan_in = shape
        yield TensorSpec(f"{name}.weight", role, shape, fan_in, fan_out, base_fan_in)
        if self.bias:
            yield TensorSpec(f"{name}.bias", "bias", (fan_out,), fan_in, fan_out, base_fan_in)


def _norm(
    config: ExperimentConfig, name: str, role: Role, w: Widths, base: BaseWidths
) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", role, (w.embd,), w.embd, w.embd, base.embd)
    if config.bias and not config.use_rmsnorm:
        yield TensorSpec(f"{name}.bias", "bias", (w.embd,), w.embd, w.embd, base.embd)
