"""A law at given points, in the coordinates of the solver.

The one idea: the solver asks a law for three things only: its values, the sums over points of its
first and second derivatives under given weights, and its linear coefficients solved anew. A sum of
powers answers by matrix products in ln x centred at the points' middle, so no unit can matter; any
other law answers through `tape`.

Shapes: B rows of p coordinates theta, n points, q linear coefficients, R data sets.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import ClassVar, Self, cast

import numpy as np

from nanoscale.errors import UserError
from nanoscale.laws.arrays import Array, ArrayPair, Chosen, Index, Mask, batches, put
from nanoscale.laws.forms import EXPONENTS, LINEAR, Law, Term
from nanoscale.laws.linear import solve_nonnegative
from nanoscale.laws.tape import Traced, derivatives

G_FACTOR = 3.0  # by which one step may move an exponent
SHARES = (1e-12, 1e6)  # of a term in the loss at the points' middle; the upper end never binds
GRID = {1: 96, 2: 24, 3: 12}  # values tried per exponent, by their number
FEWEST_TRIED = 8  # of more exponents than that
MOST_COMBINATIONS = 20_000  # of a grid of starts
MOST_POINTS = 2_000_000  # of a grid of starts times points, at a time
MOST_CELLS = 500_000  # of all data sets' grids at a time
IN_CACHE = 16_384  # points times rows whose steps from parameters to loss stay in cache


@dataclass
class State:
    """Where B rows are: theta (B, p), and the fitted values m (B, n), over the loss scale."""

    theta: Array
    m: Array
    terms: list[Array]  # each (B, n), of a sum of powers

    def take(self, rows: Chosen) -> State:
        """The state of some rows."""
        terms = [term[rows] for term in self.terms]
        return State(self.theta[rows], self.m[rows], terms)

    def put(self, rows: Index, other: State) -> None:
        """Overwrite some rows with those of another state."""
        mine = [self.theta, self.m, *self.terms]
        theirs = [other.theta, other.m, *other.terms]
        put(rows, mine, theirs)


@dataclass
class Sums:
    """Of B rows: gradient (p, B), hessian and metric (p, p, B)."""

    gradient: Array
    hessian: Array
    metric: Array

    @classmethod
    def empty(cls, p: int, B: int) -> Sums:
        """For `put`."""
        return cls(np.empty((p, B)), np.empty((p, p, B)), np.empty((p, p, B)))

    def take(self, rows: Chosen) -> Sums:
        """Those of some rows."""
        return Sums(self.gradient[:, rows], self.hessian[..., rows], self.metric[..., rows])

    def put(self, rows: Chosen | slice, other: Sums) -> None:
        """Overwrite some rows with others' sums."""
        self.gradient[:, rows] = other.gradient
        self.hessian[..., rows] = other.hessian
        self.metric[..., rows] = other.metric


def problem_of(law: Law, x: Array, loss: Array) -> Problem:
    """The problem of fitting `law` at predictors x (P, n) to losses (n,)."""
    kind = SumProblem if law.terms else Problem
    scale = np.exp(np.log(loss).mean())
    return kind(law, x, float(scale))


@dataclass
class Problem:
    """Any law; coordinates theta (B, p) are its parameters, some by their logarithm."""

    law: Law
    x: Array  # (P, n)
    scale: float  # that losses are taken over

    batch: ClassVar[int] = 1 << 18  # points times rows that a thread of the solver takes at a time

    def __post_init__(self) -> None:
        parameters = self.law.parameters
        self.lower, self.upper = np.array([p.bounds for p in parameters]).T
        self.logarithmic = np.array([p.logarithmic for p in parameters])
        self.exponents = self.law.places("exponent")
        self.linear = self.law.places(*LINEAR)
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

    def in_order(self, theta: Array) -> Array:
        """theta (R, p) of the same losses, its parameters in the law's order where two may swap."""
        return theta

    def clipped(self, theta: Array, trial: Array) -> Array:
        """`trial` (B, p) within bounds, and no exponent further from `theta` than a factor.

        From afar Newton overshoots to where the law is flat.
        """
        clipped = np.clip(trial, self.lower, self.upper)
        exponents = self.exponents
        old = theta[:, exponents]
        new = clipped[:, exponents]
        clipped[:, exponents] = np.clip(new, old / G_FACTOR, old * G_FACTOR)
        if self.fixed is not None:
            clipped[:, self.fixed] = theta[:, self.fixed]
        return clipped

    def stopped(self, theta: Array, gradient: Array) -> Mask:
        """(p, B): what stays at its bound in a step downhill from theta (B, p)."""
        at_lower = (theta <= self.lower).T
        at_upper = (theta >= self.upper).T
        stopped: Mask = at_lower & (gradient > 0)
        stopped |= at_upper & (gradient < 0)
        if self.fixed is not None:
            stopped[self.fixed] = True
        return stopped

    # -- values and derivatives --
    def at(self, theta: Array) -> State:
        """The fitted values at theta (B, p)."""
        return State(theta, self._values(self.params(theta)), [])

    def _values(self, params: Array) -> Array:
        """The law's losses (B, n) over the scale."""
        m = np.empty((len(params), self.x.shape[1]))
        for rows in batches(len(m), IN_CACHE // m.shape[1]):
            m[rows] = self.law.loss(params[rows], *self.x)
        m /= self.scale
        return m

    def sums(self, state: State, c: Array, q: Array, k: Array) -> Sums:
        """Sums over points of c dm, q dm dm' + c d2m, and k dm dm', for c, q and k (B, n)."""
        sums = Sums.empty(len(self.lower), len(c))
        for rows in batches(len(c), IN_CACHE // c.shape[1]):
            sums.put(rows, self._sums(state.theta[rows], c[rows], q[rows], k[rows]))
        return sums

    def _sums(self, theta: Array, c: Array, q: Array, k: Array) -> Sums:
        """`sums` at theta (B, p)."""
        params = self.params(theta)
        slopes = np.where(self.logarithmic, params, 1.0).T  # (p, B), of parameters by coordinates
        traced = Traced.variables(params)
        law = cast(Traced, self.law.at(traced, self.x))  # in numpy's arithmetic
        d, dd = derivatives(law, len(traced), c / self.scale)

        d *= slopes[..., None] / self.scale
        gradient = np.einsum("pbn,bn->pb", d, c)
        rows = d.swapaxes(0, 1)
        columns = rows.swapaxes(1, 2)
        squares = [(rows * weight[:, None]) @ columns for weight in (q, k)]
        hessian, metric = (square.transpose(1, 2, 0) for square in squares)
        hessian = hessian + slopes * slopes[:, None] * dd
        index = np.flatnonzero(self.logarithmic)
        hessian[index, index] += gradient[index]
        return Sums(gradient, hessian, metric)

    # -- what is linear --
    def basis(self, theta: Array) -> ArrayPair:
        """phi (q, B, n) of the linear coefficients, and what is left of m without them."""
        params = self.params(theta)
        params[:, self.solved] = 0.0
        rest = self._values(params)
        phi = []
        for i in self.solved:
            unit = params.copy()
            unit[:, i] = 1.0
            phi.append(self._values(unit) - rest)
        return np.array(phi), rest

    def projected(self, theta: Array, weight: Array, loss: Array) -> Array:
        """theta (B, p) with its linear coefficients solved anew from a weighted least squares.

        weight and loss (B or 1, n), over the scale. It follows the curved valley along which
        floor and exponents trade off.
        """
        if not self.solved:
            return theta
        phi, rest = self.basis(theta)
        weighted = phi * weight
        target = np.broadcast_to(loss - rest, phi.shape[1:])
        G = np.einsum("ibn,jbn->ijb", weighted, phi)
        h = np.einsum("ibn,bn->ib", weighted, target)
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
        decide. Raises `UserError` where the law has finite losses at none of them.
        """
        middle = np.log(loss).mean(0)
        loss = np.exp(middle)
        weight = w.mean(0) / loss**2
        grid = self.theta(self._grid(loss))
        rss = np.empty(len(grid))
        finite = False
        at_once = MOST_POINTS // len(loss)
        for rows in batches(len(grid), at_once):
            some = self.projected(grid[rows], weight[None], loss[None])
            m = self.at(some).m
            finite |= bool(np.isfinite(m).all(1).any())
            squares = (m - loss) ** 2
            rss[rows] = (squares * weight).sum(1)
            grid[rows] = some
        if not finite:
            raise UserError(
                f"law {self.law.name}: at none of its {len(grid)} starts does its function return "
                "a finite number for every point; mend it, or its parameters' grid"
            )
        rss[~np.isfinite(rss)] = np.inf
        order = np.argsort(rss)
        p = grid.shape[1]
        return np.resize(grid[order[:count]], (1, count, p))

    def _grid(self, loss: Array) -> Array:
        """(combinations, p) parameters: the law's own starts, or those of its parameters."""
        if self.law.starts is not None:
            return self.law.starts(loss * self.scale, self.x)
        values = [np.ones(1) if p.linear else p.starts() for p in self.law.parameters]
        while math.prod(map(len, values)) > MOST_COMBINATIONS:
            lengths = [len(tried) for tried in values]
            longest = lengths.index(max(lengths))
            values[longest] = values[longest][::2]
        return _combinations(values)


def _combinations(values: Sequence[Array]) -> Array:
    """Every combination of one of each: (combinations, len(values))."""
    return np.array(list(itertools.product(*values)))


@dataclass(frozen=True)
class _Power:
    """A term in the solver's coordinates: exp(b - sum of g u), u = ln x - middle."""

    read: tuple[int, ...]  # the predictors
    own: Index  # places in theta of b and of each g
    features: Array  # (n, 1 + k): 1, -u of each predictor
    middle: Array  # (k,)

    @property
    def b(self) -> int:
        return int(self.own[0])

    @property
    def exponents(self) -> Index:
        return self.own[1:]

    def shift(self, theta: Array) -> Array:
        """What b is less than the coefficient's logarithm, (...) for theta (..., p)."""
        return np.asarray(theta[..., self.exponents] @ self.middle)

    def powers(self, theta: Array) -> Array:
        """(B, n): the term at theta (B, p), but for its coefficient."""
        u = self.features[:, 1:].T
        return np.exp(theta[:, self.exponents] @ u)


@dataclass
class SumProblem(Problem):
    """A floor and a sum of powers. theta has the law's parameters, of the loss over its scale at
    u = ln x - centre: a term is exp(b - sum of g u), and not there at the lower end of b.

    centred: without it the centre is 0, b the logarithm of the coefficient, and without bounds."""

    centred: bool = True

    batch: ClassVar[int] = 49_152  # so that their arrays stay in cache

    def __post_init__(self) -> None:
        super().__post_init__()
        self.terms = [self._power(term) for term in self.law.terms]
        self.floor = next(iter(self.law.places("floor")), None)
        if self.centred:
            b = [term.b for term in self.terms]
            self.lower[b], self.upper[b] = np.log(SHARES)

        self.alike = []  # pairs of terms in the same predictor, which may swap
        for first, second in itertools.combinations(self.terms, 2):
            if len(first.read) == 1 and first.read == second.read:
                self.alike.append((first, second))

        self.pairs = {}
        every = range(len(self.terms))
        for k, other in itertools.combinations_with_replacement(every, 2):
            both = self.terms[k].features, self.terms[other].features
            products = np.einsum("ni,nj->nij", *both)
            self.pairs[k, other] = products.reshape(len(products), -1)

    def _power(self, term: Term) -> _Power:
        law = self.law
        names = [term.coefficient, *term.powers.values()]
        own = np.array([law.names.index(name) for name in names])
        read = [law.predictors.index(name) for name in term.powers]
        u = np.log(self.x[read])  # (k, n)
        middle = np.zeros(len(u))
        if self.centred:
            middle = u.mean(1)
        ones = np.ones(u.shape[1])
        features = np.column_stack([ones, *(middle[:, None] - u)])
        return _Power(tuple(read), own, features, middle)

    def params(self, theta: Array) -> Array:
        params = np.array(theta, float)
        for term in self.terms:
            params[..., term.b] = np.exp(theta[..., term.b] + term.shift(theta))
        params[..., self.linear] *= self.scale
        return params

    def theta(self, params: Array) -> Array:
        theta = np.array(params, float)
        theta[..., self.linear] /= self.scale
        for term in self.terms:
            theta[..., term.b] = np.log(theta[..., term.b]) - term.shift(theta)
        return theta

    def in_order(self, theta: Array) -> Array:
        """Of two terms in one predictor the smaller exponent first, one that is not there last."""
        if self.fixed is not None or not self.alike:
            return theta
        theta = theta.copy()
        for first, second in self.alike:
            there = theta[:, [first.b, second.b]] > self.lower[[first.b, second.b]]
            falling = theta[:, first.exponents[0]] > theta[:, second.exponents[0]]
            swapped = there[:, 1] & (falling | ~there[:, 0])
            own = np.concatenate([first.own, second.own])
            other = np.concatenate([second.own, first.own])
            theta[np.ix_(swapped, own)] = theta[np.ix_(swapped, other)]
        return theta

    def stopped(self, theta: Array, gradient: Array) -> Mask:
        stopped = super().stopped(theta, gradient)
        for term in self.terms:  # one that is not there says nothing of its exponents
            if term.b != self.fixed:
                stopped[term.exponents] |= stopped[term.b]
        return stopped

    def at(self, theta: Array) -> State:
        terms = []
        for term in self.terms:
            logarithm = theta[:, term.own] @ term.features.T
            terms.append(np.exp(logarithm, out=logarithm))
        floor = 0.0 if self.floor is None else theta[:, self.floor, None]
        m = terms[0] + floor
        for values in terms[1:]:
            m += values
        return State(theta, m, terms)

    def sums(self, state: State, c: Array, q: Array, k: Array) -> Sums:
        sums = Sums.empty(len(self.lower), len(c))
        if self.floor is not None:
            sums.gradient[self.floor] = c.sum(1)
        for term, values in zip(self.terms, state.terms, strict=True):
            sums.gradient[term.own] = ((c * values) @ term.features).T
        self._squares(sums.hessian, state, q, c)
        self._squares(sums.metric, state, k, None)
        return sums

    def _squares(self, sums: Array, state: State, q: Array, c: Array | None) -> None:
        """q dm dm' + c d2m, or without the second."""
        floor = self.floor
        if floor is not None:
            sums[floor, floor] = q.sum(1)
        for k, term in enumerate(self.terms):
            values = state.terms[k]
            qt = q * values  # a term's derivatives are itself times its features
            if floor is not None:
                cross = (qt @ term.features).T
                sums[floor, term.own] = cross
                sums[term.own, floor] = cross
            for other in range(k + 1, len(self.terms)):
                self._put(sums, k, other, qt * state.terms[other])
            if c is not None:
                qt += c
            qt *= values
            self._put(sums, k, k, qt)

    def _put(self, hessian: Array, k: int, other: int, weight: Array) -> None:
        """The block of two terms' own parameters: sums of weight (B, n) times their features."""
        rows = self.terms[k].own[:, None]
        columns = self.terms[other].own
        sums = weight @ self.pairs[k, other]
        shape = len(rows), len(columns), len(weight)
        block = sums.T.reshape(shape)
        hessian[rows, columns] = block
        hessian[columns, rows] = block

    def basis(self, theta: Array) -> ArrayPair:
        columns = {}
        for term in self.terms:
            columns[term.b] = term.powers(theta)
        shape = len(theta), self.x.shape[1]
        floor = np.ones(shape)
        phi = np.array([columns.get(i, floor) for i in self.solved])
        if self.fixed is not None and self.fixed == self.floor:
            return phi, theta[:, self.fixed, None]
        return phi, np.zeros((1, 1))

    def starts(self, loss: Array, w: Array, count: int) -> Array:
        """(R, about count, p): variable projection. At every point of a grid of exponents the
        coefficients follow from relative least squares; the best point of each tile is a start."""
        axes = sum(len(term.exponents) for term in self.terms)
        tried = np.geomspace(*EXPONENTS, GRID.get(axes, FEWEST_TRIED))
        side = max(1, round(count ** (1 / axes)))
        tiles = _tiles(len(tried), axes, side)
        first = w / loss
        second = w / loss**2
        starts = []
        at_once = MOST_CELLS // len(tried) ** axes
        for rows in batches(len(first), at_once):
            starts.append(self._best(tiles, tried, first[rows], second[rows]))
        return np.concatenate(starts)

    def _best(self, tiles: list[Index], tried: Array, first: Array, second: Array) -> Array:
        """(R, tiles, p), for first and second as `_projections` takes them."""
        phi = []
        for term in self.terms:
            grid = _combinations([tried] * len(term.exponents))
            phi.append(np.exp(term.features[:, 1:] @ grid.T))
        factors = {term.b: [k] for k, term in enumerate(self.terms)}
        columns = [factors.get(i, []) for i in self.linear]
        coefficients, rss = _projections(columns, phi, first, second)

        exponents = np.concatenate([term.exponents for term in self.terms])
        grid = _combinations([tried] * len(exponents))
        data_sets = np.arange(len(first))
        starts = []
        for cells in tiles:
            best = cells[rss[:, cells].argmin(1)]  # (R,)
            linear = coefficients[:, data_sets, best]
            theta = np.empty((len(first), len(self.lower)))
            theta[:, exponents] = grid[best]
            theta[:, self.linear] = self.coordinates(linear).T
            starts.append(theta)
        return np.stack(starts, axis=1)


def _tiles(side: int, axes: int, count: int) -> list[Index]:
    """The cells of a grid of side^axes in count^axes parts, near each other in each."""
    cells = np.arange(side**axes).reshape((side,) * axes)
    parts = np.array_split(np.arange(side), count)
    return [cells[np.ix_(*tile)].ravel() for tile in itertools.product(parts, repeat=axes)]


def _projections(
    columns: list[list[int]], phi: list[Array], first: Array, second: Array
) -> ArrayPair:
    """Coefficients (q, R, cells) and the relative sum of squares (R, cells) of L on phi.

    columns: of every coefficient, the term that it multiplies, or none for the floor; phi: of
    every term, (n, G) on its own grid; first, second: w / L and w / L^2, (R, n). Cells are
    combinations of grid points.
    """
    q, R = len(columns), len(first)
    sizes = [values.shape[1] for values in phi]
    h = np.empty((q, R, *sizes))
    G = np.empty((q, q, R, *sizes))
    for i, factors in enumerate(columns):
        h[i] = _summed(first, factors, phi)
        for j, others in enumerate(columns):
            G[i, j] = _summed(second, factors + others, phi)

    h = h.reshape(q, -1)
    G = G.reshape(q, q, -1)
    coefficients = solve_nonnegative(G, h)
    # the sum of w is the same in every cell and decides nothing
    twice = 2 * h
    slopes = (G * coefficients).sum(1) - twice
    rss = (coefficients * slopes).sum(0)
    coefficients = coefficients.reshape(q, R, -1)
    return coefficients, rss.reshape(R, -1)


def _summed(weight: Array, factors: list[int], phi: list[Array]) -> Array:
    """Over points, weight (R, n) times no term, one, one squared or two: (R, sizes or 1)."""
    axes = sorted(set(factors))
    if not axes:
        total = weight.sum(1)
    elif len(axes) == 1:
        total = weight @ phi[axes[0]] ** len(factors)
    else:
        total = (phi[axes[0]].T * weight[:, None]) @ phi[axes[1]]
    sizes = [1] * len(phi)
    for k in axes:
        sizes[k] = phi[k].shape[1]
    return np.asarray(total.reshape(len(weight), *sizes))
