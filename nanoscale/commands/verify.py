"""`nanoscale verify`: a sealed forecast made again, and judged."""

from __future__ import annotations

from pathlib import Path

import click

from nanoscale.commands.verb import POSITIVE, json_output, option, say, verb
from nanoscale.errors import DONE, FAILURE


@verb("nanoscale verify forecast.json", "nanoscale verify forecast.json --observed=2.234")
@click.argument("name", metavar="FILE")
@option("observed", "LOSS", "What the run came to.", POSITIVE)
@json_output("what was found")
def command(name: str, observed: float | None, json_path: Path | None) -> int:
    """Make a sealed forecast again from the rows that it holds, say what was changed since, and
    judge it by the loss that was observed.

    Exits with 1 where something was changed, with 0 also where the forecast missed: that is said.
    """
    from nanoscale.studies.seals import verify

    found = verify(Path(name), observed)
    say(found.text(), json_path, found.to_json())
    return FAILURE if found.problems else DONE
