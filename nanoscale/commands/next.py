"""`nanoscale next`: the run that narrows a study's answer most per FLOP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nanoscale.commands.run_options import HOW_TO_RUN, runner_options
from nanoscale.commands.verb import (
    EXIT_CODES,
    POSITIVE,
    json_output,
    number,
    open_study,
    option,
    output_root,
    say,
    verb,
    write_study,
)
from nanoscale.errors import DONE, FAILURE


@verb("nanoscale next isoflop", "nanoscale next isoflop --until-width=1.2 --budget=2e13")
@click.argument("name", metavar="STUDY")
@option("until-width", "RATIO", "Train until the interval's ends are that near.", number(above=1))
@option("budget", "FLOPS", "What these runs may cost (what the study has).", POSITIVE)
@HOW_TO_RUN
@json_output("the proposal, or the study at its end")
@output_root()
def command(
    name: str,
    until_width: float | None,
    budget: float | None,
    json_path: Path | None,
    output_root: Path,
    **how: Any,
) -> int:
    """Say which run would narrow the answer of STUDY most per FLOP, or with --until-width train
    one after another.

    What is trained belongs to the study from then on. Exits with 3 where the budget ends before.
    """
    from nanoscale.studies.sequential import narrow_until, narrowing_of

    study = open_study(name, output_root)
    if until_width is None:
        found = narrowing_of(study)
        say(found.lines(), json_path, {"name": study.name, **found.to_json()})
        return DONE
    study = narrow_until(study, until_width, budget, **runner_options(how))
    write_study(json_path, study)
    if not study.ok:
        return FAILURE
    return EXIT_CODES[study.verdict] if study.verdict else DONE
