"""Statistics per role around one update; they cost nothing on steps that do not ask for them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from nanoscale.model.distributed import full, local
from nanoscale.model.gpt import GPT, Probe
from nanoscale.spec.architecture import tensors
from nanoscale.training.halves import Halves, widened
from nanoscale.training.state import Run

Sizes = dict[str, float]  # a root mean square by role, or by kind of activation
CHANGE_TOKENS = 4096  # at most, on which changes are measured: the activations of all are kept


class Statistics:
    """Sizes around one update of a run, activations on tokens X (B, T)."""

    def __init__(self, run: Run, X: Tensor, halves: Halves | None = None) -> None:
        self.run = run
        self.model = run.model
        self.X = X
        self.halves = halves
        self.kept: dict[str, Tensor] = {}

    def before(self) -> None:
        """Measure gradients and activations, and keep what the update will change."""
        with self.run.part("statistics"):
            self.measure()

    def measure(self) -> None:
        gradients = {}
        self.weights = {}
        for name, p in self.model.named_parameters():
            self.weights[name] = p.detach().clone()
            if p.grad is not None:
                gradients[name] = p.grad
        self.grad_rms = rms_by_role(self.model, gradients)
        if self.halves:  # clipping and the update change them in place
            self.gradients = {name: local(g).clone() for name, g in gradients.items()}
        with self.run.numerics.autocast():
            self.activations = activation_statistics(self.model, self.X, self.kept)

    def after(self) -> dict[str, Sizes | float]:
        """Everything, once the update is made."""
        with self.run.part("statistics"):
            return self.compared()

    def compared(self) -> dict[str, Sizes | float]:
        now = {name: p.detach() for name, p in self.model.named_parameters()}
        changes = {name: now[name] - self.weights[name] for name in now}
        with self.run.numerics.autocast():
            activation_change = activation_changes(self.model, self.X, self.kept)
        of_halves = self.halves.statistics(self.gradients) if self.halves else {}
        return {
            "grad_rms": self.grad_rms,
            "weight_rms": rms_by_role(self.model, now),
            "update_rms": rms_by_role(self.model, changes),
            **self.activations,
            "activation_change_rms": activation_change,
            **of_halves,
        }


def rms(x: Tensor) -> float:
    return widened(x).square().mean().sqrt().item()


def rms_by_role(model: GPT, values: Mapping[str, Tensor]) -> Sizes:
    """Role -> root mean square over all the elements of its tensors in `values` (by name)."""
    squares: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for spec in tensors(model.config):
        if spec.name not in values:
            continue
        total = full(widened(values[spec.name]).square().sum())
        squares[spec.role] += total.item()
        counts[spec.role] += spec.numel
    return {role: (squares[role] / count) ** 0.5 for role, count in counts.items()}


# -- activations ----------------------------------------------------------------------------------
@torch.no_grad()
def probe_forward(model: GPT, idx: Tensor, probe: Probe) -> None:
    """Show `probe` the activations on tokens `idx` (B, T), dropout off."""
    was_training = model.training
    model.eval()
    model(idx, probe=probe)
    model.train(was_training)


def kind_of(name: str, model: GPT) -> str | None:
    """The kind of a named activation in `activation_rms`, if it is one of them."""
    if name == f"h.{model.config.n_layer - 1}.out":
        return "last_block"
    kind = name.rsplit(".", 1)[-1]
    return kind if kind in ("embedding", "attn", "mlp") else None


def activation_statistics(
    model: GPT, idx: Tensor, kept: dict[str, Tensor] | None = None
) -> dict[str, Sizes | float]:
    """Sizes of the activations on tokens `idx` (B, T), dropout off.

    activation_rms by kind (`attn` and `mlp` branch outputs averaged over blocks, `last_block`),
    `logit_rms`, `attention_logit_rms` of what is not masked, averaged over blocks, and
    `max_attention_logit`, the largest entry any softmax sees. The activations of the first
    sequences go into `kept`, by name, for `activation_changes`.
    """
    sizes: dict[str, list[float]] = defaultdict(list)
    some = max(1, CHANGE_TOKENS // idx.size(1))

    def probe(name: str, x: Tensor) -> None:
        kind = kind_of(name, model)
        if name.endswith(".scores"):
            shown = x != -math.inf
            share = widened(shown).mean().sqrt().item()
            sizes["scores"].append(rms(x.where(shown, 0.0)) / share)
            sizes["largest"].append(x.max().item())
        elif kind or name == "logits":
            sizes[kind or name].append(rms(x))
        if kind and kept is not None:
            kept[name] = x[:some].clone()

    probe_forward(model, idx, probe)
    kinds = ("embedding", "attn", "mlp", "last_block")
    return {
        "activation_rms": {kind: mean(sizes[kind]) for kind in kinds},
        "logit_rms": mean(sizes["logits"]),
        "attention_logit_rms": mean(sizes["scores"]),
        "max_attention_logit": max(sizes["largest"]),
    }


def activation_changes(model: GPT, idx: Tensor, kept: Mapping[str, Tensor]) -> Sizes:
    """Kind, as in `activation_rms` -> how far its activations lie from those `kept` before."""
    changes: dict[str, list[float]] = defaultdict(list)

    def probe(name: str, x: Tensor) -> None:
        kind = kind_of(name, model)
        if kind and name in kept:
            change = rms(x - kept[name])
            changes[kind].append(change)

    some = len(kept["embedding"])
    probe_forward(model, idx[:some], probe)
    return {kind: mean(sizes) for kind, sizes in changes.items()}


def mean(values: list[float]) -> float:
    return sum(values) / len(values)
