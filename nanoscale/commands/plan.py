"""`nanoscale plan`: what to train with a budget, from a table of runs or a stored fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from nanoscale.commands.how_to_fit import how_to_fit, settings_of
from nanoscale.commands.verb import Number, Verb, json_output, output_root
from nanoscale.errors import DONE, INCONCLUSIVE, UserError
from nanoscale.store.files import write_json

POSITIVE = Number(above=0)
_SIZE = Number(whole=True, above=0)
SHAPE = ("vocab_size", "block_size")
SPEED = ("tokens_per_second", "flops_per_second", "batch_tokens")


@click.command(
    cls=Verb,
    examples=[
        "nanoscale plan ladder --budget=1e20 --flops-per-second=2e14",
        "nanoscale plan fit.json --budget=1e20 --json=plan.json",
    ],
)
@click.argument("name", metavar="FIT.json|TABLE|STUDY")
@click.option("--budget", metavar="FLOPS", type=POSITIVE, help="What the run may take, as 6 N D.")
@click.option("--tokens-per-second", metavar="X", type=POSITIVE, help="How fast the run will be.")
@click.option("--flops-per-second", metavar="X", type=POSITIVE, help="Or, how fast in FLOP/s.")
@click.option("--vocab_size", metavar="V", type=_SIZE, help="Of the model (the table's, or 50304).")
@click.option("--block_size", metavar="T", type=_SIZE, help="Of the model (the table's, or 1024).")
@click.option(
    "--batch-tokens", metavar="B", type=POSITIVE, help="Of an update (what Step Law says)."
)
@how_to_fit
@json_output("the plan")
@output_root()
@click.pass_context
def command(
    context: click.Context,
    /,
    name: str,
    budget: float | None,
    json_path: Path | None,
    output_root: Path,
    **typed: Any,
) -> int:
    """Say what to train with --budget: N, D, a model to build, its loss and its hours.

    Of a table, the law is fitted first, by the options of `nanoscale fit`. Exits with 3 where the
    law is not identified.
    """
    from nanoscale.studies.next_run import grounds_of, plan
    from nanoscale.studies.table_fit import RESAMPLES

    if budget is None:
        raise UserError("how many FLOPs? say it, as in --budget=1e20")
    shape = {key: typed.pop(key) for key in SHAPE}
    speed = {key: _float(typed.pop(key)) for key in SPEED}
    settings = settings_of(typed)
    if settings.resamples is None:
        settings = replace(settings, resamples=RESAMPLES)
    _check_stored(name, context)

    grounds = grounds_of(name, settings, output_root)
    made = plan(
        grounds,
        budget=float(budget),
        vocab_size=shape["vocab_size"],
        block_size=shape["block_size"],
        batch_tokens=speed["batch_tokens"],
        tokens_per_second=speed["tokens_per_second"],
        flops_per_second=speed["flops_per_second"],
    )
    click.echo("\n".join([*made.summary(), *(f"warning: {w}" for w in made.warnings)]))
    if json_path is not None:
        fit = grounds.fit
        record = made.to_json() | {"from": name, "params": fit.params, "data": fit.data}
        write_json(json_path, record)
    return DONE if grounds.fit.status == "converged" else INCONCLUSIVE


def _float(number: float | None) -> float | None:
    return None if number is None else float(number)


def _check_stored(name: str, context: click.Context) -> None:
    """A stored fit has been fitted: options that say how are of its table."""
    from nanoscale.studies.next_run import stored_fit

    stored = stored_fit(name)
    if stored is None:
        return
    ours = {"budget", "json_path", "laws", "name", *SHAPE, *SPEED}
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name not in ours and source is click.core.ParameterSource.COMMANDLINE:
            raise UserError(
                f"{name} is a stored fit; {parameter.opts[0]} is of a table, so give "
                f"{stored.get('table', 'the table')} in its place"
            )
