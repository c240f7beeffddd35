"""Every rule of Muon against its formula in float64, by singular value decomposition."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from tiny import tiny_config
from torch import Tensor

from nanoscale.model import kernels
from nanoscale.model.adamh import AdamH
from nanoscale.model.directions import polar, power
from nanoscale.model.fused_optim import FusedMuon
from nanoscale.model.gpt import GPT
from nanoscale.model.muon import Muon
from nanoscale.model.optim import Optimizers
from nanoscale.spec.muon_rules import MUON_RULES
from nanoscale.spec.parametrization import rules_of, shape_factor

SHAPES = [(24, 24), (40, 16), (16, 40)]
SETTINGS = {"lr": 0.05, "weight_decay": 0.3, "momentum": 0.8, "power": 0.25, "clip": 0.7}


def gradient(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- the formulas -------------------------------------------------------------------------------


def of_values(G: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    U, S, Vh = torch.linalg.svd(G, full_matrices=False)
    return U @ torch.diag(f(S)) @ Vh


def five_steps(G: Tensor) -> Tensor:
    """Jordan's quintic on each singular value."""

    def f(S: Tensor) -> Tensor:
        S = S / S.norm()
        for _ in range(5):
            S = 3.4445 * S - 4.7750 * S**3 + 2.0315 * S**5
        return S

    return of_values(G, f)


def sign(G: Tensor) -> Tensor:
    return of_values(G, torch.ones_like)


def rms(S: Tensor) -> Tensor:
    return S.square().mean().sqrt()


DIRECTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "muon": five_steps,
    "polar": sign,
    "power": lambda u: of_values(u, lambda S: (S / S.max()) ** 0.25),
    "row_norm": lambda u: five_steps(u / u.norm(dim=1, keepdim=True)),
    "clip": lambda u: of_values(u, lambda S: (S / (0.7 * rms(S))).clamp(max=1)),
    "variance": five_steps,  # of what `oracle` makes of it
}


def on_the_sphere(W: Tensor, u: Tensor) -> Tensor:
    """The spectral sphere's step, its multiplier to the last digit."""
    R = math.sqrt(W.size(0) / W.size(1))
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    T = torch.outer(U[:, 0], Vh[0])
    u = u / u.norm()
    low, high = -2.0, 2.0
    for _ in range(60):
        middle = (low + high) / 2
        if (T * sign(u + middle * T)).sum() > 0:
            high = middle
        else:
            low = middle
    return W * (R / S[0]) - 0.05 * R * sign(u + low * T)


def oracle(rule: str, W: Tensor, gradients: list[Tensor]) -> Tensor:
    """W after an update by each gradient, in float64."""
    m = v = torch.zeros_like(W)
    for step, g in enumerate(gradients, 1):
        v = 0.8 * (v + 0.2 * (m - g) ** 2)
        m = 0.8 * m + 0.2 * g
        u = 0.2 * g + 0.8 * m
        if rule == "hyperball":
            o = five_steps(u)
            moved = W - 0.05 * W.norm() * o / o.norm()
            W = moved * W.norm() / moved.norm()
            continue
        if rule == "sphere":
            W = on_the_sphere(W, u)
            continue
        if rule == "variance":
            since = 1 - 0.8**step
            n = g + 0.8 / 0.2 * m / since
            u = n / ((n**2 + 10 * v / since).sqrt() + 1e-8)
        factor = shape_factor("spectral", *W.shape)
        W = (1 - 0.05 * 0.3) * W - 0.05 * factor * DIRECTIONS[rule](u)
    return W


# -- the updates --------------------------------------------------------------------------------


def updated(kind: type[Muon], rule: str, W: Tensor, gradients: list[Tensor]) -> Tensor:
    p = torch.nn.Parameter(W.clone())
    optimizer = kind([p], rule=rule, **SETTINGS)
    for g in gradients:
        p.grad = g.clone()
        optimizer.step()
    return p.detach()


def kinds() -> Iterator[tuple[type[Muon], str]]:
    for rule in MUON_RULES:
        yield Muon, rule
    for rule in FusedMuon.RULES:
        yield FusedMuon, rule


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("kind", "rule"), list(kinds()), ids=lambda x: getattr(x, "__name__", x))
def test_three_updates_are_the_formula_in_float64(kind, rule, shape):
    if kind is FusedMuon and kernels.library() is None:
        pytest.skip("no compiler here")
    W, gradients = gradient(*shape), [gradient(*shape, seed=s) for s in (1, 2, 3)]
    found = updated(kind, rule, W, gradients).double()
    expected = oracle(rule, W.double(), [g.double() for g in gradients])
    assert float((found - expected).norm() / (expected - W).norm()) < 1e-4


@pytest.mark.parametrize("rule", MUON_RULES)
def test_a_gradients_scale_does_not_matter_and_zero_moves_nothing(rule):
    W, gradients = gradient(12, 20), [gradient(12, 20, seed=s) for s in (1, 2)]
    once = updated(Muon, rule, W, gradients)
    for scale in (1e-4, 1e4):
        again = updated(Muon, rule, W, [scale * g for g in gradients])
        assert float((again - once).norm() / (once - W).norm()) < 1e-3
    still = updated(Muon, rule, W, [torch.zeros_like(W)])
    assert still.isfinite().all()
    if rule not in ("sphere",):  # which goes to its sphere first
        shrunk = 1 if MUON_RULES[rule].of_weights else 1 - 0.05 * 0.3
        torch.testing.assert_close(still, shrunk * W)


@pytest.mark.parametrize("smallest", [1e-1, 1e-3])
def test_powers_hold_where_singular_values_span_decades(smallest):
    U, _, Vh = torch.linalg.svd(gradient(32, 48).double(), full_matrices=False)
    S = torch.logspace(0, math.log10(smallest), 32, dtype=torch.float64)
    G = (U @ torch.diag(S) @ Vh).float()
    for p in (0.25, 0.5, 1.0):
        expected = U @ torch.diag(S**p) @ Vh
        assert float((power(G, p).double() - expected).norm() / expected.norm()) < 1e-4
    assert float((polar(G).double() - U @ Vh).norm() / (U @ Vh).norm()) < 1e-3


def test_a_hyperball_keeps_every_norm_and_moves_by_its_rate():
    W = gradient(16, 24)
    moved = updated(Muon, "hyperball", W, [gradient(16, 24, seed=s) for s in range(1, 9)])
    assert float(moved.norm() / W.norm()) == pytest.approx(1, abs=1e-6)
    once = updated(Muon, "hyperball", W, [gradient(16, 24, seed=1)])
    assert float((once - W).norm() / W.norm()) == pytest.approx(0.05, rel=0.1)


def test_adamh_is_adams_direction_on_the_sphere():
    W, gradients = gradient(10, 6).double(), [gradient(10, 6, seed=s).double() for s in (1, 2, 3)]
    p, q = (torch.nn.Parameter(W.clone()) for _ in range(2))
    ours = AdamH([{"params": [p], "lr": 0.03, "eps": 1e-8}], betas=(0.9, 0.95))
    adam = torch.optim.Adam([q], lr=1.0, eps=1e-8, betas=(0.9, 0.95))
    for g in gradients:
        p.grad, q.grad = g.clone(), g.clone()
        before, held = q.detach().clone(), p.detach().clone()
        ours.step()
        adam.step()
        a = before - q.detach()
        moved = held - 0.03 * held.norm() * a / a.norm()
        expected = moved * held.norm() / moved.norm()
        torch.testing.assert_close(p.detach(), expected, rtol=1e-6, atol=1e-8)
    assert float(p.detach().norm() / W.norm()) == pytest.approx(1, abs=1e-9)


def test_beside_a_hyperball_an_untied_head_goes_by_adamh_and_nothing_decays():
    config = tiny_config(optimizer="muon", muon_rule="hyperball", tie_embeddings=False)
    found = {t.name: rules_of(config).rule(t) for t in rules_of(config).tensors}
    assert found["lm_head.weight"].optimizer == "adamh"
    assert found["transformer.wte.weight"].optimizer == "adamw"
    kept = [r for r in found.values() if r.optimizer in ("muon", "adamh")]
    assert {r.weight_decay for r in kept} == {0.0}
    assert found["transformer.wte.weight"].weight_decay > 0
    assert isinstance(Optimizers(GPT(config), rules_of(config)).parts[-1], AdamH)
    tied = tiny_config(optimizer="muon", muon_rule="hyperball")
    assert "adamh" not in {rules_of(tied).rule(t).optimizer for t in rules_of(tied).tensors}
