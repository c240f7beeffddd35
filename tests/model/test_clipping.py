"""What clipping leaves alone, what groups keep apart, and whose compiled code is loaded."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_config

from nanoscale.model import directions, kernels
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
    real = directions.orthogonalize
    monkeypatch.setattr(
        directions, "orthogonalize", lambda G, n, t: types.append(t) or real(G, n, t)
    )
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


def test_another_users_folder_is_no_place_to_compile_into(tmp_path, monkeypatch):
    command = [sys.executable, "-c", "import sys; open(sys.argv[2], 'w').close()"]
    path = tmp_path / "kernels.so"
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    assert not kernels.compile_to(path, command)
    assert not path.exists()
    monkeypatch.setattr(os, "getuid", lambda: owner)
    assert kernels.compile_to(path, command)
    assert kernels.ours(path)


def test_whatever_changes_the_code_has_compiled_code_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "ours", lambda path: True)  # nothing is compiled
    monkeypatch.setattr(kernels, "cache_folders", lambda: [tmp_path])
    monkeypatch.setattr(kernels, "compiler_command", lambda: ["g++"])
    monkeypatch.setattr(kernels, "version_of", lambda compiler: "g++ of today")
    source = tmp_path / "other.cpp"
    source.write_text("another")
    changes = {
        "cpu_flags": lambda: "flags: another",
        "SOURCE": source,
        "FLAGS": [*kernels.FLAGS, "-O1"],
        "version_of": lambda compiler: "g++ of tomorrow",
        "compiler_command": lambda: ["g++", "-O1"],
    }
    paths = {kernels.built()}
    for name, value in changes.items():
        monkeypatch.setattr(kernels, name, value)
        paths.add(kernels.built())
    assert len(paths - {None}) == 1 + len(changes)


def test_a_compiler_may_be_given_with_arguments(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(kernels, "compile_to", lambda path, command: commands.append(command) or 1)
    monkeypatch.setattr(kernels, "cache_folders", lambda: [tmp_path])
    if kernels.built() is None:
        pytest.skip("no compiler here")
    monkeypatch.setenv("CXX", "g++ -fno-plt '-DNAME=a b'")
    assert kernels.built() is not None
    assert commands[-1][:4] == ["g++", "-fno-plt", "-DNAME=a b", kernels.FLAGS[0]]

    spaced = tmp_path / "a compiler"
    spaced.symlink_to(shutil.which("g++"))
    monkeypatch.setenv("CXX", str(spaced))
    assert kernels.built() is not None
    assert commands[-1][0] == str(spaced)
    for given in ("false", "no/such/thing -O2", "g++ 'open", " "):
        monkeypatch.setenv("CXX", given)
        assert kernels.built() is None


def test_a_user_without_home_or_name_keeps_compiled_code_in_a_folder_of_its_own(monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    assert [path.name for path in kernels.cache_folders()] == [f"nanoscale-{os.getuid()}"]
