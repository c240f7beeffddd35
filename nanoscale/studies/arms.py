"""Arms of a comparison: which runs an arm's text names, and what each offers at each size.

An arm is runs that are replicates but for their seeds, at one size or several, tuned or not.
Settings that differ in what one tunes (LRs, decays, schedules) are alternatives, of which the best
is taken; what else differs within an arm (sizes, lengths, batches) is a cell, paired with the same
in the other arm.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nanoscale.checks.comparison import TOKENS
from nanoscale.checks.paired import ChosenSetting, Losses, Setting, choose, shared_seeds
from nanoscale.errors import UserError, did_you_mean
from nanoscale.experiments.replicates import SEED_KEYS, seed_of
from nanoscale.experiments.results import Study, state_of, study_folder
from nanoscale.spec.config import all_fields, flatten
from nanoscale.spec.values import Json, Overrides
from nanoscale.store.folder import COMPLETE, CONFIG, RunFolder

FIRST_KEYS = ("n_embd", "n_layer", TOKENS, "batch_size", "learning_rate", "muon_lr")
_FIELDS = all_fields()


def _replicate_keys() -> list[str]:
    """What makes runs replicates: the identity but for seeds and evaluation, sizes first."""
    keys = [*FIRST_KEYS]
    others = (*SEED_KEYS, *FIRST_KEYS, "max_iters")
    for key, option in sorted(_FIELDS.items()):
        if option.hashed and option.group != "evaluation" and key not in others:
            keys.append(key)
    return keys


KEYS = _replicate_keys()
TUNED = [key for key in KEYS if key != TOKENS and _FIELDS[key].tuned]
NOT_TUNED = [key for key in KEYS if key not in TUNED]


# -- runs ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ArmRun:
    """One run of an arm; `values` name its setting and hold no seed, `loss` is NaN without one."""

    folder: RunFolder
    values: Overrides
    seed: str
    state: str
    loss: float
    flops: float
    data: str  # its fingerprint
    numerics: Overrides

    @property
    def name(self) -> str:
        return self.folder.path.name

    @property
    def tokens(self) -> int:
        tokens = self.values[TOKENS]
        assert isinstance(tokens, int)
        return tokens

    def setting(self, keys: Iterable[str]) -> Setting:
        return tuple(map(self.values.get, keys))


@dataclass(frozen=True)
class Arm:
    """The runs of one side of a comparison."""

    name: str  # as it was typed
    runs: Sequence[ArmRun]  # with a loss
    lost: Sequence[ArmRun]  # diverged, failed, not there yet


def read_arm(text: str, output_root: str | Path, loss: str) -> Arm:
    """The runs that an arm's text names: `RUN,RUN..`, `STUDY` or `STUDY:key=value,key=value`.

    Raises:
        UserError: there is no such folder, study or value, or no run has the loss.
    """
    tail = _parts(text)[1]
    filters: Filters = {}
    if "=" in tail:
        filters = _filters(text, tail)
    configs = []
    runs = []
    folders = _folders(text, bool(filters), Path(output_root))
    for values, folder in folders:
        config = _config(values, folder)
        configs.append(config)
        if _has(config, filters):
            runs.append(_run(config, folder, loss))
    if not runs:
        raise UserError(f"{text}: {_no_match(filters, configs)}")
    done = [run for run in runs if math.isfinite(run.loss)]
    lost = [run for run in runs if not math.isfinite(run.loss)]
    if not done:
        states = {run.state for run in runs}
        ends = ", ".join(sorted(states))
        raise UserError(
            f"{text}: none of its {len(runs)} runs has a {loss} ({ends}); there is "
            "nothing to compare"
        )
    return Arm(text, done, lost)


def _parts(text: str) -> tuple[str, str]:
    """A study and what is asked of its runs; the `:` of a drive divides nothing."""
    drive, rest = os.path.splitdrive(text)
    name, _, tail = rest.partition(":")
    return drive + name, tail


def _folders(text: str, filtered: bool, output_root: Path) -> Iterable[tuple[Overrides, RunFolder]]:
    """Each run's folder, and what its study varies (nothing of a run named by itself)."""
    names = [part for part in text.split(",") if part]
    if filtered or (len(names) < 2 and not (Path(text) / CONFIG).is_file()):
        study = Study.open(study_folder(_parts(text)[0], output_root))
        return [(entry.values, folder) for entry, folder in study.runs()]
    folders: list[tuple[Overrides, RunFolder]] = []
    for name in names:
        folder = RunFolder(name)
        if not folder.exists():
            raise UserError(
                f"{folder.path}: no run folder (it has no {CONFIG}); an arm is run "
                "folders, a study, or STUDY:key=value"
            )
        folder.spec()  # one named by itself can be read, or is refused
        folders.append(({}, folder))
    return folders


def _config(values: Overrides, folder: RunFolder) -> Overrides:
    """Dotted key -> value of a run; only those its study varies while its config is not there."""
    if folder.record(CONFIG) is None:
        return values
    spec = folder.spec()
    return {
        **flatten(spec.config),
        TOKENS: spec.config.max_iters * spec.config.tokens_per_iter,
        "data": f"{spec.tokens_fingerprint} {spec.measured}",
    }


def _run(config: Overrides, folder: RunFolder, loss: str) -> ArmRun:
    state = state_of(folder)
    metrics = (folder.metrics() if state == COMPLETE else None) or {}
    return ArmRun(
        folder,
        {key: config[key] for key in KEYS if key in config},
        seed_of(config),
        state,
        _number(metrics.get(loss)),
        _number(metrics.get("flops")),
        str(config.get("data", "")),
        metrics.get("numerics") or {},
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


# -- what a text asks for -----------------------------------------------------------------------
Filters = Mapping[str, Sequence[str]]  # key -> the values it may have


def _filters(text: str, tail: str) -> Filters:
    """A key given twice may have either value."""
    filters: dict[str, list[str]] = {}
    for part in tail.split(","):
        key, equals, value = part.partition("=")
        if not equals or key not in _FIELDS:
            hint = did_you_mean(key, _FIELDS) or "; write STUDY:key=value,key=value"
            raise UserError(f"{text}: {part!r} names no config key{hint}")
        filters.setdefault(key, []).append(value)
    return filters


def _has(config: Overrides, filters: Filters) -> bool:
    """What is not known of a run, as it has no folder yet, does not rule it out."""
    for key, texts in filters.items():
        if key not in config:
            continue
        if not any(_same(config[key], text) for text in texts):
            return False
    return True


def _same(value: Json, text: str) -> bool:
    if str(value).lower() == text.lower():
        return True
    try:
        return math.isclose(float(str(value)), float(text), rel_tol=1e-6)
    except ValueError:
        return False


def _no_match(filters: Filters, configs: Sequence[Overrides]) -> str:
    for key, texts in filters.items():
        values = {config[key] for config in configs if key in config}
        if not any(_has(config, {key: texts}) for config in configs):
            wanted = " or ".join(texts)
            there = ", ".join(map(str, sorted(values, key=_order)))
            return f"no run has {key}={wanted}; there are {there}"
    return "no run has all of these values" if filters else "the study has no runs"


def _order(value: Json) -> tuple[str, object]:
    """Values of one type by size, whatever stands beside them."""
    return str(type(value)), 0 if value is None else value


# -- cells: what is the same in both arms -------------------------------------------------------
def naming(groups: Sequence[Sequence[ArmRun]], keys: Iterable[str]) -> list[str]:
    """The keys that vary within a group of runs, but for those that another of them settles."""
    names: list[str] = []
    for key in keys:
        varies = any(_distinct(runs, key) > 1 for runs in groups)
        if varies and not any(_settles(name, key, groups) for name in names):
            names.append(key)
    return names


def _settles(name: str, key: str, groups: Sequence[Sequence[ArmRun]]) -> bool:
    return all(_distinct(runs, name, key) == _distinct(runs, name) for runs in groups)


def _distinct(runs: Sequence[ArmRun], *keys: str) -> int:
    return len({run.setting(keys) for run in runs})


def grouped(runs: Iterable[ArmRun], keys: Iterable[str]) -> dict[Setting, list[ArmRun]]:
    """The runs by their values of `keys`, in their order."""
    table = defaultdict(list)
    for run in runs:
        setting = run.setting(keys)
        table[setting].append(run)
    return table


@dataclass(frozen=True)
class ArmCell:
    """What an arm has to offer at one size: the chosen setting's runs, and the choice."""

    size: Overrides
    runs: Mapping[str, ArmRun]  # seed -> run
    setting: Overrides  # of what was tuned
    lost: Sequence[ArmRun]  # of that setting
    choice: ChosenSetting
    edges: Sequence[str]  # tuned keys whose best value is their lowest or highest
    counted: Mapping[str, ArmRun]  # of `runs`, once they are held against the other arm's

    @property
    def first(self) -> ArmRun:
        return next(iter(self.runs.values()))

    @property
    def losses(self) -> Losses:
        """Of the counted seeds, each at the setting that the others choose."""
        return {seed: self.choice.held_out[seed] for seed in self.counted}

    def against(self, other: ArmCell | None) -> ArmCell:
        """With its runs counted; where seeds are paired, without those that have no pair."""
        if other is None:
            return self
        counted = self.runs
        pair = (self.choice.losses, other.choice.losses)
        if shared_seeds([pair]):
            counted = {seed: run for seed, run in self.runs.items() if seed in other.runs}
        return replace(self, counted=counted)


def cells_of(arm: Arm, keys: Sequence[str]) -> dict[Setting, ArmCell]:
    """Per value of `keys`: the arm's setting of lowest mean loss there."""
    table = grouped(arm.runs, keys)
    tuned = naming(list(table.values()), TUNED)
    lost = grouped(arm.lost, [*keys, *tuned])
    cells = {}
    sizes = sorted(table, key=lambda size: list(map(_order, size)))
    for size in sizes:
        settings = grouped(table[size], tuned)
        runs = {setting: _by_seed(arm.name, settings[setting]) for setting in settings}
        losses = {setting: losses_of(runs[setting]) for setting in runs}
        choice = choose(losses)
        best = choice.setting
        edges = []
        columns = zip(*settings, strict=True)
        for key, value, tried in zip(tuned, best, columns, strict=True):
            if _at_an_end(value, set(tried)):
                edges.append(key)
        cells[size] = ArmCell(
            dict(zip(keys, size, strict=True)),
            runs[best],
            dict(zip(tuned, best, strict=True)),
            lost.get((*size, *best), []),
            choice,
            edges,
            {},
        )
    return cells


def losses_of(runs: Mapping[str, ArmRun]) -> Losses:
    return {seed: run.loss for seed, run in runs.items()}


def _by_seed(name: str, runs: Iterable[ArmRun]) -> dict[str, ArmRun]:
    by_seed: dict[str, ArmRun] = {}
    for run in runs:
        twin = by_seed.setdefault(run.seed, run)
        if twin is not run:
            raise UserError(
                f"{name}: seed {run.seed} is there twice, {twin.name} and {run.name}, "
                "and nothing that matters tells them apart; name one of them"
            )
    return by_seed


def _at_an_end(best: Json, values: set[Json]) -> bool:
    """Whether the best of several values is their lowest or highest; None has no order."""
    if None in values or len(values) < 2:
        return False
    ordered = sorted(values, key=_order)
    return best in (ordered[0], ordered[-1])
