"""`nanoscale run`: what a run folder's config says, trained; how runners start their runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nanoscale.commands.verb import json_output, verb, write_record
from nanoscale.errors import DONE, FAILURE, INTERRUPTED
from nanoscale.model.launch import launched

if TYPE_CHECKING:
    from nanoscale.training.records import RunResult


@verb("nanoscale run out", "nanoscale run experiments_out/quick/runs/0a1b2c3d")
@click.argument("folder", metavar="FOLDER")
@json_output("what the run came to")
def command(folder: str, json_path: Path | None) -> int:
    """Train what config.json in FOLDER says, from where it was stopped."""
    from nanoscale.experiments.machine import waiting
    from nanoscale.store.folder import RunFolder
    from nanoscale.store.lease import Held
    from nanoscale.training.run import train_folder

    os.environ.update(waiting(None))  # before torch is loaded; a study has chosen already
    try:
        return ended(train_folder(RunFolder(folder)), json_path)
    except Held as held:  # two runners started it; this one may come back when that is done
        click.echo(held)
        return INTERRUPTED


def ended(result: RunResult, json_path: Path | None) -> int:
    """Write the record of a run that this process has done, or seen done; the exit code."""
    if json_path is not None and launched().rank == 0:
        write_record(json_path, {"folder": str(result.folder.path), **result.to_json()})
    return exit_code(result)


def exit_code(result: RunResult) -> int:
    """What a run's end means to a shell: done, stopped with its state saved, or failed."""
    return {"COMPLETE": DONE, "WAITING": INTERRUPTED}.get(result.status, FAILURE)
