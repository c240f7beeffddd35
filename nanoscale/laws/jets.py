"""Exact first and second derivatives of a law that is written as plain numpy arithmetic.

The one idea: a number that carries its derivatives by p parameters (forward mode, second order)
goes through +, -, *, /, **, exp, log and sqrt as numpy itself does, so a user's law needs no
derivative by hand and the solver no finite differences.
"""

from __future__ import annotations

import numpy as np


class Jet:
    """value (B, n) or (B, 1); d (p, B, .): its gradient; dd (p, p, B, .): its Hessian."""

    __array_priority__ = 1000.0

    def __init__(self, value: np.ndarray, d: np.ndarray, dd: np.ndarray) -> None:
        self.value, self.d, self.dd = value, d, dd

    @classmethod
    def variables(cls, values: np.ndarray, slopes: np.ndarray, bends: np.ndarray) -> list[Jet]:
        """p jets from (B, p) values and their derivatives by the solver's own p coordinates."""
        B, p = values.shape
        found = []
        for i in range(p):
            d, dd = np.zeros((p, B, 1)), np.zeros((p, p, B, 1))
            d[i, :, 0], dd[i, i, :, 0] = slopes[:, i], bends[:, i]
            found.append(cls(values[:, i, None], d, dd))
        return found

    def through(self, value: np.ndarray, slope: np.ndarray, bend: np.ndarray) -> Jet:
        """f(self), from f, f' and f'' there."""
        outer = self.d[:, None] * self.d[None]
        return Jet(value, slope * self.d, slope * self.dd + bend * outer)

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        rule = RULES.get(ufunc)
        if rule is None or method != "__call__" or kwargs:
            return NotImplemented
        return rule(*inputs)

    def __neg__(self) -> Jet:
        return Jet(-self.value, -self.d, -self.dd)

    def __add__(self, other) -> Jet:
        return add(self, other)

    def __sub__(self, other) -> Jet:
        return add(self, -other)

    def __rsub__(self, other) -> Jet:
        return add(-self, other)

    def __mul__(self, other) -> Jet:
        return multiply(self, other)

    def __truediv__(self, other) -> Jet:
        return multiply(self, reciprocal(other))

    def __rtruediv__(self, other) -> Jet:
        return multiply(reciprocal(self), other)

    def __pow__(self, other) -> Jet:
        return power(self, other)

    def __rpow__(self, other) -> Jet:
        return power(other, self)

    __radd__, __rmul__ = __add__, __mul__


def add(a, b) -> Jet:
    if not isinstance(a, Jet):
        a, b = b, a
    if not isinstance(b, Jet):
        return Jet(a.value + b, a.d, a.dd)
    return Jet(a.value + b.value, a.d + b.d, a.dd + b.dd)


def multiply(a, b) -> Jet:
    if not isinstance(a, Jet):
        a, b = b, a
    if not isinstance(b, Jet):
        return Jet(a.value * b, a.d * b, a.dd * b)
    cross = a.d[:, None] * b.d[None]
    return Jet(
        a.value * b.value,
        a.value * b.d + b.value * a.d,
        a.value * b.dd + b.value * a.dd + cross + cross.swapaxes(0, 1),
    )


def reciprocal(a):
    if not isinstance(a, Jet):
        return 1 / a
    inverse = 1 / a.value
    return a.through(inverse, -(inverse**2), 2 * inverse**3)


def exp(a: Jet) -> Jet:
    value = np.exp(a.value)
    return a.through(value, value, value)


def expm1(a: Jet) -> Jet:
    value = np.exp(a.value)
    return a.through(np.expm1(a.value), value, value)


def log(a: Jet) -> Jet:
    inverse = 1 / a.value
    return a.through(np.log(a.value), inverse, -(inverse**2))


def sqrt(a: Jet) -> Jet:
    return power(a, 0.5)


def power(a, b) -> Jet:
    """a ** b; a law's bases are positive, so an exponent that is a jet goes by logarithms."""
    if isinstance(b, Jet):
        return exp(multiply(b, log(a) if isinstance(a, Jet) else np.log(a)))
    return a.through(a.value**b, b * a.value ** (b - 1), b * (b - 1) * a.value ** (b - 2))


def minimum(a, b) -> Jet:
    """The lower of two, with its derivatives (of the first, where they are equal)."""
    one, two = ((j.value, j.d, j.dd) if isinstance(j, Jet) else (j, 0.0, 0.0) for j in (a, b))
    first = one[0] <= two[0]
    return Jet(*(np.where(first, i, j) for i, j in zip(one, two, strict=True)))


RULES = {
    np.add: add, np.multiply: multiply, np.exp: exp, np.expm1: expm1, np.log: log,
    np.sqrt: sqrt,
    np.minimum: minimum, np.power: power, np.reciprocal: reciprocal, np.negative: lambda a: -a,
    np.subtract: lambda a, b: add(a, -b), np.square: lambda a: multiply(a, a),
    np.divide: lambda a, b: multiply(a, reciprocal(b)),
}  # fmt: skip
