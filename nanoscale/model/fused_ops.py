"""`Ops` on a CPU in few passes over memory, through the kernels.

Between matrix products a small model's step is mostly overhead: dozens of short operations, each
with its own pass, casts and copies. Here each part is one pass forward and one backward, weights
are cast once per update, and projections of the same input are one product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from nanoscale.model.kernels import HeadsArguments, NormArguments, call
from nanoscale.model.ops import Norm, Ops, Rotary


def norm_arguments(weight: Tensor, bias: Tensor | None, norm: Norm) -> NormArguments:
    return NormArguments(
        weight.data_ptr(), None if bias is None else bias.data_ptr(), norm.eps, norm.rms
    )


def side_by_side(parts: tuple[Tensor, ...]) -> Tensor:
    """The parts (..., n_i) as one matrix (rows, sum n_i): as they lie, if they lie so."""
    parts = tuple(part.flatten(0, -2) if part.dim() != 2 else part for part in parts)
    first, width = parts[0], sum(part.size(1) for part in parts)
    at = first.data_ptr()
    for part in parts:
        if part.data_ptr() != at or part.stride() != (width, 1):
            return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        at += part.size(1) * part.element_size()
    return first.as_strided((first.size(0), width), (width, 1))


def rows_apart(x: Tensor) -> Tensor:
    """x (B, T, ..., n), with its tokens evenly apart and whole, copied only if they are not."""
    inner = x[0, 0].is_contiguous() and x.stride(0) == x.size(1) * x.stride(1)
    return x if inner else x.contiguous()


def check_tokens(idx: Tensor, size: int) -> None:
    """Refuse tokens outside the vocabulary, as torch does: the kernels read where they point."""
    least, largest = torch.aminmax(idx)
    if least < 0 or largest >= size:
        raise IndexError(
            f"token {int(largest if largest >= size else least)} is not in the vocabulary of {size}"
        )


# -- the parts, each with its gradient ------------------------------------------------------------
class Embed(Function):
    @staticmethod
    def forward(
        ctx: Any, idx: Tensor, tokens: Tensor, positions: Tensor | None, multiplier: float
    ) -> Tensor:
        idx = idx.contiguous()
        check_tokens(idx, tokens.size(0))
        ctx.idx, ctx.multiplier, ctx.tokens = idx, multiplier, tokens
        ctx.positions = positions
        x = tokens.new_empty(*idx.shape, tokens.size(1))
        call(
            "embed",
            torch.float32,
            idx.numel(),
            tokens.size(1),
            idx.size(1),
            idx,
            tokens,
            positions,
            multiplier,
            x,
        )
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        tokens, idx = torch.zeros_like(ctx.tokens), ctx.idx
        positions = None if ctx.positions is None else torch.zeros_like(ctx.positions)
        call(
            "embed_backward",
            torch.float32,
            idx.numel(),
            tokens.size(1),
            idx.size(1),
            idx,
            g.contiguous(),
            ctx.multiplier,
            tokens,
            positions,
        )
        return None, tokens, positions, None


class Join(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        branch: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        norm: Norm,
        multiplier: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        d = x.size(-1)
        joined = x if branch is None else torch.empty_like(x)
        y, stats = torch.empty_like(x, dtype=dtype), x.new_empty(x.numel() // d, 2)
        call(
            "join_norm",
            dtype,
            x.numel() // d,
            d,
            x,
            branch,
            multiplier,
            norm_arguments(weight, bias, norm),
            joined,
            y,
            stats,
        )
        ctx.save_for_backward(joined, weight, bias, stats)
        ctx.norm, ctx.multiplier, ctx.dtype, ctx.has_branch = (
            norm,
            multiplier,
            dtype,
            branch is not None,
        )
        return joined, y

    @staticmethod
    def backward(ctx: Any, gs: Tensor | None, gy: Tensor) -> tuple[Any, ...]:
        x, weight, bias, stats = ctx.saved_tensors
        d = x.size(-1)
        gx = torch.empty_like(x)
        gbranch = torch.empty_like(x, dtype=ctx.dtype) if ctx.has_branch else None
        gw, gb = torch.empty_like(weight), None if bias is None else torch.empty_like(bias)
        call(
            "join_norm_backward",
            ctx.dtype,
            x.numel() // d,
            d,
            gy.contiguous(),
            None if gs is None else gs.contiguous(),
            x,
            ctx.multiplier,
            norm_arguments(weight, bias, ctx.norm),
            stats,
            gx,
            gbranch,
            gw,
            gb,
        )
        return gx, gbranch, gw, gb, None, None, None


class Linear(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        sizes: tuple[int, ...],
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        flat = x.flatten(0, -2)  # (rows, fan_in)
        y = flat @ weight.t() if bias is None else torch.addmm(bias, flat, weight.t())
        ctx.save_for_backward(flat, weight)
        ctx.shape, ctx.sizes, ctx.has_bias = x.shape, sizes, bias is not None
        return tuple(part.view(*x.shape[:-1], -1) for part in y.split(sizes, dim=1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        g = side_by_side(grads)
        gx = (g @ weight).view(ctx.shape) if ctx.needs_input_grad[0] else None
        gw = (g.t() @ x).float().split(ctx.sizes)
        gb = g.sum(0, dtype=torch.float32).split(ctx.sizes) if ctx.has_bias else ()
        return gx, None, None, None, *gw, *gb


class Turn(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        eps: float,
        cos: Tensor | None,
        sin: Tensor | None,
    ) -> Tensor:
        x = rows_apart(x)
        B, T, H, h = x.shape
        y = x.new_empty(B, T, H, h)
        call("turn", x.dtype, B * T, H, h, x.stride(1), T, x, weight, eps, cos, sin, y)
        ctx.save_for_backward(x if weight is not None else None, weight, cos, sin)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, weight, cos, sin = ctx.saved_tensors
        g = rows_apart(g)
        B, T, H, h = g.shape
        gw = None if weight is None else torch.empty_like(weight)
        # written where it is read: between attention and here nobody else holds this gradient
        call(
            "turn_backward",
            g.dtype,
            B * T,
            H,
            h,
            0 if x is None else x.stride(1),
            g.stride(1),
            T,
            x,
            weight,
            ctx.eps,
            cos,
            sin,
            g,
            g,
            gw,
        )
        return g, gw, None, None, None


class Attend(Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        q, k, v = map(rows_apart, (q, k, v))
        (B, T, H, h), K = q.shape, k.size(2)
        ctx.heads = HeadsArguments(B, T, H, K, h, q.stride(1), k.stride(1), v.stride(1), scale)
        y, lse = q.new_empty(B, T, H * h), q.new_empty(B, H, T, dtype=torch.float32)
        call("attend", q.dtype, ctx.heads, q, k, v, y, lse)
        ctx.save_for_backward(q, k, v, y, lse)
        return y

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Any, ...]:
        q, k, v, y, lse = ctx.saved_tensors
        a = ctx.heads
        sizes = (a.H * a.h, a.K * a.h, a.K * a.h)
        g = q.new_empty(a.B, a.T, sum(sizes))
        gq, gk, gv = g.split(sizes, dim=2)
        call(
            "attend_backward", q.dtype, a, q, k, v, y, lse, gy.contiguous(), gq, gk, gv, sum(sizes)
        )
        return *(part.view(a.B, a.T, -1, a.h) for part in (gq, gk, gv)), None


class Gelu(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        call("gelu", x.dtype, x.numel(), x, y)
        ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gx = torch.empty_like(x)
        call("gelu_backward", x.dtype, x.numel(), x, g.contiguous(), gx)
        return gx


class Swiglu(Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = rows_apart(gate), rows_apart(up)
        if gate.stride() != up.stride():
            gate, up = gate.contiguous(), up.contiguous()
        y = gate.new_empty(gate.shape)
        n = gate.size(-1)
        call("swiglu", gate.dtype, gate.numel() // n, n, gate.stride(-2), gate, up, y)
        ctx.save_for_backward(gate, up)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        n = g.size(-1)
        ggate, gup = g.new_empty(*g.shape[:-1], 2 * n).split(n, dim=-1)
        call(
            "swiglu_backward",
            g.dtype,
            g.numel() // n,
            n,
            gate.stride(-2),
            2 * n,
            gate,
            up,
            g.contiguous(),
            ggate,
            gup,
        )
        return ggate, gup


class CrossEntropy(Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, z_loss: float) -> Tensor:
        logits = logits.contiguous()
        V = logits.size(-1)
        check_tokens(targets, V)
        g = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        loss = torch.empty((), dtype=torch.float32)
        call(
            "cross_entropy",
            logits.dtype,
            logits.numel() // V,
            V,
            logits,
            targets.contiguous(),
            z_loss,
            loss,
            g,
        )
        ctx.save_for_backward(g)  # which goes once it is used; an attribute stays with the loss
        return loss

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        (saved,) = ctx.saved_tensors
        return saved if g == 1 else saved * g, None, None


# -- the model's view -----------------------------------------------------------------------------
class FusedOps(Ops):
    """`Ops` through the kernels; in autocast's type, as those."""

    name = "fused"

    def __init__(self) -> None:
        self.casts: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        self.updates = 0  # torch's fused AdamW leaves no trace in a parameter's own version

    def weights_changed(self) -> None:
        self.updates += 1

    def dtype(self) -> torch.dtype:
        """Of the products: autocast's, or float32."""
        enabled = torch.is_autocast_enabled("cpu")
        return torch.get_autocast_dtype("cpu") if enabled else torch.float32

    def cast(self, parameters: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        """Parameters stacked along their first axis in `dtype`, made once per update of them."""
        if len(parameters) == 1 and parameters[0].dtype == dtype:
            return parameters[0].detach()
        key = (dtype, *map(id, parameters))
        version = (self.updates, *(p._version for p in parameters))
        held = self.casts.get(key)
        if held is None or held[0] != version:
            made = parameters[0].new_empty(
                sum(map(len, parameters)), *parameters[0].shape[1:], dtype=dtype
            )
            sizes = [len(p) for p in parameters]
            torch._foreach_copy_(list(made.split(sizes)), [p.detach() for p in parameters])
            held = self.casts[key] = (version, made, parameters)  # whose ids stay theirs
        return held[1]

    def embed(
        self, idx: Tensor, tokens: Tensor, positions: Tensor | None, multiplier: float
    ) -> Tensor:
        return Embed.apply(idx, tokens, positions, multiplier)

    def join(
        self, x: Tensor, branch: Tensor | None, multiplier: float, norm: Norm
    ) -> tuple[Tensor, Tensor]:
        return Join.apply(x, branch, norm.weight, norm.bias, norm, multiplier, self.dtype())

    def linear(self, x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
        dtype = self.dtype()
        weights = tuple(layer.weight for layer in layers)
        biases = tuple(layer.bias for layer in layers if getattr(layer, "bias", None) is not None)
        sizes = tuple(w.size(0) for w in weights)
        with torch.autocast("cpu", enabled=False):
            return Linear.apply(
                x,
                self.cast(weights, dtype),
                self.cast(biases, dtype) if biases else None,
                sizes,
                *weights,
                *biases,
            )

    def turn(self, x: Tensor, norm: Norm | None, rotary: Rotary | None) -> Tensor:
        if norm is None and rotary is None:
            return x
        weight, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
        cos, sin = rotary or (None, None)
        return Turn.apply(x, weight, eps, cos, sin)

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float = 0.0
    ) -> Tensor:
        if dropout or q.size(1) != k.size(1):
            return super().attention(q, k, v, scale, dropout)
        return Attend.apply(q, k, v, scale)

    def gelu(self, x: Tensor) -> Tensor:
        return Gelu.apply(x)

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return Swiglu.apply(gate, up)

    def cross_entropy(self, logits: Tensor, targets: Tensor, z_loss: float) -> Tensor:
        return CrossEntropy.apply(logits, targets, z_loss)

    def narrow(self, weight: Tensor) -> Tensor:
        return self.cast((weight,), self.dtype())

    def loss_and_gradient(
        self, logits: Tensor, targets: Tensor, z_loss: float
    ) -> tuple[Tensor, Tensor, float]:
        (n, V), g = logits.shape, torch.empty_like(logits)
        check_tokens(targets, V)
        loss = torch.empty((), dtype=torch.float32)
        call("cross_entropy", logits.dtype, n, V, logits, targets, z_loss, loss, g)
        return loss * n, g, n  # the kernel's are of the mean
