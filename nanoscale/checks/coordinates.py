"""The coordinate check: does any activation, or its change by one update, move with size?

One number answers per quantity: the slope of log2(rms) per doubling of width or depth, with a 95 %
interval; it fails only when the whole interval lies beyond what is allowed (`BANDS`).
The size of an activation at initialisation shows a wrong init rule. A wrong LR rule shows most
sharply in how far one update moves the activations of the same tokens, while LRs are so small that
the dynamics do not yet differ by seed. Coordinate checks: Yang et al. 2022 (arXiv 2203.03466),
appendix D; over depth: Dey et al. 2025 (arXiv 2505.01618). The tolerances are measured, ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanoscale.checks.t_distribution import t_quantile

WIDTH, DEPTH = "width", "depth"
SIZE, CHANGE, UPDATE, PACE = "size", "change", "update", "update / LR"
START, LATER, FIRST = "step 1", "later steps", "first updates"  # the windows that are judged
FIRST_UPDATES = 5  # beyond, an update follows the ones before it more than its rule
PASS, FAIL, UNSURE = "pass", "fail", "inconclusive"
VECTORS = ("embedding", "position", "block_norm", "qk_norm", "final_norm", "bias")
MATRICES = "hidden and residual_out"
SPREAD = ("embedding", "attn", "mlp", "last_block")


# -- what is allowed ------------------------------------------------------------------------------
@dataclass(frozen=True)
class Band:
    """The slopes that a right parametrization may have, per doubling of size."""

    sweep: str
    family: str
    names: Sequence[str]  # () for every one
    window: str
    low: float
    high: float
    why: str
    when: str = ""  # a fact that must hold


BANDS = (
    Band(WIDTH, SIZE, ("embedding",), START, -0.2, 0.2, "embeddings start alike at every width"),
    Band(
        WIDTH,
        SIZE,
        ("attn", "mlp", "last_block"),
        START,
        -0.3,
        0.3,
        "a sum of fan_in terms of std 1/sqrt(fan_in) does not grow",
    ),
    Band(WIDTH, SIZE, ("scores",), START, -0.3, 0.3, "heads of one size", "heads added"),
    Band(
        WIDTH,
        SIZE,
        ("scores",),
        START,
        -0.65,
        -0.35,
        "q and k, unrelated at first, sum to the "
        "root of the head size, over the head size; related they will not shrink",
        "heads grow",
    ),
    Band(
        WIDTH,
        SIZE,
        ("logits",),
        START,
        -0.65,
        -0.25,
        "head and state, unrelated at first, sum to the root of the width, over the width",
        "untied head",
    ),
    Band(
        WIDTH,
        SIZE,
        ("logits",),
        START,
        -0.65,
        0.25,
        "as an untied head's, but a token's own embedding is related to its state",
        "tied head",
    ),
    Band(WIDTH, SIZE, ("embedding",), LATER, -0.2, 0.2, "an entry moves by the LR"),
    Band(WIDTH, SIZE, ("attn", "mlp", "last_block"), LATER, -0.3, 0.3, "what training makes of it"),
    Band(WIDTH, SIZE, ("scores",), LATER, -0.3, 0.3, "heads of one size", "heads added"),
    Band(WIDTH, SIZE, ("scores",), LATER, -0.8, 0.3, "from the root towards none", "heads grow"),
    Band(WIDTH, SIZE, ("logits",), LATER, -0.65, 0.25, "from the root towards none"),
    Band(WIDTH, CHANGE, SPREAD, FIRST, -0.3, 0.3, "features learn alike at every width"),
    Band(WIDTH, UPDATE, VECTORS, START, -0.15, 0.15, "a vector's LR knows no width"),
    Band(WIDTH, PACE, (), START, -0.15, 0.15, "AdamW's first update is its LR, unless eps counts"),
    Band(DEPTH, SIZE, ("embedding",), START, -0.2, 0.2, "before any block"),
    Band(
        DEPTH,
        SIZE,
        ("last_block",),
        START,
        -0.6,
        0.1,
        "L unrelated branches sum to at most sqrt(L), times 1/L^alpha",
    ),
    Band(DEPTH, SIZE, ("logits",), START, -0.25, 0.25, "behind the final norm"),
    Band(DEPTH, SIZE, ("embedding",), LATER, -0.2, 0.2, "before any block"),
    Band(DEPTH, SIZE, ("last_block",), LATER, -0.6, 0.2, "what training adds does not grow"),
    Band(DEPTH, SIZE, ("logits",), LATER, -0.25, 0.25, "behind the final norm"),
    Band(DEPTH, CHANGE, ("embedding",), FIRST, -0.3, 0.3, "before any block"),
    Band(
        DEPTH,
        CHANGE,
        ("last_block",),
        FIRST,
        -0.5,
        0.3,
        "L related changes sum to L, times 1/L^alpha and the LR's factor",
    ),
    Band(DEPTH, PACE, (), START, -0.15, 0.15, "AdamW's first update is its LR, unless eps counts"),
)


# -- slopes ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Slope:
    """Octaves per doubling of size, with its 95 % interval."""

    mean: float
    low: float
    high: float


def slope(sizes: Sequence[int], logs: np.ndarray) -> Slope:
    """Slope of `logs` (seeds, sizes) over log2(size): the mean of each seed's least squares.

    The interval is Student's t from the residuals around one line per seed, all of one slope, so
    that three seeds of three sizes leave 5 degrees of freedom (the spread of three slopes, 2, and
    twice the interval). It covers 93 % or more even if the smallest size is four times as noisy as
    the largest.
    """
    x = np.log2(sizes) - np.mean(np.log2(sizes))
    mean = float((logs @ x / (x @ x)).mean())
    residual = logs - logs.mean(axis=1, keepdims=True) - mean * x
    seeds, count = logs.shape
    dof = seeds * (count - 1) - 1
    half = t_quantile(0.95, dof) * math.sqrt((residual**2).sum() / (dof * seeds * (x @ x)))
    return Slope(mean, mean - half, mean + half)


# -- from rows to quantities ----------------------------------------------------------------------
@dataclass(frozen=True)
class Run:
    """One run's rows (`metrics.jsonl`) and what its config says of them."""

    size: int
    seed: int
    rows: Sequence[Mapping[str, Any]]
    lr: Mapping[str, float]  # role -> LR of its tensors under AdamW
    base_lr: float  # learning_rate, of which a row's `lr` is the schedule's part


Quantity = tuple[str, str]  # family and name


def of_row(run: Run, row: Mapping[str, Any]) -> dict[Quantity, float | None]:
    """Every quantity of one step."""
    s, found = row["statistics"], {}
    sizes = s["activation_rms"] | {"scores": s["attention_logit_rms"], "logits": s["logit_rms"]}
    found |= {(SIZE, name): value for name, value in sizes.items()}
    found |= {(CHANGE, name): value for name, value in s["activation_change_rms"].items()}
    found |= {(UPDATE, role): s["update_rms"][role] for role in VECTORS if role in s["update_rms"]}
    part = (row["lr"] or 0.0) / run.base_lr
    for role, lr in run.lr.items():
        moved = s["update_rms"][role]
        found[PACE, role] = moved / (part * lr) if part and lr and moved is not None else None
    return found


def measurements(
    runs: Sequence[Run], sizes: Sequence[int], seeds: Sequence[int], steps: int
) -> dict[Quantity, np.ndarray]:
    """Quantity -> log2 of its values (seeds, sizes, steps); NaN where it is 0 or not finite.

    Row `step` t holds the activations before update t, so t = 1 is at initialisation.
    """
    found: dict[Quantity, np.ndarray] = {}
    for run in runs:
        i, j = seeds.index(run.seed), sizes.index(run.size)
        for row in run.rows:
            if "statistics" not in row or not 1 <= row["step"] <= steps:
                continue
            for quantity, value in of_row(run, row).items():
                logs = found.setdefault(quantity, np.full((len(seeds), len(sizes), steps), np.nan))
                if value and math.isfinite(value):
                    logs[i, j, row["step"] - 1] = math.log2(value)
    return found


def window_mean(logs: np.ndarray, window: str) -> np.ndarray | None:
    """(seeds, sizes) means over the window's steps that every run has; None if there are none."""
    part = {START: logs[..., :1], LATER: logs[..., 1:], FIRST: logs[..., :FIRST_UPDATES]}[window]
    part = part[..., np.isfinite(part).all(axis=(0, 1))]
    return part.mean(axis=-1) if part.shape[-1] else None


# -- the verdict ----------------------------------------------------------------------------------
@dataclass(frozen=True)
class Facts:
    """What the configs say that decides which bands hold and which rule is to blame."""

    sweep: str
    heads_grow: bool = False
    tied: bool = True
    muon_scale: str | None = None  # None: AdamW updates the matrices
    residual_varies: bool = False  # over the sizes: whether there is a depth rule on branches
    qk_norm: bool = False

    def holds(self, when: str) -> bool:
        return when in (
            "",
            "heads grow" if self.heads_grow else "heads added",
            "tied head" if self.tied else "untied head",
        )


@dataclass(frozen=True)
class Finding:
    """One judged slope."""

    quantity: Quantity
    slope: Slope
    band: Band

    @property
    def verdict(self) -> str:
        s, b = self.slope, self.band
        if s.low > b.high or s.high < b.low:
            return FAIL
        return PASS if b.low <= s.low and s.high <= b.high else UNSURE

    @property
    def beyond(self) -> float:
        """How far the slope lies outside its band, in octaves per doubling."""
        return max(self.slope.mean - self.band.high, self.band.low - self.slope.mean)


def judge(logs: Mapping[Quantity, np.ndarray], sizes: Sequence[int], facts: Facts) -> list[Finding]:
    """A finding per quantity and window that `BANDS` speaks of; one that is 0 throughout has none
    (a zero-initialised readout at step 1, say)."""
    findings = []
    for band in BANDS:
        if band.sweep != facts.sweep or not facts.holds(band.when):
            continue
        for quantity, values in logs.items():
            if quantity[0] == band.family and (not band.names or quantity[1] in band.names):
                mean = window_mean(values, band.window)
                if mean is not None:
                    findings.append(Finding(quantity, slope(sizes, mean), band))
    order = list(logs)
    return sorted(findings, key=lambda f: order.index(f.quantity))


def overall(findings: Iterable[Finding]) -> str:
    """fail if any fails, pass if all pass."""
    verdicts = {f.verdict for f in findings}
    return FAIL if FAIL in verdicts else PASS if verdicts == {PASS} else UNSURE


# -- the diagnosis --------------------------------------------------------------------------------
def diagnose(findings: Sequence[Finding], facts: Facts) -> tuple[Finding, str]:
    """The finding that shows the fault best, and the rule that most likely is at fault.

    By cause: what is wrong at the start makes all that follows wrong.
    """
    failed = [f for f in findings if f.verdict == FAIL]

    def those(family: str, *names: str, window: str = "") -> list[Finding]:
        return [
            f
            for f in failed
            if f.quantity[0] == family
            and f.quantity[1] in (names or (f.quantity[1],))
            and window in ("", f.band.window)
        ]

    roles = lambda found: ", ".join(f.quantity[1] for f in found)  # noqa: E731
    scores, branches = those(SIZE, "scores"), those(SIZE, "attn", "mlp", window=START)
    eps, vectors = those(PACE), those(UPDATE)
    moved = those(CHANGE, "attn", "mlp", "last_block") + those(SIZE, "attn", "mlp", "last_block")
    for found, rule in (
        (those(SIZE, "embedding", window=START), "the init rule of embedding"),
        (branches, f"the init rule of {_badly_started(branches, scores, facts)}"),
        (
            scores if facts.heads_grow else [],
            "the attention scale, which goes as 1 / head size when heads grow",
        ),
        (those(SIZE, "scores", window=START), "the init rule of hidden"),
        (those(SIZE, "last_block", window=START), "the residual multiplier"),
        (eps, f"the eps rule of {roles(eps)}"),
        (vectors, f"the LR rule of {roles(vectors)}"),
        (moved, _learning_rule(facts)),
        (those(CHANGE, "embedding") + those(SIZE, "embedding"), "the LR rule of embedding"),
        (scores, f"the LR rule of {MATRICES}"),
        (those(SIZE, "logits"), "the output multiplier (logits)"),
    ):
        if found:
            return max(found, key=lambda f: f.beyond), rule
    raise AssertionError("no finding has failed")


def _badly_started(branches: Sequence[Finding], scores: Sequence[Finding], facts: Facts) -> str:
    """q and k are hidden matrices, so the scores tell those from the branches' last ones."""
    steep = any(abs(f.slope.mean) > 0.75 for f in branches)  # two matrices' half octaves
    if steep or facts.qk_norm:
        return MATRICES
    return "hidden" if any(f.band.window == START for f in scores) else "residual_out"


def _learning_rule(facts: Facts) -> str:
    """What is at fault when the start is right and the blocks' outputs do not stay so."""
    if facts.sweep == DEPTH and not facts.residual_varies:
        return "the residual multiplier, which does not depend on depth"
    if facts.sweep == DEPTH:
        return "the residual multiplier's exponent, or the depth factor of the LR"
    if facts.muon_scale:
        return f"Muon's shape factor (muon_scale={facts.muon_scale}), or its LR rule"
    return f"the LR rule of {MATRICES}"
