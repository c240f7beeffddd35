"""The options that say how a law is fitted to a table: its columns, the law, the resamples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nanoscale.commands.verb import (
    COUNT_FROM_0,
    NOT_NEGATIVE,
    column,
    given,
    option,
    scale_of,
    together,
)
from nanoscale.errors import UserError

if TYPE_CHECKING:
    from nanoscale.laws import Law
    from nanoscale.studies.table_fit import FitSettings

GROUP = column("group", "The column of what shares a run: points of one are resampled together.")
RESAMPLE = option(
    "resample",
    "WAY",
    "pairs, cluster, stratified, residual, wild or parametric (pairs).",
    keyword="resampling",
)
WHERE = option("where", "COL=VALUE", "Of the rows these alone; several with commas.")
HOW_TO_FIT = together(  # they arrive as the keyword arguments `how`
    column("n", "The column of parameters, N."),
    column("d", "The column of training tokens, D."),
    column("c", "The column of training FLOPs, C."),
    column("u", "The column of unique tokens, of a law of repeated data."),
    column("loss", "The column of the loss (val_loss)."),
    GROUP,
    WHERE,
    option("law", "LAW", "The law to fit (chinchilla; power where N and D rise together)."),
    option("laws", "FILE.py", "A file that registers laws of your own."),
    option("hold", "E=X,..", "Parameters of the law that are given, and not fitted."),
    option("objective", "NAME", "log-huber, lad, mse or envelope (log-huber)."),
    option("delta", "DELTA", "Of the Huber loss (1e-3; of a ladder, by its noise).", NOT_NEGATIVE),
    option("drop-worst", "K", "Leave out the K highest losses (0).", COUNT_FROM_0),
    option(
        "bootstrap",
        "R",
        "Resamples, for intervals (4000; of a law without terms 400).",
        COUNT_FROM_0,
        keyword="resamples",
    ),
    option("seed", "S", "Of the resamples (0).", COUNT_FROM_0),
    option(
        "resample",
        "WAY",
        "pairs, cluster, wild-cluster, stratified, residual, wild or parametric (cluster or "
        "wild-cluster where points are found to be checkpoints of runs, else pairs).",
        keyword="resampling",
    ),
)


def held(law: Law, text: str) -> Law:
    """The law with the parameters of `--hold` given; `UserError` for one that it has not."""
    values = scale_of(text, flag="--hold")
    try:
        return law.hold(**values)
    except UserError as e:
        raise UserError(f"--hold={text}: {e}") from e


def settings_of(how: dict[str, Any]) -> FitSettings:
    """How to fit, as the options that were typed say; `UserError` for a law that is none."""
    from nanoscale.laws import law_of
    from nanoscale.laws.registry import load_laws
    from nanoscale.studies.table_fit import FitSettings

    settings = given(how)
    if "laws" in settings:
        load_laws(settings.pop("laws"))
    if "law" in settings:
        settings["law"] = law_of(settings["law"])
    if "hold" in settings:
        settings["law"] = held(settings.get("law", law_of("chinchilla")), settings.pop("hold"))
    return FitSettings(**settings)
