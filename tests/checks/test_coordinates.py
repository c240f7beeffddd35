"""The coordinate check's arithmetic: exact on planted rows, and each planted fault is named."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from nanoscale.checks.coordinate_bands import FIRST, LATER, SIZE, SPREAD, START, SlopeBand
from nanoscale.checks.coordinate_verdict import CoordinateVerdict, coordinate_verdict
from nanoscale.checks.coordinates import (
    FAIL,
    PASS,
    UNSURE,
    CoordinateRun,
    Facts,
    JudgedSlope,
    Slope,
    seeds_needed,
    slope,
    window_mean,
)
from nanoscale.commands.coord_check import lines

WIDTH, DEPTH = "width", "depth"
SIZES = {WIDTH: (64, 128, 256), DEPTH: (2, 4, 8, 16)}


# -- arithmetic on planted rows -------------------------------------------------------------------
def planted(
    sweep: str, steps: int = 4, noise: float = 0.0, **exponents: float
) -> list[CoordinateRun]:
    """Runs whose quantities are powers of the size: `size_attn=1.0`, `change_mlp=0.5`, ..."""
    rng, runs = np.random.default_rng(0), []
    for seed in (1, 2, 3):
        for size in SIZES[sweep]:

            def power(name: str, size: int = size) -> float:
                return 0.3 * size ** exponents.get(name, 0.0) * 2 ** rng.normal(0, noise)

            rows = []
            for t in range(1, steps + 1):
                sizes = {k: power(f"size_{k}") for k in SPREAD}
                moved = {k: power(f"change_{k}") for k in SPREAD}
                roles = {
                    "hidden": 1e-3 / size * power("pace_hidden"),
                    "embedding": power("update_embedding"),
                }
                rows.append(
                    {
                        "step": t,
                        "lr": 0.5,
                        "train_loss": 3.0,
                        "statistics": {
                            "activation_rms": sizes,
                            "activation_change_rms": moved,
                            "update_rms": roles,
                            "logit_rms": power("size_logits"),
                            "attention_logit_rms": power("size_scores"),
                        },
                    }
                )
            lr = {
                "hidden": 2e-3 / size,
                "embedding": 2e-3 * size ** exponents.get("update_embedding", 0.0),
            }
            runs.append(CoordinateRun(size, seed, rows, lr, 1.0))
    return runs


def verdict_of(facts: Facts, **options: Any) -> CoordinateVerdict:
    runs = planted(facts.sweep, **options)
    return coordinate_verdict(SIZES[facts.sweep], runs, facts, len(runs[0].rows))


def of_planted(facts: Facts, **options: Any) -> dict[str, Any]:
    """The verdict's JSON."""
    return verdict_of(facts, **options).to_json()


def test_planted_slopes_are_found_exactly():
    record = of_planted(Facts(WIDTH), size_attn=0.75, change_mlp=-0.5)
    found = {(f["quantity"], f["window"]): f["slope"] for f in record["findings"]}
    for window in (START, LATER):
        assert found["size: attn", window] == pytest.approx(0.75, abs=1e-12)
    assert found["change: mlp", FIRST] == pytest.approx(-0.5, abs=1e-12)
    assert found["update / LR: hidden", START] == pytest.approx(0, abs=1e-12)
    assert record["slopes"]["size: attn"]["3"]["slope"] == pytest.approx(0.75)
    assert record["values"]["size: attn"][2][0] == pytest.approx(0.3 * 256**0.75)


def test_windows_are_means_over_the_steps_that_every_run_has():
    logs = np.tile(np.arange(1.0, 9.0), (2, 3, 1))
    means = {w: window_mean(logs, w) for w in (START, LATER, FIRST)}
    assert {w: set(m.ravel()) for w, m in means.items()} == {
        START: {1.0},
        LATER: {5.0},
        FIRST: {3.0},
    }
    logs[1, 2, 2] = math.nan
    assert set(window_mean(logs, FIRST).ravel()) == {3.0}  # of 1, 2, 4, 5
    assert window_mean(logs, LATER) == pytest.approx(np.full((2, 3), 32 / 6))
    assert window_mean(logs[..., 2:3], START) is None


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_interval_is_that_of_a_regression_with_an_intercept_per_seed(seeds):
    rng, sizes = np.random.default_rng(5), (32, 64, 256, 512)
    logs = rng.normal(size=(seeds, 4))
    X = np.hstack(
        [np.kron(np.eye(seeds), np.ones((4, 1))), np.tile(np.log2(sizes), seeds)[:, None]]
    )
    b, ss = np.linalg.lstsq(X, logs.ravel(), rcond=None)[:2]
    dof = X.shape[0] - X.shape[1]
    half = stats.t.ppf(0.975, dof) * math.sqrt(ss[0] / dof * np.linalg.inv(X.T @ X)[-1, -1])
    found = slope(sizes, logs)
    assert (found.slope, *found.ci95) == pytest.approx((b[-1], b[-1] - half, b[-1] + half))


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.1, 0.2, PASS),
        (-0.3, 0.3, PASS),
        (0.31, 0.9, FAIL),
        (-0.9, -0.31, FAIL),
        (0.2, 0.4, UNSURE),
        (-0.4, 0.4, UNSURE),
        (0.3, 0.5, UNSURE),
    ],
)
def test_a_verdict_comes_from_the_whole_interval(low, high, verdict):
    band = SlopeBand(WIDTH, SIZE, ("mlp",), START, -0.3, 0.3, "")
    found = Slope((low + high) / 2, (low, high))
    assert JudgedSlope.of("size: mlp", found, band).verdict == verdict


PLANTED = {  # what is wrong -> (facts, exponents, what is named)
    "nothing": (Facts(WIDTH), {}, None),
    "nothing, heads grow": (Facts(WIDTH, heads_grow=True), {"size_scores": -0.5}, None),
    "nothing, untied": (Facts(WIDTH, tied=False), {"size_logits": -0.5}, None),
    "nothing, depth": (Facts(DEPTH), {"size_last_block": -0.4}, None),
    "init of hidden": (
        Facts(WIDTH),
        {"size_scores": 1, "size_attn": 0.5, "size_mlp": 0.5, "change_mlp": 0.9},
        "the init rule of hidden",
    ),
    "init of the last": (
        Facts(WIDTH),
        {"size_attn": 0.5, "size_mlp": 0.5},
        "the init rule of residual_out",
    ),
    "both": (
        Facts(WIDTH),
        {"size_scores": 1, "size_attn": 1, "size_mlp": 1, "size_logits": 1},
        "the init rule of hidden and residual_out",
    ),
    "embedding's": (Facts(WIDTH), {"size_embedding": -0.5}, "the init rule of embedding"),
    "attention": (Facts(WIDTH, heads_grow=True), {}, "the attention scale"),
    "LR": (Facts(WIDTH), {"change_mlp": 1, "size_logits": 1}, "the LR rule of hidden and residual"),
    "Muon": (Facts(WIDTH, muon_scale="match_rms"), {"change_mlp": 0.5}, "muon_scale=match_rms"),
    "eps": (Facts(WIDTH), {"pace_hidden": -0.3, "change_mlp": -0.4}, "the eps rule of hidden"),
    "a vector's LR": (
        Facts(WIDTH),
        {"update_embedding": 0.5, "change_embedding": 0.5},
        "the LR rule of embedding",
    ),
    "output": (Facts(WIDTH), {"size_logits": 0.6}, "the output multiplier"),
    "no residual multiplier": (Facts(DEPTH), {"size_last_block": 0.5}, "the residual multiplier"),
    "depth factor": (
        Facts(DEPTH, residual_varies=True),
        {"change_last_block": 0.5},
        "the depth factor of the LR",
    ),
}


@pytest.mark.parametrize("case", PLANTED)
def test_each_planted_fault_is_named(case):
    facts, exponents, named = PLANTED[case]
    verdict = verdict_of(facts, noise=0.02, **exponents)
    record = verdict.to_json()
    if named is None:
        assert (record["verdict"], record["rule"]) == (PASS, None)
    else:
        assert record["verdict"] == FAIL
        assert named in record["rule"]
        assert lines(verdict)[-1].startswith("fail: ")
        assert record["rule"] in lines(verdict)[-1]


def test_wide_intervals_are_no_verdict():
    verdict = verdict_of(Facts(WIDTH), noise=1.0)
    record = verdict.to_json()
    assert record["verdict"] == UNSURE
    assert lines(verdict)[-1].startswith("inconclusive: the intervals of ")


def test_an_undecided_check_says_how_many_seeds_would_decide():
    """Within +-0.3: at n seeds of 3 sizes the half width is 0.4 t(2 n - 1) / t(1) / sqrt(n)."""
    half = 0.4
    band = SlopeBand(WIDTH, SIZE, ("mlp",), START, -0.3, 0.3, "")
    findings = [
        JudgedSlope.of("size: mlp", Slope(at, (at - half, at + half)), band) for at in (0.1, 0.2)
    ]
    halves = [half * stats.t.ppf(0.975, 2 * n - 1) / stats.t.ppf(0.975, 1) / n**0.5 for n in (2, 3)]
    assert halves[0] < 0.1
    assert seeds_needed(findings[:1], 1, 3) == seeds_needed(findings, 1, 3) == 2
    wide = [replace(f, ci95=(f.slope - 0.8, f.slope + 0.8)) for f in findings]
    assert (seeds_needed(wide[:1], 1, 3), seeds_needed(wide, 1, 3)) == (2, 3)
    never = replace(findings[0], slope=0.3, ci95=(-0.1, 0.7))
    assert seeds_needed([never, findings[0]], 1, 3) is None
    beyond = replace(findings[0], slope=0.6, ci95=(-0.2, 1.4))
    assert seeds_needed([never, beyond], 1, 3) == 2  # it fails, whatever the other does

    one = [run for run in planted(WIDTH, noise=0.06) if run.seed == 1]
    verdict = coordinate_verdict(SIZES[WIDTH], one, Facts(WIDTH), 4)
    assert (verdict.verdict, verdict.seeds_needed) == (UNSURE, 3)
    assert lines(verdict)[-1].endswith("about --seeds=3 would decide, if slopes and scatter stay")
    three = coordinate_verdict(SIZES[WIDTH], planted(WIDTH, noise=0.06), Facts(WIDTH), 4)
    assert (three.verdict, three.seeds_needed) == (PASS, None)


def test_a_zero_activation_is_not_judged_and_a_diverged_size_fails():
    runs = planted(WIDTH)
    for run in runs:  # a zero-initialised readout
        run.rows[0]["statistics"]["logit_rms"] = 0.0
    record = coordinate_verdict(SIZES[WIDTH], runs, Facts(WIDTH), 4).to_json()
    assert record["verdict"] == PASS
    assert ("size: logits", START) not in [(f["quantity"], f["window"]) for f in record["findings"]]
    cut = [
        CoordinateRun(r.size, r.seed, r.rows[:2] if r.size == 256 else r.rows, r.lr, 1.0)
        for r in runs
    ]
    record = coordinate_verdict(SIZES[WIDTH], cut, Facts(WIDTH), 4).to_json()
    assert (record["verdict"], record["says"].split(";")[0]) == (
        FAIL,
        "training diverged at width 256",
    )
    short = [CoordinateRun(r.size, r.seed, r.rows[:2], r.lr, 1.0) for r in runs]
    assert coordinate_verdict(SIZES[WIDTH], short, Facts(WIDTH), 4).verdict == UNSURE
