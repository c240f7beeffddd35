"""The optimizer step, and the groups that it steps: by role, each with its own base LR."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from nanoscale.model.adamh import AdamH
from nanoscale.model.distributed import Ranks, full, held_as, local
from nanoscale.model.fused_optim import AdamW, FusedMuon, clip_grad_norm
from nanoscale.model.muon import Muon
from nanoscale.spec.parametrization import Rules

OptimizerState = Mapping[str, Mapping[str, Tensor]]  # parameter name -> its state by name
ParameterGroup = dict[str, object]  # as torch.optim takes them


@dataclass(frozen=True)
class Momentum:
    """A parameter's average of gradients, and the state that it is in."""

    state: dict[str, Tensor]
    buffer: Tensor
    momentum: float  # what an update leaves of it


class Optimizers:
    """AdamW and, when asked for, Muon, behind one optimizer's verbs; their states are float32.

    The schedule is a multiplier: `set_lr(m)` gives each group m times its own base LR, so there is
    one writer of every learning rate. `in_kernel`: AdamW and clipping go through our kernels.
    `muon_dtype` is that of Muon's products.
    """

    def __init__(
        self,
        model: nn.Module,
        rules: Rules,
        ranks: Ranks | None = None,
        *,
        in_kernel: bool = False,
        muon_dtype: torch.dtype | None = None,
    ) -> None:
        self.named = dict(model.named_parameters())
        self.clip = clip_grad_norm if in_kernel else torch.nn.utils.clip_grad_norm_
        groups = parameter_groups(self.named, rules)
        adamw = AdamW if in_kernel else torch.optim.AdamW
        fused = next(model.parameters()).device.type in ("cpu", "cuda")
        self.parts: list[torch.optim.Optimizer] = [
            adamw(groups["adamw"], betas=rules.betas, fused=fused)
        ]
        if groups["muon"]:
            config = rules.config
            alone = ranks is None or ranks.world == 1
            plain = alone and muon_dtype is None and config.muon_rule in FusedMuon.RULES
            kind = FusedMuon if in_kernel and plain else Muon
            muon = kind(
                groups["muon"],
                momentum=config.muon_momentum,
                ns_steps=config.muon_ns_steps,
                scale=config.muon_scale,
                rule=config.muon_rule,
                power=config.muon_power,
                clip=config.muon_clip,
                ranks=ranks,
                dtype=muon_dtype,
            )
            self.parts.append(muon)
        if groups["adamh"]:
            self.parts.append(AdamH(groups["adamh"], betas=rules.betas, ranks=ranks))
        self.groups = [group for part in self.parts for group in part.param_groups]
        self.loads = 0  # of states
        self.owner = {
            p: part for part in self.parts for group in part.param_groups for p in group["params"]
        }

    def set_lr(self, multiplier: float) -> None:
        """Give each group `multiplier` times its base LR."""
        for group in self.groups:
            group["lr"] = group["base_lr"] * multiplier

    def step(
        self,
        scaler: GradScaler,
        grad_clip: float,
        before_clipping: Callable[[], None] | None = None,
    ) -> Tensor:
        """One update from the gradients that the parameters have; none has any afterwards.

        `scaler` is what scaled the loss, `grad_clip` the largest joint norm (0: any). Returns the
        norm before clipping. `before_clipping` sees the gradients at that moment, unscaled.
        """
        for part in self.parts:
            scaler.unscale_(part)
        if before_clipping is not None:
            before_clipping()
        norm = full(self.clip(self.named.values(), grad_clip or math.inf))

        for part in self.parts:
            scaler.step(part)  # skipped where float16 overflowed
        scaler.update()
        self.zero_grad()
        return norm

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Parameter name -> its optimizer state by name, held as the parameter is."""
        states = {name: self.owner[p].state for name, p in self.named.items()}
        return {name: dict(states[name][p]) for name, p in self.named.items() if p in states[name]}

    def momentum_of(self, name: str) -> Momentum:
        """The momentum of a parameter that has been updated."""
        p = self.named[name]
        part = self.owner[p]
        state = part.state[p]
        if isinstance(part, Muon):
            return Momentum(state, state["momentum_buffer"], part.defaults["momentum"])
        return Momentum(state, state["exp_avg"], part.defaults["betas"][0])

    def update_from(self, name: str, momentum: Tensor, g: Tensor) -> Tensor:
        """What another momentum than its own would make of gradient g, without LR and decay.

        All as this rank holds the parameter; over several ranks every one must ask.
        """
        p = self.named[name]
        part = self.owner[p]
        if isinstance(part, Muon):
            return part.update_from(p, momentum, g)
        (group,) = (group for group in part.param_groups if any(p is q for q in group["params"]))
        state, (beta1, beta2) = part.state[p], group["betas"]
        unbiased = local(state["exp_avg_sq"]) / (1 - beta2 ** state["step"])
        update: Tensor = momentum / (1 - beta1 ** state["step"]) / (unbiased.sqrt() + group["eps"])
        return update

    def load_state(self, state: OptimizerState) -> None:
        """Put full tensors back; each goes where its parameter is, and is held as that."""
        self.loads += 1
        for name, values in state.items():
            p = self.named[name]
            loaded = {}
            for key, value in values.items():
                # torch's AdamW on MPS, which is not fused, counts its steps on the CPU
                on_cpu = key == "step" and p.device.type == "mps"
                device = "cpu" if on_cpu else p.device
                loaded[key] = held_as(value.to(device, copy=True), p)
            self.owner[p].state[p] = loaded


def parameter_groups(named: Mapping[str, Tensor], rules: Rules) -> dict[str, list[ParameterGroup]]:
    """Optimizer -> groups of equal role, LR, weight decay and eps; each parameter is in one."""
    members = defaultdict(list)
    for tensor in rules.tensors:
        rule = rules.rule(tensor)
        eps = None if rule.optimizer == "muon" else rule.eps  # it has none
        members[rule.optimizer, tensor.role, rule.lr, rule.weight_decay, eps].append(tensor.name)

    groups: dict[str, list[ParameterGroup]] = {"adamw": [], "muon": [], "adamh": []}
    for (optimizer, role, lr, weight_decay, eps), names in members.items():
        group = {
            "params": [named[name] for name in names],
            "names": names,
            "role": role,
            "base_lr": lr,
            "lr": lr,
            "weight_decay": weight_decay,
            "eps": eps,
        }
        groups[optimizer].append(group)
    return groups
