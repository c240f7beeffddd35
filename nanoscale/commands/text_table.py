"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], texts: int = 0) -> list[str]:
    """The rows with every column as wide as its longest cell; the first `texts` to the left."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[:texts] = map(str.ljust, row[:texts], widths)
        lines.append("  ".join(cells))
    return lines
