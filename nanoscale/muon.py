"""Muon: momentum, then the nearest orthogonal matrix, as the update of a hidden matrix.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon); shape factors as in Bernstein & Newhouse
2024 (spectral), torch.optim.Muon ("original") and Liu et al. 2025 (match_rms).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from nanoscale.parametrization import shape_factor

# Quintic whose iteration sends singular values from (0, 1] to about [0.7, 1.2] in 5 steps.
NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NS_EPS = 1e-7


def orthogonalize(G: Tensor, steps: int = 5, dtype: torch.dtype | None = None) -> Tensor:
    """U V^T of G = U S V^T approximately, by Newton-Schulz; G is (..., fan_out, fan_in).

    Singular values end in about [0.7, 1.2]; an all-zero matrix stays zero. Computed in bfloat16 on
    CUDA, float32 elsewhere, unless `dtype` says so; returned in G's dtype.
    """
    a, b, c = NS_COEFFICIENTS
    X = G.to(dtype or (torch.bfloat16 if G.is_cuda else torch.float32))
    tall = X.size(-2) > X.size(-1)
    if tall:  # the products are of the smaller side squared
        X = X.mT
    X = X / X.norm(dim=(-2, -1), keepdim=True).clamp(min=NS_EPS)
    for _ in range(steps):
        A = X @ X.mT
        X = a * X + (b * A + c * A @ A) @ X
    return (X.mT if tall else X).to(G.dtype)


class Muon(torch.optim.Optimizer):
    """Muon over groups of matrices (fan_out, fan_in); equal shapes are orthogonalised in one batch.

    Each step: buf <- momentum buf + (1 - momentum) g; u = g + momentum (buf - g) (Nesterov);
    W <- (1 - lr weight_decay) W - lr shape_factor orthogonalize(u).
    """

    def __init__(self, params: Iterable[Any], lr: float = 0.02, momentum: float = 0.95,
                 weight_decay: float = 0.0, ns_steps: int = 5, scale: str = "spectral") -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay,
                                  "ns_steps": ns_steps, "scale": scale})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One update of every matrix that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for params in by_shape.values():
                self._update(params, group)
        return loss

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        grads = [p.grad for p in params]
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        momentum, lr = group["momentum"], group["lr"]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        nesterov = torch._foreach_lerp(grads, buffers, momentum)
        updates = orthogonalize(torch.stack(nesterov), group["ns_steps"]).unbind()
        factor = shape_factor(group["scale"], *params[0].shape)
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_add_(params, updates, alpha=-lr * factor)
