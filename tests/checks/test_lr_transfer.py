"""The transfer verdict against planted optima, a delta method, Student's t, and known noise."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from lr_grids import (
    EVERYWHERE,
    FEW,
    OCTAVES,
    cliff,
    coverage,
    diverging,
    grid,
    judge,
    noisy,
    valley,
)

from nanoscale.checks.lr_transfer import transfer_verdict
from nanoscale.checks.optimum import curve_of, window
from nanoscale.checks.seed_shifts import SeedShifts
from nanoscale.errors import UserError


# -- what is measured ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    "lrs", [OCTAVES, np.arange(-4, 5), np.arange(-4, 4.5, 0.5), np.arange(-3, 3, 1 / 3)]
)
def test_a_parabola_without_noise_is_recovered_exactly(lrs):
    optima = np.array([0.1, 0.05, 0.0, -0.05])
    record = judge(grid(optima, lrs=lrs))
    sizes = record["sizes"]
    assert [s["log2_optimum"] for s in sizes] == pytest.approx(optima - 7, abs=1e-9)
    assert [s["min_loss"] for s in sizes] == pytest.approx([3, 2.9, 2.8, 2.7], abs=1e-9)
    assert [s["regret"] for s in sizes] == pytest.approx(0.03 * (optima - 0.1) ** 2, abs=1e-9)
    assert record["drift"]["value"] == pytest.approx(-0.05, abs=1e-9)
    assert record["drift"]["ci95"] == pytest.approx([-0.05, -0.05], abs=1e-5)
    assert record["largest_shift"]["value"] == pytest.approx(0.15, abs=1e-9)
    assert (record["verdict"], record["larger_is_never_worse"]) == ("pass", True)


def test_drift_is_per_doubling_whatever_the_sizes_are():
    table = grid([0.0, -0.3, -0.6])
    table[:, 0] = table[:, 0] ** 2  # 64, 128, 256 -> two doublings a step
    assert judge(table)["drift"]["value"] == pytest.approx(-0.15, abs=1e-9)


def test_what_a_seed_does_to_a_whole_curve_moves_no_optimum():
    still = judge(grid([0.2, 0.1, 0.3]))
    moved = judge(grid([0.2, 0.1, 0.3], reach=0.75, shift=0.02))  # one seed at some of the five
    for a, b in zip(still["sizes"], moved["sizes"], strict=True):
        assert b["log2_optimum"] == pytest.approx(a["log2_optimum"], abs=1e-9)
        assert b["transferred_se"] > 0.005 > 1e-9 > a["transferred_se"]
    assert moved["noise"]["sd"] == pytest.approx(0, abs=1e-9)
    assert 0.01 < moved["noise"]["shift_sd"] < 0.04


@pytest.mark.parametrize(
    ("lrs", "seeds", "share", "alone"), [(6, 3, 1, 0), (7, 5, 0.7, 0), (5, 4, 0.6, 3), (3, 2, 1, 2)]
)
def test_shifts_and_means_are_those_of_dense_least_squares(lrs, seeds, share, alone):
    rng = np.random.default_rng(lrs)
    there = rng.random((lrs, seeds)) < share
    there[:, 0] = True
    cell, seed = np.nonzero(there)
    cell = np.concatenate([cell, rng.integers(0, lrs, alone)])
    seed = np.concatenate([seed, 100 + np.arange(alone)])
    y = rng.standard_normal(len(cell))
    found = SeedShifts.of(cell, y, seed, np.ones(lrs, bool))
    shared = [s for s in range(seeds) if there[:, s].sum() > 1]
    X = np.hstack([cell[:, None] == np.arange(lrs), seed[:, None] == shared]).astype(float)
    within = X[:, lrs:] - X[:, :lrs] @ (X[:, :lrs].T @ X[:, lrs:] / X[:, :lrs].sum(0)[:, None])
    solve = np.linalg.pinv(within, rcond=1e-9)  # the shortest shifts
    to_means = (X[:, :lrs] / X[:, :lrs].sum(0)).T @ (np.eye(len(y)) - X[:, lrs:] @ solve)
    assert found.mean == pytest.approx(to_means @ y, abs=1e-9)
    assert found.root @ found.root.T == pytest.approx(to_means @ to_means.T, abs=1e-9)
    assert found.shift.total == pytest.approx(np.sum((solve @ y) ** 2), abs=1e-9)
    assert found.shift_of_noise == pytest.approx(np.sum(solve**2), abs=1e-9)
    assert found.shift.dof == np.linalg.matrix_rank(within)
    assert found.rest.dof == len(y) - np.linalg.matrix_rank(X)


def test_120_seeds_change_nothing_but_the_certainty():
    few, many = (judge(noisy([0.1, 0.1, 0.1], seeds=n, reach=EVERYWHERE)) for n in (3, 120))
    assert many["verdict"] == "pass"
    assert many["noise"]["sd"] == pytest.approx(0.004, rel=0.03)
    found = [size["log2_optimum"] for size in many["sizes"]]
    assert found == pytest.approx([-6.9] * 3, abs=0.01)
    assert np.ptp(many["drift"]["ci95"]) < np.ptp(few["drift"]["ci95"]) / 3


def test_one_seed_however_it_is_written_is_one():
    table = noisy([0, 0, 0])
    as_floats = [f"{seed:.1f}" if k % 2 else seed for k, seed in enumerate(table[:, 3])]
    columns = (*table.T[:3], as_floats)
    assert transfer_verdict(*columns, resamples=FEW).to_json() == judge(table)
    with pytest.raises(UserError, match=r"LR 0\.000976562, seed 0 is there twice"):
        transfer_verdict([64, 64], [2**-10] * 2, [3, 3], ["0", "0.0"])


def test_points_far_from_the_optimum_do_not_move_it():
    for lrs in (OCTAVES, np.arange(-4, 5)):
        record = judge(grid([0.1, 0.1, 0.1], lrs=lrs, curve=cliff))
        assert [s["log2_optimum"] for s in record["sizes"]] == pytest.approx([-6.9] * 3, abs=1e-9)


def test_a_loss_beyond_the_window_is_read_off_the_lrs_that_were_run():
    record = judge(grid([0, -2, -4], lrs=np.arange(-6, 2), curve=cliff))
    lost = [s["transferred_loss"] for s in record["sizes"]]
    assert lost == pytest.approx([3, 2.9 + 0.03 * 4 + 9, 2.8 + 0.03 * 16 + 9], abs=1e-9)
    assert record["sizes"][2]["regret"] == pytest.approx(9.48, abs=1e-9)


def test_an_optimums_interval_is_the_delta_methods():
    rng = np.random.default_rng(5)
    near, sd = np.arange(-1, 1.5, 0.5), 0.001
    table = grid([0.0] * 12, lrs=near, sd=sd, shift=0.05, rng=rng, seeds=4)
    record = judge(table, resamples=4000)
    x = np.stack([np.ones(5), near, near**2], 1)
    for size in record["sizes"]:
        slope_sd = math.sqrt(np.linalg.inv(x.T @ x)[1, 1] * size["noise_sd"] ** 2 / 4)
        width = np.diff(np.log2(size["ci95"]))[0] / (2 * 1.96)
        assert width == pytest.approx(slope_sd / (2 * 0.03), rel=0.15)
    assert record["noise"]["sd"] == pytest.approx(sd, rel=0.15)
    assert record["noise"]["shift_sd"] == pytest.approx(0.05, rel=0.35)
    assert record["noise"]["dof"] == 12 * (20 - 5 - 3)


def test_a_noisy_size_does_not_blur_the_others():
    rng, near = np.random.default_rng(2), np.arange(-1, 1.5, 0.5)
    calm = grid([0.0] * 3, lrs=near, sd=0.001, rng=rng)
    wild = grid([0.0] * 4, lrs=near, sd=0.02, rng=rng)
    sizes = judge(np.concatenate([calm, wild[wild[:, 0] == 512]]))["sizes"]
    width = [np.diff(np.log2(size["ci95"]))[0] for size in sizes]
    assert max(width[:3]) < width[3] / 1.5
    alone = [np.diff(np.log2(size["ci95"]))[0] for size in judge(calm)["sizes"]]
    assert sizes[3]["noise_sd"] == pytest.approx(0.02, rel=0.5)
    assert sizes[0]["noise_sd"] < 0.6 * sizes[3]["noise_sd"]
    assert max(width[:3]) > max(alone)  # pooled, so not quite undisturbed


def test_an_interval_may_reach_beyond_the_lrs_that_were_run():
    lrs = np.arange(-1.0, 3)
    sizes = judge(noisy([-0.5, -0.5, -0.5], lrs=lrs, seeds=1, sd=0.01))["sizes"]
    low = [size["ci95"][0] for size in sizes if size["bracketed"]]
    assert low
    assert min(low) < 2**-8.4  # the lowest LR is 2^-8


def test_sizes_that_scatter_widen_the_drift_to_students_t():
    optima = np.array([0.3, -0.3, 0.35, -0.25])
    record = judge(grid(optima), resamples=40_000)
    k = np.arange(4) - 1.5
    slope = k @ optima / (k @ k)
    left = optima - optima.mean() - slope * k
    half = 4.3027 * math.sqrt(left @ left / 2 / (k @ k))  # Student's t, 2 degrees of freedom
    assert record["drift"]["value"] == pytest.approx(slope, abs=1e-9)
    assert record["drift"]["ci95"] == pytest.approx([slope - half, slope + half], rel=0.05)
    assert record["scatter"] == pytest.approx(math.sqrt(left @ left / 2), rel=1e-6)
    assert "scatter" in " ".join(record["warnings"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "drift", "widest"), [(3, -0.2, 0.10), (3, -0.7, 0.10), (1, 0.0, 0.30)]
)
def test_the_95_percent_interval_of_the_drift_covers(seeds, drift, widest):
    rng, worlds, held, halves = np.random.default_rng(1), 50, 0, []
    for _ in range(worlds):
        optima = rng.uniform(-0.5, 0.5) + drift * np.arange(4)
        table = grid(optima, seeds=seeds, sd=0.006, shift=0.006, curve=valley, rng=rng)
        low, high = judge(table)["drift"]["ci95"]
        held += low <= drift <= high
        halves.append((high - low) / 2)
    print(f"{seeds} seeds, drift {drift}: {held / worlds:.3f} covered, {np.median(halves):.3f}")
    assert held >= 0.9 * worlds
    assert np.median(halves) < widest


@pytest.mark.parametrize(
    ("mean", "taken"),
    [
        (lambda x: 0.1 * x**2, (-1, 1)),
        (lambda x: 0.01 * x**2, (-2, 2)),
        (lambda x: 0.02 * x**2, (-1.5, 1.5)),
        (lambda x: np.where(x > 0, 0.1, 0.011) * x**2, (-2, 1)),
        (lambda x: 0.01 * x**2 + 0.1 * (x == -1.5), (-1, 2)),
    ],
)
def test_a_flat_valley_is_fitted_over_up_to_two_octaves_on_either_side(mean, taken):
    x = np.arange(-3, 3.5, 0.5)
    inside = x[window(x, mean(x)[:, None])[:, 0]]
    assert (inside[0], inside[-1]) == taken
    assert len(inside) == 2 * (taken[1] - taken[0]) + 1


# -- plateaus -----------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("world", ["plateau of 4 octaves", "seeds apart by 0.15"])
def test_where_noise_chooses_the_lowest_loss_the_interval_says_so(world):
    found = coverage(world, 0.0, worlds=25, resamples=200)
    assert found.held >= 0.93
    assert found.fails == 0


# -- verdicts -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("table", "verdict", "words"),
    [
        (noisy([0, 0, 0, 0]), "pass", ["drift", "is within 0.25", "nats is within 0.02"]),
        (
            noisy([0, -0.7, -1.4, -2.1]),
            "fail",
            ["drift -0.69 [", "is beyond 0.25", "follow size^-0.69,"],
        ),
        (noisy([0, 0, 0], seed=1), "pass", []),
        (noisy([0, 0]), "inconclusive", ["needs 3 sizes, the runs have 2: run more"]),
        (
            noisy([0, 0, 0, -4], lrs=np.arange(-4.0, 4)),
            "inconclusive",
            ["size 512 is not bracketed", "lowest LR, 0.000488", "run size 512 at LR 0.000122 and"],
        ),
        (
            noisy([0, 0, 3.2, 0], lrs=np.arange(-4.0, 4)),
            "inconclusive",
            ["size 256 is not bracketed", "highest LR, 0.0625", "at LR 0.125 and 0.25"],
        ),
        (noisy([0, 0, 0, 0], sd=0.03), "inconclusive", ["does not decide about 0.25", "run"]),
        (
            noisy([0, -1.5, -3.0, -4], lrs=np.arange(-4.0, 4)),
            "inconclusive",
            ["size 512 is not bracketed", "what is known would fail: drift -1.5"],
        ),
        (grid([0, 0, 0], lrs=[-1, 0, 1], seeds=1), "inconclusive", ["run 3 seeds", "[?, ?]"]),
    ],
)
def test_the_verdict_names_its_numbers_and_the_remedy(table, verdict, words):
    record = judge(table)
    assert record["verdict"] == verdict
    assert "\n" not in record["reason"]
    for word in words:
        assert word in record["reason"]


def test_the_interval_decides_and_not_the_point():
    table = noisy([0, -0.2, -0.4, -0.6])
    drift = judge(table)["drift"]
    low, high = drift["ci95"]
    assert judge(table, tolerance=0.99 * -drift["value"])["drift"]["verdict"] == "inconclusive"
    assert judge(table, tolerance=1.01 * -low)["drift"]["verdict"] == "pass"
    assert judge(table, tolerance=0.99 * -low)["drift"]["verdict"] == "inconclusive"
    assert judge(table, tolerance=0.99 * -high)["drift"]["verdict"] == "fail"


def test_the_base_is_the_size_that_is_asked_for():
    table = grid([0.4, 0.2, 0.0])
    for base, shifts in ((64, [0, 0.2, 0.4]), (128, [0.2, 0, 0.2])):
        record = judge(table, base=base)
        assert [s["shift"] for s in record["sizes"]] == pytest.approx(shifts, abs=1e-9)
        assert record["base"] == base


def test_larger_is_worse_only_beyond_two_standard_errors():
    table = noisy([0, 0, 0])
    table[table[:, 0] == 256, 2] += 0.5
    record = judge(table)
    assert record["larger_is_never_worse"] is False
    assert "size 256 is worse than 128" in " ".join(record["warnings"])
    table[table[:, 0] == 256, 2] -= 0.395  # now worse by some 0.005, which is noise
    assert judge(table)["larger_is_never_worse"] is True


# -- runs that diverged or are not there --------------------------------------------------------
def test_a_diverged_lr_bounds_a_curve_and_is_no_optimum():
    table = grid([0.1, 0.1, 0.1], lrs=np.arange(-4, 1.5, 0.5))
    record = judge(diverging(table, 256, 0.5))
    size = record["sizes"][2]
    assert size["bracketed"]
    assert size["log2_optimum"] == pytest.approx(-6.9, abs=1e-9)
    assert size["diverged_lrs"] == [2**-6.5, 2**-6]
    assert "diverged at size 256: LR 0.011, 0.0156" in record["warnings"]
    assert not judge(table[(table[:, 0] < 256) | (table[:, 1] < 2**-6.6)])["sizes"][2]["bracketed"]


def test_one_diverged_seed_is_enough():
    table = grid([0, 0, 0])
    best = (table[:, 0] == 64) & (table[:, 1] == 2.0**-7)
    table[np.flatnonzero(best)[0], 2] = math.inf
    cells = judge(table)["sizes"][0]["cells"]
    assert all(abs(math.log2(c["lr"]) + 7) > 0.4 for c in cells)


def test_a_base_lr_that_diverges_or_was_not_run_is_told_apart():
    optima = [0, -1, -2]
    record = judge(diverging(grid(optima, lrs=np.arange(-5.0, 3)), 256, -0.5))
    assert record["sizes"][2]["transferred_diverges"]
    assert record["max_regret"]["verdict"] == "fail"
    assert record["max_regret"]["value"] is None
    assert "as the base's optimum LR diverges" in record["reason"]
    table = grid(optima, lrs=np.arange(-5.0, 3))
    unrun = judge(
        table[(table[:, 0] < 256) | (table[:, 1] < 2**-7.1)], tolerance=2, max_shift=3, max_regret=1
    )
    assert unrun["sizes"][2]["regret"] is None
    assert unrun["verdict"] == "inconclusive"
    assert "run size 256 at LR 0.00781, beyond those" in unrun["reason"]


def test_every_lr_diverged_and_runs_without_result_are_said():
    table = grid([0, 0, 0, 0])
    table[table[:, 0] == 512, 2] = math.inf
    table[0, 2] = math.nan
    record = judge(table)
    assert "size 512 is not bracketed, every LR diverged: run size 512 at LR" in record["reason"]
    assert "1 run(s) without a result are left out" in record["warnings"]
    assert record["sizes"][3]["optimum_lr"] is None


def test_a_parabola_whose_minimum_lies_where_none_of_its_lrs_are_brackets_nothing():
    table = grid([0, 0, 0], lrs=np.arange(-3, 4), seeds=1)
    table[table[:, 0] == 256, 2] = [0.29, 0.0, 0.26, 0.03, 0.09, 0.01, 0.29]
    reason = judge(table)["reason"]
    assert "size 256 is not bracketed, its parabola has no minimum between 0.000977 and" in reason


@pytest.mark.parametrize("others", [-4.0, -3.0])
def test_a_base_lr_that_diverges_fails_whatever_else_is_missing(others):
    """At the largest size the lowest loss is at the lowest LR, or every LR diverged."""
    table = grid([0, 0, 0], lrs=np.arange(-3.0, 3))
    reason = judge(diverging(table, 256, -2 if others == -3 else -3))
    assert reason["verdict"] == "fail"
    assert (
        "as the base's optimum LR diverges, is beyond 0.02: tune the LR at size 256 itself"
        in (reason["reason"])
    )
    assert "the optimum at size 256 is not bracketed" in reason["reason"]
    two = table[table[:, 0] < 256]
    high = table[(table[:, 0] < 256) | (table[:, 1] >= 2.0**-7)]  # of 256, the base's LR and more
    assert judge(diverging(high, 256, 0))["verdict"] == "fail"
    assert judge(diverging(two, 128, 0))["verdict"] == "fail"


ADVISED = {  # what is known of size 256: octaves from the base's optimum -> loss
    "two left": {-0.5: 0.1, 0: 0.0, 0.5: math.inf},
    "two left, an octave apart": {-1: 0.1, 0: 0.0, 1: math.inf},
    "bends down": {-1: 0.01, -0.5: 0.04, 0: 0.0, 0.5: 0.04, 1: 0.01, 1.5: 0.3},
    "beyond its window": {-2: 0.3, -1.5: 0.02, -1: 0.3, -0.5: 0.0, 0: 0.26, 0.5: 0.03, 1: 0.01},
    "at a wall": {-2: 0.3, -1.5: 0.2, -1: 0.1, -0.5: 0.05, 0: 0.0, 0.25: math.inf},
    "falls to a wall": {-3: 0.06, -2: 0.045, -1: 0.02, 0: 0.0, 1: math.inf, 2: 0.1},
    "between walls": {-1: math.inf, -0.5: 0.01, 0: 0.0, 0.5: math.inf},
}


@pytest.mark.parametrize("case", ADVISED)
def test_no_lr_is_advised_that_was_run_or_lies_beyond_a_divergence(case):
    known = ADVISED[case]
    x, loss = np.array(list(known), float), np.array(list(known.values()))
    curve = curve_of(256, x, loss, np.zeros(len(x)))
    assert curve.problem or case in ("at a wall", "falls to a wall")
    walls = x[np.isinf(loss)]
    lowest = x[loss.argmin()]
    for lr in curve.wanted:
        assert np.abs(x - lr).min() > 0.05
        assert max(walls[walls < lowest], default=-9) < lr < min(walls[walls > lowest], default=9)


# -- invariance ---------------------------------------------------------------------------------
def test_the_order_of_rows_does_not_matter_nor_does_the_unit_of_the_lr():
    table = noisy([0, -0.1, 0.1, 0], curve=valley)
    record = judge(table)
    turned = np.random.default_rng(3).permutation(table)
    assert judge(turned) == record
    scaled = judge(table * [1, 1000, 1, 1])
    assert scaled["drift"]["ci95"] == pytest.approx(record["drift"]["ci95"], abs=1e-9)
    assert scaled["max_regret"]["ci95"] == pytest.approx(record["max_regret"]["ci95"], abs=1e-9)
    assert scaled["base_lr"] == pytest.approx(1000 * record["base_lr"])
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_lrs_that_differ_by_rounding_are_one():
    table = noisy([0, 0, 0])
    rounded = table * [1, 1 + 1e-12, 1, 1]
    mixed = np.where((np.arange(len(table)) % 2 == 0)[:, None], table, rounded)
    assert judge(mixed)["drift"]["value"] == pytest.approx(judge(table)["drift"]["value"], abs=1e-9)
