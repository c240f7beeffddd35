"""Is one arm's loss lower than another's? Differences over seeds, their certainty, what is missing.

The one idea: a seed is a replicate, and nothing else is. Runs of equal seeds in both arms share
what the seed does, so their difference is what is averaged; several sizes of one seed are averaged
first, and the interval is Student's t over seeds. Where the best of several settings is taken, each
seed counts at the setting that the others choose, as the least of several means is partly luck.
Windows say how far the mean loss depends on the text it was measured on; they never stand for
seeds. Losses in nats, lower is better.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from nanoscale.checks.seed_shifts import Interval, Numbers
from nanoscale.checks.t_distribution import p_value, t_quantile
from nanoscale.spec.values import Json

_LEVEL = 0.95
MANY_SEEDS = 100  # a remedy that asks for more is none
Losses = Mapping[str, float]  # seed -> loss
Setting = tuple[Json, ...]  # the values of some config keys
Pairs = Sequence[tuple[Losses, Losses]]  # of A and of B, at the same size or setting


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
    def of(cls, cells: Sequence[Losses]) -> Sample:
        """The mean over cells of their means over seeds.

        Its variance is that of the seeds' own means, each over its cells, so it holds whatever the
        cells of a seed share (a sandwich over seeds; the sample variance of the seeds' means where
        no cell lacks one). The cell with the fewest seeds gives the degrees of freedom.
        """
        means = []
        share: dict[str, float] = defaultdict(float)  # seed -> what it moves the mean by
        for losses in cells:
            own = fmean(losses.values())
            means.append(own)
            weight = 1 / (len(cells) * len(losses))
            for seed, loss in losses.items():
                share[seed] += weight * (loss - own)

        mean = fmean(means)
        n = min(map(len, cells))
        if n < 2:
            return cls(mean, math.nan, n)
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
    at_chosen: Difference | None = None  # of tuned arms, whose interval and p count too

    @property
    def se(self) -> float:
        return math.sqrt(math.fsum(sample.se**2 for sample in self.parts))

    @property
    def dof(self) -> float:
        """n - 1 for one sample, Welch and Satterthwaite's for two; NaN where an interval is."""
        if not self.known:
            return math.nan
        if self.se == 0:
            return sum(sample.n - 1.0 for sample in self.parts)
        return self.se**4 / math.fsum(sample.se**4 / (sample.n - 1) for sample in self.parts)

    @property
    def known(self) -> bool:
        """Whether there are seeds enough for an interval."""
        return math.isfinite(self.se)

    @property
    def ci95(self) -> Interval:
        half = t_quantile(_LEVEL, self.dof) * self.se
        low, high = self.value - half, self.value + half
        if self.at_chosen:
            other_low, other_high = self.at_chosen.ci95
            return min(low, other_low), max(high, other_high)
        return low, high

    @property
    def p(self) -> float:
        at_chosen = self.at_chosen.p if self.at_chosen else 0.0
        if self.se == 0:
            return max(float(self.value == 0), at_chosen)
        return max(p_value(self.value / self.se, self.dof), at_chosen)

    def with_more(self, seeds: int) -> Difference:
        """The same value and scatter from that many more seeds of each arm."""
        parts = tuple(replace(s, n=s.n + seeds) for s in self.parts)
        at_chosen = self.at_chosen.with_more(seeds) if self.at_chosen else None
        return replace(self, parts=parts, at_chosen=at_chosen)

    def estimate(self) -> Estimate:
        pairs = self.parts[0] if self.paired_by else Sample(math.nan, math.nan, 0)
        return Estimate(
            value=self.value,
            ci95=self.ci95,
            p_value=self.p,
            se=self.se,
            dof=self.dof,
            sd=pairs.sd,
            n_pairs=pairs.n,
            paired_by=self.paired_by,
        )


def shared_seeds(pairs: Pairs) -> bool:
    """Whether to pair: two seeds in both arms, and most of the arm that has fewer, at every size.

    Decided by what was run, never by what came out.
    """
    single = True
    enough = True
    for a, b in pairs:
        fewer = min(len(a), len(b))
        both = len(a.keys() & b.keys())
        if both == 0:
            return False
        single = single and fewer == 1
        enough = enough and both >= 2 and 2 * both > fewer
    return single or enough


def difference_of(pairs: Pairs) -> Difference:
    """B - A at the same sizes: of pairs where the seeds are shared, else of means (Welch)."""
    if not shared_seeds(pairs):
        of_a = Sample.of([a for a, _ in pairs])
        of_b = Sample.of([b for _, b in pairs])
        return Difference(of_b.mean - of_a.mean, (of_a, of_b))
    differences = []
    for a, b in pairs:
        differences.append({seed: b[seed] - a[seed] for seed in a if seed in b})
    sample = Sample.of(differences)
    return Difference(sample.mean, (sample,), "seed")


def tuned_difference(choices: Sequence[tuple[ChosenSetting, ChosenSetting]]) -> Difference:
    """B - A at the same sizes, each seed at the setting that the others choose. Its interval spans
    that at the chosen settings too: the first lacks the flattery, the second the scatter of the
    choices, and together they hold their level (5 seeds, 9 settings alike: wrong in 4 %; alone in
    9 % and 11 %)."""
    held_out = difference_of([(a.held_out, b.held_out) for a, b in choices])
    at_chosen = difference_of([(a.losses, b.losses) for a, b in choices])
    return replace(held_out, at_chosen=at_chosen)


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
        return 3 - min(sample.n for sample in difference.parts)
    for more in range(MANY_SEEDS + 1):
        if judge(difference.with_more(more).ci95, rope) != "inconclusive":
            return more
    return None


# -- windows ------------------------------------------------------------------------------------
def windows_noise(difference: Numbers) -> tuple[float, int]:
    """Standard error of the mean of differences per window (n,), in the text's order; its block.

    Neighbouring windows are alike, so the variance is that of circular blocks of n^(1/3) windows
    (Politis and Romano 1992, without drawing), and never below that of independent windows.
    """
    n = len(difference)
    if n < 2:
        return math.nan, 1
    block = math.ceil(n ** (1 / 3))
    c = difference - difference.mean()
    circle = np.concatenate([[0.0], c, c[: block - 1]])
    total = np.cumsum(circle)
    sums = total[block:] - total[:-block]  # (n,) over every run of `block` neighbours
    of_blocks = float(sums @ sums) / block
    of_windows = float(c @ c)
    variance = max(of_blocks, of_windows) / (n - 1)
    return math.sqrt(variance / n), block


# -- tuned settings -----------------------------------------------------------------------------
@dataclass(frozen=True)
class ChosenSetting:
    """The setting of lowest mean loss, and how far the choice itself flatters it."""

    setting: Setting
    losses: Losses
    of: int  # settings that could have been chosen
    held_out: Losses  # each seed's loss at the setting that the other seeds choose
    doubts: tuple[Setting, ...]  # settings of fewer seeds that are lower on those


def choose(settings: Mapping[Setting, Losses]) -> ChosenSetting:
    """Among the settings with the most seeds; noise favours those of fewer."""
    most = max(map(len, settings.values()))
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
    return ChosenSetting(best, losses, len(full), held_out, tuple(doubts))


def _lowest(settings: Mapping[Setting, Losses]) -> Setting:
    return min(settings, key=lambda key: fmean(settings[key].values()))


def without(seed: str, losses: Losses) -> Losses:
    return {other: loss for other, loss in losses.items() if other != seed}
