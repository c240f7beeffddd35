"""`nanoscale report`: a study's page, rebuilt from its run folders."""

from __future__ import annotations

from pathlib import Path

import click

from nanoscale.commands.verb import json_output, open_study, output_root, say, verb


@verb("nanoscale report quick", "nanoscale report quick --output_root=results")
@click.argument("name", metavar="STUDY")
@json_output("the conclusions")
@output_root()
def command(name: str, json_path: Path | None, output_root: Path) -> None:
    """Draw the conclusions of STUDY again: its law or verdict, its figures, report.html."""
    from nanoscale.studies.stages import conclude

    study = open_study(name, output_root)
    lines = conclude(study)
    record = {"name": study.name, "folder": str(study.folder), "lines": lines}
    say(lines, json_path, record)
