"""Real training under SIGKILLs, of workers and of the runner: the undisturbed grid's bits."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import fake_worker
import psutil
import pytest
from tiny import ROOT

from nanoscale.store.folder import TIMING_COLUMNS, RunFolder

GRID = """
import sys
sys.path.insert(0, {root!r})
from nanoscale.experiments import ExperimentRunner

base = {{"dataset": "toy", "n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16,
        "batch_size": 4, "gradient_accumulation_steps": 1, "max_iters": 300,
        "dropout": 0.1, "eval_interval": 40, "eval_iters": 2, "final_eval_tokens": 1024,
        "log_interval": 10, "checkpoint_seconds": 0.1, "warmup_iters": 5, "dtype": "float32"}}
grid = {{"optimizer": ["adamw", "muon"], "seed": list(range({seeds}))}}
study = ExperimentRunner(output_root=sys.argv[1], workers=2).run_grid("k", base, grid)
sys.exit(0 if study.ok else 1)
"""
GENEROUS = 1800  # seconds, for a machine that has other things to do


def start(root: str) -> subprocess.Popen[bytes]:
    silent = subprocess.DEVNULL
    return subprocess.Popen([sys.executable, "grid.py", root], stdout=silent, stderr=silent)


def kill_at_random(root: str, most: int, dice: random.Random) -> int:
    """Run the grid, killing workers and runners, until it is done; how many were killed."""
    process, kills = start(root), 0
    while process.poll() is None and kills < most:
        time.sleep(dice.uniform(0.2, 0.9))
        if process.poll() is not None:
            break
        runner = psutil.Process(process.pid)
        workers = [p for p in runner.children(recursive=True) if p.ppid() != runner.pid]
        victim = runner if dice.random() < 0.4 or not workers else dice.choice(workers)
        victim.kill()
        kills += 1
        if victim is runner:
            process.wait()
            process = start(root)
    process.wait(GENEROUS)
    return kills


def pure(folder: RunFolder) -> list[dict[str, object]]:
    """The rows without what may differ between twins."""
    return [{k: v for k, v in row.items() if k not in TIMING_COLUMNS} for row in folder.rows()]


@pytest.mark.parametrize(
    ("seeds", "most", "least"),
    [
        pytest.param(1, 2, 1, marks=pytest.mark.slow),
        pytest.param(12, 50, 20, marks=pytest.mark.soak),
    ],
)
def test_a_grid_under_sigkills_ends_with_the_undisturbed_grids_bits(
    seeds, most, least, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    fake_worker.make_dataset(tmp_path)
    (tmp_path / "grid.py").write_text(GRID.format(root=str(ROOT), seeds=seeds))
    assert start("undisturbed").wait(GENEROUS) == 0

    kills = kill_at_random("killed", most, random.Random(0))
    assert start("killed").wait(GENEROUS) == 0
    assert kills >= least

    for twin in sorted(Path("undisturbed/runs").iterdir()):
        folder = RunFolder(Path("killed/runs") / twin.name)
        assert pure(folder) == pure(RunFolder(twin))
        assert (folder / "windows.npy").read_bytes() == (twin / "windows.npy").read_bytes()
        left = [p.name for p in folder.path.iterdir() if p.name.startswith((".", "lease"))]
        assert not left
