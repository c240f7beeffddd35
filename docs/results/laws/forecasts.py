"""Do forecasts hold the runs above the budgets that they come from? With the drift and without.

    python docs/results/laws/public_tables.py CLONES TABLES
    python docs/results/laws/forecasts.py TABLES docs/results/laws/forecasts.csv

Of each table in the folder TABLES (columns N, D and loss), at up to six budgets: the law of the
runs below forecasts every run at 3 to 30 times their largest. A row per table and budget.
"""

from __future__ import annotations

import csv
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from nanoscale.errors import UserError
from nanoscale.laws import bootstrap
from nanoscale.laws.forecast import drawn, drift_of, finite_rows
from nanoscale.laws.holdout import RUNS_PER_PARAMETER, FitOptions, Past, thresholds
from nanoscale.laws.predict import Basis, new_runs

NEAREST, FARTHEST = 3, 30
RESAMPLES = 400
OPTIONS: FitOptions = {"law": "chinchilla", "objective": "log-huber", "delta": 1e-3}
LEAST = 10  # of resamples that fit


def rows_of(path: Path) -> list[dict[str, object]]:
    """A row per budget that has a forecast and runs to judge it by."""
    runs = pd.read_csv(path)
    past = Past.of({"N": runs["N"], "D": runs["D"]}, runs["loss"], 0, None, OPTIONS)
    budgets = past.points.budgets
    assert budgets is not None
    rows = []
    for below in thresholds(budgets, RUNS_PER_PARAMETER * len(past.form.names)):
        try:
            row = row_of(past, budgets, below)
        except UserError:
            continue
        if row is not None:
            rows.append({"table": path.stem, "below": f"{below:.3g}", **row})
    return rows


def row_of(past: Past, budgets: np.ndarray, below: float) -> dict[str, object] | None:
    """How many of the runs ahead the intervals hold; None where there are none, or no interval."""
    seen = budgets < below
    largest = budgets[seen].max()
    ahead = (NEAREST * largest <= budgets) & (FARTHEST * largest >= budgets)
    known, judged = past.points.part(seen), past.points.part(ahead)
    drift = drift_of(Past.of(known.columns, known.loss, 0, None, OPTIONS))
    if drift is None or not ahead.any():
        return None
    fit = past.fit(seen, RESAMPLES)
    laws = finite_rows(fit.losses(*judged.x))
    if len(laws) < LEAST:
        return None
    runs = new_runs(laws, Basis.of(fit, known.columns, known.loss).noise, 0)
    away = np.log(budgets[ahead] / largest) * drawn(drift, len(runs), 0)[:, None]
    row: dict[str, object] = {"runs": int(ahead.sum()), "status": fit.status}
    for name, draws in (("law", runs), ("forecast", runs * np.exp(away))):
        low, high = bootstrap.interval(draws)
        row[f"{name}_holds"] = int(((low <= judged.loss) & (judged.loss <= high)).sum())
        row[f"{name}_half_width"] = f"{50 * np.median(np.log(high / low)):.2f}"
    return row


def main() -> None:
    folder, out = map(Path, sys.argv[1:])
    with ProcessPoolExecutor(2) as pool:
        rows = [row for rows in pool.map(rows_of, sorted(folder.glob("*.csv"))) for row in rows]
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    table = pd.read_csv(out)
    for name, some in [*table.groupby("table"), ("all", table)]:
        told = []
        for key in ("forecast", "law"):
            held = some[f"{key}_holds"].sum() / some["runs"].sum()
            half = some[f"{key}_half_width"].median()
            told.append(f"the {key} holds {held:.3f} (half-width {half:.1f} %)")
        print(f"{name:15} {some['runs'].sum():4} runs: {', '.join(told)}")


if __name__ == "__main__":
    main()
