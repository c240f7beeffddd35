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

from nanoscale.architecture import ffn_width, tensors
from nanoscale.config import ExperimentConfig
from nanoscale.parametrization import multipliers, rule

Probe = Callable[[str, Tensor], None]  # sees named activations: statistics, coordinate checks


class Norm(nn.Module):
    """LayerNorm with optional bias, or RMSNorm (Zhang & Sennrich 2019)."""

    def __init__(self, size: int, eps: float, rms: bool, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size)) if bias and not rms else None
        self.eps, self.rms = eps, rms

    def forward(self, x: Tensor) -> Tensor:
        shape = self.weight.shape
        if self.rms:
            return F.rms_norm(x.float(), shape, self.weight, self.eps).type_as(x)
        return F.layer_norm(x.float(), shape, self.weight, self.bias, self.eps).type_as(x)


class KVCache:
    """Keys and values of the tokens so far, one pair of buffers per block."""

    def __init__(self, config: ExperimentConfig, batch: int, like: Tensor) -> None:
        shape = (config.n_layer, 2, batch, config.kv_heads, config.block_size, config.head_dim)
        self.buffers = torch.empty(shape, device=like.device, dtype=like.dtype)
        self.length = 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new tokens' k and v, (B, K, T, h); return all so far, (B, K, length + T, h)."""
        assert self.length == 0 or k.size(2) == 1, "the causal mask knows these two cases"
        end = self.length + k.size(2)
        self.buffers[layer, 0, :, :, self.length : end] = k
        self.buffers[layer, 1, :, :, self.length : end] = v
        return self.buffers[layer, 0, :, :, :end], self.buffers[layer, 1, :, :, :end]


def rotary_tables(head_dim: int, length: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin of RoPE's angles, (length, head_dim) each (Su et al. 2021, LLaMA's halves)."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
    angles = torch.cat([angles, angles], dim=1)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + h/2}) by its position's angle; x (B, H, T, h)."""
    low, high = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-high, low], dim=-1) * sin).type_as(x)


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

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None,
                cache: KVCache | None = None, probe: Probe | None = None) -> Tensor:
        B, T, d = x.shape
        q, k, v = (linear(x).view(B, T, -1, self.head_dim).transpose(1, 2)
                   for linear in (self.c_q, self.c_k, self.c_v))  # (B, H or K, T, h)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        if probe is not None:
            probe(f"h.{self.layer}.attn.scores", self.scores(q, k))
        y = F.scaled_dot_product_attention(
            q, k, v, dropout_p=self.dropout if self.training else 0.0, scale=self.scale,
            is_causal=T > 1, enable_gqa=self.grouped)  # (B, H, T, h)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, d))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """The attention logits that the softmax sees, -inf where masked, (B, H, T, T)."""
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

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.silu(self.c_gate(x)) * self.c_up(x) if self.swiglu else F.gelu(self.c_fc(x))
        return self.c_proj(hidden)


class Block(nn.Module):
    """x + m attn(norm(x)), then x + m mlp(norm(x)); m is CompleteP's residual multiplier."""

    def __init__(self, config: ExperimentConfig, layer: int) -> None:
        super().__init__()
        norm = lambda: Norm(config.n_embd, config.norm_eps, config.use_rmsnorm, config.bias)  # noqa: E731
        self.ln_1, self.attn = norm(), Attention(config, layer)
        self.ln_2, self.mlp = norm(), MLP(config)
        self.layer, self.dropout = layer, config.dropout
        self.multiplier = multipliers(config).residual

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None,
                cache: KVCache | None = None, probe: Probe | None = None) -> Tensor:
        attn = self.attn(self.ln_1(x), rotary, cache, probe)
        x = self.join(x, attn)
        mlp = self.mlp(self.ln_2(x))
        x = self.join(x, mlp)
        if probe is not None:
            for name, y in (("attn", attn), ("mlp", mlp), ("out", x)):
                probe(f"h.{self.layer}.{name}", y)
        return x

    def join(self, x: Tensor, branch: Tensor) -> Tensor:
        """Add a branch to the residual stream, (B, T, d)."""
        branch = F.dropout(branch, self.dropout, self.training)
        return x + (branch if self.multiplier == 1 else self.multiplier * branch)


class GPT(nn.Module):
    """A decoder-only language model; `config` is resolved (its vocabulary is known)."""

    def __init__(self, config: ExperimentConfig) -> None:
        super().__init__()
        self.config = config
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

    def hidden(self, idx: Tensor, cache: KVCache | None = None,
               probe: Probe | None = None) -> Tensor:
        """The final normed states of tokens `idx` (B, T), scaled for the head, (B, T, d)."""
        T, start = idx.size(1), cache.length if cache is not None else 0
        x = self.transformer.wte(idx)
        rotary = None
        if self.config.use_rope:
            rotary = self.cos[start : start + T], self.sin[start : start + T]
        else:
            x = x + self.transformer.wpe.weight[start : start + T]
        if self.multipliers.embedding != 1:
            x = x * self.multipliers.embedding
        x = F.dropout(x, self.config.dropout, self.training)
        if probe is not None:
            probe("embedding", x)
        for block in self.transformer.h:
            x = block(x, rotary, cache, probe)
        if cache is not None:
            cache.length += T
        x = self.transformer.ln_f(x)
        return x if self.multipliers.logits == 1 else x * self.multipliers.logits

    def forward(self, idx: Tensor, targets: Tensor | None = None, *, cache: KVCache | None = None,
                probe: Probe | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits (B, T, V) and, given targets (B, T), the mean loss in nats per token.

        In training the loss includes `z_loss` (PaLM, section 5). Targets never change the logits.
        With a cache, `idx` is the whole prompt at first and one token afterwards.
        """
        head = self.transformer.wte if self.lm_head is None else self.lm_head
        logits = F.linear(self.hidden(idx, cache, probe), head.weight)  # (B, T, V)
        if probe is not None:
            probe("logits", logits)
        if targets is None:
            return logits, None
        flat = logits.view(-1, logits.size(-1)).float()
        loss = F.cross_entropy(flat, targets.reshape(-1))
        if self.training and self.config.z_loss:
            loss = loss + self.config.z_loss * flat.logsumexp(dim=-1).square().mean()
        return logits, loss


def normal(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 values that depend on (seed, name) and nothing else (Philox)."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    generator = np.random.Generator(np.random.Philox(key=[seed, key]))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
