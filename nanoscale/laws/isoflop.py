"""Approach 2 beside the fitted surface: the valleys of equal compute, and what they get wrong.

The one idea: Approach 2 is a linear map of the losses followed by a vertex and a line, so the same
map runs on the measured losses, on a thousand noisy copies of them (its interval), and on the
losses of a fitted surface at the same cells (its bias, known exactly because the surface's own
optimum is). Hoffmann et al. 2022, section 3.2; the bias: arXiv 2603.22339.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import numpy as np

from nanoscale.errors import UserError
from nanoscale.laws import bootstrap
from nanoscale.laws.arrays import Array, Index, Mask
from nanoscale.laws.band import Ends
from nanoscale.laws.fit import LawFit
from nanoscale.laws.points import (
    TableColumns,
    by_budget,
    number_columns,
    numbers,
    with_compute,
)
from nanoscale.laws.record import Optimum, Record

MOST_OFF_CENTRE = 0.2  # decades from the vertex to the middle of the grid; more gets a warning
BUDGETS_NEEDED, BUDGETS_WANTED = 2, 3
MOST_LOST = 0.025  # share of resamples without a minimum from which an interval has no end
TOO_FEW_POINTS, UNBRACKETED, OFF_CENTRE = "too few points", "unbracketed", "off-centre"

_Slope = TypeVar("_Slope", float, Array)


@dataclass(frozen=True, kw_only=True)
class Valley:
    """The minimum of loss over log10 of the axis at one budget. None: there is none."""

    C: float
    n_points: int
    vertex: float | None = None  # of the axis, N or D
    ci95: Ends | None = None
    offset: float | None = None  # decades, the middle of the grid over the vertex
    loss: float | None = None  # at the vertex
    flags: list[str]
    used: bool  # in the line

    def at(self, vertex: float, offset: float, loss: float, used: bool) -> Valley:
        """The same with its minimum; vertex: log10."""
        flags = self.flags
        if abs(offset) > MOST_OFF_CENTRE:
            flags = [*flags, OFF_CENTRE]
        place = float(10**vertex)
        return replace(self, vertex=place, offset=offset, loss=loss, flags=flags, used=used)


@dataclass(frozen=True, kw_only=True)
class IsoFlop(Record):
    """Approach 2: a line of log10 N* (or D*) on log10 C through the valleys' vertices."""

    axis: str
    degree: int  # 2: parabola, 3: cubic
    slope: float
    intercept: float  # of log10 of the axis, at C = 1
    exponents: dict[str, float]  # a and b of N* ~ C^a, D* ~ C^b
    ci95: dict[str, Ends]
    noise: float  # of a run, relative to its loss, about the curves
    resamples: int
    lost: int  # resamples in which a budget has no minimum, and is left out
    warnings: list[str]
    valleys: list[Valley]
    grid: IsoflopGrid = field(repr=False)
    used: Mask = field(repr=False)  # (budgets,)
    lines: Array = field(repr=False)  # (R, 2) slope and intercept of the resamples

    def optimum(self, C: float) -> Optimum:
        """N* and D* at C FLOPs, with intervals of the noise (not of the bias)."""
        line = np.array([self.slope, self.intercept])
        N, D = split(self.axis, line, C)
        draws_N, draws_D = split(self.axis, self.lines, C)
        return Optimum(
            N=float(N),
            D=float(D),
            N_ci95=_ends(draws_N),
            D_ci95=_ends(draws_D),
        )


@dataclass(frozen=True)
class IsoflopGrid:
    """Points, N and D (n,), by budget; curves of loss over the axis have a degree of 2 or 3."""

    N: Array
    D: Array
    axis: str
    degree: int

    @cached_property
    def rows(self) -> list[Index]:
        """The points of every budget."""
        return by_budget(6 * self.N * self.D)

    @cached_property
    def x(self) -> Array:
        """log10 of the axis, (n,)."""
        return np.log10(self.N if self.axis == "N" else self.D)

    @cached_property
    def log_budget(self) -> Array:
        """Mean log10 C of every budget, (budgets,)."""
        c = np.log10(6 * self.N * self.D)
        return np.array([c[rows].mean() for rows in self.rows])

    def powers(self, rows: Index) -> Array:
        """Powers of x about its mean, highest first, (points of the budget, degree + 1)."""
        return np.vander(self.x[rows] - self.x[rows].mean(), self.degree + 1)

    def enough(self, rows: Index) -> bool:
        """Whether the curve leaves a residual: one distinct size more than coefficients."""
        return len(np.unique(self.x[rows])) > self.degree + 1

    def coefficients(self, loss: Array) -> list[Array]:
        """Least squares of loss (R, n) at every budget: (R, degree + 1), NaN for too few points."""
        curves = []
        for rows in self.rows:
            curve = np.full((len(loss), self.degree + 1), np.nan)
            if self.enough(rows):
                curve = loss[:, rows] @ np.linalg.pinv(self.powers(rows)).T
            curves.append(curve)
        return curves

    def vertices(self, curves: list[Array]) -> Array:
        """log10 of the axis where every budget's curves are least, (R, budgets), or NaN."""
        places = []
        for rows, curve in zip(self.rows, curves, strict=True):
            places.append(self.x[rows].mean() + lowest(curve))
        return np.stack(places, axis=1)

    def valley(self, i: int, curve: Array, vertex: float, extrapolated: bool) -> Valley:
        """Of budget i: its curve (degree + 1,) and where that is least; no interval yet."""
        rows = self.rows[i]
        x = self.x[rows]
        inside = bool(x.min() <= vertex <= x.max())
        valley = Valley(
            C=float(10 ** self.log_budget[i]),
            n_points=len(rows),
            flags=[],
            used=False,
        )
        if not self.enough(rows):
            valley.flags.append(TOO_FEW_POINTS)
        elif not inside:
            valley.flags.append(UNBRACKETED)
        if not np.isfinite(vertex):
            return valley
        loss = np.polyval(curve, vertex - x.mean())
        middle = (x.min() + x.max()) / 2
        return valley.at(vertex, float(middle - vertex), float(loss), inside or extrapolated)

    def lines(self, used: Mask, vertices: Array) -> Array:
        """(R, 2): slope and intercept on log10 C of vertices (R, budgets) that are used."""
        return line(self.log_budget[used], vertices[:, used])


def isoflop(
    columns: TableColumns,
    loss: Iterable[float],
    *,
    axis: str = "N",
    degree: int = 2,
    extrapolated: bool = False,
    resamples: int = 1000,
    rng_seed: int = 0,
) -> IsoFlop:
    """Approach 2 through runs in budgets: two of the columns N, D and C (C = 6 N D).

    axis: N or D. degree: 2, a parabola in log10 of the axis, or 3, a cubic, which bends as the
    surface does. A minimum outside its grid is flagged and left out unless `extrapolated`.
    Intervals: losses about the curves redrawn with the noise of a run, pooled over budgets. Raises
    `UserError` where fewer than two budgets have a minimum.
    """
    grid, losses = grid_of(columns, loss, axis, degree)
    curves = grid.coefficients(losses[None])
    vertices = grid.vertices(curves)  # (1, budgets)
    valleys = []
    for i, vertex in enumerate(vertices[0]):
        valleys.append(grid.valley(i, curves[i][0], vertex, extrapolated))
    used = np.array([valley.used for valley in valleys])
    _check_enough(used)

    redrawn, noise = _resampled(grid, losses, curves, resamples, rng_seed)
    draws = grid.vertices(grid.coefficients(redrawn))  # (R, budgets)
    lost = int((~np.isfinite(draws[:, used])).any(1).sum())
    slope, intercept = grid.lines(used, vertices)[0].tolist()
    lines = grid.lines(used, draws)
    lines = lines[np.isfinite(lines).all(1)]  # of a resample without any vertex there is none
    for i, valley in enumerate(valleys):
        ends = mostly_known(draws[:, i])
        if valley.vertex is not None and ends is not None:
            valleys[i] = replace(valley, ci95=(10**ends).tolist())
    return IsoFlop(
        axis=axis,
        degree=degree,
        slope=slope,
        intercept=intercept,
        exponents=exponents(axis, slope),
        ci95=intervals(exponents(axis, lines[:, 0])),
        noise=noise,
        resamples=resamples,
        lost=lost,
        warnings=_warnings(axis, valleys, lost, resamples),
        valleys=valleys,
        grid=grid,
        used=used,
        lines=lines,
    )


def _check_enough(used: Mask) -> None:
    count = used.sum()
    if count < BUDGETS_NEEDED:
        raise UserError(
            f"{count} of {len(used)} budgets have a minimum inside their grid; "
            f"Approach 2 needs {BUDGETS_NEEDED}, better {BUDGETS_WANTED}: add sizes on "
            "both sides of the lowest loss"
        )


def grid_of(
    columns: TableColumns, loss: Iterable[float], axis: str, degree: int
) -> tuple[IsoflopGrid, Array]:
    """The points by budget, and their losses (n,); `UserError` for what is no such grid."""
    if axis not in ("N", "D"):
        raise UserError(f"axis {axis!r}: choose 'N' or 'D'")
    if degree not in (2, 3):
        raise UserError(f"degree {degree}: choose 2 (parabola) or 3 (cubic)")
    losses = numbers(loss, "loss")
    given = with_compute(number_columns(columns, losses))
    grid = IsoflopGrid(given["N"], given["D"], axis, degree)
    return grid, losses


@np.errstate(invalid="ignore", divide="ignore")
def lowest(coefficients: Array) -> Array:
    """Where a parabola or cubic (..., degree + 1), highest power first, has its minimum, or NaN."""
    powers = np.moveaxis(coefficients, -1, 0)
    first, second = powers[-2], powers[-3]
    inside = second**2
    if len(powers) == 4:
        inside = inside - 3 * first * powers[0]
    below = second + np.sqrt(inside)  # of the root that is a minimum
    return np.where(below > 0, -first / below, np.nan)


@np.errstate(invalid="ignore", divide="ignore")
def line(x: Array, y: Array) -> Array:
    """(R, 2): slope and intercept of the least squares of y (R, k) on x (k,), without NaN in y."""
    known = np.isfinite(y)
    y = np.where(known, y, 0)
    count = known.sum(1)
    middle = (known @ x) / count
    centred = (x - middle[:, None]) * known
    squares = (centred**2).sum(1)
    slope = (centred * y).sum(1) / squares
    intercept = y.sum(1) / count - slope * middle
    return np.stack([slope, intercept], 1)


def exponents(axis: str, slope: _Slope) -> dict[str, _Slope]:
    """a and b of N* ~ C^a, D* ~ C^b from the slope on one axis: under C = 6 N D they sum to 1."""
    other = 1 - slope
    return {"a": slope, "b": other} if axis == "N" else {"a": other, "b": slope}


@np.errstate(over="ignore", divide="ignore")  # of a resample whose line is wild
def split(axis: str, lines: Array, C: float) -> tuple[Array, Array]:
    """N and D at C = 6 N D FLOPs, (...): by lines (..., 2) of log10 of the axis on log10 C."""
    value = 10 ** (lines[..., 0] * np.log10(C) + lines[..., 1])
    other = C / (6 * value)
    return (value, other) if axis == "N" else (other, value)


def intervals(draws: Mapping[str, Array]) -> dict[str, Ends]:
    """The 95 % of draws (R,) by name; none of no draws."""
    ends = {name: _ends(values) for name, values in draws.items()}
    return {name: pair for name, pair in ends.items() if pair}


def _ends(draws: Array) -> Ends | None:
    return bootstrap.interval(draws).tolist() if len(draws) else None


def mostly_known(draws: Array) -> Array | None:
    """The 95 % (2,) of draws (R,), if of few there is none."""
    known = draws[np.isfinite(draws)]
    if not len(known) or len(known) < (1 - MOST_LOST) * len(draws):
        return None
    return bootstrap.interval(known)


def _resampled(
    grid: IsoflopGrid, loss: Array, curves: list[Array], resamples: int, rng_seed: int
) -> tuple[Array, float]:
    """(R, n) losses about the curves, and the relative sd of a run about them."""
    fitted = loss.copy()
    dof = 0
    for rows, curve in zip(grid.rows, curves, strict=True):
        if grid.enough(rows):
            fitted[rows] = grid.powers(rows) @ curve[0]
            dof += len(rows) - grid.degree - 1
    dof = max(dof, 1)
    fitted = np.log(fitted)
    residual = np.log(loss) - fitted
    sd = float(np.sqrt((residual**2).sum() / dof))
    if resamples:
        bootstrap.check_resamples(resamples)
    noise = bootstrap.Noise(None, 0, sd, dof, False)
    redrawn = bootstrap.resampled(fitted, noise, resamples, rng_seed)
    return np.exp(redrawn), sd


def _warnings(axis: str, valleys: list[Valley], lost: int, resamples: int) -> list[str]:
    remedies = {
        TOO_FEW_POINTS: "add sizes there, or leave the budget out",
        UNBRACKETED: f"add runs beyond the end of the grid of {axis}",
        OFF_CENTRE: "centre the grid on the vertex, as the bias of Approach 2 grows with the "
        "offset",
    }
    warnings = []
    for flag, remedy in remedies.items():
        places = []
        for valley in valleys:
            if flag in valley.flags:
                place = f"{valley.C:.2g}"
                if flag == OFF_CENTRE:
                    place += f" ({axis}* = {valley.vertex:.3g}, {valley.offset:+.2f} decades)"
                places.append(place)
        if places:
            warnings.append(f"{flag} at C = {', '.join(places)}: {remedy}")

    used = sum(valley.used for valley in valleys)
    if used < BUDGETS_WANTED:
        warnings.append(f"a line through {used} budgets has no residual: add a budget")
    if lost > MOST_LOST * resamples:
        warnings.append(
            f"{lost} of {resamples} resamples have a budget without a minimum: the "
            "valleys are flat beside the noise: widen the grid, or fit the surface"
        )
    return warnings


# -- what Approach 2 gets wrong -------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Bias(Record):
    """Approach 2's error at C on its own grid, if the losses were those of the fitted surface."""

    C: float
    bias: dict[str, float]  # of N* and D* relative to the optimum, of a and b as a difference
    ci95: dict[str, Ends]  # over the resamples of the surface
    corrected: dict[str, float]  # N, D, a and b without it
    warnings: list[str]


def bias(valleys: IsoFlop, surface: LawFit, C: float) -> Bias:
    """What Approach 2 as in `valleys` gets wrong at C FLOPs, by its run on the surface's losses."""
    params = np.array([*surface.params.values()])
    error = {}
    for name, errors in _errors(valleys, surface, params[None], C).items():
        error[name] = float(errors[0])
    ci95 = {}
    for name, draws in _errors(valleys, surface, surface.draws, C).items():
        ends = mostly_known(draws)
        if ends is not None:
            ci95[name] = ends.tolist()

    optimum = valleys.optimum(C)
    corrected = {
        "N": optimum.N / (1 + error["N"]),
        "D": optimum.D / (1 + error["D"]),
        "a": valleys.exponents["a"] - error["a"],
        "b": valleys.exponents["b"] - error["b"],
    }
    warnings = []
    if not np.isfinite(error["N"]):
        warnings.append("the fitted surface has no minimum on a budget's grid: no bias is known")
    elif surface.status != "converged":
        warnings.append(f"the surface is {surface.status}: so is this bias")
    return Bias(C=float(C), bias=error, ci95=ci95, corrected=corrected, warnings=warnings)


def _errors(valleys: IsoFlop, surface: LawFit, params: Array, C: float) -> dict[str, Array]:
    """Errors (R,) of noise-free Approach 2 for surfaces params (R, p)."""
    grid = valleys.grid
    losses = surface.form.loss(params, grid.N, grid.D)
    vertices = grid.vertices(grid.coefficients(losses))
    lines = grid.lines(valleys.used, vertices)
    N, D = split(grid.axis, lines, C)
    best_N, best_D = surface.form.optimum(params, C)
    slopes = exponents(grid.axis, lines[:, 0])
    exact = surface.form.exponents(params)
    return {
        "N": N / best_N - 1,
        "D": D / best_D - 1,
        "a": slopes["a"] - exact["a"],
        "b": slopes["b"] - exact["b"],
    }
