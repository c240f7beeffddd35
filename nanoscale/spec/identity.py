"""What a run is called: the hash of its resolved config, its data and its parent."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nanoscale.errors import UserError
from nanoscale.spec.config import (
    ExperimentConfig,
    ParametrizationConfig,
    ResolvedConfig,
    all_fields,
    flatten,
)
from nanoscale.spec.values import Json, Overrides, Value

IDENTITY_SCHEMA = 1  # of what is hashed
NUMERICS_VERSION = 1  # bumped when the golden 20-step run changes
# Of dropout's masks, hashed where there are any; bumped when they change. Those of version 0, a
# stream's, nobody can draw any more: what was trained with them can be read, and not go on.
MASKS_VERSION = 1
RECORD_SCHEMA = 1  # of config.json, status.json and metrics.json


def canonical_json(value: Json) -> str:
    """The one text of a value: sorted keys, no spaces, shortest floats; non-finite is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


_MUON_KEYS = ("muon_lr", "muon_weight_decay", "muon_momentum", "muon_ns_steps", "muon_scale")
_COOLDOWN_KEYS = ("cooldown_frac", "cooldown_shape")
_DECAY_KEYS = ("min_lr", *_COOLDOWN_KEYS)


def idle_keys(config: ResolvedConfig) -> set[str]:
    """Keys on which nothing depends beside the values of the others."""
    seeds = (config.init_seed, config.data_seed)
    by_key = {
        _MUON_KEYS: config.optimizer != "muon",
        ("rope_theta",): not config.use_rope,
        ("multiple_of",): not config.use_swiglu,
        ("lr_schedule", "warmup_iters"): not config.decay_lr,
        ("lr_decay_iters", *_DECAY_KEYS): not config.decay_lr or config.lr_schedule == "constant",
        _COOLDOWN_KEYS: config.lr_schedule != "wsd",
        ("seed",): not config.dropout and config.seed not in seeds,
    }
    return {key for keys, idle in by_key.items() if idle for key in keys}


def heeded(config: ResolvedConfig) -> dict[str, Value]:
    """Dotted name -> value, of keys that are idle as if they had been left out."""
    values = flatten(config)
    for name, value in values.items():
        if isinstance(value, float):
            values[name] = value + 0.0  # -0.0 is 0.0
    for name in idle_keys(config):
        values[name] = all_fields()[name].default
    values["lr_decay_iters"] = values["lr_decay_iters"] or max(config.max_iters, 1)
    return values


def scientific(config: ResolvedConfig) -> dict[str, Value]:
    """What the run's result depends on: hashed keys that differ from their defaults."""
    return _hashed(heeded(config))


def _hashed(values: Mapping[str, Value]) -> dict[str, Value]:
    return {
        name: values[name]
        for name, key in all_fields().items()
        if key.hashed and values[name] != key.default
    }


def label(config: ExperimentConfig) -> str:
    """A readable name, a pure function of the config, for folder names and legends."""
    dataset = config.dataset.rstrip("/").rpartition("/")[2]
    safe = re.sub(r"[^\w.-]", "_", dataset)
    name = safe.lstrip(".")[:40] or "data"
    mode = config.parametrization.mode
    return f"{name}-L{config.n_layer}-d{config.n_embd}-{config.optimizer}-{mode}"


@dataclass(frozen=True)
class RunSpec:
    """A run before it starts: its resolved config, its data, its parent; hence its identity."""

    config: ResolvedConfig
    typed: Overrides  # what the user wrote, for the record
    data_name: str
    data_fingerprint: str
    parent: str | None = None  # "<id>@<step>" of the run whose past it shares
    masks: int = MASKS_VERSION

    @property
    def content(self) -> dict[str, Json]:
        """All that the run depends on: equal for two specs of one run."""
        return self._content(scientific(self.config))

    def _content(self, keys: Mapping[str, Value]) -> dict[str, Json]:
        payload: dict[str, Json] = {
            "schema": IDENTITY_SCHEMA,
            "numerics_version": NUMERICS_VERSION,
            "data": self.data_fingerprint,
            "config": dict(keys),
        }
        if self.config.dropout and self.masks:
            payload["masks"] = self.masks
        if self.parent is not None:
            payload["branch_from"] = self.parent
        return payload

    @cached_property
    def id(self) -> str:
        """10 hex digits of the SHA-256 of its content."""
        return _digest(self.content)

    @cached_property
    def spelled_id(self) -> str:
        """The id of this run while idle keys named runs too, in the name of a folder of then."""
        return _digest(self._content(_hashed(flatten(self.config))))

    @property
    def name(self) -> str:
        """The folder's name in a run store: `<label>-<id>`."""
        return f"{label(self.config)}-{self.id}"

    @property
    def spelled_name(self) -> str:
        """The folder's name by `spelled_id`."""
        return f"{label(self.config)}-{self.spelled_id}"

    def to_json(self) -> dict[str, Json]:
        """The record in `config.json`."""
        return {
            "schema": RECORD_SCHEMA,
            "id": self.id,
            "label": label(self.config),
            "config": self.config.to_dict(),
            "typed": dict(self.typed),
            "data": {"name": self.data_name, "fingerprint": self.data_fingerprint},
            "branch_from": self.parent,
        }

    @classmethod
    def from_json(cls, record: Any, path: Path) -> RunSpec:
        """The spec in a `config.json`; a UserError if it is not one of ours."""
        try:
            spec = cls(
                config_from_dict(record["config"]),
                record["typed"],
                record["data"]["name"],
                record["data"]["fingerprint"],
                record["branch_from"],
            )
        except (KeyError, TypeError) as e:
            raise UserError(
                f"{path}: not a run's config ({type(e).__name__}: {e}); is this a run folder?"
            ) from e
        if record.get("id") not in (spec.id, spec.spelled_id):
            spec = replace(spec, masks=0)
        if record.get("id") not in (spec.id, spec.spelled_id):
            raise UserError(
                f"{path}: the config does not hash to its id {record.get('id')!r}; it "
                "was edited, or written by another version: start the run anew"
            )
        return spec


def _digest(content: Json) -> str:
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:10]


def config_from_dict(record: Mapping[str, Json]) -> ResolvedConfig:
    """The inverse of `ResolvedConfig.to_dict`; unknown keys are refused, missing are defaults."""
    unknown = set(record) - {f.name for f in fields(ResolvedConfig)}
    if unknown:
        raise UserError(f"unknown config keys {sorted(unknown)}: written by a newer nanoscale?")
    values: dict[str, Any] = dict(record)
    values["parametrization"] = ParametrizationConfig(**values.get("parametrization", {}))
    if "checkpoint_steps" in values:
        values["checkpoint_steps"] = tuple(values["checkpoint_steps"])
    return ResolvedConfig(**values)
