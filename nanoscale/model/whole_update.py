"""A whole update in one call of the kernels: loss, gradients, clipping, AdamW and Muon.

For a small model what Python, dispatch and autograd cost is more than the arithmetic; here it is
written down once where everything lies, and each update says what is new: a batch and the rates.
"""

from __future__ import annotations

import ctypes
import math
from ctypes import c_double, c_float, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from nanoscale.model.fused_ops import count_step
from nanoscale.model.fused_optim import (
    AdamW,
    AnyUpdate,
    FusedMuon,
    MatrixUpdate,
    TensorUpdate,
    array_of,
)
from nanoscale.model.gpt import GPT
from nanoscale.model.kernels import call
from nanoscale.model.ops import product_dtype
from nanoscale.model.optim import Optimizers, ParameterGroup
from nanoscale.model.step_ops import Step, StepOps, site_keys


class WholeRecord(ctypes.Structure):
    """A model's update, as update.h reads it."""

    _fields_ = (
        ("model", c_void_p),
        ("batch", c_void_p),
        ("tensors", c_int64),
        ("clipped", c_void_p),
        ("stepped", c_int64),
        ("adamw", c_void_p),
        ("matrices", c_int64),
        ("muon", c_void_p),
        ("beta1", c_double),
        ("beta2", c_double),
        ("most", c_float),
        ("norm", c_float),
    )


class WholeUpdate:
    """The updates of one model, whose tensors and optimizers' states stay where they lie.

    No state may be loaded after it was made.
    """

    def __init__(self, step: Step, optimizers: Optimizers, grad_clip: float) -> None:
        self.step = step
        self.optimizers, self.loads = optimizers, optimizers.loads
        self.gradients = torch.empty(step.size)
        self.lies = dict(zip(step.parameters, step.places(self.gradients), strict=True))
        self.rated: list[tuple[Any, ParameterGroup]] = []  # a tensor's record, its group
        updates = [TensorUpdate(g=self.lies[p], n=p.numel()) for p in optimizers.named.values()]
        self.clipped = array_of(TensorUpdate, updates)
        self.record = WholeRecord(
            tensors=len(updates),
            clipped=ctypes.addressof(self.clipped),
            most=grad_clip or math.inf,
        )
        for part in optimizers.parts:
            if isinstance(part, AdamW):
                self.adamw = self.listed(TensorUpdate, part)
                self.record.stepped = len(self.adamw)
                self.record.adamw = ctypes.addressof(self.adamw)
                self.record.beta1, self.record.beta2 = part.betas
            if isinstance(part, FusedMuon):
                self.muon = self.listed(MatrixUpdate, part)
                self.record.matrices = len(self.muon)
                self.record.muon = ctypes.addressof(self.muon)

    def listed(self, record: type[AnyUpdate], part: AdamW | FusedMuon) -> ctypes.Array[AnyUpdate]:
        """What the kernel is told of a part's tensors."""
        updates: list[Any] = []
        groups = []
        for group in part.param_groups:
            for p in group["params"]:
                updates.append(part.record(p, group, self.lies[p]))
                groups.append(group)
        records = array_of(record, updates)  # copies, so the rates are written to these
        self.rated += zip(records, groups, strict=True)
        return records

    @torch.no_grad()
    def run(self, idx: Tensor, targets: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor]:
        """One update on idx, targets (B, T): the mean loss, and the gradients' norm unclipped.

        `masks` are the keys of the sequences' dropout masks, (B,).

        Raises:
            IndexError, ValueError: a token or a target is not in the vocabulary, or their shapes
                are no batch's; nothing was updated.
        """
        assert self.loads == self.optimizers.loads, "it has the addresses of states that are gone"
        for record, group in self.rated:
            record.lr = group["lr"]
        idx, targets = idx.contiguous(), targets.contiguous()
        keys = None if masks is None else site_keys(masks, self.step.config)
        loss = torch.empty(())
        batch = self.step.prepared(idx, targets, loss, self.gradients, keys)
        self.record.model, self.record.batch = self.step.addresses(batch)
        call("update", product_dtype("cpu"), ctypes.addressof(self.record))
        count_step()
        self.step.check(batch, idx, targets)
        return loss, torch.tensor(self.record.norm)


def whole_update(model: GPT, optimizers: Optimizers, grad_clip: float) -> WholeUpdate | None:
    """The model's updates in one call each, where all that they do is in the kernels."""
    if not isinstance(model.ops, StepOps) or not model.ops.trains:
        return None
    step = model.ops.step_of(model)
    known = all(isinstance(part, (AdamW, FusedMuon)) for part in optimizers.parts)
    return WholeUpdate(step, optimizers, grad_clip) if step and known else None
