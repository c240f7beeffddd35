"""The signal in what Muon would make of momentum, measured at the frozen weights of one run.

Two disjoint streams of batches each feed a momentum; no weight changes. The cosine between the
updates of both is how much of an update is signal, the rest is noise of the batches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from nanoscale.model.directions import orthogonalize, polar, power
from nanoscale.model.distributed import Ranks
from nanoscale.spec.architecture import MATRIX_ROLES
from nanoscale.spec.values import Json
from nanoscale.store.folder import CHECKPOINT, RunFolder
from nanoscale.training.halves import CLIP_EPS
from nanoscale.training.loop import gradients_of, micro_batches
from nanoscale.training.state import Checkpoint, Run, build, dataset_of

DIRECTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "momentum": lambda u: u,
    "Newton-Schulz": orthogonalize,
    "polar factor": polar,
    "power 1/2": lambda u: power(u, 1 / 2),
    "power 1/4": lambda u: power(u, 1 / 4),
}
ByName = dict[str, Tensor]


@dataclass(frozen=True)
class NoiseAt:
    """What two streams say at one run's weights."""

    signal: Mapping[str, float]  # direction -> cosine, the mean over the matrices inside blocks
    gradient_square: float  # of the loss itself, |G|^2: unbiased
    noise_trace: float  # of a token's gradient, tr S

    def to_json(self) -> dict[str, Json]:
        return asdict(self)


def noise_at(folder: RunFolder, batches: int) -> NoiseAt:
    """Measure at the last weights of a finished run, by two streams of so many batches.

    Beside the directions stands `own`, the run's own update, whatever its optimizer and rule.

    Raises:
        UserError: the folder has no checkpoint, or its dataset has changed.
    """
    saved = Checkpoint.load(folder / CHECKPOINT)
    run = build(saved.spec, dataset_of(saved.spec), Ranks(), saved=saved)
    config = run.config
    momentum = config.muon_momentum if config.optimizer == "muon" else config.beta1
    kept: list[ByName] = [{}, {}]
    last: list[ByName] = [{}, {}]
    squares = trace = 0.0
    for _ in range(batches):
        last = [next_gradients(run), next_gradients(run)]
        for buffers, gradients in zip(kept, last, strict=True):
            for name, g in gradients.items():
                buffers.setdefault(name, torch.zeros_like(g)).lerp_(g, 1 - momentum)
        square, noise = estimates(last, config.tokens_per_iter)
        squares += square / batches
        trace += noise / batches

    cosines = defaultdict(list)
    for tensor in run.model.rules.tensors:
        if tensor.role not in MATRIX_ROLES:
            continue
        name = tensor.name
        for direction, make in DIRECTIONS.items():
            updates = [make(u) for u in ahead(kept, last, name, momentum)]
            cosines[direction].append(cosine(updates))
        pairs = zip(kept, last, strict=True)
        own = [run.optimizers.update_from(name, m[name], g[name]) for m, g in pairs]
        cosines["own"].append(cosine(own))
    return NoiseAt(mean_of(cosines), squares, trace)


def mean_of(cosines: Mapping[str, list[float]]) -> dict[str, float]:
    return {direction: sum(found) / len(found) for direction, found in cosines.items()}


def next_gradients(run: Run) -> ByName:
    """The clipped gradients of the run's next batch, whose weights stay."""
    gradients_of(run, list(micro_batches(run)))
    run.step += 1
    named = run.optimizers.named
    gradients = {name: p.grad for name, p in named.items() if p.grad is not None}
    run.optimizers.zero_grad()
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    if most := run.config.grad_clip:
        for g in gradients.values():
            g *= (most / (norm + CLIP_EPS)).clamp(max=1)
    return gradients


def estimates(pair: list[ByName], tokens: int) -> tuple[float, float]:
    """|G|^2 and tr S from two batches of that many tokens (arXiv 1812.06162, appendix A.1)."""
    one, other = pair
    both = of_each = 0.0
    for name, g in one.items():
        mean = (g + other[name]) / 2
        both += float(mean.square().sum())
        of_each += float(g.square().sum() + other[name].square().sum()) / 2
    return 2 * both - of_each, 2 * tokens * (of_each - both)


def ahead(kept: list[ByName], last: list[ByName], name: str, momentum: float) -> Iterator[Tensor]:
    """Each stream's momentum of a matrix, with Nesterov's look ahead."""
    for buffers, gradients in zip(kept, last, strict=True):
        yield gradients[name].lerp(buffers[name], momentum)


def cosine(updates: list[Tensor]) -> float:
    """Between two updates of one matrix."""
    one, other = updates
    return float((one * other).sum() / (one.norm() * other.norm()))
