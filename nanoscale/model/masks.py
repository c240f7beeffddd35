"""Dropout's masks: a function of (seed, step, sample, site) and the number of an element alone.

So how a batch is cut into micro-batches and dealt to ranks, what is recomputed, where a run was
resumed and whose operations compute it change no mask. There is no stream: a mask is a hash of a
key and a counter (Salmon et al. 2011, Random123), the same integers in torch and in kernels.cpp.
A site is a place in the model where something is dropped.
"""

from __future__ import annotations

import hashlib
from typing import TypeVar

import torch
from torch import Tensor

EMBEDDING = 0  # the site before the blocks
ATTENTION_WEIGHTS, ATTENTION_BRANCH, MLP_BRANCH = PLACES = 1, 2, 3  # of each block

Dropped = tuple[float, Tensor]  # a site's: the probability, and each sample's key there, (B,)
Number = TypeVar("Number", int, Tensor)

_WORD = 2**32 - 1
# "lowbias32", revised: github.com/skeeto/hash-prospector. The second factor is as a signed number,
# so that no product leaves int64.
_FACTORS = (0x21F0AAAD, 0xD35A2D97 - 2**32)


def mix(x: Number) -> Number:
    """A hash of 32-bit words, one to one: of a number, or of each of an int64 tensor's."""
    mixed = x >> 16
    mixed ^= x
    x = mixed  # which lets go of what came in: at most two tensors are there at once
    x *= _FACTORS[0]
    x &= _WORD
    x ^= x >> 15
    x *= _FACTORS[1]
    x &= _WORD
    x ^= x >> 15
    return x


# -- keys -----------------------------------------------------------------------------------------
def sample_keys(seed: int, step: int, first: int, count: int) -> Tensor:
    """The keys of `count` sequences of update `step`'s batch, from number `first` on, (count,)."""
    digest = hashlib.sha256(f"{seed} {step}".encode()).digest()
    update = int.from_bytes(digest[:4], "little")
    return mix(mix(torch.arange(first, first + count)) ^ update)


def drawn_keys(count: int, device: torch.device) -> Tensor:
    """Keys from torch's own generator, for who calls a model without any."""
    return torch.randint(2**32, (count,), device=device)


def at_site(keys: Tensor | None, probability: float, place: int, layer: int = 0) -> Dropped | None:
    """What is dropped at a place of a layer, of samples with these keys; None of none."""
    if keys is None:
        return None
    site = len(PLACES) * layer + place
    return probability, mix(keys ^ mix(site))


# -- masks ----------------------------------------------------------------------------------------
def threshold(probability: float) -> int:
    """An element is dropped whose hash is below this."""
    return int(probability * 2**32)


def compensation(probability: float) -> float:
    """By what the rest is multiplied, so that the expected value stays."""
    return 1 / (1 - probability)


def kept(dropped: Dropped, shape: torch.Size) -> Tensor:
    """Which elements of samples of a shape stay, (B, *shape)."""
    probability, keys = dropped
    numbers = torch.arange(shape.numel(), device=keys.device) & _WORD
    hashes = mix(mix(numbers) ^ keys[:, None])  # (B, elements)
    return (hashes >= threshold(probability)).view(-1, *shape)


def drop(x: Tensor, dropped: Dropped) -> Tensor:
    """x (B, ...) with dropped elements zero and the rest scaled; NaN stays NaN."""
    return x * kept(dropped, x.shape[1:]) * compensation(dropped[0])
