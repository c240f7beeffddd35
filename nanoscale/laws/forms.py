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

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from nanoscale.errors import UserError, did_you_mean, one_of
from nanoscale.laws.linear import solve_nonnegative

EXPONENTS = (1e-3, 5.0)  # searched; an optimum at an end is reported as a hit bound
KINDS = ("floor", "coefficient", "exponent", "positive", "scale", "real")
SLOPES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.9)  # exponents, and
DECAYS = (1.0, 4.0, 16.0, 64.0)  # epochs or excess sizes after which repetition pays less: starts
ALL_OR_NOTHING = (1e-3, 1e7)  # of them: repetition is worth nothing, or as much as new text


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
        if self.range:
            return tuple(math.log(v) if self.logarithmic else v for v in self.range)
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
    alpha, B, beta) of a sum A / N^alpha + B / D^beta that is least where the law is. constant:
    predictors that may have one value, as no exponent is theirs.
    """

    name: str
    predictors: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    formula: str
    function: Callable[..., np.ndarray]
    terms: tuple[Term, ...] = ()
    starts: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    balance: Callable[[np.ndarray], tuple[np.ndarray, ...]] | None = None
    constant: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        bad = next((p for p in self.parameters if p.kind not in KINDS), None)
        if bad:
            raise UserError(
                f"law {self.name}: parameter {bad.name} is a {bad.kind!r}; choose {one_of(KINDS)}"
            )

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

    def hold(self, **values: float) -> Law:
        """This law with some parameters fixed, such as a base law fitted elsewhere.

        Raises `UserError` for a parameter that it does not have, or where none is left.
        """
        unknown = [name for name in values if name not in self.names]
        free = [p for p in self.parameters if p.name not in values]
        if unknown or not free:
            raise UserError(
                f"law {self.name} has the parameters {', '.join(self.names)}: "
                + (f"no {unknown[0]} to hold" if unknown else "leave one to fit")
            )
        kept = [p.name for p in free]

        def function(*given, **named):
            positional = zip((*kept, *self.predictors), given, strict=False)
            return self.function(**values, **dict(positional), **named)

        def full(params: np.ndarray) -> np.ndarray:
            columns = dict(zip(kept, np.moveaxis(params, -1, 0), strict=True)) | values
            return np.stack(np.broadcast_arrays(*[columns[n] for n in self.names]), axis=-1)

        def starts(loss: np.ndarray, x: np.ndarray) -> np.ndarray:
            return np.unique(self.starts(loss, x)[:, [n in kept for n in self.names]], axis=0)

        formula = self.formula
        for name, value in values.items():
            formula = formula.replace(f"{{{name}}}", number(value))
        return replace(
            self,
            name=f"{self.name} of given {', '.join(values)}",
            parameters=tuple(free),
            formula=formula,
            function=function,
            terms=(),
            starts=None if self.starts is None else starts,
            balance=None if self.balance is None else lambda params: self.balance(full(params)),
        )


def kaplan_starts(loss: np.ndarray, x: np.ndarray) -> np.ndarray:
    """At each (aN, aD), Nc and Dc of the least squares of L^(1/aD) on N^-(aN/aD) and 1/D."""
    found = []
    for aN, aD in np.stack(
        np.meshgrid(np.geomspace(0.02, 1, 12), np.geomspace(0.02, 1, 12)), axis=-1
    ).reshape(-1, 2):
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


def kaplan_floor_starts(loss: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Those of Kaplan's law through what is above some shares of the lowest loss."""
    floors = loss.min() * np.array([0.0, 0.3, 0.6, 0.8, 0.9])
    return np.concatenate([np.insert(kaplan_starts(loss - E, x), 0, E, axis=1) for E in floors])


def _kaplan(Nc, Dc, aN, aD, N, D):
    return ((Nc / N) ** (aN / aD) + Dc / D) ** aD


def worth(unique, extra, R):
    """What `unique` and as many again, `extra` times over, are worth in unique ones.

    unique (1 + R (1 - exp(-extra / R))): each repetition is worth less by a factor exp(-1 / R), so
    that all together never are more than unique (1 + R). Source: Muennighoff et al. 2023, equation
    5; of tokens extra = D / U - 1, the epochs after the first.
    """
    return unique * (1 - R * np.expm1(-extra / R))


def _repetition(E, A, B, alpha, beta, R, N, D, U):
    U = np.minimum(D, U)
    return E + A / N**alpha + B / worth(U, D / U - 1, R) ** beta


def _repetition_nd(E, A, B, alpha, beta, RD, RN, N, D, U):
    U = np.minimum(D, U)
    log_G = (np.log(alpha * A) - np.log(beta * B)) / (alpha + beta)
    best = log_G + (log_G + np.log(U)) * beta / alpha  # ln N* of the budget whose D* is U
    excess = np.log(N) - np.minimum(best, np.log(N))  # smooth in value and slope where it sets in
    size = worth(N * np.exp(-excess), np.expm1(excess), RN)
    return E + A / size**alpha + B / worth(U, D / U - 1, RD) ** beta


def repetition_starts(loss: np.ndarray, x: np.ndarray) -> np.ndarray:
    """At each (alpha, beta, RD) the relative least squares without decay of N, at each RN."""
    N, D, U = x[0], x[1], np.minimum(x[1], x[2])
    found = []
    for alpha, beta, RD in itertools.product(SLOPES, SLOPES, DECAYS):
        seen = worth(U, D / U - 1, RD)
        basis = np.stack([np.ones_like(N), (N.min() / N) ** alpha, (D.min() / seen) ** beta]) / loss
        E, A, B = solve_nonnegative((basis @ basis.T)[..., None], basis.sum(1)[:, None])[:, 0]
        A, B = max(A, 1e-6) * N.min() ** alpha, max(B, 1e-6) * D.min() ** beta
        found += [(E, A, B, alpha, beta, RD, RN) for RN in DECAYS]
    return np.array(found)


POWER = Law(
    name="power",  # L(N), L(D) or L(C): Hestness et al. 2017; with E = 0 Kaplan et al. 2020
    predictors=("x",),  # C, N or D of a ladder
    parameters=(Parameter("E", "floor"), Parameter("K", "coefficient"), Parameter("g", "exponent")),
    formula="{E} + {K} / {x}^{g}",
    function=lambda E, K, g, x: E + K / x**g,
    terms=(Term("K", {"x": "g"}),),
)

CHINCHILLA = Law(
    name="chinchilla",  # Hoffmann et al. 2022, approach 3
    predictors=("N", "D"),
    parameters=(
        Parameter("E", "floor"),
        Parameter("A", "coefficient"),
        Parameter("B", "coefficient"),
        Parameter("alpha", "exponent"),
        Parameter("beta", "exponent"),
    ),
    formula="{E} + {A} / N^{alpha} + {B} / D^{beta}",
    function=lambda E, A, B, alpha, beta, N, D: E + A / N**alpha + B / D**beta,
    terms=(Term("A", {"N": "alpha"}), Term("B", {"D": "beta"})),
    balance=lambda params: tuple(params[..., i] for i in (1, 3, 2, 4)),
)

KAPLAN = Law(
    name="kaplan",  # Kaplan et al. 2020, equation 1.5
    predictors=("N", "D"),
    parameters=(
        Parameter("Nc", "scale"),
        Parameter("Dc", "scale"),
        Parameter("aN", "exponent"),
        Parameter("aD", "exponent"),
    ),
    formula="(({Nc} / N)^({aN} / {aD}) + {Dc} / D)^{aD}",
    function=_kaplan,
    starts=kaplan_starts,
    balance=_kaplan_balance,
)

KAPLAN_FLOOR = Law(
    name="kaplan-floor",  # the same above an entropy of the text, which Kaplan et al. put to 0
    predictors=("N", "D"),
    parameters=(Parameter("E", "floor"), *KAPLAN.parameters),
    formula="{E} + " + KAPLAN.formula,
    function=lambda E, Nc, Dc, aN, aD, N, D: E + _kaplan(Nc, Dc, aN, aD, N, D),
    starts=kaplan_floor_starts,
    balance=lambda params: _kaplan_balance(params[..., 1:]),
)

REPETITION = Law(
    name="repetition",  # Muennighoff et al. 2023, equation 6 without the decay of N
    predictors=("N", "D", "U"),  # U: unique tokens of the D that were seen
    parameters=(*CHINCHILLA.parameters, Parameter("R", "positive", DECAYS, ALL_OR_NOTHING)),
    formula="{E} + {A} / N^{alpha} + {B} / (U (1 + {R} (1 - e^(-(D/U - 1) / {R}))))^{beta}",
    function=_repetition,
    constant=("U",),
)

REPETITION_ND = Law(
    name="repetition-nd",  # Muennighoff et al. 2023, equation 6
    predictors=("N", "D", "U"),
    parameters=(
        Parameter("E", "floor"),
        Parameter("A", "scale"),
        Parameter("B", "scale"),
        *CHINCHILLA.parameters[3:],
        Parameter("RD", "positive", DECAYS, ALL_OR_NOTHING),
        Parameter("RN", "positive", DECAYS, ALL_OR_NOTHING),
    ),
    formula="{E} + {A} / N'^{alpha} + {B} / D'^{beta}, N' of RN = {RN}, D' of RD = {RD}",
    function=_repetition_nd,
    starts=repetition_starts,
    constant=("U",),
)

LAWS: dict[str, Law] = {
    law.name: law for law in (CHINCHILLA, KAPLAN, KAPLAN_FLOOR, POWER, REPETITION, REPETITION_ND)
}


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
