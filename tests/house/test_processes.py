"""What systems tell of processes: who lives, on which cores, how they end, and a file's lock."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from tiny import PATIENCE, ROOT

from nanoscale import processes
from nanoscale.processes import LINUX, MACOS, MS_WINDOWS, began, end_group, file_lock, lives

SYSTEMS = (LINUX, MACOS, MS_WINDOWS)


def on(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As if this were another system."""
    monkeypatch.setattr(processes, "system", lambda: name)


def without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if /proc were empty: for us, and for psutil."""
    read = Path.read_text

    def refuse(self: Path, **how: object) -> str:
        if str(self).startswith("/proc"):
            raise FileNotFoundError(str(self))
        return read(self, **how)

    def gone(self: psutil.Process, pid: int | None = None) -> None:
        raise psutil.NoSuchProcess(pid)

    monkeypatch.setattr(Path, "read_text", refuse)
    monkeypatch.setattr(psutil.Process, "__init__", gone)


def wait_until(true) -> None:
    until = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture
def child():
    """A process that sleeps until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    yield process
    process.kill()
    process.wait()


# -- which live ---------------------------------------------------------------------------------
def test_a_recycled_number_a_zombie_and_one_that_is_gone_are_dead():
    us = os.getpid()
    assert lives(us, began(us)) is True
    assert lives(us, 0.0) is False
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    since = began(process.pid)
    wait_until(lambda: lives(process.pid, since) is False)
    assert process.poll() == 0  # reaped only now
    assert lives(process.pid, since) is False


def test_a_record_that_counts_from_the_epoch_is_understood():
    us = os.getpid()
    assert lives(us, psutil.Process(us).create_time()) is True


def test_where_proc_is_hidden_nobody_is_taken_for_dead(monkeypatch, child):
    since = began(child.pid)
    without_proc(monkeypatch)
    assert began(child.pid) is None
    assert lives(child.pid, since) is None
    child.kill()
    child.wait()
    assert lives(child.pid, since) is False


def test_who_may_not_be_asked_is_there(monkeypatch):
    """Another user's process under hidepid: no file of it, and a signal is not permitted."""

    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    without_proc(monkeypatch)
    monkeypatch.setattr(os, "kill", refuse)
    assert lives(12345, 1.0) is None


def test_under_windows_no_signal_is_sent_to_see_who_lives(monkeypatch):
    """There signal 0 is Ctrl-C."""
    without_proc(monkeypatch)
    on(monkeypatch, MS_WINDOWS)
    monkeypatch.setattr(os, "kill", lambda pid, number: pytest.fail("a signal was sent"))
    assert lives(12345, 1.0) is False


def test_without_proc_a_boot_is_known_by_the_machines_name(monkeypatch):
    assert processes.boot() == processes.boot()
    without_proc(monkeypatch)
    assert processes.boot() == processes.socket.gethostname()


# -- on which cores -----------------------------------------------------------------------------
def test_without_affinity_cores_are_counted_and_nobody_is_pinned(monkeypatch):
    assert set(processes.physical_cores()) <= set(processes.allowed_cpus())
    for name in ("sched_getaffinity", "sched_setaffinity"):
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 3)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert processes.physical_cores() == [0, 1, 2]
    assert processes.allowed_cpus() == [0, 1, 2, 3, 4, 5]
    assert not processes.can_pin()
    processes.pin(0, (0,))  # of no effect, and no error


def test_memory_is_a_containers_share(monkeypatch):
    total, free = processes.memory()
    assert 0 < free <= total
    limits = {"/sys/fs/cgroup/memory.max": "4000", "/sys/fs/cgroup/memory.current": "1000"}
    monkeypatch.setattr(Path, "read_text", lambda self, **how: limits[str(self)])
    assert processes.memory() == (4000, 3000)
    limits["/sys/fs/cgroup/memory.max"] = "max"
    assert processes.memory()[0] == total

    def hidden() -> None:
        raise FileNotFoundError("/proc/meminfo")

    monkeypatch.setattr(psutil, "virtual_memory", hidden)
    assert processes.memory()[0] == pytest.approx(total, rel=0.01)


def test_a_load_that_is_not_counted_is_not_known(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (2.5, 0.0, 0.0), raising=False)
    assert processes.busy_cpus() == 2.5
    monkeypatch.delattr(os, "getloadavg")
    assert processes.busy_cpus() is None


# -- how they start and end -----------------------------------------------------------------------
@pytest.mark.parametrize("name", SYSTEMS)
def test_only_linux_forks(monkeypatch, name):
    on(monkeypatch, name)
    assert processes.forks() == (name == LINUX)
    monkeypatch.delattr(os, "fork")
    assert not processes.forks()
    assert not processes.may_fork()


def test_where_threads_cannot_be_counted_nobody_forks(monkeypatch):
    on(monkeypatch, LINUX)
    monkeypatch.setattr(os, "listdir", lambda path: ["1"])
    assert processes.may_fork()
    monkeypatch.setattr(os, "listdir", lambda path: ["1", "2"])
    assert not processes.may_fork()
    monkeypatch.setattr(os.path, "isdir", lambda path: False)  # /proc is hidden
    assert not processes.forks()
    assert not processes.may_fork()


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_process_is_asked_as_its_system_asks(monkeypatch, name):
    said: list[object] = []
    process = SimpleNamespace(terminate=lambda: said.append("terminate"), send_signal=said.append)
    on(monkeypatch, name)
    monkeypatch.setattr(processes.signal, "CTRL_BREAK_EVENT", "break", raising=False)
    processes.ask_to_end(process)
    assert said == ["break" if name == MS_WINDOWS else "terminate"]
    assert processes.apart() == (0x200 if name == MS_WINDOWS else 0)


def test_without_a_console_a_process_is_ended(monkeypatch):
    def refuse(number: object) -> None:
        raise OSError

    said: list[str] = []
    on(monkeypatch, MS_WINDOWS)
    processes.ask_to_end(
        SimpleNamespace(terminate=lambda: said.append("terminate"), send_signal=refuse)
    )
    assert said == ["terminate"]


@pytest.mark.parametrize("groups", [True, False], ids=["killpg", "without"])
def test_a_killed_process_takes_what_it_started_with_it(tmp_path, monkeypatch, groups):
    file = tmp_path / "pid"
    script = (
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)'])\n"
        f"pathlib.Path({str(file)!r}).write_text(f'{{child.pid}}.')\n"
        "time.sleep(1000)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    wait_until(lambda: file.exists() and file.read_text().endswith("."))
    grandchild = int(file.read_text()[:-1])
    if not groups:
        monkeypatch.delattr(os, "killpg")
    end_group(process.pid)
    assert process.wait(PATIENCE) == -9
    wait_until(lambda: not processes.lives(grandchild, began(grandchild) or 0.0))
    end_group(process.pid)  # of who is gone: no error


# -- the lock of a file ---------------------------------------------------------------------------
HOLD = """
import sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from nanoscale.processes import file_lock
with file_lock(Path({path!r})) as ours:
    print(ours, flush=True)
    time.sleep(1000)
"""


def test_a_lock_refuses_the_second_and_ends_with_its_process(tmp_path):
    path = tmp_path / "lock"
    script = HOLD.format(root=str(ROOT), path=str(path))
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "True\n"
    with file_lock(path) as ours:
        assert not ours
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with file_lock(path) as ours:
        assert ours
        with file_lock(path) as second:
            assert not second
    assert path.exists()


def test_a_lock_by_the_calls_of_windows(tmp_path, monkeypatch):
    """Theirs are made of this system's, so that what is asked of them is all that is tried."""
    fcntl = pytest.importorskip("fcntl")

    def locking(handle: int, how: int, count: int) -> None:
        assert (how, count) == (2, 1)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError is an OSError

    theirs = SimpleNamespace(LK_NBLCK=2, locking=locking)
    monkeypatch.setitem(sys.modules, "msvcrt", theirs)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with file_lock(tmp_path / "lock") as ours, file_lock(tmp_path / "lock") as second:
        assert (ours, second) == (True, False)
    with file_lock(tmp_path / "lock") as ours:
        assert ours


def test_a_lock_in_a_folder_that_is_gone_is_not_ours(tmp_path):
    with file_lock(tmp_path / "none" / "lock") as ours:
        assert not ours
