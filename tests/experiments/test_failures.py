"""Failures by kind: what is tried again, what is not, what stops a study; and runners that race."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter

import pytest
from fake_worker import CRASH, DEAF, DIE, ENDLESS, FLAKY, GREEDY, HUNGRY, REFUSE, SLOW, TINY
from grids import FAKE, a_runner, begun, jump, running, script, starts
from tiny import PATIENCE

from nanoscale import processes
from nanoscale.errors import UserError
from nanoscale.experiments import ExperimentRunner, failures, pool
from nanoscale.experiments.failures import CRASH as CRASHED
from nanoscale.experiments.failures import MEMORY, Failure
from nanoscale.experiments.local import ForkServer, Subprocess
from nanoscale.store.folder import FAILED, RunFolder

BACKENDS = pytest.mark.parametrize(
    "backend", [lambda: ForkServer(FAKE), lambda: Subprocess(FAKE)], ids=["fork", "subprocess"]
)


def only(study) -> RunFolder:
    """The folder of a study's one run."""
    ((_, folder),) = study.runs()
    return folder


# -- tries --------------------------------------------------------------------------------------
def test_a_crash_is_tried_again_from_its_checkpoint_and_its_log_is_shown(capsys):
    study = a_runner().run_grid("g", TINY, {"beta1": [FLAKY]})
    assert study.ok
    assert [first for _, first in starts(only(study))] == [0, 2]
    out = capsys.readouterr().out
    assert "failed beta1=0.13: RuntimeError: a cosmic ray; try 2 of 2" in out
    assert "    RuntimeError: a cosmic ray" in out
    assert only(study).status().reason is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("beta1", "retries", "tries"), [(CRASH, 0, 1), (CRASH, 2, 3), (DIE, 1, 2), (REFUSE, 5, 1)]
)
def test_tries_are_counted_and_a_refusal_has_one(beta1, retries, tries):
    study = a_runner(retries=retries).run_grid("g", TINY, {"beta1": [beta1]})
    assert len(starts(only(study))) == tries
    assert only(study).state() == FAILED


@pytest.mark.slow
def test_out_of_memory_halves_the_micro_batch_of_the_same_run(capsys):
    base = TINY | {"batch_size": 6, "beta1": HUNGRY}
    study = a_runner(retries=0).run_grid("g", base, {"n_layer": [1]})
    assert study.ok
    assert len(starts(only(study))) == 4  # 6, 3, 2, 1 sequences at once
    assert only(study).spec().config.micro_batch_size == 1
    assert only(study).spec().config.batch_size == 6
    again = a_runner().run_grid("g", base, {"n_layer": [1]})
    assert again.plan == {only(study).spec().id: "cached"}
    assert "again with micro_batch_size=3, which changes no result" in capsys.readouterr().out


@pytest.mark.slow
def test_one_sequence_that_does_not_fit_is_final(monkeypatch):
    monkeypatch.setattr(failures, "OUT_OF_MEMORY", re.compile("crash"))
    study = a_runner(retries=3).run_grid("g", TINY | {"beta1": CRASH}, {"n_layer": [1]})
    assert only(study).status().kind == MEMORY
    assert len(starts(only(study))) == 2
    a_runner(retries=0).run_grid("g", TINY | {"beta1": CRASH}, {"n_layer": [1]})
    assert only(study).spec().config.micro_batch_size == 1  # what was learned is kept
    assert len(starts(only(study))) == 3


@pytest.mark.slow
@BACKENDS
def test_a_run_that_others_interrupt_goes_on_in_the_same_call(backend, tmp_path):
    def interrupt() -> None:
        os.kill(running(tmp_path / "experiments_out", 1)[0], signal.SIGTERM)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    study = a_runner(backend=backend(), retries=0).run_grid(
        "g", TINY | {"max_iters": 40}, {"n_layer": [1], "beta1": [SLOW]}
    )
    interrupter.join()
    assert study.ok
    assert [first > 0 for _, first in starts(only(study))] == [False, True]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", MEMORY),
        (
            "RuntimeError: [enforce fail at alloc_cpu.cpp:124] "
            "DefaultCPUAllocator: can't allocate memory",
            MEMORY,
        ),
        ("_ArrayMemoryError: Unable to allocate 8. TiB for an array", MEMORY),
        ("RuntimeError: CUDA error: an illegal memory access was encountered", CRASHED),
    ],
)
def test_memory_failures_are_known_by_their_words(tmp_path, text, kind):
    folder = RunFolder(tmp_path)
    (tmp_path / "status.json").write_text('{"state": "FAILED", "step": 0, "max_iters": 5}')
    (tmp_path / "log.txt").write_text(text)
    assert failures.failure_of(folder, 1, starved=False).kind == kind


@pytest.mark.parametrize(("starved", "kind"), [(True, MEMORY), (False, CRASHED)])
def test_a_kill_is_for_memory_if_the_kernel_counted_one(starved, kind, tmp_path):
    assert failures.failure_of(RunFolder(tmp_path), -9, starved).kind == kind
    assert failures.failure_of(RunFolder(tmp_path), -15, starved).kind == CRASHED
    assert processes.memory_kills() >= 0


# -- a study that makes no sense any more ---------------------------------------------------------
@pytest.mark.slow
def test_three_runs_in_a_row_that_fail_alike_stop_the_study(capsys):
    layers = list(range(1, 9))
    study = a_runner(workers=1, retries=0).run_grid(
        "g", TINY | {"beta1": REFUSE}, {"n_layer": layers}
    )
    assert study.states() == {"FAILED": 3, "WAITING": 5}
    out = capsys.readouterr().out
    assert (
        "stopped: 3 runs in a row failed alike: the data are gone; prepare them again; mend "
        "that first; the same command goes on"
    ) in out


@pytest.mark.slow
def test_other_failures_and_a_success_between_do_not_stop_it():
    grid = {"n_layer": [1, 2, 3], "beta1": [REFUSE, CRASH, 0.9, DIE]}
    study = a_runner(workers=1, retries=0).run_grid("g", TINY, grid)
    assert study.states() == {"FAILED": 9, "COMPLETE": 3}


def test_likeness_leaves_names_and_numbers_out(tmp_path):
    one, two = RunFolder(tmp_path / "a-1"), RunFolder(tmp_path / "b-2")
    full = [
        Failure("refused", f"cannot write {f.path}/ckpt.pt: no space left: 12 of {f.path.name}")
        for f in (one, two)
    ]
    assert full[0].likeness(one) != full[1].likeness(one)
    assert Failure("crash", "x 12").likeness(one) == Failure("crash", "x 7").likeness(two)
    assert Failure("crash", "x").likeness(one) != Failure("memory", "x").likeness(one)


# -- limits -------------------------------------------------------------------------------------
@pytest.mark.slow
@BACKENDS
def test_a_run_beyond_its_time_saves_and_the_next_call_goes_on(
    backend, monkeypatch, capsys, tmp_path
):
    def has_saved() -> bool:
        runs = begun(tmp_path / "experiments_out")
        return any(folder.status().checkpoint_step for folder in runs)

    jump(monkeypatch, when=has_saved)
    base, grid = TINY | {"max_iters": ENDLESS}, {"n_layer": [1], "beta1": [SLOW]}
    study = a_runner(backend=backend(), time_limit=1000).run_grid("g", base, grid)
    assert only(study).state() == FAILED
    assert only(study).status().kind == "time"
    done = only(study).status().checkpoint_step
    assert 0 < done < ENDLESS
    assert "longer than time_limit=1000 seconds" in capsys.readouterr().out
    monkeypatch.setenv("SLOW_SECONDS", "0")
    again = a_runner().run_grid("g", base, grid)
    assert again.ok
    assert starts(only(again))[1][1] == done


@pytest.mark.slow
@BACKENDS
def test_a_run_that_does_not_leave_is_killed_and_others_go_on(backend, monkeypatch, tmp_path):
    jump(monkeypatch, when=lambda: len(begun(tmp_path / "experiments_out")) == 2)
    monkeypatch.setattr(pool, "GRACE_SECONDS", 0.3)
    grid = {"beta1": [DEAF, 0.9], "seed": [1, 2]}  # the deaf ones begin
    study = a_runner(backend=backend(), workers=2, time_limit=1000).run_grid("g", TINY, grid)
    assert study.frame()["state"].tolist() == ["FAILED"] * 2 + ["COMPLETE"] * 2
    assert [len(starts(folder)) for _, folder in study.runs()] == [1] * 4


@pytest.mark.slow
def test_a_run_beyond_its_memory_goes_on_in_smaller_pieces(monkeypatch, capsys):
    monkeypatch.setattr(pool, "LIMITS_SECONDS", 0.05)
    monkeypatch.setattr(pool, "GRACE_SECONDS", 0.1)
    study = a_runner(memory_limit=200 << 20).run_grid("g", TINY, {"beta1": [GREEDY]})
    assert study.ok
    assert only(study).spec().config.micro_batch_size == 1
    assert "GiB of memory, more than memory_limit=2.09715e+08 bytes" in capsys.readouterr().out


@pytest.mark.parametrize("options", [{"retries": -1}, {"time_limit": 0}, {"memory_limit": "2G"}])
def test_impossible_limits_are_refused(options):
    with pytest.raises(UserError, match=next(iter(options))):
        ExperimentRunner(**options)


# -- runners that race ----------------------------------------------------------------------------
@pytest.mark.slow
def test_two_runners_started_together_train_every_run_once(tmp_path):
    text = script("""
        runner = ExperimentRunner(workers=2, backend=ForkServer(FAKE))
        study = runner.run_grid("s", TINY | dict(beta1=SLOW), dict(n_layer=list(range(1, 9))))
        sys.exit(0 if study.ok else 1)
        """)
    runners = [
        subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [runner.communicate(timeout=PATIENCE)[0] for runner in runners]
    assert [runner.returncode for runner in runners] == [0, 0]
    folders = [RunFolder(p) for p in sorted((tmp_path / "experiments_out/runs").iterdir())]
    assert len(folders) == 8
    for folder in folders:
        assert len(starts(folder)) == 1
        assert [row["step"] for row in folder.rows()] == list(range(1, 6))
        assert folder.status().state == "COMPLETE"
        assert not list(folder.path.glob("lease-*"))
    shares = Counter(text.count("COMPLETE n_layer") for text in said)
    assert 0 not in shares, "one runner did it all"


@pytest.mark.slow
def test_a_runner_takes_over_what_a_killed_one_left(tmp_path, monkeypatch):
    text = script("""
        runner = ExperimentRunner(workers=1, backend=ForkServer(FAKE, fork=False))
        runner.run_grid("s", TINY | dict(beta1=SLOW, max_iters=2000), dict(n_layer=[1]))
        """)
    first = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.DEVNULL)
    running(tmp_path / "experiments_out", 1)
    first.kill()
    first.wait()
    (left,) = begun(tmp_path / "experiments_out")
    jump(monkeypatch, when=lambda: len(starts(left)) == 2)
    study = a_runner(time_limit=1000).run_grid(
        "s", TINY | {"beta1": SLOW, "max_iters": ENDLESS}, {"n_layer": [1]}
    )
    assert only(study).path.name == left.path.name
    assert len(starts(left)) == 2
