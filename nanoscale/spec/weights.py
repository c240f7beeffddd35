"""The weights that a run begins with, as its spec knows them: which, and what they dictate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanoscale.errors import UserError
from nanoscale.spec.config import (
    BEGINNINGS,
    ExperimentConfig,
    all_fields,
    flatten,
    from_flat,
)
from nanoscale.spec.values import Json, Overrides, Typed, Value

_RULES = "parametrization.rules"  # a path, which may be spelt in two ways
_FREE = ("dropout", "init_std", "z_loss")  # keys of the model that say nothing of its weights
_OF_UPDATES = ("wd_rule", "wd_timescale", "base_batch_tokens", "base_tokens")


def dictated(config: ExperimentConfig) -> dict[str, Value]:
    """The keys that a model's weights have a meaning under, as a config has them."""
    keys: dict[str, Value] = {"block_size": config.block_size}
    for name, value in flatten(config).items():
        nested = name.removeprefix("parametrization.")
        of_forward = nested != name and nested not in _OF_UPDATES
        if of_forward or (all_fields()[name].group == "model" and name not in _FREE):
            keys[name] = value
    return keys


def begins_with_weights(config: ExperimentConfig) -> bool:
    """Whether init_from names weights."""
    return config.init_from not in BEGINNINGS


@dataclass(frozen=True)
class TokenTable:
    """What the tokens of weights stand for: the digest of a tokenizer, and what it is called.

    `choice` is what `--tokenizer` takes to make the same tokens of another text.
    """

    digest: str
    named: str
    choice: str


@dataclass(frozen=True)
class Weights:
    """What a run begins with: `source` as it was typed, `digest` the SHA-256 of the tensors."""

    source: str
    digest: str
    keys: Mapping[str, Value]  # of the config, by dotted name
    warnings: tuple[str, ...] = ()  # of what our parts compute a little otherwise than theirs
    tokens: TokenTable | None = field(default=None, compare=False)  # None: nobody says

    def fit(self, config: ExperimentConfig, typed: Overrides) -> ExperimentConfig:
        """The config with the keys of the weights; block_size may be typed smaller (nanoGPT's
        `crop_block_size`), or anything where positions are not learned.

        Raises:
            UserError: another key was `typed` and differs.
        """
        values = flatten(config)
        of_weights = dict(self.keys)
        if "block_size" in typed and self._allows(config.block_size):
            del of_weights["block_size"]
        places = typed.places if isinstance(typed, Typed) else {}
        differ, theirs, names = [], [], []
        for key, value in of_weights.items():
            given = values[key]
            if key in typed and given is not None and not _is_same(key, given, value):
                differ.append(f"{key}={given}{places.get(key, '')}")
                theirs.append(f"{key}={value}")
                names.append(key)
        if names:
            raise UserError(
                f"{', '.join(differ)}: the weights of init_from={self.source} have "
                f"{', '.join(theirs)}; leave {', '.join(names)} out"
            )
        return from_flat(values | of_weights)

    def _allows(self, block_size: int) -> bool:
        positions = self.keys["block_size"]
        assert isinstance(positions, int)
        return block_size <= positions or bool(self.keys.get("use_rope"))

    def __str__(self) -> str:
        return f"{self.source} ({self.digest[:8]})"

    def to_json(self) -> dict[str, Json]:
        return {
            "init_from": self.source,
            "sha256": self.digest,
            "keys": dict(self.keys),
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any] | None) -> Weights | None:
        """What a `config.json` says of them; None: the run begins with none."""
        if record is None:
            return None
        warnings = tuple(record["warnings"])
        return cls(record["init_from"], record["sha256"], record["keys"], warnings)


def _is_same(key: str, given: Value, value: Value) -> bool:
    if key == _RULES and isinstance(value, str):
        return Path(str(given)).absolute() == Path(value).absolute()
    return given == value
