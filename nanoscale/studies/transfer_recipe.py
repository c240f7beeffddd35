"""`recipe = "transfer"`: learning rates over sizes, finer around optima; a verdict per arm."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nanoscale.checks.coordinates import UNSURE
from nanoscale.errors import UserError
from nanoscale.experiments.cells import grid_lists
from nanoscale.spec.values import Json, Overrides
from nanoscale.store.folder import COMPLETE
from nanoscale.studies.grid_recipe import best
from nanoscale.studies.recipe import Answer, FileTable, Picture, Question, Recipe, Stage
from nanoscale.studies.transfer_table import joint_record, joint_verdict, study_verdicts, usual_lr

if TYPE_CHECKING:
    from pandas import DataFrame

    from nanoscale.checks.lr_verdict import TransferVerdict
    from nanoscale.experiments import Study

MIN_ARM_SIZES, MIN_LRS = 3, 5
FLAT_VALLEY = 0.05  # nats: LRs this close to the best one are part of its valley
HALF_OCTAVES = range(-2, 3)  # the LRs around an optimum, a factor of sqrt 2 apart


@dataclass(frozen=True)
class StudyArm:
    """One of a transfer study's settings: its own keys, and the LRs to begin with."""

    name: str
    lr: str  # the key that is searched
    values: Overrides
    lrs: Sequence[float]
    sizes: Sequence[Overrides]
    seeds: Sequence[int]

    def row(self, size: Overrides, lr: float, seed: int) -> Overrides:
        return {**self.values, **size, self.lr: lr, "seed": seed}

    def first_rows(self) -> list[Overrides]:
        """Every size at every LR, with the first seed."""
        rows = []
        for size in self.sizes:
            for lr in self.lrs:
                rows.append(self.row(size, lr, self.seeds[0]))
        return rows

    def finer_rows(self, size: Overrides, losses: Mapping[float, float]) -> list[Overrides]:
        """All seeds at the five LRs, a factor of sqrt 2 apart, around the best of one size so far,
        and at every other that is hardly worse.

        `losses` are its seed means by LR, infinite where a run diverged. Where the best one is new
        after these, the next call goes on from there, also beyond the LRs begun with.
        """
        optimum = min(losses, key=lambda lr: losses[lr])
        near = [same_lr(optimum * 2 ** (k / 2), losses) for k in HALF_OCTAVES]
        high = losses[optimum] + FLAT_VALLEY
        for lr, loss in losses.items():
            if loss <= high and lr not in near:
                near.append(lr)

        rows = []
        for lr in near:
            for seed in self.seeds:
                rows.append(self.row(size, lr, seed))
        return rows

    def mean_losses(self, frame: DataFrame, size: Overrides) -> dict[float, float]:
        """LR -> mean loss over the seeds of one size; infinite where a run diverged."""
        runs = frame
        for key, value in {**self.values, **size}.items():
            runs = runs[runs[key] == value]
        losses = runs["val_loss"].astype(float)
        losses = losses.where(runs["state"] == COMPLETE, math.inf)
        lrs = runs[self.lr].astype(float)
        means = losses.groupby(lrs).mean()
        return dict(zip(means.index, means, strict=True))

    def to_json(self) -> dict[str, Json]:
        return {"name": self.name, "lr": self.lr, "values": dict(self.values)}


def rows(table: FileTable) -> Question:
    """Every arm's LRs at every size in [[transfer.sizes]], and finer ones once these have run."""
    arms = read_arms(table)
    first = [row for arm in arms for row in arm.first_rows()]
    extras = {
        "size": table.values["size"],
        "arms": [arm.to_json() for arm in arms],
    }
    return Question(first, table.where(), extras, [Stage(lambda study: finer(study, arms))])


def read_arms(table: FileTable) -> list[StudyArm]:
    """The arms in [[transfer.arms]], each over all sizes and seeds."""
    key = table.values.get("size")
    seeds = grid_lists({}, table.values.get("seeds", [1, 2, 3]), table.where())["seed"]
    sizes = table.tables("sizes")
    arm_tables = table.tables("arms")
    if not isinstance(key, str) or any(key not in size for size in sizes):
        raise UserError(
            f"{table.where()}: size={key!r}: name the key that grows, one that every "
            "[[transfer.sizes]] has, as in size = 'n_embd'"
        )
    if len(sizes) < MIN_ARM_SIZES:
        raise UserError(
            f"{table.where('sizes')}: {len(sizes)} sizes show no drift; give at "
            f"least {MIN_ARM_SIZES}"
        )
    arms = [read_arm(table, arm, sizes, seeds) for arm in arm_tables]
    if not arms or len({arm.name for arm in arms}) < len(arms):
        raise UserError(f"{table.where('arms')}: give at least one, each with a name of its own")
    return arms


def read_arm(
    table: FileTable,
    values: Overrides,
    sizes: Sequence[Overrides],
    seeds: Sequence[int],
) -> StudyArm:
    where = table.where("arms")
    keys: dict[str, Any] = dict(values)
    name = keys.pop("name", None)
    lrs = keys.pop("lrs", None)
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: every arm has a name, as in name = 'muP'")

    lr = keys.pop("lr", usual_lr({**table.base, **keys}))
    enough = isinstance(lrs, list) and len(lrs) >= MIN_LRS
    if not enough or not all(isinstance(x, (int, float)) and x > 0 for x in lrs):
        raise UserError(
            f"{where}, {name}: lrs={lrs!r}: give at least {MIN_LRS} learning rates, as "
            "in lrs = [1e-3, 2e-3, 4e-3, 8e-3, 16e-3]"
        )
    return StudyArm(name, lr, keys, sorted(map(float, lrs)), sizes, seeds)


def finer(study: Study, arms: Sequence[StudyArm]) -> list[Overrides]:
    """The rows around every size's optimum so far."""
    frame = study.frame()
    rows: list[Overrides] = []
    for arm in arms:
        for size in arm.sizes:
            losses = arm.mean_losses(frame, size)
            if any(math.isfinite(loss) for loss in losses.values()):
                rows += arm.finer_rows(size, losses)
    return rows


def same_lr(lr: float, known: Iterable[float]) -> float:
    """The known LR that is `lr` but for rounding, else `lr` to five digits, to name its run."""
    close = [other for other in known if abs(other / lr - 1) < 0.01]
    return close[0] if close else float(f"{lr:.5g}")


def conclude(study: Study, frame: DataFrame) -> Answer:
    """Whether the LR transfers under each arm, kept in transfer.json."""
    if not (frame["state"] == COMPLETE).any():
        return best(study, frame)
    try:
        verdicts = study_verdicts(study)
    except UserError as error:
        return Answer([f"no verdict: {error}"], verdict=UNSURE)

    record = joint_record(verdicts)
    lines, warnings = [], []
    for name, verdict in verdicts.items():
        drift = verdict.drift.says("drift")
        regret = verdict.max_regret.says("max_regret")
        lines += [f"{name}: {verdict.verdict}: {drift}; {regret}", f"  {verdict.reason}"]
        warnings += [f"{name}: {warning}" for warning in verdict.warnings]
    return Answer(
        lines,
        verdicts,
        warnings=warnings,
        tables=[("The best learning rate of every size.", optima_table(verdicts))],
        commands={"The verdict": f"transfer --size={study.asked.extras['size']}"},
        verdict=joint_verdict(verdicts),
        numbers=record,
        files={"transfer.json": record},
    )


def optima_table(verdicts: Mapping[str, TransferVerdict]) -> DataFrame:
    """Every arm's optima, and what the base's best LR loses at each size."""
    from pandas import DataFrame

    rows = []
    for name, verdict in verdicts.items():
        for size in verdict.sizes:
            row = {
                "arm": name,
                verdict.size: size.size,
                f"best {verdict.lr}": spelled(size.optimum_lr, size.ci95, ".3g"),
                "loss there": spelled(size.min_loss, (), ".4f"),
                f"lost by the LR of {verdict.base:g}": spelled(
                    size.regret, size.regret_ci95, ".4f"
                ),
            }
            rows.append(row)
    return DataFrame(rows)


def spelled(value: float, ends: Sequence[float], form: str) -> str | None:
    """`0.0201 [0.008, 0.032]`; None where it is not known."""
    if not math.isfinite(value):
        return None
    if len(ends) < 2 or not all(map(math.isfinite, ends)):
        return format(value, form)
    return f"{value:{form}} [{ends[0]:{form}}, {ends[1]:{form}}]"


def figures(study: Study, frame: DataFrame, answer: Answer) -> list[Picture]:
    """Loss against learning rate, a curve per size."""
    from nanoscale.report import transfer_figure

    if not answer.result:
        return []
    caption = (
        "Final validation loss against the learning rate, a curve per size; the broken line is "
        "the smallest size's best."
    )
    return [Picture("transfer", caption, transfer_figure(answer.result))]


RECIPE = Recipe(
    tables=("size", "seeds", "sizes", "arms"),
    rows=rows,
    conclude=conclude,
    figures=figures,
)
