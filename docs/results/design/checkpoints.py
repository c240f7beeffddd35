"""Coverage and width of 95 % intervals where points are checkpoints of runs, in checkpoints.csv.

    python docs/results/design/checkpoints.py

200 worlds of 100 resamples, as `nanoscale fit` makes them; what the table has is not made again.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests"))

from planted_runs import coverage  # noqa: E402

TABLE = Path(__file__).with_name("checkpoints.csv")
HEAD = ("runs", "checkpoints", "resampling", "question", "coverage", "width")
WORLDS, RESAMPLES = 200, 100
QUESTIONS = ("alpha", "beta", "a", "E")
PLANS = (
    (8, 20, "default"),
    (8, 20, "pairs"),
    (5, 20, "default"),
    (16, 10, "default"),
    (8, 20, "cluster"),
)


def main() -> None:
    rows = list(csv.reader(TABLE.open(encoding="utf-8")))[1:] if TABLE.is_file() else []
    there = {tuple(row[:3]) for row in rows}
    for runs, each, resampling in PLANS:
        if (str(runs), str(each), resampling) not in there:
            how = None if resampling == "default" else resampling
            measured = coverage(WORLDS, RESAMPLES, how, runs=runs, each=each)
            for question in QUESTIONS:
                share, width = measured[question]
                row = [str(runs), str(each), resampling, question, f"{share:.3f}", f"{width:.3g}"]
                rows.append(row)
            with TABLE.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows([HEAD, *rows])


if __name__ == "__main__":
    main()
