"""The training loop: exactly `max_iters` updates and a final evaluation.

Nothing in it is a stream: batch t is a function of (data_seed, t), a dropout mask of (seed, t,
sample, site), so a checkpoint holds no random state, evaluation never disturbs training, and a
resumed run equals its uninterrupted twin bit for bit.
"""

from __future__ import annotations

import functools
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nanoscale.model.distributed import no_sync
from nanoscale.model.masks import sample_keys
from nanoscale.spec.schedule import Due, lr_multiplier
from nanoscale.store.folder import COMPLETE, DIVERGED, TRACE, WAITING
from nanoscale.training import lines
from nanoscale.training.halves import halves_of
from nanoscale.training.profiling import profiling
from nanoscale.training.recorder import Recorder
from nanoscale.training.records import StatisticsRecord, UpdateRecord
from nanoscale.training.state import Run
from nanoscale.training.statistics import Statistics


# -- one update -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class MicroBatch:
    """A part of this rank's share of a batch, with its weight in the mean over the share."""

    X: Tensor  # (b, T) tokens
    Y: Tensor  # (b, T) the tokens that follow
    weight: float
    last: bool
    masks: Tensor | None  # (b,) keys of the sequences' masks, with dropout


def micro_batches(run: Run) -> Iterator[MicroBatch]:
    """This rank's share of batch `run.step`, in pieces that fit into memory."""
    config = run.config
    batch = config.sequences_per_iter
    share = batch // run.ranks.world
    start = run.ranks.rank * share  # in the batch
    most = config.micro_batch_size or config.batch_size
    for at in range(0, share, most):
        count = min(most, share - at)
        arrays = run.samples.batch(run.step * batch + start + at, count)
        X, Y = run.to_device(*arrays)
        masks = None
        if config.dropout:
            keys = sample_keys(config.seed, run.step, start + at, count)
            (masks,) = run.to_device(keys.numpy())
        yield MicroBatch(X, Y, count / share, last=at + count == share, masks=masks)


def first_half(run: Run, batch: Sequence[MicroBatch]) -> list[MicroBatch]:
    """The sequences of a batch that have an even number in it, whichever rank has them."""
    number = run.ranks.rank * (run.config.sequences_per_iter // run.ranks.world)
    kept: list[MicroBatch] = []
    for micro in batch:
        even = slice(number % 2, None, 2)
        number += len(micro.X)
        X, Y = micro.X[even], micro.Y[even]
        masks = None if micro.masks is None else micro.masks[even]
        weight = len(X) * run.ranks.world / halves_of(run.config.sequences_per_iter)[0]
        if len(X):
            kept.append(MicroBatch(X, Y, weight, last=False, masks=masks))
    if not kept:  # of this rank's one sequence nothing: it takes part all the same
        kept.append(replace(batch[0], weight=0.0))
    return [*kept[:-1], replace(kept[-1], last=True)]


@dataclass(frozen=True)
class UpdateDone:
    """What an update came to, on its device: nobody has waited for it yet."""

    loss: Tensor  # this rank's share of the batch's, z-loss included
    grad_norm: Tensor  # before clipping
    lr: float
    statistics: StatisticsRecord | None


def update(run: Run, with_statistics: bool = False) -> UpdateDone:
    """One update: forward and backward over the batch, then the optimizer step."""
    multiplier = lr_multiplier(run.config, run.step)
    run.optimizers.set_lr(multiplier)
    with run.part("data"):
        batch = list(micro_batches(run))
    if run.halves:
        gradients_of(run, first_half(run, batch))
        run.halves.keep_gradients()
    statistics = Statistics(run, batch[0].X, run.halves) if with_statistics else None
    if len(batch) == 1 and not statistics and run.whole:
        (micro,) = batch
        with run.numerics.autocast():
            loss, norm = run.whole.run(micro.X, micro.Y, micro.masks)
    else:
        loss, norm = in_parts(run, batch, statistics)
    if run.halves:
        run.halves.advance(norm, begins=run.step == 0)
    run.step += 1
    return UpdateDone(
        loss=loss,
        grad_norm=norm,
        lr=run.config.learning_rate * multiplier,
        statistics=statistics.after() if statistics else None,
    )


def in_parts(
    run: Run, batch: Sequence[MicroBatch], statistics: Statistics | None
) -> tuple[Tensor, Tensor]:
    """The gradients of each micro-batch, then the optimizer step: the loss, and the norm."""
    loss = gradients_of(run, batch)
    before_clipping = statistics.before if statistics else None
    with run.part("optimizer"):
        norm = run.optimizers.step(run.scaler, run.config.grad_clip, before_clipping)
    return loss, norm


def gradients_of(run: Run, batch: Sequence[MicroBatch]) -> Tensor:
    """Add up the gradients of each micro-batch; the loss of all."""
    losses: list[Tensor] = []
    for micro in batch:
        stay = run.ranks.world > 1 and not micro.last  # these gradients, on their rank
        with no_sync(run.trained) if stay else nullcontext():
            with run.part("forward"), run.numerics.autocast():
                loss = run.trained(micro.X, micro.Y, masks=micro.masks)[1] * micro.weight
            with run.part("backward"):
                run.scaler.scale(loss).backward()
        losses.append(loss.detach())
    total: Tensor = functools.reduce(torch.add, losses)
    return total


# -- the loop -------------------------------------------------------------------------------------
def loop(run: Run, recorder: Recorder, asked: threading.Event) -> str:
    """Train to the end; returns COMPLETE, DIVERGED, or WAITING when asked to stop."""
    config = run.config
    if run.step == 0 and config.eval_interval and config.max_iters:
        recorder.row(None, recorder.evaluate())

    with profiled(run, recorder) as step:
        while run.step < config.max_iters:
            with step():
                end = go_on(run, recorder, asked)
            if end is not None:
                return end
    if config.max_iters == 0:
        recorder.save(True)  # the weights as they came
    return COMPLETE


@contextmanager
def profiled(run: Run, recorder: Recorder) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """What each update is made in: the master profiles some where that is asked for."""
    left = run.config.max_iters - run.step
    if not run.config.profile or not run.ranks.is_master or not left:
        yield nullcontext
        return
    with profiling(run, recorder.folder / TRACE, recorder.say, left) as profiler:
        yield profiler.step


def go_on(run: Run, recorder: Recorder, asked: threading.Event) -> str | None:
    """One update, and what is due after it; how the run ends, if it does here."""
    config = run.config
    due = Due(config, run.step + 1)
    started = time.perf_counter()
    done = update(run, due.statistics)
    known = record(run, done) if due.row or looks_are_free(run) else None
    run.meter.add(time.perf_counter() - started)

    if known and not math.isfinite(known.batch_loss):
        recorder.say(f"iter {run.step}: the loss is not finite: the run has diverged")
        recorder.row(known, None)
        return DIVERGED

    save_due = due.last
    evaluation = None
    if due.evaluation:
        before = run.best_val_loss
        with run.part("evaluation"):
            evaluation = recorder.evaluate()
        save_due |= config.always_save_checkpoint or run.best_val_loss < before
    if due.row:
        row = recorder.row(known, evaluation)
        if evaluation and not math.isfinite(evaluation.val_loss):
            recorder.say(f"step {run.step}: val loss is not finite: the run has diverged")
            return DIVERGED
        if due.line:
            recorder.say(lines.progress(run, row))

    stopping = late = False
    if due.row or run.ranks.world == 1:  # ranks agree at rows alone: they wait for each other
        stopping, late = run.agree(asked.is_set() and not due.last, recorder.late())
    recorder.save(save_due or stopping or late)
    return WAITING if stopping else None


def looks_are_free(run: Run) -> bool:
    """Whether nobody waits for a look at the loss; a GPU works on while it is not looked at."""
    return run.device.type == "cpu"


def record(run: Run, done: UpdateDone) -> UpdateRecord:
    """The update's numbers, waited for, the loss averaged over ranks."""
    return UpdateRecord(
        batch_loss=run.ranks.sum(done.loss).item() / run.ranks.world,
        grad_norm=done.grad_norm.item(),
        lr=done.lr,
        statistics=done.statistics,
    )
