"""Ray's refusals, by a Ray of a few lines: what was not taken is submitted again."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest
from fake_worker import ENDLESS, SLOW, TINY
from grids import FAKE, a_runner, begun, running, starts

from nanoscale.errors import UserError
from nanoscale.experiments import clusters
from nanoscale.experiments.clusters import Ray
from nanoscale.experiments.machine import Slot
from nanoscale.experiments.worker import Worker


class RayError(Exception):
    """Ray's own base."""


class TaskCancelledError(RayError):
    pass


class FakeRay:
    """Tasks as threads. While it is not `up` nothing is taken; `busy` submissions are refused."""

    exceptions = SimpleNamespace(RayError=RayError, TaskCancelledError=TaskCancelledError)

    def __init__(self) -> None:
        self.up = True
        self.connected = False
        self.busy: list[Exception] = []
        self.most = 1000  # tasks; then it refuses, once it has seen to `look`
        self.look: Callable[[], object] = list
        self.codes: dict[int, object] = {}  # of the tasks, None: it runs

    def is_initialized(self) -> bool:
        return self.connected

    def init(self, **_: object) -> None:
        if not self.up:
            raise ConnectionError("ray client connection timeout\nand more of it")
        self.connected = True

    def shutdown(self) -> None:
        self.connected = False

    def go(self) -> None:
        self.up = self.connected = False

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, function):
        def submit(*arguments: object) -> int:
            if self.busy:
                raise self.busy.pop()
            if len(self.codes) == self.most:
                self.look()
                raise RayError("no more of this")
            number = len(self.codes)
            self.codes[number] = None

            def work() -> None:
                self.codes[number] = function(*arguments)

            threading.Thread(target=work, daemon=True).start()
            return number

        task = SimpleNamespace(remote=submit)
        return SimpleNamespace(options=lambda **_: task)

    def wait(self, tasks: Sequence[int], num_returns: int = 1, timeout: float = 0):
        until = time.monotonic() + timeout
        while True:
            done = [task for task in tasks if self.codes[task] is not None]
            if done or time.monotonic() >= until:
                return done[:num_returns], [task for task in tasks if task not in done]
            time.sleep(0.01)

    def get(self, task: int) -> object:
        return self.codes[task]

    def cancel(self, task: int) -> None:
        if not self.up:
            raise ConnectionError("the cluster is gone")


@pytest.fixture
def ray(monkeypatch):
    made = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", made)
    monkeypatch.setattr(clusters, "PAUSES", (0.05,) * 4)
    return made


GRID = {"beta1": [0.9, 0.91, 0.92]}


def test_what_a_busy_cluster_refuses_is_submitted_again(ray, capfd):
    ray.busy = [RayError("out of\nworkers"), OSError("reset"), RuntimeError("no"), RayError("busy")]
    study = a_runner(backend=Ray(FAKE), workers=2).run_grid("g", TINY, GRID)
    assert study.ok
    assert [len(starts(folder)) for _, folder in study.runs()] == [1, 1, 1]
    said = capfd.readouterr().err.splitlines()
    assert "warning: ray: out of; submitted again in 0.05 s" in said
    assert len(said) == 4


@pytest.mark.slow
def test_what_ran_on_a_cluster_that_went_away_is_put_back(ray, tmp_path, monkeypatch, capfd):
    """Its process goes on here: it keeps the lease, is waited for, and nothing is run twice."""
    monkeypatch.setenv("SLOW_SECONDS", "0.02")

    def outage() -> None:
        running(tmp_path / "experiments_out", 1)
        ray.go()
        time.sleep(0.1)
        ray.up = True

    thread = threading.Thread(target=outage)
    thread.start()
    monkeypatch.setattr(clusters, "PAUSES", (0.2,) * 20)
    grid = {"beta1": [SLOW, 0.9, 0.91]}
    study = a_runner(backend=Ray(FAKE), workers=1, retries=0).run_grid(
        "g", TINY | {"max_iters": 40}, grid
    )
    thread.join()
    assert study.ok
    assert [len(starts(folder)) for _, folder in study.runs()] == [1, 1, 1]
    assert "ray: the cluster is gone; what ran there is submitted again" in capfd.readouterr().err


@pytest.mark.slow
def test_before_rays_final_refusal_what_runs_saves(ray, tmp_path):
    ray.most = 1
    ray.look = lambda: running(tmp_path / "experiments_out", 1)
    base = TINY | {"max_iters": ENDLESS}
    with pytest.raises(UserError, match="ray: no more of this") as refusal:
        a_runner(backend=Ray(FAKE), workers=2).run_grid("g", base, {"beta1": [SLOW, 0.9, 0.91]})
    assert "\n" not in str(refusal.value)
    (folder,) = begun(tmp_path / "experiments_out")
    assert folder.state() == "WAITING"
    assert folder.status().checkpoint_step >= 3


def test_a_cluster_that_is_not_there_is_refused_at_once(ray):
    ray.up = False
    with pytest.raises(UserError, match="backend='ray': no cluster at ray://x:1: ray client"):
        a_runner(backend=Ray(FAKE, "ray://x:1")).run_grid("g", TINY, GRID)


def test_a_task_is_no_process_of_what_launched_the_study(ray, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    (tmp_path / "say.py").write_text("import os\nprint(*os.environ)\n")
    command = ["python", str(tmp_path / "say.py")]
    assert clusters.run_in_task(command, str(tmp_path), {"OMP_NUM_THREADS": "3"}) == 0
    said = (tmp_path / "log.txt").read_text().split()
    assert "OMP_NUM_THREADS" in said
    assert not {"WORLD_SIZE", "TORCHELASTIC_RUN_ID"} & set(said)


def test_what_is_stopped_before_it_is_submitted_comes_back(ray, tmp_path):
    backend = Ray(FAKE)
    backend.start(tmp_path, Slot({}))
    backend.stop(folders=[tmp_path / "another"])
    backend.stop(folders=[tmp_path])
    assert [(gone.folder, gone.code) for gone in backend.poll(0)] == [(tmp_path, 130)]
    assert backend.poll(0) == []
    backend.start(tmp_path, Slot({}))
    backend.stop()
    backend.close()
    assert backend.poll(0) == []  # nothing of an earlier study


def test_what_a_lost_cluster_ran_is_lost_once(ray, tmp_path):
    backend = Ray(FAKE)
    backend._running = {0: tmp_path}
    assert [(gone.folder, gone.code) for gone in backend.poll(0)] == [(tmp_path, 130)]
    assert backend.poll(0) == []


def test_what_was_taken_before_a_refusal_is_not_submitted_again(ray, tmp_path, monkeypatch):
    monkeypatch.setattr(clusters, "PAUSES", (0.0,) * 4)
    ray.most = 1
    backend = Ray(Worker(("python", "-c", "")))
    for name in "ab":
        (tmp_path / name).mkdir()
        backend.start(tmp_path / name, Slot({}))
    backend.poll(0)
    ray.most = 1000
    backend.poll(0)
    backend.poll(0)
    assert len(ray.codes) == 2


def test_a_wish_is_of_the_task_that_was_asked_alone(ray, tmp_path):
    wish = tmp_path / clusters.ASKED
    wish.write_text("kill")
    assert (
        clusters.run_in_task(["python", "-c", "import time; time.sleep(0.3)"], str(tmp_path), {})
        == 0
    )
    backend = Ray(FAKE)
    ray.connected = True
    ray.codes[0] = 0
    backend._running = {0: tmp_path}
    wish.write_text("save")
    assert [gone.code for gone in backend.poll(0)] == [0]
    assert not wish.exists()
