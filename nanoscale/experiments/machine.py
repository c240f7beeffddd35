"""What this machine can run at once: slots, found without torch.

One worker per GPU, or as many as physical cores allow at the study's threads per run. Threads are
fixed by the study, never by what is free: a sum's rounding depends on them. Oversubscribed cores
are 4 to 7 times slower (OpenMP's barriers spin), so cores are counted, not logical CPUs.
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from itertools import cycle, islice

from nanoscale.cpu import is_apples_own
from nanoscale.processes import busy_cpus, can_pin, physical_cores

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}  # threads sleep at a barrier
WAITING_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # of a user's choice


@dataclass(frozen=True)
class Slot:
    """Where one run at a time goes: its process's environment and CPUs (none named: any)."""

    env: Mapping[str, str]
    cpus: tuple[int, ...] = ()


def slots(device: str, threads: int | None, workers: int | None) -> list[Slot]:
    """The slots of this machine for runs on `device` with `threads` CPU threads each."""
    on_cuda = on_gpu(device)
    if on_cuda or device == "mps" or (device == "auto" and is_apples_own()):
        places = [Slot({})]
        if on_cuda and ":" not in device:  # cuda:1 counts among all GPUs, so none may be hidden
            places = [Slot({"CUDA_VISIBLE_DEVICES": name}) for name in gpus()] or places
        return list(islice(cycle(places), workers or len(places)))

    free = physical_cores()
    each = threads or len(free)
    count = workers or max(1, len(free) // each)
    env = thread_environment(each)
    # A worker is pinned only when together they take every core; else the kernel spreads them
    # better than we could, as other runners may have the first cores too.
    if count * each != len(free) or not can_pin():
        return [Slot(env)] * count
    return [Slot(env, tuple(free[i : i + each])) for i in range(0, len(free), each)]


def thread_environment(threads: int) -> dict[str, str]:
    """What tells a process how many threads to use, and not to burn a core while it waits."""
    return dict.fromkeys(THREAD_VARIABLES, str(threads)) | PASSIVE


def waiting(threads: int | None) -> dict[str, str]:
    """How a process's threads are to wait for each other, if not by OpenMP's default: spinning.

    That is fastest while each has a core; where others are at work too, a step waits for whoever
    has lost its core, and takes ten times as long. OpenMP looks once, when torch is loaded.
    """
    busy = busy_cpus()  # with others' threads
    if busy is None or any(map(os.environ.get, WAITING_VARIABLES)):
        return {}
    wanted = threads or len(physical_cores())
    return PASSIVE if busy + wanted > (os.cpu_count() or 1) + 0.5 else {}


def on_gpu(device: str) -> bool:
    """Whether runs on `device` use CUDA here."""
    return device.startswith("cuda") or (device == "auto" and bool(gpus()))


def gpus() -> list[str]:
    """The names CUDA_VISIBLE_DEVICES understands, of the GPUs that runs may use."""
    try:
        if "+cpu" in metadata.version("torch"):
            return []
    except metadata.PackageNotFoundError:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name and name != "-1"]
    return list(nvidia_gpus())


@functools.cache
def nvidia_gpus() -> tuple[str, ...]:
    """NVIDIA's GPUs by their UUIDs, whatever torch was built for."""
    # by UUID: nvidia-smi and CUDA may number the same GPUs differently
    query = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        listed = subprocess.check_output(
            query, stderr=subprocess.PIPE, encoding="utf-8", timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(listed.split())
