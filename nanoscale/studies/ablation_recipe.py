"""`recipe = "ablation"`: what is a change worth, in FLOPs at equal loss, and does that hold?

A ladder of the base, and one of every arm, which is the base with some keys changed. Where an arm
has several learning rates, each seed counts at the one that the others choose.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nanoscale.checks.coordinates import UNSURE
from nanoscale.checks.paired import Losses, Setting, choose
from nanoscale.checks.worth import WORTH_SIZES, SizeLosses, Worth, worth
from nanoscale.errors import UserError, counted, one_of
from nanoscale.spec.values import Json, Overrides
from nanoscale.studies.branches import is_positive, ladder_ratio
from nanoscale.studies.narrowing import Narrowing
from nanoscale.studies.recipe import Answer, FileTable, Picture, Question, Recipe
from nanoscale.studies.row_runs import cell_of, loss_of_row
from nanoscale.studies.transfer_table import LR_KEYS, usual_lr

if TYPE_CHECKING:
    from pandas import DataFrame

    from nanoscale.experiments import Study

BASE = "base"
ABLATION = "ablation.json"


@dataclass(frozen=True)
class ArmOfSize:
    """FLOPs of one run of an arm at a size, and its losses by seed, at the LR that was chosen."""

    flops: float
    losses: Losses
    lr: float | None


@dataclass(frozen=True)
class Change:
    """An arm: keys that differ from the base's, and the LRs that are tried, if there are several.

    The base is the one that changes nothing.
    """

    name: str
    values: Overrides
    lr: str  # the key
    lrs: Sequence[float]

    @property
    def each_lr(self) -> list[float | None]:
        """None: the config's own."""
        return [*self.lrs] or [None]

    def row(self, size: Overrides, lr: float | None, seed: int) -> Overrides:
        row = {**size, **self.values, "seed": seed}
        return row if lr is None else {**row, self.lr: lr}

    def rows(self, sizes: Sequence[tuple[Overrides, Sequence[int]]]) -> list[Overrides]:
        """Every size at every LR, with its seeds."""
        rows = []
        for size, seeds in sizes:
            for lr in self.each_lr:
                rows += [self.row(size, lr, seed) for seed in seeds]
        return rows

    def at(self, study: Study, size: Overrides, seeds: Sequence[int]) -> ArmOfSize:
        """Its runs of a size: those of `seeds`, and others that were added."""
        known = {int(str(entry.values["seed"])) for entry in study.entries}
        tried: dict[Setting, Losses] = {}
        for lr in self.each_lr:
            losses = {}
            for seed in sorted(known):
                loss = loss_of_row(study, self.row(size, lr, seed))
                if loss is not None and math.isfinite(loss):
                    losses[seed] = loss
            if losses.keys() >= {*seeds}:
                tried[(lr,)] = {str(seed): loss for seed, loss in losses.items()}
        first = self.rows([(size, seeds)])[0]
        flops = float(cell_of(study, first).flops)
        if not tried:
            return ArmOfSize(flops, {}, None)
        choice = choose(tried)
        chosen = None if choice.setting == (None,) else float(str(choice.setting[0]))
        return ArmOfSize(flops, choice.held_out, chosen)

    def to_json(self) -> dict[str, Json]:
        return {"name": self.name, "values": dict(self.values), "lr": self.lr, "lrs": [*self.lrs]}


def rows(table: FileTable) -> Question:
    """The ladder of the base, and that of every arm in [[ablation.arms]]."""
    ladder_ratio(table)
    sizes = table.sizes("all sizes share [base]'s tokens_per_param")
    if len(sizes) < WORTH_SIZES:
        raise UserError(
            f"{table.where('sizes')}: {len(sizes)} sizes say nothing of how a worth moves; give "
            f"at least {WORTH_SIZES}"
        )
    where = table.where("arms")
    base = read_change({"name": BASE, "lrs": table.values.get("lrs", [])}, table, table.where())
    arms = [read_change(keys, table, where) for keys in table.tables("arms")]
    names = [arm.name for arm in arms]
    if not arms or len({*names, BASE}) <= len(names):
        raise UserError(f"{where}: give at least one, each with a name of its own, none {BASE!r}")

    changes = [base, *arms]
    runs = [row for change in changes for row in change.rows(sizes)]
    kept: dict[str, Json] = {
        "changes": [change.to_json() for change in changes],
        "sizes": [{"values": dict(size), "seeds": [*seeds]} for size, seeds in sizes],
    }
    return Question(runs, where, kept)


def read_change(values: Overrides, table: FileTable, where: str) -> Change:
    keys: dict[str, Any] = dict(values)
    name = keys.pop("name", None)
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: every arm has a name, as in name = 'no RoPE'")
    lrs = keys.pop("lrs", table.values.get("lrs", []))
    if not isinstance(lrs, list) or not all(map(is_positive, lrs)):
        said = "expected learning rates, as in [1e-3, 2e-3]"
        raise UserError(f"{where}, {name}: lrs={lrs!r}: {said}")
    lr = keys.pop("lr", usual_lr({**table.base, **keys}))
    if lr not in LR_KEYS:
        raise UserError(f"{where}, {name}: lr={lr!r}: choose {one_of(LR_KEYS)}")
    same = [key for key, value in keys.items() if table.base.get(key) == value]
    if name != BASE and (not keys or same):
        said = f"{same[0]}={keys[same[0]]!r} is [base]'s" if same else "it changes nothing"
        raise UserError(f"{where}, {name}: {said}; give what differs, as in use_rope = false")
    return Change(name, keys, lr, sorted(map(float, lrs)))


# -- the answer -----------------------------------------------------------------------------------
def asked_of(study: Study) -> tuple[list[Change], list[tuple[Overrides, list[int]]]]:
    """The base and the arms; and the sizes with their seeds."""
    extras = study.asked.extras
    changes = [Change(**change) for change in extras["changes"]]
    return changes, [(size["values"], size["seeds"]) for size in extras["sizes"]]


def measured(study: Study) -> list[tuple[Change, list[ArmOfSize]]]:
    """The base and every arm, each with its runs of every size."""
    changes, sizes = asked_of(study)
    return [(change, [change.at(study, *size) for size in sizes]) for change in changes]


def worths(
    base: Sequence[ArmOfSize], arms: Sequence[tuple[Change, Sequence[ArmOfSize]]]
) -> tuple[dict[str, Worth], list[str]]:
    """What every arm is worth, and a line for each of which that is not known."""
    found, without = {}, []
    for arm, of_sizes in arms:
        pairs = []
        for one, other in zip(base, of_sizes, strict=True):
            both = sorted(one.losses.keys() & other.losses.keys())
            if both:
                of_one = {seed: one.losses[seed] for seed in both}
                of_other = {seed: other.losses[seed] for seed in both}
                pairs.append(SizeLosses(one.flops, of_one, other.flops, of_other))
        try:
            found[arm.name] = worth(pairs)
        except UserError as error:
            without.append(f"{arm.name}: not decided: {error}")
    return found, without


def narrow(study: Study, frame: DataFrame) -> Narrowing | None:
    """A further seed of the base and of the arm whose worth is known least, at one size."""
    (base, of_base), *arms = measured(study)
    found, _ = worths(of_base, arms)
    if not found:
        return None
    _, sizes = asked_of(study)
    name = max(found, key=lambda name: found[name].ci95[1] / found[name].ci95[0])
    arm, of_arm = next(one for one in arms if one[0].name == name)
    low, high = found[name].ci95
    best: Narrowing | None = None
    places = [at.base_flops for at in found[name].at]
    shares = dict(zip(places, found[name].more().tolist(), strict=True))
    for (size, _), one, other in zip(sizes, of_base, of_arm, strict=True):
        left = shares.get(one.flops)
        if left is None:
            continue
        cost = one.flops + other.flops
        seed = 1 + max(map(int, (*one.losses, *other.losses)))
        rows = [base.row(size, one.lr, seed), arm.row(size, other.lr, seed)]
        if best is None or math.log(left) / cost < math.log(best.left) / best.flops:
            best = Narrowing(f"what {name} is worth", high / low, rows, cost, left)
    return best


def conclude(study: Study, frame: DataFrame) -> Answer:
    """What every arm is worth, the dearest to be without first; kept in ablation.json."""
    from pandas import DataFrame

    (base, of_base), *arms = measured(study)
    found, without = worths(of_base, arms)
    found = dict(sorted(found.items(), key=lambda named: -named[1].value))
    lines = [f"{name} needs {its.text()}" for name, its in found.items()]
    record = {name: its.to_json() for name, its in found.items()}
    tables = []
    if found:
        lrs = {change.name: lrs_of(change, of_sizes) for change, of_sizes in arms}
        rows = [table_row(name, its, lrs[name]) for name, its in found.items()]
        tables.append(("FLOPs of every arm over the base's at equal loss.", DataFrame(rows)))
    warnings = [*at_an_end([(base, of_base), *arms]), *read_beyond(found)]
    return Answer(
        [*lines, *without],
        found,
        warnings=warnings,
        tables=tables,
        verdict="" if found else UNSURE,
        numbers=record,
        files={ABLATION: record},
    )


def read_beyond(found: Mapping[str, Worth]) -> list[str]:
    """The arms of which a loss is compared with a base, or of a base with an arm, smaller than any
    that ran."""
    warnings = []
    for name, its in found.items():
        sizes, times = its.beyond
        if sizes:
            warnings.append(
                f"{name}: at {counted(sizes, 'size')} one side has a loss above all of the "
                f"other's, whose curve is read there up to {times:.2g} times below its smallest "
                "run: add smaller sizes, or believe the larger ones"
            )
    return warnings


def lrs_of(change: Change, of_sizes: Sequence[ArmOfSize]) -> str | None:
    """The LRs that were chosen, from the smallest size on; None where there was no choice."""
    if len(change.lrs) < 2:
        return None
    return ", ".join("-" if of.lr is None else f"{of.lr:g}" for of in of_sizes)


def at_an_end(arms: Sequence[tuple[Change, Sequence[ArmOfSize]]]) -> list[str]:
    """The arms whose best LR is the first or the last of those that were tried."""
    warnings = []
    for change, of_sizes in arms:
        chosen = [of_size.lr for of_size in of_sizes]
        count = sum(lr in (change.lrs[0], change.lrs[-1]) for lr in chosen if lr is not None)
        if count and len(change.lrs) > 1:
            warnings.append(
                f"{change.name}: the best {change.lr} is at an end of those tried at "
                f"{counted(count, 'size')}: give more, or its worth is that of a bad one"
            )
    return warnings


def table_row(name: str, found: Worth, lrs: str | None) -> dict[str, str | None]:
    return {
        "arm": name,
        "times the FLOPs": found.times,
        "at ten times the compute": f"{found.moves} times that",
        "with size it": found.verdict,
        "LR, size by size": lrs,
    }


def figures(study: Study, frame: DataFrame, answer: Answer) -> list[Picture]:
    """What every arm is worth over the base's compute, and every run's curve."""
    from nanoscale.report import worth_figure

    if not answer.result:
        return []
    caption = (
        "FLOPs of every arm over those with which the base has the same loss, at the middle of the "
        "two, with 95 % intervals."
    )
    return [Picture("worth", caption, worth_figure(answer.result))]


RECIPE = Recipe(
    tables=("seeds", "lrs", "sizes", "arms"),
    rows=rows,
    conclude=conclude,
    figures=figures,
    narrow=narrow,
)
