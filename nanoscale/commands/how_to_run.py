"""The options that say how a study's runs are run: workers, retries, limits, a backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from nanoscale.commands.verb import Number

OPTIONS = (
    click.option("--workers", type=Number(), metavar="N", help="Runs at once (what fits here)."),
    click.option("--retries", type=Number(), metavar="N", help="Tries more of a failed run (1)."),
    click.option("--backend", metavar="NAME", help="local, subprocess, ray or slurm."),
    click.option("--time_limit", type=Number(), metavar="SECONDS", help="Most for one run."),
    click.option("--memory_limit", type=Number(), metavar="BYTES", help="Most for one run."),
)
BUDGET = click.option(
    "--budget", metavar="FLOPS|TIME", help="What the study may cost, as 1e15 or 90min."
)


def how_to_run(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds OPTIONS; they arrive as the keyword arguments `how`."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def given(how: dict[str, Any]) -> dict[str, Any]:
    """The runner's arguments among the options: those that were typed."""
    return {key: value for key, value in how.items() if value is not None}
