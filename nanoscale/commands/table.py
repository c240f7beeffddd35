"""`nanoscale table`: a study's runs as a table, rebuilt from their folders."""

from __future__ import annotations

from pathlib import Path

import click

from nanoscale.commands.verb import (
    Read,
    in_a_folder,
    json_output,
    open_study,
    option,
    output_root,
    verb,
    write_record,
)

PLACE = Read(lambda value, typed: in_a_folder(Path(value), typed))  # its ending comes after STUDY


@verb("nanoscale table quick", "nanoscale table quick --out=quick.parquet")
@click.argument("name", metavar="STUDY")
@option("out", "FILE", "Another file than the study's table.csv: .csv or .parquet.", PLACE)
@json_output("the table's rows")
@output_root()
def command(name: str, out: Path | None, json_path: Path | None, output_root: Path) -> None:
    """Rebuild the table of STUDY, a row per run, and print where it is; of a search, its
    optuna.journal too, for optuna-dashboard.

    val_loss is of the final evaluation, best_val_loss the least of those on the way (fewer
    windows), train_loss the last of those on training windows; docs/howto/trackers.md has them all.
    """
    from nanoscale.experiments import rebuild_table
    from nanoscale.experiments.journal import write_journal
    from nanoscale.experiments.results import export

    study = open_study(name, output_root)
    written = rebuild_table(study.folder) if out is None else export(study, out)
    write_journal(study)
    click.echo(written)
    write_record(json_path, {"table": str(written), "rows": study.rows()})
