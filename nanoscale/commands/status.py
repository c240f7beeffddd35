"""`nanoscale status`: where the runs of a study stand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nanoscale.commands.verb import (
    json_output,
    open_study,
    output_root,
    study_record,
    verb,
    write_record,
)
from nanoscale.errors import counted

if TYPE_CHECKING:
    from nanoscale.experiments import Study


@verb("nanoscale status", "nanoscale status quick")
@click.argument("names", metavar="[STUDY]...", nargs=-1)
@json_output("the studies and their runs")
@output_root()
def command(names: tuple[str, ...], json_path: Path | None, output_root: Path) -> None:
    """Count the runs of every study by state; of a STUDY that is named, list each run."""
    from nanoscale.experiments.results import study_names

    studies = [open_study(name, output_root) for name in names or study_names(output_root)]
    if not studies:
        click.echo(f"no studies in {output_root}")
    for study in studies:
        states = sorted(study.states().items())
        counts = ", ".join(f"{count} {state}" for state, count in states)
        click.echo(f"{study.name}: {counted(len(study), 'run')}: {counts}")
        if names:
            click.echo(runs_of(study))
    if json_path is not None:
        write_record(json_path, {"studies": [study_record(study) for study in studies]})


def runs_of(study: Study) -> str:
    """A line per run: what it varies, its state, its step and loss."""
    from nanoscale.experiments.progress import read

    frame = study.frame()
    steps = []
    for _, folder in study.runs():
        run = read(folder)
        steps.append(f"{run.step}/{run.max_iters}")
    shown = frame.assign(step=steps)[[*study.varied, "state", "step", "val_loss", "run"]]
    return str(shown.to_string(index=False))
