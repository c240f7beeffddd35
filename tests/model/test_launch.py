"""What torchrun sets: read whole, or refused in a line; not passed on to who is to be alone."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from tiny import RUN, flags, run_nanoscale

from nanoscale.errors import UserError
from nanoscale.model.launch import Launch, launched, without_launcher

WHOLE = {
    "WORLD_SIZE": "2",
    "RANK": "1",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29400",
}


@pytest.fixture(autouse=True)
def nothing(monkeypatch):
    """No launcher has started this process."""
    for name in WHOLE:
        monkeypatch.delenv(name, raising=False)


def launch(monkeypatch, **changes: str | None) -> Launch:
    for name, value in (WHOLE | changes).items():
        if value is not None:
            monkeypatch.setenv(name, value)
    return launched()


def test_a_process_is_alone_or_one_of_many(monkeypatch):
    assert launched() == Launch(rank=0, world=1, local=0)
    assert launch(monkeypatch, WORLD_SIZE="1", RANK="x") == Launch()
    assert launch(monkeypatch) == Launch(rank=1, world=2, local=0)


REMEDY = "torchrun --nproc_per_node=2, or unset WORLD_SIZE"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            dict.fromkeys(["RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"]),
            "WORLD_SIZE=2 without RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT: start with " + REMEDY,
        ),
        ({"MASTER_ADDR": ""}, "WORLD_SIZE=2 without MASTER_ADDR: start with " + REMEDY),
        ({"MASTER_PORT": None}, "WORLD_SIZE=2 without MASTER_PORT: "),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: expected the number of processes"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0: expected the number of processes"),
        ({"WORLD_SIZE": ""}, "unset WORLD_SIZE to train in this one"),
        ({"RANK": "first"}, "RANK=first: expected a number from 0 to 1; start with " + REMEDY),
        ({"RANK": "2"}, "RANK=2: expected a number from 0 to 1"),
        ({"RANK": "-1"}, "RANK=-1: expected a number from 0 to 1"),
        ({"LOCAL_RANK": "gpu0"}, "LOCAL_RANK=gpu0: expected a number from 0 to 1"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK=2: expected a number from 0 to 1"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT=http: expected a number from 1 to 65535"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT=70000: expected a number from 1 to 65535"),
    ],
)
def test_what_torchrun_would_not_set_is_refused_in_a_line(monkeypatch, changes, words):
    with pytest.raises(UserError, match=re.escape(words)) as refusal:
        launch(monkeypatch, **changes)
    assert "\n" not in str(refusal.value)


@pytest.mark.slow
def test_every_verb_that_trains_refuses_a_world_without_its_ranks(desk, monkeypatch):
    arguments = flags(RUN | {"max_iters": 1, "out_dir": "out"})
    assert run_nanoscale("train", *arguments, cwd=desk).returncode == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    for words in (["train", *arguments], ["train", *arguments, "--out_dir=new"], ["run", "out"]):
        done = run_nanoscale(*words, cwd=desk)
        if words == ["run", "out"]:  # has its result, and trains nothing
            assert done.returncode == 0
            continue
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: WORLD_SIZE=2 without RANK, LOCAL_RANK, MASTER_ADDR")
    assert not Path(desk, "new").exists()
    shown = run_nanoscale("bench", *arguments, "--real_data=False", cwd=desk)
    assert shown.returncode == 0, shown.stderr  # times this one process, whoever launched it


@pytest.mark.slow
def test_processes_that_do_not_meet_are_refused_in_a_line(desk, monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = str(other.getsockname()[1])
        for name, value in (WHOLE | {"RANK": "0", "MASTER_PORT": taken}).items():
            monkeypatch.setenv(name, value)
        done = run_nanoscale("train", *flags(RUN | {"out_dir": "out"}), cwd=desk)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert line.startswith("error: the 2 processes do not meet at MASTER_ADDR and MASTER_PORT: ")


def test_a_process_that_is_to_be_alone_hears_nothing_of_the_launcher():
    theirs = {"LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "ROLE_NAME": "x", "TORCHELASTIC_X": "1"}
    kept = {"PATH": "/bin", "MASTERS": "1", "RANKS": "2", "GROUP_OF": "mine"}
    assert without_launcher(WHOLE | theirs | kept) == kept
