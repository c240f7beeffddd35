"""`nanoscale retry`: run again what failed or waits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nanoscale.commands.how_to_run import given, how_to_run
from nanoscale.commands.verb import Verb, output_root
from nanoscale.errors import DONE, FAILED


@click.command(
    cls=Verb, examples=["nanoscale retry quick", "nanoscale retry quick --workers=1 --retries=3"]
)
@click.argument("name", metavar="STUDY")
@how_to_run
@output_root()
def command(name: str, output_root: Path, **how: Any) -> int:
    """Run what is left of STUDY: its failed runs anew, and those that wait."""
    from nanoscale.experiments import ExperimentRunner

    runner = ExperimentRunner(output_root=output_root, **given(how))
    return DONE if runner.retry(name).ok else FAILED
