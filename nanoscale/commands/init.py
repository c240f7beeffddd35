"""`nanoscale init`: a working folder, with a config and a study to edit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from nanoscale.commands.verb import in_a_folder, json_output, option, say, verb
from nanoscale.errors import DONE, UserError, disk_errors, nearest_or_all, program
from nanoscale.paths import in_a_shell
from nanoscale.spec.shipped import named, names
from nanoscale.store.files import write_text

IGNORED = "/data/\n/experiments_out/\n/out*/\n"  # by git: what commands write


@verb("nanoscale init lab", "nanoscale init lab --study=isoflop --config=train_shakespeare_char")
@click.argument("folder", metavar="DIR")
@option("study", "NAME", "The study to copy: starter, quick, isoflop, ...", default="starter")
@option("config", "NAME", "The config to copy.", default="starter")
@json_output("the files written")
def command(folder: str, study: str, config: str, json_path: Path | None) -> int:
    """Make the working folder DIR, or add to it: a study and a config that you edit.

    They are copies of those of these names, and go before what comes with nanoscale: in DIR,
    `nanoscale study NAME` and `nanoscale train NAME` take yours. Nothing is ever written over.
    """
    if not folder:
        raise UserError("DIR is empty; name a folder, or . for this one")
    root = in_a_folder(Path(folder), f"DIR {folder}")
    copies = {
        root / "studies" / f"{study}.toml": _text("studies", study, "--study"),
        root / "config" / f"{config}.py": _text("config", config, "--config"),
    }
    there = next((path for path in copies if path.exists()), None)
    if there:
        raise UserError(
            f"{there} is there already and is never written over: edit it, or take another DIR"
        )

    ignored = root / ".gitignore"
    if not ignored.exists():
        copies[ignored] = IGNORED
    _write(root, copies)
    record = {"folder": str(root), "files": list(map(str, copies))}
    say(_lines(root, study, config), json_path, record)
    return DONE


def _write(root: Path, copies: Mapping[Path, str]) -> None:
    """All of the files, or none: a second try is not to find half of them."""
    with disk_errors(root):
        for path in copies:
            path.parent.mkdir(parents=True, exist_ok=True)
    try:
        for path, text in copies.items():
            write_text(path, text)
    except UserError:
        for path in copies:
            path.unlink(missing_ok=True)
        raise


def _text(folder: str, name: str, flag: str) -> str:
    """The text of the file of that name, as `study` and `train` find it."""
    if name not in names(folder):
        hint = nearest_or_all(name, names(folder))
        raise UserError(f"{flag}={name}: no such name{hint}")
    return named(Path(name), folder).read_text(encoding="utf-8")


def _lines(root: Path, study: str, config: str) -> list[str]:
    """What was made, and what to type next."""
    lines = [
        f"{root / 'studies' / study}.toml: a study to edit: the text it reads, its sizes",
        f"{root / 'config' / config}.py: one run to edit",
        "next:",
        f"  cd {in_a_shell(root)}" if root != Path() else "",
        f"  {program()} study {study} --dry-run   # what it will train, and how long that takes",
        f"  {program()} study {study}",
        f"  {program()} train {config}",
    ]
    return [line for line in lines if line]
