"""A search as Optuna's dashboard shows it: a journal made anew from the study and its run folders.

The runs are the truth: nothing reads it back.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoscale.experiments.records import RunEntry
from nanoscale.experiments.results import Study, metrics_of, state_of
from nanoscale.experiments.samplers import distributions_of, quiet
from nanoscale.experiments.space import read_space
from nanoscale.store.files import atomic_write
from nanoscale.store.folder import COMPLETE, FAILED, FINISHED, RUNNING, RunFolder

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

JOURNAL = "optuna.journal"


@dataclass(frozen=True)
class RungRun:
    """A run of a trial at one rung."""

    entry: RunEntry
    folder: RunFolder

    @property
    def state(self) -> str:
        return state_of(self.folder)

    @property
    def loss(self) -> float | None:
        return metrics_of(self.folder).get("val_loss")

    @property
    def updates(self) -> int:
        return self.folder.status().max_iters

    @property
    def ended(self) -> float | None:
        """Seconds since the epoch; None while it has no end."""
        if self.state in (*FINISHED, FAILED):
            return self.folder.status().updated
        return None

    @property
    def began(self) -> float:
        """Seconds since the epoch; of a run that has no result, about."""
        ended = self.ended or time.time()
        return ended - (metrics_of(self.folder).get("wall_seconds") or 0.0)


def write_journal(study: Study) -> Path | None:
    """Write the trials of a search beside its record, for `optuna-dashboard`; None: no Optuna here,
    or no search.
    """
    search = study.asked.search
    if search is None or find_spec("optuna") is None:
        return None
    distributions = distributions_of(read_space(search["space"], "space"))
    path = study.folder / JOURNAL
    with quiet(), atomic_write(path) as temporary:
        import optuna
        from optuna.storages.journal import JournalFileBackend

        storage = optuna.storages.JournalStorage(JournalFileBackend(str(temporary)))
        shown = optuna.create_study(study_name=study.name, storage=storage)
        shown.set_user_attr("folder", str(study.folder))
        shown.add_trials(frozen_trials(trials_of(study), distributions, len(search["rungs"])))
    return path


def trials_of(study: Study) -> dict[int, list[RungRun]]:
    """The runs of every trial, rung by rung, by the trial's number."""
    trials: dict[int, list[RungRun]] = {}
    for entry, folder in study.runs():
        if entry.trial is not None and folder.exists():
            trials.setdefault(entry.trial, []).append(RungRun(entry, folder))
    return trials


def frozen_trials(
    trials: Mapping[int, list[RungRun]], distributions: dict[str, BaseDistribution], rungs: int
) -> Iterable[FrozenTrial]:
    """The trials as Optuna's, under their own numbers; one that never was a run has failed."""
    from optuna.trial import FrozenTrial, TrialState

    for number in range(max(trials, default=-1) + 1):
        runs = trials.get(number, [])
        state, value = outcome_of(runs, rungs)
        ended = None if state == RUNNING else moment(runs[-1].ended if runs else None)
        values = dict(runs[0].entry.trial_values or {}) if runs else {}
        yield FrozenTrial(
            number=number,
            trial_id=number,
            state=TrialState[state],
            value=value,
            datetime_start=moment(runs[0].began if runs else time.time()),
            datetime_complete=ended,
            params=values,
            distributions=distributions if values else {},
            user_attrs=attributes(runs),
            system_attrs={},
            intermediate_values=intermediate(runs, rungs),
        )


def outcome_of(runs: list[RungRun], rungs: int) -> tuple[str, float | None]:
    """Optuna's name of the state that a trial is in, and its loss: at the last of its rungs."""
    if not runs or runs[-1].state in ("DIVERGED", FAILED):
        return "FAIL", None
    last = runs[-1]
    if last.state != COMPLETE:
        return RUNNING, None
    if len(runs) < rungs:
        return "PRUNED", None
    return COMPLETE, last.loss


def intermediate(runs: list[RungRun], rungs: int) -> dict[int, float]:
    """Losses by updates: at the end of every rung, or, where there is one alone, on its way."""
    losses: dict[int, float | None] = {run.updates: run.loss for run in runs}
    if rungs == 1 and runs:
        rows = runs[0].folder.rows()
        losses = {row["step"]: row.get("val_loss") for row in rows}
    return {step: loss for step, loss in losses.items() if loss is not None}


def attributes(runs: list[RungRun]) -> dict[str, Any]:
    """What leads from a trial to its runs."""
    if not runs:
        return {}
    last = runs[-1]
    return {
        "run": last.entry.id,
        "folder": last.entry.folder,
        "state": last.state,
        "runs": [run.entry.id for run in runs],
        "flops": sum(run.entry.flops for run in runs),
        "seconds": metrics_of(last.folder).get("wall_seconds"),
    }


def moment(seconds: float | None) -> datetime:
    """In local time, as Optuna has it."""
    return datetime.fromtimestamp(time.time() if seconds is None else seconds)
