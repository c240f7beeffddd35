"""Replicates: runs of one setting, which differ in their seeds alone.

A setting is a run's values of the keys that its study varies, but for seeds. Rows of a study or of
any table are grouped here, for whoever names a best one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from nanoscale.experiments.records import describe
from nanoscale.spec.values import Json, Overrides
from nanoscale.store.folder import DIVERGED, FAILED, PRUNED, RUNNING, WAITING

SEED_KEYS = ("seed", "init_seed", "data_seed")


@dataclass
class SettingRuns:
    """The runs of one setting: how many, the losses of those that have one, by their seeds."""

    values: Overrides
    losses: dict[str, float] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)  # seed -> run folder, where known
    diverged: int = 0
    runs: int = 0

    @property
    def mean(self) -> float:
        return fmean(self.losses.values()) if self.losses else math.nan

    @property
    def spread(self) -> float:
        """From the lowest of its losses to the highest."""
        return max(self.losses.values()) - min(self.losses.values())


def seed_of(values: Overrides) -> str:
    """`3`, or all of `1/1/2` where weights and data have seeds of their own; "" without any."""
    seeds = []
    for key in SEED_KEYS:
        seed = values.get(key)
        if isinstance(seed, float) and seed.is_integer():
            seed = int(seed)  # of a column in which some rows have none
        if seed is not None:
            seeds.append(str(seed))
    return "/".join(seeds) if len({*seeds}) > 1 else "".join(seeds[:1])


def final_loss(value: Any, state: Json) -> float:
    """A run's loss: inf where it diverged, NaN where it has no result."""
    if state == DIVERGED:
        return math.inf
    if value is None or state in (PRUNED, FAILED, RUNNING, WAITING):
        return math.nan
    loss = float(value)
    return loss if math.isfinite(loss) else math.inf


def replicates_of(
    rows: Iterable[Mapping[Any, Any]], keys: Sequence[str], loss: str = "val_loss"
) -> list[SettingRuns]:
    """The rows by their settings of `keys`, in their order.

    A row without a seed, or with that of a row before it, is a replicate of its own, which is
    paired with none.
    """
    settings: dict[str, SettingRuns] = {}
    for number, row in enumerate(rows, start=1):
        values = {key: row[key] for key in keys if row.get(key) is not None}
        setting = settings.setdefault(describe(values), SettingRuns(values))
        setting.runs += 1
        value = final_loss(row.get(loss), row.get("state"))
        if value == math.inf:
            setting.diverged += 1
        elif not math.isnan(value):
            seed = seed_of(row)
            if not seed or seed in setting.losses:
                seed = f"row {number}"
            setting.losses[seed] = value
            setting.folders[seed] = str(row.get("folder") or "")
    return list(settings.values())


def candidates(settings: Iterable[SettingRuns]) -> list[SettingRuns]:
    """The settings that can be the best one, by their means: a run that diverged rules its setting
    out, and so does having half as many seeds as another or fewer, which noise favours.
    """
    sound = [setting for setting in settings if setting.losses and not setting.diverged]
    most = max((len(setting.losses) for setting in sound), default=0)
    judged = [setting for setting in sound if 2 * len(setting.losses) > most]
    return sorted(judged, key=lambda setting: setting.mean)


def best_of(settings: Sequence[SettingRuns]) -> SettingRuns | None:
    """The first of the `candidates`; or one of fewer seeds that leads by more than seeds differ
    anywhere, as the largest size of a ladder does.
    """
    judged = candidates(settings)
    if not judged:
        return None
    lowest = min(min(setting.losses.values()) for setting in judged)
    spread = max(setting.spread for setting in settings if setting.losses)
    leading = [s for s in settings if s.losses and not s.diverged and s.mean < lowest - spread]
    return min(leading or judged, key=lambda setting: setting.mean)
