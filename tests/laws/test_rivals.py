"""Law against law: planted forms are told apart, and what cannot be told apart widens the loss."""

from __future__ import annotations

import math

import numpy as np
import pytest
from planted import grid
from planted_fits import rival

from nanoscale.errors import UserError
from nanoscale.laws import LAWS, fit_law, fit_power_law, rivals_of
from nanoscale.laws.rivals import preferred_of

C = np.geomspace(1e11, 1e14, 15)
TWO = 1.4 + 125 / C**0.21 + 8e5 / C**0.62


def noisy(loss, sd):
    return loss * np.exp(sd * np.random.default_rng(0).standard_normal(len(loss)))


def test_two_powers_are_found_in_the_order_of_their_exponents():
    fit = fit_law({"C": C}, noisy(TWO, 1e-4), law="two-powers", resamples=100)
    assert fit.status == "converged"
    assert abs(fit.params["g"] - 0.21) < 0.02
    assert abs(fit.params["h"] - 0.62) < 0.1
    assert (fit.draws[:, 2] < fit.draws[:, 4]).all()
    assert np.isclose(np.median(fit.losses(C[:1])), TWO[0], rtol=1e-4)


def test_the_broken_law_is_the_papers():
    x = np.geomspace(1e10, 1e16, 20)
    E, K, g, h, B, f = 1.4, 125.0, 0.21, 0.31, 1e13, 0.5
    paper = E + K * x**-g * (1 + (x / B) ** (1 / f)) ** (-(h - g) * f)
    form = LAWS["broken"]
    assert np.allclose(form.loss(np.array([E, K, g, h, B, f]), x), paper, rtol=1e-13)
    fit = fit_law({"C": x}, paper, law="broken", resamples=0)
    assert np.allclose(list(fit.params.values()), [E, K, g, h, B, f], rtol=1e-4)


@pytest.mark.parametrize("law", ["power", pytest.param("two-powers", marks=pytest.mark.soak)])
def test_a_law_that_holds_gives_way_to_none_but_a_simpler_one(law):
    loss = noisy(1.4 + 125 / C**0.21, 2e-4)
    fit = fit_law({"C": C}, loss, law=law, resamples=0)
    found = rivals_of(fit, {"C": C}, loss, laws=["power", "two-powers"])
    assert found.preferred in (None, "power")
    assert found.preferred != law
    assert len(found.warnings) == (found.preferred is not None)
    assert {r.law for r in found.rivals} == {"power", "two-powers"}


def test_the_law_that_the_runs_prefer_is_named():
    loss = noisy(TWO, 2e-4)
    fit = fit_law({"C": C}, loss, law="power", resamples=100)
    found = rivals_of(fit, {"C": C}, loss, laws=["power", "two-powers"])
    assert found.preferred == "two-powers"
    assert "prefer law two-powers to power" in found.warnings[0]
    assert len(found.text()) == 5
    assert found.text()[-1].endswith("allow two-powers (AICc within 10 of the least)")
    assert found.loss_ci95 is None  # of a law that they do not allow


@pytest.mark.parametrize(
    ("aicc", "held_out", "status", "preferred"),
    [
        (-60.0, 0.01, "converged", "other"),
        (-60.0, 0.03, "converged", None),  # it foresees worse
        (-53.0, 0.01, "converged", None),  # no more than chance
        (-60.0, 0.01, "max_iter", None),
        (-59.0, None, "converged", None),
        (-61.0, None, "converged", "other"),  # it could not be held out, and is far better
        (None, 0.01, "converged", None),
    ],
)
def test_another_law_is_preferred(aicc, held_out, status, preferred):
    own, other = rival("own", -50.0, 0.02), rival("other", aicc, held_out, status)
    assert preferred_of(own, [own, other]) == preferred


def test_the_loss_ahead_goes_as_far_as_the_laws_that_the_runs_allow():
    loss = noisy(TWO, 1e-2)
    fit = fit_law({"C": C}, loss, law="power", resamples=100)
    found = rivals_of(fit, {"C": C}, loss, laws=["power", "two-powers"])
    low, high = found.loss_ci95
    own = fit.predict(C=1e15).loss_ci95
    assert low == min(own[0], *(r.loss_ahead for r in found.rivals))
    assert high == max(own[1], *(r.loss_ahead for r in found.rivals))
    assert math.isclose(found.ahead["C"], 1e15)


@pytest.mark.soak
def test_surfaces_are_told_apart():
    N, D, loss = grid(0.002)
    columns = {"N": N, "D": D}
    laws = ["power", "chinchilla", "kaplan"]
    sound = rivals_of(fit_law(columns, loss, resamples=0), columns, loss, laws=laws)
    assert sound.preferred is None
    assert {r.law for r in sound.rivals} == {*laws}
    assert sound.loss_ci95 is None

    kaplan = LAWS["kaplan"].loss(np.array([8.8e13, 5.4e13, 0.076, 0.095]), N, D)
    loss = noisy(kaplan, 0.002)
    found = rivals_of(fit_law(columns, loss, resamples=0), columns, loss, laws=laws)
    assert found.preferred == "kaplan"
    assert found.own.holdout_error > 3 * min(r.holdout_error or 1 for r in found.rivals)


def test_aicc_is_that_of_gaussian_residuals_and_seeds_count_once():
    N, D, loss = grid(0.002)
    columns = {"N": np.repeat(N, 2), "D": np.repeat(D, 2)}
    twice = np.repeat(loss, 2)
    fit = fit_law(columns, twice, resamples=0, objective="mse")
    found = rivals_of(fit, columns, twice, laws=[])
    r = np.log(fit(*columns.values()) / twice)[::2]
    n, k = 45, 6
    likelihood = -n / 2 * (math.log(2 * math.pi * (r**2).mean()) + 1)
    expected = -2 * likelihood + 2 * k * n / (n - k - 1)
    assert math.isclose(found.own.aicc + n * (math.log(2 * math.pi) + 1), expected, rel_tol=1e-9)
    assert found.n_units == n


def test_a_ladder_of_six_sizes_shares_its_resamples_with_two_powers():
    x = np.repeat(np.geomspace(1e11, 1e14, 7), 3)
    loss = noisy(1.4 + 125 / x**0.21 + 8e5 / x**0.62, 1e-3)
    fit = fit_power_law(x, loss, seed=[0, 1, 2] * 7, resamples=300)
    assert fit.rival.share > 0.1
    assert abs(len(fit.rival.draws) - 300 * fit.rival.share) <= 1
    assert len(fit.losses(x[:1])) == len(fit.draws) + len(fit.rival.draws)
    assert math.isclose(sum(fit.shares) + fit.rival.share, 1)
    assert fit.to_json()["rival"].keys() == {"law", "share", "params", "objective", "converged"}
    five = fit_power_law(x[6:], loss[6:], seed=[0, 1, 2] * 5, resamples=100)
    assert five.rival is None


def test_a_law_asks_for_what_it_reads():
    fit = fit_law({"C": C}, TWO, law="power", resamples=0)
    assert fit.predict(C=1e15) == fit.predict(x=1e15)
    with pytest.raises(UserError, match=r"reads C; got N"):
        fit.predict(N=1e9)


def test_one_name_is_one_law():
    fit = fit_law({"C": C}, TWO, law="power", resamples=0)
    found = rivals_of(fit, {"C": C}, TWO, laws="power")
    assert [rival.law for rival in found.rivals] == ["power"]
