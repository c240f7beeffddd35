"""Small forecast studies: their text, the folder in which one has run, copies to work in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nanoscale.__main__ import main
from nanoscale.data.prepare import prepare
from nanoscale.errors import DONE


def forecast_study(base: str, forecast: str) -> str:
    """A study file named f: keys of [base] beside the usual ones, and its [forecast]."""
    return f"""
[study]
name = "f"
recipe = "forecast"
[base]
dataset = "synthetic"
n_layer = 1
n_head = 1
block_size = 16
batch_size = 8
gradient_accumulation_steps = 1
eval_interval = 0
final_eval_tokens = 2000
{base}
[forecast]
{forecast}
"""


def begin_in(folder: Path, patch: pytest.MonkeyPatch, text: str) -> None:
    """Work in the folder, in which the study's file and its data are."""
    patch.chdir(folder)
    prepare("synthetic")
    Path("f.toml").write_text(text)


def run_in(folder: Path, text: str, *how: str) -> Path:
    """The folder, once the study has run in it."""
    with pytest.MonkeyPatch.context() as patch:
        begin_in(folder, patch, text)
        assert main(["study", "f.toml", *how]) == DONE
    return folder


def copy_of(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The study in a copy of that folder, which is the working folder from now on."""
    shutil.copytree(done, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return Path("experiments_out/f")


def seal_of(study: Path) -> Path:
    """Its one seal."""
    (path,) = (path for path in (study / "predictions").iterdir() if path.name != "score.json")
    return path
