"""Does a search beat a fine grid, and do hyperparameters tuned on a small proxy serve a wide model?

    nanoscale data prepare shakespeare_char
    python docs/results/hpo/measure.py

Trains what it needs below experiments_out/hpo (an hour or more on two cores; the same command goes
on where it was stopped), then writes hpo.json, hpo.md and hpo.png here.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nanoscale.checks.t_distribution import t_quantile
from nanoscale.errors import exit_code_of
from nanoscale.experiments import ExperimentRunner, Study
from nanoscale.report.figure_files import save
from nanoscale.report.style import INK, MUTED, RULE, SIZES, canvas, styled
from nanoscale.store.files import write_json, write_text

HERE = Path(__file__).parent
ROOT = Path("experiments_out/hpo")
UPDATES, RUNGS = 1000, [250, 500, 1000]
BASE = {
    "dataset": "shakespeare_char",
    "use_rmsnorm": True,
    "use_rope": True,
    "use_swiglu": True,
    "n_layer": 2,
    "block_size": 64,
    "batch_size": 8,
    "gradient_accumulation_steps": 1,
    "optimizer": "adamw",
    "parametrization.mode": "muP",
    "lr_schedule": "wsd",
    "lr_decay_iters": None,
    "min_lr_frac": 0.0,
    "max_iters": UPDATES,
    "eval_interval": 0,
    "log_interval": 100,
    "device": "cpu",
    "compile": False,
    "seed": 1,
}
PROXY, TARGET = {"n_embd": 64, "n_head": 4}, {"n_embd": 256, "n_head": 16}
SPACE = {
    "learning_rate": {"low": 2**-14, "high": 2**-7, "log": True},
    "weight_decay": {"low": 0.01, "high": 1.0, "log": True},
    "warmup_iters": {"low": 8, "high": 128, "log": True},
}
GRID = {
    "learning_rate": [2 ** (k / 2 - 14) for k in range(15)],  # factors of sqrt 2
    "weight_decay": [0.01, 0.05, 0.2, 1.0],
    "warmup_iters": [8, 20, 50, 128],
}
TRIALS, SEARCHES = 54, 5
FRESH = list(range(101, 109))  # seeds that no search has seen


# -- runs ---------------------------------------------------------------------------------------
def search(name: str, k: int, base: Mapping[str, Any], **more: Any) -> Study:
    """Search k: in a store of its own, so that it knows nothing of the grid or of the others."""
    runner = ExperimentRunner(output_root=ROOT / f"search-{k}")
    return runner.run_hpo(
        name,
        BASE | base,
        SPACE,
        trials=TRIALS,
        sampler="tpe",
        search_seed=k,
        rungs=RUNGS,
        seeds=FRESH,
        **more,
    )


def best_cell(study: Study) -> dict[str, Any]:
    """The values of a search's or a grid's best run."""
    return {key: study.best.values[key] for key in SPACE}


def retrained(name: str, values: Mapping[str, Any], base: Mapping[str, Any]) -> dict[int, float]:
    """Seed -> final loss of values trained anew with every fresh seed."""
    runner = ExperimentRunner(output_root=ROOT / "winners")
    study = runner.run_grid(name, BASE | base | values, seeds=FRESH)
    return {m["config"]["seed"]: m["val_loss"] for m in study.metrics()}


def flops_of(study: Study) -> int:
    """What the runs of a study cost, those of its target aside."""
    return sum(e.flops for e in study.entries if not e.target)


# -- numbers ------------------------------------------------------------------------------------
def difference(a: Mapping[int, float], b: Mapping[int, float]) -> dict[str, Any]:
    """Mean of a - b over seeds, in nats, and Student's 95 % interval."""
    values = [a[seed] - b[seed] for seed in FRESH]
    half = t_quantile(0.95, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    mean = statistics.fmean(values)
    return {"mean": mean, "ci95": [mean - half, mean + half]}


def median_of(losses: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Seed -> the median over searches of their losses with it."""
    return {seed: statistics.median(one[seed] for one in losses) for seed in FRESH}


def rows() -> list[dict[str, Any]]:
    """A row per search, the grid first: what it cost, what it found, how that did anew.

    The last is the median over searches, taken seed by seed.
    """
    runner = ExperimentRunner(output_root=ROOT / "grid")
    grid = runner.run_grid("grid", BASE | PROXY, GRID)
    whole, found, anew, wide = flops_of(grid), [], [], []
    winner = retrained("grid", best_cell(grid), PROXY)
    direct = search("direct", SEARCHES, TARGET)
    tuned = {int(seed): loss for seed, loss in direct.target.val_loss.items()}
    for k in range(SEARCHES):
        study = search("proxy", k, TARGET, proxy=PROXY)
        values = study.best.values
        losses = retrained(f"search-{k}", values, PROXY)
        carried = {int(seed): loss for seed, loss in study.target.val_loss.items()}
        anew.append(losses)
        wide.append(carried)
        found.append(
            {
                "search": k,
                **values,
                "flops": flops_of(study),
                "of_grid": flops_of(study) / whole,
                "of_direct": flops_of(study) / flops_of(direct),
                "proxy_loss": statistics.fmean(losses.values()),
                "minus_grid": difference(losses, winner),
                "target_loss": statistics.fmean(carried.values()),
                "minus_direct": difference(carried, tuned),
            }
        )
    middle, middle_wide = median_of(anew), median_of(wide)
    found.append(
        {
            "search": "median",
            "proxy_loss": statistics.fmean(middle.values()),
            "minus_grid": difference(middle, winner),
            "target_loss": statistics.fmean(middle_wide.values()),
            "minus_direct": difference(middle_wide, tuned),
        }
    )
    return [
        {
            "search": "grid",
            **best_cell(grid),
            "flops": whole,
            "of_grid": 1.0,
            "proxy_loss": statistics.fmean(winner.values()),
        },
        {
            "search": "at the target",
            **direct.best.values,
            "flops": flops_of(direct),
            "of_direct": 1.0,
            "target_loss": statistics.fmean(tuned.values()),
        },
        *found,
    ]


# -- the page -----------------------------------------------------------------------------------
def figure_of(found: Sequence[Mapping[str, Any]]) -> Figure:
    """Per search: what its best values lose to the grid's, and to those tuned at the target."""
    searches = [row for row in found if "minus_grid" in row]
    panels = [
        ("minus_grid", 0.01, "trained anew at width 64:\nsearch \u2212 fine grid"),
        ("minus_direct", 0.02, "trained anew at width 256:\ntuned at 64 \u2212 tuned at 256"),
    ]
    with styled():
        figure = canvas(7.0, 3.1)
        both = figure.subplots(1, 2, sharey=True)
        for axes, (key, limit, title) in zip(both, panels, strict=True):
            axes.axvspan(-limit, limit, color=RULE, linewidth=0)
            axes.axvline(0, color=MUTED, linewidth=0.8)
            for y, row in enumerate(searches):
                last = row["search"] == "median"
                axes.plot(row[key]["ci95"], [y, y], color=INK if last else SIZES[4], linewidth=1.6)
                axes.plot(
                    row[key]["mean"],
                    y,
                    "D" if last else "o",
                    markersize=4.5,
                    color=INK if last else SIZES[6],
                )
            axes.set_title(title, fontsize=9, loc="left", color=INK)
            axes.set_xlabel("difference (nats per token)")
            axes.tick_params(axis="y", length=0)
            axes.locator_params(axis="x", nbins=5)
        both[0].set_yticks(range(len(searches)))
        both[0].set_yticklabels(
            [
                row["search"] if row["search"] == "median" else f"search {row['search']}"
                for row in searches
            ]
        )
        both[0].invert_yaxis()
        figure.tight_layout(w_pad=3)
    return figure


def page(found: Sequence[Mapping[str, Any]]) -> str:
    """`hpo.md`."""
    lines = [
        "# A search against a fine grid, and a proxy against the target",
        "",
        "Remake: `python docs/results/hpo/measure.py`. 2 layers of LLaMA parts, muP, AdamW, "
        f"WSD, {UPDATES} updates of 512 tokens of Shakespeare; {len(FRESH)} fresh seeds.",
        "",
        "| | LR | decay | warmup | FLOPs, of the grid's | loss anew, width 64 | less the "
        "grid's | FLOPs, of a search's at 256 | loss anew, width 256 | less the one tuned "
        "there |",
        "|---|" + "---|" * 9,
    ]
    for row in found:
        cells = [
            _number(row.get("learning_rate"), ".3g"),
            _number(row.get("weight_decay"), ".3g"),
            _number(row.get("warmup_iters"), "d"),
            _number(row.get("of_grid"), ".3f"),
            _number(row.get("proxy_loss"), ".4f"),
            _difference(row.get("minus_grid")),
            _number(row.get("of_direct"), ".3f"),
            _number(row.get("target_loss"), ".4f"),
            _difference(row.get("minus_direct")),
        ]
        lines.append(f"| {row['search']} | " + " | ".join(cells) + " |")
    return "\n".join(
        [
            *lines,
            "",
            "Differences are of runs with equal seeds, in nats, with "
            "Student's 95 % interval over seeds; the last row is the median over "
            "searches, taken seed by seed. Bands in the figure: 0.01 and 0.02 nats.",
            "",
        ]
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _difference(found: Mapping[str, Any] | None) -> str:
    return (
        ""
        if found is None
        else (f"{found['mean']:+.4f} [{found['ci95'][0]:+.4f}, {found['ci95'][1]:+.4f}]")
    )


def main() -> None:
    found = rows()
    write_json(HERE / "hpo.json", {"rows": found})
    write_text(HERE / "hpo.md", page(found))
    save(figure_of(found), HERE / "hpo.png")
    print(page(found))


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
