"""Tokens whose entropy is known exactly: a first-order Markov chain over 32 symbols.

With transition probabilities P and stationary distribution pi = pi P, no model's loss can be below
the entropy rate H = - sum_ij pi_i P_ij ln P_ij, in nats per token (Cover and Thomas, "Elements of
Information Theory", theorem 4.2.4). Probabilities are multiples of 2^-16 and drawn from 16 random
bits, so that the chain is exactly the one described.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanoscale.data.dataset import TOKEN, philox_words
from nanoscale.data.tokenizer import Tokens
from nanoscale.errors import UserError

SYMBOLS = "abcdefghijklmnopqrstuvwxyz012345"
ROW_TOTAL = 2**16
N_TOKENS = (1_000_000, 100_000)  # train, val: one chain, cut
DEFAULT_SEED = 1337

# Philox purposes, apart from those of data.py
TRANSITIONS, DRAWS = 101, 102


@dataclass(frozen=True)
class MarkovChain:
    """Tokens of both splits, and what is known of them.

    `val_floor_nats` is the true chain's own mean - ln P over the transitions within val.
    """

    train: Tokens
    val: Tokens
    entropy_nats: float
    val_floor_nats: float
    weights: NDArray[np.int64]  # (n, n), P in units of 2^-16


def markov_chain(seed: int) -> MarkovChain:
    """The chain of a seed.

    Raises:
        UserError: the seed is outside Philox's keys.
    """
    if not 0 <= seed < 2**63:
        raise UserError(f"seed {seed} is not between 0 and 2**63 - 1")
    weights = transition_weights(seed)
    P = weights / ROW_TOTAL
    train, val = np.split(_walk(weights, seed), [N_TOKENS[0]])
    taken = weights[val[:-1], val[1:]] / ROW_TOTAL  # the probability of each transition within val
    return MarkovChain(train, val, entropy_rate(P), float(-np.log(taken).mean()), weights)


def entropy_rate(P: NDArray[np.float64]) -> float:
    """H of the chain with transition probabilities P (n, n), in nats per token."""
    identity = np.eye(len(P))
    # pi P = pi, of which one equation follows from the others, and sum(pi) = 1
    stationary = (P.T - identity)[1:]
    balance = np.vstack([stationary, np.ones(len(P))])
    pi = np.linalg.solve(balance, identity[-1])
    terms = pi[:, None] * P * np.log(P)
    return float(-np.sum(terms))


def transition_weights(seed: int) -> NDArray[np.int64]:
    """P in units of 2^-16, every entry positive and a few of each row large: (32, 32) int64."""
    n = len(SYMBOLS)
    words = philox_words(seed, TRANSITIONS, 0, 0, n * n).reshape(n, n)
    rows = []
    for bits in (words >> np.uint64(48)).tolist():
        skewed = [number**6 for number in bits]
        total = sum(skewed)
        row = [1 + (ROW_TOTAL - n) * weight // total for weight in skewed]
        row[row.index(max(row))] += ROW_TOTAL - sum(row)
        rows.append(row)
    return np.array(rows)


def _walk(weights: NDArray[np.int64], seed: int) -> Tokens:
    """sum(N_TOKENS) steps from symbol 0: a draw in [0, 2^16) picks the next symbol of its row."""
    symbols = np.arange(len(weights))
    following = [np.repeat(symbols, row).tolist() for row in weights]
    draws = philox_words(seed, DRAWS, 0, 0, sum(N_TOKENS)) >> np.uint64(48)
    symbol = 0
    tokens = []
    for draw in draws.tolist():
        symbol = following[symbol][draw]
        tokens.append(symbol)
    return np.array(tokens, TOKEN)
