"""The benchmark: it times the real update, writes nothing, and takes turns with a peer."""

from __future__ import annotations

import gzip
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import ROOT

from nanoscale.__main__ import main
from nanoscale.commands import main as cli
from nanoscale.commands.bench import command
from nanoscale.errors import UserError
from nanoscale.spec.sources import parse_arguments
from nanoscale.training import bench as benchmark
from nanoscale.training import loop as training
from nanoscale.training.bench import (
    TURN,
    Benchmark,
    BenchOptions,
    benchmark_of,
    differences,
    live_run,
    measure,
    our_step,
)

TINY = [
    "--batch_size=3",
    "--block_size=8",
    "--n_layer=1",
    "--n_head=2",
    "--n_embd=16",
    "--vocab_size=32",
    "--device=cpu",
    "--compile=False",
    "--threads=1",
]
RANDOM = ["--real_data=False", *TINY]
CLOSING = re.compile(r"time per iteration: \d+\.\d{4}ms, MFU: (\d+\.\d\d%|n/a)\n\Z")

# A clone with nanoGPT's interface: it notes every call beside itself, and talks as nanoGPT does.
CLONE = """
import dataclasses, json, pathlib, sys, torch
from helper import shift

@dataclasses.dataclass
class GPTConfig:
    block_size: int; vocab_size: int; n_layer: int; n_head: int; n_embd: int
    dropout: float; bias: bool

def note(**what):
    with open(pathlib.Path(__file__).with_name("calls.jsonl"), "a") as file:
        print(json.dumps(what), file=file)

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        print("number of parameters: 0.00M")
        self.table = torch.nn.Embedding(config.vocab_size, config.vocab_size)
        self.last = self.table.weight.detach().clone()
        ours = [p for p in (*sys.path, *sys.modules) if p.endswith("nanoscale")]
        note(model=vars(config), ours=ours)

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        note(optimizer=[weight_decay, learning_rate, list(betas), device_type])
        return torch.optim.SGD(self.parameters(), lr=learning_rate)

    def forward(self, idx, targets):
        shifted = (idx[:, 1:] == targets[:, :-1]).all().item()
        moved = (self.table.weight.detach() - self.last).norm().item()
        self.last = self.table.weight.detach().clone()
        logits = self.table(idx) + shift
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        slope, = torch.autograd.grad(loss, self.table.weight, retain_graph=True)
        before = self.table.weight.grad
        note(forward=list(idx.shape), shifted=shifted, moved=moved, first=idx[0, 0].item(),
             slope=slope.norm().item(), before=0.0 if before is None else before.norm().item())
        return logits, loss
"""


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Few steps, one thread, and an empty working folder."""
    for name, value in (("BURN_IN", 2), ("MOST_TURNS", 2)):
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.chdir(tmp_path)
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(before[0])
    torch.set_float32_matmul_precision(before[1])


@pytest.fixture
def letters() -> list[str]:
    """The flags that name a dataset of bare ids."""
    folder = Path("data/ids")
    folder.mkdir(parents=True)
    for split in ("train", "val"):
        (np.arange(400) % 32).astype(np.uint16).tofile(folder / f"{split}.bin")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 32}))
    return ["--dataset=ids", *TINY]


@pytest.fixture
def clone() -> Path:
    folder = Path("clone")
    folder.mkdir()
    (folder / "model.py").write_text(CLONE)
    (folder / "helper.py").write_text("shift = 0.0\n")
    return folder


def calls(clone: Path, kind: str) -> list[dict]:
    lines = (clone / "calls.jsonl").read_text().splitlines()
    return [call for call in map(json.loads, lines) if kind in call]


def requested(arguments: list[str]) -> Benchmark:
    """What the verb would time."""
    typed = command.make_context("bench", list(arguments)).params
    keys = typed.pop("arguments")
    typed.pop("json_path")
    return benchmark_of(parse_arguments(keys), BenchOptions(**typed))


def bench(*arguments: str) -> int:
    return cli.dispatch(["bench", *arguments])


def refusal(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        bench(*arguments)
    return str(caught.value)


# -- our own step -------------------------------------------------------------------------------
def test_the_last_line_is_nanogpts_and_nothing_is_written(capsys):
    assert bench(*RANDOM) == 0
    assert CLOSING.search(capsys.readouterr().out)
    assert list(Path().iterdir()) == []


def test_real_data_leaves_only_itself(letters, capsys):
    before = sorted(Path().rglob("*"))
    assert bench(*letters) == 0
    assert CLOSING.search(capsys.readouterr().out)
    assert sorted(Path().rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random", "real"])
def test_the_step_is_trainings_update(kind, letters):
    """Its losses are those that the loop itself would report for the same config."""
    flags = RANDOM if kind == "random" else letters
    run, twin = (live_run(requested(flags)) for _ in range(2))
    step = our_step(run)
    seconds = [step() for _ in range(3)]
    assert all(s > 0 for s in seconds)
    for _ in range(3):
        training.update(twin)
    assert run.step == 3
    for p, q in zip(run.model.parameters(), twin.model.parameters(), strict=True):
        assert torch.equal(p, q)
    assert run.dataset.name == ("random" if kind == "random" else "ids")


def test_defaults_are_those_of_nanogpts_bench():
    config = requested(["--real_data=False"]).spec.config
    assert (config.batch_size, config.block_size, config.bias) == (12, 1024, False)
    assert (config.gradient_accumulation_steps, config.seed, config.compile) == (1, 1337, True)
    assert (config.n_layer, config.n_embd, config.vocab_size) == (12, 768, 50304)
    wide = requested([*RANDOM, "--gradient_accumulation_steps=5"]).spec.config
    assert wide.gradient_accumulation_steps == 5


def test_config_files_and_flags_are_read_left_to_right():
    Path("mine.py").write_text("n_layer = 3\nn_embd = 32")
    config = requested(
        ["--n_layer=2", "mine.py", "--real_data=False", "--n_embd=64", "--n_head=2"]
    ).spec.config
    assert (config.n_layer, config.n_embd) == (3, 64)


def test_random_tokens_fill_the_vocabulary():
    tokens = requested(RANDOM).dataset.tokens["train"]
    assert (tokens.min(), tokens.max()) == (0, 31)
    assert np.bincount(tokens).std() < 0.02 * np.bincount(tokens).mean()


def test_mfu_is_unknown_where_the_peak_is(monkeypatch, capsys):
    from nanoscale.training import state as runtime

    monkeypatch.setattr(runtime, "peak", lambda *_: None)
    assert bench(*RANDOM) == 0
    assert capsys.readouterr().out.endswith("MFU: n/a\n")


def test_mfu_is_flops_over_peak(monkeypatch, capsys):
    from nanoscale.spec.counting import flops_per_iter
    from nanoscale.training import state as runtime

    monkeypatch.setattr(runtime, "peak", lambda *_: 1e9)
    monkeypatch.setattr(benchmark, "measure", lambda steps: {"nanoscale": 0.5})
    assert bench(*RANDOM) == 0
    mfu = flops_per_iter(requested(RANDOM).spec.config) / 0.5 / 1e9
    assert capsys.readouterr().out.endswith(f"time per iteration: 500.0000ms, MFU: {mfu:.2%}\n")


def test_a_profile_is_a_trace_of_the_update(capfd):
    assert bench(*RANDOM, "--profile=True", "--kernels=torch", "--json=found.json") == 0
    [trace] = Path("bench_log").iterdir()
    content = json.loads(gzip.decompress(trace.read_bytes()))
    names = {event["name"] for event in content["traceEvents"]}
    assert {"aten::mm", "forward", "Optimizer.step#AdamW.step"} <= names
    out = capfd.readouterr().out
    assert "profile of updates 6 to 15: " in out
    assert f"trace: {trace}; open it at ui.perfetto.dev\n" in out
    record = json.loads(Path("found.json").read_text())
    assert record["trace"] == str(trace)
    assert (record["profile"]["first"], record["profile"]["steps"]) == (6, 10)


# -- taking turns -------------------------------------------------------------------------------
def test_the_figure_is_the_median_of_the_timed_steps():
    seconds = iter([100.0, 0.5, *[1.0, 7.0, 2.0, 3.0], *[4.0, 5.0, 6.0, 9.0]])
    assert measure({"nanoscale": lambda: next(seconds)}) == {"nanoscale": 4.5}
    assert next(seconds, None) is None


def test_slow_steps_get_one_turn_and_a_short_burn_in(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(benchmark, "BURN_IN", 10)

    def slow() -> float:
        clock[0] += 90
        return 90.0

    assert measure({"nanoscale": slow}) == {"nanoscale": 90.0}
    assert clock[0] == (2 + TURN) * 90


def test_two_steps_alternate_and_the_first_of_a_turn_does_not_count():
    order: list[str] = []

    def step(name: str, counted: float) -> benchmark.TimedStep:
        def make() -> float:
            order.append(name)
            first = order[-2:-1] != [name]
            return 50.0 if first else counted

        return make

    steps = {"nanoscale": step("a", 1.0), "peer": step("b", 2.0)}
    assert measure(steps) == {"nanoscale": 1.0, "peer": 2.0}
    turn = TURN + 1
    assert "".join(order) == "aabb" + ("a" * turn + "b" * turn) * 2


# -- the peer -------------------------------------------------------------------------------------
@pytest.mark.soak
def test_the_peer_trains_at_the_same_shapes(letters, clone, capsys):
    flags = [
        "--gradient_accumulation_steps=2",
        "--bias=True",
        "--dropout=0.25",
        "--learning_rate=0.5",
        "--beta2=0.9",
        "--grad_clip=0.001",
        "--dtype=float32",
    ]
    assert bench(*letters, *flags, f"--peer={clone}") == 0
    [model] = calls(clone, "model")
    assert model["model"] == {
        "block_size": 8,
        "vocab_size": 32,
        "n_layer": 1,
        "n_head": 2,
        "n_embd": 16,
        "dropout": 0.25,
        "bias": True,
    }
    assert model["ours"] == []  # neither on its path nor loaded
    assert calls(clone, "optimizer")[0]["optimizer"] == [0.1, 0.5, [0.9, 0.9], "cpu"]
    forwards = calls(clone, "forward")
    assert all(f["forward"] == [3, 8] and f["shifted"] for f in forwards)
    assert len(forwards) == 2 * (2 + 2 * (TURN + 1))  # two batches per step
    moved = [f["moved"] for f in forwards]  # SGD: the LR times the clipped gradient norm, 0.001
    assert moved[0::2] == [0.0, *[pytest.approx(0.5 * 0.001, rel=1e-3)] * (len(moved) // 2 - 1)]
    assert set(moved[1::2]) == {0.0}  # one update per two batches
    assert len({f["first"] for f in forwards}) > 8  # each another batch
    for even, odd in zip(forwards[0::2], forwards[1::2], strict=True):
        assert even["before"] == 0.0
        assert odd["before"] == pytest.approx(even["slope"] / 2)
    out = capsys.readouterr().out
    assert CLOSING.search(out)
    ours, peers, ratio = map(
        float, re.search(r"nanoscale ([\d.]+)ms, peer ([\d.]+)ms, ratio ([\d.]+)", out).groups()
    )
    assert ratio == pytest.approx(ours / peers, abs=1e-3)
    assert "note" not in out
    assert "number of parameters" not in out


@pytest.mark.soak
def test_what_the_peer_lacks_is_said(clone, capsys):
    assert (
        bench(
            *RANDOM,
            "--use_rope=True",
            "--optimizer=muon",
            "--n_kv_head=1",
            "--learning_rate=1",
            "--grad_clip=0",
            f"--peer={clone}",
        )
        == 0
    )
    assert "note: the peer has no use_rope, optimizer, n_kv_head" in capsys.readouterr().out
    assert differences(live_run(requested([*RANDOM, "--dtype=float32"]))) == []
    assert differences(live_run(requested([*RANDOM, "--dtype=bfloat16"]))) == ["dtype=bfloat16"]
    forwards = calls(clone, "forward")
    assert not any(f["shifted"] for f in forwards)  # random tokens
    assert all(f["moved"] > 0.1 for f in forwards[1:])  # unclipped


@pytest.mark.soak
def test_a_clone_that_fails_is_reported_in_one_line(clone, capsys):
    (clone / "helper.py").write_text("raise ValueError('broken on purpose')")
    assert main(["bench", *RANDOM, f"--peer={clone}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "its training step failed: ValueError: broken on purpose" in err


@pytest.mark.soak
def test_a_clone_that_fails_in_a_step_is_reported(clone):
    source = CLONE.replace("return logits, loss", "raise SystemExit('out of luck')")
    (clone / "model.py").write_text(source)
    assert "its training step failed: out of luck" in refusal(*RANDOM, f"--peer={clone}")


def test_a_worker_that_no_longer_listens_is_reported(monkeypatch):
    worker = Path("deaf.py")
    worker.write_text(
        "import os, sys\nos.read(0, 9999)\nos.close(0)\nprint('ready', flush=True)\n"
        "sys.stdout.close()\nos.close(1)\n"
    )
    monkeypatch.setattr(benchmark, "WORKER", worker)
    what = requested(RANDOM)
    job = benchmark.job_of(what, live_run(what))
    with (
        pytest.raises(UserError, match="step failed: no reason"),
        benchmark.peer_step(job) as step,
    ):
        step()


# -- refusals -------------------------------------------------------------------------------------
BAD = [
    (["--rel_data=False"], "--rel_data: unknown key; did you mean 'real_data'?"),
    (["--n_layers=2"], "--n_layers: unknown key; did you mean 'n_layer'?"),
    (["--profile"], "--profile: a flag needs a value, as in --key=value; write --profile=True"),
    (["--profile=3"], "--profile=3: expected True or False"),
    (["--batch_size=0"], "--batch_size=0: must be at least 1"),
    (["--n_head=5"], "n_embd=768 is not divisible by n_head=5"),
    (["--peer=."], "--peer=.: no model.py there"),
    (["--peer=nowhere"], "--peer=nowhere: no model.py there"),
    (["--profile=True", "--peer=x"], "--profile=True and --peer exclude each other"),
    (["--dataset=absent"], "or time random tokens with --real_data=False"),
    (["--real_data=False", "--device=tpu"], "device=tpu: not available here"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_is_refused_in_one_line(capsys, arguments, message):
    assert main(["bench", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert list(Path().iterdir()) == []


def test_a_trace_that_cannot_be_written_is_refused():
    Path("bench_log").write_text("a file in the way")
    assert "cannot write bench_log" in refusal(*RANDOM, "--profile=True")


@pytest.mark.slow
def test_refusals_never_load_torch():
    code = (
        "import sys; from nanoscale.__main__ import main\n"
        "for bad in ('--x=1', '--n_head=5', '--peer=/nowhere', '--dataset=none', '--help'):\n"
        "    main(['bench', bad])\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_lists_its_own_keys_and_the_configs(capsys):
    assert bench("--help") == 0
    out = capsys.readouterr().out
    assert all(f"--{key} " in out for key in ("real_data", "peer"))
    assert all(f"--{key}=" in out for key in ("n_layer", "profile"))


def test_the_door_answers():
    done = subprocess.run(
        [sys.executable, "bench.py", "--rel_data=1"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --rel_data: unknown key")
