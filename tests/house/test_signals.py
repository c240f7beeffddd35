"""Stop signals become calls for a while, and the handlers of before come back."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from nanoscale.signals import on_stop_signal, stop_requests


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


def test_another_thread_leaves_the_handlers_alone():
    seen = []

    def work() -> None:
        with on_stop_signal(lambda number: None):
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
