"""Before training: how wide the planned runs' intervals will be, and whether to believe them.

The one idea: a plan is judged by what will be done with it. Worlds are drawn from a law held to be
true; each is fitted and resampled as `fit_law` would, all worlds and resamples by one solver at
once, and its intervals are held against the truth. What follows, before a FLOP is spent: the width
to expect, the share of intervals that hold the truth, how often the answer will be "not
identified", and which run more would narrow the answer most (expected information: Gauss-Newton at
the truth and the delta method; a simulation confirms it).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from nanoscale.errors import UserError
from nanoscale.laws import bootstrap, solver
from nanoscale.laws.fit import POINTS_PER_PARAMETER
from nanoscale.laws.forms import Law
from nanoscale.laws.ladder import HUBER
from nanoscale.laws.objectives import Objective
from nanoscale.laws.points import LEVELS_WANTED, check_points, levels, rise_together
from nanoscale.laws.problem import Problem, problem_of
from nanoscale.laws.questions import Question, flops
from nanoscale.laws.result import bounds_hit

# E, A, B, alpha, beta: Hoffmann et al. 2022's points refitted (Besiroglu et al. 2024), certified
CHINCHILLA_TRUTH = (1.8172181, 477.82588, 2143.41732, 0.3473105, 0.36717243)
POWER = 0.8  # share of worlds in which a question worth training for is identified
Z95 = 1.959963985  # of a normal
CELLS = 4_000_000  # points of all resamples worked on together
STARTS, STARTS_KEPT = 9, 3  # of a world, beside the truth
CHECKED = 4  # resamples of a world that are solved from as many starts as well
STEP = 1e-5  # of ln parameters, in derivatives
WORTH = 0.05  # of a width, that another delta saves and that is worth a word


@dataclass(frozen=True)
class Design:
    """Planned runs, what is held to be true of them, and how they will be fitted.

    noise: sd of ln L of a run, or residuals of ln L (m,) to draw from. groups: the run that each
    point is of; points of one run share its noise. Resampling: `bootstrap.METHODS`.
    """

    form: Law
    x: np.ndarray  # (P, n), replicates (seeds) as points of their own
    truths: np.ndarray  # (T, p); world i is of truth i mod T
    noise: float | np.ndarray = 0.005
    groups: np.ndarray | None = None  # (n,)
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
        if np.ndim(self.noise) == 0 and not 0 < self.noise < 1:
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

    @property
    def cells(self) -> np.ndarray:
        """(n,): replicates share a label."""
        return np.unique(self.x, axis=1, return_inverse=True)[1].ravel()

    @property
    def tied_delta(self) -> float | None:
        """The delta that the noise asks for, where intervals lose by the one that is set."""
        if np.ndim(self.noise) or self.objective != "log-huber":
            return None
        tied = replace(self, delta=float(f"{HUBER * self.noise:.3g}"))
        return tied.delta if _spent(self) > (1 + WORTH) ** 2 * _spent(tied) else None

    def warnings(self) -> list[str]:
        """What is suspicious about the plan itself, before any world is drawn."""
        found, n, p = [], self.x.shape[1], len(self.form.names)
        for name, values in zip(self.form.predictors, self.x, strict=True):
            if levels(values) < LEVELS_WANTED:
                found.append(
                    f"{name} has only {levels(values)} values: intervals of its exponent "
                    f"are too narrow below {LEVELS_WANTED}; plan one more"
                )
        if rise_together(np.log(self.x)):
            found.append(
                f"{' and '.join(self.form.predictors)} rise together, so nothing tells "
                "their terms apart: plan several of one at the same other"
            )
        if self.resampling == "pairs" and n < POINTS_PER_PARAMETER * p:
            found.append(
                f"pairs resamples of {n} points hardly pin {p} parameters down: plan "
                "seeds, and resample the noise they measure (parametric)"
            )
        runs = n if self.groups is None else len(np.unique(self.groups))
        if runs < n and self.resampling != "cluster":
            found.append(
                f"{n} points come from {runs} runs, and points of one run are not "
                "independent: resample runs (cluster)"
            )
        return found

    def with_points(self, x: np.ndarray) -> Design:
        """The same, and points x (P, k) more, each a run of its own."""
        groups = self.groups
        if groups is not None:
            own = np.unique(groups, return_inverse=True)[1]
            groups = np.concatenate([own, own.max() + 1 + np.arange(x.shape[1])])
        return replace(self, x=np.concatenate([self.x, x], axis=1), groups=groups)


@dataclass(frozen=True)
class Answer:
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
        """Whether it will be, in at least `POWER` of worlds."""
        return 1 - self.not_identified >= POWER


@np.errstate(all="ignore")
def simulate(
    design: Design, questions: Sequence[Question], *, worlds: int = 200, rng_seed: int = 0
) -> list[Answer]:
    """An answer per question, from `worlds` worlds. Worlds with more points of the same design
    share the noise of the others, so that two designs differ by their points alone."""
    truth = design.truths[np.arange(worlds) % len(design.truths)]
    problem = problem_of(design.form, design.x, design.form.loss(design.truths[0], *design.x))
    loss = draw_worlds(design, worlds, rng_seed) / problem.scale
    ones = np.ones((1, loss.shape[1]))
    starts = np.concatenate(
        [
            problem.theta(truth)[:, None],
            np.broadcast_to(
                found := problem.starts(loss, ones, STARTS), (worlds, *found.shape[1:])
            ),
        ],
        axis=1,
    )
    best = solver.solve(problem, design.rule, loss, ones, starts)
    ends = np.empty((2, worlds, len(questions)))
    step = max(1, CELLS // (design.resamples * loss.shape[1]))
    for first in range(0, worlds, step):
        some = np.arange(first, min(first + step, worlds))
        draws, there = _refitted(design, problem, best.theta[some], loss[some], some, rng_seed)
        values = np.stack([q.of(draws) for q in questions], -1)  # (some, R, q)
        values[~there] = np.nan
        ends[:, some] = np.array([_interval(one) for one in values]).swapaxes(0, 1)
    estimates = problem.params(best.theta)
    hit = [bounds_hit(problem, theta, design.form.predictors) for theta in best.theta]
    return [
        _answer(
            q,
            q.of(truth),
            q.of(estimates),
            ends[..., i],
            best.converged & np.array([not h.keys() & set(q.needs) for h in hit]),
        )
        for i, q in enumerate(questions)
    ]


def draw_worlds(design: Design, worlds: int, rng_seed: int = 0) -> np.ndarray:
    """(W, n): the losses of the planned runs in every world."""
    rng = np.random.default_rng([rng_seed, 0])
    truth, n = design.truths[np.arange(worlds) % len(design.truths)], design.x.shape[1]
    of = np.arange(n) if design.groups is None else np.unique(design.groups, return_inverse=True)[1]
    if np.ndim(design.noise):
        drawn = design.noise[rng.integers(len(design.noise), size=(of.max() + 1, len(truth)))]
    else:
        drawn = design.noise * rng.standard_normal((of.max() + 1, len(truth)))
    return design.form.loss(truth, *design.x) * np.exp(drawn[of].T)


def seed_of(world: int, rng_seed: int = 0) -> int:
    """Of the world's resamples, as `fit_law` takes it."""
    return int(np.random.SeedSequence([rng_seed, int(world)]).generate_state(1)[0])


def _refitted(
    design: Design,
    problem: Problem,
    theta: np.ndarray,
    loss: np.ndarray,
    index: np.ndarray,
    rng_seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Parameters (B, R, p) of every resample of worlds at theta (B, p), and which were found."""
    data = _resampled(design, problem, theta, loss, index, rng_seed)
    R, rule = design.resamples, design.rule
    found = solver.solve(problem, rule, *data, np.repeat(theta, R, axis=0)[:, None])

    def again(rows: np.ndarray, kept: int) -> np.ndarray:
        """Solve rows from the `kept` best of many starts; those whose optimum is elsewhere."""
        own = [a if len(a) == 1 else a[rows] for a in data]
        starts = solver.lowest(problem, rule, *own, problem.starts(*own, STARTS), kept)
        wider, was = solver.solve(problem, rule, *own, starts), found.converged[rows]
        room = solver.AGREEMENT * found.objective[rows] + solver.ROUNDING * own[1].sum(1).max()
        lower = wider.objective < found.objective[rows] - room
        better = lower | (wider.converged & ~was)
        for mine, theirs in (
            (found.theta, wider.theta),
            (found.objective, wider.objective),
            (found.converged, wider.converged),
        ):
            mine[rows[better]] = theirs[better]
        return rows[lower & was]

    some = np.arange(len(theta))[:, None] * R + np.linspace(0, R - 1, CHECKED).astype(int)
    moved = again(np.union1d(some.ravel(), np.flatnonzero(~found.converged)), STARTS)
    if len(moved):  # as `solver.resolve`, of these worlds
        again((np.unique(moved // R)[:, None] * R + np.arange(R)).ravel(), STARTS_KEPT)
    return (
        problem.params(found.theta).reshape(len(theta), R, -1),
        found.converged.reshape(len(theta), R),
    )


def _resampled(design, problem, theta, loss, index, rng_seed) -> tuple[np.ndarray, np.ndarray]:
    """(losses (BR, n), weights (BR or 1, n)) of all resamples of B worlds, as `fit_law`'s."""
    R, n, method = design.resamples, loss.shape[1], design.resampling
    labels = design.groups if design.groups is not None else design.cells
    seeds = [seed_of(i, rng_seed) for i in index]
    if method in ("pairs", "cluster", "stratified"):
        drawn = [bootstrap.point_weights(method, n, labels, R, seed) for seed in seeds]
        return np.repeat(loss, R, axis=0), np.concatenate(drawn)
    fitted, y = np.log(problem.at(theta).m), np.log(loss)
    groups = labels if method == "parametric" else design.groups
    drawn = [
        bootstrap.residual_draws(method, f, v, theta.shape[1], groups, R, seed)
        for f, v, seed in zip(fitted, y, seeds, strict=True)
    ]
    return np.exp(np.concatenate(drawn)), np.ones((1, n))


def _interval(values: np.ndarray) -> np.ndarray:
    """(2, q) of values (R, q), without the rows that have none; NaN where none has."""
    found = values[~np.isnan(values).any(1)]
    return bootstrap.interval(found) if len(found) else np.full((2, values.shape[1]), np.nan)


def _answer(
    question: Question,
    truth: np.ndarray,
    estimates: np.ndarray,
    ends: np.ndarray,
    there: np.ndarray,
) -> Answer:
    """Of one question: truth, estimates and `there` (fitted, off its bounds) (W,), ends (2, W)."""
    low, high = ends
    covered = (low <= truth) & (truth <= high)
    some = np.isfinite(ends).all(0)
    typical = ends[:, some] if some.any() else np.full((2, 1), np.nan)
    ci = wilson(int(covered.sum()), len(covered))
    known = there & (high <= question.limit * low)
    error = np.log(estimates / truth) if question.ratio else estimates - truth
    width = question.width(typical)
    level = bootstrap.LEVEL[1] - bootstrap.LEVEL[0]
    verdict = "conservative" if ci[0] > level else "too narrow" if ci[1] < level else "nominal"
    return Answer(
        question.text,
        float(truth.mean()),
        float(np.median(width)),
        float(np.log(width).std()),
        question.ratio,
        np.median(typical, axis=1).tolist(),
        float(covered.mean()),
        ci,
        verdict,
        float(1 - known.mean()),
        float(error.mean()),
        float(np.sqrt((error**2).mean())),
        len(covered),
    )


def wilson(k: int, n: int) -> list[float]:
    """The 95 % interval of a share k / n (Wilson 1927)."""
    z2 = Z95**2
    middle, half = k + z2 / 2, Z95 * math.sqrt(k * (n - k) / n + z2 / 4)
    return [max(0.0, (middle - half) / (n + z2)), min(1.0, (middle + half) / (n + z2))]


# -- expected information -----------------------------------------------------------------------
@dataclass(frozen=True)
class NextRun:
    """One run more: where, its cost, and the share of the question's width that it leaves."""

    x: tuple[float, ...]
    cost: float
    left: float  # of the width, in (0, 1]
    per_flop: float  # -d ln width / d FLOP


def standard_error(design: Design, question: Question) -> float:
    """Expected of the question's point fit: Gauss-Newton at the first truth, the delta method.

    Of its logarithm where the question is a ratio.
    """
    slopes, gradient = _slopes(design, question)
    return math.sqrt(_spent(design) * float((_whitened(slopes, gradient[None]) ** 2).sum()))


def next_runs(
    design: Design, question: Question, candidates: np.ndarray, cost: np.ndarray
) -> list[NextRun]:
    """Candidates (P, m) by how much one more run there narrows the question, most first.

    cost (m,): FLOPs of each. By the rank-one update of the expected covariance (Sherman-Morrison).
    """
    slopes, gradient = _slopes(design, question)
    there = _jacobian(design.form, design.truths[0], candidates)
    z, zs = _whitened(slopes, gradient[None]), _whitened(slopes, there)
    gain = (zs @ z[0]) ** 2 / (1 + (zs**2).sum(1)) / (z**2).sum()
    left = np.sqrt(np.maximum(1 - gain, 0))
    return [
        NextRun(
            tuple(candidates[:, i].tolist()),
            float(cost[i]),
            float(left[i]),
            float(-np.log(max(left[i], 1e-300)) / cost[i]),
        )
        for i in np.argsort(left)
    ]


def _slopes(design: Design, question: Question) -> tuple[np.ndarray, np.ndarray]:
    """d ln L (n, p) and d question (p,) by ln parameters, at the first truth."""
    truth = design.truths[0]
    steps = np.exp(STEP * np.concatenate([np.eye(len(truth)), -np.eye(len(truth))]))
    values = question.of(truth * steps)
    up, down = np.split(np.log(values) if question.ratio else values, 2)
    return _jacobian(design.form, truth, design.x), (up - down) / (2 * STEP)


def _jacobian(form: Law, truth: np.ndarray, x: np.ndarray) -> np.ndarray:
    steps = np.exp(STEP * np.concatenate([np.eye(len(truth)), -np.eye(len(truth))]))
    up, down = np.split(np.log(form.loss(truth * steps, *x)), 2)
    return ((up - down) / (2 * STEP)).T


def _whitened(slopes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """rows (k, p) times the inverse of R of slopes = QR: their products are covariances."""
    scale = np.linalg.norm(slopes, axis=0)
    upper = np.linalg.qr(slopes / scale, mode="r")
    return np.linalg.solve(upper.T, (rows / scale).T).T


def _spent(design: Design) -> float:
    """Variance of one point's noise as the objective sees it: E psi^2 / (E psi')^2 (Huber 1981)."""
    draws = design.noise if np.ndim(design.noise) else None
    if draws is not None:
        inside = max(float((np.abs(draws) <= design.delta).mean()), 1 / len(draws))
        return float((np.clip(draws, -design.delta, design.delta) ** 2).mean()) / inside**2
    if design.objective == "mse":
        return design.noise**2
    k = design.delta / design.noise if design.objective != "lad" else 1e-6
    inside = math.erf(k / math.sqrt(2))
    density = math.exp(-k * k / 2) / math.sqrt(2 * math.pi)
    return design.noise**2 * (inside - 2 * k * density + k * k * (1 - inside)) / inside**2


def lattice(design: Design, most: float, per_axis: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Candidates (P, m) in the design's range of each predictor, at most `most` FLOPs, and cost.

    The law was to be seen there anyway, so its form is not asked to hold further out.
    """
    axes = [np.geomspace(v.min(), v.max(), per_axis) for v in design.x]
    points = np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")])
    points = np.concatenate([points, np.unique(design.x, axis=1)], axis=1)
    cost = flops(design.form, points)
    keep = cost <= most * (1 + 1e-9)
    return points[:, keep], cost[keep]
