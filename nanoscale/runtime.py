"""The live parts of one run: built from its folder, put back from a checkpoint, saved to one."""

from __future__ import annotations

import math
import shutil
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nanoscale import checkpoint
from nanoscale.config import ExperimentConfig
from nanoscale.data import Dataset, Sampler, open_dataset
from nanoscale.distributed import Ranks, pick_device, wrap
from nanoscale.errors import UserError
from nanoscale.model import GPT
from nanoscale.optim import Optimizers
from nanoscale.records import CHECKPOINT, RunFolder, RunSpec, checkpoint_file, parse_branch
from nanoscale.resume import check_past
from nanoscale.telemetry import Meter, device_name, peak

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
    def config(self) -> ExperimentConfig:
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


MEDIUM_FROM_WIDTH = 192  # steps are 1.5 times slower with it at 128, 1.3 faster at 256 (LOG)


def matmul_precision(config: ExperimentConfig, device: torch.device) -> str:
    """torch's setting for float32 products: the fastest that is as accurate as float32.

    On some CPUs `medium` picks a backend twice as fast on large products at the same accuracy, on
    others it means bfloat16; so the width and its error on one product decide (2e-7 or 2e-3).
    """
    if device.type != "cpu" or config.n_embd < MEDIUM_FROM_WIDTH:
        return "highest"
    a, b = (torch.from_numpy(x) for x in np.random.RandomState(0).randn(2, 128, 128))
    exact = a @ b
    torch.set_float32_matmul_precision("medium")
    error = (a.float() @ b.float() - exact).norm() / exact.norm()
    return "medium" if error < 1e-6 else "highest"


def decide_numerics(config: ExperimentConfig, device: torch.device,
                    saved: dict[str, Any] | None) -> dict[str, Any]:
    """What bit equality depends on beside the config; a resumed run keeps what it began with."""
    saved = saved or {}
    dtype = config.dtype
    if dtype == "auto":
        gpu = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float16"
        dtype = saved.get("dtype") or (gpu if device.type == "cuda" else "float32")
    threads = config.threads or saved.get("threads")
    if device.type == "cpu" and threads:
        torch.set_num_threads(threads)
    precision = saved.get("matmul_precision") or matmul_precision(config, device)
    torch.set_float32_matmul_precision(precision)
    compiles = saved.get("compile", config.compile)
    if compiles and device.type == "cpu":
        compiles = bool(shutil.which("g++") or shutil.which("clang++"))
    return {"device": device.type, "device_name": device_name(device), "dtype": dtype,
            "threads": torch.get_num_threads() if device.type == "cpu" else None,
            "attention": "sdpa", "compile": compiles,
            "matmul_precision": precision,
            "torch": str(torch.__version__)}


def dataset_of(spec: RunSpec) -> Dataset:
    """The run's dataset; refused if it has changed since the run was made."""
    name = spec.config.dataset
    dataset = open_dataset(name, spec.config.data_root)
    if dataset.fingerprint != spec.data_fingerprint:
        raise UserError(f"dataset {name!r} has changed since this run was made "
                        f"({spec.data_fingerprint[:8]}, now {dataset.fingerprint[:8]}); restore it "
                        "or start a new run")
    return dataset


def build(spec: RunSpec, dataset: Dataset, ranks: Ranks,
          saved: dict[str, Any] | None = None) -> Run:
    """The run at its beginning, or where the checkpoint `saved` left it.

    Raises:
        UserError: the device is not there, or the checkpoint is of another model.
    """
    config = spec.config
    device = pick_device(config, ranks.local)
    numerics = decide_numerics(config, device, saved and saved["numerics"])
    sampler = Sampler(dataset.tokens["train"], config.block_size, config.data_seed,
                      config.data_order)
    model = GPT(config).to(device)
    optimizers = Optimizers(model, config)
    trained = wrap(torch.compile(model) if numerics["compile"] else model, ranks, device)
    scaler = torch.amp.GradScaler(device.type, enabled=numerics["dtype"] == "float16")
    best = peak(device, DTYPES[numerics["dtype"]])
    meter = Meter(spec, best and best * ranks.world, saved["seconds"] if saved else 0.0)
    run = Run(spec, ranks, device, numerics, dataset, sampler, model, trained, optimizers, scaler,
              meter)
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
        run.model.load_state_dict(saved["model"])
        run.optimizers.load_state(saved["optimizer"])
    except (RuntimeError, KeyError) as e:
        raise UserError("the checkpoint's tensors do not fit this model; delete it to start from "
                        "the beginning") from e
    run.scaler.load_state_dict(saved["scaler"])
    run.step = saved["step"]
    run.best_val_loss = math.inf if saved["best_val_loss"] is None else saved["best_val_loss"]


def save(run: Run, folder: RunFolder, name: str = CHECKPOINT) -> None:
    """Write the full state; the folder's rows up to this step are complete."""
    best = run.best_val_loss if math.isfinite(run.best_val_loss) else None
    checkpoint.save(
        folder / name, run.spec, step=run.step, best_val_loss=best, numerics=run.numerics,
        seconds=run.meter.wall_seconds(), model=run.model.state_dict(),
        optimizer=run.optimizers.state(), scaler=run.scaler.state_dict())
    if name == CHECKPOINT:
        folder.set_status(checkpoint_step=run.step, step=run.step)
        run.saved_at = time.perf_counter()
