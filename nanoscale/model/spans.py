"""What the kernels do and when, while somebody looks: one call of them may be a whole update.

They leave spans in memory that is handed to them (`Scope` in kernels.cpp). Not torch's own ranges:
the library is built without torch, so that one in a wheel serves any version of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from nanoscale.model.kernels import call, text_at

SPAN_RECORD = np.dtype([("name", "u8"), ("begin", "i8"), ("end", "i8"), ("thread", "i8")])
ROOM = 2**22  # spans in 128 MiB, of which the system hands out what is written to


@dataclass(frozen=True)
class Span:
    """What one thread was doing for a while."""

    name: str
    begin: int  # nanoseconds since 1970
    end: int
    thread: int  # as the system numbers it


class KernelLook:
    """A look at all threads of the kernels, from `begin` to `end`."""

    def __init__(self, room: int = ROOM) -> None:
        self.room = np.empty(room, SPAN_RECORD)
        self.made = np.zeros(1, np.int64)

    def begin(self) -> None:
        addresses = self.room.ctypes.data, len(self.room), self.made.ctypes.data
        call("look", torch.float32, *addresses)

    def end(self) -> None:
        call("look", torch.float32, None, 0, None)

    @property
    def lost(self) -> int:
        """How many spans there was no room for."""
        return max(0, int(self.made[0]) - len(self.room))

    def spans(self) -> Iterator[Span]:
        """Those that have ended, in the order of their ends."""
        kept = self.room[: int(self.made[0])]
        names: dict[int, str] = {}
        for address, begin, end, thread in kept.tolist():
            if address not in names:
                names[address] = text_at(address)
            yield Span(
                name=names[address],
                begin=begin,
                end=end,
                thread=thread,
            )
