"""The record of a coordinate check: what was measured at every step, what is judged, and why.

Its fields are those of its JSON, in that order. What is not known is None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from nanoscale.checks.coordinate_bands import CHANGE, PACE, SIZE, UPDATE, SweptSize
from nanoscale.checks.coordinate_faults import diagnose
from nanoscale.checks.coordinates import (
    DECIDING_SEEDS,
    FAIL,
    UNSURE,
    CoordinateRun,
    Facts,
    JudgedSlope,
    Slope,
    judge,
    measurements,
    overall,
    seeds_needed,
    slope,
)
from nanoscale.checks.seed_shifts import Numbers
from nanoscale.spec.values import Json
from nanoscale.store.files import plain

_SCHEMA = 1
NAMED = 3  # of the intervals that are too wide
_WHAT = {  # family -> what its numbers are
    SIZE: "rms of {}",
    CHANGE: "change of {} by one update",
    UPDATE: "update of {}",
    PACE: "update of {} over its LR",
}


@dataclass(frozen=True)
class CoordinateVerdict:
    """Whether activations and their updates keep their size over width, or depth."""

    verdict: str  # pass, fail or inconclusive
    says: str  # why it fails
    module: str | None  # the quantity that shows it best
    rule: str | None  # that most likely is at fault
    sweep: SweptSize
    sizes: Sequence[int]
    seeds: Sequence[int]
    steps: int
    facts: Facts
    findings: Sequence[JudgedSlope]
    slopes: Mapping[str, Mapping[str, Slope]]  # quantity -> step -> its slope
    values: Mapping[str, Sequence[Sequence[float | None]]]  # quantity -> (sizes, steps)
    losses: Sequence[float | None]  # of the last step, by size
    seeds_needed: int | None  # of each size, where the intervals do not decide yet
    asked: Mapping[str, Json] = field(default_factory=dict)  # of the study of its runs
    runs: Sequence[str] = ()

    def line(self) -> str:
        """The verdict and why."""
        unsure = [finding for finding in self.findings if finding.verdict == UNSURE]
        named = [f"{finding.quantity} at {finding.window}" for finding in unsure[:NAMED]]
        if self.says:
            why = self.says
        elif not self.findings:
            why = "nothing could be judged"
        elif not unsure:
            why = f"all {len(self.findings)} intervals lie within what is allowed"
        else:
            more = f" and {len(unsure) - NAMED} more" if len(unsure) > NAMED else ""
            why = f"the intervals of {', '.join(named)}{more} are too wide; {self._deciding()}"
        return f"{self.verdict}: {why}"

    def _deciding(self) -> str:
        """How many seeds would decide."""
        if self.seeds_needed is None:
            return (
                f"{DECIDING_SEEDS} seeds would not decide either if slopes stay, so take more sizes"
            )
        return f"about --seeds={self.seeds_needed} would decide, if slopes and scatter stay"

    def to_json(self) -> dict[str, Json]:
        record = asdict(self)
        if not self.runs:  # the rows came from elsewhere
            del record["asked"], record["runs"]
        return {"schema": _SCHEMA, "check": "coordinates", **plain(record)}


def coordinate_verdict(
    sizes: Sequence[int],
    runs: Sequence[CoordinateRun],
    facts: Facts,
    steps: int,
) -> CoordinateVerdict:
    """The verdict on runs of all sizes, each with the same seeds and with statistics at each step.

    A size whose runs end early has diverged, which fails where others have not.
    """
    seeds = sorted({run.seed for run in runs})
    logs = measurements(runs, sizes, seeds, steps)
    findings = judge(logs, sizes, facts)
    verdict = overall(findings)
    says = ""
    module = None
    rule = None
    if verdict == FAIL:
        fault, rule = diagnose(findings, facts)
        says = _sentence(fault, facts.sweep, rule)
        module = " of ".join(fault.parts)

    needed = None
    if verdict == UNSURE and findings:
        needed = seeds_needed(findings, len(seeds), len(sizes))
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
        findings=findings,
        slopes={quantity: _slopes(sizes, values) for quantity, values in logs.items()},
        values={quantity: _means(values) for quantity, values in logs.items()},
        losses=_losses(runs, sizes),
        seeds_needed=needed,
    )


def _slopes(sizes: Sequence[int], logs: Numbers) -> dict[str, Slope]:
    """Step -> slope and interval, at the steps that every run has."""
    slopes = {}
    for step in range(1, logs.shape[-1] + 1):
        at_step = logs[..., step - 1]
        known = math.isfinite(at_step.sum())
        if known:
            slopes[str(step)] = slope(sizes, at_step)
    return slopes


def _means(logs: Numbers) -> list[list[float | None]]:
    """(sizes, steps) geometric means over seeds; None where one has none."""
    means = []
    for row in logs.mean(axis=0):
        values = [2.0**x if math.isfinite(x) else None for x in row]
        means.append(values)
    return means


def _losses(runs: Sequence[CoordinateRun], sizes: Sequence[int]) -> list[float | None]:
    """The last step's training loss by size, the mean over seeds."""
    losses: list[float | None] = []
    for size in sizes:
        ended = [run for run in runs if run.size == size]
        last = [run.rows[-1]["train_loss"] for run in ended if run.rows]
        mean = None
        if len(last) == len(ended) and None not in last:
            mean = sum(last) / len(last)
        losses.append(mean)
    return losses


def _sentence(finding: JudgedSlope, sweep: SweptSize, rule: str) -> str:
    """`rms of mlp grows as width^+1.04 [+1.02, +1.06] at step 1 (allowed ...): the init ...`"""
    family, name = finding.parts
    goes = "goes"
    if abs(finding.slope) > 0.1:
        goes = "grows" if finding.slope > 0 else "shrinks"
    (low, high), (least, most) = finding.ci95, finding.allowed
    return (
        f"{_WHAT[family].format(name)} {goes} as {sweep}^{finding.slope:+.2f} "
        f"[{low:+.2f}, {high:+.2f}] at {finding.window} "
        f"(allowed {least:+.2f} to {most:+.2f}): {rule}"
    )
