"""The noise of seeds and of sizes: against analysis of variance, and against what was planted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from nanoscale.laws.bootstrap import noise_of
from nanoscale.laws.components import Components

SIZES, SEEDS = 7, 3
SIZE = np.repeat(np.arange(SIZES), SEEDS)


def planted(size_sd: float, seed_sd: float, rng_seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(rng_seed)
    return size_sd * rng.standard_normal(SIZES)[SIZE] + seed_sd * rng.standard_normal(len(SIZE))


def test_about_a_mean_the_test_is_that_of_one_way_analysis_of_variance():
    y = planted(0.5, 1.0)
    parts = Components.of(y, SIZE, np.full(len(y), y.mean()), 1)
    oracle = stats.f_oneway(*y.reshape(SIZES, SEEDS))
    assert parts.misfit**2 == pytest.approx(oracle.statistic)
    assert parts.misfit_p == pytest.approx(oracle.pvalue)


def test_the_parts_are_those_that_were_planted():
    found = [Components.of(planted(2.0, 1.0, i), SIZE, 0 * SIZE, 0) for i in range(400)]
    assert np.mean([parts.seed_variance for parts in found]) == pytest.approx(1, rel=0.05)
    assert np.mean([parts.size_sd**2 for parts in found]) == pytest.approx(4, rel=0.1)


def test_unequal_numbers_of_seeds_count_as_their_harmonic_mean():
    size = np.array([0, 0, 0, 1, 2, 2])
    parts = Components.of(np.arange(6.0), size, np.zeros(6), 2)
    assert parts.seeds_per_size == pytest.approx(3 / (1 / 3 + 1 + 1 / 2))
    assert (parts.seed_dof, parts.size_dof, parts.measured) == (3, 1, False)


def test_resamples_have_both_parts_and_are_wider_by_what_is_not_known_of_them():
    parts = Components(
        seed_squares=14.0, seed_dof=14, size_squares=24, size_dof=6, seeds_per_size=3
    )
    draws = parts.resampled(np.zeros(len(SIZE)), SIZE, 40_000, 0).reshape(-1, SIZES, SEEDS)
    within = draws.var(axis=2, ddof=1).mean()
    assert within == pytest.approx(14 / 12, rel=0.02)  # the mean of 1 / chi2 is 1 / (dof - 2)
    assert draws.mean(2).var() == pytest.approx(24 / 4, rel=0.03)  # never below the seeds' part


def test_without_noise_of_sizes_the_seeds_are_all():
    parts = Components(seed_squares=14.0, seed_dof=14, size_squares=0, size_dof=6, seeds_per_size=3)
    assert parts.size_sd == 0
    draws = parts.resampled(np.zeros(len(SIZE)), SIZE, 20_000, 0).reshape(-1, SIZES, SEEDS)
    assert draws.mean(2).var() == pytest.approx(14 / 12 / 3, rel=0.05)


@pytest.mark.parametrize(
    "counts", [(5, 1, 1, 1), (2, 2, 2, 2), (3, 3, 1, 1), (4, 1, 1, 1), (2, 2, 2)]
)
def test_seeds_measure_their_noise_by_one_rule(counts):
    size = np.repeat(np.arange(len(counts)), counts)
    y = np.random.default_rng(0).normal(size=len(size))
    parts = Components.of(y, size, np.zeros(len(y)), 1)
    noise = noise_of(y, size, np.zeros(len(y)), 1)
    assert noise.seeds_measured == parts.measured == (noise.seed_dof >= 4)
    assert noise.seed_dof == parts.seed_dof
