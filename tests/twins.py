"""Twins: two folders of one run, whose rows, results and weights are equal to the last bit."""

from __future__ import annotations

from typing import Any

from nanoscale.store.folder import TIMING_COLUMNS, RunFolder
from nanoscale.training import checkpoint

RESULTS = ("val_loss", "best_val_loss", "train_loss", "val_bits_per_byte", "iter_num")


def pure(folder: RunFolder) -> list[dict[str, Any]]:
    """The rows without what may differ between twins."""
    return [{k: v for k, v in row.items() if k not in TIMING_COLUMNS} for row in folder.rows()]


def state_of(folder: RunFolder, name: str = "ckpt.pt") -> str:
    content = checkpoint.load(folder / name)
    return checkpoint.digest({k: content.get(k, {}) for k in ("model", "optimizer")})


def assert_twins(a: RunFolder, b: RunFolder) -> None:
    assert pure(a) == pure(b)
    assert state_of(a) == state_of(b)
    assert (a / "windows.npy").read_bytes() == (b / "windows.npy").read_bytes()
    for key in RESULTS:
        assert a.metrics()[key] == b.metrics()[key]
