"""The GPT: GPT-2's parts by default, LLaMA's behind flags, in every combination.

Names, roles and shapes of its tensors come from `architecture.py`, their initial values and the
forward multipliers from `parametrization.py`. Shapes: B sequences, T tokens, H heads, K key-value
heads, h head size, d = n_embd, V symbols.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nanoscale.model.ops import Norm, Ops, Rotary
from nanoscale.spec.architecture import ffn_width, tensors
from nanoscale.spec.config import ExperimentConfig, ResolvedConfig
from nanoscale.spec.parametrization import multipliers, rule

Probe = Callable[[str, Tensor], None]  # sees named activations: statistics, coordinate checks


class KVCache:
    """Keys and values of the tokens so far, one pair of buffers per block."""

    def __init__(self, config: ExperimentConfig, batch: int, like: Tensor) -> None:
        shape = (config.n_layer, 2, batch, config.block_size, config.kv_heads, config.head_dim)
        self.buffers = torch.empty(shape, device=like.device, dtype=like.dtype)
        self.length = 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new tokens' k and v, (B, T, K, h); return all so far, (B, length + T, K, h)."""
        assert self.length == 0 or k.size(1) == 1, "the causal mask knows these two cases"
        end = self.length + k.size(1)
        self.buffers[layer, 0, :, self.length : end] = k
        self.buffers[layer, 1, :, self.length : end] = v
        return self.buffers[layer, 0, :, :end], self.buffers[layer, 1, :, :end]


def rotary_tables(head_dim: int, length: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin of RoPE's angles, (length, head_dim) each (Su et al. 2021, LLaMA's halves)."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
    angles = torch.cat([angles, angles], dim=1)
    return angles.cos().float(), angles.sin().float()


class Attention(nn.Module):
    """Causal self-attention with separate q, k and v, grouped heads and optional QK-norm."""

    def __init__(self, config: ExperimentConfig, layer: int) -> None:
        super().__init__()
        d, kv = config.n_embd, config.kv_heads * config.head_dim
        self.c_q = nn.Linear(d, d, config.bias)
        self.c_k = nn.Linear(d, kv, config.bias)
        self.c_v = nn.Linear(d, kv, config.bias)
        self.q_norm = self.k_norm = None
        if config.use_qk_norm:
            self.q_norm = Norm(config.head_dim, config.norm_eps, rms=True, bias=False)
            self.k_norm = Norm(config.head_dim, config.norm_eps, rms=True, bias=False)
        self.c_proj = nn.Linear(d, d, config.bias)
        self.layer, self.head_dim = layer, config.head_dim
        self.grouped = config.kv_heads != config.n_head
        self.scale = multipliers(config).attention
        self.dropout = config.dropout

    def forward(
        self,
        x: Tensor,
        ops: Ops,
        rotary: Rotary | None,
        cache: KVCache | None = None,
        probe: Probe | None = None,
    ) -> Tensor:
        q, k, v = (
            y.unflatten(-1, (-1, self.head_dim))  # (B, T, H or K, h)
            for y in ops.linear(x, self.c_q, self.c_k, self.c_v)
        )
        q, k = ops.turn(q, self.q_norm, rotary), ops.turn(k, self.k_norm, rotary)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        if probe is not None:
            probe(f"h.{self.layer}.attn.scores", self.scores(q, k))
        y = ops.attention(q, k, v, self.scale, self.dropout if self.training else 0.0)
        return ops.linear(y, self.c_proj)[0]

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """The attention logits that the softmax sees, -inf where masked, (B, H, T, T)."""
        q, k = q.transpose(1, 2), k.transpose(1, 2)
        k = k.repeat_interleave(q.size(1) // k.size(1), dim=1)
        scores = (q.float() @ k.float().transpose(-2, -1)) * self.scale
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        return scores.masked_fill(future, -torch.inf)


class MLP(nn.Module):
    """GELU of width 4 d, or SwiGLU (Shazeer 2020) of width 8/3 d."""

    def __init__(self, config: ExperimentConfig) -> None:
        super().__init__()
        d, width = config.n_embd, ffn_width(config.n_embd, config.use_swiglu, config.multiple_of)
        self.swiglu = config.use_swiglu
        if self.swiglu:
            self.c_gate = nn.Linear(d, width, config.bias)
            self.c_up = nn.Linear(d, width, config.bias)
        else:
            self.c_fc = nn.Linear(d, width, config.bias)
        self.c_proj = nn.Linear(width, d, config.bias)

    def forward(self, x: Tensor, ops: Ops) -> Tensor:
        if self.swiglu:
            hidden = ops.swiglu(*ops.linear(x, self.c_gate, self.c_up))
        else:
            hidden = ops.gelu(*ops.linear(x, self.c_fc))
        return ops.linear(hidden, self.c_proj)[0]


class Block(nn.Module):
    """x + m attn(norm(x)), then x + m mlp(norm(x)); m is CompleteP's residual multiplier.

    Joining the residual stream and taking its norm is one step, so a block takes the branch before
    it and leaves its last one to the next.
    """

    def __init__(self, config: ExperimentConfig, layer: int) -> None:
        super().__init__()
        norm = lambda: Norm(config.n_embd, config.norm_eps, config.use_rmsnorm, config.bias)  # noqa: E731
        self.ln_1, self.attn = norm(), Attention(config, layer)
        self.ln_2, self.mlp = norm(), MLP(config)
        self.layer, self.dropout = layer, config.dropout
        self.multiplier = multipliers(config).residual

    def forward(
        self,
        x: Tensor,
        branch: Tensor | None,
        ops: Ops,
        rotary: Rotary | None,
        cache: KVCache | None = None,
        probe: Probe | None = None,
    ) -> tuple[Tensor, Tensor]:
        x, y = ops.join(x, branch, self.multiplier, self.ln_1)  # (B, T, d) each
        if probe is not None and branch is not None:
            probe(f"h.{self.layer - 1}.out", x)
        attn = self.drop(self.attn(y, ops, rotary, cache, probe))
        x, y = ops.join(x, attn, self.multiplier, self.ln_2)
        mlp = self.drop(self.mlp(y, ops))
        if probe is not None:
            probe(f"h.{self.layer}.attn", attn)
            probe(f"h.{self.layer}.mlp", mlp)
        return x, mlp

    def drop(self, branch: Tensor) -> Tensor:
        return F.dropout(branch, self.dropout, True) if self.dropout and self.training else branch


class GPT(nn.Module):
    """A decoder-only language model; `config` is resolved (its vocabulary is known)."""

    def __init__(self, config: ResolvedConfig, ops: Ops | None = None) -> None:
        super().__init__()
        self.config, self.ops = config, ops or Ops()
        d, V = config.n_embd, config.vocab_size
        parts = {"wte": nn.Embedding(V, d, _weight=torch.empty(V, d))}
        if not config.use_rope:
            T = config.block_size
            parts["wpe"] = nn.Embedding(T, d, _weight=torch.empty(T, d))
        parts["h"] = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        parts["ln_f"] = Norm(d, config.norm_eps, config.use_rmsnorm, config.bias)
        self.transformer = nn.ModuleDict(parts)
        self.lm_head = None if config.tie_embeddings else nn.Linear(d, V, bias=False)
        if config.use_rope:
            cos, sin = rotary_tables(config.head_dim, config.block_size, config.rope_theta)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        self.multipliers = multipliers(config)
        self.initialise(config.seed if config.init_seed is None else config.init_seed)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Give every tensor its initial value, a function of (seed, name) alone."""
        parameters = dict(self.named_parameters())
        specs = tensors(self.config)
        shapes = {name: tuple(p.shape) for name, p in parameters.items()}
        assert shapes == {spec.name: spec.shape for spec in specs}
        for spec in specs:
            r, parameter = rule(spec, self.config), parameters[spec.name]
            if r.init_std == 0:
                parameter.fill_(r.init_mean)
            elif not parameter.is_meta:
                parameter.copy_(normal(seed, spec.name, spec.shape) * r.init_std)

    @property
    def head(self) -> nn.Module:
        """The unembedding: `weight` (V, d) and no bias."""
        return self.transformer.wte if self.lm_head is None else self.lm_head

    def hidden(
        self, idx: Tensor, cache: KVCache | None = None, probe: Probe | None = None
    ) -> Tensor:
        """The final normed states of tokens `idx` (B, T), scaled for the head, (B, T, d)."""
        T, start = idx.size(1), cache.length if cache is not None else 0
        positions = rotary = None
        if self.config.use_rope:
            rotary = self.cos[start : start + T], self.sin[start : start + T]
        else:
            positions = self.transformer.wpe.weight[start : start + T]
        x = self.ops.embed(idx, self.transformer.wte.weight, positions, self.multipliers.embedding)
        if self.config.dropout and self.training:
            x = F.dropout(x, self.config.dropout, True)
        if probe is not None:
            probe("embedding", x)
        branch, learning = None, self.training and torch.is_grad_enabled()
        for block in self.transformer.h:
            if self.config.recompute and learning and cache is None and probe is None:
                x, branch = checkpoint(block, x, branch, self.ops, rotary, use_reentrant=False)
            else:
                x, branch = block(x, branch, self.ops, rotary, cache, probe)
        if cache is not None:
            cache.length += T
        x, y = self.ops.join(x, branch, self.multipliers.residual, self.transformer.ln_f)
        if probe is not None:
            probe(f"h.{self.config.n_layer - 1}.out", x)
        return y if self.multipliers.logits == 1 else y * self.multipliers.logits

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        *,
        cache: KVCache | None = None,
        probe: Probe | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Logits (B, T, V) and, given targets (B, T), the mean loss in nats per token.

        In training the loss includes `z_loss` (PaLM, section 5). Targets never change the logits.
        With `loss_chunk`, a loss that is to be differentiated comes alone, the logits None: they
        never exist all at once. With a cache, `idx` is the whole prompt at first and one token
        afterwards.
        """
        x, chunk = self.hidden(idx, cache, probe), self.config.loss_chunk if probe is None else None
        if chunk and targets is not None and self.training and torch.is_grad_enabled():
            return None, self.ops.chunked_cross_entropy(
                x, self.head.weight, targets, self.config.z_loss, chunk
            )
        (logits,) = self.ops.linear(x, self.head)  # (B, T, V)
        if probe is not None:
            probe("logits", logits)
        if targets is None:
            return logits, None
        z_loss = self.config.z_loss if self.training else 0.0
        return logits, self.ops.cross_entropy(logits, targets, z_loss)


def normal(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 values that depend on (seed, name) and nothing else (Philox)."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    generator = np.random.Generator(np.random.Philox(key=[seed, key]))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
