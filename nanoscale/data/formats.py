"""What is in a `.bin`: bare tokens of the type that its meta says, or else how to convert it.

The type is told from the first bytes, and another one is named only where those cannot be tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanoscale.data.meta import Meta, read_errors
from nanoscale.errors import UserError

LOOKED_AT = 2**16  # bytes from which a file's type is told
LLM_C = {20240520: "<u2", 20240801: "<u4"}  # magic number of llm.c's header -> type of its tokens
LLM_C_HEADER = 1024  # bytes
ARCHIVES = {
    b"PK\x03\x04": "a zip archive, as np.savez and torch.save write; load it",
    b"\x1f\x8b\x08": "compressed by gzip; unpack it",
}
NPY = b"\x93NUMPY"

# Types in which tokens are stored by mistake; wider ones first, as halves of them look like others.
OTHERS = ("<f8", "<f4", "<f2", ">f8", ">f4", ">f2", ">u8", ">u4", ">u2")
WHOLE_IN_FLOAT16 = 2048  # all numbers up to this are
ENOUGH = 16  # different tokens, of which chance makes no whole numbers in another type
ENOUGH_BYTES = 4096  # bytes, from which their frequencies are told


def check_format(path: Path, size: int, meta: Meta, dtype: np.dtype[Any]) -> None:
    """Refuse a file that does not hold bare tokens of `dtype`, and say how to convert it."""
    with read_errors(path), open(path, "rb") as file:
        head = file.read(LOOKED_AT)
    _check_header(path, size, head, dtype)
    if size % dtype.itemsize:
        raise UserError(
            f"{path} has an odd length of {size:,} bytes, not whole {dtype.name} tokens: "
            "truncated or foreign; prepare the dataset again"
        )
    if meta.vocab_size > 2 ** (8 * dtype.itemsize):
        raise UserError(
            f"the vocabulary of {path.parent} has {meta.vocab_size:,} symbols, which {dtype.name} "
            "tokens cannot number; store them as uint32 and write 'dtype': 'uint32' into the meta"
        )
    if meta.splits is not None or meta.dtype == "uint16":
        return
    said = "or write the type, 'uint16' or 'uint32', into the meta as its 'dtype'"
    other = _other_type(head, dtype, meta)
    if other:
        order = "big-endian " if other.startswith(">") else ""
        remedy = f"convert them: {_conversion(path, other, dtype.str)}"
        if other.endswith("f2") and meta.vocab_size > WHOLE_IN_FLOAT16:
            remedy = f"that rounds ids above {WHOLE_IN_FLOAT16:,}: prepare the dataset again"
        raise UserError(
            f"{path} holds {order}{np.dtype(other).name} numbers, not {dtype.name} tokens; "
            f"{remedy}, {said}"
        )
    wide = _wider_type(head, dtype)
    if wide:
        raise UserError(
            f"every second {dtype.name} of {path} is zero: its tokens are of a wider type; "
            f"convert them: {_conversion(path, wide, dtype.str)}, {said}"
        )


def _check_header(path: Path, size: int, head: bytes, dtype: np.dtype[Any]) -> None:
    """Refuse what begins as other files do."""
    magic = int.from_bytes(head[:4], "little")
    if magic in LLM_C and size >= LLM_C_HEADER:
        skipped = f", offset={LLM_C_HEADER}"
        raise UserError(
            f"{path} begins with llm.c's header; take it off: "
            f"{_conversion(path, LLM_C[magic], LLM_C[magic], skipped)}"
        )
    if head.startswith(NPY):
        read = f"np.load({str(path)!r})"
        raise UserError(
            f"{path} is a .npy file of numpy's; store its numbers alone: "
            f"{_stored(path, read, dtype.str)}"
        )
    for beginning, what in ARCHIVES.items():
        if head.startswith(beginning):
            raise UserError(
                f"{path} is {what} and store its tokens alone, by numpy's tofile as {dtype.name}"
            )


def _wider_type(head: bytes, dtype: np.dtype[Any]) -> str | None:
    """The type whose upper halves are the zeros in every second place, if there are such."""
    count = len(head) // 8 * (8 // dtype.itemsize)
    words = np.frombuffer(head, dtype, count)
    even = words[::2]
    odd = words[1::2]
    if len(words) < 16 or odd.any():
        return None
    if np.count_nonzero(even) < len(even) / 8:  # as good as all tokens are zero
        return None
    if dtype.itemsize == 4 or not even[1::2].any():
        return "<i8"
    return "<u4"


def _other_type(head: bytes, dtype: np.dtype[Any], meta: Meta) -> str | None:
    """The type in which the bytes are whole numbers below the vocabulary's size, as no tokens are.

    Where some token is foreign, two different numbers tell. Else `ENOUGH` do: floats, most of whose
    bits are zero; wider integers, zero in every second place; swapped ones below 256, as no token's
    lower byte is zero throughout. The bytes of a text are as frequent above as below.
    """
    foreign = np.frombuffer(head, dtype, len(head) // dtype.itemsize).max() >= meta.vocab_size
    for kind in OTHERS:
        numbers = np.frombuffer(head, kind, len(head) // np.dtype(kind).itemsize)
        if len(numbers) < ENOUGH or not _are_tokens(numbers, meta.vocab_size):
            continue
        small = np.unique(numbers[numbers < 256])
        other = numbers.dtype.kind == "f" or numbers.dtype.itemsize > dtype.itemsize
        if foreign or (len(small) >= ENOUGH and (other or numbers.max() < 256)):
            return kind
    no_pairs = meta.kind == "gpt2" or (foreign and meta.vocab_size <= 256)
    return "u1" if no_pairs and _are_bytes(head) else None


def _are_tokens(numbers: NDArray[Any], vocab_size: int) -> bool:
    """Whether they are whole, below the vocabulary's size, and not all one."""
    with np.errstate(invalid="ignore"):  # of floats that are none
        most = vocab_size * (1 + 2**-11)  # float16 rounds
        within = 0 <= float(numbers.min()) < float(numbers.max()) < most
        return within and np.array_equal(numbers, np.floor(numbers))


def _are_bytes(head: bytes) -> bool:
    """Whether the upper bytes are what the lower ones are; of GPT-2's tokens they are far fewer."""
    if len(head) < ENOUGH_BYTES:
        return False
    pairs = np.frombuffer(head, "u1", len(head) // 2 * 2).reshape(-1, 2)
    lower = np.bincount(pairs[:, 0], minlength=256)
    upper = np.bincount(pairs[:, 1], minlength=256)
    apart = np.abs(lower - upper).sum() / len(head)
    zeros = lower[0] + upper[0]  # of wider types, half of them
    return bool(np.count_nonzero(upper) >= ENOUGH and apart < 0.15 and zeros < len(head) / 4)


def _conversion(path: Path, wide: str, narrow: str, skipped: str = "") -> str:
    return _stored(path, f"np.fromfile({str(path)!r}, {wide!r}{skipped})", narrow)


def _stored(path: Path, read: str, narrow: str) -> str:
    return f"`{read}.astype({narrow!r}).tofile({str(path)!r})` in Python, np being numpy"
