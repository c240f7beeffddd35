"""The main job from a file to its page, trained for real; the same again trains nothing.

The sample of it that `make test` holds is the small ladder of `tests/studies/test_study.py`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import ROOT

LAW = re.compile(r"L\(C\) = ([\d.]+) \[([\d.]+), ([\d.]+)\] \+ ([\d.]+) / C\^([\d.]+)")


def study(text: str, folder: Path) -> str:
    """What `nanoscale study` says of a study file at the end, however long it takes."""
    (folder / "quick.toml").write_text(text)
    command = [sys.executable, "-m", "nanoscale", "study", "quick.toml"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def check(text: str, folder: Path) -> None:
    said = study(text, folder)
    out = folder / "experiments_out" / "quick"
    record = json.loads((out / "fits" / "power.json").read_text())
    assert record["status"] == "converged"
    assert (out / "report.html").stat().st_size > 50_000
    floor, low, high, _, exponent = map(float, LAW.search(said).groups())
    assert low <= floor <= high
    assert 0 < exponent < 1

    rows = {p: p.read_bytes() for p in (folder / "experiments_out" / "runs").rglob("*.jsonl")}
    again = study(text, folder)
    assert LAW.search(again)[0] == LAW.search(said)[0]
    assert "0 new" in again or "cached" in again
    assert all(path.read_bytes() == content for path, content in rows.items())


@pytest.mark.soak
def test_the_quick_study_at_full_size(tmp_path):
    check((ROOT / "studies" / "quick.toml").read_text(), tmp_path)
