"""What saves memory changes no result, and the estimate of memory against what a step takes."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import TINY, run_nanoscale, spec_maker, tiny_config
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nanoscale.model import kernels
from nanoscale.model.distributed import Ranks
from nanoscale.model.fused_ops import FusedOps
from nanoscale.model.gpt import GPT
from nanoscale.model.ops import Ops
from nanoscale.spec.architecture import MATRIX_ROLES, tensors
from nanoscale.spec.config import ResolvedConfig
from nanoscale.spec.identity import RunSpec
from nanoscale.spec.memory import (
    DTYPE_BYTES,
    Moments,
    StepNumerics,
    evaluated_at_once,
    memory_estimate,
)
from nanoscale.spec.resolve import resolve
from nanoscale.spec.sources import Source
from nanoscale.spec.sources import build as build_config
from nanoscale.training import evaluation
from nanoscale.training import loop as training
from nanoscale.training.hardware import multiplies_bfloat16
from nanoscale.training.state import build, dataset_of

OPS = pytest.mark.parametrize(
    "ops",
    [
        Ops,
        pytest.param(
            FusedOps,
            marks=pytest.mark.skipif(
                kernels.library() is None, reason="no compiler for the kernels"
            ),
        ),
    ],
)
KERNELS = pytest.mark.parametrize(
    "ops",
    [
        "torch",
        *(
            pytest.param(
                name,
                marks=pytest.mark.skipif(
                    kernels.library() is None, reason="no compiler for the kernels"
                ),
            )
            for name in ("fused", "step")
        ),
    ],
)
LLAMA = {
    "use_rmsnorm": True,
    "use_rope": True,
    "use_swiglu": True,
    "use_qk_norm": True,
    "n_kv_head": 2,
}


def step(
    config: ResolvedConfig, ops: Ops, narrow: bool = False, compiled: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one batch whose weight in the mean is 0.3."""
    model = GPT(config, ops)
    run = torch.compile(model, backend="aot_eager") if compiled else model
    generator = torch.Generator().manual_seed(0)
    X, Y = torch.randint(config.vocab_size, (2, 3, config.block_size), generator=generator)
    torch.manual_seed(1)  # of dropout
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow):
        loss = run(X, Y)[1] * 0.3
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


# --- recomputed activations --------------------------------------------------------------------


@OPS
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("flags", [{"bias": True}, LLAMA], ids=["gpt2", "llama"])
def test_recomputed_activations_change_no_bit(ops, narrow, flags, monkeypatch):
    calls = []
    forward = GPT(tiny_config()).transformer.h[0].__class__.forward
    monkeypatch.setattr(
        "nanoscale.model.gpt.Block.forward", lambda *a, **k: calls.append(1) or forward(*a, **k)
    )
    one, other = (
        step(tiny_config(dropout=0.2, recompute=recompute, **flags), ops(), narrow)
        for recompute in (False, True)
    )
    assert len(calls) == 2 + 2 * 2  # blocks, run once and twice
    assert torch.equal(one[0], other[0])
    assert all(torch.equal(g, other[1][name]) for name, g in one[1].items())


# --- logits by chunks --------------------------------------------------------------------------


def close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> bool:
    return all((g - other[name]).norm() <= tolerance * g.norm() for name, g in one.items())


@OPS
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [7, 24, 1000])
def test_a_chunked_loss_and_its_gradients_are_the_whole_ones(ops, tied, chunk):
    flags = {"z_loss": 0.01, "tie_embeddings": tied, "init_std": 0.3}
    (loss, grads), (chunked, others) = (
        step(tiny_config(loss_chunk=size, **flags), ops()) for size in (None, chunk)
    )  # of 24 tokens
    assert float(chunked) == pytest.approx(float(loss), rel=1e-6)
    assert close(grads, others, 1e-6)


@OPS
def test_a_chunked_loss_in_bfloat16_differs_by_its_rounding(ops):
    (loss, grads), (chunked, others) = (
        step(tiny_config(loss_chunk=size, z_loss=0.01), ops(), True) for size in (None, 7)
    )
    assert float(chunked) == pytest.approx(float(loss), rel=1e-5)
    assert close(grads, others, 1e-2)


class Largest(TorchDispatchMode):
    """The largest storage that any operation makes, in bytes."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **kwargs or {})
        self.bytes = max(
            [self.bytes]
            + [t.untyped_storage().nbytes() for t in tree_leaves(made) if isinstance(t, Tensor)]
        )
        return made


@OPS
@pytest.mark.parametrize("narrow", [False, True])
def test_with_chunks_no_tensor_is_as_large_as_all_logits(ops, narrow):
    V, size = 2000, 4 - 2 * narrow
    sizes = []
    for chunk in (None, 7):
        config = tiny_config(
            vocab_size=V, loss_chunk=chunk, block_size=40, n_layer=1, n_embd=4, n_head=1
        )
        with Largest() as seen:
            step(config, ops(), narrow)
        sizes.append(seen.bytes)
    assert sizes[0] >= size * 3 * 40 * V  # as it is without
    assert sizes[1] <= 4 * 7 * V


def test_chunks_are_for_training_alone():
    config = tiny_config(loss_chunk=5)
    model, plain = GPT(config), GPT(tiny_config())
    X = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(model(X, X)[0], plain(X, X)[0])
    assert model(X, X)[0] is None
    assert torch.equal(model.eval()(X, X)[0], plain.eval()(X, X)[0])
    assert model.train()(X)[1] is None


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # by torch.compile itself
def test_they_compile():
    config = tiny_config(z_loss=0.01, recompute=True, loss_chunk=7, dropout=0.2)
    (loss, grads), (compiled, others) = (step(config, Ops(), compiled=c) for c in (False, True))
    assert float(compiled) == pytest.approx(float(loss), rel=1e-5)
    assert close(grads, others, 1e-5)


# --- the estimate ------------------------------------------------------------------------------

BASE = {
    "dataset": "tiny",
    "n_embd": 64,
    "n_layer": 4,
    "block_size": 64,
    "batch_size": 8,
    "vocab_size": 200,
    "threads": 1,
    "eval_interval": 0,
    "final_eval_tokens": 1,  # of updates; evaluations have a test of their own
}
MODELS = {
    "gpt2": {},
    "deep and narrow": {"n_layer": 10, "n_embd": 32, "bias": True},
    "wide and shallow": {"n_layer": 2, "n_embd": 192, "batch_size": 2},
    "llama": LLAMA,
    "rope, dropout": {"use_rope": True, "dropout": 0.1, "n_layer": 2},
    "large vocabulary": {"vocab_size": 4000, "z_loss": 1e-4, "tie_embeddings": False},
    "one sequence": {"vocab_size": 8000, "batch_size": 1, "n_layer": 2},
    "accumulated": {"gradient_accumulation_steps": 3, "n_embd": 128, "batch_size": 2},
    "muon": {"optimizer": "muon", "n_embd": 128, "batch_size": 1},
    "recompute": {"recompute": True, "n_layer": 8},
    "loss_chunk": {"vocab_size": 4000, "loss_chunk": 64},
    "all": LLAMA
    | {
        "recompute": True,
        "loss_chunk": 50,
        "vocab_size": 4000,
        "n_layer": 6,
        "micro_batch_size": 3,
    },
    "long, dropout": {"block_size": 128, "dropout": 0.1, "n_layer": 1},
}


@pytest.fixture
def spec_of(data_root: Path) -> Callable[..., RunSpec]:
    return spec_maker(TINY | BASE, data_root)


def measured(spec: RunSpec) -> int:
    """The most bytes of tensors alive at once while a run is built, evaluated, updated twice."""
    gc.collect()  # a run before this one would be freed meanwhile, and be counted against it
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run = build(spec, dataset_of(spec), Ranks())
        if spec.config.eval_interval:
            evaluation.evaluate(run)
        for _ in range(2):
            training.update(run)
        evaluation.final_losses(run)
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in seen.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    live = peak = 0
    for _, change in changes:
        live += change
        peak = max(peak, live)
    return peak + 16 * spec.config.tokens_per_iter  # the batch is numpy's, out of torch's sight


def kept(config: ResolvedConfig, ops: Ops, narrow: bool) -> int:
    """Bytes that the graph of one batch keeps, but for parameters and copies of them."""
    model, storages = GPT(config, ops), {}

    def keep(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x
        return x

    idx = torch.zeros(2, config.block_size, dtype=torch.long)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow),
    ):
        loss = model(idx, idx)[1]
    casts = [held[1] for held in getattr(ops, "casts", {}).values()]
    for x in (*model.parameters(), *model.buffers(), *casts, loss):
        storages.pop(x.untyped_storage().data_ptr(), None)
    return sum(x.untyped_storage().nbytes() for x in storages.values())


@OPS
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"bias": True, "use_rope": True, "dropout": 0.1},
        {"use_swiglu": True, "n_kv_head": 1},
        LLAMA,
    ],
)
def test_what_a_block_keeps(ops, narrow, flags):
    sizes = {"n_embd": 64, "block_size": 64}
    one, two = (kept(tiny_config(n_layer=n, **sizes, **flags), ops(), narrow) for n in (1, 2))
    config = tiny_config(n_layer=1, **sizes, **flags)
    step = StepNumerics(ops.name, "cpu", "bfloat16" if narrow else "float32")
    moments = Moments(config, step)
    found = 2 * 64 * (moments.kept_by_attention() + moments.kept_by_mlp())
    if ops is Ops and narrow:  # copies of the weights
        found += 2 * sum(s.numel for s in tensors(config) if s.role in (*MATRIX_ROLES, "bias"))
    assert found == pytest.approx(two - one, rel=0.02)


@pytest.mark.slow
@KERNELS
@pytest.mark.parametrize("name", MODELS)
def test_the_estimate_is_within_a_tenth_of_a_real_step(spec_of, name, ops):
    dtype = "float32" if list(MODELS).index(name) % 3 == 0 else "bfloat16"
    if ops == "fused" and not multiplies_bfloat16(torch.device("cpu")):
        dtype = "float32"  # torch's library works in copies where a CPU has no such instructions
    spec = spec_of(**MODELS[name] | {"kernels": ops, "dtype": dtype})
    found = memory_estimate(spec.config)
    assert found["total"] == sum(v for part, v in found.items() if part != "total")
    assert found["total"] == pytest.approx(measured(spec), rel=0.1)


EVALUATIONS = {
    "logits": {"vocab_size": 4000, "n_layer": 2},
    "logits by chunks": {"vocab_size": 4000, "n_layer": 2, "loss_chunk": 64},
    "llama in a micro-batch": LLAMA | {"batch_size": 9, "micro_batch_size": 8, "vocab_size": 4000},
    "of intervals": LLAMA | {"eval_interval": 1, "final_eval_tokens": 64, "eval_iters": 9},
    "wide": {"n_embd": 256, "n_layer": 1, "vocab_size": 12},
}


def test_an_evaluation_takes_a_batch_or_4096_tokens_or_what_there_is_room_for():
    sizes = {(2, None): 512, (2, 2): 512, (2, 3): 512, (2, 1): 1, (600, None): 600, (600, 8): 8}
    for (batch, micro), expected in sizes.items():
        config = tiny_config(batch_size=batch, micro_batch_size=micro)
        assert evaluated_at_once(config) == expected


@KERNELS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", EVALUATIONS)
def test_the_estimate_covers_evaluation(tmp_path, name, dtype, ops):
    (tmp_path / "long").mkdir()
    tokens = np.arange(5000, dtype="<u2") % 12
    for split in ("train", "val"):
        tokens.tofile(tmp_path / "long" / f"{split}.bin")
    (tmp_path / "long" / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 12}))
    sizes = {"dataset": "long", "batch_size": 1, "final_eval_tokens": 10**6, "eval_interval": 0}
    flags = BASE | sizes | EVALUATIONS[name]
    spec = spec_maker(TINY | flags, tmp_path)(kernels=ops, dtype=dtype)
    found = memory_estimate(spec.config)["total"]
    assert found == pytest.approx(measured(spec), rel=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("flags", [{}, LLAMA, {"recompute": True, "loss_chunk": 2048}])
def test_the_estimate_holds_on_a_gpu(spec_of, flags):
    spec = spec_of(
        device="cuda",
        dtype="bfloat16",
        n_layer=8,
        n_head=8,
        n_embd=512,
        block_size=1024,
        batch_size=16,
        vocab_size=32000,
        **flags,
    )
    gc.collect()  # of the case before
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run = build(spec, dataset_of(spec), Ranks())
    for _ in range(2):
        training.update(run)
    peak = torch.cuda.max_memory_allocated() - before
    assert memory_estimate(spec.config)["total"] == pytest.approx(peak, rel=0.1)


@pytest.mark.slow
def test_params_shows_the_estimate_and_what_it_assumed():
    flags = ["--vocab_size=65", "--n_layer=2", "--n_embd=64", "--n_head=2", "--block_size=32"]
    flags.append("--threads=1")
    done = run_nanoscale("params", *flags, "--dtype=bfloat16")
    config = build_config(
        [
            Source(
                "test",
                {"vocab_size": 65, "n_layer": 2, "n_embd": 64, "n_head": 2, "block_size": 32},
            )
        ]
    )
    total = memory_estimate(resolve(config, 65), StepNumerics("fused", "cpu", "bfloat16"))["total"]
    assert f"{total / 1e6:,.1f}" in done.stdout.splitlines()[-1]
    assert "assumed device=cpu, kernels=fused\n" in done.stdout


def test_a_gpu_is_assumed_to_compute_in_bfloat16_with_torch():
    config = tiny_config(device="cuda:1", batch_size=64, eval_interval=0, final_eval_tokens=1)
    assert memory_estimate(config) == memory_estimate(
        config, StepNumerics("torch", "cuda", "bfloat16")
    )
    halves = [
        memory_estimate(config, StepNumerics("torch", "cuda", dtype))["casts"]
        for dtype in DTYPE_BYTES
    ]
    assert halves[0] == 0 < halves[1] == halves[2]
