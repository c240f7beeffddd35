"""The forms of laws, as values. The first: the saturating power law L(x) = E + K / x^g.

`x` is compute C, parameters N or tokens D of a ladder at one tokens_per_param; E is the loss that
no amount of x removes, g the exponent (Hestness et al. 2017; with E = 0 Kaplan et al. 2020).
The one idea: solvers see ln x centred at the ladder's middle, so no unit of x can matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PowerLaw:
    """L(x) = E + K / x^g."""

    E: float
    K: float
    g: float

    def __call__(self, x: np.ndarray | float) -> np.ndarray:
        """The loss at `x` (any shape), in the unit of E."""
        return self.E + np.exp(math.log(self.K) - self.g * np.log(x))


def power_law(theta: np.ndarray, u: np.ndarray) -> np.ndarray:
    """E + exp(b - g u) for theta (..., [E, b, g]) and u = ln x - centre, (n,); gives (..., n)."""
    E, b, g = (theta[..., i, None] for i in range(3))
    return E + np.exp(b - g * u)


def to_params(theta: np.ndarray, centre: float, scale: float) -> np.ndarray:
    """(..., [E, K, g]) from theta of losses over `scale`, at u = ln x - `centre`."""
    E, b, g = np.moveaxis(theta, -1, 0)
    return np.stack([E * scale, np.exp(b + g * centre) * scale, g], axis=-1)


def to_theta(law: PowerLaw, centre: float, scale: float) -> np.ndarray:
    """The inverse of `to_params`."""
    return np.array([law.E / scale, math.log(law.K / scale) - law.g * centre, law.g])


def digits_for(error: float | None) -> int | None:
    """Decimals that a standard error leaves: two of its digits below 3, one from there."""
    if error is None or not math.isfinite(error) or error <= 0:
        return None
    exponent = math.floor(math.log10(error))
    return -exponent + (1 if error / 10**exponent < 3 else 0)


def number(value: float | None, error: float | None = None) -> str:
    """`value` to the digits its standard error leaves (four significant ones without)."""
    if value is None or not math.isfinite(value):
        return "n/a"
    decimals = digits_for(error)
    size = math.floor(math.log10(abs(value))) if value else 0
    significant = 4 if decimals is None else min(max(size + decimals + 1, 1), 8)
    if value == 0 or -4 <= size < 6:
        return f"{value:.{min(max(significant - 1 - size, 0), 12)}f}"
    mantissa, exponent = f"{value:.{significant - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}"
