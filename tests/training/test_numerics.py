"""How a run computes is kept, or its change asked for, told and recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import RUN, flags, run_nanoscale, spec_maker, tiny_config

from nanoscale.errors import UserError
from nanoscale.model import kernels
from nanoscale.model.distributed import Ranks
from nanoscale.spec.identity import RunSpec
from nanoscale.store.folder import RunFolder
from nanoscale.store.resume import open_folder
from nanoscale.training import checkpoint, hardware, numerics
from nanoscale.training.loop import update
from nanoscale.training.numerics import Numerics, decide, require_kept
from nanoscale.training.run import train_folder
from nanoscale.training.state import Checkpoint, build, dataset_of, save

needs_kernels = pytest.mark.skipif(kernels.library() is None, reason="no compiler for the kernels")
OURS = pytest.mark.parametrize("ours", ["step", "fused"])
CPU = torch.device("cpu")


@pytest.fixture
def spec_of(data_root: Path) -> Callable[..., RunSpec]:
    return spec_maker(RUN | {"max_iters": 4, "eval_interval": 0}, data_root)


def begun(spec: RunSpec, path: Path, updates: int = 2) -> RunFolder:
    """A run that was stopped after some updates."""
    folder = open_folder(path, spec, resume=False)
    saved = Checkpoint.load(folder / "ckpt.pt") if (folder / "ckpt.pt").exists() else None
    run = build(spec, dataset_of(spec), Ranks(), saved)
    for _ in range(updates):
        update(run)
    save(run, folder)
    return folder


def history(folder: RunFolder, key: str = "kernels") -> list[tuple[int, Any]]:
    entries = folder.metrics()["numerics_history"]
    return [(entry["step"], entry["numerics"][key]) for entry in entries]


def log(folder: RunFolder) -> str:
    return (folder / "log.txt").read_text(encoding="utf-8")


# -- kernels --------------------------------------------------------------------------------------
@needs_kernels
@OURS
def test_without_a_compiler_a_run_goes_on_only_where_that_is_asked_for(
    spec_of, tmp_path, monkeypatch, ours
):
    folder = begun(spec_of(kernels=ours), tmp_path / "run")
    folder = open_folder(folder.path, spec_of(), resume=False)
    monkeypatch.setattr(kernels, "library", lambda: None)
    with pytest.raises(UserError, match=rf"kernels={ours} so far.* give it --kernels=torch$"):
        train_folder(folder)
    assert folder.metrics() is None
    assert checkpoint.load(folder / "ckpt.pt")["step"] == 2

    asked = spec_of(kernels="torch")
    assert asked.id == folder.spec().id
    folder = open_folder(folder.path, asked, resume=False)
    assert train_folder(folder).status == "COMPLETE"
    assert folder.metrics()["numerics"]["kernels"] == "torch"
    assert history(folder) == [(0, ours), (2, "torch")]
    (line,) = [line for line in log(folder).splitlines() if "computed otherwise" in line]
    assert "from step 2 on" in line
    assert f"kernels was {ours}, now torch" in line


@needs_kernels
def test_kernels_asked_for_by_name_are_taken_up(spec_of, tmp_path):
    """Under auto a run keeps those that it began with; each turn is in its history."""
    folder = begun(spec_of(kernels="torch"), tmp_path / "run", updates=1)
    begun(spec_of(), folder.path, updates=1)
    assert Checkpoint.load(folder / "ckpt.pt").numerics.kernels == "torch"
    begun(spec_of(kernels="fused"), folder.path, updates=1)
    folder = open_folder(folder.path, spec_of(kernels="step"), resume=False)
    assert train_folder(folder).status == "COMPLETE"
    assert history(folder) == [(0, "torch"), (2, "fused"), (3, "step")]


@needs_kernels
def test_a_run_begun_with_our_kernels_keeps_them_where_compilation_is_typed_later():
    began = decide(tiny_config(), CPU)
    assert began.ours
    assert decide(tiny_config(compile=True), CPU, began, ["compile"]).kernels == began.kernels


@pytest.mark.slow
@needs_kernels
def test_a_longer_run_without_a_compiler_is_refused_in_one_line(data_root, tmp_path, monkeypatch):
    """As a user sees it; the shorter run's result stays until the flag is given."""
    values = RUN | {"data_root": data_root, "out_dir": tmp_path / "run", "lr_schedule": "constant"}
    assert run_nanoscale("train", *flags(values | {"max_iters": 2})).returncode == 0
    monkeypatch.setenv("CXX", "false")
    longer = flags(values | {"max_iters": 4, "init_from": "resume"})
    refused = run_nanoscale("train", *longer)
    assert refused.returncode == 2
    assert "--kernels=torch" in refused.stderr.strip().splitlines()[-1]
    folder = RunFolder(tmp_path / "run")
    assert folder.metrics()["iter_num"] == 2
    done = run_nanoscale("train", *longer, "--kernels=torch")
    assert (done.returncode, folder.metrics()["iter_num"]) == (0, 4), done.stderr
    assert history(folder) == [(0, "step"), (2, "torch")]


# -- what is refused, what is told ----------------------------------------------------------------
USUAL = Numerics("cpu", "a CPU", "float32", 1, "torch", "highest", False, "2.9")


@pytest.mark.parametrize(
    ("was", "now", "typed"),
    [
        ({"device": "cuda"}, {"device": "cpu"}, {"device": "cpu"}),
        ({"device": "cpu"}, {"device": "cuda"}, {"device": "cuda:1"}),
        ({"kernels": "torch"}, {"kernels": "fused"}, {"kernels": "fused"}),
        ({"compile": True}, {"compile": False}, {"compile": False}),
    ],
)
def test_a_choice_is_changed_only_by_its_own_flag(was, now, typed):
    before, after = replace(USUAL, **was), replace(USUAL, **now)
    ((key, value),) = now.items()
    with pytest.raises(UserError, match=f"{key}={was[key]} so far.* give it --{key}={value}$"):
        require_kept(before, after, {"max_iters": 9, key: was[key]})
    require_kept(before, after, typed)
    require_kept(after, after, {})


def test_kernels_by_name_and_shards_leave_compilation_no_choice():
    compiled, fused = replace(USUAL, compile=True), replace(USUAL, kernels="fused")
    require_kept(compiled, fused, {"kernels": "fused"})
    require_kept(fused, replace(USUAL, sharding="fsdp"), {})


@pytest.mark.parametrize(
    ("key", "value"),
    [("torch", "2.10"), ("device_name", "another"), ("instructions", "sse"), ("sharding", "ddp")],
)
def test_a_change_of_the_machine_is_told_and_recorded(key, value):
    was = replace(USUAL, instructions="avx2 sse", compiler="g++ 12")
    now = replace(was, **{key: value})
    require_kept(was, now, {})
    entries = numerics.continued([numerics.NumericsFrom(0, was)], was, 7, now)
    assert [(entry.step, entry.numerics) for entry in entries] == [(0, was), (7, now)]
    assert "from step 7 on" in numerics.change(entries, 7)
    assert f"{key} was {getattr(was, key)}, now {value}" in numerics.change(entries, 7)
    assert numerics.change(entries, 9) is None
    again = numerics.continued(entries, now, 7, was)  # not a step was made in between
    assert [entry.step for entry in again] == [0, 7]


def test_what_an_older_version_did_not_record_is_no_change(spec_of, tmp_path):
    """Nor is a compiler that nothing was compiled with."""
    folder = begun(spec_of(kernels="torch"), tmp_path / "run")
    content = checkpoint.load(folder / "ckpt.pt")
    spec = content.pop("spec")
    del content["history"], content["numerics"]["instructions"]
    checkpoint.save(folder / "ckpt.pt", spec, **content)
    assert train_folder(folder).status == "COMPLETE"
    assert "numerics_history" not in folder.metrics()
    assert "otherwise" not in log(folder)
    known = replace(USUAL, compiler="g++ 12")
    assert not USUAL.differences(known)
    assert known.differences(replace(known, compiler="g++ 13"))


def test_a_branch_inherits_how_its_past_was_computed(spec_of, tmp_path, monkeypatch):
    wsd = {"lr_schedule": "wsd", "cooldown_frac": 0.5, "kernels": "torch"}
    parent = begun(spec_of(max_iters=8, **wsd), tmp_path / "parent")
    (parent / "ckpt.pt").rename(parent / "ckpt-2.pt")
    (parent / "metrics.jsonl").write_text("")
    monkeypatch.setattr(hardware, "device_name", lambda device: "another")
    spec = spec_of(branch_from=f"{parent.path}@2", **wsd)
    branch = open_folder(tmp_path / "branch", spec, resume=False)
    assert train_folder(branch).status == "COMPLETE"
    assert [step for step, _ in history(branch)] == [0, 2]
    assert history(branch, "device_name")[1][1] == "another"


# -- the record -----------------------------------------------------------------------------------
def test_a_cpu_is_known_by_its_instructions_and_kernels_by_their_compiler(monkeypatch):
    flags = "flags\t\t: fpu sse4_2 ht avx512f avx2 fma smx bf16x\n"
    monkeypatch.setattr(hardware, "cpu_flags", lambda: flags)
    monkeypatch.setattr(kernels, "version_of", lambda command: "g++ 13.2\nCopyright\n")
    plain = decide(tiny_config(kernels="torch"), CPU)
    assert plain.instructions == "avx2 avx512f bf16x fma sse4_2"
    assert plain.compiler is None
    assert "compiler" not in plain.to_json()
    if kernels.library() is not None:
        fused = decide(tiny_config(), CPU)
        assert json.loads(json.dumps(fused.to_json()))["compiler"] == "g++ 13.2"


# -- the decisions --------------------------------------------------------------------------------
def test_what_a_run_began_with_is_kept_where_its_config_leaves_it_open(monkeypatch):
    monkeypatch.setattr(numerics.shutil, "which", lambda name: name)
    monkeypatch.setattr(kernels, "compiler_name", lambda: "g++ 99")
    config = tiny_config(dtype="auto", compile=True)
    began = decide(config, CPU)
    kept = replace(began, dtype="bfloat16", kernels="torch", compile=True)
    assert decide(config, CPU, kept).dtype == "bfloat16"
    assert decide(config, CPU, kept).compile  # however short it is
    assert decide(config, CPU, kept).compiler == "g++ 99"
    assert not decide(config, CPU, replace(kept, compile=False)).compile


@pytest.mark.parametrize(("peak", "layers"), [(1e6, 1), (1e30, 12)])
def test_compilation_pays_by_flops_or_by_launches(monkeypatch, peak, layers):
    """100 s of either: of FLOPs on a slow machine, or of launches on a fast one."""
    monkeypatch.setattr(hardware, "peak_flops", lambda name: peak)
    assert numerics.pays(tiny_config(n_layer=layers, max_iters=10_000), CPU)
    assert not numerics.pays(tiny_config(n_layer=layers, max_iters=1), CPU)


def test_the_precision_of_products_is_put_into_effect(monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    numerics.apply(replace(USUAL, threads=None, compile=True, matmul_precision="medium"))
    assert asked == ["medium"]


@needs_kernels
def test_our_kernels_are_for_plain_ranks_eager_models_and_their_types():
    auto, off = (tiny_config(compile=c, threads=1, dtype="float32") for c in (True, False))

    def chosen(config, asked=(), sharded=False):
        return numerics.decide_kernels(config, CPU, None, asked, sharded)

    assert (chosen(auto), chosen(auto, ["compile"]), chosen(off, ["compile"])) == (
        "step",
        "torch",
        "step",
    )
    assert chosen(tiny_config(dtype="bfloat16")) == "fused"
    assert chosen(tiny_config(dtype="float32", threads=9)) == "fused"  # of 2 sequences
    assert chosen(tiny_config(dtype="float16")) == "torch"
    assert chosen(auto, sharded=True) == "torch"
    for ours in ("step", "fused"):
        with pytest.raises(UserError, match=f"kernels={ours}: .*fsdp avoids; use kernels=auto"):
            chosen(tiny_config(kernels=ours), sharded=True)


# -- masks of an older version --------------------------------------------------------------------
def test_a_run_with_an_older_versions_masks_is_read_and_never_continued(spec_of, tmp_path):
    new = spec_of(dropout=0.1, lr_schedule="constant", max_iters=2, kernels="torch")
    old = replace(new, masks=0)
    assert old.id != new.id
    assert replace(spec_of(), masks=0).id == spec_of().id  # without dropout there are none
    folder = begun(old, tmp_path / "old", updates=1)
    assert folder.spec() == old
    assert Checkpoint.load(folder / "ckpt.pt").spec.id == old.id
    with pytest.raises(UserError, match="masks of an older nanoscale"):
        train_folder(folder)
    longer = spec_of(**new.typed | {"max_iters": 3})
    with pytest.raises(UserError, match="masks were of version 0, now 1"):
        open_folder(folder.path, longer, resume=True)
    assert folder.spec() == old
    assert train_folder(open_folder(folder.path, new, resume=False)).status == "COMPLETE"
    assert RunFolder(f"{folder.path}.old-1").spec() == old  # moved aside, not lost
