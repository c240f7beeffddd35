"""`nanoscale plan`: what to train with a budget, from a table of runs or a stored fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from nanoscale.commands.fit_options import HOW_TO_FIT, settings_of
from nanoscale.commands.verb import (
    POSITIVE,
    json_output,
    number,
    option,
    output_root,
    say,
    verb,
    warned,
)
from nanoscale.errors import DONE, INCONCLUSIVE, UserError

_SIZE = number(whole=True, above=0)
RUN = ("vocab_size", "block_size", "batch_tokens", "tokens_per_second", "flops_per_second")


@verb(
    "nanoscale plan ladder --budget=1e20 --flops-per-second=2e14",
    "nanoscale plan fit.json --budget=1e20 --json=plan.json",
)
@click.argument("name", metavar="FIT.json|TABLE|STUDY")
@option("budget", "FLOPS", "What the run may take, as 6 N D.", POSITIVE)
@option("tokens-per-second", "X", "How fast the run will be.", POSITIVE)
@option("flops-per-second", "X", "Or, how fast in FLOP/s.", POSITIVE)
@option("vocab_size", "V", "Of the model (the table's, or 50304).", _SIZE)
@option("block_size", "T", "Of the model (the table's, or 1024).", _SIZE)
@option("batch-tokens", "B", "Of an update (what Step Law says).", POSITIVE)
@HOW_TO_FIT
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
    run = {key: typed.pop(key) for key in RUN}
    settings = settings_of(typed)
    if settings.resamples is None and not settings.form.terms:
        settings = replace(settings, resamples=RESAMPLES)
    _check_stored(name, context)

    grounds = grounds_of(name, settings, output_root)
    fit = grounds.fit
    made = plan(grounds, budget=budget, **run)
    record = made.to_json() | {"from": name, "params": fit.params, "data": fit.data}
    say([*made.summary(), *warned(made.warnings)], json_path, record)
    return DONE if fit.status == "converged" else INCONCLUSIVE


def _check_stored(name: str, context: click.Context) -> None:
    """A stored fit has been fitted: options that say how are of its table."""
    from nanoscale.studies.next_run import stored_fit

    stored = stored_fit(name)
    if stored is None:
        return
    ours = {"budget", "json_path", "laws", "name", *RUN}
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name not in ours and source is click.core.ParameterSource.COMMANDLINE:
            raise UserError(
                f"{name} is a stored fit; {parameter.opts[0]} is of a table, so give "
                f"{stored.get('table', 'the table')} in its place"
            )
