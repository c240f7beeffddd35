"""A profile of a run: true rows with any kernels, a valid trace, not a bit of the run changed."""

from __future__ import annotations

import errno
import gzip
import json
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from tiny import ROOT, flags, run_nanoscale, run_python, spec_maker
from tiny import RUN as BASE
from twins import ask_to_stop_in_update, assert_twins

from nanoscale.data.dataset import TrainingSamples
from nanoscale.errors import UserError
from nanoscale.model import kernels
from nanoscale.model.distributed import Ranks
from nanoscale.model.spans import KernelLook, Span
from nanoscale.spec.identity import RunSpec
from nanoscale.spec.sources import build as config_of
from nanoscale.spec.sources import parse_arguments
from nanoscale.store.folder import RunFolder
from nanoscale.store.resume import open_folder
from nanoscale.training import loop as training
from nanoscale.training import profiling
from nanoscale.training.run import train, train_folder
from nanoscale.training.state import Run, build, dataset_of
from nanoscale.training.statistics import Statistics
from nanoscale.training.step_profile import (
    BETWEEN,
    MOST_CHARACTERS,
    REST,
    StepProfile,
    TraceEvent,
    events_of,
    step_profile,
)

needs_kernels = pytest.mark.skipif(kernels.library() is None, reason="no compiler for the kernels")
KERNELS = [
    pytest.param("step", marks=needs_kernels),
    pytest.param("fused", marks=needs_kernels),
    "torch",
]
LONG = {"max_iters": 20, "eval_interval": 0, "profile": True}  # none of its last is recorded


@pytest.fixture
def spec_of(data_root: Path) -> Callable[..., RunSpec]:
    return spec_maker(BASE, data_root)


def trained(spec: RunSpec, path: Path, state: str = "COMPLETE") -> RunFolder:
    folder = open_folder(path, spec, resume=False)
    assert train_folder(folder).status == state
    return folder


def trace_of(folder: RunFolder | Path) -> dict[str, Any]:
    return json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))


def events(folder: RunFolder | Path) -> list[TraceEvent]:
    return events_of(trace_of(folder)["traceEvents"])


def profile_of(folder: RunFolder) -> StepProfile:
    return step_profile(events(folder))


def lines(folder: RunFolder) -> list[str]:
    return (folder / "log.txt").read_text().splitlines()


def window(folder: RunFolder) -> tuple[int, int]:
    """The first and the last update that was recorded, which the lines say too."""
    profile = profile_of(folder)
    first, last = profile.first, profile.first + profile.steps - 1
    [told] = [line for line in lines(folder) if line.startswith("profile of")][-1:]
    assert told.startswith(f"profile of updates {first} to {last}: ")
    return first, last


# -- what it says ---------------------------------------------------------------------------------
@pytest.mark.parametrize("kernels", KERNELS)
def test_a_run_says_where_its_steps_go(spec_of, tmp_path, kernels):
    folder = trained(spec_of(**LONG, kernels=kernels, optimizer="muon"), tmp_path / "run")
    profile = profile_of(folder)
    assert window(folder) == (6, 15)
    names = [part.name for part in profile.parts]
    assert names == ["data", "forward", "backward", "optimizer", REST]
    for part in profile.parts:
        assert part.ms > 0
        assert part.steps == 10
    assert sum(part.ms for part in profile.parts) == pytest.approx(profile.step_ms)

    costly = {row.name for row in profile.operations}
    assert BETWEEN in costly
    assert len(profile.operations) == 10
    of_kernels = {event.name for event in events(folder) if event.kind == "nanoscale"}
    if kernels == "torch":
        assert of_kernels == set()
    else:
        inside = {f"nanoscale::{name}" for name in ("attend", "attend_backward", "adamw", "muon")}
        assert of_kernels >= inside

    told = lines(folder)
    at = told.index(f"trace: {folder / 'trace.json.gz'}; open it at ui.perfetto.dev")
    table = told[at - 18 : at]
    assert [line.split("  ")[0] for line in table[1:7]] == [*names, "a step"]
    shown = [row.name[:MOST_CHARACTERS] for row in profile.operations]
    assert [line.split("  ")[0] for line in table[8:]] == shown


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_trace_is_one(spec_of, tmp_path, kernels):
    """Of the Trace Event Format: complete events, which nest on each thread."""
    threads = 2 if kernels == "step" else 1
    folder = trained(spec_of(**LONG, kernels=kernels, threads=threads), tmp_path / "run")
    trace = trace_of(folder)
    assert trace["traceName"] == "trace.json.gz"
    for record in trace["traceEvents"]:
        assert record["ph"] in ("X", "M", "i", "s", "f")
        assert isinstance(record["name"], str)
        if record["ph"] == "X":
            assert {"pid", "tid", "ts", "dur", "cat"} <= set(record)
            assert record["dur"] >= 0

    found = events_of(trace["traceEvents"])
    steps = [event for event in found if event.is_step]
    assert [step.name for step in steps] == [f"step {number}" for number in range(6, 16)]
    thread = steps[0].thread
    for step in steps:
        inside = [e for e in found if step.begin <= e.begin and e.end <= step.end]
        here = {event.name for event in inside if event.thread == thread and event.is_part}
        assert here >= {"data", "forward", "backward", "optimizer"}
    assert_nested(found)
    others = {event.thread for event in found if event.kind == "nanoscale"} - {thread}
    assert len(others) == (kernels == "step")


def assert_nested(found: list[TraceEvent]) -> None:
    """No event ends after one that it began in, on the same thread."""
    for thread in {event.thread for event in found}:
        stack: list[TraceEvent] = []
        mine = [event for event in found if event.thread == thread]
        for event in sorted(mine, key=lambda event: (event.begin, -event.end)):
            while stack and stack[-1].end <= event.begin:
                stack.pop()
            assert not stack or event.end <= stack[-1].end, (stack[-1], event)
            stack.append(event)


def test_what_happens_now_and_then_is_a_part_of_its_own(spec_of, tmp_path, monkeypatch):
    real = Statistics.measure

    def slow(statistics: Statistics) -> None:
        time.sleep(0.02)
        real(statistics)

    monkeypatch.setattr(Statistics, "measure", slow)
    folder = trained(
        spec_of(max_iters=12, eval_interval=6, stats_interval=4, profile=True), tmp_path / "run"
    )
    parts = {part.name: part for part in profile_of(folder).parts}
    assert window(folder) == (6, 12)
    assert 7 * parts["statistics"].ms > 2 * 20
    assert {part.name: part.steps for part in parts.values()} == {
        **dict.fromkeys(["data", "forward", "backward", "optimizer", REST], 7),
        "evaluation": 2,  # 6 and 12
        "statistics": 2,  # 8 and 12
        "checkpoint": 2,
    }


def test_time_that_passes_in_a_part_is_that_parts(spec_of, tmp_path, monkeypatch):
    real = TrainingSamples.batch

    def slow(*arguments: Any) -> Any:
        time.sleep(0.02)
        return real(*arguments)

    monkeypatch.setattr(TrainingSamples, "batch", slow)
    folder = trained(spec_of(**LONG), tmp_path / "run")
    parts = {part.name: part for part in profile_of(folder).parts}
    assert parts["data"].ms > 20
    assert parts["data"].share > max(part.share for part in parts.values() if part.name != "data")


@pytest.mark.slow
@pytest.mark.parametrize("kernels", KERNELS)
def test_the_way_back_takes_about_twice_the_way_forward(spec_of, tmp_path, kernels):
    """By its FLOPs, where products are most of both; a median, as the machine does other things."""
    shape = {"n_layer": 3, "n_embd": 128, "block_size": 64, "batch_size": 8, "max_iters": 16}
    folder = trained(spec_of(**LONG | shape, kernels=kernels), tmp_path / "run")
    found = events(folder)
    ratios = []
    for step in [event for event in found if event.is_step]:
        inside = [event for event in found if step.begin <= event.begin < step.end]
        ms = {part.name: part.ms for part in step_profile(inside).parts}
        ratios.append(ms["backward"] / ms["forward"])
    assert 1 < median(ratios) < 4


@needs_kernels
def test_spans_that_there_is_no_room_for_are_told(spec_of, tmp_path, monkeypatch):
    monkeypatch.setattr(profiling, "KernelLook", lambda: KernelLook(room=100))
    folder = trained(spec_of(**LONG, kernels="step"), tmp_path / "run")
    of_kernels = [event for event in events(folder) if event.kind == "nanoscale"]
    assert len(of_kernels) == 100
    [warning] = [line for line in lines(folder) if line.startswith("warning: the trace")]
    assert warning.endswith(" spans of the kernels")


# -- what it leaves alone -------------------------------------------------------------------------
@pytest.mark.parametrize("kernels", KERNELS)
def test_a_profiled_run_is_its_twins(spec_of, tmp_path, kernels):
    values = {
        "max_iters": 14,
        "kernels": kernels,
        "threads": 2 if kernels == "step" else 1,
        "dropout": 0.1,
        "stats_interval": 7,
        "optimizer": "muon",
        "batch_size": 3,
    }
    plain, profiled = spec_of(**values), spec_of(**values, profile=True)
    assert plain.id == profiled.id
    one = trained(plain, tmp_path / "plain")
    other = trained(profiled, tmp_path / "profiled")
    assert_twins(one, other)
    left = {path.name for path in other.path.iterdir()} - {path.name for path in one.path.iterdir()}
    assert left == {"trace.json.gz"}


def test_without_it_nothing_is_asked(spec_of):
    spec = spec_of()
    run = build(spec, dataset_of(spec), Ranks())
    assert run.profiler is None
    assert run.part("data") is run.part("forward")  # no object is made


# -- where runs are short, or end -----------------------------------------------------------------
WINDOWS = {  # updates left, micro-batches -> skipped, recorded
    (1, 1): (0, 1),
    (2, 1): (1, 1),
    (6, 1): (5, 1),
    (8, 1): (5, 3),
    (15, 1): (5, 10),
    (2000, 1): (5, 10),
    (2000, 8): (5, 8),
    (2000, 40): (5, 1),
    (2000, 640): (5, 1),
}


@pytest.mark.parametrize(("asked", "expected"), WINDOWS.items())
def test_the_window(asked, expected):
    found = profiling.Window.of(*asked)
    assert (found.skipped, found.recorded) == expected


@pytest.mark.parametrize(("updates", "expected"), [(1, (1, 1)), (3, (3, 3)), (7, (6, 7))])
def test_a_short_run_records_its_last_updates(spec_of, tmp_path, updates, expected):
    folder = trained(spec_of(max_iters=updates, profile=True), tmp_path / "run")
    assert window(folder) == expected


def test_a_run_of_no_updates_has_nothing_to_profile(spec_of, tmp_path):
    folder = trained(spec_of(max_iters=0, profile=True), tmp_path / "run")
    assert not (folder / "trace.json.gz").exists()


def test_many_micro_batches_are_recorded_in_fewer_updates(spec_of, tmp_path):
    spec = spec_of(**LONG, gradient_accumulation_steps=4, batch_size=6, micro_batch_size=2)
    folder = trained(spec, tmp_path / "run")
    assert window(folder) == (6, 10)
    assert {part.name for part in profile_of(folder).parts} >= {"forward", "backward"}


def test_a_stop_in_the_window_leaves_what_was_recorded_and_resuming_records_anew(
    spec_of, tmp_path, monkeypatch
):
    spec = spec_of(**LONG | {"max_iters": 30})
    with monkeypatch.context() as patch:
        ask_to_stop_in_update(8, patch)
        folder = trained(spec, tmp_path / "run", "WAITING")
    assert window(folder) == (6, 8)
    assert "interrupted: saved after step 8; the same command continues" in lines(folder)
    trained(spec, folder.path)
    assert window(folder) == (14, 23)
    assert_twins(trained(spec_of(max_iters=30, eval_interval=0), tmp_path / "straight"), folder)


def test_a_stop_before_the_window_says_so(spec_of, tmp_path, monkeypatch):
    ask_to_stop_in_update(5, monkeypatch)
    folder = trained(spec_of(**LONG), tmp_path / "run", "WAITING")
    assert not (folder / "trace.json.gz").exists()
    assert "profile: the run ended before update 6; nothing was recorded" in lines(folder)


def test_a_run_that_goes_on_takes_it_and_leaves_it(spec_of, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        ask_to_stop_in_update(3, patch)
        folder = trained(spec_of(**LONG | {"profile": False}), tmp_path / "run", "WAITING")
    trained(spec_of(**LONG), folder.path)
    assert window(folder) == (9, 18)


def test_an_error_in_the_window_leaves_no_trace_and_no_profiler(spec_of, tmp_path, monkeypatch):
    real = training.update

    def update(run: Run, *rest: Any) -> training.UpdateDone:
        if run.step == 8:
            raise RuntimeError("planted")
        return real(run, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(training, "update", update)
        folder = open_folder(tmp_path / "run", spec_of(**LONG), resume=False)
        with pytest.raises(RuntimeError, match="planted"):
            train_folder(folder)
    assert not list(folder.path.glob("*trace*"))
    trained(spec_of(**LONG), folder.path)
    assert window(folder)[0] > 5  # torch's profiler can begin again


def test_a_run_that_diverges_in_the_window_leaves_what_was_recorded(spec_of, tmp_path, monkeypatch):
    real = training.record

    def record(run: Run, done: training.UpdateDone) -> Any:
        known = real(run, done)
        return replace(known, batch_loss=float("nan")) if run.step == 9 else known

    monkeypatch.setattr(training, "record", record)
    folder = trained(spec_of(**LONG), tmp_path / "run", "DIVERGED")
    assert window(folder) == (6, 9)


def test_a_trace_that_cannot_be_written_is_refused_in_a_line(spec_of, tmp_path):
    folder = open_folder(tmp_path / "run", spec_of(**LONG), resume=False)
    (folder / "trace.json.gz").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*trace\.json\.gz"):
        train_folder(folder)
    assert folder.state() == "WAITING"
    assert not list(folder.path.glob(".trace*"))


def test_a_full_disk_elsewhere_is_refused_in_a_line_too(spec_of, tmp_path, monkeypatch):
    """Where torch leaves its own file first."""

    def full(_: Any) -> None:
        raise OSError(errno.ENOSPC, "planted")

    monkeypatch.setattr(profiling, "exported", full)
    folder = open_folder(tmp_path / "run", spec_of(**LONG), resume=False)
    with pytest.raises(UserError, match=r"cannot write .*trace\.json\.gz: no space left"):
        train_folder(folder)
    assert folder.state() == "WAITING"


# -- as people ask for it -------------------------------------------------------------------------
def test_an_evaluation_alone_has_no_updates_to_profile():
    sources = parse_arguments(["--eval_only=True", "--profile=True"])
    with pytest.raises(UserError, match="profile=True looks at updates, of which eval_only"):
        config_of(sources)


def test_a_finished_run_is_not_trained_again_for_it(spec_of, tmp_path, capsys):
    folder = trained(spec_of(), tmp_path / "run")
    spec = replace(spec_of(profile=True), typed={"profile": True})
    train(spec.config, folder.path, typed={"profile": True})
    assert "profile=True (it has False) cannot change a finished run" in capsys.readouterr().out
    assert not (folder / "trace.json.gz").exists()


STUDY = """
[study]
name = "profiled"
recipe = "grid"

[base]
{base}

[grid]
learning_rate = [1e-3, 1e-2]
"""


@pytest.mark.soak
@needs_kernels
def test_each_run_of_a_study_leaves_a_trace(data_root, tmp_path):
    """From forks of a process that has torch: torch takes a fork's thread for its parent's."""
    values = BASE | LONG | {"data_root": str(data_root), "kernels": "step"}
    base = "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())
    (tmp_path / "study.toml").write_text(STUDY.format(base=base))
    done = run_nanoscale("study", "study.toml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    runs = sorted((tmp_path / "experiments_out" / "runs").iterdir())
    assert len(runs) == 2
    for run in runs:
        profile = profile_of(RunFolder(run))
        parts = {part.name: part.ms for part in profile.parts}
        assert (profile.first, profile.steps) == (6, 10)
        assert min(parts["forward"], parts["backward"], parts["optimizer"]) > 0


def test_this_thread_has_the_number_that_torch_knows():
    """In a fork torch may take its thread for its parent's."""
    here, step = threading.get_native_id(), {"name": "step 6", "pid": 11, "tid": 12}
    spans = [Span("attend", 5_000, 7_500, here), Span("backward", 6_000, 5_000, 99)]
    trace = {"baseTimeNanoseconds": 1_000, "traceEvents": [{"name": "aten::mm"}, step]}
    one, other, name = profiling.records_of(spans, trace)
    assert one == {
        "ph": "X",
        "cat": "nanoscale",
        "name": "nanoscale::attend",
        "pid": 11,
        "tid": 12,
        "ts": 4.0,
        "dur": 2.5,
    }
    assert (other["name"], other["tid"], other["dur"]) == ("backward", 99, 0)  # a clock set back
    assert (name["ph"], name["tid"], name["args"]) == ("M", 99, {"name": "kernels, thread 2"})


def test_who_is_not_the_master_records_nothing(spec_of):
    spec = spec_of(**LONG)
    run = replace(build(spec, dataset_of(spec), Ranks()), ranks=Ranks(rank=1, world=2))
    with training.profiled(run, recorder=None) as step:
        assert run.profiler is None
        assert step is nullcontext


@pytest.mark.soak
def test_of_two_processes_the_first_records(data_root, tmp_path):
    values = BASE | LONG | {"data_root": data_root, "batch_size": 4, "out_dir": tmp_path / "run"}
    ranks = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    done = run_python(*ranks, str(ROOT / "train.py"), *flags(values))
    assert done.returncode == 0, done.stderr
    assert "profile of updates 6 to 15 on rank 0 of 2: " in done.stdout
    assert done.stdout.count("trace: ") == 1
    found = profile_of(RunFolder(tmp_path / "run"))
    assert {part.name: part.steps for part in found.parts}["backward"] == 10
    assert any("allreduce" in event.name for event in events(tmp_path / "run"))


@pytest.mark.soak
def test_a_compiled_model_has_the_same_parts(spec_of, tmp_path):
    spec = spec_of(**LONG | {"n_layer": 1, "compile": True, "kernels": "torch"})
    folder = open_folder(tmp_path / "run", replace(spec, typed={"compile": True}), resume=False)
    done = run_nanoscale("run", str(folder.path))  # the compiler warns of itself: not in here
    assert done.returncode == 0, done.stderr
    assert folder.metrics()["numerics"]["compile"] is True
    names = [part.name for part in profile_of(folder).parts]
    assert names == ["data", "forward", "backward", "optimizer", REST]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpus_kernels_are_recorded(spec_of, tmp_path):
    spec = spec_of(**LONG, device="cuda", compile=False)
    profile = profile_of(trained(spec, tmp_path / "run"))
    assert profile.on_gpu
    assert any(row.name == "aten::mm" for row in profile.operations)
    assert sum(part.ms for part in profile.parts) == pytest.approx(profile.step_ms)
