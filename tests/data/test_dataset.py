"""The data layer against tiny brute-force versions of itself, and against hostile folders."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from tiny import ROOT

from nanoscale.data import dataset as data
from nanoscale.data.dataset import (
    TrainingSamples,
    evaluation_windows,
    open_dataset,
    philox_words,
    windows,
)
from nanoscale.data.tokenizer import gpt2_encoding
from nanoscale.errors import UserError
from nanoscale.spec.config import all_fields

TEXT = "the cat sat on the mat, the dog sat on the log.\n"


def nanogpt_folder(folder: Path, text: str = TEXT, meta: bool = True) -> Path:
    """A data folder made the way nanoGPT makes one, token by token."""
    folder.mkdir(parents=True)
    chars = sorted(set(text))
    stoi = {c: i for i, c in enumerate(chars)}
    cut = int(len(text) * 0.9)
    for split, part in (("train", text[:cut]), ("val", text[cut:])):
        np.array([stoi[c] for c in part], dtype=np.uint16).tofile(folder / f"{split}.bin")
    if meta:
        table = {"vocab_size": len(chars), "itos": dict(enumerate(chars)), "stoi": stoi}
        (folder / "meta.pkl").write_bytes(pickle.dumps(table))
    return folder


def refusal(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- random words ------------------------------------------------------------------------------


def philox_block(key: tuple[int, int], counter: tuple[int, int, int, int]) -> list[int]:
    """Philox-4x64-10 from the paper's definition, in plain integers."""
    mask = 2**64 - 1
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(10):
        p0, p1 = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (p1 >> 64) ^ c1 ^ k0, p1 & mask, (p0 >> 64) ^ c3 ^ k1, p0 & mask
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & mask, (k1 + 0xBB67AE8584CAA73B) & mask
    return [c0, c1, c2, c3]


@pytest.mark.parametrize("seed", [0, 1337, 2**63 - 1])
@pytest.mark.parametrize("first", [0, 1, 7, 2**40 + 3])
def test_words_are_the_papers(seed, first):
    words = philox_words(seed, 5, 11, first, 9)
    expected = []
    for i in range(first, first + 9):
        expected.append(philox_block((seed, 5), (1 + i // 4, 11, 0, 0))[i % 4])
    assert words.tolist() == expected


def test_uniform_integers_stay_below_their_bound():
    words = np.array([0, 2**64 - 1, 2**63], np.uint64)
    for n in (1, 2, 3, 1003854 - 64, 2**40 + 1, 2**52):
        assert data.uniform_integers(words, n).tolist() == [0, n - 1, n // 2]


# --- samples -----------------------------------------------------------------------------------

ORDERS = pytest.mark.parametrize("order", all_fields()["data_order"].choices)


def starts_of(samples: TrainingSamples, first: int, count: int) -> list[int]:
    """Where the samples begin, read off a batch of the tokens 0, 1, 2, ..."""
    return samples.batch(first, count)[0][:, 0].tolist()


def counting_tokens(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.uint16)


def test_the_numbers_of_the_samples_never_change():
    frozen = {
        ("random", 1337, 0): [485, 736, 901, 96, 923, 753],
        ("random", 0, 10**9): [717, 675, 21, 152, 128, 834],
        ("epoch", 1337, 0): [358, 294, 806, 486, 166, 742],
        ("epoch", 2**63 - 1, 1500): [241, 305, 177, 689, 625, 561],
    }
    tokens = counting_tokens(1000)
    for (order, seed, first), expected in frozen.items():
        assert starts_of(TrainingSamples(tokens, 64, seed, order), first, 6) == expected


@ORDERS
def test_a_batch_is_its_samples_in_any_order_and_split(order):
    tokens = counting_tokens(500)
    x, y = TrainingSamples(tokens, 16, 7, order).batch(20, 60)
    fresh = TrainingSamples(tokens, 16, 7, order)
    for i in (59, 0, 31, 30, 12):
        one_x, one_y = fresh.batch(20 + i, 1)
        assert (one_x[0] == x[i]).all()
        assert (one_y[0] == y[i]).all()
    for cut in (1, 13, 40, 59):
        parts = fresh.batch(20 + cut, 60 - cut), fresh.batch(20, cut)
        assert np.array_equal(np.concatenate([parts[1][0], parts[0][0]]), x)
        assert np.array_equal(np.concatenate([parts[1][1], parts[0][1]]), y)


@ORDERS
def test_batches_are_shifted_slices_of_the_file(order, tmp_path):
    folder = nanogpt_folder(tmp_path / "cats")
    tokens = np.memmap(folder / "train.bin", np.uint16, "r")
    x, y = TrainingSamples(tokens, 5, 3, order).batch(0, 50)
    assert x.dtype == y.dtype == np.int64
    assert x.shape == y.shape == (50, 5)
    assert x.flags.c_contiguous
    assert y.flags.c_contiguous
    slices = {tuple(tokens[i : i + 6].tolist()) for i in range(len(tokens) - 5)}
    assert all((*a, b[-1]) in slices for a, b in zip(x.tolist(), y.tolist(), strict=True))
    assert (x[:, 1:] == y[:, :-1]).all()


@ORDERS
def test_seeds_give_different_orders(order):
    tokens = counting_tokens(5000)
    seeds = (0, 1, 2, 1337, 2**63 - 1)
    assert len(
        {tuple(starts_of(TrainingSamples(tokens, 8, s, order), 0, 20)) for s in seeds}
    ) == len(seeds)


def test_random_starts_are_uniform_over_every_possible_start():
    samples = TrainingSamples(counting_tokens(64 + 100), 64, 1337, "random")
    counts = np.bincount(starts_of(samples, 0, 50_000))
    assert len(counts) == 100
    chi_squared = ((counts - 500) ** 2 / 500).sum()
    assert abs(chi_squared - 99) < 4 * math.sqrt(2 * 99)


@pytest.mark.parametrize("n", [9, 10, 15, 16, 17, 23, 24, 25, 100, 103])
def test_an_epoch_holds_each_window_once(n):
    samples = TrainingSamples(counting_tokens(n), 8, 5, "epoch")
    size = samples.windows_per_epoch
    assert size == max(1, (n - 8) // 8)
    orders, phases = set(), set()
    for epoch in range(40):
        starts = starts_of(samples, epoch * size, size)
        phase = min(starts)
        assert sorted(starts) == list(range(phase, phase + size * 8, 8))
        assert max(starts) + 8 < n
        assert phase < 8
        orders.add(tuple(s - phase for s in starts))
        phases.add(phase)
    assert phases == set(range(min(8, n - size * 8)))
    assert len(orders) > 1 or size == 1


def test_a_batch_may_span_many_epochs():
    samples = TrainingSamples(counting_tokens(40), 8, 5, "epoch")
    assert samples.windows_per_epoch == 4
    whole = starts_of(samples, 2, 31)
    assert whole == [s for i in range(2, 33) for s in starts_of(samples, i, 1)]


def test_short_splits_are_refused(tmp_path):
    folder = nanogpt_folder(tmp_path / "cats")
    tokens = np.memmap(folder / "train.bin", np.uint16, "r")
    n = len(tokens)
    TrainingSamples(tokens, n - 1, 0, "random").batch(0, 3)
    message = refusal(TrainingSamples, tokens, n, 0, "random")
    assert "train.bin" in message
    assert f"{n} tokens" in message
    assert f"block_size={n}" in message
    assert f"{n + 1}" in message
    assert "lower block_size" in message
    assert "evaluated split" in refusal(evaluation_windows, 8, 8, 4)


# --- evaluation windows ------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "block_size"), [(9, 8), (16, 8), (17, 8), (1000, 8), (111540, 64)])
@pytest.mark.parametrize("limit", [1, 2, 7, 124, 10**6])
def test_evaluation_windows_are_distinct_even_and_fixed(n, block_size, limit):
    every = [s for s in range(0, n, block_size) if s + block_size + 1 <= n]
    starts = evaluation_windows(n, block_size, limit).tolist()
    k = min(limit, len(every))
    assert starts == [every[i * len(every) // k] for i in range(k)]
    assert len(set(starts)) == k
    gaps = set(np.diff(starts).tolist())
    assert max(gaps, default=0) - min(gaps, default=0) <= block_size
    assert starts == evaluation_windows(n, block_size, limit).tolist()


def test_all_windows_predict_every_token_but_the_first_once():
    x, y = windows(counting_tokens(65), evaluation_windows(65, 8, 10**6), 8)
    assert y.ravel().tolist() == list(range(1, 65))
    assert x.ravel().tolist() == list(range(64))


def test_no_window_wanted_is_none():
    assert evaluation_windows(100, 8, 0).shape == (0,)


# --- opening folders ---------------------------------------------------------------------------


def test_a_nanogpt_folder_opens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nanogpt_folder(Path("data/cats"))
    cats = open_dataset("cats")
    assert (cats.name, cats.folder, cats.meta.kind) == ("cats", Path("data/cats"), "char")
    assert cats.vocab_size == len(set(TEXT))
    cut = int(len(TEXT) * 0.9)
    assert cats.decode(cats.tokens["train"].tolist()) == TEXT[:cut]
    assert cats.decode(cats.tokens["val"]) == TEXT[cut:]
    assert cats.encode(TEXT[cut:]) == cats.tokens["val"].tolist()
    assert cats.tokens["train"].dtype == np.uint16
    assert [cats.bytes_per_token(split) for split in data.SPLITS] == [1.0, 1.0]


def test_bytes_per_token_are_counted(tmp_path):
    text = "naïve Œuvre — 日本語 😀 plain words at the end, longer ones"
    folder = nanogpt_folder(tmp_path / "mixed", text)
    cut = int(len(text) * 0.9)
    measured = open_dataset(str(folder)).bytes_per_token
    for split, part in (("train", text[:cut]), ("val", text[cut:])):
        assert measured(split) == len(part.encode()) / len(part)
    assert measured("train") > 1.2


@pytest.mark.parametrize("named", [{0: "a", 1: "b"}, {0: "a", 1: "b", 2: "", 3: "d"}, ["a", "b"]])
def test_bytes_per_token_are_unknown_where_a_token_has_no_symbol(tmp_path, named):
    folder = tmp_path / "partial"
    folder.mkdir()
    np.array([0, 1] * 20, "<u2").tofile(folder / "train.bin")
    np.array([0, 1, 2] * 20, "<u2").tofile(folder / "val.bin")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 4, "itos": named}))
    for split in data.SPLITS:
        shutil.copy(folder / f"{split}.bin", folder / f"val_{split}_again.bin")
    measured = open_dataset(str(folder)).bytes_per_token
    assert (measured("train"), measured("val")) == (1.0, None)  # ids that pad do no harm
    assert (measured("train_again"), measured("val_again")) == (1.0, None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("val_train.bin", "val_train.bin cannot be a set beside train and val; give it another"),
        ("val_val.bin", "val_val.bin cannot be a set beside"),
        ("val_x.bin", "val_x.bin is no file of tokens; move it away"),
    ],
)
def test_what_cannot_be_a_further_set_is_named(tmp_path, name, words):
    folder = nanogpt_folder(tmp_path / "cats")
    (folder / name).mkdir()
    message = refusal(open_dataset, str(folder))
    assert words in message
    assert "val_sets" not in message
    assert open_dataset(str(folder), val_sets=("val",)).val_sets == ("val",)


def test_a_folder_without_meta_is_gpt2(tmp_path, monkeypatch):
    folder = nanogpt_folder(tmp_path / "bare", meta=False)
    bare = open_dataset(str(folder))
    assert bare.vocab_size == 50304
    assert bare.meta.kind == "gpt2"
    assert [bare.bytes_per_token(split) for split in data.SPLITS] == [None, None]

    monkeypatch.setitem(sys.modules, "tiktoken", None)
    gpt2_encoding.cache_clear()
    assert "pip install 'nanoscale[hf]'" in refusal(bare.encode, "hi")

    class Encoding:
        n_vocab = 50257
        encode = staticmethod(lambda text, allowed_special: [len(text), *allowed_special])
        decode = staticmethod(lambda ids: repr(ids))

    fake = types.SimpleNamespace(get_encoding={"gpt2": Encoding}.__getitem__)
    monkeypatch.setitem(sys.modules, "tiktoken", fake)
    assert bare.encode("hi") == [2, "<|endoftext|>"]
    assert bare.decode([50256, 50257, 50303]) == "[50256]"
    gpt2_encoding.cache_clear()


def test_a_tiktoken_without_its_table_is_refused(tmp_path, monkeypatch):
    def offline(name):
        raise RuntimeError("no route to host")

    monkeypatch.setitem(sys.modules, "tiktoken", types.SimpleNamespace(get_encoding=offline))
    gpt2_encoding.cache_clear()
    folder = nanogpt_folder(tmp_path / "bare", meta=False)
    assert "no route to host" in refusal(open_dataset(str(folder)).decode, [1])
    gpt2_encoding.cache_clear()


def test_unknown_characters_are_named(tmp_path):
    cats = open_dataset(str(nanogpt_folder(tmp_path / "cats")))
    message = refusal(cats.encode, "the café costs 5€")
    assert "'é'" in message
    assert "'€'" in message
    assert "'5'" in message
    assert "'t'" not in message
    assert str(cats.vocab_size) in message


def test_folders_are_looked_up_here_then_in_the_clone_then_as_paths(tmp_path, monkeypatch):
    clone, here = tmp_path / "clone", tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(data, "CLONE", clone)
    nanogpt_folder(Path("cats"))
    assert data.dataset_folder("cats") == Path("cats")
    nanogpt_folder(clone / "data" / "cats")
    assert data.dataset_folder("cats") == clone / "data" / "cats"
    nanogpt_folder(Path("data/cats"))
    assert data.dataset_folder("cats") == Path("data/cats")
    nanogpt_folder(here / "elsewhere" / "cats")
    assert data.dataset_folder("cats", "elsewhere") == Path("elsewhere/cats")
    assert data.dataset_folder(str(here / "cats")) == here / "cats"


def test_unprepared_and_misspelt_names_get_the_remedy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clone = tmp_path / "clone"
    monkeypatch.setattr(data, "CLONE", clone)
    Path("data/pysource").mkdir(parents=True)  # a door alone is not a prepared dataset
    assert "run `nanoscale data prepare pysource`" in refusal(open_dataset, "pysource")
    assert "prepare text --input FILE`" in refusal(open_dataset, "text")
    assert "--out there/synthetic`" in refusal(open_dataset, "synthetic", "there")
    message = refusal(open_dataset, "shakespear_char")
    assert "'shakespear_char'" in message
    assert "did you mean 'shakespeare_char'" in message
    nanogpt_folder(Path("data/notes"))
    assert "did you mean 'notes'" in refusal(open_dataset, "ntes")
    for odd in ("", "x" * 5000, "no/such/thing", "a\0b"):
        assert "nanoscale data prepare NAME" in refusal(open_dataset, odd)


def test_pysource_carries_its_hash_in_its_name(tmp_path):
    folder = tmp_path / "pysource"
    folder.mkdir()
    for split in data.SPLITS:
        np.frombuffer(b"import this\n", np.uint8).astype("<u2").tofile(folder / f"{split}.bin")
    splits = {split: {"tokens": 12, "bytes": 12, "sha256": ""} for split in data.SPLITS}
    meta = {"schema": 1, "dataset": "pysource", "kind": "byte", "vocab_size": 256, "itos": None}
    (folder / "meta.json").write_text(json.dumps(meta | {"splits": splits}))
    opened = open_dataset(str(folder))
    assert opened.name == f"pysource-{opened.fingerprint[:8]}"
    assert [opened.bytes_per_token(split) for split in data.SPLITS] == [1.0, 1.0]
    assert opened.encode("é") == [0xC3, 0xA9]
    assert opened.decode([0xC3, 0xA9, 0xFF]) == "é\ufffd"
    assert "UTF-8" in refusal(opened.encode, "\udcff")


# --- the fingerprint ---------------------------------------------------------------------------


def test_the_fingerprint_is_of_sizes_and_bytes_alone(tmp_path):
    one, two = (nanogpt_folder(tmp_path / name) for name in ("one", "two"))
    os.utime(two / "val.bin", (0, 0))
    expected = hashlib.sha256()
    for split in data.SPLITS:
        raw = (one / f"{split}.bin").read_bytes()
        expected.update(f"{split}.bin {len(raw)}\n".encode() + raw)
    assert open_dataset(str(one)).fingerprint == expected.hexdigest()
    assert open_dataset(str(two)).fingerprint == expected.hexdigest()


def test_a_changed_file_changes_the_fingerprint_within_the_process(tmp_path):
    folder = nanogpt_folder(tmp_path / "cats")
    seen = {open_dataset(str(folder)).fingerprint}
    for i, split in enumerate((*data.SPLITS, *data.SPLITS), start=1):
        tokens = np.fromfile(folder / f"{split}.bin", np.uint16)
        tokens[i] = (tokens[i] + 1) % 5
        tokens.tofile(folder / f"{split}.bin")
        os.utime(folder / f"{split}.bin", (i, i))
        seen.add(open_dataset(str(folder)).fingerprint)
    assert len(seen) == 5


@pytest.mark.slow
def test_large_files_are_fingerprinted_by_evenly_spaced_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "BLOCK", 8)
    monkeypatch.setattr(data, "WHOLE", 64)
    monkeypatch.setattr(data, "SAMPLED_BLOCKS", 4)
    path = tmp_path / "train.bin"
    size = 202
    raw = bytes(i % 250 for i in range(size))

    def digest(content: bytes) -> str:
        path.write_bytes(content)
        data._fingerprint.cache_clear()
        return data._fingerprint(((str(path), len(content), 0),))[0]

    counted = {i for i in range(size) if digest(raw[:i] + b"\xff" + raw[i + 1 :]) != digest(raw)}
    starts = (0, 64, 128, 194)
    assert counted == {s + i for s in starts for i in range(8)}
    small = raw[:64]
    assert all(digest(small[:i] + b"\xff" + small[i + 1 :]) != digest(small) for i in range(64))
    data._fingerprint.cache_clear()


# --- hostile and damaged folders ---------------------------------------------------------------


def truncate(folder):
    (folder / "train.bin").write_bytes((folder / "train.bin").read_bytes()[:-1])


def foreign_tokens(folder):
    np.array([1, 2, 900, 3], np.uint16).tofile(folder / "val.bin")


DAMAGE = {
    "train.bin is missing": lambda folder: (folder / "train.bin").unlink(),
    "val.bin is missing": lambda folder: (folder / "val.bin").unlink(),
    "val.bin is empty": lambda folder: (folder / "val.bin").write_bytes(b""),
    "odd length": truncate,
    "val.bin holds token 900": foreign_tokens,
    "is not a readable pickle": lambda folder: (folder / "meta.pkl").write_bytes(b"\x80\x04}"),
    "has no vocab_size": lambda folder: (folder / "meta.pkl").write_bytes(pickle.dumps([1])),
    "is not a meta file": lambda folder: (folder / "meta.json").write_text("{"),
    "of a newer nanoscale": lambda folder: (folder / "meta.json").write_text(meta_json(schema=99)),
    "cannot read": lambda folder: (folder / "meta.json").mkdir(),
    "describes 7": lambda folder: (folder / "meta.json").write_text(meta_json()),
}


def meta_json(**changes) -> str:
    symbols = sorted(set(TEXT))
    splits = {split: {"tokens": 7, "bytes": 7, "sha256": ""} for split in data.SPLITS}
    meta = {"schema": 1, "kind": "char", "vocab_size": len(symbols), "itos": symbols}
    return json.dumps(meta | {"splits": splits} | changes)


@pytest.mark.parametrize("expected", DAMAGE)
def test_damage_is_named_in_one_line(tmp_path, expected):
    folder = nanogpt_folder(tmp_path / "cats")
    DAMAGE[expected](folder)
    message = refusal(open_dataset, str(folder))
    assert expected in message
    assert "cats" in message


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": "65"},
        {"vocab_size": 3},
        {"itos": None},
        {"itos": {}},
        {"itos": [1]},
        {"kind": "gpt9"},
        {"kind": "byte"},
        {"splits": {}},
        {"splits": 3},
        {"schema": None},
    ],
    ids=str,
)
def test_a_malformed_meta_json_is_refused(tmp_path, changes):
    folder = nanogpt_folder(tmp_path / "cats")
    (folder / "meta.json").write_text(meta_json(**changes))
    assert "not a meta file of ours" in refusal(open_dataset, str(folder))


@pytest.mark.parametrize(
    "table",
    [
        None,
        {},
        {"vocab_size": -1},
        {"vocab_size": True},
        {"vocab_size": 20, "itos": 5},
        {"vocab_size": 20, "itos": {99: "a"}},
        {"vocab_size": 20, "itos": {"a": 1}},
    ],
    ids=str,
)
def test_a_malformed_meta_pkl_is_refused(tmp_path, table):
    folder = nanogpt_folder(tmp_path / "cats")
    (folder / "meta.pkl").write_bytes(pickle.dumps(table))
    assert "meta.pkl" in refusal(open_dataset, str(folder))


def test_a_meta_of_bare_ids_trains_but_does_not_speak(tmp_path):
    folder = nanogpt_folder(tmp_path / "cats")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 30}))
    cats = open_dataset(str(folder))
    assert cats.vocab_size == 30
    assert [cats.bytes_per_token(split) for split in data.SPLITS] == [None, None]
    assert "names no symbols" in refusal(cats.encode, "the")
    assert "names no symbols" in refusal(cats.decode, [1])


@pytest.mark.slow
def test_every_truncation_of_a_meta_pkl_is_refused(tmp_path):
    folder = nanogpt_folder(tmp_path / "cats")
    whole = (folder / "meta.pkl").read_bytes()
    for length in range(len(whole)):
        (folder / "meta.pkl").write_bytes(whole[:length])
        assert "meta.pkl" in refusal(open_dataset, str(folder))


class Attack:
    """Unpickling this runs a command."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_code_in_a_meta_pkl_never_runs(tmp_path, protocol):
    folder = nanogpt_folder(tmp_path / "cats")
    proof = tmp_path / "owned"
    attacks = [
        Attack(os.system, f"touch {proof}"),
        Attack(os.mkdir, str(proof)),
        Attack(eval, f"__import__('os').mkdir({str(proof)!r})"),
    ]
    for attack in attacks:
        raw = pickle.dumps({"vocab_size": 20, "itos": attack}, protocol=protocol)
        (folder / "meta.pkl").write_bytes(raw)
        message = refusal(open_dataset, str(folder))
        assert "holds code" in message
        assert "was not loaded" in message
        assert not proof.exists()
    pickle.loads(raw)  # the attack is a real one
    assert proof.exists()


# --- what the layers above count on ------------------------------------------------------------


@pytest.mark.slow
def test_both_modules_are_torch_free_and_light():
    code = "import sys, nanoscale.data.dataset, nanoscale.data.prepare; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    loaded = done.stdout.split()
    assert "numpy" in loaded
    assert not {"torch", "pandas", "scipy", "matplotlib", "urllib.request"}.intersection(loaded)


@pytest.mark.parametrize("coarse", [1, 1 << 60])
def test_the_first_windows_of_an_epoch_are_those_of_the_whole_order(monkeypatch, coarse):
    """Also where words are equal, as coarse ones are."""
    seed, n = 4_000 + coarse % 7, 3000
    exact = data.philox_words
    monkeypatch.setattr(data, "philox_words", lambda *key: exact(*key) // np.uint64(coarse))
    whole = np.argsort(data.philox_words(seed, data.ORDER_EPOCH, 2, 0, n), kind="stable")
    monkeypatch.setattr(data, "LEAST_ORDERED", 16)
    samples = TrainingSamples(counting_tokens(n * 4 + 4), 4, seed, "epoch")
    assert samples.windows_per_epoch == n
    for end in (1, 15, 17, 64, 65, 1025, n):
        starts = starts_of(samples, 2 * n, end)
        assert (np.diff(starts) == 4 * np.diff(whole[:end])).all()
