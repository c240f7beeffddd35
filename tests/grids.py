"""Grids in the tests: a runner whose worker needs no torch, and ways to watch what it does."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import PATIENCE, ROOT

from nanoscale.experiments import ExperimentRunner, pool
from nanoscale.experiments.local import ForkServer
from nanoscale.experiments.worker import Worker
from nanoscale.store.folder import RunFolder

TESTS = ROOT / "tests"
FAKE = Worker(
    command=(sys.executable, str(TESTS / "fake_worker.py"), "run"),
    entry="fake_worker:main",
    preload=(),
)

SNIPPET = """
from experiments import ExperimentRunner

runner = ExperimentRunner(base_config_path='config/train_shakespeare_char.py', output_root='experiments_out')

# Run a grid search
runner.run_grid(
    grid_name='depth_study',
    base_params={'dataset': 'shakespeare_char', 'max_iters': 1000},
    grid_params={'n_layer': [2, 4, 8]}
)
"""  # noqa: E501


def a_runner(**options) -> ExperimentRunner:
    return ExperimentRunner(**{"backend": ForkServer(FAKE)} | options)


def starts(folder: RunFolder) -> list[tuple[int, int]]:
    """(pid, first step) of every process that ran this folder."""
    lines = (folder / "starts.txt").read_text().splitlines()
    return [tuple(map(int, line.split())) for line in lines]


def script(text: str) -> str:
    """A script without main guard that has a `runner` with the fake worker."""
    return textwrap.dedent("""
        import sys
        sys.path[:0] = [{root!r}, {tests!r}]
        from fake_worker import TINY, SLOW
        from grids import FAKE
        from nanoscale.experiments import ExperimentRunner
        from nanoscale.experiments.local import ForkServer
        """).format(root=str(ROOT), tests=str(TESTS)) + textwrap.dedent(text)


def running(folder: Path, count: int) -> list[int]:
    """The pids of `count` runs below `folder`, once each has made some steps."""

    def pids() -> list[int]:
        found = [RunFolder(p.parent) for p in folder.glob("runs/*/status.json")]
        holders = [f.holder() for f in found if f.status().step >= 3]
        return [holder.pid for holder in holders if holder]

    wait_for(lambda: len(pids()) == count)
    return pids()


def wait_for(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


def jump(monkeypatch: pytest.MonkeyPatch, when: Callable[[], object]) -> None:
    """Let the pool's clock jump by an hour once `when` is true, so that no limit is a race."""
    late: list[bool] = []

    def monotonic() -> float:
        if not late and when():
            late.append(True)
        return time.monotonic() + 3600 * len(late)

    monkeypatch.setattr(pool, "time", SimpleNamespace(monotonic=monotonic))
    monkeypatch.setattr(pool, "LIMITS_SECONDS", 0.05)


def begun(folder: Path) -> list[RunFolder]:
    """The folders of the runs below `folder` that a process has begun."""
    return [RunFolder(path.parent) for path in folder.glob("runs/*/starts.txt")]
