"""Exact first and second derivatives of a law that is written as plain numpy arithmetic.

The one idea: a number that records how it came about goes through +, -, *, /, **, exp, log and sqrt
as numpy itself does, and its derivatives are gathered backwards: slopes by reverse mode, second
derivatives as edges between the numbers that are still to be gone through (Gower and Mello 2012).
So a user's law needs no derivative by hand and the solver no finite differences, and an operation
costs a few passes over the points, however many parameters there are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from nanoscale.laws.arrays import Array, ArrayPair

Factor = Array | float
Edges = dict[int, dict[int, Array]]  # of two places on the tape, the later first
Tape = list["Traced"]


class Traced(NDArrayOperatorsMixin):
    """value (B, n) or (B, 1), of one or two `parents` on the same tape.

    slopes: derivatives by each parent. bends: second ones, parents i and j -> d2 / di dj, i <= j.
    """

    def __init__(
        self,
        value: Array,
        tape: Tape,
        parents: Sequence[Traced] = (),
        slopes: Sequence[Factor] = (),
        bends: dict[tuple[int, int], Factor] | None = None,
    ) -> None:
        self.value = value
        self.tape = tape
        self.parents = parents
        self.slopes = slopes
        self.bends = bends or {}
        self.place = len(tape)
        tape.append(self)

    @classmethod
    def variables(cls, values: Array) -> list[Traced]:
        """The p first on a new tape, from values (B, p)."""
        tape: Tape = []
        return [cls(column[:, None], tape) for column in values.T]

    def through(self, value: Array, slope: Factor, bend: Factor | None = None) -> Traced:
        """f(self), from f, f' and, where it is not 0, f'' there."""
        bends = {} if bend is None else {(0, 0): bend}
        return Traced(value, self.tape, [self], [slope], bends)

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Operand, **options: object
    ) -> Traced:
        """What numpy's functions and operators do with it, by RULES."""
        rule = RULES.get(ufunc)
        if rule is None or method != "__call__" or options:
            return NotImplemented  # type: ignore[no-any-return]  # numpy then asks the others
        result: Traced = rule(*inputs)
        return result


Operand = Any  # a Traced, an array or a number; at least one of two is traced


# -- backwards ------------------------------------------------------------------------------------
def derivatives(law: Traced, p: int, c: Array) -> ArrayPair:
    """The law's slopes (p, B, n) by the p variables of its tape, and its second derivatives, summed
    over points with weights c (B, n): (p, p, B)."""
    slopes = {law.place: np.ones(c.shape)}
    edges: Edges = defaultdict(dict)
    for node in reversed(law.tape[p : law.place + 1]):
        if node.place in slopes:
            _hand_on(node, slopes, edges, c)

    d = np.zeros((p, *c.shape))
    dd = np.zeros((p, p, len(c)))
    for i in range(p):
        d[i] = slopes.get(i, 0.0)
        for j, weight in edges[i].items():
            dd[i, j] = dd[j, i] = weight[:, 0]
    return d, dd


def _hand_on(node: Traced, slopes: dict[int, Array], edges: Edges, c: Array) -> None:
    """What is known of a number becomes its parents'."""
    slope = slopes.pop(node.place)
    near = edges.pop(node.place, {})
    own = near.pop(node.place, None)
    for i, parent in enumerate(node.parents):
        factor = node.slopes[i]
        _add(slopes, parent.place, factor * slope)
        for place, weight in near.items():
            _join(edges, parent, node.tape[place], factor * weight)
        if own is not None:
            scaled = factor * own
            _put(edges, parent, parent, factor * scaled)
            for other, its in zip(node.parents[:i], node.slopes, strict=False):
                _join(edges, parent, other, its * scaled)
    if node.bends:
        weighted = c * slope
        for (i, j), bend in node.bends.items():
            join = _put if i == j else _join
            join(edges, node.parents[i], node.parents[j], bend * weighted)


def _join(edges: Edges, one: Traced, other: Traced, weight: Array) -> None:
    """Add to the second derivative by two numbers; by one twice, it is met from either side."""
    _put(edges, one, other, 2 * weight if one is other else weight)


def _put(edges: Edges, one: Traced, other: Traced, weight: Array) -> None:
    later, earlier = max(one.place, other.place), min(one.place, other.place)
    if one.value.shape[1] == other.value.shape[1] == 1:
        weight = weight.sum(1, keepdims=True)
    _add(edges[later], earlier, weight)


def _add(sums: dict[int, Array], place: int, more: Array) -> None:
    sums[place] = sums[place] + more if place in sums else more


# -- of one number --------------------------------------------------------------------------------
def reciprocal(a: Traced) -> Traced:
    inverse = 1 / a.value
    square = inverse * inverse
    return a.through(inverse, -square, 2 * inverse * square)


def exp(a: Traced) -> Traced:
    value = np.exp(a.value)
    return a.through(value, value, value)


def expm1(a: Traced) -> Traced:
    value = np.expm1(a.value)
    slope = value + 1
    return a.through(value, slope, slope)


def log(a: Traced) -> Traced:
    inverse = 1 / a.value
    return a.through(np.log(a.value), inverse, -(inverse * inverse))


# -- of two ---------------------------------------------------------------------------------------
def add(a: Operand, b: Operand) -> Traced:
    if not isinstance(a, Traced):
        a, b = b, a
    if not isinstance(b, Traced):
        return Traced(a.value + b, a.tape, [a], [1.0])
    return Traced(a.value + b.value, a.tape, [a, b], [1.0, 1.0])


def multiply(a: Operand, b: Operand) -> Traced:
    if not isinstance(a, Traced):
        a, b = b, a
    if not isinstance(b, Traced):
        return Traced(a.value * b, a.tape, [a], [b])
    slopes = [b.value, a.value]
    return Traced(a.value * b.value, a.tape, [a, b], slopes, {(0, 1): 1.0})


def divide(a: Operand, b: Operand) -> Traced:
    return multiply(a, reciprocal(b) if isinstance(b, Traced) else 1 / b)


def power(a: Operand, b: Operand) -> Traced:
    """a ** b; a law's bases are positive, so an exponent that is traced goes by logarithms."""
    if isinstance(b, Traced):
        return exp(multiply(b, np.log(a)))
    base: Traced = a
    slope = b * base.value ** (b - 1)
    bend = b * (b - 1) * base.value ** (b - 2)
    return base.through(base.value**b, slope, bend)


def minimum(a: Operand, b: Operand) -> Traced:
    """The lower of two, with its derivatives (of the first, where they are equal)."""
    value, other = [x.value if isinstance(x, Traced) else x for x in (a, b)]
    first = value <= other
    sides = [(x, share) for x, share in ((a, first), (b, ~first)) if isinstance(x, Traced)]
    parents, slopes = zip(*sides, strict=True)
    return Traced(np.where(first, value, other), parents[0].tape, parents, slopes)


RULES: dict[np.ufunc, Callable[..., Traced]] = {
    np.negative: lambda a: multiply(a, -1.0),
    np.reciprocal: reciprocal,
    np.exp: exp,
    np.expm1: expm1,
    np.log: log,
    np.sqrt: lambda a: power(a, 0.5),
    np.square: lambda a: multiply(a, a),
    np.add: add,
    np.subtract: lambda a, b: add(a, -b),
    np.multiply: multiply,
    np.divide: divide,
    np.power: power,
    np.minimum: minimum,
}
