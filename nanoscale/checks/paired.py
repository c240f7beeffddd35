"""Is one arm's loss lower than another's? Differences over seeds, their certainty, what is missing.

The one idea: a seed is a replicate, and nothing else is. Runs of equal seeds in both arms share
what the seed does, so their difference is what is averaged; several sizes of one seed are averaged
first, and the interval is Student's t over seeds. Windows say how far the mean loss depends on the
text it was measured on; they never stand for seeds. Losses in nats, lower is better.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from nanoscale.checks.drift import UNKNOWN, Interval
from nanoscale.checks.t_distribution import p_value, t_quantile

_LEVEL = 0.95
MANY_SEEDS = 100  # a remedy that asks for more is none
Losses = Mapping[str, float]  # seed -> loss
Cells = Mapping[Hashable, Losses]  # size or another shared setting -> its losses
Key = TypeVar("Key", bound=Hashable)


def mean_of(losses: Losses) -> float:
    return math.fsum(losses.values()) / len(losses)


# -- a difference and its certainty -------------------------------------------------------------
@dataclass(frozen=True)
class Sample:
    """A mean over `n` seeds whose values scatter by `sd` (NaN: one seed says nothing of it)."""

    mean: float
    sd: float
    n: int

    @property
    def se(self) -> float:
        return self.sd / math.sqrt(self.n)

    @classmethod
    def of(cls, cells: Cells) -> Sample:
        """The mean over cells of their means over seeds.

        Its variance is that of the seeds' own means, each over its cells, so it holds whatever the
        cells of a seed share (a sandwich over seeds; the sample variance of the seeds' means where
        no cell lacks one). The cell with the fewest seeds gives the degrees of freedom.
        """
        means = {cell: mean_of(losses) for cell, losses in cells.items()}
        mean = math.fsum(means.values()) / len(cells)
        n = min(len(losses) for losses in cells.values())
        if n < 2:
            return cls(mean, math.nan, n)

        share: dict[str, float] = {}  # seed -> what it moves the mean by
        for cell, losses in cells.items():
            weight = 1 / (len(cells) * len(losses))
            for seed, loss in losses.items():
                share[seed] = share.get(seed, 0.0) + weight * (loss - means[cell])
        variance = math.fsum(v * v for v in share.values()) * n / (n - 1)
        return cls(mean, math.sqrt(variance * n), n)


@dataclass(frozen=True)
class Estimate:
    """A difference as a record holds it; NaN where there are too few seeds to know."""

    value: float
    ci95: Interval
    p_value: float
    se: float
    dof: float
    sd: float  # of the pairs
    n_pairs: int
    paired_by: str | None


@dataclass(frozen=True)
class Difference:
    """A difference B - A and the samples that its variance comes from: pairs, or both arms."""

    value: float
    parts: tuple[Sample, ...]
    paired_by: str | None = None

    @property
    def se(self) -> float:
        return math.sqrt(math.fsum(sample.se**2 for sample in self.parts))

    @property
    def dof(self) -> float:
        """n - 1 for one sample, Welch and Satterthwaite's for two."""
        if self.se == 0:
            return sum(sample.n - 1.0 for sample in self.parts)
        return self.se**4 / math.fsum(sample.se**4 / (sample.n - 1) for sample in self.parts)

    @property
    def known(self) -> bool:
        """Whether there are seeds enough for an interval."""
        return math.isfinite(self.se)

    @property
    def ci95(self) -> Interval:
        if not self.known:
            return UNKNOWN
        half = t_quantile(_LEVEL, self.dof) * self.se if self.se else 0.0
        return self.value - half, self.value + half

    @property
    def p(self) -> float:
        if not self.known:
            return math.nan
        if self.se == 0:
            return float(self.value == 0)
        return p_value(self.value / self.se, self.dof)

    def with_more(self, seeds: int) -> Difference:
        """The same value and scatter from that many more seeds of each arm."""
        return replace(self, parts=tuple(replace(s, n=s.n + seeds) for s in self.parts))

    def estimate(self) -> Estimate:
        paired = self.paired_by is not None
        return Estimate(
            value=self.value,
            ci95=self.ci95,
            p_value=self.p,
            se=self.se,
            dof=self.dof if self.known else math.nan,
            sd=self.parts[0].sd if paired else math.nan,
            n_pairs=self.parts[0].n if paired else 0,
            paired_by=self.paired_by,
        )


def shared_seeds(a: Cells, b: Cells) -> bool:
    """Whether to pair: two seeds in both arms, and most of the arm that has fewer, in every cell.

    Decided by what was run, never by what came out.
    """
    single = True
    enough = True
    for cell in a:
        fewer = min(len(a[cell]), len(b[cell]))
        both = len(a[cell].keys() & b[cell].keys())
        if both == 0:
            return False
        single = single and fewer == 1
        enough = enough and both >= 2 and 2 * both > fewer
    return single or enough


def difference_of(a: Cells, b: Cells) -> Difference:
    """B - A over the same cells: of pairs where the seeds are shared, else of means (Welch)."""
    if not shared_seeds(a, b):
        of_a, of_b = Sample.of(a), Sample.of(b)
        return Difference(of_b.mean - of_a.mean, (of_a, of_b))
    pairs = Sample.of({cell: _paired(a[cell], b[cell]) for cell in a})
    return Difference(pairs.mean, (pairs,), "seed")


def _paired(a: Losses, b: Losses) -> Losses:
    return {seed: b[seed] - loss for seed, loss in a.items() if seed in b}


def judge(ends: Interval, rope: float) -> str:
    """equal within +-rope; else better (B is lower) or worse beyond zero; else inconclusive."""
    low, high = ends
    if -rope <= low and high <= rope:
        return "equal"
    if high < 0:
        return "better"
    return "worse" if low > 0 else "inconclusive"


def seeds_needed(difference: Difference, rope: float) -> int | None:
    """More seeds of each arm after which the interval decides if mean and scatter stay; or None."""
    if not difference.known:
        return max(0, 3 - min(sample.n for sample in difference.parts))
    for more in range(MANY_SEEDS + 1):
        if judge(difference.with_more(more).ci95, rope) != "inconclusive":
            return more
    return None


# -- windows ------------------------------------------------------------------------------------
def windows_noise(difference: np.ndarray) -> tuple[float, int]:
    """Standard error of the mean of differences per window (n,), in the text's order; its block.

    Neighbouring windows are alike, so the variance is that of circular blocks of n^(1/3) windows
    (Politis and Romano 1992, without drawing), and never below that of independent windows.
    """
    n = len(difference)
    if n < 2:
        return math.nan, 1
    block = math.ceil(n ** (1 / 3))
    c = difference - difference.mean()
    circle = np.concatenate([c, c[: block - 1]])
    total = np.concatenate([[0.0], np.cumsum(circle)])
    sums = total[block:] - total[:-block]  # (n,) over every run of `block` neighbours
    variance = max(float(sums @ sums) / block, float(c @ c)) / (n - 1)
    return math.sqrt(variance / n), block


# -- tuned settings -----------------------------------------------------------------------------
@dataclass(frozen=True)
class Choice(Generic[Key]):
    """The setting of lowest mean loss, and how far the choice itself flatters it."""

    setting: Key
    losses: Losses
    of: int  # settings that could have been chosen
    held_out: Losses  # each seed's loss at the setting that the other seeds choose
    doubts: tuple[Key, ...] = ()  # settings of fewer seeds that are lower on those


def choose(settings: Mapping[Key, Losses]) -> Choice[Key]:
    """Among the settings with the most seeds; noise favours those of fewer."""
    most = max(len(losses) for losses in settings.values())
    full = {key: losses for key, losses in settings.items() if len(losses) == most}
    best = _lowest(full)
    losses = settings[best]

    held_out = {}
    for seed in losses:
        others = {key: without(seed, own) for key, own in full.items() if seed in own}
        chosen = _lowest(others) if most > 1 else best
        held_out[seed] = full[chosen][seed]

    doubts = []
    for key, fewer in settings.items():
        if key in full or not fewer.keys() <= losses.keys():
            continue
        if sum(fewer.values()) < sum(losses[seed] for seed in fewer):
            doubts.append(key)
    return Choice(best, losses, len(full), held_out, tuple(doubts))


def _lowest(settings: Mapping[Key, Losses]) -> Key:
    return min(settings, key=lambda key: mean_of(settings[key]))


def without(seed: str, losses: Losses) -> Losses:
    return {other: loss for other, loss in losses.items() if other != seed}
