"""How a run computes: decided once from its config and the machine, recorded, kept on resume.

Bit equality is claimed at equal numerics. Nothing here depends on what is free at the moment.
"""

from __future__ import annotations

import ctypes
import platform
import shutil
from contextlib import suppress
from inspect import isfunction
from typing import Any

import numpy as np
import torch

from nanoscale.errors import UserError
from nanoscale.model import kernels
from nanoscale.model.distributed import Ranks
from nanoscale.model.fused_ops import FusedOps
from nanoscale.model.ops import Ops
from nanoscale.spec.config import ResolvedConfig
from nanoscale.spec.counting import flops_per_iter, peak_flops
from nanoscale.training.telemetry import device_name

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MEDIUM_FROM_WIDTH = 192  # torch's operations lose with it at 128 and win at 256 (LOG)
COMPILE_SECONDS = 60.0  # what compilation may cost; a run expected to be shorter stays eager
EAGER_SHARE = 0.3  # of the peak that an eager step of a large model reaches
EAGER_BLOCK_SECONDS = 1e-3  # what launching one block's operations costs, forward and backward
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def decide(
    config: ResolvedConfig,
    device: torch.device,
    saved: dict[str, Any] | None = None,
    asked: frozenset[str] = frozenset(),
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """What bit equality depends on beside the config, put into effect for this process.

    `saved` is what a resumed run began with, `asked` the keys that the user typed.
    """
    saved, ranks = saved or {}, ranks or Ranks()
    kernel = decide_kernels(config, device, saved, asked, ranks.sharded)
    dtype = config.dtype
    if dtype == "auto":
        dtype = saved.get("dtype") or best_dtype(device, kernel)
    threads = config.threads or saved.get("threads")
    if device.type == "cpu":
        keep_memory()
        if threads:
            torch.set_num_threads(threads)
    precision = saved.get("matmul_precision") or matmul_precision(config, device, kernel)
    torch.set_float32_matmul_precision(precision)
    compiles = decide_compile(config, device, kernel, saved, asked)
    if not compiles:
        leave_out_dynamo()
    return {
        "device": device.type,
        "device_name": device_name(device),
        "dtype": dtype,
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "kernels": kernel,
        "matmul_precision": precision,
        "compile": compiles,
        "torch": str(torch.__version__),
        **({"sharding": "fsdp" if ranks.sharded else "ddp"} if ranks.world > 1 else {}),
    }


def ops(numerics: dict[str, Any]) -> Ops:
    """The operations that the numerics name."""
    return FusedOps() if numerics["kernels"] == "fused" else Ops()


def decide_kernels(
    config: ResolvedConfig,
    device: torch.device,
    saved: dict[str, Any],
    asked: frozenset[str],
    sharded: bool = False,
) -> str:
    """Our own where they exist, unless a compiled model was asked for by name.

    They hold on to whole weights between passes, so a sharded run does without.

    Raises:
        UserError: `kernels=fused` where they cannot be built.
    """
    if sharded and config.kernels == "fused":
        raise UserError(
            "kernels=fused: they keep whole weights, which sharding=fsdp avoids; use kernels=auto"
        )
    if sharded or config.kernels == "torch" or (saved and saved.get("kernels", "torch") == "torch"):
        return "torch"
    compiled = "compile" in asked and config.compile and config.kernels == "auto"
    there = (
        device.type == "cpu"
        and config.dtype != "float16"
        and not compiled
        and kernels.library() is not None
    )
    if config.kernels == "fused" and not there:
        raise UserError(
            "kernels=fused: they need a CPU under Linux, g++, and float32 or bfloat16; "
            "use kernels=auto"
        )
    return "fused" if there else "torch"


def best_dtype(device: torch.device, kernel: str) -> str:
    """bfloat16 where the hardware multiplies in it and the rest of the step keeps up.

    Losses agree with float32's (docs/results/speed). torch's own bfloat16 operations are no faster
    than float32 on a CPU.
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    found = torch.cpu.get_capabilities() if device.type == "cpu" and kernel == "fused" else {}
    return "bfloat16" if found.get("avx512_bf16") or found.get("amx_bf16") else "float32"


def matmul_precision(config: ResolvedConfig, device: torch.device, kernel: str) -> str:
    """torch's setting for float32 products: the fastest that is as accurate as float32.

    On some CPUs `medium` picks a backend twice as fast at the same accuracy, on others it means
    bfloat16; so its error on one product decides (2e-7 or 2e-3). CUDA's stays exact.
    """
    if device.type != "cpu" or (kernel == "torch" and config.n_embd < MEDIUM_FROM_WIDTH):
        return "highest"
    a, b = (torch.from_numpy(x) for x in np.random.RandomState(0).randn(2, 128, 128))
    exact = a @ b
    torch.set_float32_matmul_precision("medium")
    error = (a.float() @ b.float() - exact).norm() / exact.norm()
    return "medium" if error < 1e-6 else "highest"


def decide_compile(
    config: ResolvedConfig,
    device: torch.device,
    kernel: str,
    saved: dict[str, Any],
    asked: frozenset[str],
) -> bool:
    """Whether torch.compile is allowed, possible, and pays for itself within the run."""
    compiles = saved.get("compile", config.compile) and kernel == "torch"
    if compiles and device.type == "cpu":
        compiles = bool(shutil.which("g++") or shutil.which("clang++"))
    if "compile" in saved or "compile" in asked:
        return compiles
    return compiles and eager_seconds(config, device) > COMPILE_SECONDS


def eager_seconds(config: ResolvedConfig, device: torch.device) -> float:
    """A rough forecast of the run without compilation: its FLOPs, or its launches if they last."""
    peak = peak_flops(device_name(device)) or 1e12
    step = flops_per_iter(config) / (EAGER_SHARE * peak)
    launches = config.n_layer * config.gradient_accumulation_steps * EAGER_BLOCK_SECONDS
    return config.max_iters * max(step, launches)


def leave_out_dynamo() -> None:
    """Let optimizers be made without importing torch's compiler: 1.3 s of every start.

    torch wraps their methods so that it skips them, and imports it to do so; the mark that it
    leaves on a wrapped function, set here, makes the function be called as it is.
    """
    for method in vars(torch.optim.Optimizer).values():
        if isfunction(method) and hasattr(method, "__wrapped__"):
            vars(method.__wrapped__).setdefault("__dynamo_disable", method.__wrapped__)


def keep_memory() -> None:
    """Ask glibc to reuse freed blocks: fresh pages for every activation cost a tenth of a step."""
    if platform.libc_ver()[0] != "glibc":
        return
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the largest it takes
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
