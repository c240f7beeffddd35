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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from nanoscale.errors import UserError, did_you_mean, one_of, registered_in
from nanoscale.spec.architecture import MATRIX_ROLES, ROLES, TensorSpec, tensors
from nanoscale.spec.config import ExperimentConfig, ResolvedConfig
from nanoscale.spec.muon_rules import MUON_RULES
from nanoscale.spec.resolve import file_digest


# -- the language of rules ------------------------------------------------------------------------
@dataclass(frozen=True)
class Ratios:
    """A size relative to the base: m_in = fan_in, m_N = width, m_L = depth, m_h = head size.

    m_in is the tensor's own, so it is right for a SwiGLU width that was rounded.
    """

    m_in: float
    m_N: float
    m_L: float
    m_h: float
    alpha: float


@dataclass(frozen=True)
class Power:
    """m_in^a m_N^b m_h^c m_L^(d + e alpha)."""

    m_in: float = 0.0
    m_N: float = 0.0
    m_h: float = 0.0
    m_L: float = 0.0
    m_L_alpha: float = 0.0

    def __call__(self, r: Ratios) -> float:
        of_widths: float = r.m_in**self.m_in * r.m_N**self.m_N * r.m_h**self.m_h
        of_depth: float = r.m_L ** (self.m_L + self.m_L_alpha * r.alpha)
        return of_widths * of_depth

    def __str__(self) -> str:
        """As in the docs: `m_in^-1 m_L^(alpha-1)`."""
        powers = {
            "m_in": f"{self.m_in:g}",
            "m_N": f"{self.m_N:g}",
            "m_h": f"{self.m_h:g}",
            "m_L": _linear(self.m_L, self.m_L_alpha),
        }
        factors = []
        for name, power in powers.items():
            if power == "1":
                factors.append(name)
            elif power != "0":
                factors.append(f"{name}^{power}")
        return " ".join(factors) or "1"


def _linear(constant: float, slope: float) -> str:
    """constant + slope alpha as text, what is positive first: `2`, `-alpha`, `(1-alpha)`."""
    if not slope:
        return f"{constant:g}"
    term = f"{slope:g}alpha"
    if abs(slope) == 1:
        term = term.replace("1", "")
    if not constant:
        return term
    return f"({term}{constant:+g})" if slope > 0 else f"({constant:g}{term})"


Multiplier = Callable[[Ratios], float]  # a Power, or a user's own function
ONE = Power()


@dataclass(frozen=True)
class Scaling:
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

    rows: Mapping[str, Scaling] = field(default_factory=lambda: dict.fromkeys(ROLES, Scaling()))
    muon: Scaling = Scaling()
    attention: Multiplier = ONE
    residual: Multiplier = ONE
    logits: Multiplier = ONE
    own_depth: bool = False
    tunable: bool = True


# -- the table ------------------------------------------------------------------------------------
NARROW = Power(m_N=-1)  # gradients shrink as 1/width, so eps does
BLOCK_LR = Power(m_L=-1, m_L_alpha=1)  # m_L^(alpha-1)
BLOCK_EPS = Power(m_N=-1, m_L_alpha=-1)
_MUP_MATRIX = Scaling(Power(m_in=-0.5), Power(m_in=-1), Power(m_in=1), NARROW)
_COMPLETEP_MATRIX = replace(_MUP_MATRIX, lr=replace(BLOCK_LR, m_in=-1), eps=BLOCK_EPS)

SP = Scheme(own_depth=True, tunable=False)
MUP = Scheme(
    {
        **dict.fromkeys(ROLES, Scaling(eps=NARROW)),
        "hidden": _MUP_MATRIX,
        "residual_out": _MUP_MATRIX,
        "qk_norm": Scaling(),  # shared over heads: no width factor
    },
    attention=Power(m_h=-0.5),
    logits=Power(m_N=-1),
)
# m_L is 1 outside blocks, so a final bias takes no depth factor; Muon's LR x decay stays constant
COMPLETEP = replace(
    MUP,
    rows={
        **MUP.rows,
        "hidden": _COMPLETEP_MATRIX,
        "residual_out": _COMPLETEP_MATRIX,
        "block_norm": Scaling(lr=BLOCK_LR, eps=BLOCK_EPS),
        "bias": Scaling(lr=BLOCK_LR, eps=BLOCK_EPS),
        "qk_norm": Scaling(lr=BLOCK_LR, eps=Power(m_L_alpha=-1)),
    },
    muon=Scaling(lr=BLOCK_LR, wd=Power(m_L=1, m_L_alpha=-1)),
    residual=Power(m_L_alpha=-1),
)

SCHEMES: dict[str, Scheme] = {"SP": SP, "muP": MUP, "CompleteP": COMPLETEP}
BUILT_IN_SCHEMES = tuple(SCHEMES)
DECAYED = ("embedding", "position", "hidden", "residual_out", "readout")


def register(name: str, scheme: Scheme) -> None:
    """Make `scheme` a mode, for `parametrization.mode=name`.

    Called by the file that `parametrization.rules` names:

        from dataclasses import replace
        from nanoscale.spec.parametrization import MUP, Power, register
        register("muP-sqrt", replace(MUP, logits=Power(m_N=-0.5)))

    >>> from dataclasses import replace
    >>> import nanoscale as ns
    >>> from nanoscale.spec.parametrization import MUP, SCHEMES, Power
    >>> ns.register_scheme("mine", replace(MUP, logits=Power(m_N=-0.5)))
    >>> SCHEMES.pop("mine").logits.m_N
    -0.5

    Raises:
        UserError: the name is taken or no plain word, or a role has no row.
    """
    if not re.fullmatch(r"[A-Za-z][\w.-]*", name) or name in BUILT_IN_SCHEMES:
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
    known = SCHEMES
    missing = "no such mode"
    if p.rules is not None:
        known = SCHEMES | registered_by(p.rules, p.rules_digest)
        missing = f"{p.rules} registers no such mode"
    if p.mode not in known:
        hint = did_you_mean(p.mode, known) or f"; choose {one_of(known)}"
        raise UserError(f"parametrization.mode={p.mode}: {missing}{hint}")
    return known[p.mode]


@functools.cache
def registered_by(file: str, digest: str | None) -> dict[str, Scheme]:
    """The schemes that a user's Python file registers."""
    if digest is not None and file_digest(file) != digest:
        raise UserError(
            f"parametrization.rules={file}: changed since this run was made; put the "
            "old file back, or start a new run with the new one"
        )
    how = "registers no mode; call nanoscale.spec.parametrization.register(name, scheme) in it"
    return registered_in(file, SCHEMES, f"parametrization.rules={file}", how)


# -- the rules of one model -----------------------------------------------------------------------
@dataclass(frozen=True)
class Rule:
    """What holds for one tensor: absolute numbers, before the schedule."""

    optimizer: str  # "adamw", "muon", or "adamh" of a head beside MuonH
    init_std: float
    init_mean: float
    lr: float
    weight_decay: float  # the optimizer shrinks the tensor by 1 - lr * weight_decay
    eps: float


@dataclass(frozen=True)
class Multipliers:
    """What the forward pass multiplies by (SP: nothing but 1 / sqrt(head size))."""

    embedding: float
    attention: float  # of q k^T
    residual: float  # of each branch
    logits: float


def rules_of(config: ResolvedConfig) -> Rules:
    """The config's parametrization, looked up once for its model and optimizers.

    Raises:
        UserError: the user's file of rules is not what it was, fails, or registers no such mode.
    """
    p, batch = config.parametrization, config.tokens_per_iter
    m_N = config.n_embd / p.base_n_embd
    m_L = config.n_layer / p.base_n_layer
    m_h = config.head_dim / p.base_head_dim
    m_B = m_D = 1.0
    if p.base_batch_tokens:
        m_B = batch / p.base_batch_tokens
    if p.base_tokens:
        m_D = max(config.max_iters, 1) * batch / p.base_tokens
    ratios = Ratios(m_N, m_N, m_L, m_h, p.alpha)
    return Rules(config, scheme_of(config), ratios, m_B / m_D, tuple(tensors(config)))


@dataclass(frozen=True)
class Rules:
    """What a parametrization says of one model: a `Rule` per tensor, multipliers, AdamW's betas."""

    config: ResolvedConfig
    scheme: Scheme
    ratios: Ratios  # the model's size relative to the base's
    # m_B / m_D: the batch over the base's, over the run's tokens over the base's; else 1. It falls
    # as runs grow longer. arXiv 2512.22382 (Complete(d)P): LR and weight decay go as its root, eps
    # as one over that, and 1 - beta as itself
    batch_over_horizon: float
    tensors: tuple[TensorSpec, ...]

    def rule(self, tensor: TensorSpec) -> Rule:
        """The rule of one tensor under the config's mode and optimizer."""
        config, row = self.config, self.scheme.rows[tensor.role]
        ratios = self.ratios_of(tensor)
        std, mean = self._initial(tensor.role)

        by_muon = config.optimizer == "muon" and tensor.role in MATRIX_ROLES
        if by_muon:
            update, lr, decay = self.muon_row, config.muon_lr, config.muon_weight_decay
        else:
            update, lr, decay = row, config.learning_rate, config.weight_decay
        decay = self._base_decay(decay, lr) * self._decay_factor(update.wd(ratios))

        held = self.keeps_norms and (by_muon or tensor.role == "readout")
        if tensor.role in ("embedding", "position"):
            lr *= config.embedding_lr_mult
        elif tensor.role == "readout":
            lr *= config.head_lr_mult
        other = "adamh" if held else "adamw"
        return Rule(
            optimizer="muon" if by_muon else other,
            init_std=std * row.init(ratios),
            init_mean=mean,
            lr=lr * update.lr(ratios) * self._root,
            weight_decay=decay if tensor.role in DECAYED and not held else 0.0,
            eps=config.adam_eps * row.eps(ratios) / self._root,
        )

    @property
    def muon_row(self) -> Scaling:
        """The scheme's row of Muon's matrices, with what `muon_width_power` adds."""
        row, g = self.scheme.muon, self.config.parametrization.muon_width_power
        if not g or not self.scheme.tunable:
            return row
        return replace(
            row,
            lr=lambda r: row.lr(r) * r.m_N**g,
            wd=lambda r: row.wd(r) * r.m_N**-g,  # LR x decay stays
        )

    @property
    def keeps_norms(self) -> bool:
        """Whether matrices stay on the sphere that they begin on."""
        config = self.config
        return config.optimizer == "muon" and MUON_RULES[config.muon_rule].of_weights

    def ratios_of(self, tensor: TensorSpec) -> Ratios:
        """The tensor's size relative to the base model's; outside blocks depth does not count."""
        m_in = tensor.fan_in / tensor.base_fan_in
        return replace(self.ratios, m_in=m_in, m_L=self.ratios.m_L if tensor.in_block else 1.0)

    def _initial(self, role: str) -> tuple[float, float]:
        """(std, mean) at the base: GPT-2's 0.02, over sqrt(2 L) where a branch joins the stream."""
        if role == "bias":
            return 0.0, 0.0
        if role.endswith("_norm"):
            return 0.0, 1.0
        if role != "residual_out":
            return self.config.init_std, 0.0
        base = self.config.parametrization.base_n_layer
        depth = self.config.n_layer if self.scheme.own_depth else base
        return self.config.init_std / math.sqrt(2 * depth), 0.0

    def _base_decay(self, decay: float, lr: float) -> float:
        """The base's weight decay, from the number in the config.

        fraction_of_run: `decay` counts e-foldings per run at the peak LR, LR x decay x updates
        (timescale: Wang & Aitchison 2024, arXiv 2405.13698); steps: it is AdamW's lambda.
        """
        if self.config.parametrization.wd_timescale == "fraction_of_run":
            return decay / (lr * self._root * max(self.config.max_iters, 1))
        return decay * self._root

    def _decay_factor(self, factor: float) -> float:
        """What `wd_rule` makes of a row's factor on weight decay.

        independent: LR x decay is the same at every width; coupled: the decay is, as in torch;
        sqrt: between (arXiv 2510.15262).
        """
        wd_rule = self.config.parametrization.wd_rule
        if wd_rule == "coupled":
            return 1.0
        return math.sqrt(factor) if wd_rule == "sqrt" else factor

    @property
    def _root(self) -> float:
        root: float = self.batch_over_horizon**0.5
        return root

    @functools.cached_property
    def multipliers(self) -> Multipliers:
        """The forward multipliers of the config's mode."""
        p, scheme = self.config.parametrization, self.scheme
        embedding, logits = 1.0, scheme.logits(self.ratios)
        if scheme.tunable:
            embedding = p.input_mult
            logits *= p.output_mult
        return Multipliers(
            embedding=embedding,
            attention=scheme.attention(self.ratios) / math.sqrt(self.config.head_dim),
            residual=scheme.residual(self.ratios),
            logits=logits,
        )

    @property
    def betas(self) -> tuple[float, float]:
        """AdamW's, after the rules of batch and horizon.

        Raises:
            UserError: the run is so short, or its batch so large, that they would be negative.
        """
        beta1, beta2 = self.config.beta1, self.config.beta2
        ratio = self.batch_over_horizon
        if ratio == 1:
            return beta1, beta2
        beta1, beta2 = 1 - (1 - beta1) * ratio, 1 - (1 - beta2) * ratio
        if min(beta1, beta2) < 0:
            raise UserError(
                f"base_batch_tokens and base_tokens make AdamW's betas {beta1:.3g} and "
                f"{beta2:.3g}; take a smaller batch, a longer run or larger betas"
            )
        return beta1, beta2


def shape_factor(scale: str, fan_out: int, fan_in: int) -> float:
    """What the orthogonal update is multiplied by, beside the LR.

    spectral: the update's spectral norm is LR sqrt(fan_out / fan_in) at every size, so the LR
    transfers over width; original: the same but never below 1; match_rms: entries as large as
    AdamW's, which does not transfer.
    """
    factors: dict[str, float] = {
        "spectral": (fan_out / fan_in) ** 0.5,
        "original": max(1.0, fan_out / fan_in) ** 0.5,
        "match_rms": 0.2 * max(fan_out, fan_in) ** 0.5,
    }
    return factors[scale]
