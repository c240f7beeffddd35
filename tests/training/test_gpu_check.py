"""`make gpu-check` where there is no GPU: its items in small, and those that fail."""

from __future__ import annotations

import importlib.util
import itertools
import json
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from types import ModuleType

import psutil
import pytest
import torch
from tiny import ROOT

from nanoscale.errors import BAD_INPUT, DONE, FAILURE, INCONCLUSIVE, INTERRUPTED
from nanoscale.training import state


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        name, ROOT / "docs" / "results" / "speed" / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


check, items = script("gpu_check"), script("gpu_items")

# Items of the check's own interface: what each does is in its name.
FAKE = """
import json, os, signal, subprocess, sys, time

def say(what, **more):
    print(json.dumps({"what": what, "said": "x", "passed": None, **more}), flush=True)

name = sys.argv[1]
if name == "absent":
    say("device", absent=True)
if name == "good":
    say("one", passed=True)
if name == "reads":
    say("early")
    while "early" not in (text := open(os.environ["FAKE_OUT"]).read()):
        time.sleep(0.01)
    say("kept", good=json.loads(text)["items"]["good"])
if name == "bad":
    say("first")
    raise ValueError("broken on purpose")
if name == "wrong":
    say("first", passed=False)
if name == "stops":
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(999)
if name == "hangs":
    sleep = [sys.executable, "-c", "import time; time.sleep(99)"]
    child = subprocess.Popen(sleep, stdout=subprocess.DEVNULL)
    say("child", pid=child.pid)
    time.sleep(999)
"""


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Callable[..., tuple[int, dict]]:
    """Run the check with items of FAKE: its exit code, and its file's items."""
    path = tmp_path / "fake.py"
    path.write_text(FAKE)
    monkeypatch.setattr(check, "SCRIPT", path)
    monkeypatch.setattr(check, "HERE", tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    out = tmp_path / "out.json"
    monkeypatch.setenv("FAKE_OUT", str(out))

    def run(*names: str, to_file: bool = True) -> tuple[int, dict]:
        monkeypatch.setattr(check, "LIMITS", dict.fromkeys(names, 60))
        code = check.main([f"--out={out}"] if to_file else [])
        return code, json.loads(out.read_text())["items"] if to_file else {}

    yield run
    signal.signal(signal.SIGTERM, before)


# -- the check ------------------------------------------------------------------------------------
def test_without_a_gpu_every_item_says_so_and_no_file_is_written(fake, tmp_path, capsys):
    assert fake("absent", "good", "bad", to_file=False) == (BAD_INPUT, {})
    table = capsys.readouterr().out.partition("\n\n")[2].splitlines()
    assert table[2:] == [f"| {name} | | no GPU | |" for name in ("absent", "good", "bad")]
    assert [path.name for path in tmp_path.iterdir()] == ["fake.py"]


def test_an_item_that_fails_says_why_and_the_rest_goes_on(fake, capsys):
    code, found = fake("bad", "good", "reads")
    assert code == FAILURE
    assert found["bad"]["state"] == "failed: ValueError: broken on purpose"
    assert [row["what"] for row in found["bad"]["rows"]] == ["first"]
    assert [found[name]["state"] for name in ("good", "reads")] == ["done", "done"]
    assert found["reads"]["rows"][1]["good"] == found["good"]  # on the disk by then
    table = capsys.readouterr().out.partition("\n\n")[2]
    assert "| bad | first | x |  |\n| bad | | failed: ValueError: broken" in table
    assert "| good | one | x | ok |" in table


def test_a_check_that_is_stopped_keeps_and_shows_what_it_has(fake, capsys):
    code, found = fake("good", "stops", "reads")
    assert code == INTERRUPTED
    assert [item["state"] for item in found.values()] == ["done", "stopped", "not reached"]
    assert capsys.readouterr().out.endswith("| reads | | not reached | |\n")


def is_at_work(pid: int) -> bool:
    """Whether a process is there and not only waiting to be reaped."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_an_item_out_of_time_takes_its_processes_with_it(fake, tmp_path):
    answer = check.Answer()
    seen = []
    check.ask([sys.executable, str(tmp_path / "fake.py"), "hangs"], 2, answer, seen.append)
    assert answer.state == "out of time after 2 s"
    assert list(answer.rows.values()) == seen
    end = time.monotonic() + 30  # a kill is sent, not waited for, and the machine may be busy
    while is_at_work(seen[0]["pid"]) and time.monotonic() < end:
        time.sleep(0.01)
    assert not is_at_work(seen[0]["pid"])


def test_what_an_item_leaves_of_its_time_the_next_may_use(monkeypatch):
    given = []
    monkeypatch.setattr(check, "LIMITS", {"machine": 10, "gpt2": 20})
    monkeypatch.setattr(check, "ask", lambda command, left, answer, heard: given.append(left))
    check.check({"machine": check.Answer(), "gpt2": check.Answer()}, [], lambda: None)
    assert given == [pytest.approx(10, abs=1), pytest.approx(30, abs=1)]


def test_the_items_are_those_that_have_limits_and_fit_into_eight_minutes():
    assert set(check.LIMITS) == set(items.ITEMS)
    assert sum(check.LIMITS.values()) + 2 * check.GRACE <= check.TOTAL == 480


@pytest.mark.parametrize(
    ("states", "code"),
    [
        (["done", "done"], DONE),
        (["done", "out of time after 9 s"], INCONCLUSIVE),
        (["stopped", "not reached"], INTERRUPTED),
        (["done", "failed: x", "stopped"], FAILURE),
        (["no GPU", "no GPU"], BAD_INPUT),
    ],
)
def test_the_exit_code(states, code):
    answers = {str(i): check.Answer(state) for i, state in enumerate(states)}
    assert check.exit_code(answers) == code
    answers["0"].rows["x"] = {"what": "x", "passed": False}
    assert check.exit_code(answers) == (code if code == BAD_INPUT else FAILURE)


# -- its items ------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def place(tmp_path_factory) -> items.Place:
    return items.Place("cpu", True, tmp_path_factory.mktemp("gpu_check"))


@pytest.fixture(autouse=True)
def short(monkeypatch):
    for name, value in (("WARM", 3), ("TURN", 1), ("SECONDS", 0.0)):
        monkeypatch.setattr(items, name, value)
    monkeypatch.setattr(state, "peak", lambda *_: None)
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(before[0])
    torch.set_float32_matmul_precision(before[1])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_first_item_says_that_there_is_no_gpu(place):
    [row] = items.machine(replace(place, device="cuda"))
    assert row["absent"]
    [row] = items.machine(place)
    assert "absent" not in row


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        pytest.param("gpt2", ["eager", "eager, deterministic operations"], marks=pytest.mark.slow),
        ("small", ["eager", "eager, 2 micro-batches", "eager, Muon"]),
        pytest.param(
            "loss",
            [
                "whole",
                "loss_chunk=8192",
                "loss_chunk=2048",
                "recompute, loss_chunk=2048",
                "LLaMA's parts",
            ],
            marks=pytest.mark.slow,
        ),
        ("presets", ["gpt2_124m_fast, one batch of its 8", "shakespeare_char_fast"]),
        pytest.param(
            "ranks",
            ["one process, alone", "DDP of one process, gloo", "FSDP of one process, gloo"],
            marks=pytest.mark.slow,
        ),
        pytest.param("dtypes", ["bfloat16"], marks=pytest.mark.slow),
    ],
)
def test_an_item_goes_through_in_small(place, item, expected):
    rows = list(items.ITEMS[item](place))
    assert [row["what"] for row in rows] == expected
    assert not [row for row in rows if row["passed"] is False]
    json.dumps(rows, allow_nan=False)


@pytest.mark.slow
def test_a_run_that_goes_on_is_told_from_one_that_does_not(place, monkeypatch):
    [row] = itertools.islice(items.resume(place), 1)
    assert row["passed"]
    digests = iter(["a", "a", "b"])
    monkeypatch.setattr(items, "trained", lambda *a, **k: None)
    monkeypatch.setattr(items, "state_of", lambda result: next(digests))
    row = items.resumed(place, "x", "name", [])
    assert (row["passed"], row["said"]) == (False, "stopped and continued: OTHER bits")
    digests = iter(["a", "b", "a"])
    row = items.resumed(place, "x", "name", [])
    assert (row["passed"], row["twins"], row["resume"]) == (False, False, True)


STEP = items.Step(0.5, 1000, 0.25, loss=10.0, grad_norm=2.0, peak=1000, estimate=1050)


def test_another_step_and_a_wrong_estimate_are_seen():
    def verdicts(like: items.Step, eager: bool = True, **other: float) -> list[bool | None]:
        return [r["passed"] for r in items.step_rows("x", replace(STEP, **other), like, eager)]

    assert verdicts(None) == [None, True]
    assert verdicts(STEP) == [True, True]
    assert verdicts(STEP, loss=10.2) == [False, True]
    assert verdicts(STEP, grad_norm=0.5) == [False, True]  # a quarter: three micro-batches lost
    assert verdicts(STEP, estimate=2000) == [True, False]
    assert verdicts(STEP, eager=False, estimate=2000) == [True, True]  # others need less
    assert verdicts(STEP, eager=False, estimate=500) == [True, False]
    assert STEP.told() == "500.00 ms, 2,000 tokens/s, MFU 25.0%"


def test_a_part_of_an_item_that_fails_says_why_and_the_item_goes_on(place, monkeypatch):
    def step_of(at: items.Place, *flags: str) -> items.Step:
        if "--loss_chunk=8192" in flags:
            raise torch.OutOfMemoryError("CUDA out of memory\nand more")
        return STEP

    monkeypatch.setattr(items, "step_of", step_of)
    rows = {row["what"]: row for row in items.loss(place)}
    assert rows["loss_chunk=8192"]["said"] == "failed: OutOfMemoryError: CUDA out of memory"
    assert rows["loss_chunk=8192"]["passed"] is False
    assert rows["loss_chunk=2048"]["passed"] is True


def test_why_two_processes_did_not_run_is_the_line_that_says_it():
    told = "trace\nDistBackendError: NCCL error\nDuplicate GPU detected : rank 0 and rank 1\nbye\n"
    assert items.last_line(told) == "Duplicate GPU detected : rank 0 and rank 1"
    assert items.last_line("") == "no reason given"
