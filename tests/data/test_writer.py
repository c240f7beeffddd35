"""Documents to token files: against brute force, and killed at every moment against undisturbed."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from nanoscale.data import writer
from nanoscale.data.dataset import open_dataset
from nanoscale.data.tokenizer import GPT2, Bytes, Tokenizer
from nanoscale.data.writer import Batch, Shuffle, TextReader, write_documents
from nanoscale.errors import UserError
from nanoscale.processes import file_lock

WORDS = ("the", "cat", "sat", "naïve", "", "on 1,234", "\n", "日本")


def documents(count: int = 40) -> list[str]:
    """Documents of all lengths, an empty one among them."""
    chosen = random.Random(5)
    made = [" ".join(chosen.choices(WORDS, k=chosen.randint(1, 12))) for _ in range(count)]
    made[7] = ""
    return made


def every_fourth(number: int, _text: str) -> bool:
    return number % 4 == 0


def reader(texts: list[str]) -> TextReader:
    return TextReader(lambda: texts, every_fourth)


def write(out: Path, tokenizer: Tokenizer | None = None, **given) -> Path:
    tokenizer = tokenizer or Bytes()
    return write_documents(out, "mine", reader(documents()), tokenizer, {"of": "test"}, **given)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def brute_force(most: int | None = None) -> dict[str, list[int]]:
    streams: dict[str, list[int]] = {"train": [], "val": []}
    for number, text in enumerate(documents()):
        split = "val" if every_fourth(number, text) else "train"
        streams[split] += [*text.encode(), 0]
        if most is not None and len(streams["train"]) >= most:
            del streams["train"][most:]
            break
    return streams


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a kill leaves what is written; it is slow
    monkeypatch.setattr(writer, "BATCH", 3)
    monkeypatch.setattr(writer, "CHECKPOINT_SECONDS", 0)


@pytest.fixture
def tmp_path(tmp_path):
    """In memory where there is such a folder: some disks take their time over every rename."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


# --- what is written ---------------------------------------------------------------------------


@pytest.mark.parametrize("most", [None, 1, 100, 101, 102, 103, 10**9])
def test_the_files_against_brute_force(tmp_path, most):
    out = write(tmp_path / "out", most=most)
    assert sorted(contents(out)) == ["meta.json", "meta.pkl", "train.bin", "val.bin"]
    opened = open_dataset(str(out))
    source = opened.meta.facts["source"]
    for split, stream in brute_force(most).items():
        assert opened.tokens[split].tolist() == stream
        assert opened.bytes_per_token(split) == 1.0
        raw = (out / f"{split}.bin").read_bytes()
        assert opened.meta.facts["splits"][split]["sha256"] == hashlib.sha256(raw).hexdigest()
    assert source["of"] == "test"
    assert source["documents"] == 40 if most is None else source["documents"] <= 40


def test_gpt2s_tokens_and_bytes(tmp_path, gpt2_merges):
    import tiktoken

    encoding = tiktoken.get_encoding("gpt2")
    opened = open_dataset(str(write(tmp_path / "out", GPT2())))
    streams: dict[str, list[int]] = {"train": [], "val": []}
    sizes = dict.fromkeys(streams, 0)
    for number, text in enumerate(documents()):
        split = "val" if every_fourth(number, text) else "train"
        streams[split] += [*encoding.encode_ordinary(text), 50256]
        sizes[split] += len(text.encode())
    for split, stream in streams.items():
        assert opened.tokens[split].tolist() == stream
        assert opened.bytes_per_token(split) == sizes[split] / len(stream)
    assert not (opened.folder / "meta.pkl").exists()  # nanoGPT takes GPT-2's vocabulary without


class Holey:
    """Documents of which some have no text, in batches of any size."""

    total = None

    def __init__(self, size: int) -> None:
        self.size = size
        self.texts = [None if i % 5 == 2 else text for i, text in enumerate(documents())]

    def batches(self, place: int | None) -> Iterator[Batch]:
        for first in range(place or 0, len(self.texts), self.size):
            texts = self.texts[first : first + self.size]
            validation = [every_fourth(first + i, "") for i in range(len(texts))]
            yield Batch(texts, validation, first + len(texts))

    def facts(self, place: int | None) -> dict:
        return {"seen": "all"}


def test_nothing_depends_on_where_batches_end(tmp_path):
    outs = []
    for size in (1, 3, 7, 40):
        out = tmp_path / str(size)
        write_documents(out, "mine", Holey(size), Bytes(), {}, most=300)
        outs.append(contents(out))
    assert all(out == outs[0] for out in outs)
    source = json.loads(outs[0]["meta.json"])["source"]
    assert source["without_text"] > 0
    assert source["seen"] == "all"


@pytest.mark.parametrize(("count", "test_size"), [(40, 0.0005), (40, 0.1), (1001, 0.02)])
def test_a_shuffle_is_that_of_datasets(tmp_path, monkeypatch, count, test_size):
    monkeypatch.setattr(writer, "GATHERED", 7)
    texts = documents(count)
    out = tmp_path / "out"
    split = Shuffle(test_size, 2357)
    write_documents(out, "mine", reader(texts), Bytes(), {}, shuffle=split)
    import datasets

    whole = datasets.Dataset.from_dict({"text": texts})
    parts = whole.train_test_split(test_size=test_size, seed=2357, shuffle=True)
    for ours, theirs in (("train", "train"), ("val", "test")):
        stream = b"".join(text.encode() + b"\0" for text in parts[theirs]["text"])
        assert (np.fromfile(out / f"{ours}.bin", "<u2") == list(stream)).all()
        assert len(np.fromfile(out / f"{ours}.bin", "<u2")) == len(stream)
    meta = open_dataset(str(out)).meta
    assert meta.facts["source"]["documents"] == count


# --- killed ------------------------------------------------------------------------------------

MOMENTS = ((os, "fsync"), (os, "replace"), (os, "unlink"), (writer.TokenFiles, "append"))


def killed(call: Callable[[], object], moment: int) -> bool:
    """Make the call in a process of its own, killed at this moment; whether it was."""
    child = os.fork()
    if child == 0:
        left = [moment]

        def counted(real: Callable) -> Callable:
            def counting(*args, **kwargs):
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return real(*args, **kwargs)

            return counting

        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        for owner, name in MOMENTS:
            setattr(owner, name, counted(getattr(owner, name)))
        try:
            call()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


WAYS = {"plain": {}, "cut": {"most": 300}, "shuffled": {"shuffle": Shuffle(0.1, 3)}}


with_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def kill_at_every(step: int, tmp_path: Path, way: str) -> None:
    expected = contents(write(tmp_path / "undisturbed", **WAYS[way]))
    out = tmp_path / "out"
    moment = 0
    while killed(lambda: write(out, **WAYS[way]), moment):
        write(out, **WAYS[way])
        assert contents(out) == expected, moment
        shutil.rmtree(out)
        moment += step
    assert moment > 30
    assert contents(out) == expected


@with_fork
@pytest.mark.parametrize("way", WAYS)
def test_killed_at_a_moment_it_goes_on_to_the_same_files(tmp_path, way):
    kill_at_every(9, tmp_path, way)


@with_fork
@pytest.mark.soak
@pytest.mark.parametrize("way", WAYS)
def test_killed_at_any_moment_it_goes_on_to_the_same_files(tmp_path, way):
    kill_at_every(1, tmp_path, way)


@with_fork
@pytest.mark.parametrize("way", WAYS)
def test_killed_again_and_again(tmp_path, way):
    expected = contents(write(tmp_path / "undisturbed", **WAYS[way]))
    out = tmp_path / "out"
    tries = 0
    while killed(lambda: write(out, **WAYS[way]), 12):
        tries += 1
        assert tries < 60
    assert tries > 1
    assert contents(out) == expected


def test_stopped_while_it_is_put_in_place_it_goes_on(tmp_path, monkeypatch):
    expected = contents(write(tmp_path / "undisturbed"))
    out = tmp_path / "out"
    replace = os.replace

    def stopped(source: Path, target: Path) -> None:
        replace(source, target)
        if target == out / "val.bin":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            write(out)
    assert not (out / "train.bin").exists()
    assert contents(write(out)) == expected


def test_what_was_written_beyond_the_record_is_cut_off(tmp_path, monkeypatch):
    expected = contents(write(tmp_path / "undisturbed"))
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(writer, "_finish", stop)
        with pytest.raises(KeyboardInterrupt):
            write(out)
    record = out / ".preparing" / "progress.json"
    assert json.loads(record.read_text())["documents"] == 40
    with open(out / ".preparing" / "train.bin", "ab") as file:
        file.write(b"torn")
    with monkeypatch.context() as patch:
        changed = json.loads(record.read_text()) | {"phase": "reading"}
        record.write_text(json.dumps(changed))
    assert contents(write(out)) == expected


def stop(*_: object) -> None:
    raise KeyboardInterrupt


# --- in the way --------------------------------------------------------------------------------


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("batches", [0, 5])
def test_a_full_disk_is_one_line_and_what_is_done_is_kept(tmp_path, monkeypatch, batches):
    expected = contents(write(tmp_path / "undisturbed"))
    out = tmp_path / "new" / "out"
    append = writer.TokenFiles.append
    calls = []

    def full(files, *args):
        calls.append(1)
        if len(calls) > batches:
            raise OSError(28, "No space left on device")
        return append(files, *args)

    with monkeypatch.context() as patch:
        patch.setattr(writer.TokenFiles, "append", full)
        message = refusal(lambda: write(out))
    assert "no space left" in message
    assert ("15 documents are done and kept; the same command goes on" in message) == (batches > 0)
    assert (tmp_path / "new").exists() == (batches > 0)
    write(out)
    assert contents(out) == expected


def test_done_it_is_left_as_it_is_and_checked(tmp_path, capsys):
    out = write(tmp_path / "out")
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    write(out)
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir()} == before
    assert "is unchanged" in capsys.readouterr().out
    raw = bytearray((out / "val.bin").read_bytes())
    raw[4] ^= 1
    (out / "val.bin").write_bytes(raw)
    assert "val.bin has changed since it was prepared" in refusal(lambda: write(out))
    (out / "val.bin").unlink()
    write(out)
    assert open_dataset(str(out)).tokens["val"].tolist() == brute_force()["val"]


def test_another_request_does_not_throw_away_what_is_begun(tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(writer, "_finish", stop)
        with pytest.raises(KeyboardInterrupt):
            write(out)
    before = contents(out)

    def other() -> None:
        write_documents(out, "mine", reader(documents()), Bytes(), {"of": "another"})

    message = refusal(other)
    assert "another unfinished preparation (of test)" in message
    assert "--out" in message
    assert contents(out) == before
    (out / ".preparing" / "progress.json").write_text("{")
    assert "progress.json is broken; delete" in refusal(lambda: write(out))
    shutil.rmtree(out / ".preparing")
    other()
    assert open_dataset(str(out)).meta.facts["source"]["of"] == "another"


def test_two_processes_do_not_write_into_one_folder(tmp_path):
    out = tmp_path / "out"

    class Both(TextReader):
        def batches(self, place):
            yield from super().batches(place)
            said.append(refusal(lambda: write(out)))

    said: list[str] = []
    write_documents(out, "mine", Both(documents, every_fourth), Bytes(), {"of": "test"})
    assert said == [
        f"another process is preparing {out}; wait for it, or choose another folder with --out"
    ]
    assert sorted(contents(out)) == ["meta.json", "meta.pkl", "train.bin", "val.bin"]


def test_a_lock_that_another_has_made_anew_is_not_ours(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    out = tmp_path / "out"
    flock = fcntl.flock

    def late(file, how):  # one process was done with it, and the next has begun
        (out / ".preparing/lock").unlink()
        (out / ".preparing/lock").touch()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    assert f"another process is preparing {out}" in refusal(lambda: write(out))


@pytest.mark.parametrize("fails", [False, True])
def test_a_system_that_keeps_open_files_has_its_lock_removed_once_it_is_closed(
    tmp_path, monkeypatch, fails
):
    """As Windows: a lock that is held cannot be removed."""
    held: list[Path] = []
    unlink = Path.unlink

    @contextmanager
    def lock(path: Path) -> Iterator[bool]:
        with file_lock(path) as ours:
            held.append(path)
            try:
                yield ours
            finally:
                held.remove(path)

    def guarded(path: Path, **how: bool) -> None:
        if path in held:
            raise PermissionError("it is open")
        unlink(path, **how)

    monkeypatch.setattr(writer, "file_lock", lock)
    monkeypatch.setattr(writer, "removes_open_files", lambda: False)
    monkeypatch.setattr(Path, "unlink", guarded)
    out = tmp_path / "out"
    if fails:
        few = reader(documents(40)[:1])
        refusal(lambda: write_documents(out, "mine", few, Bytes(), {}))
        assert not out.exists()
        return
    write(out)
    assert sorted(contents(out)) == ["meta.json", "meta.pkl", "train.bin", "val.bin"]


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_documents_leave_nothing(tmp_path, count):
    few = reader(documents(40)[:count])
    message = refusal(lambda: write_documents(tmp_path / "a" / "b", "mine", few, Bytes(), {}))
    assert f"{count} documents are too few" in message
    assert not (tmp_path / "a").exists()


def test_progress_is_said_with_the_time_left(tmp_path, monkeypatch, capsys):
    from nanoscale.data import gauge

    monkeypatch.setattr(gauge, "PLAIN_SECONDS", -1)
    write(tmp_path / "out", most=300)
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if line.startswith("[out] ")]
    assert len(told) > 3
    assert all("tokens/s, " in line and " %, eta " in line for line in told[1:])


def test_on_a_terminal_progress_is_a_bar(tmp_path, monkeypatch):
    from nanoscale.data import gauge

    monkeypatch.setattr(gauge, "LIVE_SECONDS", -1)
    with gauge.LiveGauge("owt") as bar:
        bar.show(5, 100, "words")
        assert bar.bar.tasks[0].fields["words"] == "words"  # no speed yet
        bar.show(55, 100, "words")
        task = bar.bar.tasks[0]
        assert (task.completed, task.total) == (55, 100)
        assert task.fields["words"].startswith("words, 55.0 %, eta ")
