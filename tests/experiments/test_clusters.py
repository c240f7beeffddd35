"""One suite for every backend: this machine's, a user's as the documentation has it, Ray's, and a
real Slurm's where there is one.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import fake_sbatch
import pytest
from fake_sbatch import Refusal, options_of
from fake_worker import CRASH, DIE, DIVERGE, ENDLESS, REFUSE, SLOW, TINY
from grids import FAKE, a_runner, begun, jump, running, starts
from tiny import PATIENCE, ROOT

from nanoscale.errors import UserError
from nanoscale.experiments import ExperimentRunner, backends, clusters
from nanoscale.experiments.clusters import ArrayTask, Ray, Slurm, exit_code_in
from nanoscale.experiments.local import ForkServer, Subprocess
from nanoscale.experiments.machine import Slot
from nanoscale.experiments.worker import Backend, Worker


def has_slurm() -> bool:
    return (
        shutil.which("sinfo") is not None
        and subprocess.run(["sinfo"], capture_output=True).returncode == 0
    )


def a_ray() -> Ray:
    pytest.importorskip("ray")
    return Ray(FAKE)


def a_slurm() -> Slurm:
    if not has_slurm():
        pytest.skip("no Slurm here")
    clusters.SEEN_SECONDS = 0.5
    return Slurm(FAKE, {"partition": "low"}, home="experiments_out/slurm", most=2)


def a_users() -> Backend:
    return runpy.run_path(str(ROOT / "docs" / "howto" / "backend.py"))["Threads"](FAKE.command)


BACKENDS = {
    "a user's": a_users,
    "fork": lambda: ForkServer(FAKE),
    "subprocess": lambda: Subprocess(FAKE),
    "ray": a_ray,
    "slurm": a_slurm,
}


RAY = pytest.param("ray", marks=pytest.mark.soak)


@pytest.fixture(params=["fork", "subprocess", "a user's", RAY, "slurm"])
def backend(request, monkeypatch):
    monkeypatch.setattr(backends, "_MAKERS", dict(backends._MAKERS))  # a user's registers itself
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray warns of it, at length
    made = BACKENDS[request.param]()
    yield made
    made.close()


pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own


@pytest.mark.slow
def test_every_kind_of_end_has_its_state(backend):
    study = a_runner(backend=backend, retries=0).run_grid(
        "g", TINY, {"beta1": [0.9, CRASH, DIE, DIVERGE, REFUSE]}
    )
    assert study.frame()["state"].tolist() == ["COMPLETE", "FAILED", "FAILED", "DIVERGED", "FAILED"]
    kinds = [folder.status().kind for _, folder in study.runs()]
    assert (kinds[1], kinds[2], kinds[4]) == ("crash", "crash", "refused")
    folder = next(study.runs())[1]
    assert "threads 1 from 0" in (folder / "log.txt").read_text()
    again = a_runner(backend=backend).run_grid("g", TINY, {"beta1": [0.9]})
    assert set(again.plan.values()) == {"cached"}


@pytest.mark.slow
def test_an_interrupt_lets_every_run_save_and_the_next_call_goes_on(backend, tmp_path, monkeypatch):
    def interrupt() -> None:
        running(tmp_path / "experiments_out", 2)
        os.kill(os.getpid(), signal.SIGTERM)

    base, grid = TINY | {"max_iters": ENDLESS}, {"n_layer": [1, 2], "beta1": [SLOW]}
    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        a_runner(backend=backend, workers=2).run_grid("g", base, grid)
    interrupter.join()
    monkeypatch.setenv("SLOW_SECONDS", "0")
    study = a_runner(backend=ForkServer(FAKE)).run_grid("g", base, grid)
    assert study.ok
    assert set(study.plan.values()) == {"resume"}
    for _, folder in study.runs():
        assert [first > 0 for _, first in starts(folder)] == [False, True]
        assert [row["step"] for row in folder.rows()] == list(range(1, ENDLESS + 1))


@pytest.mark.slow
def test_a_run_beyond_its_time_saves_while_others_go_on(backend, monkeypatch, tmp_path):
    def one_is_left() -> bool:
        states = [folder.state() for folder in begun(tmp_path / "experiments_out")]
        return sorted(states) == ["COMPLETE", "RUNNING"]

    jump(monkeypatch, when=one_is_left)
    base, grid = TINY | {"max_iters": ENDLESS}, {"beta1": [SLOW, 0.9]}
    study = a_runner(backend=backend, workers=2, time_limit=1000).run_grid("g", base, grid)
    assert study.frame()["state"].tolist() == ["FAILED", "COMPLETE"]
    long = next(study.runs())[1]
    assert long.status().kind == "time"
    assert 0 < long.status().checkpoint_step < ENDLESS
    assert [len(starts(folder)) for _, folder in study.runs()] == [1, 1]


# -- Ray ------------------------------------------------------------------------------------------
@pytest.mark.soak
@pytest.mark.slow  # a cluster of our own takes seconds
def test_a_task_that_ray_loses_is_tried_again(tmp_path):
    backend = a_ray()

    def murder() -> None:
        pid = running(tmp_path / "experiments_out", 1)[0]
        import psutil

        process = psutil.Process(pid)
        parent = process.parent()
        parent.kill()  # Ray's worker
        process.kill()

    killer = threading.Thread(target=murder)
    killer.start()
    study = a_runner(backend=backend, workers=1).run_grid(
        "g", TINY | {"max_iters": 60}, {"n_layer": [1], "beta1": [SLOW]}
    )
    killer.join()
    assert study.ok
    assert len(starts(next(study.runs())[1])) == 2


# -- Slurm ----------------------------------------------------------------------------------------
def test_what_sbatch_is_given(tmp_path):
    """The contract, where no Slurm is: one array, requeued, warned before its end."""
    slurm = Slurm(FAKE, {"partition": "gpu", "time": "4:00:00"}, home=tmp_path / "a b")
    slots = slurm.slots("cuda", 3, 5)
    assert len(slots) == 5
    text = slurm.script("x", 7, Slot({"OMP_NUM_THREADS": "3"}))
    for line in (
        "#SBATCH --array=0-6",
        "#SBATCH --requeue",
        "#SBATCH --signal=B:TERM@90",
        "#SBATCH --partition=gpu",
        "#SBATCH --time=4:00:00",
        "#SBATCH --cpus-per-task=3",
        "export OMP_NUM_THREADS=3",
        "trap 'asked=1; kill -TERM $run' TERM",
    ):
        assert line in text.splitlines()
    assert subprocess.run(["sh", "-n"], input=text, text=True, check=True).returncode == 0


OPTIONS = {
    "partition": "gpu,low",
    "exclusive": True,
    "cpus_per_task": 4,
    "--mem": "4G",
    "N": "1",
    "H": True,
    "spread-job": False,
    "comment": 'it\'s "a b" \\ # 5 % of {all}',
    "C": "a&b|c",
}


def test_sbatch_reads_each_option_as_it_was_given(tmp_path):
    slurm = Slurm(FAKE, OPTIONS, home=tmp_path / "a 'b\\c\" d")
    slurm.slots("cpu", 8, None)
    script = slurm.script("x", 3, Slot({}))
    read = options_of(script)
    assert read == {
        "job-name": "nanoscale",
        "array": "0-2",
        "requeue": None,
        "open-mode": "append",
        "signal": "B:TERM@90",
        "output": f"{tmp_path}/a 'b\\c\" d/%A_%a.out",
        "partition": "gpu,low",
        "exclusive": None,
        "cpus-per-task": "4",
        "mem": "4G",
        "nodes": "1",
        "hold": None,
        "comment": OPTIONS["comment"],
        "constraint": "a&b|c",
    }
    assert "#SBATCH --exclusive" in script.splitlines()
    assert "#SBATCH -N 1" in script.splitlines()


@pytest.mark.parametrize(
    "line", ["--exclusive=True", "--c=4", "--comment=a b", "--requeue=False", "-c many", "--mem"]
)
def test_the_fake_refuses_what_sbatch_does(line):
    with pytest.raises(Refusal):
        options_of(f"#!/bin/sh\n#SBATCH {line}\n")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gres": ["gpu:1"]}, "gres=['gpu:1']: expected a text, a number, or true"),
        ({"run": {"partition": "gpu"}}, "run={'partition': 'gpu'}: expected a text"),
        ({"partition": None}, "partition=None: expected a text"),
        ({"exclusive": ""}, "exclusive='': expected some text in one line, or true for a flag"),
        ({"comment": "a\nb"}, "in one line"),
        ({"": "x"}, "expected the name of an option of sbatch"),
        ({"gpu:1": "x"}, "gpu:1='x': expected the name of an option"),
        ({"array": "0-9"}, "the runner sees to array itself; leave it out"),
        ({"a": "0-9"}, "the runner sees to array itself"),
        ({"requeue": False}, "requeue=False: the runner sees to requeue itself"),
        ({"no_requeue": True}, "the runner sees to no-requeue itself"),
        ({"c": 4, "cpus_per_task": 8}, "cpus_per_task=8: cpus-per-task is given twice"),
        ("gpu", "backend_options='gpu': expected a table"),
    ],
)
def test_what_is_no_option_is_refused_in_a_line(options, words):
    with pytest.raises(UserError, match=re.escape(words)) as refusal:
        ExperimentRunner(backend="slurm", backend_options=options)
    assert "\n" not in str(refusal.value)
    assert not Path("experiments_out").exists()


def test_an_address_of_ray_is_a_text():
    with pytest.raises(UserError, match=r"address=5: expected a text, as in 'ray://host:10001'"):
        ExperimentRunner(backend="ray", backend_options={"address": 5})


LAUNCHED = {
    "WORLD_SIZE": "2",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "0",
    "GROUP_WORLD_SIZE": "1",
    "ROLE_RANK": "0",
    "ROLE_NAME": "default",
    "ROLE_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29400",
    "TORCHELASTIC_RUN_ID": "a b",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_A_LATER_ONE": "1",
}


def test_a_job_of_slurm_is_no_process_of_what_launched_the_study(tmp_path):
    worker = Worker(command=("sh", "-c", 'env > "$0"/said'))
    (tmp_path / "x.folders").write_text(f"{tmp_path}\n")
    script = Slurm(worker, home=tmp_path).script("x", 1, Slot({"OMP_NUM_THREADS": "3"}))
    here = {"PATH": os.environ["PATH"], "MASTERS_OWN": "1", "SLURM_ARRAY_TASK_ID": "0"}
    done = subprocess.run(["sh"], input=script, text=True, env=here | LAUNCHED)
    assert done.returncode == 0
    said = (tmp_path / "said").read_text()
    assert [name for name in LAUNCHED if f"{name}=" in said] == []
    assert "MASTERS_OWN=1\n" in said
    assert "OMP_NUM_THREADS=3\n" in said


@pytest.mark.slow
def test_the_job_script_runs_its_folder_and_writes_the_code_down(tmp_path, monkeypatch):
    """The script itself, by hand: a run that is asked to save passes its code on."""
    jump(monkeypatch, when=lambda: begun(tmp_path / "experiments_out"))
    base = TINY | {"max_iters": ENDLESS}
    study = a_runner(time_limit=1000).run_grid("g", base, {"beta1": [SLOW]})
    folder = next(study.runs())[1].path.absolute()
    slurm = Slurm(FAKE, home=tmp_path)
    (tmp_path / "x.folders").write_text(f"{folder}\n")
    (tmp_path / "x.sh").write_text(slurm.script("x", 1, Slot({})))
    process = subprocess.Popen(
        ["sh", str(tmp_path / "x.sh")], env=os.environ | {"SLURM_ARRAY_TASK_ID": "0"}
    )
    running(tmp_path / "experiments_out", 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 130
    assert exit_code_in(tmp_path / "x.0.exit") == 130
    (tmp_path / "x.1.exit").write_text("137\n")
    assert exit_code_in(tmp_path / "x.1.exit") == -9
    assert exit_code_in(tmp_path / "x.2.exit") is None


def test_a_preempted_run_saves_and_slurm_brings_it_back(tmp_path):
    backend = a_slurm()

    def preempt() -> None:
        running(tmp_path / "experiments_out", 1)
        subprocess.run(
            [
                "sbatch",
                "--partition=high",
                "--cpus-per-task=2",
                "--output=/dev/null",
                "--wrap",
                "sleep 2",
            ],
            check=True,
            capture_output=True,
        )

    intruder = threading.Thread(target=preempt)
    intruder.start()
    study = a_runner(backend=backend, workers=1).run_grid(
        "g", TINY | {"max_iters": 100}, {"n_layer": [1], "beta1": [SLOW]}
    )
    intruder.join()
    assert study.ok
    folder = next(study.runs())[1]
    begun = [first for _, first in starts(folder)]
    assert len(begun) == 2
    assert begun[1] > 0
    assert {row["step"] for row in folder.rows()} == set(range(1, 101))


FAKE_SLURM = """#!{python}
# Slurm's three commands on this machine alone; every third of each finds the controller busy.
import os, pathlib, signal, subprocess, sys

home, me = pathlib.Path("{home}"), pathlib.Path(sys.argv[0]).name
with open(home / "calls", "a") as calls:
    calls.write(me + "\\n")
calls = (home / "calls").read_text().splitlines()
number = len(calls)
if me != "scancel" and calls.count(me) % 3 == 0:
    sys.exit(me + ": error: Socket timed out on send/recv operation")

if me == "sbatch":
    script = pathlib.Path(sys.argv[-1])
    read = subprocess.run([sys.executable, "{reader}", script], capture_output=True, text=True)
    if read.returncode:
        sys.exit(read.stderr)
    last = int(script.read_text().split("--array=0-")[1].split()[0])
    for task in range(last + 1):
        variables = os.environ | {{"SLURM_ARRAY_TASK_ID": str(task)}}
        with open(os.devnull, "w") as nothing:
            said = dict(stdout=nothing, stderr=nothing, start_new_session=True)
            process = subprocess.Popen(["sh", script], env=variables, **said)
        (home / f"{{number}}_{{task}}.pid").write_text(str(process.pid))
    print(number)
elif me == "squeue":
    for file in home.glob("*.pid"):
        stat = pathlib.Path("/proc", file.read_text(), "stat")
        alive = stat.exists() and stat.read_text().split(")")[1].split()[0] != "Z"
        print(*file.stem.split("_"), "RUNNING" if alive else "COMPLETED")
elif "--state=PENDING" not in sys.argv:
    with open(home / "signals", "a") as said:
        said.write(sys.argv[1] + "\\n")
    for name in sys.argv[3:]:
        os.kill(int((home / f"{{name}}.pid").read_text()), signal.SIGTERM)
"""


@pytest.fixture
def slurm_here(tmp_path, monkeypatch):
    """Slurm's commands, of a controller that is busy at times; a folder with what was asked."""
    home = tmp_path / "controller"
    home.mkdir()
    for name in ("sbatch", "squeue", "scancel"):
        (home / name).write_text(
            FAKE_SLURM.format(python=sys.executable, home=home, reader=fake_sbatch.__file__)
        )
        (home / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(clusters, "SEEN_SECONDS", 0.2)
    monkeypatch.setattr(clusters, "PAUSES", (0.05,) * 4)
    return home


def test_refusals_count_in_a_row_and_each_has_its_pause(tmp_path, monkeypatch):
    now, tried, refused = [0.0], [], [True, True, False, True, True, True]
    cluster = clusters.Cluster()

    def submit(started: dict[Path, Slot]) -> None:
        tried.append(now[0])
        if refused.pop(0):
            raise clusters.Refused("busy")

    def look(*times: float) -> None:
        for now[0] in times:
            cluster._submit_or_wait()

    monkeypatch.setattr(clusters, "PAUSES", (1.0, 2.0))
    monkeypatch.setattr(clusters, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(cluster, "_submit", submit)
    cluster.start(tmp_path, Slot({}))
    look(0, 0.5, 1, 2.5, 3, 4)
    assert tried == [0, 1, 3]
    cluster.start(tmp_path, Slot({}))
    look(10, 11)
    with pytest.raises(clusters.Refused, match="busy"):
        look(13)
    assert tried[3:] == [10, 11, 13]


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A Slurm with two tasks, 7_0 in folder a and 7_1 in b; what its commands are asked."""
    slurm = Slurm(FAKE, home=tmp_path)
    for number, name in enumerate("ab"):
        slurm._running[f"7_{number}"] = ArrayTask(tmp_path / name, tmp_path / f"{name}.exit")
    words: list[str] = []
    monkeypatch.setattr(clusters, "command", lambda *said: words.append(" ".join(said)) or "")
    return slurm, words


def test_a_task_is_stopped_where_it_runs_and_cancelled_where_it_waits(asked, tmp_path):
    slurm, words = asked
    slurm.stop(folders=[tmp_path / "b"])
    assert words == ["scancel --signal=TERM --batch 7_1", "scancel --state=PENDING 7_1"]
    slurm.close()
    assert words[2:] == [
        "scancel --signal=KILL --full 7_0 7_1",
        "scancel --state=PENDING 7_0 7_1",
    ]


def test_what_slurm_has_not_been_given_yet_is_never_given_to_it_once_stopped(asked, tmp_path):
    slurm, words = asked
    for name in ("c", "d"):
        slurm.start(tmp_path / name, Slot({}))
    slurm.stop(folders=[tmp_path / "c"])
    slurm.stop(folders=[tmp_path / "d"])
    assert [(gone.folder.name, gone.code) for gone in slurm.poll(0)][:2] == [("c", 130), ("d", 130)]
    assert not any(said.startswith("sbatch") for said in words)


@pytest.mark.parametrize(
    ("state", "ended"),
    [
        ("PENDING", False),
        ("RUNNING", False),
        ("COMPLETING", False),
        ("SUSPENDED", False),
        ("COMPLETED", True),
        ("FAILED", True),
        ("TIMEOUT", True),
        ("NODE_FAIL", True),
        ("OUT_OF_MEMORY", True),
    ],
)
def test_a_task_has_ended_in_a_state_that_is_an_end(asked, monkeypatch, state, ended):
    slurm, _ = asked
    monkeypatch.setattr(clusters, "command", lambda *said: f"7 0 {state}\n7 1 RUNNING\n")
    gone = [exit.folder.name for exit in slurm.poll(0)]
    assert gone == (["a"] if ended else [])


def test_a_tasks_cpus_are_the_threads_unless_an_option_says_how_many(tmp_path):
    for option in ("c", "cpus-per-task"):
        slurm = Slurm(FAKE, {option: 4}, home=tmp_path)
        slurm.slots("cpu", 2, None)
        text = slurm.script("x", 1, Slot({}))
        assert [
            line[-1] for line in text.splitlines() if re.match(r"#SBATCH -(c|-cpus)", line)
        ] == ["4"]


def test_a_requeued_task_has_no_exit_code_of_before(tmp_path):
    (tmp_path / "x.folders").write_text(f"{tmp_path}\n")
    (tmp_path / "x.0.exit").write_text("0\n")
    worker = Worker(command=("sh", "-c", f'ls {tmp_path} > "$0"/said'))
    text = Slurm(worker, home=tmp_path).script("x", 1, Slot({}))
    here = {"PATH": os.environ["PATH"], "SLURM_ARRAY_TASK_ID": "0"}
    subprocess.run(["sh"], input=text, text=True, env=here, check=True)
    assert "x.0.exit" not in (tmp_path / "said").read_text().split()
    assert exit_code_in(tmp_path / "x.0.exit") == 0


@pytest.mark.parametrize(("written", "code"), [("0", 0), ("130", 130), ("137", -9), ("", None)])
def test_an_exit_code_beyond_that_of_an_interrupt_is_a_signals(tmp_path, written, code):
    (tmp_path / "x.exit").write_text(written)
    assert exit_code_in(tmp_path / "x.exit") == code


@pytest.mark.slow
def test_a_busy_controller_costs_no_run(slurm_here, tmp_path, capfd):
    backend = Slurm(FAKE, home=tmp_path / "s")
    grid = {"beta1": [0.9, 0.91, 0.92, 0.93, 0.94]}
    study = a_runner(backend=backend, workers=2).run_grid("g", TINY, grid)
    assert study.ok
    assert [len(starts(folder)) for _, folder in study.runs()] == [1] * 5
    assert not (slurm_here / "signals").exists()
    said = capfd.readouterr().err
    assert "sbatch: error: Socket timed out on send/recv operation; submitted again in" in said


@pytest.mark.slow
def test_a_study_runs_with_flags_and_blanks_in_its_options(slurm_here, tmp_path):
    backend = Slurm(FAKE, {"exclusive": True, "c": 1, "comment": "a b"}, home=tmp_path / "a b")
    study = a_runner(backend=backend, workers=2).run_grid("g", TINY, {"beta1": [0.9, 0.91]})
    assert study.ok


@pytest.mark.slow
def test_before_a_final_refusal_what_runs_saves(slurm_here, tmp_path, monkeypatch):
    backend = Slurm(FAKE, home=tmp_path / "s")
    accepted = [backend._submit]

    def submit(started: dict[Path, Slot]) -> None:
        if accepted:
            return accepted.pop()(started)
        running(tmp_path / "experiments_out", 1)
        raise clusters.Refused("sbatch: Socket timed out")

    monkeypatch.setattr(backend, "_submit", submit)
    base = TINY | {"max_iters": ENDLESS}
    with pytest.raises(UserError, match="sbatch: Socket timed out"):
        a_runner(backend=backend, workers=2).run_grid("g", base, {"beta1": [SLOW, 0.9, 0.91]})
    assert (slurm_here / "signals").read_text().splitlines() == ["--signal=TERM"]
    states = {f.state(): f.status() for f in begun(tmp_path / "experiments_out")}
    assert sorted(states) == ["COMPLETE", "WAITING"]
    assert states["WAITING"].checkpoint_step >= 3


# -- names ----------------------------------------------------------------------------------------
def test_a_backend_that_is_not_here_is_refused_in_a_line(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(UserError, match=r"needs ray: pip install 'nanoscale\[ray\]'"):
        a_runner(backend="ray").run_grid("g", TINY, {"n_layer": [1]})
    monkeypatch.setenv("PATH", str(tmp_path))
    slurm = Slurm(FAKE, home=tmp_path / "s")
    slurm.start(tmp_path, Slot({}))
    with pytest.raises(UserError, match="there is no sbatch here"):
        slurm.poll(0)


def test_a_missed_look_at_the_queue_is_no_end(monkeypatch, tmp_path):
    slurm = Slurm(FAKE, home=tmp_path)
    slurm._running["7_0"] = ArrayTask(tmp_path, tmp_path / "x.0.exit")
    answers = iter(
        [
            UserError("squeue: Unable to contact slurm controller"),
            "7 0 RUNNING\n",
            "7 0 COMPLETED\n",
        ]
    )

    def command(*words: str) -> str:
        answer = next(answers)
        if isinstance(answer, UserError):
            raise answer
        return answer

    monkeypatch.setattr(clusters, "command", command)
    monkeypatch.setattr(clusters, "SEEN_SECONDS", 0)
    assert slurm.poll(0) == []
    assert slurm.poll(0) == []
    assert [gone.code for gone in slurm.poll(0)] == [None]
