"""Loss curves: the areas by their recurrence, planted laws, schedules not seen, run folders."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from tiny import tiny_spec

from nanoscale.errors import UserError
from nanoscale.laws.curves import ANNEALING, Curve, _moved, _predictors, areas, fit_curves
from nanoscale.laws.objectives import Objective
from nanoscale.laws.problem import Problem
from nanoscale.spec.schedule import lr_multiplier
from nanoscale.store.files import row_line
from nanoscale.store.folder import RunFolder

TRUTH = np.array([2.0, 0.6, 3.0, 0.5])  # L0, A, C, alpha, and a timescale of 80 updates


def schedule(kind, updates=2000, warmup=100):
    i = np.arange(updates)
    p = np.clip((i - warmup) / (updates - warmup), 0, 1)
    shape = {
        "constant": np.ones(updates),
        "cosine": 0.1 + 0.45 * (1 + np.cos(np.pi * p)),
        "linear": 1 - 0.9 * p,
        "wsd": np.where(p < 0.75, 1, 1 - 3.6 * np.maximum(p - 0.75, 0)),
    }[kind]
    return 1e-3 * np.minimum((i + 1) / warmup, 1) * shape


def planted(kind, sd=0.0, seed=0, updates=2000):
    lr, step = schedule(kind, updates), np.arange(120, updates + 1, 20)
    S = np.array(areas(lr, 1 - 1 / 80))[:, step - 1]
    noise = np.random.default_rng(seed).standard_normal(len(step))
    return Curve.of(step, ANNEALING.loss(TRUTH, *S) * np.exp(sd * noise), lr, kind)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99, 0.9999])
def test_the_areas_are_those_of_the_papers_recurrence(decay):
    lr = 0.01 * np.random.default_rng(0).random(1000)
    lr[:5] = [0.001, 0.002, 0.003, 0.004, 0.02]  # a warmup, which is no annealing
    momentum, total, expected = 0.0, 0.0, [0.0] * 5
    for before, now in itertools.pairwise(lr[4:]):
        momentum = decay * momentum + before - now
        total += momentum
        expected.append(total)
    area, annealed = areas(lr, decay)
    assert area == pytest.approx(np.cumsum(lr))
    assert annealed == pytest.approx(expected, abs=1e-13)


def test_a_planted_law_is_recovered_and_predicts_other_schedules():
    found = fit_curves([planted("constant"), planted("cosine")], resamples=0)
    assert list(found.params.values()) == pytest.approx(TRUTH, rel=1e-3)
    assert found.timescale == pytest.approx(80, rel=1e-3)
    assert (found.status, found.warnings) == ("converged", [])
    for other in (planted("wsd", updates=3000), planted("linear")):
        assert found.predict(other.lr)["loss"] == [pytest.approx(other.loss[-1], rel=1e-5)]
        assert found(other.lr, other.step) == pytest.approx(other.loss, rel=1e-4)
    fixed = fit_curves([planted("constant"), planted("cosine")], timescale=80, resamples=0)
    assert list(fixed.params.values()) == pytest.approx(TRUTH, rel=1e-7)
    assert fixed.objective < 1e-20


def test_intervals_hold_the_truth_and_a_run_not_seen():
    held = np.zeros(4)
    for seed in range(8):
        curves = [
            planted(kind, 0.003, 10 * seed + i)
            for i, kind in enumerate(("constant", "cosine", "wsd"))
        ]
        found = fit_curves(curves, rng_seed=seed, delta=0.01)
        other = planted("linear", updates=3000)
        low, high = found.predict(other.lr)["ci95"][0]
        held += [
            low <= other.loss[-1] <= high,
            *(
                a <= value <= b
                for value, (a, b) in zip(
                    (*TRUTH[2:], 80),
                    (found.ci95[k] for k in ("C", "alpha", "timescale")),
                    strict=True,
                )
            ),
        ]
    assert (held >= 6).all(), held
    run = found.predict(other.lr)["run_ci95"][0]
    assert run[0] < low < high < run[1]
    assert found.noise == pytest.approx(0.003, rel=0.2)
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert [r["name"] for r in record["runs"]] == ["constant", "cosine", "wsd"]
    assert all(r["r2"] > 0.99 for r in record["runs"])
    assert record["resampled"] == "stretches of runs"


def test_resamples_move_the_timescale_by_its_derivatives():
    """From the problem at 80 updates, losses of 88 are found to be of 88, but for third order."""
    curves = [planted("constant"), planted("cosine")]
    S1, S2 = _predictors(curves, 88)
    loss = ANNEALING.loss(TRUTH, S1, S2)
    problem = Problem(ANNEALING, _predictors(curves, 80), 2.0)
    found = _moved(
        curves, problem, Objective("log-huber"), problem.theta(TRUTH), 80.0, loss[None] / 2, False
    )
    assert found[0] == pytest.approx([*TRUTH, 88], rel=2e-3)


def test_a_run_folder_is_read_with_its_own_schedule(tmp_path):
    spec = tiny_spec(max_iters=40, warmup_iters=4, lr_schedule="cosine", learning_rate=1e-2)
    run = RunFolder(tmp_path / "run")
    run.create(spec)
    rows = [
        {"step": s, "train_loss": 3.0, "val_loss": None if s % 4 else 3 - s / 50}
        for s in range(0, 41, 2)
    ]
    (run / "metrics.jsonl").write_text("".join(row_line(r) for r in rows))
    curve = Curve.of_run(run.path)
    assert curve.step.tolist() == list(range(8, 41, 4))
    assert curve.loss[-1] == 2.2
    assert curve.lr.tolist() == [1e-2 * lr_multiplier(spec.config, i) for i in range(40)]
    with pytest.raises(UserError, match="no nothing in its metrics"):
        Curve.of_run(run.path, "nothing")


@pytest.mark.parametrize(("message", "make"), [
    ("2 steps and 3 losses", lambda: Curve.of([1, 2], [3, 3, 3], [1, 1])),
    ("of the schedule's 2 updates", lambda: Curve.of([1, 3], [3, 3], [1, 1])),
    ("no positive losses after update 5", lambda: Curve.of([1, 2], [3, 3], [1, 1], skip=5)),
    ("rates must be numbers", lambda: Curve.of([1, 2], [3, 3], [0, 0])),
    ("no learning rate falls", lambda: fit_curves([planted("constant")])),
    ("give at least one", lambda: fit_curves([])),
    ("4 losses are too few", lambda: fit_curves([Curve.of(range(1, 5), [3] * 4, [1] * 5)])),
])  # fmt: skip
def test_bad_input_is_refused_in_one_line(message, make):
    with pytest.raises(UserError) as error:
        make()
    assert message in str(error.value)
