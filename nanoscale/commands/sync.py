"""`nanoscale sync`: finished runs to W&B, Trackio, TensorBoard or a tracker of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nanoscale.commands.verb import json_output, open_study, option, output_root, say, verb
from nanoscale.errors import DONE, FAILURE

if TYPE_CHECKING:
    from nanoscale.store.folder import RunFolder
    from nanoscale.training.tracked_run import TrackedRun


@verb(
    "nanoscale sync quick --to=wandb",
    "nanoscale sync quick --to=losses --trackers=docs/howto/my_tracker.py",
)
@click.argument("name", metavar="STUDY|RUN")
@click.option(
    "--to",
    metavar="TRACKER",
    required=True,
    help="wandb, trackio, tensorboard, or one that --trackers registers.",
)
@option("trackers", "FILE", "A Python file that registers trackers of your own.")
@click.option("--again", is_flag=True, help="Send what has been sent, too.")
@json_output("what was sent")
@output_root()
def command(
    name: str,
    to: str,
    trackers: str | None,
    again: bool,
    json_path: Path | None,
    output_root: Path,
) -> int:
    """Send the finished runs of STUDY, or the one in the folder RUN, to a tracker: once each, with
    every row, in the study's group.

    Runs that were trained with that tracker on are there already.
    """
    from nanoscale.training.sending import send

    sending = send(runs_of(name, output_root), to, trackers, again, click.echo)
    say([str(sending)], json_path, sending.to_json())
    return FAILURE if sending.failed else DONE


def runs_of(name: str, output_root: Path) -> list[TrackedRun]:
    """The runs to send under a name: those of a study, or the one in a run folder."""
    from nanoscale.store.folder import RunFolder
    from nanoscale.training.tracked_run import TrackedRun

    folder = RunFolder(name)
    if folder.exists():
        return [the_run(folder)]
    study = open_study(name, output_root)
    return [
        TrackedRun(folder, folder.spec(), study.name, entry.title)
        for entry, folder in study.runs()
        if folder.exists() and not folder.damage()
    ]


def the_run(folder: RunFolder) -> TrackedRun:
    """The run in a folder, as a cell of the study that last asked for it, or of one that has it."""
    from nanoscale.experiments.results import cells_of
    from nanoscale.store.folder import CELL
    from nanoscale.training.tracked_run import TrackedRun

    if folder.record(CELL) is None:
        for study, title in cells_of(folder):
            return TrackedRun(folder, folder.spec(), study, title)
    return TrackedRun.of(folder, folder.spec())
