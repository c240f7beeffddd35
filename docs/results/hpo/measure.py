"""Does a search beat a fine grid, and do hyperparameters tuned on a small proxy serve a wide model?

    nanoscale data prepare shakespeare_char
    python docs/results/hpo/measure.py

Trains what it needs below experiments_out/hpo (an hour or more on two cores; the same command goes
on where it was stopped), then writes hpo.json, hpo.csv and the figures here.
"""

from __future__ import annotations

import csv
import itertools
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nanoscale.checks.paired import t_quantile
from nanoscale.errors import exit_code_of
from nanoscale.experiments import ExperimentRunner, Study
from nanoscale.experiments.cells import describe
from nanoscale.records import write_json

HERE = Path(__file__).parent
ROOT = Path("experiments_out/hpo")
UPDATES, RUNGS = 1000, [250, 500, 1000]
BASE = {"dataset": "shakespeare_char", "use_rmsnorm": True, "use_rope": True, "use_swiglu": True,
        "n_layer": 2, "block_size": 64, "batch_size": 8, "gradient_accumulation_steps": 1,
        "optimizer": "adamw", "parametrization.mode": "muP", "lr_schedule": "wsd",
        "lr_decay_iters": None, "min_lr_frac": 0.0, "max_iters": UPDATES, "eval_interval": 0,
        "log_interval": 100, "device": "cpu", "compile": False, "seed": 1}
PROXY, TARGET = {"n_embd": 64, "n_head": 4}, {"n_embd": 256, "n_head": 16}
SPACE = {"learning_rate": {"low": 2**-11, "high": 2**-4, "log": True},
         "weight_decay": {"low": 0.01, "high": 1.0, "log": True},
         "warmup_iters": {"low": 8, "high": 128, "log": True}}
GRID = {"learning_rate": [2 ** (k / 2 - 11) for k in range(15)],  # factors of sqrt 2
        "weight_decay": [0.01, 0.05, 0.2, 1.0], "warmup_iters": [8, 20, 50, 128]}
TRIALS, SEARCHES = 54, 5
FRESH = list(range(101, 109))  # seeds that no search has seen


# -- runs ---------------------------------------------------------------------------------------
def search(name: str, k: int, base: Mapping[str, Any], **more: Any) -> Study:
    """Search k: in a store of its own, so that it knows nothing of the grid or of the others."""
    runner = ExperimentRunner(output_root=ROOT / f"search-{k}")
    return runner.run_hpo(name, BASE | base, SPACE, trials=TRIALS, sampler="tpe", search_seed=k,
                          rungs=RUNGS, seeds=FRESH, **more)


def best_cell(study: Study) -> dict[str, Any]:
    """The values of a search's or a grid's best run."""
    return {key: study.best["values"][key] for key in SPACE}


def retrained(name: str, values: Mapping[str, Any], base: Mapping[str, Any]) -> dict[int, float]:
    """Seed -> final loss of values trained anew with every fresh seed."""
    runner = ExperimentRunner(output_root=ROOT / "winners")
    study = runner.run_grid(name, BASE | base | values, seeds=FRESH)
    return {m["config"]["seed"]: m["val_loss"] for m in study.metrics()}


def flops_of(study: Study) -> int:
    """What the runs of a study cost, those of its target aside."""
    return sum(e["flops"] for e in study.record["runs"] if not e.get("target"))


# -- numbers ------------------------------------------------------------------------------------
def difference(a: Mapping[int, float], b: Mapping[int, float]) -> dict[str, Any]:
    """Mean of a - b over seeds, in nats, and Student's 95 % interval."""
    values = [a[seed] - b[seed] for seed in FRESH]
    half = t_quantile(0.95, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    mean = statistics.fmean(values)
    return {"mean": mean, "ci95": [mean - half, mean + half]}


def rows() -> list[dict[str, Any]]:
    """A row per search, the grid first: what it cost, what it found, how that did anew."""
    runner = ExperimentRunner(output_root=ROOT / "grid")
    grid = runner.run_grid("grid", BASE | PROXY, GRID)
    whole, found = flops_of(grid), []
    winner = retrained("grid", best_cell(grid), PROXY)
    direct = search("direct", SEARCHES, TARGET)
    tuned = {int(seed): loss for seed, loss in direct.target["val_loss"].items()}
    for k in range(SEARCHES):
        study = search("proxy", k, TARGET, proxy=PROXY)
        values = study.best["values"]
        losses = retrained(f"search-{k}", values, PROXY)
        carried = {int(seed): loss for seed, loss in study.target["val_loss"].items()}
        found.append({
            "search": k, **values, "flops": flops_of(study), "of_grid": flops_of(study) / whole,
            "of_direct": flops_of(study) / flops_of(direct),
            "proxy_loss": statistics.fmean(losses.values()),
            "minus_grid": difference(losses, winner),
            "target_loss": statistics.fmean(carried.values()),
            "minus_direct": difference(carried, tuned)})
    return [
        {"search": "grid", **best_cell(grid), "flops": whole, "of_grid": 1.0,
         "proxy_loss": statistics.fmean(winner.values())},
        {"search": "at the target", **direct.best["values"], "flops": flops_of(direct),
         "of_direct": 1.0, "target_loss": statistics.fmean(tuned.values())}, *found]


def main() -> None:
    found = rows()
    write_json(HERE / "hpo.json", {"rows": found})
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
