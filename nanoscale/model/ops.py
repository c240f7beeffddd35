"""What a block is made of, in torch's own operations: they run, compile and differentiate anywhere.

The model calls these and nothing else between its parameters; `kernels.FusedOps` does the same in
fewer passes on a CPU and is tested against this file. Shapes: B sequences, T tokens, H heads, K
key-value heads, h head size, d = n_embd, V symbols. Under autocast the products, and what lies
between them, are in its narrower type; the residual stream, norms and losses are float32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

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

    def embed(
        self, idx: Tensor, tokens: Tensor, positions: Tensor | None, multiplier: float
    ) -> Tensor:
        """Embeddings of idx (B, T), with positions (T, d) added, times `multiplier`: (B, T, d)."""
        x = F.embedding(idx, tokens)
        x = x if positions is None else x + positions
        return x if multiplier == 1 else x * multiplier

    def join(
        self, x: Tensor, branch: Tensor | None, multiplier: float, norm: Norm
    ) -> tuple[Tensor, Tensor]:
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

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float = 0.0
    ) -> Tensor:
        """Causal attention of q (B, T, H, h) over k and v (B, S, K, h), S >= T: (B, T, H h).

        With T = 1 the query sees all S; otherwise S = T.
        """
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H or K, T, h)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            dropout_p=dropout,
            scale=scale,
            is_causal=q.size(2) > 1,
            enable_gqa=q.size(1) != k.size(1),
        )
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

    def chunked_cross_entropy(
        self, x: Tensor, weight: Tensor, targets: Tensor, z_loss: float, chunk: int
    ) -> Tensor:
        """`cross_entropy` of x (B, T, d) times a head's weight (V, d), by `chunk` tokens."""
        return ChunkedCrossEntropy.apply(
            x, weight, self.narrow(weight), targets, z_loss, chunk, self.loss_and_gradient
        )

    def narrow(self, weight: Tensor) -> Tensor:
        """A weight in the type of the products: autocast's, or its own."""
        device = weight.device.type
        if not torch.is_autocast_enabled(device):
            return weight.detach()
        return weight.detach().to(torch.get_autocast_dtype(device))

    def loss_and_gradient(
        self, logits: Tensor, targets: Tensor, z_loss: float
    ) -> tuple[Tensor, Tensor, float]:
        """Sum over tokens of the loss of logits (n, V); its gradient is the next two's product."""
        p = logits.float()  # overwritten step by step
        lse = p.logsumexp(dim=-1, keepdim=True)
        at = targets[:, None]
        loss = (lse - p.gather(1, at)).sum() + z_loss * lse.square().sum()
        p = p.sub_(lse).exp_()
        if z_loss:
            p.mul_(1 + 2 * z_loss * lse)
        p.scatter_add_(1, at, -torch.ones_like(lse))
        return loss, p.to(logits.dtype), 1.0


class ChunkedCrossEntropy(Function):
    """Loss and gradients in one pass, chunk by chunk, so that all logits never exist at once.

    The idea of fused linear cross-entropy, Hsu et al. 2024 (Liger): a loss is where the backward
    pass begins, so its gradients are known up to a factor as soon as it is.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        narrow: Tensor,
        targets: Tensor,
        z_loss: float,
        chunk: int,
        loss_and_gradient: Any,
    ) -> Tensor:
        flat, targets = x.flatten(0, -2), targets.flatten()
        gx = torch.empty_like(flat)
        gw = torch.zeros_like(weight, memory_format=torch.contiguous_format)
        total = weight.new_zeros(())
        with torch.autocast(weight.device.type, enabled=False):
            for part, gpart, answers in zip(
                flat.split(chunk), gx.split(chunk), targets.split(chunk), strict=True
            ):
                part = part.to(narrow.dtype)
                loss, g, factor = loss_and_gradient(part @ narrow.t(), answers, z_loss)
                total += loss
                factor /= len(flat)  # after the products: before them float16 would lose it
                gpart.copy_((g @ narrow).mul_(factor))
                if narrow.dtype == gw.dtype:
                    gw.addmm_(g.t(), part, alpha=factor)
                else:
                    gw.add_(g.t() @ part, alpha=factor)
                del g  # before the next chunk's logits
        ctx.save_for_backward(gx.view_as(x), gw)
        return total / len(flat)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        gx, gw = ctx.saved_tensors  # overwritten: autograd refuses a second backward pass
        return gx.mul_(g), gw.mul_(g), None, None, None, None, None
