"""The CPU kernels against torch's operations, in and out of corners."""

from __future__ import annotations

import gc
import math
import shutil
import weakref

import pytest
import torch
import torch.nn.functional as F
from architectures import MODELS
from tiny import tiny_config
from torch import Tensor

from nanoscale.errors import UserError
from nanoscale.model import kernels
from nanoscale.model.fused_ops import FusedOps, side_by_side
from nanoscale.model.fused_optim import AdamW, FusedMuon, clip_grad_norm
from nanoscale.model.gpt import GPT
from nanoscale.model.muon import Muon, orthogonalize
from nanoscale.model.ops import Norm, Ops
from nanoscale.model.step_ops import StepOps
from nanoscale.spec.parametrization import shape_factor

pytestmark = pytest.mark.skipif(kernels.library() is None, reason="no compiler for the kernels")

OPS = pytest.mark.parametrize("ops", [FusedOps, StepOps])


def twins(ops: type[Ops] = FusedOps, **values) -> tuple[GPT, GPT]:
    """The same weights, off their initial values, under torch's operations and ours."""
    config = tiny_config(**{"n_layer": 2, "vocab_size": 21} | values)
    one, other = GPT(config), GPT(config, ops())
    with torch.no_grad():
        for p in one.parameters():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    other.load_state_dict(one.state_dict())
    return one, other


def batch(model: GPT) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shape = (2, 3, model.config.block_size)
    return torch.randint(model.config.vocab_size, shape, generator=generator).unbind()


def gradients(model: GPT, narrow: bool = False) -> dict[str, Tensor]:
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow):
        loss = 0.3 * model(*batch(model))[1]
    loss.backward()
    return {"loss": loss.detach()} | {
        name: p.grad for name, p in model.named_parameters() if not name.endswith("c_k.bias")
    }
    # (softmax does not see a key's bias: its gradient is rounding alone)


def error(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    return {k: float((found[k] - exact[k]).norm() / exact[k].norm()) for k in exact}


@pytest.mark.slow
@OPS
@pytest.mark.parametrize("values", MODELS.values(), ids=MODELS)
def test_a_model_and_its_gradients_equal_torchs(values, ops):
    reference, fused = twins(ops, **values)
    torch.testing.assert_close(
        fused(batch(fused)[0])[0], reference(batch(fused)[0])[0], rtol=1e-4, atol=1e-5
    )
    errors = error(gradients(fused), gradients(reference))
    assert max(errors.values()) < 1e-5, errors


@OPS
@pytest.mark.parametrize("values", MODELS.values(), ids=MODELS)
def test_bfloat16_is_as_near_to_float32_as_torchs(values, ops):
    reference, fused = twins(ops, **values)
    exact = gradients(reference)
    ours, torchs = error(gradients(fused, True), exact), error(gradients(reference, True), exact)
    total = lambda errors: math.sqrt(sum(e * e for e in errors.values()))  # noqa: E731
    assert total(ours) < 1.2 * total(torchs)
    assert total(ours) > 1e-4  # it was bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["gelu", "swiglu"])
def test_activations_over_their_whole_range(name, dtype):
    x = torch.linspace(-30, 30, 4001).to(dtype)
    inputs = [x, x.flip(0)] if name == "swiglu" else [x]
    found = []
    for ops in (Ops(), FusedOps()):
        leaves = [i.view(1, 1, -1).clone().requires_grad_() for i in inputs]
        y = getattr(ops, name)(*leaves)
        y.sum().backward()
        found.append([y, *(leaf.grad for leaf in leaves)])
    tolerance = (
        {"rtol": 2e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.02, "atol": 1e-3}
    )
    for ours, torchs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, torchs, **tolerance)


def test_large_logits_lose_nothing():
    targets = torch.tensor([0, 15, 16, 63, 69])
    for _ in range(20):  # a rounded log-sum-exp shows only where a target is almost certain
        logits = (100 * torch.randn(5, 70)).requires_grad_()
        loss = FusedOps().cross_entropy(logits, targets, 0.0)
        loss.backward()
        exact = logits.detach().double().requires_grad_()
        expected = F.cross_entropy(exact, targets)
        expected.backward()
        torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-5, atol=1e-7)


def test_large_means_lose_nothing():
    norm = Norm(40, 1e-5, rms=False, bias=False)
    torch.nn.init.ones_(norm.weight)
    x = 1000 + torch.randn(1, 7, 40)
    torch.testing.assert_close(
        FusedOps().add_norm(x, None, 1.0, norm)[1], norm(x), rtol=1e-3, atol=1e-3
    )


@OPS
def test_a_token_outside_the_vocabulary_is_refused(ops):
    _, fused = twins(ops, **MODELS["gpt2"])
    good = torch.zeros(1, 64, dtype=torch.long)
    for bad in (good + 21, good - 1):
        for X, Y in ((bad, good), (good, bad)):
            with pytest.raises(IndexError, match="vocabulary of 21"):
                fused(X, Y)


@OPS
@pytest.mark.parametrize("narrow", [False, True])
def test_a_nan_anywhere_reaches_the_loss(narrow, ops):
    for name in ("wte", "h.0.ln_1", "h.0.attn.c_q", "h.1.mlp.c_proj", "ln_f"):
        _, fused = twins(ops, **MODELS["gpt2"])
        with torch.no_grad():
            fused.get_parameter(f"transformer.{name}.weight").view(-1)[5:] = math.nan
        assert gradients(fused, narrow)["loss"].isnan()


@OPS
def test_threads_and_repetition_change_no_bit_beyond_the_sums(ops):
    """4 threads are more than there are sequences."""
    threads = torch.get_num_threads()
    try:
        found = []
        for n in (1, 1, 2, 2, 4):
            torch.set_num_threads(n)
            found.append(gradients(twins(ops, **MODELS["llama"])[1]))
    finally:
        torch.set_num_threads(threads)
    one, again, two, twice, four = found
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert all(torch.equal(two[name], twice[name]) for name in one)
    assert 0 < max(error(two, one).values()) < 1e-5
    assert max(error(four, one).values()) < 1e-5


@pytest.mark.slow
def test_weights_are_cast_once_per_update(monkeypatch):
    _, fused = twins(**MODELS["gpt2"])
    made = []
    monkeypatch.setattr(
        torch,
        "_foreach_copy_",
        lambda to, parts, _copy=torch._foreach_copy_: (made.append(len(parts)), _copy(to, parts))[
            1
        ],
    )
    gradients(fused, True)
    gradients(fused, True)
    assert sorted(made) == [1] * 7 + [3] * 2  # head; projections and MLPs; q, k and v together
    before = gradients(fused, True)["loss"]
    with torch.no_grad():  # seen by the parameter's own version
        fused.head.weight.mul_(1.5)
    assert gradients(fused, True)["loss"] != before
    before = gradients(fused, True)["loss"]
    torch.optim.AdamW(fused.parameters(), lr=0.1, fused=True).step()  # not seen by it
    assert gradients(fused, True)["loss"] != before


@pytest.mark.slow
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
        lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9, fused=True),
        lambda p: torch.optim.SGD(p, lr=0.5),
    ],
    ids=["fused AdamW", "fused SGD", "SGD"],
)
def test_any_optimizer_trains_as_with_torchs_operations(optimizer, narrow):
    """Nobody tells the operations that the weights have changed, and they hold no stale ones."""
    losses = []
    for model in twins(**MODELS["llama"]):
        step = optimizer(model.parameters()).step
        losses.append([])
        for _ in range(6):
            losses[-1].append(float(gradients(model, narrow)["loss"]))
            step()
    reference, fused = losses
    assert fused == pytest.approx(reference, rel=2e-2 if narrow else 1e-4)
    assert min(reference) < 0.7 * reference[0]  # it has learned, so stale weights would show


def test_side_by_side_copies_only_what_lies_apart():
    whole = torch.randn(4, 6)
    parts = whole.split([1, 2, 3], dim=1)
    assert side_by_side(parts).data_ptr() == whole.data_ptr()
    assert torch.equal(side_by_side(parts), whole)
    swapped = side_by_side((parts[1], parts[0], parts[2]))
    assert torch.equal(swapped, torch.cat([whole[:, 1:3], whole[:, :1], whole[:, 3:]], dim=1))
    assert side_by_side((parts[0],)).shape == (4, 1)


# -- whole steps --------------------------------------------------------------------------------
@pytest.mark.parametrize("narrow", [False, True])
def test_a_step_drops_what_torchs_operations_drop(narrow):
    reference, step = twins(StepOps, dropout=0.3, **MODELS["llama"])
    found = []
    for model in (reference, step):
        torch.manual_seed(5)
        found.append(gradients(model, narrow))
    assert max(error(*found).values()) < (0.1 if narrow else 1e-5)
    assert error(gradients(step), found[1])["loss"] > 1e-3  # other masks are other losses


def test_sequences_may_be_short():
    reference, step = twins(StepOps, **MODELS["gpt2 with biases"])
    X, Y = batch(step)
    for length in (1, 5):
        losses = [m(X[:, :length], Y[:, :length])[1] for m in (reference, step)]
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="20 tokens do not fit"):
        step(torch.zeros(1, 20, dtype=torch.long), torch.zeros(1, 20, dtype=torch.long))


@OPS
@pytest.mark.parametrize("values", MODELS.values(), ids=MODELS)
def test_an_evaluation_is_torchs(values, ops):
    """Each token's loss, without dropout or z-loss; weights that change are seen."""
    reference, ours = twins(ops, dropout=0.5, **values)
    X, Y = batch(ours)
    with torch.no_grad():
        for factor in (1.0, 1.1):
            losses = []
            for model in (reference, ours):
                model.head.weight.mul_(factor)
                losses.append(model.eval()(X, Y, by_token=True)[1])
            torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)


def test_gradients_of_micro_batches_add_up_and_come_once():
    reference, step = twins(StepOps, **MODELS["gpt2"])
    X, Y = batch(step)
    for model in (reference, step):
        for part in (0, 1, 2):
            loss = model(X[part : part + 1], Y[part : part + 1])[1] / 3
            loss.backward()
    found, exact = ({n: p.grad for n, p in m.named_parameters()} for m in (step, reference))
    assert max(error(found, exact).values()) < 1e-5
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_operations_hold_no_model():
    """They are held by it: with a model its memory goes at once, before Python looks for rings."""
    gc.disable()
    try:
        step = twins(StepOps, **MODELS["gpt2"])[1]
        gradients(step)
        gone = weakref.ref(step)
        del step
        assert gone() is None
    finally:
        gc.enable()


# -- the update ---------------------------------------------------------------------------------
def test_adamw_and_clipping_equal_torchs():
    def parameters() -> list[torch.nn.Parameter]:
        return [
            torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(i)))
            for i, shape in enumerate([(65, 131), (7,), (), (30, 20, 3)])
        ]

    def groups(p):
        return [
            {"params": p[:2], "lr": 1e-2, "weight_decay": 0.1, "eps": 1e-8},
            {"params": p[2:], "lr": 3e-2, "weight_decay": 0.0, "eps": 1e-3},
        ]

    ours, torchs = parameters(), parameters()
    mine = AdamW(groups(ours), betas=(0.9, 0.95))
    oracle = torch.optim.AdamW(groups(torchs), betas=(0.9, 0.95))
    for step in range(25):
        size = 10.0 ** (step % 4 - 3)  # clipped and not
        for i, (a, b) in enumerate(zip(ours, torchs, strict=True)):
            g = size * torch.randn(a.shape, generator=torch.Generator().manual_seed(100 * step + i))
            a.grad, b.grad = g, g.clone()
        expected = float(torch.nn.utils.clip_grad_norm_(torchs, 1.0))
        assert float(clip_grad_norm(ours, 1.0)) == pytest.approx(expected, rel=1e-6)
        torch.testing.assert_close([p.grad for p in ours], [p.grad for p in torchs])
        mine.step()
        oracle.step()
    torch.testing.assert_close([p.data for p in ours], [p.data for p in torchs])
    for a, b in zip(ours, torchs, strict=True):
        torch.testing.assert_close(dict(mine.state[a]), dict(oracle.state[b]))


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 12])
@pytest.mark.parametrize("shape", [(24, 70), (70, 24), (33, 34), (128, 344), (16, 600)])
def test_muons_iteration_is_as_exact_as_torchs(shape, steps):
    """Whatever the gradient: by the Gram matrix alone, one of few ranks would lose two digits."""
    draw = torch.Generator().manual_seed(1)
    left, right = (torch.randn(3, n, generator=draw) for n in shape)
    low = left.T @ right
    noise = torch.randn(shape, generator=draw)
    mean = right[:1] + 0.1 * noise
    for g in (noise, low, left[:1].T @ right[:1], mean, low + 1e-4 * noise, 1e-20 * noise):
        W = torch.nn.Parameter(torch.zeros(shape))
        W.grad = g
        FusedMuon([W], lr=1.0, momentum=0.0, ns_steps=steps, scale="spectral").step()
        found = -W.detach() / shape_factor("spectral", *shape)
        exact = orthogonalize(g.double(), steps, torch.float64)
        torchs = orthogonalize(g, steps)
        error, usual = (float((x - exact).norm() / exact.norm()) for x in (found, torchs))
        assert error < 5 * usual + 1e-6


@pytest.mark.parametrize("scale", ["spectral", "original", "match_rms"])
def test_muon_equals_torchs(scale):
    shapes = [(40, 40), (24, 70), (70, 24), (1, 9), (33, 17), (16, 16)]
    zero, foul = 3, 5  # a gradient of zeros, and one that has been NaN
    found = []
    for kind in (Muon, FusedMuon):
        draw = torch.Generator().manual_seed(1)
        parameters = [torch.nn.Parameter(torch.randn(shape, generator=draw)) for shape in shapes]
        group = {"params": parameters, "lr": 0.02, "weight_decay": 0.1}
        optimizer = kind([group], momentum=0.9, ns_steps=5, scale=scale)
        for step in range(4):
            for p in parameters:
                p.grad = 10.0 ** (step - 2) * torch.randn(p.shape, generator=draw)
            parameters[zero].grad.zero_()
            if step == 2:
                parameters[foul].grad[0, 0] = math.nan
            optimizer.step()
        found.append([*parameters, *(optimizer.state[p]["momentum_buffer"] for p in parameters)])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5, equal_nan=True)
    assert found[1][foul].isnan().all()
    assert not found[1][0].isnan().any()


# -- where they come from -----------------------------------------------------------------------
STAND_IN = """#!/bin/sh
# a compiler that has the library already
if [ "$1" = --version ]; then echo stand-in; exit; fi
for last; do true; done
echo made >> {log}
cp {library} "$last"
"""


def test_compiled_once_and_kept_and_made_anew_where_damaged(tmp_path, monkeypatch):
    library, log, compiler = kernels.built(), tmp_path / "log", tmp_path / "compiler"
    compiler.write_text(STAND_IN.format(library=library, log=log))
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    first = kernels.built()
    assert first.parent == tmp_path / "nanoscale"
    assert kernels.built() == first
    assert log.read_text() == "made\n"
    assert [p.name for p in first.parent.iterdir()] == [first.name]

    anew = kernels.library.__wrapped__  # as another process
    first.write_bytes(b"torn")
    assert anew() is None
    assert not first.exists()
    assert anew() is not None
    assert log.read_text() == "made\n" * 2


def test_a_wheel_brings_them_for_who_has_no_compiler(tmp_path, monkeypatch):
    copy, compiler = tmp_path / "kernels.cpp", tmp_path / "compiler"
    copy.write_bytes(kernels.SOURCE.read_bytes())
    compiler.write_text(STAND_IN.format(library=kernels.built(), log=tmp_path / "log"))
    compiler.chmod(0o755)
    monkeypatch.setattr(kernels, "SOURCE", copy)
    monkeypatch.setenv("CXX", str(compiler))
    kernels.ship()
    assert kernels.shipped() is None  # a compiler is there

    monkeypatch.setenv("CXX", "false")
    for names, best in ((kernels.SHIPPED["x86-64-v4"], "v4"), (kernels.SHIPPED["x86-64-v3"], "v3")):
        monkeypatch.setattr(kernels, "cpu_flags", lambda names=names: f"flags : {names}")
        assert kernels.shipped().name == f"kernels-x86-64-{best}.so"
        assert kernels.compiler_name().endswith(best)
        if best == "v4":
            assert kernels.library.__wrapped__() is not None
    kernels.shipped().write_bytes(b"torn")
    assert kernels.library.__wrapped__() is None
    assert kernels.shipped() is not None  # not ours to remove
    monkeypatch.setattr(kernels, "cpu_flags", lambda: "flags : sse4_2")
    assert kernels.library.__wrapped__() is kernels.compiler_name() is None


def test_every_clone_shares_one_library(tmp_path, monkeypatch):
    copy = tmp_path / "kernels.cpp"
    copy.write_bytes(kernels.SOURCE.read_bytes())
    here = kernels.built()
    monkeypatch.setattr(kernels, "SOURCE", copy)
    assert kernels.built() == here


def test_on_a_mac_they_join_torchs_own_threads(tmp_path, monkeypatch):
    """Whose library is LLVM's; this one stands in for it."""
    commands: list[list[str]] = []
    openmp = kernels.torchs_openmp()
    theirs = tmp_path / "lib" / "libomp.dylib"
    theirs.parent.mkdir()
    shutil.copy(openmp, theirs)
    monkeypatch.setattr(kernels, "system", lambda: kernels.MACOS)
    monkeypatch.setattr(kernels, "runs", lambda command: command == ["xcode-select", "-p"])
    monkeypatch.setattr(kernels.torch, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(kernels, "cache_folders", lambda: [tmp_path])
    monkeypatch.setattr(kernels, "compile_to", lambda path, command: commands.append(command) or 1)
    assert kernels.built().suffix == ".dylib"
    assert commands[0][-2:] == [str(theirs), f"-Wl,-rpath,{theirs.parent}"]

    monkeypatch.setattr(kernels, "runs", lambda command: False)  # names of compilers alone
    assert kernels.compiler_command() == []
    assert kernels.built() is None
    monkeypatch.undo()
    assert kernels.built() is not None
    monkeypatch.setattr(kernels, "torchs_openmp", lambda: None)  # it has none with these calls
    assert kernels.built() is None


def test_under_windows_there_are_none(monkeypatch):
    monkeypatch.setattr(kernels, "system", lambda: kernels.MS_WINDOWS)
    assert kernels.built() is kernels.shipped() is kernels.library.__wrapped__() is None


@pytest.mark.parametrize("environment", [{"CXX": "false"}, {"CXX": "", "PATH": ""}], ids=str)
def test_without_a_compiler_there_are_none(tmp_path, monkeypatch, environment):
    for name, value in {"XDG_CACHE_HOME": str(tmp_path), **environment}.items():
        monkeypatch.setenv(name, value)
    assert kernels.built() is None


def test_asked_for_and_not_there(monkeypatch):
    from nanoscale.training import numerics

    def decided(began: numerics.Numerics | None = None, asked: str = "", **values: object) -> str:
        cpu = torch.device("cpu")
        config = tiny_config(**{"threads": 1, "dtype": "float32"} | values)
        return numerics.decide(config, cpu, began, [asked]).kernels

    assert decided() == "step"
    assert decided(dtype="bfloat16") == "fused"
    assert decided(kernels="torch") == "torch"
    assert decided(compile=True, asked="compile") == "torch"
    began = numerics.decide(tiny_config(kernels="torch"), torch.device("cpu"))
    assert decided(began) == "torch"
    monkeypatch.setattr(kernels, "library", lambda: None)
    assert decided() == "torch"
    for ours in ("fused", "step"):
        with pytest.raises(UserError, match=rf"kernels={ours}: .* use kernels=auto"):
            decided(kernels=ours)
