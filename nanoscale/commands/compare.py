"""`nanoscale compare`: is arm B's loss lower than arm A's, how surely, and what would settle it?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nanoscale.commands.verb import (
    NOT_NEGATIVE,
    aligned,
    choice,
    figure_output,
    json_output,
    option,
    output_root,
    say,
    verb,
    warned,
)
from nanoscale.errors import DONE, INCONCLUSIVE

if TYPE_CHECKING:
    from nanoscale.checks.comparison import ArmAtSize, ArmSummary, Comparison, SizeComparison
    from nanoscale.checks.paired import Estimate
    from nanoscale.checks.seed_shifts import Interval

    Arm = ArmSummary | ArmAtSize

HEADINGS = ("A", "B", "B - A", "95 % interval", "p", "pairs")


@verb(
    "nanoscale compare lr_study:optimizer=adamw lr_study:optimizer=muon",
    "nanoscale compare out-a,out-b out-c,out-d --rope=0.02 --figure=compare.png",
)
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@option(
    "loss",
    "LOSS",
    "val_loss, best_val_loss, train_loss or val_bits_per_byte (val_loss).",
    choice("val_loss", "best_val_loss", "train_loss", "val_bits_per_byte"),
    default="val_loss",
)
@option(
    "rope",
    "NATS",
    "Within this the arms are as good as equal (0.01).",
    NOT_NEGATIVE,
    default=0.01,
)
@json_output("the comparison")
@figure_output("the losses of every seed")
@output_root()
def command(
    a: str,
    b: str,
    loss: str,
    rope: float,
    json_path: Path | None,
    figure: Path | None,
    output_root: Path,
) -> int:
    """Whether B's loss is lower than A's, by paired seeds; an arm is RUN,RUN.. or STUDY or
    STUDY:key=value,key=value.

    Exits with 3 where the runs do not decide, and says how many seeds would.
    """
    from nanoscale.studies.compare_arms import compare

    comparison = compare(a, b, loss=loss, rope=rope, output_root=output_root)
    say(lines(comparison), json_path, comparison.to_json())
    if figure is not None:
        from nanoscale.report import compare_figure, save

        save(compare_figure(comparison), figure)
    return INCONCLUSIVE if comparison.verdict == "inconclusive" else DONE


# -- what is printed ------------------------------------------------------------------------------
def lines(comparison: Comparison) -> list[str]:
    a, b = comparison.arms
    differ = [f"{key} {x} -> {y}" for key, (x, y) in comparison.differ_in.items()]
    chosen = chosen_lines("A", [(cell, cell.a) for cell in comparison.cells])
    chosen += chosen_lines("B", [(cell, cell.b) for cell in comparison.cells])
    return [
        f"A: {arm_text(a)}",
        f"B: {arm_text(b)}",
        f"loss {comparison.loss}; B differs in {', '.join(differ) or 'nothing but its settings'}",
        *chosen,
        *table_lines(comparison),
        f"on other text of this kind, give or take: {window_text(comparison)}",
        f"compute: {compute_text(comparison)}",
        *warned(comparison.warnings),
        f"{comparison.verdict}: {comparison.reason}",
    ]


def arm_text(arm: ArmSummary) -> str:
    runs = "1 run" if arm.n_runs == 1 else f"{arm.n_runs} runs"
    seeds = "seed" if len(arm.seeds) == 1 else "seeds"
    return f"{arm.name}, {runs}, {seeds} {', '.join(arm.seeds)}"


def chosen_lines(name: str, sizes: Sequence[tuple[SizeComparison, ArmAtSize]]) -> list[str]:
    """The setting of every size at which there were several."""
    from nanoscale.studies.compare_reasons import in_words

    text = []
    for size, arm in sizes:
        if arm.chosen_of > 1:
            where = f"{name} at {in_words(size.cell)}" if size.cell else name
            text.append(f"chosen for {where}: {in_words(arm.setting)} (of {arm.chosen_of})")
    return text


def table_lines(comparison: Comparison) -> list[str]:
    rows = [[", ".join(comparison.keys), *HEADINGS]]
    for cell in comparison.cells:
        name = ", ".join(map(size_text, cell.cell.values()))
        rows.append(row_of(name, cell.a, cell.b, cell.difference))
    if len(comparison.cells) > 1:
        rows.append(row_of("mean", *comparison.arms, comparison.difference))
    return aligned(rows)


def size_text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def row_of(name: str, a: Arm, b: Arm, difference: Estimate) -> list[str]:
    return [
        name,
        mean_text(a),
        mean_text(b),
        f"{difference.value:+.4f}",
        interval_text(difference.ci95, "+.4f"),
        text_of(difference.p_value, ".2g", "-"),
        str(difference.n_pairs or "-"),
    ]


def mean_text(arm: Arm) -> str:
    mean = f"{arm.mean:.4f}"
    return mean if math.isnan(arm.se) else f"{mean} ± {arm.se:.4f}"


def interval_text(ends: Interval, form: str) -> str:
    low, high = ends
    return f"[{text_of(low, form, '?')}, {text_of(high, form, '?')}]"


def text_of(value: float, form: str, unknown: str) -> str:
    return unknown if math.isnan(value) else format(value, form)


def window_text(comparison: Comparison) -> str:
    windows = comparison.windows
    if windows.reason or windows.se is None:
        return str(windows.reason)
    return f"{1.96 * windows.se:.4f} {comparison.unit}, {windows.n} windows"


def compute_text(comparison: Comparison) -> str:
    compute = comparison.compute_multiplier
    if compute.reason:
        return compute.reason
    ends = interval_text(compute.ci95, ".3g")
    return f"A needs {compute.value:.3g} {ends} times B's FLOPs for the same loss"
