"""Coverage and width of the drift's 95 % interval over planted worlds, in transfer.csv.

    python docs/results/design/transfer.py [worlds]

Rows of another method are kept: "one window" is how it was before every resample chose its own.
"""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests"))

from lr_grids import WORLDS, coverage  # noqa: E402

from nanoscale.store.files import write_text  # noqa: E402

TABLE = Path(__file__).with_name("transfer.csv")
METHOD = "a window per resample"
RESAMPLES = 1000


def main(worlds: int = 200) -> None:
    kept = list(csv.DictReader(TABLE.open(encoding="utf-8"))) if TABLE.is_file() else []
    rows = [row for row in kept if row["method"] != METHOD]
    for world in WORLDS:
        for drift in (0.0, -0.3):
            found = coverage(world, drift, worlds, RESAMPLES)
            rows.append(
                {
                    "method": METHOD,
                    "world": world,
                    "drift": f"{drift:g}",
                    "coverage": f"{found.held:.3f}",
                    "median_width": f"{found.width:.3f}",
                    "fails": str(found.fails),
                    "passes": str(found.passes),
                    "worlds": str(worlds),
                }
            )
            print(*rows[-1].values(), sep=", ", flush=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(TABLE, text.getvalue())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
