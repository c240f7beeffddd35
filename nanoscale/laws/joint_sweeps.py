"""How the best learning rate and batch move with scale where both were swept at once.

The one idea: of each (N, D) a quadratic in (ln LR, ln batch), through the runs that are hardly
worse than the best, has its minimum at both optima; the lowest run alone lies on the sweep's grid
and where noise has it. Laws go through the optima of all cells, and cells drawn anew say how well
they are known.

    LR* = c N^p D^q,  B* = c' N^p' D^q'    (Li et al. 2025, Step Law)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nanoscale.errors import UserError, counted
from nanoscale.laws import bootstrap
from nanoscale.laws.arrays import Array
from nanoscale.laws.points import (
    LEVELS_NEEDED,
    RowLabels,
    TableColumns,
    levels,
    number_columns,
    numbers,
    plain_labels,
    rise_together,
)
from nanoscale.laws.record import Record
from nanoscale.laws.sweep_optima import NOT_BENT, OUTSIDE, TOO_FEW_VALUES, Sweep
from nanoscale.laws.sweeps import SweepLaw, cells_of, check_twins

MORE_CELLS, CELLS_WANTED = 4, 12  # than predictors, at least; and of all
HARDLY_WORSE = 1.02  # times a cell's lowest loss: the runs that its quadratic goes through


@dataclass(frozen=True)
class JointOptimum:
    """Both optima of one cell, as ln; NaN and a flag where it has none."""

    vertex: Array  # (2,) ln LR and ln batch
    lowest: Array  # (2,) those of the lowest run
    loss: float
    n_runs: int
    residual: float = 0.0  # mean square of ln loss about the quadratic
    flag: str = ""

    @classmethod
    def of(cls, v: Array, y: Array) -> JointOptimum:
        """Of the runs of one cell: ln of what was swept v (n, 2), ln losses y (n,)."""
        best = int(y.argmin())
        near = y <= y[best] + math.log(HARDLY_WORSE)
        none = cls(np.full(2, np.nan), v[best], math.exp(y[best]), int(near.sum()))
        surface = _Quadratic.through(v[near], y[near])
        if surface is None:
            return replace(none, flag=TOO_FEW_VALUES)
        vertex = surface.vertex()
        if np.isnan(vertex).any():
            return replace(none, flag=NOT_BENT)
        inside = (v.min(axis=0) <= vertex) & (vertex <= v.max(axis=0))
        if not inside.all():
            return replace(none, flag=OUTSIDE)
        loss = math.exp(surface.at(vertex))
        return replace(none, vertex=vertex, loss=loss, residual=surface.residual)


@dataclass(frozen=True)
class _Quadratic:
    """ln loss over ln of both that were swept, about `centre` (2,)."""

    centre: Array
    level: float
    slope: Array  # (2,)
    hessian: Array  # (2, 2)
    residual: float  # mean square

    @classmethod
    def through(cls, v: Array, y: Array) -> _Quadratic | None:
        """Least squares through v (n, 2), y (n,); None where these do not say one."""
        centre = v.mean(axis=0)
        first, second = (v - centre).T
        columns = [first**0, first, second, first**2, first * second, second**2]
        basis = np.column_stack(columns)
        if np.linalg.matrix_rank(basis) < len(columns):
            return None
        coef = np.linalg.lstsq(basis, y, rcond=None)[0]
        hessian = np.array([[2 * coef[3], coef[4]], [coef[4], 2 * coef[5]]])
        residual = float(((y - basis @ coef) ** 2).mean())
        return cls(centre, float(coef[0]), coef[1:3], hessian, residual)

    def vertex(self) -> Array:
        """(2,) where it is lowest; NaN where it does not bend upwards."""
        if np.linalg.eigvalsh(self.hessian).min() <= 0:
            return np.full(2, np.nan)
        place: Array = self.centre - np.linalg.solve(self.hessian, self.slope)
        return place

    def at(self, place: Array) -> float:
        step = place - self.centre
        return float(self.level + self.slope @ step + step @ self.hessian @ step / 2)


@dataclass(frozen=True)
class JointSweeps(Record):
    """The laws of both optima; and, by the same least squares, those of the lowest runs alone."""

    laws: dict[str, SweepLaw]  # of each that was swept
    lowest: dict[str, SweepLaw]


def joint_sweep_laws(
    columns: TableColumns,
    loss: Iterable[float],
    swept: Sequence[str] = ("lr", "batch"),
    *,
    seed: RowLabels | None = None,
    resamples: int = 1000,
    rng_seed: int = 0,
) -> JointSweeps:
    """The optima of two columns swept at once as power laws of the others.

    columns: name -> values (n,): both that were swept, and one or two of N, D and C. loss (n,): of
    runs that did not diverge. seed (n,): runs of one scale, values and seed are one. Intervals are
    over cells.

    Raises:
        UserError: there are too few cells with an optimum, or they say no exponent.
    """
    cells = JointCells.of(columns, loss, swept, seed=seed)
    reason = cells.why_no_law()
    if reason:
        raise UserError(reason)
    return cells.laws(resamples, rng_seed)


@dataclass(frozen=True)
class JointCells:
    """The scales of a table, S of them, and the optima at each."""

    swept: tuple[str, ...]
    names: list[str]  # of the P predictors
    x: Array  # (S, P) ln predictors
    optima: list[JointOptimum]

    @classmethod
    def of(
        cls,
        columns: TableColumns,
        loss: Iterable[float],
        swept: Sequence[str],
        *,
        seed: RowLabels | None = None,
    ) -> JointCells:
        """Of a table; the arguments and refusals are those of `joint_sweep_laws`."""
        y = np.log(numbers(loss, "loss"))
        given = number_columns(columns, y)
        v = np.log([given.pop(name) for name in swept]).T  # (n, 2)
        x = np.log([*given.values()])  # (P, n)
        if seed is not None:
            check_twins([*given], x, v.T, plain_labels(seed))
        places, optima = [], []
        for rows in cells_of(x):
            places.append(x[:, rows].mean(axis=1))
            optima.append(JointOptimum.of(v[rows], y[rows]))
        return cls(tuple(swept), [*given], np.array(places), optima)

    def why_no_law(self) -> str:
        """Why no law goes through the optima, and the remedy; nothing where one does."""
        flags = [optimum.flag for optimum in self.optima]
        used = np.flatnonzero([not flag for flag in flags])
        needed = len(self.names) + MORE_CELLS
        if len(used) < needed:
            reasons = "; ".join(sorted({*flags} - {""})) or "there are no more"
            return (
                f"{len(used)} of {len(flags)} sweeps have both optima inside them ({reasons}); "
                f"a law of {', '.join(self.names)} needs at least {needed}"
            )
        for name, values in zip(self.names, np.exp(self.x[used]).T, strict=True):
            if levels(values) < LEVELS_NEEDED:
                return (
                    f"{name} has {counted(levels(values), 'value')} among the sweeps with both "
                    f"optima; an exponent needs {LEVELS_NEEDED}: add some, or leave {name} out"
                )
        if rise_together(self.x[used].T):
            first, second = self.names
            return (
                f"{first} and {second} rise together, so nothing tells their exponents apart: "
                f"vary {second} at fixed {first}, or leave one out"
            )
        return ""

    def laws(self, resamples: int, rng_seed: int) -> JointSweeps:
        """Those of both, which there must be (`why_no_law`)."""
        if resamples:
            bootstrap.check_resamples(resamples)
        laws, lowest = {}, {}
        for k, name in enumerate(self.swept):
            vertices = np.array([optimum.vertex[k] for optimum in self.optima])
            lows = np.array([optimum.lowest[k] for optimum in self.optima])
            laws[name] = self.law(name, vertices, resamples, rng_seed)
            lowest[name] = self.law(name, lows, resamples, rng_seed)
        return JointSweeps(laws, lowest)

    def law(self, swept: str, best: Array, resamples: int, rng_seed: int) -> SweepLaw:
        """Through ln optima `best` (S,) of those that have one."""
        rows = np.flatnonzero(np.isfinite(best))
        basis = np.column_stack([np.ones(len(rows)), self.x[rows]])
        y = best[rows]
        coef = np.linalg.pinv(basis) @ y
        lines = _redrawn(basis, y, resamples, rng_seed)
        ci95 = {}
        if len(lines):
            ends = bootstrap.interval(lines)
            ci95["c"] = np.exp(ends[:, 0]).tolist()
            ci95 |= zip(self.names, ends.T[1:].tolist(), strict=True)
        left = max(len(y) - len(coef), 1)
        sweeps = [self._sweep(i, float(best[i])) for i in range(len(best))]
        return SweepLaw(
            swept=swept,
            predictors=self.names,
            c=float(np.exp(coef[0])),
            exponents=dict(zip(self.names, coef[1:].tolist(), strict=True)),
            ci95=ci95,
            scatter=math.sqrt(float(((y - basis @ coef) ** 2).sum()) / left),
            noise=math.sqrt(float(np.mean([self.optima[i].residual for i in rows]))),
            n_used=len(rows),
            resamples=len(lines),
            warnings=self._warnings(sweeps),
            sweeps=sweeps,
            draws=lines,
        )

    def _warnings(self, sweeps: Sequence[Sweep]) -> list[str]:
        warnings = [f"left out, {sweep.flag}: {sweep.place()}" for sweep in sweeps if sweep.flag]
        used = len(sweeps) - len(warnings)
        if used < CELLS_WANTED:
            warnings.append(
                f"only {used} sweeps have both optima: intervals by scales drawn anew are too "
                f"narrow below {CELLS_WANTED}"
            )
        return warnings

    def _sweep(self, i: int, best: float) -> Sweep:
        optimum = self.optima[i]
        at = dict(zip(self.names, np.exp(self.x[i]).tolist(), strict=True))
        if not math.isfinite(best):
            return Sweep(at, optimum.n_runs, flag=optimum.flag)
        return Sweep(at, optimum.n_runs, math.exp(best), None, optimum.loss)


def _redrawn(basis: Array, y: Array, resamples: int, rng_seed: int) -> Array:
    """(R, 1 + P): the law of cells drawn anew, from a basis (k, 1 + P) and optima y (k,)."""
    draws = np.random.default_rng(rng_seed).integers(0, len(y), (resamples, len(y)))
    lines: Array = np.einsum("rpk,rk->rp", np.linalg.pinv(basis[draws]), y[draws])
    return lines
