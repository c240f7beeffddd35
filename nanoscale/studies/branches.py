"""One model at several lengths: a trunk at a constant LR, and cooldowns that branch off it.

The one idea: under WSD a run's past does not depend on its length, so the longest run keeps a
checkpoint where each shorter one begins to cool down, and that one costs its cooldown alone. A
branch is the run that it would be in one go, bit for bit (Hu et al. 2024; Haegele et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

from nanoscale.errors import UserError
from nanoscale.experiments.results import RUNS
from nanoscale.spec.schedule import cooldown_start
from nanoscale.spec.values import Json, Overrides
from nanoscale.store.folder import checkpoint_file
from nanoscale.studies.recipe import FileTable
from nanoscale.studies.row_runs import cell_of, folder_of_row, loss_of_row

if TYPE_CHECKING:
    from nanoscale.experiments import Study

PER_PARAM = "tokens_per_param"


def read_ratios(table: FileTable, size: dict[str, Any]) -> list[float]:
    """Take the lengths of a size's branches, in tokens per parameter, out of its table."""
    ratios = size.pop("branches", [])
    where = table.where("sizes")
    if not isinstance(ratios, list) or not all(is_positive(ratio) for ratio in ratios):
        raise UserError(
            f"{where}: branches={ratios!r}: expected tokens per parameter, as in [5, 10, 40]"
        )
    if ratios and size.get("lr_schedule", table.base.get("lr_schedule")) != "wsd":
        raise UserError(f"{where}: branches share a trunk: give [base] lr_schedule = 'wsd'")
    return sorted({*map(float, ratios)} - {ladder_ratio(table)})


def is_positive(value: object) -> TypeGuard[float]:
    """Whether it is a number above 0, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def ladder_ratio(table: FileTable) -> float:
    """Tokens per parameter that all sizes share; `UserError` for none."""
    ratio = table.base.get(PER_PARAM)
    if not is_positive(ratio):
        raise table.no_ratio()
    return float(ratio)


@dataclass(frozen=True)
class Branches:
    """One size, one seed, at the ladder's length and at others."""

    row: Overrides  # of the run at the ladder's length
    ratio: float  # its tokens per parameter
    others: Sequence[float]

    def rows(self, study: Study) -> list[Overrides]:
        """The trunk; once that has run the shorter ones, but for the ladder's own."""
        longest = max(self.ratio, *self.others)
        trunk = self.at(study, longest)
        shorter = sorted({self.ratio, *self.others} - {longest})
        steps = [cooldown_start(cell_of(study, self.at(study, r)).spec.config) for r in shorter]
        rows: list[Overrides] = [trunk | {"checkpoint_steps": steps}]
        if loss_of_row(study, trunk) is not None:
            rows += [self.branch(study, ratio) for ratio in shorter if ratio != self.ratio]
        return rows

    def foreseen(self, study: Study) -> list[Overrides]:
        """About those: branches as the runs in one go that they equal."""
        return [self.at(study, ratio) for ratio in self.others]

    def of_ladder(self, study: Study) -> Overrides:
        """The run at the ladder's own length: itself the trunk, or a branch."""
        return self.branch(study, self.ratio)

    def at(self, study: Study, ratio: float) -> dict[str, Json]:
        """The run of a length in one go; the ladder's warmup serves all."""
        warmup = cell_of(study, self.row).spec.config.warmup_iters
        row: dict[str, Json] = {**self.row, "warmup_frac": None, "warmup_iters": warmup}
        return row if ratio == self.ratio else row | {PER_PARAM: ratio}

    def branch(self, study: Study, ratio: float) -> Overrides:
        """The run of a length from the trunk's checkpoint; in one go where there is none."""
        row = self.at(study, ratio)
        folder = folder_of_row(study, self.at(study, max(self.ratio, *self.others)))
        step = cooldown_start(cell_of(study, row).spec.config)
        if not (folder / checkpoint_file(step)).is_file():
            return row
        path = study.output_root / RUNS / folder.path.name
        return row | {"branch_from": f"{path}@{step}"}
