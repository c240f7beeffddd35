"""What is at fault where a coordinate check fails: the finding that shows it best, and a rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nanoscale.checks.coordinate_bands import BLOCKS, CHANGE, PACE, SIZE, START, UPDATE
from nanoscale.checks.coordinates import FAIL, Facts, JudgedSlope

MATRICES = "hidden and residual_out"
STEEP = 0.75  # octaves per doubling: two matrices' half octaves are one


@dataclass(frozen=True)
class Failures:
    """The findings that fail."""

    findings: Sequence[JudgedSlope]

    def of(self, family: str, *names: str, window: str = "") -> list[JudgedSlope]:
        chosen = []
        for finding in self.findings:
            its_family, name = finding.parts
            if its_family != family or window not in ("", finding.window):
                continue
            if not names or name in names:
                chosen.append(finding)
        return chosen


def diagnose(findings: Sequence[JudgedSlope], facts: Facts) -> tuple[JudgedSlope, str]:
    """The finding that shows the fault best, and the rule that most likely is at fault.

    By cause: what is wrong at the start makes all that follows wrong.
    """
    failed = [finding for finding in findings if finding.verdict == FAIL]
    for shown, rule in _suspects(Failures(failed), facts):
        if shown:
            worst = max(shown, key=lambda finding: finding.beyond)
            return worst, rule
    raise AssertionError("no finding has failed")


def _suspects(failures: Failures, facts: Facts) -> list[tuple[list[JudgedSlope], str]]:
    """What shows a fault of each rule, the first cause first."""
    of = failures.of
    scores = of(SIZE, "scores")
    branches = of(SIZE, "attn", "mlp", window=START)
    eps = of(PACE)
    vectors = of(UPDATE)
    init = _badly_started(branches, scores, facts)
    return [
        (of(SIZE, "embedding", window=START), "the init rule of embedding"),
        (branches, f"the init rule of {init}"),
        (
            scores if facts.heads_grow else [],
            "the attention scale, which goes as 1 / head size when heads grow",
        ),
        (of(SIZE, "scores", window=START), "the init rule of hidden"),
        (of(SIZE, "last_block", window=START), "the residual multiplier"),
        (eps, f"the eps rule of {_roles(eps)}"),
        (vectors, f"the LR rule of {_roles(vectors)}"),
        (of(CHANGE, *BLOCKS) + of(SIZE, *BLOCKS), _learning_rule(facts)),
        (of(CHANGE, "embedding") + of(SIZE, "embedding"), "the LR rule of embedding"),
        (scores, f"the LR rule of {MATRICES}"),
        (of(SIZE, "logits"), "the output multiplier (logits)"),
    ]


def _roles(findings: Sequence[JudgedSlope]) -> str:
    return ", ".join(finding.parts[1] for finding in findings)


def _badly_started(
    branches: Sequence[JudgedSlope], scores: Sequence[JudgedSlope], facts: Facts
) -> str:
    """q and k are hidden matrices, so the scores tell those from the branches' last ones."""
    steep = any(abs(finding.slope) > STEEP for finding in branches)
    if steep or facts.qk_norm:
        return MATRICES
    if any(finding.window == START for finding in scores):
        return "hidden"
    return "residual_out"


def _learning_rule(facts: Facts) -> str:
    """What is at fault when the start is right and the blocks' outputs do not stay so."""
    if facts.sweep == "depth" and not facts.residual_varies:
        return "the residual multiplier, which does not depend on depth"
    if facts.sweep == "depth":
        return "the residual multiplier's exponent, or the depth factor of the LR"
    if facts.muon_scale:
        return f"Muon's shape factor (muon_scale={facts.muon_scale}), or its LR rule"
    return f"the LR rule of {MATRICES}"
