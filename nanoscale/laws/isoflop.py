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
from nanoscale.laws.fit import LawFit
from nanoscale.laws.points import number_columns, numbers, with_compute
from nanoscale.laws.record import Optimum, Record

SAME_BUDGET = 0.1  # runs whose C differs by less, relative to the smallest, share a budget
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
    ci95: list[float] | None = None
    offset: float | None = None  # decades, the middle of the grid over the vertex
    loss: float | None = None  # at the vertex
    flags: list[str]
    used: bool  # in the line


@dataclass(frozen=True, kw_only=True)
class IsoFlop(Record):
    """Approach 2: a line of log10 N* (or D*) on log10 C through the valleys' vertices."""

    axis: str
    degree: int  # 2: parabola, 3: cubic
    slope: float
    intercept: float  # of log10 of the axis, at C = 1
    exponents: dict[str, float]  # a and b of N* ~ C^a, D* ~ C^b
    ci95: dict[str, list[float]]
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
        N, D = (float(value) for value in split(self.axis, line, C))
        if not len(self.lines):
            return Optimum(N, D)
        return Optimum(N, D, *(_ends(draws) for draws in split(self.axis, self.lines, C)))


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
        return budgets(6 * self.N * self.D)

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
            if self.enough(rows):
                curve = loss[:, rows] @ np.linalg.pinv(self.powers(rows)).T
            else:
                curve = np.full((len(loss), self.degree + 1), np.nan)
            curves.append(curve)
        return curves

    def vertices(self, curves: list[Array]) -> Array:
        """log10 of the axis where every budget's curves are least, (R, budgets), or NaN."""
        places = [
            self.x[rows].mean() + lowest(c) for rows, c in zip(self.rows, curves, strict=True)
        ]
        return np.stack(places, axis=1)

    def inside(self, vertices: Array) -> Mask:
        """Whether the vertices (budgets,) lie between the smallest and the largest point."""
        ends = np.array([(self.x[rows].min(), self.x[rows].max()) for rows in self.rows])
        return (ends[:, 0] <= vertices) & (vertices <= ends[:, 1])


def isoflop(
    columns: Mapping[str, Iterable[float]],
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
    vertices = grid.vertices(curves)[0]
    inside = grid.inside(vertices)
    used = np.isfinite(vertices) & (inside | extrapolated)
    _check_enough(used)

    redrawn, noise = _resampled(grid, losses, curves, resamples, rng_seed)
    draws = grid.vertices(grid.coefficients(redrawn))  # (R, budgets)
    lost = int((~np.isfinite(draws[:, used])).any(1).sum())
    slope, intercept = _lines(grid, used, vertices[None])[0]
    lines = _lines(grid, used, draws)
    valleys = []
    for i, vertex in enumerate(vertices):
        valley = _valley(grid, i, curves[i][0], vertex, draws[:, i], inside[i], used[i])
        valleys.append(valley)
    return IsoFlop(
        axis=axis,
        degree=degree,
        slope=float(slope),
        intercept=float(intercept),
        exponents=exponents(axis, float(slope)),
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
    columns: Mapping[str, Iterable[float]], loss: Iterable[float], axis: str, degree: int
) -> tuple[IsoflopGrid, Array]:
    """The points by budget, and their losses (n,); `UserError` for what is no such grid."""
    if axis not in ("N", "D"):
        raise UserError(f"axis {axis!r}: choose 'N' or 'D'")
    if degree not in (2, 3):
        raise UserError(f"degree {degree}: choose 2 (parabola) or 3 (cubic)")
    losses = numbers(loss, "loss")
    given = with_compute(number_columns(columns, len(losses)))
    return IsoflopGrid(given["N"], given["D"], axis, degree), losses


def budgets(C: Array) -> list[Index]:
    """Indices of the runs of every budget, in order of C (n,)."""
    order = np.argsort(C, kind="stable")
    first = 0
    starts = []
    for at, row in enumerate(order):
        if not at or C[row] > (1 + SAME_BUDGET) * C[order[first]]:
            first = at
            starts.append(at)
    return np.split(order, starts[1:])


def lowest(coefficients: Array) -> Array:
    """Where a parabola or cubic (..., degree + 1), highest power first, has its minimum, or NaN."""
    second, first = coefficients[..., -3], coefficients[..., -2]
    third = coefficients[..., 0] if coefficients.shape[-1] == 4 else 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        below = second + np.sqrt(second**2 - 3 * first * third)  # of the root that is a minimum
        return np.where(below > 0, -first / below, np.nan)


@np.errstate(invalid="ignore", divide="ignore")
def line(x: Array, y: Array) -> Array:
    """(R, 2): slope and intercept of the least squares of y (R, k) on x (k,), without NaN in y."""
    known = np.isfinite(y)
    y = np.where(known, y, 0)
    count = known.sum(1)
    middle = (known @ x) / count
    centred = (x - middle[:, None]) * known
    slope = (centred * y).sum(1) / (centred**2).sum(1)
    return np.stack([slope, y.sum(1) / count - slope * middle], 1)


def _lines(grid: IsoflopGrid, used: Mask, vertices: Array) -> Array:
    """(R, 2): through the vertices (R, budgets) that are used, without those of which none is."""
    lines = line(grid.log_budget[used], vertices[:, used])
    return lines[np.isfinite(lines).all(1)]


def exponents(axis: str, slope: _Slope) -> dict[str, _Slope]:
    """a and b of N* ~ C^a, D* ~ C^b from the slope on one axis: under C = 6 N D they sum to 1."""
    if axis == "N":
        return {"a": slope, "b": 1 - slope}
    return {"a": 1 - slope, "b": slope}


def split(axis: str, lines: Array, C: float) -> tuple[Array, Array]:
    """N and D at C = 6 N D FLOPs, (...): by lines (..., 2) of log10 of the axis on log10 C."""
    value = 10 ** (lines[..., 0] * np.log10(C) + lines[..., 1])
    other = C / (6 * value)
    return (value, other) if axis == "N" else (other, value)


def intervals(draws: Mapping[str, Array]) -> dict[str, list[float]]:
    """The 95 % of draws (R,) by name; none of no draws."""
    return {name: _ends(values) for name, values in draws.items() if len(values)}


def _ends(draws: Array) -> list[float]:
    low, high = bootstrap.interval(draws)
    return [float(low), float(high)]


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
    sd = float(np.sqrt(((np.log(loss) - fitted) ** 2).sum() / dof))
    if not resamples:
        return np.empty((0, len(loss))), sd

    bootstrap.check_resamples(resamples)
    noise = bootstrap.Noise(None, 0, sd, dof, False)
    return np.exp(bootstrap.resampled(fitted, noise, resamples, rng_seed)), sd


def _valley(
    grid: IsoflopGrid, i: int, curve: Array, vertex: float, draws: Array, inside: bool, used: bool
) -> Valley:
    """Of budget i: its curve (degree + 1,), the vertex, and those of the resamples, draws (R,)."""
    rows = grid.rows[i]
    x = grid.x[rows]
    flags = []
    if not grid.enough(rows):
        flags.append(TOO_FEW_POINTS)
    elif not inside:
        flags.append(UNBRACKETED)
    valley = Valley(
        C=float(10 ** grid.log_budget[i]), n_points=len(rows), flags=flags, used=bool(used)
    )
    if not np.isfinite(vertex):
        return valley

    offset = float((x.min() + x.max()) / 2 - vertex)
    if abs(offset) > MOST_OFF_CENTRE:
        flags.append(OFF_CENTRE)
    sound = draws[np.isfinite(draws)]
    ci95 = None
    if len(sound) and len(sound) >= (1 - MOST_LOST) * len(draws):
        ci95 = (10 ** bootstrap.interval(sound)).tolist()
    loss = np.vander([vertex - x.mean()], grid.degree + 1) @ curve
    return replace(valley, vertex=float(10**vertex), ci95=ci95, offset=offset, loss=float(loss[0]))


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
    ci95: dict[str, list[float]]  # over the resamples of the surface
    corrected: dict[str, float]  # N, D, a and b without it
    warnings: list[str]


def bias(valleys: IsoFlop, surface: LawFit, C: float) -> Bias:
    """What Approach 2 as in `valleys` gets wrong at C FLOPs, by its run on the surface's losses."""
    params = np.array(list(surface.params.values()))
    error = {name: float(v[0]) for name, v in _errors(valleys, surface, params[None], C).items()}
    ci95 = {}
    if len(surface.draws):
        for name, draws in _errors(valleys, surface, surface.draws, C).items():
            sound = draws[np.isfinite(draws)]
            if len(sound) >= (1 - MOST_LOST) * len(draws):
                ci95[name] = _ends(sound)

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
    lines = line(grid.log_budget[valleys.used], vertices[:, valleys.used])
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
