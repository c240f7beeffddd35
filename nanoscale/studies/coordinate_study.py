"""Does a config's parametrization hold over width, or depth? Runs of every size, and a verdict.

The runs are an ordinary study with statistics at every step, so they are cached; `checks` does the
arithmetic on their rows.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nanoscale.checks.coordinate_bands import SweptSize
from nanoscale.checks.coordinate_verdict import CoordinateVerdict, coordinate_verdict
from nanoscale.checks.coordinates import CoordinateRun, Facts
from nanoscale.errors import UserError
from nanoscale.experiments import ExperimentRunner, Study
from nanoscale.experiments.cells import Cell, make_cells, questions
from nanoscale.experiments.records import Asked
from nanoscale.spec.config import (
    LENGTH_KEYS,
    ExperimentConfig,
    ResolvedConfig,
    flatten,
    from_flat,
)
from nanoscale.spec.parametrization import rules_of
from nanoscale.spec.sources import COMMAND_LINE, Source, layered, read_file
from nanoscale.spec.values import Json, Overrides

SWEPT_KEYS: dict[SweptSize, str] = {"width": "n_embd", "depth": "n_layer"}
LEAST_SIZES = 3
_STEPS, SEEDS = 10, 3
Rows = Sequence[Overrides]  # of a run's metrics.jsonl

MODEL: Overrides = {
    "dataset": "shakespeare_char",
    "n_layer": 2,
    "n_embd": 64,
    "n_head": 4,
}  # of no config
# Small LRs: an update's effect is read from the change it makes, not from a blow-up, which at 1e-2
# differs so much by seed that three of them decide nothing. No clipping, as that depends on the
# gauge: a rule may move a factor between a weight and its multiplier, and with it the norm.
PROTOCOL: Overrides = {
    "learning_rate": 2e-4,
    "muon_lr": 1e-2,
    "decay_lr": False,
    "min_lr_frac": 0.1,
    "grad_clip": 0.0,
    "batch_size": 4,
    "gradient_accumulation_steps": 1,
    "block_size": 64,
    "dropout": 0.0,
    "seed": 1,
    "dtype": "float32",
    "threads": 1,
    "compile": False,
    "eval_interval": 0,
    "eval_iters": 1,
    "final_eval_tokens": 1024,
}

OF_THE_CHECK = {  # keys that it sets -> what is typed instead
    **dict.fromkeys(LENGTH_KEYS, "--steps"),
    "stats_interval": "--steps",
    "init_seed": "--seed",
    "data_seed": "--seed",
}


def coord_check(
    config: ExperimentConfig | str | Path | None = None,
    *,
    widths: Iterable[int] = (),
    depths: Iterable[int] = (),
    keys: Overrides | None = None,
    steps: int = _STEPS,
    seeds: int = SEEDS,
    output_root: str | Path = "experiments_out",
    workers: int | None = None,
) -> CoordinateVerdict:
    """Whether activations and their updates keep their size over width, or depth: a verdict.

    Args:
        config: the model and its parametrization, or their file; a small GPT by default.
        widths, depths: the sizes to train, three or more of one of them.
        keys: config keys over those of `config` and over the check's own settings (LR, batch, ...).
        steps, seeds: of every size.
        output_root, workers: as of `ExperimentRunner`.

    Raises:
        UserError: the sizes or keys are bad, or a run has failed.

    Example:
        >>> import nanoscale as ns
        >>> from pathlib import Path
        >>> _ = Path("corpus.txt").write_text("the cat sat on the mat " * 200)
        >>> _ = ns.prepare("text", input="corpus.txt")
        vocab size: 10...
        >>> keys = {"dataset": "text", "n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8}
        >>> verdict = ns.coord_check(widths=[8, 16, 32], keys=keys, steps=2, seeds=1)
        [coord-check-width-SP-adamw] 3 runs...
        >>> verdict.sizes
        [8, 16, 32]
    """
    widths = sorted(set(widths))
    depths = sorted(set(depths))
    if bool(widths) == bool(depths):
        raise UserError("give one of widths and depths, as in widths=[64, 128, 256]")
    sweep: SweptSize = "width" if widths else "depth"
    sizes = widths or depths
    if len(sizes) < LEAST_SIZES or sizes[0] < 1:
        raise UserError(f"{sweep}s={sizes}: a slope needs at least {LEAST_SIZES} sizes above 0")
    for name, count in (("steps", steps), ("seeds", seeds)):
        if count < 1:
            raise UserError(f"{name}={count}: must be at least 1")
    files = []
    if isinstance(config, ExperimentConfig):
        usual = flatten(ExperimentConfig())
        chosen = {key: v for key, v in flatten(config).items() if v != usual[key]}
        files = [Source("config", chosen)]
    elif config is not None:
        files = [read_file(str(config), flatten(ExperimentConfig()))]
    flags = []
    if keys:
        flags = [Source(COMMAND_LINE, keys)]
    plan = CoordinatePlan.of(sweep, sizes, steps, seeds, files, flags)
    runner = ExperimentRunner(output_root=output_root, workers=workers)
    verdict = plan.run(Asked(), runner)
    if verdict is None:
        raise UserError("no verdict: some runs have failed")
    return verdict


# -- what will be run -----------------------------------------------------------------------------
@dataclass(frozen=True)
class CoordinatePlan:
    """Everything is checked before anything starts."""

    sweep: SweptSize
    sizes: Sequence[int]
    steps: int
    cells: Sequence[Cell]

    @classmethod
    def of(
        cls,
        sweep: SweptSize,
        sizes: Sequence[int],
        steps: int,
        seeds: int,
        files: Sequence[Source],
        flags: Sequence[Source],
    ) -> CoordinatePlan:
        """Files lie under the check's settings, what is typed over them."""
        typed = {key for flag in flags for key in flag.values}
        for key, instead in OF_THE_CHECK.items():
            if key in typed:
                raise UserError(f"--{key}: the check sets it; use {instead}")
        own = {"max_iters": steps, "stats_interval": 1, "init_seed": None, "data_seed": None}
        settings = Source("the check's settings", PROTOCOL)
        sources = [*files, settings, *flags, Source("the check", own)]
        defaults: dict[str, Json] = {} if files else {**MODEL}
        rows = size_rows(sweep, sizes, seeds, [Source("defaults", defaults), *sources], typed)
        return cls(sweep, sizes, steps, make_cells(defaults, sources, rows, f"--{sweep}s"))

    @property
    def name(self) -> str:
        """Of the study of its runs."""
        config = self.cells[0].spec.config
        return f"coord-check-{self.sweep}-{config.parametrization.mode}-{config.optimizer}"

    def bring(
        self,
        asked: Asked,
        runner: ExperimentRunner,
        name: str | None = None,
        dry_run: bool = False,
    ) -> Study:
        """Train what is not trained yet, as the study `name`."""
        warn = questions(self.cells, len(self.cells))
        return runner.run_specs(
            name or self.name, self.cells, warn=warn, asked=asked, dry_run=dry_run
        )

    def run(
        self, asked: Asked, runner: ExperimentRunner, name: str | None = None
    ) -> CoordinateVerdict | None:
        """Train and judge; None where runs have failed."""
        study = self.bring(asked, runner, name)
        if not study.ok:
            return None
        configs = {cell.spec.id: cell.spec.config for cell in self.cells}
        finished = []
        for entry, folder in study.runs():
            if lost := folder.lost_rows():
                raise UserError(f"{folder.path}: {lost}")
            finished.append((configs[entry.id], folder.rows()))
        verdict = self.judge(finished)
        return replace(verdict, asked=study.asked.to_json(), runs=list(configs))

    def judge(self, finished: Iterable[tuple[ResolvedConfig, Rows]]) -> CoordinateVerdict:
        """The verdict on the finished runs, each its config and rows."""
        runs = []
        configs = []
        for config, rows in finished:
            size = getattr(config, SWEPT_KEYS[self.sweep])
            run = CoordinateRun(
                size=size,
                seed=config.seed,
                rows=[row for row in rows if "statistics" in row],
                lr=learning_rates(config),
                base_lr=config.learning_rate,
            )
            runs.append(run)
            configs.append(config)
        return coordinate_verdict(self.sizes, runs, facts_of(self.sweep, configs), self.steps)


def size_rows(
    sweep: SweptSize,
    sizes: Sequence[int],
    seeds: int,
    sources: Sequence[Source],
    typed: set[str],
) -> list[dict[str, Json]]:
    """The cells' keys: every size with every seed; over widths, heads of one size are added."""
    values = layered(sources)
    first: Any = values["seed"]
    heads_grow = "n_head" in typed and "n_embd" not in typed
    rows = []
    for size in sizes:
        heads: dict[str, int] = {}
        if sweep == "width" and not heads_grow:
            heads = _heads(from_flat(values), size)
        for seed in range(first, first + seeds):
            row: dict[str, Json] = {SWEPT_KEYS[sweep]: size, "seed": seed, **heads}
            rows.append(row)
    return rows


def _heads(config: ExperimentConfig, width: int) -> dict[str, int]:
    """As many heads of the config's size as make up the width."""
    head = config.head_dim
    group = config.n_head // config.kv_heads
    what = f"{head}, the head size"
    if group > 1:
        what = f"{head * group}, as {group} heads of size {head} share their keys"
    if width % (head * group):
        raise UserError(
            f"--widths: {width} is not a multiple of {what}; choose "
            f"multiples, or keep the number of heads with --n_head={config.n_head}"
        )
    heads = {"n_head": width // head}
    if config.n_kv_head is not None:
        heads["n_kv_head"] = heads["n_head"] // group
    return heads


# -- what the configs say -------------------------------------------------------------------------
def learning_rates(config: ResolvedConfig) -> dict[str, float]:
    """Role -> LR of its tensors under AdamW, root mean square over their elements."""
    squares: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    rules = rules_of(config)
    for tensor in rules.tensors:
        rule = rules.rule(tensor)
        if rule.optimizer == "adamw":
            squares[tensor.role] += rule.lr**2 * tensor.numel
            counts[tensor.role] += tensor.numel
    rates = {}
    for role, count in counts.items():
        rates[role] = math.sqrt(squares[role] / count)
    return rates


def facts_of(sweep: SweptSize, configs: Sequence[ResolvedConfig]) -> Facts:
    """What the diagnosis needs to know of the sweep's configs."""
    first = configs[0]
    head_sizes = {config.head_dim for config in configs}
    residuals = {rules_of(config).multipliers.residual for config in configs}
    return Facts(
        sweep,
        heads_grow=len(head_sizes) > 1,
        tied=first.tie_embeddings,
        muon_scale=first.muon_scale if first.optimizer == "muon" else None,
        residual_varies=len(residuals) > 1,
        qk_norm=first.use_qk_norm,
    )
