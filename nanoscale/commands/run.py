"""`nanoscale run`: what a run folder's config says, trained; how runners start their runs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from nanoscale.commands.verb import verb
from nanoscale.errors import DONE, FAILURE, INTERRUPTED

if TYPE_CHECKING:
    from nanoscale.training.records import RunResult


@verb("nanoscale run out", "nanoscale run experiments_out/quick/runs/0a1b2c3d")
@click.argument("folder", metavar="FOLDER")
def command(folder: str) -> int:
    """Train what config.json in FOLDER says, from where it was stopped."""
    from nanoscale.experiments.machine import waiting
    from nanoscale.store.folder import RunFolder
    from nanoscale.store.lease import Held
    from nanoscale.training.run import train_folder

    os.environ.update(waiting(None))  # before torch is loaded; a study has chosen already
    try:
        return exit_code(train_folder(RunFolder(folder)))
    except Held as held:  # two runners started it; this one may come back when that is done
        click.echo(held)
        return INTERRUPTED


def exit_code(result: RunResult) -> int:
    """What a run's end means to a shell: done, stopped with its state saved, or failed."""
    return {"COMPLETE": DONE, "WAITING": INTERRUPTED}.get(result.status, FAILURE)
