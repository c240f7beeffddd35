"""The compute multiplier against a planted law, and its interval's coverage."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from nanoscale.checks.compute_multiplier import multiplier
from nanoscale.store.files import plain


def levels(flops, speed=1.0, seeds=3, noise=None):
    """Levels of the law 3 (speed C / 1e9)^-0.05, a seed's relative shift on each."""
    noise = np.zeros((len(flops), seeds)) if noise is None else noise
    return [
        (c, {str(s): 3 * (speed * c / 1e9) ** -0.05 * (1 + noise[i, s]) for s in range(seeds)})
        for i, c in enumerate(flops)
    ]


def test_the_multiplier_of_a_planted_law_is_exact():
    a, b = levels([1e9, 5e9, 2e10]), levels([2e9, 4e9, 8e9], speed=1.5)
    found = multiplier(a, b, True)
    assert found.value == pytest.approx(1.5, rel=1e-9)
    assert found.ci95 == pytest.approx([1.5, 1.5], rel=1e-6)
    # A's 5e9 lies between B's 3e9 and 12e9, and all of B's between A's 1e9 and 2e10
    assert [(k.level_of, round(k.flops / 1e9)) for k in found.at] == [
        ("A", 5),
        ("B", 2),
        ("B", 4),
        ("B", 8),
    ]
    assert multiplier(b, a, True).value == pytest.approx(1 / 1.5, rel=1e-9)
    one = multiplier(levels([8e9]), levels([2e9, 8e9], speed=1.5), True)
    assert one.value == pytest.approx(1.5, rel=1e-9)
    worse = [*a, (5e9, {"0": 9.0, "1": 9.0})]  # of equal FLOPs the lowest loss is the arm's
    assert multiplier(worse, b, True).value == found.value


def test_the_multipliers_interval_covers():
    rng, hits = np.random.default_rng(4), []
    flops = [1e9, 4e9, 16e9]
    for _ in range(400):
        seed = 0.004 * rng.standard_normal(4)
        noise = seed + 0.002 * rng.standard_normal((2, 3, 4))
        low, high = multiplier(
            levels(flops, 1, 4, noise[0]), levels(flops, 1.4, 4, noise[1]), True
        ).ci95
        hits.append(low <= 1.4 <= high)
    assert 0.92 <= np.mean(hits) <= 0.98


@pytest.mark.parametrize(
    ("a", "b", "why"),
    [
        (
            levels([1e9]),
            levels([1e9], 2),
            "one compute budget per arm gives no multiplier: run both",
        ),
        (levels([1e9, 2e9]), levels([1e9, 2e9], 9), "every loss of B lies below those of A: run A"),
        (levels([1e9, 2e9], 9), levels([1e9, 2e9]), "every loss of A lies below those of B: run B"),
        ([(1e9, {"0": 2.0}), (2e9, {"0": 2.1})], levels([1e9]), "the loss of A does not fall"),
    ],
)
def test_no_multiplier_is_said_with_its_reason(a, b, why):
    found = multiplier(a, b, True)
    assert plain(asdict(found)) == {
        "value": None,
        "ci95": [None, None],
        "at": [],
        "reason": found.reason,
    }
    assert found.reason.startswith(why)
