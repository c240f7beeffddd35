"""How the best learning rate and batch move with scale: optima of sweeps, and power laws of them.

The one idea: a sweep at one (N, D) says where its optimum is only as well as noise and curvature
let it, and the optima scatter about any power law. Losses are drawn anew about every sweep's
parabola, their vertices go through the same weighted least squares in logarithms, and the law's
interval holds both. A sweep whose lowest loss is at its edge has no optimum and is not in the law.

    LR* = c N^p D^q    (Li et al. 2025, Step Law; Bjorck et al. 2024)
    B*  = c D^r        (Zhang et al. 2024, critical batch; Li et al. 2025)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

import numpy as np

from nanoscale.errors import UserError
from nanoscale.laws import bootstrap
from nanoscale.laws.fit import TOGETHER
from nanoscale.laws.forms import number
from nanoscale.laws.points import LEVELS_NEEDED, LEVELS_WANTED, levels, numbers, plain_labels
from nanoscale.store.files import plain

REACH = math.log(4.05)  # of the parabola about the lowest mean, in ln of what is swept
FEWEST = 4  # values that a parabola goes through; one more than it has coefficients
MOST_LOST = 0.025  # share of resamples without a vertex from which one is not known
BEYOND = 1.0  # share of a sweep's width by which a resample's vertex may lie outside it
EDGE_LOW, EDGE_HIGH = "lowest loss at the smallest value", "lowest loss at the largest value"
TOO_FEW, FLAT, OUTSIDE = "too few values", "does not bend upwards", "minimum outside its sweep"


@dataclass(frozen=True)
class Sweep:
    """One (N, D): its optimum of what is swept. None: it has none, and `flag` says why."""

    at: dict[str, float]  # the predictors
    n_values: int
    optimum: float | None
    ci95: list[float] | None  # of noise
    loss: float | None  # at the optimum
    flag: str
    wanted: list[float]  # values that would bracket it


@dataclass(frozen=True, kw_only=True)
class SweepLaw:
    """optimum = c prod x^exponent. draws (R, 1 + P): ln c and the exponents of the resamples."""

    swept: str
    predictors: list[str]
    c: float
    exponents: dict[str, float]
    ci95: dict[str, list[float]]
    scatter: float  # sd of ln optimum about the law, beyond noise
    noise: float  # sd of a run's ln loss about its sweep's curve
    sweeps: list[Sweep]
    n_used: int
    resamples: int
    warnings: list[str]
    draws: np.ndarray = field(repr=False)

    def predict(self, **x: float) -> dict[str, float | list[float]]:
        """The optimum at e.g. N=1e9, D=2e10, its law's 95 % interval, and that of a sweep's."""
        row = np.array([1.0, *[math.log(float(x[name])) for name in self.predictors]])
        record = {"optimum": float(np.exp(row @ [math.log(self.c), *self.exponents.values()]))}
        if len(self.draws):
            y = self.draws @ row
            own = y + self.scatter * np.random.default_rng(0).standard_normal(len(y))
            record |= {
                "ci95": np.exp(bootstrap.interval(y)).tolist(),
                "sweep_ci95": np.exp(bootstrap.interval(own)).tolist(),
            }
        return record

    def equation(self) -> str:
        """`lr* = 1.2 N^-0.71 D^0.31`."""
        powers = " ".join(f"{name}^{number(value)}" for name, value in self.exponents.items())
        return f"{self.swept}* = {number(self.c)} {powers}"

    def to_json(self) -> dict[str, object]:
        """Plain types."""
        record = {k: v for k, v in vars(self).items() if k not in ("draws", "sweeps")}
        return plain(
            record | {"sweeps": [asdict(s) for s in self.sweeps], "equation": self.equation()}
        )


def sweep_law(
    columns: Mapping[str, Iterable[float]],
    loss: Iterable[float],
    swept: str,
    *,
    seed: Iterable[object] | None = None,
    resamples: int = 1000,
    rng_seed: int = 0,
) -> SweepLaw:
    """The optimum of the column `swept` as a power law of the other columns.

    columns: name -> values (n,), such as N, D and lr, or D and batch; runs of equal others are one
    sweep. loss (n,): of runs that did not diverge. seed (n,): runs of one value and seed are one.
    At least three values of every predictor; a predictor of one value must be left out. Raises
    `UserError` for columns that say no optimum, or too few.
    """
    loss = numbers(loss, "loss")
    given = {name: numbers(values, name) for name, values in columns.items()}
    if swept not in given or len(given) < 2:
        raise UserError(
            f"columns {', '.join(given) or 'none'}: give {swept!r} and what it depends "
            "on, such as N and D"
        )
    if any(len(values) != len(loss) for values in given.values()):
        raise UserError("columns differ in length; give one value per run")
    names = [name for name in given if name != swept]
    x, v = np.log([given[name] for name in names]), np.log(given[swept])
    _check_twins(names, x, v, seed)
    cells = _cells(x)
    curves = [_Curve.of(v[rows], np.log(loss[rows])) for rows in cells]
    noise, dof = _noise(curves)
    at = np.stack([x[:, rows].mean(1) for rows in cells])
    draws = _vertices(curves, noise, dof, resamples, rng_seed)
    sweeps = [
        _sweep(dict(zip(names, np.exp(a).tolist(), strict=True)), curve, d)
        for a, curve, d in zip(at, curves, draws.T, strict=True)
    ]
    used = np.array([s.optimum is not None for s in sweeps])
    _check_enough(names, at[used], sweeps)
    return _fitted(swept, names, at, curves, sweeps, used, draws, noise, resamples, rng_seed)


def lr_law(columns: Mapping[str, Iterable[float]], loss: Iterable[float], **options) -> SweepLaw:
    """LR* = c N^p D^q of the columns N, D and lr; `sweep_law`."""
    return sweep_law(
        {k: columns[k] for k in ("N", "D", "lr") if k in columns}, loss, "lr", **options
    )


def batch_law(columns: Mapping[str, Iterable[float]], loss: Iterable[float], **options) -> SweepLaw:
    """B* = c D^r of the columns D and batch (tokens or sequences); `sweep_law`."""
    return sweep_law(
        {k: columns[k] for k in ("D", "batch") if k in columns}, loss, "batch", **options
    )


# -- one sweep ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Curve:
    """A parabola of ln loss in u = ln value - centre through the runs about the lowest mean."""

    values: np.ndarray  # (V,) ln of all values swept, ascending
    centre: float
    basis: np.ndarray  # (k, 3) 1, u, u^2 of the runs inside
    coef: np.ndarray  # (3,)
    residual: np.ndarray  # (k,)
    flag: str

    @classmethod
    def of(cls, v: np.ndarray, y: np.ndarray) -> _Curve:
        values, cell = np.unique(v.round(9), return_inverse=True)
        mean = np.bincount(cell, y) / np.bincount(cell)
        lowest = int(mean.argmin())
        distance = np.abs(values - values[lowest])
        near = distance <= REACH
        if near.sum() < FEWEST:
            near = np.zeros(len(values), bool)
            near[np.lexsort((mean, distance.round(6)))[:FEWEST]] = True
        inside = near[cell]
        centre = float(values[near].mean())
        basis = np.vander(v[inside] - centre, 3, increasing=True)
        edge = EDGE_LOW if lowest == 0 else EDGE_HIGH if lowest == len(values) - 1 else ""
        if near.sum() < FEWEST:
            return cls(values, centre, basis, np.full(3, np.nan), np.empty(0), edge or TOO_FEW)
        coef = np.linalg.lstsq(basis, y[inside], rcond=None)[0]
        flag = edge or (FLAT if coef[2] <= 0 else "")
        if not flag:
            vertex = centre - coef[1] / (2 * coef[2])
            flag = "" if values[0] < vertex < values[-1] else OUTSIDE
        return cls(values, centre, basis, coef, y[inside] - basis @ coef, flag)

    @property
    def dof(self) -> int:
        """Runs beyond the parabola's coefficients."""
        return max(len(self.residual) - 3, 0)

    def vertex(self, coef: np.ndarray) -> np.ndarray:
        """ln of the optimum for coefficients (..., 3); NaN where they do not bend upwards.

        It lies at most the sweep's own width beyond it.
        """
        width = BEYOND * (self.values[-1] - self.values[0])
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.clip(
                self.centre - coef[..., 1] / (2 * coef[..., 2]),
                self.values[0] - width,
                self.values[-1] + width,
            )
            return np.where(coef[..., 2] > 0, found, np.nan)


def _cells(x: np.ndarray) -> list[np.ndarray]:
    """Rows of every distinct point of predictors x (P, n), equal to a part in a million."""
    index = np.unique(x.round(6), axis=1, return_inverse=True)[1].ravel()
    return [np.flatnonzero(index == k) for k in range(index.max() + 1)]


def _check_twins(names, x, v, seed) -> None:
    if seed is None:
        return
    rows = list(zip(*x.round(9).tolist(), v.round(9).tolist(), plain_labels(seed), strict=True))
    twice = next((i for i, row in enumerate(rows) if row in rows[:i]), None)
    if twice is not None:
        raise UserError(
            f"row {twice} repeats an earlier one of equal {', '.join(names)}, value "
            "and seed; keep one of them"
        )


def _noise(curves: list[_Curve]) -> tuple[float, int]:
    """sd of ln loss about the parabolas, pooled over sweeps with an optimum, and its freedom."""
    sound = [c for c in curves if not c.flag]
    dof = sum(c.dof for c in sound)
    total = sum(float(c.residual @ c.residual) for c in sound)
    return (math.sqrt(total / dof) if dof else 0.0), dof


def _vertices(curves, noise: float, dof: int, resamples: int, rng_seed: int) -> np.ndarray:
    """(R, sweeps): ln optima of losses drawn anew about the parabolas."""
    if not resamples:
        return np.empty((0, len(curves)))
    bootstrap.check_resamples(resamples)
    rng = np.random.default_rng(rng_seed)
    sd = noise * np.sqrt(dof / rng.chisquare(dof, resamples)) if dof else np.zeros(resamples)
    found = np.full((resamples, len(curves)), np.nan)
    for i, curve in enumerate(curves):
        if not curve.flag:
            z = rng.standard_normal((resamples, len(curve.basis))) * sd[:, None]
            found[:, i] = curve.vertex(curve.coef + z @ np.linalg.pinv(curve.basis).T)
    return found


def _sweep(at: dict[str, float], curve: _Curve, draws: np.ndarray) -> Sweep:
    known = draws[np.isfinite(draws)]
    sound = len(draws) and len(known) >= (1 - MOST_LOST) * len(draws)
    n, low, high = len(curve.values), curve.values[0], curve.values[-1]
    if curve.flag:
        below = curve.flag == EDGE_LOW or (curve.flag == OUTSIDE and curve.coef[1] > 0)
        wanted = (
            [low - math.log(4), low - math.log(2)]
            if below
            else [high + math.log(2), high + math.log(4)]
        )
        return Sweep(
            at,
            n,
            None,
            None,
            None,
            curve.flag,
            [] if curve.flag in (TOO_FEW, FLAT) else np.exp(wanted).tolist(),
        )
    vertex = float(curve.vertex(curve.coef))
    return Sweep(
        at,
        n,
        math.exp(vertex),
        np.exp(bootstrap.interval(known)).tolist() if sound else None,
        math.exp(np.polyval(curve.coef[::-1], vertex - curve.centre)),
        "",
        [],
    )


# -- the law --------------------------------------------------------------------------------------
def _check_enough(names, at: np.ndarray, sweeps: list[Sweep]) -> None:
    needed = len(names) + 2
    if len(at) < needed:
        flags = "; ".join(sorted({s.flag for s in sweeps if s.flag})) or "each point is one sweep"
        raise UserError(
            f"{len(at)} of {len(sweeps)} sweeps have an optimum inside them ({flags}); "
            f"a law of {', '.join(names)} needs at least {needed}"
        )
    for name, values in zip(names, at.T, strict=True):
        if (there := levels(np.exp(values))) < LEVELS_NEEDED:
            raise UserError(
                f"{name} has {there} value{'s' * (there > 1)} among the sweeps with an "
                f"optimum; an exponent needs {LEVELS_NEEDED}, better {LEVELS_WANTED}: "
                f"add some, or leave {name} out"
            )


def _fitted(swept, names, at, curves, sweeps, used, draws, noise, resamples, rng_seed) -> SweepLaw:
    y = np.log([s.optimum for s in sweeps if s.optimum is not None])
    design = np.column_stack([np.ones(len(y)), at[used]])
    draws = draws[:, used]
    variance = np.array(
        [_variance(curve, noise) for curve, u in zip(curves, used, strict=True) if u]
    )
    scatter = _scatter(design, y, variance)
    dof = len(y) - design.shape[1]
    solve = _solver(design, variance + scatter**2)
    coef = solve @ y
    rng = np.random.default_rng(rng_seed + 1)
    moved = np.where(np.isfinite(draws), draws, y) - y
    # the scatter is known to the degrees of freedom of these few optima
    own = scatter * np.sqrt(dof / rng.chisquare(dof, len(draws)))
    moved += own[:, None] * rng.standard_normal(draws.shape)
    lines = coef + moved @ solve.T
    ends = bootstrap.interval(lines) if len(lines) else None
    keys = ["c", *names]
    ci95 = (
        {}
        if ends is None
        else {
            k: (np.exp(ends[:, i]) if k == "c" else ends[:, i]).tolist() for i, k in enumerate(keys)
        }
    )
    return SweepLaw(
        swept=swept,
        predictors=names,
        c=float(np.exp(coef[0])),
        exponents=dict(zip(names, coef[1:].tolist(), strict=True)),
        ci95=ci95,
        scatter=scatter,
        noise=noise,
        sweeps=sweeps,
        n_used=int(used.sum()),
        resamples=resamples,
        warnings=_warnings(swept, names, at[used], sweeps),
        draws=lines,
    )


def _variance(curve: _Curve, noise: float) -> float:
    """Of a vertex, by the slopes of -c1 / (2 c2)."""
    _, first, second = curve.coef
    slope = np.array([0.0, -1 / (2 * second), first / (2 * second**2)])
    return float(noise**2 * slope @ np.linalg.pinv(curve.basis.T @ curve.basis) @ slope)


def _solver(design: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """(1 + P, k): what gives the weighted least squares' coefficients from ln optima (k,)."""
    root = 1 / np.sqrt(np.maximum(variance, 1e-12))
    return np.linalg.pinv(design * root[:, None]) * root


def _scatter(design: np.ndarray, y: np.ndarray, variance: np.ndarray) -> float:
    """sd beyond the vertices' own variance (k,), by Paule and Mandel's equation.

    The scatter at which the weighted residuals' sum of squares is its degrees of freedom.
    """

    def excess(square: float) -> float:
        r = y - design @ (_solver(design, variance + square) @ y)
        return float((r**2 / np.maximum(variance + square, 1e-12)).sum()) - (
            len(y) - design.shape[1]
        )

    low, high = 0.0, float(y.var()) + 1e-12
    if excess(low) <= 0:
        return 0.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return math.sqrt(high)


def _warnings(swept: str, names: list[str], at: np.ndarray, sweeps: list[Sweep]) -> list[str]:
    found = []
    for flag in dict.fromkeys(s.flag for s in sweeps if s.flag):
        where = [
            "(" + ", ".join(f"{k}={v:.3g}" for k, v in s.at.items()) + ")"
            for s in sweeps
            if s.flag == flag
        ]
        wanted = next((s.wanted for s in sweeps if s.flag == flag), [])
        remedy = (
            f"; at the first add {swept} = {', '.join(f'{w:.3g}' for w in wanted)}"
            if wanted
            else ""
        )
        found.append(f"{len(where)} sweeps left out, {flag}: {', '.join(where)}{remedy}")
    for name, values in zip(names, at.T, strict=True):
        if levels(np.exp(values)) < LEVELS_WANTED:
            found.append(
                f"{name} has only {levels(np.exp(values))} values: its exponent is little "
                f"more than a ratio below {LEVELS_WANTED}; add one"
            )
    if len(names) == 2 and abs(np.corrcoef(at.T)[0, 1]) > TOGETHER:
        found.append(
            f"{names[0]} and {names[1]} rise together, so nothing tells their exponents "
            f"apart: vary {names[1]} at fixed {names[0]}, or leave one out"
        )
    return found
