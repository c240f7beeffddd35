"""`nanoscale eval`: losses by validation set of a run, of an export and of nothing else."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import RUN, spec_maker
from tiny import run_nanoscale as nanoscale

from nanoscale.errors import UserError
from nanoscale.store.resume import open_folder
from nanoscale.training.eval import EvalOptions, _task_in, evaluate_weights
from nanoscale.training.export import export
from nanoscale.training.run import train_folder
from nanoscale.training.sample import data_of

TASK = """task: toy
dataset_path: json
dataset_kwargs:
  data_files: {test: FILE}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
doc_to_choice: ["cat", "dog"]
metric_list:
  - metric: acc
"""


@pytest.fixture
def result(desk):
    """A finished run, whose last weights are its best, and a set beside its own."""
    tokens = np.fromfile("data/tiny/val.bin", "<u2")
    np.sort(tokens).tofile("data/tiny/val_sorted.bin")
    spec = spec_maker({**RUN, "max_iters": 6, "eval_interval": 6}, desk / "data")()
    return train_folder(open_folder(desk / "run", spec, resume=False))


def judged(weights="run", **options):
    return evaluate_weights(EvalOptions(weights, tokens=160, device="cpu", **options))


def test_a_run_is_worth_what_its_final_evaluation_says(result):
    found = judged()
    assert list(found.sets) == ["val", "sorted"]
    for name, each in found.sets.items():
        assert each.to_json() == result.val_sets[name]
    assert found.sets["val"].loss == result.val_loss


def test_the_sets_are_those_that_are_named(result, desk):
    (desk / "other").mkdir()
    for file in ("train.bin", "val.bin", "meta.pkl"):
        (desk / "other" / file).write_bytes((desk / "data/tiny" / file).read_bytes())
    found = judged(data=("sorted", "other"))
    assert list(found.sets) == ["sorted", "other"]
    assert found.sets["other"].loss == result.val_loss


def test_sets_that_have_changed_since_are_said_and_block_no_others(result, desk):
    spare = desk / "data/tiny/val_sorted.bin"
    tokens = spare.read_bytes()
    (desk / "data/tiny/val_more.bin").write_bytes(tokens)
    found = judged()
    assert list(found.sets) == ["val", "sorted"]
    assert found.warnings == (
        "validation sets since training: more was added (--data=more evaluates it)",
    )
    spare.write_bytes((desk / "data/tiny/val.bin").read_bytes())
    for found in (judged(data=("sorted",)), judged(data=("sorted", "more"))):
        assert found.sets["sorted"].loss == result.val_loss
        assert found.warnings == ("validation sets since training: sorted has other tokens",)
    spare.unlink()
    found = judged()
    assert list(found.sets) == ["val"]
    assert "sorted is not evaluated (validation set 'sorted' is none of" in found.warnings[0]
    assert judged(data=("val", "more")).warnings == ()
    data_of(result.folder.spec())  # a sample and an export need no further sets
    tokens = np.fromfile("data/tiny/train.bin", "<u2")
    tokens[:9].tofile("data/tiny/train.bin")
    for data in ((), ("val",), ("more",)):
        with pytest.raises(UserError, match="dataset 'tiny' has changed since"):
            judged(data=data)


@pytest.mark.parametrize("typed", ["--data=", "--data=val,,more", "--tasks="])
def test_no_name_is_refused(desk, typed):
    assert f"error: {typed}: expected names between commas" in nanoscale("eval", "x", typed).stderr


def test_an_export_has_the_same_loss(result, desk):
    pytest.importorskip("safetensors")
    export("run", desk / "hf")
    for data in (("tiny",), ("tiny", "sorted")):
        found = judged("hf", data=data).sets["tiny"]
        assert found.loss == pytest.approx(result.val_loss, rel=1e-6)
        assert found.bits_per_byte == pytest.approx(result.val_bits_per_byte)


def test_a_checkpoint_is_read_once_and_evaluated_on_the_data_that_it_names(result, monkeypatch):
    read = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda path, **how: read.append(path) or load(path, **how))
    for weights in ("run/best.pt", "run"):
        assert judged(weights).sets["val"].loss == result.val_loss
    assert len(read) == 2
    shutil.copytree("data/tiny", "copy")
    shutil.rmtree("data")
    assert judged("run/best.pt", data=("copy",)).sets["copy"].loss == result.val_loss


def test_lines_and_json(result):
    done = nanoscale(
        "eval", "run", "--data=sorted", "--tokens=160", "--device=cpu", "--json=o.json"
    )
    loss = result.val_sets["sorted"]["loss"]
    first, second = done.stdout.splitlines()
    assert first == "run: best.pt at step 6"
    assert second.startswith(f"sorted: loss {loss:.4f}, ")
    record = json.loads(Path("o.json").read_text())
    assert record["sets"] == {"sorted": result.val_sets["sorted"]}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": "nowhere"}, "no such file or folder"),
        ({"data": ("nix",)}, "none of"),
        ({"data": ("sorted", "sorted")}, "a name of its own"),
        ({"data_root": "away"}, "no dataset 'tiny' in 'away'"),
        ({"weights": "data"}, "holds no weights"),
    ],
)
def test_what_cannot_be_is_one_line(result, monkeypatch, options, words):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError) as caught:
        judged(**options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_lm_eval_there_are_no_tasks(result, monkeypatch):
    monkeypatch.setattr("nanoscale.training.eval.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'nanoscale\[eval\]'"):
        judged(tasks=("toy",))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("task: bad\n a: [\n", "(mapping values are not allowed here)"),
        ("- 1\n", "names no task"),
        (b"\xff", "(not UTF-8)"),
        (None, "(No such file or directory)"),
        ("a: !function x.y\n# task: no\ntask: 'toy'  # yes\n", None),
    ],
)
def test_a_task_file_names_its_task_or_is_one_line(tmp_path, text, words):
    pytest.importorskip("yaml")
    file = tmp_path / "t.yaml"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    if words is None:
        assert _task_in(file) == "toy"
        return
    with pytest.raises(UserError, match=re.escape(f"--tasks={file}: ")) as caught:
        _task_in(file)
    assert words in str(caught.value)


@pytest.mark.slow
def test_a_task_of_ones_own(result, desk, monkeypatch):
    pytest.importorskip("lm_eval")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(desk / "hub"))
    rows = [{"q": "the ", "a": i % 2} for i in range(4)]
    (desk / "toy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (desk / "toy.yaml").write_text(TASK.replace("FILE", str(desk / "toy.jsonl")))
    done = nanoscale("eval", "run", "--tasks=toy.yaml", "--device=cpu", "--json=o.json")
    assert done.returncode == 0, done.stderr
    assert json.loads(Path("o.json").read_text())["tasks"] == {"toy": {"acc": 0.5}}
    assert "nonono" in nanoscale("eval", "run", "--tasks=nonono", "--device=cpu").stderr
