"""The main job from a file to its page, trained for real; the same again trains nothing.

The sample of it that `make test` holds is the small ladder of `tests/studies/test_study.py`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny import ROOT

LAW = re.compile(r"L\(C\) = .*")


def study(text: str, folder: Path) -> str:
    """What `nanoscale study` says of a study file at the end, however long it takes."""
    (folder / "quick.toml").write_text(text)
    command = [sys.executable, "-m", "nanoscale", "study", "quick.toml"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def check_law(record: Mapping[str, Any], said: str) -> None:
    """What the runs pin down is said with its interval, and of the rest that they do not.

    Which it is depends on the noise between seeds, and so on how the machine rounds.
    """
    unknown = record["not_identified"]
    assert record["status"] == ("not_identified" if unknown else "converged")
    for name, value in record["params"].items():
        low, high = record["ci95"][name]
        assert low <= value <= high
        assert (f"{name}: not identified (" in said) == (name in unknown)
    assert 0 < record["params"]["g"] < 1
    assert record["noise"]["used"] < 0.02


def check(text: str, folder: Path) -> None:
    said = study(text, folder)
    out = folder / "experiments_out" / "quick"
    check_law(json.loads((out / "fits" / "power.json").read_text()), said)
    assert (out / "report.html").stat().st_size > 50_000

    rows = {p: p.read_bytes() for p in (folder / "experiments_out" / "runs").rglob("*.jsonl")}
    again = study(text, folder)
    assert LAW.search(again)[0] == LAW.search(said)[0]
    assert "0 new" in again or "cached" in again
    assert all(path.read_bytes() == content for path, content in rows.items())


@pytest.mark.soak
def test_the_quick_study_at_full_size(tmp_path):
    check((ROOT / "studies" / "quick.toml").read_text(), tmp_path)
