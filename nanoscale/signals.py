"""Ctrl-C, SIGTERM and SIGHUP as requests: a handler for a while, and what was before put back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_stop_signal(handler: Callable[[int], object]) -> Iterator[None]:
    """Call `handler` with the number of every SIGINT, SIGTERM and SIGHUP; nothing outside the main
    thread, to which alone signals are delivered."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:  # nohup's stays ignored
        names.append(hangup)
    before = {name: signal.signal(name, lambda number, _: handler(number)) for name in names}
    try:
        yield
    finally:
        for name, old in before.items():  # None: installed from C, which cannot be put back
            signal.signal(name, signal.SIG_DFL if old is None else old)


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
