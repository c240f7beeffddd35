"""The options that say how a law is fitted to a table: its columns, the law, the resamples."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from nanoscale.commands.verb import Number, column

if TYPE_CHECKING:
    from nanoscale.studies.table_fit import FitSettings

_COUNT = Number(whole=True, least=0)
FIT_OPTIONS = (
    column("n", "The column of parameters, N."),
    column("d", "The column of training tokens, D."),
    column("c", "The column of training FLOPs, C."),
    column("u", "The column of unique tokens, of a law of repeated data."),
    column("loss", "The column of the loss (val_loss)."),
    column("group", "The column of what shares a run: points of one are resampled together."),
    click.option("--law", metavar="LAW", help="The law to fit (chinchilla)."),
    click.option("--laws", metavar="FILE.py", help="A file that registers laws of your own."),
    click.option(
        "--objective", metavar="NAME", help="log-huber, lad, mse or envelope (log-huber)."
    ),
    click.option(
        "--delta", metavar="DELTA", type=Number(least=0), help="Of the Huber loss (1e-3)."
    ),
    click.option(
        "--drop-worst", metavar="K", type=_COUNT, help="Leave out the K worst points (0)."
    ),
    click.option(
        "--bootstrap",
        "resamples",
        metavar="R",
        type=_COUNT,
        help="Resamples, for intervals (4000; of a law without terms 400).",
    ),
    click.option("--seed", metavar="S", type=_COUNT, help="Of the resamples (0)."),
    click.option(
        "--resample",
        "resampling",
        metavar="WAY",
        help="pairs, cluster, stratified, residual, wild or parametric (pairs).",
    ),
)


def how_to_fit(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds FIT_OPTIONS; they arrive as the keyword arguments `how`."""
    for option in reversed(FIT_OPTIONS):
        command = option(command)
    return command


def settings_of(how: dict[str, Any]) -> FitSettings:
    """How to fit, as the options that were typed say; `UserError` for a law that is none."""
    from nanoscale.laws import law_of
    from nanoscale.laws.registry import load_laws
    from nanoscale.studies.table_fit import FitSettings

    given = {key: value for key, value in how.items() if value is not None}
    if "laws" in given:
        load_laws(given.pop("laws"))
    if "delta" in given:
        given["delta"] = float(given["delta"])
    given["law"] = law_of(given.get("law", "chinchilla"))
    return FitSettings(**given)
