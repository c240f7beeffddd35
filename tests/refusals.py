"""How the tests see a refusal: exit code 2, one line, and the folder as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanoscale.errors import UserError


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in sorted(folder.rglob("*"))
    }


def assert_refused(desk: Path, capsys: Any, command: Callable[[], int], *words: str) -> None:
    """`command` exits 2 with one line that holds `words`, and the folder is as it was."""
    before = snapshot(desk)
    capsys.readouterr()
    assert command() == 2
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0], lines[0]
    assert snapshot(desk) == before


def refusal(call: Callable[..., object], *args: Any, **kwargs: Any) -> str:
    """What a call says that is refused, one line."""
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def listing(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))
