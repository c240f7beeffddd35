"""Muon: momentum, then the nearest orthogonal matrix, as the update of a hidden matrix.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon); shape factors as in Bernstein & Newhouse
2024 (spectral), torch.optim.Muon ("original") and Liu et al. 2025 (match_rms). Its variants are
rows of `spec.muon_rules`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from nanoscale.model.directions import (
    NSR_EPS,
    NSR_WEIGHT,
    STEPS_OF_RULES,
    GroupSettings,
    orthogonalize,
)
from nanoscale.model.distributed import Ranks, local
from nanoscale.spec.muon_rules import MUON_RULES
from nanoscale.spec.parametrization import shape_factor

__all__ = ["Muon", "orthogonalize"]

Parts = list[Tensor]  # of each matrix, all or this rank's rows
OfStacks = Callable[..., Tensor]  # stacks (n, fan_out, fan_in) -> one more, matrix by matrix


# -- whole matrices, shared out over ranks --------------------------------------------------------
def by_matrix(make: OfStacks, operands: Sequence[Parts], fan_out: int, ranks: Ranks) -> Parts:
    """`make` of matrices of equal shape, and of what else belongs to each: a list per operand."""
    if ranks.world == 1:
        return list(make(*map(torch.stack, operands)))
    if ranks.sharded:
        return sharded(make, operands, fan_out, ranks)
    return dealt(make, operands, ranks)


def share_of(count: int, ranks: Ranks) -> int:
    """How many of `count` matrices a rank is given; the last ranks may have fewer."""
    return -(-count // ranks.world)


def dealt(make: OfStacks, operands: Sequence[Parts], ranks: Ranks) -> Parts:
    """Of matrices that every rank holds: each makes its share, all get all."""
    first = operands[0]
    share = share_of(len(first), ranks)
    mine = slice(ranks.rank * share, (ranks.rank + 1) * share)
    done = first[0].new_zeros(share, *first[0].shape)
    count = len(first[mine])
    if count:
        done[:count] = make(*(torch.stack(held[mine]) for held in operands))

    parts = [torch.empty_like(done) for _ in range(ranks.world)]
    dist.all_gather(parts, done)
    return list(torch.cat(parts)[: len(first)])


def sharded(make: OfStacks, operands: Sequence[Parts], fan_out: int, ranks: Ranks) -> Parts:
    """Of matrices of which every rank holds some rows, in FSDP2's partition.

    Each rank is sent all rows of its share, and sends back to each rank that one's of the result.
    """
    world = ranks.world
    rows = operands[0]
    share = share_of(len(rows), ranks)
    height = -(-fan_out // world)  # of a rank's part; the last ones may be short or empty
    stacks = [gathered_rows(held, share, height, world)[:, :fan_out] for held in operands]
    done = F.pad(make(*stacks), (0, 0, 0, world * height - fan_out))
    by_rank = done.view(share, world, height, -1).transpose(0, 1).contiguous()
    parts = torch.empty_like(by_rank)
    dist.all_to_all_single(parts, by_rank)
    return [parts[i // share, i % share, : len(part)] for i, part in enumerate(rows)]


def gathered_rows(rows: Parts, share: int, height: int, world: int) -> Tensor:
    """All rows, and padding, of the matrices of this rank's share, from those that each holds."""
    parts = rows[0].new_zeros(world, share, height, rows[0].size(-1))  # by owner
    for i, part in enumerate(rows):
        owner, place = divmod(i, share)
        parts[owner, place, : len(part)] = part

    owned = torch.empty_like(parts)  # by source
    dist.all_to_all_single(owned, parts)
    return owned.transpose(0, 1).flatten(1, 2)


# -- the optimizer ------------------------------------------------------------------------------
class Muon(torch.optim.Optimizer):
    """Muon over groups of matrices (fan_out, fan_in); equal shapes are orthogonalised in one batch.

    Over several ranks, each orthogonalises its share of a batch.

    Each step: buf <- momentum buf + (1 - momentum) g; u = g + momentum (buf - g) (Nesterov);
    W <- (1 - lr weight_decay) W - lr shape_factor orthogonalize(u), or another rule's step.

    >>> import torch
    >>> import nanoscale as ns
    >>> W = torch.nn.Parameter(torch.eye(2))
    >>> optimizer = ns.Muon([W], lr=0.5, weight_decay=0.0)
    >>> W.grad = torch.tensor([[0.0, 3.0], [1.0, 0.0]])
    >>> optimizer.step()
    >>> (torch.eye(2) - W.detach()).sign()  # the gradient's directions, all of about one size
    tensor([[0., 1.],
            [1., 0.]])
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        ns_steps: int = 5,
        scale: str = "spectral",
        rule: str = "muon",
        power: float = 0.5,
        clip: float = 1.0,
        ranks: Ranks | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "ns_steps": ns_steps,
            "scale": scale,
            "rule": rule,
            "power": power,
            "clip": clip,
        }
        super().__init__(params, defaults)
        self.ranks = ranks or Ranks()
        self.dtype = dtype

    @torch.no_grad()
    def step(  # type: ignore[override]  # torch's two overloads in one
        self, closure: Callable[[], Tensor] | None = None
    ) -> Tensor | None:
        """One update of every matrix that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        self._update_all()
        return loss

    def _update_all(self) -> None:
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for params in by_shape.values():
                self._update(params, group)

    def _update(self, params: list[Tensor], group: GroupSettings) -> None:
        """Update matrices of equal shape, whole or this rank's rows of each."""
        grads = [local(p.grad) for p in params if p.grad is not None]
        buffers = self._advance(params, grads, group)
        made = self._made(params, grads, buffers, group)
        weights = [local(p) for p in params]
        if MUON_RULES[group["rule"]].of_weights:
            torch._foreach_copy_(weights, made)
            return
        lr = group["lr"]
        factor = shape_factor(group["scale"], *params[0].shape)
        torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
        torch._foreach_add_(weights, made, alpha=-lr * factor)

    def _advance(self, params: list[Tensor], grads: Parts, group: GroupSettings) -> Parts:
        """Take the gradients in; the momentum of each matrix."""
        keeps_variance = MUON_RULES[group["rule"]].buffers > 1
        for p in params:
            state = self.state[p]
            if state:
                continue
            state["momentum_buffer"] = torch.zeros_like(p)
            if keeps_variance:
                state["variance_buffer"] = torch.zeros_like(p)
                state["step"] = torch.zeros((), device=p.device)

        momentum = group["momentum"]
        buffers = [local(self.state[p]["momentum_buffer"]) for p in params]
        if keeps_variance:
            for p, g, m in zip(params, grads, buffers, strict=True):
                off = (m - g).square()  # the momentum before this gradient
                variance = local(self.state[p]["variance_buffer"])
                variance.add_(off, alpha=1 - momentum).mul_(momentum)
                self.state[p]["step"] += 1
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        return buffers

    def _made(
        self, params: list[Tensor], grads: Parts, momenta: Parts, group: GroupSettings
    ) -> Parts:
        """The directions of the momenta after `grads`; or, of a rule of weights, these anew."""
        rule = MUON_RULES[group["rule"]]
        make = partial(STEPS_OF_RULES[group["rule"]], group, self.dtype)
        ahead = list(torch._foreach_lerp(grads, momenta, group["momentum"]))
        if rule.buffers > 1:
            of_each = zip(params, grads, momenta, strict=True)
            ahead = [self._over_noise(p, g, m, group["momentum"]) for p, g, m in of_each]
        operands = [ahead]
        if rule.of_weights:
            operands.append([local(p) for p in params])
        return by_matrix(make, operands, params[0].shape[0], self.ranks)

    def _over_noise(self, p: Tensor, g: Tensor, m: Tensor, momentum: float) -> Tensor:
        """The momentum ahead over its noise: n / (sqrt(n^2 + 10 v) + 1e-8), element by element."""
        since = 1 - momentum ** self.state[p]["step"]  # of its weights, what an average has so far
        n = g + momentum / (1 - momentum) * m / since
        variance = local(self.state[p]["variance_buffer"]) / since
        over: Tensor = n / ((n.square() + NSR_WEIGHT * variance).sqrt() + NSR_EPS)
        return over

    def update_from(self, p: Tensor, momentum: Tensor, g: Tensor) -> Tensor:
        """What another momentum than p's own would make of gradient g, without LR and decay.

        All as this rank holds p; over several ranks every one must ask.
        """
        (group,) = (group for group in self.param_groups if any(p is q for q in group["params"]))
        (made,) = self._made([p], [g], [momentum], group)
        return local(p) - made if MUON_RULES[group["rule"]].of_weights else made
