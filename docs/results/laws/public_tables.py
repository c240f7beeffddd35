"""Tables of public runs, each as N, D and loss, from clones of the repositories that hold them.

    python docs/results/laws/public_tables.py CLONES OUT

CLONES holds, under their own names, clones of the repositories in `TABLES`; OUT becomes a folder of
CSV files. N and D are as each source counts them; a ladder's tables keep each run's last loss.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

Frame = pd.DataFrame
OLMO_SIZES = {  # parameters outside the embedding
    "190M": 190354176,
    "370M": 371262464,
    "760M": 758220288,
    "1B": 1279395840,
    "3B": 3169537280,
}
OLMO_LENGTHS = ("0.5xC", "1xC-rerun", "2xC", "5xC", "10xC")
MISREAD = ("off_center", "spline_outlier", "near_duplicate_params")
OPEN_LM_VALIDATION = "c4_val"


def of_isoflops(experiment: str) -> Callable[[Path], Frame]:
    """IsoFLOP runs that Open-Athena has gathered, without the misread points that it flags."""

    def read(clones: Path) -> Frame:
        path = clones / "scaling-law-analysis/data/isoflops/transform/isoflops.csv"
        runs = pd.read_csv(path)
        runs = runs[(runs["experiment"] == experiment) & ~runs["reason"].isin(MISREAD)]
        return Frame({"N": runs["params"], "D": runs["tokens"], "loss": runs["loss"]})

    return read


def gemstones(clones: Path) -> Frame:
    """22 shapes of Gemstones, cooled down at several lengths (McLeish et al. 2025)."""
    path = clones / "gemstone-scaling-laws/wandb_dfs/wandb_df_for_fitting_cool_end.jsonl"
    runs = pd.read_json(path, lines=True)
    return Frame(
        {"N": runs["params_active_precise"], "D": runs["tokens"], "loss": runs["final_loss"]}
    )


def open_lm(dataset: str) -> Callable[[Path], Frame]:
    """Over-trained models on one of three datasets (Gadre et al. 2024), by their loss on C4."""

    def read(clones: Path) -> Frame:
        rows = []
        for path in sorted((clones / "scaling/exp_data/models").glob("*.json")):
            run = json.loads(path.read_text(encoding="utf-8"))
            if run["dataset_name"] == dataset:
                how = run["hyperparameters"]
                loss = next(
                    found["loss"]
                    for found in run["results"]
                    if OPEN_LM_VALIDATION in found["val_data"][0]
                )
                rows.append({"N": how["params"], "D": how["tokens"], "loss": loss})
        return Frame(rows)

    return read


def olmo_ladder(clones: Path) -> Frame:
    """OLMo's ladder (Bhagia et al. 2024) by its loss on C4."""
    return Frame(_olmo_rows(clones / "OLMo-ladder/src/scripts/paper/data/ladder-runs"))


def _olmo_rows(folder: Path) -> Iterator[dict[str, float]]:
    for size, n in OLMO_SIZES.items():
        for length in OLMO_LENGTHS:
            path = folder / f"{size}-{length}.csv"
            if path.exists():
                last = pd.read_csv(path).sort_values("throughput/total_tokens").iloc[-1]
                yield {
                    "N": n,
                    "D": last["throughput/total_tokens"],
                    "loss": last["eval/c4_en-validation/CrossEntropyLoss"],
                }


def steplaw(clones: Path) -> Frame:
    """Step Law's dense sweeps (Li et al. 2025): the lowest smoothed loss of each N and D."""
    runs = pd.read_csv(clones / "steplaw/data/dense_lr_bs_loss.csv")
    best = runs.groupby(["N", "D"])["smooth loss"].min().reset_index()
    return best.rename(columns={"smooth loss": "loss"})


TABLES: dict[str, Callable[[Path], Frame]] = {
    # github.com/Open-Athena/scaling-law-analysis
    "chinchilla": of_isoflops("epochai_chinchilla__massivetext__chinchilla"),
    "llama3": of_isoflops("llama_3__exp_loss"),
    "marin-comma": of_isoflops("marin_202603__comma__llama_2"),
    "marin-dclm": of_isoflops("marin_202603__dclm__llama_2"),
    "marin-nemotron": of_isoflops("marin_202603__nemotron__llama_2"),
    "misfitting": of_isoflops("misfitting__fineweb_c4__transformer"),
    "gemstones": gemstones,  # github.com/mcleish7/gemstone-scaling-laws
    # github.com/mlfoundations/scaling
    "open-lm-c4": open_lm("c4_original"),
    "open-lm-rpj": open_lm("rpj"),
    "open-lm-rw": open_lm("rw_original"),
    "olmo": olmo_ladder,  # github.com/allenai/OLMo-ladder
    "steplaw": steplaw,  # github.com/step-law/steplaw
}


def main() -> None:
    clones, out = map(Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    for name, read in TABLES.items():
        table = read(clones).astype(float).dropna().drop_duplicates().sort_values(["N", "D"])
        table.to_csv(out / f"{name}.csv", index=False)
        C = 6 * table["N"] * table["D"]
        losses = f"{table['loss'].min():.3f} to {table['loss'].max():.3f}"
        print(f"{name:15} {len(table):4} runs, C {C.min():.2g} to {C.max():.2g}, loss {losses}")


if __name__ == "__main__":
    main()
