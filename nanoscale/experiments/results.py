"""A study and what its runs left: the folder's `study.json`, and tables made from runs.

`study.json` holds what was asked and which runs answer it (see `records`); every number is read
from the run folders when it is wanted, so a table can be rebuilt at any time and never goes stale.
"""

from __future__ import annotations

import csv
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from nanoscale.errors import UserError, counted, did_you_mean, make_folder, program
from nanoscale.experiments.failures import log_tail
from nanoscale.experiments.records import Asked, BestRun, RunEntry, SearchOutcome, TargetRuns
from nanoscale.experiments.replicates import SEED_KEYS, best_of, replicates_of
from nanoscale.paths import FORBIDDEN, in_a_shell, is_device
from nanoscale.spec.values import Json
from nanoscale.store.files import atomic_write, read_json, write_json
from nanoscale.store.folder import COMPLETE, FAILED, FINISHED, LOG, METRICS, WAITING, RunFolder
from nanoscale.store.run_records import further_key

if TYPE_CHECKING:
    from pandas import DataFrame

_SCHEMA = 1
OUTPUT_ROOT = "experiments_out"  # by default
RUNS, STUDY, TABLE = "runs", "study.json", "table.csv"
STAGE_COLUMN = "stage"  # the column of a study with several
RESULTS = (
    "val_loss",
    "best_val_loss",
    "val_bits_per_byte",
    "train_loss",
    "iter_num",
    "tokens_seen",
    "flops",
    "total_params",
    "tokens_per_second",
    "mfu",
    "wall_seconds",
)
CONVENTIONS = ("non_embedding", "non_position", "matrices_and_head")  # of N, beside total_params
LOGS_SHOWN, LOG_LINES = 3, 10  # of failed runs
Standing: TypeAlias = tuple[str, dict[str, Any]]  # a run's state, and its results


def check_name(name: object) -> str:
    """`name` if it can be a study's, which is also its folder's below the output root."""
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"study name {name!r}: expected some text, as in 'depth_study'")

    bad = sorted({c for c in name if c in FORBIDDEN or not c.isprintable()})
    remedy = ""
    if bad:
        remedy = f"without {' '.join(map(repr, bad))}"
    elif name != name.strip() or name[0] in ".-" or len(name) > 100:
        remedy = "of at most 100 characters, not beginning with '.', '-' or a space"
    elif name.endswith("."):
        remedy = "that does not end in '.'"
    elif is_device(name):
        remedy = "that Windows does not take for a device"
    if remedy:
        raise UserError(f"study name {name!r}: it names a folder; choose one {remedy}")

    if name == RUNS:
        raise UserError(
            f"study name {name!r}: that folder holds the runs of all studies; choose another name"
        )
    return name


@dataclass(eq=False, repr=False)
class Study:
    """A named set of runs: its record, and views of the run folders as they are now.

    `concerns` are the warnings about what was asked; `plan` is run id -> what this call had to do
    for it (see `planning`), empty for a study that was only opened.

    >>> import nanoscale as ns
    >>> data = ns.prepare("synthetic")
    vocab size: 32...
    >>> base = {"dataset": "synthetic", "n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16}
    >>> runner = ns.ExperimentRunner()
    >>> study = runner.run_grid("lrs", base, {"learning_rate": [1e-3, 2e-3]}, dry_run=True)
    [lrs] ...
    >>> isinstance(study, ns.Study), len(study), sorted(study.states().items())
    (True, 2, [('WAITING', 2)])
    """

    name: str
    asked: Asked
    output_root: Path
    entries: list[RunEntry] = field(default_factory=list)
    concerns: list[str] = field(default_factory=list)
    plan: dict[str, str] = field(default_factory=dict)
    best_trial: BestRun | None = None  # of a search, once it has one
    outcome: SearchOutcome | None = None
    verdict: str = ""  # fail, or inconclusive: its question was refused an answer
    seen: dict[Path, Standing] | None = None  # state and results by folder, while it is `still`

    @classmethod
    def open(cls, folder: Path | str) -> Study:
        """The study in a folder.

        Raises:
            UserError: there is none, naming the nearest, or its record is broken.
        """
        folder = Path(folder)
        if folder.name in ("", ".."):  # of `.` and `..` neither name nor parent is in it
            folder = folder.resolve()
        path = folder / STUDY
        if not path.is_file():
            names = study_names(folder.parent)
            known = f"; there are: {', '.join(names)}" if names else ""
            hint = did_you_mean(folder.name, names) or known
            raise UserError(f"no study {folder.name!r} in {folder.parent}{hint}")

        record = read_json(path)
        try:
            if not isinstance(record["name"], str):
                raise TypeError("the name is no text")
            entries = [RunEntry(**entry) for entry in record["runs"]]
            asked = Asked.from_json(record.get("asked", {}))
            warnings = list(map(str, record.get("warnings", [])))
            study = cls(check_name(record["name"]), asked, folder.parent, entries, warnings)
            sound = isinstance(record.get("warnings", []), list)
            if not sound or not all(isinstance(entry.values, dict) for entry in entries):
                raise TypeError("a value of another kind")
            if "best" in record:
                study.best_trial = BestRun(**record["best"])
            if "found" in record:
                study.outcome = SearchOutcome.from_json(record["found"])
        except (AttributeError, KeyError, TypeError) as e:
            raise UserError(f"{path}: not a study's record; run the study again") from e
        return study

    def to_json(self) -> dict[str, Json]:
        """`study.json`."""
        record: dict[str, Json] = {
            "schema": _SCHEMA,
            "name": self.name,
            "asked": self.asked.to_json(),
            "warnings": self.concerns,
            "runs": [entry.to_json() for entry in self.entries],
        }
        if self.best_trial is not None:
            record["best"] = self.best_trial.to_json()
        if self.outcome is not None:
            record["found"] = self.outcome.to_json()
        return record

    @property
    def folder(self) -> Path:
        return self.output_root / self.name

    @property
    def retry_command(self) -> str:
        """What runs again what of it failed, and mends what is damaged."""
        return f"{program()} retry {shlex.quote(self.name)}{self.root_option}"

    @property
    def root_option(self) -> str:
        """Where a command finds it: nothing, if where it looks of itself."""
        root = self.output_root
        return "" if str(root) == OUTPUT_ROOT else f" --output_root={in_a_shell(root)}"

    @property
    def damage_of_best(self) -> str:
        """What is damaged of a search's best run, which is its best all the same; "" if nothing."""
        if self.best is None:
            return ""
        return RunFolder(self.output_root / RUNS / self.best.folder).damage(self.retry_command)

    def say(self, *lines: str) -> None:
        """Print lines under the study's name."""
        for line in lines:
            print(f"[{self.name}] {line}", flush=True)

    def warn(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.say(f"warning: {text}")

    def __len__(self) -> int:
        return len(self.entries)

    def runs(self) -> Iterator[tuple[RunEntry, RunFolder]]:
        """Each run's entry in the record and its folder."""
        for entry in self.entries:
            yield entry, RunFolder(self.output_root / RUNS / entry.folder)

    def states(self) -> Counter[str]:
        """State -> number of runs, now."""
        return Counter(self.standing(folder)[0] for _, folder in self.runs())

    def counts(self) -> str:
        """`3 COMPLETE, 1 FAILED`."""
        return ", ".join(f"{n} {state}" for state, n in sorted(self.states().items()))

    @property
    def failed(self) -> list[RunFolder]:
        """The folders of the runs that failed."""
        return [folder for _, folder in self.runs() if state_of(folder) == FAILED]

    @property
    def ok(self) -> bool:
        """Whether every run has its result (a diverged one has: it is one) or is left out."""
        return all(entry.left_out or state_of(folder) in FINISHED for entry, folder in self.runs())

    @property
    def best(self) -> BestRun | None:
        """The best trial of a search, or else the setting of lowest mean loss (`best_of`)."""
        return self.best_trial if self.asked.search is not None else self.best_of(self.rows())

    def best_of(self, rows: Sequence[Mapping[str, Json]]) -> BestRun | None:
        """The setting of lowest mean loss, by the study's rows."""
        best = best_of(replicates_of(rows, self.setting_keys))
        if best is None:
            return None
        lowest = min(best.losses, key=lambda seed: best.losses[seed])
        return BestRun(
            values=best.values,
            val_loss=best.mean,
            folder=Path(best.folders[lowest]).name,
            seeds=len(best.losses),
        )

    @property
    def varied(self) -> list[str]:
        """The config keys in which the runs differ, in the order they were asked."""
        keys: dict[str, None] = {}
        for entry in self.entries:
            keys |= dict.fromkeys(entry.values)
        return list(keys)

    @property
    def setting_keys(self) -> list[str]:
        """Those of them that are no seeds."""
        return [key for key in self.varied if key not in SEED_KEYS]

    @property
    def target(self) -> TargetRuns | None:
        """Of a search with seeds: the best values, and their losses at the target, by seed."""
        runs = [(entry, folder) for entry, folder in self.runs() if entry.target]
        if not runs:
            return None

        values = {k: v for k, v in runs[0][0].values.items() if k != "seed" and v is not None}
        losses = {}
        chose = []
        for entry, folder in runs:
            seed = entry.values["seed"]
            if metrics := metrics_of(folder):
                losses[seed] = metrics.get("val_loss")
            if entry.trial is not None:  # the very trial
                chose.append(seed)
        return TargetRuns(values, losses, len(runs), chose)

    def frame(self) -> DataFrame:
        """One row per run: the varied keys, state, results (null where there are none), folder."""
        import pandas as pd

        frame = pd.DataFrame(self.rows())
        if self.plan:
            place = list(frame.columns).index("state")
            frame.insert(place, "plan", frame["run"].map(self.plan))
        return frame

    def rows(self) -> list[dict[str, Json]]:
        """The rows of `frame`, without the plan: what `table.csv` holds."""
        return [row_of(entry, folder, self.standing(folder)) for entry, folder in self.runs()]

    def standing(self, folder: RunFolder) -> Standing:
        """A run's state and results."""
        seen = {} if self.seen is None else self.seen
        if folder.path not in seen:
            seen[folder.path] = (state_of(folder), metrics_of(folder))
        return seen[folder.path]

    @contextmanager
    def still(self) -> Iterator[None]:
        """Every run is read once: nothing of it runs meanwhile."""
        self.seen = {}
        try:
            yield
        finally:
            self.seen = None

    def metrics(self) -> list[dict[str, Any]]:
        """`metrics.json` of every finished run, with the original's `experiment_name`."""
        results = []
        for entry, folder in self.runs():
            if metrics := self.standing(folder)[1]:
                cell = "_".join(f"{key}{value}" for key, value in entry.values.items())
                name = f"{self.name}_{cell}" if cell else self.name
                known = {"id": metrics.get("id", entry.id), "experiment_name": name}
                results.append(metrics | known)
        return results

    def save(self) -> None:
        """Write `study.json` and `table.csv`, each whole or not at all."""
        self.entries = [replace(entry, state=state_of(folder)) for entry, folder in self.runs()]
        self.save_record()

        rows = self.rows()
        for row, entry in zip(rows, self.entries, strict=True):
            # a table travels: its folders are below the output root, wherever that is
            row["folder"] = f"{RUNS}/{entry.folder}"
        write_csv(self.folder / TABLE, rows)

    def save_record(self) -> None:
        """Write `study.json` alone: enough to go on from."""
        make_folder(self.folder)
        write_json(self.folder / STUDY, self.to_json())

    @property
    def warnings(self) -> list[str]:
        """What a careful reader would ask about: the plan first, then what the runs recorded."""
        return [*self.concerns, *self.damaged(), *self.mixed()]

    def damaged(self) -> list[str]:
        """A warning per run whose records or rows cannot be read, with what mends it."""
        warnings = []
        for _, folder in self.runs():
            damage = folder.damage(self.retry_command) or folder.lost_rows()
            state, metrics = self.standing(folder)
            if state == COMPLETE and metrics.get("val_loss") is None and not damage:
                damage = f"{METRICS} says no val_loss; move the folder away and train the run anew"
            if damage:
                warnings.append(f"{folder.path}: {damage}")
        return warnings

    def mixed(self) -> list[str]:
        """Why the losses of its runs may not compare."""
        return [*mixed_sets(folder for _, folder in self.runs()), *self.mixed_numerics()]

    def mixed_numerics(self) -> list[str]:
        """A warning per part of the numerics (device, dtype, ...) that the runs do not share."""
        seen: dict[str, set[str]] = {}
        for _, folder in self.runs():
            state, metrics = self.standing(folder)
            if state == COMPLETE:
                numerics = metrics.get("numerics") or {}
                for key, value in numerics.items():
                    seen.setdefault(key, set()).add(str(value))
        seen.pop("matmul_precision", None)  # follows the width, at equal accuracy

        return [
            f"the runs differ in {key} ({', '.join(sorted(values))}), so their losses differ "
            "by rounding too"
            for key, values in seen.items()
            if len(values) > 1
        ]

    def __repr__(self) -> str:
        return f"<Study {self.name!r}: {counted(len(self), 'run')}, {self.counts()}; {self.folder}>"

    def _repr_html_(self) -> str:
        from html import escape

        # pandas' stubs do not have it
        table: str = self.frame()._repr_html_()  # type: ignore[operator]
        return f"<p>{escape(repr(self))}</p>{table}"


# -- rows ---------------------------------------------------------------------------------------
def state_of(folder: RunFolder) -> str:
    """The run's state; WAITING also for a run whose folder is not made yet."""
    return folder.state() if folder.exists() else WAITING


def metrics_of(folder: RunFolder) -> dict[str, Any]:
    """The run's results; {} unless it has finished, as those of an earlier life are none."""
    metrics = folder.metrics() if folder.exists() else None
    return metrics or {}


def mixed_sets(folders: Iterable[RunFolder]) -> list[str]:
    """A warning where the losses of finished runs are of different validation sets."""
    sets: dict[str, str] = {}
    for folder in folders:
        metrics = metrics_of(folder)
        data = (metrics.get("provenance") or {}).get("data")
        if data and metrics.get("val_loss") is not None:
            measured = next(iter(data.get("parts", {}).values()), data["fingerprint"])
            sets.setdefault(measured, f"{metrics.get('val_set', 'val')} of {data['name']}")
    if len(sets) < 2:
        return []
    names = ", ".join(dict.fromkeys(sets.values()))
    return [
        f"the runs are judged by {len(sets)} different validation sets ({names}): their losses do "
        "not rank them (bits per byte do where the text is the same)"
    ]


def row_of(entry: RunEntry, folder: RunFolder, standing: Standing | None = None) -> dict[str, Json]:
    """A run's row: null where it has no result, never zero. standing: if it has been read."""
    state, metrics = standing or (state_of(folder), metrics_of(folder))
    counts = (metrics.get("params") or {}).get("by_convention", {})

    row: dict[str, Json] = {} if entry.stage is None else {STAGE_COLUMN: entry.stage}
    row |= {**entry.values, "state": state}
    for key in RESULTS:
        row[key] = metrics.get(key)
    for name, found in list((metrics.get("val_sets") or {}).items())[1:]:
        row[further_key(name)] = found["loss"]
    for name in CONVENTIONS:
        row[f"{name}_params"] = counts.get(name)
    return row | {"planned_flops": entry.flops, "run": entry.id, "folder": str(folder.path)}


def write_csv(path: Path, rows: Sequence[dict[str, Json]]) -> None:
    """Rows as CSV, whole or not at all; their keys need not be the same."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with (
        atomic_write(path) as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def rebuild_table(study_folder: Path | str) -> Path:
    """Write a study's `table.csv` anew from its run folders and return its path."""
    study = Study.open(Path(study_folder))
    study.save()
    return study.folder / TABLE


def export(study: Study, path: Path) -> Path:
    """Write a study's table to `path`, as CSV or Parquet by its ending."""
    if path.suffix == ".csv":
        write_csv(path, study.rows())
        return path
    if path.suffix != ".parquet":
        raise UserError(f"--out={path}: end the name in '.csv' or '.parquet'")
    if find_spec("pyarrow") is None:
        raise UserError(
            f"--out={path}: Parquet needs pyarrow: pip install 'nanoscale[parquet]', or take '.csv'"
        )
    with atomic_write(path) as temporary:
        study.frame().to_parquet(temporary, index=False)
    return path


def failure_lines(study: Study) -> list[str]:
    """What went wrong in each failed run: its cell, the reason, the end of the first ones' logs."""
    lines: list[str] = []
    logs = LOGS_SHOWN
    for entry, folder in study.runs():
        if state_of(folder) != FAILED:
            continue
        reason = (
            folder.damage(study.retry_command) or folder.status().reason or "no reason was recorded"
        )
        lines.append(f"FAILED {entry}: {reason}")
        if logs:
            logs -= 1
            lines += [f"    {line}" for line in log_tail(folder, LOG_LINES)]
        lines.append(f"    whole log: {folder / LOG}")
    return lines


# -- a root full of studies ---------------------------------------------------------------------
def study_names(output_root: Path) -> list[str]:
    """The studies below an output root, by name."""
    return sorted(path.parent.name for path in Path(output_root).glob(f"*/{STUDY}"))


def study_folder(name: str | Path, output_root: Path | str) -> Path:
    """The folder of the study that is typed: by its name below the output root, or by its path."""
    path, below = Path(name), Path(output_root) / name
    if (below / STUDY).is_file():
        return below
    is_path = (path / STUDY).is_file() or len(path.parts) > 1
    return path if is_path else below


def open_study(name: str | Path, output_root: Path | str = OUTPUT_ROOT) -> Study:
    """The study of that name below an output root, or in that folder, as it is now.

    It may have ended or be running; nothing is trained. Its runs are `frame()`, its states
    `states()`, its folder, with `report.html`, is `folder`; what it says is `nanoscale.answer`.

    Raises:
        UserError: there is none, naming the nearest, or its record is broken.

    Example:
        >>> import nanoscale as ns
        >>> data = ns.prepare("synthetic")
        vocab size: 32...
        >>> base = {"dataset": "synthetic", "n_layer": 1, "n_head": 2, "n_embd": 16}
        >>> base |= {"block_size": 16, "batch_size": 4, "gradient_accumulation_steps": 1}
        >>> base |= {"max_iters": 2, "eval_interval": 0, "final_eval_tokens": 64, "device": "cpu"}
        >>> study = ns.ExperimentRunner().run_grid("depths", base, {"n_layer": [1, 2]})
        [depths] ...
        >>> ns.open_study("depths").frame()["n_layer"].tolist()
        [1, 2]
        >>> ns.open_study("dpths")
        Traceback (most recent call last):
        nanoscale.errors.UserError: no study 'dpths' in experiments_out; did you mean 'depths'?
    """
    return Study.open(study_folder(name, output_root))


def matching_studies(output_root: Path, name: str) -> list[Study]:
    """The study called `name`; without one, every study whose name contains it.

    Raises:
        UserError: a name that no study's contains, naming the nearest.
    """
    names = study_names(output_root)
    chosen = [name] if name in names else [n for n in names if name in n]
    if name and not chosen:
        chosen = [name]  # which refuses
    return [Study.open(Path(output_root) / n) for n in chosen]


def cells_of(folder: RunFolder) -> Iterator[tuple[str, str]]:
    """The studies beside a store of runs that have the run in a folder of it: their names, and how
    they call it.
    """
    store = folder.path.absolute().parent
    if store.name != RUNS:
        return
    for study in matching_studies(store.parent, ""):
        for entry in study.entries:
            if entry.folder == folder.path.name:
                yield study.name, entry.title
