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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nanoscale.errors import UserError
from nanoscale.laws import bootstrap
from nanoscale.laws.arrays import Array, Index
from nanoscale.laws.forms import number
from nanoscale.laws.points import (
    LEVELS_NEEDED,
    LEVELS_WANTED,
    levels,
    number_columns,
    numbers,
    plain_labels,
    rise_together,
)
from nanoscale.laws.record import Record

_REACH = math.log(4.05)  # of the parabola about the lowest mean, in ln of what is swept
FEWEST_VALUES = 4  # that a parabola goes through; one more than it has coefficients
MOST_UNKNOWN = 0.025  # share of resamples without a vertex from which one is not known
WIDTHS_BEYOND = 1.0  # of a sweep, by which a resample's vertex may lie outside it
OCTAVES_MORE = (1, 2)  # beyond the edge of a sweep, where its optimum is looked for next
LEAST_VARIANCE = 1e-12  # of an optimum, so that a weight is finite
HALVINGS = 100  # of the scatter's bracket

AT_LOW_EDGE, AT_HIGH_EDGE = "lowest loss at the smallest value", "lowest loss at the largest value"
TOO_FEW_VALUES, NOT_BENT = "too few values", "does not bend upwards"
OUTSIDE = "minimum outside its sweep"


@dataclass(frozen=True)
class Sweep:
    """One (N, D): its optimum of what is swept. None: it has none, and `flag` says why."""

    at: dict[str, float]  # the predictors
    n_values: int
    optimum: float | None = None
    ci95: list[float] | None = None  # of noise
    loss: float | None = None  # at the optimum
    flag: str = ""
    wanted: list[float] = field(default_factory=list)  # values that would bracket it

    def place(self) -> str:
        """`(N=1e+09, D=3e+10)`."""
        values = [f"{name}={value:.3g}" for name, value in self.at.items()]
        return f"({', '.join(values)})"


@dataclass(frozen=True)
class SweepOptimum(Record):
    """A law's optimum at some predictors; no intervals without resamples."""

    optimum: float
    ci95: list[float] | None = None  # of the law
    sweep_ci95: list[float] | None = None  # of one sweep's optimum, which scatters about the law


@dataclass(frozen=True, kw_only=True)
class SweepLaw(Record):
    """optimum = c prod x^exponent. draws (R, 1 + P): ln c and the exponents of the resamples."""

    swept: str
    predictors: list[str]
    c: float
    exponents: dict[str, float]
    ci95: dict[str, list[float]]
    scatter: float  # sd of ln optimum about the law, beyond noise
    noise: float  # sd of a run's ln loss about its sweep's curve
    n_used: int
    resamples: int
    warnings: list[str]
    sweeps: list[Sweep] = field(repr=False)  # used or not
    draws: Array = field(repr=False)

    def predict(self, **x: float) -> SweepOptimum:
        """The optimum at e.g. N=1e9, D=2e10."""
        row = np.array([1.0, *[math.log(float(x[name])) for name in self.predictors]])
        optimum = float(np.exp(row @ [math.log(self.c), *self.exponents.values()]))
        if not len(self.draws):
            return SweepOptimum(optimum)

        laws = self.draws @ row
        scattered = laws + self.scatter * np.random.default_rng(0).standard_normal(len(laws))
        return SweepOptimum(optimum, _interval(laws), _interval(scattered))

    def equation(self) -> str:
        """`lr* = 1.2 N^-0.71 D^0.31`."""
        powers = [f"{name}^{number(value)}" for name, value in self.exponents.items()]
        return f"{self.swept}* = {number(self.c)} {' '.join(powers)}"

    def to_json(self) -> dict[str, Any]:
        """Plain types, and the equation."""
        return super().to_json() | {"equation": self.equation()}


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
    sweeps = Sweeps.of(columns, loss, swept, seed=seed, resamples=resamples, rng_seed=rng_seed)
    reason = sweeps.why_no_law()
    if reason:
        raise UserError(reason)
    return sweeps.law(rng_seed)


# -- the sweeps of a table ------------------------------------------------------------------------
@dataclass(frozen=True)
class Sweeps:
    """All sweeps of a table, S of them, and the optima of their resamples."""

    swept: str
    names: list[str]  # of the P predictors
    x: Array  # (S, P) ln predictors
    parabolas: list[Parabola]
    noise: float  # sd of ln loss about the parabolas
    draws: Array  # (R, S) ln optima; NaN where there is none
    sweeps: list[Sweep]

    @classmethod
    def of(
        cls,
        columns: Mapping[str, Iterable[float]],
        loss: Iterable[float],
        swept: str,
        *,
        seed: Iterable[object] | None = None,
        resamples: int = 1000,
        rng_seed: int = 0,
    ) -> Sweeps:
        """Of a table; the arguments and refusals are those of `sweep_law`."""
        y = np.log(numbers(loss, "loss"))
        given = number_columns(columns, len(y))
        if swept not in given or len(given) < 2:
            raise UserError(
                f"columns {', '.join(given) or 'none'}: give {swept!r} and what it depends "
                "on, such as N and D"
            )

        v = np.log(given.pop(swept))
        names = list(given)
        x = np.log(np.array(list(given.values())))  # (P, n)
        if seed is not None:
            _check_twins(names, x, v, plain_labels(seed))

        cells = _cells(x)
        places = np.stack([x[:, rows].mean(1) for rows in cells])
        parabolas = [Parabola.through(v[rows], y[rows]) for rows in cells]
        noise, dof = _noise(parabolas)
        draws = _vertices(parabolas, noise, dof, resamples, rng_seed)
        sweeps = []
        for place, parabola, vertices in zip(places, parabolas, draws.T, strict=True):
            at = dict(zip(names, np.exp(place).tolist(), strict=True))
            sweeps.append(_sweep(at, parabola, vertices))
        return cls(swept, names, places, parabolas, noise, draws, sweeps)

    @property
    def used(self) -> Index:
        """Those with an optimum."""
        return np.flatnonzero([sweep.optimum is not None for sweep in self.sweeps])

    def why_no_law(self) -> str:
        """Why no law goes through the optima, and the remedy; nothing where one does."""
        needed = len(self.names) + 2
        used = self.used
        if len(used) < needed:
            flags = sorted({sweep.flag for sweep in self.sweeps if sweep.flag})
            return (
                f"{len(used)} of {len(self.sweeps)} sweeps have an optimum inside them "
                f"({'; '.join(flags) or 'each point is one sweep'}); "
                f"a law of {', '.join(self.names)} needs at least {needed}"
            )
        for name, count in self._levels():
            if count < LEVELS_NEEDED:
                plural = "s" if count > 1 else ""
                return (
                    f"{name} has {count} value{plural} among the sweeps with an "
                    f"optimum; an exponent needs {LEVELS_NEEDED}, better {LEVELS_WANTED}: "
                    f"add some, or leave {name} out"
                )
        return ""

    def law(self, rng_seed: int = 0) -> SweepLaw:
        """The law through the optima, which must be enough for one (`why_no_law`)."""
        used = self.used
        basis = np.column_stack([np.ones(len(used)), self.x[used]])  # (k, 1 + P)
        y = np.log([sweep.optimum for sweep in self.sweeps if sweep.optimum is not None])
        variance = np.array([self.parabolas[i].vertex_variance(self.noise) for i in used])
        scatter = _scatter(basis, y, variance)
        solve = _least_squares(basis, variance + scatter**2)
        coef = solve @ y

        lines = coef + self._moved(y, scatter, basis.shape[1], rng_seed) @ solve.T
        ci95 = {}
        if len(lines):
            ends = bootstrap.interval(lines)
            ci95["c"] = np.exp(ends[:, 0]).tolist()
            ci95 |= zip(self.names, ends.T[1:].tolist(), strict=True)
        return SweepLaw(
            swept=self.swept,
            predictors=self.names,
            c=float(np.exp(coef[0])),
            exponents=dict(zip(self.names, coef[1:].tolist(), strict=True)),
            ci95=ci95,
            scatter=scatter,
            noise=self.noise,
            n_used=len(used),
            resamples=len(self.draws),
            warnings=self._warnings(),
            sweeps=self.sweeps,
            draws=lines,
        )

    def left_out(self) -> list[str]:
        """A warning of every kind of sweep without an optimum, and the values that would help."""
        warnings = []
        for flag in dict.fromkeys(sweep.flag for sweep in self.sweeps if sweep.flag):
            left_out = [sweep for sweep in self.sweeps if sweep.flag == flag]
            places = ", ".join(sweep.place() for sweep in left_out)
            warning = f"{len(left_out)} sweeps left out, {flag}: {places}"
            if left_out[0].wanted:
                values = ", ".join(f"{value:.3g}" for value in left_out[0].wanted)
                warning += f"; at the first add {self.swept} = {values}"
            warnings.append(warning)
        return warnings

    def _warnings(self) -> list[str]:
        """What is left out of a law, and what is little to go on."""
        warnings = self.left_out()
        for name, count in self._levels():
            if count < LEVELS_WANTED:
                warnings.append(
                    f"{name} has only {count} values: its exponent is little "
                    f"more than a ratio below {LEVELS_WANTED}; add one"
                )
        if rise_together(self.x[self.used].T):
            first, second = self.names
            warnings.append(
                f"{first} and {second} rise together, so nothing tells their exponents "
                f"apart: vary {second} at fixed {first}, or leave one out"
            )
        return warnings

    def _levels(self) -> list[tuple[str, int]]:
        """Every predictor and its number of values among the sweeps that are used."""
        values = np.exp(self.x[self.used])
        return [(name, levels(column)) for name, column in zip(self.names, values.T, strict=True)]

    def _moved(self, y: Array, scatter: float, n_params: int, rng_seed: int) -> Array:
        """(R, k): by how much the optima y (k,) move, by their noise and their scatter."""
        rng = np.random.default_rng(rng_seed + 1)
        draws = self.draws[:, self.used]
        moved = np.where(np.isfinite(draws), draws, y) - y
        # the scatter is known to the degrees of freedom of these few optima
        dof = len(y) - n_params
        sd = scatter * np.sqrt(dof / rng.chisquare(dof, len(draws)))
        moved += sd[:, None] * rng.standard_normal(draws.shape)
        return moved


def _cells(x: Array) -> list[Index]:
    """Rows of every distinct point of predictors x (P, n), equal to a part in a million."""
    index = np.unique(x.round(6), axis=1, return_inverse=True)[1].ravel()
    return [np.flatnonzero(index == k) for k in range(index.max() + 1)]


def _check_twins(names: Sequence[str], x: Array, v: Array, seeds: Sequence[object]) -> None:
    """A run listed twice would pass for two."""
    runs = set()
    rows = zip(*x.round(9).tolist(), v.round(9).tolist(), seeds, strict=True)
    for row, run in enumerate(rows):
        if run in runs:
            raise UserError(
                f"row {row} repeats an earlier one of equal {', '.join(names)}, value "
                "and seed; keep one of them"
            )
        runs.add(run)


# -- one sweep ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Parabola:
    """ln loss by u = ln value - centre, through the runs about the lowest mean."""

    values: Array  # (V,) ln of all values swept, ascending
    centre: float
    basis: Array  # (k, 3) 1, u, u^2 of the runs inside
    coef: Array  # (3,) NaN where there are too few values
    residual: Array  # (k,)
    flag: str  # why it has no minimum, or nothing

    @classmethod
    def through(cls, v: Array, y: Array) -> Parabola:
        """Of one sweep's ln values v (n,) and ln losses y (n,)."""
        values, cell = np.unique(v.round(9), return_inverse=True)
        mean = np.bincount(cell, y) / np.bincount(cell)
        lowest = int(mean.argmin())
        distance = np.abs(values - values[lowest])
        near = distance <= _REACH
        if near.sum() < FEWEST_VALUES:  # take the nearest, the lower of two that are as near
            near = np.zeros(len(values), bool)
            near[np.lexsort((mean, distance.round(6)))[:FEWEST_VALUES]] = True

        inside = near[cell]
        centre = float(values[near].mean())
        basis = np.vander(v[inside] - centre, 3, increasing=True)
        coef = np.full(3, np.nan)
        residual = np.empty(0)
        if near.sum() >= FEWEST_VALUES:
            coef = np.linalg.lstsq(basis, y[inside], rcond=None)[0]
            residual = y[inside] - basis @ coef
        return cls(values, centre, basis, coef, residual, _flag(values, lowest, centre, coef))

    @property
    def dof(self) -> int:
        """Runs beyond the parabola's coefficients."""
        return max(len(self.residual) - 3, 0)

    def vertex(self, coef: Array) -> Array:
        """ln of the optimum for coefficients (..., 3); NaN where they do not bend upwards.

        It lies at most the sweep's own width beyond it.
        """
        low, high = self.values[[0, -1]]
        room = WIDTHS_BEYOND * (high - low)
        with np.errstate(divide="ignore", invalid="ignore"):
            u = -coef[..., 1] / (2 * coef[..., 2])
            vertex = np.clip(self.centre + u, low - room, high + room)
        return np.where(coef[..., 2] > 0, vertex, np.nan)

    def vertex_variance(self, noise: float) -> float:
        """Of the vertex, by the slopes of -c1 / (2 c2)."""
        _, first, second = self.coef
        slope = np.array([0.0, -1 / (2 * second), first / (2 * second**2)])
        return float(noise**2 * slope @ np.linalg.pinv(self.basis.T @ self.basis) @ slope)

    def wanted(self) -> list[float]:
        """Values that would bracket the minimum, beyond the edge that it lies towards."""
        if self.flag in ("", TOO_FEW_VALUES, NOT_BENT):
            return []
        falling = self.flag == OUTSIDE and self.coef[1] > 0
        if self.flag == AT_LOW_EDGE or falling:
            more = [self.values[0] - k * math.log(2) for k in reversed(OCTAVES_MORE)]
        else:
            more = [self.values[-1] + k * math.log(2) for k in OCTAVES_MORE]
        return [float(value) for value in np.exp(more)]


def _flag(values: Array, lowest: int, centre: float, coef: Array) -> str:
    """Why a sweep of ln values (V,), lowest at that index, has no minimum inside it."""
    if lowest == 0:
        return AT_LOW_EDGE
    if lowest == len(values) - 1:
        return AT_HIGH_EDGE
    if np.isnan(coef[2]):
        return TOO_FEW_VALUES
    if coef[2] <= 0:
        return NOT_BENT
    vertex = centre - coef[1] / (2 * coef[2])
    return "" if values[0] < vertex < values[-1] else OUTSIDE


def _noise(parabolas: Sequence[Parabola]) -> tuple[float, int]:
    """sd of ln loss about the parabolas, pooled over sweeps with an optimum, and its freedom."""
    sound = [parabola for parabola in parabolas if not parabola.flag]
    dof = sum(parabola.dof for parabola in sound)
    if not dof:
        return 0.0, 0
    squares = sum(float(parabola.residual @ parabola.residual) for parabola in sound)
    return math.sqrt(squares / dof), dof


def _vertices(
    parabolas: Sequence[Parabola], noise: float, dof: int, resamples: int, rng_seed: int
) -> Array:
    """(R, S): ln optima of losses drawn anew about the parabolas."""
    if not resamples:
        return np.empty((0, len(parabolas)))
    bootstrap.check_resamples(resamples)
    rng = np.random.default_rng(rng_seed)
    sd = np.zeros(resamples)
    if dof:
        sd = noise * np.sqrt(dof / rng.chisquare(dof, resamples))

    vertices = np.full((resamples, len(parabolas)), np.nan)
    for i, parabola in enumerate(parabolas):
        if not parabola.flag:
            z = rng.standard_normal((resamples, len(parabola.basis))) * sd[:, None]
            coef = parabola.coef + z @ np.linalg.pinv(parabola.basis).T
            vertices[:, i] = parabola.vertex(coef)
    return vertices


def _sweep(at: dict[str, float], parabola: Parabola, draws: Array) -> Sweep:
    """What a parabola and the vertices of its resamples, draws (R,), say."""
    n_values = len(parabola.values)
    if parabola.flag:
        return Sweep(at, n_values, flag=parabola.flag, wanted=parabola.wanted())

    vertex = float(parabola.vertex(parabola.coef))
    loss = math.exp(np.polyval(parabola.coef[::-1], vertex - parabola.centre))
    known = draws[np.isfinite(draws)]
    ci95 = None
    if len(known) and len(known) >= (1 - MOST_UNKNOWN) * len(draws):
        ci95 = _interval(known)
    return Sweep(at, n_values, math.exp(vertex), ci95, loss)


def _interval(logarithms: Array) -> list[float]:
    """The 95 % of what has these logarithms (R,)."""
    low, high = np.exp(bootstrap.interval(logarithms))
    return [float(low), float(high)]


# -- the line through the optima ------------------------------------------------------------------
def _least_squares(basis: Array, variance: Array) -> Array:
    """(1 + P, k): what gives the weighted least squares' coefficients from ln optima (k,)."""
    root = 1 / np.sqrt(np.maximum(variance, LEAST_VARIANCE))
    return np.linalg.pinv(basis * root[:, None]) * root


def _scatter(basis: Array, y: Array, variance: Array) -> float:
    """sd beyond the vertices' own variance (k,), by Paule and Mandel's equation.

    The scatter at which the weighted residuals' sum of squares is its degrees of freedom.
    """
    dof = len(y) - len(basis.T)

    def excess(square: float) -> float:
        total = variance + square
        r = y - basis @ (_least_squares(basis, total) @ y)
        return float((r**2 / np.maximum(total, LEAST_VARIANCE)).sum()) - dof

    low = 0.0
    high = float(y.var()) + LEAST_VARIANCE
    if excess(low) <= 0:
        return 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if excess(middle) > 0:
            low = middle
        else:
            high = middle
    return math.sqrt(high)
