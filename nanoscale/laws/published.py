"""The laws of the field that are built in, each with its source, and where their fits start."""

from __future__ import annotations

import itertools
import math

import numpy as np

from nanoscale.laws.arrays import Array
from nanoscale.laws.forms import EXPONENTS, Law, Parameter, Term
from nanoscale.laws.linear import solve_nonnegative

SLOPES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.9)  # exponents, and
DECAYS = (1.0, 4.0, 16.0, 64.0)  # epochs or excess sizes after which repetition pays less: starts
STEEPEST = (EXPONENTS[0], 1.0)  # a power that falls faster is one of the smallest runs alone
ALL_OR_NOTHING = (1e-3, 1e7)  # of them: repetition is worth nothing, or as much as new text


# -- Kaplan et al. 2020 ---------------------------------------------------------------------------
def pure_power_starts(loss: Array, x: Array) -> Array:
    """The straight line of ln L over ln x."""
    slope, level = np.polyfit(np.log(x[0]), np.log(loss), 1)
    return np.array([(math.exp(level), max(-slope, 1e-3))])


def _kaplan(Nc: Array, Dc: Array, aN: Array, aD: Array, N: Array, D: Array) -> Array:
    return ((Nc / N) ** (aN / aD) + Dc / D) ** aD


def _kaplan_balance(Nc: Array, Dc: Array, aN: Array, aD: Array) -> tuple[Array, ...]:
    return Nc ** (aN / aD), aN / aD, Dc, np.ones_like(aD)


def kaplan_starts(loss: Array, x: Array) -> Array:
    """At each (aN, aD), Nc and Dc of the least squares of L^(1/aD) on N^-(aN/aD) and 1/D."""
    N, D = x
    exponents = np.geomspace(0.02, 1, 12)
    most = loss.max()  # losses are over it, and it goes back below
    starts = []
    for aD, aN in itertools.product(exponents, exponents):
        target = (loss / most) ** (1 / aD)
        of_N = (N / N.min()) ** (-aN / aD)
        basis = np.stack([of_N, D.min() / D]) / target

        coefficients = np.linalg.lstsq(basis.T, np.ones(len(loss)), rcond=None)[0]
        logs = np.log(np.maximum(coefficients, 1e-9))
        first, second = logs + math.log(most) / aD
        Nc = N.min() * math.exp(first * aD / aN)
        Dc = D.min() * math.exp(second)
        starts.append((Nc, Dc, aN, aD))
    return np.array(starts)


def kaplan_floor_starts(loss: Array, x: Array) -> Array:
    """Those of Kaplan's law through what is above some shares of the lowest loss."""
    starts = []
    for floor in loss.min() * np.array([0.0, 0.3, 0.6, 0.8, 0.9]):
        above = kaplan_starts(loss - floor, x)
        starts.append(np.insert(above, 0, floor, axis=1))
    return np.concatenate(starts)


# -- Muennighoff et al. 2023 ----------------------------------------------------------------------
def worth(unique: Array, extra: Array, R: Array) -> Array:
    """What `unique` and as many again, `extra` times over, are worth in unique ones.

    unique (1 + R (1 - exp(-extra / R))): each repetition is worth less by a factor exp(-1 / R), so
    that all together never are more than unique (1 + R). Source: Muennighoff et al. 2023, equation
    5; of tokens extra = D / U - 1, the epochs after the first.
    """
    minus = -R
    return unique * (1 + minus * np.expm1(extra / minus))


def _repetition(R: Array, D: Array, U: Array, **base: Array) -> Array:
    U = np.minimum(D, U)
    return CHINCHILLA.function(**base, D=worth(U, D / U - 1, R))


def _repetition_nd(
    alpha: Array, beta: Array, RD: Array, RN: Array, N: Array, D: Array, U: Array, **base: Array
) -> Array:
    U = np.minimum(D, U)
    side_N = np.log(alpha * base["A"])
    side_D = np.log(beta * base["B"])
    log_G = (side_N - side_D) / (alpha + beta)
    ratio = beta / alpha
    log_best = log_G + ratio * log_G + ratio * np.log(U)  # N* of the budget whose D* is U
    best = np.exp(np.minimum(log_best, np.log(N)))  # smooth in value and slope where it sets in

    size = worth(best, N / best - 1, RN)
    seen = worth(U, D / U - 1, RD)
    return CHINCHILLA.function(alpha=alpha, beta=beta, N=size, D=seen, **base)


def repetition_starts(loss: Array, x: Array) -> Array:
    """At each (alpha, beta, RD) the relative least squares without decay of N, at each RN."""
    N, D, unique = x
    U = np.minimum(D, unique)
    starts = []
    for alpha, beta, RD in itertools.product(SLOPES, SLOPES, DECAYS):
        seen = worth(U, D / U - 1, np.asarray(RD))
        of_N = (N.min() / N) ** alpha
        of_D = (D.min() / seen) ** beta
        basis = np.stack([np.ones_like(N), of_N, of_D]) / loss

        gram = basis @ basis.T
        target = basis.sum(1)
        solution = solve_nonnegative(gram[..., None], target[:, None])
        E, first, second = solution[:, 0]
        A = max(first, 1e-6) * N.min() ** alpha
        B = max(second, 1e-6) * D.min() ** beta
        for RN in DECAYS:
            starts.append((E, A, B, alpha, beta, RD, RN))
    return np.array(starts)


# -- Caballero et al. 2023 ------------------------------------------------------------------------
def _broken(E: Array, K: Array, g: Array, h: Array, B: Array, f: Array, x: Array) -> Array:
    past = np.log(x / B) / f
    before = np.minimum(past, 0)
    bend = np.log(1 + np.exp(2 * before - past)) + past - before  # ln(1 + (x / B)^(1 / f))
    slower: Array = np.exp((g - h) * f * bend)
    return E + K * slower / x**g


def broken_starts(loss: Array, x: Array) -> Array:
    """At each exponent before and after a break in the middle half; the rest is linear."""
    low, high = np.log([x[0].min(), x[0].max()])
    breaks = np.exp(low + (high - low) * np.array([0.25, 0.5, 0.75]))
    others = itertools.product(SLOPES, SLOPES, breaks, (0.1, 1.0))
    return np.array([(1.0, 1.0, *values) for values in others])


# -- Videau et al. 2026 ---------------------------------------------------------------------------
def _skaling(
    E: Array, A: Array, B: Array, alpha: Array, beta: Array, k: Array, N: Array, D: Array
) -> Array:
    inside = A * N**-alpha + B * D**-beta
    return E + inside**k


def skaling_starts(loss: Array, x: Array) -> Array:
    """At each floor, k and pair of outer slopes the least squares of (L - E)^(1/k), which is linear
    in A and B."""
    N, D = x
    starts = []
    for share, k in itertools.product((0.0, 0.4, 0.7, 0.9), (0.25, 0.4, 0.7, 1.0)):
        floor = share * loss.min()
        target = (loss - floor) ** (1 / k)
        for of_N, of_D in itertools.product((0.1, 0.2, 0.35, 0.6), repeat=2):
            alpha, beta = of_N / k, of_D / k
            starts.append((floor, *_summed(target, N, D, alpha, beta), alpha, beta, k))
    return np.array(starts)


def _summed(target: Array, N: Array, D: Array, alpha: float, beta: float) -> tuple[float, float]:
    """A and B with which A / N^alpha + B / D^beta is nearest to a target, relatively."""
    of_N = (N.min() / N) ** alpha
    of_D = (D.min() / D) ** beta
    basis = np.stack([of_N, of_D]) / target
    gram = basis @ basis.T
    solution = solve_nonnegative(gram[..., None], basis.sum(1)[:, None])
    first, second = np.maximum(solution[:, 0], 1e-9).tolist()
    return first * float(N.min()) ** alpha, second * float(D.min()) ** beta


# -- the laws -------------------------------------------------------------------------------------
POWER = Law(
    name="power",  # L(N), L(D) or L(C): Hestness et al. 2017; with E = 0 Kaplan et al. 2020
    predictors=("x",),  # C, N or D of a ladder
    parameters=(Parameter("E", "floor"), Parameter("K", "coefficient"), Parameter("g", "exponent")),
    formula="{E} + {K} / {x}^{g}",
    function=lambda E, K, g, x: E + K / x**g,
    terms=(Term("K", {"x": "g"}),),
)

PURE_POWER = Law(
    name="pure-power",  # Kaplan et al. 2020, equation 1.3: no entropy of the text
    predictors=("x",),
    parameters=POWER.parameters[1:],
    formula="{K} / {x}^{g}",
    function=lambda K, g, x: K / x**g,
    starts=pure_power_starts,
)

TWO_POWERS = Law(
    name="two-powers",  # Hoffmann et al. 2022's law of N and D, where D is a share of N
    predictors=("x",),
    parameters=(
        *POWER.parameters,
        Parameter("J", "coefficient"),
        Parameter("h", "exponent", range=STEEPEST),
    ),
    formula="{E} + {K} / {x}^{g} + {J} / {x}^{h}",
    function=lambda E, K, g, J, h, x: E + K / x**g + J / x**h,
    terms=(Term("K", {"x": "g"}), Term("J", {"x": "h"})),
)

BROKEN = Law(
    name="broken",  # Caballero et al. 2023, equation 1 with one break, at B; h: g + c1
    predictors=("x",),
    parameters=(
        *POWER.parameters,
        Parameter("h", "exponent"),
        Parameter("B", "scale"),
        Parameter("f", "positive", range=(0.01, 10.0)),
    ),
    formula="{E} + {K} / {x}^{g} (1 + ({x} / {B})^(1 / {f}))^(({g} - {h}) {f})",
    function=_broken,
    starts=broken_starts,
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
    function=lambda E, A, B, alpha, beta, N, D: E + A * N**-alpha + B * D**-beta,
    terms=(Term("A", {"N": "alpha"}), Term("B", {"D": "beta"})),
    balance=lambda E, A, B, alpha, beta: (A, alpha, B, beta),
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
    function=lambda E, **others: E + _kaplan(**others),
    starts=kaplan_floor_starts,
    balance=lambda E, **others: _kaplan_balance(**others),
)

SKALING = Law(
    name="skaling",  # Videau et al. 2026 (arXiv 2608.07222): Chinchilla's sum, coupled by k
    predictors=("N", "D"),
    parameters=(
        Parameter("E", "floor"),
        Parameter("A", "scale"),
        Parameter("B", "scale"),
        Parameter("alpha", "exponent"),
        Parameter("beta", "exponent"),
        Parameter("k", "positive", range=(0.05, 5.0)),
    ),
    formula="{E} + ({A} / N^{alpha} + {B} / D^{beta})^{k}",
    function=_skaling,
    starts=skaling_starts,
    balance=lambda E, A, B, alpha, beta, k: (A, alpha, B, beta),
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

PUBLISHED = (
    CHINCHILLA,
    KAPLAN,
    KAPLAN_FLOOR,
    SKALING,
    POWER,
    PURE_POWER,
    TWO_POWERS,
    BROKEN,
    REPETITION,
    REPETITION_ND,
)
