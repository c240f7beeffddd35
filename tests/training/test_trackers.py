"""What shows a run elsewhere: each step once after a kill, in its study's group, with its end."""

from __future__ import annotations

import json
import re
import sqlite3
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import ROOT, RUN, run_nanoscale, spec_maker, tiny_config, tiny_spec

from nanoscale.errors import UserError
from nanoscale.store.files import write_json
from nanoscale.store.folder import RunFolder
from nanoscale.store.resume import open_folder
from nanoscale.training.known_trackers import grouped, with_nanogpts
from nanoscale.training.offline_log import last_step
from nanoscale.training.recorder import Recorder
from nanoscale.training.run import train_folder
from nanoscale.training.tracked_run import TrackedRun
from nanoscale.training.trackers import (
    TRACKERS,
    final_results,
    register_tracker,
    registered_by,
    wanted,
)

KILLER = """
import os, signal
from pathlib import Path
from nanoscale import register_tracker

class Killer:
    def __init__(self, run):
        self.killed = run.folder / "killed"
    def row(self, step, numbers):
        if step == 6 and not self.killed.exists():
            self.killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    def final(self, results): ...
    def close(self): ...

register_tracker("killer", Killer)
"""

CELL_NAME = "learning_rate=0.01, seed=1"
HERE = [name for name in ("wandb", "tensorboard", "trackio") if find_spec(name)]


@pytest.fixture(scope="module")
def killed(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A study's run of 8 updates, saved after 4, killed in row 6 and run again: all trackers on."""
    desk = tmp_path_factory.mktemp("killed")
    (desk / "killer.py").write_text(KILLER)
    logs = {f"{name}_log": True for name in HERE}
    spec = spec_maker(RUN | {"max_iters": 8, "eval_interval": 4, "stats_interval": 4}, data_root)
    folder = open_folder(desk / "run", spec(**logs, trackers=str(desk / "killer.py")), False)
    write_json(folder / "cell.json", {"study": "lrs", "cell": CELL_NAME})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("TRACKIO_DIR", str(desk / "trackio"))
        first = run_nanoscale("run", str(folder.path))
        assert (first.returncode, (folder / "killed").exists()) == (-9, True), first.stderr
        assert (folder.status().checkpoint_step, folder.rows()[-1]["step"]) == (4, 6)
        second = run_nanoscale("run", str(folder.path))
        assert second.returncode == 0, second.stderr
        said = second.stdout + second.stderr
        ours = re.compile(r"^wandb: kept offline, `wandb sync \S+` sends it$", re.M)
        assert len(ours.findall(said)) == ("wandb" in HERE), said
        theirs = re.search(r"^(.*wandb\b.*:|\* )", ours.sub("", said), re.M)
        assert not theirs, said  # W&B's lines, Trackio's
    return folder


def losses(folder: RunFolder, key: str = "train_loss") -> dict[int, float]:
    return {row["step"]: row[key] for row in folder.rows() if row.get(key) is not None}


@pytest.mark.slow
def test_what_has_all_of_a_run_is_written_down(killed):
    sent = json.loads((killed / "sent.json").read_text())
    assert sorted(sent) == sorted([*HERE, "killer"])
    assert {(note["id"], note["study"], note["cell"]) for note in sent.values()} == {
        (killed.spec().id, "lrs", CELL_NAME)
    }


# -- W&B ------------------------------------------------------------------------------------------
BLOCK = 32768  # of LevelDB's log format, in which W&B writes


def offline_records(path: Path) -> Iterator[Any]:
    """The records of W&B's offline transaction log."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = path.read_bytes()
    at, whole = 7, b""  # after the file's header
    while at + 7 <= len(data):
        left = BLOCK - at % BLOCK
        if left < 7:  # padding
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, or the last part
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def items_of(items: Any) -> dict[str, Any]:
    """JSON values by key."""
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


@pytest.mark.slow
@pytest.mark.skipif("wandb" not in HERE, reason="needs wandb")
def test_wandb_offline(killed):
    (log,) = killed.path.glob("wandb/offline-run-*/run-*.wandb")  # the first process's is gone
    records: dict[str, list[Any]] = {}
    for record in offline_records(log):
        kind = record.WhichOneof("record_type")
        records.setdefault(kind, []).append(getattr(record, kind))

    (run,) = records["run"]
    assert (run.run_id, run.run_group, run.display_name) == (killed.spec().id, "lrs", CELL_NAME)
    assert (run.project, *run.tags) == ("tiny", "tiny", "adamw", "SP", "L2", "d16")
    config = items_of(run.config.update)
    assert (config["learning_rate"], config["cell"]) == (0.01, CELL_NAME)

    history = [items_of(row.item) for row in records["history"]]
    assert [row["_step"] for row in history] == list(range(9)) == [row["iter"] for row in history]
    assert {r["_step"]: r["train_loss"] for r in history if "train_loss" in r} == losses(killed)
    for theirs, ours in (("train/loss", "eval_train_loss"), ("val/loss", "val_loss")):
        assert {r["_step"]: r[theirs] for r in history if theirs in r} == losses(killed, ours)
    assert {"lr", "mfu", "statistics/grad_rms/hidden"} <= set(history[4])

    summary: dict[str, Any] = {}
    for part in records["summary"]:
        summary |= items_of(part.update)
    metrics = killed.metrics()
    assert summary["final/val_loss"] == metrics["val_loss"] != summary["val_loss"]
    assert summary["final/status"] == "COMPLETE"
    assert records["exit"][0].exit_code == 0


def test_further_validation_sets_stand_in_the_groups_of_the_first():
    assert grouped("val_loss_wiki") == "loss/val_loss_wiki"
    named = with_nanogpts(3, {"val_loss": 1.0, "val_loss_wiki": 2.0})
    assert (named["val/loss"], named["val/loss_wiki"]) == (1.0, 2.0)
    sets = {
        "val": {"loss": 1.0, "bits_per_byte": 3.0},
        "wiki": {"loss": 2.0, "bits_per_byte": None},
    }
    record = {"status": "COMPLETE", "val_loss": 1.0, "val_bits_per_byte": 3.0}
    one = final_results(record)
    assert final_results({**record, "val_sets": sets}) == {**one, "final/val_loss_wiki": 2.0}


@pytest.mark.parametrize("long", [False, True])
def test_how_far_a_run_got_in_an_offline_log(long, tmp_path, monkeypatch):
    """Records that a block cannot hold stand in parts; what a kill has cut is no record."""

    class Record:
        """As W&B's own, of a text."""

        @staticmethod
        def FromString(data: bytes) -> Any:
            item = SimpleNamespace(key="_step", nested_key=[], value_json=data.split()[0])
            return SimpleNamespace(history=SimpleNamespace(item=[item]))

    proto = SimpleNamespace(Record=Record)
    monkeypatch.setitem(sys.modules, "wandb.proto.wandb_internal_pb2", proto)
    data = b":W&B..."
    ends = []
    for step in range(9):
        record = f"{step} ".encode() + bytes(20_000 if long else 20)
        first = True
        while record is not None:
            left = BLOCK - len(data) % BLOCK
            if left < 7:
                data += bytes(left)
                continue
            part, rest = record[: left - 7], record[left - 7 :] or None
            kind = {(True, True): 1, (True, False): 2, (False, False): 3, (False, True): 4}
            data += struct.pack("<IHB", 0, len(part), kind[first, rest is None]) + part
            record, first = rest, False
        ends.append(len(data))
    log = tmp_path / "run-x.wandb"
    log.write_bytes(data)
    assert last_step(log) == 8
    for size, last in ((7, -1), (ends[0] - 1, -1), (ends[5], 5), (ends[5] + 9, 5)):
        log.write_bytes(data[:size])
        assert last_step(log) == last


# -- TensorBoard ----------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # TensorBoard's own
def test_tensorboard(killed):
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert len(list(killed.path.glob("events.out.tfevents.*"))) == 1
    events = module.EventAccumulator(str(killed.path))
    events.Reload()

    for key in ("train_loss", "val_loss"):
        told = events.Scalars(f"loss/{key}")
        assert [e.step for e in told] == list(losses(killed, key))
        assert [e.value for e in told] == pytest.approx(list(losses(killed, key).values()))
    (final,) = events.Scalars("final/val_loss")
    assert (final.step, final.value) == (8, pytest.approx(killed.metrics()["val_loss"]))
    groups = {tag.partition("/")[0] for tag in events.Tags()["scalars"]}
    assert groups == {"loss", "optimizer", "speed", "progress", "statistics", "final"}

    from tensorboard.plugins.hparams import metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = events.PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(content[metadata.SESSION_START_INFO_TAG])
    keys = start.session_start_info.hparams
    assert (keys["study"].string_value, keys["cell"].string_value) == ("lrs", CELL_NAME)
    assert keys["learning_rate"].number_value == 0.01


# -- Trackio --------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.skipif("trackio" not in HERE, reason="needs trackio")
def test_trackio(killed):
    (path,) = (killed.path.parent / "trackio").glob("*.db")
    assert path.stem == "tiny"  # the project
    with closing(sqlite3.connect(path)) as database:
        rows = list(database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step"))
        ((config,),) = database.execute("SELECT config FROM configs")
    assert {name for name, _, _ in rows} == {f"{CELL_NAME} {killed.spec().id}"}
    assert [step for _, step, _ in rows] == list(range(9))
    numbers = [json.loads(text) for _, _, text in rows]
    assert {r["iter"]: r["train_loss"] for r in numbers if "train_loss" in r} == losses(killed)
    assert numbers[4]["val/loss"] == numbers[4]["val_loss"] == losses(killed, "val_loss")[4]
    assert numbers[8]["final/val_loss"] == killed.metrics()["val_loss"]
    assert json.loads(config)["_Group"] == "lrs"


# -- a user's own, and what fails -----------------------------------------------------------------
@pytest.fixture
def registered() -> Iterator[None]:
    """What is registered meanwhile is forgotten."""
    before = dict(TRACKERS)
    yield
    TRACKERS.clear()
    TRACKERS.update(before)
    registered_by.cache_clear()


@pytest.fixture
def trained(data_root: Path, tmp_path: Path, registered: None) -> Callable[..., RunFolder]:
    def train(**overrides: Any) -> RunFolder:
        spec = spec_maker(RUN, data_root)(max_iters=3, eval_interval=0, **overrides)
        folder = open_folder(tmp_path / "run", spec, False)
        assert train_folder(folder).status == "COMPLETE"
        return folder

    return train


class Faulty:
    """A tracker that raises where it is told to."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.told: list[str] = []

    def __call__(self, run: Any) -> Faulty:
        self.tell("begin")
        return self

    def tell(self, what: str) -> None:
        self.told.append(what)
        if what == self.where:
            raise OSError("no\nroute to host")

    def row(self, step: int, numbers: Any) -> None:
        self.tell(f"row {step}")

    def final(self, results: Any) -> None:
        self.tell("final")

    def close(self) -> None:
        self.tell("close")


@pytest.mark.parametrize("where", ["row 2", "final", "close"])
def test_a_tracker_that_fails_is_a_warning_and_the_run_goes_on(trained, where):
    faulty, good = Faulty(where), Faulty("nowhere")
    register_tracker("faulty", faulty)
    register_tracker("good", good)
    folder = trained()
    assert good.told == ["begin", "row 1", "row 2", "row 3", "final", "close"]
    told = good.told[: good.told.index(where) + 1]
    assert faulty.told == (told if where == "close" else [*told, "close"])  # once
    warnings = [line for line in (folder / "log.txt").read_text().splitlines() if "faulty" in line]
    (warning,) = warnings
    assert warning.startswith("warning: faulty has failed (OSError: no route to host)")
    assert f"nanoscale sync {folder.path} --to=faulty" in warning
    assert list(folder.record("sent.json")) == ["good"]


def test_a_tracker_that_cannot_begin_refuses_a_run_that_has_no_row_yet(trained):
    register_tracker("good", good := Faulty("nowhere"))
    register_tracker("faulty", Faulty("begin"))
    with pytest.raises(UserError, match=r"^the tracker faulty: OSError: no route to host$"):
        trained()
    assert good.told == ["begin", "close"]


def test_a_run_that_goes_on_does_so_without_a_tracker_that_cannot_begin(trained, tmp_path):
    folder = trained()
    rows = (folder / "metrics.jsonl").read_bytes()
    register_tracker("faulty", Faulty("begin"))
    folder.set_status(state="WAITING")
    assert train_folder(folder).status == "COMPLETE"
    assert (folder / "metrics.jsonl").read_bytes() == rows
    assert "warning: faulty has failed" in (folder / "log.txt").read_text()


def test_the_masters_process_alone_has_trackers(tmp_path, registered):
    register_tracker("faulty", Faulty("begin"))
    run = SimpleNamespace(ranks=SimpleNamespace(is_master=False), spec=tiny_spec())
    assert Recorder(run, RunFolder(tmp_path), None).rows is None


def test_the_documented_tracker(trained):
    folder = trained(trackers=str(ROOT / "docs" / "howto" / "my_tracker.py"), log_interval=2)
    last, final = (folder / "losses.csv").read_text().splitlines()
    (loss,) = losses(folder, "val_loss").values()
    assert last == f"tiny-L2-d16-adamw-SP,3,{loss}"
    assert final == f"tiny-L2-d16-adamw-SP,final,{folder.metrics()['val_loss']}"
    assert "losses" not in TRACKERS  # it is that run's alone
    docstring, code = (ROOT / "docs" / "howto" / "my_tracker.py").read_text().rsplit('"""', 1)
    assert docstring.startswith('"""')
    assert code.strip() in (ROOT / "docs" / "howto" / "trackers.md").read_text()


FILES = {
    "none": (None, "no such file"),
    "registers nothing": ("x = 1", "registers no tracker; call nanoscale.register_tracker"),
    "raises": ("1 / 0", "ZeroDivisionError"),
    "a name that is taken": (
        "from nanoscale import register_tracker\nregister_tracker('wandb', print)",
        "tracker 'wandb' is built in",
    ),
    "no name": (
        "from nanoscale import register_tracker\nregister_tracker('my own', print)",
        "tracker 'my own': choose another name",
    ),
    "no function": (
        "from nanoscale import register_tracker\nregister_tracker('mine', 1)",
        "expected a function that makes one, got 1",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_registers_no_tracker_is_refused(case, tmp_path, registered):
    text, said = FILES[case]
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    before = dict(TRACKERS)
    with pytest.raises(UserError, match=f"^trackers={re.escape(str(file))}: .*{re.escape(said)}"):
        wanted(tiny_config(trackers=str(file)))
    assert before == TRACKERS


def test_what_is_typed_names_a_run_and_else_its_cell_does(tmp_path):
    folder = RunFolder(tmp_path)
    spec = tiny_spec(dataset="data/open web")
    assert (TrackedRun.of(folder, spec).project, TrackedRun.of(folder, spec).study) == (
        "open_web",
        None,
    )
    config = TrackedRun.of(folder, spec).config()  # where it is, not as the template says
    assert (config["out_dir"], config["wandb_project"]) == (str(tmp_path), "open_web")
    assert (
        TrackedRun.of(folder, spec).name == "open_web-L2-d16-adamw-SP" == config["wandb_run_name"]
    )
    write_json(tmp_path / "cell.json", {"study": "lrs", "cell": "n_layer=2, " * 20})
    assert TrackedRun.of(folder, spec).name == ("n_layer=2, " * 20)[:128]  # as W&B takes
    typed = {"wandb_project": "owt", "wandb_run_name": "gpt2"}  # the defaults too
    run = TrackedRun.of(folder, replace(spec, typed=typed))
    assert (run.project, run.name, run.study) == ("owt", "gpt2", "lrs")
