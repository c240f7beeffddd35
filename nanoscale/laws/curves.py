"""A run's whole loss curve under any learning-rate schedule, and the end of another schedule.

The one idea: with S1 the area under the schedule and S2 that of its annealing,

    L(s) = L0 + A S1(s)^-alpha - C S2(s)              (Tissue, Wang and Wang 2024, equation 1)
    S2(s) = sum over i <= s of m_i,  m_i = decay m_(i-1) + (lr_(i-1) - lr_i)

is a law of two predictors that the schedule alone decides, so one or two runs of a constant and of
a falling rate say what every other schedule would end at. `decay` is not linear in anything: it is
searched by its timescale 1 / (1 - decay) in updates, all else solved anew. A warmup counts in S1,
and as no annealing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nanoscale.errors import UserError
from nanoscale.laws import bootstrap, solver
from nanoscale.laws.forms import Law, Parameter, number
from nanoscale.laws.objectives import Objective
from nanoscale.laws.problem import Problem
from nanoscale.spec.schedule import lr_multiplier
from nanoscale.store.files import plain
from nanoscale.store.folder import RunFolder

BLOCK = 128  # updates between which a sum of decaying terms is carried over
TIMESCALES = 17  # tried over the range, before closing in
SHORTEST, LONGEST = 3.0, 1.0  # timescales: updates, and share of the longest run
CLOSING = 14  # golden steps
STARTS, FEW_STARTS = 16, 4  # of the fit, and of each timescale in the search
BLOCKS = 10  # of a run, that share a factor of a wild resample, where runs are few
RUNS_WANTED = 8  # from which runs are resampled, and not stretches of them
NUDGE = 0.02  # of ln timescale, for S2's derivatives by it
MOST_SHIFT = 1.5  # of ln timescale in a resample: there two derivatives still tell S2

ANNEALING = Law(
    name="annealing",
    predictors=("S1", "S2"),
    parameters=(
        Parameter("L0", "floor"),
        Parameter("A", "coefficient"),
        Parameter("C", "coefficient"),
        Parameter("alpha", "exponent"),
    ),
    formula="{L0} + {A} / S1^{alpha} - {C} S2",
    function=lambda L0, A, C, alpha, S1, S2: L0 + A / S1**alpha - C * S2,
)

# ... and with its timescale, exp(shift) times as long, in S2's own first two derivatives: so that
# all resamples move it at once
SHIFTED = Law(
    name="annealing of a shifted timescale",
    predictors=("S1", "S2", "slope", "bend"),
    parameters=(*ANNEALING.parameters, Parameter("shift", "real", range=(-MOST_SHIFT, MOST_SHIFT))),
    formula=ANNEALING.formula,
    function=lambda L0, A, C, alpha, shift, S1, S2, slope, bend: (
        L0 + A / S1**alpha - C * (S2 + shift * slope + shift * shift * bend / 2)
    ),
)


@dataclass(frozen=True)
class Curve:
    """A run: losses after `step` updates, and the rate of every update of its schedule."""

    step: np.ndarray  # (n,) completed updates, from 1
    loss: np.ndarray  # (n,)
    lr: np.ndarray  # (T,) of update 1, 2, ...; T at least the last step
    name: str = ""

    @classmethod
    def of(
        cls,
        step: Iterable[int],
        loss: Iterable[float],
        lr: Iterable[float],
        name: str = "",
        skip: int = 0,
    ) -> Curve:
        """Check the columns; `skip`: completed updates before the first that is fitted."""
        step, loss, lr = (np.array(list(v), float) for v in (step, loss, lr))
        what = f"curve {name}: " if name else "curve: "
        if len(step) != len(loss):
            raise UserError(f"{what}{len(step)} steps and {len(loss)} losses; give one each")
        keep = np.isfinite(loss) & (step > skip)
        if not (np.isfinite(lr).all() and (lr >= 0).all() and lr.any()):
            raise UserError(f"{what}rates must be numbers of at least 0, and not all 0")
        if not keep.any() or (loss[keep] <= 0).any():
            raise UserError(f"{what}no positive losses after update {skip}")
        if step[keep].max() > len(lr) or (step[keep] % 1).any() or step[keep].min() < 1:
            raise UserError(f"{what}steps must be whole, and of the schedule's {len(lr)} updates")
        return cls(step[keep].astype(int), loss[keep], lr, name)

    @classmethod
    def of_run(cls, folder: str | Path, column: str = "val_loss", skip: int | None = None) -> Curve:
        """A run folder's; by default from the end of its warmup."""
        run = RunFolder(folder)
        config = run.spec().config
        rows = [row for row in run.rows() if row.get(column) is not None and row["step"] > 0]
        if not rows:
            raise UserError(f"{folder}: no {column} in its metrics.jsonl")
        last = max(row["step"] for row in rows)
        lr = [config.learning_rate * lr_multiplier(config, i) for i in range(last)]
        return cls.of(
            [row["step"] for row in rows],
            [row[column] for row in rows],
            lr,
            Path(folder).name,
            config.warmup_iters if skip is None else skip,
        )


def areas(lr: np.ndarray, decay: float) -> tuple[np.ndarray, np.ndarray]:
    """S1 and S2 (T,) after every update of rates lr (T,). Rates before the peak fall from it."""
    flat = lr.copy()
    flat[: int(lr.argmax())] = lr.max()
    drops = np.concatenate([[0.0], flat[:-1] - flat[1:]])
    size = min(BLOCK, max(2, int(-600 / math.log(decay)))) if decay > 0 else 1
    padded = np.pad(drops, (0, -len(drops) % size)).reshape(-1, size)
    power = decay ** np.arange(size)
    inside = np.cumsum(padded / np.maximum(power, 1e-300), axis=1) * power
    carried = 0.0
    for row in inside:
        row += carried * decay * power
        carried = row[-1]
    return np.cumsum(lr), np.cumsum(inside.ravel()[: len(lr)])


@dataclass(frozen=True, kw_only=True)
class CurveLaw:
    """The law through runs. draws (R, 5): parameters and timescale of the resamples."""

    params: dict[str, float]  # L0, A, C, alpha
    timescale: float  # 1 / (1 - decay), updates
    objective: float
    delta: float
    status: str  # converged, or max_iter
    n_points: int
    runs: list[dict[str, object]]  # name, points, R^2, mean absolute error
    noise: float  # sd of ln loss about the law
    ci95: dict[str, list[float]]
    resampled: str  # runs, or stretches of runs
    resamples: int
    warnings: list[str]
    draws: np.ndarray = field(repr=False)

    def __call__(self, lr: Iterable[float], step: Iterable[int] | None = None) -> np.ndarray:
        """The loss after every update of rates lr (T,), or after `step` of them."""
        values = np.array([[*self.params.values(), self.timescale]])
        return _curves(values, np.array(list(lr), float), step)[0]

    def predict(self, lr: Iterable[float], step: Iterable[int] | None = None) -> dict[str, object]:
        """The loss at the end of rates lr (T,), or after `step`, and 95 % intervals.

        `ci95` is of the law; `run_ci95` holds the noise of a loss about it as well.
        """
        lr = np.array(list(lr), float)
        step = [len(lr)] if step is None else list(step)
        record = {"step": step, "loss": self(lr, step)}
        if len(self.draws):
            y = _curves(self.draws, lr, step)
            noise = self.noise * np.random.default_rng(0).standard_normal(y.shape)
            record |= {
                "ci95": bootstrap.interval(y).T,
                "run_ci95": bootstrap.interval(y * np.exp(noise)).T,
            }
        return plain({k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in record.items()})

    def equation(self) -> str:
        """`L = 2.1 + 0.5 / S1^0.4 - 1.9 S2, timescale 300 updates`."""
        shown = {name: number(value) for name, value in self.params.items()}
        return f"L = {ANNEALING.formula.format(**shown)}, timescale {self.timescale:.3g} updates"

    def to_json(self) -> dict[str, object]:
        """Plain types."""
        record = {k: v for k, v in vars(self).items() if k != "draws"}
        return plain(record | {"equation": self.equation()})


def fit_curves(
    curves: Sequence[Curve],
    *,
    delta: float = 1e-3,
    timescale: float | None = None,
    resamples: int = 200,
    rng_seed: int = 0,
) -> CurveLaw:
    """Fit the annealing law to runs of one model, by log-Huber of `delta` over all points.

    timescale: fixed, in updates, or searched (999 of the paper's decay 0.999 is 1000). Intervals:
    wild resamples, one random factor for the residuals of each run, or of each of ten stretches
    where there are fewer than eight runs, as neighbours on a curve share their noise. Raises
    `UserError` where no rate falls, or points are too few.
    """
    rule = Objective.of("log-huber", delta)
    if not curves:
        raise UserError("no curves; give at least one")
    loss = np.concatenate([c.loss for c in curves])
    if len(loss) < 2 * len(ANNEALING.names) + 2:
        raise UserError(f"{len(loss)} losses are too few for a law of 5 parameters; log more often")
    if not any((np.diff(c.lr[c.lr.argmax() : c.step.max()]) < 0).any() for c in curves):
        raise UserError(
            "no learning rate falls within these runs, so nothing says what annealing "
            "does; add a run with a decay"
        )
    scale = float(np.exp(np.log(loss).mean()))
    scaled, ones = loss[None] / scale, np.ones((1, len(loss)))

    def at(value: float, losses: np.ndarray, starts) -> tuple[Problem, solver.Solution]:
        problem = Problem(ANNEALING, _predictors(curves, value), scale)
        return problem, solver.solve(problem, rule, losses, ones, starts)

    best = timescale or _timescale(
        curves, lambda t: float(at(t, scaled, FEW_STARTS)[1].objective[0])
    )
    problem, found = at(best, scaled, STARTS)
    fitted = np.log(problem.at(found.theta).m[0])
    residual = np.log(scaled[0]) - fitted
    draws = np.empty((0, 5))
    by_run = len(curves) >= RUNS_WANTED
    if resamples:
        bootstrap.check_resamples(resamples)
        groups = _groups(curves, by_run)
        y = bootstrap.residual_draws(
            "wild", fitted, np.log(scaled[0]), 5, groups, resamples, rng_seed
        )
        count = len(np.unique(groups))  # what is independent, 5 of which the law has used
        y = fitted + (y - fitted) * math.sqrt(count / (count - 5))
        draws = _moved(curves, problem, rule, found.theta[0], best, np.exp(y), bool(timescale))
    return _law(curves, problem, found, best, residual, draws, delta, by_run, resamples)


def _moved(
    curves,
    problem: Problem,
    rule: Objective,
    theta: np.ndarray,
    timescale: float,
    losses: np.ndarray,
    fixed: bool,
) -> np.ndarray:
    """(R, 5): parameters and timescale of losses (R, n), those that converged."""
    ones = np.ones((1, losses.shape[1]))
    if fixed:
        found = solver.solve(problem, rule, losses, ones, theta[None, None])
        params = problem.params(found.theta)
        return np.column_stack([params, np.full(len(params), timescale)])[found.converged]
    below, here, above = (_predictors(curves, timescale * math.exp(k * NUDGE)) for k in (-1, 0, 1))
    x = np.stack(
        [*here, (above[1] - below[1]) / (2 * NUDGE), (above[1] - 2 * here[1] + below[1]) / NUDGE**2]
    )
    near = Problem(SHIFTED, x, problem.scale)
    found = solver.solve(near, rule, losses, ones, np.append(theta, 0.0)[None, None])
    params = near.params(found.theta)
    params[:, 4] = timescale * np.exp(params[:, 4])
    return params[found.converged]


def _law(curves, problem, found, timescale, residual, draws, delta, by_run, resamples) -> CurveLaw:
    params = dict(zip(ANNEALING.names, problem.params(found.theta[0]).tolist(), strict=True))
    ends = np.split(np.arange(len(residual)), np.cumsum([len(c.loss) for c in curves])[:-1])
    runs = []
    for curve, rows in zip(curves, ends, strict=True):
        error = curve.loss * (1 - np.exp(-residual[rows]))
        spread = ((curve.loss - curve.loss.mean()) ** 2).sum()
        runs.append(
            {
                "name": curve.name,
                "points": len(rows),
                "mae": float(np.abs(error).mean()),
                "r2": float(1 - error @ error / spread) if spread > 0 else None,
            }
        )
    ci95 = (
        {}
        if not len(draws)
        else dict(
            zip((*ANNEALING.names, "timescale"), bootstrap.interval(draws).T.tolist(), strict=True)
        )
    )
    return CurveLaw(
        params=params,
        timescale=float(timescale),
        objective=float(found.objective[0]),
        delta=delta,
        status="converged" if found.converged[0] else "max_iter",
        n_points=len(residual),
        runs=runs,
        noise=float(np.sqrt(residual @ residual / (len(residual) - 5))),
        ci95=ci95,
        resampled="runs" if by_run else "stretches of runs",
        resamples=resamples,
        warnings=_warnings(curves, ci95, timescale),
        draws=draws,
    )


def _warnings(
    curves: Sequence[Curve], ci95: Mapping[str, list[float]], timescale: float
) -> list[str]:
    found = []
    if len(curves) == 1:
        found.append(
            "one run: its own schedule cannot tell annealing from the power law well; add "
            "one of another schedule"
        )
    longest = max(c.step.max() for c in curves)
    if not 1.1 * SHORTEST < timescale < 0.9 * LONGEST * longest:
        found.append(f"the timescale, {timescale:.3g} updates, is at an end of what was searched")
    if "C" in ci95 and ci95["C"][1] > 4 * ci95["C"][0]:
        found.append("C is not identified: anneal further, or in another run earlier")
    return found


def _predictors(curves: Sequence[Curve], timescale: float) -> np.ndarray:
    """(2, n): S1 and S2 of every point."""
    decay = 1 - 1 / timescale
    found = [np.array(areas(c.lr, decay))[:, c.step - 1] for c in curves]
    return np.concatenate(found, axis=1)


def _curves(values: np.ndarray, lr: np.ndarray, step: Iterable[int] | None) -> np.ndarray:
    """(R, steps): losses of parameters and timescale (R, 5)."""
    rows = slice(None) if step is None else np.array(list(step), int) - 1
    found = {t: np.array(areas(lr, 1 - 1 / t))[:, rows] for t in np.unique(values[:, 4])}
    return np.stack([ANNEALING.loss(v[:4], *found[v[4]]) for v in values])


def _timescale(curves: Sequence[Curve], objective) -> float:
    """Where the objective is least: the best of a grid, and a golden section about it."""
    longest = max(int(c.step.max()) for c in curves)
    grid = np.geomspace(SHORTEST, LONGEST * longest, TIMESCALES)
    best = int(np.argmin([objective(t) for t in grid]))
    low, high = np.log(grid[[max(best - 1, 0), min(best + 1, len(grid) - 1)]])
    ratio = (math.sqrt(5) - 1) / 2
    inner = [high - ratio * (high - low), low + ratio * (high - low)]
    values = [objective(math.exp(t)) for t in inner]
    for _ in range(CLOSING):
        if values[0] < values[1]:
            high, inner[1], values[1] = inner[1], inner[0], values[0]
            inner[0] = high - ratio * (high - low)
            values[0] = objective(math.exp(inner[0]))
        else:
            low, inner[0], values[0] = inner[0], inner[1], values[1]
            inner[1] = low + ratio * (high - low)
            values[1] = objective(math.exp(inner[1]))
    return math.exp(inner[int(np.argmin(values))])


def _groups(curves: Sequence[Curve], by_run: bool) -> np.ndarray:
    """(n,) labels: of each point's run, or of its stretch of it."""
    found = []
    for k, curve in enumerate(curves):
        n = len(curve.loss)
        part = np.zeros(n, int) if by_run else np.minimum(np.arange(n) * BLOCKS // n, BLOCKS - 1)
        found.append(k * BLOCKS + part)
    return np.concatenate(found)
