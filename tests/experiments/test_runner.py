"""The many-runs layer, with a worker that needs no torch: nothing lost, nothing run twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from pathlib import Path

import fake_worker
import psutil
import pytest
from fake_worker import CRASH, DIE, DIVERGE, ENDLESS, REFUSE, SLOW, TINY
from grids import FAKE, SNIPPET, TESTS, a_runner, running, script, starts, wait_for
from tiny import PATIENCE, ROOT, run_python

from nanoscale.__main__ import main
from nanoscale.errors import UserError, program
from nanoscale.experiments import ExperimentRunner, Study, machine, progress, rebuild_table, results
from nanoscale.experiments.local import ForkServer, Subprocess
from nanoscale.experiments.machine import Slot
from nanoscale.experiments.worker import Job, Worker
from nanoscale.store.folder import COMPLETE, RUNNING, WAITING, RunFolder


# -- grids --------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize(
    "backend",
    [ForkServer(FAKE), ForkServer(FAKE, fork=False), Subprocess(FAKE)],
    ids=["fork", "spawn", "subprocess"],
)
def test_a_grid_gives_a_row_per_run_and_isolates_failures(backend, capsys):
    study = a_runner(backend=backend, threads=1).run_grid(
        "g", TINY, {"n_layer": [1, 2], "beta1": [0.9, CRASH, DIE, DIVERGE, REFUSE]}
    )
    frame = study.frame()
    assert list(frame.columns[:4]) == ["n_layer", "beta1", "plan", "state"]
    assert frame["n_layer"].tolist() == [1] * 5 + [2] * 5
    assert frame["state"].tolist() == ["COMPLETE", "FAILED", "FAILED", "DIVERGED", "FAILED"] * 2
    done = frame[frame["state"] == "COMPLETE"]
    assert (done["flops"] == done["planned_flops"]).all()
    assert done["val_loss"].is_monotonic_decreasing
    assert frame.loc[frame["state"] == "FAILED", "val_loss"].isna().all()
    assert len(study.failed) == 6
    assert not study.ok
    reasons = [RunFolder(f).status().reason for f in frame["folder"][:5]]
    assert reasons[1:3] == ["RuntimeError: this run crashes", "its process was killed by SIGKILL"]
    assert reasons[4] == "the data are gone; prepare them again"
    out = capsys.readouterr().out
    assert f"[g] next: {program()} retry g --output_root=experiments_out\n" in out
    assert "RuntimeError: this run crashes" in out
    assert "10/10" in out
    assert "threads 1 from 0" in (RunFolder(frame["folder"][0]) / "log.txt").read_text()


@pytest.mark.slow
def test_the_same_grid_again_runs_nothing_and_failures_get_one_more_try(monkeypatch):
    grid = {"n_layer": [1, 2], "beta1": [0.9, CRASH]}
    first = a_runner(retries=0).run_grid("g", TINY, grid)
    second = a_runner(retries=0).run_grid("g", TINY, grid)
    assert second.frame()["plan"].tolist() == ["cached", "retry"] * 2
    assert [len(starts(folder)) for _, folder in second.runs()] == [1, 2, 1, 2]
    assert first.frame()["run"].tolist() == second.frame()["run"].tolist()

    monkeypatch.setattr(ForkServer, "start", None)  # nothing is started
    third = a_runner(backend="local").run_grid("h", TINY, {"n_layer": [1, 2]})
    assert third.ok
    assert set(third.plan.values()) == {"cached"}


@pytest.mark.slow
def test_studies_share_runs_and_equal_cells_are_one_run(capsys):
    a_runner().run_grid("one", TINY, {"n_layer": [1, 2]})
    two = a_runner().run_grid("two", TINY, {"n_layer": [2, "2", 3]})
    assert two.frame()["n_layer"].tolist() == [2, 3]
    assert two.frame()["plan"].tolist() == ["cached", "new"]
    assert len(list(Path("experiments_out/runs").iterdir())) == 3
    assert "3 cells are 2 different runs" in capsys.readouterr().out

    a_runner().run_grid("three", TINY, {"log_interval": [1, 2]})
    assert "log_interval says where or how" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        (
            {"muon_lr": [0.1, 0.2], "optimizer": ["adamw", "muon"]},
            "4 cells are 3 different runs (muon_lr acts only with optimizer=muon)",
        ),
        ({"n_layer": [2, "2"]}, "2 cells are 1 run (some are given twice)"),
        ({"n_kv_head": [None, 2]}, "2 cells are 1 run (n_kv_head changes nothing in some of them)"),
    ],
)
def test_cells_that_are_one_run_say_why(grid, said, capsys):
    a_runner().run_grid("g", TINY, grid, dry_run=True)
    assert f"warning: {said}\n" in capsys.readouterr().out


@pytest.mark.slow
def test_seeds_are_one_more_axis():
    frame = a_runner().run_grid("g", TINY, {"n_layer": [1, 2]}, seeds=range(3)).frame()
    assert frame["seed"].tolist() == [0, 1, 2] * 2
    assert frame["val_loss"].nunique() == 6


def test_numpy_values_and_nested_tables_are_config_values():
    import numpy as np

    base = TINY | {"parametrization": {"mode": "muP"}}
    study = a_runner().run_grid(
        "g", base, {"learning_rate": np.geomspace(1e-4, 1e-3, 2), "n_layer": [np.int64(2)]}
    )
    assert study.frame()["learning_rate"].tolist() == [1e-4, 1e-3]
    config = next(study.runs())[1].spec().config
    assert (config.parametrization.mode, config.n_layer) == ("muP", 2)
    assert json.loads((study.folder / "study.json").read_text())["asked"]["grid_params"][
        "n_layer"
    ] == [2]


@pytest.mark.slow
def test_one_experiment_and_a_dry_run_that_writes_nothing(capsys):
    planned = a_runner().run_grid("g", TINY, {"n_layer": [1, 2]}, dry_run=True)
    assert set(planned.plan.values()) == {"new"}
    assert planned.frame()["state"].tolist() == ["WAITING", "WAITING"]
    said = capsys.readouterr().out
    assert "n_layer=2" in said
    assert "next:" not in said
    assert not Path("experiments_out").exists()
    study = a_runner().run_experiment(TINY | {"n_layer": 2}, name="mine")
    assert study.ok
    assert len(study) == 1
    command = "report mine --output_root=experiments_out"
    assert f"[mine] next: {program()} {command}\n" in capsys.readouterr().out
    assert main(command.split()) == 0
    assert a_runner().load_metrics("mine")[0]["experiment_name"] == "mine"
    other = a_runner().run_experiment(TINY | {"n_layer": 3})
    assert other.name == next(other.runs())[1].path.name


# -- refusals -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("base", "grid", "words"),
    [
        ({"n_layr": 2}, {}, ["base_params: n_layr", "did you mean 'n_layer'"]),
        ({}, {"n_layr": [2]}, ["grid_params: n_layr", "did you mean 'n_layer'"]),
        ({}, {"n_layer": [2, "two"]}, ["grid_params: n_layer=two", "a whole number"]),
        ({}, {"n_layer": 2}, ["grid_params: n_layer=2", "a list of values, as in [2]"]),
        ({}, {"n_layer": []}, ["grid_params: n_layer=[]", "at least one"]),
        ({}, {"n_layer": [1], "n_head": [2, 3]}, ["n_layer=1, n_head=3", "not divisible", "try"]),
        ({}, {"max_iters": [5], "max_tokens": [80]}, ["grid_params sets both max_iters and"]),
        ({}, {"dataset": ["toy", "tou"]}, ["dataset=tou", "did you mean 'toy'"]),
        ({}, {"block_size": [8, 10**6]}, ["block_size=1000000", "tokens, but", "lower block_size"]),
        ("n_layer=2", {}, ["base_params='n_layer=2'", "a dict"]),
        ({}, {"val_sets": [["val"], ["toy"]]}, ["grid_params: val_sets varies, and val_loss, by"]),
        ({}, {"muon_lr": [0.1, 0.2]}, ["grid_params: muon_lr acts only with optimizer=muon"]),
        ({"init_seed": 8, "data_seed": 9}, {"seed": [1, 2]}, ["seed acts only with dropout, or"]),
        ({}, {"parametrization.alpha": [0.5, 1.0]}, ["alpha acts only", "mode=CompleteP"]),
    ],
)
def test_a_bad_cell_is_refused_before_any_run_starts(base, grid, words):
    if isinstance(base, dict):
        base = TINY | base
    with pytest.raises(UserError) as refusal:
        a_runner().run_grid("g", base, grid)
    for word in words:
        assert word in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not Path("experiments_out").exists()


def test_a_number_of_seeds_is_no_list_of_seeds():
    with pytest.raises(UserError, match="seeds=3: expected a list of values"):
        a_runner().run_grid("g", TINY, {}, seeds=3)


@pytest.mark.parametrize(
    "name",
    ["a/b", "..", ".hidden", "runs", "", " x", "a\nb", "a:b", 3, "x" * 101, "a.", "con", "Aux.x"],
)
def test_a_study_name_that_is_no_folder_name_is_refused(name):
    with pytest.raises(UserError, match="study name"):
        a_runner().run_grid(name, TINY, {})
    assert not Path("experiments_out").exists()


def test_an_output_root_that_cannot_be_written_is_refused():
    Path("file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file.*choose another folder"):
        a_runner(output_root="file").run_grid("g", TINY, {})
    assert a_runner(output_root="file").load_metrics() == []


@pytest.mark.parametrize("options", [{"workers": 0}, {"threads": "two"}])
def test_impossible_workers_are_refused(options):
    with pytest.raises(UserError, match="at least 1"):
        a_runner(**options)


# -- base config, defaults, warnings ------------------------------------------------------------
def test_the_base_config_lies_here_or_comes_with_the_package(monkeypatch):
    Path("tiny.toml").write_text('dataset = "toy"\nn_layer = 1\nn_embd = 16\nn_head = 2\n')
    assert a_runner(base_config_path="tiny.toml").base[0].values["n_embd"] == 16
    assert a_runner(base_config_path="").base == []
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    for name in ("config/train_gpt2.py", "train_gpt2"):
        assert a_runner(base_config_path=name).base[0].values["block_size"] == 1024
    with pytest.raises(UserError, match=r"tinny\.toml: no such config file"):
        a_runner(base_config_path="tinny.toml")


@pytest.mark.slow
def test_threads_and_compile_are_the_studys_unless_the_config_says_otherwise():
    runner = a_runner(threads=2)
    config = next(runner.run_grid("g", TINY, {}).runs())[1].spec().config
    assert (config.threads, config.compile) == (2, False)
    spec = next(runner.run_grid("h", TINY | {"threads": 3, "compile": True, "seed": 1}, {}).runs())[
        1
    ].spec()
    assert (spec.config.threads, spec.config.compile) == (3, True)
    assert "n_layer" in spec.typed


@pytest.mark.parametrize(
    ("base", "grid", "warned"),
    [
        ({}, {"learning_rate": [1e-3, 2e-3]}, "set min_lr_frac=0.1"),
        ({"min_lr_frac": 0.1}, {"learning_rate": [1e-3, 2e-3]}, None),
        ({"min_lr": 0}, {"learning_rate": [1e-3, 2e-3]}, None),
        ({"warmup_iters": 1}, {"max_iters": [20, 40]}, "set warmup_frac=0.05"),
        ({"warmup_frac": 0.05}, {"max_iters": [20, 40]}, None),
        (
            {"warmup_frac": 0.05, "lr_decay_iters": 20},
            {"max_tokens": [320, 640]},
            "set lr_decay_iters=None",
        ),
        (
            {"warmup_iters": 1, "max_iters": None, "tokens_per_param": 1},
            {"n_layer": [1, 2]},
            "set warmup_frac=0.05",
        ),
        ({"decay_lr": False, "warmup_iters": 1}, {"max_iters": [20, 40]}, None),
    ],
)
def test_an_absolute_schedule_under_a_varying_length_or_lr_is_warned_about(base, grid, warned):
    study = a_runner().run_grid("g", TINY | base, grid, dry_run=True)
    fixed = [text for text in study.warnings if "does not" in text]
    assert [warned in text for text in fixed] == ([True] if warned else [])


# -- results ------------------------------------------------------------------------------------
@pytest.mark.slow
def test_metrics_of_lr_are_not_those_of_lr2():
    a_runner().run_grid("lr", TINY, {"learning_rate": [1e-3]})
    a_runner().run_grid("lr2", TINY, {"learning_rate": [2e-3, CRASH], "beta1": [0.9]})
    a_runner().run_grid("wd", TINY, {"weight_decay": [0.5], "beta1": [CRASH, 0.9]})
    found = a_runner().load_metrics(grid_name_filter="lr")
    assert [m["experiment_name"] for m in found] == ["lr_learning_rate0.001"]
    assert found[0]["config"]["learning_rate"] == 1e-3
    assert len(a_runner().load_metrics("l")) == 3
    assert len(a_runner().load_metrics("w")) == 1  # the failed run has none
    assert len(a_runner().load_metrics()) == 4
    with pytest.raises(UserError, match=r"no study 'lr3' in .*; did you mean 'lr'"):
        a_runner().load_metrics("lr3")


def test_a_table_is_rebuilt_from_the_folders():
    study = a_runner().run_grid("g", TINY, {"n_layer": [1, 2]})
    table = study.folder / "table.csv"
    text = table.read_text()
    table.unlink()
    assert rebuild_table(study.folder) == table
    assert table.read_text() == text
    assert text.splitlines()[0].startswith("n_layer,state,val_loss,")
    assert all(",runs/" in line for line in text.splitlines()[1:])  # no path of this machine
    again = Study.open(study.folder)
    assert again.frame().equals(study.frame().drop(columns="plan"))
    assert "2 COMPLETE" in repr(again)
    assert "<table" in again._repr_html_()
    folder = next(study.runs())[1]
    folder.set_status(state=WAITING)  # a result of an earlier life is none
    assert study.frame()["val_loss"].isna().tolist() == [True, False]
    assert len(study.metrics()) == 1
    assert Study.open(str(study.folder)).entries == again.entries
    with pytest.raises(UserError, match="did you mean 'g'"):
        Study.open("experiments_out/gg")


@pytest.mark.slow
def test_mixed_numerics_are_warned_about():
    runner = a_runner()
    runner.run_grid("g", TINY | {"threads": 2}, {"n_layer": [1]})
    study = runner.run_grid("g", TINY, {"n_layer": [1, 2]})
    assert ["differ in threads (1, 2)" in text for text in study.warnings].count(True) == 1


def test_each_part_of_the_numerics_that_runs_do_not_share_is_warned_of(monkeypatch):
    study = a_runner().run_grid("g", TINY, {"n_layer": [1, 2]}, dry_run=True)
    one = {"dtype": "float32", "kernels": "torch", "threads": 1, "matmul_precision": "high"}
    other = {"dtype": "bfloat16", "kernels": "fused", "threads": 1, "matmul_precision": "medium"}
    records = {entry.folder: n for entry, n in zip(study.entries, (one, other), strict=True)}
    monkeypatch.setattr(results, "state_of", lambda folder: COMPLETE)
    monkeypatch.setattr(
        results, "metrics_of", lambda folder: {"numerics": records[folder.path.name]}
    )
    assert study.mixed_numerics() == [
        f"the runs differ in {what}, so their losses differ by rounding too"
        for what in ("dtype (bfloat16, float32)", "kernels (fused, torch)")
    ]


# -- death and resurrection -------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(
    ("number", "fork"), [("SIGKILL", True), ("SIGKILL", False), ("SIGINT", True), ("SIGTERM", True)]
)
def test_a_killed_runner_leaves_no_children_and_a_rerun_finishes(
    number, fork, tmp_path, monkeypatch
):
    text = script(f"""
        runner = ExperimentRunner(workers=2, backend=ForkServer(FAKE, fork={fork}))
        runner.run_grid("s", TINY | dict(max_iters=2000, beta1=SLOW), dict(n_layer=[1, 2]))
        """)
    process = subprocess.Popen(
        [sys.executable, "-"],
        stdin=subprocess.PIPE,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    process.stdin.write(text)
    process.stdin.close()
    children = running(tmp_path / "experiments_out", 2)
    server = psutil.Process(process.pid).children()
    process.send_signal(getattr(signal, number))
    assert process.wait(PATIENCE) != 0
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in children))
    wait_for(lambda: not any(p.is_running() for p in server))

    monkeypatch.setenv("SLOW_SECONDS", "0")
    base = TINY | {"max_iters": ENDLESS, "beta1": SLOW}
    study = a_runner().run_grid("s", base, {"n_layer": [1, 2]})
    assert study.ok
    assert set(study.plan.values()) == {"resume"}
    for _, folder in study.runs():
        assert [first > 0 for _, first in starts(folder)] == [False, True]
        assert [row["step"] for row in folder.rows()] == list(range(1, ENDLESS + 1))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG")
def test_runs_save_when_their_server_is_killed_and_are_tried_again(tmp_path, monkeypatch):
    def kill_server() -> None:
        running(tmp_path / "experiments_out", 1)
        monkeypatch.setenv("SLOW_SECONDS", "0")
        backend._server.process.kill()

    backend = ForkServer(FAKE)
    killer = threading.Thread(target=kill_server)
    killer.start()
    study = a_runner(backend=backend, workers=1).run_grid(
        "s", TINY | {"max_iters": ENDLESS}, {"n_layer": [1, 2], "beta1": [SLOW]}
    )
    killer.join()
    assert study.ok
    hit = next(folder for _, folder in study.runs() if len(starts(folder)) == 2)
    assert [first > 0 for _, first in starts(hit)] == [False, True]
    assert [row["step"] for row in hit.rows()] == list(range(1, ENDLESS + 1))


@pytest.mark.slow
def test_a_run_of_another_live_process_is_waited_for(capsys):
    study = a_runner().run_grid("g", TINY, {"n_layer": [1]})
    folder = next(study.runs())[1]
    folder.set_status(state=RUNNING)
    with folder.take():
        release = threading.Timer(0.4, lambda: folder.set_status(state=COMPLETE))
        release.start()
        again = a_runner().run_grid("g", TINY, {"n_layer": [1]})
        release.join()
    assert again.ok
    assert len(starts(folder)) == 1
    assert f"process {os.getpid()}" in capsys.readouterr().out


@pytest.mark.slow
def test_todays_config_applies_but_a_resumed_run_keeps_its_numerics():
    runner, grid = a_runner(retries=0), {"beta1": [DIE, CRASH]}
    runner.run_grid("g", TINY, grid)
    study = runner.run_grid("g", TINY | {"threads": 2, "log_interval": 7}, grid)
    went_on, began_anew = (folder.spec().config for _, folder in study.runs())
    assert (went_on.threads, went_on.log_interval) == (1, 7)
    assert (began_anew.threads, began_anew.log_interval) == (2, 7)
    assert [first for _, first in starts(next(study.runs())[1])] == [0, 1]


# -- where it is called from --------------------------------------------------------------------


def toy_clone(tmp_path: Path, real: bool = False) -> None:
    """Around the README's snippet: its config and data in small, a door to the fake worker."""
    (tmp_path / "config").mkdir()
    small = "\n".join(f"{k} = {v!r}" for k, v in TINY.items() if k not in ("dataset", "max_iters"))
    (tmp_path / "config" / "train_shakespeare_char.py").write_text(small)
    fake_worker.make_dataset(tmp_path, "shakespeare_char")
    if real:
        return
    (tmp_path / "experiments.py").write_text(
        textwrap.dedent("""
        from functools import partial
        from nanoscale.experiments import ExperimentRunner
        from nanoscale.experiments.local import ForkServer
        from nanoscale.experiments.worker import Worker
        fake = ForkServer(Worker(entry="fake_worker:main", preload=()))
        ExperimentRunner = partial(ExperimentRunner, backend=fake)
        """)
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", ["script", "stdin"])
def test_the_original_snippet_runs_as_a_bare_script_and_from_standard_input(
    how, tmp_path, monkeypatch
):
    toy_clone(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT), str(TESTS)]))
    (tmp_path / "snippet.py").write_text(SNIPPET)
    arguments, text = (["snippet.py"], None) if how == "script" else (["-"], SNIPPET)
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        input=text,
        text=True,
        capture_output=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "[depth_study] 3 COMPLETE" in done.stdout
    assert Study.open(tmp_path / "experiments_out" / "depth_study").ok


@pytest.mark.slow
def test_the_original_snippet_runs_in_a_notebook(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    toy_clone(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT), str(TESTS)]))
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(SNIPPET),
            nbformat.v4.new_code_cell(
                "runner.run_grid('depth', {'dataset': 'shakespeare_char', "
                "'max_iters': 1000}, {'n_layer': [2]})"
            ),
        ]
    )
    nbclient.NotebookClient(notebook, timeout=PATIENCE, kernel_name="python3").execute()
    first, second = (cell.outputs for cell in notebook.cells)
    assert "[depth_study] 3 COMPLETE" in "".join(o.get("text", "") for o in first)
    assert "<table" in second[-1]["data"]["text/html"]


@pytest.mark.slow
def test_the_original_snippet_trains_for_real_from_standard_input(tmp_path, monkeypatch):
    toy_clone(tmp_path, real=True)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = subprocess.run(
        [sys.executable, "-"],
        input=SNIPPET.replace("1000", "10"),
        text=True,
        capture_output=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    metrics = ExperimentRunner().load_metrics("depth_study")
    assert [m["config"]["n_layer"] for m in metrics] == [2, 4, 8]
    assert all(1 < m["best_val_loss"] < 4 and m["iter_num"] == 10 for m in metrics)
    assert {m["numerics"]["threads"] for m in metrics} == {1}


@pytest.mark.slow
def test_nothing_here_imports_torch_or_multiprocessing():
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, nanoscale.experiments.runner, "
            "nanoscale.experiments.forkserver as f\n"
            "print({'torch', 'multiprocessing', 'pandas', 'rich', 'psutil'} & set(sys.modules))",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "set()"


def test_the_door_is_the_packages_runner():
    import importlib.util

    spec = importlib.util.spec_from_file_location("door", ROOT / "experiments.py")
    door = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(door)
    assert door.ExperimentRunner is ExperimentRunner


# -- the fork server ----------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks are used on Linux only")
def test_with_torch_imported_the_server_has_one_thread_and_no_child(tmp_path, monkeypatch):
    (tmp_path / "look.py").write_text(
        textwrap.dedent("""
        import os, sys
        server = os.getpid()
        def main(arguments):
            import psutil
            parent = psutil.Process(server)
            print("torch" in sys.modules, "torch._dynamo" in sys.modules, os.getppid() == server,
                  parent.num_threads(), len(parent.children()))
        """)
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run_one(ForkServer(Worker(entry="look:main")), tmp_path, Slot({"OMP_NUM_THREADS": "2"}))
    assert (tmp_path / "log.txt").read_text() == "True False True 1 1\n"


def run_one(backend, folder: Path, slot: Slot) -> list:
    """The exits of one run that is started on `slot`."""
    backend.start(folder, slot)
    exits: list = []
    wait_for(lambda: exits.extend(backend.poll(0.1)) or exits)
    backend.close()
    return exits


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs os.sched_getaffinity")
def test_a_run_has_its_slots_cpus_and_environment(tmp_path, monkeypatch):
    one = sorted(os.sched_getaffinity(0))[:1]
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "look.py").write_text(
        "import os\ndef main(arguments):\n"
        "    print(os.environ['COLOUR'], sorted(os.sched_getaffinity(0)), os.getpgrp() == "
        "os.getpid(), os.read(0, 1))\n    return 7\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for backend in (
        ForkServer(Worker(entry="look:main", preload=())),
        ForkServer(
            Worker(command=(sys.executable, "-c", "import sys, look; sys.exit(look.main([]))")),
            fork=False,
        ),
    ):
        exits = run_one(backend, folder, Slot({"COLOUR": "red"}, tuple(one)))
        assert [(e.folder, e.code) for e in exits] == [(folder, 7)]
        assert (folder / "log.txt").read_text().splitlines()[-1] == f"red {one} True b''"


# -- machine ------------------------------------------------------------------------------------
def test_slots_fit_the_cores_and_are_pinned_only_when_they_take_them_all(monkeypatch):
    monkeypatch.setattr(machine, "physical_cores", lambda: [0, 2, 4, 6])
    four = machine.slots("cpu", 1, None)
    assert [slot.cpus for slot in four] == [(0,), (2,), (4,), (6,)]
    assert four[0].env["OMP_NUM_THREADS"] == "1"
    assert [slot.cpus for slot in machine.slots("cpu", 2, None)] == [(0, 2), (4, 6)]
    assert [slot.cpus for slot in machine.slots("cpu", 3, None)] == [()]
    assert len(machine.slots("cpu", 8, None)) == 1
    assert len(machine.slots("cpu", None, None)) == 1
    assert [slot.cpus for slot in machine.slots("cpu", 1, 2)] == [(), ()]


def test_threads_sleep_at_barriers_where_others_are_at_work(monkeypatch):
    monkeypatch.setattr(machine, "physical_cores", lambda: [0, 1])
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    for name in machine.WAITING_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for load, threads, passive in (
        (0.0, None, False),
        (2.4, None, False),  # two of ours and two of theirs have a core each
        (2.6, None, True),
        (0.4, 4, False),
        (0.6, 4, True),
    ):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0), raising=False)
        assert machine.waiting(threads) == (machine.PASSIVE if passive else {})
    for name in machine.WAITING_VARIABLES:
        with monkeypatch.context() as context:
            context.setenv(name, "1")
            assert machine.waiting(4) == {}
    monkeypatch.delattr(os, "getloadavg")  # Windows has none
    assert machine.waiting(4) == {}


def test_gpus_are_slots_and_leave_threads_alone(monkeypatch):
    monkeypatch.setattr(machine.metadata, "version", lambda name: "2.13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [dict(s.env) for s in machine.slots("auto", 1, None)] == [
        {"CUDA_VISIBLE_DEVICES": "3"},
        {"CUDA_VISIBLE_DEVICES": "5"},
    ]
    assert [s.env["CUDA_VISIBLE_DEVICES"] for s in machine.slots("cuda", 1, 3)] == ["3", "5", "3"]
    assert machine.slots("cuda:1", 1, None) == [Slot({})]
    assert "OMP_NUM_THREADS" in machine.slots("cpu", 1, None)[0].env
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert not machine.on_gpu("auto")
    monkeypatch.setattr(machine.metadata, "version", lambda name: "2.13.0+cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert not machine.on_gpu("auto")


# -- progress -----------------------------------------------------------------------------------
def test_progress_reads_the_last_whole_row(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    assert progress.last_row(folder) == {}
    for odd in ("[]", "3", "[" * 2000):
        (folder / "metrics.jsonl").write_text(f"{odd}\n")
        assert progress.last_row(folder) == {}
    assert progress.read(folder).step == 0
    filler = json.dumps({"step": 1, "filler": "x" * progress.TAIL_BYTES})
    (folder / "metrics.jsonl").write_text(filler + '\n{"step": 2, "train_loss": 3.5}\n{"step": 3, ')
    assert progress.last_row(folder) == {"step": 2, "train_loss": 3.5}


def a_job() -> Job:
    """A run that is RUNNING at step 3 of 5."""
    study = a_runner().run_grid("p", TINY, {"n_layer": [1]})
    entry, folder = next(study.runs())
    folder.set_status(state=RUNNING, step=3)
    (folder / "metrics.jsonl").write_text(
        '{"step": 3, "train_loss": 2.5, "tokens_per_second": 9, "tokens_seen": 54}\n'
    )
    return Job(folder, entry.flops, "n_layer=1")


def test_plain_progress_is_a_line_per_event_and_one_at_most_every_30_seconds(monkeypatch, capsys):
    job = a_job()
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = progress.open_progress("p", [job])
    shown.past = {job.path: 0.0}
    shown.flops_asked = job.flops
    shown.started(job)
    capsys.readouterr()
    for now[0] in (101.0, 129.0, 131.0, 140.0, 160.0, 162.0):
        shown.tick()
    lines = capsys.readouterr().out.splitlines()
    spent = f"{0.6 * job.flops:.3g} of {job.flops:.3g} FLOPs"
    assert lines == [
        f"[p] 0/1 done, {spent}, {left} left: n_layer=1 step 3/5 loss 2.5000"
        for left in ("20.7 s", "41.3 s")
    ]
    job.folder.set_status(state=COMPLETE)
    shown.ended(job)
    assert "1/1, 1 min 02 s in all" in capsys.readouterr().out


def test_the_time_left_is_of_what_is_asked_and_never_negative(monkeypatch, capsys):
    job = a_job()
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    later = [progress.Expected(1, job.flops / 10)]  # less than it will be
    shown = progress.open_progress("p", [], lambda: later[0])
    shown.add([job, job])  # two trials that are one run
    later[0] = progress.Expected()
    assert (shown.total, shown.flops_to_do) == (2, pytest.approx(0.4 * job.flops))
    shown.started(job)
    job.folder.set_status(state=COMPLETE)
    now[0] = 110.0
    capsys.readouterr()
    for _ in range(2):
        shown.ended(job)
    assert shown.flops_done() == pytest.approx(shown.flops_to_do)
    said = capsys.readouterr().out.splitlines()
    assert ["(1/2, 0.0 s left)" in said[0], "(2/2, 10.0 s in all)" in said[1]] == [True, True]


def test_what_a_branch_has_done_begins_where_it_leaves_the_others_past():
    job = replace(a_job(), since=1)
    assert progress.done_flops(job) == job.flops / 2


def test_a_terminal_gets_a_live_table(monkeypatch):
    from rich.console import Console

    job = a_job()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    shown = progress.open_progress("p", [job])
    assert isinstance(shown, progress.LiveProgress)
    shown.running[job.path] = job
    with open(os.devnull, "w") as nowhere:
        console = Console(width=100, record=True, file=nowhere)
        console.print(shown.table())
        text = console.export_text()
    for word in (
        "p: 0/1 done, 0 waiting",
        "n_layer=1",
        "RUNNING",
        "3/5",
        "2.5000",
        "9",
        "4.0 s",
        f"of {job.flops * 0.4:.3g} FLOPs",
    ):
        assert word in text


@pytest.mark.parametrize("state", [WAITING, RUNNING])
def test_a_run_that_has_been_started_and_has_not_begun_loads_torch(state, monkeypatch):
    job = a_job()
    job.folder.set_status(state=state)
    shown = progress.LiveProgress("p", [job], progress.Expected)
    shown.running[job.path] = job
    (cells,) = [[*column.cells] for column in shown.table().renderables[1].columns[1:2]]
    assert cells == ["loading torch" if state == WAITING else state]


def test_durations_are_readable():
    assert [progress.duration(s) for s in (8.25, 260, 7500)] == [
        "8.2 s",
        "4 min 20 s",
        "2 h 05 min",
    ]


def test_a_table_is_in_utf_8_whatever_the_locale(tmp_path):
    code = f"""from pathlib import Path
from nanoscale.experiments.results import write_csv
write_csv(Path({str(tmp_path / "t.csv")!r}), [dict(name="±")])"""
    done = run_python("-X", "warn_default_encoding", "-W", "error::EncodingWarning", "-c", code)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "t.csv").read_text(encoding="utf-8") == "name\n±\n"


def test_a_name_that_no_study_has_is_no_empty_result():
    study = a_runner().run_grid("depths", TINY, {"n_layer": [1]}, dry_run=True)
    study.save()
    assert a_runner().load_metrics("dep") == []  # none has finished
    with pytest.raises(UserError, match=r"no study 'dephts' in .*; did you mean 'depths'"):
        a_runner().load_metrics("dephts")
    with pytest.raises(UserError, match="no study 'x'"):
        a_runner(output_root="elsewhere").load_metrics("x")


def test_a_study_needs_a_place_where_a_folder_can_be_made():
    study = a_runner().run_grid("g", TINY, {"n_layer": [1]}, dry_run=True)
    study.output_root = Path("/proc/nope")
    with pytest.raises(UserError, match=r"cannot make /proc/nope/g: .* choose another folder"):
        study.save_record()
