"""The coordinate check: does any activation, or its change by one update, move with size?

One number answers per quantity: the slope of log2(rms) per doubling of width or depth, with a 95 %
interval; it fails only when the whole interval lies beyond what is allowed (`coordinate_bands`).
The size of an activation at initialisation shows a wrong init rule. A wrong LR rule shows most
sharply in how far one update moves the activations of the same tokens, while LRs are so small that
the dynamics do not yet differ by seed. Coordinate checks: Yang et al. 2022 (arXiv 2203.03466),
appendix D; over depth: Dey et al. 2025 (arXiv 2505.01618).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanoscale.checks.coordinate_bands import (
    BANDS,
    CHANGE,
    FIRST,
    LATER,
    PACE,
    SIZE,
    START,
    UPDATE,
    VECTORS,
    SlopeBand,
    SweptSize,
)
from nanoscale.checks.seed_shifts import Interval, Numbers
from nanoscale.checks.t_distribution import t_quantile

FIRST_UPDATES = 5  # beyond, an update follows the ones before it more than its rule
DECIDING_SEEDS = 30  # a remedy that asks for more is none
PASS, FAIL, UNSURE = "pass", "fail", "inconclusive"


# -- slopes ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Slope:
    """Octaves per doubling of size, with its 95 % interval."""

    slope: float
    ci95: Interval


def slope(sizes: Sequence[int], logs: Numbers) -> Slope:
    """Slope of `logs` (seeds, sizes) over log2(size): the mean of each seed's least squares.

    The interval is Student's t from the residuals around one line per seed, all of one slope, so
    that three seeds of three sizes leave 5 degrees of freedom (the spread of three slopes, 2, and
    twice the interval). It covers 93 % or more even if the smallest size is four times as noisy as
    the largest.
    """
    octaves = np.log2(sizes)
    x = octaves - octaves.mean()
    squares = x @ x
    mean = float((logs @ x / squares).mean())
    level = logs.mean(axis=1, keepdims=True)
    residual = logs - level - mean * x
    seeds, count = logs.shape
    dof = seeds * (count - 1) - 1
    variance = (residual**2).sum() / (dof * seeds * squares)
    half = t_quantile(0.95, dof) * math.sqrt(variance)
    return Slope(mean, (mean - half, mean + half))


# -- from rows to quantities ----------------------------------------------------------------------
@dataclass(frozen=True)
class CoordinateRun:
    """One run's rows with statistics (`metrics.jsonl`), and what its config says of them."""

    size: int
    seed: int
    rows: Sequence[Mapping[str, Any]]
    lr: Mapping[str, float]  # role -> LR of its tensors under AdamW
    base_lr: float  # learning_rate, of which a row's `lr` is the schedule's part

    def measured(self, t: int) -> dict[str, dict[str, float | None]]:
        """Family -> name -> value, of every quantity in row t."""
        row = self.rows[t]
        statistics = row["statistics"]
        updates = statistics["update_rms"]
        sizes = {
            **statistics["activation_rms"],
            "scores": statistics["attention_logit_rms"],
            "logits": statistics["logit_rms"],
        }
        vectors = {role: updates[role] for role in VECTORS if role in updates}

        paces = {}
        part = (row["lr"] or 0.0) / self.base_lr
        for role, lr in self.lr.items():
            update = updates[role]
            known = part and lr and update is not None
            paces[role] = update / (part * lr) if known else None
        changes = statistics["activation_change_rms"]
        return {
            SIZE: sizes,
            CHANGE: changes,
            UPDATE: vectors,
            PACE: paces,
        }

    def quantities(self, t: int) -> Iterator[tuple[str, float]]:
        """`family: name` and value, of every quantity in row t; NaN where it is 0 or unknown."""
        for family, values in self.measured(t).items():
            for name, value in values.items():
                yield f"{family}: {name}", value or math.nan


def measurements(
    runs: Sequence[CoordinateRun],
    sizes: Sequence[int],
    seeds: Sequence[int],
    steps: int,
) -> dict[str, Numbers]:
    """Quantity -> log2 of its values (seeds, sizes, steps); NaN where it is 0 or not finite.

    Row `step` t holds the activations before update t, so t = 1 is at initialisation.
    """
    logs: dict[str, Numbers] = {}
    shape = (len(seeds), len(sizes), steps)
    for run in runs:
        i = seeds.index(run.seed)
        j = sizes.index(run.size)
        for t, row in enumerate(run.rows):
            step = row["step"]
            if not 1 <= step <= steps:
                continue
            for quantity, value in run.quantities(t):
                if quantity not in logs:
                    logs[quantity] = np.full(shape, np.nan)
                if math.isfinite(value):
                    logs[quantity][i, j, step - 1] = math.log2(value)
    return logs


def window_mean(logs: Numbers, window: str) -> Numbers | None:
    """(seeds, sizes) means over the window's steps that every run has; None if there are none."""
    part = {START: logs[..., :1], LATER: logs[..., 1:], FIRST: logs[..., :FIRST_UPDATES]}[window]
    part = part[..., np.isfinite(part).all(axis=(0, 1))]
    return part.mean(axis=-1) if part.shape[-1] else None


# -- the verdict ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Facts:
    """What the configs say that decides which bands hold and which rule is to blame."""

    sweep: SweptSize
    heads_grow: bool = False
    tied: bool = True
    muon_scale: str | None = None  # None: AdamW updates the matrices
    residual_varies: bool = False  # over the sizes: whether there is a depth rule on branches
    qk_norm: bool = False

    def holds(self, when: str) -> bool:
        heads = "heads grow" if self.heads_grow else "heads added"
        head = "tied head" if self.tied else "untied head"
        return when in ("", heads, head)


def against(ends: Interval, allowed: Interval) -> str:
    """fail where the interval lies beyond what is allowed, pass where it lies within."""
    low, high = ends
    least, most = allowed
    if low > most or high < least:
        return FAIL
    return PASS if least <= low and high <= most else UNSURE


@dataclass(frozen=True)
class JudgedSlope:
    """A quantity's slope over a window of steps, against what is allowed."""

    quantity: str  # `family: name`
    window: str
    verdict: str
    slope: float
    ci95: Interval
    allowed: Interval
    why: str

    @classmethod
    def of(cls, quantity: str, found: Slope, band: SlopeBand) -> JudgedSlope:
        allowed = (band.low, band.high)
        return cls(
            quantity,
            window=band.window,
            verdict=against(found.ci95, allowed),
            slope=found.slope,
            ci95=found.ci95,
            allowed=allowed,
            why=band.why,
        )

    @property
    def parts(self) -> tuple[str, str]:
        """Family and name."""
        family, _, name = self.quantity.partition(": ")
        return family, name

    @property
    def beyond(self) -> float:
        """How far the slope lies outside of what is allowed; negative within."""
        low, high = self.allowed
        return max(self.slope - high, low - self.slope)


def judge(logs: Mapping[str, Numbers], sizes: Sequence[int], facts: Facts) -> list[JudgedSlope]:
    """A finding per quantity and window that `BANDS` speaks of; one that is 0 throughout has none
    (a zero-initialised readout at step 1, say)."""
    bands = [band for band in BANDS if band.sweep == facts.sweep and facts.holds(band.when)]
    findings = []
    for quantity, values in logs.items():
        family, _, name = quantity.partition(": ")
        for band in bands:
            if band.family != family or (band.names and name not in band.names):
                continue
            mean = window_mean(values, band.window)
            if mean is not None:
                found = slope(sizes, mean)
                findings.append(JudgedSlope.of(quantity, found, band))
    return findings


def overall(findings: Iterable[JudgedSlope]) -> str:
    """fail if any fails, pass if all pass."""
    return overall_of([finding.verdict for finding in findings])


def overall_of(verdicts: Sequence[str]) -> str:
    if FAIL in verdicts:
        return FAIL
    return PASS if set(verdicts) == {PASS} else UNSURE


def seeds_needed(findings: Sequence[JudgedSlope], seeds: int, sizes: int) -> int | None:
    """Seeds of each size at which the verdict is decided, if slopes and scatter stay: the fewest at
    which one fails or all pass. None where `DECIDING_SEEDS` do not.

    With few degrees of freedom some scatters are small by luck: none counts below their median.
    """
    halves = [(finding.ci95[1] - finding.ci95[0]) / 2 for finding in findings]
    usual = float(np.median(halves))
    now = t_quantile(0.95, seeds * (sizes - 1) - 1) / math.sqrt(seeds)
    for count in range(seeds + 1, DECIDING_SEEDS + 1):
        then = t_quantile(0.95, count * (sizes - 1) - 1) / math.sqrt(count)
        verdicts = []
        for finding, half in zip(findings, halves, strict=True):
            wide = max(half, usual) * then / now
            ends = (finding.slope - wide, finding.slope + wide)
            verdicts.append(against(ends, finding.allowed))
        if overall_of(verdicts) != UNSURE:
            return count
    return None
