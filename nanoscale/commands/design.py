"""`nanoscale design`: what a planned study will be able to say, before any of it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nanoscale.commands.verb import Number, Verb, column, json_output
from nanoscale.errors import DONE, INCONCLUSIVE
from nanoscale.store.files import write_json

FEWEST_WORLDS = 50


@click.command(
    cls=Verb,
    examples=[
        "nanoscale design studies/ladder.toml --question=L@1e20",
        "nanoscale design planned.csv --n=params --d=tokens --seeds=3 --json=design.json",
    ],
)
@click.argument("name", metavar="TABLE|STUDY.toml")
@column("n", "The column of parameters, N.")
@column("d", "The column of training tokens, D.")
@column("c", "The column of training FLOPs, C; two of N, D and C say a run.")
@column("group", "The column of what shares a run: points of one are resampled together.")
@click.option("--noise", metavar="SD", type=Number(), help="Of ln L over seeds (0.005).")
@click.option(
    "--seeds", metavar="K", type=Number(whole=True, least=1), help="Times each run is made."
)
@click.option("--truth", metavar="FIT.json,..", help="Fits to draw worlds from (Chinchilla's).")
@click.option(
    "--question", metavar="Q;Q", help="What to be sure of: a, alpha, E, N*@C, L@C or L@N,D."
)
@click.option(
    "--worlds",
    metavar="W",
    type=Number(whole=True, least=FEWEST_WORLDS),
    help="Worlds to draw and fit (200).",
)
@click.option(
    "--bootstrap",
    "resamples",
    metavar="R",
    type=Number(whole=True, least=1),
    help="Resamples of each fit (300).",
)
@click.option("--seed", metavar="S", type=Number(whole=True, least=0), help="Of the draws (0).")
@click.option(
    "--extra", metavar="FLOPS", type=Number(), help="The most that one more run may take."
)
@click.option("--law", metavar="LAW", help="The law to fit (chinchilla; of a ladder power).")
@click.option("--objective", metavar="NAME", help="What a fit minimises (log-huber).")
@click.option("--delta", metavar="DELTA", type=Number(), help="Of the Huber loss (1e-3).")
@click.option(
    "--resample",
    "resampling",
    metavar="WAY",
    help="pairs, cluster, stratified, residual, wild or parametric (pairs).",
)
@json_output("the record")
def command(name: str, json_path: Path | None, **typed: Any) -> int:
    """Draw worlds from a law held to be true, fit each as `nanoscale fit` would, and say how wide
    the intervals of the planned runs will be, and which run more would narrow them most.

    Exits with 3 where a question will not be answered.
    """
    from nanoscale.studies.designs import DesignSettings, design_study

    for key in ("noise", "extra", "delta"):
        if typed[key] is not None:
            typed[key] = float(typed[key])
    settings = {key: value for key, value in typed.items() if value is not None}
    record = design_study(name, DesignSettings(**settings))
    warnings = [f"warning: {warning}" for warning in record.warnings]
    click.echo("\n".join([*record.summary(), *warnings]))
    if json_path is not None:
        write_json(json_path, record.to_json())
    return DONE if record.status == "identified" else INCONCLUSIVE
