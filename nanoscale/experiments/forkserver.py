"""A process that imports torch once and forks a child per run: 40 times cheaper than a new Python.

It is started by name, never through `multiprocessing`, so a script without a main guard, one read
from standard input and a notebook can all have it. It speaks JSON lines: `{"start": a RunRequest}`
and `{"stop": "save" | "kill"}` come in, `{"exit": folder, "code": n}` goes out. When its input
closes (its user is gone, by SIGKILL too) it asks the children to save, waits, and leaves.

Compiled runs name their shape, and one child after another costs each of them seconds of tracing
again; so the child of such a run stays, and takes the next run of its shape.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from signal import SIG_BLOCK, SIG_DFL, SIG_IGN, SIG_UNBLOCK, SIGCHLD, SIGINT, SIGKILL, SIGTERM
from typing import NoReturn

from nanoscale.errors import DONE, FAILURE, exit_code_of
from nanoscale.experiments.worker import GRACE_SECONDS, RunRequest
from nanoscale.processes import die_with_parent, may_fork, pin

STDIN, STDOUT, STDERR = 0, 1, 2
MOST_RUNS = 32  # of one child: what compiled code holds on to is given back then
HANDLED = (SIGINT, SIGTERM, SIGCHLD)


@dataclass
class Child:
    """A process of ours, and the run that it has."""

    pid: int
    folder: str | None  # None: it waits for another run
    shape: str = ""
    requests: int | None = None  # where a child that stays hears of its next run
    runs: int = 1


class Server:
    """The children, and the pipes to whoever started us."""

    def __init__(self, entry: str, fork: bool, output: int) -> None:
        self.entry = entry
        self.fork = fork
        self.output = output
        self.children: dict[int, Child] = {}  # by pid
        self.kill_at: float | None = None
        self.asked_to_leave = self.leaving = False
        self.unread = b""
        self.heard, self.tell = os.pipe()  # on which children that stay say that a run has ended
        # a signal writes a byte here, which wakes select: no polling, no thread to fork with
        self.wake, self.alarm = os.pipe()
        for end in (self.wake, self.alarm, self.heard):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self.alarm, warn_on_full_buffer=False)
        signal.signal(SIGINT, SIG_IGN)  # Ctrl-C is for our user, who asks us
        signal.signal(SIGCHLD, lambda *_: None)
        signal.signal(SIGTERM, self.ask_to_leave)

    def serve(self) -> None:
        """Obey until the input closes or SIGTERM comes; then wait for the children."""
        while self.children or not self.leaving:
            inputs = [self.wake, self.heard]
            if self.leaving:
                for child in self.idle():
                    self.dismiss(child)
            else:
                inputs.append(STDIN)
            wait = None if self.kill_at is None else max(0.0, self.kill_at - time.monotonic())
            ready = select.select(inputs, [], [], wait)[0]

            with suppress(BlockingIOError):
                os.read(self.wake, 4096)
            self.hear()
            self.reap()
            if STDIN in ready:
                self.read()
            if self.asked_to_leave and not self.leaving:
                self.leaving = True
                self.stop("save")
            if self.kill_at is not None and time.monotonic() >= self.kill_at:
                self.stop("kill")

    def read(self) -> None:
        """Obey the whole lines that have come."""
        data = os.read(STDIN, 1 << 16)
        if not data:
            self.ask_to_leave()
        *lines, self.unread = (self.unread + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "stop" in message:
                self.stop(message["stop"], message["folders"])
            else:
                self.start(RunRequest(**message["start"]))

    def ask_to_leave(self, *_: object) -> None:
        self.asked_to_leave = True  # no more: a signal may come in the middle of a fork

    # -- runs -----------------------------------------------------------------------------------
    def start(self, request: RunRequest) -> None:
        """Give the run a process of its own, or one that has waited for another of its shape."""
        try:
            if not self.hand_over(request):
                child = self.forked(request) if self.fork else spawned(request)
                self.children[child.pid] = child
        except OSError as e:
            with suppress(OSError), open(request.log, "a", encoding="utf-8") as log:
                log.write(f"no process could be started for this run: {e}\n")
            self.report(request.folder, FAILURE)

    def hand_over(self, request: RunRequest) -> bool:
        """Whether an idle child takes the run.

        The run's slot is free, so for a new child one of another shape has to go.
        """
        idle = self.idle()
        for child in idle:
            if child.requests is None or child.shape != request.shape or child.runs >= MOST_RUNS:
                continue
            child.runs += 1
            with suppress(BrokenPipeError):  # it is gone; the next or a new one takes the run
                write_line(child.requests, vars(request))
                child.folder = request.folder
                return True
        for child in idle[:1]:
            self.dismiss(child)
        return False

    def idle(self) -> list[Child]:
        """The children that wait for a run."""
        children = self.children.values()
        return [c for c in children if c.folder is None and c.requests is not None]

    def dismiss(self, child: Child) -> None:
        """Let a child that stays leave: its requests end."""
        if child.requests is not None:
            os.close(child.requests)
        child.requests = None

    def forked(self, request: RunRequest) -> Child:
        """A fork that runs the entry and never returns here."""
        server = os.getpid()
        theirs, ours = os.pipe() if request.shape else (None, None)
        # blocked until the child has its own handlers: a SIGTERM between must stop it, not us
        signal.pthread_sigmask(SIG_BLOCK, HANDLED)
        try:
            pid = os.fork()
            if pid == 0:
                pipes = [child.requests for child in self.children.values()]
                for end in (self.output, self.wake, self.alarm, self.heard, ours, *pipes):
                    if end is not None:
                        os.close(end)
                self.be_child(request, server, theirs)
        finally:
            signal.pthread_sigmask(SIG_UNBLOCK, HANDLED)
        if theirs is not None:
            os.close(theirs)
        return Child(pid, request.folder, request.shape, ours)

    def hear(self) -> None:
        """Children that stay report their runs."""
        with suppress(BlockingIOError):  # nothing was said
            for line in os.read(self.heard, 1 << 16).splitlines():
                message = json.loads(line)
                self.ended(self.children[message["pid"]], message["code"])

    def reap(self) -> None:
        """Report the children that have ended."""
        for child in list(self.children.values()):
            gone, status = os.waitpid(child.pid, os.WNOHANG)
            if gone:
                self.hear()  # what it said before it went
                del self.children[child.pid]
                self.dismiss(child)
                self.ended(child, os.waitstatus_to_exitcode(status))
        if all(child.folder is None for child in self.children.values()):
            self.kill_at = None

    def ended(self, child: Child, code: int) -> None:
        """The run of a child, if it has one, has ended."""
        if child.folder is not None:
            self.report(child.folder, code)
        child.folder = None

    def report(self, folder: str, code: int) -> None:
        with suppress(BrokenPipeError):  # our user is gone; the run folder says it all
            write_line(self.output, {"exit": folder, "code": code})

    def stop(self, how: str, folders: Sequence[str] | None = None) -> None:
        """Ask children to save and leave; or kill them, with all that they started.

        `folders`: those alone; when it is time to kill them is the asker's business.
        """
        kill = how == "kill"
        if folders is None:
            self.kill_at = None if kill else time.monotonic() + GRACE_SECONDS
        for child in self.children.values():
            if child.folder is None or (folders is not None and child.folder not in folders):
                continue
            with suppress(ProcessLookupError):
                os.kill(child.pid, SIGKILL if kill else SIGTERM)
            if kill:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, SIGKILL)

    # -- in a child -----------------------------------------------------------------------------
    def be_child(self, request: RunRequest, server: int, requests: int | None) -> NoReturn:
        """In a fresh fork: become the run's process, run, and exit with the entry's code."""
        code = FAILURE
        try:
            code = self.run_in_turn(request, server, requests)
        except SystemExit as e:
            if isinstance(e.code, int):
                code = e.code
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(Exception):
                    stream.flush()
            os._exit(code)

    def run_in_turn(self, request: RunRequest, server: int, requests: int | None) -> int:
        """The exit code of a run; with `requests`, of the last of those that come after it.

        Then each run that has its result is told of, and the next one read.
        """
        module, function = self.entry.split(":")
        following = None if requests is None else os.fdopen(requests, encoding="utf-8")
        while True:
            become_worker(request, server)
            main = getattr(importlib.import_module(module), function)
            code = exit_code_of(partial(main, ["run", request.folder]))
            if following is None or code not in (DONE, FAILURE):
                return code

            sys.stdout.flush()
            gc.collect()  # models hold cycles, and the next one needs the room
            write_line(self.tell, {"pid": os.getpid(), "code": code})
            line = following.readline()
            if not line:
                return DONE
            request = RunRequest(**json.loads(line))


def write_line(pipe: int, message: object) -> None:
    os.write(pipe, json.dumps(message).encode() + b"\n")


# -- children -----------------------------------------------------------------------------------
def become_worker(request: RunRequest, server: int) -> None:
    """Output to the run's log, the slot's environment and CPUs, signals as in a new Python."""
    signal.set_wakeup_fd(-1)
    signal.signal(SIGINT, signal.default_int_handler)
    signal.signal(SIGTERM, SIG_DFL)
    signal.signal(SIGCHLD, SIG_DFL)
    os.setpgid(0, 0)  # what it starts can be killed with it
    with open(os.devnull, "rb") as nothing, open(request.log, "ab") as log:
        os.dup2(nothing.fileno(), STDIN)
        os.dup2(log.fileno(), STDOUT)
        os.dup2(log.fileno(), STDERR)
    # line by line, so that a killed run loses none
    sys.stdout = open(STDOUT, "w", buffering=1, encoding="utf-8", closefd=False)
    sys.stderr = open(STDERR, "w", buffering=1, encoding="utf-8", closefd=False)
    os.environ.update(request.env)
    pin(0, request.cpus)
    sys.argv = ["nanoscale", "run", request.folder]
    die_with_parent(SIGTERM)  # saves even if the server is killed
    if os.getppid() != server:
        os._exit(FAILURE)
    signal.pthread_sigmask(SIG_UNBLOCK, HANDLED)


def spawned(request: RunRequest) -> Child:
    """A new Python for the run: where forking this process is not safe."""
    log_flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawn(
        request.command[0],
        list(request.command),
        os.environ | request.env,
        setpgroup=0,
        setsigdef=HANDLED,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, STDIN, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, STDOUT, request.log, log_flags, 0o666),
            (os.POSIX_SPAWN_DUP2, STDOUT, STDERR),
        ],
    )
    pin(pid, request.cpus)
    return Child(pid, request.folder)


# -- the process --------------------------------------------------------------------------------
def main() -> None:
    """`forkserver HOW ENTRY [MODULE ...]`.

    HOW: fork, or spawn, a new Python for every run. ENTRY: MODULE:FUNCTION called with [run,
    FOLDER]. Modules: to import before forking.
    """
    how, entry, *preload = sys.argv[1:]
    output = os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)  # what a module prints as it is imported is no message of ours
    fork = how == "fork" and may_fork()
    if fork:
        gc.disable()  # what is imported stays: looking for what does not takes a tenth of it
        for name in (entry.split(":")[0], *preload):
            with suppress(Exception):  # the run that needs it will say why, in its own log
                importlib.import_module(name)
        gc.collect()
        gc.freeze()  # the collector of a child must not touch, and so copy, the shared pages
        gc.enable()
        fork = may_fork()
    Server(entry, fork, output).serve()
    os._exit(DONE)  # taking torch apart would cost our user a quarter of a second


if __name__ == "__main__":
    main()
