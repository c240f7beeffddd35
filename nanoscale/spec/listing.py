"""A model listed for people: what `nanoscale params` prints."""

from __future__ import annotations

from dataclasses import asdict

from nanoscale.spec.architecture import TensorSpec
from nanoscale.spec.config import ResolvedConfig
from nanoscale.spec.counting import flops_per_token, parameter_counts
from nanoscale.spec.memory import assumed, memory_estimate
from nanoscale.spec.parametrization import Rules, shape_factor
from nanoscale.spec.values import Json

TEXT_COLUMNS = 3  # the first ones; numbers follow
COLUMNS = (
    "tensor",
    "role",
    "shape",
    "init std",
    "optimizer",
    "LR",
    "update x",
    "weight decay",
    "eps",
    "forward x",
    "count",
)


def tensor_rows(rules: Rules) -> list[tuple[str, ...]]:
    """Every tensor's role, shape and rule, below the columns' names."""
    return [COLUMNS, *(_cells(rules, tensor) for tensor in rules.tensors)]


def listing(rules: Rules) -> dict[str, Json]:
    """All that is listed, as numbers; memory in bytes."""
    config = rules.config
    tensors = []
    for tensor in rules.tensors:
        sizes = {"name": tensor.name, "role": tensor.role, "shape": list(tensor.shape)}
        tensors.append(sizes | asdict(rules.rule(tensor)))
    return {
        "tensors": tensors,
        "multipliers": asdict(rules.multipliers),
        "params": parameter_counts(config),
        "flops_per_token": flops_per_token(config),
        "memory": memory_estimate(config),
    }


def count_lines(config: ResolvedConfig) -> list[str]:
    """N and FLOPs per token under each convention, a line each."""
    lines = []
    for name, count in parameter_counts(config).items():
        lines.append(f"N {name:<20} {count:>15,}")
    for name, flops in flops_per_token(config).items():
        lines.append(f"FLOPs per token {name:<16} {flops:>12,.0f}")
    return lines


def _cells(rules: Rules, tensor: TensorSpec) -> tuple[str, ...]:
    """A tensor's row of `tensor_rows`, as COLUMNS."""
    rule = rules.rule(tensor)
    factor, eps, forward = "-", "-", "-"
    if rule.optimizer == "muon" and not rules.keeps_norms:
        factor = f"{shape_factor(rules.config.muon_scale, *tensor.shape):.4g}"
    else:
        eps = f"{rule.eps:.4g}"
    m = rules.multipliers
    of_role = {"embedding": m.embedding, "residual_out": m.residual, "readout": m.logits}
    if tensor.role in of_role:
        forward = f"{of_role[tensor.role]:.4g}"
    return (
        tensor.name,
        tensor.role,
        "x".join(map(str, tensor.shape)),
        f"{rule.init_std:.4g}",
        rule.optimizer,
        f"{rule.lr:.4g}",
        factor,
        f"{rule.weight_decay:.4g}",
        eps,
        forward,
        f"{tensor.numel:,}",
    )


def in_words(rules: Rules) -> str:
    """The mode, its base sizes and its forward multipliers, as one line."""
    p, m = rules.config.parametrization, rules.multipliers
    return (
        f"{p.mode}, base_n_embd={p.base_n_embd}, base_n_layer={p.base_n_layer}, "
        f"base_head_dim={p.base_head_dim}; forward multipliers: embedding {m.embedding:.4g}, "
        f"attention scores {m.attention:.4g}, residual branches {m.residual:.4g}, "
        f"logits {m.logits:.4g}"
    )


def memory_lines(config: ResolvedConfig) -> list[str]:
    """The estimate in MB by part, and what it assumed where the config says auto."""
    step = assumed(config)
    title = "MB at the fullest moment of an update or evaluation, uncompiled, one process"
    guesses = []
    for key in ("device", "kernels", "dtype"):
        if getattr(config, key) == "auto":
            guesses.append(f"{key}={getattr(step, key)}")
    if step.kernels == "step" and not config.threads:
        guesses.append(f"threads={step.threads}")
    if guesses:
        title += f"; assumed {', '.join(guesses)}"
    lines = [title]
    for part, size in memory_estimate(config).items():
        lines.append(f"MB {part:<20} {size / 1e6:>15,.1f}")
    return lines
