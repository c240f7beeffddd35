"""What the tests share: a tiny data set, tiny resolved configs, commands run as users do."""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.mark import ParameterSet

from nanoscale.data.dataset import open_dataset
from nanoscale.spec.config import ParametrizationConfig, ResolvedConfig
from nanoscale.spec.identity import RunSpec
from nanoscale.spec.resolve import resolve
from nanoscale.spec.sources import Source, build
from nanoscale.store.folder import run_spec

if TYPE_CHECKING:
    from capture import Runner

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "nanoscale"


def identity(config: ResolvedConfig, data: str, parent: str | None = None) -> str:
    """What a run is called."""
    return RunSpec(config, {}, "data", data, parent).id


TEXT = "the cat sat on the mat, the dog sat on the log.\n"
VOCAB = 11  # of tiny configs; the tiny data set has its own

TINY = {
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 16,
    "block_size": 8,
    "vocab_size": VOCAB,
    "batch_size": 2,
    "gradient_accumulation_steps": 1,
    "max_iters": 10,
    "warmup_iters": 0,
    "min_lr_frac": 0.1,
    "eval_interval": 5,
    "eval_iters": 2,
    "device": "cpu",
    "compile": False,
}

# What a run of a tiny model needs beside TINY: the tiny data set has its own vocabulary.
RUN = {k: v for k, v in TINY.items() if k != "vocab_size"} | {
    "dataset": "tiny",
    "final_eval_tokens": 160,
    "learning_rate": 1e-2,
    "threads": 1,
    "dtype": "float32",
}

# A valid value of every key, other than a tiny config's.
OTHER = {
    "dataset": "elsewhere",
    "data_root": "there",
    "val_sets": ["other"],
    "data_order": "epoch",
    "gradient_accumulation_steps": 2,
    "batch_size": 3,
    "block_size": 9,
    "seed": 1,
    "init_seed": 1,
    "data_seed": 1,
    "n_layer": 3,
    "n_head": 2,
    "n_kv_head": 1,
    "n_embd": 24,
    "vocab_size": 12,
    "dropout": 0.1,
    "bias": True,
    "use_rmsnorm": True,
    "use_rope": True,
    "use_swiglu": True,
    "multiple_of": 5,
    "use_qk_norm": True,
    "tie_embeddings": False,
    "rope_theta": 500.0,
    "norm_eps": 1e-6,
    "init_std": 0.03,
    "z_loss": 1e-4,
    "parametrization.mode": "muP",
    "parametrization.base_n_embd": 128,
    "parametrization.base_n_layer": 2,
    "parametrization.base_head_dim": 32,
    "parametrization.alpha": 0.5,
    "parametrization.input_mult": 2.0,
    "parametrization.output_mult": 2.0,
    "parametrization.wd_rule": "sqrt",
    "parametrization.rules": str(ROOT / "docs" / "howto" / "my_rules.py"),
    "parametrization.rules_digest": "0" * 16,
    "parametrization.wd_timescale": "fraction_of_run",
    "parametrization.base_batch_tokens": 20,
    "parametrization.base_tokens": 150,
    "optimizer": "muon",
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "beta1": 0.8,
    "beta2": 0.9,
    "beta2_halflife_tokens": 1e4,
    "adam_eps": 1e-8,
    "embedding_lr_mult": 2.0,
    "head_lr_mult": 2.0,
    "muon_lr": 0.01,
    "muon_weight_decay": 0.0,
    "muon_momentum": 0.9,
    "muon_ns_steps": 6,
    "muon_scale": "original",
    "muon_rule": "row_norm",
    "muon_power": 0.25,
    "muon_clip": 0.5,
    "muon_momentum_halflife_tokens": 100.0,
    "parametrization.muon_width_power": -0.25,
    "grad_clip": 0.0,
    "lr_schedule": "linear",
    "decay_lr": False,
    "warmup_iters": 1,
    "warmup_frac": 0.5,
    "lr_decay_iters": 9,
    "min_lr": 1e-6,
    "min_lr_frac": 0.2,
    "cooldown_frac": 0.5,
    "cooldown_shape": "1-sqrt",
    "max_iters": 11,
    "max_tokens": 1600.0,
    "max_flops": 1e9,
    "tokens_per_param": 1.0,
    "eval_interval": 6,
    "eval_iters": 3,
    "final_eval_tokens": 999,
    "stats_interval": 1,
    "eval_only": True,
    "out_dir": "x",
    "init_from": "resume",
    "branch_from": "x",
    "log_interval": 2,
    "always_save_checkpoint": False,
    "checkpoint_seconds": 1.0,
    "checkpoint_steps": [5],
    "keep": "none",
    "tensorboard_log": True,
    "wandb_log": True,
    "wandb_project": "x",
    "wandb_run_name": "x",
    "trackio_log": True,
    "trackers": "x",
    "profile": True,
    "device": "cuda",
    "dtype": "bfloat16",
    "compile": True,
    "cuda_graphs": True,
    "kernels": "torch",
    "micro_batch_size": 1,
    "recompute": True,
    "loss_chunk": 3,
    "threads": 1,
    "backend": "gloo",
    "sharding": "fsdp",
}

# Every flag that changes which tensors a model has, as (off, on).
MODEL_FLAGS = {
    "bias": (False, True),
    "use_rmsnorm": (False, True),
    "use_rope": (False, True),
    "use_swiglu": (False, True),
    "n_kv_head": (None, 2),
    "use_qk_norm": (False, True),
    "tie_embeddings": (True, False),
}


def flag_combinations() -> list[ParameterSet]:
    """All 128 combinations of the model's flags; a tiny config has 4 heads.

    `make test` takes the 16 of them in which any three flags meet in each of their 8 ways (words of
    a linear code, every column of which has odd weight); the others wait for `make soak`.
    """
    combinations = []
    for which in itertools.product((0, 1), repeat=len(MODEL_FLAGS)):
        a, b, c, d, *rest = which
        sampled = rest == [a ^ b ^ c, a ^ b ^ d, a ^ c ^ d]
        flags = {key: MODEL_FLAGS[key][k] for key, k in zip(MODEL_FLAGS, which, strict=True)}
        combinations.append(pytest.param(flags, marks=() if sampled else pytest.mark.soak))
    return combinations


def tiny_config(**overrides: Any) -> ResolvedConfig:
    """A resolved config of a model of a few thousand parameters; `mode` and the like are nested."""
    nested = {f.name for f in fields(ParametrizationConfig)}
    named = {f"parametrization.{k}" if k in nested else k: v for k, v in overrides.items()}
    config = build([Source("tiny", TINY), Source("test", named)])
    return resolve(config, config.vocab_size or VOCAB)


BESIDE = {  # key -> what makes it act
    "muon_lr": {"optimizer": "muon"},
    "muon_weight_decay": {"optimizer": "muon"},
    "muon_momentum": {"optimizer": "muon"},
    "muon_ns_steps": {"optimizer": "muon"},
    "muon_scale": {"optimizer": "muon"},
    "muon_rule": {"optimizer": "muon"},
    "muon_power": {"optimizer": "muon", "muon_rule": "power"},
    "muon_clip": {"optimizer": "muon", "muon_rule": "clip"},
    "muon_momentum_halflife_tokens": {"optimizer": "muon"},
    "parametrization.muon_width_power": {"optimizer": "muon", "mode": "muP"},
    "rope_theta": {"use_rope": True},
    "multiple_of": {"use_swiglu": True},
    "cooldown_frac": {"lr_schedule": "wsd"},
    "cooldown_shape": {"lr_schedule": "wsd"},
    "parametrization.base_n_embd": {"mode": "muP"},
    "parametrization.base_n_layer": {"mode": "muP"},
    "parametrization.base_head_dim": {"mode": "muP"},
    "parametrization.input_mult": {"mode": "muP"},
    "parametrization.output_mult": {"mode": "muP"},
    "parametrization.wd_rule": {"mode": "muP"},
    "parametrization.alpha": {"mode": "CompleteP"},
}


def pair(key: str, **overrides: Any) -> tuple[ResolvedConfig, ResolvedConfig]:
    """Two tiny configs that differ in `key`: as TINY or the default has it, and as OTHER has it."""
    overrides = {k: v for k, v in overrides.items() if k != key}
    if key == "head_lr_mult":
        overrides["tie_embeddings"] = False
    if key == "parametrization.rules_digest":
        overrides["rules"] = OTHER["parametrization.rules"]
    return tiny_config(**overrides), tiny_config(**overrides | {key: OTHER[key]})


def tiny_spec(data: str = "d" * 64, **overrides: Any) -> RunSpec:
    """The spec of a tiny config on a data set that is only a fingerprint."""
    return RunSpec(tiny_config(**overrides), {}, "tiny", data)


def spec_maker(base: Mapping[str, Any], data_root: Path) -> Callable[..., RunSpec]:
    """A function from overrides of `base` to the spec of a run on the data below `data_root`."""

    def make(**overrides: Any) -> RunSpec:
        sources = [Source("base", {**base, "data_root": str(data_root)}), Source("test", overrides)]
        config = build(sources)
        data = open_dataset(config.dataset, config.data_root, config.val_sets)
        return run_spec(resolve(config, data.vocab_size), data, overrides)

    return make


# Seconds until a command counts as hanging: a machine may have other things to do.
PATIENCE = 300


def run_python(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS`, with the package importable from anywhere and one thread."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=PATIENCE,
    )


@functools.cache
def warm_process() -> Runner:
    """One process that has torch loaded, whose forks are `nanoscale`: an import takes seconds."""
    from capture import Runner  # of tests/golden, which scripts of the tests do not have

    runner = Runner(ROOT).__enter__()
    atexit.register(runner.__exit__)
    return runner


def run_nanoscale(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`python -m nanoscale ARGUMENTS`, in a process of its own."""
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    code, out, err = warm_process()(arguments, cwd or Path.cwd(), variables)
    return subprocess.CompletedProcess(arguments, code, out, err)


def flags(values: Mapping[str, Any]) -> list[str]:
    """`--key=value` of each, as a user types them."""
    return [f"--{k}={v}" for k, v in values.items()]
