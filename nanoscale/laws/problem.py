"""A law at given points, in the coordinates of the solver.

The one idea: the solver asks a law for three things only: its values, the sums over points of its
first and second derivatives under given weights, and its linear coefficients solved anew. A sum of
powers answers by matrix products in ln x centred at the points' middle, so no unit can matter; any
other law answers through `jets`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from nanoscale.laws.forms import EXPONENTS, Law
from nanoscale.laws.jets import Jet
from nanoscale.laws.linear import solve_nonnegative

G_FACTOR = 3.0  # by which one step may move an exponent
SHARES = (1e-12, 1e6)  # of a term in the loss at the points' middle; the upper end never binds
GRID = {1: 96, 2: 24, 3: 12}  # values tried per exponent, by their number
MOST_COMBINATIONS = 20_000  # of a grid of starts
MOST_CELLS = 500_000  # of all data sets' grids at a time


@dataclass
class State:
    """Fitted values m (B, n), over the loss scale, and what they were made of."""

    m: np.ndarray
    parts: list[np.ndarray]  # each (B, ...)

    def take(self, rows: np.ndarray) -> State:
        """The state of some rows."""
        return State(self.m[rows], [part[rows] for part in self.parts])

    def put(self, rows: np.ndarray, other: State) -> None:
        """Overwrite some rows with those of another state."""
        self.m[rows] = other.m
        for mine, theirs in zip(self.parts, other.parts, strict=True):
            mine[rows] = theirs


def problem_of(law: Law, x: np.ndarray, loss: np.ndarray) -> Problem:
    """The problem of fitting `law` at predictors x (P, n) to losses (n,)."""
    kind = SumProblem if law.terms else Problem
    return kind(law, x, float(np.exp(np.log(loss).mean())))


class Problem:
    """Any law; coordinates theta (B, p) are its parameters, some by their logarithm."""

    def __init__(self, law: Law, x: np.ndarray, scale: float) -> None:
        self.law, self.x, self.scale = law, x, scale
        self.lower, self.upper = np.array([p.bounds for p in law.parameters]).T
        self.logarithmic = np.array([p.logarithmic for p in law.parameters])
        self.bounded = np.array([p.kind == "exponent" for p in law.parameters])
        self.linear = [i for i, p in enumerate(law.parameters) if p.linear]

    # -- coordinates --
    def params(self, theta: np.ndarray) -> np.ndarray:
        """The law's own parameters (..., p)."""
        return np.where(self.logarithmic, np.exp(np.where(self.logarithmic, theta, 0)), theta)

    def theta(self, params: np.ndarray) -> np.ndarray:
        """The inverse of `params`."""
        return np.where(self.logarithmic, np.log(np.where(self.logarithmic, params, 1)), params)

    def clipped(self, theta: np.ndarray, trial: np.ndarray) -> np.ndarray:
        """`trial` (B, p) within bounds, and no exponent further from `theta` than a factor.

        From afar Newton overshoots to where the law is flat.
        """
        trial, old = np.clip(trial, self.lower, self.upper), theta[:, self.bounded]
        near = np.clip(trial[:, self.bounded], old / G_FACTOR, old * G_FACTOR)
        trial[:, self.bounded] = near
        return trial

    # -- values and derivatives --
    def at(self, theta: np.ndarray) -> State:
        """The fitted values at theta (B, p)."""
        m = self.law.loss(self.params(theta), *self.x) / self.scale
        return State(np.array(np.broadcast_to(m, (len(theta), self.x.shape[1]))), [theta.copy()])

    def sums(self, state: State, c: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sums over points: c dm (p, B), and q dm dm' + c d2m (p, p, B), for c and q (B, n)."""
        (theta,) = state.parts
        slopes = np.where(self.logarithmic, self.params(theta), 1.0)
        bends = np.where(self.logarithmic, slopes, 0.0)
        jets = Jet.variables(self.params(theta), slopes, bends)
        found = self.law.function(*jets, *self.x)
        d = np.broadcast_to(found.d / self.scale, (theta.shape[1], *c.shape))
        gradient = np.einsum("pbn,bn->pb", d, c)
        second = np.broadcast_to(found.dd / self.scale, (len(d), *d.shape))
        hessian = np.einsum("pbn,qbn->pqb", d * q, d) + np.einsum("pqbn,bn->pqb", second, c)
        return gradient, hessian

    # -- what is linear --
    def basis(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray | float]:
        """phi (q, B, n) of the linear coefficients, and what is left of m without them."""
        params = self.params(theta)
        params[:, self.linear] = 0.0
        rest = self.law.loss(params, *self.x) / self.scale
        found = []
        for i in self.linear:
            one = params.copy()
            one[:, i] = 1.0
            found.append(self.law.loss(one, *self.x) / self.scale - rest)
        return np.array(np.broadcast_arrays(*found)), rest

    def projected(self, theta: np.ndarray, weight: np.ndarray, loss: np.ndarray) -> np.ndarray:
        """theta (B, p) with its linear coefficients solved anew from a weighted least squares.

        weight (B, n); loss (B or 1, n) over the scale. It follows the curved valley along which
        floor and exponents trade off.
        """
        if not self.linear:
            return theta
        phi, rest = self.basis(theta)
        weighted = phi * weight
        G = np.einsum("ibn,jbn->ijb", weighted, phi)
        h = np.einsum("ibn,bn->ib", weighted, np.broadcast_to(loss - rest, weight.shape))
        found = theta.copy()
        found[:, self.linear] = self.coordinates(solve_nonnegative(G, h)).T
        return found

    def coordinates(self, linear: np.ndarray) -> np.ndarray:
        """Linear coefficients (q, ...) as the solver sees them."""
        positive = self.logarithmic[self.linear].reshape(-1, *[1] * (linear.ndim - 1))
        return np.where(positive, np.log(np.maximum(linear, 1e-30)), linear)

    def held(self, theta: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """(p, B): what stays at its bound in a step downhill from theta (B, p)."""
        theta = theta.T
        return ((theta <= self.lower[:, None]) & (gradient > 0)) | (
            (theta >= self.upper[:, None]) & (gradient < 0)
        )

    # -- starts --
    def starts(self, loss: np.ndarray, w: np.ndarray, count: int) -> np.ndarray:
        """(1, count, p): of a grid of what is not linear, the best by relative least squares.

        loss (R or 1, n) over the scale and w (R or 1, n) are those of all data sets; their means
        decide.
        """
        loss, w = np.exp(np.log(loss).mean(0)), w.mean(0)
        grid = self.theta(self._grid(loss))
        weight = np.broadcast_to(w / loss**2, (len(grid), len(loss)))
        rows = max(1, 2_000_000 // len(loss))
        parts = [grid[i : i + rows] for i in range(0, len(grid), rows)]
        grid = np.concatenate([self.projected(p, weight[: len(p)], loss[None]) for p in parts])
        rss = np.concatenate(
            [
                ((self.at(part).m - loss) ** 2 * weight[0]).sum(1)
                for part in np.array_split(grid, len(parts))
            ]
        )
        order = np.argsort(np.where(np.isfinite(rss), rss, np.inf))
        return np.resize(grid[order[:count]], (1, count, grid.shape[1]))

    def _grid(self, loss: np.ndarray) -> np.ndarray:
        if self.law.starts is not None:
            return self.law.starts(loss * self.scale, self.x)
        values = [np.ones(1) if p.linear else p.starts() for p in self.law.parameters]
        while np.prod([len(v) for v in values]) > MOST_COMBINATIONS:
            longest = max(range(len(values)), key=lambda i: len(values[i]))
            values[longest] = values[longest][::2]
        return np.array(list(itertools.product(*values)))


class SumProblem(Problem):
    """A floor and a sum of powers. theta has the law's parameters, of the loss over its scale at
    u = ln x - centre: a term is exp(b - sum of g u), and not there at the lower end of b.

    centred: without it the centre is 0, b the logarithm of the coefficient, and without bounds."""

    def __init__(self, law: Law, x: np.ndarray, scale: float, centred: bool = True) -> None:
        super().__init__(law, x, scale)
        names, logs = law.names, dict(zip(law.predictors, np.log(x), strict=True))
        middle = {name: u.mean() if centred else 0.0 for name, u in logs.items()}
        self.own, self.features, self.middles = [], [], []
        for term in law.terms:  # its own parameters: coefficient, then exponents
            self.own.append([names.index(n) for n in (term.coefficient, *term.powers.values())])
            slopes = [middle[k] - logs[k] for k in term.powers]
            self.features.append(np.stack([np.ones(x.shape[1]), *slopes], axis=1))
            self.middles.append(np.array([middle[k] for k in term.powers]))
        self.floor = next((i for i in self.linear if law.parameters[i].kind == "floor"), None)
        self.pairs = {
            (k, k + i): np.einsum("ni,nj->nij", f, g).reshape(len(f), -1)
            for k, f in enumerate(self.features)
            for i, g in enumerate(self.features[k:])
        }
        for own in self.own if centred else []:
            self.lower[own[0]], self.upper[own[0]] = np.log(SHARES)

    def params(self, theta: np.ndarray) -> np.ndarray:
        found = np.array(theta, float)
        for own, middle in zip(self.own, self.middles, strict=True):
            found[..., own[0]] = np.exp(theta[..., own[0]] + theta[..., own[1:]] @ middle)
        found[..., self.linear] *= self.scale
        return found

    def theta(self, params: np.ndarray) -> np.ndarray:
        found = np.array(params, float)
        found[..., self.linear] /= self.scale
        for own, middle in zip(self.own, self.middles, strict=True):
            found[..., own[0]] = np.log(found[..., own[0]]) - found[..., own[1:]] @ middle
        return found

    def held(self, theta: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        found = super().held(theta, gradient)
        for own in self.own:  # a term that is not there says nothing of its exponents
            found[own[1:]] |= found[own[0]]
        return found

    def at(self, theta: np.ndarray) -> State:
        terms = [theta[:, own] @ f.T for own, f in zip(self.own, self.features, strict=True)]
        for term in terms:
            np.exp(term, out=term)
        m = terms[0].copy() if self.floor is None else terms[0] + theta[:, self.floor, None]
        for term in terms[1:]:
            m += term
        return State(m, terms)

    def sums(self, state: State, c: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p, B = len(self.lower), len(c)
        gradient, hessian = np.empty((p, B)), np.empty((p, p, B))
        if self.floor is not None:
            gradient[self.floor], hessian[self.floor, self.floor] = c.sum(1), q.sum(1)
        for k, (own, term) in enumerate(zip(self.own, state.parts, strict=True)):
            qt, ct = q * term, c * term  # a term's derivatives are itself times its features
            gradient[own] = (ct @ self.features[k]).T
            if self.floor is not None:
                cross = (qt @ self.features[k]).T
                hessian[self.floor, own] = hessian[own, self.floor] = cross
            ct += qt * term
            self._put(hessian, k, k, ct)
            for other in range(k + 1, len(self.own)):
                self._put(hessian, k, other, qt * state.parts[other])
        return gradient, hessian

    def _put(self, hessian: np.ndarray, k: int, other: int, weight: np.ndarray) -> None:
        """The block of two terms' own parameters: sums of weight (B, n) times their features."""
        block = iter((weight @ self.pairs[k, other]).T)
        for row in self.own[k]:
            for column in self.own[other]:
                hessian[row, column] = hessian[column, row] = next(block)

    def basis(self, theta: np.ndarray) -> tuple[np.ndarray, float]:
        found = {
            own[0]: np.exp(theta[:, own[1:]] @ f[:, 1:].T)
            for own, f in zip(self.own, self.features, strict=True)
        }
        one = np.ones((len(theta), self.x.shape[1]))
        return np.array([found.get(i, one) for i in self.linear]), 0.0

    def starts(self, loss: np.ndarray, w: np.ndarray, count: int) -> np.ndarray:
        """(R, about count, p): variable projection. At every point of a grid of exponents the
        coefficients follow from relative least squares; the best point of each tile is a start."""
        axes = sum(len(own) - 1 for own in self.own)
        tried = np.geomspace(*EXPONENTS, GRID.get(axes, 8))
        tiles = max(1, round(count ** (1 / axes)))
        R, rows = max(len(w), len(loss)), max(1, MOST_CELLS // len(tried) ** axes)
        first = np.broadcast_to(w / loss, (R, w.shape[1]))
        second = np.broadcast_to(w / loss**2, first.shape)
        return np.concatenate(
            [
                self._tiled(tried, tiles, first[i : i + rows], second[i : i + rows])
                for i in range(0, R, rows)
            ]
        )

    def _tiled(self, tried, tiles, first, second) -> np.ndarray:
        grids = [
            np.array(list(itertools.product(tried, repeat=len(own) - 1))).T for own in self.own
        ]
        phi = [np.exp(f[:, 1:] @ g) for f, g in zip(self.features, grids, strict=True)]  # (n, G)
        terms = [self._term_of(i) for i in self.linear]
        coefficients, rss = _projections(terms, phi, first, second)
        axes = [i for own in self.own for i in own[1:]]
        shape = (len(tried),) * len(axes)
        rss = rss.reshape(len(first), *shape)
        cells, found = np.arange(rss[0].size).reshape(shape), []
        edges = [slice(b[0], b[-1] + 1) for b in np.array_split(np.arange(len(tried)), tiles)]
        for tile in itertools.product(edges, repeat=len(axes)):
            best = rss[(slice(None), *tile)].reshape(len(rss), -1).argmin(1)
            cell = cells[tile].ravel()[best]  # (R,)
            theta = np.empty((len(rss), len(self.lower)))
            theta[:, axes] = tried[np.array(np.unravel_index(cell, shape)).T]
            linear = coefficients[:, np.arange(len(rss)), cell]
            theta[:, self.linear] = self.coordinates(linear).T
            found.append(theta)
        return np.stack(found, axis=1)

    def _term_of(self, parameter: int) -> int | None:
        return next((k for k, own in enumerate(self.own) if own[0] == parameter), None)


class Held(Problem):
    """A problem of which one coordinate stays where it is put."""

    def __init__(self, inner: Problem, index: int) -> None:
        self.inner, self.index = inner, index
        self.law, self.x, self.scale = inner.law, inner.x, inner.scale
        self.lower, self.upper = inner.lower, inner.upper
        self.linear = inner.linear = [i for i in inner.linear if i != index]
        self.floor = isinstance(inner, SumProblem) and inner.floor == index

    def at(self, theta: np.ndarray) -> State:
        return self.inner.at(theta)

    def sums(self, state: State, c: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.inner.sums(state, c, q)

    def held(self, theta: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        found = self.inner.held(theta, gradient)
        found[self.index] = True
        return found

    def clipped(self, theta: np.ndarray, trial: np.ndarray) -> np.ndarray:
        return self._kept(theta, self.inner.clipped(theta, trial))

    def projected(self, theta: np.ndarray, weight: np.ndarray, loss: np.ndarray) -> np.ndarray:
        if not self.linear:
            return theta
        if self.floor:
            loss = loss - theta[:, self.index, None]
        return self._kept(theta, self.inner.projected(theta, weight, loss))

    def _kept(self, theta: np.ndarray, moved: np.ndarray) -> np.ndarray:
        moved[:, self.index] = theta[:, self.index]
        return moved


def _projections(terms, phi, first, second) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (q, R, cells) and the relative sum of squares (R, cells) of L on phi.

    terms: of every coefficient, None for the floor; phi: of every term, (n, G) on its own grid;
    first, second: w / L and w / L^2, (R, n). Cells are combinations of grid points.
    """
    R, sizes = len(first), [f.shape[1] for f in phi]

    def spread(values: np.ndarray, *on: int) -> np.ndarray:
        return values.reshape(R, *[s if k in on else 1 for k, s in enumerate(sizes)])

    def gram(k: int | None, other: int | None) -> np.ndarray:
        if k is None and other is None:
            return spread(second.sum(1))
        if k is None or other is None:
            k = other if k is None else k
            return spread(second @ phi[k], k)
        if k == other:
            return spread(second @ phi[k] ** 2, k)
        k, other = min(k, other), max(k, other)
        return spread((phi[k].T * second[:, None]) @ phi[other], k, other)

    h = np.stack(
        [
            np.broadcast_to(
                spread(first.sum(1)) if k is None else spread(first @ phi[k], k), (R, *sizes)
            )
            for k in terms
        ]
    ).reshape(len(terms), -1)
    G = np.stack(
        [[np.broadcast_to(gram(k, other), (R, *sizes)) for other in terms] for k in terms]
    ).reshape(len(terms), len(terms), -1)
    found = solve_nonnegative(G, h)
    # the sum of w is the same in every cell and decides nothing
    rss = (found * ((G * found).sum(1) - 2 * h)).sum(0)
    return found.reshape(len(terms), R, -1), rss.reshape(R, -1)
