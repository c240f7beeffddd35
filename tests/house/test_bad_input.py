"""Bad input: one clear line on standard error, exit code 2, nothing lost, nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import assert_refused
from tiny import TINY, run_python

from nanoscale.__main__ import main
from nanoscale.store.files import read_json

BASE = {k: v for k, v in TINY.items() if k != "vocab_size"} | {
    "dataset": "tiny",
    "final_eval_tokens": 160,
    "threads": 1,
}


def train(*arguments: str) -> int:
    return main(["train", *[f"--{k}={v}" for k, v in BASE.items()], *arguments])


TYPED = {
    "unknown flag": (["--zzz=1"], "--zzz", "unknown key"),
    "misspelt flag": (["--learing_rate=1"], "--learing_rate", "'learning_rate'"),
    "misspelt nested flag": (["--parametrization.mod=SP"], "'parametrization.mode'"),
    "flag without a value": (["--compile"], "--compile=True"),
    "single dash": (["-n_layer=2"], "--key=value"),
    "not a whole number": (["--n_layer=2.5"], "--n_layer=2.5", "whole number"),
    "not a number": (["--learning_rate=fast"], "--learning_rate=fast", "a number"),
    "not finite": (["--learning_rate=nan"], "--learning_rate=nan"),
    "not a bool": (["--bias=yes"], "--bias=yes", "True or False"),
    "not a choice": (["--optimizer=adam"], "--optimizer=adam", "'adamw'", "'muon'"),
    "not a mode": (["--parametrization.mode=mupp"], "mupp", "'muP'"),
    "not a list of steps": (["--checkpoint_steps=[1,x]"], "checkpoint_steps"),
    "negative": (["--batch_size=-1"], "--batch_size=-1", "at least 1"),
    "zero micro-batch": (["--micro_batch_size=0"], "--micro_batch_size=0", "at least 1"),
    "probability": (["--dropout=1.0"], "--dropout=1.0", "below 1"),
    "seed": (["--seed=-3"], "--seed=-3", "at least 0"),
    "heads": (["--n_head=3"], "n_embd=16", "n_head=3", "try n_head="),
    "key-value heads": (["--n_kv_head=3"], "n_kv_head=3", "try n_kv_head="),
    "odd heads for RoPE": (["--n_head=16", "--use_rope=True"], "use_rope=True", "n_head=16"),
    "LR of no head": (["--head_lr_mult=2"], "head_lr_mult=2", "tie_embeddings=False"),
    "two lengths": (["--max_iters=5", "--max_tokens=100"], "max_iters", "max_tokens", "keep one"),
    "two floors": (["--min_lr=0", "--min_lr_frac=0.1"], "min_lr_frac", "keep one"),
    "missing config": (["nothing.py"], "nothing.py", "no such config file"),
    "odd config": (["data"], "data", "'.py'"),
    "missing data set": (["--dataset=tinny"], "tinny", "nanoscale data prepare"),
    "small vocabulary": (["--vocab_size=3"], "vocab_size=3", "leave it out"),
    "long block": (["--block_size=100000"], "block_size", "100000"),
    "nothing to resume": (["--init_from=resume"], "init_from=resume", "holds no run"),
    "no trackers": (["--trackers=none.py"], "trackers=none.py", "no such file"),
    "no branch": (["--branch_from=nowhere"], "branch_from=nowhere", "no checkpoint"),
    "no device": (["--device=cuda:7"], "device=cuda:7", "device=auto"),
    "no such device": (["--device=tpu"], "device=tpu", "device=auto"),
    "out_dir under a file": (["--out_dir=data/tiny/train.bin/x"], "data/tiny/train.bin/x"),
    "out_dir is a file": (["--out_dir=data/tiny/train.bin"], "train.bin", "other files"),
    "out_dir holds other things": (["--out_dir=data"], "out_dir=data", "other files"),
}


@pytest.mark.parametrize("case", TYPED)
def test_typed_nonsense(desk, capsys, case):
    arguments, *words = TYPED[case]
    assert_refused(desk, capsys, lambda: train(*arguments), *words)


def test_a_missing_package(desk, capsys, monkeypatch):
    monkeypatch.setattr("nanoscale.training.trackers.find_spec", lambda name: None)
    for package in ("wandb", "tensorboard", "trackio"):
        assert_refused(
            desk,
            capsys,
            lambda package=package: train(f"--{package}_log=True"),
            f"{package}_log=True",
            f"nanoscale[{package}]",
        )


FILES = {
    "python that raises": ("c.py", "n_layer = 2\nn_head = 1 / 0\n", "line 2", "ZeroDivisionError"),
    "python that does not parse": ("c.py", "n_layer = = 2\n", "line 1", "SyntaxError"),
    "unknown name": ("c.py", "n_layers = 2\n", "n_layers", "'n_layer'"),
    "wrong type": ("c.py", "n_layer = 'two'\n", "n_layer=two", "whole number"),
    "broken TOML": ("c.toml", "n_layer = \n", "not valid TOML"),
    "broken JSON": ("c.json", '{"n_layer": }', "not valid JSON"),
    "broken YAML": ("c.yaml", "n_layer: [1\n", "not valid YAML"),
    "a list of keys": ("c.json", "[1, 2]", "expected keys and values"),
    "unknown nested key": ("c.toml", "[parametrization]\nmodes = 'SP'\n", "parametrization.modes"),
    "floor above the LR": ("c.json", '{"learning_rate": 1e-5, "min_lr": 1e-4}', "min_lr_frac"),
}


@pytest.mark.parametrize("case", FILES)
def test_config_files(desk, capsys, case):
    name, text, *words = FILES[case]
    (desk / name).write_text(text)
    assert_refused(desk, capsys, lambda: train(name), *words)


class Evil:
    """Unpickling this would make a file."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch pwned",)


def odd_bin(data: Path) -> None:
    with open(data / "val.bin", "ab") as file:
        file.write(b"x")


def foreign_vocabulary(data: Path) -> None:
    (data / "train.bin").write_bytes(b"\xff\x7f" * 2000)


def evil_meta(data: Path) -> None:
    (data / "meta.pkl").write_bytes(pickle.dumps(Evil()))


DATA = {
    "missing val.bin": (lambda d: (d / "val.bin").unlink(), "val.bin"),
    "empty train.bin": (lambda d: (d / "train.bin").write_bytes(b""), "train.bin"),
    "truncated .bin": (odd_bin, "val.bin"),
    ".bin of another vocabulary": (foreign_vocabulary, "train.bin", "32767"),
    "meta.pkl with code": (evil_meta, "meta.pkl", "code"),
    "meta.pkl of rubbish": (lambda d: (d / "meta.pkl").write_bytes(b"no"), "meta.pkl"),
    "meta.json of rubbish": (lambda d: (d / "meta.json").write_text("{"), "meta.json"),
}


@pytest.mark.parametrize("case", DATA)
def test_data_files(desk, capsys, case):
    damage, *words = DATA[case]
    damage(desk / "data" / "tiny")
    assert_refused(desk, capsys, train, *words)


# -- checkpoints and run folders ------------------------------------------------------------------
@pytest.fixture
def begun(desk: Path, capsys: Any) -> Path:
    """A run that was interrupted after its first evaluation."""
    assert train("--out_dir=run") == 0
    status = read_json(desk / "run" / "status.json")
    (desk / "run" / "status.json").write_text(json.dumps(status | {"state": "WAITING"}))
    return desk / "run" / "ckpt.pt"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def as_nanogpt(path: Path) -> None:
    torch.save({"model": {}, "optimizer": {}, "model_args": {}, "iter_num": 1}, path)


CHECKPOINTS = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:1000]), "ckpt.pt", "truncated"),
    "empty": (lambda p: p.write_bytes(b""), "ckpt.pt", "truncated"),
    "damaged": (flip, "ckpt.pt"),
    "foreign": (as_nanogpt, "ckpt.pt", "nanoGPT"),
    "another program's": (lambda p: torch.save({"a": 1}, p), "ckpt.pt", "another program"),
    "with code": (lambda p: p.write_bytes(pickle.dumps(Evil())), "ckpt.pt"),
    "with code in torch's format": (lambda p: torch.save(Evil(), p), "ckpt.pt", "none was run"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoints(desk, begun, capsys, case):
    damage, *words = CHECKPOINTS[case]
    damage(begun)
    assert_refused(desk, capsys, lambda: train("--out_dir=run"), *words)
    assert not (desk / "pwned").exists()


def test_resuming_another_past(desk, begun, capsys):
    for flag, word in (
        ("--n_layer=1", "n_layer was 2, now 1"),
        ("--seed=5", "seed was"),
        ("--max_iters=4", "max_iters=4"),
        ("--batch_size=3", "batch_size was 2"),
    ):
        assert_refused(
            desk, capsys, lambda flag=flag: train("--out_dir=run", "--init_from=resume", flag), word
        )


def test_run_folders(desk, begun, capsys):
    assert_refused(desk, capsys, lambda: main(["run"]), "nanoscale run: FOLDER is missing")
    assert_refused(desk, capsys, lambda: main(["run", "nowhere"]), "nowhere")
    config = begun.parent / "config.json"
    config.write_text(config.read_text().replace('"n_layer": 2', '"n_layer": 3'))
    assert_refused(desk, capsys, lambda: main(["run", "run"]), "does not hash to its id")
    config.write_text("{}")
    assert_refused(desk, capsys, lambda: main(["run", "run"]), "config.json")
    config.write_text("{")
    assert_refused(desk, capsys, lambda: main(["run", "run"]), "config.json", "not valid JSON")


# -- verbs and disks ----------------------------------------------------------------------------
def test_verbs(desk, capsys):
    assert_refused(desk, capsys, lambda: main(["trian"]), "trian", "'train'")
    assert_refused(desk, capsys, lambda: main(["data", "prepare", "nothing"]), "nothing")
    assert_refused(desk, capsys, lambda: main(["data"]), "usage: nanoscale data prepare")
    assert_refused(desk, capsys, lambda: main(["sample", "--out_dir=nowhere"]), "nowhere")
    assert_refused(desk, capsys, lambda: main(["params", "--n_layer=0"]), "--n_layer=0")
    assert_refused(desk, capsys, lambda: main(["study", "nowhere.toml"]), "nowhere.toml")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_refusing_disk_at_the_start(desk, capsys, monkeypatch, number):
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    assert_refused(desk, capsys, train, "cannot write", os.strerror(number).lower())


@pytest.mark.slow
def test_a_disk_that_fills_up_keeps_the_last_checkpoint(desk, capsys, monkeypatch):
    """The third checkpoint does not fit; the second stays, and the run goes on from it later."""
    from nanoscale.training import checkpoint

    original, calls = torch.save, []

    def full(payload: Any, file: Any) -> None:
        calls.append(1)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(payload, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        assert train("--out_dir=run", "--eval_interval=2") == 2
    assert "no space left on device" in capsys.readouterr().err
    assert not list((desk / "run").glob(".*"))
    assert checkpoint.load(desk / "run" / "ckpt.pt")["step"] in (2, 4)
    assert train("--out_dir=run", "--eval_interval=2") == 0


@pytest.mark.slow
def test_no_traceback_reaches_the_shell(desk):
    done = run_python("-m", "nanoscale", "train", "--learing_rate=1", cwd=desk)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "verb",
    "fit,plan --budget=1e20,design,transfer,sweep-law,study,params,train,compare a,table,status,"
    "report,watch,retry,run,sample --out_dir".split(","),
)
def test_a_name_that_no_disk_can_hold(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    joined = "=" if verb.endswith("out_dir") else " "
    ending = {"study": ".toml", "params": ".py", "train": ".py"}.get(verb, ".csv")
    assert main(f"{verb}{joined}{'a' * 300}{ending}".split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())
