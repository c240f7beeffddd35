"""Token files of another type than uint16 are read as what they are, or refused with the remedy."""

from __future__ import annotations

import gzip
import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny import RUN, spec_maker

from nanoscale.data import dataset as data
from nanoscale.data.dataset import open_dataset
from nanoscale.data.formats import _other_type
from nanoscale.data.meta import Meta
from nanoscale.errors import UserError
from nanoscale.store.resume import open_folder
from nanoscale.training.run import train_folder

TOKENS = np.arange(4000) * 7919 % 50_000


def token_folder(folder: Path, dtype: str, meta: dict | None = None, tokens=TOKENS) -> Path:
    folder.mkdir(parents=True)
    for split in data.SPLITS:
        tokens.astype(dtype).tofile(folder / f"{split}.bin")
    if meta is not None:
        (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_dataset(str(folder))
    return str(caught.value)


def convert(message: str) -> None:
    """Do to the file what the refusal says."""
    command = re.search("`(.*)`", message).group(1)
    eval(command, {"np": np})


@pytest.mark.parametrize("dtype", ["<u4", "<i4", "<i8", "<u8"])
@pytest.mark.parametrize("meta", [None, {"vocab_size": 50_304}])
def test_wider_tokens_are_refused_and_their_conversion_works(tmp_path, dtype, meta):
    folder = token_folder(tmp_path / "wide", dtype, meta)
    for split in data.SPLITS:
        message = refusal(folder)
        assert f"{split}.bin" in message
        assert "wider type" in message
        convert(message)
    opened = open_dataset(str(folder))
    assert np.array_equal(opened.tokens["val"], TOKENS)


def test_a_meta_makes_tokens_uint32(tmp_path):
    tokens = TOKENS + 70_000
    meta = {"vocab_size": 128_256, "dtype": "uint32"}
    opened = open_dataset(str(token_folder(tmp_path / "wide", "<u4", meta, tokens)))
    assert np.array_equal(opened.tokens["train"], tokens)

    folder = token_folder(tmp_path / "wider", "<i8", meta, tokens)
    for _ in data.SPLITS:
        convert(refusal(folder))
    assert np.array_equal(open_dataset(str(folder)).tokens["train"], tokens)


def test_our_meta_makes_tokens_uint32_too(tmp_path):
    folder = token_folder(tmp_path / "wide", "<u4", tokens=TOKENS % 2)
    splits = {split: {"tokens": len(TOKENS), "bytes": 1, "sha256": ""} for split in data.SPLITS}
    meta = {"schema": 1, "kind": "char", "vocab_size": 2, "itos": ["a", "b"], "splits": splits}
    (folder / "meta.json").write_text(json.dumps(meta | {"dtype": "uint32"}))
    wide = open_dataset(str(folder))
    assert wide.tokens["val"].tolist() == (TOKENS % 2).tolist()
    (folder / "meta.json").write_text(json.dumps(meta | {"dtype": "int64"}))
    assert "names dtype 'int64'; tokens are 'uint16' or 'uint32'" in refusal(folder)


def test_the_same_bytes_of_another_type_are_another_dataset(tmp_path):
    meta = {"vocab_size": 60_000}
    one = token_folder(tmp_path / "one", "<u4", meta | {"dtype": "uint16"})
    other = token_folder(tmp_path / "other", "<u4", meta | {"dtype": "uint32"})
    assert len(open_dataset(str(one)).tokens["val"]) == 2 * len(TOKENS)
    assert open_dataset(str(one)).fingerprint != open_dataset(str(other)).fingerprint


def test_a_vocabulary_that_uint16_cannot_number_is_refused(tmp_path):
    folder = token_folder(tmp_path / "big", "<u2", {"vocab_size": 65_537})
    assert "65,537 symbols" in refusal(folder)
    assert "'dtype': 'uint32'" in refusal(folder)
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 65_536}))
    assert open_dataset(str(folder)).vocab_size == 65_536


@pytest.mark.parametrize("magic", [20240520, 20240801])
def test_the_header_of_llm_c_is_refused_and_comes_off(tmp_path, magic):
    dtype = {20240520: "<u2", 20240801: "<u4"}[magic]
    meta = {"vocab_size": 70_000, "dtype": "uint32"} if dtype == "<u4" else None
    folder = token_folder(tmp_path / "llmc", dtype, meta)
    header = np.zeros(256, "<i4")
    header[:3] = magic, 1, len(TOKENS)
    for split in data.SPLITS:
        path = folder / f"{split}.bin"
        path.write_bytes(header.tobytes() + path.read_bytes())
    for _ in data.SPLITS:
        message = refusal(folder)
        assert "llm.c's header" in message
        convert(message)
    assert np.array_equal(open_dataset(str(folder)).tokens["val"], TOKENS)


@pytest.mark.parametrize("tokens", [np.zeros(4000), np.eye(1, 4000), np.arange(14) * 2 % 4])
def test_honest_zeros_are_read(tmp_path, tokens):
    open_dataset(str(token_folder(tmp_path / "zeros", "<u2", tokens=tokens[:4000].ravel())))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_foreign_token_in_a_big_file_is_named_when_it_is_met(tmp_path, monkeypatch, split):
    monkeypatch.setattr(data, "BLOCK", 8)
    monkeypatch.setattr(data, "WHOLE", 64)
    monkeypatch.setattr(data, "SAMPLED_BLOCKS", 4)
    folder = token_folder(tmp_path / "big", "<u2", {"vocab_size": 30}, np.arange(400) % 30)
    tokens = np.fromfile(folder / f"{split}.bin", "<u2")
    tokens[5:100] = 30
    tokens.tofile(folder / f"{split}.bin")
    data._fingerprint.cache_clear()
    spec = spec_maker(RUN, tmp_path)(dataset="big", max_iters=40, data_order="epoch")
    run = open_folder(tmp_path / "run", spec, False)
    with pytest.raises(UserError, match=rf"{split}\.bin holds token 30 at place 5, but"):
        train_folder(run)
    data._fingerprint.cache_clear()


def test_a_foreign_token_is_named_where_bytes_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "BLOCK", 8)
    monkeypatch.setattr(data, "WHOLE", 64)
    monkeypatch.setattr(data, "SAMPLED_BLOCKS", 4)
    tokens = np.arange(400) % 3
    tokens[7] = 3
    meta = {"vocab_size": 3, "itos": dict(enumerate("abc"))}
    folder = token_folder(tmp_path / "big", "<u2", meta, tokens)
    shutil.copy(folder / "val.bin", tmp_path / "val_more.bin")
    with pytest.raises(UserError, match=r"val\.bin holds token 3 at place 7"):
        open_dataset(str(folder)).bytes_per_token("val")
    (tmp_path / "val_more.bin").rename(folder / "val_more.bin")
    with pytest.raises(UserError, match=r"val_more\.bin holds token 3 at place 7"):
        open_dataset(str(folder))


# -- numbers of other types -----------------------------------------------------------------------
SMALL = TOKENS % 65
OTHERS = {
    "float32": ("<f4", TOKENS, None),
    "float64": ("<f8", TOKENS, {"vocab_size": 65_536}),
    "float16": ("<f2", SMALL, {"vocab_size": 2048}),
    "big-endian float32": (">f4", TOKENS, None),
    "big-endian uint16": (">u2", TOKENS, None),
    "big-endian uint32": (">u4", TOKENS, {"vocab_size": 50_000}),
    "big-endian uint64": (">u8", TOKENS, {"vocab_size": 65_536}),
    "uint8": ("u1", SMALL, None),
}


@pytest.mark.parametrize("tokens", ["some", "small ones", "of a small vocabulary"])
@pytest.mark.parametrize("name", OTHERS)
def test_numbers_of_another_type_are_refused_and_their_conversion_works(tmp_path, name, tokens):
    dtype, most, meta = OTHERS[name]
    if tokens != "some" and name != "float16":
        most = SMALL
        meta = {"vocab_size": 65} if tokens == "of a small vocabulary" else None
    folder = token_folder(tmp_path / "odd", dtype, meta, most.repeat(2))
    for split in data.SPLITS:
        message = refusal(folder)
        assert f"{split}.bin holds {name} numbers, not uint16 tokens" in message
        convert(message)
    assert np.array_equal(open_dataset(str(folder)).tokens["val"], most.repeat(2))


def test_a_text_is_no_token_file(tmp_path):
    folder = token_folder(
        tmp_path / "text", "u1", None, np.frombuffer(Path(__file__).read_bytes()[:8000], "u1")
    )
    assert "holds uint8 numbers" in refusal(folder)
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 65_536}))  # pairs of letters, say
    open_dataset(str(folder))


@pytest.mark.parametrize("vocab_size", [5000, 65_536])
def test_ids_that_float16_rounds_are_not_converted(tmp_path, vocab_size):
    folder = token_folder(tmp_path / "half", "<f2", {"vocab_size": vocab_size}, TOKENS % 5000)
    assert "rounds ids above 2,048: prepare the dataset again" in refusal(folder)


def test_a_file_of_another_format_is_refused_by_what_it_begins_with(tmp_path):
    folder = token_folder(tmp_path / "npy", "<u2")
    for split in data.SPLITS:
        with open(folder / f"{split}.bin", "wb") as file:
            np.save(file, TOKENS.reshape(2, -1))
    for _ in data.SPLITS:
        message = refusal(folder)
        assert "is a .npy file" in message
        convert(message)
    assert np.array_equal(open_dataset(str(folder)).tokens["val"], TOKENS)
    with open(folder / "train.bin", "wb") as file:
        np.savez(file, TOKENS)
    assert "train.bin is a zip archive" in refusal(folder)
    (folder / "train.bin").write_bytes(gzip.compress(TOKENS.tobytes()))
    assert "train.bin is compressed by gzip" in refusal(folder)


@pytest.mark.parametrize("vocab_size", [2, 16, 65, 256, 300, 20_000, 50_304, 65_536])
def test_tokens_are_never_taken_for_another_type(vocab_size):
    random = np.random.default_rng(vocab_size)
    meta = Meta("gpt2" if vocab_size == 50_304 else "char", vocab_size)
    for n in (1, 2, 17, 100, 9000):
        drawn = random.integers(0, vocab_size, n)
        steps = np.arange(n)
        for tokens in (
            drawn,
            np.minimum(random.zipf(1.3, n) - 1, vocab_size - 1),
            steps % vocab_size,
            steps * 7919 % vocab_size,
            drawn[:1].repeat(n),
            np.where(steps % 2, drawn, drawn[0]),
            np.resize(drawn[:5], n),
            drawn // 100 + vocab_size // 2 * (drawn > 0),
            drawn // 128 * 128,
            steps % 2 * 256,
        ):
            raw = np.minimum(tokens, vocab_size - 1).astype("<u2").tobytes()
            assert _other_type(raw, data.TOKEN, meta) is None
