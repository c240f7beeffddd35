"""An update in one call of the kernels is the one that is made in parts, bit for bit."""

from __future__ import annotations

import pytest
import torch
from architectures import LLAMA, MODELS
from tiny import tiny_config
from torch import Tensor

from nanoscale.model import kernels
from nanoscale.model.gpt import GPT
from nanoscale.model.masks import sample_keys
from nanoscale.model.optim import Optimizers
from nanoscale.model.step_ops import StepOps
from nanoscale.model.whole_update import whole_update
from nanoscale.spec.config import ResolvedConfig

pytestmark = pytest.mark.skipif(kernels.library() is None, reason="no compiler for the kernels")

CASES = {
    **MODELS,
    "muon": LLAMA | {"n_embd": 48, "n_head": 3, "block_size": 20, "optimizer": "muon"},
    "dropout": {"n_embd": 32, "n_head": 2, "block_size": 16, "dropout": 0.2},
    "no clipping": {"n_embd": 32, "n_head": 2, "block_size": 16, "grad_clip": 0.0},
}


def made(config: ResolvedConfig) -> tuple[GPT, Optimizers]:
    model = GPT(config, StepOps())
    return model, Optimizers(model, model.rules, in_kernel=True)


def batch(config: ResolvedConfig, step: int):
    draw = torch.Generator().manual_seed(step)
    shape = (2, 5, config.block_size)
    masks = sample_keys(config.seed, step, 0, 5) if config.dropout else None
    return *torch.randint(config.vocab_size, shape, generator=draw).unbind(), masks


def in_parts(model: GPT, optimizers: Optimizers, step: int) -> tuple[float, float]:
    X, Y, masks = batch(model.config, step)
    loss = model(X, Y, masks=masks)[1]
    loss.backward()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return loss.item(), optimizers.step(scaler, model.config.grad_clip).item()


def state(model: GPT, optimizers: Optimizers) -> dict[str, object]:
    return {"weights": model.state_dict(), "states": optimizers.state()}


@torch.no_grad()
def logits(model: GPT) -> Tensor:
    """Of operations one by one, which keep what they have made of the weights."""
    model.eval()
    found = model(batch(model.config, 9)[0])[0]
    model.train()
    return found


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_it_is_the_one_in_parts(values, threads):
    config = tiny_config(**{"n_layer": 2, "vocab_size": 21} | values)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model, optimizers = made(config)
        whole = whole_update(model, optimizers, config.grad_clip)
        found, expected = [], []
        for step in range(4):
            optimizers.set_lr(0.5 + step)
            loss, norm = whole.run(*batch(config, step))
            found.append((loss.item(), norm.item(), logits(model)))
        twin = made(config)
        for step in range(4):
            twin[1].set_lr(0.5 + step)
            expected.append((*in_parts(*twin, step), logits(twin[0])))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(state(model, optimizers), state(*twin), rtol=0, atol=0)


def test_what_lay_in_the_memory_before_is_not_computed_with(monkeypatch):
    """Between rows of a width that no vector divides; denormals there take five times as long."""
    config = tiny_config(n_embd=20, n_head=2)
    model, optimizers = made(config)
    whole = whole_update(model, optimizers, config.grad_clip)
    X, Y, _ = batch(config, 0)
    loss = torch.empty(())
    monkeypatch.setattr(torch, "empty", torch.ones)  # so that it is never zero by chance
    whole.step.prepared(X, Y, loss, whole.gradients, None)
    assert len(whole.step.room)
    assert not whole.step.room.any()


def test_states_and_batches_that_it_cannot_know_are_refused():
    config = tiny_config(n_layer=1)
    model, optimizers = made(config)
    whole = whole_update(model, optimizers, config.grad_clip)
    X, Y, _ = batch(config, 0)
    for wrong in (
        (X[:, 1:], Y),
        (X.int(), Y.int()),
        (X[:0], Y[:0]),
        (X.repeat(1, 2), Y.repeat(1, 2)),
    ):
        with pytest.raises(ValueError, match="tokens"):
            whole.run(*wrong, None)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    with pytest.raises(IndexError):
        whole.run(X, Y + config.vocab_size, None)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    whole.run(X, Y, None)
    optimizers.load_state(optimizers.state())
    with pytest.raises(AssertionError, match="states that are gone"):
        whole.run(X, Y, None)
