"""Is arm B's loss lower than arm A's, how surely, and what would settle it?

What an arm is stands in `arms`, the arithmetic in `checks.paired`, what a comparison says of itself
in `compare_reasons`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
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
    difference_of,
    judge,
    seeds_needed,
    windows_noise,
)
from nanoscale.errors import UserError, one_of
from nanoscale.store.folder import DIVERGED, WINDOWS
from nanoscale.studies.arms import (
    KEYS,
    TUNED,
    Arm,
    ArmCell,
    ArmRun,
    Setting,
    cells_of,
    losses_of,
    naming,
    read_arm,
)
from nanoscale.studies.compare_reasons import in_words, numerics_warnings, reason_of, warnings_of

ROPE = 0.01  # nats within which two arms are as good as equal
LOSSES = ("val_loss", "best_val_loss", "train_loss", "val_bits_per_byte")
PER_WINDOW, PER_BYTE = LOSSES[0], LOSSES[-1]  # what windows.npy holds; comparable over tokenizers
FOLLOW = ("n_head", "n_kv_head", "warmup_iters", "lr_decay_iters", "min_lr")  # other keys, mostly
Runs = Mapping[str, ArmRun]  # seed -> run
ArmCells = Mapping[Setting, ArmCell]  # size -> what an arm offers there


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

    keys = naming([arm_a.runs, arm_b.runs], [key for key in KEYS if key not in TUNED])
    cells_a, cells_b = cells_of(arm_a, keys), cells_of(arm_b, keys)
    pairs = [Pair(size, cells_a[size], cells_b[size]) for size in cells_a if size in cells_b]
    if not pairs:
        raise UserError(
            f"the arms share no {' and '.join(keys)}: A has {_sizes(cells_a, keys)}, "
            f"B {_sizes(cells_b, keys)}; name those to compare, as in STUDY:{keys[0]}=VALUE"
        )
    sides = (
        Side("A", arm_a, cells_a, {pair.size: pair.counted[0] for pair in pairs}),
        Side("B", arm_b, cells_b, {pair.size: pair.counted[1] for pair in pairs}),
    )
    return _in_words(_record(pairs, sides, keys, loss, rope), pairs, sides)


def _in_words(
    comparison: Comparison, pairs: Sequence[Pair], sides: tuple[Side, Side]
) -> Comparison:
    """With its reason and warnings, which are made from its numbers."""
    offers = {"A": [pair.a for pair in pairs], "B": [pair.b for pair in pairs]}
    warnings = [
        *warnings_of(comparison, offers),
        *numerics_warnings(sides[0].counted_runs, sides[1].counted_runs, comparison.differ_in),
    ]
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
            f"the runs are of {len(data)} data sets, whose losses per token are not "
            f"comparable; where the text is the same, compare --loss={PER_BYTE}"
        )


def _sizes(cells: ArmCells, keys: Sequence[str]) -> str:
    return " or ".join(in_words(dict(zip(keys, size, strict=True))) for size in cells)


# -- one size in both arms ----------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Pair:
    """One size in both arms."""

    size: Setting
    a: ArmCell
    b: ArmCell

    @cached_property
    def difference(self) -> Difference:
        return _difference([self], _chosen)

    @cached_property
    def counted(self) -> tuple[Runs, Runs]:
        """Both arms' runs; where seeds are paired, without those that have no pair."""
        if not self.difference.paired_by:
            return self.a.runs, self.b.runs
        return (
            {seed: run for seed, run in self.a.runs.items() if seed in self.b.runs},
            {seed: run for seed, run in self.b.runs.items() if seed in self.a.runs},
        )


def _difference(pairs: Sequence[Pair], losses: Callable[[ArmCell], Losses]) -> Difference:
    """B - A over the sizes of the pairs."""
    return difference_of(
        {pair.size: losses(pair.a) for pair in pairs}, {pair.size: losses(pair.b) for pair in pairs}
    )


def _chosen(cell: ArmCell) -> Losses:
    return cell.choice.losses


def _held_out(cell: ArmCell) -> Losses:
    return cell.choice.held_out


# -- one arm at all sizes -----------------------------------------------------------------------
@dataclass(frozen=True)
class Side:
    """One arm: what it offers at each size, and which of its runs are counted."""

    which: str  # A or B
    arm: Arm
    cells: ArmCells
    counted: Mapping[Setting, Runs]  # of the sizes that both arms have

    @property
    def levels(self) -> list[tuple[float, Losses]]:
        return [(cell.first.flops, cell.choice.losses) for cell in self.cells.values()]

    @property
    def counted_runs(self) -> list[ArmRun]:
        return [run for runs in self.counted.values() for run in runs.values()]

    def summary(self, pooled: Sequence[Pair]) -> ArmSummary:
        sizes = [pair.size for pair in pooled]
        sample = Sample.of({size: losses_of(self.counted[size]) for size in sizes})
        seeds = [seed for size in sizes for seed in self.counted[size]]
        return ArmSummary(
            name=self.arm.name,
            n_runs=len(seeds),
            seeds=list(dict.fromkeys(seeds)),
            mean=sample.mean,
            se=sample.se,
            settings=[self.cells[size].setting for size in sizes],
            n_found=len(self.arm.runs),
            n_diverged=sum(run.state == DIVERGED for run in self.arm.lost),
        )

    def at_size(self, size: Setting) -> ArmAtSize:
        cell, runs = self.cells[size], self.counted[size]
        sample = Sample.of({size: losses_of(runs)})
        return ArmAtSize(
            mean=sample.mean,
            se=sample.se,
            n=len(runs),
            setting=cell.setting,
            chosen_of=cell.choice.of,
            flops=cell.first.flops,
            tokens=cell.first.tokens,
        )

    def left_out(self, keys: Sequence[str]) -> Iterator[LeftOut]:
        """The runs that are not counted, and why; results at other settings are none."""
        told = set()
        for size, cell in self.cells.items():
            named = dict(zip(keys, size, strict=True))
            for run in cell.lost:
                told.add(run.folder.path)
                yield LeftOut(self.which, named, run.seed, run.name, run.state.lower())
            counted = self.counted.get(size)
            why = "only in this arm" if counted is None else "no pair"
            for seed, run in cell.runs.items():
                if counted is None or seed not in counted:
                    yield LeftOut(self.which, named, seed, run.name, why)
        for run in self.arm.lost:
            if run.folder.path not in told:
                known = {key: run.values[key] for key in keys if key in run.values}
                why = run.state.lower()
                yield LeftOut(self.which, known, run.seed, run.name, why, "not chosen")


# -- the record ---------------------------------------------------------------------------------
def _record(
    pairs: Sequence[Pair], sides: tuple[Side, Side], keys: Sequence[str], loss: str, rope: float
) -> Comparison:
    """What the numbers say; its words are still to come."""
    a, b = sides
    pooled = [pair for pair in pairs if pair.difference.known] or pairs
    total = _difference(pooled, _chosen)
    texts = {pair.size: _window_differences(pair, loss) for pair in pairs}
    windows = _window_noise([texts[pair.size] for pair in pooled], total.value)
    differ_in = _differing(pairs[0], keys)
    return Comparison(
        verdict=judge(total.ci95, rope),
        reason="",
        loss=loss,
        unit="bits" if loss == PER_BYTE else "nats",
        rope=rope,
        keys=keys,
        differ_in=differ_in,
        labels=_labels(differ_in),
        arms=(a.summary(pooled), b.summary(pooled)),
        difference=_pooled_estimate(total, pooled, windows),
        windows=windows,
        compute_multiplier=multiplier(a.levels, b.levels, total.paired_by is not None),
        seeds_needed=seeds_needed(total, rope),
        cells=[
            SizeComparison(
                cell=dict(zip(keys, pair.size, strict=True)),
                pooled=pair in pooled,
                a=a.at_size(pair.size),
                b=b.at_size(pair.size),
                difference=pair.difference.estimate(),
                seeds=_seed_losses(pair),
                window_se=_window_se(texts[pair.size]),
            )
            for pair in pairs
        ],
        left_out=[*a.left_out(keys), *b.left_out(keys)],
    )


def _differing(pair: Pair, keys: Sequence[str]) -> dict[str, tuple[object, object]]:
    """Key -> its value in A and in B, of what does not vary within an arm."""
    a, b = pair.a.first.values, pair.b.first.values
    chosen = {*keys, *pair.a.setting, *pair.b.setting}
    differ = {key: (a[key], b[key]) for key in KEYS if a[key] != b[key] and key not in chosen}
    if {"learning_rate", "min_lr"} & {*differ, *chosen}:
        differ.pop("min_lr", None)  # a fraction of it, as good as always
    return differ


def _labels(differ_in: Mapping[str, tuple[object, object]]) -> tuple[str, str]:
    """What to call A and B: by the one key they differ in, where there is one."""
    leading = [key for key in differ_in if key not in FOLLOW] or list(differ_in)
    if len(leading) != 1:
        return "A", "B"
    a, b = differ_in[leading[0]]
    return _label(leading[0], a), _label(leading[0], b)


def _label(key: str, value: object) -> str:
    return value if isinstance(value, str) else in_words({key: value})


def _pooled_estimate(
    total: Difference, pooled: Sequence[Pair], windows: WindowNoise
) -> PooledEstimate:
    """The difference over sizes; where one seed knows no interval, with that of the windows."""
    estimate = asdict(total.estimate())
    if total.known:
        held_out = _difference(pooled, _held_out).value
        return PooledEstimate(**estimate, interval="seeds", held_out=held_out)
    estimate["ci95"] = windows.ci95 or UNKNOWN
    return PooledEstimate(**estimate, interval="windows", held_out=None)


def _seed_losses(pair: Pair) -> list[SeedLosses]:
    a, b = pair.a.choice.losses, pair.b.choice.losses
    return [SeedLosses(seed, a.get(seed), b.get(seed)) for seed in dict.fromkeys((*a, *b))]


# -- windows ------------------------------------------------------------------------------------
def _window_differences(pair: Pair, loss: str) -> np.ndarray | str:
    """B - A per window (n,), each arm's mean over its seeds; or why there is none."""
    if loss != PER_WINDOW:
        return f"{WINDOWS} holds the {PER_WINDOW}, not the {loss}"
    rows = {}
    for arm, runs in zip("AB", pair.counted, strict=True):
        try:
            rows[arm] = [np.load(run.folder / WINDOWS, allow_pickle=False) for run in runs.values()]
        except (OSError, ValueError):
            return f"a run of {arm} has no {WINDOWS} that can be read"
    texts = set()
    for arm, runs in zip("AB", pair.counted, strict=True):
        for row, run in zip(rows[arm], runs.values(), strict=True):
            texts.add((len(row), run.values["block_size"], run.data))
    if len(texts) > 1:
        return "the runs were evaluated on different windows"
    return np.asarray(np.mean(rows["B"], axis=0) - np.mean(rows["A"], axis=0))


def _window_se(difference: np.ndarray | str) -> float | None:
    return None if isinstance(difference, str) else windows_noise(difference)[0]


def _window_noise(differences: Sequence[np.ndarray | str], value: float) -> WindowNoise:
    """How far the difference over sizes depends on the text."""
    known = [each for each in differences if not isinstance(each, str)]
    reason = next((each for each in differences if isinstance(each, str)), None)
    if reason is None and len({len(each) for each in known}) > 1:
        reason = "the sizes were evaluated on different windows"
    if reason:
        return WindowNoise(0, None, None, None, reason)
    se, block = windows_noise(np.mean(known, axis=0))
    return WindowNoise(len(known[0]), block, se, (value - 1.96 * se, value + 1.96 * se), None)
