"""One process or many under torchrun, behind the same few functions.

DDP: every rank holds the whole model. FSDP2 (after Zhao et al. 2023, arXiv 2304.11277): every rank
holds its rows of each parameter, gradient and optimizer tensor, and a block's parameters are full
only while it computes. DTensor is imported where it is used: it takes half a second.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nanoscale.errors import UserError
from nanoscale.model.launch import launched
from nanoscale.spec.config import ExperimentConfig

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

_T = TypeVar("_T")
Tensors = Mapping[str, "Tensor | Tensors"]  # tensors by name, nested at will


@dataclass(frozen=True)
class Ranks:
    """Where this process stands: `rank` of `world`, `local` on its machine.

    `sharded`: each rank holds its rows of every tensor (FSDP2), not all of it (DDP).
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    sharded: bool = False

    @property
    def is_master(self) -> bool:
        return self.rank == 0

    def sum(self, x: Tensor) -> Tensor:
        """The sum of x over ranks, in place."""
        if self.world > 1:
            dist.all_reduce(x)
        return x

    def broadcast(self, value: _T) -> _T:
        """The master's plain `value`, on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


@contextmanager
def session(
    config: ExperimentConfig, pick_device: Callable[[ExperimentConfig, int], torch.device]
) -> Iterator[Ranks]:
    """The process group that torchrun asked for, or a world of one.

    `pick_device` gives the device of the config for a process's number on its machine.

    Raises:
        UserError: what torchrun sets is set in part, or wrong; the processes do not meet.
    """
    launch = launched()
    if launch.world == 1:
        yield Ranks()
        return

    ranks = Ranks(launch.rank, launch.world, launch.local, sharded=config.sharding == "fsdp")
    device = pick_device(config, ranks.local)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(config.backend if device.type == "cuda" else "gloo")
    except dist.DistError as e:
        reason = str(e).partition("\n")[0]
        raise UserError(
            f"the {ranks.world} processes do not meet at MASTER_ADDR and MASTER_PORT: {reason}"
        ) from e
    try:
        yield ranks
        dist.barrier()  # a rank that leaves first takes the others' connections with it
    finally:
        gc.collect()  # DDP's reducer sits in a cycle and must go before its process group
        dist.destroy_process_group()


# -- the model over ranks -----------------------------------------------------------------------
def place(
    model: nn.Module, blocks: Iterable[nn.Module], ranks: Ranks, device: torch.device
) -> None:
    """Move the model to its device, in shards where asked: `blocks` one by one, then the rest."""
    if not ranks.sharded:
        model.to(device)
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # a linear layer's output is a view to torch; nothing of ours writes into a block's output
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (ranks.world,))
    for part in (*blocks, model):  # resharded always: an evaluation's pass has no backward to do it
        fully_shard(part, mesh=mesh, reshard_after_forward=True)


def wrap(model: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """The placed model, its gradients averaged over ranks."""
    if ranks.world == 1 or ranks.sharded:  # a sharded model averages by itself
        return model
    ids = None
    if device.type == "cuda":
        ids = [device.index]
    return DistributedDataParallel(model, device_ids=ids)


@contextmanager
def no_sync(model: nn.Module) -> Iterator[None]:
    """Backward passes inside leave gradients on their rank; the next one outside averages all."""
    if isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
        return

    sharded = cast("FSDPModule", model)  # or its compiled self, which passes this on
    sharded.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        sharded.set_requires_gradient_sync(True)


# -- tensors in shards --------------------------------------------------------------------------
def is_sharded(x: Tensor) -> TypeGuard[DTensor]:
    return hasattr(x, "full_tensor")


def local(x: Tensor) -> Tensor:
    """This rank's rows of x, which share its memory; x itself where it is not sharded."""
    return x.to_local() if is_sharded(x) else x


def full(x: Tensor) -> Tensor:
    """All of x; where it is sharded, every rank must ask."""
    return x.full_tensor() if is_sharded(x) else x


def held_as(x: Tensor, like: Tensor) -> Tensor:
    """The full x as `like` is held: itself, or in shards if it is of the same shape."""
    if not is_sharded(like) or x.shape != like.shape:
        return x

    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x, like.device_mesh, like.placements, src_data_rank=None)


def gathered(state: Tensors, ranks: Ranks) -> Tensors:
    """Nested tensors, full, in the master's memory.

    Every rank must ask; the others get the same names of nothing.
    """
    result: dict[str, Tensor | Tensors] = {}
    for name, value in state.items():
        if isinstance(value, Mapping):
            result[name] = gathered(value, ranks)
            continue
        tensor = full(value)
        if tensor is not value:
            tensor = tensor.cpu()
        if ranks.is_master:
            result[name] = tensor
    return result
