"""`nanoscale fit`: a scaling law through a table of runs, with its certainty and its intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nanoscale.commands.fit_options import HOW_TO_FIT, settings_of
from nanoscale.commands.verb import (
    NOT_NEGATIVE,
    Read,
    column,
    in_a_folder,
    json_output,
    option,
    output_root,
    say,
    verb,
    warned,
)
from nanoscale.errors import DONE, INCONCLUSIVE, UserError

if TYPE_CHECKING:
    from pandas import DataFrame

    from nanoscale.studies.table_fit import TableFit


def folder(value: str, typed: str) -> Path:
    """A folder to write to, refused before any work where it cannot be."""
    path = Path(value)
    if path.exists() and not path.is_dir():
        raise UserError(f"{typed}: that is a file; name a folder")
    return in_a_folder(path, typed)


@verb(
    "nanoscale fit ladder --figures=figures",
    "nanoscale fit runs.csv --n=params --d=tokens --loss=loss --isoflop --json=fit.json",
)
@click.argument("name", metavar="TABLE|STUDY")
@HOW_TO_FIT
@column("by", "Fit each value of this column by itself.")
@option("holdout", "FLOPS", "Predict the runs from there on.", NOT_NEGATIVE)
@click.option("--isoflop", is_flag=True, help="The exponent by Hoffmann et al.'s three approaches.")
@click.option("--multiverse", is_flag=True, help="How the exponent moves with every choice.")
@click.option("--profile", is_flag=True, help="Intervals by the profile likelihood too.")
@click.option("--rivals", is_flag=True, help="How other forms of law do on the same runs.")
@click.option("--influence", is_flag=True, help="Which runs the law rests on.")
@option("figures", "DIR", "Draw everything there.", Read(folder))
@json_output("the record")
@output_root()
def command(
    name: str,
    by: str | None,
    holdout: float | None,
    isoflop: bool,
    multiverse: bool,
    profile: bool,
    rivals: bool,
    influence: bool,
    figures: Path | None,
    json_path: Path | None,
    output_root: Path,
    **how: Any,
) -> int:
    """Fit a scaling law to a table, a row per run, or to a study's runs: its parameters, their
    intervals, what it predicts and how far to believe it.

    Columns of our own tables are known; of N, D and C = 6 N D two are enough. Exits with 3 where
    the runs do not identify the law.
    """
    from nanoscale.experiments.tables import read_table
    from nanoscale.studies.table_faults import parts
    from nanoscale.studies.table_fit import check_surface, fit_table

    settings = settings_of(how)
    if isoflop or multiverse:
        check_surface(settings.form, multiverse)
        settings = replace(settings, law=settings.form)
    if by is not None and figures is not None:
        raise UserError("--figures draws one fit: give --where=COLUMN=VALUE in place of --by")
    table = read_table(name, output_root=output_root)

    def answer(table: DataFrame) -> TableFit:
        return fit_table(table, settings, name=name).ask(
            holdout=holdout,
            rollout=figures is not None,
            isoflop=isoflop,
            multiverse=multiverse,
            profile=profile,
            rivals=rivals,
            influence=influence,
        )

    if by is not None:
        return _each(by, parts(table, by), answer, json_path)
    result = answer(table)
    say(_lines(result), json_path, result.to_json())
    if figures is not None:
        from nanoscale.studies.fit_gallery import gallery
        from nanoscale.studies.runs import write_figures

        written = write_figures(gallery(result), figures)
        click.echo(f"figures in {figures}: {', '.join(path.name for path in written)}")
    return DONE if result.fit.status == "converged" else INCONCLUSIVE


def _each(
    by: str,
    parts: Mapping[str, DataFrame],
    answer: Callable[[DataFrame], TableFit],
    json_path: Path | None,
) -> int:
    """A fit of each part of a table; the worst decides the exit code."""
    lines: list[str] = []
    records: dict[str, Any] = {}
    code = DONE
    for value, table in parts.items():
        lines.append(f"{by} = {value}:")
        try:
            result = answer(table)
        except UserError as e:
            lines.append(f"  no fit: {e}")
            records[value] = {"error": str(e)}
            code = INCONCLUSIVE
            continue
        lines += _indented(_lines(result))
        records[value] = result.to_json()
        if result.fit.status != "converged":
            code = INCONCLUSIVE
    say(lines, json_path, {"by": by, "fits": records})
    return code


# -- what is printed ----------------------------------------------------------------------------
def _lines(result: TableFit) -> list[str]:
    """The law, the columns that it reads, what was asked beside it, what to beware of."""
    lines = [*result.fit.summary(), _columns_line(result.rows.columns)]
    if result.holdout is not None:
        lines.append(result.holdout.text())
    if result.isoflop is not None:
        lines += result.isoflop.text()
    if result.multiverse is not None:
        lines += result.multiverse.text()
    if result.profile is not None:
        lines += ["profile intervals, 95 %:", *result.profile.text()]
        lines += _indented(result.profile.warnings)
    if result.rivals is not None:
        lines += result.rivals.text()
    if result.influence is not None:
        lines.append(f"influence: {result.influence.text()}")
    return lines + warned(result.warnings)


def _indented(warnings: Iterable[str]) -> list[str]:
    return [f"  {warning}" for warning in warnings]


def _columns_line(columns: Mapping[str, str]) -> str:
    """Which columns were read, and what follows from which."""
    names = {"loss": "L", "group": "group"}
    line = ", ".join(f"{names.get(key, key.upper())} = {name}" for key, name in columns.items())
    if {"c", "n"} <= columns.keys():
        line += "; D = C / 6N"
    if {"c", "d"} <= columns.keys():
        line += "; N = C / 6D"
    return line
