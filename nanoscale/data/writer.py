"""Documents to token files, over hours and kills: the same command goes on where it was stopped.

Tokens are appended to files in `OUT/.preparing`, beside a record of the place in the documents up
to which they are good. What lies beyond is cut off by whoever goes on, so that the files are those
of an undisturbed preparation, bit for bit. `OUT` itself changes at the very end.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias, TypeVar

import numpy as np

from nanoscale.data.folder import other_set, replace_files, write_meta
from nanoscale.data.gauge import duration, open_gauge
from nanoscale.data.meta import SPLITS
from nanoscale.data.tokenizer import TOKENIZER_FILE, Integers, Tokenizer, Tokens, plain_text
from nanoscale.errors import UserError, counted, disk_errors, made_folder
from nanoscale.processes import file_lock, removes_open_files

STAGE = ".preparing"
RECORD = "progress.json"
LOCK = "lock"
ALL, LENGTHS = "all.bin", "lengths.bin"  # before a shuffle: every token, and tokens a document
LENGTH = np.dtype("<u4")

CHECKPOINT_SECONDS = 10.0
BATCH = 256  # documents
GATHERED = 4096  # documents of a shuffle written at once

READING, READ, READY = "reading", "read", "ready"  # phases, as the record says them

Place: TypeAlias = Any  # in the documents, as JSON; None is the beginning
Fetched = TypeVar("Fetched")


@dataclass(frozen=True)
class Batch:
    """Documents (None: one without a text), which are validation, and the place after them."""

    texts: Sequence[str | None]
    validation: Sequence[bool]
    place: Place


class Reader(Protocol):
    """Documents in an order that never changes, from any place on."""

    @property
    def total(self) -> int | None:
        """How many there are, where that is known."""

    def batches(self, place: Place) -> Iterator[Batch]:
        """From a place that an earlier batch named; None: from the beginning."""

    def facts(self, place: Place) -> Mapping[str, object]:
        """What the meta says of the source, once its documents are read up to `place`."""


class TextReader:
    """A reader of texts that are quickly read again from the beginning; a place is a number."""

    def __init__(
        self, texts: Callable[[], Iterable[str | None]], is_validation: Callable[[int, str], bool]
    ) -> None:
        self.texts = texts
        self.is_validation = is_validation
        self.total: int | None = None

    def batches(self, place: Place) -> Iterator[Batch]:
        number = place or 0
        left = islice(self.texts(), number, None)
        while texts := list(islice(left, BATCH)):
            validation = []
            for text in texts:
                validation.append(text is not None and self.is_validation(number, text))
                number += 1
            yield Batch(texts, validation, number)

    def facts(self, place: Place) -> Mapping[str, object]:
        return {}


@dataclass(frozen=True)
class Shuffle:
    """Order and split of `datasets`' train_test_split(test_size, seed=seed, shuffle=True)."""

    test_size: float
    seed: int

    def splits(self, documents: int) -> dict[str, Integers]:
        """The documents of each split, by number, in their order."""
        order = np.random.default_rng(self.seed).permutation(documents)
        n_test = math.ceil(self.test_size * documents)
        return {"train": order[n_test:], "val": order[:n_test]}


@dataclass
class Preparation:
    """What is done and will not be lost: the record of an unfinished preparation."""

    request: Mapping[str, object]
    phase: str = READING
    place: Place = None
    documents: int = 0
    without_text: int = 0
    mended: int = 0  # documents with half a surrogate pair, which UTF-8 cannot hold
    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    sha256: dict[str, str] = field(default_factory=dict)
    facts: Mapping[str, object] = field(default_factory=dict)

    def save(self, stage: Path) -> None:
        """Write the record, whole or not at all."""
        record = stage / RECORD
        temporary = stage / f"{RECORD}.tmp"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(asdict(self), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, record)


def write_documents(
    out: Path,
    name: str,
    documents: Reader,
    tokenizer: Tokenizer | Callable[[], Tokenizer],
    request: Mapping[str, object],
    *,
    most: int | None = None,
    shuffle: Shuffle | None = None,
    overwrite: bool = False,
) -> Path:
    """Make the folder `out` of documents, each with the tokenizer's end after it.

    A tokenizer may be made when it is needed, which is where nothing is done yet.
    `request` (in JSON's types) says all that the files follow from: what was begun for the same one
    is gone on with, what is done is left as it is. `most`: the training tokens to make, exactly; by
    default all. `shuffle` replaces the order and the split of the documents. `overwrite`: a set of
    another request may be replaced.

    Raises:
        UserError: anything is in the way; the message says what is kept for the same command.
    """
    if is_done(out, name, request, overwrite):
        return out
    with unfinished(out, request) as (stage, progress):
        if not isinstance(tokenizer, Tokenizer):
            tokenizer = tokenizer()
        if progress.phase == READING:
            with TokenFiles(stage, progress, tokenizer, shuffle is not None) as files:
                _read(files, documents, most)
        if progress.phase == READ:
            _finish(stage, progress, tokenizer, shuffle)
        _put_in_place(stage, out, name, tokenizer, progress)
    print(f"{out} is ready")
    return out


def is_done(out: Path, name: str, request: Mapping[str, object], overwrite: bool = False) -> bool:
    """Whether `out` was made for `request` already, which is said then.

    Raises:
        UserError: a file has changed since, by its SHA-256; or, unless `overwrite`, `out` holds
            another set.
    """
    source, digests = _made_for(out)
    stage = out / STAGE
    if not request.items() <= source.items():
        begun = _recorded(stage / RECORD)
        placing = begun is not None and begun.request == request and begun.phase == READY
        there = [(out / f"{split}.bin").exists() for split in SPLITS]
        if any(there) and not overwrite and not placing:
            new = {key: value for key, value in request.items() if source.get(key) != value}
            old = {key: source.get(key) for key in new}
            raise other_set(out, _said(old), f"{name} of {_said(new)}")
        return False
    for path, digest in digests.items():
        if not path.is_file():
            return False
        if _sha256(path) != digest:
            raise UserError(
                f"{path} has changed since it was prepared (its SHA-256 is no longer that of "
                "meta.json); delete it to prepare it again"
            )
    if stage.exists():  # of who was killed while clearing it away
        with unfinished(out, request):
            pass
    print(f"{out} is unchanged")
    return True


def _made_for(out: Path) -> tuple[Mapping[str, object], dict[Path, str]]:
    """What the set in `out` follows from, as its meta says, and the SHA-256 of its files."""
    digests = {out / f"{split}.bin": "" for split in SPLITS}
    try:
        record = json.loads((out / "meta.json").read_bytes())
        for path in digests:
            digests[path] = record["splits"][path.stem]["sha256"]
        if "tokenizer" in record:
            digests[out / TOKENIZER_FILE] = record["tokenizer"]["sha256"]
        return {**record["source"]}, digests
    except (OSError, ValueError, LookupError, TypeError):
        return {}, digests


# --- what is unfinished ------------------------------------------------------------------------


@contextmanager
def unfinished(out: Path, request: Mapping[str, object]) -> Iterator[tuple[Path, Preparation]]:
    """The stage of a preparation and how far it is: gone at the end, kept for later on a failure.

    Where nothing has been recorded yet, nothing remains.
    """
    stage = out / STAGE
    with made_folder(stage.parent), made_folder(stage), disk_errors(stage), _locked(stage):
        try:
            with disk_errors(out):
                yield stage, _begun(stage, request)
                _clear(stage)
        except BaseException as e:
            kept = _kept(stage, request)
            if not (stage / RECORD).exists():
                with suppress(OSError):
                    _clear(stage)
            if kept and isinstance(e, UserError):
                raise UserError(f"{e}; {kept}") from e
            if kept and isinstance(e, KeyboardInterrupt):
                print(kept, file=sys.stderr)
            raise


def _clear(stage: Path) -> None:
    """Remove a stage, its lock last: until then no other process begins in it."""
    _empty(stage)
    _remove_lock(stage)


def _remove_lock(stage: Path) -> None:
    """Remove an empty stage and its lock."""
    with suppress(OSError):  # another process has begun by now, or the system keeps open files
        if not _left(stage):
            (stage / LOCK).unlink(missing_ok=True)
            stage.rmdir()


def _empty(stage: Path) -> None:
    for left in _left(stage):
        left.unlink()


def _left(stage: Path) -> list[Path]:
    """What is in a stage beside its lock."""
    return [path for path in stage.iterdir() if path.name != LOCK]


def _begun(stage: Path, request: Mapping[str, object]) -> Preparation:
    """How far the stage is; whatever another request has begun there is not thrown away."""
    path = stage / RECORD
    if not path.exists():
        _empty(stage)  # of who was killed at once, for whatever request
        return Preparation(request)
    progress = _recorded(path)
    if progress is None:
        raise UserError(f"{path} is broken; delete {stage} to begin anew")
    if progress.request != request:
        raise UserError(
            f"{stage} holds another unfinished preparation ({_said(progress.request)}); repeat "
            "that one's command, give another folder with --out, or delete it"
        )
    print(f"going on after {progress.documents:,} documents", flush=True)
    return progress


def _recorded(path: Path) -> Preparation | None:
    try:
        return Preparation(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _said(request: Mapping[str, object]) -> str:
    known = {key: str(value) for key, value in request.items() if value is not None}
    # a SHA-256 by its beginning
    return ", ".join(f"{k} {v[:12] if len(v) == 64 else v}" for k, v in known.items())


def _kept(stage: Path, request: Mapping[str, object]) -> str:
    """What the next try need not do again; "" for nothing."""
    progress = _recorded(stage / RECORD)
    if progress is None or progress.request != request:
        return ""
    return (
        f"{progress.documents:,} documents are done and kept; the same command goes on from there"
    )


@contextmanager
def _locked(stage: Path) -> Iterator[None]:
    """The stage for this process alone; the lock ends with the process, however that ends."""
    try:
        with file_lock(stage / LOCK) as ours:
            if not ours:
                raise UserError(
                    f"another process is preparing {stage.parent}; wait for it, or choose another "
                    "folder with --out"
                )
            yield
    finally:
        if not removes_open_files():
            _remove_lock(stage)


# --- reading -----------------------------------------------------------------------------------


class TokenFiles:
    """The growing files of a stage, cut to what the record vouches for. A context closes them.

    Before a shuffle, every document goes to `ALL`, and how many tokens it has to `LENGTHS`.
    """

    def __init__(
        self, stage: Path, progress: Preparation, tokenizer: Tokenizer, shuffled: bool
    ) -> None:
        self.stage = stage
        self.progress = progress
        self.tokenizer = tokenizer
        self.saved = time.monotonic()
        width = tokenizer.dtype.itemsize
        with ExitStack() as stack:
            self.lengths: BinaryIO | None = None
            self.splits: dict[str, BinaryIO] = {}
            if shuffled:
                path = stage / LENGTHS
                self.lengths = _cut(stack, path, progress.documents * LENGTH.itemsize)
                self.splits["train"] = _cut(stack, stage / ALL, progress.tokens["train"] * width)
            else:
                for split in SPLITS:
                    size = progress.tokens[split] * width
                    self.splits[split] = _cut(stack, stage / f"{split}.bin", size)
            self.opened = stack.pop_all()

    def __enter__(self) -> TokenFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.opened.close()

    def append(self, batch: Batch, most: int | None) -> bool:
        """Write a batch, up to `most` training tokens in all; whether these are there now.

        What comes of the documents is the same wherever batches begin and end.
        """
        progress = self.progress
        texts = [None if text is None else plain_text(text) for text in batch.texts]
        known = [text for text in texts if text is not None]
        encoded = iter(self.tokenizer.encode_documents(known))
        pieces: dict[str, list[Tokens]] = {split: [] for split in SPLITS}
        lengths = []
        for given, text, validation in zip(batch.texts, texts, batch.validation, strict=True):
            if text is None:
                progress.without_text += 1
                continue
            progress.mended += text is not given
            tokens = next(encoded)
            if self.tokenizer.end is not None:
                tokens = np.append(tokens, tokens.dtype.type(self.tokenizer.end))
            split = "val" if validation and self.lengths is None else "train"
            if split == "train" and most is not None:
                tokens = tokens[: most - progress.tokens["train"]]
            pieces[split].append(tokens)
            lengths.append(len(tokens))
            progress.documents += 1
            progress.tokens[split] += len(tokens)
            if progress.tokens["train"] == most:
                break
        self._write(pieces)
        if self.lengths is not None:
            self.lengths.write(np.array(lengths, LENGTH).tobytes())
        progress.place = batch.place
        return progress.tokens["train"] == most

    def _write(self, pieces: Mapping[str, Sequence[Tokens]]) -> None:
        for split, file in self.splits.items():
            joined = np.concatenate([np.zeros(0, self.tokenizer.dtype), *pieces[split]])
            file.write(joined.tobytes())  # not ndarray.tofile, which loses errno on a full disk
            # of each, as the first word of some tokenizers' documents loses its space
            self.progress.bytes[split] += sum(map(self.tokenizer.count_bytes, pieces[split]))

    def save(self) -> None:
        """Vouch for all that is written, from here on."""
        files = [*self.splits.values()]
        if self.lengths is not None:
            files.append(self.lengths)
        for file in files:
            file.flush()
            os.fsync(file.fileno())  # a record must never outlive what it speaks of
        self.progress.save(self.stage)
        self.saved = time.monotonic()

    def save_in_time(self) -> None:
        """Vouch for it if the last time is long ago."""
        if time.monotonic() - self.saved >= CHECKPOINT_SECONDS:
            self.save()


def _cut(stack: ExitStack, path: Path, size: int) -> BinaryIO:
    """A file to append to, without what it holds beyond `size` bytes."""
    file = stack.enter_context(open(path, "ab"))
    if file.tell() < size:
        raise UserError(f"{path} has been cut; delete {path.parent} to begin anew")
    file.truncate(size)
    return file


def _read(files: TokenFiles, documents: Reader, most: int | None) -> None:
    """Append the tokens of the documents that are left."""
    progress = files.progress

    def done() -> int:
        if most is not None:
            return progress.tokens["train"]
        return progress.documents + progress.without_text

    def said(since: tuple[float, int]) -> str:
        tokens = sum(progress.tokens.values())
        speed = (tokens - since[1]) / (time.monotonic() - since[0])
        return f"{progress.documents:,} documents, {tokens:,} tokens, {speed:,.0f} tokens/s"

    began = (time.monotonic(), sum(progress.tokens.values()))
    opened = began
    batches = ahead(documents.batches(progress.place))
    with open_gauge(files.stage.parent.name) as gauge, closing(batches):
        for batch in batches:
            if files.append(batch, most):
                break
            files.save_in_time()
            gauge.show(done(), most or documents.total, said(opened))
            if opened is began:  # opening a source takes a while
                opened = (time.monotonic(), sum(progress.tokens.values()))
    progress.facts = documents.facts(progress.place)
    progress.phase = READ
    files.save()
    print(f"read {said(began)}, in {duration(time.monotonic() - began[0])}", flush=True)
    if progress.without_text:
        print(f"left out {counted(progress.without_text, 'document')} without a text")
    if progress.mended:
        print(f"half a surrogate pair in {counted(progress.mended, 'document')} became U+FFFD")


def ahead(items: Iterator[Fetched]) -> Generator[Fetched, None, None]:
    """The same items; while one is worked on, the next is fetched by a thread."""
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(next, items, None)
        while (item := pending.result()) is not None:
            pending = pool.submit(next, items, None)
            yield item


# --- the end -----------------------------------------------------------------------------------


def _finish(
    stage: Path, progress: Preparation, tokenizer: Tokenizer, shuffle: Shuffle | None
) -> None:
    """Shuffle if that is asked for, and take the checksums."""
    if shuffle is not None:
        for split, numbers in shuffle.splits(progress.documents).items():
            _gather(stage, split, numbers, progress, tokenizer)
    for split in SPLITS:
        if progress.tokens[split] == 0:
            (stage / RECORD).unlink()  # it would be the same again
            raise UserError(
                f"{progress.documents:,} documents are too few for a training and a validation "
                "split; give more"
            )
        progress.sha256[split] = _sha256(stage / f"{split}.bin")
    progress.phase = READY
    progress.save(stage)


def _gather(
    stage: Path, split: str, numbers: Integers, progress: Preparation, tokenizer: Tokenizer
) -> None:
    """Write the documents of these numbers, in their order, to the file of a split."""
    every = np.asarray(np.memmap(stage / ALL, tokenizer.dtype, "r"))
    lengths = np.fromfile(stage / LENGTHS, LENGTH)
    ends = np.cumsum(lengths, dtype=np.int64)
    starts = ends - lengths
    n_tokens = n_bytes = done = 0
    with open(stage / f"{split}.bin", "wb") as file, open_gauge(f"{split}.bin") as gauge:
        for first in range(0, len(numbers), GATHERED):
            part = numbers[first : first + GATHERED]
            pieces = []
            for start, end in zip(starts[part].tolist(), ends[part].tolist(), strict=True):
                pieces.append(every[start:end])
            joined = np.concatenate(pieces)
            file.write(joined.tobytes())
            n_tokens += len(joined)
            n_bytes += sum(map(tokenizer.count_bytes, pieces))
            done += len(part)
            gauge.show(done, len(numbers), f"{done:,} documents shuffled")
        file.flush()
        os.fsync(file.fileno())
    progress.tokens[split] = n_tokens
    progress.bytes[split] = n_bytes


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _put_in_place(
    stage: Path, out: Path, name: str, tokenizer: Tokenizer, progress: Preparation
) -> None:
    """Move what is ready to `out`; a kill between two files is made good by the next try."""
    splits: dict[str, dict[str, int | str]] = {}
    for split in SPLITS:
        splits[split] = {
            "tokens": progress.tokens[split],
            "bytes": progress.bytes[split],
            "sha256": progress.sha256[split],
        }
    counts = {"documents": progress.documents, "without_text": progress.without_text}
    source = {**progress.request, **progress.facts, **counts}
    write_meta(stage, name, tokenizer, splits, {"source": source})
    replace_files(stage, out, overwrite=True)  # if need be, that has been refused at the beginning
