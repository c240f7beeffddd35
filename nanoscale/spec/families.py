"""Models of transformers that our parts make: whose they are, their config.json, their names.

A `Family` is one class of transformers (tried with 5.24 and 4.57). Our parts are one family's or no
one's, and a model of a family is made of our parts as far as its config.json says nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from nanoscale.errors import UserError
from nanoscale.spec.architecture import TensorSpec, ffn_width, tensors
from nanoscale.spec.config import ExperimentConfig
from nanoscale.spec.values import Json, Value

ATTENTION_LAYERS = ("attn.c_q", "attn.c_k", "attn.c_v", "attn.c_proj")
GATED_MLP = ("mlp.c_gate", "mlp.c_up", "mlp.c_proj")
PLAIN_MLP = ("mlp.c_fc", "mlp.c_proj")
SIZE_NAMES = {  # ours, and the name of most families
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "block_size": "max_position_embeddings",
    "vocab_size": "vocab_size",
}
LAYER_NAMES = {  # ours, and the name of most families; {} is the block's number
    "transformer.wte": "model.embed_tokens",
    "transformer.h.{}.ln_1": "model.layers.{}.input_layernorm",
    "transformer.h.{}.attn.c_q": "model.layers.{}.self_attn.q_proj",
    "transformer.h.{}.attn.c_k": "model.layers.{}.self_attn.k_proj",
    "transformer.h.{}.attn.c_v": "model.layers.{}.self_attn.v_proj",
    "transformer.h.{}.attn.q_norm": "model.layers.{}.self_attn.q_norm",
    "transformer.h.{}.attn.k_norm": "model.layers.{}.self_attn.k_norm",
    "transformer.h.{}.attn.c_proj": "model.layers.{}.self_attn.o_proj",
    "transformer.h.{}.ln_2": "model.layers.{}.post_attention_layernorm",
    "transformer.h.{}.mlp.c_gate": "model.layers.{}.mlp.gate_proj",
    "transformer.h.{}.mlp.c_up": "model.layers.{}.mlp.up_proj",
    "transformer.h.{}.mlp.c_fc": "model.layers.{}.mlp.up_proj",
    "transformer.h.{}.mlp.c_proj": "model.layers.{}.mlp.down_proj",
    "transformer.ln_f": "model.norm",
    "lm_head": "lm_head",
}


@dataclass(frozen=True)
class Family:
    """One class of transformers: `architecture` is its name, `model_type` that of its config.

    `parts` are the flags of ours that it is made of, `sizes` and `eps` its names of our keys,
    `layers` those of our layers that have another name than most families give them. `biases` says
    which of our linear layers a key of its config gives biases. `fixed` is what its config must say
    of what our parts leave no choice in.
    """

    architecture: str
    model_type: str
    parts: Mapping[str, bool]
    eps: str
    activation: str
    sizes: Mapping[str, str] = field(default_factory=lambda: SIZE_NAMES)
    layers: Mapping[str, str] = field(default_factory=dict)
    biases: Mapping[str, Collection[str]] = field(default_factory=dict)
    fixed: Mapping[str, Json] = field(default_factory=dict)
    width: str = "intermediate_size"  # of the MLP
    tied: bool = False  # where its config does not say
    usual_activation: str = "silu"  # likewise
    usual_head: int | None = None  # likewise; None: the width over the heads
    conv1d: bool = False  # GPT-2: matrices in blocks lie transposed, q, k and v are one, all biased

    @property
    def root(self) -> str:
        """What the names of all tensors begin with, but the head's."""
        return "transformer." if self.conv1d else "model."

    def their_layer(self, layer: str) -> str:
        """Its name of a layer of ours, `{}` standing for the block's number."""
        if self.conv1d:
            kind = layer.rpartition(".")[2]
            return layer.replace(kind, "c_attn") if kind in ("c_q", "c_k", "c_v") else layer
        return self.layers.get(layer, LAYER_NAMES[layer])

    def their_name(self, tensor: str) -> str:
        """Its name of a tensor of ours; of GPT-2's q, k and v that of all three."""
        layer, _, ending = tensor.rpartition(".")
        words = layer.split(".")
        number = words[2] if words[:2] == ["transformer", "h"] else ""
        if number:
            words[2] = "{}"
        return f"{self.their_layer('.'.join(words)).format(number)}.{ending}"

    def biased(self, switches: Mapping[str, Json]) -> set[str]:
        """Our linear layers, as in `ATTENTION_LAYERS`, with biases where its config says so."""
        if self.conv1d:
            return {*ATTENTION_LAYERS, *PLAIN_MLP}
        found: set[str] = set()
        for key, layers in self.biases.items():
            if switches.get(key, key == "use_bias"):
                found.update(layers)
        return found

    def holds(self, tensor: TensorSpec, biased: Collection[str]) -> bool:
        """Whether it has a tensor of ours: all but a bias of a layer that is not `biased`."""
        if tensor.role != "bias":
            return True
        layer = tensor.name.removesuffix(".bias")
        norm = ".attn." not in layer and ".mlp." not in layer
        return norm or layer.split(".", 3)[3] in biased


_NORMED = {"use_rmsnorm": True, "use_rope": True}
_CENTRED = {"use_rmsnorm": False, "use_rope": True}
_BY_PART = {"attention_bias": ATTENTION_LAYERS, "mlp_bias": GATED_MLP}

GPT2_FAMILY = Family(
    "GPT2LMHeadModel",
    "gpt2",
    {"use_rmsnorm": False, "use_rope": False, "use_swiglu": False, "use_qk_norm": False},
    "layer_norm_epsilon",
    "activation_function",
    sizes={
        "n_embd": "n_embd",
        "n_layer": "n_layer",
        "n_head": "n_head",
        "block_size": "n_positions",
        "vocab_size": "vocab_size",
    },
    fixed={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    width="n_inner",
    tied=True,
    usual_activation="gelu_new",
    conv1d=True,
)
LLAMA_FAMILY = Family(
    "LlamaForCausalLM",
    "llama",
    {**_NORMED, "use_swiglu": True, "use_qk_norm": False},
    "rms_norm_eps",
    "hidden_act",
    biases=_BY_PART,
)
QWEN3_FAMILY = Family(
    "Qwen3ForCausalLM",
    "qwen3",
    {**_NORMED, "use_swiglu": True, "use_qk_norm": True},
    "rms_norm_eps",
    "hidden_act",
    biases={"attention_bias": ATTENTION_LAYERS},
    fixed={"use_sliding_window": False},
    usual_head=128,
)
ARCEE_FAMILY = Family(
    "ArceeForCausalLM",
    "arcee",
    {**_NORMED, "use_swiglu": False, "use_qk_norm": False},
    "rms_norm_eps",
    "hidden_act",
    biases=_BY_PART | {"mlp_bias": PLAIN_MLP},
    usual_activation="relu2",
)
STARCODER2_FAMILY = Family(
    "Starcoder2ForCausalLM",
    "starcoder2",
    {**_CENTRED, "use_swiglu": False, "use_qk_norm": False},
    "norm_epsilon",
    "hidden_act",
    layers={
        "transformer.h.{}.mlp.c_fc": "model.layers.{}.mlp.c_fc",
        "transformer.h.{}.mlp.c_proj": "model.layers.{}.mlp.c_proj",
    },
    biases={"use_bias": (*ATTENTION_LAYERS, *PLAIN_MLP)},
    fixed={"sliding_window": None},
    tied=True,
    usual_activation="gelu_pytorch_tanh",
)
STABLELM_FAMILY = Family(
    "StableLmForCausalLM",
    "stablelm",
    {**_CENTRED, "use_swiglu": True, "use_qk_norm": False},
    "layer_norm_eps",
    "hidden_act",
    biases={"use_qkv_bias": ATTENTION_LAYERS[:3]},
    fixed={"qk_layernorm": False, "use_parallel_residual": False},
)
FAMILIES = (
    GPT2_FAMILY,
    LLAMA_FAMILY,
    QWEN3_FAMILY,
    ARCEE_FAMILY,
    STARCODER2_FAMILY,
    STABLELM_FAMILY,
)


# -- out: our config's family and its config.json -------------------------------------------------
def lacking(family: Family, config: ExperimentConfig) -> dict[str, bool]:
    """The flags that a config would need otherwise to be of a family."""
    wanted = dict(family.parts)
    mlp = GATED_MLP if family.parts["use_swiglu"] else PLAIN_MLP
    every_layer = family.biased(dict.fromkeys(family.biases, True)).issuperset(
        ATTENTION_LAYERS + mlp
    )
    if config.bias and not every_layer:
        wanted["bias"] = False
    return {key: value for key, value in wanted.items() if getattr(config, key) != value}


def family_of(config: ExperimentConfig) -> Family:
    """The family whose parts a config's are.

    Raises:
        UserError: there is none; it names the parts in the way, and what would be the nearest.
    """
    nearest = min(FAMILIES, key=lambda family: len(lacking(family, config)))
    otherwise = lacking(nearest, config)
    if not otherwise:
        return nearest
    ours = ", ".join(f"{key}={getattr(config, key)}" for key in (*nearest.parts, "bias"))
    remedy = " and ".join(f"{key}={value}" for key, value in otherwise.items())
    raise UserError(
        f"no model of transformers has these parts: {ours}; trained with {remedy} it would be a "
        f"{nearest.architecture}"
    )


def as_exported(family: Family, config: ExperimentConfig) -> ExperimentConfig:
    """The config of the exported model: GPT-2 has a key head for every query head."""
    if "n_kv_head" in family.sizes:
        return config
    return replace(config, n_kv_head=config.n_head)


def their_config(family: Family, config: ExperimentConfig, end: int | None) -> dict[str, Json]:
    """A family's config.json of a config; `end` is the token between documents, if there is one."""
    config = as_exported(family, config)
    sizes = {theirs: getattr(config, ours) for ours, theirs in family.sizes.items()}
    record: dict[str, Json] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **sizes,
        family.width: ffn_width(config, config.n_embd),
        family.eps: config.norm_eps,
        family.activation: "silu" if config.use_swiglu else "gelu",
        "tie_word_embeddings": config.tie_embeddings,
        **family.fixed,
        **dict.fromkeys(family.biases, config.bias),
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": None,
        "dtype": "float32",
    }
    if config.use_rope:
        rope: dict[str, Json] = {"rope_theta": config.rope_theta, "partial_rotary_factor": 1.0}
        record["head_dim"] = config.head_dim
        record["rope_parameters"] = {"rope_type": "default", **rope}
        record |= rope  # where version 4 of transformers looks
    else:
        record |= dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), config.dropout)
    return record


def their_tensors(
    family: Family, config: ExperimentConfig, biased: Collection[str]
) -> dict[str, list[TensorSpec]]:
    """A family's tensors by its names, each of the tensors of ours that make it, in their order.

    Of a layer that is `biased`, and of every norm, that is the bias too, whether ours have it.
    """
    found: dict[str, list[TensorSpec]] = {}
    for tensor in tensors(replace(as_exported(family, config), bias=True)):
        if family.holds(tensor, biased):
            found.setdefault(family.their_name(tensor.name), []).append(tensor)
    return found


# -- in: a config.json as our keys ----------------------------------------------------------------
def family_named(record: Mapping[str, Json], where: str) -> Family:
    """The family of a config.json.

    Raises:
        UserError: it is no such file, it wants code of its own, or our parts do not make it.
    """
    kind = record.get("model_type")
    if not isinstance(kind, str):
        raise UserError(f"{where}: no config of a model (it has no model_type)")
    if record.get("auto_map"):
        raise UserError(f"{where}: the model wants remote code (auto_map); none was run or read")
    if record.get("quantization_config"):
        raise UserError(f"{where}: quantized weights; take the model in float32 or bfloat16")
    for family in FAMILIES:
        if family.model_type == kind:
            return family
    known = ", ".join(family.model_type for family in FAMILIES)
    raise UserError(f"{where}: our parts do not make a {kind!r}; those they make: {known}")


def our_keys(family: Family, record: Mapping[str, Json], where: str) -> dict[str, Value]:
    """The config keys that a family's config.json dictates, but for `bias`.

    Raises:
        UserError: a size is missing, or something that our parts cannot hold.
    """
    sizes = {ours: _size(record, theirs, ours, where) for ours, theirs in family.sizes.items()}
    keys: dict[str, Value] = {
        **sizes,
        **family.parts,
        "tie_embeddings": _switch(record, "tie_word_embeddings", family.tied, where),
        "norm_eps": _number(record.get(family.eps), family.eps, where),
    }
    keys.setdefault("n_kv_head", keys["n_head"])
    d, heads = sizes["n_embd"], sizes["n_head"]
    head = record.get("head_dim", family.usual_head)
    if d % heads or head not in (d // heads, None):
        raise UserError(
            f"{where}: heads of {head!r} are not {d} / {heads}, width over number, as ours"
        )
    for key, value in family.fixed.items():
        if record.get(key, value) != value:
            raise UserError(f"{where}: {key}={record[key]!r}; our parts know {value!r} alone")
    _check_activation(family, record, where)
    if family.parts["use_rope"]:
        keys["rope_theta"] = _rope_theta(record, where)
    width = 4 * d
    if record.get(family.width) is not None or not family.conv1d:
        width = _size(record, family.width, "", where)
    if family.parts["use_swiglu"]:
        keys["multiple_of"] = _multiple_of(width, d, where)
    elif width != 4 * d:
        raise UserError(f"{where}: {family.width}={width}; ours is 4 x the width, {4 * d}")
    return keys


def _size(record: Mapping[str, Json], theirs: str, ours: str, where: str) -> int:
    value: object = record.get(theirs)
    if value is None and ours == "n_kv_head":
        value = record.get(SIZE_NAMES["n_head"])
    if type(value) is not int or not 1 <= value < 2**31:
        raise UserError(f"{where}: {theirs}={value!r} is no size")
    return value


def _switch(record: Mapping[str, Json], key: str, usual: bool, where: str) -> bool:
    value = record.get(key, usual)
    if not isinstance(value, bool):
        raise UserError(f"{where}: {key}={value!r} is neither true nor false")
    return value


def _number(value: Json, key: str, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e300:
        raise UserError(f"{where}: {key}={value!r} is not a finite number above 0")
    return value


def _check_activation(family: Family, record: Mapping[str, Json], where: str) -> None:
    typed = record.get(family.activation, family.usual_activation)
    wanted = ("silu", "swish") if family.parts["use_swiglu"] else ("gelu", *TANH_GELU)
    if typed not in wanted:
        raise UserError(f"{where}: {family.activation}={typed!r}; ours is {wanted[0]!r}")


TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")  # OpenAI's: an approximation by tanh


def inexact(family: Family, record: Mapping[str, Json], where: str) -> Iterable[str]:
    """What our parts compute a little differently, as lines of warning."""
    typed = record.get(family.activation, family.usual_activation)
    if typed in TANH_GELU:
        yield (
            f"{where}: {family.activation}={typed}, a GELU by tanh; ours is the exact one, as in "
            "nanoGPT, so its losses differ a little"
        )


def _rope_theta(record: Mapping[str, Json], where: str) -> float:
    """The base of the rotary frequencies, as version 5 of transformers writes it or 4 did."""
    given = record.get("rope_parameters") or record.get("rope_scaling") or {}
    rope = given if isinstance(given, Mapping) else {"rope_type": given}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UserError(f"{where}: rope_type={kind!r}; ours is default, frequencies as they are")
    part = rope.get("partial_rotary_factor", record.get("partial_rotary_factor"))
    if part is None:
        part = 0.25 if record["model_type"] == STABLELM_FAMILY.model_type else 1.0
    if part != 1:
        raise UserError(f"{where}: partial_rotary_factor={part!r}; ours turns whole heads, 1.0")
    theta = rope.get("rope_theta", record.get("rope_theta", 10_000.0))
    return float(_number(theta, "rope_theta", where))


def _multiple_of(width: int, d: int, where: str) -> int:
    """The least multiple of which a SwiGLU width is 8/3 d rounded up; 8 where that will do."""
    least = 8 * d // 3
    if width < least:
        raise UserError(f"{where}: intermediate_size={width} is below ours, 8/3 of the width {d}")
    found = [width]
    for count in (8, *range(1, math.isqrt(width) + 1)):
        for multiple in (count, width // count):
            if multiple * -(-least // multiple) == width:
                found.append(multiple)
    return 8 if 8 in found else min(found)
