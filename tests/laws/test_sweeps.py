"""Sweeps: planted power laws of the optimum, edges, coverage."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nanoscale.errors import UserError
from nanoscale.laws.sweep_optima import AT_HIGH_EDGE, AT_LOW_EDGE, NOT_BENT, TOO_FEW_VALUES
from nanoscale.laws.sweeps import SweepLaw, sweep_law

STEP_LAW = (1.79, -0.713, 0.307)  # Li et al. 2025


def world(sd=0.0, scatter=0.0, rng_seed=0, values=7, cells=(4, 4), shift=0.0):
    """Columns and losses of sweeps in octaves whose optima follow Step Law."""
    rng, rows = np.random.default_rng(rng_seed), []
    c, p, q = STEP_LAW
    for N in np.geomspace(1e7, 1e9, cells[0]):
        for D in np.geomspace(1e9, 3e10, cells[1]):
            law = c * N**p * D**q
            best = law * np.exp(scatter * rng.standard_normal())
            middle = 2.0 ** np.round(np.log2(law) + shift)
            for lr in middle * 2.0 ** (np.arange(values) - values // 2):
                rows.append(
                    (
                        N,
                        D,
                        lr,
                        2.5 * np.exp(0.01 * np.log(lr / best) ** 2 + sd * rng.standard_normal()),
                    )
                )
    *columns, loss = np.array(rows).T
    return dict(zip(("N", "D", "lr"), columns, strict=True)), loss


def lr_law(columns, loss, **options) -> SweepLaw:
    return sweep_law(columns, loss, "lr", **options)


def test_planted_laws_are_recovered_exactly():
    columns, loss = world()
    found = lr_law(columns, loss)
    assert [found.c, *found.exponents.values()] == pytest.approx(STEP_LAW, rel=1e-9)
    assert found.ci95["N"] == pytest.approx([-0.713, -0.713], abs=1e-9)
    assert (found.n_used, found.scatter, found.warnings) == (16, 0.0, [])
    at = found.predict(N=1e10, D=1e11)
    assert at.optimum == pytest.approx(1.79 * 1e10**-0.713 * 1e11**0.307, rel=1e-7)
    assert found.equation() == "lr* = 1.790 N^-0.7130 D^0.3070"
    batch = {"D": columns["D"], "batch": 10 * columns["D"] ** 0.571}
    spread = np.tile(2.0 ** np.arange(-3, 4), 16)
    found = sweep_law(
        {"D": batch["D"], "batch": batch["batch"] * spread},
        2 * np.exp(0.02 * np.log(spread) ** 2),
        "batch",
    )
    assert (found.c, found.exponents) == (pytest.approx(10), {"D": pytest.approx(0.571)})
    json.dumps(found.to_json(), allow_nan=False)


def test_the_vertex_is_numpys_and_its_interval_that_of_the_noise():
    columns, loss = world(0.001, rng_seed=4)
    found = lr_law(columns, loss, resamples=4000)
    one = found.sweeps[5]
    rows = np.isclose(columns["N"], one.at["N"], rtol=1e-6) & np.isclose(
        columns["D"], one.at["D"], rtol=1e-6
    )
    v, y = np.log(columns["lr"][rows]), np.log(loss[rows])
    near = np.abs(v - v[y.argmin()]) < np.log(4.05)
    (second, first, _), covariance = np.polyfit(v[near], y[near], 2, cov="unscaled")
    assert one.optimum == pytest.approx(np.exp(-first / (2 * second)), rel=1e-9)
    slope = np.array([first / (2 * second**2), -1 / (2 * second), 0])
    sd = found.noise * np.sqrt(slope @ covariance @ slope)
    low, high = np.log(one.ci95)
    assert high - low == pytest.approx(2 * 1.99 * sd, rel=0.1)


def test_the_law_is_the_least_squares_weighted_by_each_optimums_variance():
    columns, loss = world(0.001, rng_seed=3)
    narrow = (columns["N"] > 1e8) & (columns["D"] > 5e9)  # fewer values: optima known less well
    middle = {}
    for at in set(zip(columns["N"], columns["D"], strict=True)):
        rows = (columns["N"] == at[0]) & (columns["D"] == at[1])
        middle[at] = np.median(columns["lr"][rows])
    near = np.array(
        [abs(np.log2(lr / middle[N, D])) < 2.5 for N, D, lr in zip(*columns.values(), strict=True)]
    )
    columns, loss = {k: v[near | ~narrow] for k, v in columns.items()}, loss[near | ~narrow]
    found = lr_law(columns, loss)
    rows, y, weight = [], [], []
    for N, D in middle:
        here = (columns["N"] == N) & (columns["D"] == D)
        v, z = np.log(columns["lr"][here]), np.log(loss[here])
        inside = np.abs(v - v[z.argmin()]) < np.log(4.05)
        centre = v[inside].mean()
        (c2, c1, _), covariance = np.polyfit(v[inside] - centre, z[inside], 2, cov="unscaled")
        slope = np.array([c1 / (2 * c2**2), -1 / (2 * c2), 0])
        variance = found.noise**2 * slope @ covariance @ slope + found.scatter**2
        rows.append([1, np.log(N), np.log(D)])
        y.append(centre - c1 / (2 * c2))
        weight.append(1 / np.sqrt(variance))
    weight = np.array(weight)
    assert weight.max() > 1.3 * weight.min()
    coef = np.linalg.lstsq(np.array(rows) * weight[:, None], y * weight, rcond=None)[0]
    assert list(found.exponents.values()) == pytest.approx(coef[1:], rel=1e-8)
    assert found.c == pytest.approx(np.exp(coef[0]), rel=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("scatter", [0.0, 0.15])
def test_intervals_cover_with_and_without_scatter(scatter):
    held = np.zeros(2)
    for seed in range(60):
        found = lr_law(*world(0.001, scatter, seed, cells=(4, 3)), resamples=200, rng_seed=seed)
        held += [
            low <= value <= high
            for value, (low, high) in zip(
                STEP_LAW[1:], (found.ci95["N"], found.ci95["D"]), strict=True
            )
        ]
    assert (held >= 0.88 * 60).all(), held
    assert found.scatter == pytest.approx(scatter, abs=0.08)


def test_a_sweep_at_its_edge_is_flagged_left_out_and_told_where_to_go():
    columns, loss = world()
    last = (columns["N"] == columns["N"].max()) & (columns["D"] == columns["D"].max())
    low, high = columns["lr"][last][0], columns["lr"][last][-1]
    for kept, flag, wanted in (
        (~last | (columns["lr"] >= low * 16), AT_LOW_EDGE, (4 * low, 8 * low)),
        (~last | (columns["lr"] <= high / 16), AT_HIGH_EDGE, (high / 8, high / 4)),
        (~last | (np.abs(np.log(columns["lr"] / low / 8)) < 1), TOO_FEW_VALUES, ()),
    ):
        found = lr_law({k: v[kept] for k, v in columns.items()}, loss[kept])
        at = [s for s in found.sweeps if s.flag]
        assert [s.flag for s in at] == [flag]
        assert at[0].wanted == pytest.approx(wanted)
        assert (at[0].optimum, found.n_used) == (None, 15)
        assert f"1 sweeps left out, {flag}: (N=1e+09, D=3e+10)" in found.warnings[0]
        assert found.exponents["N"] == pytest.approx(-0.713)
    loss[last] = [3.0, 2.99, 3.5, 3.2, 3.2, 3.2, 3.2]  # inside, but no valley
    found = lr_law(columns, loss)
    assert [s.flag for s in found.sweeps if s.flag] == [NOT_BENT]


def test_few_scales_are_warned_about_and_fewer_refused():
    found = lr_law(*world(cells=(3, 4)))
    assert found.warnings == [
        "N has only 3 values: its exponent is little more than a ratio below 4; add one"
    ]
    for cells, message in (
        ((2, 4), "N has 2 values among the sweeps"),
        ((1, 3), "3 of 3 sweeps have an optimum inside them"),
    ):
        with pytest.raises(UserError, match=message):
            lr_law(*world(cells=cells))
    columns, loss = world()
    ladder = np.isclose(columns["D"] / 1e9, (columns["N"] / 1e7) ** 0.7385, rtol=0.05)
    found = lr_law({k: v[ladder] for k, v in columns.items()}, loss[ladder])
    assert any("N and D rise together" in w for w in found.warnings)


@pytest.mark.parametrize(
    ("message", "columns", "options"),
    [
        ("give 'lr' and what it depends on", {"lr": [1e-3] * 7}, {}),
        ("columns differ in length", {"N": [1e6] * 6, "lr": [1e-3] * 7}, {}),
        ("row 1 repeats an earlier one", {"N": [1e6] * 7, "lr": [1e-3] * 7}, {"seed": [1] * 7}),
        (
            "10 resamples are too few",
            {"N": [1e6] * 7, "lr": 2.0 ** np.arange(7)},
            {"resamples": 10},
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(message, columns, options):
    with pytest.raises(UserError) as error:
        sweep_law(columns, [3.0] * 7, "lr", **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
