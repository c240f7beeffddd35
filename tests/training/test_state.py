"""What a run takes from its checkpoint, its evaluations and its micro-batches, one fact a test."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tiny import RUN, spec_maker

from nanoscale.model.distributed import Ranks
from nanoscale.store.resume import open_folder
from nanoscale.training import evaluation, numerics
from nanoscale.training.loop import update
from nanoscale.training.numerics import decide
from nanoscale.training.recorder import Recorder
from nanoscale.training.state import Checkpoint, Run, build, dataset_of, restore, save


@pytest.fixture
def run(data_root) -> Run:
    spec = spec_maker(RUN, data_root)(kernels="torch", micro_batch_size=1)
    return build(spec, dataset_of(spec), Ranks())


def test_a_checkpoint_gives_back_the_best_loss_and_the_scale(run, tmp_path):
    folder = open_folder(tmp_path / "run", run.spec, resume=False)
    run.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    run.scaler.scale(torch.ones(()))  # its scale is made at first use
    run.best_val_loss = 1.25
    save(run, folder)
    saved = Checkpoint.load(folder / "ckpt.pt")
    run.best_val_loss = math.inf
    run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    restore(run, saved)
    assert run.best_val_loss == 1.25
    assert run.scaler.get_scale() == 1024.0


def test_threads_and_precision_are_those_that_the_run_began_with(run):
    config = replace(run.config, threads=None)
    began = replace(run.numerics, threads=7, matmul_precision="medium")
    how = decide(config, torch.device("cpu"), began)
    assert (how.threads, how.matmul_precision) == (7, "medium")


def test_torchs_operations_on_a_cpu_are_in_float32(monkeypatch):
    monkeypatch.setattr(numerics.hardware, "multiplies_bfloat16", lambda device: True)
    assert numerics.best_dtype(torch.device("cpu"), "torch") == "float32"
    assert numerics.best_dtype(torch.device("cpu"), "fused") == "bfloat16"


def test_the_loss_of_an_update_is_that_of_the_whole_batch(run):
    X, Y = run.to_device(*run.samples.batch(0, 2))
    with torch.no_grad():
        expected = run.model(X, Y)[1]
    torch.testing.assert_close(update(run).loss, expected)


def test_an_evaluation_takes_eval_iters_batches_of_windows(run, monkeypatch):
    limits = []
    real = evaluation.window_losses
    monkeypatch.setattr(
        evaluation, "window_losses", lambda r, s, n: limits.append(n) or real(r, s, n)
    )
    evaluation.evaluate(run)
    assert limits[0] == 4  # 2 batches of 2


def test_bits_per_byte_are_of_the_validation_split(run, monkeypatch):
    sizes = {"train": 1.0, "val": 4.0}
    monkeypatch.setattr(type(run.dataset), "bytes_per_token", lambda self, split: sizes[split])
    assert evaluation.bits_per_byte(run, math.log(2)) == pytest.approx(0.25)


@pytest.mark.parametrize(("step", "kept"), [(0, False), (1, True)])
def test_the_first_weights_are_never_the_best(run, tmp_path, step, kept):
    folder = open_folder(tmp_path / "run", run.spec, resume=False)
    run.step = step
    recorder = Recorder(run, folder, None)
    recorder.evaluate()
    recorder.close()
    assert (folder / "best.pt").exists() == kept
