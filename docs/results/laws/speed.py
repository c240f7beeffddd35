"""Our bootstrap beside the usual loop: 4,000 resamples of Epoch's 240 points, in one process.

    pip install scipy autograd
    python docs/results/laws/speed.py svg_extracted_data.csv

The loop is Epoch AI's (Besiroglu et al. 2024): scipy's BFGS from Hoffmann's parameters, its
gradient by the `autograd` package, or written by hand; both are timed on the first resamples and
scaled. Leave the machine to it, with one thread (OMP_NUM_THREADS=1). Writes speed.json here.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from nanoscale.laws import fit_law
from nanoscale.store.files import write_json

RESAMPLES, DELTA, SEED, TURNS = 4000, 1e-3, 42, 3
TIMED = {"autograd": 200, "hand": 400}  # resamples of each loop
HOFFMANN = np.array([6.0073404, 6.0179186, 0.5267228, 0.33917084, 0.2849083])  # not rounded
Loss = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], Any]


def points(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """N, D and loss of the 240 points that are left without the five highest losses."""
    with open(path, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    N, C, loss = (
        np.array([float(row[name]) for row in rows])
        for name in ("Model Size", "Training FLOP", "loss")
    )
    keep = np.sort(np.argsort(loss, kind="stable")[:-5])
    return N[keep], (C / (6 * N))[keep], loss[keep]


def objective(lib: Any) -> Loss:
    """Sum of Huber's function of ln L - LSE(a - alpha ln N, b - beta ln D, e), in `lib`'s numpy."""

    def of(p: Any, n: np.ndarray, d: np.ndarray, y: np.ndarray) -> Any:
        terms = lib.stack([p[0] - p[3] * n, p[1] - p[4] * d, p[2] + 0 * n])
        top = lib.max(terms, axis=0)
        r = y - top - lib.log(lib.sum(lib.exp(terms - top), axis=0))
        far = lib.abs(r)
        return lib.sum(lib.where(far <= DELTA, 0.5 * r**2, DELTA * (far - 0.5 * DELTA)))

    return of


def gradient(p: np.ndarray, n: np.ndarray, d: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The objective's gradient, written by hand."""
    terms = np.stack([p[0] - p[3] * n, p[1] - p[4] * d, p[2] + 0 * n])
    top = terms.max(axis=0)
    share = np.exp(terms - top)
    total = share.sum(axis=0)
    slope = -np.clip(y - top - np.log(total), -DELTA, DELTA)
    each = slope * share / total
    return np.array(
        [each[0].sum(), each[1].sum(), each[2].sum(), -(each[0] * n).sum(), -(each[1] * d).sum()]
    )


def loop(
    loss: Loss, slope: Loss, x: tuple[np.ndarray, ...], draws: np.ndarray
) -> tuple[float, np.ndarray]:
    """Seconds per resample, and the objective that each one ends at."""
    from scipy.optimize import minimize

    ends, began = [], time.perf_counter()
    for rows in draws:
        args = tuple(column[rows] for column in x)
        ends.append(minimize(loss, HOFFMANN, args, "BFGS", jac=slope).fun)
    return (time.perf_counter() - began) / len(draws), np.array(ends)


def main() -> None:
    import autograd
    import autograd.numpy

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", help="Epoch AI's svg_extracted_data.csv")
    N, D, L = points(parser.parse_args().table)
    x = np.log(N), np.log(D), np.log(L)
    draws = np.random.RandomState(SEED).choice(len(L), (RESAMPLES, len(L)))
    counts = np.stack([np.bincount(rows, minlength=len(L)) for rows in draws])
    traced = objective(autograd.numpy)
    loops = {"autograd": (traced, autograd.grad(traced)), "hand": (objective(np), gradient)}
    found: dict[str, Any] = {"ours": [], **{name: [] for name in loops}}
    ends = {}
    for _ in range(TURNS):
        began = time.perf_counter()
        fit = fit_law({"N": N, "D": D}, L, delta=DELTA, resamples=RESAMPLES, rng_seed=SEED)
        found["ours"].append(time.perf_counter() - began)  # the fit itself and its starts too
        for name, (loss, slope) in loops.items():
            each, ends[name] = loop(loss, slope, x, draws[: TIMED[name]])
            found[name].append(each * RESAMPLES)
    seconds = {name: median(times) for name, times in found.items()}
    best = fit_law({"N": N, "D": D}, L, delta=DELTA, weights=counts)
    ours = np.array(
        [
            objective(np)(p, *(column[rows] for column in x))
            for p, rows in zip(in_logs(best.draws), draws, strict=True)
        ]
    )
    worse = {name: float(np.max(ours[: len(e)] / e - 1)) for name, e in ends.items()}
    record = {
        "resamples": RESAMPLES,
        "seconds": seconds,
        "times": {name: seconds[name] / seconds["ours"] for name in loops},
        "ours_worse_at_most": worse,
        "objective": fit.objective,
    }
    write_json(Path(__file__).with_name("speed.json"), record)
    print(record)


def in_logs(draws: np.ndarray) -> np.ndarray:
    """E, A, B, alpha, beta of every draw as ln A, ln B, ln E, alpha, beta."""
    E, A, B, alpha, beta = draws.T
    return np.stack([np.log(A), np.log(B), np.log(E), alpha, beta], axis=1)


if __name__ == "__main__":
    main()
