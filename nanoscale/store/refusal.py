"""What a refused run leaves: nothing. Files that cannot be written are found first."""

from __future__ import annotations

import errno
import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nanoscale.errors import UserError, disk_errors, missing_folders
from nanoscale.store.folder import (
    BEST,
    BEST_BEFORE,
    CHECKPOINT,
    CONFIG,
    LOG,
    METRICS,
    ROWS,
    STATUS,
    WINDOWS,
    RunFolder,
)
from nanoscale.store.lease import Held


def check_writable(folder: RunFolder) -> None:
    """Refuse a folder in which a file of a run could not be written, before any is changed."""
    for name in (CONFIG, STATUS, ROWS, METRICS, CHECKPOINT, BEST, BEST_BEFORE, WINDOWS, LOG):
        path = folder / name
        with disk_errors(path):
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if name in (ROWS, LOG) and path.exists():  # the others are replaced whole
                open(path, "ab").close()


@contextmanager
def taken_back(path: Path) -> Iterator[None]:
    """Have a run that is refused before its first row leave nothing behind at `path`.

    Its new folder goes, and the run that was moved aside for it comes back.
    """
    made = missing_folders(path)
    before = path.stat() if RunFolder(path).exists() else None
    try:
        yield
    except Held:  # by another process: what is there is that one's
        raise
    except UserError:
        if before and os.path.samestat(before, path.stat()):
            raise  # it was to go on with what was there
        _remove_unbegun(RunFolder(path))
        for folder in [path] if before else made:
            with suppress(OSError):
                folder.rmdir()  # not a tree's removal: others may have begun in it
        if before and not path.exists():
            _move_back(path, before)
        raise


def _remove_unbegun(folder: RunFolder) -> None:
    """Remove the files of a run that has no row yet, if there are no others."""
    written = {CONFIG, STATUS, ROWS, LOG}
    if not folder.path.is_dir() or not written.issuperset(os.listdir(folder.path)):
        return
    if not (folder / ROWS).exists() or not (folder / ROWS).stat().st_size:
        for name in written:
            (folder / name).unlink(missing_ok=True)


def _move_back(path: Path, before: os.stat_result) -> None:
    for aside in path.parent.glob(f"{glob.escape(path.name)}.old-*"):
        if os.path.samestat(before, aside.stat()):
            aside.rename(path)
            print(f"{aside}: moved back to {path}")
