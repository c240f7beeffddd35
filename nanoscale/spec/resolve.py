"""Absolute numbers for what was typed: vocabulary, length in updates, seeds, schedule, rules."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path

from nanoscale.errors import UserError, one_of
from nanoscale.spec.config import (
    ExperimentConfig,
    ParametrizationConfig,
    ResolvedConfig,
    all_fields,
)
from nanoscale.spec.counting import flops_per_iter, parameter_counts
from nanoscale.spec.muon_rules import MUON_RULES, RULES_KEYS
from nanoscale.spec.weights import begins_with_weights


def resolve(config: ExperimentConfig, vocab_size: int) -> ResolvedConfig:
    """The config with every number absolute: vocabulary, length in updates, seeds, schedule, rules.

    Applied to a resolved config it changes nothing, so equal runs written differently hash equally.

    Raises:
        UserError: the config's vocabulary is smaller than the dataset's, which is `vocab_size`.
    """
    if config.vocab_size is not None and config.vocab_size < vocab_size:
        whose, remedy = "", "leave it out or raise it"
        if begins_with_weights(config):
            whose = f"init_from={config.init_from}: its weights' "
            remedy = "choose a dataset of their tokens"
        raise UserError(
            f"{whose}vocab_size={config.vocab_size} is below the {vocab_size} symbols of "
            f"dataset {config.dataset!r}; {remedy}"
        )
    sized = replace(config, vocab_size=config.vocab_size or vocab_size)
    updates = _updates(sized)
    warmup, floor, beta2 = config.warmup_iters, config.min_lr, config.beta2
    if config.warmup_frac is not None:
        warmup = round(config.warmup_frac * updates)
    if config.min_lr_frac is not None:
        exact = config.min_lr_frac * config.learning_rate
        floor = min(float(f"{exact:.15g}"), config.learning_rate)  # 0.1 of 6e-4 is 6e-5
    if config.beta2_halflife_tokens is not None:
        beta2 = decay_of_halflife(config, config.beta2_halflife_tokens)
    momentum = config.muon_momentum
    if config.muon_momentum_halflife_tokens is not None:
        momentum = decay_of_halflife(config, config.muon_momentum_halflife_tokens)
    absolute = replace(
        sized,
        max_iters=updates,
        max_tokens=None,
        max_flops=None,
        tokens_per_param=None,
        lr_decay_iters=config.lr_decay_iters or max(updates, 1),
        warmup_iters=warmup,
        warmup_frac=None,
        min_lr=floor,
        min_lr_frac=None,
        beta2=beta2,
        beta2_halflife_tokens=None,
        muon_momentum=momentum,
        muon_momentum_halflife_tokens=None,
        n_kv_head=config.kv_heads,
        init_seed=config.seed if config.init_seed is None else config.init_seed,
        data_seed=config.seed if config.data_seed is None else config.data_seed,
        parametrization=_rules_file(config.parametrization),
    )
    return ResolvedConfig(**vars(absolute))


def decay_of_halflife(config: ExperimentConfig, tokens: float) -> float:
    """What an update leaves of a moving average whose half-life is that many tokens."""
    return math.pow(0.5, config.tokens_per_iter / tokens)


def _updates(config: ExperimentConfig) -> int:
    """The run's length in updates: the nearest whole number, at least 1 unless 0 was asked for."""
    if config.max_iters is not None:
        return config.max_iters
    if config.max_tokens is not None:
        updates = config.max_tokens / config.tokens_per_iter
    elif config.max_flops is not None:
        updates = config.max_flops / flops_per_iter(config)
    else:
        assert config.tokens_per_param is not None, "a config gives its length in one way"
        tokens = config.tokens_per_param * parameter_counts(config)["total"]
        updates = tokens / config.tokens_per_iter
    return max(round(updates), 1)


def _rules_file(p: ParametrizationConfig) -> ParametrizationConfig:
    """The user's file of rules as an absolute path, and what is in it as part of the identity."""
    if not p.rules:
        return replace(p, rules_digest=p.rules)  # '' is refused where the file is read
    path = str(Path(p.rules).absolute())
    return replace(p, rules=path, rules_digest=p.rules_digest or file_digest(path))


def file_digest(path: str) -> str:
    """16 hex digits of the SHA-256 of a file."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    except OSError as e:
        raise UserError(f"parametrization.rules={path}: cannot be read ({e.strerror})") from e


ACTS_UNDER = {
    "muon_width_power": ("muP", "CompleteP"),
    "input_mult": ("muP", "CompleteP"),
    "output_mult": ("muP", "CompleteP"),
    "alpha": ("CompleteP",),
}


def _unread_by_muon(config: ResolvedConfig) -> list[str]:
    """Of Muon's keys those that were changed, and that its rule does not read."""
    if config.optimizer != "muon":
        return []
    rule = config.muon_rule
    lines = []
    for key in RULES_KEYS:
        value = getattr(config, key)
        if key not in MUON_RULES[rule].acts and value != all_fields()[key].default:
            readers = [name for name, other in MUON_RULES.items() if key in other.acts]
            line = f"{key}={value} does nothing under muon_rule={rule}; it acts under"
            lines.append(f"{line} {one_of(readers)}")
    return lines


def warnings(config: ResolvedConfig) -> list[str]:
    """What a careful reader of the config would ask about."""
    p, iters = config.parametrization, config.max_iters
    usual = ParametrizationConfig()
    lines = [
        f"parametrization.{key}={getattr(p, key)} does nothing under {p.mode}; it acts "
        f"under {one_of(modes)}"
        for key, modes in ACTS_UNDER.items()
        if getattr(p, key) != getattr(usual, key) and p.mode not in modes and p.rules is None
    ]
    lines += _unread_by_muon(config)
    if not config.decay_lr or iters == 0:
        return lines

    if config.lr_schedule != "constant" and config.lr_decay_iters > iters:
        lines.append(
            f"the LR decay is unfinished: lr_decay_iters={config.lr_decay_iters} is beyond the "
            f"run's {iters} updates; set lr_decay_iters=None to end it with the run"
        )
    # half an update is what rounding a warmup_frac may add, and one is the least there is
    if config.warmup_iters > max(1, 0.1 * iters + 0.5 + 1e-9):
        lines.append(
            f"warmup takes {config.warmup_iters} of {iters} updates, over 10 % of the "
            "run; set warmup_frac=0.05"
        )
    return lines
