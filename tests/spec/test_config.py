"""The config's promises: frozen defaults, frozen identities, one meaning however it is said."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from dataclasses import FrozenInstanceError, dataclass, replace
from typing import get_type_hints

import pytest
from tiny import BESIDE, OTHER, TINY, identity, pair, tiny_config

from nanoscale.errors import UserError
from nanoscale.spec import config as module
from nanoscale.spec import identity as naming
from nanoscale.spec.config import (
    EXCLUSIVE,
    ExperimentConfig,
    ParametrizationConfig,
    ResolvedConfig,
    all_fields,
    flatten,
    from_flat,
)
from nanoscale.spec.counting import flops_per_iter, parameter_counts
from nanoscale.spec.identity import canonical_json, config_from_dict, label, scientific
from nanoscale.spec.options import option
from nanoscale.spec.resolve import resolve, warnings
from nanoscale.spec.sources import Source, build, parse_arguments

# Changing a default changes what every hash that elides it means: better defaults go into presets.
FROZEN_DEFAULTS = {
    "dataset": "openwebtext",
    "data_root": "data",
    "data_order": "random",
    "gradient_accumulation_steps": 40,
    "batch_size": 12,
    "block_size": 1024,
    "seed": 1337,
    "init_seed": None,
    "data_seed": None,
    "n_layer": 12,
    "n_head": 12,
    "n_kv_head": None,
    "n_embd": 768,
    "vocab_size": None,
    "dropout": 0.0,
    "bias": False,
    "use_rmsnorm": False,
    "use_rope": False,
    "use_swiglu": False,
    "multiple_of": 8,
    "use_qk_norm": False,
    "tie_embeddings": True,
    "rope_theta": 10000.0,
    "norm_eps": 1e-05,
    "init_std": 0.02,
    "z_loss": 0.0,
    "parametrization.mode": "SP",
    "parametrization.rules": None,
    "parametrization.rules_digest": None,
    "parametrization.base_n_embd": 256,
    "parametrization.base_n_layer": 4,
    "parametrization.base_head_dim": 64,
    "parametrization.alpha": 1.0,
    "parametrization.input_mult": 1.0,
    "parametrization.output_mult": 1.0,
    "parametrization.wd_rule": "independent",
    "parametrization.wd_timescale": "steps",
    "parametrization.base_batch_tokens": None,
    "parametrization.base_tokens": None,
    "parametrization.muon_width_power": 0.0,
    "optimizer": "adamw",
    "learning_rate": 0.0006,
    "weight_decay": 0.1,
    "beta1": 0.9,
    "beta2": 0.95,
    "beta2_halflife_tokens": None,
    "adam_eps": 1e-10,
    "embedding_lr_mult": 1.0,
    "head_lr_mult": 1.0,
    "muon_lr": 0.02,
    "muon_weight_decay": 0.1,
    "muon_momentum": 0.95,
    "muon_momentum_halflife_tokens": None,
    "muon_ns_steps": 5,
    "muon_scale": "spectral",
    "muon_rule": "muon",
    "muon_power": 0.5,
    "muon_clip": 1.0,
    "grad_clip": 1.0,
    "lr_schedule": "cosine",
    "decay_lr": True,
    "warmup_iters": 2000,
    "warmup_frac": None,
    "lr_decay_iters": None,
    "min_lr": 6e-05,
    "min_lr_frac": None,
    "cooldown_frac": 0.2,
    "cooldown_shape": "linear",
    "max_iters": 600000,
    "max_tokens": None,
    "max_flops": None,
    "tokens_per_param": None,
    "eval_interval": 2000,
    "eval_iters": 200,
    "val_sets": (),
    "final_eval_tokens": 1000000,
    "stats_interval": 0,
    "eval_only": False,
    "out_dir": "out",
    "init_from": "scratch",
    "branch_from": None,
    "log_interval": 1,
    "always_save_checkpoint": True,
    "checkpoint_seconds": 300.0,
    "checkpoint_steps": (),
    "keep": "all",
    "tensorboard_log": False,
    "wandb_log": False,
    "wandb_project": "owt",
    "wandb_run_name": "gpt2",
    "trackio_log": False,
    "trackers": None,
    "profile": False,
    "device": "auto",
    "dtype": "auto",
    "compile": True,
    "cuda_graphs": False,
    "kernels": "auto",
    "micro_batch_size": None,
    "recompute": False,
    "loss_chunk": None,
    "threads": None,
    "backend": "nccl",
    "sharding": "ddp",
}
UNHASHED = {
    "dataset",
    "data_root",
    "val_sets",
    "eval_only",
    "out_dir",
    "init_from",
    "branch_from",
    "log_interval",
    "always_save_checkpoint",
    "checkpoint_seconds",
    "checkpoint_steps",
    "keep",
    "tensorboard_log",
    "wandb_log",
    "wandb_project",
    "wandb_run_name",
    "trackio_log",
    "trackers",
    "profile",
    "device",
    "kernels",
    "compile",
    "cuda_graphs",
    "micro_batch_size",
    "recompute",
    "loss_chunk",
    "threads",
    "backend",
    "sharding",
    "parametrization.rules",
}


def typed(line: str, vocab_size: int = 65) -> ResolvedConfig:
    """The resolved config of a command line."""
    return resolve(build(parse_arguments(line.split())), vocab_size)


def refusal(line: str) -> str:
    with pytest.raises(UserError) as caught:
        typed(line)
    return str(caught.value)


# --- frozen ------------------------------------------------------------------------------------


def test_every_default_is_frozen():
    assert flatten(ExperimentConfig()) == FROZEN_DEFAULTS
    assert list(FROZEN_DEFAULTS) == list(all_fields())  # the order of the help


def test_the_unhashed_keys_are_frozen():
    assert {name for name, key in all_fields().items() if not key.hashed} == UNHASHED


def test_what_a_comparison_may_tune_is_frozen():
    """Numbers of the optimizer and the schedule, and of the model those that are no part of it."""
    assert {name for name, key in all_fields().items() if key.tuned} == {
        "dropout",
        "init_std",
        "z_loss",
        "parametrization.alpha",
        "parametrization.input_mult",
        "parametrization.output_mult",
        "learning_rate",
        "weight_decay",
        "beta1",
        "beta2",
        "beta2_halflife_tokens",
        "adam_eps",
        "embedding_lr_mult",
        "head_lr_mult",
        "muon_lr",
        "muon_weight_decay",
        "muon_momentum",
        "muon_momentum_halflife_tokens",
        "muon_power",
        "muon_clip",
        "parametrization.muon_width_power",
        "muon_ns_steps",
        "grad_clip",
        "warmup_iters",
        "warmup_frac",
        "lr_decay_iters",
        "min_lr",
        "min_lr_frac",
        "cooldown_frac",
    }


def test_a_config_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        tiny_config().n_layer = 3


def test_resolution_leaves_nothing_to_fill_in_and_says_so_by_type():
    resolved = tiny_config()
    assert type(resolved) is type(replace(resolved, seed=2)) is ResolvedConfig
    assert list(resolved.to_dict()) == list(ExperimentConfig().to_dict())  # keys and their order

    filled = get_type_hints(ResolvedConfig)
    optional = {
        key for key, kind in get_type_hints(ExperimentConfig).items() if kind != filled[key]
    }
    assert optional == {
        "muon_momentum",
        "init_seed",
        "data_seed",
        "n_kv_head",
        "vocab_size",
        "beta2",
        "warmup_iters",
        "lr_decay_iters",
        "min_lr",
        "max_iters",
    }
    for key in optional:
        assert type(getattr(resolved, key)) is filled[key]
    for key in ("vocab_size", "init_seed"):
        with pytest.raises(UserError, match=key):
            replace(resolved, **{key: None})


FROZEN_IDENTITIES = [
    (
        "",
        50304,
        None,
        "754307cf7e",
        '{"data_seed":1337,"init_seed":1337,"lr_decay_iters":600000,"n_kv_head":12,'
        '"vocab_size":50304}',
    ),
    (
        "--batch_size=64 --gradient_accumulation_steps=1 --block_size=256 --n_layer=6 --n_head=6 "
        "--n_embd=384 --dropout=0.2 --learning_rate=1e-3 --max_iters=5000 --min_lr=1e-4 "
        "--beta2=0.99 --warmup_iters=100 --eval_interval=250",
        65,
        None,
        "d35f06e735",
        '{"batch_size":64,"beta2":0.99,"block_size":256,"data_seed":1337,"dropout":0.2,'
        '"eval_interval":250,"gradient_accumulation_steps":1,"init_seed":1337,"learning_rate":0.001,'
        '"lr_decay_iters":5000,"max_iters":5000,"min_lr":0.0001,"n_embd":384,"n_head":6,'
        '"n_kv_head":6,"n_layer":6,"vocab_size":65,"warmup_iters":100}',
    ),
    (
        "--n_layer=8 --n_head=8 --n_kv_head=2 --n_embd=512 --use_rmsnorm=True --use_rope=True "
        "--use_swiglu=True --use_qk_norm=True --tie_embeddings=False --head_lr_mult=0.5 "
        "--optimizer=muon --parametrization.mode=CompleteP --parametrization.alpha=0.5 "
        "--max_tokens=1e8 --warmup_frac=0.02 --min_lr_frac=0 --data_order=epoch",
        256,
        None,
        "1b72971481",
        '{"data_order":"epoch","data_seed":1337,"head_lr_mult":0.5,"init_seed":1337,'
        '"lr_decay_iters":203,"max_iters":203,"min_lr":0.0,"n_embd":512,"n_head":8,"n_kv_head":2,'
        '"n_layer":8,"optimizer":"muon","parametrization.alpha":0.5,'
        '"parametrization.mode":"CompleteP","tie_embeddings":false,"use_qk_norm":true,'
        '"use_rmsnorm":true,"use_rope":true,"use_swiglu":true,"vocab_size":256,"warmup_iters":4}',
    ),
    (
        "--n_layer=3 --n_head=3 --n_embd=96 --block_size=128 --batch_size=16 "
        "--gradient_accumulation_steps=2 --tokens_per_param=20 --lr_schedule=wsd "
        "--cooldown_shape=1-sqrt --cooldown_frac=0.4 --warmup_frac=0.1 --min_lr_frac=0.1 "
        "--beta2_halflife_tokens=1e6 --seed=7 --parametrization.mode=MuP",
        256,
        None,
        "c599cce331",
        '{"batch_size":16,"beta2":0.9971648956689151,"block_size":128,"cooldown_frac":0.4,'
        '"cooldown_shape":"1-sqrt","data_seed":7,"gradient_accumulation_steps":2,"init_seed":7,'
        '"lr_decay_iters":1803,"lr_schedule":"wsd","max_iters":1803,"n_embd":96,"n_head":3,'
        '"n_kv_head":3,"n_layer":3,"parametrization.mode":"muP","seed":7,"vocab_size":256,'
        '"warmup_iters":180}',
    ),
    (
        "--max_flops=1e12 --n_layer=1 --n_head=1 --n_embd=64 --block_size=32 --batch_size=4 "
        "--gradient_accumulation_steps=1 --dtype=bfloat16 --init_seed=1 --data_seed=2 "
        "--warmup_iters=0 --lr_schedule=constant",
        32,
        "0123456789@100",
        "3df5bf0f9f",
        '{"batch_size":4,"block_size":32,"data_seed":2,"dtype":"bfloat16",'
        '"gradient_accumulation_steps":1,"init_seed":1,"lr_decay_iters":23548,'
        '"lr_schedule":"constant","max_iters":23548,"n_embd":64,"n_head":1,"n_kv_head":1,'
        '"n_layer":1,"vocab_size":32,"warmup_iters":0}',
    ),
]


@pytest.mark.parametrize(("line", "vocab", "parent", "digest", "text"), FROZEN_IDENTITIES)
def test_identities_are_frozen(line, vocab, parent, digest, text):
    config = typed(line, vocab)
    assert canonical_json(scientific(config)) == text
    assert identity(config, "0" * 64, parent) == digest
    # the hash is of this very text, so that any other program can compute it
    branch = f'"branch_from":"{parent}",' if parent else ""
    data = f'"data":"{"0" * 64}"'
    masks = '"masks":1,' if config.dropout else ""  # of another dropout, another run
    payload = f'{{{branch}"config":{text},{data},{masks}"numerics_version":1,"schema":1}}'
    assert hashlib.sha256(payload.encode()).hexdigest()[:10] == digest


@pytest.mark.slow
def test_a_field_added_later_changes_no_identity(monkeypatch):
    @dataclass(frozen=True)
    class Later(ExperimentConfig):
        new_knob: float = option(0.5, "a knob of next year")

    before = [
        identity(typed(line, vocab), "0" * 64, parent)
        for line, vocab, parent, *_ in FROZEN_IDENTITIES
    ]
    old = [vars(typed(line, vocab)) for line, vocab, *_ in FROZEN_IDENTITIES]
    monkeypatch.setattr(module, "ExperimentConfig", Later)
    for part in (module, naming):
        monkeypatch.setattr(part, "all_fields", all_fields.__wrapped__)  # not what was kept
    parents = [parent for _, _, parent, *_ in FROZEN_IDENTITIES]
    later = [identity(Later(**v), "0" * 64, p) for v, p in zip(old, parents, strict=True)]
    assert later == before
    assert identity(Later(**old[0], new_knob=0.6), "0" * 64) != before[0]


# --- identity ----------------------------------------------------------------------------------


def test_the_walk_below_covers_every_key():
    assert OTHER.keys() == all_fields().keys()


@pytest.mark.parametrize("key", list(OTHER))
def test_a_key_changes_the_identity_exactly_when_it_is_hashed(key):
    before, after = pair(key, **BESIDE.get(key, {}))
    assert flatten(after) != flatten(before)
    changed = identity(after, "d") != identity(before, "d")
    by_content = key == "parametrization.rules"  # what the file says is, not where it lies
    assert changed == (key not in UNHASHED or by_content)


def test_data_parent_and_versions_change_the_identity(monkeypatch):
    config = tiny_config()
    names = {
        identity(config, "d"),
        identity(config, "e"),
        identity(config, "d", "a@1"),
        identity(config, "d", "a@2"),
    }
    monkeypatch.setattr(naming, "NUMERICS_VERSION", 0)
    names.add(identity(config, "d"))
    monkeypatch.setattr(naming, "IDENTITY_SCHEMA", 0)
    names.add(identity(config, "d"))
    assert len(names) == 6


SHORT = "--max_iters=1000 --warmup_iters=100 "


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (SHORT + "--learning_rate=6e-4 --min_lr=6e-5", SHORT + "--min_lr_frac=0.1"),
        (
            SHORT + "--learning_rate=3e-4 --min_lr=3e-5",
            SHORT + "--learning_rate=3e-4 --min_lr_frac=0.1",
        ),
        (SHORT, "--max_tokens=491520000 --warmup_iters=100"),
        (SHORT, "--max_iters=1000 --warmup_frac=0.1"),
        (SHORT, SHORT + "--lr_decay_iters=1000"),
        (SHORT, SHORT + "--n_kv_head=12"),
        (SHORT + "--seed=5", SHORT + "--seed=5 --init_seed=5 --data_seed=5"),
        (SHORT + "--init_seed=1337", SHORT + "--data_seed=1337"),
        (SHORT + "--beta2=0.5", SHORT + "--beta2_halflife_tokens=491520"),
        (SHORT + "--learning_rate=1 --min_lr=1", SHORT + "--learning_rate=1.0 --min_lr_frac=1"),
        (SHORT, SHORT + "--vocab_size=65"),
        (SHORT + "--parametrization.mode=muP", SHORT + "--parametrization.mode=MuP"),
        (SHORT, "--max_iters=1e3 --warmup_iters=1e2"),
        (SHORT, SHORT + "--dtype=auto --out_dir=elsewhere --compile=False --wandb_log=True"),
    ],
)
def test_equal_runs_typed_differently_have_one_identity(one, other):
    assert identity(typed(one), "d") == identity(typed(other), "d")


@pytest.mark.parametrize(
    ("key", "per_iter"),
    [
        ("max_tokens", lambda c: c.tokens_per_iter),
        ("max_flops", flops_per_iter),
        ("tokens_per_param", lambda c: c.tokens_per_iter / parameter_counts(c)["total"]),
    ],
)
def test_every_way_to_give_a_length_becomes_iterations(key, per_iter):
    config = tiny_config(**{key: 7 * per_iter(tiny_config())})
    assert config.max_iters == config.lr_decay_iters == 7
    assert getattr(config, key) is None


def test_a_length_of_less_than_one_update_is_one_and_zero_updates_stay_zero():
    assert tiny_config(max_tokens=1.0).max_iters == 1
    assert tiny_config(max_iters=0).max_iters == 0


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"max_iters": 0},
        {"tokens_per_param": 3.0, "warmup_frac": 0.1, "lr_schedule": "wsd"},
        {"beta2_halflife_tokens": 1e5, "n_kv_head": 2, "init_seed": 4},
        {"min_lr_frac": 1 / 3},
        {"max_flops": 1e9, "lr_decay_iters": 3, "seed": 9},
    ],
)
def test_resolving_twice_is_resolving_once(overrides):
    config = tiny_config(**overrides)
    assert resolve(config, config.vocab_size) == config
    assert resolve(from_flat(flatten(config)), 2) == config


def test_a_warmup_in_part_of_an_update_is_the_nearest_whole_one():
    assert typed("--max_iters=19 --warmup_frac=0.1").warmup_iters == 2
    assert typed("--max_iters=14 --warmup_frac=0.1").warmup_iters == 1


def test_seeds_follow_seed_unless_given_and_zero_is_given():
    config = tiny_config(seed=5, init_seed=0)
    assert (config.seed, config.init_seed, config.data_seed) == (5, 0, 5)


def test_a_vocabulary_below_the_datasets_is_refused_and_one_above_is_kept():
    config = build([Source("tiny", TINY | {"vocab_size": 64})])
    assert resolve(config, 60).vocab_size == 64
    with pytest.raises(UserError, match="vocab_size=64"):
        resolve(config, 65)


def test_canonical_json_refuses_what_is_no_number():
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"x": math.nan})
    assert canonical_json({"b": 1e-5, "a": 0.1}) == '{"a":0.1,"b":1e-05}'


def test_a_label_is_a_safe_file_name_and_a_function_of_the_config():
    config = tiny_config(dataset="../odd name/täxt: 1/", optimizer="muon", mode="muP")
    assert label(config) == "täxt__1-L2-d16-muon-muP"
    assert label(replace(config, out_dir="x")) == label(config)
    for dataset in ("..", "/", "", "." * 200, "a" * 200, "a\nb", "a\\b"):
        name = label(tiny_config(dataset=dataset))
        assert re.fullmatch(r"[\w.-]+", name)
        assert not name.startswith(".")
        assert len(name) < 80


# --- exclusive keys ----------------------------------------------------------------------------


@pytest.mark.parametrize("group", EXCLUSIVE)
def test_a_later_source_replaces_the_other_ways_to_say_a_quantity(group):
    for key in group:
        for other in set(group) - {key}:
            config = build(
                [
                    Source("tiny", TINY),
                    Source("a", {key: OTHER[key]}),
                    Source("b", {other: OTHER[other]}),
                ]
            )
            assert [k for k in group if getattr(config, k) is not None] == [other]


@pytest.mark.parametrize("group", EXCLUSIVE)
def test_two_ways_in_one_source_and_none_at_all_are_refused(group):
    one, other = group[:2]
    with pytest.raises(UserError, match=f"c.toml sets both {one} and {other}"):
        build([Source("c.toml", {one: OTHER[one], other: OTHER[other]})])
    with pytest.raises(UserError, match=f"exactly one of '{one}'"):
        build([Source("c.toml", dict.fromkeys(group))])


# --- refusals ----------------------------------------------------------------------------------


def bounded_fields() -> list[tuple[str, object]]:
    """Every key with a bound, with the values just outside."""
    outside = {
        "least": lambda b: b - 1,
        "above": lambda b: b,
        "most": lambda b: b + 1,
        "below": lambda b: b,
    }
    return [
        (name, step(getattr(key, bound)))
        for name, key in all_fields().items()
        for bound, step in outside.items()
        if getattr(key, bound) is not None
    ]


def test_most_keys_have_bounds():
    assert len(bounded_fields()) > 50


@pytest.mark.parametrize(("key", "value"), bounded_fields())
def test_a_value_outside_its_bounds_is_refused_by_name(key, value):
    with pytest.raises(UserError, match=rf"^test: {re.escape(key)}={value}(\.0)?: must be"):
        build([Source("test", {key: value})])
    with pytest.raises(UserError, match=f"{re.escape(key)}="):  # past the sources, too
        from_flat(flatten(ExperimentConfig()) | {key: value})


def test_choices_are_quoted():
    assert "'SP', 'muP' or 'CompleteP'" in refusal("--parametrization.mode=mupp")
    assert "'adamw' or 'muon'" in refusal("--optimizer=sgd")


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("--n_embd=100 --n_head=12", "n_head"),
        ("--n_embd=97 --n_head=2", "n_head"),
        ("--n_head=12 --n_kv_head=5", "n_kv_head"),
        ("--n_head=6 --n_kv_head=12", "n_kv_head"),
    ],
)
def test_the_remedy_for_an_impossible_shape_works(line, key):
    message = refusal(line)
    assert line.split()[0][2:] in message
    remedy = re.search(rf"try ({key}=\d+)", message)
    typed(f"{line} --{remedy[1]}")


def test_rope_needs_an_even_head_size():
    assert "n_head" in refusal("--n_embd=9 --n_head=3 --use_rope=True")
    typed("--n_embd=9 --n_head=3")


def test_a_head_multiplier_without_a_head_is_refused():
    assert "tie_embeddings=False" in refusal("--head_lr_mult=2")
    typed("--head_lr_mult=2 --tie_embeddings=False")


def test_a_floor_above_the_learning_rate_is_refused_and_the_remedy_works():
    message = refusal("--learning_rate=1e-5")
    assert "min_lr=6e-05" in message
    assert "learning_rate=1e-05" in message
    assert "min_lr_frac=0.1" in message
    assert typed("--learning_rate=1e-5 --min_lr_frac=0.1").min_lr == 1e-6
    for awkward in (0.1234567890123456789, 0.9999999999999999, 1 / 3):
        config = typed(f"--learning_rate={awkward} --min_lr_frac=1")
        assert config.min_lr == pytest.approx(awkward, rel=1e-14)


def test_kept_checkpoints_count_from_one():
    assert "[0, 5]" in refusal("--checkpoint_steps=[0,5]")


# --- warnings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--max_iters=1000 --lr_decay_iters=1001 --warmup_iters=10", ["unfinished"]),
        (
            "--max_iters=1000 --lr_decay_iters=2000 --lr_schedule=wsd --warmup_iters=0",
            ["unfinished"],
        ),
        ("--max_iters=1000 --warmup_iters=101", ["warmup takes 101 of 1000"]),
        ("--max_iters=20", ["warmup takes 2000 of 20"]),
        ("--max_iters=100 --lr_decay_iters=200 --warmup_frac=0.15", ["unfinished", "warmup"]),
        ("--max_iters=1000 --warmup_iters=100", []),
        ("--max_iters=1000 --lr_decay_iters=1000 --warmup_iters=0", []),
        ("--max_iters=1000 --lr_decay_iters=900 --warmup_iters=0", []),
        ("--max_iters=1000 --lr_decay_iters=2000 --warmup_iters=0 --lr_schedule=constant", []),
        ("--max_iters=20 --lr_decay_iters=40 --decay_lr=False", []),
        ("--max_iters=0", []),
        ("--max_iters=9 --warmup_iters=5", ["warmup takes 5 of 9"]),
        ("--max_iters=4 --warmup_iters=1", []),  # the least there is
        ("--max_iters=1000 --warmup_frac=0.05", []),
        (
            "--max_iters=0 --optimizer=muon --muon_rule=hyperball --muon_weight_decay=0.3",
            ["muon_weight_decay=0.3 does nothing under muon_rule=hyperball"],
        ),
        (
            "--max_iters=0 --optimizer=muon --muon_power=0.3",
            ["muon_power=0.3 does nothing under muon_rule=muon; it acts under 'power'"],
        ),
        ("--max_iters=0 --muon_power=0.3", []),  # as other keys of Muon under AdamW
        (
            "--max_iters=0 --parametrization.muon_width_power=-0.25",
            ["muon_width_power=-0.25 does nothing under SP"],
        ),
        ("--max_iters=15 --warmup_frac=0.1", []),  # 1.5 updates are 2
        ("--max_iters=15 --warmup_iters=3", ["warmup takes 3 of 15"]),
        ("", []),
    ],
)
def test_warnings_speak_when_they_should_and_not_otherwise(line, words):
    found = warnings(typed(line))
    assert len(found) == len(words)
    assert all(word in text for word, text in zip(words, found, strict=True))


# --- the record --------------------------------------------------------------------------------


def random_value(key: str, rng: random.Random) -> object:
    """A value of `key` within its bounds, as likely as not to be odd."""
    bounds, default = all_fields()[key], FROZEN_DEFAULTS[key]
    if bounds.choices:
        return rng.choice(bounds.choices)
    if isinstance(default, bool) or isinstance(OTHER[key], str):
        return rng.choice([default, OTHER[key]])
    if key == "val_sets":
        return rng.sample(["val", "wiki", "data/other"], rng.randint(0, 3))
    if isinstance(OTHER[key], list):
        return [rng.randint(1, 99) for _ in range(rng.randint(0, 3))]
    if isinstance(OTHER[key], int):
        return rng.randint(max(1, bounds.least or 0), min(20, bounds.most or 20))
    most = min(bounds.below or 1e3, bounds.most or 1e3)
    return rng.uniform(max(1e-6, bounds.least or 0), most)


@pytest.mark.slow
def test_any_config_survives_its_record():
    rng, survived = random.Random(0), 0
    for _ in range(600):
        keys = rng.sample(sorted(OTHER), rng.randint(0, 12))
        try:
            config = tiny_config(**{key: random_value(key, rng) for key in keys})
        except UserError:
            continue
        record = json.loads(canonical_json(config.to_dict()))
        again = config_from_dict(record)
        assert again == config
        assert vars(from_flat(flatten(config))) == vars(config)
        assert identity(again, "d") == identity(config, "d")
        survived += 1
    assert survived > 200


def test_a_record_of_a_newer_version_is_refused_and_of_an_older_one_completed():
    record = tiny_config().to_dict()
    with pytest.raises(UserError, match="new_knob"):
        config_from_dict(record | {"new_knob": 1})
    del record["z_loss"], record["parametrization"]["alpha"]
    assert config_from_dict(record) == tiny_config()
    assert tiny_config().parametrization == ParametrizationConfig()


@pytest.mark.parametrize(
    ("mode", "silent"),
    [
        ("SP", set()),
        ("muP", {"input_mult", "output_mult"}),
        ("CompleteP", {"input_mult", "output_mult", "alpha"}),
    ],
)
def test_a_multiplier_that_does_nothing_is_warned_about(mode, silent):
    config = tiny_config(mode=mode, alpha=0.5, input_mult=2.0, output_mult=2.0)
    told = {
        key
        for key in ("alpha", "input_mult", "output_mult")
        if any(f"parametrization.{key}=" in line for line in warnings(config))
    }
    assert told == {"alpha", "input_mult", "output_mult"} - silent
