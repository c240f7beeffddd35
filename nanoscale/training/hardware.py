"""Hardware facts: which device there is, its name, how fast it is, what it computes well."""

from __future__ import annotations

import time

import numpy as np
import torch

from nanoscale.cpu import cpu_flags, cpu_name
from nanoscale.errors import UserError
from nanoscale.spec.config import ExperimentConfig

# Dense bf16 (fp16 where there is no bf16) peak in FLOP/s, from data sheets, without sparsity.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "GH200": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 6000 Ada": 364e12,
    "RTX A6000": 155e12,
    "RTX 5090": 209.5e12,
    "RTX 4090": 165.2e12,
    "RTX 4080": 97.5e12,
    "RTX 3090": 71e12,
    "RTX 3080": 59.5e12,
    "V100": 125e12,
    "T4": 65e12,
    "MI300X": 1307e12,
    "MI250X": 383e12,
}
# How the names of a CPU's instructions for arithmetic begin, x86's and ARM's.
COMPUTING = ("sse", "ssse", "avx", "fma", "f16c", "amx", "asimd", "sve", "sme", "bf16", "i8mm")
# By the widest instructions that a CPU has: whose operations, and the type of their products. Each
# row is what was fastest where it was measured (docs/results/speed; `make bench` compares all).
CPU_CHOICES = {
    "amx_bf16": ("fused", "bfloat16"),
    "avx512_bf16": ("fused", "bfloat16"),
    "avx512_f": ("step", "float32"),
    "avx2": ("step", "float32"),
}
ABILITIES = {  # as people call them, by torch's names on x86 and on ARM
    "AVX2": ("avx2",),
    "AVX-512": ("avx512_f",),
    "SVE": ("sve",),
    "bfloat16": ("avx512_bf16", "arm_bf16", "bf16"),
    "AMX": ("amx_bf16",),
}
SAFE_CHOICE = ("fused", "float32")  # products by torch's library, which knows every CPU
PEAK_SECONDS = 0.1  # for measuring a CPU's
# Words that make it another, slower or faster, device than the one named.
OTHER_DEVICE = {"Laptop", "Mobile", "Max", "Ti", "SUPER", "MIG"}


def pick_device(config: ExperimentConfig, local: int = 0) -> torch.device:
    """`auto` is CUDA, then Apple's MPS, then the CPU; anything else is checked.

    `local` is this process's number on its machine, and its CUDA device's.
    """
    wanted = config.device
    if wanted == "auto":
        wanted = best_device()
    if wanted == "cuda":
        wanted = f"cuda:{local}"
    try:
        device = torch.device(wanted)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as e:
        raise UserError(
            f"device={config.device}: not available here; use device=auto or device=cpu"
        ) from e
    return device


def torch_build() -> tuple[str, str]:
    """torch's version, and for what it was built."""
    hip = getattr(torch.version, "hip", None)
    if hip:
        return str(torch.__version__), f"ROCm {hip}"
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs"
    if torch.backends.mps.is_built():
        built += " and Apple's MPS"
    return str(torch.__version__), built


def gpus() -> list[tuple[str, int]]:
    """What beside the CPU computes here, with its bytes of memory; 0: it shares the CPU's."""
    found = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(number)
        found.append((properties.name, properties.total_memory))
    if torch.backends.mps.is_available():
        found.append(("Apple's MPS", 0))
    return found


def cpu_abilities() -> dict[str, bool]:
    """The instruction sets by which products are fast, of this kind of CPU, and if it has them."""
    capabilities = torch.cpu.get_capabilities()
    abilities = {}
    for name, keys in ABILITIES.items():
        known = [capabilities[key] for key in keys if key in capabilities]
        if known:
            abilities[name] = any(known)
    return abilities


def best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def device_name(device: torch.device) -> str:
    """The hardware's own name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return (device.type == "cpu" and cpu_name()) or device.type


def instructions() -> str | None:
    """The CPU's instructions that compute, by which compiled code differs; None where unknown.

    Two machines of one name in a cloud may have others.
    """
    names = cpu_flags().partition(":")[2].split()
    return " ".join(sorted(name for name in names if name.startswith(COMPUTING))) or None


# -- how fast -------------------------------------------------------------------------------------
def peak_flops(device_name: str) -> float | None:
    """The device's dense bf16 peak in FLOP/s; None where it is unknown, so MFU is null there."""
    words = set(device_name.replace("-", " ").split())
    if words & OTHER_DEVICE:
        return None
    return next((peak for name, peak in PEAK_FLOPS.items() if words.issuperset(name.split())), None)


def peak(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s that MFU is relative to: the data sheet's for a GPU, measured for a CPU.

    That takes 0.1 s; three products where one is slow, as in bfloat16 without instructions for it.
    """
    if device.type == "cuda":
        return peak_flops(device_name(device))
    if device.type != "cpu":
        return None
    return product_speed(device, dtype)


def product_speed(device: torch.device, dtype: torch.dtype, n: int = 512) -> float:
    """FLOP/s of products of n x n matrices, measured."""
    a = torch.ones(n, n, dtype=dtype, device=device)
    until = time.perf_counter() + PEAK_SECONDS
    seconds: list[float] = []
    while len(seconds) < 3 or time.perf_counter() < until:
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds)  # the best of many: a busy machine shows its peak rarely


def product_speeds(device: torch.device) -> dict[str, float]:
    """The same by the name of the type, of those that a run could choose."""
    n = 512 if device.type == "cpu" else 4096
    types = [torch.float32]
    if multiplies_bfloat16(device):
        types.append(torch.bfloat16)
    return {str(t).removeprefix("torch."): product_speed(device, t, n) for t in types}


# -- what it computes well ------------------------------------------------------------------------
def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for products in bfloat16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def cpu_choice() -> tuple[str, str]:
    """The kernels and the type of products for this CPU: a row of `CPU_CHOICES`."""
    capabilities = torch.cpu.get_capabilities()
    rows = (choice for needed, choice in CPU_CHOICES.items() if capabilities.get(needed))
    return next(rows, SAFE_CHOICE)


def medium_is_exact() -> bool:
    """Whether torch's `medium` float32 products are as accurate as float32 on this CPU.

    On some CPUs it picks a backend twice as fast at the same accuracy, on others it means bfloat16;
    so its error on one product decides (2e-7 or 2e-3).
    """
    a, b = torch.from_numpy(np.random.RandomState(0).randn(2, 128, 128))
    exact = a @ b
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    error = (a.float() @ b.float() - exact).norm() / exact.norm()
    torch.set_float32_matmul_precision(before)
    return bool(error < 1e-6)
