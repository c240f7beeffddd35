"""What is typed on a run that goes on, has ended or is damaged: heeded or said."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny import RUN

from nanoscale.errors import UserError, program
from nanoscale.spec.sources import Source, build
from nanoscale.store.files import read_json, write_json
from nanoscale.store.folder import RunFolder
from nanoscale.training.records import RunResult
from nanoscale.training.run import train, train_folder
from nanoscale.training.sample import open_run

KEYS = {
    **RUN,
    "kernels": "torch",
    "lr_schedule": "constant",
    "max_iters": 4,
    "eval_interval": 0,
    "compile": True,
    "eval_iters": 1,
    "final_eval_tokens": 16,
}


def typed(out: str, **keys: object) -> RunResult:
    """A run, as the flags of `keys` ask for it."""
    return train(build([Source("base", KEYS), Source("flags", keys)]), out, typed=keys)


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def finished(data_root, tmp_path_factory) -> Path:
    """A run of 4 updates, not compiled as that does not pay, with its checkpoint after 2."""
    here = tmp_path_factory.mktemp("finished")
    shutil.copytree(data_root, here / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        train(
            build([Source("base", KEYS), Source("more", {"checkpoint_steps": [2]})]),
            "run",
            typed={},
        )
    return here


@pytest.fixture
def here(finished, tmp_path, monkeypatch) -> Path:
    """A copy of it, in a folder of its own, where one stands."""
    shutil.copytree(finished, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


# -- goes on --------------------------------------------------------------------------------------
LATER = {
    "compile=True does not apply, the run began with compile=False": {"compile": True},
    "threads=3 does not apply, the run began with threads=1": {"threads": "3"},
    "threads=None does not apply, the run began with threads=1": {"threads": "None"},
    "kernels=auto does not apply, the run began with kernels=torch": {"kernels": "auto"},
    "device=auto does not apply, the run began with device=cpu": {"device": "auto"},
    "checkpoint_steps=[3, 99] are not reached: the run goes on from step 4 to 6": {
        "checkpoint_steps": "[2, 3, 5, 99]"
    },
}


@pytest.mark.parametrize("said", LATER)
def test_what_does_not_apply_to_a_run_that_goes_on_is_said(here, capsys, said):
    typed("run", max_iters=6, init_from="resume", **LATER[said])
    assert f"warning: {said}" in capsys.readouterr().out
    assert said in (Path("run") / "log.txt").read_text()


def test_what_applies_is_not_spoken_of(here, capsys):
    applies = {"compile": "False", "threads": 1, "kernels": "torch", "device": "cpu"}
    typed(
        "run", max_iters=6, init_from="resume", log_interval=2, checkpoint_steps=[2, 5], **applies
    )
    assert "apply" not in capsys.readouterr().out
    assert RunFolder("run").spec().config.log_interval == 2
    assert (Path("run") / "ckpt-5.pt").is_file()


# -- has ended ------------------------------------------------------------------------------------
IN_VAIN = {
    "compile=True (it has False)": {"compile": True},
    "keep=none (it has all)": {"keep": "none"},
    "threads=2 (it has 1)": {"threads": 2},
    "log_interval=5 (it has 1)": {"log_interval": 5},
    "micro_batch_size=1 (it has None)": {"micro_batch_size": 1},
}


@pytest.mark.parametrize("said", IN_VAIN)
def test_what_changes_nothing_of_a_finished_run_is_said(here, capsys, said):
    before = files(here)
    typed("run", **IN_VAIN[said])
    assert f"run: {said} cannot change a finished run; choose another out_dir" in (
        capsys.readouterr().out
    )
    assert files(here) == before


def test_the_same_command_on_a_finished_run_has_nothing_more_to_say(here, capsys):
    typed("run", threads="1", keep="all", out_dir="run", checkpoint_steps=[2], device="cpu")
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_another_length_says_which_key_and_how_to_go_on_and_that_goes_on(here, capsys):
    typed("run", max_iters=6)
    out = capsys.readouterr().out
    assert "max_iters was 4, now 6" in out
    assert "to go on with that one instead, add --init_from=resume --out_dir=run.old-1" in out
    typed("run.old-1", max_iters=6, init_from="resume")
    assert "continuing after step 4" in capsys.readouterr().out


def test_what_cannot_go_on_is_not_advised_to(here, capsys):
    typed("run", n_layer=1)
    out = capsys.readouterr().out
    assert "n_layer was 2, now 1): moved to run.old-1" in out
    assert "go on with" not in out


def test_a_longer_cosine_names_the_keys_and_the_one_that_mends_it(here, capsys):
    cosine = {"lr_schedule": "cosine"}
    typed("cosine", **cosine)
    expected = (
        r"max_iters was 4, now 8, lr_decay_iters was 4, now 8 \(with --lr_decay_iters=4 it would"
    )
    with pytest.raises(UserError, match=expected):
        typed("cosine", **cosine, max_iters=8, init_from="resume")
    result = typed("cosine", **cosine, max_iters=8, lr_decay_iters=4, init_from="resume")
    assert result.iter_num == 8


@pytest.mark.parametrize("keep", ["none", "best", "all"])
def test_a_next_step_that_is_printed_works(here, capsys, keep):
    typed("a b", keep=keep, max_iters=2)
    last = capsys.readouterr().out.splitlines()[-1]
    if keep == "none":
        assert last.endswith("keep=none left no weights to sample from")
        with pytest.raises(UserError, match="keep=none left no weights; train it again"):
            open_run("a b")
    else:
        assert last.endswith(f"next: {program()} sample --out_dir='a b'")
        assert open_run("a b")[0].parent == Path("a b")


# -- is damaged -----------------------------------------------------------------------------------
def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("keep", ["all", "none"])
def test_a_torn_config_is_mended_by_the_same_command_alone(here, capsys, keep):
    typed("mine", keep=keep, max_iters=2)
    folder = RunFolder("mine")
    spec, before = folder.spec(), files(here)
    cut(folder / "config.json")
    refusal = f"the command that asked for this run, {spec.id}, mends it"
    assert folder.damage().endswith(refusal)
    for refused in (
        lambda: typed("mine", n_layer=1),
        lambda: typed("mine", max_iters=9, init_from="resume"),
        lambda: train_folder(folder),
        lambda: open_run("mine"),
    ):
        with pytest.raises(UserError, match=refusal):
            refused()
    typed("mine", keep=keep, max_iters=2, init_from="resume")
    assert "COMPLETE already" in capsys.readouterr().out
    assert folder.spec().content == spec.content
    assert files(here).keys() == before.keys()
    assert {k: v for k, v in files(here).items() if "config.json" not in k} == {
        k: v for k, v in before.items() if "config.json" not in k
    }


def test_a_torn_status_of_a_finished_run_is_mended_where_its_folder_is_run(here):
    """Without its checkpoint it would be trained from the beginning, over its rows."""
    typed("mine", keep="none", max_iters=2)
    before = files(here)
    cut(Path("mine") / "status.json")
    assert train_folder(RunFolder("mine")).status == "COMPLETE"
    assert RunFolder("mine").state() == "COMPLETE"
    changed = {k for k, v in files(here).items() if before[k] != v}
    assert changed <= {"mine/status.json", "mine/config.json"}


@pytest.mark.parametrize("how", ["cut", "broken", "gone"])
def test_rows_that_a_finished_run_has_lost_are_said(here, capsys, how):
    rows = Path("run") / "metrics.jsonl"
    assert RunFolder("run").lost_rows() == ""
    if how == "cut":
        cut(rows)
    elif how == "broken":
        rows.write_text(rows.read_text().replace("loss", 'lo"ss', 1))
    else:
        rows.unlink()
    lost = RunFolder("run").lost_rows()
    assert ("of 4" in lost) == (how != "broken")
    assert "move the folder away and train the run anew" in lost
    assert typed("run").status == "COMPLETE"
    assert lost in capsys.readouterr().out


@pytest.mark.parametrize("name", ["config.json", "status.json", "metrics.json"])
def test_a_record_of_another_version_is_refused(here, name):
    path = Path("run") / name
    write_json(path, read_json(path) | {"schema": 7})
    before = files(here)
    for refused in (lambda: typed("run"), lambda: train_folder(RunFolder("run"))):
        with pytest.raises(UserError, match=f"{name}: schema 7, this version reads 1"):
            refused()
    assert "schema 7" in RunFolder("run").damage()
    assert files(here) == before


# -- is refused -----------------------------------------------------------------------------------
WRITTEN = ("log.txt", "metrics.jsonl", "metrics.json", "status.json", "windows.npy", "best.pt")


@pytest.mark.parametrize("name", [*WRITTEN, "ckpt.pt", "config.json"])
def test_a_folder_where_a_file_is_written_is_refused_before_anything_is_lost(here, name):
    path = Path("run") / name
    path.unlink(missing_ok=True)
    path.mkdir()
    before = files(here)
    with pytest.raises(UserError):
        typed("run", max_iters=6, init_from="resume")
    assert files(here) == before
    assert path.is_dir()


REFUSED = {
    "no checkpoint there at step 3 .*there is 'run@2' or 'run .after step 4.'": {
        "branch_from": "run@3"
    },
    "n_embd was 16, now 32; give it the same past, or no branch_from": {
        "branch_from": "run@2",
        "n_embd": 32,
    },
    "kernels=fused: they need": {"kernels": "fused", "dtype": "float16"},
}


@pytest.mark.parametrize("out", ["new", "a/new", "run", "other", "empty"])
@pytest.mark.parametrize("words", REFUSED)
def test_a_refusal_leaves_nothing_behind(here, words, out):
    """No folder of its own, and the run that it was moved aside for where it was."""
    shutil.copytree("run", "other")
    Path("empty").mkdir()
    if out == "run" and "branch_from" in REFUSED[words]:
        pytest.skip("a branch over its parent is refused as such")
    before, folders = files(here), sorted(here.rglob("*"))
    with pytest.raises(UserError, match=words):
        typed(out, **REFUSED[words])
    assert files(here) == before
    assert sorted(here.rglob("*")) == folders


@pytest.mark.parametrize("spoil", ["folder", "gone"])
def test_a_branch_of_a_run_whose_rows_are_lost_is_refused_or_says_so(here, spoil, capsys):
    rows = Path("run/metrics.jsonl")
    rows.unlink()
    if spoil == "gone":
        typed("new", branch_from="run@2")
        assert "lacks the rows after step 0" in capsys.readouterr().out
        return
    rows.mkdir()
    before = files(here)
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be read"):
        typed("new", branch_from="run@2")
    assert files(here) == before


def test_a_run_that_has_begun_stays_where_it_fails(here, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise UserError("cannot write: no space")

    monkeypatch.setattr("nanoscale.training.recorder.save", full)
    with pytest.raises(UserError, match="no space"):
        typed("new")
    assert RunFolder("new").state() == "WAITING"
    assert RunFolder("new").rows()
