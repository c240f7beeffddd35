"""What a fit minimises: a sum over points of a function of the residual, by name.

The one idea: the solver sees an objective only as its slope, its curvature and its reweighted
least squares in the fitted value m, so one Newton serves all. With r = ln L - ln m:

    log-huber   sum of r^2 / 2 within delta, delta (|r| - delta / 2) beyond (Hoffmann et al. 2022)
    lad         sum of |r|, what log-huber over delta tends to (what Epoch AI's refit minimised)
    envelope    log-huber, times 10 where the law is above the loss (r < 0): a lower envelope
    mse         sum of (L - m)^2, of the loss itself
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from nanoscale.errors import UserError, nearest_or_all
from nanoscale.laws.arrays import Array

OBJECTIVES = ("log-huber", "lad", "mse", "envelope")
OVERESTIMATE = 10.0  # weight of a point that the law lies above, under `envelope`
LAD_STAGES = 10.0 ** -np.arange(0, 10)  # delta, in mean |r| of the best start
LAD_DELTA = 1e-12  # below, residuals are rounding


@dataclass(frozen=True)
class Objective:
    """One objective. `delta` is in ln L; it is what `lad` is approached with, and unused by mse."""

    name: str
    delta: float = 1e-3

    @classmethod
    def of(cls, name: str, delta: float) -> Objective:
        """Check a user's choice."""
        if name not in OBJECTIVES:
            hint = nearest_or_all(name, OBJECTIVES)
            raise UserError(f"objective {name!r}: no such objective{hint}")
        if not (math.isfinite(delta) and delta > 0):
            raise UserError(f"delta = {delta} must be a positive number (in ln L; 1e-3 is usual)")
        return cls(name, float(delta))

    @property
    def own_delta(self) -> float | None:
        """delta, where it is part of what is minimised."""
        return self.delta if self.name in ("log-huber", "envelope") else None

    @property
    def raw(self) -> bool:
        """Whether residuals are of the loss and not of its logarithm."""
        return self.name == "mse"

    def stages(self, mean_residual: Callable[[], float]) -> list[Objective]:
        """Smooth objectives whose minima lead to this one's, the last as good as it.

        The sum of |r| is at most n delta / 2 above log-huber / delta, which is below it
        everywhere: at the last delta that proves a relative 1e-9.
        """
        if self.name != "lad":
            return [self]
        scale = max(mean_residual(), 1e-6)
        return [replace(self, delta=max(scale * s, LAD_DELTA)) for s in LAD_STAGES]

    def read(self, loss: Array) -> Array:
        """Losses as residuals are taken of them: ln L, or L where `raw`."""
        return loss if self.raw else np.log(loss)

    def loss(self, y: Array) -> Array:
        """The inverse of `read`."""
        return y if self.raw else np.exp(y)

    def residual(self, y: Array, m: Array) -> Array:
        """r (B, n) of fitted values m (B, n); y (B or 1, n) are losses as `read`."""
        if self.raw:
            return y - m
        r = np.log(m)
        return np.subtract(y, r, out=r)

    def value(self, r: Array, w: Array) -> Array:
        """The sum (B,) over points of r (B, n) with weights w (B or 1, n)."""
        if self.raw:
            return _sum(r * r, w)
        psi = np.clip(r, -self.delta, self.delta)
        rho = np.multiply(psi, -0.5)
        rho += r
        rho *= psi
        rho = self.lopsided(rho, r)
        return _sum(rho, w)

    def reported(self, r: Array, w: Array) -> Array:
        """`value`, but of the objective itself where the solver approaches it."""
        return _sum(np.abs(r), w) if self.name == "lad" else self.value(r, w)

    def derivatives(self, r: Array, m: Array, w: Array) -> tuple[Array, Array]:
        """(c, q), each (B, n): the weighted first and second derivatives by m."""
        if self.raw:
            return -2 * w * r, np.broadcast_to(2 * w, r.shape)

        psi = np.clip(r, -self.delta, self.delta)
        bend = psi + (psi == r)
        inverse = 1 / m
        w = self.lopsided(w, r) * inverse
        bend *= w
        bend *= inverse
        psi *= w
        return np.negative(psi, out=psi), bend

    def reweighted(self, r: Array, m: Array, w: Array) -> Array:
        """(B, n) weights of the least squares in m, over two, that has this slope at m."""
        if self.raw:
            return np.broadcast_to(2 * w, r.shape)
        size = np.maximum(np.abs(r), 1e-300)
        share = np.minimum(1, self.delta / size)
        return self.lopsided(share * w / m**2, r)

    def lopsided(self, values: Array, r: Array) -> Array:
        """What is of each point, times its weight where the law lies above it."""
        if self.name != "envelope":
            return values
        return np.where(r < 0, OVERESTIMATE * values, values)


def _sum(rho: Array, w: Array) -> Array:
    if len(w) > 1:
        return np.asarray(np.einsum("bn,bn->b", rho, w))
    return np.asarray(rho @ w[0])
