"""`nanoscale study`: many runs, one question, a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nanoscale.commands.run_options import HOW_TO_RUN, runner_options
from nanoscale.commands.verb import (
    json_output,
    option,
    output_root,
    verb,
    write_study,
)
from nanoscale.errors import DONE, FAILURE, INCONCLUSIVE


@verb(
    "nanoscale study studies/quick.toml --dry-run",
    "nanoscale study studies/sweep.toml --workers=4 --budget=90min",
)
@click.argument("file", metavar="FILE")
@click.option("--dry-run", is_flag=True, help="Say what each run needs, and start nothing.")
@option("budget", "FLOPS|TIME", "What the study may cost, as 1e15 or 90min.")
@HOW_TO_RUN
@json_output("the study at its end")
@output_root()
def command(file: str, dry_run: bool, json_path: Path | None, output_root: Path, **how: Any) -> int:
    """Train what the study FILE asks for, then fit, judge and report.

    Runs that have finished are never trained again; the same command goes on where it was stopped.
    """
    from nanoscale.studies.stages import run_study

    study = run_study(file, output_root, dry_run=dry_run, **runner_options(how))
    write_study(json_path, study)
    if dry_run or study.ok:
        return INCONCLUSIVE if study.inconclusive else DONE
    return FAILURE
