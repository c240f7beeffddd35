"""`nanoscale verify`: a sealed forecast made again, and judged."""

from __future__ import annotations

from pathlib import Path

import click

from nanoscale.commands.verb import POSITIVE, json_output, option, output_root, say, verb
from nanoscale.errors import DONE, FAILURE, UserError


@verb("nanoscale verify my_forecasts", "nanoscale verify forecast.json --observed=2.234")
@click.argument("name", metavar="STUDY|FILE")
@option("observed", "LOSS", "What the run came to.", POSITIVE)
@json_output("what was found")
@output_root()
def command(name: str, observed: float | None, json_path: Path | None, output_root: Path) -> int:
    """Make a sealed forecast again from the rows that it holds, say what was changed since, and
    judge it by the loss that was observed; of a study from its run folders.

    Exits with 1 where something was changed, with 0 also where the forecast missed: that is said.
    """
    from nanoscale.experiments.results import STUDY, study_folder
    from nanoscale.studies.seals import verify, verify_study

    folder = study_folder(name, output_root)
    if not Path(name).is_file() and (folder / STUDY).is_file():
        if observed is not None:
            raise UserError("--observed is of a seal's file; a study's run says what it came to")
        found = verify_study(folder)
    else:
        found = verify(Path(name), observed)
    say(found.text(), json_path, found.to_json())
    return FAILURE if found.problems else DONE
