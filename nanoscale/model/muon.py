"""Muon: momentum, then the nearest orthogonal matrix, as the update of a hidden matrix.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon); shape factors as in Bernstein & Newhouse
2024 (spectral), torch.optim.Muon ("original") and Liu et al. 2025 (match_rms).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from nanoscale.model.distributed import Ranks, local
from nanoscale.spec.parametrization import shape_factor

# Quintic whose iteration sends singular values from (0, 1] to about [0.7, 1.2] in 5 steps.
NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NS_EPS = 1e-7


def orthogonalize(G: Tensor, steps: int = 5, dtype: torch.dtype | None = None) -> Tensor:
    """U V^T of G = U S V^T approximately, by Newton-Schulz; G is (..., fan_out, fan_in).

    Singular values end in about [0.7, 1.2]; an all-zero matrix stays zero. The products are in
    bfloat16 on CUDA, in float32 elsewhere, unless `dtype` says so; returned in G's dtype.
    """
    a, b, c = NS_COEFFICIENTS
    X = G.to(dtype or (torch.bfloat16 if G.is_cuda else torch.float32))
    X = X.reshape(-1, *G.shape[-2:])
    tall = X.size(-2) > X.size(-1)
    if tall:  # the products are of the smaller side squared
        X = X.mT

    X = X / X.norm(dim=(-2, -1), keepdim=True).clamp(min=NS_EPS)
    for _ in range(steps):
        A = torch.bmm(X, X.mT)
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)  # b A + c A^2
        X = torch.baddbmm(X, B, X, beta=a)  # a X + B X

    if tall:
        X = X.mT
    return X.reshape(G.shape).to(G.dtype)


# -- the same, shared out over ranks ------------------------------------------------------------
def share_of(count: int, ranks: Ranks) -> int:
    """How many of `count` matrices a rank orthogonalizes; the last ranks may have fewer."""
    return -(-count // ranks.world)


def orthogonalize_dealt(
    matrices: list[Tensor], steps: int, ranks: Ranks, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """`orthogonalize` of equal shapes that every rank holds: each does its share, all get all."""
    share = share_of(len(matrices), ranks)
    mine = matrices[ranks.rank * share : (ranks.rank + 1) * share]
    done = matrices[0].new_zeros(share, *matrices[0].shape)
    if mine:
        done[: len(mine)] = orthogonalize(torch.stack(mine), steps, dtype)

    parts = [torch.empty_like(done) for _ in range(ranks.world)]
    dist.all_gather(parts, done)
    return list(torch.cat(parts)[: len(matrices)])


def orthogonalize_sharded(
    rows: list[Tensor],
    fan_out: int,
    steps: int,
    ranks: Ranks,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """`orthogonalize` of equal shapes of which every rank holds some rows, in FSDP2's partition.

    Each rank is sent all rows of its share, and sends back to each rank that one's of the result.
    """
    world = ranks.world
    share = share_of(len(rows), ranks)
    height = -(-fan_out // world)  # of a rank's part; the last ones may be short or empty
    parts = rows[0].new_zeros(world, share, height, rows[0].size(-1))  # by owner
    for i, part in enumerate(rows):
        owner, place = divmod(i, share)
        parts[owner, place, : len(part)] = part

    owned = torch.empty_like(parts)  # by source
    dist.all_to_all_single(owned, parts)
    full = owned.transpose(0, 1).flatten(1, 2)  # (share, fan_out and padding, fan_in)
    done = orthogonalize(full[:, :fan_out], steps, dtype)
    done = F.pad(done, (0, 0, 0, world * height - fan_out))
    by_rank = done.view(share, world, height, -1).transpose(0, 1)
    dist.all_to_all_single(parts, by_rank.contiguous())
    return [parts[i // share, i % share, : len(part)] for i, part in enumerate(rows)]


# -- the optimizer ------------------------------------------------------------------------------
class Muon(torch.optim.Optimizer):
    """Muon over groups of matrices (fan_out, fan_in); equal shapes are orthogonalised in one batch.

    Over several ranks, each orthogonalises its share of a batch.

    Each step: buf <- momentum buf + (1 - momentum) g; u = g + momentum (buf - g) (Nesterov);
    W <- (1 - lr weight_decay) W - lr shape_factor orthogonalize(u).

    >>> import torch
    >>> import nanoscale as ns
    >>> W = torch.nn.Parameter(torch.eye(2))
    >>> optimizer = ns.Muon([W], lr=0.5, weight_decay=0.0)
    >>> W.grad = torch.tensor([[0.0, 3.0], [1.0, 0.0]])
    >>> optimizer.step()
    >>> (torch.eye(2) - W.detach()).sign()  # the gradient's directions, all of about one size
    tensor([[0., 1.],
            [1., 0.]])
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        ns_steps: int = 5,
        scale: str = "spectral",
        ranks: Ranks | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "ns_steps": ns_steps,
            "scale": scale,
        }
        super().__init__(params, defaults)
        self.ranks = ranks or Ranks()
        self.dtype = dtype

    @torch.no_grad()
    def step(  # type: ignore[override]  # torch's two overloads in one
        self, closure: Callable[[], Tensor] | None = None
    ) -> Tensor | None:
        """One update of every matrix that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        self._update_all()
        return loss

    def _update_all(self) -> None:
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for params in by_shape.values():
                self._update(params, group)

    def _update(self, params: list[Tensor], group: Mapping[str, Any]) -> None:
        """Update matrices of equal shape, whole or this rank's rows of each."""
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        weights = [local(p) for p in params]
        grads = [local(p.grad) for p in params if p.grad is not None]
        buffers = [local(self.state[p]["momentum_buffer"]) for p in params]
        momentum = group["momentum"]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        nesterov = torch._foreach_lerp(grads, buffers, momentum)

        fan_out, fan_in = params[0].shape
        updates = self._orthogonal(list(nesterov), fan_out, group["ns_steps"])
        lr = group["lr"]
        factor = shape_factor(group["scale"], fan_out, fan_in)
        torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
        torch._foreach_add_(weights, updates, alpha=-lr * factor)

    def _orthogonal(self, held: list[Tensor], fan_out: int, steps: int) -> list[Tensor]:
        """`orthogonalize` of each matrix, of which this rank holds all or some rows."""
        if self.ranks.world == 1:
            return list(orthogonalize(torch.stack(held), steps, self.dtype))
        if self.ranks.sharded:
            return orthogonalize_sharded(held, fan_out, steps, self.ranks, self.dtype)
        return orthogonalize_dealt(held, steps, self.ranks, self.dtype)
