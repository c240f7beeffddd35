"""AdamW, Muon and clipping in our kernels, states and meaning unchanged: one call for all tensors.

For a small model the bookkeeping of many little tensors takes longer than their arithmetic; a
kernel takes a list of addresses instead.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ctypes import c_float, c_int64, c_void_p
from typing import Any, TypeVar

import torch
from torch import Tensor

from nanoscale.model import kernels
from nanoscale.model.directions import polar_quintics, quintics
from nanoscale.model.muon import Muon
from nanoscale.spec.muon_rules import MUON_RULES
from nanoscale.spec.parametrization import shape_factor

AnyUpdate = TypeVar("AnyUpdate", bound=ctypes.Structure)


class TensorUpdate(ctypes.Structure):
    """One tensor of the update, as `kernels.cpp` reads it."""

    _fields_ = (
        ("p", c_void_p),
        ("g", c_void_p),
        ("m", c_void_p),
        ("v", c_void_p),
        ("step", c_void_p),
        ("n", c_int64),
        ("lr", c_float),
        ("decay", c_float),
        ("eps", c_float),
    )


class MatrixUpdate(ctypes.Structure):
    """One matrix of Muon's update, as `muon.h` reads it."""

    _fields_ = (
        ("w", c_void_p),
        ("g", c_void_p),
        ("m", c_void_p),
        ("fan_out", c_int64),
        ("fan_in", c_int64),
        ("lr", c_float),
        ("decay", c_float),
        ("momentum", c_float),
        ("factor", c_float),
        ("steps", c_int64),
        ("sphere", c_int64),
        ("quintics", c_void_p),
    )


def gradient(p: Tensor) -> Tensor:
    """The gradient of a parameter that has one, in one piece of memory."""
    assert p.grad is not None
    if not p.grad.is_contiguous():
        p.grad = p.grad.contiguous()
    return p.grad


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` for plain float32 tensors on a CPU, with one pair of betas.

    Loshchilov & Hutter 2019 (arXiv 1711.05101), algorithm 2.
    """

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure: gradients are there already
        """One update of every parameter that has a gradient."""
        updates = [
            self.record(p, group, gradient(p).data_ptr()) for p, group in with_gradients(self)
        ]
        records = array_of(TensorUpdate, updates)
        kernels.call("adamw", torch.float32, len(updates), records, *self.betas)

    @property
    def betas(self) -> tuple[float, float]:
        ((beta1, beta2),) = {group["betas"] for group in self.param_groups}
        return beta1, beta2

    def record(self, p: Tensor, settings: Mapping[str, float], g: int) -> TensorUpdate:
        """What the kernel is told of a parameter whose gradient lies at `g`."""
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = torch.zeros_like(p)
        return TensorUpdate(
            p.data_ptr(),
            g,
            state["exp_avg"].data_ptr(),
            state["exp_avg_sq"].data_ptr(),
            state["step"].data_ptr(),
            p.numel(),
            settings["lr"],
            settings["weight_decay"],
            settings["eps"],
        )


@functools.cache
def coefficients(rule: str, steps: int) -> ctypes.Array[c_float]:
    """A rule's polynomials one after the other, as C has them; kept, as records point to them."""
    used = polar_quintics() if rule == "polar" else quintics(steps)
    return (c_float * (3 * len(used)))(*itertools.chain(*used))


class FusedMuon(Muon):
    """`Muon` for plain float32 matrices on a CPU, under a rule of polynomials alone."""

    RULES = ("muon", "polar", "hyperball")

    def _update_all(self) -> None:
        updates = [
            self.record(p, group, gradient(p).data_ptr()) for p, group in with_gradients(self)
        ]
        kernels.call("muon", torch.float32, len(updates), array_of(MatrixUpdate, updates))

    def record(self, p: Tensor, settings: Mapping[str, Any], g: int) -> MatrixUpdate:
        """What the kernel is told of a matrix whose gradient lies at `g`."""
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        fan_out, fan_in = p.shape
        rule = settings["rule"]
        abc = coefficients(rule, settings["ns_steps"])
        return MatrixUpdate(
            p.data_ptr(),
            g,
            state["momentum_buffer"].data_ptr(),
            fan_out,
            fan_in,
            settings["lr"],
            settings["weight_decay"],
            settings["momentum"],
            shape_factor(settings["scale"], fan_out, fan_in),
            len(abc) // 3,
            MUON_RULES[rule].of_weights,
            ctypes.addressof(abc),
        )


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[Tensor], most: float) -> Tensor:
    """`torch.nn.utils.clip_grad_norm_` through the kernel: plain float32 gradients on a CPU."""
    updates = []
    for p in parameters:
        if p.grad is not None:
            g = gradient(p)
            update = TensorUpdate(g=g.data_ptr(), n=g.numel())
            updates.append(update)
    norm = torch.empty(())
    kernels.call("clip", torch.float32, len(updates), array_of(TensorUpdate, updates), most, norm)
    return norm


def with_gradients(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Each parameter that has a gradient, with its group's settings."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None:
                yield p, group


def array_of(record: type[AnyUpdate], updates: Sequence[AnyUpdate]) -> ctypes.Array[AnyUpdate]:
    """The updates one after the other in memory, as C has an array."""
    return (record * len(updates))(*updates)
