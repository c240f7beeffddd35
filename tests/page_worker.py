"""What stands in for training where a page of the docs asks for a study: milliseconds a run.

Losses are a law of N and D with a best learning rate, which falls with the width under SP and stays
under muP. `python page_worker.py` runs a page's ```python blocks, one JSON string a line on its
input, in one namespace; a line says that a block is done. It ends at the first that fails.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import fake_worker

from nanoscale.spec.config import ResolvedConfig
from nanoscale.store.files import row_line
from nanoscale.store.folder import ROWS, RUNNING, RunFolder

ROWS_OF_A_RUN = 20


def install() -> None:
    """From here on, runs of studies in this process are this worker's."""
    from nanoscale.experiments import backends
    from nanoscale.experiments.local import ForkServer
    from nanoscale.experiments.worker import Worker
    from nanoscale.studies import approaches

    approaches.DELTAS, approaches.DROPPED = (1e-3,), (0,)  # a smaller multiverse
    fake = ForkServer(Worker(entry="page_worker:main", preload=()))
    backends.local_backend = lambda: fake


def main(arguments: list[str]) -> int:
    """Run the folder; the exit code of `nanoscale run`."""
    fake_worker.loss_of = loss_of
    folder = RunFolder(arguments[1])
    with folder.take().beat():
        config = folder.spec().config
        folder.set_status(state=RUNNING, step=0)
        steps = range(1, config.max_iters + 1, 1 + config.max_iters // ROWS_OF_A_RUN)
        with open(folder / ROWS, "w") as file:
            for step in steps:
                row = {"step": step, "train_loss": 5.0 / step, "tokens_per_second": 1e4}
                file.write(row_line(row))
        for step in config.checkpoint_steps:
            (folder / f"ckpt-{step}.pt").touch()
        return fake_worker.finish(folder)


def loss_of(config: ResolvedConfig, flops: float) -> float:
    """1 + 60 / N^.5 + 40 / D^.5, and a parabola in log LR; N is C / 6 D. Seeds differ by 0.1 %."""
    D = config.max_iters * config.tokens_per_iter
    rate, best = config.learning_rate, 3e-3
    if config.optimizer == "muon":
        rate, best = config.muon_lr, 3e-2
    elif config.parametrization.mode == "SP":
        best *= 64 / config.n_embd
    octaves = math.log2(rate / best)
    loss = 1.0 + 60.0 / (flops / (6 * D)) ** 0.5 + 40.0 / D**0.5 + 0.02 * octaves**2
    return loss * (1 + 0.001 * math.sin(config.n_embd + D + 7 * config.seed))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # the doors: `from experiments import ...`
    install()
    names: dict[str, object] = {"__name__": "__page__"}
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        exec(compile(json.loads(line), "a block of the page", "exec"), names)
        print("done", file=answers, flush=True)
