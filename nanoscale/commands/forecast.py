"""`nanoscale forecast`: the loss of a run not yet made, from a table; sealed if asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from nanoscale.commands.fit_options import HOW_TO_FIT, settings_of
from nanoscale.commands.verb import (
    json_output,
    option,
    output_file,
    output_root,
    say,
    scale_of,
    verb,
    warned,
)
from nanoscale.errors import DONE, INCONCLUSIVE, UserError


@verb(
    "nanoscale forecast ladder --at=C=1e17",
    "nanoscale forecast runs.csv --n=params --d=tokens --at=N=1e9,D=2e10 --seal=forecast.json",
)
@click.argument("name", metavar="TABLE|STUDY")
@option("at", "N=X,D=Y", "Of the run, by what the law reads; C=X of a law of C.")
@option("seal", "OUT.json", "Write the forecast there, never over another.", output_file(".json"))
@HOW_TO_FIT
@json_output("the forecast")
@output_root()
def command(
    name: str,
    at: str | None,
    seal: Path | None,
    json_path: Path | None,
    output_root: Path,
    **how: Any,
) -> int:
    """Forecast the loss of one run at --at, with a 95 % interval that holds how far laws of these
    runs have drifted before.

    Sealed before that run is made, `nanoscale verify` judges it afterwards. Exits with 3, and seals
    nothing, where there is no interval to be judged by.
    """
    from nanoscale.experiments.tables import read_table
    from nanoscale.studies.seals import Sealing, forecast_of, write_seal
    from nanoscale.studies.table_fit import fit_table

    if at is None:
        raise UserError("of which run? say it, as in --at=N=1e9,D=2e10")
    if seal is not None and os.path.lexists(seal):
        raise UserError(f"--seal={seal}: is there already, and a seal is never replaced")
    if seal is not None and seal == json_path:
        raise UserError(f"--json={seal}: the seal is written there; name another file")
    table = read_table(name, output_root=output_root)
    settings = settings_of(how)
    found = fit_table(table, settings, name=name)
    made = forecast_of(found, scale_of(at, found.fit.x_names))
    lines = [found.fit.equation(with_intervals=True), *made.text()]
    record = made.to_json() | {"table": name}
    if seal is not None and made.ci95 is not None:
        _, sha256 = write_seal(seal, Sealing(table, settings, found, made).text())
        lines.append(f"sealed in {seal}, SHA-256 {sha256}: keep that, or publish it")
        lines.append(f"once the run is made: nanoscale verify {seal} --observed=LOSS")
        record["sha256"] = sha256
    say([*lines, *warned(found.warnings)], json_path, record)
    return DONE if made.ci95 is not None else INCONCLUSIVE
