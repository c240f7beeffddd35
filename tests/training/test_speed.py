"""Speed, guarded by ratios within one process and by what is not done: never by times."""

from __future__ import annotations

from statistics import median

import pytest
import torch
from tiny import RUN as BASE
from tiny import flags, run_python

from nanoscale.model import kernels
from nanoscale.spec.sources import parse_arguments
from nanoscale.training import hardware
from nanoscale.training.bench import BenchOptions, benchmark_of, live_run, our_step

FUSED = pytest.mark.skipif(kernels.library() is None, reason="no compiler for the kernels")
# Elsewhere products are nearly all of a step, and the kernels no more than torch's equal.
BFLOAT16 = hardware.multiplies_bfloat16(torch.device("cpu"))
SHAPE = [
    "--vocab_size=65",
    "--n_layer=2",
    "--n_head=4",
    "--n_embd=128",
    "--block_size=64",
    "--batch_size=12",
    "--threads=1",
    "--compile=False",
]


@pytest.fixture
def torch_settings():
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(before[0])
    torch.set_float32_matmul_precision(before[1])


def ratio(one: list[str], other: list[str]) -> float:
    """How many of the first's steps fit into one of the other's, by turns."""
    random = BenchOptions(real_data=False)
    steps = []
    for typed in (one, other):
        sources = parse_arguments([*SHAPE, *typed])
        steps.append(our_step(live_run(benchmark_of(sources, random))))
    times = [[step() for step in steps] for _ in range(25)][5:]
    return median(b for _, b in times) / median(a for a, _ in times)


@pytest.mark.soak  # a ratio of timings: nothing else may compute
@FUSED
@pytest.mark.skipif(not BFLOAT16, reason="no instructions for bfloat16")
def test_the_kernels_are_worth_having(torch_settings):
    # both in the same precision
    assert (
        ratio(["--kernels=fused", "--dtype=bfloat16"], ["--kernels=torch", "--dtype=bfloat16"])
        > 1.4
    )


@pytest.mark.soak  # a ratio of timings: nothing else may compute
@FUSED
def test_the_automatic_choice_is_the_fast_one(torch_settings):
    assert ratio([], ["--kernels=torch", "--dtype=float32"]) > (1.2 if BFLOAT16 else 0.9)


@pytest.mark.soak
def test_an_eager_run_never_loads_the_compiler(data_root, tmp_path):
    """torch imports it for every optimizer, 1.3 s of a short run."""
    arguments = flags(
        BASE
        | {"data_root": data_root, "out_dir": tmp_path / "o", "max_iters": 2, "optimizer": "muon"}
    )
    code = (
        "import sys; from nanoscale.__main__ import main; code = main(sys.argv[1:]); "
        "assert 'torch._dynamo' not in sys.modules; sys.exit(code)"
    )
    done = run_python("-c", code, "train", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
