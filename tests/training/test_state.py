"""What a run takes from its checkpoint, its evaluations and its micro-batches, one fact a test."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import RUN, spec_maker, tiny_config

from nanoscale.model.distributed import Ranks
from nanoscale.model.masks import sample_keys
from nanoscale.store.resume import open_folder
from nanoscale.training import evaluation, numerics
from nanoscale.training.loop import UpdateDone, micro_batches, record, update
from nanoscale.training.numerics import decide
from nanoscale.training.recorder import Recorder
from nanoscale.training.state import (
    Checkpoint,
    Run,
    build,
    compiled,
    dataset_of,
    restore,
    save,
)


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
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert numerics.best_dtype(torch.device("cpu"), "torch") == "float32"
    assert numerics.best_dtype(torch.device("cpu"), "fused") == "bfloat16"


@pytest.mark.parametrize(
    ("capabilities", "values", "expected"),
    [
        ({"amx_bf16": True, "avx512_f": True}, {}, "fused"),
        ({"amx_bf16": True, "avx512_f": True}, {"dtype": "float32"}, "step"),
        ({"avx512_bf16": False, "avx512_f": True}, {}, "step"),
        ({"avx2": True}, {"dtype": "bfloat16"}, "fused"),
        ({"avx2": True}, {"threads": 5, "batch_size": 4}, "fused"),  # one would have no sequence
        ({"avx2": True}, {"threads": 64, "batch_size": 64, "vocab_size": 2**22}, "fused"),
        ({"neon": True}, {}, "fused"),  # a CPU that nobody has measured
    ],
)
def test_a_cpu_has_a_row_of_choices_and_an_unknown_one_the_safe_row(
    monkeypatch, capabilities, values, expected
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert numerics.best_kernels(tiny_config(**values)) == expected


def test_the_loss_of_an_update_is_that_of_the_whole_batch(run):
    X, Y = run.to_device(*run.samples.batch(0, 2))
    with torch.no_grad():
        expected = run.model(X, Y)[1]
    torch.testing.assert_close(update(run).loss, expected)


def test_micro_batches_of_unequal_size_weigh_by_their_sequences(data_root):
    spec = spec_maker(RUN, data_root)(kernels="torch", batch_size=3, micro_batch_size=2)
    run = build(spec, dataset_of(spec), Ranks())
    X, Y = run.to_device(*run.samples.batch(0, 3))
    with torch.no_grad():
        expected = run.model(X, Y)[1]
    seen: list[torch.Tensor] = []
    model = run.model.forward
    run.model.forward = lambda X, *a, **k: seen.append(X) or model(X, *a, **k)
    done = update(run, with_statistics=True)
    torch.testing.assert_close(done.loss, expected)
    assert [len(x) for x in seen[:2]] == [2, 1]
    assert all(torch.equal(x, X[:2]) for x in seen[2:])  # statistics are of the first piece
    assert len(seen) > 2


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_takes_its_share_of_a_batch_and_of_its_masks(data_root, rank):
    spec = spec_maker(RUN, data_root)(
        kernels="torch", batch_size=4, micro_batch_size=1, dropout=0.2, seed=3, data_seed=4
    )
    run = build(spec, dataset_of(spec), Ranks())
    run.ranks, run.step = Ranks(rank, 2), 5
    pieces = list(micro_batches(run))
    X, _ = run.to_device(*run.samples.batch(20 + 2 * rank, 2))
    assert torch.equal(torch.cat([piece.X for piece in pieces]), X)
    masks = torch.cat([piece.masks for piece in pieces])
    assert torch.equal(masks, sample_keys(3, 5, 0, 4)[2 * rank :][:2])
    assert [piece.last for piece in pieces] == [False, True]


def test_the_loss_of_a_batch_is_the_mean_over_ranks(run, monkeypatch):
    run.ranks = Ranks(0, 2)
    monkeypatch.setattr(Ranks, "sum", lambda self, x: 2 * x)  # of two that are alike
    done = UpdateDone(torch.tensor(3.0), torch.tensor(1.0), 0.1, None)
    assert record(run, done).batch_loss == 3.0


def test_dropout_rests_in_an_evaluation_and_acts_after_it(run, monkeypatch):
    acting = []
    real = evaluation.losses_at
    monkeypatch.setattr(
        evaluation, "losses_at", lambda r, *a: acting.append(r.model.training) or real(r, *a)
    )
    evaluation.evaluate(run)
    assert set(acting) == {False}
    assert run.model.training


def test_an_evaluation_takes_as_many_windows_of_each_split(run, monkeypatch):
    limits = []
    monkeypatch.setattr(
        evaluation, "window_losses", lambda r, s, n: limits.append(n) or np.ones(min(n, 3))
    )
    evaluation.evaluate(run)
    assert limits == [4, 3]  # the validation split has three


@pytest.mark.parametrize(("tokens", "windows"), [(1, 1), (8, 1), (15, 1), (16, 2)])
def test_the_final_evaluation_takes_whole_windows_and_at_least_one(data_root, tokens, windows):
    spec = spec_maker(RUN, data_root)(final_eval_tokens=tokens)
    assert len(evaluation.final_losses(build(spec, dataset_of(spec), Ranks()))) == windows


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
    assert evaluation.bits_per_byte(run, "val", math.log(2)) == pytest.approx(0.25)


@pytest.mark.parametrize(("step", "kept"), [(0, False), (1, True)])
def test_the_first_weights_are_never_the_best(run, tmp_path, step, kept):
    folder = open_folder(tmp_path / "run", run.spec, resume=False)
    run.step = step
    recorder = Recorder(run, folder, None)
    recorder.evaluate()
    recorder.close()
    assert (folder / "best.pt").exists() == kept


@pytest.mark.parametrize(
    ("micro", "world", "graphs"), [(None, 1, True), (1, 1, False), (1, 2, True)]
)
def test_launches_are_replayed_where_a_rank_has_one_micro_batch(
    run, monkeypatch, micro, world, graphs
):
    """A second one's gradients would be added to memory that the replay has overwritten."""
    modes = []
    monkeypatch.setattr(torch, "compile", lambda model, mode: modes.append(mode) or model)
    run.model.config = replace(run.config, cuda_graphs=True, micro_batch_size=micro)
    how = replace(run.numerics, device="cuda", compile=True)
    compiled(run.model, how, Ranks(world=world))
    assert modes == ["reduce-overhead" if graphs else None]
