"""How a run computes: decided once from its config and the machine, recorded, kept on resume.

Bit equality is claimed at equal numerics; where they change, the run's history says from which step
on. Nothing here depends on what is free at the moment.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields
from inspect import isfunction
from typing import Any

import torch

from nanoscale.errors import UserError
from nanoscale.model import kernels
from nanoscale.model.distributed import Ranks
from nanoscale.model.ops import Ops
from nanoscale.model.step_ops import StepOps
from nanoscale.processes import keep_freed_memory
from nanoscale.spec.config import ResolvedConfig
from nanoscale.spec.counting import flops_per_iter, parameter_counts
from nanoscale.spec.values import Json
from nanoscale.training import hardware

MOST_GRADIENTS = 4 * 2**30  # bytes, of all threads of a whole step
MEDIUM_FROM_WIDTH = 192  # torch's operations lose with it at 128 and win at 256 (LOG)
COMPILE_SECONDS = 60.0  # what compilation may cost; a run expected to be shorter stays eager
EAGER_SHARE = 0.3  # of the peak that an eager step of a large model reaches
EAGER_BLOCK_SECONDS = 1e-3  # what launching one block's operations costs, forward and backward
# Recorded where they are known and matter: that one of two is not is no difference.
MACHINE = ("instructions", "compiler")
CPP_COMPILERS = ("g++", "clang++", "cl")  # of which torch.compile needs one
CHOSEN = ("device", "kernels", "compile")  # by keys of these names: others only if asked for
DType = torch.dtype  # `torch` is a field of the record below


@dataclass(frozen=True)
class Numerics:
    """What bit equality depends on beside the config."""

    device: str
    device_name: str
    dtype: str  # of the products
    threads: int | None  # of a CPU
    kernels: str  # "step" or "fused" (ours), or "torch"
    matmul_precision: str  # torch's setting for float32 products
    compile: bool
    torch: str  # its version
    sharding: str | None = None  # "ddp" or "fsdp" over several processes
    instructions: str | None = None  # those of a CPU that compute
    compiler: str | None = None  # its first line about itself; of kernels, or of a compiled model

    @property
    def ours(self) -> bool:
        return self.kernels != "torch"

    @property
    def torch_dtype(self) -> DType:
        dtype: DType = getattr(torch, self.dtype)
        return dtype

    def autocast(self) -> AbstractContextManager[None]:
        """Products in this type; weights, the residual stream and losses stay float32."""
        if self.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.device, dtype=self.torch_dtype)

    def to_json(self) -> dict[str, Json]:
        record = asdict(self)
        for key in ("sharding", *MACHINE):
            if record[key] is None:
                del record[key]
        return record

    def differences(self, other: Numerics) -> dict[str, tuple[Json, Json]]:
        """Each part in which `other` differs, with its value here and there."""
        values = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        return {
            name: (one, two)
            for name, (one, two) in values.items()
            if one != two and not (name in MACHINE and None in (one, two))
        }


@dataclass(frozen=True)
class NumericsFrom:
    """An entry of a run's history: how it computes from after `step` updates on."""

    step: int
    numerics: Numerics

    def to_json(self) -> dict[str, Json]:
        return {"step": self.step, "numerics": self.numerics.to_json()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> NumericsFrom:
        return cls(record["step"], Numerics(**record["numerics"]))


def decide(
    config: ResolvedConfig,
    device: torch.device,
    began: Numerics | None = None,
    asked: Collection[str] = (),
    ranks: Ranks | None = None,
) -> Numerics:
    """The numerics of a run; `apply` puts them into effect.

    `began` is what a resumed run began with, `asked` the keys that the user typed.

    Raises:
        UserError: `kernels=fused` where they cannot be built or are of no use.
    """
    ranks = ranks or Ranks()
    cpu = device.type == "cpu"
    kernel = decide_kernels(config, device, began, asked, ranks.sharded)
    dtype = config.dtype
    if dtype == "auto":
        dtype = began.dtype if began else best_dtype(device, kernel)
    threads = config.threads or (began and began.threads) or torch.get_num_threads()
    sharding = "fsdp" if ranks.sharded else "ddp"
    compiles = decide_compile(config, device, kernel, began, asked)
    return Numerics(
        device=device.type,
        device_name=hardware.device_name(device),
        dtype=dtype,
        threads=threads if cpu else None,
        kernels=kernel,
        matmul_precision=began.matmul_precision if began else precision(config, device, kernel),
        compile=compiles,
        torch=str(torch.__version__),
        sharding=sharding if ranks.world > 1 else None,
        instructions=hardware.instructions() if cpu else None,
        compiler=kernels.compiler_name() if cpu and (compiles or kernel != "torch") else None,
    )


# -- changes --------------------------------------------------------------------------------------
def require_kept(was: Numerics, now: Numerics, typed: Mapping[str, Json]) -> None:
    """Refuse to go on in a way that nobody has chosen where the run's own cannot be had.

    A change of the machine is for who moved the run there: it is told in a line (`change`).

    Raises:
        UserError: the device, the kernels or compilation would be another, and is not `typed`.
    """
    changed = was.differences(now)
    asked = {key for key in changed if str(typed.get(key)).split(":")[0] == str(changed[key][1])}
    if "kernels" in asked or now.sharding == "fsdp":  # they leave the others no choice
        asked |= {"kernels", "compile"}
    for key in CHOSEN:
        if key in changed and key not in asked:
            before, after = changed[key]
            raise UserError(
                f"this run was computed with {key}={before} so far, which cannot be had here; with "
                f"{key}={after} it would not be the same bit for bit: to go on so, give it "
                f"--{key}={after}"
            )


def continued(
    history: Sequence[NumericsFrom], was: Numerics, step: int, now: Numerics
) -> tuple[NumericsFrom, ...]:
    """The history of a run that goes on after `step` updates."""
    if not was.differences(now):
        return tuple(history)
    before = [entry for entry in history if entry.step < step]
    return (*before, NumericsFrom(step, now))


def change(history: Sequence[NumericsFrom], step: int) -> str | None:
    """What changed after `step` updates, in a line; None if nothing did."""
    if len(history) < 2 or history[-1].step != step:
        return None
    differences = history[-2].numerics.differences(history[-1].numerics)
    parts = [f"{key} was {before}, now {after}" for key, (before, after) in differences.items()]
    return (
        f"from step {step} on this run is computed otherwise ({'; '.join(parts)}): "
        "it is not bit for bit the one that began"
    )


def apply(numerics: Numerics) -> None:
    """Put the numerics into effect for this process."""
    if numerics.threads is not None:
        keep_freed_memory()
        torch.set_num_threads(numerics.threads)
    torch.set_float32_matmul_precision(numerics.matmul_precision)
    if not numerics.compile:
        leave_out_dynamo()


def ops(numerics: Numerics) -> Ops:
    """The operations that the numerics name."""
    if numerics.kernels == "torch":
        return Ops()
    return StepOps(trains=numerics.kernels == "step")


# -- the decisions --------------------------------------------------------------------------------
def decide_kernels(
    config: ResolvedConfig,
    device: torch.device,
    began: Numerics | None,
    asked: Collection[str],
    sharded: bool,
) -> str:
    """Our own where they exist, unless a compiled model was asked for by name.

    They hold on to full weights between passes, so a sharded run does without.
    """
    named = config.kernels != "auto"
    ours = named and config.kernels != "torch"
    if sharded and ours:
        raise UserError(
            f"kernels={config.kernels}: they keep whole weights, which sharding=fsdp avoids; use "
            "kernels=auto"
        )
    kept = None if named else began
    if sharded or config.kernels == "torch" or (kept and not kept.ours):
        return "torch"

    compiled = "compile" in asked and config.compile and not named and not kept
    possible = device.type == "cpu" and config.dtype != "float16" and not compiled
    if possible and kernels.library() is not None:
        if kept:
            return kept.kernels
        return config.kernels if ours else best_kernels(config)
    if ours:
        raise UserError(
            f"kernels={config.kernels}: they need a CPU under Linux or macOS, g++ or clang++, "
            "and float32 or bfloat16; use kernels=auto"
        )
    return "torch"


def best_kernels(config: ResolvedConfig) -> str:
    """The CPU's row, unless another type is asked for or its threads do not suit whole steps.

    There each needs a sequence of its own, and room for the gradients of all parameters.
    """
    kernel, dtype = hardware.cpu_choice()
    threads = config.threads or torch.get_num_threads()
    sequences = min(config.micro_batch_size or config.batch_size, config.sequences_per_iter)
    gradients = 4 * threads * parameter_counts(config)["total"]
    if sequences < threads or gradients > MOST_GRADIENTS:
        return "fused"
    if config.dtype in ("auto", dtype):
        return kernel
    return "fused" if config.dtype == "bfloat16" else "step"


def best_dtype(device: torch.device, kernel: str) -> str:
    """bfloat16 where the hardware multiplies in it and the rest of the step keeps up.

    Losses agree with float32's (docs/results/speed). torch's own bfloat16 operations are no faster
    than float32 on a CPU.
    """
    if device.type == "cpu":
        return "float32" if kernel == "torch" else hardware.cpu_choice()[1]
    if hardware.multiplies_bfloat16(device):
        return "bfloat16"
    return "float16" if device.type == "cuda" else "float32"


def precision(config: ResolvedConfig, device: torch.device, kernel: str) -> str:
    """torch's setting for float32 products: the fastest that is as accurate as float32."""
    if device.type != "cpu" or (kernel == "torch" and config.n_embd < MEDIUM_FROM_WIDTH):
        return "highest"  # CUDA's stays exact
    return "medium" if hardware.medium_is_exact() else "highest"


def decide_compile(
    config: ResolvedConfig,
    device: torch.device,
    kernel: str,
    began: Numerics | None,
    asked: Collection[str],
) -> bool:
    """Whether torch.compile is allowed, possible, and pays for itself within the run."""
    wanted = began.compile if began else config.compile
    if not wanted or kernel != "torch":
        return False
    if device.type == "cpu" and not any(map(shutil.which, CPP_COMPILERS)):
        return False
    return began is not None or "compile" in asked or pays(config, device)


def pays(config: ResolvedConfig, device: torch.device) -> bool:
    """Whether the run would last so long without compilation that it is worth its time.

    A rough forecast: its FLOPs, or its launches if they last longer.
    """
    peak = hardware.peak_flops(hardware.device_name(device)) or 1e12
    step = flops_per_iter(config) / (EAGER_SHARE * peak)
    launches = config.n_layer * config.gradient_accumulation_steps * EAGER_BLOCK_SECONDS
    return config.max_iters * max(step, launches) > COMPILE_SECONDS


# -- into effect ----------------------------------------------------------------------------------
def leave_out_dynamo() -> None:
    """Let optimizers be made without importing torch's compiler: 1.3 s of every start.

    torch wraps their methods so that it skips them, and imports it to do so; the mark that it
    leaves on a wrapped function, set here, makes the function be called as it is.
    """
    for method in vars(torch.optim.Optimizer).values():
        if isfunction(method) and hasattr(method, "__wrapped__"):
            vars(method.__wrapped__).setdefault("__dynamo_disable", method.__wrapped__)
