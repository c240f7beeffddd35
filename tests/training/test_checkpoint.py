"""Checkpoints: what was saved comes back exactly or not at all, and no code runs."""

from __future__ import annotations

import errno
import io
import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_config, tiny_spec

from nanoscale.errors import UserError
from nanoscale.model import checkpoint_file
from nanoscale.model.gpt import GPT
from nanoscale.model.optim import Optimizers
from nanoscale.store.files import read_json, write_json
from nanoscale.training import checkpoint
from nanoscale.training.checkpoint import digest, load, save

CONTENT = {
    "step": 7,
    "best_val_loss": 0.1 + 0.2,
    "none": None,
    "text": "ä",
    "scaler": {"scale": 65536.0, "growth": [1, 2, 3], "flag": True},
    "model": {
        "a.weight": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
        "a.bias": torch.tensor([1e-40, -0.0, torch.inf, torch.nan]).bfloat16(),
        "tensor.of.nothing": torch.empty(0, 4),
    },
    "optimizer": {
        "a.weight": {"step": torch.tensor(7.0), "exp_avg": torch.eye(4)[::2].T},
        "a.bias": {"ids": torch.arange(5), "mask": torch.tensor([True, False])},
    },
}


def same(one: Any, other: Any) -> bool:
    """Equal in type, bits and structure."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, torch.Tensor):
        flat = [t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other)]
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*flat)
    return type(one) is type(other) and one == other


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(tmp_path / "ckpt.pt", tiny_spec(mode="muP"), **CONTENT)
    return tmp_path / "ckpt.pt"


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


# --- round trip --------------------------------------------------------------------------------


def test_what_was_saved_comes_back_exactly(saved):
    found = load(saved)
    assert found["spec"] == tiny_spec(mode="muP")
    assert same({key: found[key] for key in CONTENT}, CONTENT)
    assert found.keys() - CONTENT.keys() == {"format", "schema", "spec"}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_training_state_comes_back_exactly(tmp_path, optimizer):
    config = tiny_config(optimizer=optimizer, bias=True)
    model = GPT(config)
    optimizers = Optimizers(model, model.rules)
    model(torch.zeros(1, 8, dtype=torch.long), torch.ones(1, 8, dtype=torch.long))[1].backward()
    for part in optimizers.parts:
        part.step()
    state = {"model": model.state_dict(), "optimizer": optimizers.state()}
    save(tmp_path / "ckpt.pt", tiny_spec(optimizer=optimizer, bias=True), **state)
    found = load(tmp_path / "ckpt.pt")
    assert same({key: found[key] for key in state}, {k: dict(v) for k, v in state.items()})


def test_saving_again_replaces_the_whole_file(saved):
    save(saved, tiny_spec(), step=9)
    found = load(saved)
    assert (found["step"], found["spec"]) == (9, tiny_spec())
    assert "model" not in found
    assert [p.name for p in saved.parent.iterdir()] == ["ckpt.pt"]


def test_a_slice_of_a_big_tensor_is_saved_as_itself(tmp_path):
    big = torch.arange(100_000.0)
    save(tmp_path / "ckpt.pt", tiny_spec(), part=big[10:20])
    assert torch.equal(load(tmp_path / "ckpt.pt")["part"], big[10:20])


def test_only_plain_types_and_tensors_are_saved(tmp_path):
    for odd in ({1, 2}, object(), b"bytes", float("nan"), [torch.ones(1)]):
        with pytest.raises((TypeError, ValueError)):
            save(tmp_path / "ckpt.pt", tiny_spec(), odd=odd)
    assert not list(tmp_path.iterdir())


class FullDisk(io.FileIO):
    """A file on a disk with room for `room` bytes."""

    room = 0

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.mark.parametrize("room", [0, 1, 100, 1000, 3000])
def test_a_disk_that_fills_while_saving_keeps_the_old_checkpoint(saved, monkeypatch, room):
    before = saved.read_bytes()
    assert len(before) > 3000
    monkeypatch.setattr(FullDisk, "room", room)
    monkeypatch.setattr(checkpoint, "open", FullDisk, raising=False)
    with pytest.raises(UserError, match="no space left"):
        save(saved, tiny_spec(), **CONTENT)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["ckpt.pt"]


# --- damage ------------------------------------------------------------------------------------


def test_a_file_cut_anywhere_is_refused(saved):
    whole = saved.read_bytes()
    for cut in {*range(5), *range(5, len(whole), 100), *range(len(whole) - 30, len(whole))}:
        saved.write_bytes(whole[:cut])
        assert "delete it" in refusal(saved)


@pytest.mark.slow
def test_a_flipped_byte_is_refused_or_was_padding(saved):
    whole, expected = saved.read_bytes(), load(saved)
    rng = random.Random(0)
    ends = [*range(80), *range(len(whole) - 120, len(whole))]
    offsets = ends + rng.sample(range(len(whole)), 400)
    refused = 0
    for offset in offsets:
        flipped = bytearray(whole)
        flipped[offset] ^= 1 << rng.randrange(8)
        saved.write_bytes(flipped)
        try:
            found = load(saved)
        except UserError:
            refused += 1
            continue
        assert same(found, expected), offset
    assert refused > len(offsets) // 3


def test_every_value_is_under_the_checksum(tmp_path):
    base = digest(CONTENT)
    for path in (
        ("step",),
        ("scaler", "flag"),
        ("model", "a.weight"),
        ("model", "a.bias"),
        ("model", "tensor.of.nothing"),
        ("optimizer", "a.weight", "step"),
        ("optimizer", "a.bias", "mask"),
    ):
        changed = {k: dict(v) if isinstance(v, dict) else v for k, v in CONTENT.items()}
        at = changed
        for key in path[:-1]:
            at[key] = dict(at[key])
            at = at[key]
        old = at.pop(path[-1])
        assert digest(changed) != base, path
        at[path[-1] + "_renamed"] = old
        assert digest(changed) != base, path
    w = torch.arange(6.0)
    values = [w, w.view(2, 3), w.view(3, 2), w.double(), w.int(), w.flip(0), w * (1 + 1e-7)]
    assert len({digest({"x": v}) for v in values}) == len(values)
    assert digest({"x": w.view(2, 3).T}) == digest({"x": w.view(2, 3).T.contiguous()})
    assert digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    assert digest({"a": None}) != digest({"a": "null"}) != digest({"a": 0})


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p["model"]["a.weight"].add_(1e-6),
        lambda p: p.update(step=8),
        lambda p: p.update(checksum=None),
        lambda p: p.pop("checksum"),
        lambda p: p.update(extra=1),
        lambda p: p.update({1: 2}),
        lambda p: p.update(x={1, 2}),
        lambda p: p.update(x=torch.eye(2).to_sparse()),
        lambda p: p["spec"]["config"].update(seed=5),
    ],
)
def test_a_change_behind_the_checksums_back_is_damage(saved, change):
    payload = torch.load(saved, weights_only=True)
    change(payload)
    torch.save(payload, saved)
    assert "damaged" in refusal(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.pop("spec"),
        lambda p: p.update(spec=None),
        lambda p: p["spec"].update(id="0"),
        lambda p: p["spec"]["config"].update(n_layer=0),
    ],
)
def test_a_forged_checksum_does_not_forge_an_identity(saved, change):
    payload = torch.load(saved, weights_only=True)
    del payload["checksum"]
    change(payload)
    torch.save(payload | {"checksum": digest(payload)}, saved)
    with pytest.raises(UserError):
        load(saved)


# --- strangers ---------------------------------------------------------------------------------


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize(
    "write",
    [
        lambda value, path: torch.save(value, path),
        lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
        lambda value, path: path.write_bytes(pickle.dumps(value)),
        lambda value, path: path.write_bytes(pickle.dumps(value, protocol=0)),
    ],
)
def test_code_in_a_file_is_not_run(tmp_path, write):
    mark, path = tmp_path / "was_run", tmp_path / "ckpt.pt"
    write({"format": "nanoscale", "schema": 1, "model": Malicious(mark)}, path)
    assert "none was run" in refusal(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Malicious(mark)))
    assert mark.exists()  # it would have


def test_a_nanogpt_checkpoint_is_named_as_what_it_is(tmp_path):
    path = tmp_path / "ckpt.pt"
    model = torch.nn.Linear(2, 2)
    torch.save(
        {
            "model": model.state_dict(),
            "optimizer": torch.optim.AdamW(model.parameters()).state_dict(),
            "model_args": {"n_layer": 6},
            "iter_num": 5000,
            "best_val_loss": torch.tensor(1.47),
            "config": {"out_dir": "out"},
        },
        path,
    )
    assert "a nanoGPT checkpoint" in refusal(path)


@pytest.mark.parametrize(
    "value", [{"weight": torch.ones(2)}, [1, 2], torch.ones(2), None, {"format": "other"}]
)
def test_another_programs_file_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "ckpt.pt")
    assert "another program" in refusal(tmp_path / "ckpt.pt")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"\x80\x02.", os.urandom(500)])
def test_what_is_no_checkpoint_at_all_is_refused(tmp_path, content):
    (tmp_path / "ckpt.pt").write_bytes(content)
    assert "not a readable checkpoint" in refusal(tmp_path / "ckpt.pt")


def test_another_schema_is_refused_by_number(saved, monkeypatch):
    monkeypatch.setattr(checkpoint_file, "CHECKPOINT_SCHEMA", 2)
    assert "checkpoint schema 1, this version reads 2" in refusal(saved)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "no such checkpoint" in refusal(tmp_path / "ckpt.pt")
    assert "no such checkpoint" in refusal(tmp_path)


def test_the_spec_in_a_checkpoint_is_the_records(saved, tmp_path):
    write_json(tmp_path / "spec.json", tiny_spec(mode="muP").to_json())
    stored = torch.load(saved, weights_only=True)["spec"]
    assert stored == read_json(tmp_path / "spec.json")
