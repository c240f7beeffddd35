"""The start of a run as a function: a config in, a record of what it came to out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import RUN

from nanoscale.errors import UserError
from nanoscale.model.launch import Launch
from nanoscale.spec.config import ExperimentConfig
from nanoscale.spec.sources import Source, build
from nanoscale.store.folder import METRICS, RunFolder
from nanoscale.training.records import RunResult
from nanoscale.training.run import evaluate, train


@pytest.fixture
def config(desk: Path) -> ExperimentConfig:
    return build([Source("test", RUN | {"max_iters": 4})])


def test_a_result_is_metrics_json_typed(config):
    result = train(config, "here")
    assert result.status == "COMPLETE"
    assert result.iter_num == 4
    assert result.val_loss > 0
    assert result.folder.path == Path("here")
    metrics = json.loads((Path("here") / METRICS).read_text())
    assert result.to_json() == metrics
    assert list(result.to_json()) == list(metrics)


def test_a_finished_run_is_read_and_not_run_again(config, capsys):
    first = train(config, "here")
    before = (Path("here") / METRICS).stat().st_mtime_ns
    again = train(config, "here")
    assert (Path("here") / METRICS).stat().st_mtime_ns == before
    assert again.to_json() == first.to_json()
    assert "this run is COMPLETE already" in capsys.readouterr().out


@pytest.mark.slow
def test_out_dir_is_the_configs_unless_it_is_given(config):
    assert train(replace(config, out_dir="mine")).folder.path == Path("mine")
    there = train(config, "there").folder
    assert there.spec().config.out_dir == "there"


@pytest.mark.slow
def test_resume_continues_what_the_folder_holds(config):
    steady = replace(config, lr_schedule="constant", eval_interval=0)
    train(steady, "here")
    longer = train(replace(steady, max_iters=8), "here", resume=True)
    assert longer.iter_num == 8
    assert [row["step"] for row in longer.folder.rows()] == list(range(1, 9))
    with pytest.raises(UserError, match="holds no run"):
        train(config, "nowhere", resume=True)


def test_what_differs_from_the_defaults_was_typed(config):
    typed = train(config, "here").folder.spec().typed
    assert typed["n_layer"] == 2
    assert typed["compile"] is False
    assert "n_kv_head" not in typed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "nowhere"}, "no dataset 'nowhere'"),
        ({"block_size": 10**6}, "lower block_size"),
        ({"device": "tpu"}, "device=tpu: not available here"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(config, changes, message):
    with pytest.raises(UserError, match=message):
        train(replace(config, **changes), "here")
    assert not Path("here").exists()


def test_of_many_processes_the_master_alone_opens_the_folder(config, monkeypatch):
    monkeypatch.setattr("nanoscale.training.run.launched", lambda: Launch(1, 2, 1))
    monkeypatch.setattr("nanoscale.training.run.train_ranks", lambda *_: "over ranks")
    assert train(config, "here") == "over ranks"
    assert not Path("here").exists()


def test_an_unfinished_folder_says_how_far_it_got(config):
    done = train(replace(config, lr_schedule="constant"), "here").folder
    (done / METRICS).unlink()
    done.set_status(state="WAITING", step=3)
    result = RunResult.read(RunFolder("here"))
    assert (result.status, result.iter_num, result.val_loss) == ("WAITING", 3, None)
    assert result.tokens_seen == 3 * config.tokens_per_iter


@pytest.mark.slow
def test_evaluate_trains_and_writes_nothing(config, capsys):
    result = train(config, "here")
    files = sorted(Path("here").iterdir())
    loss = evaluate(replace(config, out_dir="here", init_from="resume"))
    assert loss == result.val_loss
    assert sorted(Path("here").iterdir()) == files
    assert evaluate(replace(config, out_dir="nowhere")) != loss  # of an untrained model
    assert not Path("nowhere").exists()
