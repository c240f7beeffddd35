"""How much of an update is signal: the updates that two halves of the data would make, compared.

Every batch is split in two, the sequences of even and of odd number, each half feeds a momentum of
its own, and the signal fraction is the cosine between the updates of both. The optimizer's own
momentum M is the mean of the two, so only the first half's, A, is kept; with a and b sequences,
B = M + (M - A) a / b. From the gradients of the same halves comes the gradient noise scale
(McCandlish et al. 2018, arXiv 1812.06162, A.1).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from nanoscale.model.distributed import Ranks, local
from nanoscale.model.optim import Optimizers
from nanoscale.spec.architecture import tensors
from nanoscale.spec.config import ResolvedConfig

KEPT = "first_half"  # the name of A in an optimizer's state
CLIP_EPS = 1e-6  # torch's, added to the norm


def widened(x: Tensor) -> Tensor:
    """In float64, which Apple's GPUs do not have: from there it is moved first."""
    return (x.cpu() if x.device.type == "mps" else x).double()


def halves_of(sequences: int) -> tuple[int, int]:
    """How many of a batch's sequences have an even number in it, and how many an odd one."""
    return (sequences + 1) // 2, sequences // 2


@dataclass
class Halves:
    """The first half's momentum of a run, which is in its optimizers' states beside their own."""

    config: ResolvedConfig
    optimizers: Optimizers
    scaler: GradScaler
    ranks: Ranks
    gradients: dict[str, Tensor] = field(default_factory=dict)  # of the first half, as held here

    @property
    def first(self) -> int:
        return halves_of(self.config.sequences_per_iter)[0]

    @property
    def second(self) -> int:
        return halves_of(self.config.sequences_per_iter)[1]

    def keep_gradients(self) -> None:
        """Take the parameters' gradients, which are the first half's; none is left."""
        scale = self.scaler.get_scale()
        for name, p in self.optimizers.named.items():
            if p.grad is not None:
                self.gradients[name] = local(p.grad) / scale
        self.optimizers.zero_grad()

    def advance(self, norm: Tensor, begins: bool) -> None:
        """After an update, from gradients of that norm: the first half's momentum takes them in.

        `begins` says whether it was the run's first.
        """
        self.part = self._clipped(norm)
        if not torch.isfinite(norm):  # float16 overflowed, or the run has diverged
            return
        for name, g in self.gradients.items():
            own = self.optimizers.momentum_of(name)
            if KEPT not in own.state:  # the beginning, or that of a branch of a run without it
                own.state[KEPT] = torch.zeros_like(own.buffer) if begins else own.buffer.clone()
            local(own.state[KEPT]).lerp_(self.part * g, 1 - own.momentum)

    def _clipped(self, norm: Tensor) -> float:
        """What clipping leaves of the gradients."""
        most = self.config.grad_clip
        return min(1.0, most / (norm.item() + CLIP_EPS)) if most else 1.0

    # -- statistics -------------------------------------------------------------------------------
    def statistics(self, gradients: Mapping[str, Tensor]) -> dict[str, dict[str, float] | float]:
        """The signal fraction by role, and the noise scale's two estimates, after an update.

        `gradients` are those of the whole batch, unclipped. The noise scale in tokens is the mean
        of `noise_trace` over the mean of `gradient_square`: either may be negative in one update.
        """
        config = self.config
        total = of_halves = 0.0  # squares of the mean gradient, and their mean over the halves
        for name, g in gradients.items():
            first = self.gradients[name]
            second = self._other(g, first)
            squares = self.first * self._dot(first, first) + self.second * self._dot(second, second)
            total += self._dot(g, g)
            of_halves += squares / (self.first + self.second)
        return {
            "signal_fraction": self.signal_fractions(gradients),
            "tokens_per_half": self.first * config.block_size,
            "gradient_square": 2 * total - of_halves,
            "noise_trace": config.tokens_per_iter * (of_halves - total),
        }

    def signal_fractions(self, gradients: Mapping[str, Tensor]) -> dict[str, float]:
        """Role -> cosine between the halves' updates, the mean over its tensors."""
        found = defaultdict(list)
        for spec in tensors(self.config):
            if spec.name in gradients:
                cosine = self._cosine(spec.name, gradients[spec.name])
                found[spec.role].append(cosine)
        return {role: sum(cosines) / len(cosines) for role, cosines in found.items()}

    def _cosine(self, name: str, g: Tensor) -> float:
        optimizers = self.optimizers
        own = optimizers.momentum_of(name)
        momentum, first = local(own.buffer), local(own.state[KEPT])
        g_first = self.gradients[name]
        one = optimizers.update_from(name, first, self.part * g_first)
        other = optimizers.update_from(
            name, self._other(momentum, first), self.part * self._other(g, g_first)
        )
        sizes = self._dot(one, one) * self._dot(other, other)
        return self._dot(one, other) / sizes**0.5 if sizes else 0.0

    def _other(self, both: Tensor, first: Tensor) -> Tensor:
        """The second half's mean, from that over all sequences."""
        return both + (both - first) * (self.first / self.second)

    def _dot(self, x: Tensor, y: Tensor) -> float:
        product = (widened(x) * widened(y)).sum()
        if self.ranks.sharded:
            product = self.ranks.sum(product)
        return product.item()
