"""Children that stay for the next run of their shape: what they share, and what they must not."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from fake_worker import CRASH, DIE, DIVERGE, TINY
from grids import FAKE, a_runner, starts, wait_for
from tiny import tiny_spec

from nanoscale.experiments import ExperimentRunner, local
from nanoscale.experiments.local import ForkServer, ServerPipes, Subprocess
from nanoscale.experiments.machine import Slot
from nanoscale.experiments.worker import Exit, Worker
from nanoscale.store.folder import TIMING_COLUMNS, RunFolder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork")
COMPILED = TINY | {"compile": True}


def pids(study) -> list[int]:
    """Of every start, in the order of the cells."""
    return [pid for _, folder in study.runs() for pid, _ in starts(folder)]


@pytest.mark.slow
def test_compiled_runs_of_a_shape_share_a_process_and_others_share_none():
    study = a_runner(workers=1).run_grid("g", COMPILED, {"n_layer": [1, 2], "seed": [1, 2, 3]})
    assert study.ok
    found = pids(study)
    assert [found.count(pid) for pid in found] == [3] * 6
    alone = a_runner(workers=1).run_grid("h", TINY, {"seed": [7, 8, 9]})
    assert len(set(pids(alone))) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("beta1", "stays"), [(DIVERGE, True), (CRASH, False), (DIE, False)])
def test_a_process_outlives_a_result_and_no_failure(beta1, stays):
    study = a_runner(workers=1, retries=0).run_grid(
        "g", COMPILED, {"beta1": [0.9, beta1, 0.91, 0.92]}
    )
    first, failed, second, third = pids(study)
    assert failed == first
    assert (second == first) == stays
    assert third == second
    assert [
        str(pid) in (folder / "log.txt").read_text()
        for pid, (_, folder) in zip(pids(study), study.runs(), strict=True)
    ] == [True] * 4


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A fork server whose runs print their pid; those called slow go on until they are stopped."""
    (tmp_path / "look.py").write_text(
        textwrap.dedent("""
        import os, signal, sys, time
        sys.modules["__main__"].MOST_RUNS = 3
        def main(arguments):
            stopped = []
            signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
            print(os.getpid())
            assert "crash" not in arguments[1]
            while "slow" in arguments[1] and not stopped:
                time.sleep(0.01)
            return 130 if stopped else 0
        """)
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(local, "shape_of", lambda folder: folder.path.name.split("-")[0])
    backend = ForkServer(Worker(entry="look:main", preload=()))
    yield backend
    backend.close()


def started(server: ForkServer, folder: Path) -> int:
    """The pid of a run, once it runs."""
    folder.mkdir()
    server.start(folder, Slot({}))
    log = folder / "log.txt"
    wait_for(lambda: log.exists() and "\n" in log.read_text())
    return int(log.read_text().split()[0])


def codes(server: ForkServer, number: int) -> list[int]:
    """The codes of the next exits."""
    exits: list = []
    wait_for(lambda: exits.extend(server.poll(0.1)) or len(exits) >= number)
    return [gone.code for gone in exits]


def test_a_process_takes_its_share_of_runs_and_leaves_for_another_shape(server, tmp_path):
    found = []
    for name in ("a-1", "a-2", "a-3", "a-4", "b-1", "a-5"):
        found.append(started(server, tmp_path / name))
        assert codes(server, 1) == [0]
    first, second, third, fourth, other, last = found
    assert first == second == third
    assert len({first, fourth, other, last}) == 4
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in (first, fourth, other)))
    assert psutil.pid_exists(last)
    server.close()
    assert not psutil.pid_exists(last)


def test_a_busy_process_is_not_asked_and_a_stopped_one_leaves(server, tmp_path):
    slow, other = (started(server, tmp_path / name) for name in ("a-slow", "a-2"))
    assert slow != other
    assert codes(server, 1) == [0]
    assert started(server, tmp_path / "a-3") == other
    assert codes(server, 1) == [0]
    server.stop(folders=[tmp_path / "a-slow"])
    assert codes(server, 1) == [130]
    wait_for(lambda: not psutil.pid_exists(slow))
    os.kill(other, signal.SIGKILL)  # while it waits
    wait_for(lambda: not psutil.pid_exists(other))
    third = started(server, tmp_path / "a-4")
    assert third not in (slow, other)
    assert codes(server, 1) == [0]
    assert started(server, tmp_path / "a-crash") == third
    assert codes(server, 1) == [1]


def test_messages_come_in_pieces_and_what_a_dead_server_ran_is_lost(tmp_path):
    """By a pipe of our own: half a line waits for the other half."""
    read, write = os.pipe()
    backend = ForkServer(FAKE)
    process = SimpleNamespace(wait=lambda: 0)
    backend._server = ServerPipes(process, io.BytesIO(), os.fdopen(read, "rb", 0))
    ended, lost = tmp_path / "a", tmp_path / "b"
    backend._running = {ended, lost}
    os.write(write, f'{{"exit": "{ended}", "co'.encode())
    assert backend.poll(1) == []
    os.write(write, b'de": 3}\n')
    assert backend.poll(1) == [Exit(ended, 3)]
    os.close(write)
    assert backend.poll(1) == [Exit(lost, None)]
    assert backend._server is None  # so the next start launches another


@pytest.mark.parametrize("kill", [False, True])
def test_those_that_are_named_are_stopped_and_no_others(tmp_path, monkeypatch, kill):
    names = [str(tmp_path / name) for name in "ab"]
    backend = ForkServer(FAKE)
    told = io.BytesIO()
    backend._server = ServerPipes(SimpleNamespace(), told, io.BytesIO())
    backend.stop(kill, [tmp_path / "b"])
    backend.stop(kill)
    first, second = (json.loads(line)["folders"] for line in told.getvalue().splitlines())
    assert (first, second) == (names[1:], None)

    asked = []
    plain = Subprocess(FAKE)
    for name in names:
        process = SimpleNamespace(
            pid=name,
            terminate=lambda name=name: asked.append((name, False)),
            wait=lambda seconds: 0,
        )
        plain._running[Path(name)] = process
    monkeypatch.setattr(local, "end_group", lambda pid: asked.append((pid, True)))
    plain.stop(kill, [tmp_path / "b"])
    assert asked == [(names[1], kill)]
    plain.close()
    assert asked[1:] == [(name, False) for name in names]


@pytest.mark.parametrize(("forks", "kind"), [(True, ForkServer), (False, Subprocess)])
def test_a_run_has_a_process_of_its_own_where_none_is_forked(monkeypatch, forks, kind):
    """On macOS and Windows, and on a Linux without fork."""
    monkeypatch.setattr(local, "forks", lambda: forks)
    assert type(local.local_backend()) is kind


def test_compiled_code_is_shared_where_the_model_the_batch_and_the_machine_are_alike(tmp_path):
    shapes = []
    for number, changes in enumerate(({}, {"learning_rate": 0.5}, {"n_layer": 3}, {"threads": 2})):
        folder = RunFolder(tmp_path / str(number))
        folder.create(tiny_spec(compile=True, **changes))
        shapes.append(local.shape_of(folder))
    assert shapes[0] == shapes[1]
    assert len(set(shapes)) == 3
    assert local.shape_of(RunFolder(tmp_path / "none")) == ""


LAUNCHED = {
    "WORLD_SIZE": "2",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29400",
    "GROUP_RANK": "0",
    "ROLE_RANK": "0",
    "TORCHELASTIC_RUN_ID": "x",
}


@pytest.mark.parametrize("kind", ["fork", "spawn", "subprocess"])
def test_a_worker_is_alone_whoever_launched_the_study(kind, tmp_path, monkeypatch):
    (tmp_path / "say.py").write_text(
        "import os, sys\n"
        "def main(arguments):\n"
        "    print(*os.environ)\n"
        "    return 0\n"
        "if __name__ == '__main__':\n"
        "    main(sys.argv)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    worker = Worker((sys.executable, str(tmp_path / "say.py")), "say:main", ())
    backend = Subprocess(worker) if kind == "subprocess" else ForkServer(worker, kind == "fork")
    folder = tmp_path / "run"
    folder.mkdir()
    backend.start(folder, Slot({"OMP_NUM_THREADS": "3"}))
    assert codes(backend, 1) == [0]
    backend.close()
    said = (folder / "log.txt").read_text().split()
    assert set(said) & set(LAUNCHED) == set()
    assert {"OMP_NUM_THREADS", "PYTHONPATH", "PATH"} <= set(said)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["local", "subprocess"])
def test_a_study_that_torchrun_has_started_finishes(backend, monkeypatch):
    """Real training: a run that took itself for one of two ranks would wait for the other."""
    pytest.importorskip("torch")
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    runner = ExperimentRunner(workers=1, backend=backend, time_limit=120)
    study = runner.run_grid("g", TINY | {"eval_iters": 1, "warmup_iters": 0}, {"n_layer": [1]})
    assert study.ok
    ((_, folder),) = study.runs()
    assert folder.metrics()["provenance"]["world_size"] == 1


@pytest.mark.soak
def test_what_a_run_computes_is_the_same_in_a_process_that_has_run_another(monkeypatch):
    """Real training, with dropout; a diverged run and another shape of data order between."""
    pytest.importorskip("torch")

    def rows(name: str, shape: str) -> list[list[dict]]:
        monkeypatch.setattr(local, "shape_of", lambda folder: shape)
        study = ExperimentRunner(output_root=name, workers=1).run_grid(
            "g",
            TINY | {"dropout": 0.1, "eval_interval": 2, "eval_iters": 1, "warmup_iters": 0},
            {"learning_rate": [1e-2, 1e30, 2e-2], "optimizer": ["muon", "adamw"]},
        )
        assert (
            len(
                {
                    line
                    for _, folder in study.runs()
                    for line in (folder / "log.txt").read_text().splitlines()[:1]
                }
            )
            == 1
        )
        return [
            [{k: v for k, v in row.items() if k not in TIMING_COLUMNS} for row in folder.rows()]
            for _, folder in study.runs()
        ]

    apart = rows("apart", "")
    assert rows("together", "one") == apart
    assert len(apart[0]) > 5
