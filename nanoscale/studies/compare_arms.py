"""Is arm B's loss lower than arm A's, how surely, and what would settle it?

What an arm is stands in `arms`, the arithmetic in `checks.paired`, what a comparison says of itself
in `compare_reasons`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from nanoscale.checks.comparison import (
    ArmAtSize,
    ArmSummary,
    Comparison,
    LeftOut,
    PooledEstimate,
    SeedLosses,
    SizeComparison,
    WindowNoise,
)
from nanoscale.checks.compute_multiplier import multiplier
from nanoscale.checks.drift import UNKNOWN
from nanoscale.checks.paired import (
    Difference,
    Losses,
    Sample,
    judge,
    seeds_needed,
    tuned_difference,
    windows_noise,
)
from nanoscale.checks.seed_shifts import Numbers
from nanoscale.errors import UserError, one_of
from nanoscale.experiments.results import mixed_sets
from nanoscale.spec.values import Json
from nanoscale.store.folder import DIVERGED, WINDOWS
from nanoscale.studies.arms import KEYS, NOT_TUNED, Arm, ArmCell, cells_of, naming, read_arm
from nanoscale.studies.compare_reasons import OTHER_TEXT, in_words, reason_of, warnings_of

ROPE = 0.01  # nats within which two arms are as good as equal
LOSSES = ("val_loss", "best_val_loss", "train_loss", "val_bits_per_byte")
PER_WINDOW, PER_BYTE = LOSSES[0], LOSSES[-1]  # what windows.npy holds; comparable over tokenizers
FINAL = (PER_WINDOW, PER_BYTE)  # of the last evaluation, whose windows are kept
FOLLOW = ("n_head", "n_kv_head", "warmup_iters", "lr_decay_iters", "min_lr")  # other keys, mostly
Texts = Numbers | str  # B - A per window (n,), or why it is not known


def compare(
    a: str | Arm,
    b: str | Arm,
    *,
    loss: str = PER_WINDOW,
    rope: float = ROPE,
    output_root: str | Path = "experiments_out",
) -> Comparison:
    """Whether B's loss is lower than A's: a verdict from paired seeds, size by size.

    Args:
        a, b: each `RUN,RUN..`, `STUDY` or `STUDY:key=value,key=value`, or an arm that was read.
        loss: which of a run's: val_loss, best_val_loss, train_loss or val_bits_per_byte.
        rope: nats (bits) within which the arms are as good as equal.
        output_root: where studies are looked for.

    Raises:
        UserError: an arm has no run, the arms share a run or no size, or their data differ.

    Example:
        >>> import nanoscale as ns
        >>> from pathlib import Path
        >>> _ = Path("corpus.txt").write_text("the cat sat on the mat " * 200)
        >>> _ = ns.prepare("text", input="corpus.txt")
        vocab size: 10...
        >>> tiny = {"dataset": "text", "n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8}
        >>> tiny |= {"max_iters": 4, "gradient_accumulation_steps": 1, "eval_iters": 1}
        >>> rates = {"learning_rate": [1e-3, 1e-2]}
        >>> _ = ns.ExperimentRunner().run_grid("rates", tiny, rates, seeds=[1, 2])
        [rates] 4 runs...
        >>> verdict = ns.compare("rates:learning_rate=1e-3", "rates:learning_rate=1e-2")
        >>> verdict.difference.n_pairs
        2
    """
    if loss not in LOSSES:
        raise UserError(f"loss={loss!r}: choose {one_of(LOSSES)}")
    if not 0 <= rope < math.inf:
        raise UserError(f"rope={rope}: expected a number of nats, 0 or more")
    arm_a = read_arm(a, output_root, loss) if isinstance(a, str) else a
    arm_b = read_arm(b, output_root, loss) if isinstance(b, str) else b
    _check_arms(arm_a, arm_b, loss)

    keys = naming([arm_a.runs, arm_b.runs], NOT_TUNED)
    cells_a = cells_of(arm_a, keys)
    cells_b = cells_of(arm_b, keys)
    side_a = Side("A", arm_a, [cell.against(cells_b.get(size)) for size, cell in cells_a.items()])
    side_b = Side("B", arm_b, [cell.against(cells_a.get(size)) for size, cell in cells_b.items()])
    pairs = _pairs(side_a, side_b, loss)
    if not pairs:
        raise UserError(
            f"the arms share no {' and '.join(keys)}: A has {side_a.sizes}, "
            f"B {side_b.sizes}; name those to compare, as in STUDY:{keys[0]}=VALUE"
        )
    comparison = _record(pairs, side_a, side_b, keys, loss, rope)
    warnings = warnings_of(comparison, {"A": side_a.shared, "B": side_b.shared})
    warnings += mixed_sets(run.folder for run in (*arm_a.runs, *arm_b.runs))
    return replace(comparison, warnings=warnings, reason=reason_of(comparison))


def _check_arms(a: Arm, b: Arm, loss: str) -> None:
    same = {run.folder.path.resolve() for run in a.runs}
    same &= {run.folder.path.resolve() for run in b.runs}
    if same:
        more = f" and {len(same) - 1} more" if len(same) > 1 else ""
        raise UserError(
            f"both arms hold {min(same).name}{more}: name arms that share no run, as in "
            "STUDY:key=value"
        )
    data = {run.data for run in (*a.runs, *b.runs)}
    if len(data) > 1 and loss != PER_BYTE:
        raise UserError(
            f"the runs are of {len(data)} data sets, or judged by other validation sets, so their "
            "losses per token are not comparable; where the text is the same, compare "
            f"--loss={PER_BYTE}"
        )


# -- one arm at all sizes -----------------------------------------------------------------------
@dataclass(frozen=True)
class Side:
    """One arm, and what it offers at each size."""

    which: str  # A or B
    arm: Arm
    cells: Sequence[ArmCell]

    @property
    def shared(self) -> list[ArmCell]:
        """At the sizes that both arms have."""
        return [cell for cell in self.cells if cell.counted]

    @property
    def sizes(self) -> str:
        return " or ".join(in_words(cell.size) for cell in self.cells)

    @property
    def levels(self) -> list[tuple[float, Losses]]:
        return [(cell.first.flops, cell.choice.held_out) for cell in self.cells]

    def summary(self, pooled: Sequence[ArmCell]) -> ArmSummary:
        sample = Sample.of([cell.losses for cell in pooled])
        seeds = [seed for cell in pooled for seed in cell.counted]
        return ArmSummary(
            name=self.arm.name,
            n_runs=len(seeds),
            seeds=list(dict.fromkeys(seeds)),
            mean=sample.mean,
            se=sample.se,
            settings=[cell.setting for cell in pooled],
            n_found=len(self.arm.runs),
            n_diverged=[run.state for run in self.arm.lost].count(DIVERGED),
        )

    def left_out(self, keys: Sequence[str]) -> Iterator[LeftOut]:
        """The runs that are not counted, and why; results at other settings are none."""
        told = []
        for cell in self.cells:
            for run in cell.lost:
                told.append(run)
                why = run.state.lower()
                yield LeftOut(self.which, cell.size, run.seed, run.name, why)
            why = "no pair" if cell.counted else "only in this arm"
            for seed, run in cell.runs.items():
                if seed not in cell.counted:
                    yield LeftOut(self.which, cell.size, seed, run.name, why)
        for run in self.arm.lost:
            if run not in told:
                values = run.values
                size = {key: values[key] for key in keys if key in values}
                why = run.state.lower()
                yield LeftOut(self.which, size, run.seed, run.name, why, "not chosen")


def _at_size(cell: ArmCell) -> ArmAtSize:
    sample = Sample.of([cell.losses])
    return ArmAtSize(
        mean=sample.mean,
        se=sample.se,
        n=sample.n,
        setting=cell.setting,
        chosen_of=cell.choice.of,
        flops=cell.first.flops,
        tokens=cell.first.tokens,
    )


# -- one size in both arms ----------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Pair:
    """One size in both arms."""

    a: ArmCell
    b: ArmCell
    difference: Difference
    texts: Texts

    def record(self, pooled: bool) -> SizeComparison:
        a = self.a.choice.held_out
        b = self.b.choice.held_out
        window_se = None
        if not isinstance(self.texts, str):
            window_se = windows_noise(self.texts)[0]
        return SizeComparison(
            cell=self.a.size,
            pooled=pooled,
            a=_at_size(self.a),
            b=_at_size(self.b),
            difference=self.difference.estimate(),
            seeds=[SeedLosses(seed, a.get(seed), b.get(seed)) for seed in {**a, **b}],
            window_se=window_se,
        )


def _pairs(side_a: Side, side_b: Side, loss: str) -> list[Pair]:
    pairs = []
    for a, b in zip(side_a.shared, side_b.shared, strict=True):
        difference = tuned_difference([(a.choice, b.choice)])
        texts = _window_differences(a, b, loss)
        pairs.append(Pair(a, b, difference, texts))
    return pairs


# -- the record ---------------------------------------------------------------------------------
def _record(
    pairs: Sequence[Pair], a: Side, b: Side, keys: Sequence[str], loss: str, rope: float
) -> Comparison:
    """What the numbers say; its words are still to come."""
    pooled = [pair for pair in pairs if pair.difference.known] or pairs
    total = tuned_difference([(pair.a.choice, pair.b.choice) for pair in pooled])
    windows = _window_noise([pair.texts for pair in pooled], total.value)
    differ_in = _differing(pairs[0], keys)
    verdict = judge(total.ci95, rope)
    needed = seeds_needed(total, rope)
    if windows.reason == OTHER_TEXT:
        verdict = "inconclusive"
        needed = None
    return Comparison(
        verdict=verdict,
        reason="",
        loss=loss,
        unit="bits" if loss == PER_BYTE else "nats",
        rope=rope,
        keys=keys,
        differ_in=differ_in,
        labels=_labels(differ_in),
        arms=(
            a.summary([pair.a for pair in pooled]),
            b.summary([pair.b for pair in pooled]),
        ),
        difference=_pooled_estimate(total, windows),
        windows=windows,
        compute_multiplier=multiplier(a.levels, b.levels, total.paired_by is not None),
        seeds_needed=needed,
        cells=[pair.record(pair in pooled) for pair in pairs],
        left_out=[*a.left_out(keys), *b.left_out(keys)],
    )


def _differing(pair: Pair, keys: Sequence[str]) -> dict[str, tuple[Json, Json]]:
    """Key -> its value in A and in B, of what does not vary within an arm."""
    a = pair.a.first.values
    b = pair.b.first.values
    chosen = {*keys, *pair.a.setting, *pair.b.setting}
    differ = {}
    for key in KEYS:
        if a[key] != b[key] and key not in chosen:
            differ[key] = (a[key], b[key])
    if {"learning_rate", "min_lr"} & {*differ, *chosen}:
        differ.pop("min_lr", None)  # a fraction of it, as good as always
    return differ


def _labels(differ_in: Mapping[str, tuple[Json, Json]]) -> tuple[str, str]:
    """What to call A and B: by the one key they differ in, where there is one."""
    leading = [key for key in differ_in if key not in FOLLOW] or list(differ_in)
    if len(leading) != 1:
        return "A", "B"
    key = leading[0]
    labels = []
    for value in differ_in[key]:
        labels.append(value if isinstance(value, str) else in_words({key: value}))
    a, b = labels
    return a, b


def _pooled_estimate(total: Difference, windows: WindowNoise) -> PooledEstimate:
    """The difference over sizes; where one seed knows no interval, with that of the windows."""
    estimate = asdict(total.estimate())
    if total.known and total.at_chosen:
        return PooledEstimate(**estimate, interval="seeds", at_chosen=total.at_chosen.value)
    estimate["ci95"] = windows.ci95 or UNKNOWN
    return PooledEstimate(**estimate, interval="windows", at_chosen=None)


# -- windows ------------------------------------------------------------------------------------
def _window_differences(a: ArmCell, b: ArmCell, loss: str) -> Texts:
    """B - A per window (n,), each arm's mean over its seeds; or why there is none."""
    other_loss = "" if loss == PER_WINDOW else f"{WINDOWS} holds the {PER_WINDOW}, not the {loss}"
    rows: dict[str, list[Numbers]] = {"A": [], "B": []}
    cuts = set()
    tokens = defaultdict(list)  # of validation, by data set
    longest = 0
    for arm, cell in (("A", a), ("B", b)):
        for run in cell.counted.values():
            try:
                row = np.load(run.folder / WINDOWS, allow_pickle=False)
            except (OSError, ValueError):
                return other_loss or f"a run of {arm} has no {WINDOWS} that can be read"
            block = run.values["block_size"]
            assert isinstance(block, int)
            rows[arm].append(row)
            cuts.add((len(row), block, run.data))
            tokens[run.data].append(len(row) * block)
            longest = max(longest, block)
    # a set cut into blocks of other lengths ends within one of them
    if loss in FINAL and any(max(seen) - min(seen) >= longest for seen in tokens.values()):
        return OTHER_TEXT
    if other_loss:
        return other_loss
    if len(cuts) > 1:
        return "the runs cut the text into windows of other lengths"
    of_a = np.mean(rows["A"], axis=0)
    of_b = np.mean(rows["B"], axis=0)
    return np.asarray(of_b - of_a)


def _is_comparable(texts: Texts) -> bool:
    return not isinstance(texts, str) or texts != OTHER_TEXT


def _window_noise(differences: Sequence[Texts], value: float) -> WindowNoise:
    """How far the difference over sizes depends on the text."""
    known = []
    for texts in sorted(differences, key=_is_comparable):
        if isinstance(texts, str):
            return WindowNoise(reason=texts)
        known.append(texts)
    lengths = {len(texts) for texts in known}
    if len(lengths) > 1:
        return WindowNoise(reason="the sizes were evaluated on different windows")
    se, block = windows_noise(np.mean(known, axis=0))
    n = len(known[0])
    half = 1.96 * se
    return WindowNoise(n, block, se, (value - half, value + half))
