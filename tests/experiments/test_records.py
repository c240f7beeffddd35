"""Records of a study: what they write, in which order, and that it is read back as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_worker import TINY, VALLEY
from grids import a_runner

from nanoscale.errors import UserError
from nanoscale.experiments import Study
from nanoscale.experiments.records import Asked, RunEntry, TargetRuns

LR = {"learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}}
SEARCH = TINY | {"beta1": VALLEY, "seed": 3}


def written(study: Study) -> dict:
    return json.loads((study.folder / "study.json").read_text())


@pytest.fixture(params=["grid", "search", "one", "left out"])
def study(request) -> Study:
    if request.param == "grid":
        return a_runner().run_grid("g", TINY, {"n_layer": [1]}, seeds=[1, 2])
    if request.param == "search":  # trial and target are one run of seed 3, or two of seed 4
        return a_runner().run_random("s", SEARCH, LR, trials=2, seeds=[3, 4])
    if request.param == "one":
        return a_runner().run_experiment(TINY, name="o")
    return a_runner(budget=1).run_grid("b", TINY, {"n_layer": [1]})


@pytest.mark.slow
def test_a_study_reads_back_what_it_wrote(study):
    text = (study.folder / "study.json").read_text()
    again = Study.open(study.folder)
    assert again.asked == study.asked
    assert again.entries == study.entries
    assert again.best == study.best
    assert again.target == study.target
    again.save()
    assert (study.folder / "study.json").read_text() == text


def test_the_keys_of_a_grid_have_their_order():
    record = written(a_runner().run_grid("g", TINY, {"n_layer": [1]}))
    assert list(record) == ["schema", "name", "asked", "warnings", "runs"]
    assert list(record["asked"]) == ["base_config", "base_params", "grid_params"]
    (run,) = record["runs"]
    assert list(run) == ["id", "folder", "values", "flops", "left_out", "state"]
    assert (run["left_out"], run["state"]) == (False, "COMPLETE")


@pytest.mark.slow
def test_the_keys_of_a_search_have_their_order():
    record = written(a_runner().run_random("s", SEARCH, LR, trials=2, seeds=[3, 4]))
    assert list(record)[-3:] == ["runs", "best", "found"]
    assert list(record["asked"]) == ["base_config", "base_params", "search"]
    assert list(record["asked"]["search"]) == [
        "space",
        "trials",
        "sampler",
        "seed",
        "rungs",
        "promote",
        "proxy",
        "seeds",
    ]
    assert list(record["best"]) == ["trial", "values", "val_loss", "folder"]
    assert list(record["found"]) == ["trials", "importance"]
    trial = ["id", "folder", "values", "flops", "trial", "rung", "trial_values", "state"]
    keys = {tuple(run) for run in record["runs"]}
    assert keys == {
        tuple(trial),
        (*trial, "target"),  # a trial that is a target too became one at the end
        ("id", "folder", "values", "flops", "target", "state"),
    }


def test_what_a_study_file_asks_keeps_its_recipes_own_keys_in_their_place():
    asked = Asked(
        base_config=[],
        recipe="mine",
        question="Why?",
        min_sizes=4,
        command="nanoscale study mine.toml",
        file="[study]",
        extras={"size": "n_embd", "arms": [{"name": "SP"}]},
    )
    record = asked.to_json()
    assert list(record) == [
        "base_config",
        "base_params",
        "recipe",
        "question",
        "min_sizes",
        "command",
        "file",
        "size",
        "arms",
    ]
    assert Asked.from_json(json.loads(json.dumps(record))) == asked
    assert Asked(command="nanoscale coord-check").to_json() == {"command": "nanoscale coord-check"}
    assert Asked.from_json({}).to_json() == {}


def test_an_entry_is_called_by_its_values_or_its_folder():
    assert str(RunEntry("1", "toy-1", {"n_layer": 2, "seed": 1}, 5)) == "n_layer=2, seed=1"
    assert str(RunEntry("1", "toy-1", {}, 5)) == "toy-1"


@pytest.mark.parametrize(
    ("losses", "line"),
    [
        ({1: 2.0, 2: 4.0}, "target: val_loss 3.0000, sd 1.4142 (2 seeds) at lr=1"),
        ({1: 2.0, 2: None}, "target: val_loss 2.0000 (1 of 2 seeds; diverges in 1) at lr=1"),
        ({}, "target: none of 2 runs has a loss at lr=1"),
    ],
)
def test_what_became_of_the_best_values_is_said_in_a_line(losses, line):
    assert str(TargetRuns({"lr": 1}, losses, 2)) == line


def test_the_trial_that_chose_the_values_is_not_in_their_mean():
    target = TargetRuns({"lr": 1}, {3: 2.0, 4: 2.5, 5: 2.7}, 3, chose=[3])
    assert str(target).startswith(
        "target: val_loss 2.6000, sd 0.1414 (2 of 3 seeds; seed 3 chose the values) at"
    )
    assert TargetRuns({"lr": 1}, {3: 2.0}, 1, chose=[3]).losses == [2.0]


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"name": "x", "runs": [{"id": "1"}]}',
        '{"name": "x", "runs": 3}',
        '{"name": 3, "runs": []}',
    ],
)
def test_what_is_no_record_is_refused_in_a_line(text):
    folder = Path("experiments_out/x")
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(text)
    with pytest.raises(UserError, match=r"study\.json: not a study's record; run the study again"):
        Study.open(folder)
