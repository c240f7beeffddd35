"""Evaluations take the memory that the config's keys allow, and no type that a device lacks."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import RUN, spec_maker, tiny_config
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nanoscale.model import kernels
from nanoscale.model.distributed import Ranks
from nanoscale.training import evaluation, halves
from nanoscale.training.state import build, dataset_of

needs_kernels = pytest.mark.skipif(kernels.library() is None, reason="no compiler for the kernels")
OPS = pytest.mark.parametrize(
    "ops", ["torch", *(pytest.param(name, marks=needs_kernels) for name in ("fused", "step"))]
)


def run_of(data_root, **overrides):
    spec = spec_maker(RUN, data_root)(final_eval_tokens=10**6, init_std=0.3, **overrides)
    return build(spec, dataset_of(spec), Ranks())


class Seen(TorchDispatchMode):
    """The largest storage that any operation makes, in bytes, and what lives on Apple's GPU."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **kwargs or {})
        for x in tree_leaves(made):
            if isinstance(x, torch.Tensor):
                assert (x.device.type, x.dtype) != ("mps", torch.float64), function
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return made


@OPS
@pytest.mark.parametrize("exact", [True, False])
def test_an_evaluation_holds_the_logits_of_a_chunk_alone(data_root, ops, exact):
    flags = {"kernels": ops, "dtype": "bfloat16", "vocab_size": 2000}
    whole = run_of(data_root, **flags)
    chunked = run_of(data_root, loss_chunk=7, **flags)
    limit = 20
    with Seen() as before:
        expected = evaluation.window_losses(whole, "val", limit, exact)
    with Seen() as seen:
        found = evaluation.window_losses(chunked, "val", limit, exact)
    assert found == pytest.approx(expected, rel=1e-5 if exact else 1e-2)
    if ops == "torch":
        assert before.bytes >= 4 * 2000 * 8 * limit
        assert seen.bytes <= 4 * max(2000 * 16, 2000 * 7)  # the table itself, or a chunk
    else:  # those of few sequences in any case
        assert seen.bytes == before.bytes


@OPS
def test_an_evaluation_takes_a_micro_batch_at_once(data_root, ops, monkeypatch):
    sizes = {}
    losses = {}
    for micro in (None, 1):
        run = run_of(data_root, kernels=ops, micro_batch_size=micro)
        sizes[micro] = []
        forward = run.model.forward
        monkeypatch.setattr(
            run.model,
            "forward",
            lambda X, *a, to=sizes[micro], call=forward, **k: to.append(len(X)) or call(X, *a, **k),
        )
        losses[micro] = evaluation.final_losses(run)
    assert set(sizes[None]) == {len(losses[None])}
    assert sizes[1] == [1] * len(losses[1])
    assert losses[1] == pytest.approx(losses[None], rel=1e-5)


def test_a_whole_batch_is_evaluated_as_if_none_was_named(data_root):
    whole, named = (
        evaluation.final_losses(run_of(data_root, micro_batch_size=size)) for size in (None, 2)
    )
    assert named.tobytes() == whole.tobytes()


def test_the_loss_of_each_token_is_torchs(data_root):
    run = run_of(data_root, kernels="torch")
    X, Y = run.to_device(*run.samples.batch(0, 3))
    run.model.eval()
    with torch.no_grad():
        logits = run.model(X)[0]
        found = run.model(X, Y, by_token=True)
    flat = logits.flatten(0, 1), Y.flatten()
    expected = torch.nn.functional.cross_entropy(*flat, reduction="none")
    assert found[0] is None
    assert torch.equal(found[1].flatten(), expected)


def test_no_float64_reaches_a_device_that_has_none(data_root):
    config = tiny_config()
    tokens = np.arange(200) % config.vocab_size
    with FakeTensorMode(), Seen():
        run = SimpleNamespace(
            config=config,
            dataset=SimpleNamespace(tokens={"val": tokens}),
            to_device=lambda *arrays: [torch.empty(a.shape, device="mps") for a in arrays],
            model=lambda X, Y, by_token: (None, torch.empty(Y.shape, device="mps")),
        )
        found = evaluation.losses_at(run, "val", np.array([0, 8, 16]), exact=True)
        wide = halves.widened(torch.empty(3, device="mps"))
    assert (found.shape, found.dtype, found.device.type) == ((3,), torch.float64, "cpu")
    assert (wide.dtype, wide.device.type) == (torch.float64, "cpu")
