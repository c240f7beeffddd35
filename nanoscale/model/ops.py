"""What a block is made of, in torch's own operations: they run, compile and differentiate anywhere.

The model calls these and nothing else between its parameters; `fused_ops.FusedOps` does the same in
fewer passes on a CPU and is tested against this file. Shapes: B sequences, T tokens, H heads, K
key-value heads, h head size, d = n_embd, V symbols. Under autocast the products, and what lies
between them, are in its narrower type; the residual stream, norms and losses are float32.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from nanoscale.model.masks import Dropped, drop

Rotary = tuple[Tensor, Tensor]  # cos and sin of the angles, (T, h) each
Linear = nn.Linear | nn.Embedding  # `weight` (fan_out, fan_in); a tied head is the embedding
Gradients = tuple[Any, ...]  # of a function's inputs, as autograd takes them

# A target that no vocabulary has: torch ignores one value, and none of ours may be ignored.
_NO_TARGET = -(2**31)


def apply(function: type[Function], *inputs: object) -> Tensor:
    """A differentiable function's output; torch gives `Function.apply` no types."""
    return cast(Tensor, function.apply(*inputs))  # type: ignore[no-untyped-call]  # torch's


def apply_many(function: type[Function], *inputs: object) -> tuple[Tensor, ...]:
    """The same of a function with several outputs."""
    return cast(tuple[Tensor, ...], apply(function, *inputs))  # a tuple, by its `forward`


def check_tokens(tokens: Tensor, vocab_size: int) -> None:
    """Refuse tokens or targets outside the vocabulary, alike under all operations.

    On a GPU torch's device-side assertions do it, as a look from here would wait for every step.

    Raises:
        IndexError: a token is negative or not below `vocab_size`.
    """
    if tokens.device.type != "cpu" or torch.compiler.is_compiling():
        return

    least, largest = torch.aminmax(tokens)
    for token in (largest, least):
        if not 0 <= token < vocab_size:
            raise IndexError(f"token {int(token)} is not in the vocabulary of {vocab_size}")


class Norm(nn.Module):
    """LayerNorm with optional bias, or RMSNorm (Zhang & Sennrich 2019)."""

    def __init__(self, size: int, eps: float, rms: bool, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size)) if bias and not rms else None
        self.eps = eps
        self.rms = rms

    def forward(self, x: Tensor) -> Tensor:
        shape = self.weight.shape
        if self.rms:
            return F.rms_norm(x.float(), shape, self.weight, self.eps).type_as(x)
        return F.layer_norm(x.float(), shape, self.weight, self.bias, self.eps).type_as(x)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + h/2}) by its position's angle; x (B, T, H, h), cos (T, h)."""
    low, high = x.chunk(2, dim=-1)
    turned = torch.cat([-high, low], dim=-1)
    return (x * cos[:, None] + turned * sin[:, None]).type_as(x)


def attention_scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """The attention logits that the softmax sees, -inf where masked, (B, H, T, T)."""
    group = q.size(2) // k.size(2)  # query heads to a key head
    q = q.float().transpose(1, 2)  # (B, H, T, h)
    k = k.float().transpose(1, 2)  # (B, K, T, h)
    k = k.repeat_interleave(group, dim=1)
    scores = (q @ k.transpose(-2, -1)) * scale
    everywhere = torch.ones_like(scores[0, 0], dtype=torch.bool)
    return scores.masked_fill(everywhere.triu(1), -torch.inf)


class Ops:
    """The reference: one torch expression each."""

    name = "torch"

    def embed(
        self, idx: Tensor, tokens: Tensor, positions: Tensor | None, multiplier: float
    ) -> Tensor:
        """Embeddings of idx (B, T), with positions (T, d) added, times `multiplier`: (B, T, d)."""
        check_tokens(idx, tokens.size(0))
        x = F.embedding(idx, tokens)
        if positions is not None:
            x = x + positions
        return x if multiplier == 1 else x * multiplier

    def add_norm(
        self, x: Tensor, branch: Tensor | None, multiplier: float, norm: Norm
    ) -> tuple[Tensor, Tensor]:
        """The residual stream with `multiplier` times a branch added, and its norm; (B, T, d)."""
        if branch is not None:
            if multiplier != 1:
                branch = multiplier * branch
            x = x + branch
        return x, norm(x)

    def linear(self, x: Tensor, *layers: Linear) -> tuple[Tensor, ...]:
        """Each layer's map of the same x, (..., fan_in) to (..., fan_out)."""
        return tuple(F.linear(x, layer.weight, bias_of(layer)) for layer in layers)

    def norm_rope(self, x: Tensor, norm: Norm | None, rotary: Rotary | None) -> Tensor:
        """Queries or keys (B, T, H, h), normed over each head, then rotated, as asked."""
        if norm is not None:
            x = norm(x)
        return x if rotary is None else rotate(x, *rotary)

    def dropout(self, x: Tensor, dropped: Dropped | None) -> Tensor:
        """x (B, ...) without what is dropped of it."""
        return x if dropped is None else drop(x, dropped)

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, dropped: Dropped | None = None
    ) -> Tensor:
        """Causal attention of q (B, T, H, h) over k and v (B, S, K, h), S >= T: (B, T, H h).

        With T = 1 the query sees all S; otherwise S = T. Of its weights (B, H, T, T) some may be
        dropped, where S = T.
        """
        if dropped is not None:  # torch's own takes no mask of weights: it would draw one
            weights = attention_scores(q, k, scale).softmax(dim=-1, dtype=torch.float32)
            values = v.transpose(1, 2).repeat_interleave(q.size(2) // v.size(2), dim=1)
            y = drop(weights, dropped) @ values  # (B, H, T, h)
            return y.transpose(1, 2).flatten(2)

        y = F.scaled_dot_product_attention(
            q.transpose(1, 2),  # (B, H, T, h)
            k.transpose(1, 2),  # (B, K, S, h)
            v.transpose(1, 2),
            scale=scale,
            is_causal=q.size(1) > 1,
            enable_gqa=q.size(2) != k.size(2),
        )
        return y.transpose(1, 2).flatten(2)

    def gelu(self, x: Tensor) -> Tensor:
        return F.gelu(x)

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        """SiLU(gate) * up (Shazeer 2020)."""
        return F.silu(gate) * up

    def cross_entropy(self, logits: Tensor, targets: Tensor, z_loss: float) -> Tensor:
        """Mean over tokens of -log softmax(logits)[target] + z_loss logsumexp(logits)^2."""
        check_tokens(targets, logits.size(-1))
        flat = logits.flatten(0, -2).float()  # (B T, V)
        loss = F.cross_entropy(flat, targets.flatten(), ignore_index=_NO_TARGET)
        if z_loss:
            lse = flat.logsumexp(dim=-1)
            loss = loss + z_loss * lse.square().mean()
        return loss

    def chunked_cross_entropy(
        self, x: Tensor, weight: Tensor, targets: Tensor, z_loss: float, chunk: int
    ) -> Tensor:
        """`cross_entropy` of x (B, T, d) times a head's weight (V, d), by `chunk` tokens."""
        check_tokens(targets, weight.size(0))
        return apply(ChunkedCrossEntropy, x, weight, targets, z_loss, chunk, self)

    def training_loss(
        self, model: Any, idx: Tensor, targets: Tensor, masks: Tensor | None
    ) -> Tensor | None:
        """A model's training loss in one call; None: operation by operation."""
        return None

    def token_losses(self, model: Any, idx: Tensor, targets: Tensor) -> Tensor | None:
        """The loss of each token (B, T) in one call, not to be differentiated; None as above."""
        return None

    def narrow(self, weight: Tensor) -> Tensor:
        """A weight in the type of the products."""
        return weight.detach().to(product_dtype(weight.device.type))

    def loss_and_gradient(
        self, logits: Tensor, targets: Tensor, z_loss: float
    ) -> tuple[Tensor, Tensor, float]:
        """Sum over tokens of the loss of logits (n, V); its gradient is the next two's product."""
        p = logits.float()  # overwritten step by step
        lse = p.logsumexp(dim=-1, keepdim=True)  # (n, 1)
        at = targets[:, None]
        loss = (lse - p.gather(1, at)).sum() + z_loss * lse.square().sum()

        p = p.sub_(lse).exp_()
        if z_loss:
            p.mul_(1 + 2 * z_loss * lse)
        p.scatter_add_(1, at, -torch.ones_like(lse))
        return loss, p.to(logits.dtype), 1.0


def product_dtype(device_type: str) -> torch.dtype:
    """The type of products on a kind of device: autocast's, or float32."""
    if not torch.is_autocast_enabled(device_type):
        return torch.float32
    return torch.get_autocast_dtype(device_type)


def bias_of(layer: Linear) -> Tensor | None:
    """A layer's bias, if it has one; an embedding never does."""
    return layer.bias if isinstance(layer, nn.Linear) else None


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
        targets: Tensor,
        z_loss: float,
        chunk: int,
        ops: Ops,
    ) -> Tensor:
        narrow = ops.narrow(weight)
        flat = x.flatten(0, -2)  # (B T, d)
        gx = torch.empty_like(flat)
        gw = torch.zeros_like(weight, memory_format=torch.contiguous_format)
        total = weight.new_zeros(())
        parts = zip(
            torch.split(flat, chunk),
            torch.split(gx, chunk),
            torch.split(targets.flatten(), chunk),
            strict=True,
        )
        with torch.autocast(weight.device.type, enabled=False):
            for part, gpart, answers in parts:
                part = part.to(narrow.dtype)
                loss, g, factor = ops.loss_and_gradient(part @ narrow.t(), answers, z_loss)
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
    def backward(ctx: Any, g: Tensor) -> Gradients:
        gx, gw = ctx.saved_tensors  # overwritten: autograd refuses a second backward pass
        return gx.mul_(g), gw.mul_(g), None, None, None, None
