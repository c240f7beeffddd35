"""Where a result comes from: the code's commit, the versions, the machine."""

from __future__ import annotations

import platform
import socket
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

from nanoscale.spec.values import Json

RECORDED_PACKAGES = ("torch", "numpy", "pandas", "nanoscale")


@cache
def provenance() -> dict[str, Json]:
    """Commit (None outside a checkout) and whether files differ from it, versions, platform."""
    commit, dirty = commit_of(Path(__file__).parent)
    versions: dict[str, str | None] = {}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "git_commit": commit,
        "git_dirty": dirty,
        "python": sys.version.split()[0],
        "packages": versions,
        "platform": platform.platform(),
        "host": socket.gethostname(),
    }


def commit_of(folder: Path) -> tuple[str | None, bool | None]:
    """(HEAD's hash, whether tracked files changed) of the checkout around `folder`."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(folder), *arguments]
        try:
            done = subprocess.run(
                command, capture_output=True, encoding="utf-8", timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    tracked = git("ls-files", "--error-unmatch", str(folder / "__init__.py"))
    if tracked is None:  # installed inside some other checkout, or nowhere
        return None, None
    status = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "HEAD"), None if status is None else bool(status)
