"""One process or many (DDP under torchrun) behind the same few functions."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nanoscale.config import ExperimentConfig
from nanoscale.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """Where this process stands: `rank` of `world`, `local` on its machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def is_master(self) -> bool:
        return self.rank == 0

    def sum(self, x: Tensor) -> Tensor:
        """The sum of x over ranks, in place."""
        if self.world > 1:
            dist.all_reduce(x)
        return x

    def broadcast(self, value: Any) -> Any:
        """The master's plain `value`, on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


def pick_device(config: ExperimentConfig, local: int = 0) -> torch.device:
    """`auto` is CUDA, then Apple's MPS, then the CPU; anything else is checked."""
    wanted = config.device
    if wanted == "auto":
        cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
        wanted = "cuda" if cuda else "mps" if mps else "cpu"
    if wanted == "cuda":
        wanted = f"cuda:{local}"
    try:
        device = torch.device(wanted)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as e:
        raise UserError(f"device={config.device}: not available here; use device=auto or "
                        "device=cpu") from e
    return device


@contextmanager
def session(config: ExperimentConfig) -> Iterator[Ranks]:
    """The process group that torchrun asked for, or a world of one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    ranks = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]),
                  int(os.environ["LOCAL_RANK"]))
    device = pick_device(config, ranks.local)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(config.backend if device.type == "cuda" else "gloo")
    try:
        yield ranks
        dist.barrier()  # a rank that leaves first takes the others' connections with it
    finally:
        gc.collect()  # DDP's reducer sits in a cycle and must go before its process group
        dist.destroy_process_group()


def wrap(model: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """The model whose gradients are averaged over ranks."""
    if ranks.world == 1:
        return model
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids)
