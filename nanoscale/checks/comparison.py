"""The record of a comparison of two arms, A and B. Losses in nats or bits, lower is better.

Its fields are those of its JSON, in that order. What is not known is NaN here and null there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from nanoscale.checks.compute_multiplier import ComputeMultiplier
from nanoscale.checks.paired import Estimate
from nanoscale.checks.seed_shifts import Interval
from nanoscale.spec.values import Json, Overrides
from nanoscale.store.files import plain

_SCHEMA = 1
TOKENS = "tokens"  # in place of max_iters, so that batch sizes meet at equal data


@dataclass(frozen=True)
class ArmSummary:
    """One arm over all sizes that are pooled."""

    name: str  # as it was typed
    n_runs: int
    seeds: Sequence[str]
    mean: float
    se: float
    settings: Sequence[Overrides]  # that were chosen, by size
    n_found: int  # runs with a loss, at any setting
    n_diverged: int


@dataclass(frozen=True)
class ArmAtSize:
    """One arm at one size, at the setting that was chosen for it."""

    mean: float
    se: float
    n: int
    setting: Overrides
    chosen_of: int
    flops: float
    tokens: int


@dataclass(frozen=True)
class SeedLosses:
    """Both arms' losses of one seed, at the setting that the others choose; None: no run."""

    seed: str
    a: float | None
    b: float | None

    @property
    def difference(self) -> float | None:
        return None if self.a is None or self.b is None else self.b - self.a


@dataclass(frozen=True)
class SizeComparison:
    """Both arms at one size."""

    cell: Overrides  # what names the size
    pooled: bool  # whether it has a part in the difference over sizes
    a: ArmAtSize
    b: ArmAtSize
    difference: Estimate
    seeds: Sequence[SeedLosses]
    window_se: float | None

    @property
    def equal(self) -> bool:
        """Whether every seed's losses are the same to the digit."""
        return all(row.a == row.b for row in self.seeds)


@dataclass(frozen=True)
class PooledEstimate(Estimate):
    """The difference over sizes; its interval is of seeds, or with one seed of windows alone."""

    interval: str
    at_chosen: float | None  # the difference at the chosen settings, which flatters tuned arms


@dataclass(frozen=True)
class WindowNoise:
    """How far the difference depends on the text it was measured on."""

    n: int = 0
    block: int | None = None
    se: float | None = None
    ci95: Interval | None = None
    reason: str | None = None  # why it is not known


@dataclass(frozen=True)
class LeftOut:
    """A run that the difference does not count, and why."""

    arm: str
    cell: Overrides
    seed: str
    run: str
    why: str
    setting: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Whether B's loss is lower than A's, how surely, and what would settle it."""

    verdict: str  # better, worse, equal or inconclusive
    reason: str
    loss: str
    unit: str  # nats or bits
    rope: float  # within which the arms are as good as equal
    keys: Sequence[str]  # that name a size
    differ_in: Mapping[str, tuple[Json, Json]]  # key -> its values in A and in B
    labels: tuple[str, str]
    arms: tuple[ArmSummary, ArmSummary]
    difference: PooledEstimate  # B - A
    windows: WindowNoise
    compute_multiplier: ComputeMultiplier
    seeds_needed: int | None  # more of each arm, until the interval decides
    cells: Sequence[SizeComparison]
    left_out: Sequence[LeftOut]
    warnings: Sequence[str] = ()

    def to_json(self) -> dict[str, Json]:
        record = asdict(self)
        if self.windows.block is None:
            del record["windows"]["block"]
        for run in record["left_out"]:
            if run["setting"] is None:
                del run["setting"]
        return {"schema": _SCHEMA, "check": "compare", **plain(record)}
