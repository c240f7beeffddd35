"""Text to token ids and back: by characters, by bytes, by GPT-2's merges, by any tokenizer.json.

A data folder whose tokens are of another kind than the first three holds its `tokenizer.json`
beside them, and its meta the SHA-256 of that. Hugging Face's `tokenizers` reads it, tiktoken has
GPT-2's merges; each is loaded when the first text is.
"""

from __future__ import annotations

import abc
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from nanoscale.data.meta import DTYPES, Meta, dtype_of, read_errors
from nanoscale.errors import UserError, nearest_or_all

TOKENIZER_FILE = "tokenizer.json"
CHOICES = ("char", "byte", "gpt2", "FILE.json", "train:VOCAB")
END_OF_DOCUMENT = "\0"  # of characters and bytes
END_OF_TEXT = "<|endoftext|>"  # of GPT-2, and of what is trained here
ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>")  # as others call it
GPT2_DIGEST = "20940fd36bff2b33dff18da9a85f31f7eab5ea75375cf78fdb8b0bda1116d42e"
CODE_POINTS = 0x110000
GPT2_FILES = {  # as tiktoken keeps and checks them: vocab.bpe and encoder.json
    "6d1cbeee0f20b3d9449abfede4726ed8212e3aee": (
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
    ),
    "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6": (
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
    ),
}
LEAST_TRAINED = 257  # the bytes and the end
TRAINED_ON = 2**26  # characters, by a tokenizer that is trained on a text

Tokens: TypeAlias = NDArray[Any]  # (n,) of any integer type; of a token file, uint16 or uint32
Integers: TypeAlias = NDArray[np.int64]


class Tokenizer(abc.ABC):
    """What the ids of a data set stand for.

    Of a prompt, the name of a special token is that token; in a document it is ordinary text.
    """

    kind: str  # as the meta names it
    vocab_size: int  # every id is below it
    end: int | None  # the id after each of many documents
    end_name: str | None = None  # where that is a special token

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of a prompt; a `UserError` where the vocabulary cannot spell it."""

    @abc.abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD, unknown ids nothing."""

    @abc.abstractmethod
    def encode_documents(self, texts: Sequence[str]) -> list[Tokens]:
        """Ids of each text, as a token file stores them, without an end."""

    @abc.abstractmethod
    def count_bytes(self, tokens: Tokens) -> int:
        """UTF-8 bytes of the text of `tokens`, which may be cut anywhere if they spell bytes.

        A special token is no text.
        """

    @abc.abstractmethod
    def to_json(self) -> str:
        """A tokenizer.json by which Hugging Face's `tokenizers` does the same."""

    @abc.abstractmethod
    def table(self) -> dict[int, bytes]:
        """What each id spells, but of special tokens and of those that stand for nothing."""

    @functools.cached_property
    def digest(self) -> str:
        """The SHA-256 of the table: equal for the same tokens, in whatever form they are written.

        Special tokens do not count, nor does what pads a vocabulary.
        """
        sha = hashlib.sha256()
        for number, spelt in sorted(self.table().items()):
            sha.update(b"%d %d " % (number, len(spelt)) + spelt)
        return sha.hexdigest()

    def __str__(self) -> str:
        return f"{self.kind}, {self.vocab_size:,} tokens"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the ids in a token file."""
        return np.dtype(DTYPES[dtype_of(self.vocab_size)])

    def save(self, folder: Path, longest: int) -> None:
        """Write tokenizer.json, and beside it the tokenizer_config.json that transformers wants.

        `longest` is the most tokens that the model sees.
        """
        content = self.to_json()
        config: dict[str, object] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": longest,
        }
        if self.end_name is not None:
            config |= {"eos_token": self.end_name, "pad_token": self.end_name}
        (folder / TOKENIZER_FILE).write_text(content, encoding="utf-8", newline="\n")
        text = json.dumps(config, indent=2) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8", newline="\n")


def tokenizer_of(folder: Path, meta: Meta, named: str = "") -> Tokenizer | None:
    """The tokenizer of a data folder; None where nothing says what its ids stand for.

    Raises `UserError` where its tokenizer.json is missing, changed or of no use.
    """
    if meta.kind == "gpt2":
        return GPT2()
    if meta.kind == "byte":
        return Bytes()
    if meta.tokenizer is not None:
        path = folder / meta.tokenizer.file
        content = _read(path)
        if hashlib.sha256(content).hexdigest() != meta.tokenizer.sha256:
            raise UserError(
                f"{path} has changed since its data set was prepared, so ids may mean other text; "
                "restore it, or prepare the data set again"
            )
        return TokenizerFile(content, path, meta.tokenizer.end)
    if meta.itos is None:
        return None
    return Characters(meta.itos, meta.kind, named or str(folder))


def make_tokenizer(choice: str, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that --tokenizer names: char, byte, gpt2, FILE.json or train:VOCAB.

    `texts` are the documents that give characters their alphabet and `train` its merges; the others
    leave them unread.
    """
    check_choice(choice)
    if choice == "char":
        return Characters(alphabet([END_OF_DOCUMENT, *texts]))
    if choice == "byte":
        return Bytes()
    if choice == "gpt2":
        return GPT2()
    if choice.startswith("train:"):
        return train_bpe(texts, int(choice.removeprefix("train:")))
    return read_tokenizer(Path(choice))


def check_choice(choice: str) -> None:
    """Refuse a --tokenizer that cannot be, and a library that is missing, before any text is read.

    Raises:
        UserError: no such tokenizer, a vocabulary that cannot be trained, or nothing to do it with.
    """
    if choice in ("char", "byte"):
        return
    if choice == "gpt2":
        gpt2_encoding()
        return
    if choice.startswith("train:"):
        size = choice.removeprefix("train:")
        if not size.isdecimal() or not LEAST_TRAINED <= int(size) < 2**31:
            raise UserError(
                f"--tokenizer {choice}: VOCAB is a number from {LEAST_TRAINED} (the bytes and the "
                "end of a document), as in train:4096"
            )
        _library()
    elif Path(choice).suffix == ".json":
        read_tokenizer(Path(choice))
    else:
        raise UserError(f"--tokenizer {choice!r} is none{nearest_or_all(choice, CHOICES)}")


def as_recorded(choice: str | None) -> str | None:
    """A --tokenizer as a record of a preparation has it: a file by its SHA-256."""
    if choice is not None and choice.endswith(".json"):
        return hashlib.sha256(_read(Path(choice))).hexdigest()
    return choice


# -- characters and bytes -------------------------------------------------------------------------
def alphabet(texts: Iterable[str]) -> list[str]:
    """The characters of texts, sorted."""
    present: set[str] = set()
    for text in texts:
        present.update(text)
    return sorted(present)


def symbol_bytes(symbols: Sequence[str]) -> Integers:
    """UTF-8 length of each symbol: (vocab_size,) int64."""
    return np.array([len(s.encode(errors="replace")) for s in symbols], np.int64)


def check_symbols(named: str, text: str, numbers: Mapping[str, int]) -> None:
    """Refuse characters that a vocabulary of characters lacks."""
    unknown = [c for c in dict.fromkeys(text) if c not in numbers]
    if unknown:
        shown = ", ".join(map(repr, unknown[:5]))
        if len(unknown) > 5:
            shown += ", ..."
        raise UserError(
            f"{named} has no symbol for {shown}; "
            f"use only characters of its {len(numbers)}-symbol vocabulary"
        )


class Characters(Tokenizer):
    """One id per character of an alphabet, as nanoGPT's shakespeare_char has them."""

    def __init__(self, symbols: Sequence[str], kind: str = "char", named: str = "the text") -> None:
        self.kind = kind
        self.symbols = symbols
        self.vocab_size = len(symbols)
        self.numbers = {symbol: i for i, symbol in enumerate(symbols)}
        self.end = self.numbers.get(END_OF_DOCUMENT)
        self._named = named

    def encode(self, text: str) -> list[int]:
        check_symbols(self._named, text, self.numbers)
        return [self.numbers[c] for c in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.symbols[i] for i in ids)

    def encode_documents(self, texts: Sequence[str]) -> list[Tokens]:
        return [self._array(text) for text in texts]

    def _array(self, text: str) -> Tokens:
        points = np.frombuffer(text.encode("utf-32-le"), "<u4")
        ids = self._ids[points]
        if len(ids) and ids.max() == self.vocab_size:
            self.encode(text)  # says which
        tokens: Tokens = ids.astype(self.dtype)
        return tokens

    @functools.cached_property
    def _ids(self) -> NDArray[np.uint32]:
        """Id of each code point; of one outside the alphabet, the first that is none."""
        ids = np.full(CODE_POINTS, self.vocab_size, np.uint32)
        for symbol, number in self.numbers.items():
            if len(symbol) == 1:
                ids[ord(symbol)] = number
        return ids

    def count_bytes(self, tokens: Tokens) -> int:
        return int(self._widths[tokens].sum())

    @functools.cached_property
    def _widths(self) -> Integers:
        return symbol_bytes(self.symbols)

    def table(self) -> dict[int, bytes]:
        return {n: symbol.encode(errors="replace") for symbol, n in self.numbers.items() if symbol}

    def to_json(self) -> str:
        pieces = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated"}
        vocab = {symbol: number for symbol, number in self.numbers.items() if symbol}
        return _as_json(
            {"type": "WordLevel", "vocab": vocab, "unk_token": ""},
            pieces | {"invert": False},
            {"type": "Fuse"},
        )


class Bytes(Tokenizer):
    """The 256 bytes of UTF-8."""

    kind = "byte"
    vocab_size = 256
    end = 0

    def encode(self, text: str) -> list[int]:
        try:
            return list(text.encode())
        except UnicodeEncodeError as e:
            raise UserError(f"{text[e.start : e.end]!r} is not text that UTF-8 can hold") from e

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def encode_documents(self, texts: Sequence[str]) -> list[Tokens]:
        return [byte_tokens(text.encode()) for text in texts]

    def count_bytes(self, tokens: Tokens) -> int:
        return len(tokens)

    def table(self) -> dict[int, bytes]:
        return {byte: bytes([byte]) for byte in range(256)}

    def to_json(self) -> str:
        vocab = {character: byte for byte, character in enumerate(_characters_of_bytes())}
        return _as_json(_bpe(vocab, []), _byte_level(use_regex=False), _byte_level())


def byte_tokens(raw: bytes) -> Tokens:
    """Bytes as a token file stores them, whatever they spell."""
    return np.frombuffer(raw, np.uint8).astype("<u2")


# -- GPT-2 ----------------------------------------------------------------------------------------
class GPT2(Tokenizer):
    """GPT-2's 50,257 tokens by tiktoken."""

    kind = "gpt2"
    vocab_size = 50257
    end = 50256
    end_name = END_OF_TEXT
    digest = GPT2_DIGEST  # known without the table, which may be far

    def encode(self, text: str) -> list[int]:
        ids: list[int] = gpt2_encoding().encode(text, allowed_special={END_OF_TEXT})
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        # a model's vocabulary may be padded beyond these
        text: str = gpt2_encoding().decode([i for i in ids if i < self.vocab_size])
        return text

    def encode_documents(self, texts: Sequence[str]) -> list[Tokens]:
        every = gpt2_encoding().encode_ordinary_batch(list(texts), num_threads=os.cpu_count() or 1)
        return [np.array(ids, self.dtype) for ids in every]

    def count_bytes(self, tokens: Tokens) -> int:
        return int(_gpt2_widths()[tokens].sum())

    def table(self) -> dict[int, bytes]:
        return {rank: token for token, rank in gpt2_encoding()._mergeable_ranks.items()}

    def to_json(self) -> str:
        characters = _characters_of_bytes()
        ranks: dict[bytes, int] = gpt2_encoding()._mergeable_ranks
        vocab = {}
        merges = []
        for token, rank in ranks.items():
            vocab["".join(characters[byte] for byte in token)] = rank
            if len(token) > 1:
                halves = _halves(token, rank, ranks)
                merges.append(["".join(characters[byte] for byte in half) for half in halves])
        vocab[END_OF_TEXT] = self.end
        return _as_json(_bpe(vocab, merges), _byte_level(), _byte_level(), self.end)


@functools.cache
def gpt2_encoding() -> Any:
    """tiktoken's `gpt2`.

    Raises:
        UserError: tiktoken is not installed, or could not get its table.
    """
    try:
        import tiktoken  # type: ignore[import-not-found, unused-ignore]  # an extra
    except ImportError as e:
        raise _not_installed("GPT-2's tokenizer", "tiktoken") from e
    _check_cache()
    try:
        return tiktoken.get_encoding("gpt2")
    except Exception as e:  # it downloads its table, through whatever HTTP client it has
        raise UserError(
            f"tiktoken could not load its GPT-2 table ({e}); try again with a network, or name a "
            "folder that has it in TIKTOKEN_CACHE_DIR (docs/howto/data.md)"
        ) from e


def _check_cache() -> None:
    """Refuse a damaged table of the user's, which tiktoken would delete and ask the network for."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR")
    for name, sha256 in GPT2_FILES.items():
        path = Path(folder or "", name)
        if folder and path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            raise UserError(
                f"{path} is damaged, not GPT-2's table; get it again (docs/howto/data.md)"
            )


@functools.cache
def _gpt2_widths() -> Integers:
    """Bytes of each of GPT-2's tokens; the end and the ids of a padded vocabulary are no text."""
    widths = np.zeros(2**16, np.int64)
    for number, spelt in GPT2().table().items():
        widths[number] = len(spelt)
    return widths


def _halves(token: bytes, rank: int, ranks: Mapping[bytes, int]) -> list[bytes]:
    """The two tokens that were merged into this one: what all earlier merges leave of its bytes."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, rank) for a, b in itertools.pairwise(parts)]
        first = pairs.index(min(pairs))
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return parts


# -- any tokenizer.json ---------------------------------------------------------------------------
class TokenizerFile(Tokenizer):
    """A tokenizer.json of Hugging Face's `tokenizers`.

    `content` is the file, `where` what messages call it, `end` the id after a document, where its
    usual names do not tell.
    """

    kind = TOKENIZER_FILE

    def __init__(self, content: bytes, where: object, end: int | None = None) -> None:
        self.content = content
        self.where = str(where)
        library = _library()
        try:
            self._tokenizer = library.Tokenizer.from_str(content.decode())
        except Exception as e:  # of no class of its own
            raise UserError(
                f"{where} is not a tokenizer.json that `tokenizers` reads ({e}); give one that "
                "`save_pretrained` wrote, or train:VOCAB"
            ) from e
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        numbers = self._tokenizer.get_vocab(with_added_tokens=True)
        if not numbers:
            raise UserError(f"{where} has no tokens; give another tokenizer.json")
        self.vocab_size = max(numbers.values()) + 1
        self._special: set[int] = set()
        for number, token in self._tokenizer.get_added_tokens_decoder().items():
            if token.special:
                self._special.add(number)
        ends = [numbers[name] for name in ENDS if numbers.get(name) in self._special]
        self.end = end if end is not None else next(iter(ends), None)
        if self.end is not None:
            self.end_name = self._tokenizer.id_to_token(self.end)

    def encode(self, text: str) -> list[int]:
        return self._encoded([plain_text(text)], special=True)[0]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def encode_documents(self, texts: Sequence[str]) -> list[Tokens]:
        every = self._encoded(list(map(plain_text, texts)), special=False)
        return [np.array(ids, self.dtype) for ids in every]

    def _encoded(self, texts: list[str], special: bool) -> list[list[int]]:
        self._tokenizer.encode_special_tokens = not special  # as text
        try:
            every = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as e:  # of no class of its own
            numbers = self._tokenizer.get_vocab(with_added_tokens=True)
            check_symbols(self.where, "".join(texts), numbers)
            raise UserError(
                f"{self.where} cannot spell the text ({e}); choose another tokenizer"
            ) from e
        return [encoding.ids for encoding in every]

    def count_bytes(self, tokens: Tokens) -> int:
        if self._widths is not None:
            return int(self._widths[tokens].sum())
        total = 0
        ends = np.flatnonzero(tokens == (-1 if self.end is None else self.end))
        for document in np.split(tokens, ends):  # the first word of each may lose its space
            text = self._tokenizer.decode(document.tolist(), skip_special_tokens=True)
            total += len(text.encode())
        return total

    @functools.cached_property
    def _widths(self) -> Integers | None:
        """Bytes of each token where each spells its own; None where only a whole text decodes."""
        if not self._spells_bytes():
            return None
        widths = np.zeros(self.vocab_size, np.int64)
        for number, spelt in self.table().items():
            widths[number] = len(spelt)
        return widths

    def _spells_bytes(self) -> bool:
        decoder = json.loads(self.content).get("decoder") or {}
        return bool(decoder.get("type") == "ByteLevel")

    def table(self) -> dict[int, bytes]:
        byte_of = {character: byte for byte, character in enumerate(_characters_of_bytes())}
        in_bytes = self._spells_bytes()
        found = {}
        for token, number in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if number in self._special:
                continue
            # what is not spelt in characters of bytes, as an added token, is itself
            spelt = in_bytes and all(character in byte_of for character in token)
            found[number] = bytes(byte_of[c] for c in token) if spelt else token.encode()
        return found

    def to_json(self) -> str:
        return self.content.decode()


def read_tokenizer(path: Path) -> TokenizerFile:
    """A tokenizer.json; `tokenizer_config.json` beside it says what ends a document."""
    content = _read(path)
    config = path.with_name("tokenizer_config.json")
    end = None
    if config.is_file():
        end = _end_in(content, _read(config))
    return TokenizerFile(content, path, end)


def train_bpe(texts: Iterable[str], vocab_size: int) -> TokenizerFile:
    """A byte-level BPE with GPT-2's pattern, of up to `vocab_size` tokens; 0 ends a document.

    The first `TRAINED_ON` characters count; the same texts give the same file. Of few distinct
    words come fewer tokens.
    """
    library = _library()
    pieces = library.pre_tokenizers.ByteLevel
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = pieces(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pieces.alphabet()),
        show_progress=False,
    )
    print(f"learning {vocab_size:,} tokens from the training text", flush=True)
    tokenizer.train_from_iterator(_first(map(plain_text, texts), TRAINED_ON), trainer)
    content = tokenizer.to_str(pretty=True) + "\n"
    learnt = tokenizer.get_vocab_size()
    if learnt < vocab_size:
        print(f"learnt {learnt:,} tokens, not {vocab_size:,}: the text has no more pairs to join")
    return TokenizerFile(content.encode(), f"train:{vocab_size}")


def _first(texts: Iterable[str], characters: int) -> Iterator[str]:
    """Texts up to so many characters in all."""
    left = characters
    for text in texts:
        yield text[:left]
        left -= len(text)
        if left <= 0:
            return


def _end_in(content: bytes, config: bytes) -> int | None:
    """The id of the `eos_token` that a tokenizer_config.json names."""
    try:
        named = json.loads(config).get("eos_token")
        name = named["content"] if isinstance(named, dict) else named
        for token in json.loads(content)["added_tokens"]:
            if token["content"] == name:
                return int(token["id"])
    except (ValueError, LookupError, TypeError, AttributeError):
        pass  # of a file that is not needed
    return None


def plain_text(text: str) -> str:
    """`text`; half a surrogate pair, which JSON may hold and UTF-8 cannot, becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise UserError(f"{path} is not a file; give the tokenizer.json of the data")
    with read_errors(path):
        return path.read_bytes()


def _library() -> Any:
    try:
        import tokenizers  # type: ignore[import-not-found, unused-ignore]  # an extra
    except ImportError as e:
        raise _not_installed("a tokenizer.json", "tokenizers") from e
    return tokenizers


def _not_installed(what: str, package: str) -> UserError:
    return UserError(f"{what} needs {package}: run `pip install 'nanoscale[hf]'`")


# -- as a tokenizer.json --------------------------------------------------------------------------
@functools.cache
def _characters_of_bytes() -> list[str]:
    """The printable character that stands for each byte in GPT-2's vocabulary files."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others: Iterator[int] = iter(range(0x100, 0x200))
    return [chr(byte if byte in shown else next(others)) for byte in range(256)]


def _byte_level(use_regex: bool = True) -> dict[str, object]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _bpe(vocab: Mapping[str, int], merges: Sequence[Sequence[str]]) -> dict[str, object]:
    return {"type": "BPE", "vocab": vocab, "merges": merges}


def _as_json(
    model: Mapping[str, object],
    pieces: Mapping[str, object],
    decoder: Mapping[str, object],
    end: int | None = None,
) -> str:
    added: list[dict[str, object]] = []
    if end is not None:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        added.append({"id": end, "content": END_OF_TEXT, **flags, "special": True})
    record = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": pieces,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }
    return json.dumps(record, ensure_ascii=False) + "\n"
