"""What the experiment engine costs: bookkeeping per run, and a grid beside the same runs by hand.

    nanoscale prepare shakespeare_char
    python docs/results/engine/measure.py

Writes `engine.json` and `engine.md` here. Leave the machine to it: it takes about seven minutes.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from nanoscale.__main__ import main as nanoscale
from nanoscale.errors import exit_code_of
from nanoscale.experiments import ExperimentRunner
from nanoscale.experiments.local import Local
from nanoscale.experiments.machine import Slot
from nanoscale.experiments.worker import Exit
from nanoscale.processes import allowed_cpus
from nanoscale.store.files import write_json, write_text
from nanoscale.store.folder import COMPLETE, METRICS, RunFolder

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
MANY = (1000, 10000)
CELL = {
    "dataset": "shakespeare_char",
    "n_layer": 4,
    "n_embd": 64,
    "n_head": 4,
    "block_size": 64,
    "batch_size": 12,
    "gradient_accumulation_steps": 1,
    "dropout": 0.0,
    "max_iters": 300,
    "eval_interval": 150,
    "eval_iters": 20,
    "device": "cpu",
    "compile": False,
}
LRS, SEEDS, ROUNDS = (5e-4, 1e-3, 2e-3, 4e-3), (1, 2, 3), 6


# -- bookkeeping --------------------------------------------------------------------------------
class NoOp(Local):
    """Runs that end as they begin, leaving a result; `seconds` is what that took."""

    def __init__(self) -> None:
        self.ended: list[Exit] = []
        self.seconds = 0.0

    def start(self, folder: Path, slot: Slot) -> None:
        began = time.perf_counter()
        run = RunFolder(folder)
        write_json(run / METRICS, {"schema": 1, "status": COMPLETE, "val_loss": 1.0})
        run.set_status(state=COMPLETE)
        self.ended.append(Exit(folder, 0))
        self.seconds += time.perf_counter() - began

    def poll(self, timeout: float) -> list[Exit]:
        ended, self.ended = self.ended, []
        return ended

    def stop(self, kill: bool = False, folders: Sequence[Path] | None = None) -> None: ...

    def close(self) -> None: ...


def timed(command: str, *arguments: str) -> float:
    """Seconds of a command in this process, its output aside."""
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        nanoscale([command, *arguments])
    return time.perf_counter() - began


@contextmanager
def empty_folder() -> Iterator[Path]:
    """A folder to work in, gone afterwards."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        try:
            yield Path(name)
        finally:
            os.chdir(before)


def bookkeeping(runs: int) -> dict[str, float]:
    """A grid of runs that do nothing: the engine's own time, then the commands that read it."""
    with empty_folder():
        tiny = CELL | {"data_root": str(ROOT / "data"), "n_layer": 1, "n_embd": 16}
        backend, began, memory = NoOp(), time.perf_counter(), peak()
        with contextlib.redirect_stdout(io.StringIO()):
            ExperimentRunner(backend=backend).run_grid("many", tiny, {"seed": range(runs)})
        took, grown = time.perf_counter() - began, peak() - memory
        return {
            "runs": runs,
            "ms_per_run": 1000 * (took - backend.seconds) / runs,
            "grown_mib": grown,
            "status_seconds": timed("status"),
            "status_study_seconds": timed("status", "many"),
            "table_seconds": timed("table", "many"),
        }


def peak() -> float:
    """MiB this process has taken at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# -- a grid ---------------------------------------------------------------------------------------
def grid() -> dict[str, Any]:
    """Twelve runs as a grid, again, with half of them new; and one after another by train.py.

    The machine's speed drifts, so a round is a grid and a third of the runs by hand, and the ratio
    is the median of the rounds'.
    """
    lists, rounds, took = {"learning_rate": LRS, "seed": SEEDS}, [], {}
    for i in range(ROUNDS):
        with tempfile.TemporaryDirectory() as root:
            whole = study(root, "grid", lists)
            if not took:
                half = lists | {"learning_rate": (2e-3, 4e-3, 8e-3, 16e-3)}
                took = {"again": study(root, "grid", lists), "half_new": study(root, "half", half)}
            by_hand = [run_by_hand(root, lr, SEEDS[i % len(SEEDS)]) for lr in LRS]
            rounds.append({"grid": whole, "by_hand": len(SEEDS) * sum(by_hand)})
            print(rounds[-1], flush=True)
    return (
        took
        | {key: median(one[key] for one in rounds) for key in ("grid", "by_hand")}
        | {"ratios": sorted(one["grid"] / one["by_hand"] for one in rounds)}
    )


def compiled() -> dict[str, float]:
    """Six compiled runs of one shape, from workers that stay and from a process each.

    Torch's own cache on disk knows the shape before either.
    """
    lists = {"learning_rate": LRS[:3], "seed": SEEDS[:2]}
    cell = CELL | {"compile": True, "max_iters": 50, "eval_interval": 0}
    with tempfile.TemporaryDirectory() as root:
        study(root, "first", {"learning_rate": [1e-4]}, cell)
        return {
            backend: study(root + backend, "grid", lists, cell, backend=backend)
            for backend in ("local", "subprocess")
        }


def study(
    root: str, name: str, lists: dict[str, Any], cell: dict[str, Any] = CELL, **how: Any
) -> float:
    """Seconds of a grid in a Python of its own, start-up included."""
    code = (
        f"from nanoscale.experiments import ExperimentRunner as R; "
        f"R(output_root={root!r}, **{how!r}).run_grid({name!r}, {cell!r}, {lists!r})"
    )
    return seconds([sys.executable, "-c", code])


def run_by_hand(root: str, lr: float, seed: int) -> float:
    """Seconds of one run from the shell, on every core."""
    threads = len(allowed_cpus())
    values = CELL | {
        "learning_rate": lr,
        "seed": seed,
        "threads": threads,
        "out_dir": f"{root}/{lr}-{seed}",
    }
    return seconds([sys.executable, "train.py", *(f"--{k}={v}" for k, v in values.items())])


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1]}")
    return time.perf_counter() - began


# -- the page -------------------------------------------------------------------------------------
def page(found: dict[str, Any]) -> str:
    """`engine.md`."""
    g = found["grid"]
    lines = [
        "# What the engine costs",
        "",
        f"2 cores, {found['date']}. Remake: `python docs/results/engine/measure.py`.",
        "",
        "| runs that do nothing | bookkeeping a run | memory grown | `status` | "
        "`status STUDY` | `table STUDY` |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['runs']:,} | {r['ms_per_run']:.2f} ms | {r['grown_mib']:.0f} MiB | "
        f"{r['status_seconds']:.2f} s | {r['status_study_seconds']:.2f} s | "
        f"{r['table_seconds']:.2f} s |"
        for r in found["bookkeeping"]
    ]
    lines += [
        "",
        "| 12 runs: width 64, 4 layers, 300 updates | seconds, start-up included |",
        "|---|---|",
        f"| a grid | {g['grid']:.1f} |",
        f"| the same grid again | {g['again']:.2f} |",
        f"| a second grid, half of it shared | {g['half_new']:.1f} |",
        f"| `python train.py` twelve times, on both cores | {g['by_hand']:.1f} |",
        "",
        f"Grid / by hand, median of {ROUNDS} rounds: **{median(g['ratios']):.3f}** "
        f"({g['ratios'][0]:.3f} to {g['ratios'][-1]:.3f}).",
        "",
        "| 6 compiled runs of one shape, 50 updates each | seconds |",
        "|---|---|",
        f"| workers that stay | {found['compiled']['local']:.1f} |",
        f"| a process each | {found['compiled']['subprocess']:.1f} |",
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    found = {"date": time.strftime("%Y-%m-%d"), "bookkeeping": [bookkeeping(n) for n in MANY]}
    print(json.dumps(found), flush=True)
    found["grid"], found["compiled"] = grid(), compiled()
    write_json(HERE / "engine.json", found)
    write_text(HERE / "engine.md", page(found))
    print(page(found))


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
