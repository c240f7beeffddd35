"""Rows of Parquet and JSON lines: a text column of theirs, a document a row, read as it comes."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from nanoscale.data.documents import is_validation, too_few
from nanoscale.data.meta import read_errors
from nanoscale.data.tokenizer import plain_text
from nanoscale.errors import UserError, did_you_mean

COLUMN = "text"  # unless another is named
SUFFIXES = (".parquet", ".jsonl", ".ndjson")
PARQUET = b"PAR1"
ROWS_AT_ONCE = 1024  # rows


def has_rows(path: Path) -> bool:
    """Whether a file's name says that it is Parquet or JSON lines; these may be gzipped."""
    return path.name.removesuffix(".gz").endswith(SUFFIXES)


def texts_of(paths: Iterable[Path], column: str) -> Iterator[str | None]:
    """The text of every row, None where it has none, file after file.

    Raises:
        UserError: a file is neither Parquet nor JSON lines, or has no such column of text.
    """
    for path in paths:
        rows = _parquet(path, column) if _is_parquet(path) else _json_lines(path, column)
        for number, value in enumerate(rows, start=1):
            if not isinstance(value, str | None):
                raise UserError(
                    f"{path} holds {type(value).__name__} in row {number:,} of column {column!r}, "
                    "not text; name a column of text with --column"
                )
            yield value or None


def digest_of(paths: Iterable[Path]) -> str:
    """The SHA-256 of the files' contents, in their order."""
    whole = hashlib.sha256()
    for path in paths:
        with read_errors(path), open(path, "rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def split_rule(texts: Iterable[str | None], where: object) -> Callable[[str], bool]:
    """Which documents are validation: hash mod 20 == 0; of a few, the one of the smallest hash.

    `texts` are read until there is one of each.
    """
    found = set()
    distinct = set()
    for text in filter(None, texts):
        digest = _digest(text)
        found.add(is_validation(digest))
        if len(found) == 2:
            return lambda text: is_validation(_digest(text))
        distinct.add(digest)
    if len(distinct) < 2:
        raise too_few(len(distinct), where)
    least = min(distinct)
    return lambda text: _digest(text) == least


def _digest(text: str) -> bytes:
    return hashlib.sha256(plain_text(text).encode()).digest()


def _is_parquet(path: Path) -> bool:
    if path.suffix == ".parquet":
        return True
    with read_errors(path), open(path, "rb") as file:
        return file.read(len(PARQUET)) == PARQUET


def _parquet(path: Path, column: str) -> Iterator[object]:
    try:
        from pyarrow import parquet  # type: ignore[import-untyped, unused-ignore]  # an extra
    except ImportError as e:
        raise UserError(
            f"reading {path} needs pyarrow: run `pip install 'nanoscale[parquet]'`"
        ) from e
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column not in names:
                raise _no_column(path, column, names)
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=[column]):
                yield from batch.column(0).to_pylist()
    except (OSError, ValueError) as e:  # pyarrow's own are of these kinds
        raise UserError(
            f"{path} cannot be read as Parquet ({e}); get the file again, or take it out"
        ) from e


def _json_lines(path: Path, column: str) -> Iterator[object]:
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with read_errors(path), opened(path, "rb") as file:
        known = False
        lines = enumerate(file, start=1)
        while (line := _next_line(lines, path)) is not None:
            number, content = line
            if content.isspace():
                continue
            row = _row(content, path, number, column)
            if column not in row and not known:
                raise _no_column(path, column, list(row))
            known = True
            yield row.get(column)


def _next_line(lines: Iterator[tuple[int, bytes]], path: Path) -> tuple[int, bytes] | None:
    try:
        return next(lines, None)
    except (EOFError, zlib.error) as e:
        raise UserError(f"{path} is damaged ({e}); get the file again") from e


def _row(line: bytes, path: Path, number: int, column: str) -> dict[str, object]:
    try:
        pairs = json.loads(line, object_pairs_hook=tuple)
    except (ValueError, RecursionError):
        pairs = None
    if not isinstance(pairs, tuple):
        remedy = "mend or delete the line; of plain text, let the file's name end in .txt"
        if not has_rows(path):
            remedy = "leave --column out for plain text"
        raise UserError(f"{path} is not JSON lines: line {number:,} is no JSON object; {remedy}")
    row: dict[str, object] = dict(pairs)
    if len(row) < len(pairs) and [key for key, _ in pairs].count(column) > 1:
        raise UserError(f"{path} names {column!r} twice in line {number:,}; delete one of them")
    return row


def _no_column(path: Path, column: str, names: list[str]) -> UserError:
    near = did_you_mean(column, names)
    return UserError(
        f"{path} has no column {column!r}{near}; it has {', '.join(map(repr, names))}: name one "
        "with --column"
    )
