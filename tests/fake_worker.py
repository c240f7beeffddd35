"""A worker without torch: a run's files in milliseconds, or the misbehaviour that is asked for.

`main(["run", FOLDER])` follows the contract of `nanoscale run`. What a run does is coded in its
beta1 (CRASH, DIE, ...); with any other it completes, its loss a power law of its FLOPs. VALLEY adds
a parabola in log LR, whose minimum goes as 1 / width but under muP, where it stays. Of a SURFACE
the loss is a law of N = C / 6 D and D, of which dropout wastes its share of the compute.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from nanoscale.spec.config import ResolvedConfig
from nanoscale.spec.counting import flops_per_iter, parameter_counts
from nanoscale.store.files import row_line, write_json
from nanoscale.store.folder import (
    BEST,
    COMPLETE,
    DIVERGED,
    FINISHED,
    METRICS,
    ROWS,
    RUNNING,
    WAITING,
    RunFolder,
)
from nanoscale.store.lease import Held

TINY = {
    "dataset": "toy",
    "n_layer": 1,
    "n_embd": 16,
    "n_head": 2,
    "block_size": 8,
    "batch_size": 2,
    "gradient_accumulation_steps": 1,
    "max_iters": 5,
    "device": "cpu",
}
CRASH, DIE, SLOW, DIVERGE, REFUSE, VALLEY = 0.11, 0.22, 0.33, 0.44, 0.55, 0.66  # values of beta1
SURFACE = 0.77
ENDLESS = 2000  # updates of a slow run that is ended before it has made them
HUNGRY, FLAKY, GREEDY, DEAF = 0.12, 0.13, 0.14, 0.15


def make_dataset(root: Path, name: str = "toy", tokens: int = 4000) -> Path:
    """A dataset of 16 symbols in `root`/data."""
    folder = root / "data" / name
    folder.mkdir(parents=True)
    for split in ("train", "val"):
        ids = [i * i % 16 for i in range(tokens)]
        (folder / f"{split}.bin").write_bytes(b"".join(i.to_bytes(2, "little") for i in ids))
    splits = {split: {"tokens": tokens, "bytes": tokens} for split in ("train", "val")}
    (folder / "meta.json").write_text(
        json.dumps(
            {
                "schema": 1,
                "dataset": name,
                "kind": "char",
                "vocab_size": 16,
                "splits": splits,
                "itos": [chr(97 + i) for i in range(16)],
            }
        )
    )
    return folder


def stand_in(folder: Path, patch: Any) -> None:
    """Work in the folder, on a toy dataset, with this worker in place of the real one."""
    from nanoscale.experiments.local import ForkServer
    from nanoscale.experiments.worker import Worker

    patch.chdir(folder)
    patch.setenv("PYTHONPATH", str(Path(__file__).parent))
    make_dataset(folder)
    fake = ForkServer(Worker(entry="fake_worker:main", preload=()))
    patch.setattr("nanoscale.experiments.backends.local_backend", lambda: fake)


def main(arguments: list[str]) -> int:
    """Run the folder; the exit code of `nanoscale run`."""
    folder = RunFolder(arguments[1])
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    try:
        with folder.take().beat():
            return 0 if folder.status().state in FINISHED else run(folder, stopped)
    except Held:
        return 130


def run(folder: RunFolder, stopped: list[int]) -> int:
    """Do what its beta1 says, until SIGTERM fills `stopped`."""
    config = folder.spec().config
    first = folder.status().checkpoint_step or 0
    print(f"pid {os.getpid()} threads {os.environ.get('OMP_NUM_THREADS')} from {first}")
    folder.set_status(state=RUNNING, step=first)
    with open(folder / "starts.txt", "a") as file:
        file.write(f"{os.getpid()} {first}\n")
    if config.beta1 == CRASH and not (folder / "mended").exists():
        raise RuntimeError("this run crashes")
    if config.beta1 == HUNGRY and config.micro_batch_size != 1:
        raise MemoryError(f"no room for {config.micro_batch_size or config.batch_size} sequences")
    if config.beta1 == FLAKY and first == 0:
        folder.set_status(step=2, checkpoint_step=2)
        raise RuntimeError("a cosmic ray")
    if config.beta1 == GREEDY and config.micro_batch_size != 1:
        room = bytearray(1 << 28)
        time.sleep(60 + 0 * len(room))
    if config.beta1 == DEAF:
        time.sleep(1000)
    if config.beta1 == REFUSE:
        print("error: the data are gone; prepare them again", file=sys.stderr)
        return 2
    pause = float(os.environ.get("SLOW_SECONDS", "0.1")) if config.beta1 == SLOW else 0.0
    often = 1 if pause else 1 + config.max_iters // 100
    for step in range(first + 1, config.max_iters + 1):
        with open(folder / ROWS, "a") as file:
            file.write(row_line({"step": step, "train_loss": 5.0 / step, "tokens_per_second": 1e4}))
        if step % often == 0:
            folder.set_status(step=step, checkpoint_step=step)
        if step in config.checkpoint_steps:
            (folder / f"ckpt-{step}.pt").touch()
        if config.beta1 == DIE:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(pause)
        if stopped:
            folder.set_status(state=WAITING)
            return 130
    return finish(folder)


def loss_of(config: ResolvedConfig, flops: float) -> float:
    """The loss that its beta1 says."""
    loss = 1.5 + 90.0 / flops**0.3 + 0.001 * (config.seed % 7)
    if config.beta1 == VALLEY:
        muon, still = config.optimizer == "muon", config.parametrization.mode == "muP"
        octaves = math.log2((config.muon_lr if muon else 10 * config.learning_rate) / 0.03)
        octaves += 0 if still else math.log2(config.n_embd / 16)
        loss += 0.05 * octaves**2 + 0.0005 * math.sin(config.seed + 100 * octaves)
    if config.beta1 == SURFACE:
        D = config.max_iters * config.tokens_per_iter
        octaves = math.log2(config.learning_rate / 6e-4)
        of_N, of_D = (x * math.sqrt(1 - config.dropout) for x in (flops / (6 * D), D))
        loss = 1.0 + 60.0 / of_N**0.5 + 40.0 / of_D**0.5 + 0.05 * octaves**2
        loss *= 1 + 0.002 * math.sin(config.n_embd + D + config.seed * (7 + 10 * config.dropout))
    return loss


def finish(folder: RunFolder) -> int:
    """Write what a finished run leaves."""
    config = folder.spec().config
    diverged = config.beta1 == DIVERGE
    counts, flops = parameter_counts(config), config.max_iters * flops_per_iter(config)
    loss = None if diverged else loss_of(config, flops)
    state = DIVERGED if diverged else COMPLETE
    write_json(
        folder / METRICS,
        {
            "schema": 1,
            "id": folder.spec().id,
            "status": state,
            "val_loss": loss,
            "best_val_loss": loss,
            "flops": flops,
            "total_params": counts["total"],
            "params": {"by_convention": counts},
            "iter_num": config.max_iters,
            "tokens_seen": config.max_iters * config.tokens_per_iter,
            "tokens_per_second": 1e4,
            "wall_seconds": 0.01,
            "config": config.to_dict(),
            "numerics": {"device": "cpu", "threads": config.threads},
        },
    )
    (folder / BEST).touch()
    folder.set_status(state=state, step=config.max_iters)
    return 1 if diverged else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
