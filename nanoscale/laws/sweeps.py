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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from nanoscale.errors import UserError
from nanoscale.laws import bootstrap
from nanoscale.laws.arrays import Array, Index
from nanoscale.laws.band import Ends
from nanoscale.laws.forms import number
from nanoscale.laws.points import (
    LEVELS_NEEDED,
    LEVELS_WANTED,
    RowLabels,
    TableColumns,
    levels,
    number_columns,
    numbers,
    plain_labels,
    rise_together,
)
from nanoscale.laws.record import Record
from nanoscale.laws.sweep_optima import (
    Parabola,
    Sweep,
    pooled_noise,
    redrawn_vertices,
    sweep_of,
)
from nanoscale.spec.values import Json

LEAST_VARIANCE = 1e-12  # of an optimum, so that a weight is finite
HALVINGS = 100  # of the scatter's bracket


@dataclass(frozen=True)
class SweepOptimum(Record):
    """A law's optimum at some predictors; no intervals without resamples."""

    optimum: float
    ci95: Ends | None = None  # of the law
    sweep_ci95: Ends | None = None  # of one sweep's optimum, which scatters about the law


@dataclass(frozen=True, kw_only=True)
class SweepLaw(Record):
    """optimum = c prod x^exponent. draws (R, 1 + P): ln c and the exponents of the resamples."""

    swept: str
    predictors: list[str]
    c: float
    exponents: dict[str, float]
    ci95: dict[str, Ends]
    scatter: float  # sd of ln optimum about the law, beyond noise
    noise: float  # sd of a run's ln loss about its sweep's curve
    n_used: int
    resamples: int
    warnings: list[str]
    sweeps: list[Sweep] = field(repr=False)  # used or not
    draws: Array = field(repr=False)

    def predict(self, **x: float) -> SweepOptimum:
        """The optimum at e.g. N=1e9, D=2e10."""
        at = [float(x[name]) for name in self.predictors]
        row = np.array([1.0, *map(math.log, at)])
        law = [math.log(self.c), *self.exponents.values()]
        optimum = float(np.exp(row @ law))
        if not len(self.draws):
            return SweepOptimum(optimum)

        laws = self.draws @ row
        z = np.random.default_rng(0).standard_normal(len(laws))
        both = np.column_stack([laws, laws + self.scatter * z])
        ends = np.exp(bootstrap.interval(both)).T
        return SweepOptimum(optimum, *ends.tolist())

    def equation(self) -> str:
        """`lr* = 1.2 N^-0.71 D^0.31`."""
        powers = [f"{name}^{number(value)}" for name, value in self.exponents.items()]
        return f"{self.swept}* = {number(self.c)} {' '.join(powers)}"

    def to_json(self) -> dict[str, Json]:
        """Plain types, and the equation."""
        return super().to_json() | {"equation": self.equation()}


def sweep_law(
    columns: TableColumns,
    loss: Iterable[float],
    swept: str,
    *,
    seed: RowLabels | None = None,
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
        columns: TableColumns,
        loss: Iterable[float],
        swept: str,
        *,
        seed: RowLabels | None = None,
        resamples: int = 1000,
        rng_seed: int = 0,
    ) -> Sweeps:
        """Of a table; the arguments and refusals are those of `sweep_law`."""
        y = np.log(numbers(loss, "loss"))
        given = number_columns(columns, y)
        if swept not in given or len(given) < 2:
            raise UserError(
                f"columns {', '.join(given) or 'none'}: give {swept!r} and what it depends "
                "on, such as N and D"
            )

        v = np.log(given.pop(swept))
        names = [*given]
        x = np.log([*given.values()])  # (P, n)
        if seed is not None:
            check_twins(names, x, v[None], plain_labels(seed))

        places = []
        parabolas = []
        for rows in cells_of(x):
            places.append(x[:, rows].mean(1))
            parabolas.append(Parabola.through(v[rows], y[rows]))
        noise, dof = pooled_noise(parabolas)
        draws = redrawn_vertices(parabolas, noise, dof, resamples, rng_seed)
        sweeps = []
        for place, parabola, vertices in zip(places, parabolas, draws.T, strict=True):
            at = dict(zip(names, np.exp(place).tolist(), strict=True))
            sweeps.append(sweep_of(at, parabola, vertices))
        return cls(swept, names, np.stack(places), parabolas, noise, draws, sweeps)

    @property
    def used(self) -> Index:
        """Those with an optimum."""
        return np.flatnonzero([sweep.optimum is not None for sweep in self.sweeps])

    def why_no_law(self) -> str:
        """Why no law goes through the optima, and the remedy; nothing where one does."""
        needed = len(self.names) + 2
        if len(self.used) < needed:
            flags = sorted({sweep.flag for sweep in self.sweeps if sweep.flag})
            return (
                f"{len(self.used)} of {len(self.sweeps)} sweeps have an optimum inside them "
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
        moved = self._moved(y, scatter, basis.shape[1], rng_seed)
        lines = coef + moved @ solve.T
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
            places = [sweep.place() for sweep in left_out]
            warning = f"{len(places)} sweeps left out, {flag}: {', '.join(places)}"
            wanted = [f"{value:.3g}" for value in left_out[0].wanted]
            if wanted:
                warning += f"; at the first add {self.swept} = {', '.join(wanted)}"
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
        known = np.isfinite(draws)
        moved = np.where(known, draws, y) - y
        # the scatter is known to the degrees of freedom of these few optima
        dof = len(y) - n_params
        share = dof / rng.chisquare(dof, len(draws))
        sd = scatter * np.sqrt(share)
        moved += sd[:, None] * rng.standard_normal(draws.shape)
        return moved


def cells_of(x: Array) -> list[Index]:
    """Rows of every distinct point of predictors x (P, n), equal to a part in a million."""
    index = np.unique(x.round(6), axis=1, return_inverse=True)[1].ravel()
    return [np.flatnonzero(index == k) for k in range(index.max() + 1)]


def check_twins(names: Sequence[str], x: Array, v: Array, seeds: Sequence[object]) -> None:
    """A run listed twice would pass for two: predictors x (P, n), what was swept v (k, n)."""
    runs = set()
    rows = zip(*x.round(9).tolist(), *v.round(9).tolist(), seeds, strict=True)
    for row, run in enumerate(rows):
        if run in runs:
            raise UserError(
                f"row {row} repeats an earlier one of equal {', '.join(names)}, value "
                "and seed; keep one of them, or name what else was swept (--lr and --batch)"
            )
        runs.add(run)


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
