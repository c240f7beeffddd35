"""`nanoscale compare`: is arm B's loss lower than arm A's, how surely, and what would settle it?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from nanoscale.checks.comparison import ArmAtSize, ArmSummary, Comparison, SizeComparison
from nanoscale.checks.drift import Interval
from nanoscale.checks.paired import Estimate
from nanoscale.commands.options import usage_of
from nanoscale.commands.text_table import aligned
from nanoscale.errors import DONE, INCONCLUSIVE, UserError, one_of
from nanoscale.store.files import check_outputs, write_json
from nanoscale.studies.compare_arms import LOSSES, ROPE, compare
from nanoscale.studies.compare_reasons import in_words

OPTIONS = ("loss", "rope", "json", "figure", "output_root")
HEADINGS = ("A", "B", "B - A", "95 % interval", "p", "pairs")


def main(names: Sequence[str], options: Mapping[str, str]) -> int:
    """nanoscale compare A B [--loss=val_loss] [--rope=0.01] [--json=OUT.json] [--figure=OUT.png]
    [--output_root=experiments_out]; an arm is RUN,RUN.. or STUDY or STUDY:key=value,key=value"""
    if len(names) != 2:
        raise UserError(f"compare {' '.join(names)}: expected two arms; usage: {usage_of(main)}")
    check_outputs(options)
    rope = rope_of(options)
    loss = options.get("loss", LOSSES[0])
    if loss not in LOSSES:
        raise UserError(f"--loss={loss}: choose {one_of(LOSSES)}")
    root = options.get("output_root", "experiments_out")
    comparison = compare(*names, loss=loss, rope=rope, output_root=root)
    print("\n".join(lines(comparison)))
    if "json" in options:
        write_json(Path(options["json"]), comparison.to_json())
    if "figure" in options:
        from nanoscale.report import compare_figure, save

        save(compare_figure(comparison), options["figure"])
    return INCONCLUSIVE if comparison.verdict == "inconclusive" else DONE


def rope_of(options: Mapping[str, str]) -> float:
    text = options.get("rope", ROPE)
    try:
        rope = float(text)
    except ValueError:
        rope = math.nan
    if not 0 <= rope < math.inf:
        raise UserError(f"--rope={text}: expected a number of nats, 0 or more")
    return rope


# -- what is printed ------------------------------------------------------------------------------
def lines(comparison: Comparison) -> list[str]:
    a, b = comparison.arms
    differ = [f"{key} {x} -> {y}" for key, (x, y) in comparison.differ_in.items()]
    return [
        f"A: {arm_text(a)}",
        f"B: {arm_text(b)}",
        f"loss {comparison.loss}; B differs in {', '.join(differ) or 'nothing but its settings'}",
        *chosen_lines("A", [(cell, cell.a) for cell in comparison.cells]),
        *chosen_lines("B", [(cell, cell.b) for cell in comparison.cells]),
        *table_lines(comparison),
        f"on other text of this kind, give or take: {window_text(comparison)}",
        f"compute: {compute_text(comparison)}",
        *(f"warning: {warning}" for warning in comparison.warnings),
        f"{comparison.verdict}: {comparison.reason}",
    ]


def arm_text(arm: ArmSummary) -> str:
    runs = "1 run" if arm.n_runs == 1 else f"{arm.n_runs} runs"
    seeds = "seed" if len(arm.seeds) == 1 else "seeds"
    return f"{arm.name}, {runs}, {seeds} {', '.join(arm.seeds)}"


def chosen_lines(name: str, sizes: Sequence[tuple[SizeComparison, ArmAtSize]]) -> list[str]:
    """The setting of every size at which there were several."""
    text = []
    for size, arm in sizes:
        if arm.chosen_of > 1:
            where = f"{name} at {in_words(size.cell)}" if size.cell else name
            text.append(f"chosen for {where}: {in_words(arm.setting)} (of {arm.chosen_of})")
    return text


def table_lines(comparison: Comparison) -> list[str]:
    rows = [[", ".join(comparison.keys), *HEADINGS]]
    for cell in comparison.cells:
        name = ", ".join(size_text(value) for value in cell.cell.values())
        rows.append(row_of(name, cell.a, cell.b, cell.difference))
    if len(comparison.cells) > 1:
        rows.append(row_of("mean", *comparison.arms, comparison.difference))
    return aligned(rows)


def size_text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def row_of(
    name: str, a: ArmSummary | ArmAtSize, b: ArmSummary | ArmAtSize, difference: Estimate
) -> list[str]:
    return [
        name,
        mean_text(a),
        mean_text(b),
        f"{difference.value:+.4f}",
        interval_text(difference.ci95, "+.4f"),
        "-" if math.isnan(difference.p_value) else f"{difference.p_value:.2g}",
        str(difference.n_pairs or "-"),
    ]


def mean_text(arm: ArmSummary | ArmAtSize) -> str:
    mean = f"{arm.mean:.4f}"
    return mean if math.isnan(arm.se) else f"{mean} ± {arm.se:.4f}"


def interval_text(ends: Interval, form: str) -> str:
    low, high = ("?" if math.isnan(end) else format(end, form) for end in ends)
    return f"[{low}, {high}]"


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
