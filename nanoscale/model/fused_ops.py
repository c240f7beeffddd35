"""`Ops` on a CPU in few passes over memory, through the kernels.

Between matrix products a small model's step is mostly overhead: dozens of short operations, each
with its own pass, casts and copies. Here each part is one pass forward and one backward, weights
are cast once per update, and projections of the same input are one product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.optim.optimizer import register_optimizer_step_post_hook

from nanoscale.model.kernels import call
from nanoscale.model.masks import Dropped, compensation, threshold
from nanoscale.model.ops import (
    Gradients,
    Linear,
    Norm,
    Ops,
    Rotary,
    apply,
    apply_many,
    bias_of,
    check_tokens,
    product_dtype,
)


def side_by_side(parts: tuple[Tensor, ...]) -> Tensor:
    """The parts (..., n_i) as one matrix (rows, sum n_i): as they lie, if they lie so."""
    parts = tuple(part.flatten(0, -2) for part in parts)
    first = parts[0]
    if len(parts) == 1:
        return first
    width = sum(part.size(1) for part in parts)
    end = first.data_ptr()
    for part in parts:
        if part.data_ptr() != end or part.stride() != (width, 1):
            return torch.cat(parts, dim=1)
        end += part.size(1) * part.element_size()
    return first.as_strided((len(first), width), (width, 1))


def rows_apart(x: Tensor) -> Tensor:
    """x (B, T, ..., n), its tokens evenly apart and each in one piece; copied only if it is not."""
    evenly = x[0, 0].is_contiguous() and x.stride(0) == x.size(1) * x.stride(1)
    return x if evenly else x.contiguous()


# -- the parts, each with its gradient ------------------------------------------------------------
class Embed(Function):
    @staticmethod
    def forward(
        ctx: Any, idx: Tensor, tokens: Tensor, positions: Tensor | None, multiplier: float
    ) -> Tensor:
        idx = idx.contiguous()  # (B, T)
        d = tokens.size(1)
        x = tokens.new_empty(*idx.shape, d)
        sizes = idx.numel(), d, idx.size(1)
        call("embed", torch.float32, *sizes, idx, tokens, positions, multiplier, x)
        ctx.idx = idx
        ctx.tables = tokens, positions
        ctx.sizes = sizes
        ctx.multiplier = multiplier
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Gradients:
        tokens, positions = ctx.tables
        gt = torch.zeros_like(tokens)
        gp = None if positions is None else torch.zeros_like(positions)
        g = g.contiguous()
        call("embed_backward", torch.float32, *ctx.sizes, ctx.idx, g, ctx.multiplier, gt, gp)
        return None, gt, gp, None


class AddNorm(Function):
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
        d = x.size(-1)
        rows = x.numel() // d
        total = x if branch is None else torch.empty_like(x)
        y = torch.empty_like(x, dtype=dtype)
        stats = x.new_empty(rows, 2)  # mean and 1 / standard deviation
        call(
            "add_norm",
            dtype,
            rows,
            d,
            x,
            branch,
            multiplier,
            weight,
            bias,
            norm.eps,
            norm.rms,
            total,
            y,
            stats,
        )
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(total, weight, bias, stats)
        ctx.norm = norm
        ctx.multiplier = multiplier
        ctx.dtype = dtype
        ctx.has_branch = branch is not None
        return total, y

    @staticmethod
    def backward(ctx: Any, gs: Tensor | None, gy: Tensor) -> Gradients:
        x, weight, bias, stats = ctx.saved_tensors
        gx = torch.empty_like(x)
        gbranch = torch.empty_like(x, dtype=ctx.dtype) if ctx.has_branch else None
        gw = torch.empty_like(weight)
        gb = None if bias is None else torch.empty_like(bias)
        call(
            "add_norm_backward",
            ctx.dtype,
            stats.size(0),
            x.size(-1),
            gy.contiguous(),
            None if gs is None else gs.contiguous(),
            x,
            ctx.multiplier,
            weight,
            ctx.norm.rms,
            stats,
            gx,
            gbranch,
            gw,
            gb,
        )
        return gx, gbranch, gw, gb, None, None, None


class Project(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        sizes: list[int],
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        """x (..., fan_in) times weights stacked; `parameters` are what takes the gradients."""
        flat = x.flatten(0, -2)  # (rows, fan_in)
        y = flat @ weight.t() if bias is None else torch.addmm(bias, flat, weight.t())
        ctx.save_for_backward(flat, weight)
        ctx.shape = x.shape
        ctx.sizes = sizes
        ctx.has_bias = bias is not None
        return tuple(part.view(*x.shape[:-1], -1) for part in torch.split(y, sizes, dim=1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Gradients:
        x, weight = ctx.saved_tensors
        g = side_by_side(grads)  # (rows, sum of fan_outs)
        gx = None
        if ctx.needs_input_grad[0]:
            gx = (g @ weight).view(ctx.shape)
        gw = (g.t() @ x).float()
        gb: tuple[Tensor, ...] = ()
        if ctx.has_bias:
            gb = torch.split(g.sum(0, dtype=torch.float32), ctx.sizes)
        return gx, None, None, None, *torch.split(gw, ctx.sizes), *gb


class NormRope(Function):
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
        call("norm_rope", x.dtype, B * T, H, h, x.stride(1), T, x, weight, eps, cos, sin, y)
        ctx.save_for_backward(None if weight is None else x, weight, cos, sin)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Gradients:
        x, weight, cos, sin = ctx.saved_tensors
        g = rows_apart(g)
        B, T, H, h = g.shape
        stride = 0  # of what was normed, if it was
        gw = None
        if weight is not None:
            stride = x.stride(1)
            gw = torch.empty_like(weight)
        # written where it is read: between attention and here nobody else holds this gradient
        call(
            "norm_rope_backward",
            g.dtype,
            B * T,
            H,
            h,
            stride,
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


def rule_of(dropped: Dropped | None) -> tuple[Tensor | None, int, float]:
    """What a kernel is told of dropout: keys (B,) or null, a threshold and a factor."""
    if dropped is None:
        return None, 0, 1.0
    probability, keys = dropped
    return keys.contiguous(), threshold(probability), compensation(probability)


class Drop(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: Dropped) -> Tensor:
        ctx.rule = rule_of(dropped)
        return dropped_of(x, ctx.rule)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Gradients:
        return dropped_of(g, ctx.rule), None


def dropped_of(x: Tensor, rule: tuple[Tensor | None, int, float]) -> Tensor:
    """x (B, T, d) without what is dropped of it."""
    x = x.contiguous()
    y = torch.empty_like(x)
    B, T, d = x.shape
    call("dropout", x.dtype, B * T, T, d, *rule, x, y)
    return y


class Attend(Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, dropped: Dropped | None
    ) -> Tensor:
        q, k, v = map(rows_apart, (q, k, v))
        B, T, H, h = q.shape
        strides = q.stride(1), k.stride(1), v.stride(1)
        sizes = B, T, H, k.size(2), h, *strides
        y = q.new_empty(B, T, H * h)
        lse = q.new_empty(B, H, T, dtype=torch.float32)  # of each query's scores
        ctx.rule = rule_of(dropped)
        call("attend", q.dtype, *sizes, scale, *ctx.rule, q, k, v, y, lse)
        ctx.save_for_backward(q, k, v, y, lse)
        ctx.sizes = sizes
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> Gradients:
        B, T, H, K, h = ctx.sizes[:5]
        heads = H + 2 * K
        g = gy.new_empty(B, T, heads, h)  # of q, k and v side by side
        parts = torch.split(g, [H, K, K], dim=2)
        sizes = *ctx.sizes, ctx.scale, *ctx.rule
        inputs = *ctx.saved_tensors, gy.contiguous()
        call("attend_backward", gy.dtype, *sizes, *inputs, *parts, heads * h)
        return *parts, None, None


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
        g = g.contiguous()
        gx = torch.empty_like(x)
        call("gelu_backward", x.dtype, x.numel(), x, g, gx)
        return gx


class Swiglu(Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = rows_apart(gate), rows_apart(up)
        if gate.stride() != up.stride():
            gate = gate.contiguous()
            up = up.contiguous()
        n = gate.size(-1)
        rows = gate.numel() // n
        y = gate.new_empty(gate.shape)
        call("swiglu", gate.dtype, rows, n, gate.stride(-2), gate, up, y)
        ctx.save_for_backward(gate, up)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        g = g.contiguous()
        n = g.size(-1)
        rows = g.numel() // n
        both = g.new_empty(*g.shape[:-1], 2 * n)
        ggate, gup = torch.split(both, n, dim=-1)
        strides = gate.stride(-2), 2 * n
        call("swiglu_backward", g.dtype, rows, n, *strides, gate, up, g, ggate, gup)
        return ggate, gup


class CrossEntropy(Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, z_loss: float) -> Tensor:
        logits = logits.contiguous()
        g = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        ctx.save_for_backward(g)  # which goes once it is used; an attribute stays with the loss
        return mean_loss(logits, targets.contiguous(), z_loss, g)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Gradients:
        (saved,) = ctx.saved_tensors
        return saved if g == 1 else saved * g, None, None


def mean_loss(logits: Tensor, targets: Tensor, z_loss: float, g: Tensor | None) -> Tensor:
    """The mean loss of logits (..., V); its gradient goes into `g`."""
    V = logits.size(-1)
    rows = logits.numel() // V
    loss = torch.empty((), dtype=torch.float32)
    call("cross_entropy", logits.dtype, rows, V, logits, targets, z_loss, loss, g)
    return loss


# -- the model's view -----------------------------------------------------------------------------
steps = 0  # of all optimizers of this process; torch's fused ones leave no trace in a version


def count_step(*_: object) -> None:
    """Tell that weights have changed, so that nothing made of them is kept."""
    global steps
    steps += 1


register_optimizer_step_post_hook(count_step)


class FusedOps(Ops):
    """`Ops` through the kernels; in autocast's type, as those."""

    name = "fused"

    def __init__(self) -> None:
        # type and parameters, which a tensor stands for by its identity -> version, stacked in it
        self.casts: dict[tuple[object, ...], tuple[tuple[int, ...], Tensor]] = {}

    def cast(self, parameters: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
        """Parameters stacked along their first axis in `dtype`, made once per update of them."""
        first = parameters[0]
        if len(parameters) == 1 and first.dtype == dtype:
            return first.detach()

        key = (dtype, *parameters)
        version = (steps, *(p._version for p in parameters))
        kept = self.casts.get(key)
        if kept is not None and kept[0] == version:
            return kept[1]

        sizes = [len(p) for p in parameters]
        value = first.new_empty(sum(sizes), *first.shape[1:], dtype=dtype)
        sources = [p.detach() for p in parameters]
        torch._foreach_copy_(list(torch.split(value, sizes)), sources)
        self.casts[key] = version, value
        return value

    def embed(
        self, idx: Tensor, tokens: Tensor, positions: Tensor | None, multiplier: float
    ) -> Tensor:
        check_tokens(idx, tokens.size(0))
        return apply(Embed, idx, tokens, positions, multiplier)

    def add_norm(
        self, x: Tensor, branch: Tensor | None, multiplier: float, norm: Norm
    ) -> tuple[Tensor, Tensor]:
        dtype = product_dtype("cpu")
        total, y = apply_many(AddNorm, x, branch, norm.weight, norm.bias, norm, multiplier, dtype)
        return total, y

    def linear(self, x: Tensor, *layers: Linear) -> tuple[Tensor, ...]:
        dtype = product_dtype("cpu")
        weights = tuple(layer.weight for layer in layers)
        biases = tuple(bias for bias in map(bias_of, layers) if bias is not None)
        weight = self.cast(weights, dtype)
        bias = self.cast(biases, dtype) if biases else None
        sizes = [len(w) for w in weights]
        with torch.autocast("cpu", enabled=False):
            return apply_many(Project, x, weight, bias, sizes, *weights, *biases)

    def norm_rope(self, x: Tensor, norm: Norm | None, rotary: Rotary | None) -> Tensor:
        if norm is None and rotary is None:
            return x
        cos, sin = rotary or (None, None)
        weight, eps = (norm.weight, norm.eps) if norm else (None, 0.0)
        return apply(NormRope, x, weight, eps, cos, sin)

    def dropout(self, x: Tensor, dropped: Dropped | None) -> Tensor:
        return x if dropped is None else apply(Drop, x, dropped)

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, dropped: Dropped | None = None
    ) -> Tensor:
        if q.size(1) != k.size(1):
            return super().attention(q, k, v, scale, dropped)
        return apply(Attend, q, k, v, scale, dropped)

    def gelu(self, x: Tensor) -> Tensor:
        return apply(Gelu, x)

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return apply(Swiglu, gate, up)

    def cross_entropy(self, logits: Tensor, targets: Tensor, z_loss: float) -> Tensor:
        check_tokens(targets, logits.size(-1))
        return apply(CrossEntropy, logits, targets, z_loss)

    def narrow(self, weight: Tensor) -> Tensor:
        return self.cast((weight,), product_dtype("cpu"))

    def loss_and_gradient(
        self, logits: Tensor, targets: Tensor, z_loss: float
    ) -> tuple[Tensor, Tensor, float]:
        n = len(logits)
        g = torch.empty_like(logits)
        loss = mean_loss(logits, targets, z_loss, g)
        return loss * n, g, n  # the kernel's are of the mean
