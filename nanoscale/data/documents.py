"""From folders and bytes to tokens: which files are read, which are kept, what a symbol is.

A document is known by the SHA-256 of its content: that drops exact copies, orders what is kept and
chooses the validation split, so that nothing depends on where the files lie or how they are named.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from nanoscale.data.gauge import open_gauge
from nanoscale.data.meta import read_errors
from nanoscale.data.tokenizer import Tokenizer, Tokens, byte_tokens
from nanoscale.errors import UserError

MAX_SYMBOLS = 2**16  # a token is a uint16
END_OF_LINE = re.compile(r"\n(?=\S)")
PIECE = 2**18  # characters of a long text that are encoded together
PIECES = 64


def files_below(
    roots: Iterable[Path],
    left_out: Callable[[str], bool],
    on_error: Callable[[OSError], None],
    seen: Iterable[Path] = (),
) -> list[Path]:
    """Regular files below `roots`, but for names left out; each folder once, whatever links to it.

    Folders in `seen` count as visited; folders that cannot be listed go to `on_error`.
    """
    visited = {os.path.realpath(folder) for folder in seen}
    found: list[Path] = []
    for root in roots:
        for folder, folders, files in os.walk(root, onerror=on_error, followlinks=True):
            real = os.path.realpath(folder)
            if real in visited:
                folders.clear()
                continue
            visited.add(real)
            folders[:] = sorted(name for name in folders if not left_out(name))
            kept = sorted(name for name in files if not left_out(name))
            found += filter(os.path.isfile, map(Path(real).joinpath, kept))
    return found


@dataclass
class Documents:
    """Distinct documents by SHA-256: order and split follow the content, never the path."""

    paths: dict[bytes, Path] = field(default_factory=dict)
    duplicates: int = 0
    skipped: int = 0

    def add(self, path: Path, raw: bytes) -> None:
        """Keep a document unless it is empty or one with this content is kept already."""
        if raw and self.paths.setdefault(hashlib.sha256(raw).digest(), path) is not path:
            self.duplicates += 1

    def skip(self, _error: OSError | None = None) -> None:
        """Count something that could not be read."""
        self.skipped += 1

    def facts(self) -> dict[str, int]:
        """Counts for the meta."""
        return {
            "documents": len(self.paths),
            "duplicates": self.duplicates,
            "unreadable": self.skipped,
        }

    def splits(self, where: str) -> dict[str, list[bytes]]:
        """The documents of each split, by their hashes: hash mod 20 == 0 is validation.

        Should that be none or all of a few documents, it is the one of the smallest hash.
        """
        ordered = sorted(self.paths)
        if len(ordered) < 2:
            raise too_few(len(ordered), where)
        print(
            f"kept {len(ordered):,} documents, dropped {self.duplicates:,} exact duplicates, "
            f"skipped {self.skipped:,} unreadable",
            flush=True,
        )
        val = [digest for digest in ordered if is_validation(digest)]
        if len(val) in (0, len(ordered)):
            val = ordered[:1]
        train = sorted(set(ordered).difference(val))
        return {"train": train, "val": val}

    def read(self, digests: Iterable[bytes]) -> Iterator[bytes]:
        """The documents of these hashes, one at a time."""
        for digest in digests:
            path = self.paths[digest]
            with read_errors(path):
                raw = path.read_bytes()
            if hashlib.sha256(raw).digest() != digest:
                raise UserError(f"{path} changed while it was read; prepare again when it rests")
            yield raw


def encoded(documents: Iterable[bytes], tokenizer: Tokenizer) -> Iterator[Tokens]:
    """The token array of each document, with the end of a document after it."""
    encode = encoder(tokenizer)
    for raw in documents:
        tokens = encode(raw)
        if tokenizer.end is not None:
            tokens = np.append(tokens, tokens.dtype.type(tokenizer.end))
        yield tokens


def lines_apart(text: str) -> Iterator[str]:
    """A text in pieces of some `PIECE` characters that GPT-2's pattern never joins to one token.

    They are cut before an end of line that a line follows: of white space before a word, the
    pattern takes the last character, if it is no blank, by itself.
    """
    first = 0
    while first < len(text):
        found = END_OF_LINE.search(text, first + PIECE)
        last = len(text) if found is None else found.start()
        yield text[first:last]
        first = last


def encoded_in_pieces(text: str, tokenizer: Tokenizer, title: str) -> Iterator[Tokens]:
    """The tokens of a text, a few of its pieces at a time."""
    pieces = lines_apart(text)
    done = 0
    with open_gauge(title) as gauge:
        while few := list(islice(pieces, PIECES)):
            yield from tokenizer.encode_documents(few)
            done += sum(map(len, few))
            gauge.show(done, len(text), f"{done:,} of {len(text):,} characters")


def is_validation(digest: bytes) -> bool:
    """Whether a document of this SHA-256 is of the validation split: one in twenty is."""
    return int.from_bytes(digest[:8], "big") % 20 == 0


def too_few(count: int, where: object) -> UserError:
    """The refusal of documents that cannot be split."""
    return UserError(
        f"{where} holds {count} distinct documents, and a split needs two; "
        "give more, or one text file with --input FILE"
    )


def characters_of(raw: bytes, path: object) -> set[str]:
    """The distinct characters of UTF-8 bytes; other bytes are a `UserError`."""
    try:
        return set(raw.decode())
    except UnicodeDecodeError as e:
        raise UserError(
            f"{path} is not UTF-8 text (byte {e.start}); convert it to UTF-8, take it out, or "
            "choose --tokenizer byte"
        ) from e


def choose_symbols(kind: str | None, present: set[str], path: object) -> list[str] | None:
    """The sorted alphabet of a text, or None for bytes; by default whichever is the smaller."""
    count = len(present)
    if kind == "byte" or (kind is None and count > 256):
        return None
    if count > MAX_SYMBOLS:
        raise UserError(
            f"{path} has {count:,} distinct characters, above 65,536; choose --tokenizer byte"
        )
    return sorted(present)


def encoder(tokenizer: Tokenizer) -> Callable[[bytes], Tokens]:
    """UTF-8 bytes -> (n_tokens,); bytes of any kind where a token is one."""
    if tokenizer.kind == "byte":
        return byte_tokens
    return lambda raw: tokenizer.encode_documents([raw.decode()])[0]
