"""The one list of tensors, literally for two models, and what must hold of it for all."""

from __future__ import annotations

import itertools

import pytest
from tiny import flag_combinations, tiny_config

from nanoscale.spec.architecture import ROLES, ffn_width, tensors

GPT2 = """\
transformer.wte.weight embedding 11x16
transformer.wpe.weight position 8x16
transformer.h.0.ln_1.weight block_norm 16
transformer.h.0.ln_1.bias bias 16
transformer.h.0.attn.c_q.weight hidden 16x16
transformer.h.0.attn.c_q.bias bias 16
transformer.h.0.attn.c_k.weight hidden 16x16
transformer.h.0.attn.c_k.bias bias 16
transformer.h.0.attn.c_v.weight hidden 16x16
transformer.h.0.attn.c_v.bias bias 16
transformer.h.0.attn.c_proj.weight residual_out 16x16
transformer.h.0.attn.c_proj.bias bias 16
transformer.h.0.ln_2.weight block_norm 16
transformer.h.0.ln_2.bias bias 16
transformer.h.0.mlp.c_fc.weight hidden 64x16
transformer.h.0.mlp.c_fc.bias bias 64
transformer.h.0.mlp.c_proj.weight residual_out 16x64
transformer.h.0.mlp.c_proj.bias bias 16
transformer.ln_f.weight final_norm 16
transformer.ln_f.bias bias 16"""

LLAMA = """\
transformer.wte.weight embedding 11x16
transformer.h.0.ln_1.weight block_norm 16
transformer.h.0.attn.c_q.weight hidden 16x16
transformer.h.0.attn.c_k.weight hidden 8x16
transformer.h.0.attn.c_v.weight hidden 8x16
transformer.h.0.attn.q_norm.weight qk_norm 4
transformer.h.0.attn.k_norm.weight qk_norm 4
transformer.h.0.attn.c_proj.weight residual_out 16x16
transformer.h.0.ln_2.weight block_norm 16
transformer.h.0.mlp.c_gate.weight hidden 48x16
transformer.h.0.mlp.c_up.weight hidden 48x16
transformer.h.0.mlp.c_proj.weight residual_out 16x48
transformer.ln_f.weight final_norm 16
lm_head.weight readout 11x16"""


@pytest.mark.parametrize(
    ("expected", "overrides"),
    [
        (GPT2, {"bias": True}),
        (
            LLAMA,
            {
                "use_rmsnorm": True,
                "use_rope": True,
                "use_swiglu": True,
                "n_kv_head": 2,
                "use_qk_norm": True,
                "tie_embeddings": False,
            },
        ),
    ],
)
def test_two_models_tensor_by_tensor(expected, overrides):
    specs = tensors(tiny_config(n_layer=1, **overrides))
    found = [f"{s.name} {s.role} {'x'.join(map(str, s.shape))}" for s in specs]
    assert "\n".join(found) == expected


def test_any_three_flags_meet_in_every_way_in_the_sample():
    sample = [tuple(case.values[0].values()) for case in flag_combinations() if not case.marks]
    assert len(sample) == 16
    for three in itertools.combinations(zip(*sample, strict=True), 3):
        assert len(set(zip(*three, strict=True))) == 8


@pytest.mark.parametrize("flags", flag_combinations(), ids=str)
def test_every_tensor_is_named_once_and_matrices_are_fan_out_by_fan_in(flags):
    config = tiny_config(n_layer=3, **flags)
    specs = tensors(config)
    assert len({s.name for s in specs}) == len(specs)
    assert all(s.role in ROLES for s in specs)
    for s in specs:
        if s.role in ("hidden", "residual_out"):
            assert s.shape[1] == s.fan_in
        if s.role in ("readout", "embedding"):
            assert s.shape == (config.vocab_size, config.n_embd)
    norm_biases = any(s.role == "bias" and "ln_" in s.name for s in specs)
    assert norm_biases == (flags["bias"] and not flags["use_rmsnorm"])
    blocks = {s.name.split(".")[2] for s in specs if s.in_block}
    assert blocks == {"0", "1", "2"}
    outer = ("embedding", "position", "final_norm", "readout")
    assert all(s.in_block != (s.role in outer or "ln_f" in s.name) for s in specs)


@pytest.mark.parametrize(
    ("width", "multiple", "expected"),
    [
        (128, 8, 344),
        (192, 8, 512),
        (384, 8, 1024),
        (512, 8, 1368),
        (768, 8, 2048),
        (16, 1, 42),
        (64, 256, 256),
        (128, 256, 512),
        (256, 256, 768),
        (512, 256, 1536),
        (4096, 256, 11008),
    ],
)
def test_the_swiglu_width_is_eight_thirds_rounded_up(width, multiple, expected):
    assert ffn_width(tiny_config(use_swiglu=True, multiple_of=multiple), width) == expected
    assert ffn_width(tiny_config(multiple_of=multiple), width) == 4 * width


def test_the_base_of_each_tensor_is_the_base_models():
    config = tiny_config(
        n_embd=40,
        n_head=4,
        n_kv_head=2,
        use_swiglu=True,
        base_n_embd=16,
        base_head_dim=8,
        use_qk_norm=True,
        tie_embeddings=False,
    )
    specs = {s.name.removeprefix("transformer.h.0."): s for s in tensors(config)}
    found = {name: (s.fan_in, s.base_fan_in) for name, s in specs.items() if ".h." not in name}
    assert found == {
        "transformer.wte.weight": (11, 11),
        "transformer.wpe.weight": (8, 8),
        "ln_1.weight": (40, 16),
        "attn.c_q.weight": (40, 16),
        "attn.c_k.weight": (40, 16),
        "attn.c_v.weight": (40, 16),
        "attn.q_norm.weight": (10, 8),
        "attn.k_norm.weight": (10, 8),
        "attn.c_proj.weight": (40, 16),
        "ln_2.weight": (40, 16),
        "mlp.c_gate.weight": (40, 16),
        "mlp.c_up.weight": (40, 16),
        "mlp.c_proj.weight": (112, 48),
        "transformer.ln_f.weight": (40, 16),
        "lm_head.weight": (40, 16),
    }
