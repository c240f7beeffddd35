"""The configs and studies that come with the package, by the names that they have in a clone.

A clone has them at its root, where people edit them; a wheel, in the package.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
IN_WHEEL = PACKAGE / "shipped"
ENDINGS = {"config": ".py", "studies": ".toml"}  # of the two folders


def shipped(folder: str) -> Path:
    """Where the package keeps its `config` or its `studies`."""
    return (IN_WHEEL if IN_WHEEL.is_dir() else PACKAGE.parent) / folder


def named(path: Path, folder: str) -> Path:
    """The file at `path`; where none is, the one of that name below `folder`, here or shipped.

    `quick`, `quick.toml` and `studies/quick.toml` all name a study that comes with the package;
    one's own of the same name, in `studies` here, goes before it. A name that is nobody's comes
    back as it is.
    """
    if path.is_file():
        return path
    return next((file for file in _candidates(path, folder) if file.is_file()), path)


def _candidates(path: Path, folder: str) -> Iterator[Path]:
    ending = ENDINGS[folder]
    if not path.name or path.suffix not in ("", ending):
        return
    file = path.with_suffix(ending)
    if path.parent == Path():
        yield Path(folder) / file.name
    if path.parent in (Path(), Path(folder)):
        yield shipped(folder) / file.name


def names(folder: str) -> list[str]:
    """What `named` finds of a folder's files, without their ending, in order."""
    ending = ENDINGS[folder]
    places = (Path(folder), shipped(folder))
    return sorted({file.stem for place in places for file in place.glob(f"*{ending}")})
