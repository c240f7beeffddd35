"""The trackers that are built in: W&B, TensorBoard and Trackio."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Mapping
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

from nanoscale.errors import UserError
from nanoscale.paths import from_here
from nanoscale.spec.config import flatten
from nanoscale.spec.values import Json
from nanoscale.store.run_records import FURTHER
from nanoscale.training.offline_log import last_step
from nanoscale.training.tracked_run import TrackedRun

FINISH_SECONDS = 45  # that W&B may take for what is left at the end; by itself it waits for ever

NANOGPT = {"train/loss": "eval_train_loss", "val/loss": "val_loss"}  # its name -> ours
GROUPS = {  # of names that have none
    "loss": ("train_loss", "val_loss", "eval_train_loss", "val_bits_per_byte"),
    "optimizer": ("lr", "grad_norm"),
    "speed": ("time_ms", "mfu", "tokens_per_second", "wall_seconds"),
    "progress": ("tokens_seen", "flops"),
}
GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}


def with_nanogpts(step: int, numbers: Mapping[str, float]) -> dict[str, float]:
    """The numbers, and beside them nanoGPT's names: `iter`, and its losses of an evaluation."""
    named = {**numbers, "iter": step}
    for theirs, ours in NANOGPT.items():
        if ours in numbers:
            named[theirs] = numbers[ours]
    for name, loss in numbers.items():
        if name.startswith(FURTHER):
            named[f"val/loss_{name.removeprefix(FURTHER)}"] = loss
    return named


# -- W&B ------------------------------------------------------------------------------------------
class WandbTracker:
    """A W&B run whose id is the run's: begun again, it goes on where W&B's own record ends.

    Offline (WANDB_MODE=offline needs no account) a process writes all that `wandb sync` has not
    uploaded yet, and the folders of earlier ones that it has not uploaded go: what those hold may
    end anywhere, and what is uploaded is put behind what is there.
    """

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        os.environ.setdefault("WANDB_FINISH_TIMEOUT", str(FINISH_SECONDS))
        os.environ.setdefault("WANDB_FINISH_TIMEOUT_RAISES", "true")
        try:
            self.run = wandb.init(
                project=run.project,
                name=run.name,
                group=run.study,
                tags=run.tags,
                id=run.spec.id,
                resume="allow",
                dir=str(run.folder.path),
                config=run.config(),
                settings=wandb.Settings(silent=True),  # but for a login's questions
            )
        except wandb.Error as e:
            raise UserError(
                f"W&B refuses ({e}); run `wandb login`, set WANDB_MODE=offline, or leave it out"
            ) from e
        kept = from_here(Path(self.run.dir).parent)
        self.url = f"kept offline, `wandb sync {kept}` sends it"
        if not self.run.offline:
            self.url = self.run.url
        self.from_step = self.run.starting_step
        self.exit_code = 1  # of a run that has not ended
        here = Path(self.run.dir).parent
        for earlier in here.parent.glob(f"offline-run-*-{run.spec.id}"):
            uploaded = [path.with_suffix("") for path in earlier.glob("*.wandb.synced")]
            for log in uploaded:
                self.from_step = max(self.from_step, last_step(log) + 1)
            if not uploaded and earlier != here:
                shutil.rmtree(earlier, ignore_errors=True)

    def row(self, step: int, numbers: Mapping[str, float]) -> None:
        if step >= self.from_step:
            self.run.log(with_nanogpts(step, numbers), step=step)

    def final(self, results: Mapping[str, Json]) -> None:
        self.run.summary.update(dict(results))
        self.exit_code = 0

    def close(self) -> None:
        self.run.finish(exit_code=self.exit_code)


# -- TensorBoard ----------------------------------------------------------------------------------
class TensorBoardTracker:
    """An event file in the run folder, in place of those of earlier processes: grouped scalars,
    and the config beside the final losses as hyperparameters.
    """

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        for earlier in run.folder.path.glob("events.out.tfevents.*"):
            earlier.unlink(missing_ok=True)
        self.writer: Any = SummaryWriter(str(run.folder.path), purge_step=0)
        self.hyperparameters = hyperparameters(run)
        self.step = 0

    def row(self, step: int, numbers: Mapping[str, float]) -> None:
        self.step = step
        for name, value in numbers.items():
            if name != "step":
                self.writer.add_scalar(grouped(name), value, step)

    def final(self, results: Mapping[str, Json]) -> None:
        summary = import_module("torch.utils.tensorboard.summary")  # which is not typed
        numbers = {name: value for name, value in results.items() if not isinstance(value, str)}
        for part in summary.hparams(self.hyperparameters, numbers):
            self.writer.file_writer.add_summary(part)
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, self.step)

    def close(self) -> None:
        self.writer.close()


def grouped(name: str) -> str:
    """TensorBoard's tag of a number: charts of one first part stand together."""
    group = "loss" if name.startswith(FURTHER) else GROUP_OF.get(name)
    return f"{group}/{name}" if group else name


def hyperparameters(run: TrackedRun) -> dict[str, Any]:
    """The config's keys, flat, with the study and the cell, in types that TensorBoard takes."""
    values: dict[str, Any] = {
        "study": run.study or "",
        "cell": run.name,
        **flatten(run.spec.config),
        **run.place(),
    }
    return {
        key: value if isinstance(value, (bool, int, float)) else str(value)
        for key, value in values.items()
    }


# -- Trackio --------------------------------------------------------------------------------------
class TrackioTracker:
    """A Trackio run; its name ends in the run's id, as Trackio knows a run by its name alone.

    A row is written when the next one comes, the last one with the results: a run whose last row
    is there has those too.
    """

    def __init__(self, run: TrackedRun) -> None:
        self.package = import_module("trackio")
        with redirect_stdout(io.StringIO()):  # it talks
            self.run = self.package.init(
                project=run.project,
                name=f"{run.name} {run.spec.id}",
                group=run.study,
                resume="allow",
                config=run.config() | {"tags": run.tags},
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        self.from_step = self.run._next_step  # after the last that it has
        self.last: dict[str, Any] | None = None
        self.step = 0
        self.has_ended = False

    def row(self, step: int, numbers: Mapping[str, float]) -> None:
        self._write_last()
        if step >= self.from_step:
            self.last = with_nanogpts(step, numbers)
            self.last.pop("step", None)  # Trackio has one of its own
        self.step = step

    def final(self, results: Mapping[str, Json]) -> None:
        if self.last is None and not self.from_step:  # a run of no update, without rows
            self.last = {}
        if self.last is not None:  # else both are there
            self.last |= results
        self.has_ended = True

    def close(self) -> None:
        if self.has_ended:
            self._write_last()
        with redirect_stdout(io.StringIO()):
            self.package.finish()

    def _write_last(self) -> None:
        if self.last is not None:
            self.run.log(self.last, step=self.step)
        self.last = None
