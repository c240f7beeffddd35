"""Student's t distribution, without scipy: what small samples say of a mean."""

from __future__ import annotations

import math
from functools import cache

TINY = 1e-300


def p_value(t: float, dof: float) -> float:
    """Two-sided: P(|T| >= |t|) = I_x(dof / 2, 1 / 2), x = dof / (dof + t^2) (DLMF 8.17)."""
    square = t * t
    return _beta(dof / (dof + square), square / (dof + square), dof / 2, 0.5)


@cache
def t_quantile(level: float, dof: float) -> float:
    """t with P(|T| <= t) = level, by bisection: 12.706 for 0.95 and one degree of freedom."""
    low, high = 0.0, 1.0
    while p_value(high, dof) > 1 - level:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(middle, dof) > 1 - level else (low, middle)
    return high


def _beta(x: float, y: float, a: float, b: float) -> float:
    """The regularized incomplete beta function I_x(a, b), y = 1 - x, by its continued fraction."""
    if x <= 0 or y <= 0:
        return float(y <= 0)
    if x > (a + 1) / (a + b + 2):  # where the fraction is slow
        return 1 - _beta(y, x, b, a)
    front = (
        math.exp(
            math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(y)
        )
        / a
    )
    d = 1 / _nonzero(1 - (a + b) * x / (a + 1))
    c, value = 1.0, d
    for m in range(1, 10_000):  # DLMF 8.17.22, by Lentz's method; some sqrt(max(a, b)) terms
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d, c = 1 / _nonzero(1 + term * d), _nonzero(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * value


def _nonzero(value: float) -> float:
    return value if abs(value) > TINY else TINY
