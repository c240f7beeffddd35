"""A model listed for people: what `nanoscale params` prints, and the table of rules in the docs."""

from __future__ import annotations

from collections.abc import Sequence

from nanoscale.spec.architecture import ROLES, TensorSpec
from nanoscale.spec.config import ResolvedConfig
from nanoscale.spec.counting import flops_per_token, parameter_counts
from nanoscale.spec.memory import assumed, memory_estimate
from nanoscale.spec.parametrization import (
    BUILT_IN_SCHEMES,
    SCHEMES,
    Rules,
    Scheme,
    rules_of,
    shape_factor,
)

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


def rules_table(names: Sequence[str] = BUILT_IN_SCHEMES) -> str:
    """The schemes as a Markdown table: what the docs show. What is 1 everywhere is left out."""
    columns = [_texts(SCHEMES[name]) for name in names]
    lines = [["multiplier", *names], ["---"] * (len(names) + 1)]
    for title in columns[0]:
        cells = [column[title] for column in columns]
        if set(cells) != {"1"}:
            lines.append([title, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _texts(scheme: Scheme) -> dict[str, str]:
    """What a scheme multiplies -> by what, in the order of the docs."""
    texts = {}
    for role in ROLES:
        row = scheme.rows[role]
        for part, title in OF_ROWS.items():
            texts[f"{role}, {title}"] = str(getattr(row, part))
    texts["Muon's matrices, LR"] = str(scheme.muon.lr)
    texts["Muon's matrices, weight decay"] = str(scheme.muon.wd)
    for part, title in OF_FORWARD.items():
        texts[f"forward: {title}"] = str(getattr(scheme, part))
    depth = "n_layer" if scheme.own_depth else "base_n_layer"
    texts["residual_out, base init std"] = f"init_std / sqrt(2 {depth})"
    return texts


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
        cells = list(map(str.rjust, row, widths))
        cells[:TEXT_COLUMNS] = map(str.ljust, row[:TEXT_COLUMNS], widths)
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
