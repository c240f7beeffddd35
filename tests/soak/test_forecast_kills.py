"""The main job under kills: it ends with the same law, forecast and bits, under one seal."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forecasts import forecast_study
from tiny import ROOT

from nanoscale.data.prepare import prepare

KILLS = 20
TIMES = (0.5, 8.0)  # seconds after the start: its stages, and in between
STUDY = forecast_study(
    """tokens_per_param = 20
learning_rate = 1.6e-2
lr_schedule = "wsd"
checkpoint_seconds = 0.2""",
    """sizes = [{ n_embd = 6, seeds = [1, 2], branches = [10, 40] }, { n_embd = 8 },
         { n_embd = 10 }, { n_embd = 12 }, { n_embd = 14 }, { n_embd = 16 }, { n_embd = 20 }]
held_out = { n_embd = 32 }
[forecast.noise]
seeds = [1, 2, 3]
[forecast.tune]
lrs = [8e-3, 1.6e-2, 3.2e-2, 6.4e-2]
middle = false""",
)


def started(folder: Path) -> subprocess.Popen[bytes]:
    """The study, as a user starts it."""
    command = [sys.executable, "-m", "nanoscale", "study", "f.toml"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def seals(folder: Path) -> list[Path]:
    predictions = folder / "experiments_out" / "f" / "predictions"
    return [path for path in predictions.glob("*.json") if path.name != "score.json"]


def what_it_came_to(folder: Path) -> dict[str, object]:
    """All that does not depend on the time of day."""
    (seal,) = seals(folder)
    record = json.loads(seal.read_text())
    for key in ("sealed", "versions"):
        del record[key]
    losses = {}
    for path in sorted((folder / "experiments_out" / "runs").iterdir()):
        losses[path.name] = json.loads((path / "metrics.json").read_text())["val_loss"]
    score = json.loads((seal.parent / "score.json").read_text())
    return {"seal": record, "losses": losses, "score": score}


def prepared(folder: Path) -> Path:
    folder.mkdir()
    prepare("synthetic", out=folder / "data" / "synthetic")
    (folder / "f.toml").write_text(STUDY)
    return folder


@pytest.mark.soak
def test_twenty_kills_leave_the_same_forecast_and_bits(tmp_path):
    calm, troubled = prepared(tmp_path / "calm"), prepared(tmp_path / "troubled")
    assert started(calm).wait() == 0
    rng = random.Random(0)
    killed = 0
    first: bytes | None = None
    for _ in range(KILLS):
        process = started(troubled)
        time.sleep(rng.uniform(*TIMES))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
        if first is None and (found := seals(troubled)):
            first = found[0].read_bytes()
    while started(troubled).wait() != 0:
        pass
    assert killed >= KILLS // 2
    assert first is None or seals(troubled)[0].read_bytes() == first
    assert what_it_came_to(troubled) == what_it_came_to(calm)
