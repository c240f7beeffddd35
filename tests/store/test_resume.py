"""The one resume rule, and every state in which a run folder can be found."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import BESIDE, OTHER, pair, tiny_spec

from nanoscale.errors import UserError
from nanoscale.spec import identity
from nanoscale.spec.config import all_fields
from nanoscale.spec.identity import RunSpec
from nanoscale.store.files import write_json, write_text
from nanoscale.store.folder import (
    COMPLETE,
    DIVERGED,
    FAILED,
    FINISHED,
    PRUNED,
    RUNNING,
    WAITING,
    RunFolder,
)
from nanoscale.store.resume import (
    check_past,
    check_same,
    continue_as,
    is_finished,
    open_folder,
    own_best,
    past_difference,
    renewed,
    start_of,
    take_over_rows,
)

SCHEDULE_OR_LENGTH = {
    "lr_schedule",
    "decay_lr",
    "warmup_iters",
    "warmup_frac",
    "lr_decay_iters",
    "min_lr",
    "min_lr_frac",
    "cooldown_frac",
    "cooldown_shape",
    "max_iters",
    "max_tokens",
    "max_flops",
    "tokens_per_param",
}


HASHED = {name for name, key in all_fields().items() if key.hashed}
BY_CONTENT = {"parametrization.rules"}  # what the file says is hashed, not where it lies


def specs(key: str) -> tuple[RunSpec, RunSpec]:
    """Two specs of equal data that differ in `key`."""
    before, after = pair(key, **BESIDE.get(key, {}))
    return replace(tiny_spec(), config=before), replace(tiny_spec(), config=after)


# --- the rule ----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", sorted(HASHED - SCHEDULE_OR_LENGTH))
def test_a_past_with_another_value_is_another_past(key):
    difference = past_difference(*specs(key), 0)
    resolved = {
        "beta2_halflife_tokens": "beta2",
        "muon_momentum_halflife_tokens": "muon_momentum",
    }
    assert difference.split()[0] == resolved.get(key, key)


@pytest.mark.parametrize("key", sorted(OTHER.keys() - HASHED - BY_CONTENT))
def test_where_and_how_it_runs_is_no_part_of_the_past(key):
    assert past_difference(*specs(key), 10) is None


def test_other_data_are_another_past():
    assert "data differs" in past_difference(tiny_spec(), tiny_spec(data="e" * 64), 0)


@pytest.mark.parametrize(
    ("old", "new", "step", "update"),
    [
        ({"lr_schedule": "constant"}, {"lr_schedule": "constant", "max_iters": 20}, 10, None),
        ({"lr_schedule": "cosine"}, {"lr_schedule": "cosine", "max_iters": 20}, 0, None),
        ({"lr_schedule": "cosine"}, {"lr_schedule": "cosine", "max_iters": 20}, 1, None),
        ({"lr_schedule": "cosine"}, {"lr_schedule": "cosine", "max_iters": 20}, 2, 2),
        (
            {"lr_schedule": "linear", "warmup_iters": 4},
            {"lr_schedule": "linear", "warmup_iters": 4, "max_iters": 20},
            5,
            None,
        ),
        (
            {"lr_schedule": "linear", "warmup_iters": 4},
            {"lr_schedule": "linear", "warmup_iters": 4, "max_iters": 20},
            9,
            6,
        ),
        ({"lr_schedule": "wsd"}, {"lr_schedule": "wsd", "max_iters": 20}, 9, None),
        ({"lr_schedule": "wsd"}, {"lr_schedule": "wsd", "max_iters": 20}, 10, 10),
        ({"lr_schedule": "wsd"}, {"lr_schedule": "wsd", "cooldown_shape": "1-sqrt"}, 8, None),
        ({"lr_schedule": "constant"}, {"lr_schedule": "wsd", "cooldown_frac": 0.5}, 6, None),
        ({"lr_schedule": "constant"}, {"lr_schedule": "wsd", "cooldown_frac": 0.5}, 7, 7),
        ({"lr_schedule": "constant"}, {"decay_lr": False}, 10, None),
        ({"warmup_iters": 3}, {"warmup_iters": 4}, 1, 1),
        ({"lr_schedule": "constant"}, {"lr_schedule": "constant", "min_lr_frac": 0.5}, 10, None),
        ({}, {"max_tokens": 160.0}, 10, None),
    ],
)
def test_schedules_may_differ_in_the_future_alone(old, new, step, update):
    difference = past_difference(tiny_spec(**old), tiny_spec(**new), step)
    if update is None:
        assert difference is None
    else:
        assert f"update {update} was" in difference


@pytest.mark.parametrize(
    ("schedule", "warmup", "keys"),
    [
        ("constant", 6, ["warmup_iters"]),
        ("cosine", 3, ["lr_decay_iters"]),
        ("cosine", 6, ["warmup_iters", "lr_decay_iters"]),  # twice as long, as of a warmup_frac
    ],
)
def test_the_flags_that_a_refusal_advises_give_the_same_past(schedule, warmup, keys):
    old = tiny_spec(lr_schedule=schedule, warmup_iters=3)
    new = {"lr_schedule": schedule, "max_iters": 20}
    said = past_difference(old, tiny_spec(**new, warmup_iters=warmup), 10)
    advised = {"warmup_iters": warmup} | dict(re.findall(r"--(\w+)=(\d+)", said))
    assert ("warmup_iters" in keys) == (advised["warmup_iters"] == "3")
    assert ("lr_decay_iters" in keys) == ("lr_decay_iters" in advised)
    assert past_difference(old, tiny_spec(**new, **advised), 10) is None


def test_a_run_cannot_be_shorter_than_its_past():
    old, new = (tiny_spec(lr_schedule="constant", max_iters=n) for n in (10, 6))
    assert past_difference(old, new, 6) is None
    assert "max_iters=6" in past_difference(old, new, 7)


@pytest.mark.parametrize("rule", [{"wd_timescale": "fraction_of_run"}, {"base_tokens": 1000}])
def test_rules_of_the_whole_length_have_no_longer_future(rule):
    rule = {f"parametrization.{key}": value for key, value in rule.items()}
    short, long = (tiny_spec(max_iters=n, lr_schedule="constant", **rule) for n in (10, 20))
    assert "which was 10, now 20" in past_difference(short, long, 5)
    assert past_difference(short, long, 0) is None
    assert past_difference(short, short, 5) is None


def test_a_refusal_names_the_place_the_difference_and_the_remedy():
    with pytest.raises(UserError, match=r"here.*n_layer was 2, now 3.*another out_dir"):
        check_past(tiny_spec(), tiny_spec(n_layer=3), 5, "here")


# --- two runs of one id ------------------------------------------------------------------------


@pytest.fixture
def one_id(monkeypatch):
    """Every run has the same id, as two of a hundred thousand may."""
    monkeypatch.setattr(identity.RunSpec, "id", "0123456789")


OTHER_RUNS = [
    (tiny_spec(n_layer=3), "n_layer was 3, now 2"),
    (tiny_spec(data="e" * 64), "the data differs"),
    (tiny_spec(max_iters=11), "lr_decay_iters was 11, now 10"),
    (replace(tiny_spec(), parent="0123456789@5"), "branch_from was 0123456789@5, now None"),
]


@pytest.mark.parametrize(("other", "difference"), OTHER_RUNS)
def test_a_folder_is_believed_by_its_content_and_not_by_its_name(
    tmp_path, one_id, other, difference
):
    folder = RunFolder(tmp_path / "out")
    folder.create(replace(other))
    assert folder.spec().id == tiny_spec().id
    with pytest.raises(UserError, match=difference) as caught:
        check_same(folder, tiny_spec())
    assert "\n" not in str(caught.value)
    assert str(folder.path) in str(caught.value)
    check_same(folder, replace(other))


@pytest.mark.parametrize(("other", "difference"), OTHER_RUNS)
def test_a_finished_run_of_the_same_id_is_moved_aside_and_not_taken_for_ours(
    tmp_path, one_id, other, difference
):
    old = RunFolder(tmp_path / "out")
    old.create(replace(other))
    old.set_status(state=COMPLETE)
    write_json(old / "metrics.json", {})
    folder = open_folder(tmp_path / "out", tiny_spec(), resume=False)
    assert (folder.state(), folder.spec()) == (WAITING, tiny_spec())
    assert RunFolder(tmp_path / "out.old-1").state() == COMPLETE


# --- the folder --------------------------------------------------------------------------------


def trained_folder(path: Path, step: int, state: str = WAITING, **overrides: object) -> RunFolder:
    """A folder as a run leaves it after `step` updates."""
    folder = RunFolder(path)
    folder.create(tiny_spec(**overrides))
    folder.set_status(state=state, step=step, checkpoint_step=step or None)
    write_text(folder / "metrics.jsonl", '{"step":1}\n')
    if step:
        write_text(folder / "ckpt.pt", "")
    if state in FINISHED:
        write_text(folder / "metrics.json", "{}")
        write_text(folder / "windows.npy", "")
    return folder


def snapshot(root: Path) -> dict[str, bytes]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): p.read_bytes() for p in files}


@pytest.mark.parametrize("existing", [False, True])
def test_a_fresh_or_empty_folder_becomes_the_run(tmp_path, existing):
    path = tmp_path / "a" / "out"
    if existing:
        path.mkdir(parents=True)
    folder = open_folder(path, tiny_spec(), resume=False)
    assert (folder.state(), folder.spec()) == (WAITING, tiny_spec())


@pytest.mark.parametrize("state", [COMPLETE, DIVERGED, PRUNED])
@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_run_is_found_as_it_is(tmp_path, state, resume):
    trained_folder(tmp_path / "out", 10, state)
    before = snapshot(tmp_path)
    folder = open_folder(tmp_path / "out", tiny_spec(log_interval=9), resume)
    assert snapshot(tmp_path) == before
    assert folder.state() == state
    assert is_finished(folder)


TODAY = {  # keys that are no part of a run, as the same command gives them anew
    "micro_batch_size": 1,
    "loss_chunk": 3,
    "recompute": True,
    "log_interval": 9,
    "keep": "best",
    "kernels": "torch",
    "threads": 3,
    "tensorboard_log": True,
    "checkpoint_steps": [7],
    "data_root": "moved",
    "dataset": "renamed",
    "checkpoint_seconds": 1.0,
}


@pytest.mark.parametrize("state", [WAITING, RUNNING, FAILED])
@pytest.mark.parametrize(("resume", "step"), [(False, 0), (False, 10), (True, 10)])
def test_the_same_run_goes_on_with_todays_machine_and_record_keys(tmp_path, state, resume, step):
    before = trained_folder(tmp_path / "out", step, state, threads=2)
    rows = (before / "metrics.jsonl").read_bytes()
    spec = replace(tiny_spec(**TODAY), typed=TODAY)
    folder = open_folder(tmp_path / "out", spec, resume)
    assert (folder.state(), folder.status().checkpoint_step) == (WAITING, step or None)
    assert (folder / "metrics.jsonl").read_bytes() == rows
    kept = {"threads": 2} if step else {}  # what rounding depends on
    assert folder.spec().config == replace(spec.config, **kept)
    assert folder.spec().typed == TODAY


def test_a_run_whose_status_is_lost_keeps_what_rounding_depends_on(tmp_path):
    """Its checkpoint is there, and it is that which was begun with 2 threads."""
    folder = trained_folder(tmp_path / "out", 10, threads=2)
    write_text(folder / "status.json", "")
    assert folder.state() == FAILED
    open_folder(tmp_path / "out", tiny_spec(threads=3), resume=False)
    assert (folder.state(), folder.spec().config.threads) == (WAITING, 2)


@pytest.mark.parametrize("lost", [True, False])
def test_results_say_what_a_lost_status_said_if_they_are_this_runs(tmp_path, lost):
    folder = trained_folder(tmp_path / "out", 10, COMPLETE)
    results = {"id": folder.spec().id if lost else "anothers", "status": DIVERGED, "iter_num": 7}
    write_json(folder / "metrics.json", results)
    (folder / "status.json").unlink()
    open_folder(tmp_path / "out", tiny_spec(), resume=False)
    assert (folder.state(), folder.status().step) == ((DIVERGED, 7) if lost else (WAITING, 0))


def test_a_micro_batch_stays_halved_unless_it_is_said_anew(tmp_path):
    trained_folder(tmp_path / "out", 10, micro_batch_size=1)
    assert open_folder(tmp_path / "out", tiny_spec(), False).spec().config.micro_batch_size == 1
    asked = replace(tiny_spec(), typed={"micro_batch_size": "None"})
    assert open_folder(tmp_path / "out", asked, False).spec().config.micro_batch_size is None


def test_another_run_is_moved_aside_whole_and_never_overwritten(tmp_path, capsys):
    for seed in (1, 2, 3):
        trained_folder(tmp_path / "first", 10, COMPLETE, seed=seed)
        old = snapshot(tmp_path / "first")
        folder = open_folder(tmp_path / "first", tiny_spec(seed=9), resume=False)
        assert folder.spec() == tiny_spec(seed=9)
        assert [p.name for p in folder.path.iterdir()] == ["config.json"]
        assert snapshot(tmp_path / f"first.old-{seed}") == old
        assert f"first.old-{seed}" in capsys.readouterr().out
        for file in folder.path.iterdir():
            file.unlink()
        folder.path.rmdir()


@pytest.mark.parametrize("resume", [False, True])
def test_files_that_are_no_run_are_never_touched(tmp_path, resume):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    (tmp_path / "file").write_text("precious")
    before = snapshot(tmp_path)
    for path in (tmp_path / "out", tmp_path / "file"):
        with pytest.raises(UserError, match="no run" if resume else "other files"):
            open_folder(path, tiny_spec(), resume)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("event", ["os.rename", "open"])
def test_a_folder_whose_maker_was_killed_is_made_again(tmp_path, event):
    """Before its config was there: a claim and half a file are left."""
    path = tmp_path / "out"
    pid = os.fork()
    if not pid:
        killed = {"os.rename": "config.json", "open": ".config.json"}[event]

        def audit(name: str, arguments: tuple[object, ...]) -> None:
            if name == event and killed in str(arguments[0]):
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(audit)
        open_folder(path, tiny_spec(), resume=False)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert any(path.iterdir())
    folder = open_folder(path, tiny_spec(), resume=False)
    assert folder.spec() == tiny_spec()
    assert folder.state() == WAITING
    (path / "config.json").unlink()
    (path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="other files"):
        open_folder(path, tiny_spec(), resume=False)


def test_anothers_config_json_is_no_run_of_ours(tmp_path):
    write_text(tmp_path / "config.json", '{"architectures": ["GPT2LMHeadModel"]}')
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match="is this a run folder"):
        open_folder(tmp_path, tiny_spec(), resume=False)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("seed", [1337, 5])
def test_a_folder_in_which_a_run_is_running_is_refused(tmp_path, resume, seed):
    folder = trained_folder(tmp_path / "out", 4)
    with folder.take():
        before = snapshot(tmp_path)
        with pytest.raises(UserError, match=rf"process {os.getpid()} on .* is training there"):
            open_folder(tmp_path / "out", tiny_spec(seed=seed), resume)
        assert snapshot(tmp_path) == before


def test_a_folder_whose_run_was_killed_is_continued(tmp_path):
    folder = trained_folder(tmp_path / "out", 4)
    folder.set_status(state=RUNNING)
    assert open_folder(tmp_path / "out", tiny_spec(), resume=False).state() == WAITING


def test_resuming_what_is_not_there_is_refused_and_makes_nothing(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        open_folder(tmp_path / "out", tiny_spec(), resume=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("schedule", ["constant", "wsd"])
def test_resume_makes_a_run_longer_where_the_past_is_equal(tmp_path, schedule):
    step = 10 if schedule == "constant" else 9
    trained_folder(tmp_path / "out", step, COMPLETE, lr_schedule=schedule)
    longer = tiny_spec(lr_schedule=schedule, max_iters=25)
    before = snapshot(tmp_path)
    folder = open_folder(tmp_path / "out", longer, resume=True)
    assert snapshot(tmp_path) == before  # whether the checkpoint can be read is not known yet
    continue_as(folder, longer)
    assert folder.spec() == longer
    status = folder.status()
    assert (folder.state(), status.id, status.max_iters) == (WAITING, longer.id, 25)
    assert status.checkpoint_step == step
    assert folder.metrics() is None  # the old results are not the longer run's
    left = snapshot(tmp_path)
    for name in ("metrics.json", "windows.npy", "metrics.jsonl", "ckpt.pt"):
        assert left[f"out/{name}"] == before[f"out/{name}"]


def test_a_longer_run_keeps_what_rounding_depends_on_and_a_halved_micro_batch(tmp_path):
    keys = {"lr_schedule": "constant"}
    folder = trained_folder(tmp_path / "out", 10, COMPLETE, threads=2, micro_batch_size=1, **keys)
    asked = {"threads": 3, "keep": "best"}
    longer = replace(tiny_spec(max_iters=25, **keys, **asked), typed=asked)
    open_folder(tmp_path / "out", longer, resume=True)
    config = renewed(folder, longer).config
    assert (config.threads, config.micro_batch_size, config.keep) == (2, 1, "best")
    assert config.max_iters == 25


@pytest.mark.parametrize("max_iters", [10, 25])
@pytest.mark.parametrize("state", [WAITING, COMPLETE])
def test_resume_without_a_checkpoint_is_refused(tmp_path, max_iters, state):
    """As keep=best and keep=none leave it; the same run that has its result is no such case."""
    constant = {"lr_schedule": "constant", "max_iters": max_iters}
    folder = trained_folder(tmp_path / "out", 10, state, lr_schedule="constant")
    (folder / "ckpt.pt").unlink()
    folder.set_status(checkpoint_step=None)
    before = snapshot(tmp_path)
    if (max_iters, state) == (10, COMPLETE):
        open_folder(tmp_path / "out", tiny_spec(**constant), resume=True)
    else:
        with pytest.raises(UserError, match=r"holds no ckpt.pt to continue; leave init_from out"):
            open_folder(tmp_path / "out", tiny_spec(**constant), resume=True)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("new", "words"),
    [
        ({"max_iters": 25}, "update 2 was"),
        ({"learning_rate": 1e-2}, "learning_rate was 0.0006"),
        ({"n_layer": 3}, "n_layer was 2, now 3"),
        ({"max_iters": 5, "lr_decay_iters": 10}, "more than"),
    ],
)
def test_resume_refuses_another_past_naming_the_difference(tmp_path, new, words):
    trained_folder(tmp_path / "out", 10, COMPLETE)
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=words):
        open_folder(tmp_path / "out", tiny_spec(**new), resume=True)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("after", range(3))
def test_a_kill_while_becoming_longer_never_leaves_results_missing(tmp_path, monkeypatch, after):
    """After each write of the change: finished, or unfinished; the results stay, and it goes on."""
    folder = trained_folder(tmp_path / "out", 10, COMPLETE, lr_schedule="constant")
    longer = tiny_spec(lr_schedule="constant", max_iters=25)
    done: list[int] = []
    really = os.replace

    def counted(*paths: Path) -> None:
        if len(done) == after:
            raise KeyboardInterrupt
        done.append(1)
        really(*paths)

    monkeypatch.setattr(os, "replace", counted)
    with suppress(KeyboardInterrupt):
        continue_as(folder, longer)
    monkeypatch.undo()
    assert len(done) == after
    assert folder.state() == (WAITING if after else COMPLETE)
    assert (folder / "metrics.json").read_text() == "{}"
    continue_as(open_folder(tmp_path / "out", longer, resume=True), longer)
    assert folder.spec() == longer


# --- rows and the best -------------------------------------------------------------------------


def row(step: int, val_loss: float | None = None) -> str:
    evaluation = '"val_bits_per_byte":1.0,"eval_train_loss":1.0,' if val_loss else ""
    loss = "null" if val_loss is None else val_loss
    return f'{{"step":{step},"val_loss":{loss},{evaluation}"time_ms":1.0}}\n'


AT_THE_END = [
    # whether a row is due at 7 anyway; the shorter run's losses after 0, 5 and 7; the best of
    # before, and whose weights best.pt then holds
    (1, (3.0, 2.0, 1.0), 2.0, "at 5"),
    (5, (3.0, 2.0, 1.0), 2.0, "at 5"),
    (1, (3.0, 2.0, 2.5), 2.0, "at 5"),
    (1, (3.0, 4.0, 1.0), 3.0, None),
    (1, (3.0, 4.0, 5.0), 3.0, None),
]


@pytest.mark.parametrize(("log_interval", "losses", "best", "weights"), AT_THE_END)
@pytest.mark.parametrize("twice", [False, True])
def test_the_end_of_a_shorter_run_is_no_part_of_a_longer(
    tmp_path, log_interval, losses, best, weights, twice
):
    constant = {"lr_schedule": "constant", "log_interval": log_interval}
    folder = trained_folder(tmp_path / "out", 7, COMPLETE, max_iters=7, **constant)
    shorter, longer = folder.spec(), tiny_spec(max_iters=25, **constant)
    untrained, middle, end = losses
    past = row(0, untrained) + row(1) + row(5, middle)
    write_text(folder / "metrics.jsonl", past + row(7, end))
    if middle < untrained:
        write_text(folder / "best.pt", "at 5")
    if end < min(untrained, middle):
        if middle < untrained:
            os.replace(folder / "best.pt", folder / "best-before.pt")
        write_text(folder / "best.pt", "at 7")

    for _ in range(2 if twice else 1):  # killed right after it, and continued again
        assert take_over_rows(folder, longer, 7, shorter) == []
    assert (folder / "metrics.jsonl").read_text() == past + (row(7) if log_interval == 1 else "")
    assert own_best(longer, folder.rows()) == best
    left = (folder / "best.pt").read_text() if (folder / "best.pt").exists() else None
    assert left == weights
    assert not (folder / "best-before.pt").exists()


def test_rows_lost_before_a_checkpoint_are_said(tmp_path):
    """As after a power cut: the checkpoint is on the disk, the last rows are not."""
    folder = trained_folder(tmp_path / "out", 10)
    spec = folder.spec()
    write_text(folder / "metrics.jsonl", "".join(map(row, range(1, 11))))
    assert take_over_rows(folder, spec, 10, spec) == []
    write_text(folder / "metrics.jsonl", "".join(map(row, range(1, 4))))
    (warning,) = take_over_rows(folder, spec, 9, spec)
    assert "lacks the rows after step 3 and up to 9" in warning
    sparse = tiny_spec(log_interval=4, eval_interval=100)  # nothing is due after 8
    write_text(folder / "metrics.jsonl", row(1) + row(4) + row(8))
    assert take_over_rows(folder, sparse, 9, sparse) == []


def test_a_branch_finds_its_parent_beside_it_where_both_were_moved(tmp_path):
    parent = trained_folder(tmp_path / "there" / "parent", 10)
    write_text(parent / "ckpt-5.pt", "")
    spec = tiny_spec(branch_from=str(parent / "@5").replace("/@", "@"))
    branch = RunFolder(tmp_path / "there" / "branch")
    branch.create(spec)
    assert start_of(branch, spec) == parent / "ckpt-5.pt"
    (tmp_path / "there").rename(tmp_path / "here")
    moved = RunFolder(tmp_path / "here" / "branch")
    assert start_of(moved, spec) == tmp_path / "here" / "parent" / "ckpt-5.pt"
    take_over_rows(moved, spec, 5, None)
    assert [r["step"] for r in moved.rows()] == [1]
    (tmp_path / "here" / "parent" / "ckpt-5.pt").unlink()
    assert start_of(moved, spec) == parent / "ckpt-5.pt"  # which the refusal names


def test_the_parent_that_was_named_comes_before_a_namesake_beside(tmp_path):
    named = trained_folder(tmp_path / "there" / "parent", 5)
    beside = trained_folder(tmp_path / "here" / "parent", 5)
    for folder in (named, beside):
        write_text(folder / "ckpt-5.pt", "")
    spec = tiny_spec(branch_from=f"{named.path}@5")
    branch = RunFolder(tmp_path / "here" / "branch")
    branch.create(spec)
    assert start_of(branch, spec) == named / "ckpt-5.pt"


def test_a_resumed_branch_keeps_its_own_rows(tmp_path):
    parent = trained_folder(tmp_path / "parent", 5)
    write_text(parent / "ckpt-5.pt", "")
    spec = tiny_spec(branch_from=f"{parent.path}@5")
    branch = trained_folder(tmp_path / "branch", 7, branch_from=f"{parent.path}@5")
    own = row(1) + row(6)
    write_text(branch / "metrics.jsonl", own + row(8))
    take_over_rows(branch, spec, 7, None)
    assert (branch / "metrics.jsonl").read_text() == own


def test_a_branchs_best_is_of_what_it_has_done_itself():
    rows = [{"step": step, "val_loss": loss} for step, loss in ((0, 3.0), (5, 1.0), (7, 2.0))]
    branch = replace(tiny_spec(), parent="0123456789@5")
    assert own_best(branch, rows) == 2.0
    assert own_best(tiny_spec(), rows) == 1.0


def test_a_run_killed_at_its_end_keeps_the_best_of_its_end(tmp_path):
    folder = trained_folder(tmp_path / "out", 7, max_iters=7)
    write_text(folder / "metrics.jsonl", row(0, 3.0) + row(5, 2.0) + row(7, 1.0))
    write_text(folder / "best.pt", "at 7")
    write_text(folder / "best-before.pt", "at 5")
    assert take_over_rows(folder, folder.spec(), 7, folder.spec()) == []
    assert (folder / "best.pt").read_text() == "at 7"


def test_a_run_that_begins_again_begins_without_rows(tmp_path):
    folder = trained_folder(tmp_path / "out", 7)
    write_text(folder / "metrics.jsonl", row(0, 3.0) + row(1))
    torn = folder / ".ckpt.pt.1.tmp"
    write_text(torn, "as a killed writer leaves it")
    take_over_rows(folder, tiny_spec(), 0, None)
    assert folder.rows() == []
    assert not torn.exists()


def test_a_parent_changes_the_identity_and_so_the_folder(tmp_path):
    spec = tiny_spec()
    child = replace(spec, parent="0123456789@5")
    assert isinstance(child, RunSpec)
    open_folder(tmp_path / "out", spec, resume=False)
    open_folder(tmp_path / "out", child, resume=False)
    assert RunFolder(tmp_path / "out").spec() == child
    assert RunFolder(tmp_path / "out.old-1").spec() == spec


@pytest.mark.parametrize("inside", [".", "below"])
def test_the_folder_one_stands_in_is_not_moved_from_under_ones_feet(tmp_path, monkeypatch, inside):
    trained_folder(tmp_path / "out", 4)
    here = tmp_path / "out" / inside
    here.mkdir(exist_ok=True)
    monkeypatch.chdir(here)
    before = snapshot(tmp_path)
    for path in (Path("." if inside == "." else ".."), tmp_path / "out"):
        with pytest.raises(UserError, match="while you are in it"):
            open_folder(path, tiny_spec(seed=2), resume=False)
    assert snapshot(tmp_path) == before


def test_a_name_too_long_and_an_unreadable_folder_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="shorter name"):
        open_folder(tmp_path / ("x" * 300), tiny_spec(), resume=False)
    with pytest.raises(UserError, match="holds no run"):
        open_folder(tmp_path / ("x" * 300), tiny_spec(), resume=True)

    def forbidden(self: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", forbidden)
    with pytest.raises(UserError, match="permission denied"):
        open_folder(tmp_path, tiny_spec(), resume=False)
