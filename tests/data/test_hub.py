"""Data sets of the hub: `datasets` itself reads small sets that lie here, as it reads the hub's."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import fake_hub
import numpy as np
import pytest
from tiny import ROOT

from nanoscale.commands.main import dispatch
from nanoscale.data import hub, prepare, writer
from nanoscale.data.dataset import open_dataset
from nanoscale.errors import UserError

COUNT = 700  # documents, of three files


def story(number: int) -> str:
    return f"Story {number}: " + "once upon a time, naïvely. " * (number % 4)


def refusal(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        dispatch(["data", "prepare", *words])
    message = str(caught.value)
    assert "\n" not in message
    return message


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, path, row_group_size=100)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def stand_in(folder: Path, ending: str, texts: list[str | None], column: str = "text") -> Path:
    """A set in the form of the hub's, in three files."""
    for part in range(3):
        rows = [{"id": i, column: texts[i]} for i in range(part, len(texts), 3)]
        write_rows(folder / f"train-{part}.{ending}", rows)
    return folder


def in_order(texts: list) -> list:
    """The documents as the files of a stand-in hold them one after the other."""
    return [text for part in range(3) for text in texts[part::3]]


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub") / "OWNER" / "stories"
    return stand_in(root, "jsonl", [story(i) for i in range(COUNT)])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "fsync", lambda _: None)
    (tmp_path / "desk").mkdir()
    monkeypatch.chdir(tmp_path / "desk")


def expected(texts: list[str | None], most: int | None = None) -> dict[str, list[int]]:
    streams: dict[str, list[int]] = {"train": [], "val": []}
    for text, validation in zip(texts, hub.held_out(0, len(texts)), strict=True):
        if text is not None:
            streams["val" if validation else "train"] += [*text.encode(), 0]
        if most is not None and len(streams["train"]) >= most:
            del streams["train"][most:]
            break
    return streams


def assert_holds(folder: Path, streams: dict[str, list[int]]) -> None:
    for split, stream in streams.items():
        assert np.fromfile(folder / f"{split}.bin", "<u2").tolist() == stream


# --- what is made ------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
@pytest.mark.parametrize("most", [None, 5000])
def test_a_set_against_brute_force(tmp_path, ending, most):
    texts = [None if i % 50 == 3 else story(i) for i in range(COUNT)]
    source = stand_in(tmp_path / "OWNER" / "stories", ending, texts, "content")
    words = ["--column=content", "--tokenizer=byte"] + ([f"--tokens={most}"] if most else [])
    dispatch(["data", "prepare", f"hub:{source}", *words])
    assert_holds(Path("data/stories"), expected(in_order(texts), most))
    opened = open_dataset("stories")
    assert opened.bytes_per_token("val") == 1.0
    assert opened.meta.facts["source"]["hub"] == str(source)
    if most is None:
        assert opened.meta.facts["source"]["without_text"] == sum(text is None for text in texts)


def test_which_documents_are_validation_is_a_function_of_their_number():
    whole = hub.held_out(0, 100_000)
    assert whole[0]
    assert abs(sum(whole) / 100_000 - hub.HELD_OUT_FRACTION) < 0.001
    parts = [hub.held_out(first, 8) for first in range(0, 1000, 8)]
    assert [chosen for part in parts for chosen in part] == whole[:1000]


def test_openwebtext_is_split_as_nanogpt_splits_it(stories, monkeypatch, capsys, gpt2_merges):
    """nanoGPT's data/openwebtext/prepare.py, on a stand-in."""
    import datasets
    import tiktoken

    monkeypatch.setattr(writer, "GATHERED", 100)
    dispatch(["data", "prepare", "openwebtext", f"--input={stories}"])
    encoding = tiktoken.get_encoding("gpt2")
    whole = datasets.Dataset.from_dict({"text": in_order([story(i) for i in range(COUNT)])})
    parts = whole.train_test_split(test_size=0.0005, seed=2357, shuffle=True)
    for ours, theirs in (("train", "train"), ("val", "test")):
        ids = []
        for text in parts[theirs]["text"]:
            ids += [*encoding.encode_ordinary(text), encoding.eot_token]
        assert np.fromfile(Path(f"data/openwebtext/{ours}.bin"), np.uint16).tolist() == ids
    opened = open_dataset("openwebtext")
    val = "".join(parts["test"]["text"])
    assert opened.bytes_per_token("val") == len(val.encode()) / len(opened.tokens["val"])
    assert "700 documents, not 8,013,769" in capsys.readouterr().out


def test_tinystories_has_its_own_validation_split(tmp_path):
    source = tmp_path / "OWNER" / "TinyStories"
    write_rows(source / "train.jsonl", [{"text": story(i)} for i in range(600)])
    write_rows(source / "validation.jsonl", [{"text": f"held out {i}"} for i in range(300)])
    dispatch(
        ["data", "prepare", "tinystories", f"--input={source}", "--tokenizer=byte", "--tokens=900"]
    )
    train = "".join(story(i) + "\0" for i in range(600)).encode()[:900]
    val = "".join(f"held out {i}\0" for i in range(300)).encode()
    assert_holds(Path("data/tinystories"), {"train": list(train), "val": list(val)})


def test_merges_of_ones_own(stories):
    command = ["data", "prepare", f"hub:{stories}", "--tokenizer=train:300"]
    dispatch(command)
    opened = open_dataset("stories")
    assert opened.vocab_size <= 300
    texts = in_order([story(i) for i in range(COUNT)])
    kept = zip(texts, hub.held_out(0, COUNT), strict=True)
    val = "".join(text for text, validation in kept if validation)
    shown = opened.decode(opened.tokens["val"].tolist())
    assert shown.replace("<|endoftext|>", "") == val
    assert opened.bytes_per_token("val") == len(val.encode()) / len(opened.tokens["val"])


def test_from_a_hub(tmp_path, monkeypatch):
    """Over HTTP, by a name, at the commit that was the newest."""
    import datasets
    import huggingface_hub.constants

    texts = [story(i) for i in range(COUNT)]
    stand_in(tmp_path / "served" / "OWNER" / "stories" / "data", "parquet", texts)
    evil = tmp_path / "served" / "OWNER" / "evil"
    evil.mkdir()
    (evil / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w').close()\n")
    with fake_hub.serve(tmp_path / "served") as address:
        for constants, name in (
            (huggingface_hub.constants, "ENDPOINT"),
            (datasets.config, "HF_ENDPOINT"),
        ):
            monkeypatch.setattr(constants, name, address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        huggingface_hub.HfFileSystem.clear_instance_cache()
        dispatch(["data", "prepare", "hub:OWNER/stories", "--tokenizer=byte"])
        assert "wants to run code of its own" in refusal("hub:OWNER/evil", "--tokenizer=byte")
        assert "no data set OWNER/none on the hub" in refusal("hub:OWNER/none", "--tokenizer=byte")
        said = refusal("hub:OWNER/stories", "--tokenizer=byte", "--revision=x", "--out=data/x")
        assert "OWNER/stories has no --revision x" in said

        # gone on with, it is read at the commit at which it was begun
        monkeypatch.setattr(fake_hub.Handler, "newest", "b" * 40)
        monkeypatch.setattr(fake_hub.Handler, "asked", set())
        begun = {"commit": fake_hub.COMMIT, "part": 0, "number": 0, "state": None}
        reader = hub.HubReader("stories", hub.HubSet("OWNER/stories"))
        assert sum(len(batch.texts) for batch in reader.batches(begun)) == COUNT
        assert fake_hub.Handler.asked == {fake_hub.COMMIT}
    assert_holds(Path("data/stories"), expected(in_order(texts)))
    assert open_dataset("stories").meta.facts["source"]["commit"] == fake_hub.COMMIT
    assert not (tmp_path / "executed").exists()
    assert [folder.name for folder in Path("data").iterdir()] == ["stories"]


# --- killed and done ---------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("tokenizer", ["byte", "train:300"])
def test_killed_it_goes_on_to_the_same_files(stories, tmp_path, monkeypatch, tokenizer):
    monkeypatch.setattr(writer, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(hub, "BATCH_ROWS", 50)
    words = ["data", "prepare", f"hub:{stories}", f"--tokenizer={tokenizer}"]
    dispatch([*words, "--out=undisturbed"])
    for appended in (1, 6, 11):
        killed_after(appended, lambda: dispatch([*words, "--out=killed"]))
        record = json.loads(Path("killed/.preparing/progress.json").read_text())
        assert record["documents"] > 0
        dispatch([*words, "--out=killed"])
        assert contents(Path("killed")) == contents(Path("undisturbed"))
        shutil.rmtree("killed")


def killed_after(appended: int, call: Callable[[], object]) -> None:
    child = os.fork()
    if child == 0:
        append = writer.TokenFiles.append
        left = [appended]

        def counting(*args):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return append(*args)

        writer.TokenFiles.append = counting
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        try:
            call()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)


def test_done_it_needs_no_hub(stories, tmp_path, monkeypatch, capsys):
    words = ["data", "prepare", f"hub:{stories}", "--tokenizer=byte"]
    dispatch(words)
    monkeypatch.setattr(hub, "_library", lambda: pytest.fail("asked again"))
    dispatch(words)
    assert "is unchanged" in capsys.readouterr().out
    with open(stories / "train-0.jsonl", "a", encoding="utf-8") as file:
        file.write('{"id": 1, "text": "one more"}\n')
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path / "desk")
    before = open_dataset("stories").fingerprint
    with pytest.raises(UserError, match=r"this makes .* of listing .*--overwrite"):
        dispatch(words)
    assert open_dataset("stories").fingerprint == before
    dispatch([*words, "--overwrite"])
    assert open_dataset("stories").fingerprint != before


# --- in the way --------------------------------------------------------------------------------


def test_without_the_hub_it_is_one_line_and_nothing_is_left(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in ("openwebtext", "hub:OWNER/NAME"):
        message = refusal(name, "--tokenizer=byte")
        assert "cannot reach the Hugging Face hub for" in message
        assert "OWNER/NAME" in message or "Skylion007/openwebtext" in message
        assert "--input FOLDER" in message
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "cannot reach the Hugging Face hub" in refusal("tinystories", "--tokenizer=byte")
    assert not Path("data").exists()


def test_without_the_package_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'nanoscale[hf]'" in refusal("openwebtext", "--tokenizer=byte")
    assert not Path("data").exists()


def test_code_in_a_set_is_never_run(tmp_path):
    marker = tmp_path / "executed"
    folder = tmp_path / "OWNER" / "evil"
    folder.mkdir(parents=True)
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nimport datasets\n")
    message = refusal(f"hub:{folder}", "--tokenizer=byte")
    assert "wants to run code of its own, which is never done" in message
    assert str(folder) in message
    assert not marker.exists()
    assert not Path("data").exists()


BAD = {
    "has no column 'txt'; did you mean 'text'": ["--column=txt"],
    "'id' of": ["--column=id"],
    "Available splits: ['train']; choose with --split": ["--split=test"],
    "'en' not found. Available: ['default']; choose with --config": ["--config=en"],
    "--tokenizer char needs the whole": ["--tokenizer=char"],
    "did you mean 'gpt2'": ["--tokenizer=gpt"],
    "--tokens=0: must be at least 1": ["--tokens=0"],
    "takes no --seed": ["--seed=3"],
}


@pytest.mark.parametrize("said", BAD)
def test_what_a_set_lacks_is_named_and_nothing_is_left(stories, said):
    words = ["--tokenizer=byte", *BAD[said]] if "tokenizer" not in BAD[said][0] else BAD[said]
    assert said in refusal(f"hub:{stories}", *words)
    assert not Path("data").exists()


def test_a_broken_file_keeps_what_was_read_before_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(writer, "CHECKPOINT_SECONDS", 0)
    source = stand_in(tmp_path / "set", "parquet", [story(i) for i in range(900)])
    raw = (source / "train-2.parquet").read_bytes()
    (source / "train-2.parquet").write_bytes(raw[:900] + bytes(len(raw) - 900))
    message = refusal(f"hub:{source}", "--tokenizer=byte")
    assert f"cannot read {source}" in message
    assert capsys.readouterr().err == ""  # the refusal is the only line
    assert "512 documents are done and kept; the same command goes on from there" in message
    (source / "train-2.parquet").write_bytes(raw)
    dispatch(["data", "prepare", f"hub:{source}", "--tokenizer=byte"])
    assert_holds(Path("data/set"), expected(in_order([story(i) for i in range(900)])))


def test_an_empty_set_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README.md").write_text("nothing here")
    assert "no data files" in refusal(f"hub:{tmp_path / 'empty'}", "--tokenizer=byte")
    assert "names no data set" in refusal("hub:")
    assert not Path("data").exists()


def test_what_is_not_prepared_names_the_command():
    with pytest.raises(UserError, match="run `nanoscale data prepare openwebtext`"):
        open_dataset("openwebtext")
    for name in hub.HUB_SETS:
        assert name in prepare.ARGUMENTS
        assert (ROOT / "data" / name / "prepare.py").is_file()
