"""The schedules against literal values and against nanoGPT's own formula."""

from __future__ import annotations

import itertools
import math

import pytest
from tiny import tiny_config

from nanoscale.spec.schedule import lr_multiplier


def curve(count: int, **overrides: object) -> list[float]:
    """The multipliers of the first `count` updates, with a floor of 0.1 unless told otherwise."""
    config = tiny_config(**overrides)
    return [lr_multiplier(config, step) for step in range(count)]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            {"lr_schedule": "constant", "warmup_iters": 3},
            [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        ),
        (
            {"lr_schedule": "linear", "warmup_iters": 1},
            [0.5, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1],
        ),
        (
            {"lr_schedule": "linear"},
            [1, 0.91, 0.82, 0.73, 0.64, 0.55, 0.46, 0.37, 0.28, 0.19, 0.1, 0.1],
        ),
        (
            {"lr_schedule": "linear", "min_lr_frac": 0.0, "lr_decay_iters": 4},
            [1, 0.75, 0.5, 0.25, 0, 0],
        ),
        (
            {"lr_schedule": "cosine", "lr_decay_iters": 4},
            [
                1,
                0.1 + 0.45 * (1 + math.sqrt(0.5)),
                0.55,
                0.1 + 0.45 * (1 - math.sqrt(0.5)),
                0.1,
                0.1,
            ],
        ),
        ({"lr_schedule": "cosine", "min_lr_frac": 1.0, "warmup_iters": 1}, [0.5, 1, 1, 1, 1, 1]),
        (
            {"lr_schedule": "wsd", "cooldown_frac": 0.4, "warmup_iters": 1},
            [0.5, 1, 1, 1, 1, 1, 1, 0.775, 0.55, 0.325, 0.1, 0.1],
        ),
        (
            {
                "lr_schedule": "wsd",
                "cooldown_frac": 0.4,
                "cooldown_shape": "1-sqrt",
                "min_lr_frac": 0.0,
            },
            [1, 1, 1, 1, 1, 1, 1, 0.5, 1 - math.sqrt(0.5), 1 - math.sqrt(0.75), 0, 0],
        ),
        (
            {"lr_schedule": "wsd", "cooldown_frac": 1.0, "warmup_iters": 2, "min_lr_frac": 0.0},
            [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0, 0],
        ),
        ({"lr_schedule": "wsd", "cooldown_frac": 0.01}, [1] * 10 + [0.1, 0.1]),
        ({"lr_schedule": "cosine", "decay_lr": False, "warmup_iters": 5}, [1] * 12),
        ({"lr_schedule": "cosine", "warmup_iters": 20}, [(s + 1) / 21 for s in range(12)]),
    ],
)
def test_each_shape_has_its_values(overrides, expected):
    assert curve(len(expected), **overrides) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("warmup", "decay", "lr", "floor"),
    [(100, 5000, 1e-3, 1e-4), (0, 50, 6e-4, 6e-5), (10, 10, 1e-2, 0.0), (7, 30, 3e-4, 3e-4)],
)
def test_the_cosine_is_nanogpts(warmup, decay, lr, floor):
    def nanogpt(it: int) -> float:
        if it < warmup:
            return lr * (it + 1) / (warmup + 1)
        if it > decay:
            return floor
        ratio = (it - warmup) / (decay - warmup) if decay > warmup else 1.0
        return floor + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (lr - floor)

    config = tiny_config(
        warmup_iters=warmup,
        lr_decay_iters=decay,
        max_iters=decay + 50,
        learning_rate=lr,
        min_lr=floor,
    )
    for it in range(decay + 50):
        assert lr * lr_multiplier(config, it) == pytest.approx(nanogpt(it), rel=1e-12, abs=1e-18)


SHAPES = [{"lr_schedule": shape} for shape in ("cosine", "linear", "wsd", "constant")]
SHAPES.append({"lr_schedule": "wsd", "cooldown_shape": "1-sqrt"})


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("warmup", [0, 1, 40, 199])
@pytest.mark.parametrize("decay", [200, 300, 1])
def test_a_schedule_rises_then_falls_without_jumps_and_keeps_its_floor(shape, warmup, decay):
    values = curve(
        310,
        **shape,
        warmup_iters=warmup,
        lr_decay_iters=decay,
        max_iters=250,
        cooldown_frac=0.5,
        min_lr_frac=0.2,
    )
    assert all(a < b for a, b in itertools.pairwise(values[: warmup + 1])) or decay <= warmup
    assert all(a >= b for a, b in itertools.pairwise(values[warmup:]))
    assert min(values[warmup:]) >= 0.2 - 1e-12
    assert max(values) <= 1
    if warmup == 40 and decay >= 200:
        jumps = [abs(a - b) for a, b in itertools.pairwise(values)]
        assert max(jumps) < (0.11 if "cooldown_shape" in shape else 0.03)
    if shape["lr_schedule"] != "constant":
        assert values[max(decay, warmup)] == pytest.approx(0.2)


def test_the_cooldown_starts_where_its_part_of_the_decay_begins_but_never_in_the_warmup():
    values = curve(100, lr_schedule="wsd", max_iters=100, cooldown_frac=0.3, warmup_iters=10)
    assert values[70] == 1 > values[71]
    late = curve(100, lr_schedule="wsd", max_iters=100, cooldown_frac=0.95, warmup_iters=50)
    assert late[50] == 1 > late[51]
    assert late[49] == 50 / 51


def test_the_floor_is_one_part_of_the_lr_for_all_groups():
    config = tiny_config(learning_rate=2e-3, min_lr=5e-4, muon_lr=0.5, optimizer="muon")
    assert lr_multiplier(config, 10) == 0.25


def test_zero_updates_have_a_schedule():
    assert lr_multiplier(tiny_config(max_iters=0), 0) == 1


def test_the_length_of_a_cooldown_is_rounded_to_the_nearest_step():
    values = curve(10, lr_schedule="wsd", max_iters=10, cooldown_frac=0.29)  # 2.9 steps: 3
    assert values[:8] == [1] * 8
    assert values[8] == pytest.approx(0.7)
