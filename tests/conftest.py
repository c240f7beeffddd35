"""Fixtures that the tests share; what they build with stands in `tiny.py`."""

from __future__ import annotations

import csv
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import ROOT, TEXT


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny products are fastest on one thread, and several test sessions may share the machine."""
    if "torch" in sys.modules:  # a session of torch-free tests never pays for the import
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one char-level data set, `tiny`, in nanoGPT's format."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "tiny"
    folder.mkdir()
    text, symbols = TEXT * 40, sorted(set(TEXT))
    ids = {c: i for i, c in enumerate(symbols)}
    cut = len(text) * 9 // 10
    for split, part in (("train", text[:cut]), ("val", text[cut:])):
        np.array([ids[c] for c in part], dtype="<u2").tofile(folder / f"{split}.bin")
    meta = {"vocab_size": len(symbols), "itos": dict(enumerate(symbols)), "stoi": ids}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    return root


@pytest.fixture(scope="session")
def epoch_table() -> Path:
    """Their table; a test without it is skipped."""
    path = ROOT.parent / "shared" / "data" / "chinchilla_svg_extracted.csv"
    if not path.is_file():
        pytest.skip("the extracted points are not here")
    return path


@pytest.fixture(scope="session")
def epoch(epoch_table: Path) -> tuple[np.ndarray, ...]:
    """N, C and L of the 245 points."""
    with epoch_table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return tuple(
        np.array([float(row[key]) for row in rows])
        for key in ("Model Size", "Training FLOP", "loss")
    )


@pytest.fixture
def desk(tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a private copy of the tiny data set."""
    shutil.copytree(data_root, tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path
