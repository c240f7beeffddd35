"""Cells: what a study asks for, turned into run specs before any run starts.

A cell is one combination of the keys that a study varies. All cells are built, coerced and checked
first, so a mistake in the last one costs no training; equal cells are one run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanoscale.data.dataset import Dataset, open_dataset
from nanoscale.errors import UserError
from nanoscale.experiments.records import RunEntry, describe
from nanoscale.spec.config import ExperimentConfig, flatten, from_flat
from nanoscale.spec.counting import flops_per_iter
from nanoscale.spec.identity import RunSpec
from nanoscale.spec.parametrization import scheme_of
from nanoscale.spec.resolve import resolve, warnings
from nanoscale.spec.sources import FIELDS, Source, apply, flatten_keys, typed
from nanoscale.store.folder import run_spec

MOST_WARNINGS = 5


@dataclass(frozen=True)
class Cell:
    """One run of a study: the varied keys' values, the config as asked, and the run it is."""

    values: Mapping[str, Any]
    config: ExperimentConfig  # relative forms (tokens_per_param, min_lr_frac, ...) still in place
    spec: RunSpec

    @property
    def flops(self) -> int:
        """Exact training FLOPs of the run, from its branch on if it has one."""
        past = int(self.spec.parent.rpartition("@")[2]) if self.spec.parent else 0
        return flops_per_iter(self.spec.config) * max(self.spec.config.max_iters - past, 0)

    @property
    def entry(self) -> RunEntry:
        """Its entry in the study's record."""
        return RunEntry(self.spec.id, self.spec.name, dict(self.values), self.flops)

    def __str__(self) -> str:
        return describe(self.values) or self.spec.name


def plain_values(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with nested tables as dotted keys and numpy's scalars as Python's."""
    if not isinstance(values, Mapping):
        raise UserError(f"{name}={values!r}: expected a dict of config keys")
    return {key: plain(value) for key, value in flatten_keys(values).items()}


def plain(value: Any) -> Any:
    """A numpy scalar or array as Python's own; anything else unchanged."""
    return value.tolist() if hasattr(value, "tolist") else value


# -- grids --------------------------------------------------------------------------------------
def grid_lists(params: Mapping[str, Any], seeds: Any, where: str) -> dict[str, list[Any]]:
    """The axes of a grid: key -> its values; `seeds`, if any, is one more axis, the last.

    `where` is how messages call the lists.

    Raises:
        UserError: a key's values are no list, or an empty one.
    """
    lists = {key: _as_list(f"{where}: {key}", v) for key, v in plain_values(where, params).items()}
    if seeds is not None:
        lists["seed"] = _as_list(f"{where}: seeds", plain(seeds))
    return lists


def combinations(lists: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the axes, the last one running fastest."""
    return [dict(zip(lists, row, strict=True)) for row in itertools.product(*lists.values())]


def _as_list(name: str, values: Any) -> list[Any]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise UserError(f"{name}={values!r}: expected a list of values, as in [{values!r}]")
    items = [plain(value) for value in values]
    if not items:
        raise UserError(f"{name}=[]: expected at least one value")
    return items


# -- cells --------------------------------------------------------------------------------------
Opened = dict[tuple[str, str], Dataset]


def make_cells(
    defaults: Mapping[str, Any],
    sources: Sequence[Source],
    rows: Iterable[Mapping[str, Any]],
    where: str,
    opened: Opened | None = None,
) -> list[Cell]:
    """The cells of `rows` over the common `sources` over `defaults`; equal ones appear once.

    `where` is how messages call the rows: `grid_params`, or a table of a study file; `opened` keeps
    datasets open from one call to the next.

    Raises:
        UserError: a key, a value or a combination is bad, naming it and its cell.
    """
    base = flatten(ExperimentConfig())
    for source in (Source("defaults", defaults), *sources):
        base = apply(base, source)
    opened = {} if opened is None else opened
    cells: dict[str, Cell] = {}
    for row in rows:
        source = Source(where, dict(row))
        values = apply(base, source)
        try:
            config = from_flat(values)
            dataset = _open(opened, config)
            dataset.require_block(config.block_size)
            resolved = resolve(config, dataset.vocab_size)
            scheme_of(resolved)
            spec = run_spec(resolved, dataset, typed([*sources, source]))
        except UserError as e:
            raise UserError(f"{where}, cell {describe(row)}: {e}" if row else str(e)) from e
        cells.setdefault(spec.id, Cell({key: values[key] for key in row}, config, spec))
    return list(cells.values())


def _open(opened: Opened, config: ExperimentConfig) -> Dataset:
    key = (config.dataset, config.data_root)
    if key not in opened:
        opened[key] = open_dataset(*key)
    return opened[key]


# -- warnings -----------------------------------------------------------------------------------
def questions(cells: Sequence[Cell], asked: int) -> list[str]:
    """What a careful reader of the plan would ask about; `asked` cells were written down."""
    found = _merged_cells(cells, asked) + _fixed_absolutes(cells)
    found += list(dict.fromkeys(text for cell in cells for text in warnings(cell.spec.config)))
    if len(found) > MOST_WARNINGS:
        more = len(found) - MOST_WARNINGS
        found[MOST_WARNINGS:] = [f"... and {more} more of these"]
    return found


def _merged_cells(cells: Sequence[Cell], asked: int) -> list[str]:
    if len(cells) == asked:
        return []
    idle = [
        key
        for key in cells[0].values
        if not FIELDS[key].hashed and key not in ("dataset", "branch_from")
    ]
    why = f" ({', '.join(idle)} says where or how a run runs, not what it is)" if idle else ""
    return [f"{asked} cells are {len(cells)} different runs{why}"]


def _fixed_absolutes(cells: Sequence[Cell]) -> list[str]:
    """Where length or LR varies and a part of the schedule, given in absolute numbers, does not."""

    def differ(read: Callable[[Cell], Any]) -> bool:
        return len({read(cell) for cell in cells}) > 1

    def fixed(key: str) -> Any:
        values = {getattr(cell.config, key) for cell in cells if cell.config.decay_lr}
        return values.pop() if len(values) == 1 else None

    found = []
    floor, warmup, decay = fixed("min_lr"), fixed("warmup_iters"), fixed("lr_decay_iters")
    if floor and differ(lambda c: c.config.learning_rate):
        found.append(
            f"learning_rate varies but min_lr={floor} does not, so the LR falls to "
            "another part of its peak in every run; set min_lr_frac=0.1"
        )
    if differ(lambda c: c.spec.config.max_iters):
        if warmup:
            found.append(
                f"the runs' length varies but warmup_iters={warmup} does not; set warmup_frac=0.05"
            )
        if decay:
            found.append(
                f"the runs' length varies but lr_decay_iters={decay} does not; "
                "set lr_decay_iters=None, the run's length"
            )
    return found
