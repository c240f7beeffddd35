"""Points of a planted law: 45 of five budgets, Chinchilla's form."""

from __future__ import annotations

import numpy as np

from nanoscale.laws import LAWS

LAW, TRUTH = LAWS["chinchilla"], np.array([1.69, 400.0, 400.0, 0.31, 0.31])


def grid(sd=0.0, truth=TRUTH):
    """45 points of five budgets."""
    C = np.repeat(np.geomspace(1e17, 1e21, 5), 9)
    N = LAW.optimum(truth, C)[0] * np.tile(np.geomspace(0.25, 4, 9), 5)
    D = C / (6 * N)
    noise = np.random.default_rng(0).standard_normal(45)
    return N, D, LAW.loss(truth, N, D) * np.exp(sd * noise)
