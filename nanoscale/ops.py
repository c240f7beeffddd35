"""What a block is made of, in torch's own operations: they run, compile and differentiate anywhere.

The model calls these and nothing else between its parameters; `kernels.FusedOps` does the same in
fewer passes on a CPU and is tested against this file. Shapes: B sequences, T tokens, H heads, K
key-value heads, h head size, d = n_embd, V symbols. Under autocast the products, and what lies
between them, are in its narrower type; the residual stream, norms and losses are float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Rotary = tuple[Tensor, Tensor]  # cos and sin of the angles, (T, h) each


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


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + h/2}) by its position's angle; x (B, T, H, h), cos (T, h)."""
    low, high = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return (x * cos + torch.cat([-high, low], dim=-1) * sin).type_as(x)


class Ops:
    """The reference: one torch expression each."""

    name = "torch"

    def weights_changed(self) -> None:
        """Called after every update of the parameters: what was derived from them is stale."""

    def embed(self, idx: Tensor, tokens: Tensor, positions: Tensor | None,
              multiplier: float) -> Tensor:
        """Embeddings of idx (B, T), with positions (T, d) added, times `multiplier`: (B, T, d)."""
        x = F.embedding(idx, tokens)
        x = x if positions is None else x + positions
        return x if multiplier == 1 else x * multiplier

    def join(self, x: Tensor, branch: Tensor | None, multiplier: float,
             norm: Norm) -> tuple[Tensor, Tensor]:
        """The residual stream with `multiplier` times a branch added, and its norm; (B, T, d)."""
        if branch is not None:
            x = x + (branch if multiplier == 1 else multiplier * branch)
        return x, norm(x)

    def linear(self, x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
        """Each layer's map of the same x, (..., fan_in) to (..., fan_out)."""
        return tuple(F.linear(x, layer.weight, getattr(layer, "bias", None)) for layer in layers)

    def turn(self, x: Tensor, norm: Norm | None, rotary: Rotary | None) -> Tensor:
        """Queries or keys (B, T, H, h), normed over each head, then rotated, as asked."""
        x = x if norm is None else norm(x)
        return x if rotary is None else rotate(x, *rotary)

    def attention(self, q: Tensor, k: Tensor, v: Tensor, scale: float,
                  dropout: float = 0.0) -> Tensor:
        """Causal attention of q (B, T, H, h) over k and v (B, S, K, h), S >= T: (B, T, H h).

        With T = 1 the query sees all S; otherwise S = T.
        """
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H or K, T, h)
        y = F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, scale=scale, is_causal=q.size(2) > 1,
            enable_gqa=q.size(1) != k.size(1))
        return y.transpose(1, 2).flatten(2)

    def gelu(self, x: Tensor) -> Tensor:
        return F.gelu(x)

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        """SiLU(gate) * up (Shazeer 2020)."""
        return F.silu(gate) * up

    def cross_entropy(self, logits: Tensor, targets: Tensor, z_loss: float) -> Tensor:
        """Mean over tokens of -log softmax(logits)[target] + z_loss logsumexp(logits)^2."""
        flat = logits.flatten(0, -2).float()
        loss = F.cross_entropy(flat, targets.flatten())
        if z_loss:
            loss = loss + z_loss * flat.logsumexp(dim=-1).square().mean()
        return loss
