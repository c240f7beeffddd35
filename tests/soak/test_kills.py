"""Real training under SIGKILLs: the bits of the undisturbed grid, and of the straight twin."""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import fake_worker
import numpy as np
import psutil
import pytest
from _pytest.mark import ParameterSet
from tiny import ROOT, RUN, spec_maker
from twins import RESULTS, assert_twins, pure, state_of

from nanoscale.spec.identity import RunSpec
from nanoscale.store.folder import RunFolder
from nanoscale.store.resume import open_folder
from nanoscale.training import checkpoint, loop
from nanoscale.training.run import train_folder, train_ranks
from nanoscale.training.state import Run

GRID = """
import sys
sys.path.insert(0, {root!r})
from nanoscale.experiments import ExperimentRunner

base = {{"dataset": "toy", "n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16,
        "batch_size": 4, "gradient_accumulation_steps": 1, "max_iters": 300,
        "dropout": 0.1, "eval_interval": 40, "eval_iters": 2, "final_eval_tokens": 1024,
        "log_interval": 10, "checkpoint_seconds": 0.1, "warmup_iters": 5, "dtype": "float32"}}
grid = {{"optimizer": ["adamw", "muon"], "seed": list(range({seeds}))}}
study = ExperimentRunner(output_root=sys.argv[1], workers=2).run_grid("k", base, grid)
sys.exit(0 if study.ok else 1)
"""
GENEROUS = 1800  # seconds, for a machine that has other things to do


def start(root: str) -> subprocess.Popen[bytes]:
    silent = subprocess.DEVNULL
    return subprocess.Popen([sys.executable, "grid.py", root], stdout=silent, stderr=silent)


def kill_at_random(root: str, most: int, dice: random.Random) -> int:
    """Run the grid, killing workers and runners, until it is done; how many were killed."""
    process, kills = start(root), 0
    while process.poll() is None and kills < most:
        time.sleep(dice.uniform(0.2, 0.9))
        if process.poll() is not None:
            break
        runner = psutil.Process(process.pid)
        workers = [p for p in runner.children(recursive=True) if p.ppid() != runner.pid]
        victim = runner if dice.random() < 0.4 or not workers else dice.choice(workers)
        victim.kill()
        kills += 1
        if victim is runner:
            process.wait()
            process = start(root)
    process.wait(GENEROUS)
    return kills


@pytest.mark.soak
def test_a_grid_under_sigkills_ends_with_the_undisturbed_grids_bits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fake_worker.make_dataset(tmp_path)
    (tmp_path / "grid.py").write_text(GRID.format(root=str(ROOT), seeds=12))
    assert start("undisturbed").wait(GENEROUS) == 0

    kills = kill_at_random("killed", 50, random.Random(0))
    assert start("killed").wait(GENEROUS) == 0
    assert kills >= 20

    for twin in sorted(Path("undisturbed/runs").iterdir()):
        folder = RunFolder(Path("killed/runs") / twin.name)
        assert pure(folder) == pure(RunFolder(twin))
        assert (folder / "windows.npy").read_bytes() == (twin / "windows.npy").read_bytes()
        left = [p.name for p in folder.path.iterdir() if p.name.startswith((".", "lease"))]
        assert not left


# -- one run, lengthened, branched or resumed, over micro-batches and ranks ----------------------
LENGTH, SHORTER = 24, 10
BASE = RUN | {
    "kernels": "torch",
    "dropout": 0.2,
    "max_iters": LENGTH,
    "batch_size": 4,
    "eval_interval": 4,
    "log_interval": 3,
    "adam_eps": 1e-6,  # far above the rounding errors of gradients that are zero
    "lr_schedule": "constant",
}
WSD = {"lr_schedule": "wsd", "cooldown_frac": 0.25, "checkpoint_steps": "[10]"}
EVENTS = ("open", "os.rename", "os.remove", "os.truncate")  # of files, before which a kill falls
How = tuple[int | None, int]  # micro_batch_size, ranks
HOWS: tuple[How, ...] = ((None, 2), (2, 1), (1, 2), (1, 1), (None, 1))


@dataclass(frozen=True)
class Moment:
    """When a rank is killed: `pause` seconds after its `count`-th event of a kind.

    An event is an update, an operation on a file of the run's folder, or one at the end, which
    begins with the final windows.
    """

    kind: str
    rank: int
    count: int
    pause: float

    @classmethod
    def draw(cls, number: int, world: int, dice: random.Random) -> Moment:
        """The first falls after updates that were saved, the second anywhere, the third late."""
        kind = ("update", "file", "end")[number]
        rank = dice.randrange(world) if kind == "update" else 0
        count = dice.randint(*{"update": (6, 9), "file": (1, 70), "end": (1, 9)}[kind])
        return cls(kind, rank, count, pause=dice.choice((0, 0, dice.uniform(0, 0.004))))

    def arm(self, rank: int, path: Path) -> None:
        """Have this process killed then, if it is that rank."""
        seen, ending = 0, False
        die = functools.partial(os.kill, os.getpid(), signal.SIGKILL)

        def count() -> None:
            nonlocal seen
            seen += 1
            if seen == self.count:
                threading.Timer(self.pause, die).start() if self.pause else die()

        def audit(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal ending
            if event in EVENTS and str(path) in str(arguments[0]):
                ending |= "windows.npy" in str(arguments[0])
                if ending or self.kind == "file":
                    count()

        def update(run: Run, *rest: object) -> loop.UpdateDone:
            count()
            return real(run, *rest)

        if rank != self.rank:
            return
        if self.kind == "update":
            real, loop.update = loop.update, update
        else:
            sys.addaudithook(audit)


def launch(spec: RunSpec, path: Path, how: How, moment: Moment | None = None) -> list[int]:
    """The exit codes of the ranks that go on with a run, of which one may be killed.

    Where one was, the others are too, as torchrun does it.
    """
    micro, world = how
    config = replace(spec.config, micro_batch_size=micro)
    spec = replace(spec, config=config, typed={**spec.typed, "micro_batch_size": micro})
    resume = RunFolder(path).exists() and not RunFolder(path).holds(spec)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}

    def work(rank: int) -> str:
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world}
        os.environ.update(address | {key: str(value) for key, value in ranks.items()})
        if moment:
            moment.arm(rank, path)
        if world > 1:
            return train_ranks(spec, path, resume).status
        return train_folder(open_folder(path, spec, resume), spec).status

    living = {child(functools.partial(work, rank)) for rank in range(world)}
    codes = []
    while living:
        pid, status = os.wait()
        assert pid in living
        living.remove(pid)
        codes.append(os.waitstatus_to_exitcode(status))
        for other in living if codes[-1] else ():
            os.kill(other, signal.SIGKILL)
    return codes


def child(work: Callable[[], str]) -> int:
    """The pid of a fork that works, and exits with 0 where the run is complete."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        sys.stdout = open(os.devnull, "w")
        code = 0 if work() == "COMPLETE" else 130
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def numbers(record: dict[str, float | None]) -> dict[str, float]:
    """A record of numbers, with one that no loss is where it has none."""
    return {key: -1.0 if value is None else value for key, value in record.items()}


def assert_near(one: RunFolder, other: RunFolder) -> None:
    """Equal to rounding: rows, best, windows and weights."""
    rows = [[numbers(row) for row in pure(folder)] for folder in (one, other)]
    for a, b in zip(*rows, strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    ends = [numbers({key: folder.metrics()[key] for key in RESULTS}) for folder in (one, other)]
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)
    windows = [np.load(folder / "windows.npy") for folder in (one, other)]
    np.testing.assert_allclose(*windows, rtol=1e-4)
    for name in ("ckpt.pt", "best.pt"):
        a, b = (checkpoint.load(folder / name) for folder in (one, other))
        assert a["step"] == b["step"]
        assert a["model"].keys() == b["model"].keys()
        for key, weights in a["model"].items():
            np.testing.assert_allclose(weights, b["model"][key], rtol=1e-3, atol=1e-5)


class Story:
    """A run of one kind below a folder, and its straight twin."""

    def __init__(self, kind: str, root: Path, spec_of: Callable[..., RunSpec], first: How) -> None:
        self.kind = kind
        self.root = root
        schedule = WSD if kind == "branched" else {}
        self.spec = spec_of(**schedule)
        self.run(self.spec, "twin", first)
        if kind == "lengthened":
            self.run(spec_of(max_iters=SHORTER), "shorter", first)
        if kind == "branched":
            self.run(spec_of(**schedule | {"max_iters": 2 * LENGTH}), "trunk", first)
            self.spec = spec_of(**schedule, branch_from=f"{root / 'trunk'}@{SHORTER}")

    def run(self, spec: RunSpec, name: str, how: How) -> None:
        assert launch(spec, self.root / name, how) == [0] * how[1]

    def live(self, how: How | None, kills: int, dice: random.Random) -> tuple[RunFolder, int]:
        """The run's folder at its end, and how often it was killed: at most `kills` times."""
        path = self.root / f"run{len(list(self.root.iterdir()))}"
        if self.kind == "lengthened":
            shutil.copytree(self.root / "shorter", path)
        for killed in range(kills + 1):
            now = how or HOWS[killed]
            moment = Moment.draw(killed, now[1], dice) if killed < kills else None
            codes = launch(self.spec, path, now, moment)
            if set(codes) == {0}:
                break
            assert codes[0] == -signal.SIGKILL
            if self.kind == "lengthened":  # until its own results are written, the shorter run's
                metrics = (path / "metrics.json").read_bytes()
                shorter = (self.root / "shorter" / "metrics.json").read_bytes()
                assert metrics == shorter or json.loads(metrics)["id"] == self.spec.id
                assert len(np.load(path / "windows.npy")) > 0
        return RunFolder(path), killed


KINDS = ("lengthened", "branched", "resumed")
SAMPLED = ("lengthened", None)


def stories() -> list[ParameterSet]:
    """Every kind by every way to compute it, kept throughout or (None) changed after every kill."""
    every = []
    for kind, how in itertools.product(KINDS, (*HOWS, None)):
        most, mark = (2, pytest.mark.slow) if (kind, how) == SAMPLED else (3, pytest.mark.soak)
        name = f"{kind}-{how}".replace(" ", "")
        every.append(pytest.param(kind, how, most, marks=mark, id=name))
    return every


@pytest.mark.parametrize(("kind", "how", "most"), stories())
def test_a_run_under_sigkills_is_its_straight_twin(kind, how, most, data_root, tmp_path):
    """To the bit where it is computed alike throughout, to rounding where that changes."""
    importlib.import_module("torch.distributed.fsdp")  # here once, not in every child
    story = Story(kind, tmp_path, spec_maker(BASE, data_root), how or (None, 1))
    twin, dice, kills = RunFolder(tmp_path / "twin"), random.Random(f"{kind}{how}"), 0
    while kills < most:
        folder, more = story.live(how, most - kills, dice)
        kills += more
        if how is None:
            assert_near(folder, twin)
        else:
            assert_twins(folder, twin)
            assert state_of(folder, "best.pt") == state_of(twin, "best.pt")
