"""Token files to batches: training sample i is a function of (data_seed, i), never of a stream.

A data set is a folder in nanoGPT's format (github.com/karpathy/nanoGPT): `train.bin` and `val.bin`,
headerless little-endian uint16 (uint32 where the meta says so), and a table of symbols. Random
numbers are Philox-4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") read
by counter, so there is no state to save and any batch, in any order, on any rank, is cut from the
same numbered samples.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from nanoscale.data.formats import check_format
from nanoscale.data.meta import DTYPES, SPLITS, Meta, other_tokens, read_errors, read_meta
from nanoscale.data.tokenizer import GPT2, Integers, Tokenizer, Tokens, tokenizer_of
from nanoscale.errors import UserError, did_you_mean
from nanoscale.paths import last_part

CLONE = Path(__file__).resolve().parents[2]  # where the package lies in one

# what `nanoscale data prepare` makes
KNOWN = (
    "shakespeare_char",
    "shakespeare",
    "pysource",
    "text",
    "prose",
    "synthetic",
    "openwebtext",
    "fineweb-edu",
    "tinystories",
)
TOKEN = np.dtype("<u2")
VAL = "val"

BLOCK = 2**20  # bytes read at once
WHOLE = 2**28  # a larger file is fingerprinted by evenly spaced blocks
SAMPLED_BLOCKS = 256

Words: TypeAlias = NDArray[np.uint64]  # of Philox

# second word of the Philox key: one number per use, so that no two uses share words
ORDER_RANDOM, ORDER_EPOCH, EPOCH_PHASE = 1, 2, 3
LEAST_ORDERED = 1 << 16  # windows of an epoch that are put in order at once


@dataclass(frozen=True, eq=False)
class Dataset:
    """An opened data folder: its token files, and what its tokens stand for."""

    name: str
    folder: Path
    vocab_size: int
    fingerprint: str
    tokens: Mapping[str, Tokens]  # of a split, or of a further validation set
    meta: Meta
    val_sets: tuple[str, ...] = (VAL,)  # names in `tokens`, the first what studies fit
    val_bytes: Mapping[str, float | None] = field(default_factory=dict)  # a token, of further sets
    # Where there is more than VAL, the fingerprint of each validation set; VAL's is that of both
    # splits and always there.
    parts: Mapping[str, str] = field(default_factory=dict)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer | None:
        """What the ids stand for; None where nothing says it."""
        return tokenizer_of(self.folder, self.meta, f"dataset {self.name!r}")

    def known_tokenizer(self) -> Tokenizer | None:
        """The same; None, too, where it is not at hand."""
        try:
            return self.tokenizer
        except UserError:
            return None

    def vocabulary(self, wanted: int | None) -> int:
        """The symbols that a model of it needs: GPT-2's own where another size is `wanted`.

        nanoGPT pads those of a folder without meta to 50304.
        """
        if self.meta.kind == "gpt2" and wanted is not None:
            return min(self.vocab_size, GPT2.vocab_size)
        return self.vocab_size

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; a character outside the vocabulary is a `UserError`."""
        return self._speaking().encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD, padded ids nothing."""
        return self._speaking().decode(ids)

    def _speaking(self) -> Tokenizer:
        if self.tokenizer is None:
            raise UserError(f"the meta of dataset {self.name!r} names no symbols (itos)")
        return self.tokenizer

    def bytes_per_token(self, split: str) -> float | None:
        """UTF-8 bytes per token of a split: known, counted from the symbols, or None.

        A symbol that is empty, or that the meta does not name, is of no known length.
        """
        if split in self.val_bytes:
            return self.val_bytes[split]
        tokens = self.tokens[split]
        if self.meta.splits is None:
            # those of GPT-2 in a folder of nanoGPT's may be 18 GB
            return None if self.meta.itos is None else _bytes_each(self, tokens)
        if self.meta.kind == "synthetic":
            return None
        counted: int = self.meta.splits[split]["bytes"]
        return counted / len(tokens) or None  # none are spelt where every token is unknown

    def require_known(self, *arrays: Tokens) -> None:
        """Refuse tokens beyond the vocabulary: of a big file, opening it looks at a part alone."""
        largest = max(int(tokens.max()) for tokens in arrays)
        if largest < self.vocab_size:
            return
        for split, tokens in self.tokens.items():
            path = self.file_of(split)
            for first in range(0, len(tokens), BLOCK):
                part = tokens[first : first + BLOCK]
                beyond = np.flatnonzero(part >= self.vocab_size)
                if len(beyond):
                    at = int(beyond[0])
                    raise _foreign(path, part[at], self.vocab_size, first + at)

    def require_block(self, block_size: int) -> None:
        """Refuse a block that does not fit into a split."""
        for split, tokens in self.tokens.items():
            _require_window(len(tokens), block_size, self.file_of(split))

    def file_of(self, split: str) -> Path:
        """The token file of a split, or of a further validation set."""
        if split in self.val_bytes:
            return Path(getattr(self.tokens[split], "filename", split))
        return self.folder / f"{split}.bin"


def dataset_folder(name: str, data_root: str = "data") -> Path:
    """Folder of a prepared dataset: below `data_root` here, then in a clone, then `name` itself.

    Raises `UserError` naming the dataset and how to prepare it.
    """
    roots = _roots(data_root)
    for folder in (*(root / name for root in roots), Path(name)):
        if any(os.path.isfile(folder / f"{split}.bin") for split in SPLITS):
            return folder
    if name in KNOWN:
        raise UserError(f"dataset {name!r} is not prepared; run `{_remedy(name, data_root)}`")

    others = [name for name in prepared_names(data_root) if name not in KNOWN]
    known = [*KNOWN, *others]
    raise UserError(
        f"no dataset {name!r} in {data_root!r}{did_you_mean(name, known)}; "
        f"known: {', '.join(known)} (`nanoscale data prepare NAME`)"
    )


def prepared_names(data_root: str = "data") -> list[str]:
    """The datasets that `open_dataset` finds by their names alone."""
    found = {path.parent.name for root in _roots(data_root) for path in root.glob("*/train.bin")}
    return sorted(found)


def tokenizer_named(name: str, data_root: str = "data") -> Tokenizer | None:
    """What the tokens of a dataset mean, by its meta alone; None where there is none here."""
    for folder in (*(root / name for root in _roots(data_root)), Path(name)):
        if (folder / "meta.json").is_file() or (folder / "meta.pkl").is_file():
            return tokenizer_of(folder, read_meta(folder), f"dataset {name!r}")
    return None


def _roots(data_root: str) -> list[Path]:
    """Where prepared datasets lie: here, and in the clone that the package may lie in."""
    return [Path(data_root), CLONE / data_root]


def _remedy(name: str, data_root: str) -> str:
    given = " --input FILE" if name == "text" else ""
    out = "" if data_root == "data" else f" --out {data_root}/{name}"
    return f"nanoscale data prepare {name}{given}{out}"


def open_dataset(name: str, data_root: str = "data", val_sets: Sequence[str] = ()) -> Dataset:
    """Open and check a prepared dataset; everything wrong with its files is a `UserError`.

    `val_sets` are its validation sets in their order: `val`, X for its file val_X.bin, or another
    dataset of the same tokens, for that one's validation split. None named: all of its files, `val`
    first. Others than `val` alone change the fingerprint.

    >>> import nanoscale as ns
    >>> data = ns.prepare("synthetic")
    vocab size: 32...
    >>> ns.open_dataset("synthetic").vocab_size
    32
    """
    folder = dataset_folder(name, data_root)
    files = tuple(_bin_stat(folder / f"{split}.bin") for split in SPLITS)
    meta = read_meta(folder)
    dtype = DTYPES[meta.dtype or "uint16"]
    for split, (_, size, _) in zip(SPLITS, files, strict=True):
        check_format(folder / f"{split}.bin", size, meta, np.dtype(dtype))
    fingerprint, largest = _fingerprint(files, dtype)
    tokens: dict[str, Tokens] = {}
    for split, (path, _, _), token in zip(SPLITS, files, largest, strict=True):
        with read_errors(folder):
            tokens[split] = np.memmap(path, dtype, "r")
        _check_split(folder / f"{split}.bin", len(tokens[split]), token, split, meta)
    if meta.dataset == "pysource":
        name = f"pysource-{fingerprint[:8]}"  # another on every machine
    dataset = Dataset(name, folder, meta.vocab_size, fingerprint, tokens, meta)
    named = tuple(val_sets) or (VAL, *further_files(folder))
    return dataset if named == (VAL,) else _with_sets(dataset, named, data_root)


# --- further validation sets ------------------------------------------------------------------


def further_files(folder: Path) -> list[str]:
    """X for every file val_X.bin of a data folder; one that cannot be a set is a `UserError`."""
    names = sorted(path.stem for path in folder.glob("val_?*.bin"))
    for name in names:
        path = folder / f"{name}.bin"
        if name in ("val_train", "val_val"):
            raise UserError(f"{path} cannot be a set beside train and val; give it another name")
        if not path.is_file():
            raise UserError(f"{path} is no file of tokens; move it away")
    return [name.removeprefix("val_") for name in names]


def _with_sets(dataset: Dataset, named: Sequence[str], data_root: str) -> Dataset:
    """The dataset with these validation sets, which its fingerprint then names."""
    tokens = dict(dataset.tokens)
    known: dict[str, float | None] = {}
    parts: dict[str, str] = {}
    digest = hashlib.sha256(dataset.fingerprint.encode())
    labels = list(map(last_part, named))
    for name, label in zip(named, labels, strict=True):
        fingerprint = VAL
        if labels.count(label) > 1 or label == "train":
            raise UserError(
                f"validation sets {', '.join(named)}: each needs a name of its own, not {label!r}"
            )
        if name != VAL:
            tokens[label], known[label], fingerprint = _further_set(dataset, name, data_root)
        digest.update(f"\n{label} {fingerprint}".encode())
        parts[label] = dataset.fingerprint if name == VAL else fingerprint
    return replace(
        dataset,
        tokens=tokens,
        val_sets=tuple(labels),
        val_bytes=known,
        parts={**parts, VAL: dataset.fingerprint},
        fingerprint=digest.hexdigest(),
    )


def _further_set(dataset: Dataset, name: str, data_root: str) -> tuple[Tokens, float | None, str]:
    """Its tokens, their UTF-8 bytes each if known, and its fingerprint."""
    meta = dataset.meta
    path = dataset.folder / f"val_{name}.bin"
    if not os.path.isfile(path):
        other = _same_tokens(dataset, name, data_root)
        return other.tokens[VAL], other.bytes_per_token(VAL), other.fingerprint
    dtype = DTYPES[meta.dtype or "uint16"]
    stat = _bin_stat(path)
    check_format(path, stat[1], meta, np.dtype(dtype))
    fingerprint, (largest,) = _fingerprint((stat,), dtype)
    if largest >= meta.vocab_size:
        raise _foreign(path, largest, meta.vocab_size)
    tokens = np.memmap(path, dtype, "r")
    return tokens, _bytes_each(dataset, tokens), fingerprint


def _same_tokens(dataset: Dataset, name: str, data_root: str) -> Dataset:
    """Another dataset, refused where its ids mean other text."""
    try:
        dataset_folder(name, data_root)
    except UserError as e:
        there = [VAL, *further_files(dataset.folder)]
        raise UserError(
            f"validation set {name!r} is none of {dataset.name}'s ({', '.join(there)}), and there "
            f"is no such dataset in {data_root!r}{did_you_mean(name, there)}"
        ) from e
    other = open_dataset(name, data_root, (VAL,))
    known, their = dataset.known_tokenizer(), other.known_tokenizer()
    if known is not None and their is not None and known.digest == their.digest:
        return other  # however the two were prepared
    what = other_tokens(dataset.meta, other.meta)
    if what is not None:
        raise UserError(
            f"validation set {name!r}: its tokens are not those of {dataset.name!r} (another "
            f"{what}); prepare it with the same tokenizer"
        )
    return other


def _bytes_each(dataset: Dataset, tokens: Tokens) -> float | None:
    """UTF-8 bytes per token, where what the ids stand for is known."""
    if dataset.meta.kind in ("synthetic", "ids") or dataset.tokenizer is None:
        return None
    unknown = [i for i, symbol in enumerate(dataset.meta.itos or ()) if not symbol]
    total = 0
    for first in range(0, len(tokens), BLOCK):
        part = tokens[first : first + BLOCK]
        foreign = np.flatnonzero(part >= dataset.vocab_size)
        if len(foreign):  # opening a big file looks at a part alone
            path = Path(getattr(tokens, "filename", dataset.name))
            raise _foreign(path, part[foreign[0]], dataset.vocab_size, first + int(foreign[0]))
        if unknown and np.isin(part, unknown).any():
            return None
        total += dataset.tokenizer.count_bytes(part)
    return total / len(tokens)


# --- what is in the files ---------------------------------------------------------------------


def _again(path: Path) -> str:
    """What mends a token file: only its maker can make a further validation set."""
    if path.stem in SPLITS:
        return "prepare the dataset again"
    return "make it again with the tokens of train.bin, or delete it"


def _bin_stat(path: Path) -> tuple[str, int, int]:
    """(path, bytes, mtime in ns) of a token file; missing or empty is refused."""
    if not os.path.isfile(path):
        raise UserError(f"{path} is missing; {_again(path)}")
    with read_errors(path):
        stat = path.stat()
    if stat.st_size == 0:
        raise UserError(f"{path} is empty; {_again(path)}")
    return os.path.abspath(path), stat.st_size, stat.st_mtime_ns


def _foreign(path: Path, token: int, vocab_size: int, at: int | None = None) -> UserError:
    place = "" if at is None else f" at place {at:,}"
    return UserError(
        f"{path} holds token {token}{place}, but the vocabulary has {vocab_size} symbols: "
        f"a .bin of the wrong vocabulary; {_again(path)}"
    )


def _check_split(path: Path, n_tokens: int, largest: int, split: str, meta: Meta) -> None:
    if largest >= meta.vocab_size:
        raise _foreign(path, largest, meta.vocab_size)
    if meta.splits is not None and meta.splits[split]["tokens"] != n_tokens:
        raise UserError(
            f"{path} holds {n_tokens:,} tokens, but meta.json beside it describes "
            f"{meta.splits[split]['tokens']:,}; {_again(path)}"
        )


@functools.lru_cache(maxsize=64)
def _fingerprint(
    files: tuple[tuple[str, int, int], ...], dtype: str = TOKEN.str
) -> tuple[str, tuple[int, ...]]:
    """SHA-256 over the sizes and bytes of the token files, and the largest token of each.

    A type other than uint16 counts, as the same bytes are other tokens then. A file above `WHOLE`
    bytes (256 MiB) counts by 256 evenly spaced blocks of 1 MiB alone.
    """
    digest = hashlib.sha256()
    if np.dtype(dtype) != TOKEN:
        digest.update(f"{dtype}\n".encode())
    largest = []
    for path, size, _ in files:
        digest.update(f"{os.path.basename(path)} {size}\n".encode())
        most = 0
        with read_errors(path):
            for block in _blocks(path, size, np.dtype(dtype).itemsize):
                digest.update(block)
                tokens = np.frombuffer(block, dtype)
                most = max(most, int(tokens.max()))
        largest.append(most)
    return digest.hexdigest(), tuple(largest)


def _blocks(path: str, size: int, whole: int) -> Iterator[bytes]:
    """Blocks of a file, each of whole tokens of `whole` bytes."""
    offsets: Sequence[int] = range(0, size, BLOCK)
    if size > WHOLE:
        last = size - BLOCK
        gaps = SAMPLED_BLOCKS - 1
        offsets = [i * last // gaps // whole * whole for i in range(SAMPLED_BLOCKS)]
    with open(path, "rb") as file:
        for offset in offsets:
            file.seek(offset)
            yield file.read(BLOCK)


# --- samples -----------------------------------------------------------------------------------


def philox_words(seed: int, purpose: int, stream: int, first: int, count: int) -> Words:
    """Words [first, first + count) of the random sequence (seed, purpose, stream): (count,) uint64.

    Word i is word i % 4 of block i // 4: key (seed, purpose), counter (1 + block, stream, 0, 0).
    Only raw words are used, as numpy promises those, unlike `Generator` methods, for good.
    """
    block, skip = divmod(first, 4)
    generator = np.random.Philox(key=[seed, purpose], counter=[block, stream, 0, 0])
    return generator.random_raw(skip + count)[skip:]


def uniform_integers(words: Words, n: int) -> Integers:
    """Each word as an integer in [0, n): floor(u n), u its upper 53 bits as a fraction."""
    fractions = (words >> np.uint64(11)) * 2.0**-53
    return (fractions * n).astype(np.int64)


class TrainingSamples:
    """Training batches of one split, by sample number.

    `order='random'` draws each start anywhere in the split, with replacement, as nanoGPT does.
    `order='epoch'` cuts the split into windows `block_size` apart, from a phase of its own each
    epoch, and takes each of them once per epoch in an order of its own.
    """

    def __init__(self, tokens: Tokens, block_size: int, data_seed: int, order: str) -> None:
        where = getattr(tokens, "filename", None) or "the training split"
        _require_window(len(tokens), block_size, where)
        self.tokens = np.asarray(tokens)  # memmap's own indexing is several times slower
        self.block_size = block_size
        self.data_seed = data_seed
        self.order = order
        self.windows_per_epoch = max(1, (len(tokens) - block_size) // block_size)

    def batch(self, first: int, count: int) -> tuple[Integers, Integers]:
        """Samples [first, first + count): X and Y, (count, block_size) int64, Y shifted by one."""
        return windows(self.tokens, self._starts(first, count), self.block_size)

    def _starts(self, first: int, count: int) -> Integers:
        """Where the samples start: (count,)."""
        if self.order == "random":
            words = philox_words(self.data_seed, ORDER_RANDOM, 0, first, count)
            return uniform_integers(words, len(self.tokens) - self.block_size)
        n = self.windows_per_epoch
        end = first + count
        parts = [
            self._starts_in_epoch(epoch, max(first - epoch * n, 0), min(end - epoch * n, n))
            for epoch in range(first // n, (end - 1) // n + 1)
        ]
        return np.concatenate(parts)

    def _starts_in_epoch(self, epoch: int, begin: int, end: int) -> Integers:
        """Windows [begin, end) of an epoch in its order: (end - begin,)."""
        n, T = self.windows_per_epoch, self.block_size
        order = _order_of_epoch(self.data_seed, epoch, n, _rounded_up(end, n))[begin:end]
        word = philox_words(self.data_seed, EPOCH_PHASE, 0, epoch, 1)
        phases = min(T, len(self.tokens) - n * T)
        return order * T + uniform_integers(word, phases)


def _rounded_up(count: int, n: int) -> int:
    """`count` of n, as a power of four or all: an order is made anew only a few times."""
    power = LEAST_ORDERED
    while power < count:
        power *= 4
    return min(power, n)


@functools.lru_cache(maxsize=2)
def _order_of_epoch(seed: int, epoch: int, n: int, first: int) -> Integers:
    """The `first` windows of n in an epoch's order: a short run does not sort a long text."""
    words = philox_words(seed, ORDER_EPOCH, epoch, 0, n)
    if first < n:
        last = np.partition(words, first - 1)[first - 1]
        places = np.flatnonzero(words <= last)
    else:
        places = np.arange(n)
    # a stable sort, so that equal words cannot make the order depend on the machine
    return places[np.argsort(words[places], kind="stable")][:first]


def evaluation_windows(n_tokens: int, block_size: int, limit: int) -> Integers:
    """Starts of up to `limit` fixed windows spread evenly over a split, each at most once: (k,).

    Window j starts at j * block_size; of the W there are, the i-th of k chosen is floor(i W / k).
    """
    _require_window(n_tokens, block_size, "the evaluated split")
    available = (n_tokens - 1) // block_size
    chosen = min(limit, available)
    return np.arange(chosen, dtype=np.int64) * available // max(chosen, 1) * block_size


def windows(tokens: Tokens, starts: Integers, block_size: int) -> tuple[Integers, Integers]:
    """The windows at `starts`: X and Y, (len(starts), block_size) int64, Y is X shifted by one."""
    places = starts[:, None] + np.arange(block_size + 1)  # (B, T + 1)
    rows = np.asarray(tokens)[places].astype(np.int64)
    return np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])


def _require_window(n_tokens: int, block_size: int, where: object) -> None:
    if n_tokens < block_size + 1:
        raise UserError(
            f"{where} holds {n_tokens:,} tokens, but block_size={block_size} needs at "
            f"least {block_size + 1:,}; lower block_size or prepare more text"
        )
