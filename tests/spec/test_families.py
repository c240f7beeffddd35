"""Families: whose parts ours are, refusals that name the part, what a config.json dictates."""

from __future__ import annotations

import itertools
import re

import pytest
from tiny import tiny_config

from nanoscale.errors import UserError
from nanoscale.spec.architecture import ffn_width
from nanoscale.spec.config import from_flat
from nanoscale.spec.families import (
    FAMILIES,
    GPT2_FAMILY,
    LLAMA_FAMILY,
    QWEN3_FAMILY,
    STABLELM_FAMILY,
    STARCODER2_FAMILY,
    family_named,
    family_of,
    inexact,
    our_keys,
    their_config,
    their_tensors,
)

LLAMA_PARTS = {"use_rmsnorm": True, "use_rope": True, "use_swiglu": True}
WITHOUT_A_HOME = {
    "learned positions with RMSNorm": ({"use_rmsnorm": True}, "use_rmsnorm=False", "GPT2LMHead"),
    "learned positions with SwiGLU": ({"use_swiglu": True}, "use_swiglu=False", "GPT2LMHead"),
    "QK-norm with biases": (
        LLAMA_PARTS | {"use_qk_norm": True, "bias": True},
        "use_qk_norm=False",
        "Llama",
    ),
    "QK-norm with LayerNorm": (
        LLAMA_PARTS | {"use_qk_norm": True, "use_rmsnorm": False},
        "use_rmsnorm=True",
        "Qwen3",
    ),
    "gated MLP with biases and LayerNorm": (
        {"use_rope": True, "use_swiglu": True, "bias": True},
        "use_rmsnorm=True",
        "Llama",
    ),
}


@pytest.mark.parametrize("case", WITHOUT_A_HOME)
def test_what_has_no_home_is_refused_with_the_flag_to_change(case):
    flags, remedy, architecture = WITHOUT_A_HOME[case]
    with pytest.raises(UserError) as refused:
        family_of(tiny_config(**flags))
    for key, value in flags.items():
        assert f"{key}={value}" in str(refused.value)
    assert f"trained with {remedy} it would be a {architecture}" in str(refused.value)
    key, _, value = remedy.partition("=")
    assert family_of(tiny_config(**flags | {key: value == "True"})).architecture in str(
        refused.value
    )


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
@pytest.mark.parametrize("tied", [True, False])
def test_a_config_comes_back(family, tied):
    config = tiny_config(
        **family.parts, tie_embeddings=tied, n_embd=48, norm_eps=3e-6, n_kv_head=4, rope_theta=500.0
    )
    assert family_of(config) is family
    record = their_config(family, config, None)
    assert family_named(record, "it") is family
    keys = our_keys(family, record, "it")
    again = from_flat(keys)
    assert {key: getattr(config, key) for key in keys if key in vars(config)} == {
        key: value for key, value in keys.items() if key in vars(config)
    }
    assert ffn_width(again, 48) == ffn_width(config, 48)


def test_names_of_a_block():
    (conv,) = (
        name
        for name, specs in their_tensors(GPT2_FAMILY, tiny_config(), {"attn.c_q"}).items()
        if len(specs) == 3 and ".1." in name and name.endswith("weight")
    )
    assert conv == "transformer.h.1.attn.c_attn.weight"
    names = their_tensors(LLAMA_FAMILY, tiny_config(**LLAMA_PARTS), ())
    assert "model.layers.1.self_attn.o_proj.weight" in names
    assert not any(name.endswith("bias") for name in names)


GOOD = their_config(LLAMA_FAMILY, tiny_config(**LLAMA_PARTS), None)
FOREIGN = {
    "another program's": ({"model_type": None}, "no config of a model"),
    "another model": ({"model_type": "mamba"}, "'mamba'", "qwen3"),
    "remote code": ({"auto_map": {"AutoModel": "modeling_x.X"}}, "remote code", "none was run"),
    "quantized": ({"quantization_config": {"bits": 4}}, "quantized"),
    "no size": ({"hidden_size": None}, "hidden_size=None"),
    "a size in words": ({"num_hidden_layers": "2"}, "num_hidden_layers='2' is no size"),
    "heads of their own size": ({"head_dim": 8}, "heads of 8 are not 16 / 4"),
    "heads that do not divide": ({"num_attention_heads": 3}, "16 / 3"),
    "a narrow MLP": ({"intermediate_size": 32}, "intermediate_size=32"),
    "an MLP of no width": ({"intermediate_size": -1}, "intermediate_size=-1"),
    "another activation": ({"hidden_act": "relu"}, "hidden_act='relu'", "silu"),
    "scaled rotary": ({"rope_parameters": {"rope_type": "llama3"}}, "rope_type='llama3'"),
    "scaled rotary of version 4": (
        {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2}},
        "rope_type='linear'",
    ),
    "no eps": ({"rms_norm_eps": None}, "rms_norm_eps=None"),
    "an eps without end": ({"rms_norm_eps": float("inf")}, "rms_norm_eps=inf"),
    "more than a float holds": ({"rms_norm_eps": 10**400}, "not a finite number"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_config_that_our_parts_cannot_hold_is_refused(case):
    changes, *words = FOREIGN[case]
    record = GOOD | changes
    with pytest.raises(UserError) as refused:
        our_keys(family_named(record, "m/config.json"), record, "m/config.json")
    for word in ("m/config.json: ", *words):
        assert word in str(refused.value)


def test_parts_of_other_families_are_refused_too():
    narrow = their_config(GPT2_FAMILY, tiny_config(), None) | {"n_inner": 32}
    with pytest.raises(UserError, match="n_inner=32; ours is 4 x the width, 64"):
        our_keys(GPT2_FAMILY, narrow, "it")
    layered = their_config(GPT2_FAMILY, tiny_config(), None) | {
        "scale_attn_by_inverse_layer_idx": True
    }
    with pytest.raises(UserError, match="scale_attn_by_inverse_layer_idx=True"):
        our_keys(GPT2_FAMILY, layered, "it")
    sliding = their_config(QWEN3_FAMILY, tiny_config(**QWEN3_FAMILY.parts), None) | {
        "use_sliding_window": True
    }
    with pytest.raises(UserError, match="use_sliding_window=True"):
        our_keys(QWEN3_FAMILY, sliding, "it")
    heads = their_config(QWEN3_FAMILY, tiny_config(**QWEN3_FAMILY.parts), None)
    del heads["head_dim"]  # it is 128 then
    with pytest.raises(UserError, match="heads of 128"):
        our_keys(QWEN3_FAMILY, heads, "it")
    quarter = their_config(STABLELM_FAMILY, tiny_config(**STABLELM_FAMILY.parts), None)
    quarter["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4}
    del quarter["partial_rotary_factor"]  # it is a quarter then
    with pytest.raises(UserError, match="partial_rotary_factor=0"):
        our_keys(STABLELM_FAMILY, quarter, "it")


def test_version_4_of_a_config_means_the_same():
    old = {key: value for key, value in GOOD.items() if key not in ("rope_parameters", "head_dim")}
    old |= {"rope_theta": 500.0, "rope_scaling": None}
    del old["num_key_value_heads"]
    keys = our_keys(LLAMA_FAMILY, old, "it")
    assert keys == our_keys(LLAMA_FAMILY, GOOD, "it") | {"rope_theta": 500.0}


@pytest.mark.parametrize(
    ("width", "d", "multiple"),
    [
        (11008, 4096, 256),
        (48, 16, 8),
        (42, 16, 42),
        (43, 16, 43),
        (2048, 768, 8),
        (12288, 4096, 4096),
    ],
)
def test_a_swiglu_width_is_that_of_a_multiple(width, d, multiple):
    record = GOOD | {"intermediate_size": width, "hidden_size": d, "head_dim": None}
    keys = our_keys(LLAMA_FAMILY, record, "it")
    assert ffn_width(from_flat(keys), d) == width
    assert keys["multiple_of"] <= multiple


ODD = [None, "x", [], {}, [1], {"a": 1}, True, -1, 0, 1, 7, 1.5, 1e400, float("nan"), 10**12]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_whatever_a_config_says_is_read_or_refused(family):
    good = their_config(family, tiny_config(**family.parts), None)
    refused = 0
    for key, value in itertools.product([*good, "rope_scaling", "auto_map"], ODD):
        record = good | {key: value}
        try:
            from_flat(our_keys(family_named(record, "it"), record, "it"))
        except UserError:
            refused += 1
    assert refused > len(ODD) * 8


def test_a_gelu_by_tanh_is_warned_of():
    openai = their_config(GPT2_FAMILY, tiny_config(), None) | {"activation_function": "gelu_new"}
    assert our_keys(GPT2_FAMILY, openai, "it")
    (line,) = inexact(GPT2_FAMILY, openai, "it")
    assert re.search("gelu_new.*exact", line)
    del openai["activation_function"]  # the same
    assert len(list(inexact(GPT2_FAMILY, openai, "it"))) == 1
    assert not list(inexact(STARCODER2_FAMILY, {"hidden_act": "gelu"}, "it"))
