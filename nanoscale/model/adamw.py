"""AdamW: torch's, its state and meaning unchanged, with one pass over all tensors on a CPU.

Loshchilov & Hutter 2019 (arXiv 1711.05101), algorithm 2. For a small model the bookkeeping of many
little tensors takes longer than their arithmetic; the kernel takes a list of addresses instead.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from ctypes import c_float, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from nanoscale.model import kernels


class Update(ctypes.Structure):
    """One tensor of the update, as `kernels.cpp` reads it."""

    _fields_ = [(name, c_void_p) for name in ("p", "g", "m", "v", "step")] + [
        ("n", c_int64),
        ("lr", c_float),
        ("decay", c_float),
        ("eps", c_float),
    ]


def gradient(p: Tensor) -> Tensor:
    """The parameter's gradient, whole in memory."""
    if not p.grad.is_contiguous():
        p.grad = p.grad.contiguous()
    return p.grad


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW`, through our kernel if `in_kernel`: plain float32 tensors on a CPU."""

    def __init__(self, params: Iterable[Any], *, in_kernel: bool, **settings: Any) -> None:
        super().__init__(params, **settings)
        self.in_kernel = in_kernel

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One update of every parameter that has a gradient."""
        if not self.in_kernel:
            return super().step(closure)
        assert closure is None, "the kernel takes the gradients that are there"
        updates, betas = [], set()
        for group in self.param_groups:
            betas.add(group["betas"])
            for p in group["params"]:
                if p.grad is not None:
                    updates.append(self._update(p, group))
        ((beta1, beta2),) = betas  # one pair for all groups
        kernels.call(
            "adamw", torch.float32, len(updates), (Update * len(updates))(*updates), beta1, beta2
        )
        return None

    def _update(self, p: Tensor, group: dict[str, Any]) -> Update:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        return Update(
            p.data_ptr(),
            gradient(p).data_ptr(),
            state["exp_avg"].data_ptr(),
            state["exp_avg_sq"].data_ptr(),
            state["step"].data_ptr(),
            p.numel(),
            group["lr"],
            group["weight_decay"],
            group["eps"],
        )


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[Tensor], most: float) -> Tensor:
    """`torch.nn.utils.clip_grad_norm_` through the kernel: plain float32 gradients on a CPU."""
    grads = [gradient(p) for p in parameters if p.grad is not None]
    updates = (Update * len(grads))(*(Update(g=g.data_ptr(), n=g.numel()) for g in grads))
    norm = torch.empty(())
    kernels.call("clip", torch.float32, len(grads), updates, most, norm)
    return norm
