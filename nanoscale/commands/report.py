"""`nanoscale report`: a study's page, rebuilt from its run folders."""

from __future__ import annotations

from pathlib import Path

import click

from nanoscale.commands.verb import open_study, output_root, verb


@verb("nanoscale report quick", "nanoscale report quick --output_root=results")
@click.argument("name", metavar="STUDY")
@output_root()
def command(name: str, output_root: Path) -> None:
    """Draw the conclusions of STUDY again: its law or verdict, its figures, report.html."""
    from nanoscale.studies.stages import conclude

    click.echo("\n".join(conclude(open_study(name, output_root))))
