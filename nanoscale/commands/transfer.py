"""`nanoscale transfer`: whether the best learning rate holds over sizes, from a table or runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nanoscale.checks.lr_verdict import JudgedNumber, SizeOptimum, TransferVerdict
from nanoscale.commands.options import number
from nanoscale.commands.text_table import aligned
from nanoscale.errors import DONE, FAILED, INCONCLUSIVE, UserError
from nanoscale.experiments.tables import read_table
from nanoscale.store.files import check_outputs, write_json
from nanoscale.studies.transfer_table import Limits, joint_record, transfer_verdicts

LIMIT_NAMES = {
    "tolerance": "tolerance",
    "max-shift": "max_shift",
    "max-regret": "max_regret",
    "base": "base",
}
COLUMNS = ("size", "lr", "loss", "seed")
OPTIONS = (*COLUMNS, "by", "only", *LIMIT_NAMES, "json", "figure", "output_root")
EXIT_CODES = {"pass": DONE, "inconclusive": INCONCLUSIVE, "fail": FAILED}  # the worst comes last
NEVER_WORSE = {True: "yes, within 2 standard errors", False: "no", None: "not known"}


def main(names: Sequence[str], options: Mapping[str, str]) -> int:
    """nanoscale transfer TABLE|STUDY|RUN... [--size=COL] [--lr=COL] [--loss=COL] [--seed=COL]
    [--by=COL,COL] [--only=VALUE] [--base=SIZE] [--tolerance=0.25] [--max-shift=1]
    [--max-regret=0.02] [--json=FILE] [--figure=FILE.png] [--output_root=DIR]"""
    if not names:
        raise UserError(f"usage: {main.__doc__}")
    check_outputs(options)
    limits = Limits(
        **{
            name: float(number(option, options[option]))
            for option, name in LIMIT_NAMES.items()
            if option in options
        }
    )
    verdicts = transfer_verdicts(
        read_table(*names, output_root=options.get("output_root", "experiments_out")),
        {option: options[option] for option in COLUMNS if option in options},
        by=options.get("by"),
        only=options.get("only"),
        limits=limits,
    )
    for name, verdict in verdicts.items():
        heading = [f"== {name}"] if name else []
        print("\n".join([*heading, *lines(verdict)]))
    if "json" in options:
        write_json(Path(options["json"]), joint_record(verdicts))
    if "figure" in options:
        from nanoscale.report import save, transfer_figure

        save(transfer_figure(verdicts), options["figure"])
    words = [verdict.verdict for verdict in verdicts.values()]
    return EXIT_CODES[max(words, key=list(EXIT_CODES).index)]


# -- what is printed ------------------------------------------------------------------------------
def lines(verdict: TransferVerdict) -> list[str]:
    seed = f", seed {verdict.seed}" if verdict.seed else ""
    known = math.isfinite(verdict.base_lr)
    base_lr = f"{verdict.base_lr:.3g}" if known else "the base's LR"
    rows = [
        [verdict.size, "best LR", "95 % interval", "loss", f"loss at {base_lr}", "regret"],
        *(size_row(size) for size in verdict.sizes),
    ]
    return [
        f"size {verdict.size}, LR {verdict.lr}, loss {verdict.loss}{seed}",
        *aligned(rows),
        *(as_recorded(judged).says(name) for name, judged in verdict.judged.items()),
        f"larger is never worse at {base_lr}: {NEVER_WORSE[verdict.larger_is_never_worse]}",
        *(f"warning: {warning}" for warning in verdict.warnings),
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
