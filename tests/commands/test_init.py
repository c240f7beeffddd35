"""`nanoscale init`: copies to edit, which go before what comes with the package."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from tiny import ROOT

from nanoscale.__main__ import main
from nanoscale.errors import UserError
from nanoscale.spec.sources import load_config
from nanoscale.studies.study_file import read_study


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_with_a_study_and_a_config_to_edit(here, monkeypatch, capsys):
    assert main(["init", "lab"]) == 0
    said = capsys.readouterr().out
    assert "cd lab" in said
    assert "study starter --dry-run" in said
    monkeypatch.chdir(here / "lab")
    for folder, name in (("studies", "starter.toml"), ("config", "starter.py")):
        assert Path(folder, name).read_text() == (ROOT / folder / name).read_text()

    own = Path("config/starter.py")
    own.write_text(own.read_text().replace("n_layer = 3", "n_layer = 1"))
    assert load_config("starter").n_layer == 1
    study = Path("studies/starter.toml")
    study.write_text(study.read_text().replace('dataset = "pysource"', 'dataset = "mine"'))
    assert read_study(Path("starter")).base["dataset"] == "mine"


def test_other_names_here_and_again(here, capsys):
    assert main(["init", ".", "--study=isoflop", "--config=train_gpt2"]) == 0
    assert "cd " not in capsys.readouterr().out
    (here / ".gitignore").write_text("mine\n")
    assert main(["init", ".", "--study=quick"]) == 0  # beside what is there
    assert (here / ".gitignore").read_text() == "mine\n"
    (here / "config" / "starter.py").unlink()
    assert main(["init", ".", "--study=isoflop"]) == 2
    err = capsys.readouterr().err
    assert err == (
        "error: studies/isoflop.toml is there already and is never written over: edit it, or take "
        "another DIR\n"
    )
    assert not (here / "config" / "starter.py").exists()


def test_ones_own_study_is_copied_by_its_name(here):
    assert main(["init", "."]) == 0
    own = Path("studies/starter.toml").rename("studies/mine.toml")
    assert main(["init", "lab", "--study=mine"]) == 0
    assert Path("lab/studies/mine.toml").read_text() == own.read_text()


def test_the_next_command_can_be_copied(here, capsys):
    assert main(["init", "it's a `lab`"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "  cd " in line)
    assert shlex.split(line) == ["cd", "it's a `lab`"]


def test_a_full_disk_leaves_no_half_of_it(here, monkeypatch, capsys):
    def full(path: Path, text: str) -> None:
        if path.suffix == ".py":
            raise UserError("cannot write: no space left")
        path.write_text(text)

    monkeypatch.setattr("nanoscale.commands.init.write_text", full)
    assert main(["init", "lab"]) == 2
    assert not [path for path in here.rglob("*") if path.is_file()]
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert main(["init", "lab"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lab", "--study=qick"], "--study=qick: no such name; did you mean 'quick'?"),
        (["lab", "--config=zzz"], "--config=zzz: no such name; choose 'eval_gpt2', "),
        (["no/such/lab"], "DIR no/such/lab: there is no folder no/such; make it first"),
        (["file"], "cannot write file: not a directory"),
        ([""], "DIR is empty; name a folder, or . for this one"),
    ],
)
def test_refusals_leave_nothing(here, arguments, said, capsys):
    (here / "file").write_text("mine")
    assert main(["init", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1
    assert [path.name for path in here.rglob("*")] == ["file"]
