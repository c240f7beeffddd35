"""`nanoscale status`: where the runs of a study stand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nanoscale.commands.verb import Verb, output_root

if TYPE_CHECKING:
    from nanoscale.experiments import Study


@click.command(cls=Verb, examples=["nanoscale status", "nanoscale status quick"])
@click.argument("names", metavar="[STUDY]...", nargs=-1)
@output_root()
def command(names: tuple[str, ...], output_root: Path) -> None:
    """Count the runs of every study by state; of a STUDY that is named, list each run."""
    from nanoscale.experiments import Study
    from nanoscale.experiments.results import study_names

    studies = [Study.open(output_root / name) for name in names or study_names(output_root)]
    if not studies:
        click.echo(f"no studies in {output_root}")
    for study in studies:
        counts = ", ".join(f"{count} {state}" for state, count in sorted(study.states().items()))
        click.echo(f"{study.name}: {len(study)} runs: {counts}")
        if names:
            click.echo(runs_of(study))


def runs_of(study: Study) -> str:
    """A line per run: what it varies, its state, its step and loss."""
    from nanoscale.experiments.progress import read
    from nanoscale.studies.runs import varied

    frame = study.frame()
    on_screen = [read(folder) for _, folder in study.runs()]
    frame["step"] = [f"{run.step}/{run.max_iters}" for run in on_screen]
    return str(frame[[*varied(study), "state", "step", "val_loss", "run"]].to_string(index=False))
