"""One law through the final losses of a ladder: L(x) = E + K / x^g, with what is not known said.

The one idea: a fit is a value that carries its own doubt. The solver's certainty, the noise it
rests on, the refits without the smallest sizes and the parameters the runs do not pin down are
fields of the result, printed and stored with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np

from nanoscale.errors import UserError
from nanoscale.laws import bootstrap, solver
from nanoscale.laws.forms import PowerLaw, number, power_law, to_params, to_theta
from nanoscale.laws.runs import SIZES_NEEDED, Runs
from nanoscale.records import plain

NAMES = ("E", "K", "g")
STARTS, STARTS_OF_RESAMPLES = 32, 3
HUBER = 1.345  # delta in noise sd: 95 % efficient under Gaussian noise (Huber 1981)
DELTA_FLOOR = 1e-3  # the field's delta (Hoffmann et al. 2022), used where the noise is smaller
MISFIT = 3.0  # residual over seed sd from which the law is said to miss the runs
LOST = 0.01  # share of resamples without a fit that is worth a warning
RATIO = 4.0  # ends of an interval further apart than this do not identify a parameter
CURVE_REACH = (0.7, 10.0)  # of the smallest and largest x
ROUNDED_DECIMALS = 4


@dataclass(frozen=True)
class Fit:
    """A fitted law and its doubt. `ci95` = `ci95_noise` stretched over the `dropped` refits."""

    law: str
    x_name: str
    objective_name: str
    delta: float
    n_points: int
    n_sizes: int
    params: dict[str, float]
    objective: float
    status: str  # converged, bound_hit, not_identified, max_iter
    not_identified: dict[str, str]  # parameter -> reason
    agreement_of_starts: float  # share of n_starts that ended at the best objective
    n_starts: int
    se: dict[str, float]
    ci95: dict[str, list[float]]
    ci95_noise: dict[str, list[float]]
    noise: dict[str, object]
    resamples: int
    rng_seed: int
    dropped: list[dict[str, object]]
    warnings: list[str]
    curve: dict[str, list[float]]  # x, loss, lo, hi: 95 % band of the law, not of a new run
    points: list[dict[str, object]]  # in order of x

    def __call__(self, x: np.ndarray | float) -> np.ndarray:
        """The law's loss at `x`."""
        return PowerLaw(**self.params)(x)

    def equation(self, *, with_intervals: bool = False) -> str:
        """`L(C) = 1.23 + 45.6 / C^0.123`; a parameter that is not identified stays a letter."""
        shown = {k: self._shown(k, with_intervals and k != "K") for k in NAMES}
        return f"L({self.x_name}) = {shown['E']} + {shown['K']} / {self.x_name}^{shown['g']}"

    def _shown(self, name: str, with_interval: bool) -> str:
        if name in self.not_identified:
            return name
        error = self.se[name]
        ends = ", ".join(number(end, error) for end in self.ci95[name])
        return number(self.params[name], error) + (f" [{ends}]" if with_interval else "")

    def summary(self) -> list[str]:
        """The lines a user sees: the law, what is not identified, what both rest on."""
        lines = [self.equation(with_intervals=True)]
        for name, reason in self.not_identified.items():
            lines.append(f"{name}: not identified ({reason})")
        noise = f"noise {100 * self.noise['used']:.2g} % of the loss"
        lines.append(
            f"{self.n_sizes} sizes, {self.n_points} runs; {noise}; {self.objective_name}, delta "
            f"{self.delta:.2g}; {round(self.agreement_of_starts * self.n_starts)} of "
            f"{self.n_starts} starts agree"
        )
        if self.dropped:
            g = ", ".join(number(d["params"]["g"], self.se["g"]) for d in self.dropped)
            counts = ", ".join(str(d["sizes_dropped"]) for d in self.dropped)
            lines.append(f"without the smallest {counts} sizes: g = {g}")
        return lines

    def to_json(self) -> dict[str, object]:
        """Plain types at full precision; a number that is not finite is None."""
        record = {f.name: getattr(self, f.name) for f in fields(self)}
        record["not_identified"] = list(self.not_identified)
        record["reasons"] = self.not_identified
        record["equation"] = self.equation()
        record["summary"] = self.summary()
        return plain(record)


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
) -> Fit:
    """Fit L(x) = E + K / x^g to one (x, loss) per run by the Huber loss of ln L.

    `size` labels each run's model size (default: its x); runs of one size are replicates, told
    apart by `seed`. `delta` is the Huber threshold in ln L; by default 1.345 times the noise, at
    least 1e-3. Intervals: `resamples` parametric resamples around the fit with the larger of the
    seed and the residual sd, stretched over the refits without the smallest 1, 2, ... sizes.
    Raises `UserError` for input that no law can be fitted to.
    """
    runs = Runs.of(x, loss, size, seed, x_name)
    _check_options(delta, resamples)
    return _fit(runs, _huber_delta(runs) if delta is None else float(delta), resamples, rng_seed)


def _fit(runs: Runs, delta: float, resamples: int, rng_seed: int) -> Fit:
    best = solver.solve(runs.u, runs.y[None], delta, STARTS)
    doubt = _Doubt.of(runs, best, delta, resamples, rng_seed)
    reasons = _not_identified(best, doubt.ends, runs.x_name)
    return Fit(
        law="power",
        x_name=runs.x_name,
        objective_name="log-huber",
        delta=delta,
        n_points=len(runs.x),
        n_sizes=runs.n_sizes,
        params=_named(_params(runs, best.theta[0])),
        objective=float(best.objective[0]),
        status=_status(best, reasons),
        not_identified=reasons,
        agreement_of_starts=float(best.agreeing[0] / STARTS),
        n_starts=STARTS,
        resamples=resamples,
        rng_seed=rng_seed,
        warnings=_warnings(runs, best, doubt),
        curve=_curve(runs, best.theta[0], doubt),
        points=_points(runs, best.theta[0]),
        **doubt.record(runs),
    )


@dataclass(frozen=True)
class _Doubt:
    """What resampling and dropping the smallest sizes say about one fit."""

    noise: bootstrap.Noise
    thetas: np.ndarray  # (R, 3): the resamples whose fit converged
    lost: int  # resamples whose fit did not
    dropped: list[dict[str, object]]
    ends_noise: np.ndarray  # (2, 3) of E, K, g
    ends: np.ndarray

    @classmethod
    def of(cls, runs: Runs, best: solver.Solution, delta, resamples, rng_seed) -> _Doubt:
        fitted = np.log(power_law(best.theta[0], runs.u))
        noise = bootstrap.noise_of(runs.y, runs.size, fitted, len(NAMES))
        draws = bootstrap.resampled(fitted, noise, resamples, rng_seed)
        refits = solver.solve(runs.u, draws, delta, STARTS_OF_RESAMPLES)
        found = refits.converged
        thetas = refits.theta[found] if found.any() else np.full((1, len(NAMES)), math.nan)
        dropped = _dropped(runs, delta)
        ends_noise = bootstrap.interval(_params(runs, thetas))
        others = np.array([list(d["params"].values()) for d in dropped])
        ends = bootstrap.widened(ends_noise, others.reshape(-1, len(NAMES)))
        return cls(noise, thetas, int((~found).sum()), dropped, ends_noise, ends)

    def record(self, runs: Runs) -> dict[str, object]:
        """The fields of `Fit` that come from here."""
        return {
            "se": _named(_params(runs, self.thetas).std(0)),
            "ci95": dict(zip(NAMES, self.ends.T.tolist(), strict=True)),
            "ci95_noise": dict(zip(NAMES, self.ends_noise.T.tolist(), strict=True)),
            "noise": self.noise.to_json(),
            "dropped": self.dropped,
        }


def _check_options(delta: float | None, resamples: int) -> None:
    if delta is not None and not (math.isfinite(delta) and delta > 0):
        raise UserError(f"delta = {delta} must be a positive number (in ln L; 1e-3 is usual)")
    if resamples < 100:
        raise UserError(f"{resamples} resamples are too few for a 95 % interval; use at least 100")


def _huber_delta(runs: Runs) -> float:
    """1.345 times the larger of the seed sd and the robust sd about a least-squares fit."""
    pilot = solver.solve(runs.u, runs.y[None], math.inf, STARTS)
    residual = runs.y - np.log(power_law(pilot.theta[0], runs.u))
    n = len(residual)
    robust = 1.4826 * np.median(np.abs(residual)) * math.sqrt(n / (n - len(NAMES)))
    sd, _, measured = bootstrap.seed_noise(runs.y, runs.size)
    return float(max(HUBER * max(robust, sd if measured else 0.0), DELTA_FLOOR))


def _dropped(runs: Runs, delta: float) -> list[dict[str, object]]:
    """The refits without the smallest sizes; parameters are None where one did not converge."""
    refits = []
    for k, mask in enumerate(bootstrap.without_smallest(runs.size, SIZES_NEEDED), start=1):
        fit = solver.solve(runs.u[mask], runs.y[None, mask], delta, STARTS)
        found = bool(fit.converged[0])
        params = _named(_params(runs, fit.theta[0]))
        refits.append(
            {
                "sizes_dropped": k,
                "n_points": int(mask.sum()),
                "smallest_x": float(runs.x[mask][0]),
                "params": params if found else dict.fromkeys(NAMES, math.nan),
                "objective": float(fit.objective[0]),
                "status": _status(fit, _bounds_hit(fit.theta[0], "x")),
            }
        )
    return refits


def _bounds_hit(theta: np.ndarray, x_name: str) -> dict[str, str]:
    """Parameter -> reason, for an optimum on the edge of what is searched."""
    E, b, g = theta
    if b <= solver.LOWER[1]:
        reason = f"the loss does not fall with {x_name} beyond the smallest sizes"
        return {"K": reason, "g": reason}
    reasons = {"E": "the best fit has E = 0, its bound"} if E <= 0 else {}
    if not solver.G_RANGE[0] < g < solver.G_RANGE[1]:
        reason = f"the best fit has g = {g:g}, an end of the range searched"
        reasons |= {"K": reason, "g": reason}
    return reasons


def _not_identified(best: solver.Solution, ends: np.ndarray, x_name: str) -> dict[str, str]:
    """Parameter -> why the runs do not pin it down."""
    if not best.converged[0]:
        return dict.fromkeys(NAMES, "the solver did not converge")
    reasons = _bounds_hit(best.theta[0], x_name)
    for name, (low, high) in zip(NAMES, ends.T, strict=True):
        if name in reasons or name == "K" or high <= RATIO * low:
            continue
        reasons[name] = (
            f"its 95 % interval reaches from 0 to {high:.3g}: a floor cannot be told from none"
            if low <= 0
            else f"its 95 % interval reaches from {low:.2g} to {high:.2g}, over a factor {RATIO:g}"
        )
    if "g" in reasons:
        reasons.setdefault("K", "it moves with g")
    return {name: reasons[name] for name in NAMES if name in reasons}


def _status(best: solver.Solution, reasons: dict[str, str]) -> str:
    if not best.converged[0]:
        return "max_iter"
    if _bounds_hit(best.theta[0], ""):
        return "bound_hit"
    return "not_identified" if reasons else "converged"


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
    decimals = _rounded_to(runs.loss)
    if decimals is not None:
        found.append(
            f"the losses look rounded to {decimals} decimals: fit those of metrics.json, "
            "which are at full precision"
        )
    if best.agreeing[0] < STARTS / 2:
        found.append(f"only {best.agreeing[0]} of {STARTS} starts agree on the fit")
    if doubt.lost > LOST * (doubt.lost + len(doubt.thetas)):
        found.append(f"{doubt.lost} resamples did not converge and are left out")
    return found


def _rounded_to(loss: np.ndarray) -> int | None:
    for decimals in range(ROUNDED_DECIMALS + 1):
        if np.abs(loss - np.round(loss, decimals)).max() < 1e-12 * loss.max():
            return decimals
    return None


def _curve(runs: Runs, theta: np.ndarray, doubt: _Doubt) -> dict[str, list[float]]:
    """The law and its band, which each refit without small sizes stretches from its runs on."""
    x = np.geomspace(runs.x[0] * CURVE_REACH[0], runs.x[-1] * CURVE_REACH[1], 121)
    u = np.log(x) - runs.centre
    ends = bootstrap.interval(power_law(doubt.thetas, u))
    others = np.empty((len(doubt.dropped), len(x)))
    for row, refit in zip(others, doubt.dropped, strict=True):
        refit_theta = to_theta(PowerLaw(**refit["params"]), runs.centre, runs.scale)
        row[:] = np.where(x >= refit["smallest_x"], power_law(refit_theta, u), np.nan)
    band = {"loss": power_law(theta, u)}
    band["lo"], band["hi"] = bootstrap.widened(ends, others)
    return {"x": x.tolist(), **{k: (v * runs.scale).tolist() for k, v in band.items()}}


def _points(runs: Runs, theta: np.ndarray) -> list[dict[str, object]]:
    """One row per run, in order of x; `residual` is of ln L."""
    fitted = power_law(theta, runs.u)
    residual = runs.y - np.log(fitted)
    seeds = runs.seeds or [None] * len(runs.x)
    numbers = (column.tolist() for column in (runs.x, runs.loss, fitted * runs.scale, residual))
    names = ("x", "loss", "fitted", "residual", "size", "seed")
    rows = zip(*numbers, runs.labels, seeds, strict=True)
    return [dict(zip(names, row, strict=True)) for row in rows]


def _params(runs: Runs, theta: np.ndarray) -> np.ndarray:
    return to_params(theta, runs.centre, runs.scale)


def _named(values: np.ndarray) -> dict[str, float]:
    return dict(zip(NAMES, values.tolist(), strict=True))
