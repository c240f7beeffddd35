"""Counts against torch's own counter and against numbers that others have published."""

from __future__ import annotations

import pytest
import torch
from tiny import flag_combinations, tiny_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nanoscale.model.gpt import GPT
from nanoscale.spec.architecture import ROLES
from nanoscale.spec.config import ResolvedConfig
from nanoscale.spec.counting import (
    flops_per_iter,
    flops_per_token,
    forward_flops,
    parameter_counts,
    parameters_by_role,
)
from nanoscale.spec.resolve import resolve
from nanoscale.spec.sources import Source, build

SIZES = [
    {"n_layer": 1, "n_head": 4, "n_embd": 16, "block_size": 8, "vocab_size": 11},
    {"n_layer": 2, "n_head": 4, "n_embd": 24, "block_size": 5, "vocab_size": 7},
    {"n_layer": 1, "n_head": 6, "n_embd": 60, "block_size": 3, "vocab_size": 130},
]


def counted(config: ResolvedConfig) -> tuple[int, int, FlopCounterMode]:
    """FLOPs that torch counts in the forward pass of one sequence, and with the backward pass."""
    model, idx = GPT(config), torch.zeros(1, config.block_size, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss = model(idx, idx)[1]
        forward = counter.get_total_flops()
        loss.backward()
    return forward, counter.get_total_flops(), counter


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"d{s['n_embd']}")
@pytest.mark.parametrize(
    "flags",
    flag_combinations(),
    ids=lambda f: "".join("01"[value not in (None, False)] for value in f.values()),
)
def test_flops_and_parameters_equal_torchs_for_every_combination_of_flags(flags, size):
    config = tiny_config(**flags, **size)
    ours = sum(forward_flops(config).values())
    assert counted(config)[:2] == (ours, 3 * ours)
    exact = flops_per_token(config)["exact"]
    assert exact * config.block_size == 3 * ours
    assert flops_per_iter(config) == 3 * ours * config.sequences_per_iter


ROLE_OF_NAME = {
    "wte": "embedding",
    "wpe": "position",
    "ln_1": "block_norm",
    "ln_2": "block_norm",
    "ln_f": "final_norm",
    "q_norm": "qk_norm",
    "k_norm": "qk_norm",
    "c_q": "hidden",
    "c_k": "hidden",
    "c_v": "hidden",
    "c_fc": "hidden",
    "c_gate": "hidden",
    "c_up": "hidden",
    "c_proj": "residual_out",
    "lm_head": "readout",
}


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"d{s['n_embd']}")
@pytest.mark.parametrize("flags", flag_combinations(), ids=str)
def test_parameters_by_role_are_the_models(flags, size):
    config = tiny_config(**flags, **size)
    model = GPT(config)
    expected = dict.fromkeys(ROLES, 0)
    for name, p in model.named_parameters():
        module, kind = name.split(".")[-2:]
        expected["bias" if kind == "bias" else ROLE_OF_NAME[module]] += p.numel()
    assert parameters_by_role(config) == expected
    counts = parameter_counts(config)
    total = sum(p.numel() for p in model.parameters())
    assert counts["total"] == total
    assert counts["non_position"] == total - expected["position"]
    tables = expected["position"] + expected["embedding"] + expected["readout"]
    assert counts["non_embedding"] == total - tables
    head = config.vocab_size * config.n_embd
    assert counts["matrices_and_head"] == expected["hidden"] + expected["residual_out"] + head


def test_flops_per_module_equal_torchs():
    config = tiny_config(n_layer=2, use_swiglu=True, n_kv_head=2, bias=True)
    by_module = counted(config)[2].get_flop_counts()

    def found(part: str, batched: bool) -> int:
        blocks = [by_module[f"GPT.transformer.h.{i}.{part}"] for i in range(2)]
        return (
            sum(n for counts in blocks for op, n in counts.items() if ("bmm" in str(op)) == batched)
            // 3
        )

    ours = forward_flops(config)
    assert ours["attention_projections"] == found("attn", batched=False)
    assert ours["attention_scores"] == found("attn", batched=True)
    assert ours["mlp"] == found("mlp", batched=False)
    assert ours["head"] == 2 * 8 * 16 * 11


def test_flops_of_another_length():
    config = tiny_config()
    short = tiny_config(block_size=4)
    assert forward_flops(config)["attention_scores"] == 4 * forward_flops(short)["attention_scores"]
    assert forward_flops(config)["mlp"] == 2 * forward_flops(short)["mlp"]


# --- published numbers -------------------------------------------------------------------------

BABY = {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "vocab_size": 65}
CPU_RECIPE = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "vocab_size": 65}
LLAMA = {
    "use_rmsnorm": True,
    "use_rope": True,
    "use_swiglu": True,
    "tie_embeddings": False,
    "multiple_of": 256,
    "vocab_size": 32000,
    "block_size": 2048,
}


@pytest.mark.parametrize(
    ("overrides", "convention", "expected"),
    [
        (BABY, "non_position", 10_646_784),
        (BABY, "total", 10_745_088),
        (CPU_RECIPE, "non_position", 795_904),
        ({"vocab_size": 50304}, "non_position", 123_587_328),  # nanoGPT's GPT-2
        ({"vocab_size": 50257, "bias": True}, "total", 124_439_808),  # OpenAI's
        (
            {"vocab_size": 50257, "bias": True, "n_layer": 24, "n_head": 16, "n_embd": 1024},
            "total",
            354_823_168,
        ),
        ({**LLAMA, "n_layer": 32, "n_head": 32, "n_embd": 4096}, "total", 6_738_415_616),  # 7B
        (
            {**LLAMA, "n_layer": 22, "n_head": 32, "n_kv_head": 4, "n_embd": 2048},
            "total",
            1_100_048_384,
        ),  # TinyLlama
    ],
)
def test_published_parameter_counts(overrides, convention, expected):
    config = resolve(build([Source("test", overrides)]), overrides["vocab_size"])
    assert parameter_counts(config)[convention] == expected


def test_flops_per_token_of_the_baby_gpt_by_hand():
    config = resolve(build([Source("test", BABY)]), 65)
    matrices, head = 6 * 12 * 384**2, 65 * 384
    total = matrices + head + 256 * 384 + 13 * 384
    found = flops_per_token(config)
    assert found == {
        "exact": 6 * (matrices + head) + 12 * 6 * 384 * 256,
        "6N": 6 * total,
        "6N_non_embedding": 6 * (matrices + 13 * 384),
        "6N_12LdT": 6 * 10_646_784 + 12 * 6 * 384 * 256,
    }
    assert found["6N_12LdT"] * 5000 * 64 * 256 == pytest.approx(5.8e15, rel=0.01)  # nanoGPT's run
