"""`nanoscale sync`: finished runs go to a tracker once each, whatever happens in between."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tiny import RUN, run_nanoscale, spec_maker

from nanoscale.__main__ import main
from nanoscale.experiments import Study
from nanoscale.experiments.records import Asked, RunEntry
from nanoscale.store.files import write_json
from nanoscale.store.folder import RunFolder
from nanoscale.store.resume import open_folder
from nanoscale.training.run import train_folder
from nanoscale.training.trackers import registered_by

NOTES = """
from pathlib import Path
from nanoscale import register_tracker

class Notes:
    def __init__(self, run):
        self.failing = Path("failing").read_text() if Path("failing").exists() else ""
        self.note(f"{run.study}: {run.name}")
    def note(self, text):
        if text == self.failing:
            raise {"interrupt": KeyboardInterrupt}.get(Path("how").read_text(), OSError)("oh")
        with open("notes.txt", "a") as file:
            print(text, file=file)
    def row(self, step, numbers):
        self.note(f"{step} {numbers['train_loss']}")
    def final(self, results):
        self.note(f"{results['final/status']} {results['final/val_loss']}")
    def close(self): ...

register_tracker("notes", Notes)
"""


@pytest.fixture(scope="module")
def made(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs of two updates in a study, and one that waits."""
    root = tmp_path_factory.mktemp("made") / "experiments_out"
    entries = []
    for seed in (1, 2, 3):
        spec = spec_maker(RUN, data_root)(max_iters=2, eval_interval=0, seed=seed)
        folder = open_folder(root / "runs" / spec.name, spec, False)
        if seed < 3:
            train_folder(folder)
        entries.append(RunEntry(spec.id, folder.path.name, {"seed": seed}, 1))
    Study("seeds", Asked(), root, entries).save()
    return root


@pytest.fixture
def study(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    Path("notes.py").write_text(NOTES)
    shutil.copytree(made, "experiments_out")
    registered_by.cache_clear()
    return Study.open(Path("experiments_out", "seeds"))


def sync(name: str = "seeds", *options: str) -> int:
    return main(["sync", name, "--to=notes", "--trackers=notes.py", *options])


def notes() -> list[str]:
    return Path("notes.txt").read_text().splitlines() if Path("notes.txt").exists() else []


def told(folder: RunFolder, title: str) -> list[str]:
    """What is told of one run."""
    rows = [f"{row['step']} {row['train_loss']}" for row in folder.rows()]
    return [title, *rows, f"COMPLETE {folder.metrics()['val_loss']}"]


def test_finished_runs_are_sent_once_each(study, capsys):
    first, second, waiting = [folder for _, folder in study.runs()]
    assert sync("seeds", "--json=sent.json") == 0
    everything = told(first, "seeds: seed=1") + told(second, "seeds: seed=2")
    assert notes() == everything
    assert capsys.readouterr().out.splitlines() == [
        "sent seed=1",
        "sent seed=2",
        "2 runs sent to notes, 1 unfinished",
    ]
    assert json.loads(Path("sent.json").read_text()) == {
        "to": "notes",
        "sent": [str(first.path), str(second.path)],
        "there": [],
        "unfinished": [str(waiting.path)],
        "held": [],
        "failed": [],
    }
    assert sync("experiments_out/seeds") == 0  # its path, as a shell completes it
    assert notes() == everything
    assert capsys.readouterr().out == "0 runs sent to notes, 2 there already, 1 unfinished\n"
    assert sync("seeds", "--again") == 0
    assert notes() == 2 * everything


def test_one_that_is_interrupted_goes_on(study, capsys):
    first, second, _ = [folder for _, folder in study.runs()]
    row = told(second, "")[2]
    Path("failing").write_text(row)
    Path("how").write_text("interrupt")
    assert sync() == 130
    assert list(first.record("sent.json")) == ["notes"]
    assert second.record("sent.json") is None
    Path("failing").unlink()
    assert sync() == 0
    assert "1 run sent to notes, 1 there already" in capsys.readouterr().out
    whole = told(second, "seeds: seed=2")
    assert notes() == told(first, "seeds: seed=1") + whole[:2] + whole


def test_a_run_that_cannot_be_sent_whole_is_no_success(study, capsys):
    first, _, _ = [folder for _, folder in study.runs()]
    Path("failing").write_text(told(first, "")[1])
    Path("how").write_text("")
    assert sync() == 1
    out = capsys.readouterr().out
    assert "notes has failed (OSError: oh)" in out
    assert "1 run sent to notes, 1 unfinished, 1 not sent whole" in out
    Path("failing").unlink()
    assert sync() == 0
    assert "1 run sent to notes, 1 there already" in capsys.readouterr().out


@pytest.mark.parametrize("rows", [0, 1])
def test_a_run_whose_rows_are_gone_is_not_sent(study, capsys, rows):
    first, second, _ = [folder for _, folder in study.runs()]
    path = first / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:rows]))
    assert sync() == 1
    assert notes() == told(second, "seeds: seed=2")
    assert first.record("sent.json") is None
    out = capsys.readouterr().out
    assert f"not sent: seed=1: metrics.jsonl ends after step {rows} of 2" in out
    assert "1 run sent to notes, 1 unfinished, 1 not sent whole" in out


def test_two_at_once_send_a_run_once(study, capsys):
    first, second, _ = [folder for _, folder in study.runs()]
    with first.take():  # as another process does that sends it
        assert sync() == 0
    assert notes() == told(second, "seeds: seed=2")
    assert "1 run sent to notes, 1 unfinished, 1 in another process" in capsys.readouterr().out


def test_one_run_is_sent_in_the_group_of_a_study_that_has_it(study, capsys):
    first, second, _ = [folder for _, folder in study.runs()]
    assert sync(str(first.path)) == 0
    assert notes() == told(first, "seeds: seed=1")
    write_json(second / "cell.json", {"study": "another", "cell": "mine"})  # asked last
    assert sync(str(second.path)) == 0
    assert notes()[4:] == told(second, "another: mine")
    assert sync() == 0  # under whatever study
    assert len(notes()) == 8


REFUSED = {
    "no study": (["none", "--to=wandb"], "no study 'none'"),
    "no tracker": (["seeds", "--to=wadnb"], "--to=wadnb: choose 'wandb', 'tensorboard'"),
    "no file": (["seeds", "--to=notes", "--trackers=none.py"], "trackers=none.py: no such file"),
    "not registered": (["seeds", "--to=notes"], "'trackio'; --trackers=FILE registers one"),
    "no target": (["seeds"], "--to TRACKER is missing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_sent_is_refused(study, capsys, case):
    arguments, said = REFUSED[case]
    assert main(["sync", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_tracker_that_refuses_ends_it(study, capsys, monkeypatch):
    Path("failing").write_text("seeds: seed=1")
    Path("how").write_text("")
    assert sync() == 2
    assert capsys.readouterr().err == "error: --to=notes: OSError: oh\n"
    monkeypatch.setattr("nanoscale.training.trackers.find_spec", lambda name: None)
    assert main(["sync", "seeds", "--to=trackio"]) == 2
    assert "nanoscale[trackio]" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(find_spec("trackio") is None, reason="needs trackio")
def test_trackio_has_every_step_once_however_often_it_is_told(study, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(Path("trackio").absolute()))
    for options in ([], [], ["--again"]):
        done = run_nanoscale("sync", "seeds", "--to=trackio", "--json=-", *options)
        assert done.returncode == 0, done.stderr
        json.loads(done.stdout)  # of which Trackio says nothing
    with closing(sqlite3.connect("trackio/tiny.db")) as database:
        rows = list(database.execute("SELECT run_name, step, metrics FROM metrics"))
    assert len(rows) == 4
    found: dict[str, Any] = {name.split()[0]: json.loads(text) for name, _, text in sorted(rows)}
    for entry, folder in study.runs():
        if metrics := folder.metrics():
            assert found[entry.title]["final/val_loss"] == metrics["val_loss"]
