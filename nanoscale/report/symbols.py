"""What the symbols and names in an answer stand for."""

from __future__ import annotations

import re
from collections.abc import Iterable

MEANINGS = {
    "L": "the loss: validation cross-entropy, nats per token",
    "C": "training compute, FLOPs",
    "N": "the model's parameters",
    "D": "training tokens",
    "E": "the floor: loss that no compute removes",
    "K": "the coefficient: the loss above the floor at C = 1",
    "g": "the exponent: how fast compute removes the rest",
    "N*": "the best size for a budget",
    "D*": "the tokens that the best size is trained on",
    "a": "the exponent of N* in C",
    "SP": "the standard parametrization",
    "muP": "the maximal update parametrization (Yang et al. 2022)",
    "CompleteP": "muP that holds over depth too (Dey et al. 2025)",
    "Approach 1": "the lower envelope of all runs (Hoffmann et al. 2022, as the next two)",
    "Approach 2": "the lowest points of valleys of equal compute",
    "Approach 3": "a surface of loss over N and D, fitted to all runs",
    "octave": "a factor of two in learning rate",
}


def symbols_in(lines: Iterable[str]) -> dict[str, str]:
    """Those that the lines use, without one to which a line of its own is given."""
    text = "\n".join(lines)
    found = {}
    for symbol, meaning in MEANINGS.items():
        follows = r" (?=[-=\d])" if symbol in ("a", "g") else r"s?(?![\w*])"
        used = re.search(rf"(?<![\w.*]){re.escape(symbol)}{follows}", text)
        is_said = len(symbol) == 1 and re.search(rf"(^|; ){symbol}: (?!not )", text, re.MULTILINE)
        if used and not is_said:
            found[symbol] = meaning
    return found
