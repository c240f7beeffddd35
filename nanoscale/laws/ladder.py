"""One law through the final losses of a ladder: L(x) = E + K / x^g, with what is not known said.

The one idea: a ladder has few runs, so its interval comes from the measured noise of a run
(parametric resamples) and from how far the law moves without its smallest sizes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from nanoscale.laws import bootstrap, solver
from nanoscale.laws.forms import number
from nanoscale.laws.objectives import Objective
from nanoscale.laws.problem import Problem, problem_of
from nanoscale.laws.published import POWER
from nanoscale.laws.result import (
    NO_FIT,
    Fit,
    bounds_hit,
    named,
    not_identified,
    status_of,
    warnings_of,
)
from nanoscale.laws.runs import SIZES_NEEDED, Runs

STARTS, STARTS_OF_RESAMPLES = 32, 3
HUBER = 1.345  # delta in noise sd: 95 % efficient under Gaussian noise (Huber 1981)
DELTA_FLOOR = 1e-3  # the field's delta (Hoffmann et al. 2022), used where the noise is smaller
MISFIT = 3.0  # residual over seed sd from which the law is said to miss the runs
CURVE_REACH = (0.7, 10.0)  # of the smallest and largest x
P = len(POWER.parameters)


@dataclass(frozen=True, kw_only=True)
class LadderFit(Fit):
    """A power law through a ladder. `ci95` = `ci95_noise` stretched over the `dropped` refits."""

    x_name: str
    n_sizes: int
    ci95_noise: dict[str, list[float]]
    noise: dict[str, object]
    dropped: list[dict[str, object]]
    curve: dict[str, list[float]]  # x, loss, lo, hi: 95 % band of the law, not of a new run
    points: list[dict[str, object]]  # in order of x

    def summary(self) -> list[str]:
        """The lines a user sees: the law, what is not identified, what both rest on."""
        lines = [self.equation(with_intervals=True)]
        for name, reason in self.not_identified.items():
            lines.append(f"{name}: not identified ({reason})")
        noise = f"noise {100 * self.noise['used']:.2g} % of the loss"
        lines.append(
            f"{self.n_sizes} sizes, {self.n_points} runs; {noise}; {self.objective_name}, delta "
            f"{self.delta:.2g}; {self.starts_agreeing()}"
        )
        if self.dropped:
            g = ", ".join(number(d["params"]["g"], self.se["g"]) for d in self.dropped)
            counts = ", ".join(str(d["sizes_dropped"]) for d in self.dropped)
            lines.append(f"without the smallest {counts} sizes: g = {g}")
        return lines


def fit_power_law(
    x: Iterable[float],
    loss: Iterable[float],
    *,
    size: Iterable[object] | None = None,
    seed: Iterable[object] | None = None,
    x_name: str = "C",
    delta: float | None = None,
    resamples: int = 2000,
    rng_seed: int = 0,
) -> LadderFit:
    """Fit L(x) = E + K / x^g to one (x, loss) per run by the Huber loss of ln L.

    `size` labels each run's model size (default: its x); runs of one size are replicates, told
    apart by `seed`. `delta` is the Huber threshold in ln L; by default 1.345 times the noise, at
    least 1e-3. Intervals: `resamples` parametric resamples around the fit with the larger of the
    seed and the residual sd, stretched over the refits without the smallest 1, 2, ... sizes.
    Raises `UserError` for input that no law can be fitted to.

    >>> import nanoscale as ns
    >>> C = [1e15, 3e15, 1e16, 3e16, 1e17]
    >>> law = ns.fit_power_law(C, [1.5 + 100 / c**0.12 for c in C], resamples=100)
    >>> law.equation()
    'L(C) = 1.5... + 100... / C^0.12...'
    """
    runs = Runs.of(x, loss, size, seed, x_name)
    bootstrap.check_resamples(resamples)
    objective = _huber(runs) if delta is None else Objective.of("log-huber", delta)
    return _fit(runs, objective, resamples, rng_seed)


def _fit(runs: Runs, objective: Objective, resamples: int, rng_seed: int) -> LadderFit:
    problem, best = _solve(runs.x, runs.loss, objective)
    doubt = _Doubt.of(runs, problem, best, objective, resamples, rng_seed)
    reasons = (
        not_identified(problem, best.theta[0], doubt.ends, (runs.x_name,))
        if best.converged[0]
        else dict.fromkeys(POWER.names, NO_FIT)
    )
    bounds = bounds_hit(problem, best.theta[0], (runs.x_name,))
    params = problem.params(best.theta[0])
    return LadderFit(
        law=POWER.name,
        form=POWER,
        x_name=runs.x_name,
        x_names=(runs.x_name,),
        objective_name=objective.name,
        delta=objective.delta,
        n_points=len(runs.x),
        n_sizes=runs.n_sizes,
        params=named(POWER, params),
        objective=float(best.objective[0]),
        status=status_of(best.converged[0], bounds, reasons),
        not_identified=reasons,
        agreement_of_starts=float(best.agreeing[0] / STARTS),
        n_starts=STARTS,
        resamples=resamples,
        rng_seed=rng_seed,
        warnings=_warnings(runs, best, doubt),
        curve=_curve(runs, params, doubt),
        points=_points(runs, params),
        **doubt.record(),
    )


def _solve(x: np.ndarray, loss: np.ndarray, objective: Objective):
    problem = problem_of(POWER, x[None], loss)
    ones = np.ones((1, len(x)))
    return problem, solver.solve(problem, objective, loss[None] / problem.scale, ones, STARTS)


@dataclass(frozen=True)
class _Doubt:
    """What resampling and dropping the smallest sizes say about one fit."""

    noise: bootstrap.Noise
    params: np.ndarray  # (R, 3): of the resamples whose fit converged
    lost: int  # resamples whose fit did not
    dropped: list[dict[str, object]]
    ends_noise: np.ndarray  # (2, 3) of E, K, g
    ends: np.ndarray

    @classmethod
    def of(cls, runs: Runs, problem: Problem, best, objective, resamples, rng_seed) -> _Doubt:
        fitted = np.log(problem.at(best.theta).m[0])
        noise = bootstrap.noise_of(runs.y, runs.size, fitted, P)
        draws = np.exp(bootstrap.resampled(fitted, noise, resamples, rng_seed))
        ones = np.ones((1, len(fitted)))
        refits = solver.solve(problem, objective, draws, ones, STARTS_OF_RESAMPLES)
        found = refits.converged
        thetas = refits.theta[found] if found.any() else np.full((1, P), math.nan)
        params = problem.params(thetas)
        dropped = _dropped(runs, objective)
        ends_noise = bootstrap.interval(params)
        others = np.array([list(d["params"].values()) for d in dropped])
        ends = bootstrap.widened(ends_noise, others.reshape(-1, P))
        return cls(noise, params, int((~found).sum()), dropped, ends_noise, ends)

    def record(self) -> dict[str, object]:
        """The fields of `LadderFit` that come from here."""
        return {
            "se": named(POWER, self.params.std(0)),
            "ci95": dict(zip(POWER.names, self.ends.T.tolist(), strict=True)),
            "ci95_noise": dict(zip(POWER.names, self.ends_noise.T.tolist(), strict=True)),
            "noise": self.noise.to_json(),
            "dropped": self.dropped,
        }


def _huber(runs: Runs) -> Objective:
    """1.345 times the larger of the seed sd and the robust sd about a least-squares fit."""
    problem, pilot = _solve(runs.x, runs.loss, Objective("log-huber", math.inf))
    residual = runs.y - np.log(problem.at(pilot.theta).m[0])
    n = len(residual)
    robust = 1.4826 * np.median(np.abs(residual)) * math.sqrt(n / (n - P))
    sd, _, measured = bootstrap.seed_noise(runs.y, runs.size)
    delta = max(HUBER * max(robust, sd if measured else 0.0), DELTA_FLOOR)
    return Objective("log-huber", float(delta))


def _dropped(runs: Runs, objective: Objective) -> list[dict[str, object]]:
    """The refits without the smallest sizes; parameters are None where one did not converge."""
    refits = []
    for k, mask in enumerate(bootstrap.without_smallest(runs.size, SIZES_NEEDED), start=1):
        problem, fit = _solve(runs.x[mask], runs.loss[mask], objective)
        found = bool(fit.converged[0])
        params = problem.params(fit.theta[0]) if found else np.full(P, math.nan)
        bounds = bounds_hit(problem, fit.theta[0], (runs.x_name,))
        refits.append(
            {
                "sizes_dropped": k,
                "n_points": int(mask.sum()),
                "smallest_x": float(runs.x[mask][0]),
                "params": named(POWER, params),
                "objective": float(fit.objective[0]),
                "status": status_of(found, bounds, {}),
            }
        )
    return refits


def _warnings(runs: Runs, best: solver.Solution, doubt: _Doubt) -> list[str]:
    found, noise = [], doubt.noise
    if not noise.seeds_measured:
        found.append(
            "seed noise is not measured (3 seeds at 2 sizes would do): the interval rests on the "
            f"residuals alone, {noise.residual_dof} degrees of freedom"
        )
    elif noise.residual_sd > MISFIT * noise.seed_sd:
        found.append(
            f"the law misses the runs by {noise.residual_sd / noise.seed_sd:.1f} times the seed "
            "noise: the sizes are not tuned alike, or the law is not theirs"
        )
    remedy = "fit those of metrics.json, which are at full precision"
    resamples = doubt.lost + len(doubt.params)
    return found + warnings_of(runs.loss, best.agreeing[0], STARTS, doubt.lost, resamples, remedy)


def _curve(runs: Runs, params: np.ndarray, doubt: _Doubt) -> dict[str, list[float]]:
    """The law and its band, which each refit without small sizes stretches from its runs on."""
    x = np.geomspace(runs.x[0] * CURVE_REACH[0], runs.x[-1] * CURVE_REACH[1], 121)
    ends = bootstrap.interval(POWER.loss(doubt.params, x))
    others = np.empty((len(doubt.dropped), len(x)))
    for row, refit in zip(others, doubt.dropped, strict=True):
        law = POWER.loss(np.array(list(refit["params"].values())), x)
        row[:] = np.where(x >= refit["smallest_x"], law, np.nan)
    band = {"loss": POWER.loss(params, x)}
    band["lo"], band["hi"] = bootstrap.widened(ends, others)
    return {"x": x.tolist(), **{k: v.tolist() for k, v in band.items()}}


def _points(runs: Runs, params: np.ndarray) -> list[dict[str, object]]:
    """One row per run, in order of x; `residual` is of ln L."""
    fitted = POWER.loss(params, runs.x)
    residual = np.log(runs.loss / fitted)
    seeds = runs.seeds or [None] * len(runs.x)
    numbers = (column.tolist() for column in (runs.x, runs.loss, fitted, residual))
    names = ("x", "loss", "fitted", "residual", "size", "seed")
    rows = zip(*numbers, runs.labels, seeds, strict=True)
    return [dict(zip(names, row, strict=True)) for row in rows]
