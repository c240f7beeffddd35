"""What differs between systems about processes: which live, on which cores, with what memory, and
how they end.

Linux, macOS and Windows, and a Linux whose /proc is hidden. No other module asks for the system,
but `cpu`, and `model/kernels` for its compiler. Where a system cannot say, the answer says so.
"""

from __future__ import annotations

import os
import platform
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any

LINUX, MACOS, MS_WINDOWS = "Linux", "Darwin", "Windows"
THREADS = "/proc/self/task"  # of this process, a folder for each
EPOCHAL = 1e9  # seconds: no machine has run for so long
SAME_SECONDS = 2.0  # within which a process of the same number is the same one
NEW_GROUP = 0x200  # Windows' CREATE_NEW_PROCESS_GROUP
PARENT_DEATH = 1  # PR_SET_PDEATHSIG of Linux's prctl
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def system() -> str:
    """`LINUX`, `MACOS`, `MS_WINDOWS`, or whatever else calls itself."""
    return platform.system()


# -- which live ---------------------------------------------------------------------------------
def boot() -> str:
    """This boot of this machine and its table of processes, which containers do not share.

    Where that cannot be read, as on any system but Linux, the machine's name.
    """
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{started} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def began(pid: int) -> float | None:
    """When a process began: after the boot, where the system says so, else since the epoch.

    None where there is none of that number that may be seen. Seconds since the epoch move with the
    clock, and by one with the rounding of the time of boot: a living process would pass for dead.
    """
    import psutil  # here, so that who lacks it is told so before anything is written

    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(text.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        with suppress(psutil.Error):
            return psutil.Process(pid).create_time()
    return None


def lives(pid: int, since: float) -> bool | None:
    """Whether the process `pid` that began at `since` (of `began`) runs on this machine.

    None where that cannot be known: the process is there, and this system hides what it is.
    """
    import psutil

    now = began(pid)
    if now is None:
        return None if _exists(pid) else False
    try:
        process = psutil.Process(pid)
        if since > EPOCHAL > now:  # a record that counted from the epoch
            now = process.create_time()
        return abs(now - since) < SAME_SECONDS and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def _exists(pid: int) -> bool:
    """Whether a process of that number is there, seen or not."""
    if system() == MS_WINDOWS:  # which hides none, and takes signal 0 for Ctrl-C
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


# -- on which cores -----------------------------------------------------------------------------
def allowed_cpus() -> list[int]:
    """The logical CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def physical_cores() -> list[int]:
    """One logical CPU of every physical core this process may use, within the container's quota."""
    if not hasattr(os, "sched_getaffinity"):
        import psutil

        return list(range(psutil.cpu_count(logical=False) or os.cpu_count() or 1))
    first = {_siblings(cpu): cpu for cpu in reversed(allowed_cpus())}
    free = sorted(first.values())
    return free[: max(1, int(min(_quota(), len(free))))]


def _siblings(cpu: int) -> str:
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return str(cpu)


def _quota() -> float:
    """CPUs that the control group (v2) of a container grants; infinite without one."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return float(quota) / float(period)
    except (OSError, ValueError):  # no such file, or `max`
        return float("inf")


def can_pin() -> bool:
    """Whether a process can be kept to some CPUs."""
    return hasattr(os, "sched_setaffinity")


def pin(pid: int, cpus: Sequence[int]) -> None:
    """Keep a process (0: this one) to these CPUs, where there are any and the system can."""
    if cpus and can_pin():
        with suppress(OSError):  # it may be gone already
            os.sched_setaffinity(pid, cpus)


def busy_cpus() -> float | None:
    """How many CPUs had work in the last minute; None where the system does not count."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


# -- with what memory ---------------------------------------------------------------------------
def memory_kills() -> int:
    """How many processes the kernel has killed for memory since it started; 0: it does not say."""
    with suppress(OSError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            name, count = line.split()
            if name == "oom_kill":
                return int(count)
    return 0


def memory_of(pid: int) -> int:
    """Bytes in memory of a process and all that it started; 0 if it is gone."""
    import psutil

    total = 0
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.Error):
                total += process.memory_info().rss
    return total


def memory() -> tuple[int, int]:
    """Bytes that this machine, or a container's share of it, has, and those that are free."""
    import psutil

    try:
        found = psutil.virtual_memory()
        total, free = found.total, found.available
    except OSError:  # /proc is hidden
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        total, free = pages, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit, used = (_of_group(name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None and limit < total:
        total, free = limit, min(free, limit - used)
    return total, free


def _of_group(name: str) -> int | None:
    """A number of the control group (v2) of a container; None where there is none, or no limit."""
    try:
        return int(Path(f"/sys/fs/cgroup/{name}").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def keep_freed_memory() -> None:
    """Ask glibc to reuse freed blocks: fresh pages for every activation cost a tenth of a step."""
    import ctypes

    if platform.libc_ver()[0] != "glibc":
        return
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_THRESHOLD, 32 * 2**20)  # the largest it takes
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)


# -- how they start and end -----------------------------------------------------------------------
def forks() -> bool:
    """Whether a process with torch loaded can be forked: only Linux's libraries bear that, and
    only where its threads can be counted."""
    return system() == LINUX and hasattr(os, "fork") and os.path.isdir(THREADS)


def may_fork() -> bool:
    """Whether this process can: a fork copies other threads' locks, never the threads."""
    return forks() and len(os.listdir(THREADS)) == 1


def apart() -> int:
    """`Popen`'s creationflags, beside start_new_session, of a process that a Ctrl-C here does not
    reach and that can be killed with all it starts."""
    return NEW_GROUP if system() == MS_WINDOWS else 0


def ask_to_end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process that was started `apart` to save and leave; if it cannot be asked, end it."""
    if system() != MS_WINDOWS:
        process.terminate()
        return
    try:  # SIGTERM would end it on the spot there
        process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))
    except OSError:  # no console
        process.terminate()


def end_group(pid: int) -> None:
    """Kill a process that was started `apart`, or leads a group, with all that it started."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        return

    import psutil

    with suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in (*root.children(recursive=True), root):
            with suppress(psutil.Error):
                process.kill()


def die_with_parent(number: int) -> None:
    """Have the kernel send this process a signal when the one that started it is gone: Linux."""
    import ctypes

    ctypes.CDLL(None).prctl(PARENT_DEATH, number)


# -- the lock of a file ---------------------------------------------------------------------------
@contextmanager
def file_lock(path: Path) -> Iterator[bool]:
    """Whether the block has the lock of `path`, which is made; it ends with this process, too."""
    with ExitStack() as opened:
        try:
            file = opened.enter_context(open(path, "ab"))
            ours = _locked(file) and os.path.samestat(os.fstat(file.fileno()), os.stat(path))
        except FileNotFoundError:  # who had it is done this moment, and has removed it
            ours = False
        yield ours


def _locked(file: IO[bytes]) -> bool:
    """Lock an open file, if no other process has."""
    try:
        import fcntl
    except ImportError:
        msvcrt: Any = import_module("msvcrt")  # Windows'
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def removes_open_files() -> bool:
    """Whether a file goes while a process has it open: not under Windows."""
    return system() != MS_WINDOWS
