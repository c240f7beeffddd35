"""The training loop: exactly `max_iters` updates and a final evaluation, from a run folder.

Nothing in it is a stream: batch t is a function of (data_seed, t), a dropout mask of (seed, t,
micro-batch, rank), so a checkpoint holds no random state, evaluation never disturbs training, and a
resumed run equals its uninterrupted twin bit for bit.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanoscale.errors import UserError
from nanoscale.model import kernels
from nanoscale.model.distributed import Ranks, gathered, no_sync, session, whole
from nanoscale.signals import stop_requests
from nanoscale.spec.counting import (
    flops_per_iter,
    flops_per_token,
    parameter_counts,
    parameters_by_role,
)
from nanoscale.spec.identity import RunSpec, label
from nanoscale.spec.resolve import warnings
from nanoscale.spec.schedule import lr_multiplier
from nanoscale.store.files import atomic_write, cut_rows, write_json
from nanoscale.store.folder import (
    BEST,
    CHECKPOINT,
    COMPLETE,
    DIVERGED,
    FAILED,
    METRICS,
    ROWS,
    RUNNING,
    SCHEMA,
    WAITING,
    WINDOWS,
    RunFolder,
    checkpoint_file,
    parse_branch,
)
from nanoscale.store.lease import Held, Lease
from nanoscale.store.provenance import provenance
from nanoscale.store.resume import is_finished, open_folder
from nanoscale.training import checkpoint, telemetry
from nanoscale.training.evaluation import bits_per_byte, evaluate, final_losses
from nanoscale.training.run import Run, build, dataset_of, load_start, save

Say = Callable[[str], None]


# -- one update ---------------------------------------------------------------------------------
def dropout_seed(seed: int, step: int, micro: int, rank: int) -> int:
    """A seed that depends on its four numbers alone."""
    text = f"{seed} {step} {micro} {rank}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def micro_batches(run: Run) -> Iterator[tuple[list[Tensor], float]]:
    """This rank's share of batch `step`, in pieces, each with its weight in the mean."""
    config = run.config
    share = config.sequences_per_iter // run.ranks.world
    first = run.step * config.sequences_per_iter + run.ranks.rank * share
    size = min(config.micro_batch_size or config.batch_size, share)
    for at in range(0, share, size):
        count = min(size, share - at)
        yield run.to_device(*run.sampler.batch(first + at, count)), count / share


def update(run: Run, with_statistics: bool = False) -> dict[str, Any]:
    """One update; returns the batch's loss and the gradient norm (tensors), and the statistics."""
    config = run.config
    multiplier = lr_multiplier(config, run.step)
    run.optimizers.set_lr(multiplier)
    total: Tensor | float = 0.0
    pieces = list(micro_batches(run))
    for micro, ((X, Y), weight) in enumerate(pieces):
        if config.dropout:
            torch.manual_seed(dropout_seed(config.seed, run.step, micro, run.ranks.rank))
        more = run.ranks.world > 1 and micro < len(pieces) - 1
        with no_sync(run.trained) if more else nullcontext():
            with run.autocast():
                loss = run.trained(X, Y)[1] * weight
            run.scaler.scale(loss).backward()
        total = total + loss.detach()
    for part in run.optimizers.parts:
        run.scaler.unscale_(part)
    statistics = Statistics(run, pieces[0][0][0]) if with_statistics else None
    norm = run.optimizers.clip(config.grad_clip)
    for part in run.optimizers.parts:
        run.scaler.step(part)
    run.model.ops.weights_changed()
    run.scaler.update()
    run.optimizers.zero_grad()
    run.step += 1
    row = {"train_loss": total, "grad_norm": whole(norm), "lr": config.learning_rate * multiplier}
    return row | ({"statistics": statistics.after()} if statistics else {})


class Statistics:
    """Sizes around one update: gradients and activations before it, weights and changes after."""

    def __init__(self, run: Run, X: Tensor) -> None:
        self.run, self.X, self.before = run, X, telemetry.weights(run.model)
        self.grad_rms = telemetry.rms_by_role(run.model, telemetry.gradients(run.model))
        self.kept: dict[str, Tensor] = {}
        with run.autocast():
            self.activations = telemetry.activation_statistics(run.model, X, self.kept)

    def after(self) -> dict[str, Any]:
        model = self.run.model
        now = telemetry.weights(model)
        change = {name: now[name] - self.before[name] for name in now}
        with self.run.autocast():
            changes = telemetry.activation_changes(model, self.X, self.kept)
        return {
            "grad_rms": self.grad_rms,
            "weight_rms": telemetry.rms_by_role(model, now),
            "update_rms": telemetry.rms_by_role(model, change),
            **self.activations,
            "activation_change_rms": changes,
        }


# -- the loop -----------------------------------------------------------------------------------
class Recorder:
    """What the run leaves in its folder; the master's alone, silent on the other ranks."""

    def __init__(self, run: Run, folder: RunFolder, lease: Lease | None) -> None:
        self.run, self.folder, self.lease = run, folder, lease
        self.active = run.ranks.is_master
        if self.active:
            take_over(run, folder)
            self.rows, self.log = telemetry.Rows(folder, run.spec), telemetry.Log(folder)

    def say(self, line: str) -> None:
        if self.active:
            self.log(line)

    def row(self, values: dict[str, Any]) -> dict[str, Any]:
        """Complete a row and append it."""
        run = self.run
        row = {
            "step": run.step,
            "tokens_seen": run.step * run.config.tokens_per_iter,
            "flops": run.step * flops_per_iter(run.config),
            "lr": None,
            "train_loss": None,
            "val_loss": None,
            "grad_norm": None,
            **values,
            **run.meter.columns(),
        }
        if self.writes():
            self.rows.write(row)
        return row

    def writes(self) -> bool:
        """Whether this rank writes; refuses once others have taken the folder over."""
        if self.lease:
            self.lease.check()
        return self.active

    def evaluation(self) -> tuple[dict[str, Any], bool]:
        """An evaluation's part of a row, and whether it is the best so far (then it is kept)."""
        run, found = self.run, evaluate(self.run)
        self.say(
            f"step {run.step}: train loss {found['eval_train_loss']:.4f}, "
            f"val loss {found['val_loss']:.4f}"
        )
        improved = found["val_loss"] < run.best_val_loss
        if improved:
            run.best_val_loss = found["val_loss"]
        if improved and run.step > 0 and run.config.keep != "none":
            best = gathered({"model": run.model.state_dict()}, run.ranks)
            if self.writes():
                checkpoint.save(
                    self.folder / BEST, run.spec, step=run.step, val_loss=found["val_loss"], **best
                )
        return found, improved

    def late(self) -> bool:
        """Whether it is long since the last checkpoint; by the master's clock alone."""
        since = time.perf_counter() - self.run.saved_at
        return self.active and 0 < self.run.config.checkpoint_seconds < since

    def keep(self, due: bool) -> None:
        """Checkpoint when due and at kept steps; every rank takes part."""
        kept = self.run.step in self.run.config.checkpoint_steps
        if due or kept:
            self.writes()
        if due:
            save(self.run, self.folder)
        if kept:
            save(self.run, self.folder, checkpoint_file(self.run.step))

    def close(self) -> None:
        if self.active:
            self.rows.close()
            self.log.close()


def loop(run: Run, recorder: Recorder, asked: threading.Event) -> str:
    """Train to the end; returns COMPLETE, DIVERGED, or WAITING when asked to stop."""
    config = run.config
    if run.step == 0 and config.eval_interval and config.max_iters:
        recorder.row(recorder.evaluation()[0])
    while run.step < config.max_iters:
        started, at = time.perf_counter(), run.step + 1
        last = at == config.max_iters
        statistics_due = bool(config.stats_interval) and at % config.stats_interval == 0
        evaluation_due = last or (bool(config.eval_interval) and at % config.eval_interval == 0)
        line_due = last or at == 1 or at % config.log_interval == 0
        row_due = line_due or statistics_due or evaluation_due
        row = update(run, statistics_due)
        finite = settle(run, row) if row_due or run.device.type == "cpu" else True
        run.meter.add(time.perf_counter() - started)
        if not finite:
            recorder.say(f"iter {at}: the loss is not finite: the run has diverged")
            recorder.row(row)
            return DIVERGED
        save_due = last
        if evaluation_due:
            found, improved = recorder.evaluation()
            row |= found
            save_due |= improved or config.always_save_checkpoint
        if row_due:
            row = recorder.row(row)
        if line_due:
            recorder.say(progress_line(run, row))
        stopping, late = (
            agreed(run, not last and asked.is_set(), recorder.late())
            if row_due or run.ranks.world == 1
            else (False, False)
        )
        recorder.keep(save_due or stopping or late)
        if stopping:
            return WAITING
    return COMPLETE


def settle(run: Run, row: dict[str, Any]) -> bool:
    """Bring a row's loss and norm to this process, averaged over ranks; False: not finite."""
    row["train_loss"] = run.ranks.sum(row["train_loss"]).item() / run.ranks.world
    row["grad_norm"] = row["grad_norm"].item()
    return math.isfinite(row["train_loss"])


def agreed(run: Run, *flags: bool) -> list[bool]:
    """Which flags any rank raises, known to all of them."""
    if run.ranks.world == 1:
        return list(flags)
    raised = torch.tensor(flags, dtype=torch.float32, device=run.device)
    return (run.ranks.sum(raised) > 0).tolist()


def progress_line(run: Run, row: dict[str, Any]) -> str:
    """nanoGPT's line, with tokens and the time left."""
    mfu = "" if row["mfu"] is None else f", mfu {100 * row['mfu']:.2f}%"
    left = (run.config.max_iters - run.step) * row["time_ms"] / 1000
    eta = next(
        f"{left / unit:.{digits}f}{name}"
        for unit, name, digits in ((3600, "h", 1), (60, "m", 1), (1, "s", 0))
        if left > 1.5 * unit or unit == 1
    )
    return (
        f"iter {run.step}: loss {row['train_loss']:.4f}, time {row['time_ms']:.2f}ms{mfu}, "
        f"tokens {row['tokens_seen']:,}, eta {eta}"
    )


# -- from folder to result ------------------------------------------------------------------------
def introduce(run: Run, say: Say) -> None:
    """nanoGPT's first lines, and what a reader should know before the first step."""
    config, n, p = run.config, parameter_counts(run.config), run.config.parametrization
    say(f"tokens per iteration will be: {config.tokens_per_iter:,}")
    say(f"found vocab_size = {run.dataset.vocab_size} (inside {run.dataset.folder})")
    say(
        f"number of parameters: {n['non_position'] / 1e6:.2f}M "
        f"({n['total']:,} in total, {n['non_embedding']:,} without embeddings)"
    )
    if p.mode != "SP":
        say(
            f"{p.mode} relative to base_n_embd={p.base_n_embd}, base_n_layer={p.base_n_layer}, "
            f"base_head_dim={p.base_head_dim}"
        )
    if run.device.type == "cpu" and config.kernels == "auto" and kernels.library() is None:
        say("our kernels need Linux and g++: on torch's operations, about half as fast")
    for warning in warnings(config):
        say(f"warning: {warning}")
    say(
        f"{label(config)} on {run.numerics['device_name']} in {run.numerics['dtype']}, "
        f"{'compiled' if run.numerics['compile'] else run.numerics['kernels'] + ' kernels'}"
        + (
            f", {run.numerics['sharding']} over {run.ranks.world} processes"
            if run.ranks.world > 1
            else ""
        )
        + (f", continuing after step {run.step}" if run.step else "")
    )


def results(run: Run, state: str) -> dict[str, Any]:
    """`metrics.json`, but for what the final evaluation adds."""
    config, counts, meter = run.config, parameter_counts(run.config), run.meter
    data = {"name": run.spec.data_name, "fingerprint": run.spec.data_fingerprint}
    best = run.best_val_loss
    return {
        "schema": SCHEMA,
        "status": state,
        "id": run.spec.id,
        "best_val_loss": best,
        "val_loss": None,
        "val_bits_per_byte": None,
        "train_loss": None,
        "iter_num": run.step,
        "tokens_seen": run.step * config.tokens_per_iter,
        "total_params": counts["total"],
        "params": {"by_role": parameters_by_role(config), "by_convention": counts},
        "flops": run.step * flops_per_iter(config),
        "flops_per_token": flops_per_token(config),
        **{k: v for k, v in meter.totals().items() if k != "time_ms"},
        "config": config.to_dict(),
        "numerics": run.numerics,
        "provenance": provenance()
        | {"device": run.numerics["device_name"], "data": data, "world_size": run.ranks.world},
    }


def finish(run: Run, recorder: Recorder, state: str) -> None:
    """The final evaluation, `windows.npy`, `metrics.json`, and the state that ends the run."""
    folder, found = recorder.folder, results(run, state)
    if state == COMPLETE:
        losses = final_losses(run)
        loss = float(losses.mean())
        bpb = bits_per_byte(run, loss)
        found |= {"val_loss": loss, "val_bits_per_byte": bpb}
        if not math.isfinite(run.best_val_loss):  # max_iters=0: no other evaluation was made
            found["best_val_loss"] = loss
        recorder.say(
            f"final: val loss {loss:.4f}"
            + (f", {bpb:.4f} bits per byte" if bpb else "")
            + f" over {len(losses) * run.config.block_size:,} tokens"
        )
    if not recorder.writes():
        return
    if state == COMPLETE:
        rows = folder.rows()
        found["train_loss"] = rows[-1]["eval_train_loss"] if rows else None
        with atomic_write(folder / WINDOWS) as path, open(path, "wb") as file:
            np.save(file, losses)
    write_json(folder / METRICS, found)
    folder.set_status(state=state, step=run.step)
    if run.config.keep != "all":
        folder.set_status(checkpoint_step=None)
        (folder / CHECKPOINT).unlink(missing_ok=True)


def take_over(run: Run, folder: RunFolder) -> None:
    """Cut the folder's rows back to where the run stands; a branch copies its past."""
    for torn in folder.path.glob(".*.tmp"):  # what a killed writer left
        torn.unlink(missing_ok=True)
    if run.step and run.config.branch_from and not (folder / CHECKPOINT).is_file():
        parent, _ = parse_branch(run.config.branch_from)
        shutil.copyfile(parent / ROWS, folder / ROWS)
    if (folder / ROWS).is_file():
        cut_rows(folder / ROWS, run.step if run.step else -1)
    folder.set_status(state=RUNNING, step=run.step, reason=None)


def owned(folder: RunFolder, ranks: Ranks) -> AbstractContextManager[Lease | None]:
    """The master's lease of the folder, with a heartbeat."""
    return folder.take().beat() if ranks.is_master else nullcontext()


def train(folder: RunFolder, ranks: Ranks | None = None) -> str:
    """Run the folder's config to its end and return the state: COMPLETE, DIVERGED or WAITING.

    Raises:
        UserError: the data, a checkpoint or the disk refuses; the run stays WAITING.
        Held: another process trains there.
    """
    spec = folder.spec()
    if ranks is None:
        with session(spec.config) as ranks:
            return train(folder, ranks)
    if spec.config.sequences_per_iter % ranks.world:
        raise UserError(
            f"{spec.config.sequences_per_iter} sequences per update do not divide over "
            f"{ranks.world} processes; change batch_size or "
            "gradient_accumulation_steps"
        )
    with stop_requests() as asked, owned(folder, ranks) as lease:
        if is_finished(folder):  # by another process, while this one was starting
            return folder.state()
        run = build(spec, dataset_of(spec), ranks, load_start(spec, folder))
        recorder = Recorder(run, folder, lease)
        try:
            introduce(run, recorder.say)
            state = loop(run, recorder, asked)
            if state == WAITING:
                recorder.say(
                    f"interrupted: saved after step {run.step}; the same command continues"
                )
                if recorder.active:
                    folder.set_status(state=WAITING, step=run.step)
            else:
                finish(run, recorder, state)
            return state
        except BaseException as e:
            refused = isinstance(e, (UserError, KeyboardInterrupt))
            if recorder.active and not isinstance(e, Held):
                with suppress(UserError, OSError):
                    folder.set_status(
                        state=WAITING if refused else FAILED, reason=f"{type(e).__name__}: {e}"
                    )
            raise
        finally:
            recorder.close()


def train_ranks(spec: RunSpec, path: Path, resume: bool) -> str:
    """Train under torchrun: the master opens the folder, the others follow its decision."""
    with session(spec.config) as ranks:
        decision: tuple[str, str] = ("train", "")
        if ranks.is_master:
            try:
                folder = open_folder(path, spec, resume)
                decision = ("finished", folder.state()) if is_finished(folder) else decision
            except UserError as e:
                decision = ("refused", str(e))
        verdict, words = ranks.broadcast(decision)
        if verdict == "refused":
            raise UserError(words)
        return words if verdict == "finished" else train(RunFolder(path), ranks)
