"""`nanoscale report`: a study's page, rebuilt from its run folders."""

from __future__ import annotations

from pathlib import Path

import click

from nanoscale.commands.sample import text_by
from nanoscale.commands.verb import (
    json_output,
    number,
    open_study,
    option,
    output_root,
    say,
    verb,
)
from nanoscale.errors import UserError


@verb("nanoscale report quick --serve", "nanoscale report --output_root=results")
@click.argument("name", metavar="[STUDY]", required=False)
@click.option("--serve", is_flag=True, help="Show it here as it runs, until Ctrl-C.")
@option("port", "PORT", "Of --serve (any that is free).", number(whole=True, above=0))
@json_output("the conclusions")
@output_root()
def command(
    name: str | None, serve: bool, port: int | None, json_path: Path | None, output_root: Path
) -> None:
    """Draw the conclusions of STUDY again: its law or verdict, its figures, report.html. Without a
    name, write index.html: every study's question, answer and state, and a link to its page.
    """
    from nanoscale.studies.conclusion import conclude
    from nanoscale.studies.live import HERE, server_of
    from nanoscale.studies.overview import write_overview

    if serve and name is None:
        raise UserError("--serve shows one study: name it, as in nanoscale report quick --serve")
    if port is not None and not serve:
        raise UserError(f"--port={port} is of --serve")
    if serve and name is not None:
        server = server_of(open_study(name, output_root).folder, port or 0)
        address = f"http://{HERE}:{server.server_port}/"
        click.echo(f"{address} shows {name} as it runs; Ctrl-C ends it")
        with server:
            server.serve_forever()
        return
    if name is None:
        page, studies = write_overview(output_root)
        lines = [f"{study.name}: {study.answer or 'no answer yet'}" for study in studies]
        record = {"page": str(page), "studies": [vars(study) for study in studies]}
        say([*lines, f"index: {page}"], json_path, record)
        return
    study = open_study(name, output_root)
    lines = conclude(study, writer=text_by)
    record = {"name": study.name, "folder": str(study.folder), "lines": lines}
    say(lines, json_path, record)
