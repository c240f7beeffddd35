"""What a comparison says of itself: its verdict's reason, and what a careful reader would ask."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from nanoscale.checks.comparison import TOKENS, Comparison, LeftOut, SizeComparison
from nanoscale.checks.paired import MANY_SEEDS, Estimate
from nanoscale.spec.values import Json, Overrides
from nanoscale.studies.arms import ArmCell

MOST_NAMES = 4  # of runs that were left out
OTHER_TEXT = "the runs were evaluated on different windows"  # so that nothing is decided
_UNEQUAL = 1.05  # times the other arm's tokens or FLOPs
_BATCH_KEYS = {"batch_size", "gradient_accumulation_steps"}


def in_words(setting: Overrides) -> str:
    """`n_embd 64, learning_rate 0.002`, for people."""
    return ", ".join(f"{key} {value_text(key, value)}" for key, value in setting.items())


def value_text(key: str, value: Json) -> str:
    if key == TOKENS:
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def at(cell: Overrides, text: str) -> str:
    """`text` after the size it is of; a cell without keys is all there is."""
    return f"{in_words(cell)}, {text}" if cell else text


def number_of(n: int, thing: str) -> str:
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"


# -- the reason ---------------------------------------------------------------------------------
def reason_of(comparison: Comparison) -> str:
    """The verdict's numbers in one line, and what would settle it."""
    difference = comparison.difference
    numbers = difference_text(difference, comparison.unit)
    if difference.n_pairs > 1:
        numbers += f", {difference.n_pairs} pairs of seeds"
    return outcome_text(comparison, numbers) + diverged_text(comparison.left_out)


def outcome_text(comparison: Comparison, numbers: str) -> str:
    needed = comparison.seeds_needed
    if comparison.windows.reason == OTHER_TEXT:
        return (
            f"{numbers}, but {OTHER_TEXT}, whose difference no seed averages out: train one arm "
            "with the final_eval_tokens of the other"
        )
    if comparison.difference.interval == "windows":
        return (
            f"{numbers}, an interval of evaluation noise only, as one seed says nothing of the "
            f"seeds' noise: run {needed} more seeds of each arm"
        )
    if comparison.verdict == "equal":
        rope = f"{comparison.rope:g} {comparison.unit}"
        return f"the arms are within {rope} of each other: {numbers}"
    if comparison.verdict == "better":
        return f"B's loss is lower: {numbers}"
    if comparison.verdict == "worse":
        return f"B's loss is higher: {numbers}"
    if needed is None:
        return (
            f"{numbers}, does not decide, nor would {MANY_SEEDS} more seeds if mean and scatter "
            "stay"
        )
    return (
        f"{numbers}, does not decide: about {number_of(needed, 'more seed')} of each arm would, "
        "if mean and scatter stay"
    )


def difference_text(difference: Estimate, unit: str) -> str:
    """`B - A is -0.0134 [-0.0247, -0.0021] nats, p = 0.035`."""
    low, high = ("?" if math.isnan(end) else f"{end:+.4f}" for end in difference.ci95)
    text = f"B - A is {difference.value:+.4f} [{low}, {high}] {unit}"
    return text if math.isnan(difference.p_value) else f"{text}, p = {difference.p_value:.2g}"


def diverged_text(left_out: Iterable[LeftOut]) -> str:
    """The runs that a reader would miss; those at settings that were not chosen are no loss."""
    lost: Counter[str] = Counter()
    for run in left_out:
        if run.why == "diverged" and not run.setting:
            lost[run.arm] += 1
    text = ""
    for arm, count in sorted(lost.items()):
        text += f"; {number_of(count, 'diverged run')} of {arm} not counted"
    return text


# -- warnings -----------------------------------------------------------------------------------
Offers = Mapping[str, Sequence[ArmCell]]  # what A and B offer at each size


def warnings_of(comparison: Comparison, offers: Offers) -> list[str]:
    """What a careful reader would ask about."""
    cells = comparison.cells
    difference = comparison.difference
    warnings = list(left_out_warnings(comparison.left_out))
    if not difference.paired_by:
        warnings.append(
            "the arms share too few seeds to pair: the interval is Welch's of two samples; run "
            "both arms with the same seeds"
        )
    if not all(cell.pooled for cell in cells):
        warnings.append("sizes with one seed are not in the pooled difference")

    tuned = [arm for arm in offers if any(offer.choice.of > 1 for offer in offers[arm])]
    if tuned:
        text = f"settings of {' and '.join(tuned)} were chosen on the losses they are judged by"
        if difference.at_chosen is None:
            text += ", which flatters them"
        else:
            text += (
                ": each seed counts at the setting that the others choose; at the chosen ones "
                f"themselves B - A is {difference.at_chosen:+.4f}"
            )
        warnings.append(text)
    for arm in offers:
        warnings += tuning_warnings(arm, offers[arm])

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
    return [*warnings, *numerics_warnings(offers, comparison.differ_in)]


def left_out_warnings(left_out: Iterable[LeftOut]) -> Iterator[str]:
    groups = defaultdict(list)
    for run in left_out:
        name = at(run.cell, f"seed {run.seed}")
        groups[run.arm, run.why, run.setting].append(name)
    for (arm, why, setting), names in groups.items():
        text = f": {'; '.join(names[:MOST_NAMES])}"
        if len(names) > MOST_NAMES:
            text += f" and {len(names) - MOST_NAMES} more"
        if setting:
            text = f" (at settings that were not chosen: {len(names)})"
        yield f"left out of {arm}, {why}{text}"


def tuning_warnings(arm: str, offers: Sequence[ArmCell]) -> Iterator[str]:
    """Where the best setting may not be the best one there is."""
    edges = [at(offer.size, ", ".join(offer.edges)) for offer in offers if offer.edges]
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
    for key in ("tokens", "flops"):
        ratios = []
        for cell in cells:
            a = getattr(cell.a, key)
            b = getattr(cell.b, key)
            if a > 0 and b > 0:  # NaN is not known
                ratios.append(b / a)
        if ratios and max(*ratios, 1 / min(ratios)) > _UNEQUAL:
            least = f"{min(ratios):.3g}"
            most = f"{max(ratios):.3g}"
            ends = dict.fromkeys([least, most])
            yield f"B has {' to '.join(ends)} times A's {key}"


def numerics_warnings(offers: Offers, differ_in: Iterable[str]) -> Iterator[str]:
    """A warning per part of the numerics in which the arms differ but were not meant to."""
    numerics = {}
    for arm, cells in offers.items():
        numerics[arm] = [run.numerics for cell in cells for run in cell.counted.values()]
    keys = set[str]().union(*numerics["A"], *numerics["B"])
    meant = {*differ_in, "matmul_precision"}  # that one follows the width
    for key in sorted(keys - meant):
        in_a = {str(values.get(key)) for values in numerics["A"]}
        in_b = {str(values.get(key)) for values in numerics["B"]}
        if in_a != in_b:
            yield (
                f"the arms ran on different numerics, {key} {' and '.join(sorted(in_a))} against "
                f"{' and '.join(sorted(in_b))}: their losses differ by rounding too"
            )
