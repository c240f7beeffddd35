"""`nanoscale sync`: finished runs to W&B, Trackio, TensorBoard or a tracker of one's own."""

from __future__ import annotations

from pathlib import Path

import click

from nanoscale.commands.verb import json_output, option, output_root, say, verb
from nanoscale.errors import DONE, FAILURE


@verb(
    "nanoscale sync quick --to=wandb",
    "nanoscale sync quick --to=losses --trackers=docs/my_tracker.py",
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
    from nanoscale.studies.sending import runs_of, send

    sending = send(runs_of(name, output_root), to, trackers, again, click.echo)
    say([str(sending)], json_path, sending.to_json())
    return FAILURE if sending.failed else DONE
