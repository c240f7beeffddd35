"""Tokens whose entropy is known exactly: a first-order Markov chain over 32 symbols.

With transition probabilities P and stationary distribution pi = pi P, no model's loss can be below
the entropy rate H = - sum_ij pi_i P_ij ln P_ij, in nats per token (Cover and Thomas, "Elements of
Information Theory", theorem 4.2.4). Probabilities are multiples of 2^-16 and drawn from 16 random
bits, so that the chain is exactly the one described.
"""

from __future__ import annotations

import numpy as np

from nanoscale.data.dataset import SPLITS, TOKEN, philox_words
from nanoscale.errors import UserError

SYMBOLS = "abcdefghijklmnopqrstuvwxyz012345"
ROW_TOTAL = 2**16
N_TOKENS = (1_000_000, 100_000)  # train, val: one chain, cut
DEFAULT_SEED = 1337

# Philox purposes, apart from those of data.py
TRANSITIONS, DRAWS = 101, 102


def markov_chain(seed: int) -> tuple[dict[str, np.ndarray], dict]:
    """Token arrays of both splits, and the facts: `entropy_nats`, `val_floor_nats`, `source`.

    `val_floor_nats` is the true chain's own mean - ln P over the transitions within val.
    """
    if not 0 <= seed < 2**63:
        raise UserError(f"seed {seed} is not between 0 and 2**63 - 1")
    weights = transition_weights(seed)
    train, val = np.split(_walk(weights, seed), [N_TOKENS[0]])
    facts = {
        "entropy_nats": entropy_rate(weights / ROW_TOTAL),
        "val_floor_nats": float(-np.log(weights[val[:-1], val[1:]] / ROW_TOTAL).mean()),
        "source": {"model": "first-order Markov chain", "seed": seed, "weights": weights.tolist()},
    }
    return dict(zip(SPLITS, (train, val), strict=True)), facts


def entropy_rate(P: np.ndarray) -> float:
    """H of the chain with transition probabilities P (n, n), in nats per token."""
    n = len(P)
    balance = np.vstack([(P.T - np.eye(n))[1:], np.ones(n)])  # pi P = pi, and sum(pi) = 1
    pi = np.linalg.solve(balance, np.eye(n)[-1])
    return float(-np.sum(pi[:, None] * P * np.log(P)))


def transition_weights(seed: int) -> np.ndarray:
    """P in units of 2^-16, every entry positive and a few of each row large: (32, 32) int64."""
    n = len(SYMBOLS)
    rows = []
    for words in philox_words(seed, TRANSITIONS, 0, 0, n * n).reshape(n, n).tolist():
        skewed = [(word >> 48) ** 6 for word in words]
        row = [1 + (ROW_TOTAL - n) * weight // sum(skewed) for weight in skewed]
        row[row.index(max(row))] += ROW_TOTAL - sum(row)
        rows.append(row)
    return np.array(rows)


def _walk(weights: np.ndarray, seed: int) -> np.ndarray:
    """sum(N_TOKENS) steps from symbol 0: a draw in [0, 2^16) picks the next symbol of its row."""
    following = [np.repeat(np.arange(len(row)), row).tolist() for row in weights]
    draws = philox_words(seed, DRAWS, 0, 0, sum(N_TOKENS)) >> np.uint64(48)
    symbol, tokens = 0, []
    for draw in draws.tolist():
        symbol = following[symbol][draw]
        tokens.append(symbol)
    return np.array(tokens, TOKEN)
