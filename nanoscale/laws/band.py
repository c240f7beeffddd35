"""A line with its interval: what a law says over a range of x, as it is drawn and stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from nanoscale.laws.arrays import Array

Ends: TypeAlias = list[float]  # of an interval: low and high


def ends_text(ends: Ends | None, spec: str = ".3g") -> str:
    """` [low, high]` behind a number; nothing where they are not known."""
    if ends is None:
        return ""
    low, high = ends
    return f" [{low:{spec}}, {high:{spec}}]"


@dataclass(frozen=True)
class Band:
    """y at x, from low to high, each (n,), in order of x."""

    x: Array
    y: Array
    low: Array
    high: Array

    def __len__(self) -> int:
        return len(self.x)

    def part(self, rows: slice) -> Band:
        """Some of it."""
        return Band(self.x[rows], self.y[rows], self.low[rows], self.high[rows])

    def split(self, reach: float) -> tuple[Band, Band]:
        """Up to `reach`, and from the last point before it on."""
        seen = int((self.x <= reach).sum())
        return self.part(slice(seen)), self.part(slice(max(seen - 1, 0), None))

    @property
    def is_wide(self) -> bool:
        """Whether an interval is known."""
        return bool((self.low != self.high).any())
