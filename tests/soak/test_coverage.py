"""Intervals against the truth, by simulation: laws before training, and the drift of an optimum."""

from __future__ import annotations

import runpy
from types import SimpleNamespace

import numpy as np
import pytest
from lr_grids import WORLDS, coverage
from tiny import ROOT

from nanoscale.checks.lr_transfer import transfer_verdict
from nanoscale.laws import LAWS
from nanoscale.laws.design import CHINCHILLA_TRUTH, Design, simulate
from nanoscale.laws.questions import LawQuestion

LAW = LAWS["chinchilla"]
ASKED = [LawQuestion.parse(text, LAW) for text in ("alpha", "beta", "a", "E", "N*@1e24", "L@1e24")]
WIDTHS = np.array([32, 64, 128, 256])


def isoflop(budgets: int, sizes: int, noise: float, resamples: int) -> Design:
    """Budgets of 1e17 to 1e20 FLOPs, sizes a factor of 4 to either side of the optimum."""
    C = np.geomspace(1e17, 1e20, budgets)[:, None]
    N = LAW.optimum(np.array(CHINCHILLA_TRUTH), C)[0] * np.geomspace(1 / 4, 4, sizes)
    x = np.array([N.ravel(), (C / (6 * N)).ravel()])
    return Design(LAW, x, CHINCHILLA_TRUTH, noise, resamples=resamples)


@pytest.mark.soak
def test_a_laws_intervals_hold_the_truth_in_a_hundred_worlds():
    answers = simulate(isoflop(4, 6, 0.01, resamples=200), ASKED, worlds=100)
    assert all(answer.coverage >= 0.9 for answer in answers)


@pytest.mark.soak
@pytest.mark.parametrize("noise", [0.002, 0.01])
@pytest.mark.parametrize(("budgets", "sizes"), [(4, 6), (6, 6), (6, 10)])
def test_a_laws_intervals_hold_the_truth_in_a_thousand_worlds(budgets, sizes, noise):
    answers = simulate(isoflop(budgets, sizes, noise, resamples=300), ASKED, worlds=1000)
    for answer in answers:
        assert answer.coverage >= 0.94, answer.question


def drift_holds(seed: int, drift: float) -> bool:
    """Whether the interval of one noisy LR grid over four widths holds the planted drift."""
    rng = np.random.default_rng(seed)
    rows = []
    for octave, width in enumerate(WIDTHS):
        for lr in 2.0 ** np.arange(-12, -5):
            for trial in range(3):
                off = np.log2(lr) + 8.5 - drift * octave
                loss = 2 - 0.1 * octave + 0.02 * off**2 + 0.003 * rng.standard_normal()
                rows.append((width, lr, loss, trial))
    size, lr, loss, trials = zip(*rows, strict=True)
    verdict = transfer_verdict(size, lr, loss, trials)
    low, high = verdict.drift.ci95
    return bool(low <= drift <= high)


@pytest.mark.slow
def test_a_drifts_interval_holds_the_truth_in_forty_grids():
    assert sum(drift_holds(seed, -0.3) for seed in range(40)) >= 35


@pytest.mark.soak
@pytest.mark.parametrize("drift", [0.0, -0.3, -1.0])
def test_a_drifts_interval_holds_the_truth_in_a_thousand_grids(drift):
    assert sum(drift_holds(seed, drift) for seed in range(1000)) >= 900


# -- ladders whose sizes share what their seeds do not show ----------------------------------------
LADDERS = SimpleNamespace(**runpy.run_path(str(ROOT / "docs/results/design/ladders.py")))


@pytest.mark.slow
def test_a_ladders_intervals_hold_the_truth_in_a_few_studies():
    assert LADDERS.coverage("sizes not tuned alike, 1 %", 4).loss >= 0.75


@pytest.mark.soak
@pytest.mark.parametrize("world", LADDERS.WORLDS)
def test_a_ladders_intervals_hold_the_truth_or_it_warns(world):
    found = LADDERS.coverage(world, 200)
    if world == "a second power":  # short of .93: what bends below the noise is not seen
        assert min(found.floor, found.loss) >= 0.8, found
    else:
        assert min(found.floor, found.loss) >= 0.93 or found.warned >= 0.9, found


@pytest.mark.soak
@pytest.mark.parametrize("drift", [0.0, -0.3])
@pytest.mark.parametrize("world", WORLDS)
def test_a_drifts_interval_holds_the_truth_where_noise_chooses_the_lowest_loss(world, drift):
    """docs/results/design/transfer.csv has these numbers, and those of a fixed window."""
    found = coverage(world, drift, worlds=200, resamples=1000)
    assert found.held >= 0.93
    if drift == 0:
        assert found.fails <= 0.025 * found.worlds
