"""What a run leaves in its folder while it goes on, and at its end."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import numpy as np

from nanoscale.errors import UserError
from nanoscale.model.distributed import gathered
from nanoscale.spec.counting import flops_per_iter
from nanoscale.spec.schedule import Due
from nanoscale.spec.values import Json
from nanoscale.store.files import atomic_write, write_json
from nanoscale.store.folder import (
    BEST,
    BEST_BEFORE,
    CHECKPOINT,
    COMPLETE,
    DIVERGED,
    FAILED,
    METRICS,
    WAITING,
    WINDOWS,
    RunFolder,
    checkpoint_file,
)
from nanoscale.store.lease import Held, Lease
from nanoscale.store.provenance import provenance
from nanoscale.training import checkpoint, lines
from nanoscale.training.evaluation import WindowLosses, evaluate, final_losses, set_loss
from nanoscale.training.records import Evaluation, MetricsRow, RunResult, UpdateRecord, so_far
from nanoscale.training.state import Run, save
from nanoscale.training.telemetry import Log, RowWriter


class Recorder:
    """Writes a run's lines, rows, checkpoints and results: the master's alone, silent elsewhere."""

    def __init__(self, run: Run, folder: RunFolder, lease: Lease | None) -> None:
        self.run = run
        self.folder = folder
        self.lease = lease
        self.log: Log | None = None
        self.rows: RowWriter | None = None
        if run.ranks.is_master:
            self.log = Log(folder)
            try:
                self.rows = RowWriter(folder, run.spec, self.warn)
            except UserError:
                self.close()
                raise

    def close(self) -> None:
        if self.rows is not None:
            self.rows.close()
        if self.log is not None:
            self.log.close()

    def say(self, line: str) -> None:
        if self.log is not None:
            self.log(line)

    def warn(self, text: str) -> None:
        self.say(f"warning: {text}")

    def introduce(self) -> None:
        for line in lines.introduction(self.run):
            self.say(line)
        for line in self.rows.trackers.urls if self.rows else ():
            self.say(line)

    def writes(self) -> bool:
        """Whether this rank writes; refuses once others have taken the folder over."""
        if self.lease is not None:
            self.lease.check()
        return self.run.ranks.is_master

    def row(self, update: UpdateRecord | None, evaluation: Evaluation | None) -> MetricsRow:
        """Append a row, of the updates since the one before."""
        run = self.run
        row = MetricsRow(
            step=run.step,
            tokens_seen=run.step * run.config.tokens_per_iter,
            flops=run.step * flops_per_iter(run.config),
            timing=run.meter.row(),
            update=update,
            evaluation=evaluation,
        )
        if self.writes() and self.rows is not None:
            self.rows.write(row.step, row.to_json())
        return row

    def evaluate(self) -> Evaluation:
        """An evaluation, told in a line; the weights of the best so far are kept."""
        run = self.run
        evaluation = evaluate(run)
        line = (
            f"step {run.step}: train loss {evaluation.eval_train_loss:.4f}, "
            f"val loss {evaluation.val_loss:.4f}"
        )
        for name, loss in evaluation.further.items():
            line += f", {name} loss {loss:.4f}"
        self.say(line)
        if evaluation.val_loss < run.best_val_loss:
            run.best_val_loss = evaluation.val_loss
            if run.step > 0 and run.config.keep != "none":
                self.save_best(evaluation.val_loss)
        return evaluation

    def save_best(self, val_loss: float) -> None:
        run = self.run
        weights = gathered({"model": run.model.state_dict()}, run.ranks)
        if not self.writes():
            return
        path = self.folder / BEST
        early_end = Due(run.config, run.step).early_end
        longer = run.config.keep == "all"
        if early_end and longer and path.is_file():
            with atomic_write(self.folder / BEST_BEFORE) as earlier:
                shutil.copyfile(path, earlier)
        checkpoint.save(path, run.spec, step=run.step, val_loss=val_loss, **weights)

    def late(self) -> bool:
        """Whether it is long since the last checkpoint; by the master's clock alone."""
        since = time.perf_counter() - self.run.saved_at
        return self.run.ranks.is_master and 0 < self.run.config.checkpoint_seconds < since

    def save(self, due: bool) -> None:
        """Checkpoint when due and at kept steps; every rank takes part."""
        kept = self.run.step in self.run.config.checkpoint_steps
        if not due and not kept:
            return
        with self.run.part("checkpoint"):
            self.writes()
            self.sync()
            if due:
                save(self.run, self.folder)
            if kept:
                save(self.run, self.folder, checkpoint_file(self.run.step))

    def sync(self) -> None:
        """Have the rows on the disk: no checkpoint and no result may outlive those before it."""
        if self.rows is not None:
            self.rows.sync()

    # -- the end ----------------------------------------------------------------------------------
    def interrupted(self) -> RunResult:
        """The run stops where it was saved, and can go on."""
        step = self.run.step
        end = f"saved after step {step}"
        if self.folder.status().checkpoint_step != step:
            end = f"the weights after step {step} are not finite and were not saved"
        self.say(f"interrupted: {end}; the same command continues")
        if self.run.ranks.is_master:
            self.folder.set_status(state=WAITING, step=step)
        return self.result(WAITING)

    def finish(self, state: str) -> RunResult:
        """The final evaluation, `windows.npy`, `metrics.json`, and the state that ends the run."""
        run, folder = self.run, self.folder
        losses = final_losses(run) if state == COMPLETE else None
        if losses is not None and not np.isfinite(losses).all():
            self.say("the final loss is not finite: the run has diverged")
            state = DIVERGED
            losses = None
        result = self.result(state)
        if losses is not None:
            result = self.with_final(result, losses)
        if not self.writes():
            return result

        self.sync()
        if losses is not None:
            rows = folder.rows()
            result = replace(result, train_loss=rows[-1].get("eval_train_loss") if rows else None)
            with atomic_write(folder / WINDOWS) as path, open(path, "wb") as file:
                np.save(file, losses)
        write_json(folder / METRICS, result.to_json())
        if self.rows is not None:
            self.rows.trackers.final(result.to_json())
        folder.set_status(state=state, step=run.step)
        if run.config.keep != "all":
            folder.set_status(checkpoint_step=None)
            (folder / CHECKPOINT).unlink(missing_ok=True)
        return result

    def with_final(self, result: RunResult, losses: WindowLosses) -> RunResult:
        """The result with its final losses, told: `losses` of the first validation set."""
        run = self.run
        first, *others = run.dataset.val_sets
        found = {first: set_loss(run, first, losses)}
        for name in others:
            found[name] = set_loss(run, name, final_losses(run, name))
        for name, each in found.items():
            self.say(lines.final(each, name if others else "val"))

        loss = found[first].loss
        if result.best_val_loss is None:  # max_iters=0: no other evaluation was made
            result = replace(result, best_val_loss=loss)
            if run.config.keep == "best":
                self.save_best(loss)
        return replace(
            result,
            val_loss=loss,
            val_set=run.spec.val_set if run.spec.parts else None,
            val_bits_per_byte=found[first].bits_per_byte,
            val_sets={name: each.to_json() for name, each in found.items()} if others else None,
        )

    def result(self, state: str) -> RunResult:
        """What is known without a final evaluation."""
        run = self.run
        total = run.meter.total()
        machine: dict[str, Json] = {
            "device": run.numerics.device_name,
            "data": run.spec.data_record,
            "world_size": run.ranks.world,
        }
        history = [entry.to_json() for entry in run.history]
        return replace(
            so_far(self.folder, run.spec, state, run.step),
            best_val_loss=run.best_val_loss if math.isfinite(run.best_val_loss) else None,
            mfu=total.mfu,
            tokens_per_second=total.tokens_per_second,
            wall_seconds=total.wall_seconds,
            numerics=run.numerics.to_json(),
            numerics_history=history if len(history) > 1 else None,
            provenance=provenance() | machine,
        )


@contextmanager
def recording(run: Run, folder: RunFolder, lease: Lease | None) -> Iterator[Recorder]:
    """The recorder of a run; what is raised inside becomes the folder's state."""
    recorder = Recorder(run, folder, lease)
    try:
        yield recorder
    except Held:  # the folder is another's
        raise
    except BaseException as error:
        if run.ranks.is_master:
            refused = isinstance(error, (UserError, KeyboardInterrupt))
            state = WAITING if refused else FAILED
            with suppress(UserError, OSError):
                folder.set_status(state=state, reason=f"{type(error).__name__}: {error}")
        raise
    finally:
        recorder.close()
