"""The runs of an output root beside a new one: which is most like it, and how fast they went."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nanoscale.errors import UserError
from nanoscale.experiments.cells import Cell
from nanoscale.spec.config import ResolvedConfig, flatten
from nanoscale.spec.counting import flops_per_iter
from nanoscale.spec.identity import RunSpec, config_from_dict, scientific
from nanoscale.spec.values import Overrides
from nanoscale.spec.weights import Weights
from nanoscale.store.files import read_json
from nanoscale.store.folder import CONFIG, RunFolder

MOST_NEIGHBOURS = 2000  # runs that are read, newest first
MOST_KEYS = 4  # named of a difference
NEAREST = 5  # speeds whose median counts
ABOUT_AS_FAST = 2.0  # the factor between sizes that are about as fast

Keys = frozenset[tuple[str, str]]  # what a run's identity depends on, as (key, value)


@dataclass(frozen=True)
class Neighbour:
    """A run: what it depends on, and how fast it went if it has finished."""

    name: str
    config: ResolvedConfig
    keys: Keys
    flops_per_iter: int
    speed: float | None  # FLOP/s


@dataclass
class Neighbours:
    """The runs in a folder, as far as plans need them; read when first asked."""

    folder: Path

    @cached_property
    def runs(self) -> list[Neighbour]:
        """The newest; what is no run, or of another form, is passed over."""
        folders = [path.parent for path in self.folder.glob(f"*/{CONFIG}")]
        folders.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
        runs = []
        for folder in folders[:MOST_NEIGHBOURS]:
            with suppress(UserError):
                runs.append(neighbour(RunFolder(folder)))
        return runs

    def difference(self, spec: RunSpec) -> str:
        """How a new run differs from the one most like it."""
        keys = keys_of(spec)
        nearest = min(self.runs, key=lambda run: len(run.keys ^ keys), default=None)
        if nearest is None:
            return "the first run here"
        names = sorted({name for name, _ in nearest.keys ^ keys})
        if not names:
            return f"as {nearest.name}, which another version made"

        new, old = dict(keys), dict(nearest.keys)
        differences = ", ".join(
            f"{name} {new.get(name, 'default')} for {old.get(name, 'default')}"
            for name in names[:MOST_KEYS]
        )
        more = f" and {len(names) - MOST_KEYS} more keys" if len(names) > MOST_KEYS else ""
        return f"as {nearest.name} but {differences}{more}"

    def alike(self, spec: RunSpec, free: set[str]) -> Iterator[tuple[RunFolder, Overrides]]:
        """The runs that differ from `spec` in `free` keys at most: folder and config."""
        wanted = keys_of(spec)
        for run in self.runs:
            if free.issuperset(name for name, _ in run.keys ^ wanted):
                yield RunFolder(self.folder / run.name), flatten(run.config)

    def seconds(self, cell: Cell, most: float = ABOUT_AS_FAST) -> float:
        """How long a cell will take, at the speed of the nearest sizes; NaN: unknown.

        most: the factor between sizes up to which the speed of one is taken for another's.
        """
        config = cell.spec.config
        size = flops_per_iter(config)
        speeds = []
        for run in self.runs:
            away = abs(math.log(run.flops_per_iter / size))
            as_slow = run.config.stats_interval == config.stats_interval  # statistics take time
            if run.speed and as_slow and away <= math.log(most):
                speeds.append((away, run.speed))
        if not speeds:
            return math.nan
        return cell.flops / statistics.median(speed for _, speed in sorted(speeds)[:NEAREST])


def neighbour(folder: RunFolder) -> Neighbour:
    """A run folder as a neighbour, of whatever version."""
    record = read_json(folder / CONFIG)
    try:
        config = config_from_dict(record["config"])
        data = record["data"]["fingerprint"]
        weights = Weights.from_json(record.get("weights"))
        keys = keys_of(RunSpec(config, {}, "", data, record["branch_from"], weights=weights))
    except (KeyError, TypeError) as e:
        raise UserError(f"{folder.path}: not a run's config ({e})") from e

    metrics = folder.metrics() or {}
    seconds, flops = metrics.get("wall_seconds"), metrics.get("flops")
    speed = flops / seconds if seconds and flops else None
    return Neighbour(folder.path.name, config, keys, flops_per_iter(config), speed)


def keys_of(spec: RunSpec) -> Keys:
    """What a run's identity depends on, beside the version of its numerics."""
    items = {key: str(value) for key, value in scientific(spec.config).items()}
    items["data"] = spec.data_fingerprint[:8]
    if spec.parent:
        items["branch_from"] = spec.parent
    if spec.weights:
        items["init_from"] = spec.weights.digest[:8]
    return frozenset(items.items())
