"""Forecasts of single runs: intervals that hold, also where the law is not the one fitted."""

from __future__ import annotations

import numpy as np
import pytest

from nanoscale.errors import UserError
from nanoscale.laws import fit_law, fit_power_law
from nanoscale.laws.forecast import DRIFTS, forecast

C = np.geomspace(1e15, 1e18, 16)
POWER = {"law": "power"}


FOLD = np.log(np.append(C, 1e19) / C[0])  # the runs, and one at ten times
LAW = 1.5 + 3.0 * np.exp(-0.25 * FOLD)
PAST = np.maximum(0, FOLD - 3)
WORLDS = {
    "the law fitted": LAW,
    "a second term": 1.5 + 2.0 * np.exp(-0.2 * FOLD) + 1.5 * np.exp(-0.7 * FOLD),
    "an exponent that grows": 1.5 + 3.0 * np.exp(-0.25 * FOLD - 0.002 * FOLD**2),
    "runs ever worse tuned": LAW * (1 + 0.0006 * PAST**2),
}


def world(seed: int, name: str = "the law fitted"):
    """The losses of the runs, and of the one at ten times."""
    rng = np.random.default_rng(seed)
    loss = WORLDS[name] * np.exp(0.003 * rng.standard_normal(len(FOLD)))
    return loss[:-1], loss[-1]


def made(loss, at=1e19, **more):
    fit = fit_law({"C": C}, loss, resamples=400, **POWER)
    return forecast(fit, {"C": C}, loss, {"C": at}, **POWER | more)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "the law fitted",
        "an exponent that grows",
        pytest.param("a second term", marks=pytest.mark.soak),
        pytest.param("runs ever worse tuned", marks=pytest.mark.soak),
    ],
)
def test_the_interval_holds_the_run_also_where_the_law_is_another(name):
    held = []
    for seed in range(30):
        loss, observed = world(seed, name)
        low, high = made(loss).ci95
        held.append(low <= observed <= high)
    assert np.mean(held) >= 0.9


def test_the_drift_widens_what_the_law_says_by_itself():
    loss, _ = world(1)
    found = made(loss)
    (low, high), (least, most) = found.ci95, found.run_ci95
    assert low < least < found.loss < most < high
    near = made(loss, at=1.05e18)
    assert np.log(near.ci95[1] / near.ci95[0]) < np.log(found.ci95[1] / found.ci95[0])
    inside = made(loss, at=1e16)  # no further out than the runs: nothing drifts
    assert inside.ci95 == pytest.approx(inside.run_ci95, rel=1e-6)
    assert found.distance == pytest.approx(10)


def test_a_law_that_bends_is_known_to_drift_more():
    straight, bent = (made(world(2, name)[0]).drift for name in ("the law fitted", "a second term"))
    assert bent.median > 2 * straight.median
    assert bent.weights.sum() == pytest.approx(1)
    assert len(bent.weights) == len(DRIFTS)
    assert bent.ci95[0] < bent.median < bent.ci95[1]


def test_equal_runs_equal_forecasts():
    loss, _ = world(3)
    assert made(loss).to_json() == made(loss).to_json()


def test_a_ladder_is_forecast_by_its_own_estimator():
    loss, observed = world(4)
    fit = fit_power_law(C, loss, resamples=200)
    found = forecast(fit, {"C": C}, loss, {"C": 1e19}, **POWER)
    assert found.ci95[0] < observed < found.ci95[1]


def test_without_a_past_or_resamples_there_is_no_interval():
    few = fit_law({"C": C[:6]}, world(5)[0][:6], resamples=100, **POWER)
    found = forecast(few, {"C": C[:6]}, world(5)[0][:6], {"C": 1e19}, **POWER)
    assert found.ci95 is None
    assert "add runs at other budgets" in found.refused[0]
    assert found.text()[-1].startswith("no interval: ")

    loss, _ = world(5)
    bare = fit_law({"C": C}, loss, resamples=0, **POWER)
    found = forecast(bare, {"C": C}, loss, {"C": 1e19}, **POWER)
    assert found.ci95 is None
    assert "no resamples" in found.refused[0]

    of_size = fit_law({"N": C}, loss, resamples=100, **POWER)
    found = forecast(of_size, {"N": C}, loss, {"N": 1e19}, **POWER)
    assert found.ci95 is None
    assert "reads no compute" in found.refused[0]


def test_a_place_that_the_law_does_not_read_is_refused():
    fit = fit_law({"C": C}, world(6)[0], resamples=100, **POWER)
    with pytest.raises(UserError, match="the law reads C"):
        forecast(fit, {"C": C}, world(6)[0], {"N": 1e9}, **POWER)
