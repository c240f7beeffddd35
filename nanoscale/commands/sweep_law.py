"""`nanoscale sweep-law`: the best learning rate or batch as a law of scale, from sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nanoscale.commands.verb import Number, Verb, column, figure_output, json_output, output_root
from nanoscale.errors import DONE, INCONCLUSIVE, UserError
from nanoscale.store.files import write_json

if TYPE_CHECKING:
    from nanoscale.laws.sweep_optima import Sweep
    from nanoscale.laws.sweeps import SweepLaw, SweepOptimum
    from nanoscale.studies.sweep_laws import SweepStudy

_RESAMPLES = 1000


@click.command(
    cls=Verb,
    examples=[
        "nanoscale sweep-law lr_study --at=N=1e9,D=2e10",
        "nanoscale sweep-law runs.csv --d=tokens --batch=batch_size --loss=loss --json=batch.json",
    ],
)
@click.argument("name", metavar="TABLE|STUDY")
@column("n", "The column of parameters, N.")
@column("d", "The column of training tokens, D.")
@column("c", "The column of training FLOPs, C; one or two of N, D and C say the scale.")
@column("lr", "The column of the learning rate, if that was swept.")
@column("batch", "The column of the batch, if that was swept.")
@column("loss", "The column of the loss (val_loss).")
@column("seed", "The column of the seed: runs of one scale, value and seed are one.")
@click.option("--at", metavar="N=X,D=Y", help="Say the optimum at this scale.")
@click.option(
    "--bootstrap",
    "resamples",
    metavar="R",
    type=Number(whole=True, least=0),
    default=_RESAMPLES,
    help=f"Resamples of the runs' noise, for intervals ({_RESAMPLES}).",
)
@json_output("the record")
@figure_output("the optima")
@output_root()
def command(
    name: str,
    at: str | None,
    resamples: int,
    json_path: Path | None,
    figure: Path | None,
    output_root: Path,
    **columns: str | None,
) -> int:
    """Fit LR* = c N^p D^q (or a batch's law) to the optima of the sweeps in a table.

    Exits with 3 where no law is identified, and says what to add.
    """
    from nanoscale.experiments.tables import read_table
    from nanoscale.studies.sweep_laws import optima_figure, sweep_study

    scale = None if at is None else scale_of(at)
    table = read_table(name, output_root=output_root)
    named = {key: column for key, column in columns.items() if column is not None}
    study = sweep_study(table, columns=named, at=scale, resamples=resamples)
    click.echo("\n".join(lines_of(study)))
    if json_path is not None:
        write_json(json_path, study.to_json() | {"table": name})
    if figure is not None:
        if study.law is None:
            click.echo(f"no figure in {figure}: there is no law")
        else:
            from nanoscale.report import save

            save(optima_figure(study.law), figure)
    return INCONCLUSIVE if study.reason else DONE


def scale_of(text: str) -> dict[str, float]:
    """`N=1e9,D=2e10`."""
    scale = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"--at={text}: expected predictors and numbers, as in --at=N=1e9")
        scale[name.strip()] = float(Number().read(value, f"--at={text}"))
    return scale


def lines_of(study: SweepStudy) -> list[str]:
    """What a user sees."""
    lines = []
    if study.law is not None:
        lines += _law_lines(study.law, len(study.sweeps))
    lines.append(", ".join(f"{key} = {name}" for key, name in study.columns.items()))
    if study.at is not None and study.prediction is not None:
        where = ", ".join(f"{name}={value:g}" for name, value in study.at.items())
        lines.append(f"at {where}: {_optimum(study.prediction)}")
    lines += [f"  {sweep.place()}: {_sweep(sweep)}" for sweep in study.sweeps]
    lines += [f"warning: {warning}" for warning in study.warnings]
    if study.reason:
        lines.append(f"not identified: {study.reason}")
    return lines


def _law_lines(law: SweepLaw, n_sweeps: int) -> list[str]:
    lines = [law.equation()]
    for name, (low, high) in law.ci95.items():
        value = law.exponents.get(name, law.c)
        lines.append(f"  {name}  {value:.4g} [{low:.4g}, {high:.4g}]")
    lines.append(
        f"{law.n_used} of {n_sweeps} sweeps have an optimum, which scatter about the law by "
        f"{100 * law.scatter:.2g} %; runs about their sweep's curve by {100 * law.noise:.2g} %; "
        f"95 % intervals from {law.resamples:,} resamples"
    )
    return lines


def _optimum(prediction: SweepOptimum) -> str:
    text = f"{prediction.optimum:.4g}"
    if prediction.ci95 is not None and prediction.sweep_ci95 is not None:
        law, sweep = (
            f"[{low:.3g}, {high:.3g}]" for low, high in (prediction.ci95, prediction.sweep_ci95)
        )
        text += f" {law}; of one sweep {sweep}"
    return text


def _sweep(sweep: Sweep) -> str:
    if sweep.optimum is None:
        wanted = " and ".join(f"{value:.3g}" for value in sweep.wanted)
        return f"none, {sweep.flag}" + (f"; add {wanted}" if wanted else "")
    ends = "" if sweep.ci95 is None else " [{:.3g}, {:.3g}]".format(*sweep.ci95)
    return f"{sweep.optimum:.4g}{ends}, loss {sweep.loss:.4f}"
