"""Predictions: the published hold-outs, coverage of new runs, what an interval is made of."""

from __future__ import annotations

import numpy as np
import pytest

from nanoscale.errors import UserError
from nanoscale.laws import LAWS, fit_law, predict
from nanoscale.laws.holdout import holdout

LAW, TRUTH = LAWS["chinchilla"], np.array([1.69, 406.4, 410.7, 0.34, 0.28])


def budgets(count=4, sizes=6, seeds=1):
    """N, D of `count` budgets of 1e17 to 1e20, sizes about each optimum, and seeds."""
    C = np.repeat(np.geomspace(1e17, 1e20, count), sizes * seeds)
    N = LAW.optimum(TRUTH, C)[0] * np.tile(np.repeat(np.geomspace(0.25, 4, sizes), seeds), count)
    return N, C / (6 * N)


def noisy(N, D, sd, seed=0):
    return LAW.loss(TRUTH, N, D) * np.exp(sd * np.random.default_rng(seed).standard_normal(len(N)))


@pytest.mark.parametrize(
    ("cut", "n", "error", "largest", "bias", "inside"),
    [
        (3e20, 177, 1.00, 4.14, 0.51, 0.40),
        (1e21, 217, 1.05, 2.78, -0.02, 0.42),
    ],
)
def test_the_published_hold_outs(epoch, cut, n, error, largest, bias, inside):
    N, C, L = epoch
    row = holdout({"N": N, "C": C}, L, cut, drop_worst=5)
    assert (row.n_fitted, row.n_held_out, row.covered) == (n, 240 - n, None)
    seen = [row.mean_abs_error, row.max_abs_error, row.bias, row.in_sample_error]
    assert [round(100 * v, 2) for v in seen] == [error, largest, bias, inside]
    assert f"off by {error:.2f} % (largest {largest:.2f} %, bias {bias:+.2f} %" in row.text()


def test_a_run_of_the_fitted_law_is_held_out_without_error():
    N, D = budgets()
    row = holdout({"N": N, "D": D}, LAW.loss(TRUTH, N, D), 5e19)
    assert row.max_abs_error < 1e-7
    assert (row.n_fitted, row.n_held_out, row.distance) == (18, 6, pytest.approx(10))
    C = np.geomspace(1e15, 1e20, 12)
    row = holdout({"C": C}, 2 + 300 / C**0.15, 1e18, law="power")
    assert (row.max_abs_error < 1e-7, row.law) == (True, "power")


@pytest.mark.soak
def test_the_interval_of_a_new_run_covers_it_and_that_of_the_law_the_law():
    N, D = budgets()
    at, sd = {"N": 2e8, "D": 5e9}, 0.004
    truth, held = LAW.loss(TRUTH, *(np.array([v]) for v in at.values()))[0], []
    for world in range(25):
        loss = noisy(N, D, sd, world)
        fit = fit_law({"N": N, "D": D}, loss, resamples=120, rng_seed=world)
        found = predict.predict(fit, predict.Basis.of(fit, {"N": N, "D": D}, loss).noise, **at)
        new = truth * np.exp(sd * np.random.default_rng(10_000 + world).standard_normal())
        held.append(
            [
                low < value < high
                for (low, high), value in (
                    (found.run_ci95, new),
                    (found.loss_ci95, truth),
                    (found.loss_ci95, new),
                )
            ]
        )
    run, law, wrong = np.mean(held, axis=0)
    assert (run >= 0.9, law >= 0.9) == (True, True)
    assert wrong < run - 0.3  # the law's interval does not hold a run


def test_noise_is_of_seeds_or_residuals_whichever_is_larger():
    N, D = budgets(seeds=3)
    cell = np.repeat(np.arange(24), 3)
    loss = noisy(N, D, 0.003)
    fit = fit_law({"N": N, "D": D}, loss, resamples=0)
    noise = predict.Basis.of(fit, {"N": N, "D": D}, loss).noise
    y = np.log(loss)
    means = np.array([y[cell == k].mean() for k in range(24)])
    assert noise.seed_sd == pytest.approx(np.sqrt(((y - means[cell]) ** 2).sum() / 48))
    assert noise.residual_sd == pytest.approx(np.sqrt(((y - np.log(fit(N, D))) ** 2).sum() / 67))
    assert noise.used == max(noise.seed_sd, noise.residual_sd)
    laws = np.full((50_000, 1), 2.5)
    draws = predict.new_runs(laws, noise, 0)
    assert np.log(draws / 2.5).std() == pytest.approx(
        noise.used * np.sqrt(noise.dof / (noise.dof - 2)), rel=0.02
    )
    bent = loss * np.repeat(np.exp(np.where(np.arange(24) % 2, 0.02, -0.02)), 3)
    fit = fit_law({"N": N, "D": D}, bent, resamples=0)
    noise = predict.Basis.of(fit, {"N": N, "D": D}, bent).noise
    assert noise.used == noise.residual_sd > 4 * noise.seed_sd


def test_reach_and_distance_are_those_of_the_points_kept_and_survive_a_file():
    N, D = budgets()
    loss = noisy(N, D, 0.002)
    worst = loss.argmax()
    fit = fit_law({"N": N, "D": D}, loss, drop_worst=1, resamples=0)
    basis = predict.Basis.of(fit, {"N": N, "D": D}, loss, 1)
    kept = np.delete(N, worst)
    assert basis.reach["N"] == [kept.min(), kept.max()]
    assert basis.noise.residual_dof == 23 - 5
    assert basis.distance(3e21) == pytest.approx(30)
    assert predict.Basis.read(basis.to_json()) == basis


@pytest.mark.slow
def test_a_hold_out_holds_the_planted_runs_in_its_intervals():
    N, D = budgets(6, 8)
    row = holdout({"N": N, "D": D}, noisy(N, D, 0.003), 1e19, resamples=300)
    assert 0.85 <= row.covered <= 1
    assert "within a run's 95 % interval" in row.text()


@pytest.mark.parametrize(
    ("message", "cut", "options"),
    [
        ("leaves 0 runs to fit and 24 to predict; budgets reach from 1e+17 to 1e+20", 1e16, {}),
        ("leaves 24 runs to fit and 0 to predict", 1e21, {}),
        ("did you mean 'kaplan'", 1e19, {"law": "kaplann"}),
    ],
)
def test_a_hold_out_that_cannot_be_is_refused(message, cut, options):
    N, D = budgets()
    with pytest.raises(UserError) as error:
        holdout({"N": N, "D": D}, noisy(N, D, 0.01), cut, **options)
    assert message in str(error.value)
    few = slice(2, None)  # four of the first budget
    with pytest.raises(UserError, match=r"the 4 runs below 5e[+]17 FLOPs: 4 different points are"):
        holdout({"N": N[few], "D": D[few]}, noisy(N, D, 0.01)[few], 5e17)
    with pytest.raises(UserError, match="needs C, or N and D; there is only D"):
        holdout({"D": D}, noisy(N, D, 0.01), 1e19, law="power")
