"""LR x size grids with planted optima: tables of size, LR, loss and seed."""

from __future__ import annotations

import math

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
