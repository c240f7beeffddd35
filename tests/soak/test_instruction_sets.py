"""The kernels by every instruction set and compiler, in 1,000 random architectures each, against
torch's operations: gradients to 1e-4 in float32.
"""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import (
    Case,
    built_with,
    compare,
    compare_narrow,
    compare_updates,
    differences,
    distance,
)
from torch import Tensor

from nanoscale.model import kernels
from nanoscale.model.ops import Ops
from nanoscale.model.step_ops import Step, StepOps, site_keys

HERE = Path(__file__).parent
CASES, BLOCKS = 1000, 10
EMULATED = ("-march=x86-64-v4", "-include", str(HERE / "bf16.h"))
SETS = {  # name -> what the CPU must have, the compiler, its flags
    "SSE4": ("sse4_2", "g++", ("-march=x86-64-v2",)),
    "AVX": ("avx", "g++", ("-march=sandybridge",)),
    "AVX2": ("avx2", "g++", ("-march=x86-64-v3",)),
    "AVX-512": ("avx512vl", "g++", ("-march=x86-64-v4",)),
    "AVX-512 with bf16": ("avx512vl", "g++", EMULATED),
    "tiles": ("avx512vl", "g++", (*EMULATED, "-DNANOSCALE_IMITATE_TILES")),
    "AVX2, clang": ("avx2", "clang++", ("-march=x86-64-v3",)),
    "AVX-512, clang": ("avx512vl", "clang++", ("-march=x86-64-v4",)),
    "SSE4, clang": ("sse4_2", "clang++", ("-march=x86-64-v2",)),
}
ARM = {"g++": ["aarch64-linux-gnu-g++"], "clang++": ["clang++", "--target=aarch64-linux-gnu"]}
ARM_CASES = 100  # a simulated CPU is slow

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(kernels.library() is None, reason="no compiler for the kernels"),
]


@pytest.fixture(scope="module")
def library(request, tmp_path_factory) -> kernels.Kernels:
    needed, compiler, flags = SETS[request.param]
    if needed not in kernels.cpu_flags().split() or not shutil.which(compiler):
        pytest.skip(f"needs {needed} and {compiler}")
    folder = tmp_path_factory.mktemp("kernels")
    return kernels.loaded(built_with(folder, *flags, compiler=compiler))


@pytest.mark.parametrize("block", range(BLOCKS))
@pytest.mark.parametrize("library", SETS, indirect=True)
def test_random_architectures_are_torchs(library, block, monkeypatch):
    monkeypatch.setattr(kernels, "library", lambda: library)
    each = CASES // BLOCKS
    for seed in range(block * each, (block + 1) * each):
        compare(seed)
    compare_narrow(range(block * each, block * each + 20))
    compare_updates(block)


@pytest.mark.parametrize("cpu", ["sapphirerapids", "znver4", "skylake-avx512", "znver1"])
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_builds_for(compiler, cpu, tmp_path):
    known = [compiler, f"-march={cpu}", "-E", "-x", "c++", "/dev/null"]
    if not shutil.which(compiler) or subprocess.run(known, capture_output=True).returncode:
        pytest.skip(f"no {compiler} that knows {cpu}")
    built_with(tmp_path, f"-march={cpu}", compiler=compiler)


# -- a CPU that is not this one -------------------------------------------------------------------
def write(case: Case, path: Path) -> Step:
    """A case as step.cpp reads it."""
    step = Step(case.model)
    keys = site_keys(case.masks, case.config) if case.config.dropout else torch.empty(0).long()
    gradients = torch.empty(step.size)
    step.place(gradients, keys if case.config.dropout else None)
    elements, offsets = np.zeros((2, len(step.tensors)), dtype=np.int64)
    for slot, p, offset in zip(step.slots, step.parameters, step.offsets, strict=True):
        elements[slot], offsets[slot] = p.numel(), offset
    tables = [case.model.cos, case.model.sin] if case.config.use_rope else []
    rotary = tables[0].numel() if tables else 0
    sizes = np.array([len(step.tensors), *case.idx.shape, keys.numel(), rotary])
    by_slot = sorted(zip(step.slots, step.parameters, strict=True), key=lambda pair: pair[0])
    tensors = [*(p.detach() for _, p in by_slot), *tables, case.idx, case.targets, keys]
    parts = [sizes, elements, offsets, *(t.contiguous().numpy() for t in tensors)]
    path.write_bytes(bytes(step.record) + b"".join(part.tobytes() for part in parts))
    return step


def read(case: Case, step: Step, path: Path) -> dict[str, Tensor]:
    """What step.cpp found."""
    values = torch.from_numpy(np.fromfile(path, dtype=np.float32))
    loss, losses, gradients = values.split([1, case.idx.numel(), step.size])
    found = {"loss": loss[0], "losses": losses.view(case.idx.shape)}
    for (name, p), at in zip(case.model.named_parameters(), step.offsets, strict=True):
        found[name] = gradients[at : at + p.numel()].view(p.shape)
    return found


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("compiler", ARM)
def test_random_architectures_on_arm(compiler, narrow, tmp_path):
    command = ARM[compiler]
    if not shutil.which(command[0]) or not shutil.which("qemu-aarch64"):
        pytest.skip(f"needs {command[0]} and qemu-aarch64")
    flags = [f for f in kernels.FLAGS if f not in ("-shared", "-fPIC", kernels.NATIVE)]
    flags += ["-march=armv8-a", "-static", f'-DKERNELS="{kernels.SOURCE}"']
    program = tmp_path / "step"
    subprocess.run([*command, *flags, HERE / "step.cpp", "-o", program], check=True)
    cases = [Case(seed) for seed in random.Random(0).sample(range(CASES), ARM_CASES)]
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):  # not of odd sizes
        cases = [case for case in cases if StepOps().step_of(case.model)]
    steps = [write(case, tmp_path / str(i)) for i, case in enumerate(cases)]
    names = [str(tmp_path / str(i)) for i in range(len(cases))]
    subprocess.run(["qemu-aarch64", program, "bf16" if narrow else "f32", *names], check=True)
    ratios = []
    for case, step, name in zip(cases, steps, names, strict=True):
        found, exact = read(case, step, Path(f"{name}.found")), case.under(Ops())
        if narrow:
            ratios.append(distance(found, exact) / distance(case.under(Ops(), True), exact))
            continue
        worst = max(differences(found, exact).items(), key=lambda item: item[1])
        assert worst[1] < 1, (worst, case.values)
    assert not narrow or np.exp(np.mean(np.log(ratios))) < 1.2
