"""What a run is called: the hash of its resolved config, its data and its parent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from nanoscale.errors import UserError
from nanoscale.spec.config import (
    ExperimentConfig,
    ParametrizationConfig,
    ResolvedConfig,
    all_fields,
    flatten,
)

SCHEMA = 1  # of a config.json and of the hashed payload


NUMERICS_VERSION = 1  # bumped when the golden 20-step run changes


def canonical_json(value: Any) -> str:
    """The one text of a value: sorted keys, no spaces, shortest floats; non-finite is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def scientific(config: ResolvedConfig) -> dict[str, Any]:
    """What the run's result depends on: hashed keys that differ from their defaults."""
    values = flatten(config)
    return {
        name: values[name]
        for name, key in all_fields().items()
        if key.hashed and values[name] != key.default
    }


def identity(config: ResolvedConfig, data_fingerprint: str, parent: str | None = None) -> str:
    """The run's name: 10 hex digits of the SHA-256 of what it depends on.

    `parent` is `<id>@<step>` of the run it branches from.
    """
    payload = {
        "schema": SCHEMA,
        "numerics_version": NUMERICS_VERSION,
        "data": data_fingerprint,
        "config": scientific(config),
    }
    if parent is not None:
        payload["branch_from"] = parent
    return hashlib.sha256(canonical_json(payload).encode()).hexdigest()[:10]


def label(config: ExperimentConfig) -> str:
    """A readable name, a pure function of the config, for folder names and legends."""
    name = config.dataset.rstrip("/").rsplit("/", 1)[-1]
    mode = config.parametrization.mode
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name).lstrip(".")[:40]
    return f"{safe or 'data'}-L{config.n_layer}-d{config.n_embd}-{config.optimizer}-{mode}"


class Data(Protocol):
    """What a run's identity needs of its dataset (see `data.Dataset`)."""

    name: str
    fingerprint: str


@dataclass(frozen=True)
class RunSpec:
    """A run before it starts: its resolved config, its data, its parent; hence its identity."""

    config: ResolvedConfig
    typed: Mapping[str, Any]  # what the user wrote, for the record
    data_name: str
    data_fingerprint: str
    parent: str | None = None  # "<id>@<step>" of the run whose past it shares

    @cached_property
    def id(self) -> str:
        return identity(self.config, self.data_fingerprint, self.parent)

    @property
    def name(self) -> str:
        """The folder's name in a run store: `<label>-<id>`."""
        return f"{label(self.config)}-{self.id}"

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "id": self.id,
            "label": label(self.config),
            "config": self.config.to_dict(),
            "typed": dict(self.typed),
            "data": {"name": self.data_name, "fingerprint": self.data_fingerprint},
            "branch_from": self.parent,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any], path: Path) -> RunSpec:
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
        if spec.id != record.get("id"):
            raise UserError(
                f"{path}: the config does not hash to its id {record.get('id')!r}; it "
                "was edited, or written by another version: start the run anew"
            )
        return spec


def config_from_dict(values: Mapping[str, Any]) -> ResolvedConfig:
    """The inverse of `ResolvedConfig.to_dict`; unknown keys are refused, missing are defaults."""
    known = {key.split(".")[0] for key in all_fields()}
    unknown = set(values) - known
    if unknown:
        raise UserError(f"unknown config keys {sorted(unknown)}: written by a newer nanoscale?")
    values = dict(values)
    values["parametrization"] = ParametrizationConfig(**values.get("parametrization", {}))
    if "checkpoint_steps" in values:
        values["checkpoint_steps"] = tuple(values["checkpoint_steps"])
    return ResolvedConfig(**values)
