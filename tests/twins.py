"""Twins: two folders of one run, whose rows, results and weights are equal to the last bit."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from nanoscale.store.folder import TIMING_COLUMNS, RunFolder
from nanoscale.training import checkpoint
from nanoscale.training import loop as training
from nanoscale.training.state import Run

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


def ask_to_stop_in_update(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have SIGTERM come while that update, counted from 1, is made."""
    real = training.update

    def update(run: Run, *rest: Any) -> training.UpdateDone:
        if run.step == number - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(run, *rest)

    monkeypatch.setattr(training, "update", update)
