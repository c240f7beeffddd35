"""How the signal in an update goes with width, and with it the learning rate that is best for it.

Where a batch's noise is most of an update, the best learning rate goes as the part that is signal:
the slope of its logarithm over width is the drift to expect, in octaves per doubling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from nanoscale.checks.coordinates import Slope, slope
from nanoscale.spec.values import Json

NOISE_SCHEMA = 1


@dataclass(frozen=True)
class NoisePoint:
    """What was measured at the weights of one run."""

    size: int
    seed: int
    signal: Mapping[str, float]  # direction -> cosine
    gradient_square: float
    noise_trace: float


@dataclass(frozen=True)
class SignalOver:
    """One direction's signal fraction over the sizes."""

    means: Sequence[float]  # over seeds, by size
    slope: Slope | None  # of its log2; None where a cosine is not above 0


@dataclass(frozen=True, kw_only=True)
class NoiseReport:
    """The signal fractions of all directions, and the gradient noise scale in tokens."""

    sizes: Sequence[int]
    seeds: Sequence[int]
    updates: int
    tokens: int  # per update
    batches: int  # of each stream
    signal: Mapping[str, SignalOver]
    noise_scale: Sequence[float | None]  # by size; None where noise leaves no gradient
    points: Sequence[NoisePoint]
    asked: Mapping[str, Json] = field(default_factory=dict)
    runs: Sequence[str] = ()

    def to_json(self) -> dict[str, Json]:
        return {"schema": NOISE_SCHEMA, "check": "noise", **asdict(self)}


def noise_report(
    points: Sequence[NoisePoint], updates: int, tokens: int, batches: int
) -> NoiseReport:
    """Slopes over size of what was measured at every size with the same seeds."""
    sizes = sorted({point.size for point in points})
    seeds = sorted({point.seed for point in points})
    at = {(point.seed, point.size): point for point in points}
    signal = {}
    for direction in points[0].signal:
        cosines = np.array([[at[seed, n].signal[direction] for n in sizes] for seed in seeds])
        found = slope(sizes, np.log2(cosines)) if (cosines > 0).all() else None
        signal[direction] = SignalOver(cosines.mean(axis=0).tolist(), found)
    return NoiseReport(
        sizes=sizes,
        seeds=seeds,
        updates=updates,
        tokens=tokens,
        batches=batches,
        signal=signal,
        noise_scale=[_noise_scale([at[seed, n] for seed in seeds]) for n in sizes],
        points=points,
    )


def _noise_scale(points: Sequence[NoisePoint]) -> float | None:
    """tr S / |G|^2 in tokens, each averaged first: their ratio alone is biased."""
    square = math.fsum(point.gradient_square for point in points)
    trace = math.fsum(point.noise_trace for point in points)
    return trace / square if square > 0 else None
