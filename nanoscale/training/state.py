"""The live state of one run: built from its folder, put back from a checkpoint, saved to one."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from nanoscale.data.dataset import Dataset, TrainingSamples, open_dataset
from nanoscale.errors import UserError
from nanoscale.model.distributed import Ranks, gathered, held_as, local, place, wrap
from nanoscale.model.gpt import GPT
from nanoscale.model.init_from import first_values
from nanoscale.model.optim import Optimizers, OptimizerState
from nanoscale.model.whole_update import WholeUpdate, whole_update
from nanoscale.spec.config import ResolvedConfig
from nanoscale.spec.identity import RunSpec
from nanoscale.store.folder import CHECKPOINT, RunFolder
from nanoscale.store.resume import check_past, is_early_end, own_best, start_of
from nanoscale.training import checkpoint, numerics
from nanoscale.training.halves import Halves
from nanoscale.training.hardware import peak, pick_device
from nanoscale.training.numerics import Numerics, NumericsFrom
from nanoscale.training.telemetry import Meter

NOT_PROFILED = nullcontext()


class Listener(Protocol):
    """Who is told where a part of a step happens."""

    def part(self, name: str) -> AbstractContextManager[None]:
        """What happens in it is that part of the step (`step_profile.STEP_PARTS`)."""


@dataclass
class Run:
    """Everything that one update needs, and where the run stands."""

    spec: RunSpec
    ranks: Ranks
    device: torch.device
    numerics: Numerics
    dataset: Dataset
    samples: TrainingSamples
    model: GPT  # the bare model: evaluation, statistics, checkpoints
    trained: nn.Module  # the same, compiled and spread over ranks as asked
    optimizers: Optimizers
    scaler: torch.amp.GradScaler
    meter: Meter
    history: tuple[NumericsFrom, ...]
    step: int = 0  # completed updates
    best_val_loss: float = math.inf
    saved_at: float = field(default_factory=time.perf_counter)
    profiler: Listener | None = None  # while updates are profiled

    @property
    def config(self) -> ResolvedConfig:
        return self.spec.config

    @functools.cached_property
    def whole(self) -> WholeUpdate | None:
        """All of an update in one call, where there is one; no state is put back after it."""
        if self.ranks.world > 1:
            return None
        with self.numerics.autocast():
            return whole_update(self.model, self.optimizers, self.config.grad_clip)

    @functools.cached_property
    def halves(self) -> Halves | None:
        """What two halves of every batch say, where statistics are asked for and there are two."""
        if not self.config.stats_interval or self.config.sequences_per_iter < 2:
            return None
        return Halves(self.config, self.optimizers, self.scaler, self.ranks)

    def to_device(self, *arrays: np.ndarray) -> list[Tensor]:
        """Arrays of tokens as tensors on the run's device; a foreign token is a `UserError`."""
        self.dataset.require_known(*arrays)
        tensors = [torch.from_numpy(a) for a in arrays]
        if self.device.type == "cuda":
            return [t.pin_memory().to(self.device, non_blocking=True) for t in tensors]
        return [t.to(self.device) for t in tensors]

    def part(self, name: str) -> AbstractContextManager[None]:
        """What a part of a step happens in; nothing unless somebody listens."""
        if self.profiler is None:
            return NOT_PROFILED
        return self.profiler.part(name)

    def agree(self, *flags: bool) -> list[bool]:
        """Which flags any rank raises, known to all of them."""
        if self.ranks.world == 1:
            return list(flags)
        raised = self.ranks.sum(torch.tensor(flags, dtype=torch.float32, device=self.device))
        return [count > 0 for count in raised.tolist()]


def dataset_of(spec: RunSpec) -> Dataset:
    """The run's dataset; refused if it has changed since the run was made."""
    name = spec.config.dataset
    dataset = open_dataset(name, spec.config.data_root, spec.val_sets)
    if dataset.fingerprint != spec.data_fingerprint:
        sets = spec.changed_sets(dataset.parts)
        what = f"the validation set {sets} of " if sets else ""
        raise UserError(
            f"{what}dataset {name!r} has changed since this run was made "
            f"({spec.data_fingerprint[:8]}, now {dataset.fingerprint[:8]}); restore it "
            "or start a new run"
        )
    return dataset


@dataclass(frozen=True)
class Checkpoint:
    """The full state of a run after `step` updates, as its file holds it."""

    spec: RunSpec
    step: int
    best_val_loss: float | None
    numerics: Numerics
    history: tuple[NumericsFrom, ...]  # of its numerics
    seconds: float  # since the run's beginning
    scaler: dict[str, Any]  # torch's own record
    model: Mapping[str, Tensor]
    optimizer: OptimizerState

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        content = checkpoint.load(path)
        try:
            content["numerics"] = Numerics(**content["numerics"])
            history = map(NumericsFrom.from_json, content.get("history", []))
            content["history"] = tuple(history) or (NumericsFrom(0, content["numerics"]),)
            return cls(**{f.name: content[f.name] for f in fields(cls)})
        except (KeyError, TypeError) as e:
            raise UserError(
                f"{path}: holds weights, not the whole state of a run; delete it to start from "
                "the beginning"
            ) from e


def build(
    spec: RunSpec,
    dataset: Dataset,
    ranks: Ranks,
    saved: Checkpoint | None = None,
    values: Mapping[str, Tensor] | None = None,
) -> Run:
    """The run at its beginning, or where the checkpoint `saved` left it.

    `values` are the weights that it begins with, where they have been read already.

    Raises:
        UserError: the device is not there, or the checkpoint is of another model.
    """
    config = spec.config
    device = pick_device(config, ranks.local)
    began = saved.numerics if saved else None
    how = numerics.decide(config, device, began, spec.typed, ranks)
    numerics.apply(how)
    history: tuple[NumericsFrom, ...] = (NumericsFrom(0, how),)
    if saved:
        history = numerics.continued(saved.history, saved.numerics, saved.step, how)

    if values is None and spec.weights and not saved:
        values = first_values(spec.weights, config.block_size)
    model = GPT(config, numerics.ops(how), values=values)
    place(model, model.transformer.h, ranks, device)
    muon_dtype = torch.bfloat16 if how.dtype == "bfloat16" else None
    optimizers = Optimizers(model, model.rules, ranks, in_kernel=how.ours, muon_dtype=muon_dtype)
    best = peak(device, how.torch_dtype)

    run = Run(
        spec=spec,
        ranks=ranks,
        device=device,
        numerics=how,
        dataset=replace(dataset, vocab_size=min(dataset.vocab_size, config.vocab_size)),
        samples=TrainingSamples(
            dataset.tokens["train"], config.block_size, config.data_seed, config.data_order
        ),
        model=model,
        trained=wrap(compiled(model, how, ranks), ranks, device),
        optimizers=optimizers,
        scaler=torch.amp.GradScaler(device.type, enabled=how.dtype == "float16"),
        meter=Meter(config, best and best * ranks.world, saved.seconds if saved else 0.0),
        history=history,
    )
    if saved:
        restore(run, saved)
    return run


def compiled(model: GPT, how: Numerics, ranks: Ranks) -> nn.Module:
    """The model, compiled if that was decided, its launches replayed if that was asked for.

    Not where a rank has several micro-batches: their gradients would add up in memory that the next
    replay overwrites (pytorch issue 169545).
    """
    if not how.compile:
        return model
    config = model.config
    at_once = ranks.world * (config.micro_batch_size or config.batch_size)
    graphs = config.cuda_graphs and how.device == "cuda" and at_once >= config.sequences_per_iter
    function = torch.compile(model, mode="reduce-overhead" if graphs else None)
    return cast(nn.Module, function)  # of a module it makes a module


# -- checkpoints ----------------------------------------------------------------------------------
def load_start(spec: RunSpec, folder: RunFolder) -> Checkpoint | None:
    """The checkpoint to continue from, the folder's or else the parent's, its past checked."""
    path = start_of(folder, spec)
    if path is None:
        return None
    saved = Checkpoint.load(path)
    check_past(saved.spec, spec, saved.step, path)
    if path != folder / CHECKPOINT:  # a branch's best is its own, not its parent's
        return replace(saved, best_val_loss=None)
    if saved.step == saved.spec.config.max_iters and is_early_end(spec, saved.step):
        rows = [row for row in folder.rows() if row["step"] < saved.step]
        return replace(saved, best_val_loss=own_best(spec, rows))
    return saved


def restore(run: Run, saved: Checkpoint) -> None:
    """Put a checkpoint's content back."""
    try:
        now = run.model.state_dict()
        weights = {name: held_as(value, now[name]) for name, value in saved.model.items()}
        run.model.load_state_dict(weights)
        run.optimizers.load_state(saved.optimizer)
    except (RuntimeError, KeyError) as e:
        raise UserError(
            "the checkpoint's tensors do not fit this model; delete it to start from the beginning"
        ) from e
    run.scaler.load_state_dict(saved.scaler)
    run.step = saved.step
    if saved.best_val_loss is not None:
        run.best_val_loss = saved.best_val_loss


def save(run: Run, folder: RunFolder, name: str = CHECKPOINT) -> None:
    """Write the full state; the folder's rows up to this step are complete.

    Every rank calls it, the master writes. A state that is not finite is never written: nothing can
    come of it, and the next row says that the run has diverged.
    """
    finite = all(bool(local(p).isfinite().all()) for p in run.model.parameters())
    if any(run.agree(not finite)):
        return

    state = gathered(
        {"model": run.model.state_dict(), "optimizer": run.optimizers.state()}, run.ranks
    )
    if not run.ranks.is_master:
        return
    checkpoint.save(
        folder / name,
        run.spec,
        step=run.step,
        best_val_loss=run.best_val_loss if math.isfinite(run.best_val_loss) else None,
        numerics=run.numerics.to_json(),
        history=[entry.to_json() for entry in run.history],
        seconds=run.meter.wall_seconds(),
        scaler=run.scaler.state_dict(),
        **state,
    )
    if name == CHECKPOINT:
        folder.set_status(checkpoint_step=run.step, step=run.step)
        run.saved_at = time.perf_counter()
