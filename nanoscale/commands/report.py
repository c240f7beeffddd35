"""`nanoscale report`: a study's page, rebuilt from its run folders."""

from __future__ import annotations

from pathlib import Path

import click

from nanoscale.commands.verb import json_output, open_study, output_root, say, verb


@verb("nanoscale report quick", "nanoscale report", "nanoscale report quick --output_root=results")
@click.argument("name", metavar="[STUDY]", required=False)
@json_output("the conclusions")
@output_root()
def command(name: str | None, json_path: Path | None, output_root: Path) -> None:
    """Draw the conclusions of STUDY again: its law or verdict, its figures, report.html. Without a
    name, write index.html: every study's question, answer and state, and a link to its page.
    """
    from nanoscale.studies.overview import write_overview
    from nanoscale.studies.stages import conclude

    if name is None:
        page, studies = write_overview(output_root)
        lines = [f"{study.name}: {study.answer or 'no answer yet'}" for study in studies]
        record = {"page": str(page), "studies": [vars(study) for study in studies]}
        say([*lines, f"index: {page}"], json_path, record)
        return
    study = open_study(name, output_root)
    lines = conclude(study)
    record = {"name": study.name, "folder": str(study.folder), "lines": lines}
    say(lines, json_path, record)
