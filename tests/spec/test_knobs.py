"""No dead knob: every key of the config has a reader, and those of the science change a run."""

from __future__ import annotations

import ast
import functools

import pytest
import torch
from tiny import BESIDE, PACKAGE, VOCAB, identity, pair, tiny_config

from nanoscale.model.gpt import GPT
from nanoscale.model.optim import Optimizers
from nanoscale.spec.config import ResolvedConfig, all_fields, flatten
from nanoscale.spec.identity import RunSpec
from nanoscale.spec.schedule import lr_multiplier
from nanoscale.store.resume import past_difference

# Parts of config.py that act on a value; the rest of it and sources.py only carry values around.
ACTING = {
    "head_dim",
    "kv_heads",
    "sequences_per_iter",
    "tokens_per_iter",
}


def attributes_read(tree: ast.AST) -> set[str]:
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


@functools.cache
def attributes_read_by_the_package() -> set[str]:
    """Every attribute that the package reads, but for `config.check` and the like."""
    found: set[str] = set()
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if file.name == "config.py":
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef) and node.name in ACTING:
                    found |= attributes_read(node)
        elif file.name != "sources.py":
            found |= attributes_read(tree)
    return found


@pytest.mark.parametrize("key", list(all_fields()))
def test_every_key_is_read_outside_the_config(key):
    assert key.split(".")[-1] in attributes_read_by_the_package()


# --- the science -------------------------------------------------------------------------------

# every switch is on, so that every knob behind a switch is in play
ALL_ON = {
    "optimizer": "muon",
    "mode": "CompleteP",
    "alpha": 0.75,
    "bias": True,
    "use_rope": True,
    "use_swiglu": True,
    "use_qk_norm": True,
    "z_loss": 1e-3,
    "dropout": 0.2,
    "learning_rate": 1e-2,
    "min_lr_frac": 0.5,
}


def two_updates(config: ResolvedConfig) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and weights of the first two updates on fixed tokens."""
    model = GPT(config)
    optimizers = Optimizers(model, model.rules)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for step in range(2):
        idx = torch.randint(VOCAB, (2, 8), generator=generator)
        torch.manual_seed(config.seed + step)  # of dropout, as the training loop seeds it
        optimizers.set_lr(lr_multiplier(config, step))
        loss = model(idx, idx.roll(-1, 1))[1]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip or float("inf"))
        for part in optimizers.parts:
            part.step()
        optimizers.zero_grad()
        losses.append(float(loss.detach()))
    return losses, model.state_dict()


def equal(one: ResolvedConfig, other: ResolvedConfig) -> bool:
    (losses, state), (other_losses, other_state) = two_updates(one), two_updates(other)
    return (
        losses == other_losses
        and state.keys() == other_state.keys()
        and all(torch.equal(v, other_state[name]) for name, v in state.items())
    )


SCIENCE = [
    name
    for name, key in all_fields().items()
    if ("." in name and not name.startswith("parametrization.rules"))  # see their own tests
    or key.group in ("model", "optimizer")
]


def test_two_updates_are_a_function_of_the_config():
    assert equal(tiny_config(**ALL_ON), tiny_config(**ALL_ON))


@pytest.mark.slow
@pytest.mark.parametrize("key", [*SCIENCE, "seed", "init_seed"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_flipping_a_key_of_the_science_changes_a_run(key, optimizer):
    acts = "muon_" not in key or optimizer == "muon"
    rule = {k: v for k, v in BESIDE.get(key, {}).items() if k == "muon_rule"}
    assert equal(*pair(key, **ALL_ON | rule | {"optimizer": optimizer})) != acts


@pytest.mark.parametrize(
    "key", ["lr_schedule", "decay_lr", "warmup_iters", "lr_decay_iters", "min_lr_frac"]
)
def test_flipping_a_key_of_the_schedule_changes_a_run(key):
    assert not equal(*pair(key, **ALL_ON))


IDLE = [  # with what else
    *((key, {"lr_schedule": "linear"}) for key in BESIDE if "halflife" not in key),
    ("parametrization.alpha", {"mode": "muP"}),
    *((f"parametrization.{key}", {"optimizer": "muon"}) for key in ("base_n_embd", "wd_rule")),
    ("cooldown_frac", {"lr_schedule": "constant"}),
    ("min_lr", {"lr_schedule": "constant"}),
    ("lr_decay_iters", {"lr_schedule": "constant"}),
    ("lr_decay_iters", {"decay_lr": False}),
    ("min_lr", {"decay_lr": False}),
    ("warmup_iters", {"decay_lr": False}),
    ("lr_schedule", {"decay_lr": False}),
    ("seed", {"init_seed": 11, "data_seed": 12}),
]


@pytest.mark.parametrize(("key", "beside"), IDLE)
def test_an_idle_key_names_no_run_and_changes_none(key, beside):
    one, other = pair(key, **beside)
    assert flatten(one)[key] != flatten(other)[key]
    assert identity(one, "d") == identity(other, "d")
    assert past_difference(RunSpec(one, {}, "", "d"), RunSpec(other, {}, "", "d"), 10) is None
    assert equal(one, other)
    steps = range(12)
    assert [lr_multiplier(one, t) for t in steps] == [lr_multiplier(other, t) for t in steps]


def test_minus_zero_is_zero():
    assert identity(tiny_config(weight_decay=-0.0), "d") == identity(
        tiny_config(weight_decay=0.0), "d"
    )


def test_a_seed_that_another_follows_is_not_idle():
    """So its id is the one that it had."""
    for config in pair("seed", init_seed=11):
        spec = RunSpec(config, {}, "", "d")
        assert {spec.id} == set(spec.spelled_ids)


@pytest.mark.parametrize(
    "key", ["log_interval", "out_dir", "wandb_log", "micro_batch_size", "data_seed", "eval_iters"]
)
def test_keys_outside_the_science_change_nothing(key):
    assert equal(*pair(key, **ALL_ON))
