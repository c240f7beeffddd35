"""A process that imports torch once and forks a child per run: 40 times cheaper than a new Python.

It is started by name, never through `multiprocessing`, so a script without a main guard, one read
from standard input and a notebook can all have it. It speaks JSON lines: `{"start": folder, ...}`
and `{"stop": "save" | "kill"}` come in, `{"exit": folder, "code": n}` goes out. When its input
closes (its user is gone, by SIGKILL too) it asks the children to save, waits, and leaves.

Compiled runs name their shape, and one child after another costs each of them seconds of tracing
again; so the child of such a run stays, and takes the next run of its shape.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from nanoscale.errors import DONE, FAILED, exit_code_of
from nanoscale.store.folder import LOG

GRACE_SECONDS = 60.0  # between asking a child to save and killing it
PR_SET_PDEATHSIG = 1  # of Linux's prctl
STDIN, STDOUT, STDERR = 0, 1, 2
MOST_RUNS = 32  # of one child: what compiled code holds on to is given back then
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)


class Server:
    """The running children, and the pipes to whoever started us."""

    def __init__(self, entry: str, fork: bool, output: int) -> None:
        self.entry, self.fork, self.output = entry, fork, output
        self.pids: set[int] = set()  # of every child
        self.children: dict[int, str] = {}  # pid -> the folder that it runs
        self.staying: dict[int, Staying] = {}  # pid -> a child that may take another run
        self.heard, self.tell = os.pipe()  # on which those say that a run has ended
        self.kill_at: float | None = None
        self.asked_to_leave = self.leaving = False
        self.unread = b""
        # a signal writes a byte here, which wakes select: no polling, no thread to fork with
        self.wake, self.alarm = os.pipe()
        for end in (self.wake, self.alarm, self.heard):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self.alarm, warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for our user, who asks us
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self.ask_to_leave)

    def serve(self) -> None:
        """Obey until the input closes or SIGTERM comes; then wait for the children."""
        while self.pids or not self.leaving:
            for one in self.idle() if self.leaving else []:
                self.dismiss(one)
            wait = None if self.kill_at is None else max(0.0, self.kill_at - time.monotonic())
            inputs = [self.wake, self.heard] + ([] if self.leaving else [STDIN])
            ready = select.select(inputs, [], [], wait)[0]
            with suppress(BlockingIOError):
                os.read(self.wake, 4096)
            self.hear()
            self.reap()
            if STDIN in ready:
                self.read()
            if self.asked_to_leave and not self.leaving:
                self.leave()
            if self.kill_at is not None and time.monotonic() >= self.kill_at:
                self.stop("kill")

    def read(self) -> None:
        """Obey the whole lines that have come."""
        data = os.read(STDIN, 1 << 16)
        if not data:
            self.ask_to_leave()
        *lines, self.unread = (self.unread + data).split(b"\n")
        for message in map(json.loads, lines):
            if "stop" in message:
                self.stop(message["stop"], message["folders"])
            else:
                self.start(message)

    def start(self, message: Mapping[str, Any]) -> None:
        """Give the run a process of its own."""
        try:
            pid = self.handed(message)
            if pid is None:
                pid = self.forked(message) if self.fork else spawned(message)
        except OSError as e:
            with suppress(OSError), open(log_of(message), "a") as log:
                log.write(f"no process could be started for this run: {e}\n")
            self.report(message["start"], FAILED)
        else:
            self.pids.add(pid)
            self.children[pid] = message["start"]

    def handed(self, message: Mapping[str, Any]) -> int | None:
        """The pid of an idle child that takes the run; None: none of its shape is there.

        Its slot is free, so for the new child that it needs one of another shape has to go.
        """
        idle = self.idle()
        for one in idle:
            if one.shape == message["shape"] and one.runs < MOST_RUNS:
                one.runs += 1
                with suppress(BrokenPipeError):  # it is gone; the next or a new one takes the run
                    os.write(one.requests, json.dumps(message).encode() + b"\n")
                    return one.pid
        for one in idle[:1]:
            self.dismiss(one)
        return None

    def idle(self) -> list[Staying]:
        """The children that wait for a run."""
        return [one for pid, one in self.staying.items() if pid not in self.children]

    def dismiss(self, one: Staying) -> None:
        """Let an idle child leave: its requests end."""
        os.close(one.requests)
        del self.staying[one.pid]

    def hear(self) -> None:
        """Children that stay report their runs."""
        with suppress(BlockingIOError):  # nothing was said
            for line in os.read(self.heard, 1 << 16).splitlines():
                message = json.loads(line)
                self.report(self.children.pop(message["pid"]), message["code"])

    def forked(self, message: Mapping[str, Any]) -> int:
        """The pid of a fork that runs the entry and never returns here."""
        server = os.getpid()
        theirs, ours = os.pipe() if message["shape"] else (None, None)
        # blocked until the child has its own handlers: a SIGTERM between must stop it, not us
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        try:
            pid = os.fork()
            if pid == 0:
                others = [one.requests for one in self.staying.values()]
                for inherited in filter(
                    None, (self.output, self.wake, self.alarm, self.heard, ours, *others)
                ):
                    os.close(inherited)
                run_child(self.entry, message, server, theirs, self.tell)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        if message["shape"]:
            os.close(theirs)
            self.staying[pid] = Staying(pid, message["shape"], ours)
        return pid

    def reap(self) -> None:
        """Report the children that have ended."""
        for pid in list(self.pids):
            gone, status = os.waitpid(pid, os.WNOHANG)
            if gone:
                self.hear()  # what it said before it went
                self.pids.remove(pid)
                if pid in self.staying:
                    self.dismiss(self.staying[pid])
                if pid in self.children:
                    self.report(self.children.pop(pid), os.waitstatus_to_exitcode(status))
        if not self.children:
            self.kill_at = None

    def report(self, folder: str, code: int) -> None:
        with suppress(BrokenPipeError):  # our user is gone; the run folder says it all
            os.write(self.output, json.dumps({"exit": folder, "code": code}).encode() + b"\n")

    def stop(self, how: str, folders: Sequence[str] | None = None) -> None:
        """Ask children to save and leave; or kill them, with all that they started.

        `folders`: those alone; when it is time to kill them is the asker's business.
        """
        kill = how == "kill"
        if folders is None:
            self.kill_at = None if kill else time.monotonic() + GRACE_SECONDS
        chosen = [
            pid for pid, folder in self.children.items() if folders is None or folder in folders
        ]
        for pid in chosen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if kill else signal.SIGTERM)
            if kill:
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)

    def ask_to_leave(self, *_: Any) -> None:
        self.asked_to_leave = True  # no more: a signal may come in the middle of a fork

    def leave(self) -> None:
        """Take no more runs; let the children save."""
        self.leaving = True
        self.stop("save")


# -- children -----------------------------------------------------------------------------------
@dataclass
class Staying:
    """A child that stays for further runs of one shape: where it reads of them."""

    pid: int
    shape: str
    requests: int
    runs: int = 1


def run_child(
    entry: str, message: Mapping[str, Any], server: int, requests: int | None, tell: int
) -> NoReturn:
    """In a fresh fork: become the run's process, run, and exit with the entry's code.

    With `requests`, a run that has its result is told of instead, and the next one read.
    """
    module, function = entry.split(":")
    code, next_requests = FAILED, requests and os.fdopen(requests)
    try:
        while True:
            become_worker(message, server)
            main = getattr(importlib.import_module(module), function)
            code = FAILED  # of what raises
            code = exit_code_of(lambda main=main, message=message: main(["run", message["start"]]))
            if requests is None or code not in (DONE, FAILED):
                break
            sys.stdout.flush()
            gc.collect()  # models hold cycles, and the next one needs the room
            os.write(tell, json.dumps({"pid": os.getpid(), "code": code}).encode() + b"\n")
            code, line = DONE, next_requests.readline()
            if not line:
                break
            message = json.loads(line)
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else FAILED
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(code)


def become_worker(message: Mapping[str, Any], server: int) -> None:
    """Output to the run's log, the slot's environment and CPUs, signals as in a new Python."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setpgid(0, 0)  # what it starts can be killed with it
    redirect(os.open(os.devnull, os.O_RDONLY), STDIN)
    redirect(os.open(log_of(message), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), STDOUT)
    os.dup2(STDOUT, STDERR)
    # line by line, so that a killed run loses none
    sys.stdout = open(STDOUT, "w", buffering=1, closefd=False)
    sys.stderr = open(STDERR, "w", buffering=1, closefd=False)
    os.environ.update(message["env"])
    if message["cpus"]:
        os.sched_setaffinity(0, message["cpus"])
    sys.argv = ["nanoscale", "run", message["start"]]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # saves even if the server is killed
    if os.getppid() != server:
        os._exit(FAILED)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)


def redirect(source: int, target: int) -> None:
    os.dup2(source, target)
    if source != target:
        os.close(source)


def spawned(message: Mapping[str, Any]) -> int:
    """The pid of a new Python for the run: where forking this process is not safe."""
    log_flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawn(
        message["command"][0],
        message["command"],
        os.environ | message["env"],
        setpgroup=0,
        setsigdef=HANDLED,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, STDIN, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, STDOUT, log_of(message), log_flags, 0o666),
            (os.POSIX_SPAWN_DUP2, STDOUT, STDERR),
        ],
    )
    if message["cpus"]:
        with suppress(OSError):  # it may be gone already
            os.sched_setaffinity(pid, message["cpus"])
    return pid


def log_of(message: Mapping[str, Any]) -> str:
    return os.path.join(message["start"], LOG)


# -- the process --------------------------------------------------------------------------------
def preload(names: Sequence[str]) -> None:
    """Import what every run will need."""
    for name in names:
        with suppress(Exception):  # the run that needs it will say why, in its own log
            importlib.import_module(name)


def may_fork() -> bool:
    """Only on Linux and with one thread: a fork copies other threads' locks, never the threads."""
    return sys.platform == "linux" and len(os.listdir("/proc/self/task")) == 1


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entry", required=True, help="MODULE:FUNCTION called with [run, FOLDER]")
    parser.add_argument("--preload", nargs="*", default=[], help="modules to import before forking")
    parser.add_argument("--no-fork", action="store_true", help="a new Python for every run")
    options = parser.parse_args(arguments)
    output = os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)  # what a module prints as it is imported is no message of ours
    fork = not options.no_fork and may_fork()
    if fork:
        gc.disable()  # what is imported stays: looking for what does not takes a tenth of it
        preload([options.entry.split(":")[0], *options.preload])
        gc.collect()
        gc.freeze()  # the collector of a child must not touch, and so copy, the shared pages
        gc.enable()
        fork = may_fork()
    Server(options.entry, fork, output).serve()
    os._exit(DONE)  # taking torch apart would cost our user a quarter of a second


if __name__ == "__main__":
    main()
