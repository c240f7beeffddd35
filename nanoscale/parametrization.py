"""SP, muP and CompleteP as one table of rules by role.

A rule says how a tensor's initial standard deviation, AdamW learning rate, weight decay and eps
depend on the model's size relative to a base size at which every multiplier is 1, so the three
modes are the same model there, bit for bit. Sources: muP, Yang et al. 2022 (arXiv 2203.03466,
table 8); CompleteP, Dey et al. 2025 (arXiv 2505.01618, table 1); eps by role, arXiv 2512.22382.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nanoscale.architecture import MATRIX_ROLES, TensorSpec, tensors
from nanoscale.config import ExperimentConfig
from nanoscale.counting import flops_per_token, parameter_counts


@dataclass(frozen=True)
class Ratios:
    """A tensor's size relative to the base: m_in = fan_in, m_N = width, m_L = depth."""

    m_in: float
    m_N: float
    m_L: float
    alpha: float


@dataclass(frozen=True)
class Power:
    """m_in^a * m_N^b * m_L^(c + e alpha)."""

    m_in: float = 0.0
    m_N: float = 0.0
    m_L: float = 0.0
    m_L_alpha: float = 0.0

    def at(self, r: Ratios) -> float:
        depth = self.m_L + self.m_L_alpha * r.alpha
        return r.m_in**self.m_in * r.m_N**self.m_N * r.m_L**depth


ONE = Power()


@dataclass(frozen=True)
class Row:
    """Multipliers of one role on the base init std, LR, weight decay and eps."""

    init: Power = ONE
    lr: Power = ONE
    wd: Power = ONE
    eps: Power = ONE


NARROW = Power(m_N=-1)  # gradients shrink as 1/width, so eps does
BLOCK_LR = Power(m_L=-1, m_L_alpha=1)  # m_L^(alpha-1)
BLOCK_EPS = Power(m_N=-1, m_L_alpha=-1)
_OUTER = {role: Row(eps=NARROW) for role in ("embedding", "position", "final_norm", "readout")}
_MUP_MATRIX = Row(Power(m_in=-0.5), Power(m_in=-1), Power(m_in=1), NARROW)
_COMPLETEP_MATRIX = Row(Power(m_in=-0.5), Power(m_in=-1, m_L=-1, m_L_alpha=1), Power(m_in=1),
                        BLOCK_EPS)

# mode -> role -> row. m_L is 1 outside blocks, so a final bias takes no depth factor.
TABLE: dict[str, dict[str, Row]] = {
    "SP": {role: Row() for role in ("embedding", "position", "hidden", "residual_out", "block_norm",
                                    "qk_norm", "final_norm", "bias", "readout")},
    "muP": _OUTER | {
        "hidden": _MUP_MATRIX, "residual_out": _MUP_MATRIX,
        "block_norm": Row(eps=NARROW), "bias": Row(eps=NARROW), "qk_norm": Row(),
    },
    "CompleteP": _OUTER | {
        "hidden": _COMPLETEP_MATRIX, "residual_out": _COMPLETEP_MATRIX,
        "block_norm": Row(lr=BLOCK_LR, eps=BLOCK_EPS), "bias": Row(lr=BLOCK_LR, eps=BLOCK_EPS),
        "qk_norm": Row(lr=BLOCK_LR, eps=Power(m_L_alpha=-1)),  # shared over heads: no width factor
    },
}
# Muon's update has its own shape factor (muon.py), so no width factor here; lr * wd stays constant.
MUON_ROW = {"SP": Row(), "muP": Row(),
            "CompleteP": Row(lr=BLOCK_LR, wd=Power(m_L=1, m_L_alpha=-1))}
DECAYED = ("embedding", "position", "hidden", "residual_out", "readout")


@dataclass(frozen=True)
class Rule:
    """What holds for one tensor: absolute numbers, before the schedule."""

    optimizer: str  # "adamw" or "muon"
    init_std: float
    init_mean: float
    lr: float
    weight_decay: float  # the optimizer shrinks the tensor by 1 - lr * weight_decay
    eps: float


def ratios(spec: TensorSpec, config: ExperimentConfig) -> Ratios:
    """The tensor's size relative to the base model's."""
    p = config.parametrization
    depth = config.n_layer / p.base_n_layer if spec.in_block else 1.0
    return Ratios(spec.fan_in / spec.base_fan_in, config.n_embd / p.base_n_embd, depth, p.alpha)


def rule(spec: TensorSpec, config: ExperimentConfig) -> Rule:
    """The rule of one tensor under the config's mode and optimizer."""
    mode, r = config.parametrization.mode, ratios(spec, config)
    row = TABLE[mode][spec.role]
    std, mean = _initial(spec, config)
    muon = config.optimizer == "muon" and spec.role in MATRIX_ROLES
    if muon:
        update, lr, decay = MUON_ROW[mode], config.muon_lr, config.muon_weight_decay
    else:
        update, lr, decay = row, config.learning_rate, config.weight_decay
    lr *= {"embedding": config.embedding_lr_mult, "position": config.embedding_lr_mult,
           "readout": config.head_lr_mult}.get(spec.role, 1.0)
    decay = decay * update.wd.at(r) if spec.role in DECAYED else 0.0
    return Rule("muon" if muon else "adamw", std * row.init.at(r), mean, lr * update.lr.at(r),
                decay, config.adam_eps * row.eps.at(r))


def _initial(spec: TensorSpec, config: ExperimentConfig) -> tuple[float, float]:
    """(std, mean) at the base: GPT-2's 0.02, over sqrt(2 L) where a branch joins the residual."""
    if spec.role == "bias":
        return 0.0, 0.0
    if spec.role.endswith("_norm"):
        return 0.0, 1.0
    if spec.role != "residual_out":
        return config.init_std, 0.0
    p = config.parametrization
    # muP and CompleteP keep the base's constant in depth; their depth rule is the multiplier
    depth = config.n_layer if p.mode == "SP" else p.base_n_layer
    return config.init_std / math.sqrt(2 * depth), 0.0


@dataclass(frozen=True)
class Multipliers:
    """What the forward pass multiplies by."""

    embedding: float
    attention: float  # of q k^T
    residual: float  # of each branch
    logits: float


def multipliers(config: ExperimentConfig) -> Multipliers:
    """The forward multipliers of the config's mode (SP: none but 1/sqrt(head size))."""
    p, h = config.parametrization, config.head_dim
    scale = 1 / math.sqrt(h)
    if p.mode == "SP":
        return Multipliers(1.0, scale, 1.0, 1.0)
    residual = (config.n_layer / p.base_n_layer) ** -p.alpha if p.mode == "CompleteP" else 1.0
    return Multipliers(p.input_mult, scale * math.sqrt(p.base_head_dim / h), residual,
                       p.output_mult / (config.n_embd / p.base_n_embd))


def shape_factor(scale: str, fan_out: int, fan_in: int) -> float:
    """What the orthogonal update is multiplied by, beside the LR.

    spectral: the update's spectral norm is LR sqrt(fan_out / fan_in) at every size, so the LR
    transfers over width; original: the same but never below 1; match_rms: entries as large as
    AdamW's, which does not transfer.
    """
    factors = {
        "spectral": (fan_out / fan_in) ** 0.5,
        "original": max(1.0, fan_out / fan_in) ** 0.5,
        "match_rms": 0.2 * max(fan_out, fan_in) ** 0.5,
    }
    return factors[scale]


def parameter_table(config: ExperimentConfig) -> str:
    """Every tensor's role, shape and rule, then N and FLOPs per token under each convention."""
    m = multipliers(config)
    forward = {"embedding": m.embedding, "residual_out": m.residual, "readout": m.logits}
    rows = [("tensor", "role", "shape", "init std", "optimizer", "LR", "update x", "weight decay",
             "eps", "forward x", "count")]
    for spec in tensors(config):
        r, factor, eps = rule(spec, config), "-", "-"
        if r.optimizer == "muon":
            factor = f"{shape_factor(config.muon_scale, *spec.shape):.4g}"
        else:
            eps = f"{r.eps:.4g}"
        times = f"{forward[spec.role]:.4g}" if spec.role in forward else "-"
        rows.append((spec.name, spec.role, "x".join(map(str, spec.shape)), f"{r.init_std:.4g}",
                     r.optimizer, f"{r.lr:.4g}", factor, f"{r.weight_decay:.4g}", eps, times,
                     f"{spec.numel:,}"))
    wide = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(w) if i > 2 else cell.ljust(w)
                       for i, (cell, w) in enumerate(zip(row, wide, strict=True))) for row in rows]
    p = config.parametrization
    lines += ["", f"{p.mode}, base_n_embd={p.base_n_embd}, base_n_layer={p.base_n_layer}, "
              f"base_head_dim={p.base_head_dim}; forward multipliers: embedding {m.embedding:.4g}, "
              f"attention scores {m.attention:.4g}, residual branches {m.residual:.4g}, "
              f"logits {m.logits:.4g}", ""]
    lines += [f"N {name:<20} {n:>15,}" for name, n in parameter_counts(config).items()]
    lines += [f"FLOPs per token {name:<16} {c:>12,.0f}" for name, c in
              flops_per_token(config).items()]
    return "\n".join(lines)
