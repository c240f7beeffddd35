"""One law through the final losses of a ladder: L(x) = E + K / x^g, with what is not known said.

The one idea: a ladder has few runs, so its interval comes from the measured noise of a run
(parametric resamples) and from how far the law moves without its smallest sizes.

This is the estimator of a ladder study. `fit_law` with law `power` is another: its delta is the
field's 1e-3 and not the runs' noise, it resamples points, and drops no sizes; on the same runs the
two differ by a share of their intervals.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from nanoscale.laws import bootstrap, solver
from nanoscale.laws.arrays import Array
from nanoscale.laws.certified import Certified
from nanoscale.laws.forms import number
from nanoscale.laws.objectives import Objective
from nanoscale.laws.problem import problem_of
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

_STARTS, STARTS_OF_RESAMPLES = 32, 3
HUBER = 1.345  # delta in noise sd: 95 % efficient under Gaussian noise (Huber 1981)
DELTA_FLOOR = 1e-3  # the field's delta (Hoffmann et al. 2022), used where the noise is smaller
_MISFIT = 3.0  # residual over seed sd from which the law is said to miss the runs
CURVE_REACH = (0.7, 10.0)  # of the smallest and largest x
P = len(POWER.parameters)


@dataclass(frozen=True)
class Refit:
    """The law without the smallest sizes; parameters are NaN where the solver did not converge."""

    sizes_dropped: int
    n_points: int
    smallest_x: float
    params: dict[str, float]
    objective: float
    status: str

    @property
    def values(self) -> Array:
        """(p,) of its parameters."""
        return np.array([*self.params.values()])


@dataclass(frozen=True)
class LawCurve:
    """The law over x, and its 95 % band: of the law, not of a new run."""

    x: list[float]
    loss: list[float]
    lo: list[float]
    hi: list[float]


@dataclass(frozen=True)
class LadderPoint:
    """A run beside the law; `residual` is of ln L."""

    x: float
    loss: float
    fitted: float
    residual: float
    size: object  # labels, as given
    seed: object


@dataclass(frozen=True, kw_only=True)
class LadderFit(Fit):
    """A power law through a ladder. `ci95` = `ci95_noise` stretched over the `dropped` refits."""

    x_name: str
    n_sizes: int
    ci95_noise: dict[str, list[float]]
    noise: bootstrap.Noise
    dropped: list[Refit]
    curve: LawCurve
    points: list[LadderPoint]  # in order of x

    def summary(self) -> list[str]:
        """The lines a user sees: the law, what is not identified, what both rest on."""
        lines = [self.equation(with_intervals=True)]
        for name, reason in self.not_identified.items():
            lines.append(f"{name}: not identified ({reason})")
        lines.append(
            f"{self.n_sizes} sizes, {self.n_points} runs; noise {100 * self.noise.used:.2g} % of "
            f"the loss; {self.objective_name}, delta {self.delta:.2g}; {self.starts_agreeing()}"
        )
        if self.dropped:
            exponents = [number(refit.params["g"], self.se["g"]) for refit in self.dropped]
            counts = [str(refit.sizes_dropped) for refit in self.dropped]
            sizes = ", ".join(counts)
            lines.append(f"without the smallest {sizes} sizes: g = {', '.join(exponents)}")
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

    The form is Hestness et al.'s (2017). `size` labels each run's model size (default: its x);
    runs of one size are replicates, told apart by `seed`. `delta` is the Huber threshold in ln L;
    by default 1.345 times the noise, at least 1e-3. Intervals: `resamples` parametric resamples
    around the fit with the larger of the seed and the residual sd, stretched over the refits
    without the smallest 1, 2, ... sizes. Raises `UserError` for input that no law can be fitted to.

    >>> import nanoscale as ns
    >>> C = [1e15, 3e15, 1e16, 3e16, 1e17]
    >>> law = ns.fit_power_law(C, [1.5 + 100 / c**0.12 for c in C], resamples=100)
    >>> law.equation()
    'L(C) = 1.5... + 100... / C^0.12...'
    """
    runs = Runs.of(x, loss, size, seed, x_name)
    bootstrap.check_resamples(resamples)
    rule = _huber(runs) if delta is None else Objective.of("log-huber", delta)
    best = _certified(runs.x, runs.loss, rule)
    noise = _noise(best, runs)
    draws, lost = _resampled(best, noise, resamples, rng_seed)
    dropped = _dropped(runs, rule)

    ends_noise = bootstrap.interval(draws)
    ends = _stretched(ends_noise, dropped)
    reasons = _reasons(best, ends, x_name)
    return LadderFit(
        law=POWER.name,
        form=POWER,
        x_name=x_name,
        x_names=(x_name,),
        objective_name=rule.name,
        delta=rule.delta,
        n_points=len(runs.x),
        n_sizes=runs.n_sizes,
        params=named(POWER, best.params),
        objective=float(best.solution.objective[0]),
        status=_status(best, x_name, reasons),
        not_identified=reasons,
        agreement_of_starts=best.agreement,
        n_starts=_STARTS,
        se=named(POWER, draws.std(0)),
        ci95=_by_name(ends),
        ci95_noise=_by_name(ends_noise),
        noise=noise,
        dropped=dropped,
        resamples=resamples,
        rng_seed=rng_seed,
        warnings=_warnings(runs, best, noise, lost, resamples),
        curve=_curve(runs, best.params, draws, dropped),
        points=_points(runs, best.params),
    )


def _by_name(ends: Array) -> dict[str, list[float]]:
    return dict(zip(POWER.names, ends.T.tolist(), strict=True))


# -- fits and refits ------------------------------------------------------------------------------
def _certified(x: Array, loss: Array, rule: Objective) -> Certified:
    return Certified.of(problem_of(POWER, x[None], loss), loss, rule, _STARTS)


def _noise(best: Certified, runs: Runs) -> bootstrap.Noise:
    losses = np.log(best.loss[0])
    return bootstrap.noise_of(losses, runs.size, np.log(best.fitted), P)


def _huber(runs: Runs) -> Objective:
    """1.345 times the larger of the seed sd and the robust sd about a least-squares fit."""
    pilot = _certified(runs.x, runs.loss, Objective("log-huber", math.inf))
    n = len(runs.x)
    typical = np.median(np.abs(pilot.residual))
    spread = 1.4826 * typical * math.sqrt(n / (n - P))
    losses = np.log(pilot.loss[0])
    seed_sd, _, measured = bootstrap.seed_noise(losses, runs.size)
    if seed_sd is not None and measured:
        spread = max(spread, seed_sd)
    delta = max(HUBER * spread, DELTA_FLOOR)
    return Objective("log-huber", float(delta))


def _resampled(
    best: Certified, noise: bootstrap.Noise, resamples: int, rng_seed: int
) -> tuple[Array, int]:
    """Parameters (R, p) of the resamples that converged, and how many did not."""
    fitted = np.log(best.fitted)
    losses = np.exp(bootstrap.resampled(fitted, noise, resamples, rng_seed))
    refits = solver.solve(best.on(losses, best.w), STARTS_OF_RESAMPLES)
    theta = refits.theta[refits.converged]
    lost = resamples - len(theta)
    if not len(theta):
        theta = np.full((1, P), math.nan)
    return best.problem.params(theta), lost


def _dropped(runs: Runs, rule: Objective) -> list[Refit]:
    """The refits without the smallest 1, 2, ... sizes."""
    refits = []
    for k, keep in enumerate(bootstrap.without_smallest(runs.size, SIZES_NEEDED), start=1):
        x = runs.x[keep]
        best = _certified(x, runs.loss[keep], rule)
        params = best.params if best.converged else np.full(P, math.nan)
        refit = Refit(
            sizes_dropped=k,
            n_points=len(x),
            smallest_x=float(x[0]),
            params=named(POWER, params),
            objective=float(best.solution.objective[0]),
            status=_status(best, runs.x_name, {}),
        )
        refits.append(refit)
    return refits


def _stretched(ends: Array, dropped: list[Refit]) -> Array:
    """Ends (2, p) of intervals, over the refits too."""
    others = [refit.values for refit in dropped]
    return bootstrap.widened(ends, np.reshape(others, (-1, P)))


# -- what is said of them -------------------------------------------------------------------------
def _reasons(best: Certified, ends: Array, x_name: str) -> dict[str, str]:
    """Parameter -> why it is not identified."""
    if not best.converged:
        return dict.fromkeys(POWER.names, NO_FIT)
    return not_identified(best.problem, best.theta, ends, (x_name,))


def _status(best: Certified, x_name: str, reasons: dict[str, str]) -> str:
    bounds = bounds_hit(best.problem, best.theta, (x_name,))
    return status_of(best.converged, bounds, reasons)


def _warnings(
    runs: Runs, best: Certified, noise: bootstrap.Noise, lost: int, resamples: int
) -> list[str]:
    warnings = []
    if noise.seed_sd is None or not noise.seeds_measured:
        warnings.append(
            "seed noise is not measured (3 seeds at 2 sizes would do): the interval rests on the "
            f"residuals alone, {noise.residual_dof} degrees of freedom"
        )
    elif noise.residual_sd > _MISFIT * noise.seed_sd:
        warnings.append(
            f"the law misses the runs by {noise.residual_sd / noise.seed_sd:.1f} times the seed "
            "noise: the sizes are not tuned alike, or the law is not theirs"
        )
    remedy = "fit those of metrics.json, which are at full precision"
    return warnings + warnings_of(runs.loss, best.solution, lost, resamples, remedy)


def _curve(runs: Runs, params: Array, draws: Array, dropped: list[Refit]) -> LawCurve:
    """The law and its band, which each refit without small sizes stretches from its runs on."""
    low, high = CURVE_REACH
    x = np.geomspace(runs.x[0] * low, runs.x[-1] * high, 121)
    law = POWER.loss(params, x)
    others = np.empty((len(dropped), len(x)))
    for row, refit in zip(others, dropped, strict=True):
        seen = x >= refit.smallest_x
        row[:] = np.where(seen, POWER.loss(refit.values, x), np.nan)

    band = bootstrap.interval(POWER.loss(draws, x))
    lo, hi = bootstrap.widened(band, others).tolist()
    return LawCurve(x.tolist(), law.tolist(), lo, hi)


def _points(runs: Runs, params: Array) -> list[LadderPoint]:
    """One per run, in order of x."""
    fitted = POWER.loss(params, runs.x)
    residual = np.log(runs.loss / fitted)
    points = []
    for i, label in enumerate(runs.labels):
        point = LadderPoint(
            x=float(runs.x[i]),
            loss=float(runs.loss[i]),
            fitted=float(fitted[i]),
            residual=float(residual[i]),
            size=label,
            seed=runs.seeds[i],
        )
        points.append(point)
    return points
