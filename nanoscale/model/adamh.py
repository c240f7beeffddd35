"""AdamH: Adam's direction on the sphere of a matrix's norm, for the head beside MuonH.

Hyperball optimization, arXiv 2606.16899.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from nanoscale.model.directions import NS_EPS
from nanoscale.model.distributed import Ranks, local

OF_A_GROUP = ("lr", "eps", "betas")


class AdamH(torch.optim.Optimizer):
    """W' = W - lr |W| a / |a| of Adam's direction a, then W = W' |W| / |W'|; |x| is Frobenius'.

    The state is AdamW's. Each group says its lr and eps; nothing decays.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        betas: tuple[float, float] = (0.9, 0.95),
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__(params, {"lr": 1e-3, "eps": 1e-8, "betas": betas})
        self.ranks = ranks or Ranks()

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure: gradients are there already
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, local(p.grad), **{key: group[key] for key in OF_A_GROUP})

    def _update(
        self, p: Tensor, g: Tensor, lr: float, eps: float, betas: tuple[float, float]
    ) -> None:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), device=p.device)
            state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = torch.zeros_like(p)
        state["step"] += 1
        step = state["step"]
        m, v = local(state["exp_avg"]), local(state["exp_avg_sq"])
        m.lerp_(g, 1 - betas[0])
        v.lerp_(g.square(), 1 - betas[1])

        unbiased = v / (1 - betas[1] ** step)
        direction = m / (1 - betas[0] ** step) / (unbiased.sqrt() + eps)
        W = local(p)
        held = self._norm(W)
        W.sub_(direction * (lr * held / self._norm(direction).clamp(min=NS_EPS)))
        W.mul_(held / self._norm(W).clamp(min=NS_EPS))

    def _norm(self, x: Tensor) -> Tensor:
        """Frobenius' norm of a matrix of which each rank holds all or some rows."""
        squares = x.square().sum()
        return (self.ranks.sum(squares) if self.ranks.sharded else squares).sqrt()
