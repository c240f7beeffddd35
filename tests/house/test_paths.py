"""Names of files on every system: how they divide, what may not be one, how a shell takes them."""

from __future__ import annotations

import ntpath
import os
from pathlib import PureWindowsPath

import pytest

from nanoscale import paths
from nanoscale.paths import from_here, in_a_shell, is_device, last_part


@pytest.mark.parametrize(
    "name", ["data/shakespeare", "data/shakespeare/", r"C:\data\shakespeare", "shakespeare"]
)
def test_the_last_part_of_a_name_however_it_divides(name):
    assert last_part(name) == "shakespeare"


def test_what_windows_takes_for_a_device():
    assert all(map(is_device, ("con", "NUL", "aux.json", "COM1", "lpt9.csv", "prn ")))
    assert not any(map(is_device, ("console", "com", "lpt10", "sweep", "a.con")))


def test_a_path_in_a_command_has_no_backslash(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert from_here(tmp_path / "out" / "run") == "out/run"
    assert in_a_shell("out dir/run") == "'out dir/run'"
    monkeypatch.setattr(paths, "Path", PureWindowsPath)
    assert in_a_shell(PureWindowsPath(r"experiments_out\runs\x")) == "experiments_out/runs/x"


def test_a_path_on_a_drive_of_another_letter_is_whole(monkeypatch):
    monkeypatch.setattr(os, "path", ntpath)
    monkeypatch.setattr(ntpath, "abspath", lambda path: ntpath.normpath(path))
    monkeypatch.setattr(os, "getcwd", lambda: r"D:\work")
    monkeypatch.setattr(paths, "Path", PureWindowsPath)
    with pytest.raises(ValueError, match="path is on mount 'C:'"):
        ntpath.relpath(r"C:\out\run", r"D:\work")
    monkeypatch.setattr(ntpath, "curdir", r"D:\work")
    assert from_here(r"C:\out\run") == "C:/out/run"
