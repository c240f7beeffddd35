"""Exact first and second derivatives of a law that is written as plain numpy arithmetic.

The one idea: a number that carries its derivatives by p parameters (forward mode, second order)
goes through +, -, *, /, **, exp, log and sqrt as numpy itself does, so a user's law needs no
derivative by hand and the solver no finite differences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from nanoscale.laws.arrays import Array


class Jet(NDArrayOperatorsMixin):
    """value (B, n) or (B, 1); d (p, B, .): its gradient; dd (p, p, B, .): its Hessian."""

    def __init__(self, value: Array, d: Array, dd: Array) -> None:
        self.value = value
        self.d = d
        self.dd = dd

    @classmethod
    def variables(cls, values: Array, slopes: Array, bends: Array) -> list[Jet]:
        """p jets from (B, p) values and their derivatives by the solver's own p coordinates."""
        B, p = values.shape
        jets = []
        for i in range(p):
            d = np.zeros((p, B, 1))
            dd = np.zeros((p, p, B, 1))
            d[i, :, 0] = slopes[:, i]
            dd[i, i, :, 0] = bends[:, i]
            jets.append(cls(values[:, i, None], d, dd))
        return jets

    def through(self, value: Array, slope: Array, bend: Array) -> Jet:
        """f(self), from f, f' and f'' there."""
        outer = self.d[:, None] * self.d[None]
        return Jet(value, slope * self.d, slope * self.dd + bend * outer)

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Operand, **options: object
    ) -> Jet:
        """What numpy's functions and operators do with a jet, by RULES."""
        rule = RULES.get(ufunc)
        if rule is None or method != "__call__" or options:
            return NotImplemented  # type: ignore[no-any-return]  # numpy then asks the others
        result: Jet = rule(*inputs)
        return result


Operand = Any  # a Jet, an array or a number; at least one of two is a jet


# -- of one jet -----------------------------------------------------------------------------------
def reciprocal(a: Jet) -> Jet:
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


# -- of two ---------------------------------------------------------------------------------------
def add(a: Operand, b: Operand) -> Jet:
    if not isinstance(a, Jet):
        a, b = b, a
    if not isinstance(b, Jet):
        return Jet(a.value + b, a.d, a.dd)
    return Jet(a.value + b.value, a.d + b.d, a.dd + b.dd)


def multiply(a: Operand, b: Operand) -> Jet:
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


def divide(a: Operand, b: Operand) -> Jet:
    return multiply(a, reciprocal(b) if isinstance(b, Jet) else 1 / b)


def power(a: Operand, b: Operand) -> Jet:
    """a ** b; a law's bases are positive, so an exponent that is a jet goes by logarithms."""
    if isinstance(b, Jet):
        return exp(multiply(b, np.log(a)))
    base: Jet = a
    slope = b * base.value ** (b - 1)
    bend = b * (b - 1) * base.value ** (b - 2)
    return base.through(base.value**b, slope, bend)


def minimum(a: Operand, b: Operand) -> Jet:
    """The lower of two, with its derivatives (of the first, where they are equal)."""
    value, d, dd = _parts(a)
    other, other_d, other_dd = _parts(b)
    first = value <= other
    return Jet(
        np.where(first, value, other),
        np.where(first, d, other_d),
        np.where(first, dd, other_dd),
    )


def _parts(a: Operand) -> tuple[Array | float, ...]:
    return (a.value, a.d, a.dd) if isinstance(a, Jet) else (a, 0.0, 0.0)


RULES: dict[np.ufunc, Callable[..., Jet]] = {
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
