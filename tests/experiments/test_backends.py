"""Backends by name: a user's own does all that a built-in one does, and takes no one's place."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_worker import CRASH, TINY
from grids import FAKE, a_runner, starts
from tiny import run_python

from nanoscale.errors import UserError
from nanoscale.experiments import ExperimentRunner, backends
from nanoscale.experiments.backends import backend_of, register_backend
from nanoscale.experiments.clusters import Ray, Slurm
from nanoscale.experiments.local import Subprocess
from nanoscale.experiments.pool import Limits, Pool
from nanoscale.experiments.worker import Job


class Toy:
    """One run after the other, in the moment in which its exit is asked for; nothing of ours."""

    local = False

    def __init__(self) -> None:
        self.waiting: list[Path] = []
        self.started: list[Path] = []

    def slots(self, device, threads, workers):
        return [SimpleNamespace(env={}, cpus=())] * (workers or 1)

    def start(self, folder, slot):
        assert folder not in self.waiting, "the same run twice at once"
        self.waiting.append(folder)
        self.started.append(folder)

    def poll(self, timeout):
        if not self.waiting:
            return []
        folder = self.waiting.pop(0)
        done = subprocess.run([*FAKE.command, str(folder)], capture_output=True)
        return [SimpleNamespace(folder=folder, code=done.returncode)]

    def stop(self, kill=False, folders=None):
        pass

    def close(self):
        pass


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(backends, "_MAKERS", dict(backends._MAKERS))


@pytest.mark.slow
def test_a_registered_backend_runs_a_study_by_its_name():
    asked = []

    def make(output_root, options):
        asked.append((output_root, dict(options)))
        return Toy()

    register_backend("toy", make)
    runner = ExperimentRunner(
        output_root="out", backend="toy", backend_options={"a": "b"}, retries=0
    )
    study = runner.run_grid("g", TINY, {"n_layer": [1, 2], "beta1": [0.9, CRASH]})
    assert asked == [(Path("out"), {"a": "b"})]
    assert study.states() == {"COMPLETE": 2, "FAILED": 2}
    assert all(len(starts(folder)) == 1 for _, folder in study.runs())


def test_a_built_in_name_is_refused_and_keeps_its_meaning(tmp_path):
    for name in ("local", "subprocess", "ray", "slurm"):
        with pytest.raises(UserError, match=f"backend '{name}' is built in; register yours") as no:
            register_backend(name, lambda output_root, options: Toy())
        assert "\n" not in str(no.value)
        assert not isinstance(backend_of(name, tmp_path, {}), Toy)


def test_a_second_backend_of_a_name_replaces_the_first(tmp_path):
    register_backend("toy", lambda output_root, options: Subprocess(FAKE))
    register_backend("toy", lambda output_root, options: Toy())
    assert isinstance(backend_of("toy", tmp_path, {}), Toy)


def test_an_unknown_name_is_refused_with_the_nearest_of_those_registered():
    with pytest.raises(UserError, match=r"backend='slrm': choose 'local'.*did you mean 'slurm'"):
        ExperimentRunner(backend="slrm")
    register_backend("kubernetes", lambda output_root, options: Toy())
    with pytest.raises(UserError, match=r"or 'kubernetes'; did you mean 'kubernetes'\?"):
        ExperimentRunner(backend="kubernets")


def test_built_in_backends_are_made_with_their_options(tmp_path):
    assert isinstance(backend_of("ray", tmp_path, {"address": "x"}), Ray)
    assert isinstance(backend_of("slurm", tmp_path, {"partition": "p"}), Slurm)
    assert backend_of("local", tmp_path, {}).local
    mine = Toy()
    assert backend_of(mine, tmp_path, {}) is mine


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        (
            "local",
            {"partition": "gpu", "gres": 1},
            "'local' has no use for backend_options: gres, partition",
        ),
        ("subprocess", {"address": "x"}, "'subprocess' has no use for backend_options: address"),
        ("ray", {"adress": "x", "address": "y"}, "'ray' has no use for backend_options: adress"),
        ("ray", {"address": "y"}, ""),
        ("slurm", {"partition": "gpu"}, ""),
        ("toy", {"partition": "gpu"}, ""),
    ],
)
def test_an_option_that_a_backend_has_no_use_for_is_said(name, options, said, tmp_path, capsys):
    register_backend("toy", lambda output_root, options: Toy())
    backend_of(name, tmp_path, options)
    assert capsys.readouterr().err == (f"warning: backend={said}\n" if said else "")


def test_the_package_and_the_worker_that_a_backend_starts_load_no_study():
    """A fork server and a cluster's tasks start often; what asks for runs is not theirs."""
    names = "nanoscale.experiments.forkserver, nanoscale.experiments.clusters"
    code = f"import sys, {names}; print('nanoscale.experiments.runner' in sys.modules)"
    done = run_python("-c", code)
    assert done.stdout == "False\n"


@pytest.mark.slow
def test_one_run_that_is_asked_for_twice_is_started_once_at_a_time():
    study = a_runner().run_grid("g", TINY, {"n_layer": [1]}, dry_run=True)
    ((entry, folder),) = study.runs()
    a_runner(backend=Toy(), retries=0).run_grid("g", TINY | {"beta1": CRASH}, {"n_layer": [1]})
    a_runner().run_grid("g", TINY, {"n_layer": [1]})
    toy = Toy()
    folder.set_status(state="WAITING")
    twice = [Job(folder, entry.flops, title) for title in ("one", "two")]
    events: list[tuple[str, str]] = []
    watch = SimpleNamespace(
        started=lambda job: events.append(("started", job.title)),
        ended=lambda job: events.append(("ended", job.title)),
        tick=lambda: None,
    )
    pool = Pool(toy, toy.slots("cpu", 1, 2), watch, Limits())
    assert pool.run(twice) == ""
    assert toy.started == [folder.path]
    assert events == [("started", "one"), ("ended", "one"), ("ended", "two")]
    assert len(pool.free) == 2


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        (None, print, "backend None: expected a name"),
        ("", print, "backend '': expected a name"),
        ("mine", 5, "backend 'mine': expected a function that makes one, got 5"),
    ],
)
def test_what_is_no_backend_is_refused(name, make, words):
    with pytest.raises(UserError, match=re.escape(words)):
        register_backend(name, make)
