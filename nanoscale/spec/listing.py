"""A model listed for people: what `nanoscale params` prints, and the table of rules in the docs."""

from __future__ import annotations

from collections.abc import Sequence

from nanoscale.spec.architecture import ROLES, TensorSpec
from nanoscale.spec.config import ResolvedConfig
from nanoscale.spec.counting import flops_per_token, parameter_counts
from nanoscale.spec.memory import assumed, memory_estimate
from nanoscale.spec.parametrization import BUILT_IN, SCHEMES, Rules, rules_of, shape_factor

_COLUMNS = (
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
TEXT_COLUMNS = 3  # the first ones; the others are aligned to the right
OF_ROWS = {"init": "init std", "lr": "LR", "wd": "weight decay", "eps": "eps"}
OF_FORWARD = {
    "attention": "attention scores / sqrt(head size)",
    "residual": "attention and MLP branches",
    "logits": "logits",
}


def rules_table(names: Sequence[str] = BUILT_IN) -> str:
    """The schemes as a Markdown table: what the docs show. What is 1 everywhere is left out."""
    schemes = [SCHEMES[name] for name in names]
    rows: dict[str, list[str]] = {}
    for role in ROLES:
        for part, title in OF_ROWS.items():
            rows[f"{role}, {title}"] = [str(getattr(s.rows[role], part)) for s in schemes]
    for part in ("lr", "wd"):
        rows[f"Muon's matrices, {OF_ROWS[part]}"] = [str(getattr(s.muon, part)) for s in schemes]
    for part, title in OF_FORWARD.items():
        rows[f"forward: {title}"] = [str(getattr(s, part)) for s in schemes]
    depths = ["n_layer" if s.own_depth else "base_n_layer" for s in schemes]
    rows["residual_out, base init std"] = [f"init_std / sqrt(2 {depth})" for depth in depths]

    lines = [["multiplier", *names], ["---"] * (len(names) + 1)]
    for title, cells in rows.items():
        if set(cells) != {"1"}:
            lines.append([title, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parameter_table(config: ResolvedConfig) -> str:
    """Every tensor's role, shape and rule, then N and FLOPs per token under each convention."""
    rules = rules_of(config)
    rows = [_COLUMNS, *(_cells(rules, tensor) for tensor in rules.tensors)]
    lines = [*_aligned(rows), "", _in_words(rules), ""]
    for name, count in parameter_counts(config).items():
        lines.append(f"N {name:<20} {count:>15,}")
    for name, flops in flops_per_token(config).items():
        lines.append(f"FLOPs per token {name:<16} {flops:>12,.0f}")
    return "\n".join(lines)


def _cells(rules: Rules, tensor: TensorSpec) -> tuple[str, ...]:
    """A tensor's row of `parameter_table`, as _COLUMNS."""
    rule = rules.rule(tensor)
    factor, eps, forward = "-", "-", "-"
    if rule.optimizer == "muon":
        factor = f"{shape_factor(rules.config.muon_scale, *tensor.shape):.4g}"
    else:
        eps = f"{rule.eps:.4g}"
    of_role = {
        "embedding": rules.multipliers.embedding,
        "residual_out": rules.multipliers.residual,
        "readout": rules.multipliers.logits,
    }
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


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines of columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
            cells.append(cell.ljust(width) if i < TEXT_COLUMNS else cell.rjust(width))
        lines.append("  ".join(cells))
    return lines


def _in_words(rules: Rules) -> str:
    """The mode, its base sizes and its forward multipliers, as one line."""
    p, m = rules.config.parametrization, rules.multipliers
    return (
        f"{p.mode}, base_n_embd={p.base_n_embd}, base_n_layer={p.base_n_layer}, "
        f"base_head_dim={p.base_head_dim}; forward multipliers: embedding {m.embedding:.4g}, "
        f"attention scores {m.attention:.4g}, residual branches {m.residual:.4g}, "
        f"logits {m.logits:.4g}"
    )


def memory_table(config: ResolvedConfig) -> str:
    """The estimate in MB by part, and what it assumed where the config says auto."""
    step = assumed(config)
    title = "MB at the fullest moment of an update, uncompiled, one process"
    guesses = [
        f"{key}={getattr(step, key)}"
        for key in ("device", "kernels", "dtype")
        if getattr(config, key) == "auto"
    ]
    if guesses:
        title += f"; assumed {', '.join(guesses)}"
    lines = [title]
    for part, size in memory_estimate(config).items():
        lines.append(f"MB {part:<20} {size / 1e6:>15,.1f}")
    return "\n".join(lines)
