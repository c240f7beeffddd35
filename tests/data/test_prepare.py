"""Preparing datasets: against nanoGPT's own way, brute force, and all that can be in the way."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from refusals import listing, refusal, snapshot
from tiny import ROOT

from nanoscale.commands.main import dispatch
from nanoscale.data import dataset as data
from nanoscale.data import prepare, synthetic
from nanoscale.data.dataset import open_dataset
from nanoscale.errors import UserError

SHAKESPEARE = ROOT.parent / "shared" / "data" / "tinyshakespeare.txt"
FILES = ["meta.json", "meta.pkl", "train.bin", "val.bin"]

with_shakespeare = pytest.mark.skipif(not SHAKESPEARE.exists(), reason="no tinyshakespeare here")


def state(folder: Path) -> dict:
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}


def tokens_of(folder: Path, split: str) -> np.ndarray:
    return np.fromfile(folder / f"{split}.bin", np.uint16)


def assert_nanogpts(folder: Path, text: str) -> None:
    """The folder is what nanoGPT's own preparation makes of `text`, token by token."""
    chars = sorted(set(text))
    stoi = {c: i for i, c in enumerate(chars)}
    with open(folder / "meta.pkl", "rb") as file:
        meta = pickle.load(file)
    assert meta == {"vocab_size": len(chars), "itos": dict(enumerate(chars)), "stoi": stoi}
    n = len(text)
    for split, part in (("train", text[: int(n * 0.9)]), ("val", text[int(n * 0.9) :])):
        ids = np.array([stoi[c] for c in part], dtype=np.uint16)
        assert (folder / f"{split}.bin").read_bytes() == ids.tobytes()


# --- shakespeare_char --------------------------------------------------------------------------


@with_shakespeare
def test_shakespeare_is_nanogpts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = prepare.prepare("shakespeare_char", input=str(SHAKESPEARE))
    assert folder == Path("data/shakespeare_char")
    assert listing(folder) == FILES
    assert_nanogpts(folder, SHAKESPEARE.read_text())
    printed = capsys.readouterr().out
    for line in ("vocab size: 65", "train has 1,003,854 tokens", "val has 111,540 tokens"):
        assert line in printed.splitlines()
    opened = open_dataset("shakespeare_char")
    assert opened.vocab_size == 65
    assert opened.meta.kind == "char"
    assert [opened.bytes_per_token(split) for split in data.SPLITS] == [1.0, 1.0]
    assert {s: len(t) for s, t in opened.tokens.items()} == {"train": 1003854, "val": 111540}
    (folder / "meta.json").unlink()
    assert open_dataset("shakespeare_char").encode("ROMEO") == opened.encode("ROMEO")


@with_shakespeare
def test_shakespeare_is_downloaded_once_and_checked(tmp_path, monkeypatch):
    asked = []

    def urlopen(url, timeout):
        asked.append(url)
        return io.BytesIO(SHAKESPEARE.read_bytes())

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    folder = prepare.prepare("shakespeare_char", out=tmp_path / "x")
    assert asked == [prepare.SHAKESPEARE_URL]
    assert len(tokens_of(folder, "train")) == 1003854
    prepare.prepare("shakespeare_char", out=tmp_path / "x")
    assert len(asked) == 1  # it is there
    (tmp_path / "x" / "val.bin").unlink()
    prepare.prepare("shakespeare_char", out=tmp_path / "x")
    assert len(asked) == 2


def test_another_file_is_not_shakespeare(tmp_path):
    other = tmp_path / "sonnets.txt"
    other.write_text("Shall I compare thee to a summer's day?")
    out = tmp_path / "new" / "out"
    message = refusal(prepare.prepare, "shakespeare_char", input=str(other), out=out)
    assert str(other) in message
    assert f"nanoscale data prepare text --input {other}" in message
    assert listing(tmp_path) == ["sonnets.txt"]


@pytest.mark.parametrize(
    "error",
    [urllib.error.URLError("no network"), TimeoutError("timed out"), ConnectionResetError()],
)
def test_without_network_the_remedy_is_input(tmp_path, monkeypatch, error):
    def urlopen(url, timeout):
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert "--input FILE" in refusal(prepare.prepare, "shakespeare_char", out=tmp_path / "x")
    assert listing(tmp_path) == []


def test_a_download_of_something_else_is_refused(tmp_path, monkeypatch):
    login_page = io.BytesIO(b"<html>log in</html>")
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: login_page)
    message = refusal(prepare.prepare, "shakespeare_char", out=tmp_path / "x")
    assert "is not tinyshakespeare" in message
    assert "--input FILE" in message
    assert listing(tmp_path) == []


# --- pysource ----------------------------------------------------------------------------------


def fake_python(root: Path, n: int = 60, prefix: str = "module") -> dict[Path, bytes]:
    """A library of `n` distinct files in two folders, and what must be left out of it."""
    files = {}
    for i in range(n):
        path = root / ("lib" if i % 2 else "lib/package") / f"{prefix}_{i}.py"
        files[path] = f"# file {i}\nx = {i} * 'é'\n".encode() + bytes([200 + i % 50])
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / "lib/readme.txt").write_text("not Python source")
    (root / "lib/empty.py").touch()
    (root / "lib/folder.py").mkdir()
    return files


def brute_force(contents: set[bytes]) -> dict[str, bytes]:
    streams = {"train": b"", "val": b""}
    for content in sorted(contents, key=lambda c: hashlib.sha256(c).hexdigest()):
        number = int(hashlib.sha256(content).hexdigest()[:16], 16)
        streams["train" if number % 20 else "val"] += content + b"\0"
    return streams


def prepare_pysource(roots: list[Path], out: Path) -> Path:
    prepare.write(out, "pysource", prepare.pysource(roots))
    return out


def test_pysource_against_brute_force(tmp_path, capsys):
    files = fake_python(tmp_path)
    shutil.copy(tmp_path / "lib/module_1.py", tmp_path / "lib/package/copy.py")
    out = prepare_pysource([tmp_path / "lib"], tmp_path / "out")
    expected = brute_force(set(files.values()))
    assert expected["val"], "the fake library needs a validation file"
    for split, stream in expected.items():
        assert tokens_of(out, split).tolist() == list(stream)
    assert "kept 60 documents, dropped 1 exact duplicates" in capsys.readouterr().out
    opened = open_dataset(str(out))
    assert opened.vocab_size == 256
    assert opened.meta.kind == "byte"
    assert opened.name == f"pysource-{opened.fingerprint[:8]}"
    source = opened.meta.facts["source"]
    assert (source["documents"], source["duplicates"], source["unreadable"]) == (60, 1, 0)
    with open(out / "meta.pkl", "rb") as file:
        meta = pickle.load(file)
    assert meta["vocab_size"] == 256
    assert meta["itos"][65] == "A"
    assert meta["stoi"]["A"] == 65


def test_pysource_does_not_depend_on_paths(tmp_path):
    fake_python(tmp_path / "one")
    fake_python(tmp_path / "two/deeper", prefix="renamed")
    one = prepare_pysource([tmp_path / "one"], tmp_path / "out_one")
    two = prepare_pysource([tmp_path / "two"], tmp_path / "out_two")
    for name in FILES:
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_pysource_survives_links_and_overlapping_roots(tmp_path):
    files = fake_python(tmp_path)
    lib = tmp_path / "lib"
    (lib / "loop").symlink_to(lib, target_is_directory=True)
    (lib / "package/up").symlink_to(tmp_path, target_is_directory=True)
    (lib / "nowhere.py").symlink_to(tmp_path / "absent.py")
    (lib / "itself.py").symlink_to(lib / "itself.py")
    (tmp_path / "lib64").symlink_to(lib, target_is_directory=True)
    (tmp_path / "store").mkdir()
    (tmp_path / "store/linked.py").write_bytes(b"elsewhere = 1\n")
    (lib / "linked").symlink_to(tmp_path / "store", target_is_directory=True)
    os.mkfifo(lib / "pipe.py")
    roots = [lib / "package", lib, tmp_path / "lib64", lib]
    out = prepare_pysource(roots, tmp_path / "elsewhere")
    expected = brute_force({*files.values(), b"elsewhere = 1\n"})
    assert tokens_of(out, "train").tolist() == list(expected["train"])
    assert open_dataset(str(out)).meta.facts["source"]["duplicates"] == 0


def test_pysource_skips_and_counts_what_it_cannot_read(tmp_path, monkeypatch):
    files = fake_python(tmp_path)
    secret = tmp_path / "lib/module_3.py"
    read = Path.read_bytes

    def guarded(path):
        if path.name == secret.name:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", guarded)
    out = prepare_pysource([tmp_path / "lib"], tmp_path / "out")
    assert json.loads((out / "meta.json").read_text())["source"]["unreadable"] == 1
    del files[secret]
    assert tokens_of(out, "train").tolist() == list(brute_force(set(files.values()))["train"])


def test_another_pythons_packages_are_left_out(tmp_path):
    files = fake_python(tmp_path)
    for folder in ("site-packages", "dist-packages"):
        (tmp_path / "lib" / folder).mkdir()
        (tmp_path / "lib" / folder / "foreign.py").write_text(f"# {folder}")
    out = prepare_pysource([tmp_path / "lib"], tmp_path / "out")
    assert json.loads((out / "meta.json").read_text())["source"]["documents"] == len(files)
    roots = [tmp_path / "lib", tmp_path / "lib" / "site-packages"]
    out = prepare_pysource(roots, tmp_path / "other")
    assert json.loads((out / "meta.json").read_text())["source"]["documents"] == len(files) + 1


def test_python_roots_hold_the_library_and_the_packages():
    roots = [root.resolve() for root in prepare.python_roots()]
    for module in (json, np, pytest):
        assert any(root in Path(module.__file__).resolve().parents for root in roots)


def test_a_file_that_changes_meanwhile_is_refused(tmp_path):
    fake_python(tmp_path)
    corpus = prepare.pysource([tmp_path / "lib"])
    (tmp_path / "lib/module_5.py").write_text("changed")
    message = refusal(prepare.write, tmp_path / "out", "pysource", corpus)
    assert "module_5.py changed" in message
    assert not (tmp_path / "out").exists()


# --- text --------------------------------------------------------------------------------------

NOTES = "Every day, a note. " * 30 + "Naïve?\n"


def test_a_text_of_ones_own_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_bytes(NOTES.encode())
    dispatch(["data", "prepare", "text", "--input", "notes.txt", "--out", "data/notes"])
    assert listing(tmp_path / "data") == ["notes", *(f"notes/{name}" for name in FILES)]
    assert_nanogpts(Path("data/notes"), NOTES)
    notes = open_dataset("notes")
    assert notes.name == "notes"
    assert notes.meta.dataset == "text"
    cut = int(len(NOTES) * 0.9)
    assert notes.bytes_per_token("val") == len(NOTES[cut:].encode()) / len(NOTES[cut:]) > 1
    assert prepare.prepare("text", input="notes.txt") == Path("data/text")


def test_bytes_on_request_and_for_large_alphabets(tmp_path):
    file = tmp_path / "notes.txt"
    many = "".join(map(chr, range(0x4E00, 0x4E00 + 257)))
    for text, asked, kind, vocab_size in (
        (NOTES, "byte", "byte", 256),
        (many, None, "byte", 256),
        (many, "char", "char", 257),
        (many[:256], None, "char", 256),
    ):
        file.write_bytes(text.encode())
        folder = prepare.prepare(
            "text", input=str(file), kind=asked, out=tmp_path / "out", overwrite=True
        )
        opened = open_dataset(str(folder))
        assert (opened.meta.kind, opened.vocab_size) == (kind, vocab_size)
        whole = np.concatenate([opened.tokens[split] for split in data.SPLITS])
        assert opened.decode(whole.tolist()) == text


@pytest.mark.slow
def test_an_alphabet_beyond_uint16_is_refused(tmp_path):
    file = tmp_path / "all.txt"
    file.write_bytes("".join(map(chr, range(0x10000, 0x20001))).encode())
    message = refusal(prepare.prepare, "text", input=str(file), kind="char", out=tmp_path / "out")
    assert "65,537 distinct characters" in message
    assert "--tokenizer byte" in message
    file.write_bytes("".join(map(chr, range(0x10000, 0x20000))).encode())
    folder = prepare.prepare("text", input=str(file), kind="char", out=tmp_path / "out")
    assert tokens_of(folder, "val")[-1] == 65535


def folder_of_notes(root: Path, n: int) -> dict[str, str]:
    notes = {f"{i % 3}/note {i}.txt": f"Note {i}: {'ö' * i}\n" for i in range(n)}
    for name, note in notes.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(note.encode())
    return notes


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_a_folder_is_split_by_document(tmp_path, kind):
    notes = folder_of_notes(tmp_path / "notes", 50)
    (tmp_path / "notes/.hidden").write_bytes(b"\xff\xfe")
    (tmp_path / "notes/.git").mkdir()
    (tmp_path / "notes/.git/config").write_text("not a note")
    out = tmp_path / "notes/prepared"  # within its own input: must not read itself
    for _ in range(2):
        prepare.prepare("text", input=str(tmp_path / "notes"), kind=kind, out=out)
        expected = brute_force({note.encode() for note in notes.values()})
        opened = open_dataset(str(out))
        assert opened.meta.kind == kind
        for split, stream in expected.items():
            tokens = opened.tokens[split]
            assert opened.decode(tokens.tolist()) == stream.decode()
            assert opened.bytes_per_token(split) == len(stream) / len(tokens)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_few_documents_still_give_both_splits(tmp_path, n):
    for shift in range(12):
        root = tmp_path / str(shift)
        root.mkdir()
        contents = [f"document {shift + i}".encode() for i in range(n)]
        for i, content in enumerate(contents):
            (root / f"{i}.txt").write_bytes(content)
        opened = open_dataset(str(prepare.prepare("text", input=str(root), out=root / "out")))
        texts = [opened.decode(opened.tokens[split].tolist()) for split in data.SPLITS]
        documents = [document for text in texts for document in text.split("\0")[:-1]]
        assert sorted(documents) == sorted(content.decode() for content in contents)


BAD_TEXTS = {
    "text needs --input": {},
    "none.txt is not a file": {"input": "none.txt"},
    "did you mean 'byte'": {"input": "notes.txt", "kind": "bytes"},
    "binary.dat is not UTF-8 text (byte 2)": {"input": "binary.dat"},
    "pictures/cat.png is not UTF-8 text": {"input": "pictures"},
    "holds 0 tokens": {"input": "empty.txt"},
    "holds 1 tokens": {"input": "one.txt"},
    "holds 0 distinct documents": {"input": "empty"},
    "holds 1 distinct documents": {"input": "alone"},
    "text takes no --seed": {"input": "notes.txt", "seed": 3},
}


@pytest.mark.parametrize("expected", BAD_TEXTS)
def test_a_bad_text_is_named_and_leaves_nothing(tmp_path, monkeypatch, expected):
    monkeypatch.chdir(tmp_path)
    for folder in ("pictures", "empty", "alone"):
        Path(folder).mkdir()
    contents = {
        "notes.txt": NOTES.encode(),
        "binary.dat": b"ab\xff",
        "empty.txt": b"",
        "one.txt": b"1",
    }
    contents |= {"pictures/a.txt": b"a", "pictures/cat.png": b"\x89PNG", "alone/a.txt": b"a"}
    for name, content in contents.items():
        Path(name).write_bytes(content)
    before = listing(tmp_path)
    assert expected in refusal(prepare.prepare, "text", **BAD_TEXTS[expected], out=Path("a/b/c"))
    assert listing(tmp_path) == before


# --- synthetic ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chain() -> synthetic.MarkovChain:
    return synthetic.markov_chain(1337)


def test_the_transitions_are_probabilities_with_structure():
    for seed in (0, 1337, 2**63 - 1):
        weights = synthetic.transition_weights(seed)
        assert weights.shape == (32, 32)
        assert weights.min() >= 1
        assert (weights.sum(1) == 2**16).all()
    assert (synthetic.transition_weights(0) != synthetic.transition_weights(1)).any()


def test_the_entropy_rate_against_known_chains():
    assert synthetic.entropy_rate(np.full((5, 5), 0.2)) == pytest.approx(math.log(5), rel=1e-14)
    a, b = 0.3, 0.05  # two states: pi = (b, a) / (a + b)
    h = [-p * math.log(p) - (1 - p) * math.log(1 - p) for p in (a, b)]
    expected = (b * h[0] + a * h[1]) / (a + b)
    chain = np.array([[1 - a, a], [b, 1 - b]])
    assert synthetic.entropy_rate(chain) == pytest.approx(expected, rel=1e-14)


@pytest.mark.slow
def test_the_entropy_rate_against_power_iteration(chain):
    P = chain.weights / 2**16
    pi = np.linalg.matrix_power(P, 1000)[0]
    expected = -sum(pi[i] * p * math.log(p) for i, row in enumerate(P.tolist()) for p in row)
    assert chain.entropy_nats == pytest.approx(expected, rel=1e-12)


def test_the_chain_never_changes(chain):
    assert chain.train[:8].tolist() == [4, 29, 9, 11, 4, 14, 2, 24]
    assert hashlib.sha256(chain.val.tobytes()).hexdigest()[:16] == "c996e4822a20e0ae"
    assert chain.entropy_nats == pytest.approx(2.380903112394418, rel=1e-12)


def test_the_chain_follows_its_transitions(chain):
    tokens = chain.train.astype(np.int64)
    counts = np.bincount(tokens[:-1] * 32 + tokens[1:], minlength=1024).reshape(32, 32)
    expected = counts.sum(1, keepdims=True) * chain.weights / 2**16
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_squared - 32 * 31) < 4 * math.sqrt(2 * 32 * 31)


def test_the_floor_of_the_validation_split(chain):
    P = chain.weights / 2**16
    val = chain.val.tolist()
    losses = [-math.log(P[a, b]) for a, b in pairwise(val)]
    assert chain.val_floor_nats == pytest.approx(sum(losses) / len(losses), rel=1e-12)
    error = np.std(losses) / math.sqrt(len(losses))
    assert abs(chain.val_floor_nats - chain.entropy_nats) < 4 * error


def test_a_count_model_approaches_the_floor_from_above(chain):
    train, val = chain.train.tolist(), chain.val.tolist()
    excess = []
    for n in (3_000, 30_000, 300_000):
        counts = Counter(pairwise(train[:n]))
        totals = Counter(train[: n - 1])
        pairs = Counter(pairwise(val))
        loss = sum(
            -k * math.log((counts[a, b] + 0.5) / (totals[a] + 16)) for (a, b), k in pairs.items()
        )
        excess.append(loss / (len(val) - 1) - chain.val_floor_nats)
    assert excess[0] > 3 * excess[1] > 9 * excess[2] > 0
    assert excess[2] < 0.003


@pytest.mark.slow
def test_a_synthetic_dataset_states_its_entropy(tmp_path):
    folder = prepare.prepare("synthetic", out=tmp_path / "s", seed=5)
    opened = open_dataset(str(folder))
    assert (opened.meta.kind, opened.vocab_size) == ("synthetic", 32)
    assert {s: len(t) for s, t in opened.tokens.items()} == {"train": 1_000_000, "val": 100_000}
    assert [opened.bytes_per_token(split) for split in data.SPLITS] == [None, None]
    assert 1 < opened.meta.facts["entropy_nats"] < math.log(32)
    assert opened.meta.facts["source"]["seed"] == 5
    assert opened.decode(opened.encode("abc")) == "abc"
    for seed in (-1, 2**63):
        assert f"seed {seed}" in refusal(prepare.prepare, "synthetic", out=tmp_path, seed=seed)


# --- writing -----------------------------------------------------------------------------------


def test_prepared_again_nothing_changes(tmp_path, capsys):
    file, out = tmp_path / "notes.txt", tmp_path / "out"
    file.write_text(NOTES)
    prepare.prepare("text", input=str(file), out=out)
    assert "is ready" in capsys.readouterr().out
    before = state(out)
    prepare.prepare("text", input=str(file), out=out)
    assert state(out) == before
    assert "is unchanged" in capsys.readouterr().out
    file.write_text(NOTES.replace("Naïve", "Nïave"))
    message = refusal(prepare.prepare, "text", input=str(file), out=out)
    assert f"{out} holds text (char, 17 symbols, 519 and 58 tokens), and this makes" in message
    assert "with another val.bin; choose another folder with --out, or replace" in message
    assert state(out) == before
    capsys.readouterr()
    prepare.prepare("text", input=str(file), out=out, overwrite=True)
    assert "is ready" in capsys.readouterr().out
    assert sorted(n for n, s in state(out).items() if s == before[n]) == ["meta.pkl", "train.bin"]
    assert sorted(state(out)) == FILES


@pytest.mark.parametrize("later", ["text", "tokens"])
def test_killed_while_it_is_put_in_place_it_is_mended_by_the_same(tmp_path, monkeypatch, later):
    """The files are the old ones, the new ones, or no set at all, with which nothing can begin."""
    old, new = tmp_path / "old.txt", tmp_path / "new.txt"
    old.write_text(NOTES)
    new.write_text(NOTES[::-1] if later == "text" else NOTES.upper())
    wholes = []
    for number, file in enumerate((old, new)):
        folder = prepare.prepare("text", input=str(file), out=tmp_path / str(number))
        wholes.append(snapshot(folder))
    replace = os.replace
    for moment in range(6):
        out = prepare.prepare("text", input=str(old), out=tmp_path / f"out{moment}")
        left = iter(range(moment))
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", lambda a, b, left=left: (next(left), replace(a, b)))
            with suppress(StopIteration):
                prepare.prepare("text", input=str(new), out=out, overwrite=True)
        if snapshot(out) not in wholes:
            assert "train.bin is missing" in refusal(open_dataset, str(out))
        prepare.prepare("text", input=str(new), out=out, overwrite=True)
        assert snapshot(out) == wholes[1]


def test_a_further_set_is_never_taken_for_other_tokens(tmp_path):
    file, out = tmp_path / "notes.txt", tmp_path / "out"
    file.write_text(NOTES)
    prepare.prepare("text", input=str(file), out=out)
    shutil.copy(out / "val.bin", out / "val_more.bin")
    file.write_text(NOTES[:300] + NOTES[-20:])
    prepare.prepare("text", input=str(file), out=out, overwrite=True)  # of the same symbols
    assert open_dataset(str(out)).val_sets == ("val", "more")
    for name in ("train.bin", "val.bin"):
        (out / name).unlink()
    message = refusal(prepare.prepare, "text", input=str(file), kind="byte", out=out)
    assert f"{out} holds val_more.bin, of other tokens than this makes; move" in message
    (out / "meta.json").unlink()
    assert "holds val_more.bin" in refusal(prepare.prepare, "text", input=str(file), out=out)
    (out / "val_more.bin").unlink()
    prepare.prepare("text", input=str(file), kind="byte", out=out, overwrite=True)
    assert sorted(state(out)) == FILES


def fail_with_full_disk(monkeypatch):
    real = prepare._write_tokens
    monkeypatch.setattr(prepare, "_write_tokens", lambda path, *a: real(Path("/dev/full"), *a))


def fail_with_interrupt(monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt("stopped")

    monkeypatch.setattr(prepare, "_write_tokens", interrupt)


def fail_at_the_last_moment(monkeypatch):
    def refuse(*args):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)


FAILURES = {
    "no space left": (fail_with_full_disk, UserError),
    "stopped": (fail_with_interrupt, KeyboardInterrupt),
    "read-only": (fail_at_the_last_moment, UserError),
}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("expected", FAILURES)
@pytest.mark.parametrize("existing", [False, True])
def test_a_failed_preparation_leaves_no_trace(tmp_path, monkeypatch, expected, existing):
    file, out = tmp_path / "notes.txt", tmp_path / "a" / "b"
    if existing:
        file.write_text("old " * 40)
        prepare.prepare("text", input=str(file), out=out)
    file.write_text(NOTES)
    before = listing(tmp_path), state(out) if existing else None
    fail, error = FAILURES[expected]
    fail(monkeypatch)
    with pytest.raises(error, match=expected):
        prepare.prepare("text", input=str(file), out=out, overwrite=True)
    assert (listing(tmp_path), state(out) if existing else None) == before


def test_a_file_in_the_way_is_named(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text(NOTES)
    for out in (file, file / "below"):
        message = refusal(prepare.prepare, "text", input=str(file), out=out)
        assert str(out) in message
        assert "a file stands where a folder is needed" in message
    assert listing(tmp_path) == ["notes.txt"]


# --- command line and doors --------------------------------------------------------------------

BAD_COMMANDS = {
    "did you mean 'shakespeare_char'": ["shakespeare_chr"],
    "pysource takes no --input": ["pysource", "--input", "x"],
    "shakespeare_char takes no --kind": ["shakespeare_char", "--kind=byte"],
    "did you mean '--input'": ["text", "--imput=x"],
    "--inp=x: unknown option": ["text", "--inp=x"],
    "notes.txt: one argument too many": ["text", "notes.txt"],
    "--seed=x: expected a whole number": ["synthetic", "--seed=x"],
    "NAME": [],
}


@pytest.mark.parametrize("expected", BAD_COMMANDS)
def test_bad_commands_are_refused_in_one_line(tmp_path, monkeypatch, expected):
    monkeypatch.chdir(tmp_path)
    assert expected in refusal(dispatch, ["data", "prepare", *BAD_COMMANDS[expected]])
    assert listing(tmp_path) == []


def test_every_known_dataset_has_a_recipe_and_a_door():
    assert tuple(prepare.ARGUMENTS) == data.KNOWN
    assert all((ROOT / "data" / name / "prepare.py").is_file() for name in data.KNOWN)


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A copy of the clone, as the doors write beside themselves."""
    root = tmp_path_factory.mktemp("clone")
    ignored = shutil.ignore_patterns("*.bin", "meta.json", "meta.pkl", "__pycache__")
    for folder in ("nanoscale", "data"):
        shutil.copytree(ROOT / folder, root / folder, ignore=ignored)
    return root


def door(clone: Path, name: str, *args: str) -> subprocess.CompletedProcess:
    cwd = clone.parent / "elsewhere"
    cwd.mkdir(exist_ok=True)
    (cwd / "notes.txt").write_text(NOTES)
    command = [sys.executable, "-I", str(clone / "data" / name / "prepare.py"), *args]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert sorted(p.name for p in cwd.iterdir()) == ["notes.txt"]
    return done


@pytest.mark.slow
@pytest.mark.parametrize(("name", "args"), [("text", ["--input", "notes.txt"]), ("synthetic", [])])
def test_doors_write_beside_themselves_from_anywhere(clone, name, args):
    done = door(clone, name, *args)
    assert (done.returncode, done.stderr) == (0, "")
    assert listing(clone / "data" / name) == sorted([*FILES, "prepare.py"])


@pytest.mark.slow
@pytest.mark.parametrize("name", data.KNOWN)
def test_doors_refuse_in_one_line(clone, name):
    before = listing(clone / "data" / name)
    done = door(clone, name, "--input=absent.txt", "--seed=1")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert listing(clone / "data" / name) == before


def test_an_input_txt_that_lies_there_is_the_text(tmp_path, monkeypatch):
    raw = b"First Citizen:\nBefore we proceed any further, hear me speak.\n"
    (tmp_path / "input.txt").write_bytes(raw)
    url = "nanoscale.data.prepare._download"
    monkeypatch.setattr(url, lambda url: pytest.fail("downloads what lies there"))
    with pytest.raises(UserError, match=r"input\.txt is not tinyshakespeare"):
        prepare.prepare("shakespeare_char", out=tmp_path)
    monkeypatch.setattr(
        "nanoscale.data.prepare.SHAKESPEARE_SHA256", hashlib.sha256(raw).hexdigest()
    )
    prepare.prepare("shakespeare_char", out=tmp_path)
    assert open_dataset(str(tmp_path)).decode(range(3))
