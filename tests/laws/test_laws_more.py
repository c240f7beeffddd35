"""Laws that are built in beside Chinchilla's, Kaplan's and the power law: planted truths."""

from __future__ import annotations

import numpy as np
import pytest

from nanoscale.errors import UserError
from nanoscale.laws import LAWS, bootstrap, fit_law, solver
from nanoscale.laws.objectives import Objective
from nanoscale.laws.problem import Problem, problem_of
from nanoscale.laws.published import worth
from nanoscale.laws.tape import Traced, derivatives

BASE = np.array([1.69, 406.4, 410.7, 0.34, 0.28])


def repeated():
    """N, D, U of five budgets, five sizes each, with 1, 6 and 30 epochs."""
    C = np.repeat(np.geomspace(1e17, 1e21, 5), 5)
    N = LAWS["chinchilla"].optimum(BASE, C)[0] * np.tile(np.geomspace(0.25, 4, 5), 5)
    N, D = np.repeat(N, 3), np.repeat(C / (6 * N), 3)
    return N, D, D / np.tile([1.0, 6.0, 30.0], 25)


TRUTHS = {
    "repetition": [*BASE, 7.0],
    "repetition-nd": [*BASE, 7.0, 3.0],
    "kaplan-floor": [1.2, 8.8e13, 5.4e13, 0.176, 0.195],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRUTHS)
def test_planted_laws_are_recovered(name):
    law, truth = LAWS[name], np.array(TRUTHS[name])
    x = dict(zip("NDU", repeated(), strict=True))
    x = {k: x[k] for k in law.predictors}
    found = fit_law(x, law.loss(truth, *x.values()), law=name, resamples=0)
    assert list(found.params.values()) == pytest.approx(truth, rel=1e-6)
    assert (found.status, found.agreement_of_starts > 0.5) == ("converged", True)
    assert found.equation().startswith(f"L({', '.join(law.predictors)}) = 1.")
    if name == "kaplan-floor":  # a budget's best N does not depend on the floor
        assert law.optimum(truth, 1e20) == pytest.approx(LAWS["kaplan"].optimum(truth[1:], 1e20))


def test_a_base_law_can_be_held_and_the_rest_is_the_same_as_among_all():
    N, D, U = repeated()
    law = LAWS["repetition-nd"]
    loss = law.loss(np.array(TRUTHS["repetition-nd"]), N, D, U)
    held = law.hold(**dict(zip(("E", "A", "B", "alpha", "beta"), BASE, strict=True)))
    found = fit_law({"N": N, "D": D, "U": U}, loss, law=held, resamples=0)
    assert found.params == pytest.approx({"RD": 7.0, "RN": 3.0}, rel=1e-6)
    assert found(N, D, U) == pytest.approx(loss)
    chinchilla = LAWS["chinchilla"].hold(E=1.69, alpha=0.34)
    assert chinchilla.optimum(BASE[[1, 2, 4]], 1e20) == pytest.approx(
        LAWS["chinchilla"].optimum(BASE, 1e20)
    )
    with pytest.raises(UserError, match="no R to hold"):
        LAWS["chinchilla"].hold(R=1.0)
    with pytest.raises(UserError, match="leave one to fit"):
        LAWS["power"].hold(E=1.0, K=1.0, g=1.0)


def test_what_repetition_is_worth():
    """Equation 5 of Muennighoff et al. 2023, its limits, and N's own excess over its optimum."""
    assert worth(100.0, 3.0, 15.39) == pytest.approx(100 + 1539 * (1 - np.exp(-3 / 15.39)))
    assert worth(100.0, 3.0, 1e9) == pytest.approx(400)
    assert worth(100.0, 1e9, 15.39) == pytest.approx(1639)
    law, chinchilla = LAWS["repetition-nd"], LAWS["chinchilla"]
    truth = np.array(TRUTHS["repetition-nd"])
    N, D = chinchilla.optimum(BASE, 1e20)
    one = law.loss(truth, *(np.array([v]) for v in (N / 2, D, D)))
    assert one == pytest.approx(chinchilla.loss(BASE, N / 2, D))  # no excess, no repetition
    more = law.loss(truth, *(np.array([v]) for v in (5 * N, D, 2 * D)))
    size = N * (1 + 3 * (1 - np.exp(-4 / 3)))
    assert more == pytest.approx(chinchilla.loss(BASE, size, D), rel=1e-9)


@pytest.mark.slow
def test_one_set_of_unique_tokens_is_enough():
    N, D, _ = repeated()
    law = LAWS["repetition"]
    U = np.full_like(N, 3e8)
    loss = law.loss(np.array(TRUTHS["repetition"]), N, D, U)
    found = fit_law({"N": N, "D": D, "U": U}, loss, law="repetition", resamples=0)
    assert found.params["R"] == pytest.approx(7.0, rel=1e-5)
    assert found.warnings == []


def test_a_decay_that_the_runs_do_not_show_is_at_the_end_of_its_range():
    N, D, U = repeated()
    loss = LAWS["chinchilla"].loss(BASE, N, D * (D / U) ** 0.1)  # repeats do better than new text
    law = LAWS["repetition"].hold(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
    found = fit_law({"N": N, "D": D, "U": U}, loss, law=law, resamples=0)
    assert found.status == "bound_hit"
    assert found.not_identified == {"R": "the best fit has R = 1e+07, an end of its range"}


def test_derivatives_of_the_new_rules_by_differences():
    def f(a, b):
        return np.minimum(a * b, 0.7 * b) * np.expm1(-a / b)

    point, h = np.array([[0.6, 1.3]]), 1e-4
    for values in (point, np.array([[0.9, 1.3]])):
        slopes, bends = derivatives(f(*Traced.variables(values)), 2, np.ones((1, 1)))
        for i in range(2):
            step = h * np.eye(2)[i]
            up, down = f(*(values + step)[0]), f(*(values - step)[0])
            assert slopes[i, 0, 0] == pytest.approx((up - down) / (2 * h), rel=1e-6)
            assert bends[i, i, 0] == pytest.approx((up - 2 * f(*values[0]) + down) / h**2, rel=1e-4)


def recorded(method, rows):
    """The method, which notes the first argument of every call."""

    def noting(problem, theta, *more):
        rows.append(np.array(theta))
        return method(problem, theta, *more)

    return noting


def repetition_task(resamples):
    x = np.stack(repeated())
    law, truth = LAWS["repetition"], np.array(TRUTHS["repetition"])
    loss = law.loss(truth, *x) * np.exp(0.01 * np.random.default_rng(0).standard_normal(75))
    problem = problem_of(law, x, loss)
    weights = bootstrap.point_weights("pairs", 75, None, resamples, 0)
    rule = Objective("log-huber")
    return solver.Task(problem, rule, loss[None] / problem.scale, weights), problem.theta(truth)


def test_derivatives_are_taken_once_at_each_place(monkeypatch):
    """A step that is refused is tried again shorter, from the derivatives that there are."""
    task, truth = repetition_task(8)
    places, tried = [], []
    monkeypatch.setattr(Problem, "_sums", recorded(Problem._sums, places))
    monkeypatch.setattr(Problem, "_values", recorded(Problem._values, tried))
    assert solver.solve(task, truth[None, None]).converged.all()
    every = np.concatenate(places)
    assert len(np.unique(every, axis=0)) >= len(every) - 8
    assert len(np.concatenate(tried)) > 1.2 * len(every)


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch):
    task, truth = repetition_task(12)
    monkeypatch.setattr(Problem, "batch", 4 * 75)
    found = []
    for cores in (1, 3):
        monkeypatch.setattr(solver, "allowed_cpus", lambda cores=cores: range(cores))
        found.append(solver.solve(task, truth[None, None]))
    monkeypatch.setattr(solver, "ThreadPoolExecutor", None)
    monkeypatch.setattr(Problem, "batch", 12 * 75)
    found.append(solver.solve(task, truth[None, None]))
    assert np.array_equal(found[0].theta, found[1].theta)
    assert found[0].objective == pytest.approx(found[2].objective, rel=1e-12)


@pytest.mark.slow
def test_a_law_without_terms_is_resampled_by_its_residuals_too():
    """Losses that differ by resample meet starts that all resamples share."""
    N, D, _ = repeated()
    losses = LAWS["kaplan"].loss(np.array([8.8e13, 5.4e13, 0.076, 0.095]), N[::3], D[::3])
    noise = np.exp(0.003 * np.random.default_rng(0).standard_normal(25))
    x = {"N": N[::3], "D": D[::3]}
    found = fit_law(x, losses * noise, law="kaplan", resamples=100, resampling="parametric")
    low, high = found.ci95["aN"]
    assert low < 0.076 < high


# -- Videau et al. 2026 ----------------------------------------------------------------------------
def test_skaling_is_found_where_it_is_planted_and_is_chinchilla_where_k_is_1():
    N, D = (np.ravel(side) for side in np.meshgrid(np.geomspace(1e7, 1e10, 6),
                                                   np.geomspace(1e9, 3e11, 6)))  # fmt: skip
    planted = {"E": 1.6, "A": 9e7, "B": 4e8, "alpha": 1.0, "beta": 0.9, "k": 0.36}
    form = LAWS["skaling"]
    loss = 1.6 + (9e7 / N**1.0 + 4e8 / D**0.9) ** 0.36
    assert form.function(**planted, N=N, D=D) == pytest.approx(loss, rel=1e-12)
    fit = fit_law({"N": N, "D": D}, loss, law="skaling", resamples=0)
    assert fit.status == "converged"
    assert fit.params == pytest.approx(planted, rel=1e-6)
    assert fit.exponents["a"] == pytest.approx(0.9 / 1.9, rel=1e-6)

    # the best size at a budget, by its closed form, is where the loss is least
    best = fit.optimum(1e21).N
    sizes = best * np.geomspace(0.5, 2, 2001)
    assert sizes[fit(sizes, 1e21 / 6 / sizes).argmin()] == pytest.approx(best, rel=1e-3)

    separate = 1.69 + 406 / N**0.34 + 410 / D**0.28
    of_one = fit_law({"N": N, "D": D}, separate, law="skaling", resamples=0)
    assert of_one.params["k"] == pytest.approx(1, abs=1e-6)
    plain = fit_law({"N": N, "D": D}, separate, law="chinchilla", resamples=0)
    assert of_one.params["alpha"] == pytest.approx(plain.params["alpha"], abs=1e-6)


@pytest.mark.soak
def test_skalings_intervals_hold_what_is_planted():
    rng = np.random.default_rng(0)
    N, D = (np.ravel(side) for side in np.meshgrid(np.geomspace(1e7, 1e10, 6),
                                                   np.geomspace(1e9, 3e11, 6)))  # fmt: skip
    loss = 1.6 + (9e7 / N**1.0 + 4e8 / D**0.9) ** 0.36
    held = 0
    for _ in range(10):
        seen = loss * np.exp(1e-3 * rng.standard_normal(len(N)))
        fit = fit_law({"N": N, "D": D}, seen, law="skaling", resamples=200)
        held += sum(fit.ci95[name][0] <= value <= fit.ci95[name][1]
                    for name, value in (("k", 0.36), ("E", 1.6), ("alpha", 1.0)))  # fmt: skip
    assert held >= 26
