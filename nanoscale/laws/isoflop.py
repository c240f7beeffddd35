"""Approaches 1 and 2 beside 3: the envelope, the valleys of equal compute, and their bias.

The one idea: Approach 2 is a linear map of the losses followed by a vertex and a line, so the same
map runs on the measured losses, on a thousand noisy copies of them (its interval), and on the
losses of a fitted surface at the same cells (its bias, known exactly because the surface's own
optimum is). Hoffmann et al. 2022, sections 3.1 and 3.2; the bias: arXiv 2603.22339.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

import numpy as np

from nanoscale.errors import UserError
from nanoscale.laws import bootstrap
from nanoscale.laws.fit import LawFit
from nanoscale.laws.points import numbers, with_compute
from nanoscale.store.files import plain

SAME_BUDGET = 0.1  # runs whose C differs by less, relative to the smallest, share a budget
OFF_CENTRE = 0.2  # decades from the vertex to the middle of the grid that are worth a warning
BUDGETS_NEEDED, BUDGETS_WANTED = 2, 3
MOST_LOST = 0.025  # share of resamples without a minimum from which an interval has no end
TOO_FEW, UNBRACKETED, OFF = "too few points", "unbracketed", "off-centre"


@dataclass(frozen=True)
class Valley:
    """The minimum of loss over log10 of the axis at one budget. None: there is none."""

    C: float
    n_points: int
    vertex: float | None  # of the axis, N or D
    ci95: list[float] | None
    offset: float | None  # decades, the middle of the grid over the vertex
    loss: float | None  # at the vertex
    flags: list[str]
    used: bool  # in the line


@dataclass(frozen=True, kw_only=True)
class IsoFlop:
    """Approach 2: a line of log10 N* (or D*) on log10 C through the valleys' vertices."""

    axis: str
    degree: int  # 2: parabola, 3: cubic
    valleys: list[Valley]
    slope: float
    intercept: float  # of log10 of the axis, at C = 1
    exponents: dict[str, float]  # a and b of N* ~ C^a, D* ~ C^b
    ci95: dict[str, list[float]]
    noise: float  # of a run, relative to its loss, about the curves
    resamples: int
    lost: int  # resamples in which a budget has no minimum, and is left out
    warnings: list[str]
    grid: Grid = field(repr=False)
    used: np.ndarray = field(repr=False)  # (budgets,) mask
    lines: np.ndarray = field(repr=False)  # (R, 2) slope and intercept of the resamples

    def optimum(self, C: float) -> dict[str, float | list[float]]:
        """N* and D* at C FLOPs, with 95 % intervals of the noise (not of the bias)."""
        record = named_pair(self.axis, 10 ** _at(np.array([self.slope, self.intercept]), C), C)
        if len(self.lines):
            ends = named_pair(self.axis, 10 ** _at(self.lines, C), C)
            record |= {f"{k}_ci95": bootstrap.interval(v).tolist() for k, v in ends.items()}
        return {k: float(v) if k in "ND" else v for k, v in record.items()}

    def to_json(self) -> dict[str, object]:
        """Plain types."""
        hidden = {"grid", "used", "lines", "valleys"}
        record = {k: v for k, v in vars(self).items() if k not in hidden}
        return plain(record | {"valleys": [asdict(v) for v in self.valleys]})


@dataclass(frozen=True)
class Grid:
    """Points by budget. x: (n,) log10 of the axis; rows: the points of every budget."""

    N: np.ndarray  # (n,)
    D: np.ndarray  # (n,)
    axis: str
    degree: int
    rows: list[np.ndarray]

    @property
    def x(self) -> np.ndarray:
        """log10 of the axis, (n,)."""
        return np.log10(getattr(self, self.axis))

    @property
    def log_budget(self) -> np.ndarray:
        """Mean log10 C of every budget, (budgets,)."""
        c = np.log10(6 * self.N * self.D)
        return np.array([c[rows].mean() for rows in self.rows])

    def basis(self, rows: np.ndarray) -> np.ndarray:
        """Powers of x about its mean, highest first, (points of the budget, degree + 1)."""
        return np.vander(self.x[rows] - self.x[rows].mean(), self.degree + 1)

    def enough(self, rows: np.ndarray) -> bool:
        """Whether the curve leaves a residual: one distinct size more than coefficients."""
        return len(np.unique(self.x[rows])) > self.degree + 1

    def coefficients(self, loss: np.ndarray) -> list[np.ndarray]:
        """Least squares of loss (R, n) at every budget: (R, degree + 1), NaN for too few points."""
        return [
            loss[:, rows] @ np.linalg.pinv(self.basis(rows)).T
            if self.enough(rows)
            else np.full((len(loss), self.degree + 1), np.nan)
            for rows in self.rows
        ]

    def vertices(self, loss: np.ndarray) -> np.ndarray:
        """log10 of the axis where each curve through loss (R, n) is least, (R, budgets), or NaN."""
        return np.stack(
            [
                self.x[rows].mean() + lowest(c)
                for rows, c in zip(self.rows, self.coefficients(loss), strict=True)
            ],
            axis=1,
        )


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
    grid, loss = grid_of(columns, loss, axis, degree)
    found = grid.vertices(loss[None])[0]
    inside = np.array(
        [grid.x[r].min() <= v <= grid.x[r].max() for r, v in zip(grid.rows, found, strict=True)]
    )
    used = np.isfinite(found) & (inside | extrapolated)
    if used.sum() < BUDGETS_NEEDED:
        raise UserError(
            f"{used.sum()} of {len(used)} budgets have a minimum inside their grid; "
            f"Approach 2 needs {BUDGETS_NEEDED}, better {BUDGETS_WANTED}: add sizes on "
            "both sides of the lowest loss"
        )
    draws, noise = _resampled(grid, loss, resamples, rng_seed)
    vertices = grid.vertices(draws)
    lost = int((~np.isfinite(vertices[:, used])).any(1).sum())
    lines = line(grid.log_budget[used], vertices[:, used])
    lines = lines[np.isfinite(lines).all(1)]
    slope, intercept = line(grid.log_budget[used], found[None, used])[0]
    valleys = [
        _valley(grid, loss, i, found[i], vertices[:, i], bool(used[i]), bool(inside[i]))
        for i in range(len(used))
    ]
    return IsoFlop(
        axis=axis,
        degree=degree,
        valleys=valleys,
        slope=float(slope),
        intercept=float(intercept),
        exponents=exponents(axis, float(slope)),
        noise=noise,
        resamples=resamples,
        lost=lost,
        ci95={k: bootstrap.interval(v).tolist() for k, v in exponents(axis, lines[:, 0]).items()}
        if len(lines)
        else {},
        warnings=_warnings(axis, valleys, lost, resamples),
        grid=grid,
        used=used,
        lines=lines,
    )


def grid_of(
    columns: Mapping[str, Iterable[float]], loss: Iterable[float], axis: str, degree: int
) -> tuple[Grid, np.ndarray]:
    """The points by budget, and their losses (n,); `UserError` for what is no such grid."""
    if axis not in ("N", "D"):
        raise UserError(f"axis {axis!r}: choose 'N' or 'D'")
    if degree not in (2, 3):
        raise UserError(f"degree {degree}: choose 2 (parabola) or 3 (cubic)")
    loss = numbers(loss, "loss")
    given = with_compute({name: numbers(values, name) for name, values in columns.items()})
    if any(len(values) != len(loss) for values in given.values()):
        raise UserError("columns differ in length; give one value per run")
    return Grid(given["N"], given["D"], axis, degree, budgets(6 * given["N"] * given["D"])), loss


def budgets(C: np.ndarray) -> list[np.ndarray]:
    """Indices of the runs of every budget, in order of C (n,)."""
    order, found = np.argsort(C, kind="stable"), []
    for i in order:
        if found and C[i] <= (1 + SAME_BUDGET) * C[found[-1][0]]:
            found[-1].append(i)
        else:
            found.append([i])
    return [np.array(rows) for rows in found]


def lowest(coefficients: np.ndarray) -> np.ndarray:
    """Where a parabola or cubic (..., degree + 1), highest power first, has its minimum, or NaN."""
    third = coefficients[..., 0] if coefficients.shape[-1] == 4 else 0.0
    second, first = coefficients[..., -3], coefficients[..., -2]
    with np.errstate(invalid="ignore", divide="ignore"):
        below = second + np.sqrt(second**2 - 3 * first * third)  # of the root that is a minimum
        return np.where(below > 0, -first / below, np.nan)


def line(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(R, 2): slope and intercept of the least squares of y (R, k) on x (k,), without NaN in y."""
    there = np.isfinite(y)
    with np.errstate(invalid="ignore", divide="ignore"):
        middle = (there @ x) / there.sum(1)
        centred = (x - middle[:, None]) * there
        slope = (centred * np.where(there, y, 0)).sum(1) / (centred**2).sum(1)
        return np.stack([slope, np.where(there, y, 0).sum(1) / there.sum(1) - slope * middle], 1)


def exponents(axis: str, slope):
    """a and b of N* ~ C^a, D* ~ C^b from the slope on one axis: under C = 6 N D they sum to 1."""
    return {"a": slope, "b": 1 - slope} if axis == "N" else {"a": 1 - slope, "b": slope}


def named_pair(axis: str, value, C: float) -> dict:
    """N and D from one of them at C = 6 N D."""
    pair = {axis: value, "D" if axis == "N" else "N": C / (6 * value)}
    return {"N": pair["N"], "D": pair["D"]}


def _at(lines: np.ndarray, C: float) -> np.ndarray:
    return lines[..., 0] * np.log10(C) + lines[..., 1]


def _resampled(
    grid: Grid, loss: np.ndarray, resamples: int, rng_seed: int
) -> tuple[np.ndarray, float]:
    """(R, n) losses about the curves, and the relative sd of a run about them."""
    fitted, dof = loss.copy(), 0
    for rows, c in zip(grid.rows, grid.coefficients(loss[None]), strict=True):
        if grid.enough(rows):
            fitted[rows] = grid.basis(rows) @ c[0]
            dof += len(rows) - grid.degree - 1
    y, fitted = np.log(loss), np.log(fitted)
    sd = float(np.sqrt(((y - fitted) ** 2).sum() / max(dof, 1)))
    if not resamples:
        return np.empty((0, len(loss))), sd
    bootstrap.check_resamples(resamples)
    noise = bootstrap.Noise(None, 0, sd, max(dof, 1), False)
    return np.exp(bootstrap.resampled(fitted, noise, resamples, rng_seed)), sd


def _valley(
    grid: Grid, loss: np.ndarray, i: int, vertex: float, draws: np.ndarray, used: bool, inside: bool
) -> Valley:
    rows, there = grid.rows[i], np.isfinite(vertex)
    x, sound = grid.x[rows], draws[np.isfinite(draws)]
    offset = float((x.min() + x.max()) / 2 - vertex) if there else None
    flags = [
        flag
        for flag, raised in (
            (TOO_FEW, not grid.enough(rows)),
            (UNBRACKETED, grid.enough(rows) and not inside),
            (OFF, there and abs(offset) > OFF_CENTRE),
        )
        if raised
    ]
    known = there and len(sound) >= (1 - MOST_LOST) * max(len(draws), 1) and len(sound)
    at = np.vander([vertex - x.mean()], grid.degree + 1) if there else None
    return Valley(
        C=float(10 ** grid.log_budget[i]),
        n_points=len(rows),
        flags=flags,
        used=used,
        vertex=float(10**vertex) if there else None,
        offset=offset,
        ci95=(10 ** bootstrap.interval(sound)).tolist() if known else None,
        loss=float((at @ grid.coefficients(loss[None])[i][0])[0]) if there else None,
    )


def _warnings(axis: str, valleys: list[Valley], lost: int, resamples: int) -> list[str]:
    found = []
    for flag, remedy in (
        (TOO_FEW, "add sizes there, or leave the budget out"),
        (UNBRACKETED, f"add runs beyond the end of the grid of {axis}"),
        (OFF, "centre the grid on the vertex, as the bias of Approach 2 grows with the offset"),
    ):
        at = [v for v in valleys if flag in v.flags]
        if at:
            where = ", ".join(
                f"{v.C:.2g}"
                + (f" ({axis}* = {v.vertex:.3g}, {v.offset:+.2f} decades)" if flag == OFF else "")
                for v in at
            )
            found.append(f"{flag} at C = {where}: {remedy}")
    if sum(v.used for v in valleys) < BUDGETS_WANTED:
        found.append(
            f"a line through {sum(v.used for v in valleys)} budgets has no residual: add a budget"
        )
    if lost > MOST_LOST * resamples:
        found.append(
            f"{lost} of {resamples} resamples have a budget without a minimum: the "
            "valleys are flat beside the noise: widen the grid, or fit the surface"
        )
    return found


# -- what Approach 2 gets wrong -------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Bias:
    """Approach 2's error at C on its own grid, if the losses were those of the fitted surface."""

    C: float
    bias: dict[str, float]  # of N* and D* relative to the optimum, of a and b as a difference
    ci95: dict[str, list[float]]  # over the resamples of the surface
    corrected: dict[str, float]  # N, D, a and b without it
    warnings: list[str]

    def to_json(self) -> dict[str, object]:
        """Plain types."""
        return plain(asdict(self))


def bias(found: IsoFlop, surface: LawFit, C: float) -> Bias:
    """What Approach 2 as `found` gets wrong at C FLOPs, by its run on the losses of `surface`."""
    params = np.array(list(surface.params.values()))
    error = {k: float(v[0]) for k, v in _errors(found, surface, params[None], C).items()}
    draws = _errors(found, surface, surface.draws, C) if len(surface.draws) else {}
    ends = {
        k: bootstrap.interval(v[np.isfinite(v)]).tolist()
        for k, v in draws.items()
        if np.isfinite(v).mean() >= 1 - MOST_LOST
    }
    optimum = found.optimum(C)
    corrected = {k: optimum[k] / (1 + error[k]) for k in "ND"}
    corrected |= {k: found.exponents[k] - error[k] for k in "ab"}
    warnings = []
    if not np.isfinite(error["N"]):
        warnings.append("the fitted surface has no minimum on a budget's grid: no bias is known")
    elif surface.status != "converged":
        warnings.append(f"the surface is {surface.status}: so is this bias")
    return Bias(C=float(C), bias=error, ci95=ends, corrected=corrected, warnings=warnings)


def _errors(found: IsoFlop, surface: LawFit, params: np.ndarray, C: float) -> dict[str, np.ndarray]:
    """Errors (R,) of noise-free Approach 2 for surfaces params (R, p)."""
    grid, used = found.grid, found.used
    vertices = grid.vertices(surface.form.loss(params, grid.N, grid.D))[:, used]
    lines = line(grid.log_budget[used], vertices)
    seen = named_pair(grid.axis, 10 ** _at(lines, C), C)
    true = dict(zip("ND", surface.form.optimum(params, C), strict=True))
    slopes, exact = exponents(grid.axis, lines[:, 0]), surface.form.exponents(params)
    return {k: seen[k] / true[k] - 1 for k in "ND"} | {k: slopes[k] - exact[k] for k in "ab"}


# -- Approach 1 -----------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Envelope:
    """Approach 1: the runs of which no mixture in log-log has a lower loss at their compute."""

    runs: list[int]  # their rows, in order of C
    exponents: dict[str, float]
    intercepts: dict[str, float]  # of log10 N* and log10 D* at C = 1
    ci95: dict[str, list[float]]
    resamples: int
    warnings: list[str]

    def optimum(self, C: float) -> dict[str, float]:
        """N* and D* at C FLOPs."""
        n, d = (
            10 ** (self.exponents[e] * np.log10(C) + self.intercepts[k])
            for k, e in (("N", "a"), ("D", "b"))
        )
        return {"N": float(n), "D": float(d)}

    def to_json(self) -> dict[str, object]:
        """Plain types."""
        return plain(asdict(self))


def envelope(
    columns: Mapping[str, Iterable[float]],
    loss: Iterable[float],
    *,
    resamples: int = 400,
    rng_seed: int = 0,
) -> Envelope:
    """Approach 1: N* and D* by C through the lower convex hull of ln L over ln C.

    Intervals from runs drawn with replacement: rough, as an envelope rests on few runs. Raises
    `UserError` where fewer than 3 runs are on it.
    """
    grid, loss = grid_of(columns, loss, "N", 2)
    x, y, n = np.log10(6 * grid.N * grid.D), np.log10(loss), grid.x
    at = hull(x, y)
    if len(at) < 3:
        raise UserError(
            f"{len(at)} runs are on the envelope of loss over C; Approach 1 needs 3: "
            "add budgets, or fit the surface (Approach 3)"
        )
    slope, intercept = line(x[at], n[None, at])[0]
    rng, slopes = np.random.default_rng(rng_seed), []
    for _ in range(resamples):
        drawn = rng.integers(len(x), size=len(x))
        some = drawn[hull(x[drawn], y[drawn])]
        if len(some) > 2:
            slopes.append(line(x[some], n[None, some])[0, 0])
    ends = exponents("N", np.array(slopes)) if slopes else {}
    few = len(at) < 2 * BUDGETS_WANTED
    return Envelope(
        runs=at.tolist(),
        exponents=exponents("N", float(slope)),
        resamples=resamples,
        intercepts={"N": float(intercept), "D": float(-np.log10(6) - intercept)},
        ci95={k: bootstrap.interval(v).tolist() for k, v in ends.items()},
        warnings=[f"only {len(at)} runs are on the envelope"] * few,
    )


def hull(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Indices of the falling part of the lower convex hull of (x, y), from left to right."""
    kept: list[int] = []
    for i in np.lexsort((y, x)):
        if kept and x[i] == x[kept[-1]]:
            continue
        while len(kept) > 1 and (
            (x[kept[-1]] - x[kept[-2]]) * (y[i] - y[kept[-2]])
            <= (y[kept[-1]] - y[kept[-2]]) * (x[i] - x[kept[-2]])
        ):
            kept.pop()
        kept.append(int(i))
    return np.array(kept)[: int(np.argmin(y[kept])) + 1]
