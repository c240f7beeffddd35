"""What a run tells while it runs: rows and their mirrors, throughput, statistics per role.

`metrics.jsonl` is the record; TensorBoard and W&B repeat it. Statistics cost nothing on the steps
that do not ask for them.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nanoscale.errors import disk_errors
from nanoscale.model.distributed import whole
from nanoscale.model.gpt import GPT, Probe
from nanoscale.spec.architecture import tensors
from nanoscale.spec.counting import flops_per_iter, peak_flops
from nanoscale.spec.identity import RunSpec
from nanoscale.store.files import row_line
from nanoscale.store.folder import LOG, ROWS, RunFolder


class Log:
    """Lines for people: on standard output and in the folder's `log.txt`, each once."""

    def __init__(self, folder: RunFolder) -> None:
        with disk_errors(folder / LOG):
            self.file = (folder / LOG).open("a", encoding="utf-8")
        try:  # a worker's standard output may be that very file
            same = os.path.samestat(os.fstat(sys.stdout.fileno()), os.fstat(self.file.fileno()))
        except (OSError, ValueError):
            same = False
        self.echo = not same

    def __call__(self, line: str) -> None:
        if self.echo:
            print(line, flush=True)
        with disk_errors(self.file.name):
            self.file.write(line + "\n")
            self.file.flush()

    def close(self) -> None:
        self.file.close()


class Rows:
    """Appends rows to `metrics.jsonl` and repeats them to the mirrors that the config asks for."""

    def __init__(self, folder: RunFolder, spec: RunSpec) -> None:
        self.path = folder / ROWS
        with disk_errors(self.path):
            self.file = self.path.open("a", encoding="utf-8")
        self.mirrors = [
            mirror(folder, spec)
            for wanted, mirror in (
                (spec.config.tensorboard_log, TensorBoardMirror),
                (spec.config.wandb_log, WandbMirror),
            )
            if wanted
        ]

    def write(self, row: Mapping[str, Any]) -> None:
        with disk_errors(self.path):
            self.file.write(row_line(row))
            self.file.flush()
        for mirror in self.mirrors:
            mirror.write(row["step"], flat_numbers(row))

    def close(self) -> None:
        self.file.close()
        for mirror in self.mirrors:
            mirror.close()


def flat_numbers(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a row under slash-separated names."""
    flat: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            flat |= flat_numbers(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            flat[prefix + key] = value
    return flat


class TensorBoardMirror:
    """Rows as TensorBoard scalars in the run folder."""

    def __init__(self, folder: RunFolder, spec: RunSpec) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder.path))

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WandbMirror:
    """Rows as a W&B run whose id is the run's (WANDB_MODE=offline needs no account)."""

    def __init__(self, folder: RunFolder, spec: RunSpec) -> None:
        import wandb

        config = spec.config
        self.run = wandb.init(
            project=config.wandb_project,
            name=config.wandb_run_name,
            id=spec.id,
            resume="allow",
            dir=str(folder.path),
            config=config.to_dict(),
        )

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self.run.log(dict(numbers), step=step)

    def close(self) -> None:
        self.run.finish()


# -- throughput ---------------------------------------------------------------------------------
def device_name(device: torch.device) -> str:
    """The hardware's own name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu" and os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    return device.type


def peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s that MFU is relative to: the data sheet's for a GPU, measured for a CPU (0.1 s)."""
    if device.type == "cuda":
        return peak_flops(device_name(device))
    if device.type != "cpu":
        return None
    n, best = 512, float("inf")
    a = torch.ones(n, n, dtype=dtype)
    for _ in range(40):  # the best of many: a busy machine shows its peak rarely
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


class Meter:
    """Seconds spent in updates since the last row, as the timing columns."""

    def __init__(self, spec: RunSpec, peak: float | None, spent: float = 0.0) -> None:
        self.tokens, self.flops = spec.config.tokens_per_iter, flops_per_iter(spec.config)
        self.peak, self.before, self.started = peak, spent, time.perf_counter()
        self.seconds, self.steps = 0.0, 0
        self.total_seconds, self.total_steps, self.first = 0.0, 0, True

    def add(self, seconds: float) -> None:
        self.seconds, self.steps = self.seconds + seconds, self.steps + 1
        if self.first:  # it pays for compilation and cold caches
            self.first = False
            return
        self.total_seconds += seconds
        self.total_steps += 1

    def wall_seconds(self) -> float:
        """Since the run's beginning, over all its processes."""
        return self.before + time.perf_counter() - self.started

    def columns(self) -> dict[str, float | None]:
        """The timing columns of a row; starts the next one."""
        row = self.rates(self.seconds, self.steps)
        self.seconds, self.steps = 0.0, 0
        return row

    def totals(self) -> dict[str, float | None]:
        """The timing columns over all updates of this process but the first."""
        return self.rates(self.total_seconds, self.total_steps)

    def rates(self, seconds: float, steps: int) -> dict[str, float | None]:
        per_step = seconds / steps if steps else None
        rate = steps / seconds if seconds else None
        mfu = self.flops * rate / self.peak if rate and self.peak else None
        return {
            "time_ms": per_step and per_step * 1000,
            "mfu": mfu,
            "tokens_per_second": rate and self.tokens * rate,
            "wall_seconds": self.wall_seconds(),
        }


# -- statistics ---------------------------------------------------------------------------------
def rms_by_role(model: GPT, values: Mapping[str, Tensor]) -> dict[str, float]:
    """Role -> root mean square over all the elements of its tensors in `values` (by name)."""
    squares: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for spec in tensors(model.config):
        if spec.name in values:
            squares[spec.role] += whole(values[spec.name].double().square().sum()).item()
            counts[spec.role] += spec.numel
    return {role: (squares[role] / counts[role]) ** 0.5 for role in counts}


def weights(model: GPT) -> dict[str, Tensor]:
    """Copies of the parameters by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def gradients(model: GPT) -> dict[str, Tensor]:
    """The gradients by name, where there are any."""
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


CHANGE_TOKENS = 4096  # at most, on which changes are measured: the activations of all are kept


def probe_forward(model: GPT, idx: Tensor, probe: Probe) -> None:
    """Show `probe` the activations on tokens `idx` (B, T), dropout off."""
    was_training = model.training
    model.eval()
    model(idx, probe=probe)
    model.train(was_training)


def rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item()


@torch.no_grad()
def activation_statistics(
    model: GPT, idx: Tensor, kept: dict[str, Tensor] | None = None
) -> dict[str, Any]:
    """Sizes of the activations on tokens `idx` (B, T), dropout off.

    activation_rms by kind (`attn` and `mlp` branch outputs averaged over blocks, `last_block`),
    `logit_rms`, `attention_logit_rms` of what is not masked, averaged over blocks, and
    `max_attention_logit`, the largest entry any softmax sees. The activations of the first
    sequences go into `kept`, by name, for `activation_changes`.
    """
    seen: dict[str, list[float]] = defaultdict(list)
    some = max(1, CHANGE_TOKENS // idx.size(1))

    def probe(name: str, x: Tensor) -> None:
        kind = name.rsplit(".", 1)[-1]
        if kind == "scores":
            seen["largest"].append(x.max().item())
            shown = x != -math.inf
            seen[kind].append(rms(x.where(shown, 0.0)) / shown.double().mean().sqrt().item())
            return
        seen[kind].append(rms(x))
        if kept is not None and kind_of(name, model):
            kept[name] = x[:some].clone()

    probe_forward(model, idx, probe)
    mean = {kind: sum(v) / len(v) for kind, v in seen.items()}
    return {
        "activation_rms": {
            "embedding": mean["embedding"],
            "attn": mean["attn"],
            "mlp": mean["mlp"],
            "last_block": seen["out"][-1],
        },
        "logit_rms": mean["logits"],
        "attention_logit_rms": mean["scores"],
        "max_attention_logit": max(seen["largest"]),
    }


@torch.no_grad()
def activation_changes(model: GPT, idx: Tensor, kept: Mapping[str, Tensor]) -> dict[str, float]:
    """Kind, as in `activation_rms` -> how far its activations lie from those `kept` before."""
    changes: dict[str, list[float]] = defaultdict(list)

    def probe(name: str, x: Tensor) -> None:
        if name in kept:
            changes[kind_of(name, model)].append(rms(x - kept[name]))

    probe_forward(model, idx[: len(kept["embedding"])], probe)
    return {kind: sum(v) / len(v) for kind, v in changes.items()}


def kind_of(name: str, model: GPT) -> str | None:
    """The kind of a named activation in `activation_rms`, if it is one of them."""
    if name == f"h.{model.config.n_layer - 1}.out":
        return "last_block"
    kind = name.rsplit(".", 1)[-1]
    return kind if kind in ("embedding", "attn", "mlp") else None
