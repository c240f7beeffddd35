"""Which setting of a grid has the lowest loss, how surely, and what could be as good.

A setting is judged by its mean over seeds, never by its luckiest run, and not at all by what is
left of it where a run diverged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nanoscale.checks.best_setting import may_be_best, mean_interval
from nanoscale.checks.drift import UNKNOWN
from nanoscale.checks.paired import Losses
from nanoscale.checks.seed_shifts import Interval
from nanoscale.errors import UserError, counted
from nanoscale.experiments.records import describe
from nanoscale.experiments.replicates import SEED_KEYS, SettingRuns, candidates, replicates_of
from nanoscale.experiments.results import Study
from nanoscale.experiments.tables import column, number_at
from nanoscale.spec.sources import FIELDS
from nanoscale.spec.values import Json, Overrides
from nanoscale.store.files import plain
from nanoscale.studies.table_faults import check_loss
from nanoscale.studies.transfer_table import runs_of

if TYPE_CHECKING:
    from pandas import DataFrame

_BEST, _TIED, _WORSE = "best", "tied", "worse"
_DIVERGES, _FEW, _NOTHING = "diverges", "too few seeds", "no result"
_MOST_TOLD = 4  # settings in a line; the table has all


@dataclass(frozen=True)
class RankedSetting:
    """One setting: its mean loss over seeds, and whether it can be the best."""

    values: Overrides
    standing: str  # best, tied with it, worse; or diverges, too few seeds, no result
    mean: float  # NaN where a run diverged: the others' says nothing
    ci95: Interval  # NaN of one seed
    losses: Losses
    diverged: int  # of its runs
    runs: int

    @property
    def name(self) -> str:
        return describe(self.values) or "the setting"

    @property
    def seeds(self) -> str:
        """`3 seeds`, or `2 of 3 seeds` where some have no loss."""
        known = len(self.losses)
        return counted(known, "seed") if known == self.runs else f"{known} of {self.runs} seeds"


@dataclass(frozen=True)
class Ranking:
    """The settings of a grid: the best, what is tied with it, the rest in the order of means."""

    loss: str
    settings: Sequence[RankedSetting]
    warnings: Sequence[str]  # where the best or a tied one stands at an edge of the grid

    @property
    def best(self) -> RankedSetting | None:
        """None where every setting diverged or has no loss."""
        first = [setting for setting in self.settings if setting.standing == _BEST]
        return first[0] if first else None

    @property
    def tied(self) -> list[RankedSetting]:
        """The settings that are not told apart from the best at 5 %."""
        return [setting for setting in self.settings if setting.standing == _TIED]

    @property
    def replicated(self) -> bool:
        """Whether the best has seeds enough for an interval."""
        return self.best is not None and len(self.best.losses) > 1

    def summary(self) -> list[str]:
        """The lines a user sees."""
        return [*self._best_lines(), *self._other_lines()]

    def _best_lines(self) -> Iterator[str]:
        best = self.best
        if best is None:
            known = any(setting.losses for setting in self.settings)
            yield (
                "no setting without a diverged run" if known else "no run has finished with a loss"
            )
            return
        where = f" at {describe(best.values)}" if best.values else ""
        if not self.replicated:
            unsure = ": one seed, so no interval, and what is tied with it is not known"
            yield f"lowest {self.loss} {best.mean:.4f}{where}{unsure}"
            return
        low, high = best.ci95
        mean = f"{best.mean:.4f} [{low:.4f}, {high:.4f}]"
        yield f"lowest mean {self.loss} {mean} ({best.seeds}){where}"
        if self.tied:
            yield f"tied with it, not told apart at 5 %: {_told(self.tied)}"
        elif len(self.settings) > 1:
            yield "no other setting is tied with it at 5 %"

    def _other_lines(self) -> Iterator[str]:
        ruled_out = []
        for setting in self.settings:
            if setting.standing == _DIVERGES:
                seeds = counted(setting.runs, "seed")
                ruled_out.append(f"{setting.name} (in {setting.diverged} of {seeds})")
        if ruled_out:
            yield f"diverges, so never the best: {_some(ruled_out)}"
        best = self.best
        if best is not None and self.replicated:
            few = [setting for setting in self.settings if setting.standing == _FEW]
            lower = [setting for setting in few if setting.mean < best.mean]
            if lower:
                yield f"lower, but of too few seeds to be judged: {_told(lower)}"

    def frame(self) -> DataFrame:
        """A row per setting: its values, mean and interval, seeds, standing."""
        import pandas as pd

        rows = []
        for setting in self.settings:
            rows.append(
                {
                    **setting.values,
                    f"mean {self.loss}": setting.mean,
                    "95 % from": setting.ci95[0],
                    "to": setting.ci95[1],
                    "seeds": len(setting.losses),
                    "diverged": setting.diverged,
                    "standing": setting.standing,
                }
            )
        return pd.DataFrame(rows)

    def to_json(self) -> dict[str, Json]:
        record: dict[str, Json] = plain({**asdict(self), "summary": self.summary()})
        return record


def rank(
    table: DataFrame | Study | str | Path,
    *,
    keys: Sequence[str] | str | None = None,
    loss: str = "val_loss",
    output_root: str | Path = "experiments_out",
) -> Ranking:
    """The settings of a grid by their mean losses over seeds, and which are tied with the best.

    The method is `checks.best_setting`'s: screening to the best at 5 % in all.

    Args:
        table: one row per run: a DataFrame, a study, or what `read_table` reads.
        keys: the columns whose values make a setting; by default those that are keys of a config.
        loss: the column of what is lowest where it is best.
        output_root: where a study is looked for by its name.

    Raises:
        UserError: there is no such column or no row, a key is the loss, or a loss is no number.

    Example:
        >>> import nanoscale as ns
        >>> import pandas
        >>> losses = {1e-3: (3.1, 3.2, 3.3), 2e-3: (3.0, 3.2, 3.5), 8e-3: (9.1, 9.2, 9.2)}
        >>> runs = []
        >>> for lr in losses:
        ...     for seed, loss in enumerate(losses[lr]):
        ...         runs.append({"learning_rate": lr, "seed": seed, "val_loss": loss})
        >>> ranking = ns.rank(pandas.DataFrame(runs))
        >>> [(s.values["learning_rate"], s.standing) for s in ranking.settings]
        [(0.001, 'best'), (0.002, 'tied'), (0.008, 'worse')]
    """
    frame = runs_of(table, output_root)
    if frame.empty:
        raise UserError("the table has no rows: there are no runs to rank")
    if isinstance(keys, str):
        keys = [keys]
    if keys is None:
        keys = [str(key) for key in frame.columns if key in FIELDS]
        if not keys:
            raise UserError(
                "which columns make a setting? none is a key of a config; say it, as in keys=['lr']"
            )
    column("loss", loss, frame, "")
    check_loss(loss, "loss")
    if not {*SEED_KEYS}.isdisjoint(frame) and (copies := frame.astype(str).duplicated()).any():
        raise UserError(
            f"row {copies.argmax() + 1} repeats another, its seed too: keep one of them"
        )
    for key in keys:
        column("keys", key, frame, "")
        if key == loss:
            raise UserError(f"keys={key}: it is the loss; name what makes a setting")
    rows = frame.to_dict("records")
    for number, row in enumerate(rows):
        row[loss] = None if row[loss] is None else number_at(number, loss, row[loss])
    keys = [key for key in keys if key not in SEED_KEYS]
    return ranking_of(replicates_of(rows, keys, loss), loss)


def study_ranking(study: Study) -> Ranking:
    """Of a study's runs, by the keys that it varies."""
    return ranking_of(replicates_of(study.rows(), study.setting_keys))


def ranking_of(settings: Sequence[SettingRuns], loss: str = "val_loss") -> Ranking:
    """Of settings and their losses."""
    judged = candidates(settings)
    stays = may_be_best([setting.losses for setting in judged])
    ranked = []
    for place, (setting, may_be) in enumerate(zip(judged, stays, strict=True)):
        standing = _TIED if may_be else _WORSE
        if len(setting.losses) < 2:
            standing = _FEW
        ranked.append(_ranked(setting, standing if place else _BEST))
    edges = _edges(settings, ranked)
    for setting in settings:
        if setting not in judged:
            standing = _FEW if setting.losses else _NOTHING
            ranked.append(_ranked(setting, _DIVERGES if setting.diverged else standing))
    return Ranking(loss, ranked, edges)


def _ranked(setting: SettingRuns, standing: str) -> RankedSetting:
    diverges = standing == _DIVERGES
    return RankedSetting(
        setting.values,
        standing,
        math.nan if diverges else setting.mean,
        UNKNOWN if diverges else mean_interval(setting.losses),
        setting.losses,
        setting.diverged,
        setting.runs,
    )


def _told(settings: Sequence[RankedSetting]) -> str:
    """`lr=0.1 (2.5012), lr=0.2 (2.5031, 1 of 3 seeds) and 7 more`."""
    words = []
    for setting in settings:
        fewer = f", {setting.seeds}" if len(setting.losses) < setting.runs else ""
        words.append(f"{setting.name} ({setting.mean:.4f}{fewer})")
    return _some(words)


def _some(words: Sequence[str]) -> str:
    more = len(words) - _MOST_TOLD
    return ", ".join(words[:_MOST_TOLD]) + (f" and {more} more" if more > 0 else "")


# -- edges of the grid ----------------------------------------------------------------------------
def _edges(settings: Sequence[SettingRuns], ranked: Sequence[RankedSetting]) -> list[str]:
    """A warning per end of a numeric key's values at which the best stands, or one tied with it."""
    contenders = [setting for setting in ranked if setting.standing in (_BEST, _TIED)]
    keys = dict.fromkeys(key for setting in settings for key in setting.values)
    warnings = []
    for key in keys:
        numbers = [_number(setting.values.get(key)) for setting in settings]
        tried = {number for number in numbers if number is not None}
        if len(tried) < 2:
            continue
        for end, word in ((min(tried), "lowest"), (max(tried), "highest")):
            there = [s for s in contenders if _number(s.values.get(key)) == end]
            if there and not is_bound(key, end):
                who = "the best" if there[0].standing == _BEST else "one tied with the best"
                has = f"{who} has the {word} {key} tried, {there[0].values[key]}"
                warnings.append(f"edge of the grid: {has}; better may lie beyond")
    return warnings


def is_bound(key: str, value: Json) -> bool:
    """Whether a config's key has no values beyond this one, as no weight decay is below 0."""
    return key in FIELDS and value in (FIELDS[key].least, FIELDS[key].most)


def _number(value: Json) -> float | None:
    """A value of a numeric axis, also one that stands as text in a file; None for another."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
