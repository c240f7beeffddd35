"""Checkpoints of one run are found by how they lie, and resampled with their run."""

from __future__ import annotations

import numpy as np
import pytest
from planted_runs import LAW, TRUTH, checkpoints, coverage
from scipy import stats

from nanoscale.laws import LAWS, fit_law
from nanoscale.laws.resampling import Resampling
from nanoscale.laws.structure import find_runs


def residual(N, D, loss):
    return np.log(loss / LAW.loss(TRUTH, N, D))


@pytest.mark.soak
def test_intervals_hold_the_truth_where_points_are_checkpoints():
    measured = coverage(2, 100, runs=8, each=6)
    apart = coverage(2, 100, "pairs", runs=8, each=6)
    for name in ("E", "alpha", "a"):
        assert measured[name][0] >= 0.5
        assert measured[name][1] > 1.2 * apart[name][1]


@pytest.mark.soak
@pytest.mark.parametrize(("runs", "each"), [(5, 20), (8, 20), (16, 10)])
def test_intervals_hold_the_truth_where_points_are_checkpoints_in_200_worlds(runs, each):
    measured = coverage(200, 100, runs=runs, each=each)
    assert min(held for held, _ in measured.values()) >= 0.93, measured


@pytest.mark.parametrize(
    ("runs", "method"), [(5, "wild-cluster"), (12, "wild-cluster"), (13, "cluster")]
)
def test_the_way_follows_from_how_many_runs_there_are(runs, method):
    run = np.repeat(np.arange(runs), 3)
    chosen = Resampling.of("pairs", 100, None, None, 0, len(run)).by_run(run)
    assert (chosen.method, chosen.runs, chosen.too_few) == (method, runs, "")


def test_runs_that_were_found_are_said():
    N, D, loss, _ = checkpoints(each=6)
    found = fit_law({"N": N, "D": D}, loss, resamples=100)
    assert (found.resampling, found.runs_found is None) == ("wild-cluster", False)
    assert "from 100 wild-cluster resamples of 8 runs (found by N, p = " in found.summary()[-1]
    assert found.to_json()["runs"]["runs"] == 8


def test_fewer_than_five_runs_have_no_intervals():
    N, D, loss, _ = checkpoints(runs=4, each=6)
    found = fit_law({"N": N, "D": D}, loss, resamples=100)
    assert (found.status, found.ci95, found.resamples) == ("not_identified", {}, 0)
    assert set(found.not_identified.values()) == {
        "4 runs are too few for an interval: train 5, better more"
    }


def test_few_runs_move_as_the_jackknife_and_students_t_say():
    """One parameter, so that what a run is off by the others is known; delta far beyond noise."""
    rng = np.random.default_rng(0)
    run = np.repeat(np.arange(6), 4)
    x = np.tile(np.geomspace(1e6, 1e9, 4), 6)
    y = np.log(3.0 * x**-0.1) + 0.01 * rng.standard_normal(6)[run]
    form = LAWS["power"].hold(E=0.0, g=0.1)
    how = {"law": form, "delta": 10.0, "resamples": 4000}
    found = fit_law({"x": x}, np.exp(y), resampling="wild-cluster", groups=run, **how)
    level = y[::4] - np.log(x[0] ** -0.1)
    jackknife = np.array([np.delete(level, k).mean() for k in range(6)])
    se = np.sqrt(5 / 6 * ((jackknife - level.mean()) ** 2).sum())
    low, high = np.log(found.ci95["K"])
    assert high - low == pytest.approx(2 * stats.t.ppf(0.975, 5) * se, rel=0.2)


def test_runs_are_found_by_any_label_in_any_order_of_rows():
    N, D, loss, run = checkpoints()
    turn = np.random.default_rng(1).permutation(len(N))
    N, D, loss, run = N[turn], D[turn], loss[turn], run[turn]
    left = residual(N, D, loss)
    points = {"N": N, "D": D}
    labels = {"sweep": run % 2, "model": [f"m{k}" for k in run], "row": range(len(N))}
    found = find_runs(points, left, labels)
    assert found is not None
    assert (found.column, found.runs) == ("model", 8)
    assert (np.unique([found.index, run], axis=1).shape[1]) == 8
    assert find_runs(points, left, {}) is None  # no label, and rows that say nothing


def test_independent_points_are_no_runs():
    N, D, loss, run = checkpoints(of_run=0.0, memory=0.0)
    assert find_runs({"N": N, "D": D}, residual(N, D, loss), {"run": run}) is None
    levels = 0
    for world in range(100):
        left = np.random.default_rng(world).standard_normal(len(N))
        levels += find_runs({"N": N, "D": D}, left, {}) is not None
    assert levels <= 5  # of 100 at 1 %: more in one of 1,900 tries


def test_an_isoflop_grid_has_no_runs_whatever_its_residuals():
    C = np.repeat(np.geomspace(1e17, 1e20, 4), 7)
    N = np.tile(np.geomspace(1e7, 1e9, 7), 4)
    left = np.log(N) + 1e-3 * np.random.default_rng(0).standard_normal(28)
    assert find_runs({"N": N, "D": C / (6 * N)}, left, {"size": N}) is None


def test_levels_are_told_apart_as_kruskal_and_wallis_do():
    rng = np.random.default_rng(0)
    run = np.repeat(np.arange(6), 5)
    D = np.tile(np.arange(1.0, 6), 6)
    N = np.geomspace(1e6, 1e8, 6)[run]
    left = rng.standard_normal(30) + 3.0 * rng.standard_normal(6)[run]
    left[::2] -= 2 * left[::2].mean()  # neighbours say less than levels
    found = find_runs({"N": N, "D": D}, left, {"run": run})
    expected = 2 * stats.kruskal(*(left[run == k] for k in range(6))).pvalue
    assert found is not None
    assert found.p_value <= expected * (1 + 1e-9)


def courses(seed=1, runs=6, each=12):
    """C, losses and names of runs whose points are checkpoints, under a law of C alone."""
    rng = np.random.default_rng(seed)
    C = (1e13 * 4.0 ** np.arange(runs)[:, None] * np.geomspace(1, 20, each)).ravel()
    noise = np.repeat(0.02 * rng.standard_normal(runs), each) + 1e-3 * rng.standard_normal(len(C))
    names = [f"run {i}" for i in range(runs) for _ in range(each)]
    return C, (1.5 + 2 * (C / 1e13) ** -0.15) * np.exp(noise), names


def test_runs_are_found_under_a_law_of_one_predictor_by_their_names_alone():
    C, loss, names = courses()
    law = {"law": "power", "resamples": 100}
    found = fit_law({"C": C}, loss, labels={"name": names}, **law)
    assert (found.resampling, found.runs_found.runs) == ("wild-cluster", 6)
    sizes = [name.split()[1] for name in names]  # numbers, as of layers, are no names
    assert fit_law({"C": C}, loss, labels={"n_layer": sizes}, **law).resampling == "pairs"
    alone = np.random.default_rng(0).standard_normal(len(C))
    assert find_runs({"C": C}, alone, {"name": names}) is None


def test_groups_that_are_given_are_resampled_whole():
    C, _, names = courses()
    noise = np.exp(1e-3 * np.random.default_rng(0).standard_normal(len(C)))
    smooth = (1.5 + 2 * (C / 1e13) ** -0.15) * noise
    law = {"law": "power", "resamples": 100}
    assert fit_law({"C": C}, smooth, groups=names, **law).resampling == "wild-cluster"
    assert fit_law({"C": C}, smooth, groups=range(len(C)), **law).resampling == "pairs"
    assert fit_law({"C": C}, smooth, groups=names, resampling="pairs", **law).resampling == "pairs"
