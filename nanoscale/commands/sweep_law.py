"""`nanoscale sweep-law`: the best learning rate or batch as a law of scale, from sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nanoscale.commands.fit_options import WHERE
from nanoscale.commands.verb import (
    COUNT_FROM_0,
    column,
    figure_output,
    given,
    json_output,
    option,
    output_root,
    say,
    scale_of,
    verb,
    warned,
)
from nanoscale.errors import DONE, INCONCLUSIVE

if TYPE_CHECKING:
    from nanoscale.laws.joint_sweeps import JointSweeps
    from nanoscale.laws.sweep_optima import Sweep
    from nanoscale.laws.sweeps import SweepLaw, SweepOptimum
    from nanoscale.studies.sweep_laws import JointSweepStudy, SweepStudy


@verb(
    "nanoscale sweep-law lr_study --at=N=1e9,D=2e10",
    "nanoscale sweep-law runs.csv --d=tokens --batch=batch_size --loss=loss --json=batch.json",
)
@click.argument("name", metavar="TABLE|STUDY")
@column("n", "The column of parameters, N.")
@column("d", "The column of training tokens, D.")
@column("c", "The column of training FLOPs, C; one or two of N, D and C say the scale.")
@column("lr", "The column of the learning rate, if that was swept.")
@column("batch", "The column of the batch, if that was swept; with --lr, both at once.")
@column("loss", "The column of the loss (val_loss).")
@column("seed", "The column of the seed: runs of one scale, value and seed are one.")
@WHERE
@option("at", "N=X,D=Y", "Say the optimum at this scale.")
@option(
    "bootstrap",
    "R",
    "Resamples of the runs' noise, for intervals (1000).",
    COUNT_FROM_0,
    default=1000,
    keyword="resamples",
)
@json_output("the record")
@figure_output("the optima")
@output_root()
def command(
    name: str,
    where: str | None,
    at: str | None,
    resamples: int,
    json_path: Path | None,
    figure: Path | None,
    output_root: Path,
    **columns: str | None,
) -> int:
    """Fit LR* = c N^p D^q (or a batch's law, or both) to the optima of the sweeps in a table.

    Exits with 3 where no law is identified, and says what to add.
    """
    from nanoscale.experiments.tables import read_table
    from nanoscale.studies.sweep_laws import joint_sweep_study, sweep_study
    from nanoscale.studies.table_faults import where as rows_where

    scale = None if at is None else scale_of(at)
    table = read_table(name, output_root=output_root)
    if where is not None:
        table = rows_where(table, where)
    named = given(columns)
    laws: dict[str, SweepLaw] = {}
    if {"lr", "batch"} <= named.keys():
        joint = joint_sweep_study(table, columns=named, at=scale, resamples=resamples)
        lines, reason = lines_of_joint(joint), joint.reason
        laws = {} if joint.joint is None else joint.joint.laws
        record = joint.to_json()
    else:
        study = sweep_study(table, columns=named, at=scale, resamples=resamples)
        lines, reason = lines_of(study), study.reason
        laws = {} if study.law is None else {study.law.swept: study.law}
        record = study.to_json()
    say(lines, json_path, record | {"table": name})
    if figure is not None:
        draw(laws, figure)
    return INCONCLUSIVE if reason else DONE


def draw(laws: Mapping[str, SweepLaw], figure: Path) -> None:
    """The optima of every law, where there is one."""
    from nanoscale.report import save
    from nanoscale.studies.sweep_laws import optima_figure

    if laws:
        save(optima_figure(laws), figure)
    else:
        click.echo(f"no figure in {figure}: there is no law")


def lines_of(study: SweepStudy) -> list[str]:
    """What a user sees of one law."""
    law = []
    there = []
    sweeps = []
    if study.law is not None:
        law = _law_lines(study.law, len(study.sweeps))
    if study.prediction is not None:
        there.append(_optimum(study.prediction))
    for sweep in study.sweeps:
        said = _sweep(sweep)
        sweeps.append(f"  {sweep.place()}: {said}")
    return _told(study, law, there, sweeps)


def lines_of_joint(study: JointSweepStudy) -> list[str]:
    """What a user sees of both laws."""
    if study.joint is None:
        return _told(study, [], [], [])
    predictions = study.predictions or {}
    there = [f"{name} {_optimum(optimum)}" for name, optimum in predictions.items()]
    pairs = zip(*(law.sweeps for law in study.joint.laws.values()), strict=True)
    sweeps = [f"  {lr.place()}: {_both(lr, batch)}" for lr, batch in pairs]
    return _told(study, _joint_lines(study.joint), there, sweeps)


def _told(
    study: SweepStudy | JointSweepStudy,
    law: Sequence[str],
    there: Sequence[str],
    sweeps: Sequence[str],
) -> list[str]:
    """The law, the columns, what it says at the scale asked about, every sweep, doubts."""
    columns = [f"{key} = {name}" for key, name in study.columns.items()]
    scale = study.at or {}
    where = ", ".join(f"{name}={value:g}" for name, value in scale.items())
    lines = [*law, ", ".join(columns)]
    for said in there:
        lines.append(f"at {where}: {said}")
    lines += sweeps
    lines += warned(study.warnings)
    if study.reason:
        lines.append(f"not identified: {study.reason}")
    return lines


def _joint_lines(joint: JointSweeps) -> list[str]:
    lines = []
    for name, law in joint.laws.items():
        lines += _law_lines(law, len(law.sweeps))
        lines.append(f"  by the lowest run of each alone: {joint.lowest[name].equation()}")
    return lines


def _both(lr: Sweep, batch: Sweep) -> str:
    if lr.optimum is None:
        return _sweep(lr)
    return f"lr {lr.optimum:.3g}, batch {batch.optimum:.4g}"


def _law_lines(law: SweepLaw, n_sweeps: int) -> list[str]:
    lines = [law.equation()]
    for name, (low, high) in law.ci95.items():
        value = law.exponents.get(name, law.c)
        lines.append(f"  {name}  {value:.4g} [{low:.4g}, {high:.4g}]")
    lines.append(
        f"{law.n_used} of {n_sweeps} sweeps have an optimum, which scatter about the law by "
        f"{100 * law.scatter:.2g} %; runs about their sweep's curve by {100 * law.noise:.2g} %; "
        + (f"95 % intervals from {law.resamples:,} resamples" if law.resamples else "no intervals")
    )
    return lines


def _optimum(prediction: SweepOptimum) -> str:
    text = f"{prediction.optimum:.4g}"
    if prediction.ci95 is not None and prediction.sweep_ci95 is not None:
        law, sweep = _interval(prediction.ci95), _interval(prediction.sweep_ci95)
        text += f" {law}; of one sweep {sweep}"
    return text


def _sweep(sweep: Sweep) -> str:
    if sweep.optimum is not None:
        ends = "" if sweep.ci95 is None else f" {_interval(sweep.ci95)}"
        return f"{sweep.optimum:.4g}{ends}, loss {sweep.loss:.4f}"
    wanted = " and ".join(f"{value:.3g}" for value in sweep.wanted)
    text = f"none, {sweep.flag}"
    return f"{text}; add {wanted}" if wanted else text


def _interval(ends: Sequence[float]) -> str:
    low, high = ends
    return f"[{low:.3g}, {high:.3g}]"
