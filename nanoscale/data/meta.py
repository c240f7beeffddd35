"""What the numbers of a data folder mean: meta.json (ours), meta.pkl (nanoGPT's), or nothing."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nanoscale.errors import UserError, one_of

SPLITS = ("train", "val")
META_SCHEMA = 1
GPT2_VOCAB_SIZE = 50304  # 50257 rounded up, nanoGPT's rule for a folder without meta
DTYPES = {"uint16": "<u2", "uint32": "<u4"}  # of the tokens, by their names in a meta
TOKENIZED = ("gpt2", "tokenizer.json")  # kinds whose symbols stand elsewhere


@dataclass(frozen=True)
class TokenizerRecord:
    """The tokenizer.json of a data folder: its name, its SHA-256, the id that ends a document."""

    file: str
    sha256: str
    end: int | None = None


@dataclass(frozen=True)
class Meta:
    """`kind` is char, byte, synthetic, gpt2 or tokenizer.json; ids: there are no symbols."""

    kind: str
    vocab_size: int
    itos: Sequence[str] | None = None  # symbol of each id
    splits: Mapping[str, Mapping[str, Any]] | None = None  # tokens and bytes of each
    dataset: str = ""  # as whom we prepared it
    facts: Mapping[str, Any] = field(default_factory=dict)  # all that meta.json says
    dtype: str | None = None  # of the tokens; unnamed, it is uint16
    tokenizer: TokenizerRecord | None = None


@contextmanager
def read_errors(path: object) -> Iterator[None]:
    """Turn the disk's refusal to let us read `path` into a `UserError`."""
    try:
        yield
    except OSError as e:
        raise UserError(f"cannot read {path}: {(e.strerror or str(e)).lower()}") from e


def read_meta(folder: Path) -> Meta:
    """The meta of a data folder, checked; without a file, it holds GPT-2's tokens."""
    ours = folder / "meta.json"
    theirs = folder / "meta.pkl"
    if os.path.exists(ours):
        with read_errors(ours):
            return _checked_json(ours, ours.read_bytes())
    if os.path.exists(theirs):
        with read_errors(theirs):
            return _from_nanogpt(theirs, _load_plain(theirs, theirs.read_bytes()))
    return Meta("gpt2", GPT2_VOCAB_SIZE)


def other_tokens(ours: Meta, theirs: Meta) -> str | None:
    """By what the ids of two data sets mean other text; None where they mean the same."""
    for what in ("kind", "vocab_size", "itos", "tokenizer"):
        if getattr(ours, what) != getattr(theirs, what):
            return what
    return None


def dtype_of(vocab_size: int) -> str:
    """The type that numbers a vocabulary, by its name in a meta."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


# -- ours -----------------------------------------------------------------------------------------
def _checked_json(path: Path, raw: bytes) -> Meta:
    broken = UserError(f"{path} is not a meta file of ours; prepare the dataset again")
    try:
        record = json.loads(raw)
        newer = record["schema"] > META_SCHEMA
        kind, size, itos = record["kind"], record["vocab_size"], record["itos"]
        meta = Meta(kind, size, itos, record["splits"], record.get("dataset", ""), facts=record)
        dtype = record.get("dtype")
        if meta.kind == "tokenizer.json":
            meta = replace(meta, tokenizer=TokenizerRecord(**record["tokenizer"]))
        counts = [meta.vocab_size]
        for split in SPLITS:
            counts += [record["splits"][split]["tokens"], record["splits"][split]["bytes"] + 1]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as e:
        raise broken from e
    if newer:
        raise UserError(f"{path} is of a newer nanoscale; upgrade, or prepare the dataset again")
    if not _fits(meta) or not all(map(_is_count, counts)):
        raise broken
    return replace(meta, dtype=_checked_dtype(path, dtype))


def _checked_dtype(path: Path, dtype: object) -> str | None:
    if dtype is None:
        return None
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UserError(
            f"{path} names dtype {dtype!r}; tokens are {one_of(DTYPES)}: convert the .bin files "
            "with numpy's astype and name what they are then"
        )
    return dtype


def _fits(meta: Meta) -> bool:
    """Whether the symbols are those of the kind."""
    if meta.kind == "byte":
        return meta.vocab_size == 256 and meta.itos is None
    if meta.kind in TOKENIZED:
        return meta.itos is None and _has_file(meta.tokenizer)
    if not isinstance(meta.itos, list) or not all(isinstance(s, str) for s in meta.itos):
        return False
    return meta.kind in ("char", "synthetic") and len(meta.itos) == meta.vocab_size


def _has_file(record: TokenizerRecord | None) -> bool:
    """Whether a record, if there is one, names a file of its own folder."""
    if record is None:
        return True
    named = isinstance(record.file, str) and Path(record.file).name == record.file
    return named and (record.end is None or isinstance(record.end, int))


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


# -- nanoGPT's ------------------------------------------------------------------------------------
class _PlainUnpickler(pickle.Unpickler):
    """Dictionaries, lists, numbers and strings only: whatever names code is refused unread."""

    def find_class(self, module: str, name: str) -> object:
        raise UserError(f"holds code ({module}.{name}) and was not loaded")


def _load_plain(path: Path, raw: bytes) -> object:
    try:
        return _PlainUnpickler(io.BytesIO(raw)).load()
    except UserError as e:
        raise UserError(f"{path} {e}; prepare the dataset again with a tool you trust") from e
    except Exception as e:  # a damaged pickle may raise nearly anything
        raise UserError(f"{path} is not a readable pickle; prepare the dataset again") from e


def _from_nanogpt(path: Path, loaded: object) -> Meta:
    """Our meta from nanoGPT's `{'vocab_size', 'itos', 'stoi'}`; without itos, bare ids."""
    if not isinstance(loaded, dict) or not _is_count(loaded.get("vocab_size")):
        raise UserError(f"{path} has no vocab_size; prepare the dataset again")
    size = loaded["vocab_size"]
    dtype = _checked_dtype(path, loaded.get("dtype"))
    itos = loaded.get("itos")
    if itos is None:
        return Meta("ids", size, dtype=dtype)

    if isinstance(itos, list | tuple):
        itos = dict(enumerate(itos))
    if not isinstance(itos, dict) or not all(_is_symbol(i, s, size) for i, s in itos.items()):
        raise UserError(f"itos in {path} is not ids below {size} to strings; prepare it again")
    return Meta("char", size, [itos.get(i, "") for i in range(size)], dtype=dtype)


def _is_symbol(number: object, symbol: object, size: int) -> bool:
    return type(number) is int and 0 <= number < size and isinstance(symbol, str)
