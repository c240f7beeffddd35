"""What is allowed: the slopes that a right parametrization may have. The tolerances are measured,
ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

SweptSize = Literal["width", "depth"]
SIZE, CHANGE, UPDATE, PACE = "size", "change", "update", "update / LR"
START, LATER, FIRST = "step 1", "later steps", "first updates"  # the windows that are judged
VECTORS = ("embedding", "position", "block_norm", "qk_norm", "final_norm", "bias")
BLOCKS = ("attn", "mlp", "last_block")
SPREAD = ("embedding", *BLOCKS)


@dataclass(frozen=True)
class SlopeBand:
    """The slopes that a right parametrization may have, per doubling of size."""

    sweep: SweptSize
    family: str
    names: Sequence[str]  # () for every one
    window: str
    low: float
    high: float
    why: str
    when: str = ""  # a fact that must hold


BANDS = (
    SlopeBand(
        "width", SIZE, ("embedding",), START, -0.2, 0.2, "embeddings start alike at every width"
    ),
    SlopeBand(
        "width",
        SIZE,
        BLOCKS,
        START,
        -0.3,
        0.3,
        "a sum of fan_in terms of std 1/sqrt(fan_in) does not grow",
    ),
    SlopeBand("width", SIZE, ("scores",), START, -0.3, 0.3, "heads of one size", "heads added"),
    SlopeBand(
        "width",
        SIZE,
        ("scores",),
        START,
        -0.65,
        -0.35,
        "q and k, unrelated at first, sum to the "
        "root of the head size, over the head size; related they will not shrink",
        "heads grow",
    ),
    SlopeBand(
        "width",
        SIZE,
        ("logits",),
        START,
        -0.65,
        -0.25,
        "head and state, unrelated at first, sum to the root of the width, over the width",
        "untied head",
    ),
    SlopeBand(
        "width",
        SIZE,
        ("logits",),
        START,
        -0.65,
        0.25,
        "as an untied head's, but a token's own embedding is related to its state",
        "tied head",
    ),
    SlopeBand("width", SIZE, ("embedding",), LATER, -0.2, 0.2, "an entry moves by the LR"),
    SlopeBand("width", SIZE, BLOCKS, LATER, -0.3, 0.3, "what training makes of it"),
    SlopeBand("width", SIZE, ("scores",), LATER, -0.3, 0.3, "heads of one size", "heads added"),
    SlopeBand(
        "width", SIZE, ("scores",), LATER, -0.8, 0.3, "from the root towards none", "heads grow"
    ),
    SlopeBand("width", SIZE, ("logits",), LATER, -0.65, 0.25, "from the root towards none"),
    SlopeBand("width", CHANGE, SPREAD, FIRST, -0.3, 0.3, "features learn alike at every width"),
    SlopeBand("width", UPDATE, VECTORS, START, -0.15, 0.15, "a vector's LR knows no width"),
    SlopeBand(
        "width", PACE, (), START, -0.15, 0.15, "AdamW's first update is its LR, unless eps counts"
    ),
    SlopeBand("depth", SIZE, ("embedding",), START, -0.2, 0.2, "before any block"),
    SlopeBand(
        "depth",
        SIZE,
        ("last_block",),
        START,
        -0.6,
        0.1,
        "L unrelated branches sum to at most sqrt(L), times 1/L^alpha",
    ),
    SlopeBand("depth", SIZE, ("logits",), START, -0.25, 0.25, "behind the final norm"),
    SlopeBand("depth", SIZE, ("embedding",), LATER, -0.2, 0.2, "before any block"),
    SlopeBand("depth", SIZE, ("last_block",), LATER, -0.6, 0.2, "what training adds does not grow"),
    SlopeBand("depth", SIZE, ("logits",), LATER, -0.25, 0.25, "behind the final norm"),
    SlopeBand("depth", CHANGE, ("embedding",), FIRST, -0.3, 0.3, "before any block"),
    SlopeBand(
        "depth",
        CHANGE,
        ("last_block",),
        FIRST,
        -0.5,
        0.3,
        "L related changes sum to L, times 1/L^alpha and the LR's factor",
    ),
    SlopeBand(
        "depth", PACE, (), START, -0.15, 0.15, "AdamW's first update is its LR, unless eps counts"
    ),
)
