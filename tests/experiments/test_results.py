"""What a study reads from its run folders, which are made by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fake_worker import TINY
from grids import a_runner

from nanoscale.errors import UserError
from nanoscale.experiments import Study
from nanoscale.experiments.results import matching_studies, study_folder
from nanoscale.experiments.tables import read_table


@pytest.fixture
def study() -> Study:
    """Three runs of a grid, none of which is there yet."""
    return a_runner().run_grid("g", TINY, {"seed": [1, 2, 3]}, dry_run=True)


def ended(study: Study, *states: str) -> None:
    """The runs with results: rising losses, and falling ones on the way."""
    for number, (state, (_, folder)) in enumerate(zip(states, study.runs(), strict=True)):
        folder.path.mkdir(parents=True)
        results = {"val_loss": 2.0 + number, "best_val_loss": 1.0 - 0.1 * number}
        for name, record in (("config", {"id": "x", "config": {}}), ("metrics", results)):
            (folder / f"{name}.json").write_text(json.dumps(record))
        folder.set_status(state=state)


def test_the_best_is_the_setting_of_lowest_mean_final_loss(study):
    ended(study, *["COMPLETE"] * 3)
    assert (study.best.values, study.best.val_loss, study.best.seeds) == ({}, 3.0, 3)
    assert study.best.folder == study.entries[0].folder  # its lowest run


@pytest.mark.parametrize(
    ("states", "mean"),
    [
        ("COMPLETE FAILED COMPLETE", 3.0),
        ("COMPLETE DIVERGED COMPLETE", None),
        ("DIVERGED WAITING WAITING", None),
    ],
)
def test_a_diverged_seed_rules_its_setting_out_and_a_missing_one_does_not(study, states, mean):
    ended(study, *states.split())
    assert (study.best and study.best.val_loss) == mean


@pytest.mark.parametrize(
    ("states", "ok"),
    [
        (("COMPLETE", "DIVERGED", "PRUNED"), True),
        (("COMPLETE", "COMPLETE", "FAILED"), False),
        (("COMPLETE", "WAITING", "COMPLETE"), False),
    ],
)
def test_a_study_is_ok_once_every_run_has_its_result(study, states, ok):
    ended(study, *states)
    assert study.ok == ok
    study.entries = [replace(entry, left_out=True) for entry in study.entries]
    assert study.ok


def test_a_targets_losses_are_final_ones(study):
    study.entries = [replace(entry, target=True) for entry in study.entries]
    ended(study, "COMPLETE", "COMPLETE", "WAITING")
    assert study.target.val_loss == {1: 2.0, 2: 3.0}


def test_a_whole_name_is_one_study_and_a_part_of_names_all_of_them(study):
    for name in ("lr", "lr2"):
        replace(study, name=name).save_record()
    found = {
        text: [s.name for s in matching_studies(study.output_root, text)]
        for text in ("lr", "l", "")
    }
    assert found == {"lr": ["lr"], "l": ["lr", "lr2"], "": ["lr", "lr2"]}


@pytest.mark.slow
def test_a_run_with_trackers_knows_whose_cell_it_is(tmp_path):
    """The last study that asked for it; one without has no such file."""
    runner = a_runner(workers=1)
    tracked = TINY | {"tensorboard_log": True}
    study = runner.run_grid("g", tracked, {"seed": [1]})
    ((_, folder),) = study.runs()
    assert folder.record("cell.json") == {"study": "g", "cell": "seed=1"}
    ((_, folder),) = runner.run_grid("h", TINY, {"seed": [2]}).runs()
    assert folder.record("cell.json") is None

    space = {"learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}}
    search = runner.run_hpo("s", tracked, space, trials=1, sampler="random")
    ((entry, folder),) = search.runs()
    cell = f"trial 0: learning_rate={entry.trial_values['learning_rate']}"
    assert folder.record("cell.json") == {"study": "s", "cell": cell}


def test_a_study_is_found_by_its_name_or_its_path(study, monkeypatch):
    study.save_record()
    root = study.output_root
    assert study_folder("g", root) == study_folder(f"{root}/g/", root) == root / "g"
    assert read_table(root / "g", output_root="elsewhere").shape[0] == 3
    with pytest.raises(UserError, match=f"^no study 'gg' in {root}; did you mean 'g'"):
        Study.open(study_folder(f"{root}/gg", root))
    monkeypatch.chdir(root / "g")
    for here in (".", "../g"):
        opened = Study.open(study_folder(here, "elsewhere"))
        assert (len(opened), opened.folder.resolve()) == (3, Path.cwd())
