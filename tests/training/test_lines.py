"""What a run says of itself before its first step, and where its rows are repeated."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from tiny import tiny_config, tiny_spec

from nanoscale.errors import UserError
from nanoscale.spec.config import ExperimentConfig
from nanoscale.spec.resolve import resolve
from nanoscale.store.folder import RunFolder
from nanoscale.training import lines
from nanoscale.training.telemetry import RowWriter


def test_days_on_a_cpu_are_warned_of_with_the_config_to_use():
    """nanoGPT's defaults: 85M parameters, 491,520 tokens an update, 600,000 updates."""
    config = resolve(ExperimentConfig(), 65)
    flops = 491_520 * 6 * (85e6 + 12 * 1024 * 768)  # of products, and of attention to 1024 tokens
    days = 600_000 * flops / 1e12 / 86400
    (line,) = lines.too_long(config, 0, 1e12)
    assert line.startswith("warning: 600,000 updates of 491,520 tokens, ")
    assert "train shakespeare_char_cpu_fast`" in line
    said = float(line.split("at least ")[1].split(" days")[0].replace(",", ""))
    assert said == pytest.approx(days, rel=0.1)


def test_what_ends_within_a_day_is_not_warned_of():
    config = resolve(ExperimentConfig(), 65)
    assert not list(lines.too_long(config, 599_999, 1e12))
    assert not list(lines.too_long(tiny_config(), 0, 1e9))


def test_a_run_on_a_slow_cpu_begins_with_the_warning(monkeypatch, data_root):
    run = SimpleNamespace(
        spec=SimpleNamespace(weights=None),
        config=resolve(ExperimentConfig(), 65),
        dataset=SimpleNamespace(vocab_size=65, folder="data"),
        device=SimpleNamespace(type="cpu"),
        meter=SimpleNamespace(peak=1e12),
        step=0,
        history=(),
    )
    monkeypatch.setattr(lines, "how", lambda run: "how")
    assert sum("at least" in line for line in lines.introduction(run)) == 1
    run.device.type = "cuda"
    assert not any("at least" in line for line in lines.introduction(run))


def test_wandb_without_a_login_is_one_line(tmp_path, monkeypatch):
    class Error(Exception):
        """As W&B's own."""

    def init(**settings):
        raise Error("api_key not configured (no-tty)")

    fake = SimpleNamespace(init=init, Error=Error, Settings=dict)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(UserError, match=r"wandb_log=True: .*no-tty.*`wandb login`.*WANDB_MODE"):
        RowWriter(RunFolder(tmp_path), tiny_spec(wandb_log=True), pytest.fail)
