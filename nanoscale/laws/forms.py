"""The form of a law, as a value: what it reads, its parameters, and what is linear in it.

The one idea: a law is a formula and a table of parameters, and everything else (starts, exact
derivatives, intervals, text) follows from them. A law that is a floor and a sum of powers also
names its `terms`, and gets derivatives by matrix products; any other goes through `tape`:

    import numpy as np

    from nanoscale.laws import Law, Parameter, fit_law, register_law

    register_law(Law(
        name="repeated",  # L = E + A/N^alpha + B/D'^beta, D' = U (1 + R (1 - exp(-(D/U - 1)/R)))
        predictors=("N", "D", "U"),
        parameters=(
            Parameter("E", "floor"), Parameter("A", "coefficient"), Parameter("B", "coefficient"),
            Parameter("alpha", "exponent"), Parameter("beta", "exponent"),
            Parameter("R", "positive", grid=(1, 4, 16, 64)),
        ),
        formula="{E} + {A} / N^{alpha} + {B} / repeated(D, U; {R})^{beta}",
        function=lambda E, A, B, alpha, beta, R, N, D, U:
            E + A / N**alpha + B / (U * (1 + R * (1 - np.exp(-(D / U - 1) / R)))) ** beta,
    ))
    fit = fit_law({"N": n, "D": d, "U": unique}, losses, law="repeated")
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from string import Formatter

import numpy as np

from nanoscale.errors import UserError, cut, one_of
from nanoscale.laws.arrays import Array

EXPONENTS = (1e-3, 5.0)  # searched; an optimum at an end is reported as a hit bound
LINEAR = ("floor", "coefficient")  # kinds that enter linearly
KINDS = ("floor", "coefficient", "exponent", "positive", "scale", "real")

Starts = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class Parameter:
    """A parameter: how it may move, and how the law depends on it.

    floor: enters linearly, at least 0; coefficient: enters linearly, positive; exponent: within
    EXPONENTS; positive and scale: fitted by their logarithm; real: as it is. An interval over a
    factor 4 says that a floor, an exponent or a positive one is not identified, but nothing of a
    coefficient or a scale. `grid`: the values from which starts are made, of a parameter that does
    not enter linearly. `range`: where an optimum is looked for, in place of its kind's; at an end
    it is a hit bound.
    """

    name: str
    kind: str
    grid: tuple[float, ...] = ()
    range: tuple[float, float] | None = None

    @property
    def linear(self) -> bool:
        """Whether the law is linear in it, all others given."""
        return self.kind in LINEAR

    @property
    def logarithmic(self) -> bool:
        """Whether the solver sees its logarithm."""
        return self.kind in ("coefficient", "positive", "scale")

    @property
    def judged(self) -> bool:
        """Whether the ratio of its interval's ends says if it is identified."""
        return self.kind in ("floor", "exponent", "positive")

    @property
    def bounds(self) -> tuple[float, float]:
        """Where the solver looks, as it sees the parameter."""
        if self.range:
            low, high = self.range
            return (math.log(low), math.log(high)) if self.logarithmic else (low, high)
        if self.kind == "exponent":
            return EXPONENTS
        lowest = 0.0 if self.kind == "floor" else -math.inf
        return lowest, math.inf

    def starts(self) -> Array:
        """The values tried for it."""
        return np.array(self.grid) if self.grid else np.geomspace(0.05, 1.5, 6)


@dataclass(frozen=True)
class Term:
    """coefficient / (predictor^exponent ...): one power of a sum."""

    coefficient: str
    powers: Mapping[str, str]  # predictor -> exponent


@dataclass(frozen=True)
class Law:
    """A loss as a function of predictors.

    formula: the text, parameters in braces. function: parameters and predictors by name -> loss,
    in numpy's arithmetic. terms: the law is its floor plus these, and nothing else. starts: (loss
    (n,), predictors (P, n)) -> (S, p) parameters, for a law that is linear in none. balance:
    parameters by name -> (A, alpha, B, beta) of a sum A / N^alpha + B / D^beta that is least where
    the law is. constant: predictors that may have one value, as no exponent is theirs.

    Raises `UserError` for a parameter of no known kind.
    """

    name: str
    predictors: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    formula: str
    function: Callable[..., Array]
    terms: tuple[Term, ...] = ()
    starts: Starts | None = None
    balance: Callable[..., tuple[Array, ...]] | None = None
    constant: tuple[str, ...] = ()
    base: str = ""  # of a law of which some parameters are given: its name
    given: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for p in self.parameters:
            if p.kind not in KINDS:
                raise UserError(
                    f"law {self.name}: parameter {p.name} is a {p.kind!r}; choose {one_of(KINDS)}"
                )

    def check_formula(self) -> None:
        """`UserError` for a formula that names what the law does not have."""
        said = f"law {self.name}: formula {cut(self.formula)!r}"
        try:
            names = [name for _, name, _, _ in Formatter().parse(self.formula)]
        except ValueError as e:
            raise UserError(f"{said}: {e}") from e
        known = (*self.names, *self.predictors)
        for name in names:
            if name is not None and name not in known:
                raise UserError(f"{said} names {{{name}}}; it has {one_of(known)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters' names."""
        return tuple(p.name for p in self.parameters)

    @property
    def registered(self) -> str:
        """The name by which it is known, whatever of it is given."""
        return self.base or self.name

    def places(self, *kinds: str) -> list[int]:
        """Where the parameters of some kinds are."""
        return [i for i, p in enumerate(self.parameters) if p.kind in kinds]

    def at(self, params: Iterable[object], x: Iterable[object]) -> Array:
        """The law at its parameters and predictors, in their order: numbers, arrays or traced."""
        named = dict(zip(self.names, params, strict=True))
        return self.function(**named, **dict(zip(self.predictors, x, strict=True)))

    def loss(self, params: Array, *x: Array) -> Array:
        """The loss (..., n) at predictors x, each (n,), for params (..., p)."""
        columns = np.asarray(params, float)[..., None]  # (..., p, 1)
        return self.at(np.moveaxis(columns, -2, 0), x)

    def exponents(self, params: Array) -> dict[str, Array]:
        """a and b of N* ~ C^a and D* ~ C^b under C = 6 N D; none for other laws."""
        if self.balance is None:
            return {}
        _, alpha, _, beta = self._balanced(params)
        return {"a": beta / (alpha + beta), "b": alpha / (alpha + beta)}

    def optimum(self, params: Array, C: float | Array) -> tuple[Array, Array]:
        """N* and D* of least loss at C = 6 N D FLOPs, for params (..., p).

        Source: Hoffmann et al. 2022, equation 4.
        """
        A, alpha, B, beta = self._balanced(params)
        G = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
        n = G * (C / 6) ** (beta / (alpha + beta))
        return n, C / (6 * n)

    def _balanced(self, params: Array) -> tuple[Array, ...]:
        """A, alpha, B, beta, each (...), of params (..., p)."""
        if self.balance is None:
            raise UserError(f"law {self.name} has no N and D to choose between")
        columns = np.moveaxis(params, -1, 0)
        named = dict(zip(self.names, columns, strict=True))
        sides = self.balance(**named)
        return np.broadcast_arrays(*sides, columns[0])[:4]

    def hold(self, **values: float) -> Law:
        """This law with some parameters fixed, such as a base law fitted elsewhere.

        Raises `UserError` for a parameter that it does not have, or where none is left.
        """
        unknown = [name for name in values if name not in self.names]
        free = tuple(p for p in self.parameters if p.name not in values)
        if unknown or not free:
            remedy = f"no {unknown[0]} to hold" if unknown else "leave one to fit"
            raise UserError(f"law {self.name} has the parameters {', '.join(self.names)}: {remedy}")

        formula = self.formula
        for name, value in values.items():
            formula = formula.replace(f"{{{name}}}", number(value))
        columns = [name not in values for name in self.names]
        return replace(
            self,
            name=f"{self.name} of given {', '.join(values)}",
            parameters=free,
            formula=formula,
            function=partial(self.function, **values),
            terms=(),
            starts=self.starts and partial(_starts_of, self.starts, columns),
            balance=self.balance and partial(self.balance, **values),
            base=self.registered,
            given={**self.given, **values},
        )


def _starts_of(starts: Starts, columns: list[bool], loss: Array, x: Array) -> Array:
    """Those of some parameters alone, each once."""
    return np.unique(starts(loss, x)[:, columns], axis=0)


# -- numbers as text ------------------------------------------------------------------------------
def digits_for(error: float | None) -> int | None:
    """Decimals that a standard error leaves: two of its digits below 3, one from there."""
    if error is None or not math.isfinite(error) or error <= 0:
        return None
    exponent = math.floor(math.log10(error))
    leading = error / 10**exponent
    if leading < 3:
        return 1 - exponent
    return -exponent


def number(value: float | None, error: float | None = None) -> str:
    """`value` to the digits its standard error leaves (four significant ones without)."""
    if value is None or not math.isfinite(value):
        return "n/a"

    size = math.floor(math.log10(abs(value))) if value else 0
    decimals = digits_for(error)
    significant = 4
    if decimals is not None:
        significant = min(max(size + decimals + 1, 1), 8)
    if -4 <= size < 6:
        places = min(max(significant - 1 - size, 0), 12)
        return f"{value:.{places}f}"

    mantissa, exponent = f"{value:.{significant - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}"
