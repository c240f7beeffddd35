"""Token files to batches: training sample i is a function of (data_seed, i), never of a stream.

A data set is a folder in nanoGPT's format (github.com/karpathy/nanoGPT): `train.bin` and `val.bin`,
headerless little-endian uint16, and a table of symbols. Random numbers are Philox-4x64-10 (Salmon
et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") read by counter, so there is no state
to save and any batch, in any order, on any rank, is cut from the same numbered samples.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanoscale.errors import UserError, did_you_mean, one_of

SPLITS = ("train", "val")
ORDERS = ("random", "epoch")
KNOWN = ("shakespeare_char", "pysource", "text", "synthetic")  # what `nanoscale data prepare` makes
TOKEN = np.dtype("<u2")
META_SCHEMA = 1
GPT2_VOCAB_SIZE = 50304  # 50257 rounded up, nanoGPT's rule for a folder without meta

BLOCK = 2**20  # bytes read at once
WHOLE = 2**28  # a larger file is fingerprinted by evenly spaced blocks
SAMPLED_BLOCKS = 256

# second word of the Philox key: one number per use, so that no two uses share words
ORDER_RANDOM, ORDER_EPOCH, EPOCH_PHASE = 1, 2, 3


@dataclass(frozen=True, eq=False)
class Dataset:
    """An opened data folder; `meta` has `kind` (char, byte, synthetic, gpt2; ids: no symbols)."""

    name: str
    folder: Path
    vocab_size: int
    fingerprint: str
    tokens: dict[str, np.ndarray]
    bytes_per_token: dict[str, float | None]
    meta: dict

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; a character outside the vocabulary is a `UserError`."""
        if self.meta["kind"] == "gpt2":
            return _gpt2().encode(text, allowed_special={"<|endoftext|>"})
        if self.meta["kind"] == "byte":
            try:
                return list(text.encode())
            except UnicodeEncodeError as e:
                raise UserError(f"{text[e.start : e.end]!r} is not text that UTF-8 can hold") from e
        ids = {symbol: i for i, symbol in enumerate(self._symbols())}
        unknown = list(dict.fromkeys(c for c in text if c not in ids))
        if unknown:
            shown = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
            raise UserError(
                f"dataset {self.name!r} has no symbol for {shown}; "
                f"use only characters of its {self.vocab_size}-symbol vocabulary"
            )
        return [ids[c] for c in text]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; bytes that are not UTF-8 become U+FFFD, padded GPT-2 ids nothing."""
        if self.meta["kind"] == "gpt2":
            return _gpt2().decode([i for i in ids if i < _gpt2().n_vocab])
        if self.meta["kind"] == "byte":
            return bytes(ids).decode(errors="replace")
        symbols = self._symbols()
        return "".join(symbols[i] for i in ids)

    def _symbols(self) -> list[str]:
        if self.meta.get("itos") is None:
            raise UserError(f"the meta of dataset {self.name!r} names no symbols (itos)")
        return self.meta["itos"]

    def require_block(self, block_size: int) -> None:
        """Refuse a block that does not fit into a split."""
        for split, tokens in self.tokens.items():
            _require_window(len(tokens), block_size, self.folder / f"{split}.bin")


def dataset_folder(name: str, data_root: str = "data") -> Path:
    """Folder of a prepared dataset: below `data_root` here, then in the clone, then `name` itself.

    Raises `UserError` naming the dataset and how to prepare it.
    """
    roots = [Path(data_root), Path(__file__).resolve().parents[2] / data_root]
    for folder in (*(root / name for root in roots), Path(name)):
        if any(os.path.isfile(folder / f"{split}.bin") for split in SPLITS):
            return folder
    if name in KNOWN:
        raise UserError(f"dataset {name!r} is not prepared; run `{_remedy(name, data_root)}`")
    prepared = {p.parent.name for root in roots for p in root.glob("*/train.bin")}
    known = [*KNOWN, *sorted(prepared.difference(KNOWN))]
    raise UserError(
        f"no dataset {name!r} in {data_root!r}{did_you_mean(name, known)}; "
        f"known: {', '.join(known)} (`nanoscale data prepare NAME`)"
    )


def _remedy(name: str, data_root: str) -> str:
    given = " --input FILE" if name == "text" else ""
    out = "" if data_root == "data" else f" --out {data_root}/{name}"
    return f"nanoscale data prepare {name}{given}{out}"


def open_dataset(name: str, data_root: str = "data") -> Dataset:
    """Open and check a prepared dataset; everything wrong with its files is a `UserError`."""
    folder = dataset_folder(name, data_root)
    files = [_bin_stat(folder / f"{split}.bin") for split in SPLITS]
    fingerprint, largest = _fingerprint(tuple(files))
    meta = _read_meta(folder)
    for split, (_, size, _), token in zip(SPLITS, files, largest, strict=True):
        _check_split(folder / f"{split}.bin", size // TOKEN.itemsize, token, split, meta)
    with read_errors(folder):
        tokens = {s: np.memmap(f[0], TOKEN, "r") for s, f in zip(SPLITS, files, strict=True)}
    return Dataset(
        name=f"pysource-{fingerprint[:8]}" if meta.get("dataset") == "pysource" else name,
        folder=folder,
        vocab_size=meta["vocab_size"],
        fingerprint=fingerprint,
        tokens=tokens,
        bytes_per_token={split: _bytes_per_token(meta, split, tokens[split]) for split in SPLITS},
        meta=meta,
    )


@contextmanager
def read_errors(path: object) -> Iterator[None]:
    """Turn the disk's refusal to let us read `path` into a `UserError`."""
    try:
        yield
    except OSError as e:
        raise UserError(f"cannot read {path}: {(e.strerror or str(e)).lower()}") from e


# --- what is in the files ---------------------------------------------------------------------


def _bin_stat(path: Path) -> tuple[str, int, int]:
    """(path, bytes, mtime in ns) of a token file; missing, empty or odd in length is refused."""
    if not os.path.isfile(path):
        raise UserError(f"{path} is missing; prepare the dataset again")
    with read_errors(path):
        stat = path.stat()
    if stat.st_size == 0:
        raise UserError(f"{path} is empty; prepare the dataset again")
    if stat.st_size % TOKEN.itemsize:
        raise UserError(
            f"{path} has an odd length of {stat.st_size:,} bytes, not whole uint16 tokens: "
            "truncated or foreign; prepare the dataset again"
        )
    return os.path.abspath(path), stat.st_size, stat.st_mtime_ns


def _check_split(path: Path, n_tokens: int, largest: int, split: str, meta: dict) -> None:
    if largest >= meta["vocab_size"]:
        raise UserError(
            f"{path} holds token {largest}, but the vocabulary has {meta['vocab_size']} symbols: "
            "a .bin of the wrong vocabulary; prepare the dataset again"
        )
    if "splits" in meta and meta["splits"][split]["tokens"] != n_tokens:
        raise UserError(
            f"{path} holds {n_tokens:,} tokens, but meta.json beside it describes "
            f"{meta['splits'][split]['tokens']:,}; prepare the dataset again"
        )


@functools.lru_cache(maxsize=64)
def _fingerprint(files: tuple[tuple[str, int, int], ...]) -> tuple[str, tuple[int, ...]]:
    """SHA-256 over the sizes and bytes of the token files, and the largest token of each.

    A file above `WHOLE` bytes (256 MiB) counts by 256 evenly spaced blocks of 1 MiB alone.
    """
    digest, largest = hashlib.sha256(), []
    for path, size, _ in files:
        digest.update(f"{os.path.basename(path)} {size}\n".encode())
        largest.append(0)
        with read_errors(path):
            for block in _blocks(path, size):
                digest.update(block)
                largest[-1] = max(largest[-1], int(np.frombuffer(block, TOKEN).max()))
    return digest.hexdigest(), tuple(largest)


def _blocks(path: str, size: int) -> Iterator[bytes]:
    last = size - BLOCK
    offsets = range(0, size, BLOCK)
    if size > WHOLE:
        offsets = [i * last // (SAMPLED_BLOCKS - 1) // 2 * 2 for i in range(SAMPLED_BLOCKS)]
    with open(path, "rb") as file:
        for offset in offsets:
            file.seek(offset)
            yield file.read(BLOCK)


def _bytes_per_token(meta: dict, split: str, tokens: np.ndarray) -> float | None:
    """UTF-8 bytes per token of a split: known, counted from the symbols, or None."""
    if meta["kind"] == "byte":
        return 1.0
    if meta["kind"] != "char":
        return None
    if "splits" in meta:
        return meta["splits"][split]["bytes"] / len(tokens)
    widths = symbol_bytes(meta["itos"])
    step = BLOCK * 16
    total = sum(int(widths[tokens[i : i + step]].sum()) for i in range(0, len(tokens), step))
    return total / len(tokens)


def symbol_bytes(symbols: Sequence[str]) -> np.ndarray:
    """UTF-8 length of each symbol: (vocab_size,) int64."""
    return np.array([len(s.encode(errors="replace")) for s in symbols], np.int64)


# --- what the symbols are: meta.json (ours), meta.pkl (nanoGPT's), or nothing -------------------


def _read_meta(folder: Path) -> dict:
    ours, theirs = folder / "meta.json", folder / "meta.pkl"
    if os.path.exists(ours):
        with read_errors(ours):
            return _checked_json(ours, ours.read_bytes())
    if os.path.exists(theirs):
        with read_errors(theirs), open(theirs, "rb") as file:
            return _from_nanogpt(theirs, _load_plain(theirs, file))
    return {"kind": "gpt2", "vocab_size": GPT2_VOCAB_SIZE}


def _checked_json(path: Path, raw: bytes) -> dict:
    broken = UserError(f"{path} is not a meta file of ours; prepare the dataset again")
    try:
        meta = json.loads(raw)
        newer = meta["schema"] > META_SCHEMA
        kind, size, symbols = meta["kind"], meta["vocab_size"], meta["itos"]
        counts = [meta["splits"][split][key] for split in SPLITS for key in ("tokens", "bytes")]
    except (ValueError, LookupError, TypeError, RecursionError) as e:
        raise broken from e
    if newer:
        raise UserError(f"{path} is of a newer nanoscale; upgrade, or prepare the dataset again")
    if kind == "byte":
        fine = size == 256 and symbols is None
    else:
        fine = isinstance(symbols, list) and all(isinstance(s, str) for s in symbols)
        fine = fine and kind in ("char", "synthetic") and len(symbols) == size
    if not fine or not all(map(_is_count, [size, *counts])):
        raise broken
    return meta


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


class _PlainUnpickler(pickle.Unpickler):
    """Dictionaries, lists, numbers and strings only: whatever names code is refused unread."""

    def find_class(self, module: str, name: str) -> object:
        raise UserError(f"holds code ({module}.{name}) and was not loaded")


def _load_plain(path: Path, file) -> object:
    try:
        return _PlainUnpickler(file).load()
    except UserError as e:
        raise UserError(f"{path} {e}; prepare the dataset again with a tool you trust") from e
    except OSError:
        raise
    except Exception as e:  # a damaged pickle may raise nearly anything
        raise UserError(f"{path} is not a readable pickle; prepare the dataset again") from e


def _from_nanogpt(path: Path, loaded: object) -> dict:
    """Our meta from nanoGPT's `{'vocab_size', 'itos', 'stoi'}`; without itos, bare ids."""
    if not isinstance(loaded, dict) or not _is_count(loaded.get("vocab_size")):
        raise UserError(f"{path} has no vocab_size; prepare the dataset again")
    size, itos = loaded["vocab_size"], loaded.get("itos")
    if itos is None:
        return {"kind": "ids", "vocab_size": size}
    named = dict(enumerate(itos)) if isinstance(itos, list | tuple) else itos
    if not isinstance(named, dict) or not all(
        type(i) is int and 0 <= i < size and isinstance(s, str) for i, s in named.items()
    ):
        raise UserError(f"itos in {path} is not ids below {size} to strings; prepare it again")
    return {"kind": "char", "vocab_size": size, "itos": [named.get(i, "") for i in range(size)]}


@functools.cache
def _gpt2():
    try:
        import tiktoken
    except ImportError as e:
        raise UserError("GPT-2 tokens need tiktoken: run `pip install tiktoken`") from e
    try:
        return tiktoken.get_encoding("gpt2")
    except Exception as e:  # it downloads its table, through whatever HTTP client it has
        raise UserError(f"tiktoken could not load its GPT-2 table: {e}") from e


# --- samples -----------------------------------------------------------------------------------


def philox_words(seed: int, purpose: int, stream: int, first: int, count: int) -> np.ndarray:
    """Words [first, first + count) of the random sequence (seed, purpose, stream): (count,) uint64.

    Word i is word i % 4 of block i // 4: key (seed, purpose), counter (1 + block, stream, 0, 0).
    Only raw words are used, as numpy promises those, unlike `Generator` methods, for good.
    """
    key = np.array([seed, purpose], np.uint64)
    counter = np.array([first // 4, stream, 0, 0], np.uint64)
    skip = first % 4
    return np.random.Philox(key=key, counter=counter).random_raw(skip + count)[skip:]


def uniform_integers(words: np.ndarray, n: int) -> np.ndarray:
    """Each word as an integer in [0, n): floor(u n), u its upper 53 bits as a fraction; int64."""
    return ((words >> np.uint64(11)) * 2.0**-53 * n).astype(np.int64)


class Sampler:
    """Training batches of one split, by sample number.

    `order='random'` draws each start anywhere in the split, with replacement, as nanoGPT does.
    `order='epoch'` cuts the split into windows `block_size` apart, from a phase of its own each
    epoch, and takes each of them once per epoch in an order of its own.
    """

    def __init__(self, tokens: np.ndarray, block_size: int, data_seed: int, order: str) -> None:
        if order not in ORDERS:
            raise UserError(f"data order {order!r} is none of {one_of(ORDERS)}")
        where = getattr(tokens, "filename", None) or "the training split"
        _require_window(len(tokens), block_size, where)
        self.tokens = np.asarray(tokens)  # memmap's own indexing is several times slower
        self.block_size = block_size
        self.data_seed = data_seed
        self.windows_per_epoch = max(1, (len(tokens) - block_size) // block_size)
        self._starts = self._random_starts if order == "random" else self._epoch_starts
        self._epoch: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def batch(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Samples [first, first + count): X and Y, (count, block_size) int64, Y shifted by one."""
        return windows(self.tokens, self._starts(first, count), self.block_size)

    def _random_starts(self, first: int, count: int) -> np.ndarray:
        words = philox_words(self.data_seed, ORDER_RANDOM, 0, first, count)
        return uniform_integers(words, len(self.tokens) - self.block_size)

    def _epoch_starts(self, first: int, count: int) -> np.ndarray:
        pieces = []
        end = first + count
        while first < end:
            epoch, at = divmod(first, self.windows_per_epoch)
            pieces.append(self._starts_of_epoch(epoch)[at : at + end - first])
            first += len(pieces[-1])
        return np.concatenate(pieces)

    def _starts_of_epoch(self, epoch: int) -> np.ndarray:
        if self._epoch[0] != epoch:
            n = self.windows_per_epoch
            words = philox_words(self.data_seed, ORDER_EPOCH, epoch, 0, n)
            # a stable sort, so that equal words cannot make the order depend on the machine
            starts = np.argsort(words, kind="stable") * self.block_size
            room = min(self.block_size, len(self.tokens) - n * self.block_size)
            word = philox_words(self.data_seed, EPOCH_PHASE, 0, epoch, 1)
            self._epoch = (epoch, starts + uniform_integers(word, room))
        return self._epoch[1]


def evaluation_windows(n_tokens: int, block_size: int, limit: int) -> np.ndarray:
    """Starts of up to `limit` fixed windows spread evenly over a split, each at most once: (k,).

    Window j starts at j * block_size; of the W there are, the i-th of k chosen is floor(i W / k).
    """
    _require_window(n_tokens, block_size, "the evaluated split")
    available = (n_tokens - 1) // block_size
    chosen = min(limit, available)
    return np.arange(chosen, dtype=np.int64) * available // max(chosen, 1) * block_size


def windows(
    tokens: np.ndarray, starts: np.ndarray, block_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The windows at `starts`: X and Y, (len(starts), block_size) int64, Y is X shifted by one."""
    rows = np.asarray(tokens)[starts[:, None] + np.arange(block_size + 1)]  # (B, T + 1)
    return rows[:, :-1].astype(np.int64), rows[:, 1:].astype(np.int64)


def _require_window(n_tokens: int, block_size: int, where: object) -> None:
    if n_tokens < block_size + 1:
        raise UserError(
            f"{where} holds {n_tokens:,} tokens, but block_size={block_size} needs at "
            f"least {block_size + 1:,}; lower block_size or prepare more text"
        )
