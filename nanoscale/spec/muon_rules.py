"""What is made of Muon's momentum, and where the step leads: a row per rule. No torch.

`model/directions.py` has the functions; here stand what names them, where they come from, and which
keys act under them.
"""

from __future__ import annotations

from dataclasses import dataclass

DECAY, SCALE, STEPS = "muon_weight_decay", "muon_scale", "muon_ns_steps"


@dataclass(frozen=True)
class MuonRule:
    """One rule: its step for a matrix W, whose momentum with Nesterov's look ahead is u = U S V^T.

    In the forms NS is Newton-Schulz's orthogonalisation, s the factor of `muon_scale`, |x|
    Frobenius' norm, |x|_2 the largest singular value.
    """

    step: str  # its exact form
    source: str
    acts: tuple[str, ...]  # of Muon's keys, those that act under it and not under all
    buffers: int = 1  # numbers kept per element
    of_weights: bool = False  # the step looks at W and sets its norm: nothing decays


MUON_RULES = {
    "muon": MuonRule(
        "W - lr s NS(u)",
        "Jordan et al. 2024 (kellerjordan.github.io/posts/muon)",
        (DECAY, SCALE, STEPS),
    ),
    "polar": MuonRule(
        "W - lr s U V^T",
        "the polar factor, which NS stops short of (Amsel et al. 2025, arXiv 2505.16932)",
        (DECAY, SCALE),
    ),
    "power": MuonRule(
        "W - lr s U (S / max S)^p V^T",
        "Dong & Sawin 2026 (arXiv 2606.13867)",
        (DECAY, SCALE, "muon_power"),
    ),
    "hyperball": MuonRule(
        "W' = W - lr |W| NS(u) / |NS(u)|, then W = W' |W| / |W'|",
        "MuonH (arXiv 2606.16899); an untied head by AdamH",
        (STEPS,),
        of_weights=True,
    ),
    "variance": MuonRule(
        "W - lr s NS(n / (sqrt(n^2 + 10 v) + 1e-8)), n = g + b m / (1 - b), v the variance of g",
        "Muon-NSR (arXiv 2601.14603), b the momentum, m and v corrected for their start",
        (DECAY, SCALE, STEPS),
        buffers=2,
    ),
    "row_norm": MuonRule(
        "W - lr s NS(u / norms of its rows)",
        "MuonEq-R (arXiv 2603.28254)",
        (DECAY, SCALE, STEPS),
    ),
    "clip": MuonRule(
        "W - lr s U min(S / t, 1) V^T, t = muon_clip times the root mean square of S",
        "MuCon (arXiv 2605.26459); t relative to S is ours, theirs is absolute",
        (DECAY, SCALE, "muon_clip"),
    ),
    "sphere": MuonRule(
        "W = R W / |W|_2, then W - lr R polar(u / |u| + l T), R = sqrt(out / in),"
        " T = x y^T of W's first singular vectors, l such that <T, polar(...)> = 0",
        "spectral sphere (arXiv 2601.08393)",
        (),
        of_weights=True,
    ),
}

RULES_KEYS = sorted({key for rule in MUON_RULES.values() for key in rule.acts})
