"""Certain minimisation of any objective of any law, for many data sets at once, in plain numpy.

The one idea: starts come from a grid (`Problem.starts`), and each is refined by a projected, damped
Newton iteration with exact derivatives until the Newton decrement vanishes beside the objective:
no scale of the loss can stop it early (the failure of L-BFGS in Hoffmann et al. 2022, found by
Besiroglu et al. 2024), and a start that has not converged is never called a fit. Data sets differ
by their weights (resamples of points) or by their losses; neither is copied. Rows are worked on in
batches that stay in cache, and those that are done leave.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nanoscale.laws.linear import solve_positive
from nanoscale.laws.objectives import Objective
from nanoscale.laws.problem import Problem, State

MAX_ITER = 200
TOLERANCE = 1e-12  # of the Newton decrement, relative to the objective
AGREEMENT = 1e-9  # of objectives that count as equal, relative
ROUNDING = 1e-30  # what rounding alone leaves of one squared residual of ln L
START_DAMPING = 0.03  # shares of reweighted least squares in the Hessian
FIRST_DAMPING, CONVEX_DAMPING = 1e-3, 0.3  # after a poor step; where the Hessian bends down
HEAVY_DAMPING, MOST_DAMPING = 5.0, 1e15  # from which steps are projected as well; given up
SMALL_DAMPING = 1.0  # up to which the decrement of a damped step counts
BATCH = 49_152  # points of a batch, so that its arrays stay in cache
CHECKED, STARTS_CHECKED, STARTS_KEPT = 64, 9, 3  # resamples solved from many starts as well
CHECKED_POINTS = 4_000  # of these resamples together, but at least two of them


@dataclass(frozen=True)
class Solution:
    """The best of the starts for each of R data sets."""

    theta: np.ndarray  # (R, p)
    objective: np.ndarray  # (R,) of losses over the problem's scale
    converged: np.ndarray  # (R,) bool
    agreeing: np.ndarray  # (R,) number of starts that ended at the best objective
    starts: int


@dataclass
class _Rows:
    """The rows of a batch that are at work: where they are, and their data."""

    theta: np.ndarray  # (B, p)
    state: State
    r: np.ndarray  # (B, n) residuals
    f: np.ndarray  # (B,)
    damping: np.ndarray  # (B,)
    loss: np.ndarray  # (B or 1, n)
    w: np.ndarray  # (B or 1, n)
    index: np.ndarray  # (B,) in the batch

    def take(self, rows: np.ndarray) -> _Rows:
        data = [a if len(a) == 1 else a[rows] for a in (self.loss, self.w)]
        return _Rows(
            self.theta[rows],
            self.state.take(rows),
            self.r[rows],
            self.f[rows],
            self.damping[rows],
            *data,
            self.index[rows],
        )


@np.errstate(over="ignore", divide="ignore", invalid="ignore", under="ignore")
def solve(
    problem: Problem,
    objective: Objective,
    loss: np.ndarray,
    w: np.ndarray,
    starts: np.ndarray | int,
) -> Solution:
    """Fit losses (R or 1, n), over the problem's scale, with weights w (R or 1, n).

    starts: how many to make, or (R or 1, S, p) of them.
    """
    R = max(len(loss), len(w))
    if isinstance(starts, int):
        starts = problem.starts(loss, w, starts)
    theta = np.broadcast_to(starts, (R, *starts.shape[1:])).reshape(-1, starts.shape[2])
    S = starts.shape[1]
    y = loss if objective.raw else np.log(loss)
    stages = objective.stages(lambda: _mean_residual(problem, y, theta))
    for stage, following in zip(stages, [*stages[1:], None], strict=True):
        theta, f, converged = _batched(problem, stage, following, y, w, theta, S)
    f = f.reshape(R, S)
    best = f.argmin(1)
    lowest = f[np.arange(R), best]
    equal = f <= (lowest * (1 + AGREEMENT) + y.shape[1] * ROUNDING)[:, None]
    equal &= converged.reshape(f.shape)
    pick = np.arange(R) * S + best
    return Solution(theta[pick], lowest, converged[pick], equal.sum(1), S)


def resolve(
    problem: Problem, objective: Objective, loss: np.ndarray, w: np.ndarray, best: np.ndarray
) -> Solution:
    """Solve R resamples of the data whose optimum is `best` (p,), each from there.

    Some are solved from many starts as well; if that finds a lower objective in any, all are
    solved from the best few of many.
    """
    found = solve(problem, objective, loss, w, best[None, None])
    R, rounding = len(found.theta), ROUNDING * w.sum(1).max()
    checked = min(CHECKED, max(2, CHECKED_POINTS // w.shape[1]))
    some = np.unique(np.linspace(0, R - 1, checked).astype(int))
    again = np.union1d(some, np.flatnonzero(~found.converged))
    for rows, few in ((again, STARTS_CHECKED), (np.arange(R), STARTS_KEPT)):
        data = [a if len(a) == 1 else a[rows] for a in (loss, w)]
        starts = problem.starts(*data, STARTS_CHECKED)
        wider = solve(problem, objective, *data, lowest(problem, objective, *data, starts, few))
        lower = wider.objective < found.objective[rows] * (1 - AGREEMENT) - rounding
        lower |= wider.converged & ~found.converged[rows]
        for mine, theirs in (
            (found.theta, wider.theta),
            (found.objective, wider.objective),
            (found.converged, wider.converged),
        ):
            mine[rows[lower]] = theirs[lower]
        if not lower[np.isin(rows, some)].any():
            break
    return found


@np.errstate(over="ignore", divide="ignore", invalid="ignore", under="ignore")
def lowest(problem, objective, loss, w, starts, few):
    """The `few` of starts (R or 1, S, p) where the objective is lowest, (R or 1, few, p)."""
    y = loss if objective.raw else np.log(loss)
    f = np.stack(
        [objective.value(objective.residual(y, problem.at(s).m), w) for s in starts.swapaxes(0, 1)],
        axis=1,
    )
    order = np.argsort(f, axis=1)[:, :few, None]
    return np.take_along_axis(np.broadcast_to(starts, (len(f), *starts.shape[1:])), order, axis=1)


def condition(problem: Problem, theta: np.ndarray, w: np.ndarray) -> tuple[float, np.ndarray]:
    """How flat least squares of ln L is at theta (p,), whatever the objective.

    The condition number of the Gauss-Newton matrix scaled to a unit diagonal, and the direction
    (p,) in which it bends least.
    """
    state = problem.at(theta[None])
    zero = np.zeros(state.m.shape)
    matrix = problem.sums(state, zero, w / state.m**2)[1][..., 0]
    size = np.sqrt(np.maximum(matrix.diagonal(), 1e-300))
    values, vectors = np.linalg.eigh(matrix / size / size[:, None])
    return float(values[-1] / max(values[0], 1e-300)), vectors[:, 0]


def _batched(problem, objective, following, y, w, theta, S):
    """Refine every row of theta; row i is a start of data set i // S."""
    found = []
    for rows in _batches(len(theta), y.shape[1]):
        data = [a if len(a) == 1 else a[rows // S] for a in (y, w)]
        end, *rest = refine(problem, objective, *data, theta[rows])
        if following is not None:
            end = _followed(problem, objective, following.delta, *data, end)
        found.append((end, *rest))
    return tuple(np.concatenate(part) for part in zip(*found, strict=True))


def _batches(rows: int, n: int) -> Iterator[np.ndarray]:
    size = max(1, BATCH // n)
    for first in range(0, rows, size):
        yield np.arange(first, min(first + size, rows))


def refine(problem: Problem, objective: Objective, y, w, theta):
    """Projected Newton (Bertsekas 1982), damped by reweighted least squares; (theta, f, done)."""
    theta = np.clip(theta, problem.lower, problem.upper)
    state = problem.at(theta)
    r = objective.residual(y, state.m)
    rows = _Rows(
        theta,
        state,
        r,
        objective.value(r, w),
        np.full(len(theta), START_DAMPING),
        y,
        w,
        np.arange(len(theta)),
    )
    found, lowest = theta.copy(), rows.f.copy()
    converged = np.zeros(len(theta), bool)
    for _ in range(MAX_ITER):
        done, stuck = _iterate(problem, objective, rows)
        found[rows.index], lowest[rows.index] = rows.theta, rows.f
        converged[rows.index[done]] = True
        left = ~(done | stuck)
        if not left.any():
            break
        if left.mean() < 0.9:
            rows = rows.take(left)
        # rows that are done and stay only move further down
    return found, lowest, converged


def _followed(problem, objective, delta, y, w, theta):
    """Where the optimum theta (B, p) goes as delta falls while the same points stay within it.

    The gradient vanishes along the path, and of it only the part of the points outside depends on
    delta, in proportion.
    """
    state = problem.at(theta)
    r = objective.residual(y, state.m)
    c, q = objective.derivatives(r, state.m, w, np.zeros(len(theta)))
    hessian = problem.sums(state, c, q)[1]
    outside = problem.sums(state, np.where(np.abs(r) > objective.delta, c, 0.0), q)[0]
    step, positive = solve_positive(hessian, outside)
    step = np.where(positive & np.isfinite(step).all(0), step, 0.0).T
    return problem.clipped(theta, theta + (1 - delta / objective.delta) * step)


def _iterate(problem: Problem, objective: Objective, rows: _Rows) -> tuple[np.ndarray, np.ndarray]:
    """One step of every row, in place; which have converged, and which cannot move."""
    step, decrement, positive = _newton_step(problem, objective, rows)
    room = TOLERANCE * rows.f + rows.r.shape[1] * ROUNDING
    done = positive & (decrement <= room) & (rows.damping <= SMALL_DAMPING)
    theta, state, r, f = _trial(problem, objective, rows, step, decrement)
    better = (f < rows.f) | (positive & (f <= rows.f + room))
    gain = np.where(better, rows.f - f, -1.0)
    worse = np.flatnonzero(~better)
    if len(worse):
        theta[worse], r[worse], f[worse] = rows.theta[worse], rows.r[worse], rows.f[worse]
        state.put(worse, rows.state.take(worse))
    rows.theta, rows.state, rows.r, rows.f = theta, state, r, f
    raised = np.maximum(10 * rows.damping, np.where(positive, FIRST_DAMPING, CONVEX_DAMPING))
    lowered = np.where(gain < 0.5 * decrement, rows.damping, rows.damping / 10)
    lowered[lowered < FIRST_DAMPING] = 0.0
    rows.damping = np.where(better & positive, lowered, raised)
    return done, rows.damping > MOST_DAMPING


def _newton_step(problem, objective, rows):
    """The damped step (B, p), its predicted decrease (B,), and whether the model is convex."""
    c, q = objective.derivatives(rows.r, rows.state.m, rows.w, rows.damping)
    gradient, A = problem.sums(rows.state, c, q)
    held = problem.held(rows.theta, gradient)
    if held.any():
        A = np.where(held[:, None] | held[None], np.eye(len(A))[..., None], A)
        gradient = np.where(held, 0.0, gradient)
    step, positive = solve_positive(A, -gradient)
    return step.T, -(gradient * step).sum(0) / 2, positive


def _trial(problem, objective, rows, step, decrement):
    """Where the step leads, or its projection if that gains more than a poor or short step."""
    theta = problem.clipped(rows.theta, rows.theta + step)
    state = problem.at(theta)
    r = objective.residual(rows.loss, state.m)
    f = objective.value(r, rows.w)
    poor = ~(rows.f - f > 0.5 * decrement) | (rows.damping > HEAVY_DAMPING)
    poor = np.flatnonzero(poor & ~(decrement <= TOLERANCE * rows.f))
    if len(poor) and problem.linear:
        loss, w = (a if len(a) == 1 else a[poor] for a in (rows.loss, rows.w))
        weight = objective.reweighted(rows.r[poor], rows.state.m[poor], w)
        other = problem.projected(theta[poor], weight, loss if objective.raw else np.exp(loss))
        other = problem.clipped(other, other)
        there = problem.at(other)
        r_other = objective.residual(loss, there.m)
        f_other = objective.value(r_other, w)
        won = ~(f[poor] <= f_other)
        keep = poor[won]
        theta[keep], r[keep], f[keep] = other[won], r_other[won], f_other[won]
        state.put(keep, there.take(won))
    return theta, state, r, f


def _mean_residual(problem: Problem, y: np.ndarray, theta: np.ndarray) -> float:
    """Mean |r| of the first data set's best start."""
    r = np.abs(y[:1] - np.log(problem.at(theta[: min(len(theta), 64)]).m))
    return float(np.nanmin(r.mean(1)))
