"""Several ranks equal one: sharded parameters (FSDP2), Muon dealt out, checkpoints across both."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import PATIENCE, ROOT, TINY, run_python, spec_maker, tiny_config

from nanoscale.errors import UserError
from nanoscale.model.distributed import Ranks, full, held_as, place, session
from nanoscale.model.gpt import GPT
from nanoscale.model.optim import Optimizers
from nanoscale.spec.config import ResolvedConfig
from nanoscale.spec.identity import RunSpec
from nanoscale.spec.muon_rules import MUON_RULES
from nanoscale.store.folder import RunFolder
from nanoscale.store.resume import open_folder
from nanoscale.training import checkpoint, recorder
from nanoscale.training.hardware import pick_device
from nanoscale.training.numerics import decide
from nanoscale.training.run import fill, train_folder, train_ranks

# Odd in every way: uneven micro-batches, sizes that no number of ranks divides, statistics, and
# evaluation windows that leave a rank without any. adam_eps is far above the rounding errors of
# gradients that are zero (a bias of keys).
BASE = {k: v for k, v in TINY.items() if k != "vocab_size"} | {
    "dataset": "tiny",
    "learning_rate": 1e-2,
    "threads": 1,
    "dtype": "float32",
    "kernels": "torch",
    "optimizer": "muon",
    "batch_size": 3,
    "gradient_accumulation_steps": 2,
    "micro_batch_size": 2,
    "use_swiglu": True,
    "bias": True,
    "lr_schedule": "constant",
    "eval_iters": 1,
    "stats_interval": 5,
    "final_eval_tokens": 40,
    "adam_eps": 1e-6,
}


@pytest.fixture
def spec_of(data_root: Path) -> Callable[..., RunSpec]:
    return spec_maker(BASE, data_root)


def forked(work: Callable[[], object], **environment: object) -> int:
    """Start `work` in a child and return its pid; it exits 0 if nothing is raised."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            sys.stdout = open(os.devnull, "w")
            os.environ.update({k: str(v) for k, v in environment.items()})
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def over_ranks(world: int, work: Callable[[], object]) -> None:
    """`work` in as many children as torchrun would start; each must end well and in time."""
    importlib.import_module("torch.distributed.fsdp")  # here once, not in every child
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    left = {
        forked(
            work,
            RANK=rank,
            LOCAL_RANK=rank,
            WORLD_SIZE=world,
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        for rank in range(world)
    }
    failed, end = False, time.monotonic() + PATIENCE
    while left:
        failed |= time.monotonic() > end
        for pid in sorted(left):
            if failed:
                os.kill(pid, signal.SIGKILL)
            done, status = os.waitpid(pid, 0 if failed else os.WNOHANG)
            if done:
                left.remove(pid)
                failed |= status != 0
        time.sleep(0.01)
    assert not failed


def trained(spec: RunSpec, path: Path, world: int = 1) -> RunFolder:
    """The run's folder after it went on to its end over `world` ranks."""
    resume = path.exists()
    if world == 1:
        assert train_folder(open_folder(path, spec, resume), spec).status == "COMPLETE"
    else:
        over_ranks(world, lambda: train_ranks(spec, path, resume))
    folder = RunFolder(path)
    assert folder.state() == "COMPLETE"
    return folder


def numbers(folder: RunFolder) -> dict[tuple[int, str], float]:
    """(step, name) -> every number of the rows that ranks must agree on."""
    found: dict[tuple[int, str], float] = {}
    for row in folder.rows():
        values = {k: row[k] for k in ("train_loss", "val_loss", "grad_norm") if row[k] is not None}
        for kind in ("grad_rms", "weight_rms", "update_rms"):
            roles = row.get("statistics", {}).get(kind, {})
            values |= {f"{kind}/{role}": value for role, value in roles.items()}
        found |= {(row["step"], name): value for name, value in values.items()}
    return found


def assert_same_run(one: RunFolder, other: RunFolder) -> None:
    """Equal to rounding: rows, final losses, and the files' tensors, all of them whole."""
    a, b = numbers(one), numbers(other)
    assert a == pytest.approx(b, rel=1e-5, abs=1e-7)
    assert any("update_rms" in key for _, key in a)
    np.testing.assert_allclose(np.load(one / "windows.npy"), np.load(other / "windows.npy"), 1e-5)
    for file in ("ckpt.pt", "best.pt"):
        a, b = checkpoint.load(one / file), checkpoint.load(other / file)
        assert a["step"] == b["step"]
        assert_same_tensors(a["model"], b["model"])
        assert_same_tensors(a.get("optimizer", {}), b.get("optimizer", {}))


def assert_same_tensors(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key, value in a.items():
            assert_same_tensors(value, b[key])
    else:
        assert type(a) is type(b) is torch.Tensor
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5)


# --- runs --------------------------------------------------------------------------------------


@pytest.mark.soak
def test_a_sharded_run_equals_one_process(spec_of, tmp_path):
    """As a user starts it: losses, norms, statistics, evaluations and both files."""
    spec = spec_of()
    one = trained(spec, tmp_path / "one")
    flags = BASE | {
        "data_root": spec.config.data_root,
        "out_dir": tmp_path / "two",
        "sharding": "fsdp",
        "kernels": "auto",
    }
    done = run_python(
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(ROOT / "train.py"),
        *(f"--{k}={v}" for k, v in flags.items()),
    )
    assert done.returncode == 0, done.stderr
    assert "torch kernels, fsdp over 2 processes" in done.stdout
    two = RunFolder(tmp_path / "two")
    assert two.spec().id == spec.id
    assert two.metrics()["numerics"]["sharding"] == "fsdp"
    assert "sharding" not in one.metrics()["numerics"]
    assert_same_run(one, two)


@pytest.mark.soak
def test_a_run_goes_on_over_other_ranks_as_its_twin(spec_of, tmp_path):
    """Sharded, alone, DDP, sharded over more: each continues the one before it."""
    twin = trained(spec_of(max_iters=20, dropout=0.1), tmp_path / "twin")
    for iters, world, sharding in (
        (5, 2, "fsdp"),
        (10, 1, "fsdp"),
        (15, 2, "ddp"),
        (20, 3, "fsdp"),
    ):
        run = trained(
            spec_of(max_iters=iters, sharding=sharding, dropout=0.1), tmp_path / "run", world
        )
    assert_same_run(twin, run)


@pytest.mark.soak
def test_the_masters_clock_alone_makes_a_checkpoint_late(spec_of, tmp_path):
    """Saving is collective: ranks that went by their own clocks would wait for each other."""
    cases = []  # what the others' clocks show, and the steps that are saved
    for longest, shown, expected in ((1e-9, 0.0, [1, 2, 3]), (1e9, 1e18, [3])):
        spec = spec_of(sharding="fsdp", eval_interval=0, checkpoint_seconds=longest, max_iters=3)
        cases.append((open_folder(tmp_path / str(shown), spec, False), shown, expected))
    original = recorder.save

    def work() -> None:
        with session(spec.config, pick_device) as ranks:
            for folder, shown, expected in cases:
                saved: list[int] = []
                recorder.save = lambda run, *rest, saved=saved: (
                    saved.append(run.step),
                    original(run, *rest),
                )
                if not ranks.is_master:
                    recorder.time = SimpleNamespace(perf_counter=lambda shown=shown: shown)
                fill(folder, ranks)
                assert saved == expected

    over_ranks(2, work)


# --- Muon --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_muon_dealt_out_is_muon_under_every_rule(sharding):
    """Bit for bit, from the same gradients; three ranks divide neither rows nor matrices."""
    base = {"optimizer": "muon", "sharding": sharding, "n_layer": 5}
    configs = [tiny_config(**base, muon_rule=rule) for rule in MUON_RULES]
    config = configs[0]

    def updated(config: ResolvedConfig, ranks: Any = None) -> dict[str, torch.Tensor]:
        model = GPT(config)
        if ranks:
            place(model, model.transformer.h, ranks, torch.device("cpu"))
        optimizers = Optimizers(model, model.rules, ranks)
        for step in range(3):
            for p in model.parameters():
                g = torch.sin(step + torch.arange(p.numel()).view(p.shape))
                p.grad = held_as(g, p)
            optimizers.parts[1].step()
        return {name: full(p.detach()) for name, p in model.named_parameters()}

    alone = [updated(config) for config in configs]

    def work() -> None:
        with session(config, pick_device) as ranks:
            assert ranks.sharded == (sharding == "fsdp")
            for made, expected in zip(configs, alone, strict=True):
                for name, value in updated(made, ranks).items():
                    assert torch.equal(value, expected[name]), (made.muon_rule, name)

    over_ranks(3, work)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_adamh_over_ranks_is_adamh(sharding):
    """To the rounding of a norm that is added up by rank."""
    config = tiny_config(
        optimizer="muon", muon_rule="hyperball", tie_embeddings=False, sharding=sharding
    )

    def head(ranks: Any = None) -> torch.Tensor:
        model = GPT(config)
        if ranks:
            place(model, model.transformer.h, ranks, torch.device("cpu"))
        optimizers = Optimizers(model, model.rules, ranks)
        p = model.lm_head.weight
        for step in range(3):
            p.grad = held_as(torch.sin(step + torch.arange(p.numel()).view(p.shape)), p)
            optimizers.owner[p].step()
        return full(p.detach())

    alone = head()

    def work() -> None:
        with session(config, pick_device) as ranks:
            torch.testing.assert_close(head(ranks), alone, rtol=1e-6, atol=1e-8)

    over_ranks(3, work)


# --- decisions ---------------------------------------------------------------------------------


def test_a_sharded_run_does_without_kernels():
    cpu = torch.device("cpu")
    ranks = Ranks(world=2, sharded=True)
    began = replace(decide(tiny_config(), cpu), kernels="fused")
    assert decide(tiny_config(), cpu, began, ranks=ranks).kernels == "torch"
    with pytest.raises(UserError, match="sharding=fsdp"):
        decide(tiny_config(kernels="fused"), cpu, ranks=ranks)
