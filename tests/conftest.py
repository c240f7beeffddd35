"""What the tests share: a tiny data set, tiny resolved configs, commands run as users do."""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanoscale.config import ExperimentConfig
from nanoscale.counting import resolve
from nanoscale.records import RunSpec
from nanoscale.sources import Source, build

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "nanoscale"

TEXT = "the cat sat on the mat, the dog sat on the log.\n"
VOCAB = 11  # of tiny configs; the tiny data set has its own

TINY = {
    "n_layer": 2, "n_head": 4, "n_embd": 16, "block_size": 8, "vocab_size": VOCAB,
    "batch_size": 2, "gradient_accumulation_steps": 1, "max_iters": 10, "warmup_iters": 0,
    "min_lr_frac": 0.1, "eval_interval": 5, "eval_iters": 2, "device": "cpu", "compile": False,
}

# Every flag that changes which tensors a model has, as (off, on).
MODEL_FLAGS = {
    "bias": (False, True), "use_rmsnorm": (False, True), "use_rope": (False, True),
    "use_swiglu": (False, True), "n_kv_head": (None, 2), "use_qk_norm": (False, True),
    "tie_embeddings": (True, False),
}


def flag_combinations() -> list[dict[str, Any]]:
    """All 128 combinations of the model's flags; a tiny config has 4 heads."""
    return [dict(zip(MODEL_FLAGS, values, strict=True))
            for values in itertools.product(*MODEL_FLAGS.values())]


def tiny_config(**overrides: Any) -> ExperimentConfig:
    """A resolved config of a model of a few thousand parameters; `mode` and the like are nested."""
    nested = {"mode", "base_n_embd", "base_n_layer", "base_head_dim", "alpha", "input_mult",
              "output_mult"}
    named = {f"parametrization.{k}" if k in nested else k: v for k, v in overrides.items()}
    config = build([Source("tiny", TINY), Source("test", named)])
    return resolve(config, config.vocab_size or VOCAB)


def tiny_spec(data: str = "d" * 64, **overrides: Any) -> RunSpec:
    """The spec of a tiny config on a data set that is only a fingerprint."""
    return RunSpec(tiny_config(**overrides), {}, "tiny", data)


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


def run_python(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS`, with the package importable from anywhere and one thread."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=cwd,
                          env=environment, timeout=120)


def run_nanoscale(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`python -m nanoscale ARGUMENTS`."""
    return run_python("-m", "nanoscale", *arguments, cwd=cwd)
