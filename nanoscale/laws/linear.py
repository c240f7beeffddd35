"""Many small linear systems at once: arrays are (p, p, B), so every step is one pass over B.

The one idea: elimination without pivoting is stable where the matrix is positive definite, and its
pivots say whether it is; where it is not, the solver does not want the step anyway.
"""

from __future__ import annotations

import numpy as np

from nanoscale.laws.arrays import Array, Mask

_FLAT = 1e-14  # of a pivot, relative to the diagonal entry it began as: rounding, taken as flat


def root(squares: Array) -> Array:
    """Their square roots, to divide by: never 0."""
    return np.sqrt(np.maximum(squares, 1e-300))


def solve_positive(A: Array, b: Array) -> tuple[Array, Mask]:
    """x (p, B) of A x = b for symmetric A (p, p, B), and whether no A (B,) bends downwards.

    A direction that is flat but for rounding gets a curvature of that size.
    """
    A = A.copy()
    x = b.copy()
    order = range(len(b))
    flat = _FLAT * np.abs(A.diagonal().T) + 1e-300
    positive = np.ones(b.shape[1:], bool)
    for j in order:
        below = slice(j + 1, None)
        pivot = A[j, j]
        least = flat[j]
        positive &= pivot > -least
        np.maximum(pivot, least, out=pivot)
        row = A[j, below]
        share = row / pivot
        A[below, below] -= share[:, None] * row
        x[below] -= share * x[j]
    for j in reversed(order):
        known = A[j, j + 1 :] * x[j + 1 :]
        x[j] = (x[j] - known.sum(0)) / A[j, j]
    return x, positive


def solve_nonnegative(G: Array, h: Array) -> Array:
    """Coefficients (q, B) >= 0 of a least squares from its normal equations G (q, q, B), h (q, B).

    The most negative is put to 0 and the others are solved anew, until none is.
    """
    q, B = h.shape
    every = np.arange(B)
    identity = np.eye(q)[..., None]
    size = root(G.diagonal().T)
    keep = np.ones((q, B), bool)
    x, _ = solve_positive(G, h)
    for _ in range(q):
        worst = (x * size).argmin(0)
        negative = np.flatnonzero(x[worst, every] < 0)
        if not len(negative):
            break
        keep[worst[negative], negative] = False

        left = keep[:, negative]
        inside = np.where(left[:, None] & left, G[..., negative], identity)
        target = np.where(left, h[:, negative], 0.0)
        x[:, negative], _ = solve_positive(inside, target)
    return np.where(x > 0, x, 0.0)
