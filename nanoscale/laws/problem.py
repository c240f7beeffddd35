"""A law at given points, in the coordinates of the solver.

The one idea: the solver asks a law for three things only: its values, the sums over points of its
first and second derivatives under given weights, and its linear coefficients solved anew. A sum of
powers answers by matrix products in ln x centred at the points' middle, so no unit can matter; any
other law answers through `jets`.

Shapes: B rows of p coordinates theta, n points, q linear coefficients, R data sets.
"""

from __future__ import annotations

import itertools
import math
from copy import copy
from dataclasses import dataclass
from typing import Self, cast

import numpy as np

from nanoscale.laws.arrays import Array, Index, Mask, put
from nanoscale.laws.forms import EXPONENTS, Law
from nanoscale.laws.jets import Jet
from nanoscale.laws.linear import solve_nonnegative

G_FACTOR = 3.0  # by which one step may move an exponent
SHARES = (1e-12, 1e6)  # of a term in the loss at the points' middle; the upper end never binds
GRID = {1: 96, 2: 24, 3: 12}  # values tried per exponent, by their number
FEWEST_TRIED = 8  # of more exponents than that
MOST_COMBINATIONS = 20_000  # of a grid of starts
MOST_POINTS = 2_000_000  # of a grid of starts times points, at a time
MOST_CELLS = 500_000  # of all data sets' grids at a time


@dataclass
class State:
    """Fitted values m (B, n), over the loss scale, and what they were made of."""

    m: Array
    parts: list[Array]  # each (B, ...)

    def take(self, rows: Index | Mask) -> State:
        """The state of some rows."""
        return State(self.m[rows], [part[rows] for part in self.parts])

    def put(self, rows: Index, other: State) -> None:
        """Overwrite some rows with those of another state."""
        put(rows, [self.m, *self.parts], [other.m, *other.parts])


def problem_of(law: Law, x: Array, loss: Array) -> Problem:
    """The problem of fitting `law` at predictors x (P, n) to losses (n,)."""
    kind = SumProblem if law.terms else Problem
    return kind(law, x, float(np.exp(np.log(loss).mean())))


class Problem:
    """Any law; coordinates theta (B, p) are its parameters, some by their logarithm."""

    def __init__(self, law: Law, x: Array, scale: float) -> None:
        parameters = law.parameters
        self.law = law
        self.x = x
        self.scale = scale
        self.lower, self.upper = np.array([p.bounds for p in parameters]).T
        self.logarithmic = np.array([p.logarithmic for p in parameters])
        self.bounded = np.array([p.kind == "exponent" for p in parameters])
        self.linear = [i for i, p in enumerate(parameters) if p.linear]
        self.solved = self.linear  # of these, what `projected` solves anew
        self.fixed: int | None = None

    def holding(self, index: int) -> Self:
        """This problem with one coordinate that stays where it is put."""
        held = copy(self)
        held.fixed = index
        held.solved = [i for i in self.linear if i != index]
        return held

    # -- coordinates --
    def params(self, theta: Array) -> Array:
        """The law's own parameters (..., p)."""
        exponent = np.where(self.logarithmic, theta, 0)
        return np.where(self.logarithmic, np.exp(exponent), theta)

    def theta(self, params: Array) -> Array:
        """The inverse of `params`."""
        positive = np.where(self.logarithmic, params, 1)
        return np.where(self.logarithmic, np.log(positive), params)

    def clipped(self, theta: Array, trial: Array) -> Array:
        """`trial` (B, p) within bounds, and no exponent further from `theta` than a factor.

        From afar Newton overshoots to where the law is flat.
        """
        trial = np.clip(trial, self.lower, self.upper)
        old = theta[:, self.bounded]
        trial[:, self.bounded] = np.clip(trial[:, self.bounded], old / G_FACTOR, old * G_FACTOR)
        if self.fixed is not None:
            trial[:, self.fixed] = theta[:, self.fixed]
        return trial

    def stopped(self, theta: Array, gradient: Array) -> Mask:
        """(p, B): what stays at its bound in a step downhill from theta (B, p)."""
        theta = theta.T
        at_lower = theta <= self.lower[:, None]
        at_upper = theta >= self.upper[:, None]
        stopped: Mask = (at_lower & (gradient > 0)) | (at_upper & (gradient < 0))
        if self.fixed is not None:
            stopped[self.fixed] = True
        return stopped

    # -- values and derivatives --
    def at(self, theta: Array) -> State:
        """The fitted values at theta (B, p)."""
        m = self.law.loss(self.params(theta), *self.x) / self.scale
        shape = len(theta), self.x.shape[1]
        return State(np.array(np.broadcast_to(m, shape)), [theta.copy()])

    def sums(self, state: State, c: Array, q: Array) -> tuple[Array, Array]:
        """Sums over points: c dm (p, B), and q dm dm' + c d2m (p, p, B), for c and q (B, n)."""
        (theta,) = state.parts
        params = self.params(theta)
        slopes = np.where(self.logarithmic, params, 1.0)
        bends = np.where(self.logarithmic, slopes, 0.0)
        jets = Jet.variables(params, slopes, bends)
        law = cast(Jet, self.law.at(jets, self.x))  # numpy's arithmetic, which a jet goes through

        p = theta.shape[1]
        d = np.broadcast_to(law.d / self.scale, (p, *c.shape))
        dd = np.broadcast_to(law.dd / self.scale, (p, p, *c.shape))
        gradient = np.einsum("pbn,bn->pb", d, c)
        hessian = np.einsum("pbn,qbn->pqb", d * q, d)
        hessian = hessian + np.einsum("pqbn,bn->pqb", dd, c)
        return gradient, hessian

    # -- what is linear --
    def basis(self, theta: Array) -> tuple[Array, Array | float]:
        """phi (q, B, n) of the linear coefficients, and what is left of m without them."""
        params = self.params(theta)
        params[:, self.solved] = 0.0
        rest = self.law.loss(params, *self.x) / self.scale
        phi = []
        for i in self.solved:
            unit = params.copy()
            unit[:, i] = 1.0
            phi.append(self.law.loss(unit, *self.x) / self.scale - rest)
        return np.array(np.broadcast_arrays(*phi)), rest

    def projected(self, theta: Array, weight: Array, loss: Array) -> Array:
        """theta (B, p) with its linear coefficients solved anew from a weighted least squares.

        weight (B, n); loss (B or 1, n) over the scale. It follows the curved valley along which
        floor and exponents trade off.
        """
        if not self.solved:
            return theta
        phi, rest = self.basis(theta)
        weighted = phi * weight
        G = np.einsum("ibn,jbn->ijb", weighted, phi)
        h = np.einsum("ibn,bn->ib", weighted, np.broadcast_to(loss - rest, weight.shape))
        moved = theta.copy()
        moved[:, self.solved] = self.coordinates(solve_nonnegative(G, h)).T
        return moved

    def coordinates(self, linear: Array) -> Array:
        """Linear coefficients (q, B) as the solver sees them."""
        positive = self.logarithmic[self.solved][:, None]
        return np.where(positive, np.log(np.maximum(linear, 1e-30)), linear)

    # -- starts --
    def starts(self, loss: Array, w: Array, count: int) -> Array:
        """(1, count, p): of a grid of what is not linear, the best by relative least squares.

        loss (R or 1, n) over the scale and w (R or 1, n) are those of all data sets; their means
        decide.
        """
        loss = np.exp(np.log(loss).mean(0))
        weight = w.mean(0) / loss**2
        grid = self.theta(self._grid(loss))
        at_once = max(1, MOST_POINTS // len(loss))
        rss = np.empty(len(grid))
        for first in range(0, len(grid), at_once):
            rows = slice(first, first + at_once)
            weights = np.broadcast_to(weight, (len(grid[rows]), len(loss)))
            grid[rows] = self.projected(grid[rows], weights, loss[None])
            rss[rows] = ((self.at(grid[rows]).m - loss) ** 2 * weight).sum(1)
        order = np.argsort(np.where(np.isfinite(rss), rss, np.inf))
        return np.resize(grid[order[:count]], (1, count, grid.shape[1]))

    def _grid(self, loss: Array) -> Array:
        """(combinations, p) parameters: the law's own starts, or those of its parameters."""
        if self.law.starts is not None:
            return self.law.starts(loss * self.scale, self.x)
        values = [np.ones(1) if p.linear else p.starts() for p in self.law.parameters]
        while math.prod(map(len, values)) > MOST_COMBINATIONS:
            longest = max(range(len(values)), key=lambda i: len(values[i]))
            values[longest] = values[longest][::2]
        return np.array(list(itertools.product(*values)))


@dataclass(frozen=True)
class Power:
    """A term in the solver's coordinates: exp(b - sum of g u), u = ln x - middle."""

    b: int  # its place in theta
    exponents: list[int]  # of g
    features: Array  # (n, 1 + k): 1, -u of each predictor
    middle: Array  # (k,)

    @property
    def own(self) -> list[int]:
        """Where its coordinates are, in the order of `features`."""
        return [self.b, *self.exponents]


class SumProblem(Problem):
    """A floor and a sum of powers. theta has the law's parameters, of the loss over its scale at
    u = ln x - centre: a term is exp(b - sum of g u), and not there at the lower end of b.

    centred: without it the centre is 0, b the logarithm of the coefficient, and without bounds."""

    def __init__(self, law: Law, x: Array, scale: float, centred: bool = True) -> None:
        super().__init__(law, x, scale)
        self.terms = []
        logs = dict(zip(law.predictors, np.log(x), strict=True))
        for term in law.terms:
            u = np.stack([logs[name] for name in term.powers])  # (k, n)
            middle = u.mean(1) if centred else np.zeros(len(u))
            features = np.column_stack([np.ones(x.shape[1]), *(middle[:, None] - u)])
            exponents = [law.names.index(name) for name in term.powers.values()]
            b = law.names.index(term.coefficient)
            self.terms.append(Power(b, exponents, features, middle))
            if centred:
                self.lower[b], self.upper[b] = np.log(SHARES)

        floors = [i for i in self.linear if law.parameters[i].kind == "floor"]
        self.floor = floors[0] if floors else None
        self.pairs = {}
        for k, other in itertools.combinations_with_replacement(range(len(self.terms)), 2):
            both = self.terms[k].features, self.terms[other].features
            self.pairs[k, other] = np.einsum("ni,nj->nij", *both).reshape(x.shape[1], -1)

    def params(self, theta: Array) -> Array:
        params = np.array(theta, float)
        for term in self.terms:
            shift = theta[..., term.exponents] @ term.middle
            params[..., term.b] = np.exp(theta[..., term.b] + shift)
        params[..., self.linear] *= self.scale
        return params

    def theta(self, params: Array) -> Array:
        theta = np.array(params, float)
        theta[..., self.linear] /= self.scale
        for term in self.terms:
            shift = theta[..., term.exponents] @ term.middle
            theta[..., term.b] = np.log(theta[..., term.b]) - shift
        return theta

    def stopped(self, theta: Array, gradient: Array) -> Mask:
        stopped = super().stopped(theta, gradient)
        for term in self.terms:  # one that is not there says nothing of its exponents
            if term.b != self.fixed:
                stopped[term.exponents] |= stopped[term.b]
        return stopped

    def at(self, theta: Array) -> State:
        values = [theta[:, term.own] @ term.features.T for term in self.terms]
        for value in values:
            np.exp(value, out=value)
        m = values[0].copy() if self.floor is None else values[0] + theta[:, self.floor, None]
        for value in values[1:]:
            m += value
        return State(m, values)

    def sums(self, state: State, c: Array, q: Array) -> tuple[Array, Array]:
        p, B = len(self.lower), len(c)
        gradient = np.empty((p, B))
        hessian = np.empty((p, p, B))
        floor = self.floor
        if floor is not None:
            gradient[floor] = c.sum(1)
            hessian[floor, floor] = q.sum(1)

        for k, (term, values) in enumerate(zip(self.terms, state.parts, strict=True)):
            own = term.own
            qt = q * values  # a term's derivatives are itself times its features
            ct = c * values
            gradient[own] = (ct @ term.features).T
            if floor is not None:
                cross = (qt @ term.features).T
                hessian[floor, own] = cross
                hessian[own, floor] = cross
            ct += qt * values
            self._put(hessian, k, k, ct)
            for other in range(k + 1, len(self.terms)):
                self._put(hessian, k, other, qt * state.parts[other])
        return gradient, hessian

    def _put(self, hessian: Array, k: int, other: int, weight: Array) -> None:
        """The block of two terms' own parameters: sums of weight (B, n) times their features."""
        block = iter((weight @ self.pairs[k, other]).T)
        for row in self.terms[k].own:
            for column in self.terms[other].own:
                values = next(block)
                hessian[row, column] = values
                hessian[column, row] = values

    def basis(self, theta: Array) -> tuple[Array, Array | float]:
        columns = {}
        for term in self.terms:
            columns[term.b] = np.exp(theta[:, term.exponents] @ term.features[:, 1:].T)
        floor = np.ones((len(theta), self.x.shape[1]))
        phi = np.array([columns.get(i, floor) for i in self.solved])
        if self.fixed is not None and self.fixed == self.floor:
            return phi, theta[:, self.fixed, None]
        return phi, 0.0

    def starts(self, loss: Array, w: Array, count: int) -> Array:
        """(R, about count, p): variable projection. At every point of a grid of exponents the
        coefficients follow from relative least squares; the best point of each tile is a start."""
        axes = sum(len(term.exponents) for term in self.terms)
        tried = np.geomspace(*EXPONENTS, GRID.get(axes, FEWEST_TRIED))
        tiles = max(1, round(count ** (1 / axes)))
        shape = max(len(w), len(loss)), w.shape[1]
        first = np.broadcast_to(w / loss, shape)
        second = np.broadcast_to(w / loss**2, shape)

        at_once = max(1, MOST_CELLS // len(tried) ** axes)
        starts = []
        for row in range(0, len(first), at_once):
            rows = slice(row, row + at_once)
            starts.append(self._tiled(tried, tiles, first[rows], second[rows]))
        return np.concatenate(starts)

    def _tiled(self, tried: Array, tiles: int, first: Array, second: Array) -> Array:
        """(R, tiles^axes, p), for first and second as `_projections` takes them."""
        phi = []
        for term in self.terms:
            grid = np.array(list(itertools.product(tried, repeat=len(term.exponents)))).T
            phi.append(np.exp(term.features[:, 1:] @ grid))
        factors = {term.b: [k] for k, term in enumerate(self.terms)}
        columns = [factors.get(i, []) for i in self.linear]
        coefficients, rss = _projections(columns, phi, first, second)

        R = len(first)
        axes = [i for term in self.terms for i in term.exponents]
        shape = (len(tried),) * len(axes)
        rss = rss.reshape(R, *shape)
        cells = np.arange(len(tried) ** len(axes)).reshape(shape)
        edges = [slice(b[0], b[-1] + 1) for b in np.array_split(np.arange(len(tried)), tiles)]
        starts = []
        for tile in itertools.product(edges, repeat=len(axes)):
            best = rss[(slice(None), *tile)].reshape(R, -1).argmin(1)
            cell = cells[tile].ravel()[best]  # (R,)
            theta = np.empty((R, len(self.lower)))
            theta[:, axes] = tried[np.array(np.unravel_index(cell, shape)).T]
            theta[:, self.linear] = self.coordinates(coefficients[:, np.arange(R), cell]).T
            starts.append(theta)
        return np.stack(starts, axis=1)


def _projections(
    columns: list[list[int]], phi: list[Array], first: Array, second: Array
) -> tuple[Array, Array]:
    """Coefficients (q, R, cells) and the relative sum of squares (R, cells) of L on phi.

    columns: of every coefficient, the term that it multiplies, or none for the floor; phi: of
    every term, (n, G) on its own grid; first, second: w / L and w / L^2, (R, n). Cells are
    combinations of grid points.
    """
    q, R = len(columns), len(first)
    sizes = [values.shape[1] for values in phi]

    def summed(weight: Array, factors: list[int]) -> Array:
        """Over points, weight (R, n) times no term, one, one squared or two: (R, sizes or 1)."""
        axes = sorted(set(factors))
        if not axes:
            total = weight.sum(1)
        elif len(axes) == 1:
            total = weight @ phi[axes[0]] ** len(factors)
        else:
            total = (phi[axes[0]].T * weight[:, None]) @ phi[axes[1]]
        shape = [size if k in axes else 1 for k, size in enumerate(sizes)]
        return np.asarray(total.reshape(R, *shape))

    h = np.empty((q, R, *sizes))
    G = np.empty((q, q, R, *sizes))
    for i, factors in enumerate(columns):
        h[i] = summed(first, factors)
        for j, others in enumerate(columns):
            G[i, j] = summed(second, factors + others)
    h = h.reshape(q, -1)
    G = G.reshape(q, q, -1)

    coefficients = solve_nonnegative(G, h)
    # the sum of w is the same in every cell and decides nothing
    rss = (coefficients * ((G * coefficients).sum(1) - 2 * h)).sum(0)
    return coefficients.reshape(q, R, -1), rss.reshape(R, -1)
