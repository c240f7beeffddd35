"""W&B's offline transaction log, read: how far a run got in it. It is LevelDB's log format.

A file's header is 7 bytes. Blocks of 32 KiB hold chunks, each with a header of 7 bytes: a checksum,
its length, and whether it is a whole record, or the first, a middle or the last part of one.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

BLOCK_BYTES, HEADER_BYTES = 32768, 7
_WHOLE, _LAST = 1, 4


def last_step(log: Path) -> int:
    """The last step of a log's history; -1 if it has none."""
    record_type = import_module("wandb.proto.wandb_internal_pb2").Record
    last = -1
    for data in records(log.read_bytes()):
        for item in record_type.FromString(data).history.item:
            if "_step" in (item.key, *item.nested_key):
                last = max(last, json.loads(item.value_json))
    return last


def records(data: bytes) -> Iterator[bytes]:
    """The records of a log's bytes, up to where they end or were cut."""
    at = HEADER_BYTES
    parts = b""
    while at + HEADER_BYTES <= len(data):
        left = BLOCK_BYTES - at % BLOCK_BYTES
        if left < HEADER_BYTES:  # too few for a chunk: the next block has it
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        at += HEADER_BYTES
        parts += data[at : at + length]
        at += length
        if kind in (_WHOLE, _LAST) and at <= len(data):
            yield parts
            parts = b""
