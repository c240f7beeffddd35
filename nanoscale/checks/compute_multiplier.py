"""Compute at equal loss: how many times B's FLOPs does A need?

Each arm's losses over its FLOPs make a curve, straight in logarithms; the curves are read at each
other's losses, and the interval comes from leaving out one seed at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from nanoscale.checks.drift import UNKNOWN
from nanoscale.checks.paired import Difference, Losses, Sample, without
from nanoscale.checks.seed_shifts import Interval, Numbers

Levels = Sequence[tuple[float, Losses]]  # FLOPs of a run, losses at them


@dataclass(frozen=True)
class LossCurve:
    """ln FLOPs over ln loss of an arm's levels, straight between them; one level is a point."""

    flops: Numbers  # (L,) ln, rising
    loss: Numbers  # (L,) ln, falling

    @classmethod
    def of(cls, levels: Levels) -> LossCurve:
        """Of means over seeds; of levels of equal FLOPs the lowest loss."""
        means: dict[float, float] = {}
        for flops, losses in levels:
            mean = fmean(losses.values())
            means[flops] = min(mean, means.get(flops, mean))
        rising = sorted(means)
        falling = [means[flops] for flops in rising]
        return cls(np.log(rising), np.log(falling))

    @property
    def falls(self) -> bool:
        return bool((np.diff(self.loss) < 0).all())

    def reaches(self, loss: Numbers) -> Numbers:
        """Mask (K,): which of the ln losses it has."""
        return np.asarray((loss >= self.loss[-1]) & (loss <= self.loss[0]))

    def at(self, loss: Numbers) -> Numbers:
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


@dataclass(frozen=True)
class SharedLevels:
    """The levels of each arm whose loss the other arm has too, as masks over the arms' curves."""

    of_a: Numbers
    of_b: Numbers

    def read(self, a: Numbers, b: Numbers) -> Numbers:
        """(K,) what A's curve and then what B's is at them."""
        return np.concatenate([a[self.of_a], b[self.of_b]])

    def logs(self, a: Levels, b: Levels) -> Numbers:
        """(K,) ln of A's FLOPs over B's at the shared levels' losses."""
        of_a = LossCurve.of(a)
        of_b = LossCurve.of(b)
        losses = self.read(of_a.loss, of_b.loss)
        return np.asarray(of_a.at(losses) - of_b.at(losses))

    def mean(self, a: Levels, b: Levels) -> float:
        return float(self.logs(a, b).mean())


def multiplier(a: Levels, b: Levels, paired: bool) -> ComputeMultiplier:
    """The geometric mean over the levels of either arm whose loss both reach.

    Seeds are left out one at a time, of both arms where they are paired (the jackknife, then
    Student's t in the log).
    """
    of_a = LossCurve.of(a)
    of_b = LossCurve.of(b)
    shared = SharedLevels(of_b.reaches(of_a.loss), of_a.reaches(of_b.loss))
    reason = _no_multiplier(of_a, of_b, shared)
    if reason:
        return ComputeMultiplier(reason=reason)
    mean = Difference(shared.mean(a, b), _jackknife(shared.mean, a, b, paired))
    low, high = np.exp(mean.ci95).tolist()
    at = _read(shared, of_a, of_b, shared.logs(a, b))
    return ComputeMultiplier(math.exp(mean.value), (low, high), at)


def _read(
    shared: SharedLevels, of_a: LossCurve, of_b: LossCurve, logs: Numbers
) -> list[MultiplierAt]:
    at = []
    arms = ["A"] * shared.of_a.sum() + ["B"] * shared.of_b.sum()
    losses = shared.read(of_a.loss, of_b.loss)
    flops = shared.read(of_a.flops, of_b.flops)
    for arm, loss, c, log in zip(arms, losses, flops, logs, strict=True):
        level = MultiplierAt(
            loss=math.exp(loss),
            level_of=arm,
            flops=round(math.exp(c)),
            value=math.exp(log),
        )
        at.append(level)
    return at


def _no_multiplier(of_a: LossCurve, of_b: LossCurve, shared: SharedLevels) -> str:
    """Why the arms cannot be read against each other; or nothing."""
    if len(of_a.flops) < 2 and len(of_b.flops) < 2:
        return (
            "one compute budget per arm gives no multiplier: run both arms at two or more sizes "
            "or lengths, tuned at each"
        )
    rising = []
    if not of_a.falls:
        rising.append("A")
    if not of_b.falls:
        rising.append("B")
    if rising:
        return (
            f"the loss of {' and '.join(rising)} does not fall from one compute budget to the "
            "next: name runs of one ladder"
        )
    if shared.of_a.any() or shared.of_b.any():
        return ""
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
    if min(len(losses) for _, losses in (*a, *b)) < 2:
        return (Sample(math.nan, math.nan, 1),)
    if paired:
        seeds = _seeds([*a, *b])
        values = [value(_less(a, seed), _less(b, seed)) for seed in seeds]
        return (_scatter(values),)
    seeds_a = _seeds(a)
    seeds_b = _seeds(b)
    without_a = [value(_less(a, seed), b) for seed in seeds_a]
    without_b = [value(a, _less(b, seed)) for seed in seeds_b]
    return _scatter(without_a), _scatter(without_b)


def _seeds(levels: Levels) -> list[str]:
    return sorted({seed for _, losses in levels for seed in losses})


def _less(levels: Levels, seed: str) -> Levels:
    return [(flops, without(seed, losses)) for flops, losses in levels]


def _scatter(values: Sequence[float]) -> Sample:
    """That of a value over the seeds, each left out in turn."""
    n = len(values)
    mean = fmean(values)
    spread = math.fsum((v - mean) ** 2 for v in values)
    return Sample(math.nan, math.sqrt((n - 1) * spread), n)
