"""Stop signals become calls for a while, and the handlers of before come back."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time

import pytest
from tiny import PATIENCE

from nanoscale import signals
from nanoscale.signals import answered, on_stop_signal, stop_requests


@pytest.fixture(autouse=True)
def _terminal():
    """As from a terminal that is open: under nohup a hangup is ignored, and stays so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_signals_are_handed_over_and_the_old_handlers_come_back():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    caught: list[int] = []
    with on_stop_signal(caught.append):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    assert sorted(caught) == [signal.SIGINT, signal.SIGTERM]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_handler_installed_from_c_does_not_break_the_way_out(monkeypatch):
    put_back = []
    monkeypatch.setattr(signal, "signal", lambda number, handler: put_back.append(handler))
    with on_stop_signal(lambda number: None):
        put_back.clear()
    assert put_back == [signal.SIG_DFL] * 3


@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_asks_as_sigterm_does_but_under_nohup(ignored):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with stop_requests() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert asked.is_set() != ignored
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_answered_while_an_operation_of_c_goes_on(monkeypatch, number):
    """Which the main thread is in until the lock is free; Python's handler comes after it."""
    said: list[str] = []
    answer = threading.Event()
    monkeypatch.setattr(
        signals, "print", lambda line, **_: (said.append(line), answer.set()), False
    )
    lock = threading.Lock()
    lock.acquire()
    seen = []
    main = threading.get_ident()

    def in_c() -> None:
        lock.acquire()

    def user() -> None:
        while (frame := sys._current_frames()[main]).f_code != in_c.__code__:
            time.sleep(0.001)
        while frame.f_lineno == frame.f_code.co_firstlineno:
            time.sleep(0.001)
        signal.pthread_kill(threading.get_ident(), number)
        seen.append((answer.wait(PATIENCE), asked.is_set()))
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        lock.release()

    with answered(), stop_requests() as asked:
        threading.Thread(target=user).start()
        in_c()
    assert seen == [(True, False)]
    assert asked.is_set()
    again = signals.AGAIN if number == signal.SIGINT else ""  # no key was pressed
    assert said == [signals.ANSWER + again]
    assert signal.set_wakeup_fd(-1) == -1
    assert not [thread for thread in threading.enumerate() if thread.name == "signals"]


def test_a_system_that_knows_no_blocking_is_answered_too(monkeypatch):
    """Windows before Python 3.12: what is written to need not be so there."""
    monkeypatch.delattr(os, "set_blocking")
    monkeypatch.setattr(signal, "set_wakeup_fd", lambda handle, **how: -1)
    with answered():
        pass


@pytest.mark.parametrize(("names", "stands"), [(("SIGBREAK",), "SIGBREAK"), ((), "SIGTERM")])
def test_what_closes_a_console_stands_for_what_closes_a_terminal(monkeypatch, names, stands):
    monkeypatch.delattr(signal, "SIGHUP")
    for name in names:
        monkeypatch.setattr(signal, name, signal.SIGUSR1, raising=False)
    caught: list[int] = []
    module = importlib.reload(signals)
    try:
        with module.on_stop_signal(caught.append):
            os.kill(os.getpid(), getattr(signal, stands))
        assert caught == [getattr(signal, stands)]
    finally:
        monkeypatch.undo()
        importlib.reload(signals)


def test_another_thread_leaves_the_handlers_alone():
    seen = []

    def work() -> None:
        with on_stop_signal(lambda number: None), answered():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
