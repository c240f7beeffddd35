"""Every verb has `--json OUT`; `-` is standard output, with the record and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
from tiny import ROOT, RUN, flags, spec_maker

from nanoscale.__main__ import main
from nanoscale.commands.main import VERBS
from nanoscale.commands.verb import study_record
from nanoscale.experiments import Study
from nanoscale.experiments.records import Asked, RunEntry
from nanoscale.store.resume import open_folder
from nanoscale.training import bench
from nanoscale.training.run import train_folder


def commands() -> Iterator[click.Command]:
    """Every command that does something, with those of groups."""
    for name in VERBS:
        command = import_module(f"nanoscale.commands.{name.replace('-', '_')}").command
        yield from command.commands.values() if isinstance(command, click.Group) else [command]


def test_every_verb_has_the_option():
    for command in commands():
        options = {name: p for p in command.params for name in p.opts}
        assert "--json" in options, command.name
        assert options["--json"].metavar == "OUT", command.name
        assert "(-: to standard output" in options["--json"].help, command.name


@pytest.fixture(scope="module")
def made(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study of two finished runs, one of which is also called `out`."""
    desk = tmp_path_factory.mktemp("made")
    shutil.copytree(data_root, desk / "data")
    root = desk / "experiments_out"
    entries = []
    for seed in (1, 2):
        spec = spec_maker(RUN, desk / "data")(max_iters=2, eval_interval=0, seed=seed)
        folder = open_folder(root / "runs" / spec.name, spec, False)
        train_folder(folder)
        entries.append(RunEntry(spec.id, folder.path.name, {"seed": seed}, 1))
    Study("seeds", Asked(), root, entries).save()
    shutil.copytree(folder.path, desk / "out")
    (desk / "seeds.toml").write_text(
        "[study]\nrecipe = 'grid'\n[base]\ndataset = 'tiny'\nblock_size = 8\n"
        "n_layer = 1\nn_head = 1\nn_embd = 8\nmax_iters = 2\n"
        "[grid]\nseed = [1, 2]\n"
    )
    return desk


TINY_RUN = flags(RUN | {"max_iters": 2, "eval_interval": 0})
PATH = "experiments_out/seeds"  # of a study, as a shell completes it
CASES = {  # the arguments, and a key of the record with what it must be
    "data": (["data", "prepare", "synthetic", "--out=new"], "vocab_size", 32),
    "train": (["train", *TINY_RUN, "--out_dir=new"], "status", "COMPLETE"),
    "train, to evaluate": (["train", *TINY_RUN, "--eval_only=True"], "folder", "out"),
    "run": (["run", "out"], "iter_num", 2),
    "sample": (["sample", "--num_samples=2", "--max_new_tokens=3"], "samples", 2),
    "bench": (["bench", *TINY_RUN], "tokens_per_iter", 16),
    "noise-check": (
        [
            "noise-check",
            "--dataset=tiny",
            "--block_size=8",
            "--n_embd=8",
            "--n_head=2",
            "--widths=8,16,32",
            "--updates=3",
            "--seeds=1",
            "--muon_momentum=0.5",
        ],
        "sizes",
        3,
    ),
    "params": (["params", *TINY_RUN, "--vocab_size=16"], "tensors", 19),
    "study": (["study", "seeds.toml", "--dry-run"], "states", {"WAITING": 2}),
    "status": (["status", "seeds"], "studies", 1),
    "watch": (["watch", PATH], "states", {"COMPLETE": 2}),
    "retry": (["retry", PATH], "ok", True),
    "table": (["table", PATH + "/"], "rows", 2),
    "sync": (
        ["sync", "seeds", "--to=losses", f"--trackers={ROOT}/docs/howto/my_tracker.py"],
        "sent",
        2,
    ),
    "completion": (["completion", "bash"], "shell", "bash"),
    "doctor": (["doctor"], "ok", True),
    "init": (["init", "lab"], "folder", "lab"),
    "compare": (["compare", PATH, "out"], "loss", "val_loss"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_verbs_record_is_all_of_its_standard_output(case, made, tmp_path, monkeypatch, capsys):
    shutil.copytree(made, tmp_path / "desk")
    monkeypatch.chdir(tmp_path / "desk")
    monkeypatch.setattr(bench, "PATIENCE", 0.01)
    arguments, key, expected = CASES[case]
    code = main([*arguments, "--json=-"])
    said = capsys.readouterr()
    assert code in (0, 3), said.err
    record: dict[str, Any] = json.loads(said.out)
    found = record[key]
    if record.get("best"):
        assert record["best"]["folder"] in [row["folder"] for row in record["runs"]]
    assert (len(found) if isinstance(found, list) else found) == expected
    assert said.err or case in ("data", "run", "sync", "params")  # what is said beside it


def test_a_file_has_the_same_record_and_another_ending_is_refused(made, monkeypatch, capsys):
    monkeypatch.chdir(made)
    assert main(["status", "seeds", "--json", "-"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert main(["status", "seeds", "--json=status.json"]) == 0
    assert capsys.readouterr().out.startswith("seeds: 2 runs: 2 COMPLETE\n")
    assert json.loads(Path("status.json").read_text()) == record
    assert [run["seed"] for run in record["studies"][0]["runs"]] == [1, 2]
    assert main(["status", "seeds", "--json=status.txt"]) == 2
    assert "--json=status.txt: end the name in '.json'" in capsys.readouterr().err


def test_a_record_reads_the_rows_once(made, monkeypatch):
    study = Study.open(made / "experiments_out" / "seeds")
    reads = []
    real = Study.rows
    monkeypatch.setattr(Study, "rows", lambda self: reads.append(self) or real(self))
    assert len(study_record(study)["runs"]) == 2
    assert len(reads) == 1
