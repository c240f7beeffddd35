"""One frozen `ExperimentConfig`: everything a run depends on, and the run's identity.

A run is a pure function of its config, so the config's hash names the run. Values come from
sources read left to right (nanoGPT-style `.py` files, TOML, YAML, JSON, `--key=value`), are coerced
by field, checked once, and resolved to absolute numbers before hashing. No torch here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import Any

from nanoscale.errors import UserError, one_of


def option(
    default: Any,
    doc: str,
    *,
    group: str = "",
    hashed: bool = True,
    choices: tuple = (),
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> Any:
    """A config field: its default, one line of help, its bounds, and whether it names the run."""
    return field(
        default=default,
        metadata={
            "doc": doc,
            "group": group,
            "hashed": hashed,
            "choices": choices,
            "least": least,
            "above": above,
            "most": most,
            "below": below,
        },
    )


@dataclass(frozen=True)
class ParametrizationConfig:
    """How initialisation, learning rates and multipliers depend on width and depth."""

    mode: str = option(
        "SP",
        "standard, maximal-update, or depth-and-width (CompleteP)",
        choices=("SP", "muP", "CompleteP"),
    )
    rules: str | None = option(None, "a Python file that registers more modes", hashed=False)
    rules_digest: str | None = option(None, "of that file's content; filled in")
    base_n_embd: int = option(256, "width at which every width multiplier is 1", least=1)
    base_n_layer: int = option(4, "depth at which every depth multiplier is 1", least=1)
    base_head_dim: int = option(64, "head size at which the attention scale is SP's", least=1)
    alpha: float = option(1.0, "CompleteP's residual exponent, 0.5 to 1", least=0.5, most=1.0)
    input_mult: float = option(1.0, "multiplies the embeddings (muP, CompleteP)", above=0)
    output_mult: float = option(1.0, "multiplies the logits (muP, CompleteP)", above=0)
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


@dataclass(frozen=True)
class ExperimentConfig:
    """Every knob of one run: nanoGPT's keys and defaults, the LLaMA parts, and ours."""

    # data
    dataset: str = option(
        "openwebtext", "a folder below data_root, or a path to one", group="data", hashed=False
    )  # the data's fingerprint is hashed instead
    data_root: str = option("data", "where the datasets lie", group="data", hashed=False)
    data_order: str = option(
        "random",
        "random: with replacement, as nanoGPT; epoch: a seeded permutation of windows per epoch",
        group="data",
        choices=("random", "epoch"),
    )
    gradient_accumulation_steps: int = option(
        40, "batches per update, over all ranks", group="data", least=1
    )
    batch_size: int = option(12, "sequences per accumulated batch", group="data", least=1)
    block_size: int = option(1024, "context length in tokens", group="data", least=1)
    seed: int = option(
        1337, "dropout's seed, and the default of the next two", group="data", least=0, below=2**63
    )
    init_seed: int | None = option(
        None, "of the initial weights; None: seed", group="data", least=0, below=2**63
    )
    data_seed: int | None = option(
        None, "of the batches; None: seed", group="data", least=0, below=2**63
    )
    # model
    n_layer: int = option(12, "blocks", group="model", least=1)
    n_head: int = option(12, "attention heads", group="model", least=1)
    n_kv_head: int | None = option(
        None, "key and value heads (GQA); None: n_head", group="model", least=1
    )
    n_embd: int = option(768, "width", group="model", least=1)
    vocab_size: int | None = option(None, "None: the dataset's", group="model", least=2)
    dropout: float = option(0.0, "probability of zeroing", group="model", least=0, below=1)
    bias: bool = option(False, "biases in linear layers and LayerNorm", group="model")
    use_rmsnorm: bool = option(False, "RMSNorm for LayerNorm", group="model")
    use_rope: bool = option(False, "rotary for learned positions", group="model")
    use_swiglu: bool = option(
        False, "SwiGLU of width 8/3 n_embd for GELU of 4 n_embd", group="model"
    )
    multiple_of: int = option(
        8, "the SwiGLU width is rounded up to a multiple of this", group="model", least=1
    )
    use_qk_norm: bool = option(False, "RMSNorm on queries and keys", group="model")
    tie_embeddings: bool = option(True, "the head is the token embedding", group="model")
    rope_theta: float = option(10000.0, "base of the rotary frequencies", group="model", above=1)
    norm_eps: float = option(1e-5, "added inside every norm", group="model", above=0)
    init_std: float = option(0.02, "base standard deviation of the weights", group="model", above=0)
    z_loss: float = option(
        0.0, "weight of mean(logsumexp(logits)^2) in the training loss", group="model", least=0
    )
    parametrization: ParametrizationConfig = field(default_factory=ParametrizationConfig)
    # optimizer
    optimizer: str = option(
        "adamw",
        "muon: Muon for hidden matrices, AdamW for the rest",
        group="optimizer",
        choices=("adamw", "muon"),
    )
    learning_rate: float = option(6e-4, "AdamW's base LR", group="optimizer", above=0)
    weight_decay: float = option(1e-1, "AdamW's, on matrices", group="optimizer", least=0)
    beta1: float = option(0.9, "AdamW's first moment", group="optimizer", least=0, below=1)
    beta2: float | None = option(0.95, "AdamW's second moment", group="optimizer", least=0, below=1)
    beta2_halflife_tokens: float | None = option(
        None,
        "the second moment's half-life in tokens, in place of beta2",
        group="optimizer",
        above=0,
    )
    adam_eps: float = option(
        1e-10, "AdamW's, before the rules of the parametrization", group="optimizer", least=0
    )
    embedding_lr_mult: float = option(
        1.0, "LR multiplier of token and position embeddings", group="optimizer", least=0
    )
    head_lr_mult: float = option(1.0, "LR multiplier of an untied head", group="optimizer", least=0)
    muon_lr: float = option(0.02, "Muon's base LR", group="optimizer", above=0)
    muon_weight_decay: float = option(0.1, "Muon's", group="optimizer", least=0)
    muon_momentum: float = option(0.95, "Muon's (Nesterov)", group="optimizer", least=0, below=1)
    muon_ns_steps: int = option(5, "Newton-Schulz iterations", group="optimizer", least=1, most=20)
    muon_scale: str = option(
        "spectral",
        "shape factor: sqrt(out/in), sqrt(max(1, out/in)), or 0.2 sqrt(max(out, in))",
        group="optimizer",
        choices=("spectral", "original", "match_rms"),
    )
    grad_clip: float = option(
        1.0, "largest global gradient norm; 0: off", group="optimizer", least=0
    )
    # schedule
    lr_schedule: str = option(
        "cosine",
        "shape of the LR after warmup",
        group="schedule",
        choices=("cosine", "linear", "wsd", "constant"),
    )
    decay_lr: bool = option(True, "False: the base LR throughout, no warmup", group="schedule")
    warmup_iters: int | None = option(2000, "linear warmup", group="schedule", least=0)
    warmup_frac: float | None = option(
        None, "the same, as a part of the run", group="schedule", least=0, most=1
    )
    lr_decay_iters: int | None = option(
        None, "where the decay ends; None: the run's length", group="schedule", least=1
    )
    min_lr: float | None = option(
        6e-5, "floor of the LR, relative to learning_rate for all groups", group="schedule", least=0
    )
    min_lr_frac: float | None = option(
        None, "the floor as a part of the base LR", group="schedule", least=0, most=1
    )
    cooldown_frac: float = option(
        0.2, "wsd: the last part, in which the LR falls", group="schedule", above=0, most=1
    )
    cooldown_shape: str = option(
        "linear", "wsd: how it falls", group="schedule", choices=("linear", "1-sqrt")
    )
    # length: one of these four
    max_iters: int | None = option(600000, "updates", group="length", least=0)
    max_tokens: float | None = option(None, "training tokens", group="length", above=0)
    max_flops: float | None = option(None, "training FLOPs, exact count", group="length", above=0)
    tokens_per_param: float | None = option(
        None, "training tokens per parameter (total N)", group="length", above=0
    )
    # evaluation: hashed, so that a finished run never lacks what a study needs
    eval_interval: int = option(
        2000, "updates between evaluations; 0: only at the end", group="evaluation", least=0
    )
    eval_iters: int = option(200, "batches per evaluation", group="evaluation", least=1)
    final_eval_tokens: int = option(
        1_000_000, "most tokens in the final evaluation", group="evaluation", least=1
    )
    stats_interval: int = option(
        0, "updates between statistics per role; 0: never", group="evaluation", least=0
    )
    eval_only: bool = option(False, "evaluate and end", group="evaluation", hashed=False)
    # records
    out_dir: str = option("out", "the run folder", group="records", hashed=False)
    init_from: str = option(
        "scratch",
        "resume: continue what out_dir holds",
        group="records",
        hashed=False,
        choices=("scratch", "resume"),
    )
    branch_from: str | None = option(
        None,
        "run folder (or FOLDER@STEP) whose past this run shares",
        group="records",
        hashed=False,
    )  # hashed as the parent's id
    log_interval: int = option(
        1, "updates between rows of metrics.jsonl", group="records", hashed=False, least=1
    )
    always_save_checkpoint: bool = option(
        True, "False: save at evaluations that improve only", group="records", hashed=False
    )
    checkpoint_seconds: float = option(
        300.0,
        "longest time between checkpoints; 0: no limit",
        group="records",
        hashed=False,
        least=0,
    )
    checkpoint_steps: tuple[int, ...] = option(
        (), "steps whose checkpoint is kept, for branches", group="records", hashed=False
    )
    keep: str = option(
        "all",
        "what a finished run keeps of ckpt.pt and best.pt",
        group="records",
        hashed=False,
        choices=("all", "best", "none"),
    )
    tensorboard_log: bool = option(False, "rows to TensorBoard too", group="records", hashed=False)
    wandb_log: bool = option(False, "rows to Weights & Biases too", group="records", hashed=False)
    wandb_project: str = option("owt", "", group="records", hashed=False)
    wandb_run_name: str = option("gpt2", "", group="records", hashed=False)
    # machine: recorded as numerics, not hashed (an explicit dtype is)
    device: str = option("auto", "auto: cuda, mps or cpu", group="machine", hashed=False)
    dtype: str = option(
        "auto",
        "of the products; weights and losses stay float32",
        group="machine",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    compile: bool = option(
        True, "torch.compile where it pays; typed: always", group="machine", hashed=False
    )
    cuda_graphs: bool = option(
        False,
        "replay a compiled step's launches: small models on a GPU",
        group="machine",
        hashed=False,
    )
    kernels: str = option(
        "auto",
        "our own operations on a CPU, compiled on first use, or torch's",
        group="machine",
        hashed=False,
        choices=("auto", "fused", "torch"),
    )
    micro_batch_size: int | None = option(
        None,
        "sequences in memory at once; None: batch_size",
        group="machine",
        hashed=False,
        least=1,
    )
    recompute: bool = option(
        False,
        "activations anew in the backward pass: less memory, more work",
        group="machine",
        hashed=False,
    )
    loss_chunk: int | None = option(
        None,
        "tokens whose logits exist at a time in training; None: all",
        group="machine",
        hashed=False,
        least=1,
    )
    threads: int | None = option(
        None, "CPU threads; None: torch's choice", group="machine", hashed=False, least=1
    )
    backend: str = option(
        "nccl",
        "of torch.distributed; gloo is used on CPU",
        group="machine",
        hashed=False,
        choices=("nccl", "gloo"),
    )
    sharding: str = option(
        "ddp",
        "a process holds all (ddp) or some rows (fsdp) of every tensor",
        group="machine",
        hashed=False,
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

    def to_dict(self) -> dict[str, Any]:
        """Nested plain types, as in `config.json`."""
        return json.loads(json.dumps(asdict(self)))


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
    warmup_iters: int
    lr_decay_iters: int
    min_lr: float
    max_iters: int

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ResolvedConfig.__annotations__:
            if getattr(self, key) is None:
                raise UserError(f"{key} is None in a config that should be resolved")


# One quantity, several ways to say it: the last source to name one of a group clears the others.
EXCLUSIVE = (
    ("max_iters", "max_tokens", "max_flops", "tokens_per_param"),
    ("warmup_iters", "warmup_frac"),
    ("min_lr", "min_lr_frac"),
    ("beta2", "beta2_halflife_tokens"),
)
LENGTH_KEYS, MODE = EXCLUSIVE[0], "parametrization.mode"
SCHEDULE_KEYS = (
    "lr_schedule",
    "decay_lr",
    "warmup_iters",
    "warmup_frac",
    "lr_decay_iters",
    "min_lr",
    "min_lr_frac",
    "cooldown_frac",
    "cooldown_shape",
)


@cache
def all_fields() -> dict[str, Any]:
    """Dotted key -> dataclass field, in the order of the help."""
    table: dict[str, Any] = {}
    for f in fields(ExperimentConfig):
        if f.name == "parametrization":
            table |= {f"parametrization.{g.name}": g for g in fields(ParametrizationConfig)}
        else:
            table[f.name] = f
    return table


def flatten(config: ExperimentConfig) -> dict[str, Any]:
    """Dotted key -> value."""
    return {
        key: getattr(config.parametrization, key.split(".")[1])
        if "." in key
        else getattr(config, key)
        for key in all_fields()
    }


def from_flat(values: Mapping[str, Any]) -> ExperimentConfig:
    """The config with `values` (dotted keys, already coerced) over the defaults."""
    top = {k: v for k, v in values.items() if "." not in k}
    nested = {k.split(".")[1]: v for k, v in values.items() if "." in k}
    return ExperimentConfig(**top, parametrization=ParametrizationConfig(**nested))


# -- checks ---------------------------------------------------------------------------------
def check_bounds(key: str, value: Any, f: Any) -> None:
    """Refuse a value outside its field's choices or bounds."""
    meta = f.metadata
    if value is None or not meta:
        return
    if meta["choices"] and value not in meta["choices"]:
        raise UserError(f"{key}={value}: choose {one_of(meta['choices'])}")
    tests = (
        ("least", lambda v, b: v >= b, "at least"),
        ("above", lambda v, b: v > b, "above"),
        ("most", lambda v, b: v <= b, "at most"),
        ("below", lambda v, b: v < b, "below"),
    )
    for name, holds, words in tests:
        if meta[name] is not None and not holds(value, meta[name]):
            raise UserError(f"{key}={value}: must be {words} {meta[name]}")


def check(config: ExperimentConfig) -> None:
    """Refuse impossible values and combinations, naming what was typed and the remedy."""
    for key, f in all_fields().items():
        owner = config.parametrization if "." in key else config
        if key != MODE or config.parametrization.rules is None:  # that file knows its own modes
            check_bounds(key, getattr(owner, f.name), f)
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
    if config.tie_embeddings and config.head_lr_mult != 1:
        raise UserError(
            f"head_lr_mult={config.head_lr_mult} has no head of its own to act on; "
            "add tie_embeddings=False or use embedding_lr_mult"
        )
    if config.min_lr is not None and config.min_lr > config.learning_rate:
        raise UserError(
            f"min_lr={config.min_lr} is above learning_rate={config.learning_rate}; "
            "set min_lr_frac=0.1, which follows the learning rate"
        )
    for group in EXCLUSIVE:
        if sum(getattr(config, key) is not None for key in group) != 1:
            raise UserError(f"give exactly one of {one_of(group)}")
    if any(step < 1 for step in config.checkpoint_steps):
        raise UserError(f"checkpoint_steps={list(config.checkpoint_steps)}: steps count from 1")


def _nearest_divisor(n: int, wanted: int) -> int:
    return min((d for d in range(1, n + 1) if n % d == 0), key=lambda d: abs(d - wanted))
