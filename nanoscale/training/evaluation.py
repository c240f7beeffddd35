"""Losses on fixed windows, each at most once: they never disturb training and repeat exactly."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch

from nanoscale.data.dataset import evaluation_windows, windows
from nanoscale.spec.memory import evaluated_at_once
from nanoscale.spec.values import Json
from nanoscale.training.halves import widened
from nanoscale.training.records import Evaluation
from nanoscale.training.state import Run

WindowLosses = npt.NDArray[np.float64]  # of windows, in nats per token, (n,)


@torch.no_grad()
def window_losses(run: Run, split: str, limit: int, exact: bool = False) -> WindowLosses:
    """Mean loss of each of up to `limit` fixed windows of a split.

    The windows are spread over the ranks, which make equally many forward passes: a sharded
    model's are collective. `exact`: in float32, whatever the run trains in.
    """
    config = run.config
    ranks = run.ranks
    n_tokens = len(run.dataset.tokens[split])
    starts = evaluation_windows(n_tokens, config.block_size, limit)
    mine = np.arange(ranks.rank, len(starts), ranks.world)
    size = evaluated_at_once(config)
    passes = math.ceil(len(starts) / (ranks.world * size))
    losses = torch.zeros(len(starts), dtype=torch.float64)

    run.model.eval()
    for i in range(passes):
        chosen = mine[i * size : (i + 1) * size]
        taken = chosen if len(chosen) else [0]  # a rank that is through passes with the others
        losses[chosen] = losses_at(run, split, starts[taken], exact)[: len(chosen)]
    run.model.train()

    if ranks.world > 1:
        losses = ranks.sum(losses.to(run.device)).cpu()
    return losses.numpy()


def losses_at(run: Run, split: str, starts: npt.NDArray[np.int64], exact: bool) -> torch.Tensor:
    """The mean loss of each window that begins at one of `starts`, (n,) float64."""
    tokens = run.dataset.tokens[split]
    arrays = windows(tokens, starts, run.config.block_size)
    X, Y = run.to_device(*arrays)  # (n, T) each
    with nullcontext() if exact else run.numerics.autocast():
        losses: torch.Tensor = run.model(X, Y, by_token=True)[1]  # (n, T)
    return widened(losses).mean(dim=1).cpu()


def evaluate(run: Run) -> Evaluation:
    """An interval evaluation: as many windows of each split, at most `eval_iters` batches."""
    limit = run.config.eval_iters * run.config.batch_size
    first, *others = run.dataset.val_sets
    val = window_losses(run, first, limit)
    train = window_losses(run, "train", min(limit, len(val)))
    val_loss = float(val.mean())
    return Evaluation(
        val_loss=val_loss,
        val_bits_per_byte=bits_per_byte(run, first, val_loss),
        eval_train_loss=float(train.mean()),
        further={name: float(window_losses(run, name, limit).mean()) for name in others},
    )


def final_losses(run: Run, name: str | None = None) -> WindowLosses:
    """The final evaluation of a validation set, the first if none is named, in float32.

    The whole set counts, up to `final_eval_tokens`.
    """
    limit = max(1, run.config.final_eval_tokens // run.config.block_size)
    return window_losses(run, name or run.dataset.val_sets[0], limit, exact=True)


@dataclass(frozen=True)
class SetLoss:
    """What a model is worth on one validation set."""

    loss: float  # nats per token
    bits_per_byte: float | None
    tokens: int  # predicted

    def to_json(self) -> dict[str, Json]:
        return asdict(self)


def set_loss(run: Run, name: str, losses: WindowLosses) -> SetLoss:
    """The mean of a set's windows."""
    loss = float(losses.mean())
    return SetLoss(loss, bits_per_byte(run, name, loss), len(losses) * run.config.block_size)


def bits_per_byte(run: Run, name: str, nats_per_token: float) -> float | None:
    """A validation set's loss in bits per byte of the text; None where its bytes are unknown."""
    bytes_per_token = run.dataset.bytes_per_token(name)
    return nats_per_token / math.log(2) / bytes_per_token if bytes_per_token else None
