"""Random architectures, under torch's operations and under kernels that were built anew."""

from __future__ import annotations

import math
import random
import subprocess
from pathlib import Path
from typing import Any

import torch
from tiny import tiny_config
from torch import Tensor

from nanoscale.model import kernels
from nanoscale.model.fused_ops import FusedOps
from nanoscale.model.fused_optim import AdamW, FusedMuon, clip_grad_norm
from nanoscale.model.gpt import GPT
from nanoscale.model.muon import Muon
from nanoscale.model.ops import Ops
from nanoscale.model.step_ops import StepOps

CLOSE = 1e-4  # of a gradient's norm
ROUNDING = 1e-6  # of all gradients' norm: what is left of one that cancels out

LLAMA = {"use_rmsnorm": True, "use_rope": True, "use_swiglu": True, "use_qk_norm": True}
MODELS = {  # widths, heads and lengths around and off the multiples of 16 that vectors like
    "gpt2": {"n_embd": 48, "n_head": 3, "block_size": 64},
    "gpt2 with biases": {"n_embd": 40, "n_head": 2, "block_size": 19, "bias": True},
    "llama": LLAMA | {"n_embd": 64, "n_head": 4, "n_kv_head": 2, "block_size": 33},
    "one head, long": {"n_embd": 24, "n_head": 1, "block_size": 150, "use_rope": True},
    "odd": LLAMA
    | {
        "n_embd": 36,
        "n_head": 6,
        "n_kv_head": 1,
        "block_size": 83,
        "z_loss": 0.01,
        "multiple_of": 1,
        "tie_embeddings": False,
    },
    "scaled": {
        "n_embd": 32,
        "n_head": 2,
        "block_size": 16,
        "use_swiglu": True,
        "parametrization.mode": "CompleteP",
        "parametrization.base_n_embd": 64,
        "parametrization.input_mult": 2.0,
    },
}


def built_with(
    folder: Path, *more: str, source: Path = kernels.SOURCE, compiler: str = "g++"
) -> Path:
    """The kernels compiled with more flags, which win over the usual ones."""
    path = folder / "kernels.so"
    command = [compiler, *kernels.FLAGS, *more, str(source), "-o", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return path


def drawn(dice: random.Random) -> dict[str, Any]:
    """A config's values: sizes around vectors' and strips' ends, any mix of features."""
    heads = dice.choice((1, 1, 2, 3, 4, 6))
    sizes = (2, 4, 6, 8, 10, 12, 16, 18, 24, 32, 34)
    if heads < 3:  # the two numbers that a LayerNorm gives at width 2 are signs, of no gradient
        sizes = sizes[2:]
    values = {
        "n_layer": dice.choice((1, 1, 2)),
        "n_head": heads,
        "n_kv_head": dice.choice([n for n in range(1, heads + 1) if heads % n == 0]),
        "n_embd": heads * dice.choice(sizes),
        "block_size": dice.choice((1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 70)),
        "vocab_size": dice.choice((2, 5, 16, 21, 33, 64, 65, 100)),
        "batch_size": dice.randint(1, 5),
        "multiple_of": dice.choice((1, 4, 32)),
        "dropout": dice.choice((0.0, 0.0, 0.2)),
        "z_loss": dice.choice((0.0, 0.0, 0.01)),
        "mode": dice.choice(("SP", "muP", "CompleteP")),
        "input_mult": 2.0,
        "base_n_embd": 32,
    }
    switches = ("bias", "tie_embeddings", "use_rmsnorm", "use_rope", "use_swiglu", "use_qk_norm")
    return values | {name: dice.random() < 0.5 for name in switches}


class Case:
    """A model off its initial weights, and a batch."""

    def __init__(self, seed: int) -> None:
        self.values = drawn(random.Random(seed))
        self.config = tiny_config(**self.values)
        self.model = GPT(self.config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in self.model.parameters():
                p += 0.1 * torch.randn(p.shape, generator=generator)
        shape = (2, self.config.batch_size, self.config.block_size)
        self.idx, self.targets = torch.randint(
            self.config.vocab_size, shape, generator=generator
        ).unbind()
        self.masks = torch.randint(2**32, shape[1:2], generator=generator)

    def under(self, ops: Ops, narrow: bool = False) -> dict[str, Tensor]:
        """The loss and all gradients, and the losses of an evaluation."""
        model = GPT(self.config, ops)
        model.load_state_dict(self.model.state_dict())
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow):
            _, loss = model(self.idx, self.targets, masks=self.masks)
            loss.backward()
            with torch.no_grad():
                _, losses = model.eval()(self.idx, self.targets, by_token=True)
        found = {"loss": loss.detach(), "losses": losses}
        found |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return found


def differences(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """Of each tensor, how far it is off, where 1 is as far as it may be."""
    gradients = [exact[name] for name in exact if not name.startswith("loss")]
    rounding = ROUNDING * float(torch.cat([g.flatten() for g in gradients]).norm())
    return {
        name: float((found[name] - exact[name]).norm() / (CLOSE * exact[name].norm() + rounding))
        for name in exact
    }


def compare(seed: int) -> None:
    """Fused operations and whole steps against torch's operations."""
    case = Case(seed)
    exact = case.under(Ops())
    for ops in (FusedOps(), StepOps()):
        found = case.under(ops)
        assert found.keys() == exact.keys()
        worst = max(differences(found, exact).items(), key=lambda item: item[1])
        assert worst[1] < 1, (seed, type(ops).__name__, worst, case.values)


def compare_narrow(seeds: range) -> None:
    """In bfloat16: by the geometric mean over cases as near to float32 as torch's operations."""
    ratios: dict[str, float] = {"FusedOps": 0.0, "StepOps": 0.0}
    for seed in seeds:
        case = Case(seed)
        exact = case.under(Ops())
        torchs = distance(case.under(Ops(), narrow=True), exact)
        for name, ops in (("FusedOps", FusedOps()), ("StepOps", StepOps())):
            ours = distance(case.under(ops, narrow=True), exact)
            ratios[name] += math.log(ours / torchs) / len(seeds)
    assert max(ratios.values()) < math.log(1.2), ratios


def distance(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """How far all tensors together are off."""
    return math.sqrt(sum(float((found[name] - exact[name]).norm()) ** 2 for name in exact))


def compare_updates(seed: int) -> None:
    """A few clipped updates of AdamW and of Muon against torch's operations."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(65, 31), (7, 7), (3, 100), (16, 48)]
    start = [torch.randn(shape, generator=generator) for shape in shapes]
    noise = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(4)]
    pairs = (AdamW, torch.optim.AdamW), (FusedMuon, Muon)
    clips = clip_grad_norm, torch.nn.utils.clip_grad_norm_
    for pair in pairs:
        ended = []
        for make, clip in zip(pair, clips, strict=True):
            parameters = [torch.nn.Parameter(p.clone()) for p in start]
            optimizer = make([{"params": parameters, "lr": 0.01, "weight_decay": 0.1}])
            for gradients in noise:
                for p, g in zip(parameters, gradients, strict=True):
                    p.grad = g.clone()
                clip(parameters, 1.0)
                optimizer.step()
            ended.append([p.data for p in parameters])
        torch.testing.assert_close(*ended, rtol=1e-4, atol=1e-5)
