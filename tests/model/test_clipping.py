"""What clipping leaves alone, what groups keep apart, and whose compiled code is loaded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tiny import tiny_config

from nanoscale.model import kernels, muon
from nanoscale.model.gpt import GPT
from nanoscale.model.optim import Optimizers


@pytest.mark.parametrize("in_kernel", [False, True])
@pytest.mark.parametrize("grad_clip", [0.0, 1e3])
def test_gradients_below_the_limit_are_left_alone(in_kernel, grad_clip):
    """Without a limit, 0, all of them are."""
    if in_kernel and kernels.library() is None:
        pytest.skip("no kernels here")
    model = GPT(tiny_config())
    optimizers = Optimizers(model, model.rules, in_kernel=in_kernel)
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.25)
    seen = []
    for part in optimizers.parts:
        part.step = lambda: seen.extend(p.grad.clone() for p in model.parameters())
    optimizers.step(torch.amp.GradScaler("cpu", enabled=False), grad_clip)
    assert seen
    assert all((g == 0.25).all() for g in seen)


def test_tensors_of_two_roles_are_never_in_one_group():
    model = GPT(tiny_config())
    roles = {tensor.name: tensor.role for tensor in model.rules.tensors}
    groups = Optimizers(model, model.rules).groups
    assert {group["role"] for group in groups} == set(roles.values())
    assert all({roles[n] for n in group["names"]} == {group["role"]} for group in groups)


def test_muons_products_have_the_type_that_was_asked_for(monkeypatch):
    types = []
    real = muon.orthogonalize
    monkeypatch.setattr(muon, "orthogonalize", lambda G, n, t: types.append(t) or real(G, n, t))
    model = GPT(tiny_config(optimizer="muon"))
    optimizers = Optimizers(model, model.rules, muon_dtype=torch.bfloat16)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizers.step(torch.amp.GradScaler("cpu", enabled=False), 1.0)
    assert set(types) == {torch.bfloat16}


def test_compiled_code_of_another_user_is_not_ours(tmp_path, monkeypatch):
    path = tmp_path / "kernels.so"
    assert not kernels.ours(path)
    path.touch()
    assert kernels.ours(path)
    monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    assert not kernels.ours(path)


def test_another_cpu_or_source_has_compiled_code_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "ours", lambda path: True)  # nothing is compiled
    monkeypatch.setattr(kernels, "cache_folders", lambda: [tmp_path])
    first = kernels.built()
    if first is None:
        pytest.skip("no compiler here")
    monkeypatch.setattr(kernels, "cpu_flags", lambda: "flags: another")
    second = kernels.built()
    source = tmp_path / "other.cpp"
    source.write_text("another")
    monkeypatch.setattr(kernels, "SOURCE", Path(source))
    assert len({first, second, kernels.built()}) == 3
