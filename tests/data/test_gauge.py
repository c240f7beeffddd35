"""What a long computation shows, part by part, and that a quick one shows nothing."""

from __future__ import annotations

import io

import pytest

from nanoscale.data import gauge
from nanoscale.data.gauge import each, part, watched


@pytest.fixture
def impatient(monkeypatch):
    """Every look is due, and four seconds pass between two."""
    seconds = iter(range(0, 4000, 4))
    monkeypatch.setattr(gauge.time, "monotonic", lambda: next(seconds))
    monkeypatch.setattr(gauge, "PLAIN_SECONDS", -1)


def test_parts_of_parts_add_up_to_one_share(impatient, capsys):
    with watched("fit"), part(1, "rounds") as at:
        at(0)
        for _ in each([1, 2], "profiles"):
            with part(200, "fits") as of:
                of(100, 50)
                with part(2, "steps") as step:
                    step(1)
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert lines[0] == "[fit] 0 of 1 fits"
    first, second = [line for line in lines if "62.5" in line or "31.2" in line or "81.2" in line]
    assert first.startswith("[fit] 0 of 2 profiles, 31.2 %, eta ")  # (100 + 50 / 2) of 200, of 2
    assert second.startswith("[fit] 1 of 2 profiles, 81.2 %, eta ")


def test_quick_work_and_work_that_nobody_watches_show_nothing(capsys, monkeypatch):
    with watched("fit"):
        assert list(each([1, 2], "fits")) == [1, 2]
    monkeypatch.setattr(gauge, "UNSEEN_SECONDS", -1)
    assert list(each([1, 2], "fits")) == [1, 2]
    assert capsys.readouterr() == ("", "")


def failing():
    for _ in each([0], "hold-outs"):
        with part(3, "fits"):
            raise ZeroDivisionError


def test_what_fails_leaves_nothing_under_way(impatient, capsys):
    with watched("fit"):
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                failing()
        with part(2, "worlds") as at:
            at(1)
    assert capsys.readouterr().err.splitlines()[-1].startswith("[fit] 1 of 2 worlds, 50.0 %")


def test_on_a_terminal_it_is_a_bar(impatient, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(gauge.sys, "stderr", terminal)
    monkeypatch.setattr(gauge, "LIVE_SECONDS", -1)
    monkeypatch.setenv("TERM", "xterm")
    with watched("fit"), part(4, "fits") as at:
        at(1)
    assert "1 of 4 fits, 25.0 %, eta " in terminal.getvalue()
