"""Absolute numbers for what was typed: vocabulary, length in updates, seeds, schedule, rules."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from nanoscale.errors import UserError, one_of
from nanoscale.spec.config import ExperimentConfig, ParametrizationConfig
from nanoscale.spec.counting import flops_per_iter, parameter_counts


def resolve(config: ExperimentConfig, vocab_size: int) -> ExperimentConfig:
    """The config with every number absolute: vocabulary, length in updates, seeds, schedule.

    Raises:
        UserError: the config's vocabulary is smaller than the dataset's.
    """
    if config.vocab_size is not None and config.vocab_size < vocab_size:
        raise UserError(
            f"vocab_size={config.vocab_size} is below the {vocab_size} symbols of "
            f"dataset {config.dataset!r}; leave it out or raise it"
        )
    config = replace(config, vocab_size=config.vocab_size or vocab_size)
    if config.max_tokens is not None:
        iters = config.max_tokens / config.tokens_per_iter
    elif config.max_flops is not None:
        iters = config.max_flops / flops_per_iter(config)
    elif config.tokens_per_param is not None:
        tokens = config.tokens_per_param * parameter_counts(config)["total"]
        iters = tokens / config.tokens_per_iter
    else:
        iters = config.max_iters
    config = replace(
        config,
        max_iters=max(round(iters), 0 if config.max_iters == 0 else 1),
        max_tokens=None,
        max_flops=None,
        tokens_per_param=None,
    )
    return resolve_relative(config)


ACTS_UNDER = {
    "input_mult": ("muP", "CompleteP"),
    "output_mult": ("muP", "CompleteP"),
    "alpha": ("CompleteP",),
}


def resolve_relative(config: ExperimentConfig) -> ExperimentConfig:
    """Seeds, schedule and beta2 as absolute numbers; `max_iters` and `vocab_size` must be known.

    Applied to a resolved config it changes nothing, so equal runs written differently hash equally.
    """
    assert config.max_iters is not None, "resolve the length first (counting.resolve)"
    decay_iters = config.lr_decay_iters or max(config.max_iters, 1)
    warmup, floor, beta2 = config.warmup_iters, config.min_lr, config.beta2
    if config.warmup_frac is not None:
        warmup = round(config.warmup_frac * config.max_iters)
    if config.min_lr_frac is not None:
        exact = config.min_lr_frac * config.learning_rate
        floor = min(float(f"{exact:.15g}"), config.learning_rate)  # 0.1 of 6e-4 is 6e-5
    if config.beta2_halflife_tokens is not None:
        beta2 = 0.5 ** (config.tokens_per_iter / config.beta2_halflife_tokens)
    seed_or = lambda value: config.seed if value is None else value  # noqa: E731
    return replace(
        config,
        lr_decay_iters=decay_iters,
        warmup_iters=warmup,
        warmup_frac=None,
        min_lr=floor,
        min_lr_frac=None,
        beta2=beta2,
        beta2_halflife_tokens=None,
        n_kv_head=config.kv_heads,
        init_seed=seed_or(config.init_seed),
        data_seed=seed_or(config.data_seed),
        parametrization=resolve_rules(config.parametrization),
    )


def resolve_rules(p: ParametrizationConfig) -> ParametrizationConfig:
    """The user's file of rules as an absolute path, and what is in it as part of the identity."""
    path = p.rules and str(Path(p.rules).absolute())
    return replace(p, rules=path, rules_digest=path and (p.rules_digest or file_digest(path)))


def file_digest(path: str) -> str:
    """16 hex digits of the SHA-256 of a file."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    except OSError as e:
        raise UserError(f"parametrization.rules={path}: cannot be read ({e.strerror})") from e


def warnings(config: ExperimentConfig) -> list[str]:
    """What a careful reader of a resolved config would ask about."""
    found, p = [], config.parametrization
    found += [
        f"parametrization.{key}={getattr(p, key)} does nothing under {p.mode}; it acts "
        f"under {one_of(modes)}"
        for key, modes in ACTS_UNDER.items()
        if getattr(p, key) != 1 and p.mode not in modes and p.rules is None
    ]
    iters, decay = config.max_iters or 0, config.lr_decay_iters or 0
    if not config.decay_lr or iters == 0:
        return found
    if config.lr_schedule != "constant" and decay > iters:
        found.append(
            f"the LR decay is unfinished: lr_decay_iters={decay} is beyond the run's "
            f"{iters} updates; set lr_decay_iters=None to end it with the run"
        )
    if (config.warmup_iters or 0) > 0.1 * iters and iters >= 10:
        found.append(
            f"warmup takes {config.warmup_iters} of {iters} updates, over 10 % of the "
            "run; set warmup_frac=0.05"
        )
    return found
