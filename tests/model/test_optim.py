"""Groups as a partition, AdamW against torch's built by hand, one writer of every learning rate."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import VOCAB, flag_combinations, tiny_config
from torch import Tensor

from nanoscale.model.gpt import GPT
from nanoscale.model.optim import Optimizers, parameter_groups
from nanoscale.spec.config import ExperimentConfig
from nanoscale.spec.muon_rules import MUON_RULES
from nanoscale.spec.parametrization import rules_of
from nanoscale.spec.schedule import lr_multiplier

MODES = ("SP", "muP", "CompleteP")
OPTIMIZERS = ("adamw", "muon")


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randint(VOCAB, (2, 2, 8), generator=generator).unbind()


def gradients(model: GPT, step: int) -> None:
    """Put the gradients of batch `step` into the model."""
    for p in model.parameters():
        p.grad = None
    model(*batch(step))[1].backward()


def trained(config: ExperimentConfig, steps: range, model: GPT, optimizers: Optimizers) -> GPT:
    for step in steps:
        optimizers.set_lr(lr_multiplier(config, step))
        gradients(model, step)
        for part in optimizers.parts:
            part.step()
    return model


def check_partition(named: dict[str, Tensor], config: ExperimentConfig) -> None:
    groups = parameter_groups(named, rules_of(config))
    every = [g for kind in groups.values() for g in kind]
    assert sorted(name for g in every for name in g["names"]) == sorted(named)
    assert all(
        named[name] is p for g in every for name, p in zip(g["names"], g["params"], strict=True)
    )
    matrices = {n for n in named if ".h." in n and named[n].dim() == 2}
    muons = {name for g in groups["muon"] for name in g["names"]}
    assert muons == (matrices if config.optimizer == "muon" else set())


@pytest.mark.slow
@pytest.mark.parametrize("flags", flag_combinations(), ids=str)
def test_groups_are_a_partition_for_all_modes_and_optimizers(flags):
    named = dict(GPT(tiny_config(**flags)).named_parameters())
    for mode in MODES:
        for optimizer in OPTIMIZERS:
            check_partition(named, tiny_config(mode=mode, optimizer=optimizer, **flags))


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"bias": True, "learning_rate": 0.03, "beta1": 0.7, "beta2": 0.8, "weight_decay": 0.5},
        {"use_swiglu": True, "use_rmsnorm": True, "use_rope": True, "tie_embeddings": False},
    ],
)
def test_adamw_under_sp_is_nanogpts(overrides):
    config = tiny_config(**overrides)
    ours, theirs = GPT(config), GPT(config)
    decay = [p for p in theirs.parameters() if p.dim() >= 2]
    rest = [p for p in theirs.parameters() if p.dim() < 2]
    plain = torch.optim.AdamW(
        [
            {"params": decay, "weight_decay": config.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=1e-10,
    )
    optimizers = Optimizers(ours, ours.rules)
    for step in range(10):
        optimizers.set_lr(lr_multiplier(config, step))
        for group in plain.param_groups:
            group["lr"] = config.learning_rate * lr_multiplier(config, step)
        generator = torch.Generator().manual_seed(step)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = q.grad = torch.randn(p.shape, generator=generator)
        plain.step()
        optimizers.parts[0].step()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name], rtol=1e-5, atol=1e-7)


def test_the_schedule_multiplies_every_groups_own_base_lr():
    config = tiny_config(
        optimizer="muon",
        mode="CompleteP",
        base_n_embd=4,
        base_n_layer=1,
        alpha=0.5,
        embedding_lr_mult=3.0,
        head_lr_mult=0.25,
        tie_embeddings=False,
        bias=True,
    )
    optimizers = Optimizers(GPT(config), rules_of(config))
    base = [group["lr"] for group in optimizers.groups]
    assert len(set(base)) >= 5
    for multiplier in (0.5, 1e-3, 0.0, 1.0):
        optimizers.set_lr(multiplier)
        assert [group["lr"] for group in optimizers.groups] == [lr * multiplier for lr in base]
    assert [group["base_lr"] for group in optimizers.groups] == base


def test_the_multipliers_survive_scheduler_steps_saving_and_loading():
    config = tiny_config(optimizer="muon", mode="muP", base_n_embd=4, warmup_iters=2)
    model = GPT(config)
    optimizers = Optimizers(model, model.rules)
    trained(config, range(3), model, optimizers)
    again = Optimizers(model, model.rules)
    again.load_state(optimizers.state())
    again.set_lr(lr_multiplier(config, 3))
    optimizers.set_lr(lr_multiplier(config, 3))
    assert [g["lr"] for g in again.groups] == [g["lr"] for g in optimizers.groups]
    rates = {g["role"]: g["lr"] / lr_multiplier(config, 3) for g in again.groups}
    assert rates["embedding"] == pytest.approx(6e-4)
    assert rates["hidden"] == pytest.approx(0.02)


def test_muon_and_adamw_have_their_own_base_lr_and_decay():
    config = tiny_config(
        optimizer="muon",
        learning_rate=1e-3,
        muon_lr=0.5,
        weight_decay=0.2,
        muon_weight_decay=0.7,
        muon_momentum=0.6,
        muon_ns_steps=7,
        muon_scale="original",
        beta1=0.8,
        adam_eps=1e-9,
    )
    adamw, muon = Optimizers(GPT(config), rules_of(config)).parts
    assert {(g["lr"], g["weight_decay"]) for g in muon.param_groups} == {(0.5, 0.7)}
    assert {(g["momentum"], g["ns_steps"], g["scale"]) for g in muon.param_groups} == {
        (0.6, 7, "original")
    }
    assert {(g["lr"], g["weight_decay"]) for g in adamw.param_groups} == {(1e-3, 0.2), (1e-3, 0.0)}
    assert {(g["betas"], g["eps"]) for g in adamw.param_groups} == {((0.8, 0.95), 1e-9)}
    assert len(Optimizers(GPT(tiny_config()), rules_of(tiny_config())).parts) == 1


def test_embeddings_and_an_untied_head_have_their_lr_multipliers():
    config = tiny_config(embedding_lr_mult=3.0, head_lr_mult=0.5, tie_embeddings=False)
    rates = {g["role"]: g["lr"] / 6e-4 for g in Optimizers(GPT(config), rules_of(config)).groups}
    assert rates == {
        "embedding": pytest.approx(3),
        "position": pytest.approx(3),
        "hidden": 1,
        "residual_out": 1,
        "block_norm": 1,
        "final_norm": 1,
        "readout": 0.5,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        *({"optimizer": optimizer, "mode": mode} for optimizer in OPTIMIZERS for mode in MODES),
        *({"optimizer": "muon", "muon_rule": rule} for rule in MUON_RULES),
    ],
    ids=lambda keys: "-".join(keys.values()),
)
def test_state_put_back_continues_bit_for_bit(keys):
    config = tiny_config(**keys, bias=True, tie_embeddings=False)
    model = GPT(config)
    optimizers = Optimizers(model, model.rules)
    trained(config, range(4), model, optimizers)
    state = {
        name: {key: v.clone() for key, v in values.items()}
        for name, values in optimizers.state().items()
    }
    assert state.keys() == dict(model.named_parameters()).keys()
    other = GPT(config)
    other.load_state_dict({name: v.clone() for name, v in model.state_dict().items()})
    continued = Optimizers(other, other.rules)
    continued.load_state(state)
    trained(config, range(4, 8), model, optimizers)
    trained(config, range(4, 8), other, continued)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    for name, values in optimizers.state().items():
        assert all(torch.equal(v, continued.state()[name][key]) for key, v in values.items())


def test_loaded_state_is_a_copy_and_a_foreign_name_is_refused():
    config = tiny_config()
    model = GPT(config)
    optimizers = Optimizers(model, model.rules)
    trained(config, range(1), model, optimizers)
    state = optimizers.state()
    again = Optimizers(model, model.rules)
    again.load_state(state)
    name = "transformer.wte.weight"
    again.state()[name]["exp_avg"].zero_()
    assert state[name]["exp_avg"].abs().sum() > 0
    with pytest.raises(KeyError):
        again.load_state({"transformer.nothing": {}})


def test_a_tied_embedding_takes_one_step_of_its_own_rule():
    config = tiny_config(embedding_lr_mult=2.0, weight_decay=0.0)
    model = GPT(config)
    before = model.transformer.wte.weight.detach().clone()
    trained(config, range(1), model, Optimizers(model, model.rules))
    change = (model.transformer.wte.weight.detach() - before).abs().max()
    assert float(change) == pytest.approx(2 * 6e-4, rel=1e-3)  # Adam's first step is +-LR
    assert math.isfinite(float(change))


def test_zero_grad_leaves_no_gradient():
    config = tiny_config(optimizer="muon")
    model = GPT(config)
    optimizers = Optimizers(model, model.rules)
    gradients(model, 0)
    optimizers.zero_grad()
    assert all(p.grad is None for p in model.parameters())


# --- one step ------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_unscales_clips_steps_and_clears(optimizer):
    """As its four parts by hand, from gradients of a loss that was scaled."""
    config = tiny_config(optimizer=optimizer)
    ours, theirs = GPT(config), GPT(config)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for model in (ours, theirs):
        scaler.scale(model(*batch(0))[1]).backward()
    expected = [p.grad / 1024.0 for p in theirs.parameters()]
    for p, g in zip(theirs.parameters(), expected, strict=True):
        p.grad = g.clone()
    norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
    assert norm > 0.5  # so clipping has something to do
    for part in Optimizers(theirs, theirs.rules).parts:
        part.step()

    seen: list[Tensor] = []
    optimizers = Optimizers(ours, ours.rules)
    found = optimizers.step(
        scaler, 0.5, lambda: seen.extend(p.grad.clone() for p in ours.parameters())
    )
    assert float(found) == pytest.approx(float(norm))
    torch.testing.assert_close(seen, expected)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q)
        assert p.grad is None


def test_a_step_whose_gradients_overflowed_changes_nothing():
    config = tiny_config()
    model = GPT(config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(model(*batch(0))[1]).backward()
    model.head.weight.grad[0, 0] = math.inf
    Optimizers(model, model.rules).step(scaler, 0.0)
    assert scaler.get_scale() == 512.0
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
