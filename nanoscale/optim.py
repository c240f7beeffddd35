"""Roles to optimizer groups: a partition of the parameters, each group with its own base LR."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nanoscale.architecture import tensors
from nanoscale.config import ExperimentConfig
from nanoscale.muon import Muon
from nanoscale.parametrization import rule


class Optimizers:
    """AdamW and, when asked for, Muon, behind one optimizer's verbs.

    The schedule is a multiplier: `set_lr(m)` gives each group m times its own base LR, so there is
    one writer of every learning rate.
    """

    def __init__(self, model: nn.Module, config: ExperimentConfig) -> None:
        self.named = dict(model.named_parameters())
        groups = parameter_groups(self.named, config)
        self.parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(
            groups["adamw"], betas=(config.beta1, config.beta2),
            fused=next(iter(self.named.values())).device.type in ("cpu", "cuda"))]
        if groups["muon"]:
            self.parts.append(Muon(groups["muon"], momentum=config.muon_momentum,
                                   ns_steps=config.muon_ns_steps, scale=config.muon_scale))
        self.groups = [group for part in self.parts for group in part.param_groups]

    def set_lr(self, multiplier: float) -> None:
        """Give each group `multiplier` times its base LR."""
        for group in self.groups:
            group["lr"] = group["base_lr"] * multiplier

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Parameter name -> its optimizer state, plain tensors by name."""
        by_parameter = {p: state for part in self.parts for p, state in part.state.items()}
        return {name: dict(by_parameter[p]) for name, p in self.named.items() if p in by_parameter}

    def load_state(self, state: dict[str, dict[str, Tensor]]) -> None:
        """The inverse of `state`; every tensor goes to its parameter's device."""
        owner = {p: part for part in self.parts for g in part.param_groups for p in g["params"]}
        for name, values in state.items():
            p = self.named[name]
            on_mps = p.device.type == "mps"  # unfused AdamW counts its steps on the CPU
            owner[p].state[p] = {
                key: v.to("cpu" if key == "step" and on_mps else p.device, copy=True)
                for key, v in values.items()}


def parameter_groups(named: dict[str, Tensor],
                     config: ExperimentConfig) -> dict[str, list[dict[str, Any]]]:
    """Optimizer -> groups of equal role, LR, weight decay and eps; each parameter is in one."""
    groups: dict[str, dict[tuple, dict[str, Any]]] = {"adamw": {}, "muon": {}}
    for spec in tensors(config):
        r = rule(spec, config)
        settings = {"base_lr": r.lr, "lr": r.lr, "weight_decay": r.weight_decay}
        settings |= {"eps": r.eps} if r.optimizer == "adamw" else {}
        key = (spec.role, *settings.values())
        group = groups[r.optimizer].setdefault(
            key, {"params": [], "names": [], "role": spec.role, **settings})
        group["params"].append(named[spec.name])
        group["names"].append(spec.name)
    return {kind: list(by_key.values()) for kind, by_key in groups.items()}
