"""The run folder: all that a run leaves, and the interface of everything above a run.

Files are written whole or not at all (a temporary file beside the target, then a rename), rows are
appended and a torn last line is ignored, numbers keep full precision and non-finite ones are null.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from nanoscale.errors import UserError, disk_errors, one_of
from nanoscale.spec.config import (
    ExperimentConfig,
    ParametrizationConfig,
    all_fields,
    identity,
    label,
)
from nanoscale.store import lease

SCHEMA = 1
WAITING, RUNNING, COMPLETE = "WAITING", "RUNNING", "COMPLETE"
PRUNED, DIVERGED, FAILED = "PRUNED", "DIVERGED", "FAILED"
FINISHED = (COMPLETE, PRUNED, DIVERGED)  # results, never run again

CONFIG, STATUS, ROWS, METRICS = "config.json", "status.json", "metrics.jsonl", "metrics.json"
CHECKPOINT, BEST, WINDOWS, LOG = "ckpt.pt", "best.pt", "windows.npy", "log.txt"
TIMING_COLUMNS = ("time_ms", "tokens_per_second", "mfu", "wall_seconds")  # may differ between twins


# -- atomic files -----------------------------------------------------------------------------
@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path that takes `path`'s place when the block ends well, else disappears."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        try:
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())  # a rename must never outlive its contents
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def plain(value: Any) -> Any:
    """`value` in JSON's types; non-finite numbers become None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def check_outputs(options: Mapping[str, str]) -> None:
    """Refuse the files of `--json` and `--figure` that could not be written, before any work."""
    for name, endings in (("json", (".json",)), ("figure", (".png", ".pdf", ".svg"))):
        path = options.get(name)
        if path and Path(path).suffix.lower() not in endings:
            raise UserError(f"--{name}={path}: end the name in {one_of(endings)}")
        if path and not Path(path).parent.is_dir():
            raise UserError(f"--{name}={path}: there is no folder {Path(path).parent}; make it "
                            "first")


def read_json(path: Path) -> Any:
    """The JSON in `path`; a UserError if it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; is this a run folder?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not valid JSON ({e}); delete the folder to start it anew") from e
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e


def row_line(row: Mapping[str, Any]) -> str:
    """One row of `metrics.jsonl`."""
    return json.dumps(plain(row), separators=(",", ":"), allow_nan=False) + "\n"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; none if it is missing; a torn last line is ignored."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    # every whole row ends in a newline, so what follows the last one is torn (or empty)
    try:
        return [json.loads(line) for line in lines[:-1]]
    except ValueError as e:
        raise UserError(f"{path}: a broken row ({e}); the file was changed from outside") from e


def cut_rows(path: Path, last_step: int) -> None:
    """Drop the rows after `last_step`, atomically: what a resumed run will write again."""
    rows = read_rows(path)
    write_text(path, "".join(row_line(r) for r in rows if r["step"] <= last_step))


# -- what a run is ----------------------------------------------------------------------------
class Data(Protocol):
    """What a run's identity needs of its dataset (see `data.Dataset`)."""

    name: str
    fingerprint: str


@dataclass(frozen=True)
class RunSpec:
    """A run before it starts: its resolved config, its data, its parent; hence its identity."""

    config: ExperimentConfig
    typed: Mapping[str, Any]  # what the user wrote, for the record
    data_name: str
    data_fingerprint: str
    parent: str | None = None  # "<id>@<step>" of the run whose past it shares

    @classmethod
    def of(cls, config: ExperimentConfig, data: Data, typed: Mapping[str, Any]) -> RunSpec:
        """The spec of a resolved config on an open dataset."""
        parent = parent_of(config.branch_from) if config.branch_from else None
        return cls(config, dict(typed), data.name, data.fingerprint, parent)

    @cached_property
    def id(self) -> str:
        return identity(self.config, self.data_fingerprint, self.parent)

    @property
    def name(self) -> str:
        """The folder's name in a run store: `<label>-<id>`."""
        return f"{label(self.config)}-{self.id}"

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "id": self.id, "label": label(self.config),
                "config": self.config.to_dict(), "typed": dict(self.typed),
                "data": {"name": self.data_name, "fingerprint": self.data_fingerprint},
                "branch_from": self.parent}

    @classmethod
    def from_json(cls, record: Mapping[str, Any], path: Path) -> RunSpec:
        """The spec in a `config.json`; a UserError if it is not one of ours."""
        try:
            spec = cls(config_from_dict(record["config"]), record["typed"],
                       record["data"]["name"], record["data"]["fingerprint"],
                       record["branch_from"])
        except (KeyError, TypeError) as e:
            raise UserError(f"{path}: not a run's config ({type(e).__name__}: {e}); is this a run "
                            "folder?") from e
        if spec.id != record.get("id"):
            raise UserError(f"{path}: the config does not hash to its id {record.get('id')!r}; it "
                            "was edited, or written by another version: start the run anew")
        return spec


def config_from_dict(values: Mapping[str, Any]) -> ExperimentConfig:
    """The inverse of `ExperimentConfig.to_dict`; unknown keys are refused, missing are defaults."""
    known = {key.split(".")[0] for key in all_fields()}
    unknown = set(values) - known
    if unknown:
        raise UserError(f"unknown config keys {sorted(unknown)}: written by a newer nanoscale?")
    values = dict(values)
    values["parametrization"] = ParametrizationConfig(**values.get("parametrization", {}))
    if "checkpoint_steps" in values:
        values["checkpoint_steps"] = tuple(values["checkpoint_steps"])
    return ExperimentConfig(**values)


def parse_branch(branch_from: str) -> tuple[Path, int | None]:
    """`FOLDER` or `FOLDER@STEP` as (folder, step or None for the newest checkpoint)."""
    folder, at, step = branch_from.rpartition("@")
    return (Path(folder), int(step)) if at and step.isdigit() else (Path(branch_from), None)


def checkpoint_file(step: int | None) -> str:
    """The name of the newest checkpoint, or of the one kept at `step`."""
    return CHECKPOINT if step is None else f"ckpt-{step}.pt"


def parent_of(branch_from: str) -> str:
    """`<id>@<step>` of the checkpoint that a run branches from."""
    path, step = parse_branch(branch_from)
    folder = RunFolder(path)
    if not (folder / checkpoint_file(step)).is_file():
        at = f" at step {step} (keep it with checkpoint_steps=[{step}])" if step else ""
        raise UserError(f"branch_from={branch_from}: no checkpoint there{at}")
    status = folder.status()
    return f"{status['id']}@{status['checkpoint_step'] if step is None else step}"


# -- the folder -------------------------------------------------------------------------------
class RunFolder:
    """One run folder: paths, status, rows, results. Reading never needs torch."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def exists(self) -> bool:
        return os.path.isfile(self / CONFIG)  # False, too, where we may not look

    def create(self, spec: RunSpec) -> None:
        """Make the folder with its config; an equal one is left as it is."""
        if self.exists() and self.spec().id == spec.id:
            return
        made = missing_folders(self.path)
        try:
            with disk_errors(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
            with lease.take(self.path):
                if not (self.exists() and self.spec().id == spec.id):  # others were no faster
                    write_json(self / CONFIG, spec.to_json())
        except UserError:
            for folder in made:
                with suppress(OSError):
                    folder.rmdir()  # not a tree's removal: a sibling run may be in it by now
            raise

    def become(self, spec: RunSpec) -> None:
        """Continue the run in this folder as `spec`, whose past is equal (see `resume`)."""
        # in this order, so that a kill in between never leaves a finished run without its results
        self.set_status(id=spec.id, state=WAITING, max_iters=spec.config.max_iters)
        with disk_errors(self.path):
            for name in (METRICS, WINDOWS):
                (self / name).unlink(missing_ok=True)
        write_json(self / CONFIG, spec.to_json())

    def spec(self) -> RunSpec:
        return RunSpec.from_json(read_json(self / CONFIG), self / CONFIG)

    def status(self) -> dict[str, Any]:
        """`status.json`; a run that nobody has begun has only its config, and waits."""
        if (self / STATUS).is_file():
            return read_json(self / STATUS)
        record = read_json(self / CONFIG)
        return {"schema": SCHEMA, "id": record["id"], "state": WAITING, "step": 0,
                "max_iters": record["config"]["max_iters"], "checkpoint_step": None}

    def state(self) -> str:
        """The run's state; RUNNING while a live process holds the folder, only then."""
        state = self.status()["state"]
        if state in FINISHED:
            return state
        return RUNNING if self.holder() else WAITING if state == RUNNING else state

    def take(self) -> lease.Lease:
        """The right to write here, a context; raises `lease.Held` where others have it."""
        return lease.take(self.path)

    def holder(self) -> dict[str, Any] | None:
        """Who is training here (pid, host), or None."""
        return lease.holder(self.path)

    def set_status(self, **changes: Any) -> None:
        """Change keys of `status.json`, atomically."""
        status = self.status() | changes | {"updated": time.time()}
        write_json(self / STATUS, status)

    def rows(self) -> list[dict[str, Any]]:
        return read_rows(self / ROWS)

    def metrics(self) -> dict[str, Any] | None:
        """The results, or None while there are none."""
        return read_json(self / METRICS) if (self / METRICS).is_file() else None


def missing_folders(path: Path) -> list[Path]:
    """The folders that `path.mkdir(parents=True)` would make, deepest first."""
    return [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]


def move_aside(path: Path) -> Path:
    """Rename a folder to the first free `<name>.old-<k>` and return the new path."""
    if Path.cwd().is_relative_to(path.resolve()):
        raise UserError(f"{path} holds another run and cannot be moved aside while you are in it; "
                        "choose another folder")
    k = 1
    while (aside := path.with_name(f"{path.name}.old-{k}")).exists():
        k += 1
    with disk_errors(path):
        os.rename(path, aside)
    return aside
