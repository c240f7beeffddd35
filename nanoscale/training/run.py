"""The live parts of one run: built from its folder, put back from a checkpoint, saved to one."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nanoscale.data.dataset import Dataset, Sampler, open_dataset
from nanoscale.errors import UserError
from nanoscale.model.distributed import Ranks, gathered, held_as, pick_device, place, wrap
from nanoscale.model.gpt import GPT
from nanoscale.model.optim import Optimizers
from nanoscale.spec.config import ResolvedConfig
from nanoscale.spec.identity import RunSpec
from nanoscale.store.folder import CHECKPOINT, RunFolder, checkpoint_file, parse_branch
from nanoscale.store.resume import check_past
from nanoscale.training import checkpoint, numerics
from nanoscale.training.numerics import DTYPES
from nanoscale.training.telemetry import Meter, peak


@dataclass
class Run:
    """Everything that one update needs, and where the run stands."""

    spec: RunSpec
    ranks: Ranks
    device: torch.device
    numerics: dict[str, Any]
    dataset: Dataset
    sampler: Sampler
    model: GPT  # the bare model: evaluation, statistics, checkpoints
    trained: nn.Module  # the same, compiled and spread over ranks as asked
    optimizers: Optimizers
    scaler: torch.amp.GradScaler
    meter: Meter
    step: int = 0  # completed updates
    best_val_loss: float = math.inf
    saved_at: float = field(default_factory=time.perf_counter)

    @property
    def config(self) -> ResolvedConfig:
        return self.spec.config

    def autocast(self) -> AbstractContextManager:
        """Products in the run's dtype; weights, the residual stream and losses stay float32."""
        dtype = DTYPES[self.numerics["dtype"]]
        if dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=dtype)

    def to_device(self, *arrays: np.ndarray) -> list[Tensor]:
        """Arrays as tensors on the run's device."""
        found = [torch.from_numpy(a) for a in arrays]
        if self.device.type == "cuda":
            return [t.pin_memory().to(self.device, non_blocking=True) for t in found]
        return [t.to(self.device) for t in found]


def dataset_of(spec: RunSpec) -> Dataset:
    """The run's dataset; refused if it has changed since the run was made."""
    name = spec.config.dataset
    dataset = open_dataset(name, spec.config.data_root)
    if dataset.fingerprint != spec.data_fingerprint:
        raise UserError(
            f"dataset {name!r} has changed since this run was made "
            f"({spec.data_fingerprint[:8]}, now {dataset.fingerprint[:8]}); restore it "
            "or start a new run"
        )
    return dataset


def build(
    spec: RunSpec, dataset: Dataset, ranks: Ranks, saved: dict[str, Any] | None = None
) -> Run:
    """The run at its beginning, or where the checkpoint `saved` left it.

    Raises:
        UserError: the device is not there, or the checkpoint is of another model.
    """
    config = spec.config
    device = pick_device(config, ranks.local)
    how = numerics.decide(config, device, saved and saved["numerics"], frozenset(spec.typed), ranks)
    sampler = Sampler(
        dataset.tokens["train"], config.block_size, config.data_seed, config.data_order
    )
    model = GPT(config, numerics.ops(how))
    place(model, model.transformer.h, ranks, device)
    optimizers = Optimizers(model, config, ranks, how)
    graphs = config.cuda_graphs and device.type == "cuda"
    trained = wrap(
        torch.compile(model, mode="reduce-overhead" if graphs else None)
        if how["compile"]
        else model,
        ranks,
        device,
    )
    scaler = torch.amp.GradScaler(device.type, enabled=how["dtype"] == "float16")
    best = peak(device, DTYPES[how["dtype"]])
    meter = Meter(spec, best and best * ranks.world, saved["seconds"] if saved else 0.0)
    run = Run(spec, ranks, device, how, dataset, sampler, model, trained, optimizers, scaler, meter)
    if saved:
        restore(run, saved)
    return run


def load_start(spec: RunSpec, folder: RunFolder) -> dict[str, Any] | None:
    """The checkpoint to continue from, the folder's or else the parent's, its past checked."""
    path = folder / CHECKPOINT
    if not path.is_file():
        if spec.config.branch_from is None:
            return None
        parent, step = parse_branch(spec.config.branch_from)
        path = Path(parent) / checkpoint_file(step)
    saved = checkpoint.load(path)
    check_past(saved["spec"], spec, saved["step"], path)
    return saved


def restore(run: Run, saved: dict[str, Any]) -> None:
    """Put a checkpoint's content back."""
    try:
        now = run.model.state_dict()
        run.model.load_state_dict({n: held_as(v, now[n]) for n, v in saved["model"].items()})
        run.optimizers.load_state(saved["optimizer"])
    except (RuntimeError, KeyError) as e:
        raise UserError(
            "the checkpoint's tensors do not fit this model; delete it to start from the beginning"
        ) from e
    run.scaler.load_state_dict(saved["scaler"])
    run.step = saved["step"]
    run.best_val_loss = math.inf if saved["best_val_loss"] is None else saved["best_val_loss"]


def save(run: Run, folder: RunFolder, name: str = CHECKPOINT) -> None:
    """Write the full state; the folder's rows up to this step are complete.

    Every rank calls it, the master writes.
    """
    state = gathered(
        {"model": run.model.state_dict(), "optimizer": run.optimizers.state()}, run.ranks
    )
    if not run.ranks.is_master:
        return
    best = run.best_val_loss if math.isfinite(run.best_val_loss) else None
    checkpoint.save(
        folder / name,
        run.spec,
        step=run.step,
        best_val_loss=best,
        numerics=run.numerics,
        seconds=run.meter.wall_seconds(),
        scaler=run.scaler.state_dict(),
        **state,
    )
    if name == CHECKPOINT:
        folder.set_status(checkpoint_step=run.step, step=run.step)
        run.saved_at = time.perf_counter()
