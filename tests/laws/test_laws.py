"""The ladder's power law: planted truths, an independent solver, and worlds of known noise."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest

from nanoscale.errors import UserError
from nanoscale.laws import LAWS, bootstrap, fit_power_law, solver
from nanoscale.laws.bootstrap import noise_of, resampled, seed_noise, widened
from nanoscale.laws.forms import number
from nanoscale.laws.objectives import Objective
from nanoscale.laws.problem import problem_of

FEW = 200  # resamples, where the interval itself is not judged
POWER = LAWS["power"]


@dataclass(frozen=True)
class PowerLaw:
    E: float
    K: float
    g: float

    def __call__(self, x):
        return self.E + self.K * np.asarray(x, float) ** -self.g


def solved(x, losses, delta, starts):
    """The power law's problem, and its solution for losses (R, n) of scale about 1."""
    problem = problem_of(POWER, x[None], np.ones(len(x)))
    rule = Objective("log-huber", delta)
    return problem, solver.solve(solver.Task(problem, rule, losses, np.ones((1, len(x)))), starts)


def ladder(n_sizes=6, *, E=1.5, reducible=1.5, g=0.15, span=100.0, seeds=3, x0=2e13):
    """(law, x, size, seed) of a ladder with `seeds` seeds at its second and last but one size."""
    sizes = np.geomspace(x0, x0 * span, n_sizes)
    law = PowerLaw(E, reducible * np.exp(g * np.log(sizes).mean()), g)
    extra = [i for i in (1, n_sizes - 2) for _ in range(seeds - 1)]
    size = np.array([*range(n_sizes), *extra])
    seed = [1337] * n_sizes + list(range(2 * (seeds - 1)))
    return law, sizes[size], [f"s{i}" for i in size], seed


def noisy(law, x, sd, rng):
    return law(x) * np.exp(sd * rng.standard_normal(len(x)))


def world(sd=0.002, rng_seed=0, **kwargs):
    law, x, size, seed = ladder(**kwargs)
    return x, noisy(law, x, sd, np.random.default_rng(rng_seed)), size, seed


def fit(x, loss, size=None, seed=None, **kwargs):
    return fit_power_law(x, loss, size=size, seed=seed, **{"resamples": FEW, **kwargs})


@pytest.mark.slow
@pytest.mark.parametrize("g", [0.03, 0.08, 0.2, 0.5, 1.2])
@pytest.mark.parametrize(("E", "reducible"), [(0.3, 0.2), (1.5, 1.5), (3.0, 0.6), (0.9, 4.0)])
def test_a_law_without_noise_is_recovered_exactly(E, reducible, g):
    law, x, _, _ = ladder(E=E, reducible=reducible, g=g, seeds=1)
    found = fit(x, law(x))
    assert found.params == pytest.approx({"E": law.E, "K": law.K, "g": law.g}, rel=1e-8)
    assert found.status == "converged"
    assert found.agreement_of_starts == 1
    assert found.ci95["g"] == pytest.approx([g, g], rel=1e-5)


def test_a_law_without_floor_is_recovered_at_its_bound():
    law, x, _, _ = ladder(E=0.0, g=0.1, seeds=1)
    found = fit(x, law(x))
    assert found.params["E"] == pytest.approx(0, abs=1e-9)
    assert found.params["g"] == pytest.approx(0.1, rel=1e-8)
    assert "E" in found.not_identified


def scipy_best(problem, loss, delta, starts):
    """The lowest Huber cost that scipy's trust region finds from many starts."""
    optimize = pytest.importorskip("scipy.optimize")
    lower, upper = problem.lower, np.where(np.isfinite(problem.upper), problem.upper, 1e3)
    costs = []
    for start in starts:
        result = optimize.least_squares(
            lambda t: np.log(loss / problem.at(t[None]).m[0]),
            np.clip(start, lower + 1e-9, upper - 1e-9),
            bounds=(lower, upper),
            loss="huber",
            f_scale=delta,
            x_scale="jac",
            xtol=1e-15,
            ftol=1e-15,
            gtol=1e-15,
            max_nfev=400,
        )
        costs.append(result.cost)
    return min(costs)


@pytest.mark.slow
@pytest.mark.parametrize("delta", [1e-3, 4e-3, np.inf])
def test_scipy_never_finds_a_lower_objective(delta):
    rng = np.random.default_rng(1)
    law, x, _, _ = ladder()
    for sd, outlier in ((0.002, 0.0), (0.01, 0.0), (0.004, 0.1)):
        y = np.log(noisy(law, x, sd, rng))
        y[rng.integers(len(y))] += outlier
        loss = np.exp(y - y.mean())
        problem, found = solved(x, loss[None], delta, 32)
        starts = problem.starts(loss[None], np.ones((1, len(x))), 6)[0]
        best = scipy_best(problem, loss, min(delta, 1e3), starts)
        assert found.converged[0]
        assert found.objective[0] <= best * (1 + 1e-9)


@pytest.mark.slow
def test_three_starts_per_resample_are_as_good_as_thirty_two():
    rng = np.random.default_rng(2)
    law, x, _, _ = ladder()
    y = np.log(law(x)) - np.log(law(x)).mean()
    draws = np.exp(y + 0.006 * rng.standard_normal((300, len(x))))
    few, many = (solved(x, draws, 0.008, n)[1] for n in (3, 32))
    assert few.converged.all()
    assert many.converged.all()
    assert (few.objective <= many.objective * (1 + 1e-9)).all()


@pytest.mark.soak
@pytest.mark.parametrize(("seeds", "n_sizes"), [(3, 6), (1, 8)])
def test_the_95_percent_interval_of_g_covers(seeds, n_sizes):
    rng = np.random.default_rng(3)
    law, x, size, seed = ladder(n_sizes, seeds=seeds)
    worlds, held = 120, {"E": 0, "g": 0, "curve": 0}
    for _ in range(worlds):
        found = fit(x, noisy(law, x, 0.003, rng), size, seed)
        for name, value in (("E", law.E), ("g", law.g)):
            low, high = found.ci95[name]
            held[name] += low <= value <= high
        curve = found.curve
        held["curve"] += curve.lo[-1] <= law(curve.x[-1]) <= curve.hi[-1]
    assert min(held.values()) >= 0.93 * worlds, held


def test_resamples_know_their_noise_only_to_its_degrees_of_freedom():
    y = np.zeros(9)
    noise = noise_of(np.array([1.0, -1, 1, -1, 1, -1, 1, -1, 0]), np.arange(9), y, 3)
    draws = resampled(y, noise, 40_000, 0)
    # each loss is Student's t with 6 degrees of freedom: variance 6 / 4 of the squared sd
    assert draws.var() == pytest.approx(noise.used**2 * 1.5, rel=0.05)


def test_delta_follows_the_spread_about_least_squares_and_has_a_floor():
    rng = np.random.default_rng(4)
    x = np.geomspace(1e15, 1e17, 9)
    law = 1.5 + 100 / x**0.12
    assert fit_power_law(x, law, resamples=100).delta == 1e-3
    loss = law * np.exp(0.01 * rng.standard_normal(9))
    squares = fit_power_law(x, loss, delta=1e6, resamples=100)
    typical = np.median([abs(point.residual) for point in squares.points])
    spread = 1.4826 * typical * math.sqrt(9 / (9 - 3))
    found = fit_power_law(x, loss, resamples=100)
    assert found.delta == pytest.approx(1.345 * spread, rel=1e-6)
    for point in found.points:
        assert math.exp(point.residual) == pytest.approx(point.loss / point.fitted)


@pytest.mark.parametrize(("sizes", "seeds", "measured"), [(1, 2, False), (3, 3, True)])
def test_delta_is_of_the_seeds_once_they_are_measured(sizes, seeds, measured):
    """The first sizes have several seeds, 5 % apart, and the law is exact but for these."""
    x = np.geomspace(1e15, 1e17, 9)
    law = 1.5 + 100 / x**0.12
    rows = [(i, s) for i in range(9) for s in range(seeds if i < sizes else 1)]
    loss = [law[i] * math.exp(0.05 * s) for i, s in rows]
    found = fit_power_law(
        [x[i] for i, _ in rows],
        loss,
        size=[i for i, _ in rows],
        seed=[s for _, s in rows],
        resamples=100,
    )
    of_seeds = 1.345 * found.noise.seed_sd
    assert of_seeds > 0.04
    assert (found.delta == pytest.approx(of_seeds)) == measured


def test_a_refit_speaks_for_its_own_sizes_alone(monkeypatch):
    seen = []
    real = bootstrap.widened
    monkeypatch.setattr(bootstrap, "widened", lambda *a: seen.append(a[1]) or real(*a))
    x = np.geomspace(1e15, 1e17, 9)
    found = fit_power_law(x, 1.5 + 100 / x**0.12, resamples=100)
    others = next(rows for rows in seen if rows.shape[1] == len(found.curve.x))
    for row, refit in zip(others, found.dropped, strict=True):
        below = np.array(found.curve.x) < refit.smallest_x
        assert (np.isnan(row) == below).all()
        assert below.any()


def test_seed_noise_is_pooled_within_sizes_and_measured_from_three_seeds_at_two():
    y = np.array([0.0, 1, 2, 10, 11, 12, 20])
    size = np.array([0, 0, 0, 1, 1, 1, 2])
    sd, dof, measured = seed_noise(y, size)
    assert (sd, dof, measured) == (1.0, 4, True)
    assert seed_noise(y[:5], size[:5]) == (pytest.approx(np.sqrt(2.5 / 3)), 3, False)
    assert seed_noise(y[:2], np.array([0, 1])) == (None, 0, False)


@pytest.mark.slow
def test_the_larger_noise_is_used_and_seeds_only_once_measured():
    x, loss, size, seed = world()
    loss = loss * np.where(np.array(seed) == 1, np.exp(0.02), 1)
    noise = fit(x, loss, size, seed).noise
    assert noise.seeds_measured
    assert noise.used == max(noise.seed_sd, noise.residual_sd)
    x, loss, size, seed = world(seeds=2)
    noise = fit(x, loss, size, seed).noise
    assert not noise.seeds_measured
    assert noise.used == noise.residual_sd


@pytest.mark.soak
def test_noisier_seeds_widen_the_interval_and_more_seeds_narrow_it():
    def width(**kwargs):
        fits = [fit(*world(rng_seed=i, **kwargs)) for i in range(8)]
        return np.median([f.ci95_noise["g"][1] - f.ci95_noise["g"][0] for f in fits])

    assert width(sd=0.004) > 1.5 * width(sd=0.002)
    assert width(sd=0.002, seeds=3) < 0.85 * width(sd=0.002, seeds=1)


def test_dropping_the_smallest_sizes_stretches_the_interval_over_the_refits():
    law, x, size, seed = ladder(8, span=300)
    drift = 1 + 0.05 * (x / x.min()) ** -0.8  # small sizes do worse than the law
    loss = noisy(law, x, 0.001, np.random.default_rng(0)) * drift
    found = fit(x, loss, size, seed)
    assert [d.sizes_dropped for d in found.dropped] == [1, 2, 3, 4]
    assert [d.n_points for d in found.dropped] == [11, 8, 7, 6]
    for name in ("E", "K", "g"):
        low, high = found.ci95[name]
        refits = [d.params[name] for d in found.dropped]
        assert low <= min(refits)
        assert high >= max(refits)
    assert found.shares[0] < max(found.shares)  # the runs speak for the law of the larger sizes
    assert sum(found.shares) + found.rival.share == pytest.approx(1)
    assert any("without the smallest" in warning for warning in found.warnings)
    again = fit(x[x > x.min()], loss[x > x.min()], resamples=100, delta=found.delta)
    assert again.params == pytest.approx(found.dropped[0].params, rel=1e-6)
    end = found.curve.x[-1]
    refits = [PowerLaw(**d.params)(end) for d in found.dropped]
    assert found.curve.lo[-1] <= min(refits)
    assert found.curve.hi[-1] >= max(refits)


def test_widened_ignores_refits_that_are_not_there():
    ends = np.array([[1.0, 1], [2, 2]])
    others = np.array([[0.5, np.nan], [1.5, np.nan]])
    assert widened(ends, others).tolist() == [[0.5, 1], [2, 2]]
    assert widened(ends, np.empty((0, 2))).tolist() == ends.tolist()


def test_a_sound_ladder_is_silent():
    found = fit(*world(sd=0.0015))
    assert (found.status, found.not_identified, found.warnings) == ("converged", {}, [])
    assert len(found.summary()) == 4
    law = ladder()[0]
    assert found.params["g"] == pytest.approx(law.g, abs=0.03)


def six(losses):
    return np.geomspace(1, 100, 6), losses


def bending_up():
    """A straight power law minus a constant: the best E >= 0 is 0."""
    x = np.geomspace(1, 100, 6)
    return x, 3 * x**-0.1 - 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "names", "status", "why"),
    [
        (lambda: world(E=0.0, sd=0.003), ["E"], "not_identified", "cannot be told from none"),
        (lambda: world(sd=0.03, rng_seed=1), ["E", "K", "g"], "not_identified", "over a factor 4"),
        (bending_up, ["E"], "bound_hit", "the best fit has E = 0"),
        (lambda: six([3.01, 3.07, 3.13, 3.21, 3.3, 3.37]), ["K", "g"], "bound_hit", "not fall"),
        (lambda: six([3.17, 2.3, 2.31, 2.29, 2.3, 2.29]), ["K", "g"], "bound_hit", "has g = 5"),
        (lambda: six(3 * six(0)[0] ** -6.0), ["K", "g"], "bound_hit", "the best fit has g = 5"),
    ],
)
def test_what_the_runs_do_not_pin_down_is_not_identified(case, names, status, why):
    found = fit(*case())
    assert found.status == status
    assert set(names) <= set(found.not_identified)
    assert any(why in reason for reason in found.not_identified.values())
    lines = found.summary()
    for name, reason in found.not_identified.items():
        assert f"{name}: not identified ({reason})" in lines
    assert ("/ C^g" in lines[0]) == ("g" in found.not_identified)
    assert ("= E +" in lines[0]) == ("E" in found.not_identified)


@pytest.mark.slow
def test_the_interval_decides_what_is_identified():
    wide, narrow = fit(*world(sd=0.03, rng_seed=1)), fit(*world(sd=0.001))
    assert wide.ci95["g"][1] > 4 * wide.ci95["g"][0]
    assert narrow.ci95["g"][1] < 4 * narrow.ci95["g"][0]
    no_floor = fit(*world(E=0.0, sd=0.003))
    assert no_floor.ci95["E"][0] == 0


def test_a_start_never_passes_as_a_fit(monkeypatch):
    monkeypatch.setattr(solver, "MAX_ITER", 0)
    found = fit(*world())
    assert found.status == "max_iter"
    assert set(found.not_identified) == {"E", "K", "g"}
    assert found.agreement_of_starts == 0
    assert any("starts agree" in w for w in found.warnings)
    assert any("resamples did not converge" in w for w in found.warnings)
    assert found.to_json()["ci95"]["g"] == [None, None]


@pytest.mark.parametrize(
    ("word", "loud"),
    [
        ("seed noise is not measured", lambda: world(seeds=2)),
        ("rounded to 2 decimals", lambda: (w := world(), (w[0], np.round(w[1], 2), *w[2:]))[1]),
        ("times the seed noise", lambda: bent()),
    ],
)
def test_each_warning_speaks_when_it_should(word, loud):
    assert [word in w for w in fit(*loud()).warnings].count(True) == 1


def bent():
    """Losses whose sizes alternate around the law by far more than their seeds do."""
    x, loss, size, seed = world(sd=0.0005)
    return x, loss * np.where(np.isin(size, ["s0", "s2", "s5"]), 1.02, 1), size, seed


def test_the_order_of_rows_does_not_matter():
    x, loss, size, seed = world(sd=0.004)
    order = np.random.default_rng(5).permutation(len(x))
    turned = fit(x[order], loss[order], [size[i] for i in order], [seed[i] for i in order])
    assert turned.to_json() == fit(x, loss, size, seed).to_json()


def test_the_units_of_x_and_of_the_loss_do_not_matter():
    x, loss, size, seed = world()
    a, b = fit(x, loss, size, seed), fit(x * 1000, loss / np.log(2), size, seed)
    g = a.params["g"]
    scaled = {"E": a.params["E"] / np.log(2), "K": a.params["K"] / np.log(2) * 1000**g, "g": g}
    assert b.params == pytest.approx(scaled, rel=1e-6)
    assert b.ci95["g"] == pytest.approx(a.ci95["g"], rel=1e-6)
    assert b.objective == pytest.approx(a.objective, rel=1e-9)


@pytest.mark.slow
def test_an_outlier_moves_the_law_less_than_least_squares():
    law, x, size, seed = ladder(8, seeds=1)
    loss = noisy(law, x, 0.001, np.random.default_rng(0))
    loss[6] *= 1.05
    robust, squares = fit(x, loss, size, seed), fit(x, loss, size, seed, delta=10.0)
    assert abs(robust.params["g"] - law.g) < abs(squares.params["g"] - law.g) / 2


X6 = np.geomspace(1e13, 1e15, 6)
L6 = [4.0, 3.6, 3.3, 3.05, 2.85, 2.7]


@pytest.mark.parametrize(
    ("message", "args", "kwargs"),
    [
        ("3 sizes are too few", (X6[:3], L6[:3]), {}),
        ("0 sizes are too few", ([], []), {}),
        ("3 sizes are too few", (X6, L6), {"size": list("aabbcc")}),
        ("all runs have N = 5", ([5] * 6, L6), {"x_name": "N"}),
        ("leave diverged and unfinished runs out", (X6, [*L6[:5], None]), {}),
        ("first: inf in row 5", (X6, [*L6[:5], float("inf")]), {}),
        ("first: 0.0 in row 0", ([0, *X6[1:]], L6), {}),
        ("first: -1.0 in row 2", (X6, [*L6[:2], -1, *L6[3:]]), {}),
        ("loss must be a list of numbers", (X6, ["x"] * 6), {}),
        ("differ in length (C 6, loss 5", (X6, L6[:5]), {}),
        (
            "size 'a' with seed 1 appears twice",
            ([*X6, X6[5]], [*L6, 2.7]),
            {"size": list("bcdefaa"), "seed": [1] * 7},
        ),
        ("delta = -1", (X6, L6), {"delta": -1}),
        ("10 resamples are too few", (X6, L6), {"resamples": 10}),
    ],
)
def test_bad_runs_are_refused_in_one_line(message, args, kwargs):
    with pytest.raises(UserError) as error:
        fit_power_law(*args, **kwargs)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_record_is_plain_json_at_full_precision():
    x, loss, size, seed = world(seeds=1)
    found = fit(x, loss, size, seed, x_name="N")
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert record == found.to_json()
    assert record["params"] == found.params
    assert record["noise"]["seed_sd"] is None
    assert [p["loss"] for p in record["points"]] == loss.tolist()
    assert record["equation"].startswith("L(N) = 1.")
    curve = record["curve"]
    assert curve["x"][0] == pytest.approx(0.7 * x.min())
    assert curve["x"][-1] == pytest.approx(10 * x.max())
    assert all(
        a <= b <= c for a, b, c in zip(*(curve[k] for k in ("lo", "loss", "hi")), strict=True)
    )
    assert found(x[0]) == pytest.approx(record["points"][0]["fitted"])


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (1.23456, 0.031, "1.23"),
        (1.23456, 0.012, "1.235"),
        (286.4, 42.0, "286"),
        (0.12345, 0.0041, "0.123"),
        (4.56e7, 2e6, "4.56e7"),
        (4.5, None, "4.500"),
        (0.0, 0.1, "0.00"),
        (float("nan"), 0.1, "n/a"),
        (None, None, "n/a"),
        (99.97, 0.5, "100.0"),
    ],
)
def test_digits_follow_the_standard_error(value, error, text):
    assert number(value, error) == text


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("power", [1.5, 286.0, 0.16]),
        ("chinchilla", [1.7, 406.0, 410.0, 0.34, 0.28]),
        ("kaplan", [8.8e13, 5.4e13, 0.076, 0.095]),
    ],
)
def test_parameters_survive_the_way_to_the_solver_and_back(name, params):
    law = LAWS[name]
    x = np.exp(np.random.default_rng(0).uniform(18, 25, (len(law.predictors), 6)))
    problem = problem_of(law, x, np.full(6, 2.5))
    theta = problem.theta(np.array(params))
    assert problem.params(theta) == pytest.approx(params)
    assert problem.at(theta[None]).m[0] * 2.5 == pytest.approx(law.loss(params, *x))
