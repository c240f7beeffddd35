"""Muon against the singular value decomposition and against torch's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nanoscale.model.muon import Muon, orthogonalize, shape_factor

SHAPES = [(32, 32), (64, 16), (16, 64), (172, 64), (64, 172)]


def gradient(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def conditioned(out: int, fan_in: int, smallest: float = 0.1) -> Tensor:
    """A matrix with singular values spread over [smallest, 1]."""
    U, _, Vh = torch.linalg.svd(gradient(out, fan_in), full_matrices=False)
    return U @ torch.diag(torch.linspace(smallest, 1, min(out, fan_in))) @ Vh


@pytest.mark.parametrize("shape", SHAPES)
def test_the_singular_values_become_about_one_and_the_directions_stay(shape):
    G = conditioned(*shape)
    U, _, Vh = torch.linalg.svd(G, full_matrices=False)
    found = orthogonalize(G)
    assert found.shape == G.shape
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.65
    assert values.max() < 1.25
    rotated = U.T @ found @ Vh.T  # diagonal where the directions are kept
    assert (rotated - torch.diag(rotated.diag())).abs().max() < 1e-4
    assert rotated.diag().min() > 0.65


def test_the_iteration_is_its_quintic_on_each_singular_value():
    G = conditioned(12, 20)
    expected = torch.linalg.svdvals(G).double()
    expected = expected / expected.norm()
    for _ in range(3):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    found = torch.linalg.svdvals(orthogonalize(G, steps=3)).double()
    torch.testing.assert_close(found, expected.sort(descending=True)[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_batch_is_its_members_and_a_transpose_is_transposed(shape):
    batch = torch.stack([gradient(*shape, seed=s) * 10.0**-s for s in range(4)])
    one_by_one = torch.stack([orthogonalize(G) for G in batch])
    torch.testing.assert_close(orthogonalize(batch), one_by_one, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(orthogonalize(batch.mT), one_by_one.mT, rtol=1e-4, atol=1e-5)


def test_the_scale_of_the_gradient_does_not_matter_and_zero_stays_zero():
    G = gradient(24, 40)
    for scale in (1e-6, 1e-3, 1e6):
        torch.testing.assert_close(orthogonalize(G * scale), orthogonalize(G), rtol=1e-3, atol=1e-4)
    tiny = orthogonalize(G * 1e-9)
    assert abs(float(tiny.norm() / orthogonalize(G).norm()) - 1) < 0.2
    assert torch.equal(orthogonalize(torch.zeros(5, 7)), torch.zeros(5, 7))
    mixed = torch.stack([torch.zeros(5, 7), gradient(5, 7)])
    assert orthogonalize(mixed).isfinite().all()


def test_the_type_asked_for_computes_and_the_gradients_comes_back():
    G = gradient(24, 40)
    narrow = orthogonalize(G, dtype=torch.bfloat16)
    assert narrow.dtype == torch.float32
    assert torch.equal(narrow, narrow.bfloat16().float())
    assert not torch.equal(orthogonalize(G), orthogonalize(G).bfloat16().float())
    assert orthogonalize(G.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("scale", "shape", "expected"),
    [
        ("spectral", (64, 16), 2.0),
        ("spectral", (16, 64), 0.5),
        ("spectral", (9, 9), 1.0),
        ("original", (64, 16), 2.0),
        ("original", (16, 64), 1.0),
        ("original", (9, 9), 1.0),
        ("match_rms", (64, 16), 1.6),
        ("match_rms", (16, 64), 1.6),
        ("match_rms", (25, 25), 1.0),
    ],
)
def test_shape_factors(scale, shape, expected):
    assert shape_factor(scale, *shape) == pytest.approx(expected)


# --- the optimizer -----------------------------------------------------------------------------


def updated(steps: int, shapes: list[tuple[int, int]], make, zero: bool = False) -> list[Tensor]:
    """The matrices after `steps` updates with fixed gradients by the optimizer `make(params)`."""
    params = [torch.nn.Parameter(gradient(*shape, seed=i)) for i, shape in enumerate(shapes)]
    optimizer = make(params)
    for step in range(steps):
        for i, p in enumerate(params):
            p.grad = torch.zeros_like(p) if zero else gradient(*p.shape, seed=100 * step + i + 50)
        optimizer.step()
    return [p.detach() for p in params]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "theirs"), [("original", "original"), ("match_rms", "match_rms_adamw")]
)
def test_twenty_updates_equal_torchs(ours, theirs):
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    # torch iterates in bfloat16 on every device; so do we here
    settings = {"lr": 0.05, "weight_decay": 0.3, "momentum": 0.9, "ns_steps": 5}
    mine = updated(20, SHAPES, lambda p: Muon(p, scale=ours, dtype=torch.bfloat16, **settings))
    torchs = updated(20, SHAPES, lambda p: torch.optim.Muon(p, adjust_lr_fn=theirs, **settings))
    start = updated(0, SHAPES, lambda p: Muon(p))
    for a, b, c in zip(mine, torchs, start, strict=True):
        assert float((a - b).norm() / (b - c).norm()) < 1e-2  # of bfloat16: 5e-3 was seen


def test_one_update_is_its_formula():
    W, g, h = gradient(6, 10), gradient(6, 10, seed=1), gradient(6, 10, seed=2)
    p = torch.nn.Parameter(W.clone())
    optimizer = Muon([p], lr=0.1, momentum=0.8, weight_decay=0.5, ns_steps=4, scale="match_rms")
    p.grad = g.clone()
    optimizer.step()
    p.grad = h.clone()
    optimizer.step()
    first = 0.2 * g
    second = 0.8 * first + 0.2 * h
    factor = 0.1 * 0.2 * math.sqrt(10)
    for buffer, grad in ((first, g), (second, h)):
        W = W * (1 - 0.1 * 0.5) - factor * orthogonalize(0.2 * grad + 0.8 * buffer, steps=4)
    torch.testing.assert_close(p.detach(), W, rtol=1e-5, atol=1e-6)


def test_equal_shapes_in_one_batch_are_updated_as_if_alone():
    shapes = [(16, 16), (16, 24), (16, 16), (24, 16), (16, 16)]
    together = updated(3, shapes, lambda p: Muon(p, lr=0.1))
    alone = updated(3, shapes, lambda p: Muon([{"params": [q]} for q in p], lr=0.1))
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", ["spectral", "original", "match_rms"])
def test_weight_decay_is_by_the_lr_without_the_shape_factor(scale):
    before = updated(0, SHAPES, lambda p: Muon(p))
    after = updated(1, SHAPES, lambda p: Muon(p, lr=0.1, weight_decay=0.5, scale=scale), zero=True)
    for a, b in zip(after, before, strict=True):
        torch.testing.assert_close(a, b * 0.95)


def test_groups_have_their_own_lr_and_matrices_without_a_gradient_stay():
    p, q, r = (torch.nn.Parameter(gradient(8, 8, seed=s)) for s in range(3))
    before = [x.detach().clone() for x in (p, q, r)]
    optimizer = Muon([{"params": [p], "lr": 0.1}, {"params": [q, r], "lr": 0.2}], weight_decay=0)
    p.grad = q.grad = gradient(8, 8, seed=9)
    optimizer.step()
    steps = [(x.detach() - b) for x, b in zip((p, q, r), before, strict=True)]
    torch.testing.assert_close(steps[1], 2 * steps[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(r.detach(), before[2])
    assert r not in optimizer.state


def test_a_closure_is_called_with_gradients_on_and_its_loss_returned():
    p = torch.nn.Parameter(gradient(4, 4))

    def closure() -> Tensor:
        loss = p.square().sum()
        loss.backward()
        return loss

    assert Muon([p]).step(closure) > 0
    assert p.grad is not None


# --- the size of an update ---------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 64), (256, 64), (64, 256), (344, 128), (32, 128)])
def test_the_updates_spectral_norm_is_the_lr_times_root_of_out_over_in(shape):
    before = updated(0, [shape], lambda p: Muon(p))[0]
    after = updated(1, [shape], lambda p: Muon(p, lr=0.01, weight_decay=0))[0]
    norm = torch.linalg.matrix_norm(after - before, ord=2)
    assert 0.9 < float(norm) / 0.01 * math.sqrt(shape[1] / shape[0]) < 1.25


def test_the_updates_spectral_norm_does_not_drift_with_width_and_match_rms_does():
    widths = [32, 64, 128, 256]

    def slope(scale: str) -> float:
        norms = []
        for d in widths:
            before = updated(0, [(4 * d, d)], lambda p: Muon(p))[0]
            after = updated(1, [(4 * d, d)], lambda p: Muon(p, scale=scale))[0]
            norms.append(math.log2(torch.linalg.matrix_norm(after - before, ord=2)))
        return (norms[-1] - norms[0]) / 3

    assert abs(slope("spectral")) <= 0.05
    assert abs(slope("original")) <= 0.05
    assert slope("match_rms") == pytest.approx(0.5, abs=0.05)
