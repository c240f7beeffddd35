"""One frozen `ExperimentConfig`: everything a run depends on.

A run is a pure function of its config, so the config's hash names the run (`identity`). Values come
from sources read left to right (`sources`), are coerced by field, checked once here, and resolved
to absolute numbers before hashing (`resolve`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cache, partial
from operator import attrgetter
from typing import Any

from nanoscale.errors import UserError, one_of
from nanoscale.spec.muon_rules import MUON_RULES
from nanoscale.spec.options import ConfigKey, keys_of, option
from nanoscale.spec.values import Json, Overrides, Value

_data = partial(option, group="data")
_model = partial(option, group="model")
_optimizer = partial(option, group="optimizer")
_schedule = partial(option, group="schedule")
_length = partial(option, group="length")
_evaluation = partial(option, group="evaluation")
_record = partial(option, group="records", hashed=False)
_machine = partial(option, group="machine", hashed=False)


@dataclass(frozen=True)
class ParametrizationConfig:
    """How initialisation, learning rates and multipliers depend on width and depth."""

    mode: str = option(
        "SP",
        "standard, maximal-update, or depth-and-width (CompleteP)",
        choices=("SP", "muP", "CompleteP"),
    )
    rules: str | None = option(
        None, "a Python file that registers more modes", hashed=False, path=True
    )
    rules_digest: str | None = option(None, "of that file's content; filled in")
    base_n_embd: int = option(256, "width at which every width multiplier is 1", least=1)
    base_n_layer: int = option(4, "depth at which every depth multiplier is 1", least=1)
    base_head_dim: int = option(64, "head size at which the attention scale is SP's", least=1)
    alpha: float = option(
        1.0, "CompleteP's residual exponent, 0.5 to 1", least=0.5, most=1.0, tuned=True
    )
    input_mult: float = option(
        1.0, "multiplies the embeddings (muP, CompleteP)", above=0, tuned=True
    )
    output_mult: float = option(1.0, "multiplies the logits (muP, CompleteP)", above=0, tuned=True)
    wd_rule: str = option(
        "independent",
        "width leaves LR x decay as it is, or decay, or neither",
        choices=("independent", "coupled", "sqrt"),
    )
    wd_timescale: str = option(
        "steps",
        "weight decay is AdamW's lambda, or e-foldings per run",
        choices=("steps", "fraction_of_run"),
    )
    base_batch_tokens: int | None = option(
        None, "tokens per update at which the batch rule is 1; None: no rule", least=1
    )
    base_tokens: int | None = option(
        None, "a run's tokens at which the horizon rule is 1; None: no rule", least=1
    )
    muon_width_power: float = option(
        0.0,
        "Muon's LR goes as m_N to this power (muP, CompleteP)",
        least=-2,
        most=2,
        elided=True,
        tuned=True,
    )


@dataclass(frozen=True)
class ExperimentConfig:
    """Every knob of one run: nanoGPT's keys and defaults, the LLaMA parts, and ours.

    >>> import nanoscale as ns
    >>> config = ns.ExperimentConfig(n_layer=2, n_head=2, n_embd=64, use_rope=True)
    >>> config.head_dim, config.parametrization.mode, config.tokens_per_iter
    (32, 'SP', 491520)

    Raises:
        UserError: a value or a combination is impossible, with the remedy.
    """

    # data
    dataset: str = _data(
        "openwebtext", "a folder below data_root, or a path to one", hashed=False, path=True
    )  # the data's fingerprint is hashed instead
    data_root: str = _data("data", "where the datasets lie", hashed=False, path=True)
    data_order: str = _data(
        "random",
        "random: with replacement, as nanoGPT; epoch: a seeded permutation of windows per epoch",
        choices=("random", "epoch"),
    )
    gradient_accumulation_steps: int = _data(40, "batches per update, over all ranks", least=1)
    batch_size: int = _data(12, "sequences per accumulated batch", least=1)
    block_size: int = _data(1024, "context length in tokens", least=1)
    seed: int = _data(1337, "dropout's seed, and the default of the next two", least=0, below=2**63)
    init_seed: int | None = _data(None, "of the initial weights; None: seed", least=0, below=2**63)
    data_seed: int | None = _data(None, "of the batches; None: seed", least=0, below=2**63)
    # model
    n_layer: int = _model(12, "blocks", least=1)
    n_head: int = _model(12, "attention heads", least=1)
    n_kv_head: int | None = _model(None, "key and value heads (GQA); None: n_head", least=1)
    n_embd: int = _model(768, "width", least=1)
    vocab_size: int | None = _model(None, "None: the dataset's", least=2)
    dropout: float = _model(0.0, "probability of zeroing", least=0, below=1, tuned=True)
    bias: bool = _model(False, "biases in linear layers and LayerNorm")
    use_rmsnorm: bool = _model(False, "RMSNorm for LayerNorm")
    use_rope: bool = _model(False, "rotary for learned positions")
    use_swiglu: bool = _model(False, "SwiGLU of width 8/3 n_embd for GELU of 4 n_embd")
    multiple_of: int = _model(8, "the SwiGLU width is rounded up to a multiple of this", least=1)
    use_qk_norm: bool = _model(False, "RMSNorm on queries and keys")
    tie_embeddings: bool = _model(True, "the head is the token embedding")
    rope_theta: float = _model(10000.0, "base of the rotary frequencies", above=1)
    norm_eps: float = _model(1e-5, "added inside every norm", above=0)
    init_std: float = _model(0.02, "base standard deviation of the weights", above=0, tuned=True)
    z_loss: float = _model(
        0.0, "weight of mean(logsumexp(logits)^2) in the training loss", least=0, tuned=True
    )
    parametrization: ParametrizationConfig = field(default_factory=ParametrizationConfig)
    # optimizer
    optimizer: str = _optimizer(
        "adamw", "muon: Muon for hidden matrices, AdamW for the rest", choices=("adamw", "muon")
    )
    learning_rate: float = _optimizer(6e-4, "AdamW's base LR", above=0, tuned=True)
    weight_decay: float = _optimizer(1e-1, "AdamW's, on matrices", least=0, tuned=True)
    beta1: float = _optimizer(0.9, "AdamW's first moment", least=0, below=1, tuned=True)
    beta2: float | None = _optimizer(0.95, "AdamW's second moment", least=0, below=1, tuned=True)
    beta2_halflife_tokens: float | None = _optimizer(
        None, "the second moment's half-life in tokens, in place of beta2", above=0, tuned=True
    )
    adam_eps: float = _optimizer(
        1e-10, "AdamW's, before the rules of the parametrization", least=0, tuned=True
    )
    embedding_lr_mult: float = _optimizer(
        1.0, "LR multiplier of token and position embeddings", least=0, tuned=True
    )
    head_lr_mult: float = _optimizer(1.0, "LR multiplier of an untied head", least=0, tuned=True)
    muon_lr: float = _optimizer(0.02, "Muon's base LR", above=0, tuned=True)
    muon_weight_decay: float = _optimizer(0.1, "Muon's", least=0, tuned=True)
    muon_momentum: float | None = _optimizer(
        0.95, "Muon's (Nesterov)", least=0, below=1, tuned=True
    )
    muon_momentum_halflife_tokens: float | None = _optimizer(
        None,
        "its half-life in tokens, in place of muon_momentum",
        above=0,
        elided=True,
        tuned=True,
    )
    muon_ns_steps: int = _optimizer(5, "Newton-Schulz iterations", least=1, most=20, tuned=True)
    muon_scale: str = _optimizer(
        "spectral",
        "shape factor: sqrt(out/in), sqrt(max(1, out/in)), or 0.2 sqrt(max(out, in))",
        choices=("spectral", "original", "match_rms"),
    )
    muon_rule: str = _optimizer(
        "muon",
        "what is made of the momentum: Muon's own, or a variant",
        choices=tuple(MUON_RULES),
        elided=True,
    )
    muon_power: float = _optimizer(
        0.5,
        "muon_rule=power: singular values to this power",
        least=0,
        most=1,
        elided=True,
        tuned=True,
    )
    muon_clip: float = _optimizer(
        1.0,
        "muon_rule=clip: the largest singular value, over their root mean square",
        above=0,
        elided=True,
        tuned=True,
    )
    grad_clip: float = _optimizer(1.0, "largest global gradient norm; 0: off", least=0, tuned=True)
    # schedule
    lr_schedule: str = _schedule(
        "cosine", "shape of the LR after warmup", choices=("cosine", "linear", "wsd", "constant")
    )
    decay_lr: bool = _schedule(True, "False: the base LR throughout, no warmup")
    warmup_iters: int | None = _schedule(2000, "linear warmup", least=0, tuned=True)
    warmup_frac: float | None = _schedule(
        None, "the same, as a part of the run", least=0, most=1, tuned=True
    )
    lr_decay_iters: int | None = _schedule(
        None, "where the decay ends; None: the run's length", least=1, tuned=True
    )
    min_lr: float | None = _schedule(
        6e-5, "floor of the LR, relative to learning_rate for all groups", least=0, tuned=True
    )
    min_lr_frac: float | None = _schedule(
        None, "the floor as a part of the base LR", least=0, most=1, tuned=True
    )
    cooldown_frac: float = _schedule(
        0.2, "wsd: the last part, in which the LR falls", above=0, most=1, tuned=True
    )
    cooldown_shape: str = _schedule("linear", "wsd: how it falls", choices=("linear", "1-sqrt"))
    # length: one of these four
    max_iters: int | None = _length(600000, "updates", least=0)
    max_tokens: float | None = _length(None, "training tokens", above=0)
    max_flops: float | None = _length(None, "training FLOPs, exact count", above=0)
    tokens_per_param: float | None = _length(
        None, "training tokens per parameter (total N)", above=0
    )
    # evaluation: hashed, so that a finished run never lacks what a study needs
    eval_interval: int = _evaluation(
        2000, "updates between evaluations; 0: only at the end", least=0
    )
    eval_iters: int = _evaluation(200, "batches per evaluation", least=1)
    val_sets: tuple[str, ...] = _evaluation(
        (),
        "validation sets, the first what studies fit: val, X for val_X.bin, or a dataset of the "
        "same tokens; none: val and all val_*.bin",
        hashed=False,  # the data's fingerprint names them
        elided=True,
    )
    final_eval_tokens: int = _evaluation(1_000_000, "most tokens in the final evaluation", least=1)
    stats_interval: int = _evaluation(0, "updates between statistics per role; 0: never", least=0)
    eval_only: bool = _evaluation(False, "evaluate and end", hashed=False)
    # records
    out_dir: str = _record("out", "the run folder", path=True)
    init_from: str = _record(
        "scratch",
        "resume: continue what out_dir holds; or weights: gpt2 to gpt2-xl, a hub name, a folder "
        "(of a run, nanoGPT's, Hugging Face's), a ckpt.pt",
        path=True,
    )  # weights are hashed instead
    branch_from: str | None = _record(
        None, "run folder (or FOLDER@STEP) whose past this run shares", path=True
    )  # hashed as the parent's id
    log_interval: int = _record(1, "updates between rows of metrics.jsonl", least=1)
    always_save_checkpoint: bool = _record(True, "False: save at evaluations that improve only")
    checkpoint_seconds: float = _record(
        300.0, "longest time between checkpoints; 0: no limit", least=0
    )
    checkpoint_steps: tuple[int, ...] = _record((), "steps whose checkpoint is kept, for branches")
    keep: str = _record(
        "all", "what a finished run keeps of ckpt.pt and best.pt", choices=("all", "best", "none")
    )
    tensorboard_log: bool = _record(False, "rows to TensorBoard too")
    wandb_log: bool = _record(False, "rows to Weights & Biases too")
    wandb_project: str = _record("owt", "typed: of W&B and Trackio; else the dataset's name")
    wandb_run_name: str = _record("gpt2", "typed: the run's name there; else its cell of a study")
    trackio_log: bool = _record(False, "rows to Trackio too", elided=True)
    trackers: str | None = _record(
        None, "a Python file that registers trackers of your own", elided=True
    )
    profile: bool = _record(
        False, "where a step goes: a table, and a trace.json.gz of a few updates", elided=True
    )
    # machine: recorded as numerics, not hashed (an explicit dtype is)
    device: str = _machine("auto", "auto: cuda, mps or cpu")
    dtype: str = _machine(
        "auto",
        "of the products; weights and losses stay float32",
        hashed=True,
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    compile: bool = _machine(True, "torch.compile where it pays; typed: always")
    cuda_graphs: bool = _machine(
        False, "replay a compiled step's launches, of one micro-batch: small models on a GPU"
    )
    kernels: str = _machine(
        "auto",
        "our own on a CPU, compiled on first use: whole steps (step) or operations (fused)",
        choices=("auto", "step", "fused", "torch"),
    )
    micro_batch_size: int | None = _machine(
        None, "sequences in memory at once; None: batch_size", least=1
    )
    recompute: bool = _machine(
        False,
        "activations anew in the backward pass: less memory, more work; not with kernels=step",
    )
    loss_chunk: int | None = _machine(
        None, "tokens whose logits exist at a time; None: all; not with kernels=step", least=1
    )
    threads: int | None = _machine(None, "CPU threads; None: torch's choice", least=1)
    backend: str = _machine(
        "nccl", "of torch.distributed; gloo is used on CPU", choices=("nccl", "gloo")
    )
    sharding: str = _machine(
        "ddp",
        "a process holds all (ddp) or some rows (fsdp) of every tensor",
        choices=("ddp", "fsdp"),
    )

    def __post_init__(self) -> None:
        check(self)

    # -- shapes and sizes -----------------------------------------------------------------
    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    @property
    def sequences_per_iter(self) -> int:
        return self.gradient_accumulation_steps * self.batch_size

    @property
    def tokens_per_iter(self) -> int:
        return self.sequences_per_iter * self.block_size

    def to_dict(self) -> dict[str, Json]:
        """Nested plain types, as in `config.json`."""
        record = asdict(self)
        for dotted, key in all_fields().items():
            above, _, name = dotted.rpartition(".")
            part = record[above] if above else record
            if key.elided and part[name] == key.default:
                del part[name]
            elif isinstance(key.default, tuple):
                part[name] = list(part[name])
        return record

    @property
    def is_tracked(self) -> bool:
        """Whether rows go anywhere beside `metrics.jsonl`."""
        known = self.tensorboard_log or self.wandb_log or self.trackio_log
        return known or self.trackers is not None


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig(ExperimentConfig):
    """A config as `spec.resolve.resolve` leaves it: these keys hold a number, never None.

    Only their types are said anew; their help, bounds and defaults stay `ExperimentConfig`'s.
    """

    init_seed: int
    data_seed: int
    n_kv_head: int
    vocab_size: int
    beta2: float
    muon_momentum: float
    warmup_iters: int
    lr_decay_iters: int
    min_lr: float
    max_iters: int

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ResolvedConfig.__annotations__:
            if getattr(self, key) is None:
                raise UserError(f"{key} is None in a config that should be resolved")


BEGINNINGS = ("scratch", "resume")  # of init_from; any other names weights
# One quantity, several ways to say it: the last source to name one of a group clears the others.
LENGTH_KEYS = ("max_iters", "max_tokens", "max_flops", "tokens_per_param")
EXCLUSIVE = (
    LENGTH_KEYS,
    ("warmup_iters", "warmup_frac"),
    ("min_lr", "min_lr_frac"),
    ("beta2", "beta2_halflife_tokens"),
    ("muon_momentum", "muon_momentum_halflife_tokens"),
)
MODE = "parametrization.mode"


@cache
def all_fields() -> dict[str, ConfigKey]:
    """Dotted name -> key, in the order of the help."""
    return keys_of(ExperimentConfig)


def flatten(config: ExperimentConfig) -> dict[str, Value]:
    """Dotted name -> value."""
    return {name: attrgetter(name)(config) for name in all_fields()}


def nest(values: Overrides) -> tuple[dict[str, Any], dict[str, Any]]:
    """Values by dotted name, as (those of a config, those of its parametrization)."""
    top, nested = {}, {}
    for name, value in values.items():
        if "." in name:
            nested[name.removeprefix("parametrization.")] = value
        else:
            top[name] = value
    return top, nested


def from_flat(values: Overrides) -> ExperimentConfig:
    """The config with `values` (dotted names, already coerced) over the defaults."""
    top, nested = nest(values)
    return ExperimentConfig(**top, parametrization=ParametrizationConfig(**nested))


# -- checks ---------------------------------------------------------------------------------
def check(config: ExperimentConfig) -> None:
    """Refuse impossible values and combinations, naming what was typed and the remedy."""
    for name, value in flatten(config).items():
        if name != MODE or config.parametrization.rules is None:  # that file knows its own modes
            all_fields()[name].check(value, name)
    if config.init_from in BEGINNINGS:  # else the sizes are those of the weights
        _check_heads(config)
    if config.tie_embeddings and config.head_lr_mult != 1:
        raise UserError(
            f"head_lr_mult={config.head_lr_mult} has no head of its own to act on; "
            "add tie_embeddings=False or use embedding_lr_mult"
        )
    if config.decay_lr and (config.min_lr or 0) > config.learning_rate:
        raise UserError(
            f"min_lr={config.min_lr} is above learning_rate={config.learning_rate}; "
            "set min_lr_frac=0.1, which follows the learning rate"
        )
    for group in EXCLUSIVE:
        given = [key for key in group if getattr(config, key) is not None]
        if len(given) != 1:
            raise UserError(f"give exactly one of {one_of(group)}")
    if config.eval_only and config.profile:
        raise UserError(
            "profile=True looks at updates, of which eval_only=True makes none; leave one out"
        )
    if not config.init_from:
        raise UserError(f"init_from is empty; give {one_of(BEGINNINGS)}, or name weights")
    if any(step < 1 for step in config.checkpoint_steps):
        raise UserError(f"checkpoint_steps={list(config.checkpoint_steps)}: steps count from 1")


def _check_heads(config: ExperimentConfig) -> None:
    """Refuse heads that do not divide the width, or each other."""
    if config.n_embd % config.n_head:
        raise UserError(
            f"n_embd={config.n_embd} is not divisible by n_head={config.n_head}; "
            f"try n_head={_nearest_divisor(config.n_embd, config.n_head)}"
        )
    if config.n_head % config.kv_heads:
        raise UserError(
            f"n_head={config.n_head} is not divisible by n_kv_head={config.n_kv_head};"
            f" try n_kv_head={_nearest_divisor(config.n_head, config.kv_heads)}"
        )
    if config.use_rope and config.head_dim % 2:
        raise UserError(
            f"use_rope=True needs an even head size, but n_embd={config.n_embd} / "
            f"n_head={config.n_head} = {config.head_dim}; change n_head"
        )


def _nearest_divisor(n: int, wanted: int) -> int:
    divisors = [d for d in range(1, n + 1) if n % d == 0]
    return min(divisors, key=lambda d: abs(d - wanted))
