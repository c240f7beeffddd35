"""Certain minimisation of any objective of any law, for many data sets at once, in plain numpy.

The one idea: starts come from a grid (`Problem.starts`), and each is refined by a projected, damped
Newton iteration with exact derivatives until the Newton decrement vanishes beside the objective:
no scale of the loss can stop it early (the failure of L-BFGS in Hoffmann et al. 2022, found by
Besiroglu et al. 2024), and a start that has not converged is never called a fit. Data sets differ
by their weights (resamples of points) or by their losses; neither is copied. Rows are worked on in
batches that stay in cache, and those that are done leave.

Shapes: R data sets, S starts of each, B rows at work, n points, p coordinates theta.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from nanoscale.data.gauge import each, part
from nanoscale.laws.arrays import Array, Chosen, Index, Mask, batches, put
from nanoscale.laws.linear import root, solve_positive
from nanoscale.laws.objectives import Objective
from nanoscale.laws.problem import Problem, State, Sums
from nanoscale.processes import allowed_cpus

MAX_ITER = 200
TOLERANCE = 1e-12  # of the Newton decrement, relative to the objective
AGREEMENT = 1e-9  # of objectives that count as equal, relative
_ROUNDING = 1e-30  # what rounding alone leaves of one squared residual of ln L
START_DAMPING = 0.03  # shares of reweighted least squares in the Hessian
FIRST_DAMPING, CONVEX_DAMPING = 1e-3, 0.3  # after a poor step; where the Hessian bends down
HEAVY_DAMPING, MOST_DAMPING = 5.0, 1e15  # from which steps are projected as well; given up
SMALL_DAMPING = 1.0  # up to which the decrement of a damped step counts
LEAVING = 0.1  # share of a batch that is done before it is made smaller
_CHECKED, STARTS_CHECKED, _STARTS_KEPT = 64, 9, 3  # resamples solved from many starts as well
CHECKED_POINTS = 4_000  # of these resamples together, but at least two of them
SAMPLED = 64  # starts, of which the best says how large residuals are


@dataclass(frozen=True)
class Task:
    """What R data sets minimise: `rule` of losses (R or 1, n) over the problem's scale, with
    weights w (R or 1, n)."""

    problem: Problem
    rule: Objective
    loss: Array
    w: Array

    @cached_property
    def y(self) -> Array:
        """Losses as the objective reads them."""
        return self.rule.read(self.loss)

    @property
    def rounding(self) -> float:
        """What rounding alone leaves of an objective whose weights are 1."""
        return _ROUNDING * len(self.loss[0])

    def __len__(self) -> int:
        return max(len(self.loss), len(self.w))

    def on(self, loss: Array, w: Array) -> Task:
        """The same of other data."""
        return Task(self.problem, self.rule, loss, w)

    def take(self, rows: Chosen) -> Task:
        """That of some data sets; losses or weights that all share stay as they are."""
        loss = self.loss if len(self.loss) == 1 else self.loss[rows]
        w = self.w if len(self.w) == 1 else self.w[rows]
        return self.on(loss, w)

    def at(self, theta: Array) -> _Place:
        """Where rows theta (R, p) are."""
        state = self.problem.at(theta)
        r = self.rule.residual(self.y, state.m)
        return _Place(state, r, self.rule.value(r, self.w))

    def sums(self, place: _Place) -> Sums:
        """The objective's derivatives there, and the curvature of its reweighted least squares."""
        c, q = self.rule.derivatives(place.r, place.state.m, self.w)
        k = self.rule.reweighted(place.r, place.state.m, self.w)
        return self.problem.sums(place.state, c, q, k)


@dataclass(frozen=True)
class Solution:
    """The best of the starts for each of R data sets."""

    theta: Array  # (R, p)
    objective: Array  # (R,) of losses over the problem's scale
    converged: Mask  # (R,)
    agreeing: Index  # (R,) number of starts that ended at the best objective
    starts: int


@np.errstate(all="ignore")
def solve(task: Task, starts: Array | int) -> Solution:
    """Fit every data set; starts: how many to make, or (R or 1, S, p) of them."""
    if isinstance(starts, int):
        starts = task.problem.starts(task.loss, task.w, starts)
    R = len(task)
    S, p = starts.shape[1:]
    every = np.broadcast_to(starts, (R, S, p))
    theta = every.reshape(-1, p)

    stages = task.rule.stages(lambda: _mean_residual(task, theta))
    ways = list(zip(stages, [*stages[1:], None], strict=True))
    for stage, following in each(ways, "stages"):
        staged = replace(task, rule=stage)
        theta, f, converged = _batched(staged, following, theta, S)

    ends = f.reshape(R, S)
    best = ends.argmin(1)
    lowest = ends.min(1)
    highest_equal = lowest * (1 + AGREEMENT) + task.rounding
    equal = ends <= highest_equal[:, None]
    equal &= converged.reshape(R, S)
    pick = np.arange(R) * S + best
    chosen = task.problem.in_order(theta[pick])
    return Solution(chosen, lowest, converged[pick], equal.sum(1), S)


def resolve(task: Task, best: Array) -> Solution:
    """Solve R resamples of the data whose optimum is `best` (p,), each from there.

    Some are solved from many starts as well; if that finds a lower objective in any, all are
    solved from the best few of many.
    """
    start = best[None, None]
    every = np.arange(len(task))
    checked = max(2, CHECKED_POINTS // task.w.shape[1])
    spread = np.linspace(0, every[-1], min(_CHECKED, checked))
    some = np.unique(spread.astype(int))
    with part(2 + _STARTS_KEPT, "rounds") as at:
        solution = solve(task, start)
        again = np.union1d(some, every[~solution.converged])
        at(1)
        better = improve(task, solution, again, STARTS_CHECKED)
        if better[np.isin(again, some)].any():
            at(2, _STARTS_KEPT)
            improve(task, solution, every, _STARTS_KEPT)
    return solution


def improve(task: Task, solution: Solution, rows: Index, few: int) -> Mask:
    """Solve some data sets (k,) again, from the `few` best of many starts, where that is better.

    Returns which are (k,): lower in the objective, or converged at last. `solution` has them.
    """
    some = task.take(rows)
    starts = some.problem.starts(some.loss, some.w, STARTS_CHECKED)
    wider = solve(some, lowest(some, starts, few))

    rounding = _ROUNDING * task.w.sum(1).max()
    least = solution.objective[rows] * (1 - AGREEMENT) - rounding
    better: Mask = wider.objective < least
    better |= wider.converged & ~solution.converged[rows]
    put(
        rows[better],
        [solution.theta, solution.objective, solution.converged],
        [wider.theta[better], wider.objective[better], wider.converged[better]],
    )
    return better


@np.errstate(all="ignore")
def lowest(task: Task, starts: Array, few: int) -> Array:
    """The `few` of starts (R or 1, S, p) where the objective is lowest, (R, few, p)."""
    shape = len(task), *starts.shape[1:]
    starts = np.broadcast_to(starts, shape)
    f = []
    for theta in starts.swapaxes(0, 1):
        f.append(task.at(theta).f)
    order = np.argsort(f, axis=0)[:few].T
    return np.take_along_axis(starts, order[..., None], axis=1)


def condition(task: Task, theta: Array) -> tuple[float, Array]:
    """How flat least squares of ln L is at theta (p,), whatever the objective.

    The condition number of the Gauss-Newton matrix scaled to a unit diagonal, and the direction
    (p,) in which it bends least.
    """
    problem = task.problem
    state = problem.at(theta[None])
    q = task.w / state.m**2
    nothing = np.zeros_like(q)
    matrix = problem.sums(state, nothing, nothing, q).metric[..., 0]
    size = root(matrix.diagonal())
    scaled = matrix / size / size[:, None]
    if not np.isfinite(scaled).all():
        return math.inf, np.ones(len(scaled))
    values, vectors = np.linalg.eigh(scaled)
    least, most = values[[0, -1]]
    ratio = most / max(least, 1e-300)
    return float(ratio), vectors[:, 0]


# -- rows at work ---------------------------------------------------------------------------------
@dataclass
class _Place:
    """Where B rows are: the law there, residuals r (B, n), the objective f (B,)."""

    state: State
    r: Array
    f: Array

    def take(self, rows: Chosen) -> _Place:
        return _Place(self.state.take(rows), self.r[rows], self.f[rows])

    def put(self, rows: Index, other: _Place) -> None:
        self.state.put(rows, other.state)
        put(rows, [self.r, self.f], [other.r, other.f])


def _batched(
    task: Task, following: Objective | None, theta: Array, S: int
) -> tuple[Array, Array, Mask]:
    """`refine` every row of theta, in batches; row i is a start of data set i // S.

    following: the objective's next stage, towards which theta then goes. A batch is as large
    however many threads there are, so that results do not depend on them.
    """
    ends = np.empty_like(theta)
    f = np.empty(len(theta))
    converged = np.empty(len(theta), bool)
    data_set = np.arange(len(theta)) // S
    at_once = task.problem.batch // task.loss.shape[1]

    @np.errstate(all="ignore")
    def work(rows: slice) -> None:
        some = task.take(data_set[rows])
        ends[rows], f[rows], converged[rows] = refine(some, theta[rows])
        if following is not None:
            ends[rows] = _followed(some, following.delta, ends[rows])

    every = list(batches(len(theta), at_once))
    with part(len(theta), "fits") as at:
        if len(every) == 1:
            at(0, len(theta))
            work(every[0])
            return ends, f, converged
        threads = ThreadPoolExecutor(len(allowed_cpus()))  # numpy lets go of the interpreter's lock
        try:
            for rows, _ in zip(every, threads.map(work, every), strict=True):
                at(rows.stop)
        finally:
            threads.shutdown(cancel_futures=True)
    return ends, f, converged


def refine(task: Task, theta: Array) -> tuple[Array, Array, Mask]:
    """Projected Newton (Bertsekas 1982), damped by reweighted least squares.

    Where each row of theta (B, p) ends, the objective there, and whether it has converged.
    """
    problem = task.problem
    place = task.at(np.clip(theta, problem.lower, problem.upper))
    sums = task.sums(place)
    damping = np.full(len(theta), START_DAMPING)
    index = np.arange(len(theta))
    ends = place.state.theta.copy()
    f = place.f.copy()
    converged = np.zeros(len(theta), bool)
    with part(len(theta), "fits") as at:
        for k in range(MAX_ITER):
            ended = len(theta) - len(index)
            at(max(ended, k * len(theta) // MAX_ITER))
            place, damping, moved, done = _iterate(task, place, sums, damping)
            ends[index] = place.state.theta
            f[index] = place.f
            converged[index[done]] = True

            left = ~done & (damping <= MOST_DAMPING)  # those that are done or stay only move down
            if not left.any():
                break
            if left.mean() < 1 - LEAVING:
                task = task.take(left)
                place = place.take(left)
                sums = sums.take(left)
                damping = damping[left]
                index = index[left]
                moved = moved[left]
            rows = np.flatnonzero(moved)
            sums.put(rows, task.take(rows).sums(place.take(rows)))
    return ends, f, converged


def _iterate(
    task: Task, place: _Place, sums: Sums, damping: Array
) -> tuple[_Place, Array, Mask, Mask]:
    """One step of every row: where it leads, the next damping (B,), which have moved, and which
    have converged."""
    step, decrement, convex = _newton_step(task, place, sums, damping)
    room = TOLERANCE * place.f + task.rounding
    done = convex & (decrement <= room)
    done &= damping <= SMALL_DAMPING

    trial = _trial(task, place, damping, step, decrement)
    better = trial.f < place.f
    better |= convex & (trial.f <= place.f + room)
    fall = place.f - trial.f
    gain = np.where(better, fall, -1.0)
    worse = np.flatnonzero(~better)
    if len(worse):
        trial.put(worse, place.take(worse))

    floor = np.where(convex, FIRST_DAMPING, CONVEX_DAMPING)
    raised = np.maximum(10 * damping, floor)
    lowered = np.where(gain < 0.5 * decrement, damping, damping / 10)
    lowered[lowered < FIRST_DAMPING] = 0.0
    damping = np.where(better & convex, lowered, raised)
    return trial, damping, better, done


def _newton_step(
    task: Task, place: _Place, sums: Sums, damping: Array
) -> tuple[Array, Array, Mask]:
    """The damped step (B, p), its predicted decrease (B,), and whether the model is convex."""
    gradient = sums.gradient
    hessian = sums.hessian + damping * sums.metric
    stopped = task.problem.stopped(place.state.theta, gradient)
    if stopped.any():
        either = stopped[:, None] | stopped
        identity = np.eye(len(hessian))[..., None]
        hessian = np.where(either, identity, hessian)
        gradient = np.where(stopped, 0.0, gradient)
    step, convex = solve_positive(hessian, -gradient)
    rise = (gradient * step).sum(0)
    return step.T, -rise / 2, convex


def _trial(task: Task, place: _Place, damping: Array, step: Array, decrement: Array) -> _Place:
    """Where the step leads, or its projection if that gains more than a poor or short step."""
    problem = task.problem
    theta = place.state.theta
    trial = task.at(problem.clipped(theta, theta + step))
    poor = ~(place.f - trial.f > 0.5 * decrement)
    poor |= damping > HEAVY_DAMPING
    far = ~(decrement <= TOLERANCE * place.f)
    rows = np.flatnonzero(poor & far)
    if not (len(rows) and problem.solved):
        return trial

    some = task.take(rows)
    weight = task.rule.reweighted(place.r[rows], place.state.m[rows], some.w)
    theta = problem.projected(trial.state.theta[rows], weight, task.rule.loss(some.y))
    projected = some.at(problem.clipped(theta, theta))
    won = ~(trial.f[rows] <= projected.f)
    trial.put(rows[won], projected.take(won))
    return trial


def _followed(task: Task, delta: float, theta: Array) -> Array:
    """Where the optimum theta (B, p) goes as delta falls while the same points stay within it.

    The gradient vanishes along the path, and of it only the part of the points outside depends on
    delta, in proportion.
    """
    problem = task.problem
    place = task.at(theta)
    now = task.rule.delta
    c, q = task.rule.derivatives(place.r, place.state.m, task.w)
    far = np.abs(place.r) > now
    beyond = np.where(far, c, 0.0)
    nothing = np.zeros_like(c)
    hessian = problem.sums(place.state, c, q, nothing).hessian
    outside = problem.sums(place.state, beyond, q, nothing).gradient

    step, convex = solve_positive(hessian, outside)
    known = convex & np.isfinite(step).all(0)
    step = np.where(known, step, 0.0)
    share = 1 - delta / now
    return problem.clipped(theta, theta + share * step.T)


def _mean_residual(task: Task, theta: Array) -> float:
    """Mean |r| of the first data set's best start."""
    m = task.problem.at(theta[:SAMPLED]).m
    r = np.abs(task.y[:1] - np.log(m))
    return float(np.nanmin(r.mean(1)))
