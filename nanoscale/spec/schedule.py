"""Learning-rate schedules as multipliers on every group's base LR; what is due after a step."""

from __future__ import annotations

import math

from nanoscale.spec.config import ResolvedConfig


def lr_multiplier(config: ResolvedConfig, step: int) -> float:
    """The factor on every base LR for the update after `step` completed ones.

    Linear warmup, then `lr_schedule` down to the floor min_lr / learning_rate at `lr_decay_iters`,
    then flat (nanoGPT's cosine; WSD: Hu et al. 2024; 1-sqrt: Haegele et al. 2024).
    """
    if not config.decay_lr:
        return 1.0
    warmup, end = config.warmup_iters, config.lr_decay_iters
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.lr_schedule == "constant":
        return 1.0
    floor = config.min_lr / config.learning_rate
    if step >= end:
        return floor
    start = warmup
    if config.lr_schedule == "wsd":
        start = cooldown_start(config)
        if step < start:
            return 1.0
    progress = (step - start) / (end - start)  # 0 to 1
    return floor + (1 - floor) * _falling(config, progress)


def cooldown_start(config: ResolvedConfig) -> int:
    """The step from which a WSD schedule falls: until then it warms up, or stays at its peak."""
    end = config.lr_decay_iters
    return max(config.warmup_iters, end - round(config.cooldown_frac * end))


def _falling(config: ResolvedConfig, progress: float) -> float:
    if config.lr_schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if config.lr_schedule == "wsd" and config.cooldown_shape == "1-sqrt":
        return 1 - math.sqrt(progress)
    return 1 - progress


# -- what is due ----------------------------------------------------------------------------------
class Due:
    """What is due once the update is made that completes `step` of them."""

    def __init__(self, config: ResolvedConfig, step: int) -> None:
        self.last = step == config.max_iters
        planned = every(config.eval_interval, step)
        self.early_end = self.last and not planned  # an evaluation that no longer run makes
        self.evaluation = self.last or planned
        self.statistics = every(config.stats_interval, step)
        self.line = self.last or step == 1 or every(config.log_interval, step)
        self.row = self.line or self.statistics or self.evaluation


def every(interval: int, step: int) -> bool:
    """Whether `step` is a multiple of an interval, of which 0 is never."""
    return bool(interval) and step % interval == 0
