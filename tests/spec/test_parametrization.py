"""The table of rules as literal numbers, and the sizes at which the modes must be one model."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from tiny import ROOT, VOCAB, identity, tiny_config

from nanoscale.errors import UserError
from nanoscale.model.gpt import GPT
from nanoscale.model.optim import Optimizers
from nanoscale.spec.architecture import ROLES, tensors
from nanoscale.spec.config import ResolvedConfig
from nanoscale.spec.counting import parameter_counts
from nanoscale.spec.identity import label
from nanoscale.spec.listing import count_lines, tensor_rows
from nanoscale.spec.muon_rules import MUON_RULES
from nanoscale.spec.parametrization import (
    DECAYED,
    MUP,
    ONE,
    SCHEMES,
    Multipliers,
    Power,
    Rule,
    Scaling,
    Scheme,
    register,
    registered_by,
    rules_of,
    scheme_of,
)
from nanoscale.spec.schedule import lr_multiplier

MODES = ("SP", "muP", "CompleteP")
EVERY_ROLE = {"bias": True, "use_qk_norm": True, "tie_embeddings": False}


def rules(**overrides: object) -> dict[str, Rule]:
    """Tensor name -> rule, of a model with tensors of every role."""
    found = rules_of(tiny_config(**EVERY_ROLE | overrides))
    return {spec.name: found.rule(spec) for spec in found.tensors}


NAMES = {
    "embedding": "transformer.wte.weight",
    "position": "transformer.wpe.weight",
    "hidden": "transformer.h.1.attn.c_k.weight",
    "up": "transformer.h.1.mlp.c_fc.weight",
    "residual_out": "transformer.h.0.attn.c_proj.weight",
    "down": "transformer.h.1.mlp.c_proj.weight",
    "block_norm": "transformer.h.0.ln_2.weight",
    "norm_bias": "transformer.h.0.ln_2.bias",
    "bias": "transformer.h.1.mlp.c_fc.bias",
    "qk_norm": "transformer.h.0.attn.q_norm.weight",
    "final_norm": "transformer.ln_f.weight",
    "final_bias": "transformer.ln_f.bias",
    "readout": "lm_head.weight",
}

# (width, depth, alpha): m_N = 4, m_L = 8; m_N = m_L = 1/2; m_N = 2, m_L = 3
BIG = {"n_embd": 64, "base_n_embd": 16, "n_layer": 8, "base_n_layer": 1, "alpha": 0.5}
SMALL = {"n_embd": 16, "base_n_embd": 32, "n_layer": 2, "base_n_layer": 4, "alpha": 1.0}
ODD = {"n_embd": 32, "base_n_embd": 16, "n_layer": 6, "base_n_layer": 2, "alpha": 0.75}

# what -> (init std, LR, weight decay, eps), each over its base value
EXPECTED = {
    ("muP", "BIG"): {
        "hidden": (0.5, 0.25, 4, 0.25),
        "residual_out": (0.3535533905932738, 0.25, 4, 0.25),
        "vector": (0, 1, 0, 0.25),
        "qk_norm": (0, 1, 0, 1),
        "table": (1, 1, 1, 0.25),
        "final": (0, 1, 0, 0.25),
    },
    ("CompleteP", "BIG"): {
        "hidden": (0.5, 0.08838834764831845, 4, 0.08838834764831845),
        "residual_out": (0.3535533905932738, 0.08838834764831845, 4, 0.08838834764831845),
        "vector": (0, 0.35355339059327373, 0, 0.08838834764831845),
        "qk_norm": (0, 0.35355339059327373, 0, 0.35355339059327373),
        "table": (1, 1, 1, 0.25),
        "final": (0, 1, 0, 0.25),
    },
    ("muP", "SMALL"): {
        "hidden": (1.4142135623730951, 2, 0.5, 2),
        "residual_out": (0.5, 2, 0.5, 2),
        "vector": (0, 1, 0, 2),
        "qk_norm": (0, 1, 0, 1),
        "table": (1, 1, 1, 2),
        "final": (0, 1, 0, 2),
    },
    ("CompleteP", "SMALL"): {
        "hidden": (1.4142135623730951, 2, 0.5, 4),
        "residual_out": (0.5, 2, 0.5, 4),
        "vector": (0, 1, 0, 4),
        "qk_norm": (0, 1, 0, 2),
        "table": (1, 1, 1, 2),
        "final": (0, 1, 0, 2),
    },
    ("muP", "ODD"): {
        "hidden": (0.7071067811865476, 0.5, 2, 0.5),
        "residual_out": (0.3535533905932738, 0.5, 2, 0.5),
        "vector": (0, 1, 0, 0.5),
        "qk_norm": (0, 1, 0, 1),
        "table": (1, 1, 1, 0.5),
        "final": (0, 1, 0, 0.5),
    },
    ("CompleteP", "ODD"): {
        "hidden": (0.7071067811865476, 0.3799178428257963, 2, 0.21934566882541543),
        "residual_out": (0.3535533905932738, 0.3799178428257963, 2, 0.21934566882541543),
        "vector": (0, 0.7598356856515925, 0, 0.21934566882541543),
        "qk_norm": (0, 0.7598356856515925, 0, 0.43869133765083085),
        "table": (1, 1, 1, 0.5),
        "final": (0, 1, 0, 0.5),
    },
    ("SP", "BIG"): {
        "hidden": (1, 1, 1, 1),
        "residual_out": (0.25, 1, 1, 1),
        "vector": (0, 1, 0, 1),
        "qk_norm": (0, 1, 0, 1),
        "table": (1, 1, 1, 1),
        "final": (0, 1, 0, 1),
    },
    ("SP", "ODD"): {
        "hidden": (1, 1, 1, 1),
        "residual_out": (0.28867513459481287, 1, 1, 1),
        "vector": (0, 1, 0, 1),
        "qk_norm": (0, 1, 0, 1),
        "table": (1, 1, 1, 1),
        "final": (0, 1, 0, 1),
    },
}
SIZES = {"BIG": BIG, "SMALL": SMALL, "ODD": ODD}
ROW_OF = {
    "hidden": "hidden",
    "up": "hidden",
    "residual_out": "residual_out",
    "down": "residual_out",
    "embedding": "table",
    "position": "table",
    "readout": "table",
    "final_norm": "final",
    "final_bias": "final",
    "block_norm": "vector",
    "norm_bias": "vector",
    "bias": "vector",
    "qk_norm": "qk_norm",
}


def over_base(r: Rule) -> tuple[float, float, float, float]:
    return r.init_std / 0.03, r.lr / 2e-3, r.weight_decay / 0.4, r.eps / 1e-7


BASE = {"init_std": 0.03, "learning_rate": 2e-3, "weight_decay": 0.4, "adam_eps": 1e-7}


@pytest.mark.parametrize(("mode", "size"), EXPECTED)
def test_the_rules_of_adamw_as_numbers(mode, size):
    found = rules(mode=mode, **SIZES[size], **BASE)
    for what, name in NAMES.items():
        expected = EXPECTED[mode, size][ROW_OF[what]]
        assert over_base(found[name]) == pytest.approx(expected, rel=1e-12), what
        assert found[name].optimizer == "adamw"
        assert found[name].init_mean == (1 if "norm" in what and "bias" not in what else 0)


@pytest.mark.parametrize(
    ("size", "depth_lr"),
    [("BIG", 0.35355339059327373), ("SMALL", 1.0), ("ODD", 0.7598356856515925)],
)
@pytest.mark.parametrize("mode", MODES)
def test_the_rules_of_muon_have_no_width_factor(mode, size, depth_lr):
    plain = rules(mode=mode, **SIZES[size], **BASE)
    found = rules(
        mode=mode, **SIZES[size], **BASE, optimizer="muon", muon_lr=0.05, muon_weight_decay=0.3
    )
    factor = depth_lr if mode == "CompleteP" else 1.0
    for name, r in found.items():
        if ".h." in name and name.endswith(
            ("c_k.weight", "c_fc.weight", "c_proj.weight", "c_q.weight", "c_v.weight")
        ):
            assert r.optimizer == "muon"
            assert (r.lr, r.weight_decay) == pytest.approx((0.05 * factor, 0.3 / factor))
            assert r.init_std == plain[name].init_std
        else:
            assert r == plain[name]


@pytest.mark.parametrize("mode", MODES)
def test_a_tied_head_changes_no_other_rule(mode):
    untied, tied = rules(mode=mode, **BIG), rules(mode=mode, **BIG, tie_embeddings=True)
    assert untied.keys() - tied.keys() == {"lm_head.weight"}
    assert all(untied[name] == r for name, r in tied.items())


@pytest.mark.parametrize("mode", MODES)
def test_every_role_has_a_row_and_only_matrices_and_tables_decay(mode):
    assert set(SCHEMES[mode].rows) == set(ROLES)
    config = tiny_config(mode=mode, **EVERY_ROLE)
    for spec in tensors(config):
        assert (rules_of(config).rule(spec).weight_decay > 0) == (len(spec.shape) == 2)
        assert (spec.role in DECAYED) == (len(spec.shape) == 2)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("mode", MODES)
def test_the_shrink_of_hidden_matrices_does_not_depend_on_the_size(mode, optimizer):
    products = set()
    for width in (8, 16, 48, 128):
        for depth in (1, 2, 5):
            found = rules(
                mode=mode,
                optimizer=optimizer,
                n_embd=width,
                n_layer=depth,
                base_n_embd=16,
                base_n_layer=2,
            )
            r = found["transformer.h.0.mlp.c_proj.weight"]
            products.add(round(r.lr * r.weight_decay, 15))
    assert products == {6e-5 if optimizer == "adamw" else 2e-3}


def test_alpha_moves_the_shrink_of_adamws_matrices_by_the_depth_factor_alone():
    found = rules(mode="CompleteP", **BIG)["transformer.h.0.attn.c_q.weight"]
    assert found.lr * found.weight_decay == pytest.approx(6e-5 * 8**-0.5)


def test_grouped_heads_and_swiglu_scale_by_their_own_fan_in():
    found = rules(mode="muP", n_embd=40, n_kv_head=2, use_swiglu=True, base_n_embd=16)
    at = "transformer.h.0."
    lr = {
        name: found[f"{at}{name}.weight"].lr / 6e-4
        for name in (
            "attn.c_q",
            "attn.c_k",
            "attn.c_v",
            "attn.c_proj",
            "mlp.c_gate",
            "mlp.c_up",
            "mlp.c_proj",
        )
    }
    down = lr.pop("mlp.c_proj")
    assert list(lr.values()) == [pytest.approx(16 / 40)] * 6
    assert down == pytest.approx(48 / 112)  # 8/3 d rounded up to 8: 42.7 and 106.7
    std = found[f"{at}mlp.c_proj.weight"].init_std
    assert std == pytest.approx(0.02 / math.sqrt(2 * 4) * math.sqrt(48 / 112))


@pytest.mark.parametrize(
    ("mode", "overrides", "expected"),
    [
        ("SP", {**BIG, "input_mult": 3, "output_mult": 5}, (1, 0.25, 1, 1)),
        ("muP", BIG, (1, 0.25, 1, 0.25)),
        ("muP", {**BIG, "base_head_dim": 64}, (1, 0.5, 1, 0.25)),
        ("muP", {**BIG, "input_mult": 3, "output_mult": 5}, (3, 0.25, 1, 1.25)),
        ("CompleteP", BIG, (1, 0.25, 0.35355339059327373, 0.25)),
        ("CompleteP", {**BIG, "alpha": 1.0}, (1, 0.25, 0.125, 0.25)),
        ("CompleteP", {**SMALL, "base_head_dim": 4}, (1, 0.5, 2, 2)),
    ],
)
def test_forward_multipliers_as_numbers(mode, overrides, expected):
    config = tiny_config(mode=mode, **{"base_head_dim": 16} | overrides)
    assert rules_of(config).multipliers == Multipliers(
        *(pytest.approx(x, rel=1e-12) for x in expected)
    )


# --- sizes at which modes are one model ----------------------------------------------------------

LLAMA = {
    "use_rmsnorm": True,
    "use_rope": True,
    "use_swiglu": True,
    "n_kv_head": 2,
    "use_qk_norm": True,
    "tie_embeddings": False,
}
AT_BASE = {"base_n_embd": 16, "base_n_layer": 2, "base_head_dim": 4}


def after_five_updates(config: ResolvedConfig) -> list[torch.Tensor]:
    """Initial weights, first logits, and the weights and logits after five clipped updates."""
    model = GPT(config)
    optimizers = Optimizers(model, model.rules)
    idx = torch.randint(VOCAB, (6, 2, 8), generator=torch.Generator().manual_seed(0))
    found = [*(p.detach().clone() for p in model.parameters()), model(idx[5])[0].detach()]
    for step in range(5):
        optimizers.set_lr(lr_multiplier(config, step))
        model(idx[step], idx[step].roll(-1, 1))[1].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        for part in optimizers.parts:
            part.step()
        optimizers.zero_grad()
    return [*found, *(p.detach() for p in model.parameters()), model(idx[5])[0].detach()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("flags", [{}, {"bias": True}, LLAMA], ids=["gpt2", "bias", "llama"])
def test_the_modes_are_one_model_at_the_base_size_bit_for_bit(flags, optimizer):
    settings = {**AT_BASE, **flags, "optimizer": optimizer, "learning_rate": 0.01}
    sp = after_five_updates(tiny_config(mode="SP", **settings))
    for mode, alpha in (("muP", 1.0), ("CompleteP", 1.0), ("CompleteP", 0.5)):
        assert same(sp, after_five_updates(tiny_config(mode=mode, alpha=alpha, **settings)))
    wider = tiny_config(mode="muP", **settings | {"base_n_embd": 8})
    assert not same(sp, after_five_updates(wider))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("flags", [{"bias": True}, LLAMA], ids=["gpt2", "llama"])
def test_completep_is_mup_at_the_base_depth_bit_for_bit(flags, optimizer):
    settings = {
        **flags,
        "base_n_embd": 4,
        "base_n_layer": 2,
        "base_head_dim": 8,
        "optimizer": optimizer,
        "alpha": 0.5,
    }
    mup = after_five_updates(tiny_config(mode="muP", **settings))
    assert same(mup, after_five_updates(tiny_config(mode="CompleteP", **settings)))
    deeper = tiny_config(mode="CompleteP", **settings | {"base_n_layer": 1})
    assert not same(mup, after_five_updates(deeper))


@pytest.mark.parametrize("mode", MODES)
def test_logits_with_and_without_targets_are_scaled_alike(mode):
    config = tiny_config(mode=mode, base_n_embd=128, output_mult=3.0)
    model, idx = GPT(config), torch.arange(8)[None]
    assert torch.equal(model(idx)[0], model(idx, idx)[0])


# --- one head, written in two ways ---------------------------------------------------------------

FORM_B = replace(
    MUP,
    logits=ONE,
    rows=MUP.rows | {"readout": Scaling(init=Power(m_N=-1), lr=Power(m_N=-1), wd=Power(m_N=1))},
)


def ten_losses(
    config: ResolvedConfig, monkeypatch: pytest.MonkeyPatch, scheme: Scheme
) -> list[float]:
    """Ten updates of AdamW under `scheme` in muP's place, nothing clipped."""
    monkeypatch.setitem(SCHEMES, "muP", scheme)
    model = GPT(config)
    optimizers, losses = Optimizers(model, model.rules), []
    for step in range(10):
        idx = torch.randint(VOCAB, (2, 8), generator=torch.Generator().manual_seed(step))
        loss = model(idx, idx.roll(-1, 1))[1]
        loss.backward()
        for part in optimizers.parts:
            part.step()
        optimizers.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("width", [16, 48])  # m_N = 4 and 12
def test_a_multiplied_head_is_a_small_head_with_its_own_lr_decay_and_eps(width, monkeypatch):
    config = tiny_config(
        mode="muP",
        n_embd=width,
        base_n_embd=4,
        tie_embeddings=False,
        learning_rate=1e-2,
        adam_eps=1e-3,
        weight_decay=0.5,
        use_rmsnorm=True,
    )
    losses = ten_losses(config, monkeypatch, MUP)
    assert ten_losses(config, monkeypatch, FORM_B) == pytest.approx(losses, rel=1e-6)
    for wrong in (
        Scaling(Power(m_N=-1), Power(m_N=-1), Power(m_N=1), Power(m_N=-1)),
        Scaling(Power(m_N=-1), Power(m_N=-1)),
        Scaling(Power(m_N=-1), ONE, Power(m_N=1)),
    ):
        other = replace(FORM_B, rows=MUP.rows | {"readout": wrong})
        assert ten_losses(config, monkeypatch, other) != pytest.approx(losses, rel=1e-4)


# --- weight decay, batch and horizon -------------------------------------------------------------


@pytest.mark.parametrize(
    ("wd_rule", "hidden", "muon"),
    [("independent", 4, 8**0.5), ("coupled", 1, 1), ("sqrt", 2, 8**0.25)],
)
def test_the_rules_of_weight_decay(wd_rule, hidden, muon):
    at = "transformer.h.1.attn.c_k.weight"
    found = rules(mode="CompleteP", **BIG, wd_rule=wd_rule)
    assert found[at].weight_decay == pytest.approx(0.1 * hidden)
    assert found["transformer.wte.weight"].weight_decay == 0.1
    assert rules(mode="CompleteP", **BIG, wd_rule=wd_rule, optimizer="muon")[at].weight_decay == (
        pytest.approx(0.1 * muon)
    )
    assert rules(mode="SP", **BIG, wd_rule=wd_rule)[at].weight_decay == 0.1


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_decay_by_fraction_of_run_is_so_many_e_foldings_at_any_lr_length_and_size(optimizer):
    for more in (
        {},
        {"max_iters": 70},
        {"learning_rate": 0.02, "muon_lr": 0.3},
        BIG,
        {"base_batch_tokens": 4, "base_tokens": 7},
    ):
        config = tiny_config(
            **{
                "mode": "muP",
                "wd_timescale": "fraction_of_run",
                "weight_decay": 3.0,
                "muon_weight_decay": 3.0,
                "optimizer": optimizer,
            }
            | more
        )
        for spec in tensors(config):
            r = rules_of(config).rule(spec)
            shrink = 3.0 if spec.role in DECAYED else 0.0
            assert r.lr * r.weight_decay * config.max_iters == pytest.approx(shrink)


def test_batch_and_horizon_as_numbers():
    # 16 tokens per update, 160 in all: m_B = 2, m_D = 8 (arXiv 2512.22382: powers of m_B / m_D)
    more = {"base_batch_tokens": 8, "base_tokens": 20, "beta1": 0.8, "beta2": 0.96}
    one, other = rules(**BASE), rules(**BASE, **more)
    for name, r in one.items():
        assert (other[name].lr, other[name].weight_decay, other[name].eps) == pytest.approx(
            (r.lr / 2, r.weight_decay / 2, r.eps * 2)
        )
        assert other[name].init_std == r.init_std
    assert rules_of(tiny_config(**more)).betas == pytest.approx((0.95, 0.99))
    assert rules_of(tiny_config(beta1=0.8)).betas == (0.8, 0.95)
    batch = rules(**BASE, base_batch_tokens=4)["transformer.wte.weight"]
    assert batch.lr == pytest.approx(2 * one["transformer.wte.weight"].lr)
    with pytest.raises(UserError, match=r"betas -0\.6"):
        _ = rules_of(tiny_config(base_batch_tokens=1)).betas


def test_twice_the_batch_at_as_many_updates_changes_no_rule():
    more = {"base_batch_tokens": 8, "base_tokens": 20}
    assert rules(**more) == rules(**more, batch_size=4)


# --- a user's own --------------------------------------------------------------------------------

MINE = ROOT / "docs" / "howto" / "my_rules.py"


def test_the_example_of_the_docs_is_a_mode_like_ours():
    overrides = {"n_embd": 64, "base_n_embd": 16, "rules": str(MINE), "mode": "muP-embed"}
    config = tiny_config(**overrides)
    mine, mup = rules_of(config), rules_of(tiny_config(n_embd=64, base_n_embd=16, mode="muP"))
    for spec in mup.tensors:
        ours, theirs = mup.rule(spec), mine.rule(spec)
        twice = replace(ours, lr=2 * ours.lr) if spec.role == "embedding" else ours
        assert theirs == twice
    assert mine.multipliers == mup.multipliers
    assert "muP-embed" not in SCHEMES  # a file's modes are its own
    assert label(config).endswith("-muP-embed")


def test_a_file_of_rules_is_part_of_a_runs_identity_by_what_it_says(tmp_path):
    copies = [tmp_path / "a.py", tmp_path / "b.py"]
    for copy in copies:
        copy.write_bytes(MINE.read_bytes())
    spelled = [tiny_config(rules=str(copy), mode="muP-embed") for copy in copies]
    assert identity(spelled[0], "d") == identity(spelled[1], "d")
    copies[1].write_text(MINE.read_text().replace("0.5", "0.25"))
    changed = tiny_config(rules=str(copies[1]), mode="muP-embed")
    assert identity(changed, "d") != identity(spelled[1], "d")
    registered_by.cache_clear()
    with pytest.raises(UserError, match="changed since this run was made"):
        scheme_of(spelled[1])


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        (None, "mine", "cannot be read"),
        ("1 / 0", "mine", "ZeroDivisionError"),
        ("x = 1", "mine", "registers no mode; call"),
        (
            "from nanoscale.spec.parametrization import *\nregister('mine', MUP)",
            "mien",
            "mean 'mine'",
        ),
        (
            "from nanoscale.spec.parametrization import *\nregister('muP', MUP)",
            "muP",
            "another name",
        ),
        (
            "from nanoscale.spec.parametrization import *\nregister('a b', MUP)",
            "a b",
            "another name",
        ),
        (
            "from nanoscale.spec.parametrization import *\n"
            "register('mine', Scheme({'hidden': Scaling()}))",
            "mine",
            "no row for 'embedding'",
        ),
    ],
)
def test_a_bad_file_of_rules_is_refused_in_one_line(text, mode, says, tmp_path):
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        scheme_of(tiny_config(rules=str(tmp_path / "mine.py"), mode=mode))
    assert "\n" not in str(caught.value)
    assert "mine.py" in str(caught.value)


@pytest.mark.parametrize("name", MODES)
def test_a_built_in_mode_cannot_be_registered_anew(name):
    built_in = SCHEMES[name]
    with pytest.raises(UserError, match="another name") as caught:
        register(name, MUP)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert SCHEMES[name] is built_in


def test_a_longer_run_has_a_smaller_batch_over_its_horizon():
    ratios = [
        rules_of(tiny_config(max_iters=n, base_tokens=160)).batch_over_horizon for n in (10, 20, 40)
    ]
    assert ratios == [1.0, 0.5, 0.25]
    assert rules_of(tiny_config()).batch_over_horizon == 1.0


def test_the_scheme_is_looked_up_once_for_a_model(monkeypatch):
    found = rules_of(tiny_config(mode="muP"))
    monkeypatch.setitem(SCHEMES, "muP", None)
    assert [found.rule(spec).optimizer for spec in found.tensors] == ["adamw"] * len(found.tensors)


def test_without_a_file_there_are_our_modes_alone():
    with pytest.raises(UserError, match="choose 'SP', 'muP' or 'CompleteP'"):
        tiny_config(mode="muP-embed")
    register("mine", MUP)
    assert SCHEMES.pop("mine") is MUP


# --- the printed tables --------------------------------------------------------------------------


OF_ROWS = {"init": "init std", "lr": "LR", "wd": "weight decay", "eps": "eps"}
OF_FORWARD = {
    "attention": "attention scores / sqrt(head size)",
    "residual": "attention and MLP branches",
    "logits": "logits",
}


def rules_table() -> str:
    """Our schemes as a Markdown table: what the docs show. What is 1 everywhere is left out."""
    columns = [multiplied(SCHEMES[name]) for name in MODES]
    lines = [["multiplier", *MODES], ["---"] * (len(MODES) + 1)]
    for title in columns[0]:
        cells = [column[title] for column in columns]
        if set(cells) != {"1"}:
            lines.append([title, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def multiplied(scheme: Scheme) -> dict[str, str]:
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


def test_the_table_of_the_docs_is_the_codes():
    page = ROOT / "docs" / "reference" / "parametrization.md"
    assert rules_table() in page.read_text(encoding="utf-8"), "paste rules_table() there"


def test_the_docs_have_every_rule_of_muon_as_it_is():
    page = (ROOT / "docs" / "reference" / "parametrization.md").read_text(encoding="utf-8")
    for name, rule in MUON_RULES.items():
        keys = ", ".join(f"`{key}`" for key in rule.acts) or "none"
        step = rule.step.replace("|", r"\|")
        assert f"| `{name}` | {step} | {keys} | {rule.source} |" in page, name


def test_muons_rate_follows_the_width_where_it_is_asked_to():
    asked = {"optimizer": "muon", "muon_lr": 0.05, "muon_width_power": -0.25}
    name = "transformer.h.0.attn.c_q.weight"
    m_N = rules_of(tiny_config(mode="muP", **BIG, **BASE)).ratios.m_N
    assert m_N != 1
    for mode, expected in (("SP", 1.0), ("muP", m_N**-0.25)):
        plain = rules(mode=mode, **BIG, **BASE, optimizer="muon", muon_lr=0.05)
        found = rules(mode=mode, **BIG, **BASE, **asked)
        assert found[name].lr == pytest.approx(0.05 * expected)
        decays = [r[name].lr * r[name].weight_decay for r in (plain, found)]
        assert decays[0] == pytest.approx(decays[1])
        others = [r for r in found if found[r].optimizer == "adamw"]
        assert others
        assert all(found[r] == plain[r] for r in others)


@pytest.mark.parametrize(
    ("power", "text"),
    [
        (ONE, "1"),
        (Power(m_in=-0.5), "m_in^-0.5"),
        (Power(m_N=-1, m_L_alpha=-1), "m_N^-1 m_L^-alpha"),
        (Power(m_L=-1, m_L_alpha=1), "m_L^(alpha-1)"),
        (Power(m_L=1, m_L_alpha=-1), "m_L^(1-alpha)"),
        (Power(m_in=1, m_L_alpha=0.5), "m_in m_L^0.5alpha"),
        (Power(m_h=-0.5, m_L=2), "m_h^-0.5 m_L^2"),
    ],
)
def test_a_power_reads_as_in_a_paper(power, text):
    assert str(power) == text


def test_the_printed_table_has_every_tensor_its_rule_and_the_counts():
    config = tiny_config(mode="CompleteP", optimizer="muon", **EVERY_ROLE)
    rules = rules_of(config)
    rows = {cells[0]: list(cells) for cells in tensor_rows(rules)}
    for spec in tensors(config):
        r = rules.rule(spec)
        cells = rows[spec.name]
        assert cells[1:4] == [spec.role, "x".join(map(str, spec.shape)), f"{r.init_std:.4g}"]
        out, fan_in = spec.shape if len(spec.shape) == 2 else (1, 1)
        muon, m = r.optimizer == "muon", rules.multipliers
        forward = {"embedding": m.embedding, "residual_out": m.residual, "readout": m.logits}
        assert cells[4:6] == [r.optimizer, f"{r.lr:.4g}"]
        assert cells[6] == (f"{(out / fan_in) ** 0.5:.4g}" if muon else "-")
        assert cells[7:9] == [f"{r.weight_decay:.4g}", "-" if muon else f"{r.eps:.4g}"]
        assert cells[9] == (f"{forward[spec.role]:.4g}" if spec.role in forward else "-")
        assert cells[10] == f"{spec.numel:,}"
    for convention, n in parameter_counts(config).items():
        assert any(re.fullmatch(rf"N {convention} +{n:,}", line) for line in count_lines(config))
