"""The noise check against two streams by hand, and its slopes against planted ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import spec_maker
from torch import Tensor

from nanoscale.checks.noise import NoisePoint, noise_report
from nanoscale.data.dataset import TrainingSamples
from nanoscale.model.directions import orthogonalize
from nanoscale.model.gpt import GPT
from nanoscale.store.folder import RunFolder
from nanoscale.store.resume import open_folder
from nanoscale.training.noise import noise_at
from nanoscale.training.run import train_folder
from nanoscale.training.state import Checkpoint, dataset_of

RUN = {
    "dataset": "tiny",
    "optimizer": "muon",
    "muon_momentum": 0.5,
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 16,
    "block_size": 16,
    "batch_size": 3,
    "gradient_accumulation_steps": 2,
    "max_iters": 4,
    "grad_clip": 0.5,
    "warmup_iters": 0,
    "eval_interval": 0,
    "device": "cpu",
    "threads": 1,
    "compile": False,
}
BATCHES, BATCH = 7, 6  # 0.5^7 is below a hundredth; sequences


@pytest.fixture(scope="module")
def folder(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    made = open_folder(
        tmp_path_factory.mktemp("noise") / "run", spec_maker(RUN, data_root)(), False
    )
    train_folder(made)
    return made


def streams(folder: RunFolder) -> list[list[dict[str, Tensor]]]:
    """The clipped gradients of both streams' batches, those after the run's in turn."""
    saved = Checkpoint.load(folder / "ckpt.pt")
    config = saved.spec.config
    tokens = torch.from_numpy(dataset_of(saved.spec).tokens["train"].astype("int64"))
    samples = TrainingSamples(tokens.numpy(), 16, config.data_seed, "random")
    found: list[list[dict[str, Tensor]]] = [[], []]
    for k in range(2 * BATCHES):
        model = GPT(config)
        model.load_state_dict(saved.model)
        X, Y = map(torch.from_numpy, samples.batch((4 + k) * BATCH, BATCH))
        model(X, Y)[1].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        found[k % 2].append({name: p.grad for name, p in model.named_parameters()})
    return found


def test_the_signal_is_the_cosine_of_two_streams_by_hand(folder):
    before = (folder / "ckpt.pt").read_bytes()
    found = noise_at(folder, BATCHES)
    assert (folder / "ckpt.pt").read_bytes() == before  # the weights stay
    both = streams(folder)
    names = [name for name in both[0][0] if ".h." in name and "ln_" not in name]
    assert len(names) == 6
    cosines = []
    for name in names:
        updates = []
        for stream in both:
            m = torch.zeros(())
            for gradients in stream:
                m = 0.5 * m + 0.5 * gradients[name]
            updates.append(orthogonalize(0.5 * stream[-1][name] + 0.5 * m).flatten())
        cosines.append(torch.cosine_similarity(*updates, dim=0))
    expected = float(torch.stack(cosines).mean())
    assert found.signal["Newton-Schulz"] == pytest.approx(expected, abs=1e-3)
    assert found.signal["own"] == pytest.approx(found.signal["Newton-Schulz"], abs=1e-3)
    assert found.signal["momentum"] > found.signal["power 1/2"] > found.signal["Newton-Schulz"]

    one, other = (torch.stack([joined(g) for g in stream]) for stream in both)
    of_each = (one**2 + other**2).sum(1) / 2
    of_both = ((one + other) / 2).square().sum(1)
    small, big = BATCH * 16, 2 * BATCH * 16  # tokens
    trace = float((of_each - of_both).mean()) / (1 / small - 1 / big)
    assert found.noise_trace == pytest.approx(trace, rel=1e-3)
    assert found.gradient_square == pytest.approx(float((2 * of_both - of_each).mean()), rel=1e-3)


def joined(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradients.values()])


def point(size: int, seed: int, cosine: float, square: float = 1.0) -> NoisePoint:
    return NoisePoint(size, seed, {"momentum": cosine}, square, 300.0 * square * seed)


def test_a_planted_slope_is_found_and_noise_scales_are_ratios_of_means():
    noise = np.random.default_rng(1)
    points = []
    for size in (32, 64, 128, 256):
        for seed in (1, 2, 3):
            cosine = 0.6 * (size / 32) ** -0.25 * (1 + 0.02 * noise.standard_normal())
            points.append(point(size, seed, cosine, seed))
    report = noise_report(points, updates=300, tokens=512, batches=90)
    found = report.signal["momentum"].slope
    assert found.slope == pytest.approx(-0.25, abs=0.02)
    assert found.ci95[0] < -0.25 < found.ci95[1]
    assert found.ci95[1] - found.ci95[0] < 0.05
    assert report.noise_scale == pytest.approx([300 * (1 + 4 + 9) / (1 + 2 + 3)] * 4)
    assert (report.sizes, report.seeds) == ([32, 64, 128, 256], [1, 2, 3])


def test_a_cosine_below_zero_has_no_slope_and_no_gradient_no_noise_scale():
    points = [point(size, 1, -0.1 if size == 64 else 0.5, -1.0) for size in (32, 64, 128)]
    report = noise_report(points, updates=1, tokens=1, batches=1)
    assert report.signal["momentum"].slope is None
    assert report.noise_scale == [None, None, None]
