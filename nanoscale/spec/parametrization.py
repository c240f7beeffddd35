"""SP, muP, CompleteP and whatever a user registers: a table of rules by role.

A rule says how a tensor's initial standard deviation, learning rate, weight decay and eps depend
on the model's size relative to a base size at which every multiplier is 1, so all modes are the
same model there, bit for bit. Sources: muP, Yang et al. 2022 (arXiv 2203.03466, table 8);
CompleteP, Dey et al. 2025 (arXiv 2505.01618, table 1); eps by role, batch and horizon, arXiv
2512.22382; Muon's lack of a width factor, from its update's spectral norm (`shape_factor`).
"""

from __future__ import annotations

import functools
import math
import re
import runpy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from nanoscale.errors import UserError, did_you_mean, one_of
from nanoscale.spec.architecture import MATRIX_ROLES, ROLES, TensorSpec, tensors
from nanoscale.spec.config import ExperimentConfig, ResolvedConfig
from nanoscale.spec.counting import flops_per_token, parameter_counts
from nanoscale.spec.resolve import file_digest


# -- the language of rules ------------------------------------------------------------------------
@dataclass(frozen=True)
class Ratios:
    """A size relative to the base: m_in = fan_in, m_N = width, m_L = depth, m_h = head size.

    m_in is the tensor's own, so it is right for a SwiGLU width that was rounded.
    """

    m_in: float = 1.0
    m_N: float = 1.0
    m_L: float = 1.0
    m_h: float = 1.0
    alpha: float = 1.0


@dataclass(frozen=True)
class Power:
    """m_in^a m_N^b m_h^c m_L^(d + e alpha)."""

    m_in: float = 0.0
    m_N: float = 0.0
    m_h: float = 0.0
    m_L: float = 0.0
    m_L_alpha: float = 0.0

    def __call__(self, r: Ratios) -> float:
        depth = self.m_L + self.m_L_alpha * r.alpha
        return r.m_in**self.m_in * r.m_N**self.m_N * r.m_h**self.m_h * r.m_L**depth

    def __str__(self) -> str:
        """As in the docs: `m_in^-1 m_L^(alpha-1)`."""
        if self.m_L and self.m_L_alpha:
            whole, times = f"{self.m_L:+g}", f"{self.m_L_alpha:+g}alpha".replace("1alpha", "alpha")
            depth = f"({(times + whole if times[0] == '+' else whole + times).lstrip('+')})"
        else:
            depth = (
                f"{self.m_L_alpha:g}alpha".replace("1alpha", "alpha")
                if self.m_L_alpha
                else (f"{self.m_L:g}")
            )
        powers = {
            "m_in": f"{self.m_in:g}",
            "m_N": f"{self.m_N:g}",
            "m_h": f"{self.m_h:g}",
            "m_L": depth,
        }
        return (
            " ".join(
                name if power == "1" else f"{name}^{power}"
                for name, power in powers.items()
                if power != "0"
            )
            or "1"
        )


Multiplier = Callable[[Ratios], float]  # a Power, or a user's own function
ONE = Power()


@dataclass(frozen=True)
class Row:
    """Multipliers of one role on the base init std, LR, weight decay and eps.

    `wd` is that of independent decay, by which LR x decay is the same at every width.
    """

    init: Multiplier = ONE
    lr: Multiplier = ONE
    wd: Multiplier = ONE
    eps: Multiplier = ONE


@dataclass(frozen=True)
class Scheme:
    """A mode: a row per role, Muon's row, and what the forward pass multiplies by.

    `attention` is beside 1 / sqrt(head size). With `own_depth` the branches' last matrices start
    at std / sqrt(2 L), GPT-2's rule; otherwise at the base's constant, std / sqrt(2 L_base).
    `input_mult` and `output_mult` act unless the scheme is not `tunable`.
    """

    rows: Mapping[str, Row] = field(default_factory=lambda: dict.fromkeys(ROLES, Row()))
    muon: Row = Row()
    attention: Multiplier = ONE
    residual: Multiplier = ONE
    logits: Multiplier = ONE
    own_depth: bool = False
    tunable: bool = True


# -- the table ------------------------------------------------------------------------------------
NARROW = Power(m_N=-1)  # gradients shrink as 1/width, so eps does
BLOCK_LR = Power(m_L=-1, m_L_alpha=1)  # m_L^(alpha-1)
BLOCK_EPS = Power(m_N=-1, m_L_alpha=-1)
_OUTER = {role: Row(eps=NARROW) for role in ("embedding", "position", "final_norm", "readout")}
_MUP_MATRIX = Row(Power(m_in=-0.5), Power(m_in=-1), Power(m_in=1), NARROW)
_COMPLETEP_MATRIX = Row(
    Power(m_in=-0.5), Power(m_in=-1, m_L=-1, m_L_alpha=1), Power(m_in=1), BLOCK_EPS
)
_HEAD = {"attention": Power(m_h=-0.5), "logits": Power(m_N=-1)}

SP = Scheme(own_depth=True, tunable=False)
MUP = Scheme(
    _OUTER
    | {
        "hidden": _MUP_MATRIX,
        "residual_out": _MUP_MATRIX,
        "block_norm": Row(eps=NARROW),
        "bias": Row(eps=NARROW),
        "qk_norm": Row(),
    },
    **_HEAD,
)
# m_L is 1 outside blocks, so a final bias takes no depth factor; Muon's LR x decay stays constant
COMPLETEP = Scheme(
    _OUTER
    | {
        "hidden": _COMPLETEP_MATRIX,
        "residual_out": _COMPLETEP_MATRIX,
        "block_norm": Row(lr=BLOCK_LR, eps=BLOCK_EPS),
        "bias": Row(lr=BLOCK_LR, eps=BLOCK_EPS),
        "qk_norm": Row(lr=BLOCK_LR, eps=Power(m_L_alpha=-1)),
    },  # shared over heads: no width factor
    muon=Row(lr=BLOCK_LR, wd=Power(m_L=1, m_L_alpha=-1)),
    residual=Power(m_L_alpha=-1),
    **_HEAD,
)

SCHEMES: dict[str, Scheme] = {"SP": SP, "muP": MUP, "CompleteP": COMPLETEP}
BUILT_IN = tuple(SCHEMES)
DECAYED = ("embedding", "position", "hidden", "residual_out", "readout")


def register(name: str, scheme: Scheme) -> None:
    """Make `scheme` a mode, for `parametrization.mode=name`.

    Called by the file that `parametrization.rules` names:

        from dataclasses import replace
        from nanoscale.parametrization import MUP, Power, register
        register("muP-sqrt", replace(MUP, logits=Power(m_N=-0.5)))

    Raises:
        UserError: the name is taken or no plain word, or a role has no row.
    """
    if not re.fullmatch(r"[A-Za-z][\w.-]*", name) or name in BUILT_IN:
        raise UserError(f"register({name!r}): choose another name, of letters, digits and -_.")
    lacking = [role for role in ROLES if role not in scheme.rows]
    if lacking:
        raise UserError(
            f"register({name!r}): no row for {one_of(lacking)}; begin from one of ours,"
            " as in replace(MUP, rows=MUP.rows | {...})"
        )
    SCHEMES[name] = scheme


def scheme_of(config: ExperimentConfig) -> Scheme:
    """The scheme of the config's mode, from the user's file if there is one.

    Raises:
        UserError: the file is not what it was, fails, or registers no such mode.
    """
    p = config.parametrization
    known = SCHEMES if p.rules is None else SCHEMES | registered_by(p.rules, p.rules_digest)
    if p.mode not in known:
        where = f"{p.rules} registers no such mode" if p.rules else "no such mode"
        raise UserError(
            f"parametrization.mode={p.mode}: {where}"
            f"{did_you_mean(p.mode, known) or f'; choose {one_of(known)}'}"
        )
    return known[p.mode]


@functools.cache
def registered_by(file: str, digest: str | None) -> dict[str, Scheme]:
    """The schemes that a user's Python file registers."""
    if digest is not None and file_digest(file) != digest:
        raise UserError(
            f"parametrization.rules={file}: changed since this run was made; put the "
            "old file back, or start a new run with the new one"
        )
    try:
        runpy.run_path(file)
    except UserError as e:
        raise UserError(f"parametrization.rules={file}: {e}") from e
    except Exception as e:
        raise UserError(f"parametrization.rules={file}: {type(e).__name__}: {e}") from e
    found = {name: SCHEMES.pop(name) for name in list(SCHEMES) if name not in BUILT_IN}
    if not found:
        raise UserError(
            f"parametrization.rules={file}: registers no mode; call "
            "nanoscale.spec.parametrization.register(name, scheme) in it"
        )
    return found


# -- the rules of one tensor ----------------------------------------------------------------------
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
    whole = model_ratios(config)
    return Ratios(
        spec.fan_in / spec.base_fan_in,
        whole.m_N,
        whole.m_L if spec.in_block else 1.0,
        whole.m_h,
        whole.alpha,
    )


def model_ratios(config: ExperimentConfig) -> Ratios:
    """The model's size relative to the base's."""
    p = config.parametrization
    m_N = config.n_embd / p.base_n_embd
    return Ratios(
        m_N, m_N, config.n_layer / p.base_n_layer, config.head_dim / p.base_head_dim, p.alpha
    )


def rule(spec: TensorSpec, config: ResolvedConfig) -> Rule:
    """The rule of one tensor under the config's mode and optimizer."""
    scheme, r = scheme_of(config), ratios(spec, config)
    row = scheme.rows[spec.role]
    std, mean = _initial(spec, config, scheme)
    muon = config.optimizer == "muon" and spec.role in MATRIX_ROLES
    if muon:
        update, lr, decay = scheme.muon, config.muon_lr, config.muon_weight_decay
    else:
        update, lr, decay = row, config.learning_rate, config.weight_decay
    long = run_length(config)
    decay = base_decay(config, decay, lr) * WD_RULES[config.parametrization.wd_rule](update.wd(r))
    lr *= {
        "embedding": config.embedding_lr_mult,
        "position": config.embedding_lr_mult,
        "readout": config.head_lr_mult,
    }.get(spec.role, 1.0)
    return Rule(
        "muon" if muon else "adamw",
        std * row.init(r),
        mean,
        lr * update.lr(r) * long**0.5,
        decay if spec.role in DECAYED else 0.0,
        config.adam_eps * row.eps(r) / long**0.5,
    )


# What becomes of a row's factor on weight decay. independent: LR x decay is the same at every
# width; coupled: the decay is, as in torch; sqrt: between (arXiv 2510.15262).
WD_RULES: dict[str, Callable[[float], float]] = {
    "independent": lambda factor: factor,
    "coupled": lambda factor: 1.0,
    "sqrt": math.sqrt,
}


def base_decay(config: ResolvedConfig, decay: float, lr: float) -> float:
    """The base's weight decay, from the number in the config.

    fraction_of_run: `decay` counts e-foldings per run at the peak LR, LR x decay x updates
    (timescale: Wang & Aitchison 2024, arXiv 2405.13698); steps: it is AdamW's lambda.
    """
    long = run_length(config)
    if config.parametrization.wd_timescale == "fraction_of_run":
        return decay / (lr * long**0.5 * max(config.max_iters, 1))
    return decay * long**0.5


def run_length(config: ResolvedConfig) -> float:
    """m_B / m_D: the batch over the base's, over the run's tokens over the base's; 1 if not set.

    arXiv 2512.22382 (Complete(d)P): LR and weight decay go as its root, eps as one over that, and
    1 - beta as itself.
    """
    p, batch = config.parametrization, config.tokens_per_iter
    m_B = batch / p.base_batch_tokens if p.base_batch_tokens else 1.0
    m_D = max(config.max_iters, 1) * batch / p.base_tokens if p.base_tokens else 1.0
    return m_B / m_D


def betas(config: ResolvedConfig) -> tuple[float, float]:
    """AdamW's, after the rules of batch and horizon.

    Raises:
        UserError: the run is so short, or its batch so large, that they would not be positive.
    """
    long = run_length(config)
    if long == 1:
        return config.beta1, config.beta2
    found = 1 - (1 - config.beta1) * long, 1 - (1 - config.beta2) * long
    if min(found) < 0:
        raise UserError(
            f"base_batch_tokens and base_tokens make AdamW's betas {found[0]:.3g} and "
            f"{found[1]:.3g}; take a smaller batch, a longer run or larger betas"
        )
    return found


def _initial(spec: TensorSpec, config: ExperimentConfig, scheme: Scheme) -> tuple[float, float]:
    """(std, mean) at the base: GPT-2's 0.02, over sqrt(2 L) where a branch joins the residual."""
    if spec.role == "bias":
        return 0.0, 0.0
    if spec.role.endswith("_norm"):
        return 0.0, 1.0
    if spec.role != "residual_out":
        return config.init_std, 0.0
    depth = config.n_layer if scheme.own_depth else config.parametrization.base_n_layer
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
    scheme, p, r = scheme_of(config), config.parametrization, model_ratios(config)
    into, out = (p.input_mult, p.output_mult) if scheme.tunable else (1.0, 1.0)
    return Multipliers(
        into,
        scheme.attention(r) / math.sqrt(config.head_dim),
        scheme.residual(r),
        out * scheme.logits(r),
    )


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


def rules_table(names: Sequence[str] = BUILT_IN) -> str:
    """The schemes as a Markdown table: what the docs show. What is 1 everywhere is left out."""
    schemes = [SCHEMES[name] for name in names]
    rows: dict[str, list[str]] = {}
    for role in ROLES:
        for what, title in (
            ("init", "init std"),
            ("lr", "LR"),
            ("wd", "weight decay"),
            ("eps", "eps"),
        ):
            rows[f"{role}, {title}"] = [str(getattr(s.rows[role], what)) for s in schemes]
    for what, title in (("lr", "LR"), ("wd", "weight decay")):
        rows[f"Muon's matrices, {title}"] = [str(getattr(s.muon, what)) for s in schemes]
    for what, title in (
        ("attention", "attention scores / sqrt(head size)"),
        ("residual", "attention and MLP branches"),
        ("logits", "logits"),
    ):
        rows[f"forward: {title}"] = [str(getattr(s, what)) for s in schemes]
    rows["residual_out, base init std"] = [
        "init_std / sqrt(2 n_layer)" if s.own_depth else "init_std / sqrt(2 base_n_layer)"
        for s in schemes
    ]
    lines = [("multiplier", *names), ("---",) * (len(names) + 1)]
    lines += [(title, *cells) for title, cells in rows.items() if set(cells) != {"1"}]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parameter_table(config: ResolvedConfig) -> str:
    """Every tensor's role, shape and rule, then N and FLOPs per token under each convention."""
    m = multipliers(config)
    forward = {"embedding": m.embedding, "residual_out": m.residual, "readout": m.logits}
    rows = [
        (
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
    ]
    for spec in tensors(config):
        r, factor, eps = rule(spec, config), "-", "-"
        if r.optimizer == "muon":
            factor = f"{shape_factor(config.muon_scale, *spec.shape):.4g}"
        else:
            eps = f"{r.eps:.4g}"
        times = f"{forward[spec.role]:.4g}" if spec.role in forward else "-"
        rows.append(
            (
                spec.name,
                spec.role,
                "x".join(map(str, spec.shape)),
                f"{r.init_std:.4g}",
                r.optimizer,
                f"{r.lr:.4g}",
                factor,
                f"{r.weight_decay:.4g}",
                eps,
                times,
                f"{spec.numel:,}",
            )
        )
    wide = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(w) if i > 2 else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, wide, strict=True))
        )
        for row in rows
    ]
    p = config.parametrization
    lines += [
        "",
        f"{p.mode}, base_n_embd={p.base_n_embd}, base_n_layer={p.base_n_layer}, "
        f"base_head_dim={p.base_head_dim}; forward multipliers: embedding {m.embedding:.4g}, "
        f"attention scores {m.attention:.4g}, residual branches {m.residual:.4g}, "
        f"logits {m.logits:.4g}",
        "",
    ]
    lines += [f"N {name:<20} {n:>15,}" for name, n in parameter_counts(config).items()]
    lines += [
        f"FLOPs per token {name:<16} {c:>12,.0f}" for name, c in flops_per_token(config).items()
    ]
    return "\n".join(lines)
