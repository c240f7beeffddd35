"""What a comparison says of itself: its verdict's reason, and what a careful reader would ask."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from nanoscale.checks.comparison import TOKENS, Comparison, LeftOut, SettingValues, SizeComparison
from nanoscale.checks.paired import MANY_SEEDS, Estimate
from nanoscale.studies.arms import ArmCell, ArmRun

MOST_NAMES = 4  # of runs that were left out
_UNEQUAL = 1.05  # times the other arm's tokens or FLOPs
_BATCH_KEYS = {"batch_size", "gradient_accumulation_steps"}


def in_words(setting: SettingValues) -> str:
    """`n_embd 64, learning_rate 0.002`, for people."""
    return ", ".join(f"{key} {value_text(key, value)}" for key, value in setting.items())


def value_text(key: str, value: object) -> str:
    if key == TOKENS:
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def at(cell: SettingValues, text: str) -> str:
    """`text` after the size it is of; a cell without keys is all there is."""
    return f"{in_words(cell)}, {text}" if cell else text


def number_of(n: int, thing: str) -> str:
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"


# -- the reason ---------------------------------------------------------------------------------
def reason_of(comparison: Comparison) -> str:
    """The verdict's numbers in one line, and what would settle it."""
    difference, needed, unit = comparison.difference, comparison.seeds_needed, comparison.unit
    numbers = difference_text(difference, unit)
    if difference.n_pairs > 1:
        numbers += f", {difference.n_pairs} pairs of seeds"
    lost = diverged_text(comparison.left_out)

    if difference.interval == "windows":
        return (
            f"{numbers}, an interval of evaluation noise only, as one seed says nothing of the "
            f"seeds' noise: run {needed} more seeds of each arm{lost}"
        )
    if comparison.verdict == "equal":
        return f"the arms are within {comparison.rope:g} {unit} of each other: {numbers}{lost}"
    if comparison.verdict == "better":
        return f"B's loss is lower: {numbers}{lost}"
    if comparison.verdict == "worse":
        return f"B's loss is higher: {numbers}{lost}"
    if needed is None:
        return (
            f"{numbers}, does not decide, nor would {MANY_SEEDS} more seeds if mean and scatter "
            f"stay{lost}"
        )
    return (
        f"{numbers}, does not decide: about {number_of(needed, 'more seed')} of each arm would, "
        f"if mean and scatter stay{lost}"
    )


def difference_text(difference: Estimate, unit: str) -> str:
    """`B - A is -0.0134 [-0.0247, -0.0021] nats, p = 0.035`."""
    low, high = ("?" if math.isnan(end) else f"{end:+.4f}" for end in difference.ci95)
    text = f"B - A is {difference.value:+.4f} [{low}, {high}] {unit}"
    return text if math.isnan(difference.p_value) else f"{text}, p = {difference.p_value:.2g}"


def diverged_text(left_out: Iterable[LeftOut]) -> str:
    """The runs that a reader would miss; those at settings that were not chosen are no loss."""
    lost = [run.arm for run in left_out if run.why == "diverged" and not run.setting]
    text = ""
    for arm in "AB":
        if arm in lost:
            text += f"; {number_of(lost.count(arm), 'diverged run')} of {arm} not counted"
    return text


# -- warnings -----------------------------------------------------------------------------------
def warnings_of(comparison: Comparison, sides: Mapping[str, Sequence[ArmCell]]) -> list[str]:
    """What a careful reader would ask about; `sides` are what A and B offer at each size."""
    cells, difference = comparison.cells, comparison.difference
    warnings = list(left_out_warnings(comparison.left_out))
    if not difference.paired_by:
        warnings.append(
            "the arms share too few seeds to pair: the interval is Welch's of two samples; run "
            "both arms with the same seeds"
        )
    if not all(cell.pooled for cell in cells):
        warnings.append("sizes with one seed are not in the pooled difference")

    tuned = [arm for arm, offers in sides.items() if any(offer.choice.of > 1 for offer in offers)]
    if tuned:
        text = (
            f"settings of {' and '.join(tuned)} were chosen on the losses they are judged by, "
            "which flatters them"
        )
        if difference.held_out is not None:
            text += f"; chosen on the other seeds, B - A is {difference.held_out:+.4f}"
        warnings.append(text)
    for arm, offers in sides.items():
        warnings += tuning_warnings(arm, offers, cells)

    warnings += budget_warnings(cells)
    same = [in_words(cell.cell) or "every seed" for cell in cells if cell.equal]
    if same:
        warnings.append(
            f"the arms' losses are equal to the digit at {'; '.join(same)}: what differs does "
            "nothing there"
        )
    if _BATCH_KEYS & comparison.differ_in.keys() and len(tuned) < 2:
        warnings.append(
            "the arms differ in batch size and were not both tuned: retune the LR at each batch "
            "size, tokens fixed"
        )
    return warnings


def left_out_warnings(left_out: Sequence[LeftOut]) -> Iterator[str]:
    groups: dict[tuple[str, str, str | None], list[str]] = {}
    for run in left_out:
        names = groups.setdefault((run.arm, run.why, run.setting), [])
        names.append(at(run.cell, f"seed {run.seed}"))
    for (arm, why, setting), names in groups.items():
        text = f": {'; '.join(names[:MOST_NAMES])}"
        if len(names) > MOST_NAMES:
            text += f" and {len(names) - MOST_NAMES} more"
        if setting:
            text = f" (at settings that were not chosen: {len(names)})"
        yield f"left out of {arm}, {why}{text}"


def tuning_warnings(
    arm: str, offers: Sequence[ArmCell], cells: Sequence[SizeComparison]
) -> Iterator[str]:
    """Where the best setting may not be the best one there is."""
    edges = [
        at(cell.cell, ", ".join(offer.edges))
        for cell, offer in zip(cells, offers, strict=True)
        if offer.edges
    ]
    if edges:
        yield f"{arm} is best at the end of what was tried, {'; '.join(edges)}: try beyond"
    for offer in offers:
        if offer.choice.doubts:
            yield (
                f"{arm} at {in_words(offer.setting)} may lose to a setting with fewer seeds; give "
                "that the others"
            )


def budget_warnings(cells: Sequence[SizeComparison]) -> Iterator[str]:
    """Where the arms had not the same tokens or FLOPs to spend."""
    spent: dict[str, list[tuple[float, float]]] = {
        "tokens": [(cell.a.tokens, cell.b.tokens) for cell in cells],
        "flops": [(cell.a.flops, cell.b.flops) for cell in cells],
    }
    for key, numbers in spent.items():
        ratios = [b / a for a, b in numbers if a > 0 and b > 0]  # NaN is not known
        if ratios and max(max(ratios), 1 / min(ratios)) > _UNEQUAL:
            ends = dict.fromkeys(f"{ratio:.3g}" for ratio in (min(ratios), max(ratios)))
            yield f"B has {' to '.join(ends)} times A's {key}"


def numerics_warnings(
    a: Sequence[ArmRun], b: Sequence[ArmRun], differ_in: Mapping[str, object]
) -> Iterator[str]:
    """A warning per part of the numerics in which the arms differ but were not meant to."""
    keys = {key for run in [*a, *b] for key in run.numerics}
    meant = {*differ_in, "matmul_precision"}  # that one follows the width
    for key in sorted(keys - meant):
        in_a = {str(run.numerics.get(key)) for run in a}
        in_b = {str(run.numerics.get(key)) for run in b}
        if in_a != in_b:
            yield (
                f"the arms ran on different numerics, {key} {' and '.join(sorted(in_a))} against "
                f"{' and '.join(sorted(in_b))}: their losses differ by rounding too"
            )
