"""One sweep and its optimum: a parabola through the runs about the lowest loss.

The one idea: a sweep says where its optimum is only as well as noise and curvature let it, so its
losses are drawn anew about its parabola, and the vertices are its interval. A sweep whose lowest
loss is at its edge has no optimum, and says which values would bracket it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from nanoscale.laws import bootstrap
from nanoscale.laws.arrays import Array
from nanoscale.laws.band import Ends
from nanoscale.laws.isoflop import mostly_known

_REACH = math.log(4.05)  # of the parabola about the lowest mean, in ln of what is swept
FEWEST_VALUES = 4  # that a parabola goes through; one more than it has coefficients
WIDTHS_BEYOND = 1.0  # of a sweep, by which a resample's vertex may lie outside it
OCTAVES_MORE = (1, 2)  # beyond the edge of a sweep, where its optimum is looked for next

AT_LOW_EDGE, AT_HIGH_EDGE = "lowest loss at the smallest value", "lowest loss at the largest value"
TOO_FEW_VALUES, NOT_BENT = "too few values", "does not bend upwards"
OUTSIDE = "minimum outside its sweep"


@dataclass(frozen=True)
class Sweep:
    """One (N, D): its optimum of what is swept. None: it has none, and `flag` says why."""

    at: dict[str, float]  # the predictors
    n_values: int
    optimum: float | None = None
    ci95: Ends | None = None  # of noise
    loss: float | None = None  # at the optimum
    flag: str = ""
    wanted: list[float] = field(default_factory=list)  # values that would bracket it

    def place(self) -> str:
        """`(N=1e+09, D=3e+10)`."""
        values = [f"{name}={value:.3g}" for name, value in self.at.items()]
        return f"({', '.join(values)})"


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
        counts = np.bincount(cell)
        mean = np.bincount(cell, y) / counts
        lowest = int(mean.argmin())
        distance = np.abs(values - values[lowest])
        near = distance <= _REACH
        if near.sum() < FEWEST_VALUES:  # take the nearest, the lower of two that are as near
            order = np.lexsort((mean, distance.round(6)))
            near = np.isin(np.arange(len(values)), order[:FEWEST_VALUES])

        inside = near[cell]
        centre = float(values[near].mean())
        basis = np.vander(v[inside] - centre, 3, increasing=True)
        coef = np.full(3, np.nan)
        residual = np.empty(0)
        if near.sum() >= FEWEST_VALUES:
            losses = y[inside]
            coef = np.linalg.lstsq(basis, losses, rcond=None)[0]
            residual = losses - basis @ coef
        flag = _flag(values, lowest, centre, coef)
        return cls(values, centre, basis, coef, residual, flag)

    @property
    def dof(self) -> int:
        """Runs beyond the parabola's coefficients."""
        return max(len(self.residual) - 3, 0)

    @np.errstate(divide="ignore", invalid="ignore")
    def vertex(self, coef: Array) -> Array:
        """ln of the optimum for coefficients (..., 3); NaN where they do not bend upwards.

        It lies at most the sweep's own width beyond it.
        """
        first = coef[..., 1]
        second = coef[..., 2]
        place = self.centre - first / (2 * second)
        low, high = self.values[[0, -1]]
        room = WIDTHS_BEYOND * (high - low)
        vertex = np.clip(place, low - room, high + room)
        return np.where(second > 0, vertex, np.nan)

    def vertex_variance(self, noise: float) -> float:
        """Of the vertex, by the slopes of -c1 / (2 c2)."""
        _, first, second = self.coef
        by_first = -1 / (2 * second)
        by_second = first / (2 * second**2)
        slope = np.array([0.0, by_first, by_second])
        covariance = np.linalg.pinv(self.basis.T @ self.basis)
        return float(noise**2 * slope @ covariance @ slope)

    def wanted(self) -> list[float]:
        """Values that would bracket the minimum, beyond the edge that it lies towards."""
        if self.flag in ("", TOO_FEW_VALUES, NOT_BENT):
            return []
        falling = self.flag == OUTSIDE and self.coef[1] > 0
        more = math.log(2) * np.array(OCTAVES_MORE)
        if self.flag == AT_LOW_EDGE or falling:
            values = self.values[0] - more[::-1]
        else:
            values = self.values[-1] + more
        wanted: list[float] = np.exp(values).tolist()
        return wanted


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


def pooled_noise(parabolas: Sequence[Parabola]) -> tuple[float, int]:
    """sd of ln loss about the parabolas, pooled over sweeps with an optimum, and its freedom."""
    dof = 0
    squares = 0.0
    for parabola in parabolas:
        if not parabola.flag:
            dof += parabola.dof
            squares += float(parabola.residual @ parabola.residual)
    return math.sqrt(squares / max(dof, 1)), dof


def redrawn_vertices(
    parabolas: Sequence[Parabola], noise: float, dof: int, resamples: int, rng_seed: int
) -> Array:
    """(R, S): ln optima of losses drawn anew about the parabolas."""
    if resamples:
        bootstrap.check_resamples(resamples)
    rng = np.random.default_rng(rng_seed)
    sd = np.zeros(resamples)
    if dof:
        sd = noise * np.sqrt(dof / rng.chisquare(dof, resamples))

    vertices = np.full((resamples, len(parabolas)), np.nan)
    for i, parabola in enumerate(parabolas):
        if not parabola.flag:
            z = rng.standard_normal((resamples, len(parabola.basis)))
            moved = sd[:, None] * z @ np.linalg.pinv(parabola.basis).T
            vertices[:, i] = parabola.vertex(parabola.coef + moved)
    return vertices


def sweep_of(at: dict[str, float], parabola: Parabola, draws: Array) -> Sweep:
    """What a parabola and the vertices of its resamples, draws (R,), say."""
    n_values = len(parabola.values)
    if parabola.flag:
        return Sweep(at, n_values, flag=parabola.flag, wanted=parabola.wanted())

    vertex = float(parabola.vertex(parabola.coef))
    coef = parabola.coef[::-1]
    loss = math.exp(np.polyval(coef, vertex - parabola.centre))
    ends = mostly_known(draws)
    ci95 = None if ends is None else np.exp(ends).tolist()
    return Sweep(at, n_values, math.exp(vertex), ci95, loss)
