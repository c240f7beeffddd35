"""Cells: what a study asks for, turned into run specs before any run starts.

A cell is one combination of the keys that a study varies. All cells are built, coerced and checked
first, so a mistake in the last one costs no training; equal cells are one run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from operator import attrgetter
from typing import Any

from nanoscale.data.dataset import Dataset, open_dataset
from nanoscale.errors import UserError
from nanoscale.experiments.records import RunEntry, describe
from nanoscale.spec.config import ExperimentConfig, from_flat
from nanoscale.spec.counting import flops_per_iter
from nanoscale.spec.identity import RunSpec, idle_keys
from nanoscale.spec.parametrization import scheme_of
from nanoscale.spec.resolve import warnings
from nanoscale.spec.sources import FIELDS, Source, apply, flatten_keys, layered, typed
from nanoscale.spec.values import Json, Overrides
from nanoscale.spec.weights import begins_with_weights
from nanoscale.store.folder import run_spec

MOST_WARNINGS = 5


@dataclass(frozen=True)
class Cell:
    """One run of a study: the varied keys' values, the config as asked, and the run it is."""

    values: Overrides
    config: ExperimentConfig  # relative forms (tokens_per_param, min_lr_frac, ...) still in place
    spec: RunSpec
    also: tuple[Overrides, ...] = ()  # other values that were asked for and make the same run
    stage: str | None = None  # of a study, that wants it

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def flops(self) -> int:
        """Exact training FLOPs of the run, from its branch on if it has one."""
        config = self.spec.config
        return flops_per_iter(config) * max(config.max_iters - self.branch_step, 0)

    @property
    def branch_step(self) -> int:
        """The update at which the run leaves another's past; 0 without one."""
        return int(self.spec.parent.rpartition("@")[2]) if self.spec.parent else 0

    @property
    def entry(self) -> RunEntry:
        """Its entry in the study's record."""
        return RunEntry(self.id, self.spec.name, self.values, self.flops, stage=self.stage)


def plain_values(name: str, values: object) -> dict[str, Json]:
    """`values` with nested tables as dotted keys and numpy's scalars as Python's."""
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise UserError(f"{name}={values!r}: expected a dict of config keys")
    return {key: plain(value) for key, value in flatten_keys(values).items()}


def plain(value: Any) -> Any:
    """A numpy scalar or array as Python's own; anything else unchanged."""
    return value.tolist() if hasattr(value, "tolist") else value


# -- grids --------------------------------------------------------------------------------------
def grid_lists(params: object, seeds: Iterable[int] | None, where: str) -> dict[str, list[Any]]:
    """The axes of a grid: key -> its values; `seeds`, if any, is one more axis, the last.

    `where` is how messages call the lists.

    Raises:
        UserError: a key's values are no list, or an empty one.
    """
    values = plain_values(where, params)
    lists = {key: _as_list(f"{where}: {key}", axis) for key, axis in values.items()}
    if seeds is not None:
        lists["seed"] = _as_list(f"{where}: seeds", plain(seeds))
    return lists


def combinations(lists: Mapping[str, Sequence[Json]]) -> list[dict[str, Json]]:
    """Every combination of the axes, the last one running fastest."""
    return [dict(zip(lists, row, strict=True)) for row in itertools.product(*lists.values())]


def _as_list(name: str, values: object) -> list[Any]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise UserError(f"{name}={values!r}: expected a list of values, as in [{values!r}]")
    items = [plain(value) for value in values]
    if not items:
        raise UserError(f"{name}=[]: expected at least one value")
    return items


# -- cells --------------------------------------------------------------------------------------
OpenDataset = Callable[[str, str, tuple[str, ...]], Dataset]  # by name, root, validation sets


def make_cells(
    defaults: Overrides,
    sources: Sequence[Source],
    rows: Iterable[Overrides],
    where: str,
    dataset_of: OpenDataset | None = None,
) -> list[Cell]:
    """The cells of `rows` over the common `sources` over `defaults`; equal ones appear once.

    `where` is how messages call the rows: `grid_params`, or a table of a study file; `dataset_of`
    may keep datasets open from one call to the next.

    Raises:
        UserError: a key, a value or a combination is bad, naming it and its cell.
    """
    base = layered([Source("defaults", defaults), *sources])
    dataset_of = dataset_of or cache(open_dataset)
    cells: dict[str, Cell] = {}
    for row in rows:
        source = Source(where, dict(row))
        values = apply(base, source)
        try:
            config = from_flat(values)
            dataset = dataset_of(config.dataset, config.data_root, config.val_sets)
            config, spec = _spec(config, dataset, typed([*sources, source]))
        except UserError as e:
            raise UserError(f"{where}, cell {describe(row)}: {e}" if row else str(e)) from e
        cell = Cell({key: values[key] for key in row}, config, spec)
        first = cells.setdefault(spec.id, cell)
        if first is not cell:
            cells[spec.id] = replace(first, also=(*first.also, cell.values))
    return list(cells.values())


def check_axes(cells: Sequence[Cell], where: str) -> None:
    """Refuse a key of which the cells have several values, and on which none of them depends."""
    seen: dict[str, set[str]] = {}
    for cell in cells:
        for values in (cell.values, *cell.also):
            for key, value in values.items():
                seen.setdefault(key, set()).add(repr(value))
    if len(seen.get("val_sets", ())) > 1:
        raise UserError(
            f"{where}: val_sets varies, and val_loss, by which runs are ranked, is the first "
            "set's: give all runs the same sets in the base"
        )
    for key, different in seen.items():
        acts = [idle_keys(cell.config).get(key) for cell in cells]
        if len(different) > 1 and all(acts):
            raise UserError(
                f"{where}: {key} acts only with {acts[0]}, so all its values here are one run; set "
                f"that, or leave {key} out"
            )


def _spec(
    config: ExperimentConfig, dataset: Dataset, typed_values: Overrides
) -> tuple[ExperimentConfig, RunSpec]:
    """The config, fitted to the weights that it begins with, and the run it is on its dataset."""
    weights = None
    if begins_with_weights(config):
        from nanoscale.model.init_from import weights_of

        weights = weights_of(config.init_from, config.data_root)
        config = weights.fit(config, typed_values)
    dataset.require_block(config.block_size)
    spec = run_spec(config, dataset, typed_values, weights)
    scheme_of(spec.config)  # a user's own file of rules may refuse
    return config, spec


# -- warnings -----------------------------------------------------------------------------------
def questions(cells: Sequence[Cell], asked: int) -> list[str]:
    """What a careful reader of the plan would ask about; `asked` cells were written down."""
    texts = _merged_cells(cells, asked) + _fixed_absolutes(cells)
    for cell in cells:
        texts += [text for text in warnings(cell.spec.config) if text not in texts]
    more = len(texts) - MOST_WARNINGS
    if more > 0:
        texts[MOST_WARNINGS:] = [f"... and {more} more of these"]
    return texts


def _merged_cells(cells: Sequence[Cell], asked: int) -> list[str]:
    if len(cells) == asked:
        return []
    reasons: dict[str, None] = {}
    for cell in cells:
        for values in cell.also:
            differ = [key for key in values if values[key] != cell.values.get(key)]
            for key in differ:
                reasons[_why_equal(key, cell.config)] = None
            if not differ:
                reasons["some are given twice"] = None
    runs = "1 run" if len(cells) == 1 else f"{len(cells)} different runs"
    why = f" ({'; '.join(reasons)})" if reasons else ""
    return [f"{asked} cells are {runs}{why}"]


def _why_equal(key: str, config: ExperimentConfig) -> str:
    """Why two cells that differ in `key` are one run."""
    if key == "dataset":
        return "datasets of the same tokens"
    if not FIELDS[key].hashed:
        return f"{key} says where or how a run runs, not what it is"
    acts = idle_keys(config).get(key)
    return f"{key} acts only with {acts}" if acts else f"{key} changes nothing in some of them"


def _fixed_absolutes(cells: Sequence[Cell]) -> list[str]:
    """Where length or LR varies and a part of the schedule, given in absolute numbers, does not."""
    decaying = [cell for cell in cells if cell.config.decay_lr]
    floor = _shared(decaying, "config.min_lr")
    warmup = _shared(decaying, "config.warmup_iters")
    decay = _shared(decaying, "config.lr_decay_iters")

    texts = []
    if floor and _shared(cells, "config.learning_rate") is None:
        texts.append(
            f"learning_rate varies but min_lr={floor} does not, so the LR falls to "
            "another part of its peak in every run; set min_lr_frac=0.1"
        )
    if _shared(cells, "spec.config.max_iters") is None:
        if warmup:
            texts.append(
                f"the runs' length varies but warmup_iters={warmup} does not; set warmup_frac=0.05"
            )
        if decay:
            texts.append(
                f"the runs' length varies but lr_decay_iters={decay} does not; "
                "set lr_decay_iters=None, the run's length"
            )
    return texts


def _shared(cells: Iterable[Cell], name: str) -> Any:
    """The number that all cells have under a name; None: they differ, or have none."""
    values = set(map(attrgetter(name), cells))
    return values.pop() if len(values) == 1 else None
