"""Ctrl-C, SIGTERM and SIGHUP as requests: a handler for a while, and what was before put back.

Under Windows SIGBREAK, which closes a console as SIGHUP does a terminal, stands for SIGHUP; it is
also how one process there asks another, as a SIGTERM from outside ends it on the spot.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_BREAK: int = getattr(signal, "SIGBREAK", signal.SIGTERM)
_HANGUP: int = getattr(signal, "SIGHUP", _BREAK)
_STOPS = {signal.SIGINT, signal.SIGTERM, _HANGUP}
ANSWER = "stopping: this update is finished and saved first"
AGAIN = "; Ctrl-C again stops at once"


@contextmanager
def on_stop_signal(handler: Callable[[int], object]) -> Iterator[None]:
    """Call `handler` with the number of every SIGINT, SIGTERM and SIGHUP; nothing outside the main
    thread, to which alone signals are delivered."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = set(_STOPS)
    if signal.getsignal(_HANGUP) == signal.SIG_IGN:  # nohup's stays ignored
        names.remove(_HANGUP)
    before = {name: signal.signal(name, lambda number, _: handler(number)) for name in names}
    try:
        yield
    finally:
        for name, old in before.items():  # None: installed from C, which cannot be put back
            signal.signal(name, signal.SIG_DFL if old is None else old)


@contextmanager
def answered() -> Iterator[None]:
    """Answer the first stop signal with a line at once; nothing outside the main thread.

    Python's handlers wait for the end of what C does, as of a whole backward pass. This is a
    thread, which C's own handler wakes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    if hasattr(os, "set_blocking"):  # what Windows writes to need not be so
        os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def listen() -> None:
        while number := os.read(reader, 1):
            if number[0] in _STOPS:
                print(ANSWER + (AGAIN if number[0] == signal.SIGINT else ""), flush=True)
                return

    thread = threading.Thread(target=listen, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)
        thread.join()
        os.close(reader)


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event set by Ctrl-C, SIGTERM or SIGHUP, so a run stops between updates; twice: at once."""
    asked = threading.Event()

    def ask(number: int) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    with on_stop_signal(ask):
        yield asked
