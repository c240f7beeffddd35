"""Compute at equal loss: how many times B's FLOPs does A need?

Each arm's losses over its FLOPs make a curve, straight in logarithms; the curves are read at each
other's losses, and the interval comes from leaving out one seed at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from nanoscale.checks.drift import UNKNOWN, Interval
from nanoscale.checks.paired import Difference, Losses, Sample, mean_of, without

Level = tuple[float, Losses]  # FLOPs of a run, losses at them
Levels = Sequence[Level]


@dataclass(frozen=True)
class LossCurve:
    """ln FLOPs over ln loss of an arm's levels, straight between them; one level is a point."""

    flops: np.ndarray  # (L,) ln, rising
    loss: np.ndarray  # (L,) ln, falling

    @classmethod
    def of(cls, levels: Iterable[Level]) -> LossCurve:
        """Of means over seeds; of levels of equal FLOPs the lowest loss."""
        means: dict[float, float] = {}
        for flops, losses in levels:
            means[flops] = min(mean_of(losses), means.get(flops, math.inf))
        rising = sorted(means)
        return cls(np.log(rising), np.log([means[flops] for flops in rising]))

    @property
    def falls(self) -> bool:
        return all(b < a for a, b in pairwise(self.loss))

    def reaches(self, loss: float) -> bool:
        return bool(self.loss[-1] <= loss <= self.loss[0])

    def at(self, loss: np.ndarray) -> np.ndarray:
        """ln FLOPs at ln losses (K,); the ends' beyond them."""
        return np.asarray(np.interp(loss, self.loss[::-1], self.flops[::-1]))


@dataclass(frozen=True)
class MultiplierAt:
    """The multiplier at the loss of one level of either arm."""

    loss: float
    level_of: str  # A or B
    flops: int
    value: float


@dataclass(frozen=True)
class ComputeMultiplier:
    """FLOPs that A needs over those that B needs for the same loss: above 1, B is the better."""

    value: float = math.nan
    ci95: Interval = UNKNOWN
    at: Sequence[MultiplierAt] = ()
    reason: str | None = None  # why there is none


def multiplier(a: Levels, b: Levels, paired: bool) -> ComputeMultiplier:
    """The geometric mean over the levels of either arm whose loss both reach.

    Seeds are left out one at a time, of both arms where they are paired (the jackknife, then
    Student's t in the log).
    """
    of_a, of_b = LossCurve.of(a), LossCurve.of(b)
    reason = _no_curves(of_a, of_b)
    if reason:
        return ComputeMultiplier(reason=reason)
    shared = [("A", i) for i, loss in enumerate(of_a.loss) if of_b.reaches(loss)]
    shared += [("B", i) for i, loss in enumerate(of_b.loss) if of_a.reaches(loss)]
    if not shared:
        return ComputeMultiplier(reason=_apart(of_a, of_b))

    def logs(of_a: LossCurve, of_b: LossCurve) -> np.ndarray:
        """(K,) ln of A's FLOPs over B's at the shared levels' losses."""
        curves = {"A": of_a, "B": of_b}
        losses = np.array([curves[arm].loss[i] for arm, i in shared])
        return np.asarray(of_a.at(losses) - of_b.at(losses))

    def value(a: Levels, b: Levels) -> float:
        return float(logs(LossCurve.of(a), LossCurve.of(b)).mean())

    each = logs(of_a, of_b)
    mean = Difference(float(each.mean()), _jackknife(value, a, b, paired))
    low, high = np.exp(mean.ci95).tolist()
    at = []
    for (arm, i), log in zip(shared, each, strict=True):
        at.append(_read_at(arm, of_a if arm == "A" else of_b, i, log))
    return ComputeMultiplier(math.exp(mean.value), (low, high), at)


def _read_at(arm: str, curve: LossCurve, i: int, log: float) -> MultiplierAt:
    flops = round(math.exp(curve.flops[i]))
    return MultiplierAt(math.exp(curve.loss[i]), arm, flops, math.exp(log))


def _no_curves(of_a: LossCurve, of_b: LossCurve) -> str:
    """Why the arms cannot be read against each other; or nothing."""
    if len(of_a.flops) < 2 and len(of_b.flops) < 2:
        return (
            "one compute budget per arm gives no multiplier: run both arms at two or more sizes "
            "or lengths, tuned at each"
        )
    rising = [arm for arm, curve in (("A", of_a), ("B", of_b)) if not curve.falls]
    if rising:
        return (
            f"the loss of {' and '.join(rising)} does not fall from one compute budget to the "
            "next: name runs of one ladder"
        )
    return ""


def _apart(of_a: LossCurve, of_b: LossCurve) -> str:
    lower, higher = ("B", "A") if of_b.loss[0] < of_a.loss[-1] else ("A", "B")
    return (
        f"every loss of {lower} lies below those of {higher}: run {higher} with more FLOPs, or "
        f"{lower} with fewer"
    )


# -- the jackknife ------------------------------------------------------------------------------
def _jackknife(
    value: Callable[[Levels, Levels], float], a: Levels, b: Levels, paired: bool
) -> tuple[Sample, ...]:
    """Samples whose standard errors are those of `value` as it loses one seed at a time."""
    if paired:
        return (_leaving_out(lambda seed: value(_less(a, seed), _less(b, seed)), [*a, *b]),)
    return (
        _leaving_out(lambda seed: value(_less(a, seed), b), a),
        _leaving_out(lambda seed: value(a, _less(b, seed)), b),
    )


def _leaving_out(value: Callable[[str], float], levels: Levels) -> Sample:
    """The scatter of `value` over the seeds of `levels`, each left out in turn."""
    if any(len(losses) < 2 for _, losses in levels):
        return Sample(math.nan, math.nan, 1)
    seeds = {seed for _, losses in levels for seed in losses}
    values = [value(seed) for seed in sorted(seeds)]
    n = len(values)
    mean = math.fsum(values) / n
    spread = math.fsum((v - mean) ** 2 for v in values)
    return Sample(math.nan, math.sqrt((n - 1) * spread), n)


def _less(levels: Levels, seed: str) -> Levels:
    return [(flops, without(seed, losses)) for flops, losses in levels]
