"""Is one arm's loss lower than another's? Differences over seeds, their certainty, what is missing.

The one idea: a seed is a replicate, and nothing else is. Runs of equal seeds in both arms share
what the seed does, so their difference is what is averaged; several sizes of one seed are averaged
first, and the interval is Student's t over seeds. Windows say how far the mean loss depends on the
text it was measured on; they never stand for seeds. Losses in nats, lower is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from nanoscale.studies.student import p_value, t_quantile

LEVEL = 0.95
MANY_SEEDS = 100  # a remedy that asks for more is none
UNKNOWN = (math.nan, math.nan)
Losses = Mapping[str, float]  # seed -> loss
Cells = Mapping[Any, Losses]  # size or another shared setting -> its losses
Level = tuple[float, Losses]  # FLOPs of a run, losses at them


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
        means = {cell: math.fsum(own.values()) / len(own) for cell, own in cells.items()}
        n, mean = min(map(len, cells.values())), math.fsum(means.values()) / len(cells)
        share: dict[str, float] = {}
        for cell, own in cells.items():
            for seed, value in own.items():
                weight = 1 / (len(cells) * len(own))
                share[seed] = share.get(seed, 0.0) + weight * (value - means[cell])
        if n < 2:
            return cls(mean, math.nan, n)
        variance = math.fsum(v * v for v in share.values()) * n / (n - 1)
        return cls(mean, math.sqrt(variance * n), n)


@dataclass(frozen=True)
class Difference:
    """A difference B - A and the samples that its variance comes from: pairs, or both arms."""

    value: float
    parts: tuple[Sample, ...]
    paired_by: str | None = None

    @property
    def se(self) -> float:
        return math.sqrt(math.fsum(s.se**2 for s in self.parts))

    @property
    def dof(self) -> float:
        """n - 1 for one sample, Welch and Satterthwaite's for two."""
        if self.se == 0:
            return sum(s.n - 1.0 for s in self.parts)
        return self.se**4 / math.fsum(s.se**4 / (s.n - 1) for s in self.parts)

    @property
    def known(self) -> bool:
        return math.isfinite(self.se)

    @property
    def ci95(self) -> tuple[float, float]:
        if not self.known:
            return UNKNOWN
        half = t_quantile(LEVEL, self.dof) * self.se if self.se else 0.0
        return self.value - half, self.value + half

    @property
    def p(self) -> float:
        if not self.known or self.se == 0:
            return math.nan if not self.known else float(self.value == 0)
        return p_value(self.value / self.se, self.dof)

    def with_more(self, seeds: int) -> Difference:
        """The same value and scatter from that many more seeds of each arm."""
        return replace(self, parts=tuple(replace(s, n=s.n + seeds) for s in self.parts))

    def to_json(self) -> dict[str, Any]:
        paired = self.paired_by is not None
        return {
            "value": self.value,
            "ci95": list(self.ci95),
            "p_value": self.p,
            "se": self.se,
            "dof": self.dof if self.known else None,
            "sd": self.parts[0].sd if paired else None,
            "n_pairs": self.parts[0].n if paired else 0,
            "paired_by": self.paired_by,
        }


def shared_seeds(a: Cells, b: Cells) -> bool:
    """Whether to pair: two seeds in both arms, and most of the arm that has fewer, in every cell.

    Decided by what was run, never by what came out.
    """
    both = [len(a[cell].keys() & b[cell].keys()) for cell in a]
    few = [min(len(a[cell]), len(b[cell])) for cell in a]
    if all(n == 1 for n in few):
        return all(both)
    return all(n >= 2 and 2 * n > m for n, m in zip(both, few, strict=True))


def difference_of(a: Cells, b: Cells) -> Difference:
    """B - A over the same cells: of pairs where the seeds are shared, else of means (Welch)."""
    if not shared_seeds(a, b):
        samples = Sample.of(a), Sample.of(b)
        return Difference(samples[1].mean - samples[0].mean, samples)
    pairs = Sample.of(
        {
            cell: {seed: b[cell][seed] - loss for seed, loss in own.items() if seed in b[cell]}
            for cell, own in a.items()
        }
    )
    return Difference(pairs.mean, (pairs,), "seed")


def judge(ends: tuple[float, float], rope: float) -> str:
    """equal within +-rope; else better (B is lower) or worse beyond zero; else inconclusive."""
    low, high = ends
    if -rope <= low and high <= rope:
        return "equal"
    return "better" if high < 0 else "worse" if low > 0 else "inconclusive"


def seeds_needed(difference: Difference, rope: float) -> int | None:
    """More seeds of each arm after which the interval decides if mean and scatter stay; or None."""
    if not difference.known:
        return max(0, 3 - min(s.n for s in difference.parts))
    return next(
        (
            more
            for more in range(MANY_SEEDS + 1)
            if judge(difference.with_more(more).ci95, rope) != "inconclusive"
        ),
        None,
    )


# -- windows ------------------------------------------------------------------------------------
def windows_noise(difference: np.ndarray) -> tuple[float, int]:
    """Standard error of the mean of differences per window (n,), in the text's order; its block.

    Neighbouring windows are alike, so the variance is that of circular blocks of n^(1/3) windows
    (Politis and Romano 1992, without drawing), and never below that of independent windows.
    """
    n = len(difference)
    if n < 2:
        return math.nan, 1
    block, c = math.ceil(n ** (1 / 3)), difference - difference.mean()
    total = np.concatenate([[0.0], np.cumsum(np.concatenate([c, c[: block - 1]]))])
    sums = total[block:] - total[:-block]  # (n,) over every run of `block` neighbours
    variance = max(float(sums @ sums) / block, float(c @ c)) / (n - 1)
    return math.sqrt(variance / n), block


# -- tuned settings -----------------------------------------------------------------------------
@dataclass(frozen=True)
class Choice:
    """The setting of lowest mean loss, and how far the choice itself flatters it."""

    setting: Any
    losses: Losses
    of: int  # settings that could have been chosen
    held_out: Losses  # each seed's loss at the setting that the other seeds choose
    doubts: tuple[Any, ...] = ()  # settings of fewer seeds that are lower on those


def choose(settings: Mapping[Any, Losses]) -> Choice:
    """Among the settings with the most seeds; noise favours those of fewer."""
    most = max(map(len, settings.values()))
    full = {key: own for key, own in settings.items() if len(own) == most}
    best = _lowest(full)
    held_out = {}
    for seed in settings[best]:
        others = {
            key: {s: v for s, v in own.items() if s != seed}
            for key, own in full.items()
            if seed in own
        }
        held_out[seed] = full[_lowest(others) if most > 1 else best][seed]
    doubts = tuple(
        key
        for key, own in settings.items()
        if key not in full
        and own.keys() <= settings[best].keys()
        and sum(own.values()) < sum(settings[best][seed] for seed in own)
    )
    return Choice(best, settings[best], len(full), held_out, doubts)


def _lowest(settings: Mapping[Any, Losses]) -> Any:
    return min(settings, key=lambda key: math.fsum(settings[key].values()) / len(settings[key]))


# -- compute at equal loss ----------------------------------------------------------------------
@dataclass(frozen=True)
class Curve:
    """ln FLOPs over ln loss of an arm's levels, straight between them; one level is a point."""

    flops: np.ndarray  # (L,) ln, rising
    loss: np.ndarray  # (L,) ln, falling

    @classmethod
    def of(cls, levels: Iterable[Level]) -> Curve:
        """Of means over seeds; of levels of equal FLOPs the lowest loss."""
        means: dict[float, float] = {}
        for flops, own in levels:
            mean = math.fsum(own.values()) / len(own)
            means[flops] = min(mean, means.get(flops, math.inf))
        return cls(np.log(sorted(means)), np.log([means[flops] for flops in sorted(means)]))

    @property
    def falls(self) -> bool:
        return all(b < a for a, b in pairwise(self.loss))

    def reaches(self, loss: float) -> bool:
        return bool(self.loss[-1] <= loss <= self.loss[0])

    def at(self, loss: np.ndarray) -> np.ndarray:
        """ln FLOPs at ln losses (K,); the ends' beyond them."""
        return np.interp(loss, self.loss[::-1], self.flops[::-1])


def multiplier(a: Sequence[Level], b: Sequence[Level], paired: bool) -> dict[str, Any]:
    """FLOPs that A needs over those that B needs for the same loss: above 1, B is more efficient.

    The geometric mean over the levels of either arm whose loss both reach. Seeds are left out one
    at a time, of both arms where they are paired (the jackknife, then Student's t in the log).
    """
    curves = Curve.of(a), Curve.of(b)
    names = [name for name, curve in zip("AB", curves, strict=True) if not curve.falls]
    nothing = {"value": None, "ci95": [None, None], "at": []}
    if all(len(curve.flops) < 2 for curve in curves):
        return nothing | {
            "reason": "one compute budget per arm gives no multiplier: run both arms "
            "at two or more sizes or lengths, tuned at each"
        }
    if names:
        return nothing | {
            "reason": f"the loss of {' and '.join(names)} does not fall from one "
            "compute budget to the next: name runs of one ladder"
        }
    knots = [
        (which, i)
        for which, curve in enumerate(curves)
        for i, loss in enumerate(curve.loss)
        if curves[1 - which].reaches(loss)
    ]
    if not knots:
        lower = "B" if curves[1].loss[0] < curves[0].loss[-1] else "A"
        other = "A" if lower == "B" else "B"
        return nothing | {
            "reason": f"every loss of {lower} lies below those of {other}: run "
            f"{other} with more FLOPs, or {lower} with fewer"
        }

    def logs(pair: Sequence[Curve]) -> np.ndarray:
        losses = np.array([pair[which].loss[i] for which, i in knots])
        return pair[0].at(losses) - pair[1].at(losses)

    each = logs(curves)
    parts = _jackknife(
        lambda *arms: float(logs([Curve.of(arm) for arm in arms]).mean()), a, b, paired
    )
    found = Difference(float(each.mean()), parts)
    return {
        "value": math.exp(found.value),
        "ci95": np.exp(found.ci95).tolist(),
        "at": [
            {
                "loss": math.exp(curves[which].loss[i]),
                "level_of": "AB"[which],
                "flops": round(math.exp(curves[which].flops[i])),
                "value": math.exp(value),
            }
            for (which, i), value in zip(knots, each, strict=True)
        ],
        "reason": None,
    }


def _jackknife(
    value: Callable[..., float], a: Sequence[Level], b: Sequence[Level], paired: bool
) -> tuple[Sample, ...]:
    """Samples whose standard errors are those of `value` as it loses one seed at a time."""

    def without(levels: Sequence[Level], seed: str) -> list[Level]:
        return [(flops, {s: v for s, v in own.items() if s != seed}) for flops, own in levels]

    def sample(seeds: set[str], arms: Callable[[str], tuple]) -> Sample:
        each = []
        for seed in sorted(seeds):
            left = arms(seed)
            if not all(own for levels in left for _, own in levels):
                return Sample(math.nan, math.nan, 1)
            each.append(value(*left))
        n = len(each)
        spread = math.fsum((v - math.fsum(each) / n) ** 2 for v in each)
        return Sample(math.nan, math.sqrt((n - 1) * spread) if n > 1 else math.nan, n)

    of_a, of_b = ({seed for _, own in levels for seed in own} for levels in (a, b))
    if paired:
        return (sample(of_a | of_b, lambda seed: (without(a, seed), without(b, seed))),)
    return (
        sample(of_a, lambda seed: (without(a, seed), b)),
        sample(of_b, lambda seed: (a, without(b, seed))),
    )
