"""The run folder: all that a run leaves, and the interface of everything above a run."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoscale.errors import UserError, made_folder, one_of
from nanoscale.spec.config import ExperimentConfig
from nanoscale.spec.identity import RECORD_SCHEMA, RunSpec
from nanoscale.spec.resolve import resolve
from nanoscale.spec.values import Json, Overrides
from nanoscale.spec.weights import Weights
from nanoscale.store import lease
from nanoscale.store.files import read_json, read_rows, write_json
from nanoscale.store.run_records import RunStatus, is_sound

if TYPE_CHECKING:
    from nanoscale.data.dataset import Dataset

WAITING, RUNNING, COMPLETE = "WAITING", "RUNNING", "COMPLETE"
PRUNED, DIVERGED, FAILED = "PRUNED", "DIVERGED", "FAILED"
FINISHED = (COMPLETE, PRUNED, DIVERGED)  # results, never run again
_STATES = (WAITING, RUNNING, *FINISHED, FAILED)
MADE_BY = "the command that asked for this run"
DAMAGED = "damaged"  # the kind of failure of a run whose records cannot be read

CONFIG, STATUS, ROWS, METRICS = "config.json", "status.json", "metrics.jsonl", "metrics.json"
CELL, SENT = "cell.json", "sent.json"  # whose it is, and which trackers have all of it
CHECKPOINT, BEST, WINDOWS, LOG = "ckpt.pt", "best.pt", "windows.npy", "log.txt"
TRACE = "trace.json.gz"  # of a profile
BEST_BEFORE = "best-before.pt"  # the best but for the end, which a longer run has not
TIMING_COLUMNS = ("time_ms", "tokens_per_second", "mfu", "wall_seconds")  # may differ between twins


_KEYS: Mapping[str, Mapping[str, type]] = {  # that the record of every run has
    CONFIG: {"id": str, "config": dict},
    STATUS: {"state": str, "step": int, "max_iters": int},
    METRICS: {},
    CELL: {"study": str, "cell": str},
    SENT: {},
}


def parse_branch(branch_from: str) -> tuple[Path, int | None]:
    """`FOLDER` or `FOLDER@STEP` as (folder, step or None for the newest checkpoint)."""
    folder, at, step = branch_from.rpartition("@")
    return (Path(folder), int(step)) if at and step.isdigit() else (Path(branch_from), None)


def checkpoint_file(step: int | str | None) -> str:
    """The name of the newest checkpoint, or of the one kept at `step`."""
    return CHECKPOINT if step is None else f"ckpt-{step}.pt"


def parent_of(branch_from: str) -> str:
    """`<id>@<step>` of the checkpoint that a run branches from."""
    path, step = parse_branch(branch_from)
    folder = RunFolder(path)
    if not (folder / checkpoint_file(step)).is_file():
        at = f" at step {step} (keep it with checkpoint_steps=[{step}])" if step else ""
        there = [f"{path}@{kept}" for kept in kept_steps(folder)]
        if (folder / CHECKPOINT).is_file():
            there.append(f"{path} (after step {folder.status().checkpoint_step})")
        has = f"; there is {one_of(there)}" if there else ""
        raise UserError(f"branch_from={branch_from}: no checkpoint there{at}{has}")
    status = folder.status()
    if status.kind == DAMAGED:
        raise UserError(f"branch_from={branch_from}: {status.reason}")
    return f"{status.id}@{status.checkpoint_step if step is None else step}"


def kept_steps(folder: RunFolder) -> list[int]:
    """The steps of which a run has kept a checkpoint."""
    names = (path.name for path in folder.path.glob(checkpoint_file("*")))
    return sorted(int(name[5:-3]) for name in names if name[5:-3].isdigit())


def run_spec(
    config: ExperimentConfig, data: Dataset, typed: Overrides, weights: Weights | None = None
) -> RunSpec:
    """The spec of a config on an open dataset, with its parent and the weights it begins with.

    Raises:
        UserError: the config, the weights and the data do not go together, or no parent is there.
    """
    if weights is not None:
        config = weights.fit(config, typed)
        require_tokens(weights, data)
    resolved = resolve(config, data.vocabulary(config.vocab_size))
    parent = parent_of(config.branch_from) if config.branch_from else None
    if not config.val_sets and len(data.val_sets) > 1:
        resolved = replace(resolved, val_sets=data.val_sets)  # others may be found when it goes on
    return RunSpec(
        resolved, typed, data.name, data.fingerprint, parent, weights=weights, parts=data.parts
    )


def require_tokens(weights: Weights, data: Dataset) -> None:
    """Refuse weights whose tokens are known to stand for other text than the data's."""
    theirs = weights.tokens
    ours = None if theirs is None else data.known_tokenizer()
    if theirs is None or ours is None or ours.digest == theirs.digest:
        return
    raise UserError(
        f"init_from={weights.source}: the tokens of its weights ({theirs.named}) are not those of "
        f"dataset {data.name!r} ({ours}); prepare its text with theirs: "
        f"--tokenizer {theirs.choice}"
    )


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

    def holds(self, spec: RunSpec) -> bool:
        """Whether the folder is that run's; its content says so, as two may share an id."""
        return self.exists() and self.spec().content == spec.content

    def create(self, spec: RunSpec) -> None:
        """Make the folder with its config; an equal one is left as it is."""
        if self.holds(spec):
            return
        with made_folder(self.path), lease.take(self.path):
            if not self.holds(spec):  # others were no faster
                write_json(self / CONFIG, spec.to_json())

    def spec(self) -> RunSpec:
        """What `config.json` says; refused with what mends it, if it cannot be read."""
        self.check_schemas(CONFIG)
        return RunSpec.from_json(read_json(self / CONFIG, self._mends_config()), self / CONFIG)

    def id(self) -> str | None:
        """Whose the folder is, by its status or its results; None if neither can be read."""
        known = self.record(STATUS) or self.record(METRICS) or {}
        return known.get("id")

    def _mends_config(self) -> str:
        known = self.id()
        if known:
            return f"the command that asked for this run, {known}, mends it"
        return "the study that asked for this run mends it, or else move the folder away"

    def check_schemas(self, *names: str) -> None:
        """Refuse records of the run that another version wrote."""
        for name in names:
            if schema := self._other_schema(name):
                raise UserError(f"{self / name}: {schema}")

    def _other_schema(self, name: str) -> str:
        """What is to be said of a record that another version wrote; "" of any other file."""
        try:
            record = read_json(self / name)
        except UserError:
            return ""
        schema = record.get("schema", RECORD_SCHEMA) if isinstance(record, dict) else RECORD_SCHEMA
        if schema == RECORD_SCHEMA:
            return ""
        return f"schema {schema}, this version reads {RECORD_SCHEMA}: use the one that wrote it"

    def status(self) -> RunStatus:
        """Where the run stands; one that nobody has begun has only its config, and waits.

        Records that cannot be read are a failure of this run alone; `resume.renew` mends it.
        """
        return RunStatus.from_json(self._status_record())

    def _status_record(self) -> dict[str, Json]:
        status = self.record(STATUS)
        damage = self._damage(status, MADE_BY)
        if status is None:
            config = (self.record(CONFIG) if damage else read_json(self / CONFIG)) or {}
            status = {
                "schema": RECORD_SCHEMA,
                "id": config.get("id", ""),
                "state": WAITING,
                "step": 0,
                "max_iters": config.get("config", {}).get("max_iters", 0),
                "checkpoint_step": None,
            }
        if damage:
            status["state"] = FAILED
            status["kind"] = DAMAGED
            status["reason"] = damage
        return status

    def damage(self, remedy: str = MADE_BY) -> str:
        """Which record of the run cannot be read, and the `remedy` that mends it; "" if all can."""
        return self._damage(self.record(STATUS), remedy)

    def _damage(self, status: Mapping[str, Json] | None, remedy: str) -> str:
        """That, by its status."""
        if self.exists() and self.record(CONFIG) is None:
            return self._damaged(CONFIG, "cannot be read", self._mends_config())
        mends = f"{remedy} mends it"
        if status is not None:
            lost = status["state"] in FINISHED and self.record(METRICS) is None
            return self._damaged(METRICS, "is gone or cannot be read", mends) if lost else ""
        if (self / STATUS).is_file():
            return self._damaged(STATUS, "cannot be read", mends)
        begun = any((self / name).is_file() for name in (METRICS, CHECKPOINT))
        return self._damaged(STATUS, "is gone", mends) if begun else ""

    def _damaged(self, name: str, how: str, remedy: str) -> str:
        schema = self._other_schema(name)
        return f"{name}: {schema}" if schema else f"{name} {how}; {remedy}"

    def lost_rows(self) -> str:
        """What a finished run's rows lack, and the remedy; "" if they reach its end."""
        if not self.exists():
            return ""
        status = self.status()
        if status.state not in FINISHED or not status.step:
            return ""
        try:
            rows = self.rows()
            last = rows[-1]["step"] if rows else 0
            if last == status.step:
                return ""
            lacks = f"{ROWS} ends after step {last} of {status.step}"
        except UserError:
            lacks = f"{ROWS} cannot be read"
        return (
            f"{lacks}: it was cut or changed from outside; the results stand, and to have the rows "
            "again move the folder away and train the run anew"
        )

    def record(self, name: str) -> dict[str, Any] | None:
        """The object in a JSON file of the run; None if it is gone, or is none such."""
        try:
            record = read_json(self / name)
        except UserError as e:
            if isinstance(e.__cause__, OSError):  # the disk's fault, not the file's
                raise
            return None
        if not isinstance(record, dict) or record.get("schema", RECORD_SCHEMA) != RECORD_SCHEMA:
            return None
        for key, kind in _KEYS[name].items():
            if type(record.get(key)) is not kind:
                return None
        if name == METRICS and not is_sound(record):
            return None
        known = name != STATUS or record["state"] in _STATES
        return record if known else None

    def state(self) -> str:
        """The run's state; RUNNING while a live process holds the folder, only then."""
        state = self.status().state
        if state in FINISHED:
            return state
        if self.holder():
            return RUNNING
        return WAITING if state == RUNNING else state

    def take(self) -> lease.Lease:
        """The right to write here, a context; raises `lease.Held` where others have it."""
        return lease.take(self.path)

    def holder(self) -> lease.Owner | None:
        """Who is training here, or None."""
        return lease.holder(self.path)

    def set_status(self, **changes: Any) -> None:
        """Change keys of `status.json`, atomically."""
        status = self._status_record()
        if self.record(STATUS) is None:
            status["began"] = time.time()
        if status.get("kind") == DAMAGED:  # which this mends
            del status["kind"]
        status |= changes | {"updated": time.time()}
        if status["state"] != FAILED:
            status.pop("kind", None)
        write_json(self / STATUS, status)

    def weights(self) -> Path | None:
        """The weights to sample from, the best or else the newest; None if it holds none."""
        for name in (BEST, CHECKPOINT):
            if (self / name).is_file():
                return self / name
        return None

    def rows(self) -> list[dict[str, Any]]:
        return read_rows(self / ROWS)

    def metrics(self) -> dict[str, Any] | None:
        """The results, or None while there are none; those of a shorter run are not the run's."""
        return self.record(METRICS) if self.status().state in FINISHED else None
