"""Text to token files, for `nanoscale data prepare NAME` and the doors `data/<name>/prepare.py`.

A recipe gives a `Corpus`: an alphabet and, per split, pieces of text. One writer makes the folder
from it, in nanoGPT's format: `train.bin`, `val.bin`, `meta.pkl`, and our `meta.json`. The folder
changes only when everything has been written beside it, and only where the content is new.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import pickle
import platform
import site
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanoscale.data.dataset import Integers, Tokens, open_dataset, symbol_bytes
from nanoscale.data.documents import (
    DOCUMENT_END,
    Documents,
    characters_of,
    choose_symbols,
    encoder,
    files_below,
)
from nanoscale.data.meta import META_SCHEMA, SPLITS, read_errors
from nanoscale.data.synthetic import DEFAULT_SEED, SYMBOLS, markov_chain
from nanoscale.errors import UserError, did_you_mean, disk_errors, make_folder, one_of

TEXT_KINDS = ("char", "byte")
ARGUMENTS: dict[str, tuple[str, ...]] = {  # what each dataset may be given
    "shakespeare_char": ("input",),
    "pysource": (),
    "text": ("input", "kind"),
    "synthetic": ("seed",),
}

SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

PACKAGE_FOLDERS = ("site-packages", "dist-packages")


@dataclass(frozen=True)
class Corpus:
    """What a recipe makes: symbols (None: the 256 bytes), tokens in pieces, facts for the meta."""

    kind: str
    symbols: Sequence[str] | None
    splits: Mapping[str, Iterable[Tokens]]
    facts: Mapping[str, object]


def prepare(
    name: str,
    *,
    input: str | None = None,
    kind: str | None = None,
    out: Path | None = None,
    seed: int | None = None,
) -> Path:
    """Make the dataset `name` in `out` (default `data/<name>` here) and return that folder.

    `input` is for shakespeare_char (the file itself) and text (a file or folder), `kind` ('char' or
    'byte'; default char, or byte where that makes the smaller vocabulary) for text, `seed` for
    synthetic. Raises `UserError` and leaves nothing behind if anything is in the way.

    >>> import nanoscale as ns
    >>> folder = ns.prepare("synthetic", seed=3)
    vocab size: 32...
    >>> sorted(path.name for path in folder.iterdir())
    ['meta.json', 'meta.pkl', 'train.bin', 'val.bin']
    """
    if name not in ARGUMENTS:
        near = did_you_mean(name, ARGUMENTS)
        raise UserError(f"cannot prepare {name!r}{near}; known: {one_of(ARGUMENTS)}")
    for option, value in (("input", input), ("kind", kind), ("seed", seed)):
        if value is not None and option not in ARGUMENTS[name]:
            raise UserError(f"{name} takes no --{option} (given: {value!r}); leave it out")
    out = Path("data", name) if out is None else Path(out)
    lies_there = out / "input.txt"  # where nanoGPT's own script keeps the text
    if name == "shakespeare_char" and input is None and lies_there.is_file():
        input = str(lies_there)
    if name == "shakespeare_char" and input is None and holds_shakespeare(out):
        print(f"{out} is unchanged")
    else:
        write(out, name, _corpus(name, input, kind, out, DEFAULT_SEED if seed is None else seed))
    return out


def _corpus(name: str, input: str | None, kind: str | None, out: Path, seed: int) -> Corpus:
    if name == "shakespeare_char":
        return shakespeare_char(input)
    if name == "pysource":
        return pysource(python_roots())
    if name == "text":
        return text(input, kind, out)
    return synthetic(seed)


# --- recipes -----------------------------------------------------------------------------------


def shakespeare_char(input: str | None) -> Corpus:
    """tinyshakespeare by characters, downloaded or from a local copy; checked by SHA-256."""
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
    return _one_file(raw, "char", "tinyshakespeare")


def holds_shakespeare(folder: Path) -> bool:
    """Whether `folder` is tinyshakespeare already, so that nothing need be downloaded."""
    try:
        source = open_dataset(str(folder.resolve())).meta.facts["source"]
        return bool(source["sha256"] == SHAKESPEARE_SHA256)
    except (UserError, LookupError, TypeError):
        return False


def text(input: str | None, kind: str | None, out: Path) -> Corpus:
    """The user's file (its last tenth is validation) or folder (split by document).

    Of a folder every regular file counts, but for hidden ones and for the folder `out`. Without a
    `kind`, text of at most 256 different characters is read by character, other text by byte.
    What is not UTF-8 is refused unless `kind` is 'byte'.
    """
    if input is None:
        raise UserError("text needs --input FILE_OR_FOLDER")
    if kind is not None and kind not in TEXT_KINDS:
        raise UserError(
            f"--kind {kind!r} is none of {one_of(TEXT_KINDS)}{did_you_mean(kind, TEXT_KINDS)}"
        )
    if not os.path.isdir(input):
        return _one_file(_read_file(input), kind, input)
    return _folder(input, kind, out)


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
    splits = documents.splits("the Python installation", encoder(None))
    return Corpus("byte", None, splits, {"source": facts})


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
    return Corpus("synthetic", list(SYMBOLS), {"train": [chain.train], "val": [chain.val]}, facts)


# --- reading text ------------------------------------------------------------------------------


def _read_file(path: str) -> bytes:
    if not os.path.isfile(path):
        raise UserError(f"--input {path} is not a file; give the path of a text")
    with read_errors(path):
        return Path(path).read_bytes()


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


def _one_file(raw: bytes, kind: str | None, path: str) -> Corpus:
    """One text, cut at 90 % of its tokens as nanoGPT cuts it."""
    present = set() if kind == "byte" else characters_of(raw, path)
    symbols = choose_symbols(kind, present, path)
    tokens = encoder(symbols)(raw)
    cut = int(len(tokens) * 0.9)
    if cut == 0:
        raise UserError(f"{path} holds {len(tokens)} tokens, too few to split; give a longer text")
    splits = {"train": [tokens[:cut]], "val": [tokens[cut:]]}
    facts = {"source": {"sha256": hashlib.sha256(raw).hexdigest()}}
    return Corpus("byte" if symbols is None else "char", symbols, splits, facts)


def _folder(input: str, kind: str | None, out: Path) -> Corpus:
    def refuse(error: OSError) -> None:
        with read_errors(error.filename):
            raise error

    present = {DOCUMENT_END.decode()}
    documents = Documents()
    paths = files_below([Path(input)], lambda name: name[0] == ".", refuse, seen=[out])
    for path in paths:
        with read_errors(path):
            raw = path.read_bytes()
        if kind != "byte":
            present |= characters_of(raw, path)
        documents.add(path, raw)
    symbols = choose_symbols(kind, present, input)
    splits = documents.splits(input, encoder(symbols))
    kind = "byte" if symbols is None else "char"
    return Corpus(kind, symbols, splits, {"source": documents.facts()})


# --- writing -----------------------------------------------------------------------------------


def write(out: Path, name: str, corpus: Corpus) -> None:
    """Write the folder; files whose content is already there are left as they are."""
    # nanoGPT joins strings, so for it a byte is the character of the same number
    characters = corpus.symbols or [chr(byte) for byte in range(256)]
    widths = symbol_bytes(characters)
    if corpus.symbols is None:
        widths = np.ones_like(widths)
    splits = {}
    with _staged(out) as stage:
        for split in SPLITS:
            splits[split] = _write_tokens(stage / f"{split}.bin", corpus.splits[split], widths)
        theirs = {
            "vocab_size": len(characters),
            "itos": dict(enumerate(characters)),
            "stoi": {character: number for number, character in enumerate(characters)},
        }
        (stage / "meta.pkl").write_bytes(pickle.dumps(theirs, protocol=4))
        ours = {
            "schema": META_SCHEMA,
            "dataset": name,
            "kind": corpus.kind,
            "vocab_size": len(characters),
            "itos": corpus.symbols,
            "splits": splits,
            **corpus.facts,
        }
        (stage / "meta.json").write_text(json.dumps(ours, indent=1) + "\n")
        changed = _replace(stage, out)

    print(f"vocab size: {len(characters):,}")
    for split in SPLITS:
        print(f"{split} has {splits[split]['tokens']:,} tokens")
    print(f"{out} is ready" if changed else f"{out} is unchanged")


def _write_tokens(path: Path, pieces: Iterable[Tokens], widths: Integers) -> dict[str, int | str]:
    """Write one .bin and return its counts: tokens, UTF-8 bytes, SHA-256."""
    n_tokens = n_bytes = 0
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for piece in pieces:
            raw = piece.tobytes()
            file.write(raw)  # not ndarray.tofile, which loses errno when the disk is full
            digest.update(raw)
            n_tokens += len(piece)
            symbols = widths[piece]
            n_bytes += int(symbols.sum())
    return {"tokens": n_tokens, "bytes": n_bytes, "sha256": digest.hexdigest()}


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """A temporary folder inside `out`; after a failure, no folder made on the way remains."""
    made = [folder for folder in (out, *out.parents) if not os.path.exists(folder)]
    try:
        make_folder(out)
        with disk_errors(out), tempfile.TemporaryDirectory(prefix=".prepare-", dir=out) as stage:
            yield Path(stage)
    except BaseException:
        with suppress(OSError):
            for folder in made:
                folder.rmdir()
        raise


def _replace(stage: Path, out: Path) -> bool:
    """Move the staged files that differ from those in `out` there; whether there were any."""
    # meta.json last: until it is there, the old one's token counts give a torn set away
    names = ("train.bin", "val.bin", "meta.pkl", "meta.json")
    same, _, _ = filecmp.cmpfiles(stage, out, names, shallow=False)
    changed = [name for name in names if name not in same]
    for name in changed:
        os.replace(stage / name, out / name)
    return bool(changed)
