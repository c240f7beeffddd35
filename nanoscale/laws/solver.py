"""Certain minimisation of the Huber loss of ln L, for many data sets at once, in plain numpy.

Starts come from variable projection: at each exponent of a dense grid E and K follow from a
weighted linear least squares with E >= 0 and K > 0. Each start is refined by a projected, damped
Newton iteration on the exact objective until the Newton decrement vanishes beside the objective:
no scale of the loss can stop it early (the failure of L-BFGS in Hoffmann et al. 2022, found by
Besiroglu et al. 2024), and a start that has not converged is never called a fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nanoscale.laws.forms import power_law

G_RANGE = (1e-3, 5.0)  # exponents searched; an optimum at an end is reported as a hit bound
B_RANGE = (1e-6, 1e6)  # K / x^g at mid-ladder as a share of the loss; the upper end never binds
LOWER = np.array([0.0, np.log(B_RANGE[0]), G_RANGE[0]])
UPPER = np.array([np.inf, np.log(B_RANGE[1]), G_RANGE[1]])
G_FACTOR = 3.0  # by which one step may move the exponent
GRID = 96  # exponents tried, in geometric progression
MAX_ITER = 200
TOLERANCE = 1e-12  # of the Newton decrement, relative to the objective
AGREEMENT = 1e-9  # of objectives that count as equal, relative
ROUNDING = 1e-31  # what rounding alone leaves of one squared residual of ln L


@dataclass(frozen=True)
class Solution:
    """The best of the starts for each of R data sets."""

    theta: np.ndarray  # (R, 3): E, b = ln K at mid-ladder, g
    objective: np.ndarray  # (R,)
    converged: np.ndarray  # (R,) bool
    agreeing: np.ndarray  # (R,) number of starts that ended at the best objective


def huber(residual: np.ndarray, delta: float) -> np.ndarray:
    """Sum over the last axis of r^2 / 2, linear beyond `delta`."""
    a = np.abs(residual)
    inside = np.minimum(a, delta)
    return (inside * (a - inside / 2)).sum(-1)


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # a step into the void is refused
def solve(u: np.ndarray, y: np.ndarray, delta: float, starts: int) -> Solution:
    """Fit R data sets y = ln L (R, n), each about 0, at u = ln x - centre (n,)."""
    first = projected_starts(u, np.exp(y), starts)  # (R, starts, 3)
    theta, f, converged = _refine(u, np.repeat(y, starts, axis=0), first.reshape(-1, 3), delta)
    f = f.reshape(len(y), starts)
    best = f.argmin(1)
    lowest = f[np.arange(len(y)), best]
    equal = f <= (lowest * (1 + AGREEMENT) + len(u) * ROUNDING)[:, None]
    equal &= converged.reshape(f.shape)
    pick = np.arange(len(y)) * starts + best
    return Solution(theta[pick], lowest, converged[pick], equal.sum(1))


def projected_starts(u: np.ndarray, loss: np.ndarray, starts: int) -> np.ndarray:
    """(R, starts, 3): the grid of exponents cut into `starts` blocks, the best of each block."""
    g = np.geomspace(*G_RANGE, GRID)
    e = np.exp(-np.outer(u, g))  # (n, GRID)
    w = loss**-2.0  # absolute residuals become relative
    wl = 1 / loss
    sums = w.sum(1)[:, None], w @ e, w @ e**2, wl.sum(1)[:, None], wl @ e
    E, B = _linear(*sums)  # (R, GRID)
    s1, se, see, sl, sel = sums
    rss = len(u) - 2 * (E * sl + B * sel) + E**2 * s1 + 2 * E * B * se + B**2 * see
    grid = np.stack([E, np.log(B), np.broadcast_to(g, B.shape)], axis=-1)
    blocks = np.array_split(np.arange(GRID), starts)
    best = np.stack([block[rss[:, block].argmin(1)] for block in blocks], axis=1)
    return np.take_along_axis(grid, best[..., None], axis=1)


def _linear(s1, se, see, sl, sel):
    """E >= 0 and B > 0 of the least squares L = E + B e, from its weighted sums."""
    B = (s1 * sel - se * sl) / np.maximum(s1 * see - se**2, 1e-13 * s1 * see)
    E = (sl - B * se) / s1
    B = np.where(E < 0, sel / see, B)
    return np.maximum(E, 0), np.clip(B, *B_RANGE)


def _refine(u, y, theta, delta):
    """Projected Newton (Bertsekas 1982), damped by the Gauss-Newton metric; a row is a problem."""
    theta, f = theta.copy(), huber(y - np.log(power_law(theta, u)), delta)
    damping, converged = np.full(len(y), 1e-3), np.zeros(len(y), bool)
    todo = np.arange(len(y))
    for _ in range(MAX_ITER):
        step, decrement = _newton_step(u, y[todo], theta[todo], delta, damping[todo])
        trial, f_trial = _trial(u, y[todo], theta[todo], step, delta)
        room = TOLERANCE * f[todo] + len(u) * ROUNDING
        downhill = decrement >= 0
        better = (f_trial < f[todo]) | (downhill & (f_trial <= f[todo] + room))
        small = downhill & (decrement <= room) & (damping[todo] <= 1)
        theta[todo[better]], f[todo[better]] = trial[better], f_trial[better]
        damping[todo] = np.where(better, damping[todo] / 10, np.maximum(damping[todo], 1e-3) * 10)
        converged[todo[small]] = True
        todo = todo[~small]
        if not len(todo):
            break
    return theta, f, converged


def _newton_step(u, y, theta, delta, damping):
    """The damped step on the free parameters (R, 3) and its predicted decrease (R,)."""
    inv = 1 / power_law(theta, u)
    r = y + np.log(inv)
    q = 1 - theta[:, :1] * inv  # share of the reducible term, (R, n)
    J = np.stack([inv, q, -u * q], axis=1)  # d ln m / d theta, (R, 3, n)
    psi = np.clip(r, -delta, delta)
    gradient = -(J @ psi[..., None])[..., 0]
    metric = (J * _weight(r, delta)[:, None]) @ J.swapaxes(1, 2)
    hessian = (J * ((np.abs(r) <= delta) + psi)[:, None]) @ J.swapaxes(1, 2)
    hessian -= _curvature(psi * q, u)
    A = hessian + damping[:, None, None] * metric
    A += 1e-15 * np.eye(3) * (np.einsum("rii->ri", metric) + 1e-12)[:, None]
    held = ((theta <= LOWER) & (gradient > 0)) | ((theta >= UPPER) & (gradient < 0))
    A = np.where(held[:, :, None] | held[:, None, :], np.eye(3), A)
    gradient = np.where(held, 0, gradient)
    step = -np.linalg.solve(A, gradient[..., None])[..., 0]
    return step, -(gradient * step).sum(1) / 2


def _curvature(pq, u):
    """Sum of psi / m times the second derivatives of m, (R, 3, 3): only b and g have any."""
    c = np.zeros((len(pq), 3, 3))
    c[:, 1, 1] = pq.sum(1)
    c[:, 1, 2] = c[:, 2, 1] = -(pq @ u)
    c[:, 2, 2] = pq @ u**2
    return c


def _weight(r, delta):
    return np.minimum(1, delta / np.maximum(np.abs(r), 1e-300))


def _trial(u, y, theta, step, delta):
    """The better of the step and its projection, E and K solved anew at the step's exponent.

    The projection follows the curved valley along which E and g trade off; no step moves g by
    more than a factor, as from afar Newton overshoots to where the law is flat.
    """
    straight = theta + step
    straight[:, 2] = np.clip(straight[:, 2], theta[:, 2] / G_FACTOR, theta[:, 2] * G_FACTOR)
    straight = np.clip(straight, LOWER, UPPER)
    projected = straight.copy()
    loss, e = np.exp(y), np.exp(-straight[:, 2:] * u)
    w = _weight(y - np.log(power_law(theta, u)), delta) / loss**2
    sums = [(w * s).sum(1) for s in (1, e, e * e, loss, loss * e)]
    E, B = _linear(*sums)
    projected[:, 0], projected[:, 1] = E, np.log(B)
    f, f_projected = (huber(y - np.log(power_law(t, u)), delta) for t in (straight, projected))
    keep = f <= f_projected
    return np.where(keep[:, None], straight, projected), np.where(keep, f, f_projected)
