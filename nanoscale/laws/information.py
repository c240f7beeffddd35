"""Expected information: what the planned runs will say, and one run more, without any world drawn.

The one idea: Gauss-Newton at the truth gives the covariance of the parameters to expect, and the
delta method that of any question asked of them; one run more is a rank-one update of it.
`laws.design` confirms the best of them by simulation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nanoscale.laws.arrays import Array
from nanoscale.laws.design import Design
from nanoscale.laws.forms import Law
from nanoscale.laws.questions import LawQuestion, flops

_STEP = 1e-5  # of ln parameters, in derivatives
LEAST_LEFT = 1e-300  # of a width, so that its logarithm is finite
_ROUNDING = 1 + 1e-9  # of budgets that count as equal


@dataclass(frozen=True)
class NextRun:
    """One run more: where, its cost, and the share of the question's width that it leaves."""

    x: tuple[float, ...]
    cost: float
    left: float  # of the width, in (0, 1]
    per_flop: float  # -d ln width / d FLOP


def standard_error(design: Design, question: LawQuestion) -> float:
    """Expected of the question's point fit: Gauss-Newton at the first truth, the delta method.

    Of its logarithm where the question is a ratio.
    """
    slopes, gradient = _slopes(design, question)
    z = _whitened(slopes, gradient[None])
    squares = float((z**2).sum())
    return math.sqrt(design.variance() * squares)


def next_runs(
    design: Design, question: LawQuestion, candidates: Array, cost: Array
) -> list[NextRun]:
    """Candidates (P, m) by how much one more run there narrows the question, most first.

    cost (m,): FLOPs of each. By the rank-one update of the expected covariance (Sherman-Morrison).
    """
    left = _left(design, question, candidates)
    per_flop = -np.log(np.maximum(left, LEAST_LEFT)) / cost
    order = np.argsort(left)
    places = candidates.T[order].tolist()
    gains = np.column_stack([cost, left, per_flop])[order].tolist()
    return [NextRun(tuple(x), *gained) for x, gained in zip(places, gains, strict=True)]


def _left(design: Design, question: LawQuestion, candidates: Array) -> Array:
    """(m,): the share of the question's width that one more run at each would leave."""
    slopes, gradient = _slopes(design, question)
    z = _whitened(slopes, gradient[None])[0]
    added = _jacobian(design.form, design.truths[0], candidates)
    rows = _whitened(slopes, added)
    squares = (rows**2).sum(1)
    gain = (rows @ z) ** 2 / (1 + squares) / (z**2).sum()
    left: Array = np.sqrt(np.maximum(1 - gain, 0))
    return left


def lattice(design: Design, most: float, per_axis: int = 16) -> tuple[Array, Array]:
    """Candidates (P, m) in the design's range of each predictor, at most `most` FLOPs, and cost.

    The law was to be seen there anyway, so its form is not asked to hold further out.
    """
    axes = []
    for values in design.x:
        axes.append(np.geomspace(values.min(), values.max(), per_axis))
    mesh = np.array(np.meshgrid(*axes, indexing="ij"))
    mesh = mesh.reshape(len(axes), -1)
    planned = np.unique(design.x, axis=1)
    points = np.hstack([mesh, planned])

    cost = flops(design.form, points)
    cheap = cost <= most * _ROUNDING
    return points[:, cheap], cost[cheap]


def _slopes(design: Design, question: LawQuestion) -> tuple[Array, Array]:
    """d ln L (n, p) and d question (p,) by ln parameters, at the first truth."""
    truth = design.truths[0]
    values = question.of(_steps(truth))
    if question.ratio:
        values = np.log(values)
    slopes = _jacobian(design.form, truth, design.x)
    return slopes, _difference(values)


def _jacobian(form: Law, truth: Array, x: Array) -> Array:
    """d ln L (m, p) by ln parameters at points x (P, m)."""
    return _difference(np.log(form.loss(_steps(truth), *x))).T


def _steps(truth: Array) -> Array:
    """(2 p, p): each parameter a step up, then each a step down."""
    unit = np.eye(len(truth))
    return truth * np.exp(_STEP * np.concatenate([unit, -unit]))


def _difference(values: Array) -> Array:
    """(p, ...): the central difference of values (2 p, ...) at `_steps`."""
    up, down = np.split(values, 2)
    return (up - down) / (2 * _STEP)


def _whitened(slopes: Array, rows: Array) -> Array:
    """rows (k, p) times the inverse of R of slopes = QR: their products are covariances."""
    scale = np.linalg.norm(slopes, axis=0)
    upper = np.linalg.qr(slopes / scale).R
    return np.linalg.solve(upper.T, (rows / scale).T).T
