"""`nanoscale study`: many runs, one question, a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nanoscale.commands.run_options import HOW_TO_RUN, runner_options
from nanoscale.commands.sample import text_by
from nanoscale.commands.verb import (
    EXIT_CODES,
    json_output,
    option,
    output_root,
    verb,
    write_study,
)
from nanoscale.errors import DONE, FAILURE


@verb(
    "nanoscale study studies/quick.toml --dry-run",
    "nanoscale study studies/sweep.toml --workers=4 --budget=90min",
)
@click.argument("file", metavar="FILE")
@click.option("--dry-run", is_flag=True, help="Say what each run needs, and start nothing.")
@option("until", "STAGE", "The last stage of a forecast to go to, as check, ladder or seal.")
@option("budget", "FLOPS|TIME", "What the study may cost, as 1e15 or 90min.")
@HOW_TO_RUN
@json_output("the study at its end")
@output_root()
def command(
    file: str,
    dry_run: bool,
    until: str | None,
    json_path: Path | None,
    output_root: Path,
    **how: Any,
) -> int:
    """Train what the study FILE asks for, then fit, judge and report.

    Runs that have finished are never trained again; the same command goes on where it was stopped.
    """
    from nanoscale.studies.stages import run_study

    options = runner_options(how)
    study = run_study(file, output_root, dry_run=dry_run, until=until, writer=text_by, **options)
    write_study(json_path, study)
    if not dry_run and not study.ok:
        return FAILURE
    return EXIT_CODES[study.verdict] if study.verdict else DONE
