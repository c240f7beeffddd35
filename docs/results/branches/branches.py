"""What a grid of branches costs beside separate runs, and what it loses to a cosine.

    python docs/results/branches/branches.py FOLDER docs/results/branches/branches.csv

Runs the grid of branches.toml in FOLDER at four LRs, and each of its runs again by itself under a
cosine (to zero). A row per run; a trunk has one LR for all of its lengths, a cosine its own.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pandas as pd

import nanoscale as ns

LRS = (1e-3, 2e-3, 4e-3, 8e-3)
STUDY = Path(__file__).with_suffix(".toml")
OF_BRANCHES = ("lr_schedule", "cooldown_frac", "learning_rate")


def branches(lr: float, folder: Path) -> pd.DataFrame:
    """The runs of the grid at an LR."""
    name = f"branches-{lr:g}"
    text = STUDY.read_text(encoding="utf-8").replace(
        "learning_rate = 2e-3", f"learning_rate = {lr:g}"
    )
    file = folder / f"{name}.toml"
    file.write_text(text.replace('"branches"', f'"{name}"'), encoding="utf-8")
    frame = ns.run_study(file, folder / "out", until="ladder").frame()
    return frame.assign(learning_rate=lr, tokens_per_param=frame["tokens_per_param"].fillna(20))


def cosines(folder: Path) -> pd.DataFrame:
    """Every run by itself, at all LRs."""
    asked = tomllib.loads(STUDY.read_text(encoding="utf-8"))
    base = {key: value for key, value in asked["base"].items() if key not in OF_BRANCHES}
    base |= {"lr_schedule": "cosine", "lr_decay_iters": None, "data_order": "epoch"}
    sizes = asked["forecast"]["sizes"]
    grid = {
        "n_embd": [size["n_embd"] for size in sizes],
        "tokens_per_param": sorted({20, *sizes[0]["branches"]}),
        "learning_rate": LRS,
    }
    return ns.ExperimentRunner(output_root=folder / "out").run_grid("cosines", base, grid).frame()


def main() -> None:
    folder, out = map(Path, sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    branched = pd.concat([branches(lr, folder) for lr in LRS])
    alone = cosines(folder).set_index(["n_embd", "tokens_per_param", "learning_rate"])
    rows = []
    for _, run in branched.iterrows():
        n_embd, ratio, lr = key = tuple(run[name] for name in alone.index.names)
        rows.append(
            {
                "n_embd": n_embd,
                "tokens_per_param": f"{ratio:g}",
                "learning_rate": f"{lr:g}",
                "flops": run["planned_flops"],
                "separate_flops": alone.loc[key, "planned_flops"],
                "loss": f"{run['val_loss']:.4f}",
                "cosine_loss": f"{alone.loc[key, 'val_loss']:.4f}",
            }
        )
    pd.DataFrame(rows).to_csv(out, index=False, lineterminator="\n")
    say(pd.read_csv(out))


def say(table: pd.DataFrame) -> None:
    """The grid's share of the FLOPs, and its losses over cosine's, each at its best LR."""
    share = table["flops"].sum() / table["separate_flops"].sum()
    print(f"branches: {100 * share:.1f} % of the FLOPs of separate runs")
    over = best_of(table)
    error = over.std() / len(over) ** 0.5
    print(
        f"their losses over cosine's: {over.mean():+.4f} +- {error:.4f} nats, in the mean of",
        end="",
    )
    print(f" {len(over)} runs; by tokens per parameter:")
    for ratio, mean in over.groupby(level="tokens_per_param").mean().items():
        print(f"  {ratio:g}: {mean:+.4f}")


def best_of(table: pd.DataFrame) -> pd.Series:
    """By size and length: at each size's best LR for its lengths together, over cosine's best."""
    means = table.groupby(["n_embd", "learning_rate"])["loss"].mean().unstack()
    of_size = table["n_embd"].map(means.idxmin(axis=1))
    cells = ["n_embd", "tokens_per_param"]
    branched = table[table["learning_rate"] == of_size].set_index(cells)["loss"]
    return branched - table.groupby(cells)["cosine_loss"].min()


if __name__ == "__main__":
    main()
