"""The other side of `bench.py --peer`: one training step of a nanoGPT clone, on request.

Run as a script in a process of its own, where `model` is the clone's: it imports nothing of ours.
A job, the keys of a nanoscale config beside the clone's `path` and a `train_bin` (null: random
tokens), comes in as one line of JSON, answered when the model stands; every further line asks for
one step, answered with its seconds.
The step is that of nanoGPT's train.py (github.com/karpathy/nanoGPT): the next batch is cut between
the forward and the backward pass, gradients are scaled and clipped, its own AdamW steps.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor


# The keys of a clone's GPTConfig.
MODEL_KEYS = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "dropout", "bias")


def batches(job: SimpleNamespace) -> Callable[[], tuple[Tensor, Tensor]]:
    """A function that returns inputs and targets, (batch_size, block_size) each."""
    import numpy as np
    import torch

    B, T = job.batch_size, job.block_size
    if job.train_bin is None:
        tokens = torch.randint(job.vocab_size, (2, B, T), device=job.device)
        return lambda: (tokens[0], tokens[1])

    def placed(tokens: npt.NDArray[np.uint16], starts: list[int]) -> Tensor:
        windows = [torch.from_numpy(tokens[s : s + T].astype(np.int64)) for s in starts]
        batch = torch.stack(windows)
        if job.device == "cuda":
            return batch.pin_memory().to(job.device, non_blocking=True)
        return batch.to(job.device)

    def cut() -> tuple[Tensor, Tensor]:
        tokens = np.memmap(job.train_bin, np.uint16, "r")  # anew each time, as nanoGPT does
        starts = torch.randint(len(tokens) - T, (B,)).tolist()
        return placed(tokens, starts), placed(tokens[1:], starts)

    return cut


def stepper(job: SimpleNamespace) -> Callable[[], None]:
    """The clone's model and optimizer, as a function that makes one update and waits for it."""
    import torch

    torch.manual_seed(job.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if job.threads:
        torch.set_num_threads(job.threads)
    clone = importlib.import_module("model")
    keys = {key: getattr(job, key) for key in MODEL_KEYS}
    bare = clone.GPT(clone.GPTConfig(**keys)).to(job.device)
    on_cuda = job.device == "cuda"
    device_type = "cuda" if on_cuda else "cpu"  # it knows two types
    betas = job.beta1, job.beta2
    optimizer = bare.configure_optimizers(job.weight_decay, job.learning_rate, betas, device_type)
    scaler = torch.amp.GradScaler(device_type, enabled=job.dtype == "float16")
    model = torch.compile(bare) if job.compile else bare
    autocast = torch.autocast("cuda", getattr(torch, job.dtype)) if on_cuda else nullcontext()
    get_batch = batches(job)
    X, Y = get_batch()

    def step() -> None:
        nonlocal X, Y
        for _ in range(job.gradient_accumulation_steps):
            with autocast:
                loss = model(X, Y)[1] / job.gradient_accumulation_steps
            X, Y = get_batch()
            scaler.scale(loss).backward()
        if job.grad_clip:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(bare.parameters(), job.grad_clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # waits for the device

    return step


def main() -> None:
    """Serve steps until standard input closes."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the clone prints is no answer
    job = SimpleNamespace(**json.loads(sys.stdin.readline()))
    sys.path.insert(0, job.path)
    step = stepper(job)
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        step()
        print(time.perf_counter() - started, file=answers, flush=True)


if __name__ == "__main__":
    main()
