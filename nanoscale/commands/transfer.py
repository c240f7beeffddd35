"""`nanoscale transfer`: does the best learning rate hold over sizes? From a table or runs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nanoscale.commands.verb import (
    EXIT_CODES,
    NUMBER,
    aligned,
    column,
    figure_output,
    given,
    json_output,
    option,
    output_root,
    say,
    verb,
    warned,
)

if TYPE_CHECKING:
    from nanoscale.checks.lr_verdict import JudgedNumber, SizeOptimum, TransferVerdict

LIMIT_OPTIONS = ("base", "tolerance", "max_shift", "max_regret")
NEVER_WORSE = {True: "yes, within 2 standard errors", False: "no", None: "not known"}


@verb(
    "nanoscale transfer mup_study --by=parametrization.mode --figure=transfer.png",
    "nanoscale transfer runs.csv --size=width --lr=lr --loss=loss --json=transfer.json",
)
@click.argument("names", metavar="TABLE|STUDY|RUN...", nargs=-1, required=True)
@column("size", "The column of the size (n_embd or n_layer).")
@column("lr", "The column of the learning rate (muon_lr or learning_rate).")
@column("loss", "The column of the loss (val_loss).")
@column("seed", "The column of the seed (seed).")
@option("by", "COL,COL", "Judge each value of these columns by itself.")
@option("only", "VALUE", "Of those judge this one alone.")
@option("base", "SIZE", "The size whose LR is transferred (the least).", NUMBER)
@option(
    "tolerance",
    "OCTAVES",
    "How far the optimum may drift per doubling of the size (0.25).",
    NUMBER,
)
@option("max-shift", "OCTAVES", "How far it may be from the base's (1).", NUMBER)
@option("max-regret", "NATS", "What the base's LR may cost at another size (0.02).", NUMBER)
@json_output("the verdicts")
@figure_output("the loss over the learning rate, by size,")
@output_root()
def command(
    names: tuple[str, ...],
    by: str | None,
    only: str | None,
    json_path: Path | None,
    figure: Path | None,
    output_root: Path,
    **typed: Any,
) -> int:
    """Judge whether the best learning rate holds over sizes, from runs of a grid of both.

    Exits with 0 for pass, 1 for fail, 3 for inconclusive; of several settings the worst counts.
    """
    from nanoscale.checks.lr_transfer import TransferLimits
    from nanoscale.experiments.tables import read_table
    from nanoscale.studies.transfer_table import joint_record, joint_verdict, transfer_verdicts

    limits = TransferLimits(**given({key: typed.pop(key) for key in LIMIT_OPTIONS}))
    table = read_table(*names, output_root=output_root)
    verdicts = transfer_verdicts(table, given(typed), by=by, only=only, limits=limits)
    printed = []
    for name, verdict in verdicts.items():
        if name:
            printed.append(f"== {name}")
        printed += lines(verdict)
    say(printed, json_path, joint_record(verdicts))
    if figure is not None:
        from nanoscale.report import save, transfer_figure

        save(transfer_figure(verdicts), figure)
    return EXIT_CODES[joint_verdict(verdicts)]


# -- what is printed ------------------------------------------------------------------------------
def lines(verdict: TransferVerdict) -> list[str]:
    seed = f", seed {verdict.seed}" if verdict.seed else ""
    known = math.isfinite(verdict.base_lr)
    base_lr = f"{verdict.base_lr:.3g}" if known else "the base's LR"
    heads = [verdict.size, "best LR", "95 % interval", "loss", f"loss at {base_lr}", "regret"]
    return [
        f"size {verdict.size}, LR {verdict.lr}, loss {verdict.loss}{seed}",
        *aligned([heads, *map(size_row, verdict.sizes)]),
        *(as_recorded(judged).says(name) for name, judged in verdict.judged.items()),
        f"larger is never worse at {base_lr}: {NEVER_WORSE[verdict.larger_is_never_worse]}",
        *warned(verdict.warnings),
        f"{verdict.verdict}: {verdict.reason}",
    ]


def as_recorded(judged: JudgedNumber) -> JudgedNumber:
    """With NaN for what JSON holds as null: an end that is not bounded is printed as not known."""
    value, low, high = (
        end if math.isfinite(end) else math.nan for end in (judged.value, *judged.ci95)
    )
    return replace(judged, value=value, ci95=(low, high))


def size_row(size: SizeOptimum) -> list[str]:
    transferred = text(size.transferred_loss, ".4f")
    if math.isfinite(size.transferred_se):
        transferred += f" ± {size.transferred_se:.4f}"
    low, high = size.ci95
    return [
        f"{size.size:g}",
        text(size.optimum_lr, ".3g"),
        f"[{text(low, '.3g')}, {text(high, '.3g')}]",
        text(size.min_loss, ".4f"),
        "diverges" if size.transferred_diverges else transferred,
        text(size.regret, ".4f"),
    ]


def text(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "-"
