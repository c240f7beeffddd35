"""Profile intervals: Student's t where it is exact, refits at the ends, sides that are open."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.stats

from nanoscale.errors import UserError
from nanoscale.laws import LAWS, fit_law
from nanoscale.laws.calibration import unit_of
from nanoscale.laws.objectives import Objective
from nanoscale.laws.profile import profile_law

LAW, TRUTH = LAWS["chinchilla"], np.array([1.69, 406.4, 410.7, 0.34, 0.28])


def t_quantile(level, dof):
    """Student's t: two-sided, so that P(|T| <= t) is the level."""
    return scipy.stats.t.ppf((1 + level) / 2, dof)


def budgets():
    """N, D of four budgets, six sizes each."""
    C = np.repeat(np.geomspace(1e17, 1e20, 4), 6)
    N = LAW.optimum(TRUTH, C)[0] * np.tile(np.geomspace(0.25, 4, 6), 4)
    return N, C / (6 * N)


def noisy(N, D, sd, seed=0):
    return LAW.loss(TRUTH, N, D) * np.exp(sd * np.random.default_rng(seed).standard_normal(len(N)))


def line(seed=0, spread=0.0):
    """x, losses and the design (n, 2) of E + K / sqrt(x), which is linear."""
    x = np.geomspace(1, 100, 20)
    size = 0.01 * np.exp(spread * np.linspace(-1, 1, 20))
    loss = 2 + 3 / x**0.5 + size * np.random.default_rng(seed).standard_normal(20)
    return x, loss, np.stack([np.ones(20), x**-0.5], axis=1)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_a_linear_law_with_normal_noise_has_students_interval(level):
    x, loss, design = line()
    fit = fit_law({"x": x}, loss, law=LAWS["power"].hold(g=0.5), objective="mse", resamples=0)
    found = profile_law(fit, {"x": x}, loss, level=level)
    best, (rss,), *_ = np.linalg.lstsq(design, loss, rcond=None)
    half = t_quantile(level, 18) * np.sqrt(np.diag(np.linalg.inv(design.T @ design)) * rss / 18)
    for name, value, width in zip("EK", best, half, strict=True):
        assert found.ci()[name] == pytest.approx([value - width, value + width], rel=1e-9)
    assert found.warnings == []


@pytest.mark.parametrize(("level", "points"), [(0.95, 4), (0.9, 5), (0.99, 10), (0.95, 237)])
def test_a_threshold_is_the_square_of_students_quantile(level, points):
    x = np.geomspace(1, 100, points)
    loss = 2 + 3 / x**0.5 + 0.01 * np.random.default_rng(0).standard_normal(points)
    fit = fit_law({"x": x}, loss, law=LAWS["power"].hold(g=0.5), objective="mse", resamples=0)
    found = profile_law(fit, {"x": x}, loss, level=level, names=["K"])
    assert found.threshold == pytest.approx(t_quantile(level, points - 2) ** 2, rel=1e-12)


@pytest.mark.parametrize("clusters", [None, 7])
def test_own_noise_is_the_sandwichs(clusters):
    x, loss, design = line(3, spread=2.0)
    fit = fit_law({"x": x}, loss, law=LAWS["power"].hold(g=0.5), objective="mse", resamples=0)
    groups = None if clusters is None else np.arange(20) % clusters
    found = profile_law(fit, {"x": x}, loss, noise="own", groups=groups)
    best, *_ = np.linalg.lstsq(design, loss, rcond=None)
    bread, scores = np.linalg.inv(design.T @ design), design * (loss - design @ best)[:, None]
    if clusters:
        scores = np.stack([scores[groups == g].sum(0) for g in range(clusters)])
    more = clusters / (clusters - 1) if clusters else 20 / 18
    sd = np.sqrt(np.diag(bread @ scores.T @ scores @ bread) * more)
    t = t_quantile(0.95, clusters - 1 if clusters else 18)
    for name, value, width in zip("EK", best, t * sd, strict=True):
        assert found.ci()[name] == pytest.approx([value - width, value + width], rel=1e-6)
    equal = profile_law(fit, {"x": x}, loss)
    assert "noise='own' the interval of E is 1.3 times as wide" in equal.warnings[0]


@pytest.mark.soak
@pytest.mark.parametrize("objective", ["mse", "log-huber"])
def test_at_an_end_the_law_fitted_anew_is_refuted_to_the_level(objective):
    N, D = budgets()
    loss = noisy(N, D, 0.004)
    how = {"objective": objective, "delta": 0.003, "resamples": 0}
    fit = fit_law({"N": N, "D": D}, loss, **how)
    found = profile_law(fit, {"N": N, "D": D}, loss)
    m = fit(N, D)
    scale = np.exp(np.log(loss).mean()) if objective == "mse" else 1.0
    r = (loss - m) / scale if objective == "mse" else np.log(loss / m)
    unit = unit_of(Objective(objective, 0.003), r, 5) * scale**2
    for name in fit.params:
        for end in found.ci()[name]:
            held = fit_law({"N": N, "D": D}, loss, law=LAW.hold(**{name: end}), **how)
            assert (held.objective - fit.objective) / unit == pytest.approx(
                found.threshold, rel=2e-3
            ), name
    low, high = found.ci()["a"]
    assert low < fit.exponents["a"] < high
    assert found.ci()["b"] == pytest.approx([1 - high, 1 - low])


@pytest.mark.slow
def test_a_is_profiled_as_the_two_exponents_on_their_line():
    """The lowest objective with a held is the lowest over alpha of alpha and beta held."""
    N, D = budgets()
    loss = noisy(N, D, 0.004)
    how = {"objective": "mse", "resamples": 0}
    fit = fit_law({"N": N, "D": D}, loss, **how)
    found = profile_law(fit, {"N": N, "D": D}, loss, names=["a"])
    end = found.ci()["a"][1]
    rise = (
        min(
            fit_law(
                {"N": N, "D": D}, loss, law=LAW.hold(alpha=g, beta=g * end / (1 - end)), **how
            ).objective
            for g in np.linspace(0.2, 0.45, 251)
        )
        - fit.objective
    )
    assert rise / (fit.objective / 19) == pytest.approx(found.threshold, rel=2e-3)


def test_a_side_on_which_nothing_refutes_is_open():
    N, D = (np.repeat(v, 3) for v in budgets())
    U = D / np.tile([1.0, 2.0, 4.0], 24)
    law = LAWS["repetition"].hold(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
    truth = np.array([*TRUTH, 200.0])  # four epochs do not tell a slow decay from none
    rng = np.random.default_rng(0)
    loss = LAWS["repetition"].loss(truth, N, D, U) * np.exp(0.01 * rng.standard_normal(72))
    fit = fit_law({"N": N, "D": D, "U": U}, loss, law=law, resamples=0)
    one = profile_law(fit, {"N": N, "D": D, "U": U}, loss).profiles["R"]
    assert one.ends[1] is None
    assert 2 < one.ends[0] < 200
    assert one.high.reason == "not identified on this side: R = 1e+07 fits within the noise"
    x = np.geomspace(1e13, 1e16, 12)
    loss = 40 * x**-0.08 * np.exp(0.003 * rng.standard_normal(12))
    fit = fit_law({"C": x}, loss, law="power", resamples=0)
    found = profile_law(fit, {"C": x}, loss, names=["E", "g"])
    assert found.ci()["E"][0] is None
    assert 0 < found.ci()["E"][1] < loss.min()
    assert None not in found.ci()["g"]
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert record["ci"]["E"][0] is None
    assert "not identified on this side: E = 0 fits" in record["profiles"]["E"]["low"]["reason"]
    assert "  E  " in record["text"][0]
    assert "[open, " in record["text"][0]


@pytest.mark.soak
@pytest.mark.parametrize("objective", ["log-huber", "mse"])
def test_the_intervals_cover(objective):
    N, D = budgets()
    held = 0
    for world in range(40):
        loss = noisy(N, D, 0.002, world)
        fit = fit_law({"N": N, "D": D}, loss, objective=objective, resamples=0)
        low, high = profile_law(fit, {"N": N, "D": D}, loss, names=["beta"]).ci()["beta"]
        held += low < 0.28 < high
    assert held / 40 >= 0.87


def test_the_unit_is_that_of_normal_noise():
    r = 0.01 * np.random.default_rng(0).standard_normal(20_000)
    assert unit_of(Objective("log-huber", 1.0), r, 5) == pytest.approx(1e-4 / 2, rel=0.02)
    small = 1e-4 * 0.01 / (4 / np.sqrt(2 * np.pi))  # delta sd / (4 phi(0))
    assert unit_of(Objective("log-huber", 1e-4), r, 5) == pytest.approx(small, rel=0.05)
    assert unit_of(Objective("mse"), r, 5) == pytest.approx(1e-4, rel=0.02)


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("parameter 'alhpa': not of this fit; did you mean 'alpha'?", {"names": ["alhpa"]}),
        ("level = 95", {"level": 95}),
        ("noise 'none': choose 'equal' or 'own'", {"noise": "none"}),
        ("differ in length (groups 2, loss 24)", {"groups": [1, 2]}),
    ],
)
def test_bad_input_is_refused_in_one_line(message, options):
    N, D = budgets()
    loss = noisy(N, D, 0.004)
    fit = fit_law({"N": N, "D": D}, loss, resamples=0)
    with pytest.raises(UserError) as error:
        profile_law(fit, {"N": N, "D": D}, loss, **options)
    assert message in str(error.value)
