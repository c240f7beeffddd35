"""How long a plan takes: of finished runs, of a calibration, or a bound that needs neither."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fake_worker import CRASH, TINY
from grids import FAKE, a_runner
from tiny import RUN, spec_maker

from nanoscale.experiments import timing
from nanoscale.experiments.local import ForkServer
from nanoscale.experiments.planning import total_line
from nanoscale.spec.counting import flops_per_iter
from nanoscale.store.folder import RunFolder

LONG = TINY | {"max_iters": 1000, "eval_interval": 500, "eval_iters": 10}  # 16 tokens an update
SECONDS = 1000 * 16 / 1e4  # at the fake worker's speed


def last(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[-1]


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """Where temporary folders are made."""
    home = tmp_path / "temporary"
    home.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(home))
    return home


def test_without_runs_of_a_size_its_updates_are_measured_and_nothing_is_left(capsys, temporary):
    base = LONG | {"final_eval_tokens": 30_000}
    a_runner(workers=2).run_grid("g", base, {"n_embd": [16, 64, 32, 64]}, dry_run=True)
    held = 4000  # tokens, all that the data have
    evaluations = (held + 3 * 2 * 10 * 16) / 3 / 1e4  # forward alone, at updates 0, 500 and 1000
    seconds = 3 * (SECONDS + evaluations) / 2
    words = rf"\[g\] about {seconds:.1f} s on 2 workers, by a calibration of [\d.]+ s"
    assert re.fullmatch(words, last(capsys))
    assert not list(temporary.iterdir())
    assert not Path("experiments_out").exists()


def test_a_search_has_a_time_too(capsys):
    space = {"learning_rate": [1e-4, 1e-3, 1e-2]}
    base = LONG | {"eval_interval": 0, "final_eval_tokens": 1}
    how = {"trials": 3, "seeds": [1, 2], "proxy": {"n_embd": 8}, "dry_run": True}
    a_runner(workers=1).run_random("s", base, space, **how)
    assert f"about {5 * SECONDS:.1f} s on 1 worker, by a calibration of " in last(capsys)


def test_what_takes_less_than_a_calibration_is_bounded(capsys, monkeypatch):
    monkeypatch.setattr(timing, "measured", None)
    a_runner(workers=1).run_grid("g", TINY, {"seed": [1, 2]}, dry_run=True)
    most = 2 * (0.5 + 5 * 0.02)
    assert re.fullmatch(r"\[g\] at most (\S+) s on 1 worker, too little to measure", last(capsys))
    study = a_runner(workers=1).run_grid("g", TINY | {"final_eval_tokens": 1}, dry_run=True)
    assert f"at most {most / 2:.1f} s" in last(capsys)
    assert len(study) == 1


def test_runs_with_statistics_say_nothing_of_runs_without(capsys):
    runner = a_runner(workers=1)
    runner.run_grid("check", LONG | {"stats_interval": 1}, {"seed": [1, 2]})
    runner.run_grid("g", LONG, dry_run=True)
    assert "by a calibration of" in last(capsys)
    runner.run_grid("h", LONG | {"stats_interval": 1, "seed": 3}, dry_run=True)
    assert "calibration" not in last(capsys)


@pytest.mark.parametrize("local", [True, False])
def test_a_time_that_nothing_tells_is_unknown(local, capsys):
    backend = ForkServer(FAKE)
    backend.local = local
    runner = a_runner(workers=1, backend=backend)
    runner.run_grid("g", LONG | {"beta1": CRASH}, {"n_layer": [1, 2]}, dry_run=True)
    said = last(capsys)
    assert "time unknown: no run has finished here yet whose speed could tell" in said
    assert ("a calibration of" in said) == local


def test_a_plan_of_nothing_takes_no_time():
    assert total_line([(0.0, timing.RunTimes({}, 1))]) == []


def test_parts_of_a_plan_follow_each_other_each_on_its_own_workers():
    many, one = timing.RunTimes({}, 2), timing.RunTimes({}, 1, measured=3.0)
    line = "about 1 min 10 s on 2 workers, then 1, by a calibration of 3.0 s"
    assert total_line([(120.0, many), (10.0, one)]) == [line]
    assert total_line([(120.0, many), (0.0, one)]) == [
        line.replace("10 s", "00 s").replace(", then 1", "")
    ]


@pytest.mark.slow
def test_what_is_measured_is_a_run_of_the_same_updates(data_root, tmp_path, monkeypatch):
    from nanoscale.training.run import train_folder

    monkeypatch.setattr(timing, "UPDATES", 6)
    make = spec_maker(RUN, data_root)
    spec = make(n_layer=2, checkpoint_steps=(3,), wandb_log=True, trackers="none.py")
    folder = RunFolder(tmp_path / "short")
    folder.create(timing.short_run(spec))
    train_folder(folder)
    assert len([row for row in folder.rows() if row["tokens_per_second"]]) == 6
    assert flops_per_iter(folder.spec().config) == flops_per_iter(spec.config)

    third = flops_per_iter(spec.config) / 2 / 3  # of a sequence
    monkeypatch.setitem(timing.MOST_FLOPS, False, third)
    smaller = timing.short_run(spec).config
    assert (smaller.batch_size, smaller.n_layer) == (1, 1)
    assert timing.short_run(make(batch_size=6)).config.batch_size == 1
