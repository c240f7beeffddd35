"""Losses on fixed windows, each at most once: they never disturb training and repeat exactly."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from nanoscale.data.dataset import evaluation_windows, windows
from nanoscale.errors import UserError
from nanoscale.model.distributed import Ranks
from nanoscale.spec.identity import RunSpec
from nanoscale.store.folder import CHECKPOINT, RunFolder
from nanoscale.training.run import Run, build, dataset_of, load_start

AT_ONCE = 4096  # tokens, if a batch is smaller: without a backward pass there is room


@torch.no_grad()
def window_losses(run: Run, split: str, limit: int, exact: bool = False) -> np.ndarray:
    """Mean loss in nats per token of up to `limit` fixed windows of a split, (n,) float64.

    The windows are spread over the ranks, which make equally many forward passes: a sharded
    model's are collective. `exact`: in float32, whatever the run trains in.
    """
    config, tokens = run.config, run.dataset.tokens[split]
    starts = evaluation_windows(len(tokens), config.block_size, limit)
    mine = np.arange(run.ranks.rank, len(starts), run.ranks.world)
    losses = torch.zeros(len(starts), dtype=torch.float64)
    size = max(config.micro_batch_size or config.batch_size, AT_ONCE // config.block_size)
    run.model.eval()
    for i in range(math.ceil(len(starts) / (run.ranks.world * size))):
        chosen = mine[i * size : (i + 1) * size]
        taken = chosen if len(chosen) else [0]  # a rank that is through passes with the others
        X, Y = run.to_device(*windows(tokens, starts[taken], config.block_size))
        with nullcontext() if exact else run.autocast():
            logits = run.model(X)[0]
        each = F.cross_entropy(logits.flatten(0, 1).float(), Y.flatten(), reduction="none")
        losses[chosen] = each.view(Y.shape).double().mean(dim=1).cpu()[: len(chosen)]
    run.model.train()
    if run.ranks.world > 1:
        losses = run.ranks.sum(losses.to(run.device)).cpu()
    return losses.numpy()


def evaluate(run: Run) -> dict[str, Any]:
    """An interval evaluation: as many windows of each split, at most `eval_iters` batches."""
    limit = run.config.eval_iters * run.config.batch_size
    val = window_losses(run, "val", limit)
    train = window_losses(run, "train", min(limit, len(val)))
    loss = float(val.mean())
    return {
        "val_loss": loss,
        "val_bits_per_byte": bits_per_byte(run, loss),
        "eval_train_loss": float(train.mean()),
    }


def final_losses(run: Run) -> np.ndarray:
    """The final evaluation: the whole validation split up to `final_eval_tokens`, in float32."""
    limit = max(1, run.config.final_eval_tokens // run.config.block_size)
    return window_losses(run, "val", limit, exact=True)


def bits_per_byte(run: Run, nats_per_token: float) -> float | None:
    """Validation loss in bits per byte of the text; None where its bytes are unknown."""
    bytes_per_token = run.dataset.bytes_per_token["val"]
    return nats_per_token / math.log(2) / bytes_per_token if bytes_per_token else None


def evaluate_only(spec: RunSpec, folder: RunFolder) -> float:
    """The final evaluation of the folder's latest checkpoint, or untrained; writes nothing."""
    resume = spec.config.init_from == "resume"
    if resume and not (folder / CHECKPOINT).is_file():
        raise UserError(f"init_from=resume: {folder.path} holds no checkpoint to evaluate")
    run = build(spec, dataset_of(spec), Ranks(), load_start(spec, folder) if resume else None)
    loss = float(final_losses(run).mean())
    print(f"step {run.step}: val loss {loss:.4f}")
    return loss
