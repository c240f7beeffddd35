"""Tokenizers against the libraries they come from, and what becomes of their data folders."""

from __future__ import annotations

import hashlib
import json
import pickle
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from refusals import listing, refusal
from tiny import ROOT, run_python

from nanoscale.data import documents, prepare, tokenizer
from nanoscale.data.dataset import SPLITS, open_dataset
from nanoscale.data.tokenizer import GPT2, Bytes, Characters, make_tokenizer, train_bpe

SHAKESPEARE = ROOT.parent / "shared" / "data" / "tinyshakespeare.txt"
NOTES = "Every day, a note. " * 30 + "Naïve?\n"
MIXED = (
    "Naïve Œuvre — 日本語 😀😀 plain   words\n\n and <|endoftext|> as text\r\n\ttabs 123456 x" * 4
)


@pytest.fixture(scope="module")
def trained() -> tokenizer.TokenizerFile:
    return train_bpe([NOTES, MIXED], 300)


@pytest.fixture
def their_file(tmp_path, trained) -> Path:
    path = tmp_path / "theirs.json"
    path.write_bytes(trained.content)
    return path


def unigram(texts: list[str]) -> str:
    """A tokenizer.json whose tokens spell no bytes of their own: a word's first has its space."""
    import tokenizers

    theirs = tokenizers.Tokenizer(tokenizers.models.Unigram())
    theirs.normalizer = tokenizers.normalizers.NFKC()
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    theirs.decoder = tokenizers.decoders.Metaspace()
    options = {"unk_token": "<unk>", "special_tokens": ["<unk>", "</s>"], "show_progress": False}
    trainer = tokenizers.trainers.UnigramTrainer(vocab_size=120, **options)
    theirs.train_from_iterator(texts, trainer)
    theirs.enable_truncation(4)
    theirs.enable_padding(length=64)
    return theirs.to_str()


# --- the tokenizers ----------------------------------------------------------------------------


def every_tokenizer(trained) -> list[tokenizer.Tokenizer]:
    return [make_tokenizer("char", [MIXED]), Bytes(), GPT2(), trained]


def test_a_document_is_spelt_back_and_its_bytes_are_counted(gpt2_merges, trained):
    for theirs in every_tokenizer(trained):
        tokens = theirs.encode_documents([MIXED, "", "a"])
        assert [theirs.decode(part.tolist()) for part in tokens] == [MIXED, "", "a"]
        assert {part.dtype for part in tokens} == {np.dtype("<u2")}
        assert max(map(np.max, [tokens[0], tokens[2]])) < theirs.vocab_size
        assert theirs.count_bytes(tokens[0]) == len(MIXED.encode())
        assert theirs.end is not None
        assert theirs.encode("tabs 12") == theirs.encode_documents(["tabs 12"])[0].tolist()


def test_bytes_are_counted_wherever_tokens_cut_a_character(gpt2_merges, trained):
    for theirs in (Bytes(), GPT2(), trained):
        tokens = theirs.encode_documents([MIXED])[0]
        torn = 0
        for first, last in pairwise([0, 3, 17, *range(20, len(tokens), 7), len(tokens)]):
            torn += "�" in theirs.decode(tokens[first:last].tolist())
        parts = [theirs.count_bytes(tokens[i : i + 1]) for i in range(len(tokens))]
        assert torn, "some cut should fall within a character"
        assert sum(parts) == len(MIXED.encode())


def test_a_special_token_is_one_of_a_prompt_text_of_a_document_and_no_bytes(gpt2_merges, trained):
    for theirs in (GPT2(), trained):
        name = "<|endoftext|>"
        assert theirs.encode(f"a{name}")[-1] == theirs.end
        document = theirs.encode_documents([f"a{name}"])[0]
        assert theirs.end not in document
        assert theirs.decode(document.tolist()) == f"a{name}"
        assert theirs.decode([theirs.end]) == theirs.end_name == name
        assert theirs.count_bytes(np.array([theirs.end], "<u2")) == 0


def test_gpt2s_are_tiktokens(gpt2_merges):
    import tiktoken

    theirs = tiktoken.get_encoding("gpt2")
    assert GPT2().encode_documents([MIXED])[0].tolist() == theirs.encode_ordinary(MIXED)
    assert (GPT2().vocab_size, GPT2().end) == (theirs.n_vocab, theirs.eot_token)
    assert GPT2().decode([50256, 50257, 50303]) == "<|endoftext|>"
    assert GPT2().count_bytes(np.array([50303, 220], "<u2")) == 1


def test_what_is_no_utf8_in_json_is_replaced_as_tiktoken_does(gpt2_merges, trained):
    for theirs in (GPT2(), trained):
        ids = theirs.encode_documents(["a\ud83d b"])[0].tolist()
        assert theirs.decode(ids) == "a� b"
    assert "UTF-8" in refusal(Bytes().encode, "\udcff")


def test_characters_outside_the_alphabet_are_named():
    theirs = Characters(list("abc"))
    assert theirs.encode_documents(["cab"])[0].tolist() == [2, 0, 1]
    exported = tokenizer.TokenizerFile(theirs.to_json().encode(), "hf/tokenizer.json")
    for known in (theirs, exported):
        assert "no symbol for 'x'" in refusal(known.encode_documents, ["abcx"])
        assert "no symbol for 'x'" in refusal(known.encode, "abcx")


def test_every_tokenizer_saved_is_a_tokenizer_json(tmp_path, gpt2_merges, trained):
    """What goes with an export: `tokenizers` does with it what we do."""
    import tokenizers

    digests = set()
    for number, ours in enumerate(every_tokenizer(trained)):
        folder = tmp_path / str(number)
        folder.mkdir()
        ours.save(folder, 8)
        theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        theirs.encode_special_tokens = True
        ids = ours.encode_documents([MIXED])[0].tolist()
        assert theirs.encode(MIXED).ids == ids
        assert theirs.decode(ids, skip_special_tokens=False) == MIXED
        config = json.loads((folder / "tokenizer_config.json").read_text())
        assert config.get("eos_token") == config.get("pad_token") == ours.end_name
        assert config["model_max_length"] == 8
        if ours.end_name:
            assert theirs.token_to_id(ours.end_name) == ours.end
        again = tokenizer.TokenizerFile((folder / "tokenizer.json").read_bytes(), "again")
        assert again.digest == ours.digest  # GPT-2's is written down
        digests.add(ours.digest)
    assert len(digests) == 4


def test_training_is_the_same_in_every_process(tmp_path, trained):
    (tmp_path / "text").write_bytes(NOTES.encode() + b"\0" + MIXED.encode())
    code = (
        "import sys; from nanoscale.data.tokenizer import train_bpe; "
        f"texts = open({str(tmp_path / 'text')!r}, newline='').read().split(chr(0)); "
        "sys.stderr.buffer.write(train_bpe(texts, 300).content)"
    )
    assert run_python("-c", code).stderr.encode() == trained.content
    assert (trained.vocab_size, trained.end) == (300, 0)


def test_merges_are_learnt_from_the_first_characters(monkeypatch):
    monkeypatch.setattr(tokenizer, "TRAINED_ON", 30)
    texts = ["first words ", "of a long text ", "and its end " * 9]
    assert train_bpe(texts, 300).content == train_bpe([*texts[:2], "and"], 300).content


def test_fewer_tokens_than_asked_for_are_said(capsys):
    assert train_bpe(["aaaa"], 258).vocab_size == 258
    assert "learnt" not in capsys.readouterr().out
    assert train_bpe(["aaaa"], 300).vocab_size == 259
    assert "learnt 259 tokens, not 300: the text has no more pairs" in capsys.readouterr().out


def test_a_tokenizer_that_changes_text_counts_what_it_decodes(tmp_path):
    path = tmp_path / "unigram.json"
    path.write_text(unigram(["ﬁve ﬁsh swim", *NOTES.split(".")]), encoding="utf-8")
    theirs = make_tokenizer(str(path), [])
    text = "ﬁve ﬁsh swim every day, and a note " * 3
    tokens = theirs.encode_documents([text])[0]  # not four of them
    spelt = theirs._tokenizer.decode(tokens.tolist())
    assert spelt.split() == text.replace("ﬁ", "fi").split()
    assert theirs.decode(theirs.encode("swim")) == "swim"  # without padding to 64
    assert theirs.count_bytes(tokens) == len(spelt.encode()) != len(text.encode())
    assert theirs.end == theirs._tokenizer.token_to_id("</s>")
    three = np.concatenate([tokens, [theirs.end], tokens, [theirs.end], tokens])
    assert theirs.count_bytes(three) == 3 * theirs.count_bytes(tokens)


def test_what_ends_a_document_is_in_the_config_beside_a_tokenizer(tmp_path, trained):
    record = json.loads(trained.content)
    for number, name in ((300, "<|im_end|>"), (301, "<turn>")):
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        record["added_tokens"].append({"id": number, "content": name, **flags, "special": True})
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(record))
    assert make_tokenizer(str(path), []).end == 0
    for eos in ("<turn>", {"content": "<turn>"}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
        assert make_tokenizer(str(path), []).end == 301
    for odd in ({"eos_token": None}, [], {"eos_token": "<none>"}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(odd))
        assert make_tokenizer(str(path), []).end == 0


# --- folders -----------------------------------------------------------------------------------


@pytest.mark.skipif(not SHAKESPEARE.exists(), reason="no tinyshakespeare here")
def test_shakespeare_is_nanogpts_by_gpt2s_tokens(tmp_path, monkeypatch, gpt2_merges, capsys):
    out = tmp_path / "shakespeare"
    prepare.prepare("shakespeare", input=str(SHAKESPEARE), out=out)
    expected = {
        "train": (301_966, [5962, 22307, 25, 198, 8421], [198, 1537, 508, 2058, 994]),
        "val": (36_059, [30, 198, 198, 28934, 8895], [14210, 1242, 23137, 13, 198]),
    }
    assert listing(out) == ["meta.json", "train.bin", "val.bin"]  # nanoGPT has no meta.pkl here
    opened = open_dataset(str(out))
    text = SHAKESPEARE.read_text()
    cut = int(len(text) * 0.9)
    for split, part in (("train", text[:cut]), ("val", text[cut:])):
        count, first, last = expected[split]
        tokens = np.fromfile(out / f"{split}.bin", "<u2").tolist()
        assert (len(tokens), tokens[:5], tokens[-5:]) == (count, first, last)
        assert opened.bytes_per_token(split) == len(part.encode()) / count
    assert (opened.vocab_size, opened.meta.kind) == (50304, "gpt2")
    printed = capsys.readouterr().out.splitlines()
    assert "train has 301,966 tokens" in printed
    prepare.prepare("shakespeare", out=out)  # no download: it is there
    (out / "meta.json").unlink()
    assert open_dataset(str(out)).fingerprint == opened.fingerprint
    assert open_dataset(str(out)).vocab_size == opened.vocab_size

    prepare.prepare("shakespeare", input=str(SHAKESPEARE), out=out)
    monkeypatch.setattr(prepare, "_download", lambda url: SHAKESPEARE.read_bytes())
    # the same text is not the same tokens
    assert "--overwrite" in refusal(prepare.prepare, "shakespeare_char", out=out)
    prepare.prepare("shakespeare_char", out=out, overwrite=True)
    assert open_dataset(str(out)).meta.kind == "char"


@pytest.mark.parametrize("choice", ["gpt2", "train:300", "theirs.json"])
def test_a_text_by_any_tokenizer(tmp_path, monkeypatch, gpt2_merges, their_file, choice):
    monkeypatch.chdir(tmp_path)
    text = NOTES + MIXED
    Path("notes.txt").write_bytes(text.encode())
    for _ in range(2):
        out = prepare.prepare("text", input="notes.txt", tokenizer=choice)
        opened = open_dataset("text")
        cut = int(len(text) * 0.9)
        for split, part in (("train", text[:cut]), ("val", text[cut:])):
            tokens = opened.tokens[split]
            assert opened.decode(tokens.tolist()) == part
            assert opened.bytes_per_token(split) == len(part.encode()) / len(tokens)
        meta = json.loads((out / "meta.json").read_text())
        assert meta["dtype"] == "uint16"
    if choice == "gpt2":
        assert listing(out) == ["meta.json", "train.bin", "val.bin"]
    else:
        assert listing(out) == ["meta.json", "meta.pkl", "tokenizer.json", "train.bin", "val.bin"]
        sha256 = hashlib.sha256((out / "tokenizer.json").read_bytes()).hexdigest()
        assert meta["tokenizer"] == {"file": "tokenizer.json", "sha256": sha256, "end": 0}
        with open(out / "meta.pkl", "rb") as file:
            assert pickle.load(file) == {"vocab_size": opened.vocab_size}
    prepare.prepare("text", input="notes.txt", out=out, overwrite=True)
    assert listing(out) == ["meta.json", "meta.pkl", "train.bin", "val.bin"]
    assert open_dataset("text").decode([0])


def test_a_text_in_pieces_has_the_tokens_of_the_whole(monkeypatch, gpt2_merges, trained):
    """White space of every kind around the cuts."""
    monkeypatch.setattr(documents, "PIECE", 5)
    monkeypatch.setattr(documents, "PIECES", 3)
    dice = np.random.default_rng(7)
    signs = [*"  \n\n\n\r\tab1.'é", "\x1c", "\x85", "\u3000", "'s", "\r\n", "word", "😀"]
    pieces = 0
    for _ in range(300):
        text = "".join(dice.choice(signs, dice.integers(1, 40)))
        pieces += len(list(documents.lines_apart(text)))
        for theirs in (GPT2(), trained):
            whole = theirs.encode_documents([text])[0].tolist()
            parts = documents.encoded_in_pieces(text, theirs, "")
            assert np.concatenate(list(parts)).tolist() == whole, text
    assert pieces > 600


def test_own_merges_are_learnt_from_the_training_split_alone(tmp_path):
    text = "in the training split " * 9 + "beyond it"
    (tmp_path / "text.txt").write_text(text)
    out = prepare.prepare(
        "text", input=str(tmp_path / "text.txt"), tokenizer="train:300", out=tmp_path / "out"
    )
    assert (out / "tokenizer.json").read_bytes() == train_bpe(
        [text[: int(len(text) * 0.9)]], 300
    ).content


def test_a_folder_by_gpt2s_tokens_has_an_end_after_each_document(tmp_path, gpt2_merges):
    (tmp_path / "in").mkdir()
    notes = [f"Note {i}: {'ö' * i}\n" for i in range(30)]
    for i, note in enumerate(notes):
        (tmp_path / "in" / f"{i}.txt").write_text(note, encoding="utf-8")
    out = tmp_path / "out"
    opened = open_dataset(
        str(prepare.prepare("text", input=str(tmp_path / "in"), tokenizer="gpt2", out=out))
    )
    texts = [opened.decode(opened.tokens[split].tolist()) for split in SPLITS]
    found = [text.split("<|endoftext|>") for text in texts]
    assert sorted(document for part in found for document in part[:-1]) == sorted(notes)
    assert [part[-1] for part in found] == ["", ""]
    chosen = [hashlib.sha256(note.encode()).digest() for note in notes]
    val = [digest for digest in chosen if int.from_bytes(digest[:8], "big") % 20 == 0]
    assert len(found[1]) - 1 == (len(val) or 1)
    for split, part in zip(SPLITS, found, strict=True):
        expected = len("".join(part).encode()) / len(opened.tokens[split])
        assert opened.bytes_per_token(split) == expected


def wide_tokenizer(size: int) -> str:
    """A tokenizer.json of words w0, w1, ... whose ids are the last below `size`."""
    vocab = {f"w{number}": size - 20 + number for number in range(20)}
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": [],
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"},
        }
    )


@pytest.mark.parametrize(("size", "dtype"), [(2**16, "uint16"), (2**16 + 1, "uint32")])
def test_the_vocabulary_chooses_the_type_of_the_tokens(tmp_path, size, dtype):
    (tmp_path / "words.json").write_text(wide_tokenizer(size))
    (tmp_path / "text.txt").write_text(" ".join(f"w{number}" for number in range(20)))
    given = {"input": str(tmp_path / "text.txt"), "tokenizer": str(tmp_path / "words.json")}
    opened = open_dataset(str(prepare.prepare("text", **given, out=tmp_path / "out")))
    assert opened.vocab_size == size
    assert opened.tokens["val"].dtype == np.dtype(dtype)
    assert opened.meta.dtype == dtype
    assert opened.tokens["val"].tolist()[-1] == size - 1
    assert opened.decode(opened.encode("w3 w19")) == "w3 w19"
    assert opened.meta.tokenizer.end is None


def test_bytes_of_a_text_that_no_token_spells_are_unknown(tmp_path):
    record = json.loads(wide_tokenizer(20))
    record["added_tokens"] = [
        {"id": 0, "content": "w0", "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    ]
    (tmp_path / "words.json").write_text(json.dumps(record))
    (tmp_path / "text.txt").write_text("unknown words " * 9)
    given = {"input": str(tmp_path / "text.txt"), "tokenizer": str(tmp_path / "words.json")}
    opened = open_dataset(str(prepare.prepare("text", **given, out=tmp_path / "out")))
    assert [opened.bytes_per_token(split) for split in SPLITS] == [None, None]


# --- bad input ---------------------------------------------------------------------------------


def without(package: str):
    return lambda patch, folder: patch.setitem(sys.modules, package, None)


BAD = {
    "say the same thing twice": ({"kind": "char", "tokenizer": "gpt2"}, None),
    "did you mean 'gpt2'": ({"tokenizer": "gpt"}, None),
    "choose 'char', 'byte', 'gpt2', 'FILE.json' or 'train:VOCAB'": ({"tokenizer": "x"}, None),
    "train:256: VOCAB is a number from 257": ({"tokenizer": "train:256"}, None),
    "train:many: VOCAB is a number": ({"tokenizer": "train:many"}, None),
    "none.json is not a file": ({"tokenizer": "none.json"}, None),
    "notes.json is not a tokenizer.json": ({"tokenizer": "notes.json"}, None),
    "binary.json is not a tokenizer.json": ({"tokenizer": "binary.json"}, None),
    "mute.json has no symbol for 'E'": ({"tokenizer": "mute.json"}, None),
    "pip install 'nanoscale[hf]'": ({"tokenizer": "train:300"}, without("tokenizers")),
    "GPT-2's tokenizer needs tiktoken": ({"tokenizer": "gpt2"}, without("tiktoken")),
    "binary.json is not UTF-8 text": ({"tokenizer": "gpt2", "input": "binary.json"}, None),
    "holds 1 characters": ({"tokenizer": "train:300", "input": "one.txt"}, None),
}


@pytest.mark.parametrize("expected", BAD)
def test_a_bad_tokenizer_is_named_and_leaves_nothing(tmp_path, monkeypatch, gpt2_merges, expected):
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text(NOTES, encoding="utf-8")
    Path("notes.json").write_text('{"a": 1}')
    Path("binary.json").write_bytes(b"\x89PNG")
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "none"}
    Path("mute.json").write_text(json.dumps({"version": "1.0", "model": model}))
    Path("one.txt").write_text("1")
    options, spoil = BAD[expected]
    if spoil:
        tokenizer.gpt2_encoding.cache_clear()
        spoil(monkeypatch, tmp_path)
    before = listing(tmp_path)
    message = refusal(prepare.prepare, "text", **{"input": "notes.txt"} | options, out=Path("a/b"))
    assert expected in message
    assert listing(tmp_path) == before
    tokenizer.gpt2_encoding.cache_clear()


def test_a_tokenizer_json_without_its_library_is_not_blamed(monkeypatch, their_file):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    expected = "a tokenizer.json needs tokenizers: run `pip install 'nanoscale[hf]'`"
    assert refusal(make_tokenizer, str(their_file), []) == expected


def test_a_tokenizer_json_that_changed_since_is_refused(tmp_path, their_file):
    (tmp_path / "notes.txt").write_text(NOTES, encoding="utf-8")
    out = tmp_path / "out"
    prepare.prepare("text", input=str(tmp_path / "notes.txt"), tokenizer=str(their_file), out=out)
    path = out / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b"endoftext", b"endoftexd"))
    opened = open_dataset(str(out))  # its ids train as they did
    assert "has changed since its data set was prepared" in refusal(opened.decode, [1])
    path.unlink()
    assert "tokenizer.json is not a file" in refusal(opened.decode, [1])


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer": None},
        {"tokenizer": {"file": "../tokenizer.json", "sha256": ""}},
        {"tokenizer": {"file": "tokenizer.json"}},
        {"tokenizer": {"file": 3, "sha256": ""}},
        {"itos": ["a"]},
    ],
    ids=str,
)
def test_a_meta_that_names_no_tokenizer_is_refused(tmp_path, their_file, changes):
    (tmp_path / "notes.txt").write_text(NOTES, encoding="utf-8")
    out = tmp_path / "out"
    prepare.prepare("text", input=str(tmp_path / "notes.txt"), tokenizer=str(their_file), out=out)
    meta = json.loads((out / "meta.json").read_text())
    (out / "meta.json").write_text(json.dumps(meta | changes))
    assert "not a meta file of ours" in refusal(open_dataset, str(out))
