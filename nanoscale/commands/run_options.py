"""The options that say how a study's runs are run: workers, retries, limits, a backend."""

from __future__ import annotations

from typing import Any

from nanoscale.commands.verb import NUMBER, given, option, together

HOW_TO_RUN = together(  # they arrive as the keyword arguments `how`
    option("workers", "N", "Runs at once (what fits here).", NUMBER),
    option("retries", "N", "Tries more of a failed run (1).", NUMBER),
    option("backend", "NAME", "local, subprocess, ray or slurm."),
    option("time_limit", "SECONDS", "Most for one run.", NUMBER),
    option("memory_limit", "BYTES", "Most for one run.", NUMBER),
)


def runner_options(how: dict[str, Any]) -> dict[str, Any]:
    """The runner's arguments among the options: those that were typed, whole where they are."""
    options = given(how)
    for key, value in options.items():
        if isinstance(value, float) and value.is_integer():
            options[key] = int(value)
    return options
