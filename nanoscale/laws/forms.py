"""The forms of laws, as values: what a law reads, its parameters, and what is linear in it.

The one idea: a law is a formula and a table of parameters, and everything else (starts, exact
derivatives, intervals, text) follows from them. A law that is a floor and a sum of powers also
names its `terms`, and gets derivatives by matrix products; any other goes through `jets`:

    import numpy as np

    from nanoscale.laws import Law, Parameter, fit_law, register

    register(Law(
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from nanoscale.errors import UserError, did_you_mean, one_of

EXPONENTS = (1e-3, 5.0)  # searched; an optimum at an end is reported as a hit bound
KINDS = ("floor", "coefficient", "exponent", "positive", "scale", "real")


@dataclass(frozen=True)
class Parameter:
    """A parameter: how it may move, and how the law depends on it.

    floor: enters linearly, at least 0; coefficient: enters linearly, positive; exponent: within
    EXPONENTS; positive and scale: fitted by their logarithm; real: as it is. An interval over a
    factor 4 says that a floor, an exponent or a positive one is not identified, but nothing of a
    coefficient or a scale. `grid`: the values from which starts are made, of a parameter that does
    not enter linearly.
    """

    name: str
    kind: str
    grid: tuple[float, ...] = ()

    @property
    def linear(self) -> bool:
        """Whether the law is linear in it, all others given."""
        return self.kind in ("floor", "coefficient")

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
        return {"floor": (0.0, np.inf), "exponent": EXPONENTS}.get(self.kind, (-np.inf, np.inf))

    def starts(self) -> np.ndarray:
        """The values tried for it."""
        return np.array(self.grid) if self.grid else np.geomspace(0.05, 1.5, 6)


@dataclass(frozen=True)
class Term:
    """coefficient / (predictor^exponent ...): one power of a sum."""

    coefficient: str
    powers: Mapping[str, str]  # predictor -> exponent


@dataclass(frozen=True)
class Law:
    """A loss as a function of predictors. `formula` has the parameters in braces.

    terms: the law is its floor plus these, and nothing else. starts: (loss (n,), predictors
    (P, n)) -> (S, p) parameters, for a law that is linear in none. balance: parameters -> (A,
    alpha, B, beta) of a sum A / N^alpha + B / D^beta that is least where the law is.
    """

    name: str
    predictors: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    formula: str
    function: Callable[..., np.ndarray]
    terms: tuple[Term, ...] = ()
    starts: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    balance: Callable[[np.ndarray], tuple[np.ndarray, ...]] | None = None

    def __post_init__(self) -> None:
        bad = next((p for p in self.parameters if p.kind not in KINDS), None)
        if bad:
            raise UserError(f"law {self.name}: parameter {bad.name} is a {bad.kind!r}; "
                            f"choose {one_of(KINDS)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters' names."""
        return tuple(p.name for p in self.parameters)

    def loss(self, params: np.ndarray, *x: np.ndarray) -> np.ndarray:
        """The loss (..., n) at predictors x, each (n,), for params (..., p)."""
        return self.function(*np.moveaxis(np.asarray(params, float)[..., None], -2, 0), *x)

    def exponents(self, params: np.ndarray) -> dict[str, np.ndarray]:
        """a and b of N* ~ C^a and D* ~ C^b under C = 6 N D; none for other laws."""
        if self.balance is None:
            return {}
        _, alpha, _, beta = self.balance(params)
        return {"a": beta / (alpha + beta), "b": alpha / (alpha + beta)}

    def optimum(self, params: np.ndarray, C: float) -> tuple[np.ndarray, np.ndarray]:
        """N* and D* of least loss at C = 6 N D FLOPs, for params (..., p).

        Source: Hoffmann et al. 2022, equation 4.
        """
        if self.balance is None:
            raise UserError(f"law {self.name} has no N and D to choose between")
        A, alpha, B, beta = self.balance(params)
        G = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
        n = G * (C / 6) ** (beta / (alpha + beta))
        return n, C / (6 * n)


def kaplan_starts(loss: np.ndarray, x: np.ndarray) -> np.ndarray:
    """At each (aN, aD), Nc and Dc of the least squares of L^(1/aD) on N^-(aN/aD) and 1/D."""
    found = []
    for aN, aD in np.stack(np.meshgrid(np.geomspace(0.02, 1, 12), np.geomspace(0.02, 1, 12)),
                           axis=-1).reshape(-1, 2):
        target = (loss / loss.max()) ** (1 / aD)  # over its largest value, which goes back below
        scale = x.min(1)
        basis = np.stack([(x[0] / scale[0]) ** (-aN / aD), scale[1] / x[1]]) / target
        first, second = np.linalg.lstsq(basis.T, np.ones(len(loss)), rcond=None)[0]
        first, second = np.maximum([first, second], 1e-9)
        Nc = scale[0] * math.exp((math.log(first) + math.log(loss.max()) / aD) * aD / aN)
        Dc = scale[1] * math.exp(math.log(second) + math.log(loss.max()) / aD)
        found.append((Nc, Dc, aN, aD))
    return np.array(found)


def _kaplan_balance(params: np.ndarray) -> tuple[np.ndarray, ...]:
    Nc, Dc, aN, aD = np.moveaxis(params, -1, 0)
    return Nc ** (aN / aD), aN / aD, Dc, np.ones_like(aD)


POWER = Law(
    name="power",  # Hestness et al. 2017; with E = 0 Kaplan et al. 2020
    predictors=("x",),  # C, N or D of a ladder
    parameters=(Parameter("E", "floor"), Parameter("K", "coefficient"), Parameter("g", "exponent")),
    formula="{E} + {K} / {x}^{g}",
    function=lambda E, K, g, x: E + K / x**g,
    terms=(Term("K", {"x": "g"}),),
)

CHINCHILLA = Law(
    name="chinchilla",  # Hoffmann et al. 2022, approach 3
    predictors=("N", "D"),
    parameters=(Parameter("E", "floor"), Parameter("A", "coefficient"),
                Parameter("B", "coefficient"), Parameter("alpha", "exponent"),
                Parameter("beta", "exponent")),
    formula="{E} + {A} / N^{alpha} + {B} / D^{beta}",
    function=lambda E, A, B, alpha, beta, N, D: E + A / N**alpha + B / D**beta,
    terms=(Term("A", {"N": "alpha"}), Term("B", {"D": "beta"})),
    balance=lambda params: tuple(params[..., i] for i in (1, 3, 2, 4)),
)

KAPLAN = Law(
    name="kaplan",  # Kaplan et al. 2020, equation 1.5
    predictors=("N", "D"),
    parameters=(Parameter("Nc", "scale"), Parameter("Dc", "scale"),
                Parameter("aN", "exponent"), Parameter("aD", "exponent")),
    formula="(({Nc} / N)^({aN} / {aD}) + {Dc} / D)^{aD}",
    function=lambda Nc, Dc, aN, aD, N, D: ((Nc / N) ** (aN / aD) + Dc / D) ** aD,
    starts=kaplan_starts,
    balance=_kaplan_balance,
)

LAWS: dict[str, Law] = {law.name: law for law in (CHINCHILLA, KAPLAN, POWER)}


def register(law: Law) -> Law:
    """Make a law known by its name, to `fit_law` and to `nanoscale fit --law`."""
    LAWS[law.name] = law
    return law


def law_of(name: str | Law) -> Law:
    """The law of that name; `UserError` for none."""
    if isinstance(name, Law):
        return name
    if name not in LAWS:
        hint = did_you_mean(name, LAWS) or f"; choose {one_of(LAWS)}"
        raise UserError(f"law {name!r}: no such law{hint}")
    return LAWS[name]


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
