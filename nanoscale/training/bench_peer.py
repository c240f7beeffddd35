"""The other side of `bench.py --peer`: one training step of a nanoGPT clone, on request.

Run as a script in a process of its own, where `model` is the clone's: it imports nothing of ours.
A JSON job comes in as one line, answered when the model stands; every further line asks for one
step, answered with its seconds.
The step is that of nanoGPT's train.py (github.com/karpathy/nanoGPT): the next batch is cut between
the forward and the backward pass, gradients are scaled and clipped, its own AdamW steps.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any


def batches(job: dict[str, Any]) -> Callable[[], tuple[Any, Any]]:
    """A function that returns inputs and targets, (batch_size, block_size) each."""
    import numpy as np
    import torch

    B, T = job["batch_size"], job["model"]["block_size"]
    if job["train_bin"] is None:
        fixed = torch.randint(job["model"]["vocab_size"], (2, B, T), device=job["device"])
        return lambda: (fixed[0], fixed[1])

    def cut() -> tuple[Any, Any]:
        tokens = np.memmap(job["train_bin"], np.uint16, "r")  # anew each time, as nanoGPT does
        starts = torch.randint(len(tokens) - T, (B,)).tolist()
        X, Y = (
            torch.stack(
                [
                    torch.from_numpy(tokens[s + shift : s + shift + T].astype(np.int64))
                    for s in starts
                ]
            )
            for shift in (0, 1)
        )
        if job["device"].startswith("cuda"):
            return tuple(t.pin_memory().to(job["device"], non_blocking=True) for t in (X, Y))
        return X.to(job["device"]), Y.to(job["device"])

    return cut


def stepper(job: dict[str, Any]) -> Callable[[], float]:
    """The clone's model and optimizer, as a function that makes one update and returns its loss."""
    import torch

    from model import GPT, GPTConfig  # the clone's

    torch.manual_seed(job["seed"])
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    device_type = "cuda" if job["device"].startswith("cuda") else "cpu"  # it knows two types
    bare = GPT(GPTConfig(**job["model"])).to(job["device"])
    optimizer = bare.configure_optimizers(
        job["weight_decay"], job["learning_rate"], tuple(job["betas"]), device_type
    )
    scaler = torch.amp.GradScaler(device_type, enabled=job["dtype"] == "float16")
    model = torch.compile(bare) if job["compile"] else bare
    autocast = (
        nullcontext()
        if device_type == "cpu"
        else torch.autocast(device_type, getattr(torch, job["dtype"]))
    )
    get_batch = batches(job)
    following = [get_batch()]

    def step() -> float:
        for _ in range(job["accumulation"]):
            with autocast:
                loss = model(*following[0])[1] / job["accumulation"]
            following[0] = get_batch()
            scaler.scale(loss).backward()
        if job["grad_clip"]:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(bare.parameters(), job["grad_clip"])
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()  # waits for the device

    return step


def main() -> None:
    """Serve steps until standard input closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the clone prints is no answer
    job = json.loads(sys.stdin.readline())
    sys.path.insert(0, job["path"])
    step = stepper(job)
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        step()
        print(time.perf_counter() - started, file=answers, flush=True)


if __name__ == "__main__":
    main()
