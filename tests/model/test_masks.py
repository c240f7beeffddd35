"""Dropout's masks: of (seed, step, sample, site) alone, uniform, unlike, the same everywhere."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from tiny import tiny_config
from torch import Tensor

from nanoscale.model import kernels
from nanoscale.model.fused_ops import FusedOps
from nanoscale.model.gpt import GPT
from nanoscale.model.masks import (
    ATTENTION_BRANCH,
    EMBEDDING,
    MLP_BRANCH,
    PLACES,
    Dropped,
    at_site,
    compensation,
    drop,
    kept,
    mix,
    sample_keys,
)
from nanoscale.model.ops import Ops

needs_kernels = pytest.mark.skipif(kernels.library() is None, reason="no compiler for the kernels")
P = 0.3
SHAPE = torch.Size([200, 500])


def mask(*, seed=1, step=5, sample=3, place=MLP_BRANCH, layer=2, p=P) -> Tensor:
    """Of one sample, as -p where dropped and 1 - p where kept: mean 0 if the share is right."""
    dropped = at_site(sample_keys(seed, step, sample, 1), p, place, layer)
    return kept(dropped, SHAPE)[0].double() - (1 - p)


def test_the_hash_is_the_published_one():
    """In plain integers, as its author writes it."""

    def published(x: int) -> int:
        x ^= x >> 16
        x = x * 0x21F0AAAD % 2**32
        x ^= x >> 15
        x = x * 0xD35A2D97 % 2**32
        return x ^ x >> 15

    words = [0, 1, 2, 2**31 - 1, 2**31, 2**32 - 1, *range(10**9, 4 * 10**9, 10**8 + 7)]
    expected = [published(x) for x in words]
    assert [mix(x) for x in words] == expected
    assert mix(torch.tensor(words)).tolist() == expected


def test_masks_are_frozen():
    """They may only change with a new MASKS_VERSION."""
    keys = sample_keys(1337, 7, 2, 3)
    assert keys.tolist() == FROZEN_KEYS
    dropped = at_site(keys, 0.25, ATTENTION_BRANCH, 1)
    rows = kept(dropped, torch.Size([2, 8])).flatten(1).int().tolist()
    assert ["".join(map(str, row)) for row in rows] == FROZEN_MASKS


FROZEN_KEYS = [3359560356, 2402102748, 176586412]
FROZEN_MASKS = ["1010111101111101", "1111110111111001", "1100111111011011"]


def test_a_samples_key_is_its_own_however_the_batch_is_cut():
    whole = sample_keys(1, 9, 0, 12)
    assert torch.equal(torch.cat([sample_keys(1, 9, 0, 5), sample_keys(1, 9, 5, 7)]), whole)
    assert len(set(whole.tolist())) == 12


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_the_share_dropped_is_binomial(p):
    """Over all elements, and its spread over samples: 4 standard errors of either."""
    shares = kept(at_site(sample_keys(3, 1, 0, 400), p, EMBEDDING), torch.Size([1000])).double()
    dropped = 1 - shares.mean(dim=1)
    assert abs(dropped.mean() - p) < 4 * math.sqrt(p * (1 - p) / shares.numel())
    assert abs(dropped.var() / (p * (1 - p) / 1000) - 1) < 4 * math.sqrt(2 / 399)


def test_masks_of_other_seeds_steps_samples_and_sites_are_unlike():
    others = [
        mask(),
        mask(seed=2),
        mask(step=6),
        mask(sample=4),
        mask(layer=3),
        *(mask(place=place) for place in (EMBEDDING, *PLACES) if place != MLP_BRANCH),
    ]
    n, spread = SHAPE.numel(), P * (1 - P)
    for one, other in combinations(others, 2):
        assert abs((one * other).mean()) / spread < 4.5 / math.sqrt(n)
    for x in others:  # within a mask: neighbours in a row, and rows
        for shift in ((0, 1), (0, 2), (1, 0)):
            shifted = x.roll(shift, (0, 1))
            assert abs((x * shifted).mean()) / spread < 4.5 / math.sqrt(n)


def test_masks_of_neighbouring_keys_are_not_each_other_moved_along():
    n, spread = SHAPE.numel(), P * (1 - P)
    keys = torch.tensor([10**9, 10**9 + 7])
    flat, other = (kept((P, keys), SHAPE).double() - (1 - P)).flatten(1)
    spectrum = torch.fft.irfft(torch.fft.rfft(flat) * torch.fft.rfft(other).conj(), n)
    assert spectrum.abs().max() / (n * spread) < 6.5 / math.sqrt(n)


def test_the_expected_value_stays():
    x = torch.linspace(1, 2, 1000).expand(2000, 1000)
    y = drop(x, (P, sample_keys(0, 0, 0, 2000)))
    scales = (y / x).unique()
    assert (scales[scales > 0].double() - compensation(P)).abs().max() < 1e-6
    error = math.sqrt(P / (1 - P) / 2000)
    assert ((y.mean(dim=0) / x[0] - 1).abs() < 5 * error).all()


# -- the kernels ----------------------------------------------------------------------------------
def dropped_of(B: int) -> Dropped:
    return P, sample_keys(11, 4, 2, B)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_kernel_drops_the_same_bits(dtype):
    x = torch.randn(3, 7, 45, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = []
    for ops in (Ops(), FusedOps()):
        leaf = x.clone().requires_grad_()
        y = ops.dropout(leaf, dropped_of(3))
        y.backward(x)
        found.append((y, leaf.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert 0.2 < (found[0][0] == 0).double().mean() < 0.4


@needs_kernels
@pytest.mark.parametrize(("T", "H", "K", "h"), [(7, 3, 3, 5), (83, 4, 2, 16), (150, 2, 1, 24)])
def test_attention_and_its_gradients_have_the_explicit_mask(T, H, K, h):
    """Against autograd through a softmax in float64, with the mask laid out as a matrix."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, T, H, h), (2, T, K, h), (2, T, K, h), (2, T, H * h)]
    q, k, v, g = (torch.randn(shape, generator=generator) for shape in shapes)
    dropped = dropped_of(2)

    wide = [x.double().requires_grad_() for x in (q, k, v)]
    Q, key, value = (x.transpose(1, 2) for x in wide)
    key, value = (x.repeat_interleave(H // K, dim=1) for x in (key, value))
    future = torch.ones(T, T).triu(1).bool()
    weights = (0.3 * Q @ key.transpose(2, 3)).masked_fill(future, -math.inf).softmax(-1)
    mask = kept(dropped, torch.Size([H, T, T])) / (1 - P)
    exact = (weights * mask @ value).transpose(1, 2).flatten(2)
    exact.backward(g.double())

    for ops in (Ops(), FusedOps()):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        y = ops.attention(*leaves, 0.3, dropped)
        y.backward(g)
        torch.testing.assert_close(y, exact.float(), rtol=1e-5, atol=1e-5)
        for leaf, expected in zip(leaves, wide, strict=True):
            torch.testing.assert_close(leaf.grad, expected.grad.float(), rtol=1e-4, atol=2e-5)


@needs_kernels
@pytest.mark.parametrize("narrow", [False, True])
def test_a_model_drops_the_same_under_either_kernels(narrow):
    config = tiny_config(dropout=P, n_head=2, n_embd=32, block_size=40, use_rope=True, n_kv_head=1)
    X, Y = torch.randint(11, (2, 3, 40), generator=torch.Generator().manual_seed(2))
    keys = sample_keys(1, 2, 0, 3)
    losses, gradients = [], []
    for ops in (Ops(), FusedOps()):
        model = GPT(config, ops)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow):
            loss = model(X, Y, masks=keys)[1]
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3 if narrow else 1e-6)
    error = (gradients[0] - gradients[1]).norm() / gradients[0].norm()
    assert error < (3e-2 if narrow else 1e-5)


# -- the model ------------------------------------------------------------------------------------
def test_dropout_acts_at_its_four_places_in_training_alone(monkeypatch):
    seen: list[tuple[str, float]] = []

    class Spy(Ops):
        def dropout(self, x, dropped):
            seen.append(("dropout", dropped and dropped[0]))
            return super().dropout(x, dropped)

        def attention(self, q, k, v, scale, dropped=None):
            seen.append(("attention", dropped and dropped[0]))
            return super().attention(q, k, v, scale, dropped)

    model = GPT(tiny_config(dropout=0.4, n_layer=1, block_size=256), Spy()).eval()
    without = GPT(tiny_config(dropout=0.0, n_layer=1, block_size=256)).eval()
    idx = torch.randint(11, (8, 256), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(idx)[0], without(idx)[0])
        assert not any(rate for _, rate in seen)
        del seen[:]
        probed: dict[str, Tensor] = {}
        keys = sample_keys(0, 0, 0, 8)
        noisy = model.train()(idx, masks=keys, probe=probed.setdefault)[0]
        places = ["dropout", "attention", "dropout", "dropout"]  # embedding, weights, each branch
        assert seen == [(place, 0.4) for place in places]
        assert torch.equal(noisy, model(idx, masks=keys)[0])
        assert torch.equal(noisy[2:5], model(idx[2:5], masks=keys[2:5])[0])
        assert not torch.equal(noisy, model(idx, masks=sample_keys(0, 1, 0, 8))[0])
    zeros = (probed["embedding"] == 0).double().mean()
    assert zeros == pytest.approx(0.4, abs=0.01)


def test_every_place_of_every_layer_has_masks_of_its_own():
    seen: list[tuple[int, ...]] = []

    class Spy(Ops):
        def dropout(self, x, dropped):
            seen.append(tuple(dropped[1].tolist()))
            return super().dropout(x, dropped)

        def attention(self, q, k, v, scale, dropped=None):
            seen.append(tuple(dropped[1].tolist()))
            return super().attention(q, k, v, scale, dropped)

    model = GPT(tiny_config(dropout=0.4, n_layer=3), Spy())
    model(torch.zeros(2, 8, dtype=torch.long), masks=sample_keys(0, 0, 0, 2))
    assert len(seen) == len(set(seen)) == 1 + 3 * 3


def test_without_keys_a_model_draws_them_from_torchs_generator():
    model = GPT(tiny_config(dropout=0.4))
    idx = torch.zeros(2, 8, dtype=torch.long)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(model(idx)[0])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(found[0][0], found[0][1])  # nor are two samples alike
