"""A study's record and what its runs left: the folder's `study.json`, and tables made from runs.

`study.json` holds what was asked and which runs answer it; every number is read from the run
folders when it is wanted, so a table can be rebuilt at any time and never goes stale.
"""

from __future__ import annotations

import csv
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoscale.errors import UserError, did_you_mean, disk_errors
from nanoscale.experiments.cells import describe
from nanoscale.experiments.failures import log_tail
from nanoscale.store.files import atomic_write, read_json, write_json
from nanoscale.store.folder import COMPLETE, FAILED, FINISHED, LOG, WAITING, RunFolder

if TYPE_CHECKING:
    from pandas import DataFrame

SCHEMA = 1
RUNS, STUDY, TABLE = "runs", "study.json", "table.csv"
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
FORBIDDEN = '/\\:*?"<>|'


def check_name(name: Any) -> str:
    """`name` if it can be a study's, which is also its folder's below the output root."""
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"study name {name!r}: expected some text, as in 'depth_study'")
    bad = sorted({c for c in name if c in FORBIDDEN or not c.isprintable()})
    if bad or name != name.strip() or name[0] in ".-" or len(name) > 100:
        what = (
            f"without {' '.join(map(repr, bad))}"
            if bad
            else ("of at most 100 characters, not beginning with '.', '-' or a space")
        )
        raise UserError(f"study name {name!r}: it names a folder; choose one {what}")
    if name == RUNS:
        raise UserError(
            f"study name {name!r}: that folder holds the runs of all studies; choose another name"
        )
    return name


class Study:
    """A named set of runs: its record, and views of the run folders as they are now."""

    def __init__(
        self, record: Mapping[str, Any], output_root: Path, plan: Mapping[str, str] | None = None
    ) -> None:
        self.record, self.output_root = dict(record), Path(output_root)
        self.plan = dict(plan or {})  # run id -> new, cached, resume or retry, in this call

    @classmethod
    def open(cls, folder: Path) -> Study:
        """The study in a folder; a `UserError` if there is none, naming the nearest."""
        if not (folder / STUDY).is_file():
            there = study_names(folder.parent)
            known = f"; there are: {', '.join(there)}" if there else ""
            raise UserError(
                f"no study {folder.name!r} in {folder.parent}"
                f"{did_you_mean(folder.name, there) or known}"
            )
        record = read_json(folder / STUDY)
        if not isinstance(record, dict) or not {"name", "runs"} <= set(record):
            raise UserError(f"{folder / STUDY}: not a study's record; run the study again")
        return cls(record, folder.parent)

    @property
    def name(self) -> str:
        return self.record["name"]

    @property
    def folder(self) -> Path:
        return self.output_root / self.name

    def __len__(self) -> int:
        return len(self.record["runs"])

    def runs(self) -> Iterator[tuple[dict[str, Any], RunFolder]]:
        """Each run's entry in the record (id, folder, values, flops) and its folder."""
        for entry in self.record["runs"]:
            yield entry, RunFolder(self.output_root / RUNS / entry["folder"])

    def states(self) -> Counter[str]:
        """State -> number of runs, now."""
        return Counter(state_of(folder) for _, folder in self.runs())

    @property
    def failed(self) -> list[RunFolder]:
        """The folders of the runs that failed."""
        return [folder for _, folder in self.runs() if state_of(folder) == FAILED]

    @property
    def ok(self) -> bool:
        """Whether every run has its result (a diverged one has: it is one) or is left out."""
        return all(
            entry.get("left_out") or state_of(folder) in FINISHED for entry, folder in self.runs()
        )

    @property
    def best(self) -> dict[str, Any] | None:
        """Of a search, or else of a grid: the values, val_loss and folder of the best run."""
        if "search" in self.record.get("asked", {}):
            return self.record.get("best")
        done = [
            (loss, entry)
            for entry, folder in self.runs()
            if (loss := (folder.metrics() or {}).get("val_loss")) is not None
        ]
        loss, entry = min(done, key=lambda one: one[0], default=(None, None))
        return entry and {"values": entry["values"], "val_loss": loss, "folder": entry["folder"]}

    @property
    def target(self) -> dict[str, Any] | None:
        """Of a search with seeds: the best values, and their losses at the target, by seed."""
        ours = [(entry, folder) for entry, folder in self.runs() if entry.get("target")]
        losses = {
            entry["values"]["seed"]: (folder.metrics() or {}).get("val_loss")
            for entry, folder in ours
            if state_of(folder) in FINISHED
        }
        values = [
            {k: v for k, v in entry["values"].items() if k != "seed" and v is not None}
            for entry, _ in ours
        ]
        return {"values": values[0], "val_loss": losses} if ours else None

    def target_line(self) -> str:
        """What became of a search's best values at the target."""
        losses = [loss for loss in self.target["val_loss"].values() if loss is not None]
        wanted = sum(entry.get("target", False) for entry in self.record["runs"])
        at = describe(self.target["values"])
        if not losses:
            return f"target: none of {wanted} runs has a loss at {at}"
        spread = f" +- {statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
        some = "" if len(losses) == wanted else f" of {wanted}"
        return (
            f"target: val_loss {statistics.fmean(losses):.4f}{spread} ({len(losses)}{some} "
            f"seeds) at {at}"
        )

    def frame(self) -> DataFrame:
        """One row per run: the varied keys, state, results (null where there are none), folder."""
        import pandas as pd

        frame = pd.DataFrame(self.rows())
        if self.plan:
            frame.insert(frame.columns.get_loc("state"), "plan", frame["run"].map(self.plan))
        return frame

    def rows(self) -> list[dict[str, Any]]:
        """The rows of `frame`, without the plan: what `table.csv` holds."""
        return [row_of(entry, folder) for entry, folder in self.runs()]

    def metrics(self) -> list[dict[str, Any]]:
        """`metrics.json` of every finished run, with the original's `experiment_name`."""
        found = []
        for entry, folder in self.runs():
            if state_of(folder) in FINISHED and (metrics := folder.metrics()) is not None:
                cell = "_".join(f"{key}{value}" for key, value in entry["values"].items())
                name = f"{self.name}_{cell}" if cell else self.name
                found.append(metrics | {"id": entry["id"], "experiment_name": name})
        return found

    def save(self) -> None:
        """Write `study.json` and `table.csv`, each whole or not at all."""
        for entry, folder in self.runs():
            entry["state"] = state_of(folder)
        self.save_record()
        # a table travels: its folders are below the output root, wherever that is
        write_csv(
            self.folder / TABLE,
            [
                row | {"folder": f"{RUNS}/{entry['folder']}"}
                for row, entry in zip(self.rows(), self.record["runs"], strict=True)
            ],
        )

    def save_record(self) -> None:
        """Write `study.json` alone: enough to go on from."""
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / STUDY, self.record)

    @property
    def warnings(self) -> list[str]:
        """What a careful reader would ask about: the plan first, then what the runs recorded."""
        return [*self.record.get("warnings", ()), *self.mixed_numerics()]

    def mixed_numerics(self) -> list[str]:
        """A warning per part of the numerics (device, dtype, ...) that the runs do not share."""
        seen: dict[str, set[Any]] = {}
        for _, folder in self.runs():
            metrics = folder.metrics() if state_of(folder) == COMPLETE else None
            for key, value in ((metrics or {}).get("numerics") or {}).items():
                if key == "matmul_precision":  # follows the width, at equal accuracy
                    continue
                seen.setdefault(key, set()).add(str(value))
        return [
            f"the runs differ in {key} ({', '.join(sorted(values))}), so their losses differ "
            "by rounding too"
            for key, values in seen.items()
            if len(values) > 1
        ]

    def __repr__(self) -> str:
        counts = ", ".join(f"{n} {state}" for state, n in sorted(self.states().items()))
        return f"<Study {self.name!r}: {len(self)} runs, {counts}; {self.folder}>"

    def _repr_html_(self) -> str:
        from html import escape

        return f"<p>{escape(repr(self))}</p>{self.frame()._repr_html_()}"


# -- rows ---------------------------------------------------------------------------------------
def state_of(folder: RunFolder) -> str:
    """The run's state; WAITING also for a run whose folder is not made yet."""
    return folder.state() if folder.exists() else WAITING


def row_of(entry: Mapping[str, Any], folder: RunFolder) -> dict[str, Any]:
    """A run's row: null where it has no result, never zero."""
    state = state_of(folder)
    metrics = (folder.metrics() if state in FINISHED else None) or {}
    counts = (metrics.get("params") or {}).get("by_convention", {})
    return {
        **entry["values"],
        "state": state,
        **{key: metrics.get(key) for key in RESULTS},
        **{f"{name}_params": counts.get(name) for name in CONVENTIONS},
        "planned_flops": entry["flops"],
        "run": entry["id"],
        "folder": str(folder.path),
    }


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as CSV, whole or not at all; their keys need not be the same."""
    with atomic_write(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(
            file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)


def rebuild_table(study_folder: Path | str) -> Path:
    """Write a study's `table.csv` anew from its run folders and return its path."""
    study = Study.open(Path(study_folder))
    study.save()
    return study.folder / TABLE


def export(study: Study, path: Path) -> Path:
    """Write a study's table to `path`, as CSV or Parquet by its ending."""
    if path.suffix not in (".csv", ".parquet"):
        raise UserError(f"--out={path}: end the name in '.csv' or '.parquet'")
    if path.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise UserError(
            f"--out={path}: Parquet needs pyarrow: pip install 'nanoscale[parquet]', or take '.csv'"
        )
    if path.suffix == ".csv":
        write_csv(path, study.rows())
    else:
        with atomic_write(path) as temporary:
            study.frame().to_parquet(temporary, index=False)
    return path


def failure_lines(study: Study) -> list[str]:
    """What went wrong in each failed run: its cell, the reason, the end of the first ones' logs."""
    lines: list[str] = []
    failed = [(entry, folder) for entry, folder in study.runs() if state_of(folder) == FAILED]
    for i, (entry, folder) in enumerate(failed):
        reason = folder.status().get("reason") or "no reason was recorded"
        lines.append(f"FAILED {describe(entry['values']) or entry['folder']}: {reason}")
        if i < LOGS_SHOWN:
            lines += [f"    {line}" for line in log_tail(folder, LOG_LINES)]
        lines.append(f"    whole log: {folder / LOG}")
    return lines


# -- a root full of studies ---------------------------------------------------------------------
def study_names(output_root: Path) -> list[str]:
    """The studies below an output root, by name."""
    return sorted(path.parent.name for path in Path(output_root).glob(f"*/{STUDY}"))


def matching_studies(output_root: Path, name: str) -> list[Study]:
    """The study called `name`; without one, every study whose name contains it."""
    names = study_names(output_root)
    chosen = [name] if name in names else [n for n in names if name in n]
    return [Study.open(Path(output_root) / n) for n in chosen]
