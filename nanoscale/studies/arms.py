"""Arms of a comparison: which runs an arm's text names, and what each offers at each size.

An arm is runs that are replicates but for their seeds, at one size or several, tuned or not.
Settings that differ in what one tunes (LRs, decays, schedules) are alternatives, of which the best
is taken; what else differs within an arm (sizes, lengths, batches) is a cell, paired with the same
in the other arm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanoscale.checks.paired import Choice, choose
from nanoscale.errors import UserError, did_you_mean
from nanoscale.experiments.records import Row
from nanoscale.experiments.results import STUDY, Study, state_of
from nanoscale.spec.config import all_fields, flatten
from nanoscale.store.folder import COMPLETE, CONFIG, RunFolder

SEEDS = ("seed", "init_seed", "data_seed")
TOKENS = "tokens"  # in place of max_iters, so that batch sizes meet at equal data
FIRST = ("n_embd", "n_layer", TOKENS, "batch_size", "learning_rate", "muon_lr")
TUNED = {name for name, key in all_fields().items() if key.tuned}
KEYS = sorted(
    {TOKENS}
    | {  # what makes runs replicates: the identity but for seeds and evaluation
        name
        for name, key in all_fields().items()
        if key.hashed and name not in SEEDS and name != "max_iters" and key.group != "evaluation"
    },
    key=lambda key: (FIRST.index(key) if key in FIRST else len(FIRST), key),
)
Setting = tuple[Any, ...]


# -- runs ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Run:
    """One run of an arm; `values` name its setting and hold no seed, `loss` is NaN without one."""

    folder: RunFolder
    values: Mapping[str, Any]
    seed: str
    state: str
    loss: float = math.nan
    flops: float = math.nan
    data: str = ""
    numerics: Mapping[str, Any] | None = None

    def setting(self, keys: Iterable[str]) -> Setting:
        return tuple(self.values.get(key) for key in keys)


@dataclass(frozen=True)
class Arm:
    which: str  # A or B
    name: str  # as it was typed
    runs: Sequence[Run]  # with a loss
    lost: Sequence[Run]  # diverged, failed, not there yet


def read_arm(which: str, text: str, output_root: Path, loss: str) -> Arm:
    """The runs that an arm's text names.

    Raises:
        UserError: there is no such folder, study or value, or no run has the loss.
    """
    name, _, tail = text.partition(":")
    filters = _filters(text, tail) if "=" in tail else {}
    names = [name] if filters else [part for part in text.split(",") if part]
    if not filters and (len(names) > 1 or (Path(text) / CONFIG).is_file()):
        folders: list[tuple[Row, RunFolder]] = [({}, RunFolder(part)) for part in names]
        missing = next((f for _, f in folders if not f.exists()), None)
        if missing:
            raise UserError(
                f"{missing.path}: no run folder (it has no {CONFIG}); an arm is run "
                "folders, a study, or STUDY:key=value"
            )
    else:
        path = Path(name)
        study = Study.open(path if (path / STUDY).is_file() else output_root / path)
        folders = [(entry.values, folder) for entry, folder in study.runs()]
    all_runs = [
        (full, _run(full, folder, loss))
        for values, folder in folders
        for full in [_config(values, folder)]
    ]
    runs = [run for full, run in all_runs if _has(full, filters)]
    if not runs:
        raise UserError(f"{text}: {_no_match(filters, [full for full, _ in all_runs])}")
    done = [run for run in runs if math.isfinite(run.loss)]
    if not done:
        states = ", ".join(sorted({run.state for run in runs}))
        raise UserError(
            f"{text}: none of its {len(runs)} runs has a {loss} ({states}); there is "
            "nothing to compare"
        )
    return Arm(which, text, done, [run for run in runs if not math.isfinite(run.loss)])


def _config(values: Mapping[str, Any], folder: RunFolder) -> dict[str, Any]:
    """Dotted key -> value of a run; only those its study varies while it has no folder."""
    if not folder.exists():
        return dict(values)
    spec = folder.spec()
    return {
        **flatten(spec.config),
        TOKENS: spec.config.max_iters * spec.config.tokens_per_iter,
        "data": spec.data_fingerprint,
    }


def _run(full: Mapping[str, Any], folder: RunFolder, loss: str) -> Run:
    state, seeds = state_of(folder), [full.get(key) for key in SEEDS]
    metrics = (folder.metrics() if state == COMPLETE else None) or {}
    seed = str(seeds[0]) if len({*seeds} - {None}) < 2 else "/".join(map(str, seeds))
    values = {key: full[key] for key in KEYS if key in full}
    number = {
        key: math.nan if metrics.get(key) is None else float(metrics[key])
        for key in (loss, "flops")
    }
    return Run(
        folder,
        values,
        seed,
        state,
        number[loss],
        number["flops"],
        full.get("data", ""),
        metrics.get("numerics"),
    )


def _filters(text: str, tail: str) -> dict[str, list[str]]:
    """key -> the values it may have; a key given twice may have either."""
    filters: dict[str, list[str]] = {}
    for part in tail.split(","):
        key, equals, value = part.partition("=")
        if not equals or key not in all_fields():
            hint = did_you_mean(key, all_fields()) or "; write STUDY:key=value,key=value"
            raise UserError(f"{text}: {part!r} names no config key{hint}")
        filters.setdefault(key, []).append(value)
    return filters


def _has(full: Mapping[str, Any], filters: Mapping[str, Sequence[str]]) -> bool:
    return all(
        key not in full or any(_same(full[key], text) for text in texts)
        for key, texts in filters.items()
    )


def _same(value: Any, text: str) -> bool:
    if str(value).lower() == text.lower():
        return True
    try:
        return math.isclose(float(value), float(text), rel_tol=1e-6)
    except (TypeError, ValueError):
        return False


def _no_match(filters: Mapping[str, Sequence[str]], configs: Sequence[Mapping[str, Any]]) -> str:
    for key, texts in filters.items():
        if not any(_has(full, {key: texts}) for full in configs):
            there = sorted(
                {full[key] for full in configs if key in full},
                key=lambda v: (str(type(v)), v if v is not None else 0),
            )
            return f"no run has {key}={' or '.join(texts)}; there are {', '.join(map(str, there))}"
    return "no run has all of these values" if filters else "the study has no runs"


# -- cells: what is the same in both arms -------------------------------------------------------
def naming(groups: Sequence[Sequence[Run]], keys: Iterable[str]) -> list[str]:
    """The keys that vary within a group of runs, but for those that another of them settles."""
    found: list[str] = []
    for key in keys:
        if not any(len({run.values.get(key) for run in runs}) > 1 for runs in groups):
            continue
        settled = any(
            all(
                len({run.setting((k, key)) for run in runs})
                == len({run.values.get(k) for run in runs})
                for runs in groups
            )
            for k in found
        )
        found += [] if settled else [key]
    return found


def by(runs: Iterable[Run], keys: Sequence[str]) -> dict[Setting, list[Run]]:
    """The runs by their values of `keys`."""
    table: dict[Setting, list[Run]] = {}
    for run in runs:
        table.setdefault(run.setting(keys), []).append(run)
    return dict(
        sorted(
            table.items(),
            key=lambda item: [(str(type(v)), v if v is not None else 0) for v in item[0]],
        )
    )


@dataclass(frozen=True)
class Cell:
    """What an arm has to offer at one size: the chosen setting's runs, and the choice."""

    runs: Mapping[str, Run]  # seed -> run
    setting: Mapping[str, Any]  # of what was tuned
    lost: Sequence[Run]  # of that setting
    choice: Choice
    edges: Sequence[str]  # tuned keys whose best value is their lowest or highest

    @property
    def flops(self) -> float:
        return next(iter(self.runs.values())).flops


def cells_of(arm: Arm, keys: Sequence[str]) -> dict[Setting, Cell]:
    """Per value of `keys`: the arm's setting of lowest mean loss there."""
    table = by(arm.runs, keys)
    tuned = naming(list(table.values()), [key for key in KEYS if key in TUNED])
    cells = {}
    for cell, runs in table.items():
        settings: dict[Setting, dict[str, Run]] = {}
        for run in runs:
            own = settings.setdefault(run.setting(tuned), {})
            if run.seed in own:
                raise UserError(
                    f"{arm.name}: seed {run.seed} is there twice, "
                    f"{own[run.seed].folder.path.name} and {run.folder.path.name}, "
                    "and nothing that matters tells them apart; name one of them"
                )
            own[run.seed] = run
        choice = choose(
            {s: {seed: run.loss for seed, run in own.items()} for s, own in settings.items()}
        )
        values = {
            key: sorted(v)
            for key, v in zip(tuned, map(set, zip(*settings, strict=True)), strict=True)
            if None not in v
        }
        best = dict(zip(tuned, choice.setting, strict=True))
        edges = [key for key, v in values.items() if len(v) > 1 and best[key] in (v[0], v[-1])]
        lost = [
            run
            for run in arm.lost
            if run.setting(keys) == cell and run.setting(tuned) == choice.setting
        ]
        cells[cell] = Cell(settings[choice.setting], best, lost, choice, edges)
    return cells


def said(setting: Mapping[str, Any]) -> str:
    """`n_embd 64, learning_rate 0.002`, for people."""
    return ", ".join(
        f"{key} {value:,}"
        if key == TOKENS
        else f"{key} {value:g}"
        if isinstance(value, float)
        else f"{key} {value}"
        for key, value in setting.items()
    )
