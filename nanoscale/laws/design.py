"""Before training: how wide the planned runs' intervals will be, and whether to believe them.

The one idea: a plan is judged by what will be done with it. Worlds are drawn from a law held to be
true; each is fitted and resampled as `fit_law` would, all worlds and resamples by one solver at
once, and its intervals are held against the truth. What follows, before a FLOP is spent: the width
to expect, the share of intervals that hold the truth, how often the answer will be "not
identified". Which run more would narrow the answer most is said by `information`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from nanoscale.data.gauge import each
from nanoscale.errors import UserError
from nanoscale.laws import bootstrap, solver
from nanoscale.laws.arrays import Array, Index, Mask, batches
from nanoscale.laws.calibration import asymptotic_variance
from nanoscale.laws.fit import POINTS_PER_PARAMETER
from nanoscale.laws.forms import Law
from nanoscale.laws.ladder import HUBER
from nanoscale.laws.objectives import Objective
from nanoscale.laws.points import LEVELS_WANTED, check_points, levels, rise_together
from nanoscale.laws.problem import Problem, problem_of
from nanoscale.laws.questions import LawQuestion
from nanoscale.laws.result import bounds_hit

# E, A, B, alpha, beta: Hoffmann et al. 2022's points refitted (Besiroglu et al. 2024), certified
CHINCHILLA_TRUTH = (1.8172181, 477.82588, 2143.41732, 0.3473105, 0.36717243)
WANTED_POWER = 0.8  # share of worlds in which a question worth training for is identified
CELLS = 4_000_000  # points of all resamples worked on together
_STARTS, _STARTS_KEPT = 9, 3  # of a world, beside the truth
_CHECKED = 4  # resamples of a world that are solved from as many starts as well
Z95 = 1.959963985  # of a normal
WORTH = 0.05  # of a width, that another delta saves and that is worth a word


@dataclass(frozen=True)
class Design:
    """Planned runs, what is held to be true of them, and how they will be fitted.

    noise: sd of ln L of a run, or residuals of ln L (m,) to draw from. groups: the run that each
    point is of; points of one run share its noise. Resampling: `bootstrap.METHODS`.
    """

    form: Law
    x: Array  # (P, n), replicates (seeds) as points of their own
    truths: Array  # (T, p); world i is of truth i mod T
    noise: float | Array = 0.005
    groups: Index | None = None  # (n,)
    objective: str = "log-huber"
    delta: float = 1e-3
    resampling: str = "pairs"
    resamples: int = 300

    def __post_init__(self) -> None:
        truths = np.atleast_2d(np.asarray(self.truths, float))
        object.__setattr__(self, "truths", truths)
        if not (np.isfinite(truths) & (truths > 0)).all():
            bad = self.form.names[int((~(truths > 0)).any(0).argmax())]
            raise UserError(
                f"a true law needs positive numbers, and its {bad} is not: give one "
                "whose parameters are all identified"
            )
        if np.ndim(self.noise) == 0:
            object.__setattr__(self, "noise", float(self.noise))
        if isinstance(self.noise, float) and not 0 < self.noise < 1:
            raise UserError(
                f"noise {self.noise:g}: expected the sd of ln L of a run, above 0 and "
                "below 1, as in 0.005"
            )
        check_points(self.form, self.form.predictors, self.x)
        bootstrap.check_resamples(self.resamples)
        Objective.of(self.objective, self.delta)

    @property
    def rule(self) -> Objective:
        """What is minimised."""
        return Objective.of(self.objective, self.delta)

    def truths_of(self, worlds: int) -> Array:
        """(W, p): what each world is drawn from."""
        return self.truths[np.arange(worlds) % len(self.truths)]

    @property
    def runs(self) -> Index:
        """(n,): the run that each point is of, from 0."""
        return bootstrap.numbered(self.groups, self.x.shape[1])

    @property
    def cells(self) -> Index:
        """(n,): replicates share a label."""
        return np.unique(self.x, axis=1, return_inverse=True)[1].ravel()

    @property
    def tied_delta(self) -> float | None:
        """The delta that the noise asks for, where intervals lose by the one that is set."""
        if not isinstance(self.noise, float) or self.objective != "log-huber":
            return None
        tied = replace(self, delta=float(f"{HUBER * self.noise:.3g}"))
        saves = self.variance() > (1 + WORTH) ** 2 * tied.variance()
        return tied.delta if saves else None

    def variance(self) -> float:
        """Of one point's noise, as the objective sees it."""
        return asymptotic_variance(self.rule, self.noise)

    def warnings(self) -> list[str]:
        """What is suspicious about the plan itself, before any world is drawn."""
        n = self.x.shape[1]
        p = len(self.form.names)
        warnings = []
        for name, values in zip(self.form.predictors, self.x, strict=True):
            count = levels(values)
            if count < LEVELS_WANTED:
                warnings.append(
                    f"{name} has only {count} values: intervals of its exponent "
                    f"are too narrow below {LEVELS_WANTED}; plan one more"
                )
        if rise_together(np.log(self.x)):
            warnings.append(
                f"{' and '.join(self.form.predictors)} rise together, so nothing tells "
                "their terms apart: plan several of one at the same other"
            )
        if self.resampling == "pairs" and n < POINTS_PER_PARAMETER * p:
            warnings.append(
                f"pairs resamples of {n} points hardly pin {p} parameters down: plan "
                "seeds, and resample the noise they measure (parametric)"
            )
        runs = self.runs.max() + 1
        if runs < n and self.resampling != "cluster":
            warnings.append(
                f"{n} points come from {runs} runs, and points of one run are not "
                "independent: resample runs (cluster)"
            )
        return warnings

    def with_points(self, x: Array) -> Design:
        """The same, and points x (P, k) more, each a run of its own."""
        groups = None
        if self.groups is not None:
            added = self.runs.max() + 1 + np.arange(x.shape[1])
            groups = np.append(self.runs, added)
        return replace(self, x=np.hstack([self.x, x]), groups=groups)


@dataclass(frozen=True)
class DesignAnswer:
    """What a design will say of one question, over worlds."""

    question: str
    truth: float  # mean over truths
    width: float  # median of the 95 % interval: a difference of its ends, or their ratio
    width_sd: float  # over worlds, of its logarithm
    ratio: bool
    ends: list[float]  # typical: the median of either end
    coverage: float
    coverage_ci95: list[float]  # Wilson's, of so many worlds
    verdict: str  # nominal, conservative or too narrow, as the truth's share says
    not_identified: float  # share of worlds
    bias: float  # of the point fit; in ln for a ratio
    rmse: float
    worlds: int

    @property
    def identified(self) -> bool:
        """Whether it will be, in at least `WANTED_POWER` of worlds."""
        return 1 - self.not_identified >= WANTED_POWER


@np.errstate(all="ignore")
def simulate(
    design: Design, questions: Sequence[LawQuestion], *, worlds: int = 200, rng_seed: int = 0
) -> list[DesignAnswer]:
    """An answer per question, from `worlds` worlds. Worlds with more points of the same design
    share the noise of the others, so that two designs differ by their points alone."""
    truth = design.truths_of(worlds)
    expected = design.form.loss(design.truths[0], *design.x)
    problem = problem_of(design.form, design.x, expected)
    loss = draw_worlds(design, worlds, rng_seed) / problem.scale
    best = _world_fits(design, problem, loss, truth)
    ends = _intervals(design, problem, best.theta, loss, questions, rng_seed)

    estimates = problem.params(best.theta)
    edges = []
    for theta in best.theta:
        edges.append({*bounds_hit(problem, theta, design.form.predictors)})
    answers = []
    for question, pair in zip(questions, np.moveaxis(ends, -1, 0), strict=True):
        inside = [edge.isdisjoint(question.needs) for edge in edges]
        sound = best.converged & inside
        answer = _answer(question, question.of(truth), question.of(estimates), pair, sound)
        answers.append(answer)
    return answers


def draw_worlds(design: Design, worlds: int, rng_seed: int = 0) -> Array:
    """(W, n): the losses of the planned runs in every world."""
    rng = np.random.default_rng([rng_seed, 0])
    run = design.runs
    shape = (run.max() + 1, worlds)
    if isinstance(design.noise, float):
        noise = design.noise * rng.standard_normal(shape)
    else:
        noise = rng.choice(design.noise, shape)
    losses = design.form.loss(design.truths_of(worlds), *design.x)
    return losses * np.exp(noise[run].T)


def seed_of(world: int, rng_seed: int = 0) -> int:
    """Of the world's resamples, as `fit_law` takes it."""
    return int(np.random.SeedSequence([rng_seed, int(world)]).generate_state(1)[0])


def _world_fits(design: Design, problem: Problem, loss: Array, truth: Array) -> solver.Solution:
    """Of every world's losses (W, n), from its truth (p,) and from a grid."""
    ones = np.ones((1, loss.shape[1]))
    own = problem.theta(truth)
    grid = problem.starts(loss, ones, _STARTS)
    shape = (len(own), *grid.shape[1:])
    grid = np.broadcast_to(grid, shape)
    starts = np.hstack([own[:, None], grid])
    return solver.solve(solver.Task(problem, design.rule, loss, ones), starts)


def _intervals(
    design: Design,
    problem: Problem,
    theta: Array,
    loss: Array,
    questions: Sequence[LawQuestion],
    rng_seed: int,
) -> Array:
    """(2, W, q): the 95 % of every world's resamples, as many worlds at once as there is room."""
    worlds, n = loss.shape
    ends = np.empty((2, worlds, len(questions)))
    at_once = CELLS // (design.resamples * n)
    for some in each(list(batches(worlds, at_once)), "parts of the worlds"):
        seeds = [seed_of(world, rng_seed) for world in range(some.start, some.stop)]
        draws = _resample_fits(design, problem, theta[some], loss[some], seeds)
        for world, params in enumerate(draws, some.start):
            values = np.stack([question.of(params) for question in questions], -1)  # (R, q)
            ends[:, world] = _interval(values)
    return ends


def _resample_fits(
    design: Design, problem: Problem, theta: Array, loss: Array, seeds: Sequence[int]
) -> Array:
    """Parameters (B, R, p) of every resample of worlds at theta (B, p); NaN where none is found."""
    B = len(theta)
    R = design.resamples
    losses, weights = _resampled(design, problem, theta, loss, seeds)
    task = solver.Task(problem, design.rule, losses, weights)
    starts = np.repeat(theta, R, axis=0)
    solution = solver.solve(task, starts[:, None])

    first = np.arange(B)[:, None] * R  # resample of every world
    checked = np.linspace(0, R - 1, _CHECKED).astype(int)
    lost = np.flatnonzero(~solution.converged)
    rows = np.union1d(first + checked, lost)
    was_converged = solution.converged[rows]
    better = solver.improve(task, solution, rows, _STARTS)
    moved = rows[better & was_converged]
    if len(moved):  # as `solver.resolve`, of these worlds
        worlds = np.unique(moved // R)
        rows = (first[worlds] + np.arange(R)).ravel()
        solver.improve(task, solution, rows, _STARTS_KEPT)

    params = problem.params(solution.theta)
    params[~solution.converged] = np.nan
    return params.reshape(B, R, -1)


def _resampled(
    design: Design, problem: Problem, theta: Array, loss: Array, seeds: Sequence[int]
) -> tuple[Array, Array]:
    """(losses (BR, n), weights (BR or 1, n)) of all resamples of B worlds, as `fit_law`'s."""
    if design.resampling not in bootstrap.OF_POINTS:
        return _redrawn(design, problem, theta, loss, seeds), np.ones((1, loss.shape[1]))
    R = design.resamples
    cells = design.cells if design.groups is None else design.groups
    weights = []
    for seed in seeds:
        drawn = bootstrap.point_weights(design.resampling, loss.shape[1], cells, R, seed)
        weights.append(drawn)
    return np.repeat(loss, R, axis=0), np.concatenate(weights)


def _redrawn(
    design: Design, problem: Problem, theta: Array, loss: Array, seeds: Sequence[int]
) -> Array:
    """(BR, n): losses about the fits of B worlds, from their residuals."""
    method = design.resampling
    groups = design.groups
    if method == "parametric" and groups is None:
        groups = design.cells
    fitted = np.log(problem.at(theta).m)
    p = theta.shape[1]
    drawn = []
    for middle, y, seed in zip(fitted, np.log(loss), seeds, strict=True):
        new = bootstrap.residual_draws(method, middle, y, p, groups, design.resamples, seed)
        drawn.append(new)
    return np.exp(np.concatenate(drawn))


def _interval(values: Array) -> Array:
    """(2, q) of values (R, q), without the rows that have none; NaN where none has."""
    known = values[~np.isnan(values).any(1)]
    if not len(known):
        return np.full((2, values.shape[1]), np.nan)
    return bootstrap.interval(known)


def _answer(
    question: LawQuestion, truth: Array, estimates: Array, ends: Array, sound: Mask
) -> DesignAnswer:
    """Of one question: truth, estimates and `sound` (fitted, off its bounds) (W,), ends (2, W)."""
    low, high = ends
    covered = (low <= truth) & (truth <= high)
    coverage_ci95 = wilson(int(covered.sum()), len(covered))
    finite = np.isfinite(ends).all(0)
    typical = ends[:, finite] if finite.any() else np.full((2, 1), np.nan)
    width = question.width(typical)
    spread = np.log(width).std()
    identified = sound & (high <= question.limit * low)
    error = np.log(estimates / truth) if question.ratio else estimates - truth
    return DesignAnswer(
        question=question.text,
        truth=float(truth.mean()),
        width=float(np.median(width)),
        width_sd=float(spread),
        ratio=question.ratio,
        ends=np.median(typical, axis=1).tolist(),
        coverage=float(covered.mean()),
        coverage_ci95=coverage_ci95,
        verdict=_verdict(*coverage_ci95),
        not_identified=float(1 - identified.mean()),
        bias=float(error.mean()),
        rmse=float(np.sqrt((error**2).mean())),
        worlds=len(covered),
    )


def _verdict(low: float, high: float) -> str:
    """What the share of intervals that hold the truth, within these ends, says of them."""
    level = bootstrap.LEVEL[1] - bootstrap.LEVEL[0]
    if low > level:
        return "conservative"
    return "too narrow" if high < level else "nominal"


def wilson(k: int, n: int) -> list[float]:
    """The 95 % interval of a share k / n (Wilson 1927)."""
    z2 = Z95**2
    total = n + z2
    middle = k + z2 / 2
    variance = k * (n - k) / n + z2 / 4
    half = Z95 * math.sqrt(variance)
    low = (middle - half) / total
    high = (middle + half) / total
    return [max(0.0, low), min(1.0, high)]
