"""Every test of many runs works in an empty folder with a toy dataset."""

from __future__ import annotations

from pathlib import Path

import fake_worker
import pytest
from grids import TESTS


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test works in an empty folder with a toy dataset."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    fake_worker.make_dataset(tmp_path)
