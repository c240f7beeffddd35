"""This Linux as macOS or Windows: laid down as sitecustomize.py, it is in force in every process.

FAKED_SYSTEM names the system. What that lacks is gone: calls, signals, modules. Windows also will
not replace, remove or rename a file that any process has open, nor a folder with one in it; signal
0 is a Ctrl-C there, and one process asks another by CTRL_BREAK_EVENT. What Python and torch ask the
system by stays, as they go by it; of ours `processes` alone asks, which a test of the house holds.
"""

from __future__ import annotations

import glob
import os
import pathlib
import signal
import subprocess
import sys
from types import SimpleNamespace

NAME = os.environ.get("FAKED_SYSTEM", "")
# Loaded while all is there: they have cases of their own for every system.
LOADED = "asyncio concurrent.futures fcntl multiprocessing pathlib psutil tempfile socket".split()
NOT_ON_MACOS = "fork sched_getaffinity sched_setaffinity posix_fadvise".split()
NOT_ON_WINDOWS = (
    "killpg setsid setpgid getpgid getpgrp sysconf getloadavg posix_spawn "
    "set_blocking mkfifo chown nice"
).split()
SIGNALS = "SIGHUP SIGKILL SIGCHLD SIGUSR2 SIGSTOP SIGALRM pthread_sigmask pthread_kill".split()


def opened(path: str) -> bool:
    """Whether any Python has the file open, or one in the folder."""
    here = os.path.realpath(path)
    for process in glob.glob("/proc/[0-9]*"):
        try:
            with open(f"{process}/comm", "rb") as name:
                if not name.read().startswith(b"python"):
                    continue
            held = [os.readlink(handle) for handle in glob.glob(f"{process}/fd/*")]
        except OSError:  # gone by now
            continue
        if any(name == here or name.startswith(f"{here}/") for name in held):
            return True
    return False


def guarded(function, *which: int):
    """A call that is refused where the file at one of the places of its arguments is open."""

    def call(*args, **named):
        for place in which:
            path = os.fspath(args[place])
            if isinstance(path, str) and opened(path):
                raise PermissionError(13, "it is open", path)
        return function(*args, **named)

    return call


def without_proc(read):
    """Reads what is not of /proc and /sys, which psutil alone may still see."""

    def call(path: pathlib.Path, *args, **named) -> str:
        if str(path).startswith(("/proc/", "/sys/")):
            raise FileNotFoundError(path)
        return read(path, *args, **named)

    return call


def windows() -> None:
    """What Windows does otherwise."""
    from nanoscale import cpu

    real_kill, flock = os.kill, sys.modules["fcntl"]
    set_blocking, set_wakeup = os.set_blocking, signal.set_wakeup_fd
    for name in NOT_ON_WINDOWS:
        if hasattr(os, name):
            delattr(os, name)
    subprocess.signal = SimpleNamespace(**vars(signal))  # whose code is that of this system
    signal.SIGBREAK = signal.CTRL_BREAK_EVENT = signal.SIGUSR1
    for name in SIGNALS:
        delattr(signal, name)
    for name, places in {"replace": (0, 1), "rename": (0, 1), "unlink": (0,)}.items():
        setattr(os, name, guarded(getattr(os, name), *places))
    os.remove = os.unlink

    def kill(pid: int, number: int) -> None:
        assert number, "signal 0 is Ctrl-C under Windows"
        real_kill(pid, number)

    def locking(handle: int, how: int, count: int) -> None:
        flock.flock(handle, flock.LOCK_EX | flock.LOCK_NB)

    def set_wakeup_fd(handle: int, **how) -> int:
        if handle >= 0:
            set_blocking(handle, False)  # which Windows does not ask for
        return set_wakeup(handle, **how)

    def missing(*_: object) -> None:
        raise OSError

    os.kill = kill
    signal.set_wakeup_fd = set_wakeup_fd
    sys.modules["fcntl"] = None
    sys.modules["msvcrt"] = SimpleNamespace(LK_NBLCK=2, locking=locking)
    cpu.import_module = lambda name: SimpleNamespace(HKEY_LOCAL_MACHINE=0, OpenKey=missing)
    real_init = subprocess.Popen.__init__

    def init(self, *args, creationflags: int = 0, **named) -> None:
        real_init(self, *args, **named)

    subprocess.Popen.__init__ = init


if NAME:
    for module in LOADED:
        __import__(module)
    for call in NOT_ON_MACOS:
        delattr(os, call)
    pathlib.Path.read_text = without_proc(pathlib.Path.read_text)

    from nanoscale import processes  # before anyone takes a name from it

    processes.system = lambda: NAME
    if NAME == "Windows":
        windows()
