"""The records of a study's `study.json`: what was asked, which runs answer it, what came of it.

What does not apply to a study is not in its file.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from nanoscale.errors import counted
from nanoscale.spec.values import Json, Overrides

_TOGETHER = {  # a key of what was asked -> the keys that are in the file if it is
    "base_config": ("base_config", "base_params"),
    "grid_params": ("grid_params",),
    "recipe": ("recipe", "question", "min_sizes"),
    "command": ("command",),
    "file": ("file",),
}


def describe(values: Overrides) -> str:
    """`n_layer=2, seed=1`, for messages and tables."""
    return ", ".join(f"{key}={value}" for key, value in values.items())


@dataclass(frozen=True)
class Asked:
    """What a study was asked; what it has of these depends on who asks."""

    base_config: Sequence[str] | None = None  # names of the config files under every run
    base_params: Overrides = field(default_factory=dict)
    grid_params: Mapping[str, Sequence[Json]] | None = None
    recipe: str = ""  # of a study file, as are the next two
    question: str = ""
    min_sizes: int = 0  # that a law needs
    command: str = ""  # which asks for it again
    file: str = ""  # the text of the study file
    extras: Mapping[str, Any] = field(default_factory=dict)  # a recipe's own keys, in JSON's types
    search: Mapping[str, Any] | None = None  # a `SearchPlan` in JSON's types

    def to_json(self) -> dict[str, Json]:
        record: dict[str, Json] = {}
        for first, keys in _TOGETHER.items():
            value = getattr(self, first)
            if value not in (None, ""):
                record |= {key: getattr(self, key) for key in keys}
        record |= self.extras
        if self.search is not None:
            record["search"] = self.search
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Asked:
        extras = dict(record)
        named = {f.name: extras.pop(f.name) for f in fields(cls) if f.name in extras}
        return cls(**named, extras=extras)


@dataclass(frozen=True)
class RunEntry:
    """One run of a study: which cell it is, and what it is for; None is not in the file."""

    id: str
    folder: str  # its name in the store of runs
    values: Overrides  # of the keys that the study varies
    flops: int  # training FLOPs, from its branch on
    left_out: bool | None = None  # beyond the budget; None: of a search
    stage: str | None = None  # of a study with several, the last that wants the run
    trial: int | None = None  # of a search, as are the rung and the values of the space's keys
    rung: int | None = None
    trial_values: Overrides | None = None
    target: bool | None = None  # trains a search's best values at the size that they are for
    state: str | None = None  # of its folder, when the record was saved

    def __str__(self) -> str:
        return describe(self.values) or self.folder

    @property
    def title(self) -> str:
        """What a user calls the run: its cell, with its stage if it has one; or its trial."""
        if self.stage is not None:
            return f"{self.stage}: {self}"
        if self.trial is None or self.trial_values is None or self.target:
            return str(self)
        at = f", rung {self.rung}" if self.rung else ""
        return f"trial {self.trial}{at}: {describe(self.trial_values)}"

    def to_json(self) -> dict[str, Json]:
        record = _given(self)
        if self.target and self.trial is not None:
            record["target"] = record.pop("target")  # became one after its trial had ended
        return record


@dataclass(frozen=True, kw_only=True)
class BestRun:
    """The best trial of a search; of a grid the setting of lowest mean loss over its seeds."""

    trial: int | None = None  # its number in a search
    values: Overrides  # without a grid's seeds
    val_loss: float  # of a grid the mean
    folder: str  # of a grid that of the setting's lowest run
    seeds: int | None = None  # of a grid, in the mean

    def to_json(self) -> dict[str, Json]:
        return _given(self)


@dataclass(frozen=True)
class TargetRuns:
    """A search's best values, trained anew at the size that they are for."""

    values: Overrides
    val_loss: Mapping[Any, float | None]  # seed -> loss, of those that ended; None: diverged
    runs: int  # that were asked for
    chose: Sequence[Any] = ()  # the seed of the trial that the values come from, if it is one

    @property
    def losses(self) -> list[float]:
        """Of seeds that did not choose the values, unless these are all."""
        known = {seed: loss for seed, loss in self.val_loss.items() if loss is not None}
        fresh = [loss for seed, loss in known.items() if seed not in self.chose]
        return fresh or list(known.values())

    def told(self, spread: str = "") -> str:
        """In a line, with the spread of the mean beside it."""
        losses = self.losses
        where = describe(self.values)
        if not losses:
            return f"target: none of {counted(self.runs, 'run')} has a loss at {where}"

        count = counted(len(losses), "seed")
        if len(losses) < self.runs:
            count = f"{len(losses)} of {counted(self.runs, 'seed')}"
        diverged = list(self.val_loss.values()).count(None)
        if diverged:
            count += f"; diverges in {diverged}"
        left_out = len(self.val_loss) - diverged - len(losses)
        if left_out:
            count += f"; seed {self.chose[0]} chose the values"
        return f"target: val_loss {statistics.fmean(losses):.4f}{spread} ({count}) at {where}"

    def __str__(self) -> str:
        losses = self.losses
        return self.told(f", sd {statistics.stdev(losses):.4f}" if len(losses) > 1 else "")


@dataclass(frozen=True)
class TrialResult:
    """A trial that has run: its values, and its loss at every rung that it reached."""

    values: Overrides
    losses: Sequence[float | None]  # infinite, in a file null: it diverged there


@dataclass(frozen=True)
class SearchOutcome:
    """What a search found: its trials in order, and each key's share in what separates them."""

    trials: Sequence[TrialResult]
    importance: Mapping[str, float] | None

    def to_json(self) -> dict[str, Json]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> SearchOutcome:
        return cls([TrialResult(**trial) for trial in record["trials"]], record["importance"])


def _given(record: RunEntry | BestRun) -> dict[str, Json]:
    return {key: value for key, value in vars(record).items() if value is not None}
