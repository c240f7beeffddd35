"""Do forecasts hold the runs above the budgets that they come from? With the drift and without.

    python docs/results/laws/forecasts.py TABLE --n=COL --c=COL --loss=COL

Of a table of many budgets (docs/laws.md quotes it of the Chinchilla points without the five highest
losses): the law of the runs below a budget forecasts every run at 3 to 30 times their largest.
"""

from __future__ import annotations

import argparse

import numpy as np

from nanoscale.experiments.tables import read_table
from nanoscale.laws import bootstrap, fit_law
from nanoscale.laws.forecast import drawn, drift_of
from nanoscale.laws.holdout import FitOptions, Past
from nanoscale.laws.predict import Basis, new_runs

BELOW = (2e19, 4.5e19, 8e19, 2e20, 4.5e20)
NEAREST, FARTHEST = 3, 30
OPTIONS: FitOptions = {"law": "chinchilla", "objective": "log-huber", "delta": 1e-3}


def held(columns: dict[str, np.ndarray], loss: np.ndarray, below: float) -> np.ndarray:
    """(2, n): whether the law's own interval holds each run above, and the one with its drift."""
    C = 6 * columns["N"] * columns["D"]
    seen = below > C
    largest = C[seen].max()
    ahead = (NEAREST * largest <= C) & (FARTHEST * largest >= C)
    known = {name: values[seen] for name, values in columns.items()}
    fit = fit_law(known, loss[seen], resamples=2000, **OPTIONS)
    drift = drift_of(Past.of(known, loss[seen], 0, None, OPTIONS))
    assert drift is not None
    laws = fit.losses(columns["N"][ahead], columns["D"][ahead])
    runs = new_runs(laws, Basis.of(fit, known, loss[seen]).noise, 0)
    away = np.log(C[ahead] / largest) * drawn(drift, len(runs), 0)[:, None]
    found = []
    for draws in (runs, runs * np.exp(away)):
        low, high = bootstrap.interval(draws)
        found.append((low <= loss[ahead]) & (loss[ahead] <= high))
        half = 50 * np.median(np.log(high / low))
        print(
            f"below {below:.2g}: {found[-1].mean():.2f} of {ahead.sum()}, half-width {half:.1f} %"
        )
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table")
    for name in ("n", "c", "loss"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--drop-worst", type=int, default=5)
    asked = parser.parse_args()
    table = read_table(asked.table)
    N, C, loss = (table[name].astype(float).to_numpy() for name in (asked.n, asked.c, asked.loss))
    kept = np.argsort(loss)[: len(loss) - asked.drop_worst]
    N, C, loss = N[kept], C[kept], loss[kept]
    columns = {"N": N, "D": C / (6 * N)}
    alone, both = np.concatenate([held(columns, loss, below) for below in BELOW], axis=1)
    print(f"in all: {alone.mean():.3f} by the law alone, {both.mean():.3f} with the drift")


if __name__ == "__main__":
    main()
