"""The way to an optimum of a law without terms: never higher than by Newton alone, and the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nanoscale.laws import LAWS, solver
from nanoscale.laws.bootstrap import point_weights
from nanoscale.laws.linearised import approach
from nanoscale.laws.objectives import OBJECTIVES, Objective
from nanoscale.laws.problem import problem_of
from nanoscale.laws.task import Task

BASE = [1.69, 406.4, 410.7, 0.34, 0.28]


def task_of(name, rule, rows=1, spread=0.02):
    """Runs of a planted law with noise, and resamples of them."""
    N = np.tile(np.geomspace(2e7, 2e9, 6), 5)
    D = np.repeat(np.geomspace(1e9, 2e11, 5), 6)
    U = D / np.tile([1.0, 4.0, 30.0], 10)
    law = LAWS[name]
    truth = np.array({"chinchilla": BASE, "repetition": [*BASE, 7.0]}[name])
    law = replace(law, terms=())
    x = np.stack([N, D, U])[: len(law.predictors)]
    noise = np.random.default_rng(0).standard_normal(30)
    loss = law.loss(truth, *x) * np.exp(spread * noise)
    problem = problem_of(law, x, loss)
    w = point_weights("pairs", 30, None, rows, 0)
    return Task(problem, rule, loss[None] / problem.scale, w), problem.theta(truth)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_linear_law_after_another_leads_to_the_optimum(name):
    task, truth = task_of("chinchilla", Objective(name, 1e-3), rows=4)
    if name == "lad":
        task = replace(task, rule=replace(task.rule, delta=1e-4))
    start = np.repeat(truth[None], 4, 0)
    with np.errstate(all="ignore"):
        near = approach(task, start)
        _, f, converged = solver.refine(task, near, 0.0)
        _, alone, by_itself = solver.refine(task, start)
    assert converged.all()
    assert task.at(near).f == pytest.approx(f, rel=1e-2)
    assert (f <= alone * (1 + 1e-9))[by_itself].all()


def test_resamples_are_solved_no_higher_than_from_many_starts():
    task, _ = task_of("repetition", Objective("log-huber", 1e-3), rows=3)
    whole = task.on(task.loss, np.ones((1, 30)))
    best = solver.solve(whole, 6).theta[0]
    found = solver.resolve(task, best)
    many = solver.solve(task, 6)
    assert found.converged.all()
    assert (found.objective <= many.objective * (1 + 1e-9)).all()


def test_a_parameter_at_an_end_of_its_range_is_tried_inside_too():
    task, truth = task_of("repetition", Objective("log-huber", 1e-3))
    assert solver.held_inside(task, truth) == []
    end = truth.copy()
    end[-1] = task.problem.upper[-1]
    (inside,) = solver.held_inside(task, end)
    assert inside[-1] == np.log(LAWS["repetition"].parameters[-1].grid[0])
    assert (inside[:-1] != end[:-1]).all()
