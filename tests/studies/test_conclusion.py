"""A study's page beside its answer: cost, origin, what has no result, what makes it again."""

from __future__ import annotations

import html
import json
import math
import re
import shlex
import shutil
from pathlib import Path

import fake_worker
import pytest
from fake_worker import CRASH, DIVERGE, TINY

import nanoscale as ns
from nanoscale.__main__ import main
from nanoscale.commands.sample import text_by
from nanoscale.experiments import ExperimentRunner, Study
from nanoscale.experiments.local import ForkServer
from nanoscale.experiments.worker import Worker
from nanoscale.store.run_records import is_sound
from nanoscale.studies import conclusion
from nanoscale.studies.study_facts import facts_of, provenance_of


@pytest.fixture
def study(tmp_path, monkeypatch) -> Study:
    """Three runs: one complete, one diverged, one failed."""
    fake_worker.stand_in(tmp_path, monkeypatch)
    backend = ForkServer(Worker(entry="fake_worker:main", preload=()))
    runner = ExperimentRunner(backend=backend, retries=0)
    return runner.run_grid("toy", TINY, {"beta1": [0.9, DIVERGE, CRASH]})


def page_of(study: Study) -> str:
    return html.unescape((study.folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_says_cost_origin_and_what_has_no_result(study):
    for _, folder in study.runs():
        metrics = folder.metrics()
        if metrics:
            metrics["provenance"] = {"git_commit": "1a2b3c4d5e", "python": "3.11", "host": "mine"}
            (folder / "metrics.json").write_text(json.dumps(metrics))
    conclusion.conclude(study)
    page = page_of(study)
    assert facts_of(study)[0] == "3 runs: 1 COMPLETE, 1 DIVERGED, 1 FAILED"
    assert facts_of(study)[3:] == ["commit 1a2b3c4"]
    assert "3 runs: 1 COMPLETE, 1 DIVERGED, 1 FAILED · " in page
    assert " · commit 1a2b3c4" in page
    assert "<dt>python</dt><dd>3.11</dd>" in page
    assert "mine" not in page  # the name of a machine is nobody's business
    table = page[page.index("Runs without a result") :]
    rows = re.findall(r"<td>(.*?)</td>" * 3, table.replace("\n", ""))
    assert [row[:2] for row in rows] == [(f"beta1={DIVERGE}", "DIVERGED"),
                                         (f"beta1={CRASH}", "FAILED")]  # fmt: skip
    assert "this run crashes" in rows[1][2]


def test_a_studys_answer_is_read_by_its_name_and_nothing_is_written(study):
    before = sorted(study.folder.iterdir())
    said = ns.answer("toy")
    assert sorted(study.folder.iterdir()) == before
    assert said.verdict == ""
    assert said.lines[0].startswith("lowest val_loss ")
    first = said.numbers["settings"][0]
    assert (first["values"], first["standing"]) == ({"beta1": 0.9}, "best")
    assert said.text.startswith(said.lines[0])
    assert ns.answer(study) == ns.answer(study.folder) == said
    assert json.loads(json.dumps(said.to_json()))["name"] == "toy"
    conclusion.conclude(study)
    kept = json.loads((study.folder / "answer.json").read_text(encoding="utf-8"))
    assert kept["lines"] == said.lines


def test_an_answer_says_what_a_careful_reader_would_ask(study):
    first = next(study.runs())[1]
    (first / "metrics.json").write_text("{}")
    said = ns.answer("toy")
    assert said.verdict == "inconclusive"
    assert any("says no val_loss" in warning for warning in said.warnings)
    assert said.text.splitlines()[-1] == f"warning: {said.warnings[-1]}"


@pytest.mark.parametrize("ask", [ns.answer, ns.open_study])
def test_a_study_that_is_not_there_is_named_with_the_nearest(study, ask):
    with pytest.raises(ns.UserError) as error:
        ask("tay")
    assert str(error.value) == "no study 'tay' in experiments_out; did you mean 'toy'?"


def test_a_studys_name_in_place_of_its_file_is_told_what_to_do(study, tmp_path):
    begins = "toy: that is a study, and not its file; nanoscale report toy tells its answer, "
    with pytest.raises(ns.UserError, match=re.escape(f"{begins}ns.answer('toy') in Python")):
        ns.run_study("toy")
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "toy.toml").write_text("[study]\n")  # a file of that name goes before
    with pytest.raises(ns.UserError, match=r"toy\.toml, \[study\]: recipe=None: choose"):
        ns.run_study("toy")


def test_what_runs_differ_in_is_all_said(study):
    folders = [folder for _, folder in study.runs() if folder.metrics()]
    for folder, version in zip(folders, ("3.11", "3.12"), strict=True):
        metrics = folder.metrics() | {"provenance": {"python": version, "git_dirty": False}}
        (folder / "metrics.json").write_text(json.dumps(metrics))
    told = provenance_of(study)
    assert (told["python"], told["git_dirty"]) == ("3.11, 3.12", False)
    assert len(facts_of(study)) == 3  # no commit is known


def test_every_command_of_a_page_runs(study, capsys):
    conclusion.conclude(study)
    commands = re.findall(r"<code>(.*?)</code>", page_of(study))
    assert len(commands) == 3
    for command in commands[1:]:
        words = shlex.split(command)
        assert main(words[words.index("nanoscale") + 1 :]) == 0, command


def test_a_text_is_by_the_best_run_and_written_once(study):
    best, *_ = (folder for _, folder in study.runs())
    asked: list[Path] = []

    def writer(folder: Path) -> str:
        asked.append(folder)
        return "To be"

    for again in (writer, writer, None):
        conclusion.conclude(study, writer=again)
        assert f"What run {best.path.name.rpartition('-')[2]} writes" in page_of(study)
        assert "<pre>To be</pre>" in page_of(study)
    assert asked == [best.path]


def test_a_run_that_cannot_write_has_no_text(study):
    assert text_by(next(study.runs())[1].path) is None  # the stand-in's weights are none
    conclusion.conclude(study, writer=text_by)
    assert "writes</h2>" not in page_of(study)


def test_a_kept_text_that_is_none_is_written_anew(study):
    best = next(study.runs())[1].path
    for kept in ({}, {"text": 5}, {"text": None}, ["a"], 7):
        record = {"run": best.name, **kept} if isinstance(kept, dict) else kept
        (study.folder / "answer.json").write_text(json.dumps({"text": record}))
        conclusion.conclude(study, writer=lambda _: "\x1b[31mTo\ud800 be")
        assert "<pre>\ufffd[31mTo\ufffd be</pre>" in page_of(study)


ODD = [
    {"flops": "many"}, {"flops": [1]}, {"wall_seconds": -5}, {"wall_seconds": math.nan},
    {"val_loss": "low"}, {"val_loss": -1}, {"val_loss": True}, {"provenance": [1]},
    {"provenance": {"data": "x"}}, {"provenance": {"data": {"name": "x"}}},
    {"provenance": {"data": {"fingerprint": "f", "parts": [1]}}},
    {"provenance": {"git_commit": 1}}, {"numerics": "x"}, {"params": [1]},
    {"params": {"by_convention": None}}, {"val_sets": ["a"]}, {"val_sets": {"a": 1}},
    {"val_sets": {"a": {"loss": "x"}}},
]  # fmt: skip


@pytest.mark.parametrize("changes", ODD)
def test_results_of_another_kind_are_told_from_sound_ones(changes):
    sound = {
        "val_loss": 2.5, "flops": 10, "wall_seconds": 0.5, "numerics": {"device": "cpu"},
        "provenance": {"git_commit": None, "data": {"fingerprint": "f", "parts": {"val": "g"}}},
        "params": {"by_convention": {}}, "val_sets": {"a": {"loss": 2.0}},
    }  # fmt: skip
    assert is_sound(sound)
    assert is_sound({})
    assert not is_sound(sound | changes)


def test_results_of_another_kind_are_damage_that_is_said(study):
    first = next(study.runs())[1]
    metrics = json.loads((first / "metrics.json").read_text()) | ODD[0]
    (first / "metrics.json").write_text(json.dumps(metrics))
    conclusion.conclude(study)
    assert "metrics.json is gone or cannot be read;" in page_of(study)
    assert "retry toy mends it" in page_of(study)


def test_results_without_a_loss_are_warned_about(study):
    first = next(study.runs())[1]
    (first / "metrics.json").write_text("{}")
    conclusion.conclude(study)
    assert "metrics.json says no val_loss; move the folder away" in page_of(study)


def test_a_damaged_study_is_one_line(study, capsys):
    whole = json.loads((study.folder / "study.json").read_text())
    for changes in (
        {"runs": []},
        {"warnings": None},
        {"name": "../other"},
        {"name": 3},
        {"runs": [{"id": "a"}]},
    ):
        (study.folder / "study.json").write_text(json.dumps(whole | changes))
        capsys.readouterr()
        assert main(["report", "toy"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")


def test_dots_of_equal_losses_lead_nowhere(study):
    first, *others = (folder for _, folder in study.runs())
    conclusion.conclude(study)
    assert "#run-" in page_of(study)
    for folder in others:
        shutil.copy(first / "metrics.json", folder / "metrics.json")
        folder.set_status(state="COMPLETE")
    conclusion.conclude(study)
    dots = page_of(study).partition("Figure 1")[0]  # its curves have their run's name
    assert "#run-" not in dots
