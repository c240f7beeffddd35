"""What a run is called: the hash of its resolved config, its data and its parent."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nanoscale.errors import UserError, one_of
from nanoscale.paths import last_part
from nanoscale.spec.config import (
    ExperimentConfig,
    ParametrizationConfig,
    ResolvedConfig,
    all_fields,
    flatten,
)
from nanoscale.spec.muon_rules import MUON_RULES, RULES_KEYS
from nanoscale.spec.values import Json, Overrides, Value
from nanoscale.spec.weights import Weights, begins_with_weights

IDENTITY_SCHEMA = 1  # of what is hashed
NUMERICS_VERSION = 1  # bumped when the golden 20-step run changes
# Of dropout's masks, hashed where there are any; bumped when they change. Those of version 0, a
# stream's, nobody can draw any more: what was trained with them can be read, and not go on.
MASKS_VERSION = 1
RECORD_SCHEMA = 1  # of config.json, status.json and metrics.json


def canonical_json(value: Json) -> str:
    """The one text of a value: sorted keys, no spaces, shortest floats; non-finite is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class Idle:
    """Keys on which nothing depends in a config of which `when` is true, and what they act with."""

    keys: tuple[str, ...]
    when: Callable[[ExperimentConfig], bool]
    acts: str


_MUON_KEYS = ("muon_lr", "muon_weight_decay", "muon_momentum", "muon_ns_steps", "muon_scale")
_COOLDOWN_KEYS = ("cooldown_frac", "cooldown_shape")
_WARMUP_KEYS = ("warmup_iters", "warmup_frac")
_DECAY_KEYS = ("lr_decay_iters", "min_lr", "min_lr_frac", *_COOLDOWN_KEYS)
_SIZE_KEYS = tuple(
    f"parametrization.{key}"
    for key in (
        "base_n_embd",
        "base_n_layer",
        "base_head_dim",
        "input_mult",
        "output_mult",
        "wd_rule",
        "muon_width_power",
    )
)
_LATER_MUON_KEYS = (
    "muon_rule",
    "muon_power",
    "muon_clip",
    "parametrization.muon_width_power",
)


def _unread(key: str) -> Callable[[ExperimentConfig], bool]:
    """Whether a config's rule of Muon does not look at one of Muon's keys."""
    return lambda config: key not in MUON_RULES[config.muon_rule].acts


def _readers(key: str) -> str:
    rules = [name for name, rule in MUON_RULES.items() if key in rule.acts]
    return f"muon_rule={one_of(rules)}"


_FIRST_IDLE = (
    Idle(_MUON_KEYS, lambda c: c.optimizer != "muon", "optimizer=muon"),
    Idle(("rope_theta",), lambda c: not c.use_rope, "use_rope=True"),
    Idle(("multiple_of",), lambda c: not c.use_swiglu, "use_swiglu=True"),
    Idle(("lr_schedule", *_WARMUP_KEYS, *_DECAY_KEYS), lambda c: not c.decay_lr, "decay_lr=True"),
    Idle(_DECAY_KEYS, lambda c: c.lr_schedule == "constant", "an lr_schedule that is not constant"),
    Idle(_COOLDOWN_KEYS, lambda c: c.lr_schedule != "wsd", "lr_schedule=wsd"),
    Idle(
        ("seed",),
        lambda c: not c.dropout and not {c.seed, None} & {c.init_seed, c.data_seed},
        "dropout, or where init_seed or data_seed is left out",
    ),
)
_SIZES = "parametrization.mode=muP or CompleteP"
_LATER_IDLE = (  # they named runs for longer, or came later
    Idle(_LATER_MUON_KEYS, lambda c: c.optimizer != "muon", "optimizer=muon"),
    *(Idle((key,), _unread(key), _readers(key)) for key in RULES_KEYS),
    Idle(_SIZE_KEYS, lambda c: c.parametrization.mode == "SP", _SIZES),
    Idle(
        ("parametrization.alpha",),
        lambda c: c.parametrization.mode in ("SP", "muP"),
        "parametrization.mode=CompleteP",
    ),
    Idle(("init_seed", "init_std"), begins_with_weights, "init_from=scratch"),
)
IDLE = (*_FIRST_IDLE, *_LATER_IDLE)
IDLE_SOMEWHERE = {key for idle in IDLE for key in idle.keys}
SWITCHES = (  # on which `when` looks
    "optimizer",
    "muon_rule",
    "use_rope",
    "use_swiglu",
    "decay_lr",
    "lr_schedule",
    "dropout",
    "init_seed",
    "data_seed",
    "init_from",
    "parametrization.mode",
)


def idle_keys(config: ExperimentConfig, table: Sequence[Idle] = IDLE) -> dict[str, str]:
    """Keys on which nothing depends beside the values of the others: key -> what it acts with."""
    found: dict[str, str] = {}
    for idle in table:
        if idle.when(config):
            found = dict.fromkeys(idle.keys, idle.acts) | found
    return found


def heeded(config: ResolvedConfig, table: Sequence[Idle] = IDLE) -> dict[str, Value]:
    """Dotted name -> value, of keys that are idle as if they had been left out."""
    values = flatten(config)
    for name, value in values.items():
        if isinstance(value, float):
            values[name] = value + 0.0  # -0.0 is 0.0
    for name in idle_keys(config, table):
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


def data_label(config: ExperimentConfig) -> str:
    """The name of the data as part of a folder's."""
    dataset = last_part(config.dataset)
    safe = re.sub(r"[^\w.-]", "_", dataset)
    return safe.lstrip(".")[:40] or "data"


def label(config: ExperimentConfig) -> str:
    """A readable name, a pure function of the config, for folder names and legends."""
    mode = config.parametrization.mode
    return f"{data_label(config)}-L{config.n_layer}-d{config.n_embd}-{config.optimizer}-{mode}"


@dataclass(frozen=True)
class RunSpec:
    """A run before it starts: its resolved config, its data, its parent; hence its identity."""

    config: ResolvedConfig
    typed: Overrides  # what the user wrote, for the record
    data_name: str
    data_fingerprint: str
    parent: str | None = None  # "<id>@<step>" of the run whose past it shares
    masks: int = MASKS_VERSION
    weights: Weights | None = None  # that it begins with
    parts: Mapping[str, str] = field(default_factory=dict)  # the data's, see `Dataset`

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
        if self.weights is not None:
            payload["weights"] = self.weights.digest
        return payload

    @cached_property
    def id(self) -> str:
        """10 hex digits of the SHA-256 of its content."""
        return _digest(self.content)

    @cached_property
    def spelled_ids(self) -> tuple[str, ...]:
        """The ids of this run while fewer keys were idle, in names of folders of then."""
        spellings = (flatten(self.config), heeded(self.config, _FIRST_IDLE))
        return tuple(_digest(self._content(_hashed(values))) for values in spellings)

    @property
    def name(self) -> str:
        """The folder's name in a run store: `<label>-<id>`."""
        return f"{label(self.config)}-{self.id}"

    @property
    def spelled_names(self) -> list[str]:
        """The folder's names by `spelled_ids`."""
        return [f"{label(self.config)}-{spelled}" for spelled in self.spelled_ids]

    @property
    def val_sets(self) -> tuple[str, ...]:
        """The validation sets that it began with, whatever has been added since."""
        return self.config.val_sets or ("val",)

    @property
    def val_set(self) -> str:
        """What its first validation set is called, whose loss is `val_loss`."""
        return next(iter(self.parts), "val")

    @property
    def measured(self) -> str:
        """A fingerprint of that set: runs that share it are told apart by their `val_loss`."""
        return next(iter(self.parts.values()), self.data_fingerprint)

    @property
    def tokens_fingerprint(self) -> str:
        """That of the data without further validation sets."""
        return self.parts.get("val", self.data_fingerprint)

    def changed_sets(self, parts: Mapping[str, str]) -> str:
        """Its further validation sets that are others in today's `parts`; "" if all of it is."""
        changed = [name for name, was in self.parts.items() if parts.get(name, was) != was]
        return "" if "val" in changed else ", ".join(changed)

    @property
    def data_record(self) -> dict[str, Json]:
        record: dict[str, Json] = {"name": self.data_name, "fingerprint": self.data_fingerprint}
        return record | ({"parts": dict(self.parts)} if self.parts else {})

    def is_called(self, name: object) -> bool:
        """Whether an id is this run's, of today or of then."""
        return name in (self.id, *self.spelled_ids)

    def to_json(self) -> dict[str, Json]:
        """The record in `config.json`."""
        record: dict[str, Json] = {
            "schema": RECORD_SCHEMA,
            "id": self.id,
            "label": label(self.config),
            "config": self.config.to_dict(),
            "typed": dict(self.typed),
            "data": self.data_record,
            "branch_from": self.parent,
        }
        if self.weights is not None:
            record["weights"] = self.weights.to_json()
        return record

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
                weights=Weights.from_json(record.get("weights")),
                parts={**record["data"].get("parts", {})},
            )
        except (KeyError, TypeError) as e:
            raise UserError(
                f"{path}: not a run's config ({type(e).__name__}: {e}); is this a run folder?"
            ) from e
        if not spec.is_called(record.get("id")):
            spec = replace(spec, masks=0)
        if not spec.is_called(record.get("id")):
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
    for key in ("checkpoint_steps", "val_sets"):
        values[key] = tuple(values.get(key, ()))
    return ResolvedConfig(**values)
