"""Data sets of the Hugging Face hub, streamed by `datasets`: openwebtext as nanoGPT prepares it,
fineweb-edu, tinystories, and any other by its name. Code in a repository is never run.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nanoscale.data.dataset import Words, philox_words
from nanoscale.data.meta import read_meta
from nanoscale.data.tokenizer import (
    Tokenizer,
    as_recorded,
    check_choice,
    make_tokenizer,
    read_tokenizer,
)
from nanoscale.data.writer import STAGE, Batch, Place, Shuffle, write_documents
from nanoscale.errors import UserError, did_you_mean, one_of

PREFIX = "hub:"
HELD_OUT = 201  # Philox purpose, apart from those of dataset.py and synthetic.py
HELD_OUT_SEED = 2357
HELD_OUT_FRACTION = 0.005  # of the documents, where the set has no validation split of its own
TRAINED = "trained.json"
PARQUET_REVISION = "refs/convert/parquet"  # the hub's own copy of a set that is code
BATCH_ROWS = 256


@dataclass(frozen=True)
class HubSet:
    """Where documents come from: `path` is OWNER/NAME on the hub, or a folder of that name here."""

    path: str
    config: str | None = None
    split: str = "train"
    column: str = "text"
    revision: str | None = None
    validation: str | None = None  # its own validation split
    shuffle: Shuffle | None = None  # the whole set is shuffled and split by it
    documents: int | None = None  # how many there should be

    def request(self) -> dict[str, object]:
        """What the files of this set follow from."""
        request: dict[str, object] = {
            "hub": self.path,
            "config": self.config,
            "split": self.split,
            "column": self.column,
            "asked_revision": self.revision,
        }
        if os.path.isdir(self.path):
            request["listing"] = _listing(Path(self.path))
        if self.validation is not None:
            request["validation"] = self.validation
        elif self.shuffle is not None:
            request |= {"test_size": self.shuffle.test_size, "seed": self.shuffle.seed}
        else:
            request |= {"held_out": HELD_OUT_FRACTION, "seed": HELD_OUT_SEED}
        return request


HUB_SETS = {
    "openwebtext": HubSet(
        "Skylion007/openwebtext", shuffle=Shuffle(0.0005, 2357), documents=8_013_769
    ),
    "fineweb-edu": HubSet("HuggingFaceFW/fineweb-edu", "sample-10BT"),
    "tinystories": HubSet("roneneldan/TinyStories", validation="validation"),
}


def hub_set(
    name: str,
    input: str | None,
    config: str | None,
    split: str | None,
    column: str | None,
    revision: str | None,
) -> HubSet:
    """The set of a name, `hub:OWNER/NAME` or one of `HUB_SETS`, with what was given for it."""
    chosen = HUB_SETS.get(name) or HubSet(name.removeprefix(PREFIX))
    if input is not None:
        chosen = replace(chosen, path=input, config=None)
    if split is not None:
        chosen = replace(chosen, split=split, validation=None)
    if not chosen.path.strip("/."):
        raise UserError(f"{name!r} names no data set; give {PREFIX}OWNER/NAME")
    chosen = replace(chosen, config=config or chosen.config, column=column or chosen.column)
    return replace(chosen, revision=revision)


def prepare_hub(
    name: str,
    source: HubSet,
    out: Path,
    tokenizer: str = "gpt2",
    tokens: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Make the folder `out` of a set, or of its first documents up to `tokens` training tokens.

    Raises:
        UserError: the hub cannot be reached, the set has no such config, split or column, wants
            code to be run, or is not text; the message says what is kept.
    """
    if tokenizer == "char":
        raise UserError(
            "--tokenizer char needs the whole of a text for its alphabet, and this one is "
            "streamed; choose byte, gpt2, FILE.json or train:VOCAB"
        )
    if tokens is not None:
        source = replace(source, shuffle=None, documents=None)  # of a part, a part is held out
    request = {**source.request(), "tokenizer": as_recorded(tokenizer), "most": tokens}
    reader = HubReader(name, source)

    def make() -> Tokenizer:
        """As it was made before the preparation was killed, if it was."""
        check_choice(tokenizer)
        kept = out / STAGE / TRAINED
        if kept.is_file():
            return read_tokenizer(kept)
        made = make_tokenizer(tokenizer, reader.training_texts())
        if tokenizer.startswith("train:"):
            temporary = kept.with_suffix(".tmp")
            temporary.write_text(made.to_json(), encoding="utf-8", newline="\n")
            os.replace(temporary, kept)
        return made

    write_documents(
        out,
        name,
        reader,
        make,
        request,
        most=tokens,
        shuffle=source.shuffle,
        overwrite=overwrite,
    )
    documents = read_meta(out).facts["source"]["documents"]
    if source.documents not in (None, documents):
        print(
            f"note: {documents:,} documents, not {source.documents:,}, so the files are not those "
            f"that {name} usually means"
        )
    return out


def held_out(first: int, count: int) -> list[bool]:
    """Which of the documents [first, first + count) are validation: by their numbers alone.

    The very first one is, so that a small set has one.
    """
    words: Words = philox_words(HELD_OUT_SEED, HELD_OUT, 0, first, count)
    chosen: list[bool] = (words < int(HELD_OUT_FRACTION * 2**64)).tolist()
    if first == 0:
        chosen[:1] = [True]
    return chosen


class HubReader:
    """The documents of a set in its own order, the validation split's first.

    A place is the commit, the split, the state of the stream and the number of the next document.
    """

    def __init__(self, name: str, source: HubSet) -> None:
        self.name = name
        self.source = source
        self.total = source.documents
        self.splits = [source.split]
        if source.validation is not None:
            self.splits = [source.validation, source.split]

    def batches(self, place: Place) -> Iterator[Batch]:
        with self._errors():
            _library()  # says what to install
            if place is None:
                place = {"commit": self._commit(), "part": 0, "number": 0, "state": None}
            for part in range(place["part"], len(self.splits)):
                stream = self._open(self.splits[part], place["commit"])
                if place["part"] == part and place["state"] is not None:
                    stream.load_state_dict(place["state"])
                number = place["number"]
                for rows in stream.iter(batch_size=BATCH_ROWS):
                    texts = self._texts(rows)
                    validation = [part < len(self.splits) - 1] * len(texts)
                    if len(self.splits) == 1:
                        validation = held_out(number, len(texts))
                    number += len(texts)
                    place = {"commit": place["commit"], "part": part, "number": number}
                    place["state"] = stream.state_dict()
                    yield Batch(texts, validation, place)

    def facts(self, place: Place) -> Mapping[str, object]:
        return {"commit": place["commit"]}

    def training_texts(self) -> Iterator[str]:
        """The training documents, from the first on; who learns from them stops in time."""
        for batch in self.batches(None):
            for text, validation in zip(batch.texts, batch.validation, strict=True):
                if text is not None and not validation:
                    yield text

    def _commit(self) -> str | None:
        """What `main` is now, so that a later try reads the same; None of a folder here."""
        if os.path.isdir(self.source.path):
            return None
        import huggingface_hub  # type: ignore[import-not-found, unused-ignore]  # an extra

        asked = huggingface_hub.HfApi().dataset_info(
            self.source.path, revision=self.source.revision
        )
        return str(asked.sha)

    def _open(self, split: str, commit: str | None) -> Any:
        """The rows of a split, as an IterableDataset."""
        library = _library()
        source = self.source
        print(f"opening {source.path}, {split}", flush=True)
        stream = library.load_dataset(
            source.path,
            name=source.config,
            split=split,
            revision=commit,
            streaming=True,
            trust_remote_code=False,
        )
        if self.total is None and stream.info.splits:
            known = [stream.info.splits[split].num_examples for split in self.splits]
            self.total = sum(known) or None
        columns = stream.column_names
        if columns is None:
            return stream
        self._require_column(columns)
        return stream.select_columns([source.column])

    def _require_column(self, columns: Any) -> None:
        column = self.source.column
        if column not in columns:
            raise UserError(
                f"{self.source.path} has no column {column!r}{did_you_mean(column, columns)}; "
                f"choose --column {one_of(columns)}"
            )

    def _texts(self, rows: Mapping[str, list[Any]]) -> list[str | None]:
        self._require_column(rows)
        texts = rows[self.source.column]
        for text in texts:
            if text is not None and not isinstance(text, str):
                raise UserError(
                    f"column {self.source.column!r} of {self.source.path} holds "
                    f"{type(text).__name__}, not text; choose another with --column"
                )
        return texts

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Whatever `datasets` raises, as a `UserError` with a remedy."""
        try:
            yield
        except UserError:
            raise
        except Exception as e:  # from half a dozen libraries below it
            raise UserError(self._said(e)) from e

    def _said(self, error: Exception) -> str:
        path = self.source.path
        said = " ".join(str(error).split())
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if "scripts are no longer supported" in said or "trust_remote_code" in said:
            return (
                f"{path} wants to run code of its own, which is never done ({said}); try the hub's "
                f"copy of it with --revision {PARQUET_REVISION}, or another data set"
            )
        if "GatedRepoError" in kinds or "is a gated dataset" in said:
            return f"{path} is gated: accept its terms on its page, then run `hf auth login`"
        if kinds & {"RevisionNotFoundError"}:
            return f"{path} has no --revision {self.source.revision}: {said}"
        if kinds & {"DatasetNotFoundError", "RepositoryNotFoundError"}:
            return (
                f"there is no data set {path} on the hub, or it is private; check the name, or run "
                "`hf auth login`"
            )
        if isinstance(error, ValueError) and "onfig" in said:
            return f"{path}: {said}; choose with --config"
        if isinstance(error, ValueError) and "split" in said:
            return f"{path}: {said}; choose with --split"
        if "DataFilesNotFoundError" in kinds or "EmptyDatasetError" in kinds:
            return f"{path} has no data files that `datasets` reads; choose another"
        if kinds & UNREACHABLE:
            return (
                f"cannot reach the Hugging Face hub for {path} ({said}); try again with a network, "
                "or give a copy on this machine with --input FOLDER"
            )
        return f"cannot read {path}: {type(error).__name__}: {said}"


UNREACHABLE = {
    "ConnectionError",
    "ConnectError",
    "TimeoutError",
    "TimeoutException",
    "TransportError",
    "OfflineModeIsEnabled",
    "HfHubHTTPError",
    "gaierror",
}


def _listing(folder: Path) -> str:
    """SHA-256 over the names and sizes of the files of a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode())
    return digest.hexdigest()


def _library() -> Any:
    try:
        import datasets  # type: ignore[import-not-found, unused-ignore]  # an extra
    except ImportError as e:
        raise UserError(
            "data sets of the hub need datasets: run `pip install 'nanoscale[hf]'`"
        ) from e
    datasets.utils.logging.set_verbosity(logging.CRITICAL)  # what it says comes as an exception too
    datasets.disable_progress_bars()
    return datasets
