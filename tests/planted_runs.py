"""Worlds of runs with checkpoints: noise of a run, and noise that its next checkpoint remembers."""

from __future__ import annotations

import numpy as np

from nanoscale.laws import LAWS, fit_law
from nanoscale.laws.design import CHINCHILLA_TRUTH

LAW = LAWS["chinchilla"]
TRUTH = np.array(CHINCHILLA_TRUTH)


def checkpoints(*, runs=8, each=20, of_run=0.005, of_checkpoint=0.002, memory=0.5, world=0):
    """N, D, losses and the run of every point; sd of ln L, checkpoints evenly up to D = 20 N."""
    rng = np.random.default_rng(world)
    noise = rng.standard_normal((runs, each))
    for k in range(1, each):
        noise[:, k] = memory * noise[:, k - 1] + np.sqrt(1 - memory**2) * noise[:, k]
    noise = of_checkpoint * noise + of_run * rng.standard_normal((runs, 1))
    N = np.repeat(np.geomspace(1e7, 1e9, runs), each)
    D = 20 * N * np.tile(np.arange(1, each + 1) / each, runs)
    loss = LAW.loss(TRUTH, N, D) * np.exp(noise.ravel())
    return N, D, loss, np.repeat(np.arange(runs), each)


def coverage(
    worlds: int, resamples: int, resampling: str | None = None, **world: float
) -> dict[str, tuple[float, float]]:
    """Parameter or exponent -> share of worlds whose interval holds it, and its median width."""
    true = dict(zip(LAW.names, TRUTH.tolist(), strict=True)) | LAW.exponents(TRUTH)
    held: dict[str, list[bool]] = {}
    widths: dict[str, list[float]] = {}
    for number in range(worlds):
        N, D, loss, run = checkpoints(**world, world=number)
        columns = {"N": N, "D": D}
        found = fit_law(columns, loss, resamples=resamples, resampling=resampling, groups=run)
        for name, (low, high) in found.ci95.items():
            held.setdefault(name, []).append(low <= true[name] <= high)
            widths.setdefault(name, []).append(high - low)
    shares = {}
    for name, values in held.items():
        shares[name] = (float(np.mean(values)), float(np.median(widths[name])))
    return shares
