"""`nanoscale watch`: a study's runs as they go on, wherever they run."""

from __future__ import annotations

from pathlib import Path

import click

from nanoscale.commands.verb import (
    json_output,
    open_study,
    output_root,
    verb,
    write_study,
)
from nanoscale.errors import DONE, FAILURE


@verb("nanoscale watch quick", "nanoscale watch quick --output_root=results")
@click.argument("name", metavar="STUDY")
@json_output("the study at its end")
@output_root()
def command(name: str, json_path: Path | None, output_root: Path) -> int:
    """Show the progress of STUDY, which others run, until it ends."""
    from nanoscale.experiments.watching import watch

    study = open_study(name, output_root)
    watch(study)
    write_study(json_path, study)
    return DONE if study.ok else FAILURE
