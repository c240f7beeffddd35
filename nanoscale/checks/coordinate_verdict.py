"""The record of a coordinate check: what was measured at every step, what is judged, and why.

Its fields are those of its JSON, in that order. What is not known is None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from nanoscale.checks.coordinate_bands import CHANGE, PACE, SIZE, UPDATE
from nanoscale.checks.coordinate_faults import diagnose
from nanoscale.checks.coordinates import (
    FAIL,
    UNSURE,
    CoordinateRun,
    Facts,
    Finding,
    Quantity,
    judge,
    measurements,
    overall,
    slope,
)
from nanoscale.store.files import plain

_SCHEMA = 1


@dataclass(frozen=True)
class StepSlope:
    """Octaves per doubling of size at one step."""

    slope: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class JudgedSlope:
    """A quantity's slope over a window of steps, against what is allowed."""

    quantity: str
    window: str
    verdict: str
    slope: float
    ci95: tuple[float, float]
    allowed: tuple[float, float]
    why: str

    @property
    def beyond(self) -> float:
        """How far the slope lies outside of what is allowed; negative within."""
        low, high = self.allowed
        return max(self.slope - high, low - self.slope)


@dataclass(frozen=True)
class CoordinateVerdict:
    """Whether activations and their updates keep their size over width, or depth."""

    verdict: str  # pass, fail or inconclusive
    says: str  # why it fails
    module: str | None  # the quantity that shows it best
    rule: str | None  # that most likely is at fault
    sweep: str  # width or depth
    sizes: Sequence[int]
    seeds: Sequence[int]
    steps: int
    facts: Facts
    findings: Sequence[JudgedSlope]
    slopes: Mapping[str, Mapping[str, StepSlope]]  # quantity -> step -> its slope
    values: Mapping[str, Sequence[Sequence[float | None]]]  # quantity -> (sizes, steps)
    losses: Sequence[float | None]  # of the last step, by size
    asked: Mapping[str, object] = field(default_factory=dict)  # of the study of its runs
    runs: Sequence[str] = ()

    def to_json(self) -> dict[str, object]:
        record = asdict(self)
        if not self.runs:  # the rows came from elsewhere
            del record["asked"], record["runs"]
        return {"schema": _SCHEMA, "check": "coordinates", **plain(record)}


def coordinate_verdict(
    sizes: Sequence[int], runs: Sequence[CoordinateRun], facts: Facts, steps: int
) -> CoordinateVerdict:
    """The verdict on runs of all sizes, each with the same seeds and with statistics at each step.

    A size whose runs end early has diverged, which fails where others have not.
    """
    seeds = sorted({run.seed for run in runs})
    logs = measurements(runs, sizes, seeds, steps)
    findings = judge(logs, sizes, facts)
    verdict = overall(findings)
    says, module, rule = "", None, None
    if verdict == FAIL:
        fault, rule = diagnose(findings, facts)
        says = _sentence(fault, facts.sweep, rule)
        module = " of ".join(fault.quantity)

    short = sorted({run.size for run in runs if len(run.rows) < steps})
    if short and verdict != FAIL:
        verdict = UNSURE if short == list(sizes) else FAIL  # every size: not a matter of size
        diverged = ", ".join(map(str, short))
        says = f"training diverged at {facts.sweep} {diverged}; lower the learning rates"
    return CoordinateVerdict(
        verdict=verdict,
        says=says,
        module=module,
        rule=rule,
        sweep=facts.sweep,
        sizes=list(sizes),
        seeds=seeds,
        steps=steps,
        facts=facts,
        findings=[_judged(finding) for finding in findings],
        slopes={_name(quantity): _slopes(sizes, values) for quantity, values in logs.items()},
        values={_name(quantity): _means(values) for quantity, values in logs.items()},
        losses=_losses(runs, sizes),
    )


def _name(quantity: Quantity) -> str:
    return ": ".join(quantity)


def _judged(finding: Finding) -> JudgedSlope:
    return JudgedSlope(
        quantity=_name(finding.quantity),
        window=finding.band.window,
        verdict=finding.verdict,
        slope=finding.slope.mean,
        ci95=(finding.slope.low, finding.slope.high),
        allowed=(finding.band.low, finding.band.high),
        why=finding.band.why,
    )


def _slopes(sizes: Sequence[int], logs: np.ndarray) -> dict[str, StepSlope]:
    """Step -> slope and interval, at the steps that every run has."""
    slopes = {}
    for t in range(logs.shape[-1]):
        if math.isfinite(logs[..., t].sum()):
            at_step = slope(sizes, logs[..., t])
            slopes[str(t + 1)] = StepSlope(at_step.mean, (at_step.low, at_step.high))
    return slopes


def _means(logs: np.ndarray) -> list[list[float | None]]:
    """(sizes, steps) geometric means over seeds; None where one has none."""
    means = []
    for row in logs.mean(axis=0):
        means.append([2.0**x if math.isfinite(x) else None for x in row])
    return means


def _losses(runs: Sequence[CoordinateRun], sizes: Sequence[int]) -> list[float | None]:
    """The last step's training loss by size, the mean over seeds."""
    losses: list[float | None] = []
    for size in sizes:
        ends = [run.rows[-1:] for run in runs if run.size == size]
        last = [row["train_loss"] for rows in ends for row in rows]
        complete = len(last) == len(ends) and None not in last
        losses.append(sum(last) / len(last) if complete else None)
    return losses


def _sentence(finding: Finding, sweep: str, rule: str) -> str:
    """`rms of mlp grows as width^+1.04 [+1.02, +1.06] at step 1 (allowed ...): the init ...`"""
    family, name = finding.quantity
    what = {
        SIZE: f"rms of {name}",
        CHANGE: f"change of {name} by one update",
        UPDATE: f"update of {name}",
        PACE: f"update of {name} over its LR",
    }[family]
    slope, band = finding.slope, finding.band
    goes = "goes"
    if abs(slope.mean) > 0.1:
        goes = "grows" if slope.mean > 0 else "shrinks"
    return (
        f"{what} {goes} as {sweep}^{slope.mean:+.2f} [{slope.low:+.2f}, {slope.high:+.2f}] at "
        f"{band.window} (allowed {band.low:+.2f} to {band.high:+.2f}): {rule}"
    )
