"""The signal fraction and the noise scale, against two momenta kept by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from tiny import spec_maker
from torch import Tensor

from nanoscale.model.directions import orthogonalize
from nanoscale.model.distributed import Ranks
from nanoscale.model.gpt import GPT
from nanoscale.spec.identity import RunSpec
from nanoscale.training import loop as training
from nanoscale.training.halves import halves_of
from nanoscale.training.state import Run, build, dataset_of

BATCH, FIRST, SECOND = 5, 3, 2  # sequences, and those of even and odd number
CLIP = 0.5
RUN = {
    "dataset": "tiny",
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 16,
    "block_size": 16,
    "batch_size": BATCH,
    "gradient_accumulation_steps": 1,
    "max_iters": 9,
    "grad_clip": CLIP,
    "warmup_iters": 0,
    "device": "cpu",
    "threads": 1,
    "compile": False,
}
Gradients = Mapping[str, Tensor]


def spec(data_root: Path, **overrides: object) -> RunSpec:
    return spec_maker(RUN, data_root)(**overrides)


def started(made: RunSpec) -> Run:
    return build(made, dataset_of(made), Ranks())


@pytest.fixture(params=["muon", "adamw"])
def watched(request: pytest.FixtureRequest, data_root: Path) -> Run:
    return started(spec(data_root, optimizer=request.param, stats_interval=1))


def half_gradients(run: Run) -> list[Gradients]:
    """The mean gradients of the next batch's sequences of even and of odd number."""
    (batch,) = training.micro_batches(run)
    found = []
    for part in (0, 1):
        model = GPT(run.config)
        model.load_state_dict(run.model.state_dict())
        model(batch.X[part::2], batch.Y[part::2])[1].backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    return found


def joined(halves: list[Gradients]) -> Gradients:
    one, other = halves
    return {name: (FIRST * one[name] + SECOND * other[name]) / BATCH for name in one}


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))


def test_a_batch_has_two_halves():
    assert halves_of(BATCH) == (FIRST, SECOND)
    assert halves_of(4) == (2, 2)


def test_the_signal_fraction_is_the_cosine_of_two_momenta_kept_by_hand(watched):
    config = watched.config
    by_muon = config.optimizer == "muon"
    decay = config.muon_momentum if by_muon else config.beta1
    rules = {t.name: watched.model.rules.rule(t) for t in watched.model.rules.tensors}
    hidden = [t.name for t in watched.model.rules.tensors if t.role == "hidden"]
    momenta: list[dict[str, Tensor]] = [{}, {}]
    second: dict[str, Tensor] = {}
    for step in range(1, 5):
        halves = half_gradients(watched)
        whole = joined(halves)
        norm = torch.stack([g.norm() for g in whole.values()]).norm()
        clip = CLIP / (float(norm) + 1e-6)
        assert clip < 1
        for name in hidden:
            g = clip * whole[name]
            second[name] = 0.95 * second.get(name, 0 * g) + 0.05 * g**2
            for kept, gradients in zip(momenta, halves, strict=True):
                half = clip * gradients[name]
                kept[name] = decay * kept.get(name, 0 * half) + (1 - decay) * half
        found = training.update(watched, with_statistics=True).statistics

        cosines = []
        for name in hidden:
            updates = []
            for kept, gradients in zip(momenta, halves, strict=True):
                m = kept[name]
                if by_muon:
                    ahead = (1 - decay) * clip * gradients[name] + decay * m
                    update = orthogonalize(ahead)
                else:
                    unbiased = second[name] / (1 - 0.95**step)
                    update = m / (1 - decay**step) / (unbiased.sqrt() + rules[name].eps)
                updates.append(update)
            cosines.append(cosine(*updates))
        expected = sum(cosines) / len(cosines)
        assert found["signal_fraction"]["hidden"] == pytest.approx(expected, abs=1e-3)


def test_the_noise_scales_parts_are_those_of_mccandlish(watched):
    halves = half_gradients(watched)
    found = training.update(watched, with_statistics=True).statistics
    first, second, whole = (
        sum(float(g.square().sum()) for g in gradients.values())
        for gradients in (*halves, joined(halves))
    )
    half = (FIRST * first + SECOND * second) / BATCH  # the mean square of BATCH / 2 sequences
    small, big = BATCH / 2 * 16, BATCH * 16  # tokens
    trace = (half - whole) / (1 / small - 1 / big)
    square = (big * whole - small * half) / (big - small)
    assert found["noise_trace"] == pytest.approx(trace, rel=1e-3)
    assert found["gradient_square"] == pytest.approx(square, rel=1e-3)
    assert found["tokens_per_half"] == FIRST * 16


@pytest.mark.parametrize("kernels", ["step", "torch"])
def test_a_watched_run_is_its_unwatched_twin(data_root, kernels):
    runs = [started(spec(data_root, stats_interval=k, kernels=kernels)) for k in (0, 3)]
    for step in range(1, 8):
        losses = [
            training.update(run, with_statistics=run.halves and step % 3 == 0) for run in runs
        ]
        assert losses[0].loss == losses[1].loss
    plain, seen = (run.model.state_dict() for run in runs)
    assert all(torch.equal(plain[name], seen[name]) for name in plain)


def test_one_sequence_has_no_halves(data_root):
    run = started(spec(data_root, stats_interval=1, batch_size=1))
    assert run.halves is None
    assert "signal_fraction" not in training.update(run, with_statistics=True).statistics
