"""Initial values: standard normal numbers that depend on (seed, name) and nothing else.

They are the float32 normals that numpy draws from Philox under a glibc before 2.41. numpy promises
Philox's words for good, but not what it makes of them, and takes logarithms from the system's
library; where it makes something else, `ziggurat` makes the same numbers from the same words.
"""

from __future__ import annotations

import functools
import hashlib
import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

# The digest of the first normals of this seed and no name: enough of them to take every path below,
# and of one that shows a logarithm with another last bit, as few do.
SAMPLE = 1 << 14
SAMPLE_SEED = 2359
SAMPLE_DIGEST = "dc5ca410841020ad415b5871be3b0be4551a77070b5ebb24de2aef419d2897b6"

EDGE = 3.6541528853610088  # of the widest layer; beyond it is the tail
MOST_WORDS = 64  # that one normal takes, but for odds of 1e-30

LN2 = 6.9313812256e-01, 9.0580006145e-06  # fdlibm's parts of it in float32, and its series
LOG_SERIES = (
    6.6666668653e-01,
    4.0000000596e-01,
    2.8571429849e-01,
    2.2222198546e-01,
    1.8183572590e-01,
    1.5313838422e-01,
    1.4798198640e-01,
)


def normal(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 values of (seed, name)."""
    philox = philox_of(seed, name)
    if numpy_draws_as_ever():
        generator = np.random.Generator(philox)
        values = generator.standard_normal(shape, dtype=np.float32)
    else:
        values = ziggurat(philox, math.prod(shape))
    return torch.from_numpy(values).view(shape)


def philox_of(seed: int, name: str) -> np.random.Philox:
    """A stream of random words of its own for each (seed, name)."""
    digest = hashlib.sha256(name.encode()).digest()
    hashed = int.from_bytes(digest[:8], "little")
    if hashed >= 2**63:
        # a list of such numbers was float64 to numpy, and so are the keys of every run so far
        seed = int(float(seed))
        hashed = int(float(hashed))
    key = np.array([seed, hashed], np.uint64)
    return np.random.Philox(key=key)


@functools.cache
def numpy_draws_as_ever() -> bool:
    """Whether this numpy's normals are those that every run began with, by a sample of them."""
    generator = np.random.Generator(philox_of(SAMPLE_SEED, ""))
    sample = generator.standard_normal(SAMPLE, dtype=np.float32)
    return hashlib.sha256(sample.astype("<f4").tobytes()).hexdigest() == SAMPLE_DIGEST


# -- numpy's method, in our own words -------------------------------------------------------------
def ziggurat(philox: np.random.Philox, count: int) -> Floats:
    """The first `count` normals (Marsaglia & Tsang 2000, doi 10.18637/jss.v005.i08), as numpy's.

    A 32-bit word is a layer, a sign and a place in that layer. 99 places of 100 lie under the curve
    exp(-x^2 / 2) for certain, and are the normal; for the others, further words decide.
    """
    edge, inner = layers()
    words = philox.random_raw(count // 2 + count // 16 + MOST_WORDS)  # more than are needed
    words = words.astype("<u8").view("<u4")
    layer = words & 0xFF
    place = words >> 9
    width = (edge / 2**23).astype(np.float32)
    x = place.astype(np.float32) * width[layer]
    x[words & 0x100 != 0] *= -1

    certain = np.rint(inner / edge * 2**23)  # places of each layer
    doubtful = np.flatnonzero(place >= certain[layer])
    uniform = (words >> 8).astype(np.float32) * np.float32(2**-24)  # a word as one in [0, 1)
    last = len(words) - MOST_WORDS
    drawn = np.ones(last, bool)  # whether a word's x is a normal
    end = 0  # of the words that are spent
    for at in doubtful[doubtful < last].tolist():
        if at < end:
            continue
        if layer[at] == 0:
            distance, end = tail(uniform, at + 1)
            x[at] = -distance if place[at] & 0x100 else distance
        else:
            end = at + 2
            drawn[at] = is_under(x[at], layer[at], uniform[at + 1])
        drawn[at + 1 : end] = False
    normals: Floats = x[:last][drawn]
    return normals[:count]


def is_under(x: np.float32, layer: int, uniform: np.float32) -> bool:
    """Whether a height between the curve's at a layer's ends, drawn by `uniform`, is below it."""
    edge, inner = layers()
    low = np.float32(curve(edge[layer]))
    high = np.float32(curve(inner[layer]))
    height = (high - low) * uniform + low
    return bool(height < curve(float(x)))


def tail(uniform: Floats, at: int) -> tuple[np.float32, int]:
    """A normal beyond EDGE, from the numbers at `at`, and where those end (Marsaglia 1964)."""
    while True:
        beyond = -log(1 - uniform[at]) * np.float32(1 / EDGE)
        bound = -log(1 - uniform[at + 1])
        at += 2
        if bound + bound > beyond * beyond:
            return np.float32(EDGE) + beyond, at


def log(x: np.float32) -> np.float32:
    """The logarithm of a multiple of 2^-24 in (0, 1] to the bit of fdlibm's log1pf(x - 1).

    glibc has that one until 2.41, on every CPU. numpy's own, with AVX-512, rounds otherwise.
    """
    mantissa, exponent = np.frexp(x)
    if mantissa < math.sqrt(0.5):
        mantissa, exponent = 2 * mantissa, exponent - 1
    power = np.float32(exponent)
    f = mantissa - 1
    half = 0.5 * f * f
    s = f / (2 + f)
    z = s * s
    series = np.float32(0)
    for factor in reversed(LOG_SERIES):
        series = z * (factor + series)
    high, low = LN2
    found: np.float32 = power * high - ((half - (s * (half + series) + power * low)) - f)
    return found


@functools.cache
def layers() -> tuple[Doubles, Doubles]:
    """Where each of the 256 layers ends, and up to where all of it is under the curve.

    All have the same area. The lowest, layer 0, holds the tail and ends where a box of it would.
    """
    beyond = math.sqrt(math.pi / 2) * math.erfc(EDGE / math.sqrt(2))
    area = EDGE * curve(EDGE) + beyond
    edge = np.zeros(256)
    edge[0] = area / curve(EDGE)
    edge[255] = EDGE
    for i in range(255, 1, -1):
        height = area / edge[i] + curve(edge[i])
        edge[i - 1] = math.sqrt(-2 * math.log(height))

    inner = np.roll(edge, 1)
    inner[0] = EDGE
    inner[1] = 0.0
    return edge, inner


def curve(x: float) -> float:
    """The normal density, but for its factor."""
    return math.exp(-0.5 * float(x) ** 2)
