"""LR x size grids with planted optima: tables of size, LR, loss and seed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from nanoscale.checks.lr_transfer import TransferLimits, transfer_verdict
from nanoscale.checks.lr_verdict import TransferVerdict

FEW = 500  # resamples, where the interval itself is not judged
OCTAVES = np.array([-3, -2, -1, -0.5, 0, 0.5, 1, 2, 3])


def valley(d):
    """Loss over log2(LR / optimum): 0.03 nats/octave^2 at its floor, a slope and a steep wall."""
    return 0.06 * (np.exp(d) - 1 - d)


def quadratic(d):
    return 0.03 * d**2


def cliff(d):
    return quadratic(d) + 9 * (d > 1.2) + 4 * (d < -2.2)


def grid(optima, *, lrs=OCTAVES, seeds=3, reach=1.3, sd=0.0, shift=0.0, curve=quadratic, rng=None):
    """(n, 4): size, LR, loss, seed. All seeds within `reach` octaves of the optimum, else one."""
    rng, rows = rng or np.random.default_rng(0), []
    for k, optimum in enumerate(optima):
        shifts = shift * rng.standard_normal(seeds)
        for x in np.asarray(lrs) + (round(optimum) if lrs is OCTAVES else 0):
            for s in range(seeds if abs(x - optimum) < reach else 1):
                loss = 3 - 0.1 * k + curve(x - optimum) + shifts[s] + sd * rng.standard_normal()
                rows.append((64 * 2**k, 2.0 ** (x - 7), loss, s))
    return np.array(rows)


def verdict_of(table, **options) -> TransferVerdict:
    keys = TransferLimits.__dataclass_fields__.keys() & options.keys()
    limits = TransferLimits(**{key: options.pop(key) for key in keys})
    return transfer_verdict(*table.T, **{"resamples": FEW, "limits": limits, **options})


def judge(table, **options):
    """The verdict's JSON."""
    return verdict_of(table, **options).to_json()


def noisy(optima, seed=0, **kwargs):
    return grid(optima, rng=np.random.default_rng(seed), **{"sd": 0.004, "shift": 0.006, **kwargs})


def diverging(table, size, above):
    """The table with inf for one size's LRs (log2, as in `grid`) from `above` on."""
    table = table.copy()
    table[(table[:, 0] == size) & (np.log2(table[:, 1]) + 7 >= above), 2] = math.inf
    return table


# -- worlds with a planted drift ------------------------------------------------------------------
def plateau(half):
    """Flat within `half` octaves of the optimum, 0.03 nats/octave^2 beyond."""
    return lambda d: 0.03 * np.maximum(np.abs(d) - half, 0) ** 2


def one_sided(d):
    """Flat for two octaves below the optimum, steep above, as with a long cooldown."""
    return 0.03 * max(-d - 2, 0) ** 2 + 0.06 * max(d, 0) ** 2


def shallow(d):
    return 0.012 * d**2


HALVES, WHOLES = np.arange(-4, 4.5, 0.5), np.arange(-5.0, 6)
EVERYWHERE = 99.0  # octaves within which all seeds are run
WORLDS: dict[str, dict[str, Any]] = {
    "valley": {"curve": valley},
    "valley, one seed": {"curve": valley, "lrs": HALVES, "seeds": 1},
    "plateau of 2 octaves": {"curve": plateau(1), "lrs": HALVES, "reach": EVERYWHERE},
    "plateau of 2, LRs an octave apart": {
        "curve": plateau(1),
        "lrs": WHOLES,
        "reach": EVERYWHERE,
    },
    "plateau of 3, seeds in its middle": {"curve": plateau(1.5), "lrs": HALVES},
    "plateau of 4 octaves": {"curve": plateau(2), "lrs": HALVES, "reach": EVERYWHERE},
    "plateau on one side": {"curve": one_sided, "lrs": HALVES, "reach": EVERYWHERE},
    "seeds apart by 0.15": {
        "curve": shallow,
        "lrs": HALVES,
        "reach": EVERYWHERE,
        "sd": 0.15,
        "shift": 0.0,
    },
}


@dataclass(frozen=True)
class Coverage:
    """How often the drift's interval held the truth, and what was said."""

    held: float  # of the intervals that are known
    width: float  # octaves per doubling, the median
    fails: int
    passes: int
    worlds: int


def coverage(world: str, drift: float, worlds: int, resamples: int = FEW) -> Coverage:
    """Four sizes, the base's optimum anywhere between two LRs."""
    rng = np.random.default_rng(1)
    held, widths, said = [], [], []
    for _ in range(worlds):
        optima = rng.uniform(-0.5, 0.5) + drift * np.arange(4)
        table = grid(optima, rng=rng, **{"sd": 0.004, "shift": 0.006, **WORLDS[world]})
        verdict = verdict_of(table, resamples=resamples)
        low, high = verdict.drift.ci95
        said.append(verdict.verdict)
        if math.isfinite(low):
            held.append(low <= drift <= high)
            widths.append(high - low)
    return Coverage(
        float(np.mean(held)),
        float(np.median(widths)),
        said.count("fail"),
        said.count("pass"),
        worlds,
    )
