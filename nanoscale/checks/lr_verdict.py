"""The record of a transfer verdict: what was measured at each size, what is judged, and the runs.

Its fields are those of its JSON, in that order. What is not known is NaN here and null there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from nanoscale.checks.seed_shifts import Interval, Numbers, SeedNoise
from nanoscale.spec.values import Json
from nanoscale.store.files import plain

TRANSFER_SCHEMA = 1
QUANTITIES = {  # name -> how it is called, printed and measured
    "drift": ("drift", "+.2f", "octaves per doubling"),
    "largest_shift": ("largest shift", ".2f", "octaves"),
    "max_regret": ("largest regret", ".4f", "nats"),
}


@dataclass(frozen=True)
class JudgedNumber:
    """A number with its interval against +-tolerance: pass inside, fail beyond, else undecided."""

    value: float
    ci95: Interval
    tolerance: float
    verdict: str

    @classmethod
    def of(cls, value: float, ci95: Interval, tolerance: float) -> JudgedNumber:
        low, high = ci95
        if low > tolerance or high < -tolerance:
            verdict = "fail"
        elif -tolerance <= low and high <= tolerance:
            verdict = "pass"
        else:
            verdict = "inconclusive"
        return cls(value, ci95, tolerance, verdict)

    def says(self, name: str) -> str:
        """`drift -0.71 [-0.80, -0.62] octaves per doubling`."""
        label, form, unit = QUANTITIES[name]
        if self.verdict == "fail" and not math.isfinite(self.value):
            return f"{label} without bound, as the base's optimum LR diverges,"
        numbers = []
        for number in (self.value, *self.ci95):
            numbers.append("?" if math.isnan(number) else format(number, form))
        value, low, high = numbers
        return f"{label} {value} [{low}, {high}] {unit}"


@dataclass(frozen=True)
class LrCell:
    """The runs of one size and LR."""

    lr: float
    loss: float
    se: float
    runs: int


@dataclass(frozen=True)
class FittedParabola:
    """The fitted curve, in powers of log2(LR / centre), over the LRs it was fitted to."""

    window: Interval
    centre_lr: float
    coefficients: Sequence[float]


@dataclass(frozen=True)
class SizeOptimum:
    """One size: its best LR and what training at the base's costs. Shifts in octaves."""

    size: float
    optimum_lr: float
    ci95: Interval
    log2_optimum: float
    bracketed: bool
    problem: str  # why it is not
    n_lrs: int
    n_seeds: int
    min_loss: float
    transferred_loss: float  # at the base's optimum
    transferred_se: float
    transferred_diverges: bool
    shift: float
    shift_ci95: Interval
    regret: float
    regret_ci95: Interval
    noise_sd: float
    diverged_lrs: Sequence[float]
    cells: Sequence[LrCell]
    parabola: FittedParabola | None


@dataclass(frozen=True)
class LrRuns:
    """The runs that were judged, one entry each (n,): a loss is inf where a run diverged, NaN where
    it has no result."""

    size: Numbers
    lr: Numbers
    loss: Numbers
    seed: Numbers  # 0, 1, ...

    def in_order(self) -> LrRuns:
        """Those with a result, sorted, so that no order of rows changes a digit."""
        order = np.lexsort((self.loss, self.seed, self.lr, self.size))
        done = order[~np.isnan(self.loss[order])]
        return LrRuns(self.size[done], self.lr[done], self.loss[done], self.seed[done])


@dataclass(frozen=True)
class TransferVerdict:
    """Whether the best LR of the base size is the best LR of the others."""

    verdict: str  # pass, fail or inconclusive
    reason: str
    size: str  # how the columns are called
    lr: str
    loss: str
    seed: str | None
    base: float
    base_lr: float
    drift: JudgedNumber  # octaves per doubling
    largest_shift: JudgedNumber  # octaves
    max_regret: JudgedNumber  # nats
    larger_is_never_worse: bool | None
    seed_sd: float | None
    noise: SeedNoise
    scatter: float  # octaves, of the optima about their line
    resamples: int
    rng_seed: int
    sizes: Sequence[SizeOptimum]
    warnings: Sequence[str]
    runs: LrRuns = field(repr=False, compare=False)

    @property
    def judged(self) -> Mapping[str, JudgedNumber]:
        return {name: getattr(self, name) for name in QUANTITIES}

    def to_json(self) -> dict[str, Json]:
        record = asdict(self)
        del record["runs"]
        return {"schema": TRANSFER_SCHEMA, "check": "transfer", **plain(record)}
