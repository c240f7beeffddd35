"""One run: exact length, pure randomness, resume bit for bit, branches, divergence, DDP."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import ROOT, flags, run_nanoscale, run_python, spec_maker
from tiny import RUN as BASE
from twins import ask_to_stop_in_update, assert_twins, state_of

from nanoscale.commands.run import exit_code
from nanoscale.data.dataset import open_dataset
from nanoscale.data.prepare import prepare
from nanoscale.errors import UserError
from nanoscale.experiments.trials import loss_of
from nanoscale.model.distributed import Ranks
from nanoscale.spec.identity import RunSpec
from nanoscale.store.folder import RunFolder
from nanoscale.store.lease import Held
from nanoscale.store.resume import open_folder
from nanoscale.training import checkpoint, evaluation, recorder
from nanoscale.training import loop as training
from nanoscale.training.records import Evaluation
from nanoscale.training.run import fill, train_folder
from nanoscale.training.state import Checkpoint, Run, build, dataset_of, save


@pytest.fixture
def spec_of(data_root: Path) -> Callable[..., RunSpec]:
    return spec_maker(BASE, data_root)


def trained(spec: RunSpec, path: Path) -> RunFolder:
    folder = open_folder(path, spec, resume=False)
    assert train(folder) == "COMPLETE"
    return folder


def train(folder: RunFolder) -> str:
    """The state in which a folder's run ends."""
    return train_folder(folder).status


def start(spec: RunSpec) -> Run:
    return build(spec, dataset_of(spec), Ranks())


def losses(folder: RunFolder) -> list[float]:
    return [row["train_loss"] for row in folder.rows() if row["train_loss"] is not None]


# -- length, rows, results ----------------------------------------------------------------------
def test_exactly_max_iters_updates_and_a_final_evaluation(spec_of, tmp_path):
    folder = trained(spec_of(max_iters=7, eval_interval=3), tmp_path / "run")
    rows, metrics = folder.rows(), folder.metrics()
    assert [r["step"] for r in rows] == list(range(8))
    assert [r["step"] for r in rows if r["val_loss"] is not None] == [0, 3, 6, 7]
    assert checkpoint.load(folder / "ckpt.pt")["step"] == metrics["iter_num"] == 7
    assert metrics["tokens_seen"] == rows[-1]["tokens_seen"] == 7 * 2 * 8
    assert metrics["val_loss"] == pytest.approx(np.load(folder / "windows.npy").mean())
    assert metrics["best_val_loss"] == min(r["val_loss"] for r in rows if r["val_loss"])
    assert rows[3]["val_bits_per_byte"] == pytest.approx(rows[3]["val_loss"] / math.log(2))
    assert metrics["val_bits_per_byte"] == pytest.approx(metrics["val_loss"] / math.log(2))
    assert folder.state() == metrics["status"] == "COMPLETE"


def test_metrics_json_has_what_the_contract_names(spec_of, tmp_path):
    metrics = trained(spec_of(max_iters=3), tmp_path / "run").metrics()
    promised = (
        "schema status best_val_loss val_loss val_bits_per_byte train_loss iter_num "
        "tokens_seen total_params params flops flops_per_token mfu tokens_per_second "
        "wall_seconds config numerics provenance"
    ).split()
    assert set(promised) <= set(metrics)
    assert {"git_commit", "git_dirty", "packages", "device", "data"} <= set(metrics["provenance"])
    assert metrics["numerics"]["dtype"] == "float32"
    assert metrics["numerics"]["threads"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("kernels", ["torch", "auto"])
def test_golden_run(spec_of, tmp_path, kernels, dropout):
    """Twenty updates whose losses may only change with a new NUMERICS_VERSION.

    With dropout, also with a new MASKS_VERSION.
    """
    spec = spec_of(
        max_iters=20,
        kernels=kernels,
        eval_interval=0,
        use_rope=True,
        use_rmsnorm=True,
        use_swiglu=True,
        optimizer="muon",
        dropout=dropout,
    )
    folder = trained(spec, tmp_path / "run")
    found = [*losses(folder)[::5], folder.metrics()["val_loss"]]
    assert found == pytest.approx(GOLDEN[dropout], rel=1e-4)


GOLDEN = {
    0.0: [2.77253914, 2.51860595, 2.36860561, 2.34661579, 2.26103062],
    0.1: [2.77714014, 2.54895663, 2.38211107, 2.36761045, 2.28765002],
}


def test_the_losses_have_their_own_names(spec_of, tmp_path):
    """A row's train_loss is its batch's, with the z-loss; metrics.json's is an evaluation's."""
    plain, heavy = (
        trained(spec_of(max_iters=1, z_loss=z, eval_interval=1), tmp_path / f"{z}")
        for z in (0.0, 1.0)
    )
    before, after = (folder.rows() for folder in (plain, heavy))
    assert before[0] | {"wall_seconds": 0} == after[0] | {"wall_seconds": 0}  # evaluated alike
    squared = after[1]["train_loss"] - before[1]["train_loss"]
    assert squared == pytest.approx(math.log(plain.metrics()["config"]["vocab_size"]) ** 2, rel=0.1)
    assert heavy.metrics()["train_loss"] == after[1]["eval_train_loss"] != after[1]["train_loss"]


# -- purity -------------------------------------------------------------------------------------
@pytest.mark.slow
def test_evaluation_and_logging_never_disturb_training(spec_of, tmp_path):
    often = trained(spec_of(eval_interval=2, eval_iters=5, dropout=0.2), tmp_path / "often")
    never = trained(spec_of(eval_interval=0, stats_interval=3, dropout=0.2), tmp_path / "never")
    assert losses(often) == losses(never)
    sparse = trained(
        spec_of(eval_interval=2, eval_iters=5, dropout=0.2, log_interval=4), tmp_path / "sparse"
    )
    assert state_of(sparse) == state_of(often)
    assert [r["step"] for r in sparse.rows()] == [0, 1, 2, 4, 6, 8, 10]


@pytest.mark.slow
def test_micro_batches_do_not_change_the_run(spec_of, tmp_path):
    whole = trained(spec_of(batch_size=6), tmp_path / "whole")
    for size in (1, 4):  # 4: an uneven split
        cut = trained(spec_of(batch_size=6, micro_batch_size=size), tmp_path / f"cut{size}")
        assert losses(cut) == pytest.approx(losses(whole), rel=1e-5)
        assert whole.spec().id == cut.spec().id


@pytest.mark.slow
def test_accumulation_is_the_same_batch(spec_of, tmp_path):
    one = trained(spec_of(batch_size=6), tmp_path / "one")
    three = trained(spec_of(batch_size=2, gradient_accumulation_steps=3), tmp_path / "three")
    assert losses(one) == pytest.approx(losses(three), rel=1e-5)


CUTS = {  # of an update of six sequences, and ways to compute it
    "micro-batches of 2": {"micro_batch_size": 2},
    "micro-batches of 4 and 2": {"micro_batch_size": 4},
    "micro-batches of 1": {"micro_batch_size": 1},
    "accumulated": {"batch_size": 2, "gradient_accumulation_steps": 3},
    "recomputed": {"recompute": True},
    "by our kernels": {"kernels": "auto"},
    "by chunks of the loss": {"loss_chunk": 7},
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_what_is_dropped_does_not_depend_on_how_an_update_is_computed(spec_of, tmp_path, cut):
    """Nor on a resume in the middle, whose second half is computed the other way."""
    spec = spec_of(batch_size=6, dropout=0.3, kernels="torch")
    whole, other = start(spec), start(spec_of(**spec.typed | cut))
    before, after = ([training.update(run).loss.item() for _ in range(4)] for run in (whole, other))
    assert after == pytest.approx(before, rel=1e-5)
    assert before[0] != pytest.approx(training.update(start(spec_of(batch_size=6))).loss.item())

    folder = open_folder(tmp_path / "run", other.spec, resume=False)
    save(whole, folder)
    resumed = build(other.spec, whole.dataset, Ranks(), Checkpoint.load(folder / "ckpt.pt"))
    assert resumed.step == 4
    expected = training.update(whole).loss.item()
    assert training.update(resumed).loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_seeds_are_separate(spec_of, tmp_path):
    first = {
        name: losses(trained(spec_of(max_iters=2, eval_interval=0, **seeds), tmp_path / name))
        for name, seeds in {
            "base": {},
            "data": {"data_seed": 5},
            "init": {"init_seed": 5},
            "both": {"seed": 5},
        }.items()
    }
    assert len({values[0] for values in first.values()}) == 4
    twice = losses(
        trained(spec_of(max_iters=2, eval_interval=0, data_seed=5, init_seed=5), tmp_path / "twice")
    )
    assert twice == first["both"]  # dropout is off, so `seed` itself has nothing left to act on


@pytest.mark.slow
def test_final_evaluation_is_float32_and_whole(spec_of, tmp_path):
    run = start(spec_of(dtype="bfloat16", final_eval_tokens=10**6))
    exact, rough = evaluation.final_losses(run), evaluation.window_losses(run, "val", 10**6)
    tokens = run.dataset.tokens["val"]
    assert len(exact) == (len(tokens) - 1) // 8
    x = torch.from_numpy(tokens[: 8 * len(exact)].astype(np.int64)).view(-1, 8)
    y = torch.from_numpy(tokens[1 : 8 * len(exact) + 1].astype(np.int64)).view(-1, 8)
    assert exact.mean() == pytest.approx(run.model.eval()(x, y)[1].item(), rel=1e-6)
    assert exact.mean() != rough.mean()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precisions_train(spec_of, tmp_path, dtype):
    folder = trained(spec_of(max_iters=30, dtype=dtype, eval_interval=0), tmp_path / dtype)
    assert folder.metrics()["numerics"]["dtype"] == dtype
    assert losses(folder)[-1] < losses(folder)[0] - 0.3


# -- statistics ---------------------------------------------------------------------------------
def test_statistics_come_when_asked_for(spec_of, tmp_path):
    folder = trained(spec_of(stats_interval=4, log_interval=100, eval_interval=0), tmp_path / "run")
    found = {r["step"]: r["statistics"] for r in folder.rows() if "statistics" in r}
    assert list(found) == [4, 8]
    one = found[4]
    assert set(one) == {
        "grad_rms",
        "weight_rms",
        "update_rms",
        "activation_rms",
        "logit_rms",
        "activation_change_rms",
        "attention_logit_rms",
        "max_attention_logit",
        "signal_fraction",
        "tokens_per_half",
        "gradient_square",
        "noise_trace",
    }
    assert {"embedding", "hidden", "residual_out", "block_norm"} <= set(one["update_rms"])
    assert set(one["activation_rms"]) == {"embedding", "attn", "mlp", "last_block"}


def test_statistics_against_a_hand_made_update(spec_of):
    run = start(spec_of(weight_decay=0.0))
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    found = training.update(run, with_statistics=True).statistics
    hidden = [n for n in before if ".c_q." in n or ".c_k." in n or ".c_v." in n or ".c_fc." in n]
    change = torch.cat(
        [(dict(run.model.named_parameters())[n] - before[n]).flatten() for n in hidden]
    )
    assert found["update_rms"]["hidden"] == pytest.approx(
        change.square().mean().sqrt().item(), rel=1e-5
    )


# -- resume -------------------------------------------------------------------------------------
def in_child(work: Callable[[], object]) -> int:
    """Start `work` in a forked child and return its pid."""
    pid = os.fork()
    if pid == 0:
        sys.stdout = open(os.devnull, "w")
        code = 1
        try:
            code = 0 if work() == "COMPLETE" else 130
        finally:
            os._exit(code)
    return pid


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "number"),
    [
        ("adamw", signal.SIGTERM),
        pytest.param("muon", signal.SIGKILL, marks=pytest.mark.soak),
        pytest.param("adamw", signal.SIGKILL, marks=pytest.mark.soak),
        pytest.param("muon", signal.SIGTERM, marks=pytest.mark.soak),
    ],
)
def test_killed_and_resumed_equals_the_uninterrupted_twin(spec_of, tmp_path, optimizer, number):
    spec = spec_of(
        max_iters=120,
        eval_interval=10,
        stats_interval=15,
        dropout=0.1,
        optimizer=optimizer,
        data_order="epoch",
        dtype="auto",
    )
    started = time.perf_counter()
    twin = trained(spec, tmp_path / "twin")
    seconds = time.perf_counter() - started
    rng, kills, attempt = random.Random(f"{optimizer}{number}"), 0, 0
    while not kills:  # a run that was through before the first kill proves nothing
        attempt += 1
        folder = open_folder(tmp_path / f"run{attempt}", spec, resume=False)
        while folder.state() != "COMPLETE":
            pid = in_child(lambda folder=folder: train(folder))
            time.sleep(rng.uniform(0.0, 0.6 * seconds / attempt))
            os.kill(pid, number)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            assert code in ((0, -9) if number == signal.SIGKILL else (0, 130, -15))
            kills += code != 0
    assert_twins(folder, twin)


@pytest.mark.slow
def test_a_checkpoint_cut_short_by_the_kill_is_never_read(spec_of, tmp_path, monkeypatch):
    spec = spec_of()
    folder = open_folder(tmp_path / "run", spec, resume=False)

    def torn(payload: Any, file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", torn)
        with pytest.raises(KeyboardInterrupt):
            train(folder)
    assert not list(folder.path.glob("*.pt"))
    assert not list(folder.path.glob(".*.tmp"))
    assert folder.state() == "WAITING"
    assert train(folder) == "COMPLETE"
    assert_twins(folder, trained(spec, tmp_path / "twin"))


def test_time_between_checkpoints_is_bounded(spec_of, tmp_path):
    folder = open_folder(tmp_path / "run", spec_of(eval_interval=0, checkpoint_seconds=1e-9), False)
    saved = []
    original = recorder.save
    try:
        recorder.save = lambda run, *rest: (saved.append(run.step), original(run, *rest))
        train(folder)
    finally:
        recorder.save = original
    assert saved == list(range(1, 11))


@pytest.mark.slow
@pytest.mark.parametrize(("eval_interval", "log_interval"), [(5, 1), (4, 1), (4, 3), (0, 5)])
def test_a_longer_run_is_its_straight_twin(spec_of, tmp_path, eval_interval, log_interval):
    """Where its shorter run ended on the grid of evaluations, and where it did not."""
    constant = {
        "lr_schedule": "constant",
        "eval_interval": eval_interval,
        "log_interval": log_interval,
    }
    shorter = trained(spec_of(max_iters=10, **constant), tmp_path / "run")
    results = [(shorter / name).read_bytes() for name in ("metrics.json", "windows.npy")]
    longer = spec_of(max_iters=20, **constant)
    folder = open_folder(tmp_path / "run", longer, resume=True)
    assert folder.state() == "COMPLETE"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "update", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train_folder(folder, longer)
    assert results == [(folder / name).read_bytes() for name in ("metrics.json", "windows.npy")]
    assert (folder.state(), folder.metrics()) == ("WAITING", None)
    assert train_folder(folder, longer).status == "COMPLETE"
    assert folder.spec().id == folder.status().id == folder.metrics()["id"] == longer.id
    twin = trained(longer, tmp_path / "twin")
    assert_twins(folder, twin)
    assert state_of(folder, "best.pt") == state_of(twin, "best.pt")
    with pytest.raises(UserError, match="LR multiplier of update"):
        open_folder(tmp_path / "run", spec_of(max_iters=40, eval_interval=eval_interval), True)


def test_a_run_whose_last_row_was_lost_ends_all_the_same(spec_of, tmp_path):
    folder = trained(spec_of(max_iters=3), tmp_path / "run")
    loss = folder.metrics()["val_loss"]
    rows = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(rows[:-1]))
    (folder / "metrics.json").write_text("")
    assert train(folder) == "COMPLETE"
    assert (folder.metrics()["val_loss"], folder.metrics()["train_loss"]) == (loss, None)


@pytest.mark.parametrize("damage", ["cut", "weights alone"])
def test_what_cannot_be_made_longer_keeps_its_result(spec_of, tmp_path, damage):
    constant = {"lr_schedule": "constant", "eval_interval": 0}
    folder = trained(spec_of(max_iters=3, **constant), tmp_path / "run")
    if damage == "cut":
        (folder / "ckpt.pt").write_bytes((folder / "ckpt.pt").read_bytes()[:1000])
    else:
        (folder / "best.pt").replace(folder / "ckpt.pt")
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    longer = spec_of(max_iters=6, **constant)
    message = "not a readable checkpoint" if damage == "cut" else "holds weights, not the whole"
    with pytest.raises(UserError, match=message):
        train_folder(open_folder(folder.path, longer, resume=True), longer)
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before
    assert folder.state() == "COMPLETE"


def test_a_longer_run_is_computed_as_it_began(spec_of, tmp_path):
    keys = {"lr_schedule": "constant", "eval_interval": 0}
    folder = trained(spec_of(max_iters=3, threads=2, **keys), tmp_path / "run")
    longer = spec_of(max_iters=6, threads=1, **keys)
    train_folder(open_folder(folder.path, longer, resume=True), longer)
    assert folder.metrics()["numerics"]["threads"] == folder.spec().config.threads == 2
    assert folder.metrics()["iter_num"] == 6


def test_a_branch_goes_on_where_its_output_root_was_moved(spec_of, tmp_path):
    parent = trained(spec_of(checkpoint_steps=[4], max_iters=8), tmp_path / "root" / "runs" / "p")
    spec = spec_of(branch_from=f"{parent.path}@4", max_iters=8, weight_decay=0.1)
    RunFolder(tmp_path / "root" / "runs" / "b").create(spec)
    (tmp_path / "root").rename(tmp_path / "moved")
    branch = RunFolder(tmp_path / "moved" / "runs" / "b")
    assert train_folder(branch).status == "COMPLETE"
    straight = RunFolder(tmp_path / "moved" / "runs" / "p")
    assert branch.metrics()["val_loss"] == straight.metrics()["val_loss"]
    assert [row["step"] for row in branch.rows()] == [row["step"] for row in straight.rows()]


def test_a_branch_goes_on_from_a_run_whose_status_was_mended(spec_of, tmp_path):
    keys = {"lr_schedule": "constant", "max_iters": 4}
    parent = trained(spec_of(**keys), tmp_path / "p")
    (parent / "status.json").write_text("torn")
    open_folder(parent.path, parent.spec(), resume=False)
    assert parent.status().checkpoint_step == 4
    branch = spec_of(**keys | {"max_iters": 6, "branch_from": str(parent.path)})
    assert trained(branch, tmp_path / "b").metrics()["iter_num"] == 6


def test_a_branch_is_not_laid_over_its_parent(spec_of, tmp_path):
    keys = {"lr_schedule": "constant"}
    parent = trained(spec_of(max_iters=2, **keys), tmp_path / "p")
    before = {file.name: file.read_bytes() for file in parent.path.iterdir()}
    branch = spec_of(max_iters=4, branch_from=str(parent.path), **keys)
    with pytest.raises(UserError, match=r"is the run that branch_from=.* choose another out_dir"):
        open_folder(parent.path, branch, resume=False)
    assert {file.name: file.read_bytes() for file in parent.path.iterdir()} == before


@pytest.mark.parametrize("keep", ["all", "best"])
def test_a_branchs_best_is_its_own(spec_of, tmp_path, keep):
    """Its rate ruins what its parent had learned, so no evaluation of it beats the parent's."""
    parent = trained(spec_of(max_iters=10, eval_interval=2, lr_schedule="constant"), tmp_path / "p")
    saved = checkpoint.load(parent / "ckpt.pt")
    content = {key: saved[key] for key in saved.keys() - {"format", "schema", "spec"}}
    checkpoint.save(parent / "ckpt.pt", saved["spec"], **content | {"best_val_loss": 0.01})
    spec = spec_of(
        max_iters=13,
        eval_interval=2,
        lr_schedule="constant",
        keep=keep,
        branch_from=str(parent.path),
    )
    branch = trained(spec, tmp_path / "branch")
    own = [row["val_loss"] for row in branch.rows() if row["step"] > 10 and row["val_loss"]]
    assert len(own) == 2
    assert branch.metrics()["best_val_loss"] == min(own)
    assert (branch / "best.pt").is_file()


@pytest.mark.slow
def test_a_cooldown_branch_equals_the_run_from_scratch(spec_of, tmp_path):
    wsd = {"lr_schedule": "wsd", "cooldown_frac": 0.25, "eval_interval": 5}
    trunk = trained(spec_of(max_iters=40, checkpoint_steps="[12, 15]", **wsd), tmp_path / "trunk")
    whole = trained(spec_of(max_iters=20, **wsd), tmp_path / "whole")
    spec = spec_of(max_iters=20, branch_from=f"{trunk.path}@15", **wsd)
    branch = trained(spec, tmp_path / "branch")
    assert spec.parent == f"{trunk.spec().id}@15"
    assert spec.id != whole.spec().id
    assert_twins(branch, whole)
    late = spec_of(max_iters=14, branch_from=f"{trunk.path}@12", **wsd)
    with pytest.raises(UserError, match="LR multiplier of update 12"):
        train(open_folder(tmp_path / "late", late, resume=False))


@pytest.mark.slow
def test_numerics_are_kept_on_resume(spec_of, tmp_path):
    folder = open_folder(tmp_path / "run", spec_of(dtype="auto"), resume=False)
    run = start(folder.spec())
    run.numerics = replace(run.numerics, dtype="bfloat16")  # as begun on hardware that prefers it
    save(run, folder)
    assert train(folder) == "COMPLETE"
    assert folder.metrics()["numerics"]["dtype"] == "bfloat16"


@pytest.mark.slow
@pytest.mark.parametrize(("keep", "left"), [("best", {"best.pt"}), ("none", set())])
def test_a_finished_run_keeps_what_it_is_told_to(spec_of, tmp_path, keep, left):
    folder = trained(spec_of(keep=keep), tmp_path / "out")
    assert {path.name for path in folder.path.glob("*.pt")} == left
    assert folder.status().checkpoint_step is None
    assert losses(folder) == losses(trained(spec_of(), tmp_path / "all"))


@pytest.mark.slow
def test_a_run_has_its_folder_to_itself(spec_of, tmp_path, monkeypatch):
    """A second process leaves at once; one that was taken for dead writes nothing more."""
    folder = open_folder(tmp_path / "out", spec_of(max_iters=6, log_interval=1), resume=False)
    real, seen = training.update, []

    def update(run: Run, *rest: Any) -> training.UpdateDone:
        if run.step == 2:
            seen.append(run_nanoscale("run", str(folder.path)))
        if run.step == 4:
            next(folder.path.glob("lease-*.json")).rename(folder / "lease-9.json")
        return real(run, *rest)

    monkeypatch.setattr(training, "update", update)
    with pytest.raises(Held):
        train(folder)
    assert (seen[0].returncode, "is training there" in seen[0].stdout) == (130, True)
    assert [row["step"] for row in folder.rows()] == [0, 1, 2, 3, 4]
    assert folder.status().state == "RUNNING"  # the successor's word


def test_changed_data_is_refused(spec_of, tmp_path, data_root):
    folder = open_folder(tmp_path / "run", spec_of(), resume=False)
    train_bin = data_root / "tiny" / "train.bin"
    original = train_bin.read_bytes()
    try:
        train_bin.write_bytes(np.frombuffer(original, "<u2")[::-1].tobytes())  # the same symbols
        with pytest.raises(UserError, match="has changed since this run was made"):
            train(folder)
    finally:
        train_bin.write_bytes(original)


# -- divergence ---------------------------------------------------------------------------------
def test_divergence_is_a_result(spec_of, tmp_path):
    spec = spec_of(learning_rate=1e30, max_iters=50, eval_interval=0, weight_decay=0.9)
    folder = open_folder(tmp_path / "run", spec, resume=False)
    assert train(folder) == folder.state() == "DIVERGED"
    metrics = folder.metrics()
    assert metrics["status"] == "DIVERGED"
    assert metrics["val_loss"] is None
    assert metrics["iter_num"] < 50
    assert folder.rows()[-1]["train_loss"] is None  # null, never zero


BLOWN_UP = {"learning_rate": 1e39, "max_iters": 6, "checkpoint_steps": "[1, 2]"}  # by one update


@pytest.mark.parametrize("max_iters", [1, 3])
def test_a_last_update_that_ruins_the_weights_is_divergence(
    spec_of, tmp_path, monkeypatch, max_iters
):
    """Every loss of an update is finite: what they are for is not."""
    real = training.update

    def update(run: Run, *rest: Any) -> training.UpdateDone:
        done = real(run, *rest)
        if run.step == max_iters:
            next(run.model.parameters()).data.fill_(math.inf)
        return done

    monkeypatch.setattr(training, "update", update)
    folder = open_folder(tmp_path / "run", spec_of(max_iters=max_iters), resume=False)
    result = train_folder(folder)
    assert (result.status, folder.state(), exit_code(result)) == ("DIVERGED", "DIVERGED", 1)
    assert folder.metrics()["val_loss"] is None
    last = folder.rows()[-1]
    assert (last["step"], last["val_loss"]) == (max_iters, None)
    assert last["train_loss"] > 0
    assert loss_of(folder) == math.inf  # for a search


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_an_updates_loss_of_inf_is_divergence_like_nan(spec_of, tmp_path, monkeypatch, loss):
    real = training.update

    def update(run: Run, *rest: Any) -> training.UpdateDone:
        done = real(run, *rest)
        return replace(done, loss=torch.tensor(loss)) if run.step == 2 else done

    monkeypatch.setattr(training, "update", update)
    folder = open_folder(tmp_path / "run", spec_of(max_iters=4, eval_interval=0), resume=False)
    assert (train(folder), folder.rows()[-1]["step"]) == ("DIVERGED", 2)
    assert loss_of(folder) == math.inf


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_an_evaluations_loss_of_inf_is_divergence_like_nan(spec_of, tmp_path, monkeypatch, loss):
    found = Evaluation(val_loss=loss, val_bits_per_byte=None, eval_train_loss=1.0)
    monkeypatch.setattr(recorder, "evaluate", lambda run: found)
    folder = open_folder(tmp_path / "run", spec_of(max_iters=8, eval_interval=2), resume=False)
    assert (train(folder), folder.rows()[-1]["step"]) == ("DIVERGED", 2)


def test_a_run_that_goes_on_forgets_why_it_failed(spec_of, tmp_path):
    folder = open_folder(tmp_path / "run", spec_of(max_iters=1), resume=False)
    folder.set_status(state="FAILED", kind="crash", reason="boom")
    train(folder)
    status = folder.status()
    assert (status.state, status.kind, status.reason) == ("COMPLETE", None, None)


def test_what_another_process_has_finished_meanwhile_is_left(spec_of, tmp_path):
    folder = trained(spec_of(max_iters=1), tmp_path / "run")
    before = {file: file.stat().st_mtime_ns for file in folder.path.iterdir()}
    assert fill(folder, Ranks()).status == "COMPLETE"
    assert {file: file.stat().st_mtime_ns for file in folder.path.iterdir()} == before


def test_what_the_rows_have_lost_is_said(spec_of, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("nanoscale.training.run.take_over_rows", lambda *_: ["rows are gone"])
    trained(spec_of(max_iters=1), tmp_path / "run")
    assert "warning: rows are gone" in capsys.readouterr().out


def test_sequences_that_do_not_divide_over_ranks_are_refused(spec_of, tmp_path):
    folder = open_folder(tmp_path / "run", spec_of(batch_size=4), resume=False)
    with pytest.raises(UserError, match="4 sequences per update do not divide over 3 processes"):
        fill(folder, Ranks(0, 3))
    assert folder.state() == "WAITING"


@pytest.mark.parametrize(("always", "saved"), [(True, [2, 4]), (False, [4])])
def test_without_always_save_only_a_better_evaluation_is_saved(
    spec_of, tmp_path, monkeypatch, always, saved
):
    """All evaluations are equal, so none is better than the first."""
    steps = []
    found = Evaluation(val_loss=1.0, val_bits_per_byte=None, eval_train_loss=1.0)
    monkeypatch.setattr(recorder, "evaluate", lambda run: found)
    real = recorder.save
    monkeypatch.setattr(recorder, "save", lambda run, *a: steps.append(run.step) or real(run, *a))
    spec = spec_of(max_iters=4, eval_interval=2, always_save_checkpoint=always)
    trained(spec, tmp_path / "run")
    assert steps == saved


def test_a_run_of_no_updates_has_one_evaluation_the_final(spec_of, tmp_path):
    folder = trained(spec_of(max_iters=0), tmp_path / "run")
    assert folder.rows() == []
    assert folder.metrics()["best_val_loss"] == folder.metrics()["val_loss"] > 0


def test_a_stop_is_heard_after_the_update_it_came_in(spec_of, tmp_path, monkeypatch):
    ask_to_stop_in_update(3, monkeypatch)
    spec = spec_of(max_iters=9, eval_interval=0, log_interval=100)
    folder = open_folder(tmp_path / "run", spec, resume=False)
    assert (train(folder), folder.status().checkpoint_step) == ("WAITING", 3)


def test_a_stop_asked_for_in_the_last_update_ends_nothing_early(spec_of, tmp_path, monkeypatch):
    ask_to_stop_in_update(2, monkeypatch)
    trained(spec_of(max_iters=2, eval_interval=0), tmp_path / "run")


def test_a_final_loss_that_is_not_finite_is_divergence(spec_of, tmp_path, monkeypatch):
    """Of windows that no evaluation on the way had."""
    monkeypatch.setattr(recorder, "final_losses", lambda run: np.array([1.0, math.inf]))
    folder = open_folder(tmp_path / "run", spec_of(max_iters=1), resume=False)
    assert train(folder) == folder.metrics()["status"] == "DIVERGED"
    assert folder.metrics()["val_loss"] is None


def test_rows_are_on_the_disk_before_the_checkpoint_that_follows(spec_of, tmp_path, monkeypatch):
    """What fsync has seen is what a power cut leaves."""
    folder = open_folder(tmp_path / "run", spec_of(max_iters=4, log_interval=1), resume=False)
    real_sync, real_save, kept = os.fsync, recorder.save, []
    synced = [b""]

    def fsync(number: int) -> None:
        real_sync(number)
        rows = folder / "metrics.jsonl"
        if rows.exists() and os.path.samestat(os.fstat(number), rows.stat()):
            synced.append(rows.read_bytes())

    def save(run: Run, *rest: Any) -> None:
        kept.append((run.step, synced[-1].count(b"\n")))
        real_save(run, *rest)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(recorder, "save", save)
    train(folder)
    assert kept == [(step, step + 1) for step, _ in kept]  # with the row of step 0
    assert kept[-1][0] == 4


def test_a_state_that_is_not_finite_is_never_kept(spec_of, tmp_path):
    """The first batch's loss is finite, the weights after its update are not."""
    folder = open_folder(tmp_path / "run", spec_of(eval_interval=1, **BLOWN_UP), resume=False)
    assert train(folder) == "DIVERGED"
    assert [row["step"] for row in folder.rows()] == [0, 1]
    assert [row["train_loss"] is None for row in folder.rows()] == [True, False]
    assert not list(folder.path.glob("ckpt*.pt"))


def test_nor_where_the_loss_is_looked_at_in_rows_alone(spec_of, tmp_path, monkeypatch):
    """As on a GPU, where six updates pass before anybody knows, and each asks to be saved."""
    monkeypatch.setattr(training, "looks_are_free", lambda run: False)
    late = {"eval_interval": 0, "log_interval": 100, "checkpoint_seconds": 1e-9}
    folder = open_folder(tmp_path / "run", spec_of(**late, **BLOWN_UP), resume=False)
    assert train(folder) == "DIVERGED"
    assert [row["step"] for row in folder.rows()] == [1, 6]
    assert not list(folder.path.glob("ckpt*.pt"))


def test_an_interruption_says_saved_only_where_it_was(spec_of, tmp_path, monkeypatch, capsys):
    """Asked to stop during the first update: after it the weights are finite, or are not."""
    real = training.update

    def update(run: Run, *rest: Any) -> training.UpdateDone:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(run, *rest)

    monkeypatch.setattr(training, "update", update)
    fine = open_folder(tmp_path / "fine", spec_of(eval_interval=0), resume=False)
    assert train(fine) == "WAITING"
    assert "interrupted: saved after step 1; the same command" in capsys.readouterr().out
    blown = open_folder(tmp_path / "blown", spec_of(eval_interval=0, **BLOWN_UP), resume=False)
    assert train(blown) == "WAITING"
    out = capsys.readouterr().out
    assert "interrupted: the weights after step 1 are not finite and were not saved;" in out
    assert not list(blown.path.glob("ckpt*.pt"))


def test_a_crash_is_failed_with_its_reason(spec_of, tmp_path, monkeypatch):
    folder = open_folder(tmp_path / "run", spec_of(), resume=False)
    monkeypatch.setattr(training, "update", lambda *a: (_ for _ in ()).throw(ValueError("boom")))
    with pytest.raises(ValueError, match="boom"):
        train(folder)
    assert folder.state() == "FAILED"
    assert "boom" in folder.status().reason


# -- as users run it ----------------------------------------------------------------------------


@pytest.mark.slow
def test_command_line_trains_resumes_and_says_so(data_root, tmp_path):
    arguments = flags(BASE | {"data_root": data_root, "out_dir": tmp_path / "o"})
    done = run_python(str(ROOT / "train.py"), *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for line in (
        "tokens per iteration will be: 16",
        "found vocab_size = ",
        "number of parameters:",
        "step 5: train loss ",
        "iter 10: loss ",
        "final: val loss ",
    ):
        assert line in done.stdout
    assert (tmp_path / "o" / "log.txt").read_text() in done.stdout
    again = run_nanoscale("train", *arguments, cwd=tmp_path)
    assert (again.returncode, "COMPLETE already" in again.stdout) == (0, True)
    other = run_nanoscale("train", *arguments, "--n_layer=1", cwd=tmp_path)
    assert other.returncode == 0
    assert (tmp_path / "o.old-1" / "metrics.json").is_file()
    evaluated = run_nanoscale(
        "train", *arguments, "--n_layer=1", "--eval_only=True", "--init_from=resume", cwd=tmp_path
    )
    loss = json.loads((tmp_path / "o" / "metrics.json").read_text())["val_loss"]
    assert f"val loss {loss:.4f}" in evaluated.stdout


@pytest.mark.slow
def test_run_verb_and_exit_codes(spec_of, tmp_path):
    open_folder(tmp_path / "good", spec_of(), resume=False)
    open_folder(tmp_path / "bad", spec_of(learning_rate=1e30, weight_decay=0.9), resume=False)
    assert run_nanoscale("run", str(tmp_path / "good")).returncode == 0
    assert run_nanoscale("run", str(tmp_path / "bad")).returncode == 1
    assert run_nanoscale("run", str(tmp_path / "none")).returncode == 2


@pytest.mark.slow
def test_two_processes_equal_one(data_root, tmp_path):
    """DDP over gloo: the same losses to rounding, with uneven micro-batches, dropout and Muon."""
    values = BASE | {
        "data_root": data_root,
        "batch_size": 3,
        "gradient_accumulation_steps": 2,
        "optimizer": "muon",
        "micro_batch_size": 2,
        "dropout": 0.2,
    }
    one = run_nanoscale("train", *flags(values | {"out_dir": tmp_path / "one"}))
    ranks = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    command = (*ranks, str(ROOT / "train.py"), *flags(values | {"out_dir": tmp_path / "two"}))
    two = run_python(*command)
    assert (one.returncode, two.returncode) == (0, 0), two.stderr
    assert two.stdout.splitlines()[-1].startswith("COMPLETE: results in")
    assert len(set(two.stdout.splitlines())) == len(two.stdout.splitlines())
    a, b = RunFolder(tmp_path / "one"), RunFolder(tmp_path / "two")
    assert losses(a) == pytest.approx(losses(b), rel=1e-5)
    assert a.metrics()["val_loss"] == pytest.approx(b.metrics()["val_loss"], rel=1e-5)
    assert b.metrics()["provenance"]["world_size"] == 2


@pytest.mark.soak
@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")),
    reason="torch.compile needs a C++ compiler",
)
def test_compiled_equals_eager_with_every_multiplier(spec_of, tmp_path):
    few = {
        "max_iters": 4,
        "n_layer": 1,
        "eval_interval": 0,
        "parametrization.mode": "CompleteP",
        "parametrization.base_head_dim": 16,
    }  # every forward multiplier differs from 1
    eager = trained(spec_of(**few), tmp_path / "eager")
    compiled = open_folder(tmp_path / "compiled", spec_of(**few, compile=True), resume=False)
    done = run_nanoscale("run", str(compiled.path))  # the compiler warns of itself: not in here
    assert done.returncode == 0, done.stderr
    assert compiled.metrics()["numerics"]["compile"] is True
    assert losses(compiled) == pytest.approx(losses(eager), rel=1e-4)


@pytest.mark.soak
def test_a_model_approaches_the_entropy_of_a_known_source_from_above(spec_of, tmp_path):
    """The synthetic source's best possible loss on its validation split is in its meta."""
    data = prepare("synthetic", out=tmp_path / "synthetic")
    spec = spec_of(
        dataset=str(data),
        n_layer=1,
        n_head=2,
        n_embd=32,
        block_size=32,
        batch_size=16,
        max_iters=300,
        eval_interval=0,
        optimizer="muon",
        muon_lr=0.05,
        final_eval_tokens=50_000,
    )
    loss = trained(spec, tmp_path / "run").metrics()["val_loss"]
    floor = open_dataset(str(data)).meta.facts["val_floor_nats"]
    assert floor < loss < floor + 0.05


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_cpu(spec_of, tmp_path):
    cpu = trained(spec_of(dtype="float32"), tmp_path / "cpu")
    cuda = trained(spec_of(dtype="float32", device="cuda"), tmp_path / "cuda")
    assert losses(cuda) == pytest.approx(losses(cpu), rel=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_graphs_change_nothing_but_time(spec_of, tmp_path):
    found = []
    for graphs in (False, True):
        spec = spec_of(device="cuda", compile=True, cuda_graphs=graphs)
        folder = open_folder(tmp_path / f"graphs={graphs}", spec, resume=False)
        # the compiler warns of itself: not in here, and not in a fork of a process with torch
        done = run_python("-m", "nanoscale", "run", str(folder.path))
        assert done.returncode == 0, done.stderr
        assert folder.metrics()["numerics"]["compile"] is True
        found.append(losses(folder))
    assert found[1] == pytest.approx(found[0], rel=1e-5)
