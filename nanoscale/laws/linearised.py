"""From afar to near an optimum of a law without terms: its law made linear, again and again.

The one idea: of a linear law every objective here is convex, so its least value is found cheaply,
kinks and all, and the law made linear there anew: Gauss-Newton of a convex function of residuals
(Burke and Ferris 1995). Damped Newton takes ten times as many steps across the kinks of a Huber
loss whose delta is far below the residuals. Where it ends, `solver.refine` says for certain.

Shapes: B rows, n points, p coordinates.
"""

from __future__ import annotations

import numpy as np

from nanoscale.laws.arrays import Array, Index, Mask, batches
from nanoscale.laws.linear import root, solve_positive
from nanoscale.laws.problem import IN_CACHE
from nanoscale.laws.task import Task

MOST_LINES, MOST_STEPS, SHORTER = 8, 8, 5  # laws made linear; steps in each; shorter ones tried
LESS = 1e-3  # of the objective: what steps of a linear law must gain, and
SETTLED = 1e-9  # what a law made linear anew must
RIDGE = 1e-11  # of the squares: a direction that is flat
BRACKETS, CUTS = 3, 6  # of a search along a line


def approach(task: Task, theta: Array) -> Array:
    """Where each row of theta (B, p) leads."""
    ends = np.clip(theta, task.problem.lower, task.problem.upper)
    at_once = IN_CACHE // task.loss.shape[1]
    index = np.arange(len(theta))
    for _ in range(MOST_LINES):
        gain = np.empty(len(index))
        for rows in batches(len(index), at_once):
            gain[rows] = _moved(task.take(index[rows]), ends, index[rows])
        index = index[gain > SETTLED]
    return ends


def _moved(task: Task, ends: Array, index: Index) -> Array:
    """Move some rows of `ends` to where the law made linear is least; what they gain (B,)."""
    theta = ends[index]
    place = task.at(theta)
    slopes = task.problem.slopes(theta)
    if not task.rule.raw:
        slopes /= place.state.m
    pull, _ = task.rule.pulls(place.r, task.w)
    stopped = task.problem.stopped(theta, -(slopes * pull).sum(2))
    step = _least(task, place.r, slopes, stopped)

    gain = np.zeros(len(theta))
    left = np.arange(len(theta))
    for k in range(SHORTER):
        tried = task.problem.clipped(theta[left], theta[left] + step[left] / 2**k)
        fall = 1 - task.take(left).at(tried).f / place.f[left]
        better = fall > 0
        moved = left[better]
        gain[moved] = fall[better]
        ends[index[moved]] = tried[better]
        left = left[~better]
        if not len(left):
            break
    return gain


def _least(task: Task, r: Array, slopes: Array, stopped: Mask) -> Array:
    """The step (B, p) to the least objective of residuals r - slopes step, those stopped at 0."""
    rule, w = task.rule, task.w
    p, B, _ = slopes.shape
    rows = np.where(stopped[..., None], 0.0, slopes).swapaxes(0, 1)  # (B, p, n)
    size = root((rows * rows).sum(2))
    rows = rows / size[..., None]
    total = np.zeros((B, p))
    diagonal = np.arange(p)
    for _ in range(MOST_STEPS):
        pull, bend = rule.pulls(r, w)
        gradient = (rows @ pull[..., None])[..., 0].T
        hessian = ((rows * bend[:, None]) @ rows.swapaxes(1, 2)).transpose(1, 2, 0).copy()
        hessian[diagonal, diagonal] += RIDGE * w.sum(1)
        step, _ = solve_positive(hessian, gradient)
        along = (step.T[:, None] @ rows)[:, 0]
        share = _share(task, r, along)
        r = r - share[:, None] * along
        total += share[:, None] * step.T
        if ((gradient * step).sum(0) * share < LESS * rule.value(r, w)).all():
            break
    return total / size


def _share(task: Task, r: Array, along: Array) -> Array:
    """How far (B,) from residuals r along a line the objective no longer falls."""
    low, high = np.zeros(len(r)), np.ones(len(r))
    at_low, at_high = _fall(task, r, along, low), _fall(task, r, along, high)
    for _ in range(BRACKETS):
        more = at_high > 0
        if not more.any():
            break
        low, at_low = np.where(more, high, low), np.where(more, at_high, at_low)
        high = np.where(more, 2 * high, high)
        at_high = _fall(task, r, along, high)
    for k in range(CUTS):
        share = at_low / np.maximum(at_low - at_high, 1e-300)
        share = np.clip(share, 0.1, 0.9) if k % 2 == 0 else np.full(len(r), 0.5)
        middle = low + share * (high - low)
        there = _fall(task, r, along, middle)
        falls = there > 0
        low, at_low = np.where(falls, middle, low), np.where(falls, there, at_low)
        high, at_high = np.where(falls, high, middle), np.where(falls, at_high, there)
    return np.where(at_low < -at_high, low, high)


def _fall(task: Task, r: Array, along: Array, share: Array) -> Array:
    """How steeply (B,) the objective falls there."""
    pull, _ = task.rule.pulls(r - share[:, None] * along, task.w)
    return np.asarray((pull * along).sum(1))
