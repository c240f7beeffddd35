"""How much of an update is signal, over widths: the runs, which are measured where they end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nanoscale.errors import UserError
from nanoscale.experiments import ExperimentRunner, Study
from nanoscale.experiments.cells import Cell, make_cells, questions
from nanoscale.experiments.records import Asked
from nanoscale.spec.sources import Source
from nanoscale.spec.values import Json, Overrides
from nanoscale.studies.coordinate_study import MODEL, size_rows

# Of the hint that this reproduces: as the transfer studies, stopped where the rate is highest.
NOISE_PROTOCOL: Overrides = {
    "optimizer": "muon",
    "parametrization.mode": "muP",
    "learning_rate": 1e-2,
    "muon_lr": 1.5625e-2,
    "lr_schedule": "constant",
    "warmup_frac": 0.1,
    "use_rmsnorm": True,
    "use_rope": True,
    "use_swiglu": True,
    "batch_size": 8,
    "gradient_accumulation_steps": 1,
    "block_size": 64,
    "seed": 1,
    "eval_interval": 0,
    "eval_iters": 8,
    "log_interval": 100,
}
FORGOTTEN = 0.01
LONGEST_STREAM = 1000  # batches
OF_THE_NOISE_CHECK = {"max_iters": "--updates", "init_seed": "--seed", "data_seed": "--seed"}


@dataclass(frozen=True)
class NoisePlan:
    """Everything is checked before anything starts."""

    sizes: Sequence[int]
    updates: int
    cells: Sequence[Cell]

    @property
    def batches(self) -> int:
        """Of each stream: so many that momentum has a hundredth of its beginning left.

        Raises:
            UserError: they would be more than anybody waits for.
        """
        config = self.cells[0].spec.config
        key = "muon_momentum" if config.optimizer == "muon" else "beta1"
        momentum = getattr(config, key)
        count = math.ceil(math.log(FORGOTTEN) / math.log(momentum)) if momentum else 1
        if count > LONGEST_STREAM:
            raise UserError(
                f"{key}={momentum:g}: {count:,} batches would pass until it forgets its beginning;"
                f" choose one that does in {LONGEST_STREAM:,}, as 0.99 does"
            )
        return count

    @classmethod
    def of(
        cls,
        sizes: Sequence[int],
        updates: int,
        seeds: int,
        files: Sequence[Source],
        flags: Sequence[Source],
    ) -> NoisePlan:
        """The check's settings lie under files, and what is typed over them."""
        typed = {key for flag in flags for key in flag.values}
        for key, instead in OF_THE_NOISE_CHECK.items():
            if key in typed:
                raise UserError(f"--{key}: the check sets it; use {instead}")
        own = {"max_iters": updates, "init_seed": None, "data_seed": None, "keep": "all"}
        defaults: dict[str, Json] = {**MODEL, "n_head": 4, **NOISE_PROTOCOL}
        sources = [*files, *flags, Source("the check", own)]
        rows = size_rows("width", sizes, seeds, [Source("defaults", defaults), *sources], typed)
        plan = cls(sizes, updates, make_cells(defaults, sources, rows, "--widths"))
        assert plan.batches, "or it is refused here"
        return plan

    @property
    def name(self) -> str:
        """Of the study of its runs."""
        config = self.cells[0].spec.config
        return f"noise-check-{config.parametrization.mode}-{config.optimizer}"

    def bring(self, asked: Asked, runner: ExperimentRunner) -> Study:
        """Train what is not trained yet."""
        warn = questions(self.cells, len(self.cells))
        return runner.run_specs(self.name, self.cells, warn=warn, asked=asked)
