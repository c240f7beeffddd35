"""Roles to optimizer groups: a partition of the parameters, each group with its own base LR."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nanoscale.model.adamw import AdamW, clip_grad_norm
from nanoscale.model.distributed import Ranks, held_as
from nanoscale.model.muon import Muon
from nanoscale.spec.architecture import tensors
from nanoscale.spec.config import ResolvedConfig
from nanoscale.spec.parametrization import betas, rule


class Optimizers:
    """AdamW and, when asked for, Muon, behind one optimizer's verbs.

    Under `numerics` AdamW goes through our kernels or not, and Muon's products are in bfloat16 if
    the model's are; states are float32.

    The schedule is a multiplier: `set_lr(m)` gives each group m times its own base LR, so there is
    one writer of every learning rate.
    """

    def __init__(
        self,
        model: nn.Module,
        config: ResolvedConfig,
        ranks: Ranks | None = None,
        numerics: Mapping[str, Any] | None = None,
    ) -> None:
        self.named, numerics = dict(model.named_parameters()), numerics or {}
        self.in_kernel = numerics.get("kernels") == "fused"
        groups = parameter_groups(self.named, config)
        self.parts: list[torch.optim.Optimizer] = [
            AdamW(
                groups["adamw"],
                betas=betas(config),
                in_kernel=self.in_kernel,
                fused=next(iter(self.named.values())).device.type in ("cpu", "cuda"),
            )
        ]
        if groups["muon"]:
            narrow = torch.bfloat16 if numerics.get("dtype") == "bfloat16" else None
            self.parts.append(
                Muon(
                    groups["muon"],
                    momentum=config.muon_momentum,
                    ns_steps=config.muon_ns_steps,
                    scale=config.muon_scale,
                    ranks=ranks,
                    dtype=narrow,
                )
            )
        self.groups = [group for part in self.parts for group in part.param_groups]

    def set_lr(self, multiplier: float) -> None:
        """Give each group `multiplier` times its base LR."""
        for group in self.groups:
            group["lr"] = group["base_lr"] * multiplier

    def clip(self, most: float) -> Tensor:
        """Scale the gradients down to the joint norm `most` (0: never); returns it as it was."""
        clip = clip_grad_norm if self.in_kernel else torch.nn.utils.clip_grad_norm_
        return clip(self.named.values(), most or math.inf)

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Parameter name -> its optimizer state by name, held as the parameter is."""
        by_parameter = {p: state for part in self.parts for p, state in part.state.items()}
        return {name: dict(by_parameter[p]) for name, p in self.named.items() if p in by_parameter}

    def load_state(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Put whole tensors back; each goes where its parameter is, and is held as that."""
        owner = {p: part for part in self.parts for g in part.param_groups for p in g["params"]}
        for name, values in state.items():
            p = self.named[name]
            on_mps = p.device.type == "mps"  # unfused AdamW counts its steps on the CPU
            owner[p].state[p] = {
                key: held_as(v.to("cpu" if key == "step" and on_mps else p.device, copy=True), p)
                for key, v in values.items()
            }


def parameter_groups(
    named: dict[str, Tensor], config: ResolvedConfig
) -> dict[str, list[dict[str, Any]]]:
    """Optimizer -> groups of equal role, LR, weight decay and eps; each parameter is in one."""
    groups: dict[str, dict[tuple, dict[str, Any]]] = {"adamw": {}, "muon": {}}
    for spec in tensors(config):
        r = rule(spec, config)
        settings = {"base_lr": r.lr, "lr": r.lr, "weight_decay": r.weight_decay}
        settings |= {"eps": r.eps} if r.optimizer == "adamw" else {}
        key = (spec.role, *settings.values())
        group = groups[r.optimizer].setdefault(
            key, {"params": [], "names": [], "role": spec.role, **settings}
        )
        group["params"].append(named[spec.name])
        group["names"].append(spec.name)
    return {kind: list(by_key.values()) for kind, by_key in groups.items()}
