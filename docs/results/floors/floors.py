"""Does the floor of a ladder's law hold the entropy of its data, where that is known?

    python docs/results/floors/floors.py FOLDER docs/results/floors/floors.csv

Trains the ladder of floors.toml in FOLDER on ten chains of `synthetic`, each with a seed and an
entropy of its own; a row per chain and per number of sizes, the smallest ones.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

import nanoscale as ns

SEEDS = range(1, 11)
LEAST_SIZES = 5
STUDY = Path(__file__).with_suffix(".toml")


def rows_of(seed: int, folder: Path) -> list[dict[str, object]]:
    """The chain of a seed, its ladder, and the law through five and more of its sizes."""
    data = folder / f"data-{seed}"
    ns.prepare("synthetic", seed=seed, out=data / "synthetic", overwrite=True)
    chain = ns.open_dataset("synthetic", str(data)).meta.facts
    base = f'[base]\nseed = {seed}\ndata_root = "{data}"'
    file = folder / f"floors-{seed}.toml"
    text = (
        STUDY.read_text(encoding="utf-8")
        .replace("[base]", base)
        .replace('"floors"', f'"floors-{seed}"')
    )
    file.write_text(text, encoding="utf-8")
    frame = ns.run_study(file, folder / "out").frame().sort_values("flops")
    rows = []
    for sizes in range(LEAST_SIZES, len(frame) + 1):
        kept = frame.head(sizes)
        fit = ns.fit_power_law(kept["flops"], kept["val_loss"])
        low, high = fit.ci95["E"]
        rows.append(
            {
                "seed": seed,
                "entropy": f"{chain['entropy_nats']:.4f}",
                "sizes": sizes,
                "largest_run": f"{kept['val_loss'].iloc[-1]:.4f}",
                "E": f"{fit.params['E']:.4f}",
                "low": f"{low:.4f}",
                "high": f"{high:.4f}",
            }
        )
    return rows


def main() -> None:
    folder, out = map(Path, sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for seed in SEEDS for row in rows_of(seed, folder.absolute())]
    pd.DataFrame(rows).to_csv(out, index=False, lineterminator="\n")
    say(pd.read_csv(out))


def say(table: pd.DataFrame) -> None:
    """How many of the intervals hold the entropy, and how wide they are, by the sizes fitted."""
    table["holds"] = (table["low"] <= table["entropy"]) & (table["entropy"] <= table["high"])
    table["width"] = 100 * (table["high"] - table["low"]) / table["entropy"]
    table["above"] = 100 * (table["largest_run"] / table["entropy"] - 1)
    for sizes, part in table.groupby("sizes"):
        held, width, above = part["holds"].sum(), part["width"].median(), part["above"].median()
        print(
            f"{sizes} sizes, the largest run {above:.2g} % above the entropy: {held} of "
            f"{len(part)} intervals hold it, their width {width:.2g} % of it in the median"
        )


if __name__ == "__main__":
    main()
