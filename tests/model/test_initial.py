"""Initial values: frozen, and the same under a numpy that would draw others."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from tiny import tiny_config

from nanoscale.model import initial
from nanoscale.model.gpt import GPT
from nanoscale.model.initial import EDGE, normal, philox_of, ziggurat

WTE, WPE = "transformer.wte.weight", "transformer.wpe.weight"  # hashed below and above 2^63


def digest(values: torch.Tensor) -> str:
    return hashlib.sha256(values.numpy().astype("<f4").tobytes()).hexdigest()[:16]


def numpys(seed: int, name: str, count: int) -> np.ndarray:
    """What this numpy draws."""
    return np.random.Generator(philox_of(seed, name)).standard_normal(count, np.float32)


@pytest.fixture
def another_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A numpy whose normals are others than those of every run so far."""

    class Generator:
        def __init__(self, words: np.random.Philox) -> None:
            self.words = words

        def standard_normal(self, shape: object, dtype: type = np.float64) -> np.ndarray:
            return np.full(shape, 0.5, dtype)

    monkeypatch.setattr(np.random, "Generator", Generator)
    initial.numpy_draws_as_ever.cache_clear()
    yield
    initial.numpy_draws_as_ever.cache_clear()


def frozen_values() -> dict[str, str]:
    return {
        "wte": digest(normal(1337, WTE, (65, 32))),
        "wpe": digest(normal(1337, WPE, (64, 32))),
        "a large seed": digest(normal(2**63 - 1, WPE, (7,))),
    }


FROZEN = {"wte": "582743076d545c58", "wpe": "e700a5e60ca1577e", "a large seed": "ef65569b1e006a2d"}


def test_the_values_are_frozen():
    """Every published number began from these, so they may never change."""
    assert frozen_values() == FROZEN


def test_a_models_values_are_frozen():
    state = GPT(tiny_config()).state_dict()
    values = torch.cat([value.flatten() for value in state.values()])
    assert digest(values) == "1799f1e5aaecb8a6"


def test_another_numpy_changes_nothing(another_numpy):
    assert not initial.numpy_draws_as_ever()
    assert frozen_values() == FROZEN


@pytest.mark.skipif(
    not initial.numpy_draws_as_ever(), reason="this numpy draws others, or with another libm"
)
@pytest.mark.parametrize(("seed", "count"), [(0, 400_001), (5, 1), (6, 2), (7, 300_000)])
@pytest.mark.parametrize("name", [WTE, WPE])
def test_our_method_is_numpys_bit_for_bit(seed, count, name):
    ours, theirs = ziggurat(philox_of(seed, name), count), numpys(seed, name, count)
    assert ours.dtype == np.float32
    assert np.array_equal(ours.view(np.int32), theirs.view(np.int32))
    assert count < 1000 or (np.abs(ours) > EDGE).sum() > 20  # it went through the tail as well


def test_the_sample_takes_every_path():
    """Certain places, doubtful ones that are kept and dropped, and both sides of the tail."""
    seed = initial.SAMPLE_SEED
    sample = ziggurat(philox_of(seed, ""), initial.SAMPLE)
    assert (sample > EDGE).any()
    assert (sample < -EDGE).any()
    words = philox_of(seed, "").random_raw(initial.SAMPLE // 2).view("<u4")
    edge, inner = initial.layers()
    doubtful = (words >> 9) >= np.rint(inner / edge * 2**23)[words & 0xFF]
    assert 50 < doubtful.sum() < initial.SAMPLE / 50


def test_the_sample_shows_another_logarithm(monkeypatch):
    """As of a newer glibc, which rounds the last bit otherwise."""
    seed = initial.SAMPLE_SEED
    ours = ziggurat(philox_of(seed, ""), initial.SAMPLE)
    monkeypatch.setattr(initial, "log", lambda x: np.float32(math.log(x)))
    assert (ziggurat(philox_of(seed, ""), initial.SAMPLE) != ours).any()


def test_our_logarithm_is_frozen():
    ends = np.array([0, 2**22, 2**23, 2**24 / math.sqrt(2), 2**24], int)  # of its pieces
    places = np.unique(np.clip(ends + np.arange(-999, 999)[:, None], 1, 2**24))
    x = (places / 2**24).astype(np.float32)
    found = np.array([initial.log(value) for value in x])
    np.testing.assert_allclose(found, np.log(x.astype(float)), rtol=2e-7)
    assert digest(torch.from_numpy(found)) == "8e6bc1f20e09f0d2"
