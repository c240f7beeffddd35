"""What a run tells while it runs: lines for people, rows and their mirrors, throughput.

`metrics.jsonl` is the record; TensorBoard and W&B repeat it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping

from nanoscale.errors import UserError, disk_errors
from nanoscale.spec.config import ResolvedConfig
from nanoscale.spec.counting import flops_per_iter
from nanoscale.spec.identity import RunSpec
from nanoscale.spec.values import Json
from nanoscale.store.files import row_line
from nanoscale.store.folder import LOG, ROWS, RunFolder
from nanoscale.training.records import Timing


class Log:
    """Lines for people: on standard output and in the folder's `log.txt`, each once."""

    def __init__(self, folder: RunFolder) -> None:
        with disk_errors(folder / LOG):
            self.file = (folder / LOG).open("a", encoding="utf-8")
        try:  # a worker's standard output may be that very file
            same = os.path.samestat(os.fstat(sys.stdout.fileno()), os.fstat(self.file.fileno()))
        except (OSError, ValueError):
            same = False
        self.echo = not same

    def __call__(self, line: str) -> None:
        if self.echo:
            print(line, flush=True)
        with disk_errors(self.file.name):
            print(line, file=self.file, flush=True)

    def close(self) -> None:
        self.file.close()


# -- rows -----------------------------------------------------------------------------------------
class RowWriter:
    """Appends rows to `metrics.jsonl` and repeats them to the mirrors that the config asks for."""

    def __init__(self, folder: RunFolder, spec: RunSpec) -> None:
        self.path = folder / ROWS
        self.mirrors: list[TensorBoardMirror | WandbMirror] = []
        if spec.config.wandb_log:  # first: it may refuse
            self.mirrors.append(WandbMirror(folder, spec))
        if spec.config.tensorboard_log:
            rows = folder.rows()
            self.mirrors.append(TensorBoardMirror(folder, rows[-1]["step"] + 1 if rows else 0))
        with disk_errors(self.path):
            self.file = self.path.open("a", encoding="utf-8")

    def write(self, step: int, row: Mapping[str, Json]) -> None:
        with disk_errors(self.path):
            print(row_line(row), end="", file=self.file, flush=True)
        for mirror in self.mirrors:
            mirror.write(step, flat_numbers(row))

    def sync(self) -> None:
        """Have all rows on the disk, where they outlive a power cut."""
        with disk_errors(self.path):
            os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()
        for mirror in self.mirrors:
            mirror.close()


def flat_numbers(row: Mapping[str, Json], prefix: str = "") -> dict[str, float]:
    """The numbers of a row under slash-separated names."""
    flat: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            flat |= flat_numbers(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            flat[prefix + key] = value
    return flat


class TensorBoardMirror:
    """Rows as TensorBoard scalars in the run folder; those from `step` on are written anew."""

    def __init__(self, folder: RunFolder, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder.path), purge_step=step)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WandbMirror:
    """Rows as a W&B run whose id is the run's (WANDB_MODE=offline needs no account)."""

    def __init__(self, folder: RunFolder, spec: RunSpec) -> None:
        import wandb

        config = spec.config
        try:
            self.run = wandb.init(
                project=config.wandb_project,
                name=config.wandb_run_name,
                id=spec.id,
                resume="allow",
                dir=str(folder.path),
                config=config.to_dict(),
            )
        except wandb.Error as e:
            raise UserError(
                f"wandb_log=True: W&B refuses ({e}); run `wandb login`, set WANDB_MODE=offline, "
                "or leave wandb_log out"
            ) from e

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self.run.log(dict(numbers), step=step)

    def close(self) -> None:
        self.run.finish()


# -- throughput -----------------------------------------------------------------------------------
class Meter:
    """Seconds spent in updates since the last row, and in all.

    `peak` is the FLOP/s of all devices, `spent` the seconds of the run's earlier processes.
    """

    def __init__(self, config: ResolvedConfig, peak: float | None, spent: float = 0.0) -> None:
        self.tokens = config.tokens_per_iter
        self.flops = flops_per_iter(config)
        self.peak = peak
        self.spent = spent
        self.started = time.perf_counter()
        self.seconds = 0.0
        self.steps = 0
        self.total_seconds = 0.0
        self.total_steps = -1  # without the first: it pays for compilation and cold caches

    def add(self, seconds: float) -> None:
        self.seconds += seconds
        self.steps += 1
        if self.total_steps >= 0:
            self.total_seconds += seconds
        self.total_steps += 1

    def wall_seconds(self) -> float:
        """Since the run's beginning, over all its processes."""
        return self.spent + time.perf_counter() - self.started

    def row(self) -> Timing:
        """Of the updates since the last row; starts the next one."""
        timing = self.timing(self.seconds, self.steps)
        self.seconds = 0.0
        self.steps = 0
        return timing

    def total(self) -> Timing:
        """Of all updates of this process but the first."""
        return self.timing(self.total_seconds, self.total_steps)

    def timing(self, seconds: float, steps: int) -> Timing:
        """What `steps` updates in `seconds` amount to."""
        if steps <= 0 or not seconds:
            return Timing(None, None, None, self.wall_seconds())
        rate = steps / seconds
        return Timing(
            time_ms=seconds / steps * 1000,
            mfu=self.flops * rate / self.peak if self.peak else None,
            tokens_per_second=self.tokens * rate,
            wall_seconds=self.wall_seconds(),
        )
