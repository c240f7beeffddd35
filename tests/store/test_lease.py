"""Leases: of many who want a folder one has it, death is found out, nobody is buried alive."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from tiny import PATIENCE, ROOT

from nanoscale.errors import UserError
from nanoscale.store import lease
from nanoscale.store.lease import Held, claims, holder, take, this_process


def claim(folder: Path, number: int = 1, **changes: object) -> Path:
    """A claim's file as another process would have left it."""
    path = folder / f"lease-{number}.json"
    path.write_text(json.dumps(asdict(this_process()) | changes))
    return path


def gone() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    return process.pid


# -- one process --------------------------------------------------------------------------------
def test_a_lease_is_held_until_its_block_ends_and_leaves_nothing(tmp_path):
    assert holder(tmp_path) is None
    with take(tmp_path):
        found = holder(tmp_path)
        assert (found.pid, found.host) == (os.getpid(), socket.gethostname())
        with pytest.raises(Held, match=rf"process {os.getpid()} on .* is training there"):
            take(tmp_path)
    assert holder(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_a_dead_owner_is_superseded_and_its_file_goes(tmp_path):
    claim(tmp_path, 7, pid=gone())
    with take(tmp_path):
        assert claims(tmp_path) == [8]
    assert claims(tmp_path) == []


def test_who_is_superseded_finds_out_and_leaves_the_successor_alone(tmp_path):
    with take(tmp_path) as mine:
        mine.check()
        mine.path.unlink()  # as a host does that believes us dead
        other = claim(tmp_path, 2)
        with pytest.raises(Held):
            mine.check()
    assert other.exists()


def test_who_was_slow_yields_to_a_living_claim_of_any_number(tmp_path, monkeypatch):
    """Between the look and the making of our file someone claims a lower number."""
    first = lease.claims
    looks = iter([[3], [3]])  # what we saw of a folder that has changed since
    claim(tmp_path, 3, pid=gone())
    monkeypatch.setattr(lease, "claims", lambda folder: next(looks, None) or first(folder))
    claim(tmp_path, 1)
    with pytest.raises(Held):
        take(tmp_path)
    assert claims(tmp_path) == [1, 3]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises((UserError, FileNotFoundError)):
        take(tmp_path / "none")


# -- who lives ----------------------------------------------------------------------------------
@pytest.mark.parametrize(("age", "held"), [(0, True), (60, True), (1000, False)])
def test_who_is_hidden_here_is_dead_by_its_heartbeats(tmp_path, monkeypatch, age, held):
    """Another user's process, where /proc shows everyone their own alone."""
    path = claim(tmp_path)
    os.utime(path, (time.time() - age,) * 2)
    monkeypatch.setattr(lease, "lives", lambda pid, since: None)
    assert (holder(tmp_path) is not None) == held


@pytest.mark.parametrize(("age", "held"), [(0, True), (60, True), (1000, False)])
def test_elsewhere_death_is_many_missed_heartbeats(tmp_path, age, held):
    path = claim(tmp_path, machine="another boot", host="elsewhere", pid=gone())
    os.utime(path, (time.time() - age,) * 2)
    assert (holder(tmp_path) is not None) == held
    assert claims(tmp_path) == [1]  # looking leaves no file behind


def test_ages_are_by_the_clock_of_the_file_system(tmp_path, monkeypatch):
    claim(tmp_path, machine="another boot")
    monkeypatch.setattr(lease.time, "time", lambda: 4e9)  # our own clock is far off
    assert holder(tmp_path) is not None


def test_on_the_same_machine_a_silent_process_is_alive(tmp_path):
    path = claim(tmp_path)
    os.utime(path, (0, 0))
    assert holder(tmp_path) is not None


def test_a_file_that_is_being_written_is_a_living_claim(tmp_path):
    path = claim(tmp_path)
    path.write_text("")
    with pytest.raises(Held, match="another process"):
        take(tmp_path)
    os.utime(path, (0, 0))
    with take(tmp_path):
        assert claims(tmp_path) == [2]


def test_a_claim_has_its_owner_from_the_first_moment(tmp_path, monkeypatch):
    """So who is killed at whatever moment holds the folder no longer than its process lives."""
    seen = []
    link = os.link

    def watched(source: Path, path: Path) -> None:
        seen.append(claims(tmp_path))
        link(source, path)
        seen.append(lease.holder(tmp_path).pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", watched)
    with pytest.raises(KeyboardInterrupt):
        take(tmp_path)
    assert seen == [[], os.getpid()]
    assert [path.name for path in tmp_path.iterdir()] == ["lease-1.json"]


def test_a_claim_whose_number_is_anothers_by_now_is_left(tmp_path):
    """Someone slow gives back what was cleared away meanwhile, and taken by another."""
    mine = take(tmp_path)
    path = tmp_path / "lease-1.json"
    theirs = json.loads(path.read_text()) | {"process_started": 1.0}
    path.write_text(json.dumps(theirs))
    with pytest.raises(Held):
        mine.check()
    with mine:
        pass
    assert json.loads(path.read_text()) == theirs


def test_a_disk_without_links_has_leases_too(tmp_path, monkeypatch):
    def refuse(source: Path, path: Path) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    with take(tmp_path):
        assert holder(tmp_path).pid == os.getpid()
        assert len(list(tmp_path.iterdir())) == 1
        assert not lease._create(tmp_path / "lease-1.json", b"{}")
    assert list(tmp_path.iterdir()) == []


def test_the_heartbeat_beats_until_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.01)
    others = set(threading.enumerate())
    with take(tmp_path).beat() as mine:
        (heart,) = set(threading.enumerate()) - others
        os.utime(mine.path, (0, 0))
        until = time.monotonic() + PATIENCE
        while mine.path.stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.01)
        assert mine.path.stat().st_mtime > 0
    heart.join(PATIENCE)
    assert not heart.is_alive()
    assert claims(tmp_path) == []


def test_a_clock_that_is_set_kills_nobody(tmp_path, monkeypatch):
    """Seconds since the epoch move with the clock; those after the boot do not."""
    psutil = pytest.importorskip("psutil")
    if not Path("/proc/self/stat").exists():
        pytest.skip("this system says no time after the boot")
    now = psutil.Process.create_time
    with take(tmp_path):
        monkeypatch.setattr(psutil.Process, "create_time", lambda self: now(self) + 3600)
        with pytest.raises(Held):
            take(tmp_path)


# -- many ---------------------------------------------------------------------------------------
@pytest.mark.slow
def test_of_many_processes_one_has_the_folder_at_any_time(tmp_path):
    """Eight take it in turn, some die with it; inside, an exclusive file tells of any overlap."""
    script = textwrap.dedent(f"""
        import os, random, sys, time
        sys.path.insert(0, {str(ROOT)!r})
        from pathlib import Path
        from nanoscale.store.lease import Held, take
        folder, inside = Path({str(tmp_path)!r}), Path({str(tmp_path / "inside")!r})
        done = 0
        while done < 12:
            try:
                with take(folder):
                    if inside.exists() and inside.read_text() != "dead":
                        sys.exit("two at a time")
                    inside.write_text(str(os.getpid()))
                    time.sleep(random.uniform(0, 0.003))
                    if inside.read_text() != str(os.getpid()):
                        sys.exit("two at a time")
                    done += 1
                    if done == 12 and random.random() < 0.5:
                        inside.write_text("dead")
                        os._exit(0)  # without giving back
                    inside.unlink()
            except Held:
                time.sleep(random.uniform(0, 0.003))
        """)
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE) for _ in range(8)
    ]
    for process in processes:
        assert (process.communicate(timeout=PATIENCE)[1], process.returncode) == (b"", 0)
    with take(tmp_path):
        pass
