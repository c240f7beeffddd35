"""How fast is nanoscale here? A training step, the time to a loss, a sweep; nanoGPT beside it.

    make bench                          our own figures
    make bench PEER=path/to/nanoGPT     and the ratios, everything measured in alternation

Writes `speed.json` and `speed.md` here. Leave the machine to it: it takes many minutes with a peer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from nanoscale.errors import exit_code_of
from nanoscale.spec.counting import flops_per_iter
from nanoscale.spec.sources import parse_arguments
from nanoscale.store.files import atomic_write, write_json
from nanoscale.training import bench as benchmark
from nanoscale.training.bench import BenchOptions
from nanoscale.training.hardware import device_name
from nanoscale.training.state import Run

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
RECIPE = (
    "n_layer=4 n_head=4 n_embd=128 block_size=64 batch_size=12 dropout=0.0 beta2=0.99 "
    "learning_rate=1e-3 min_lr=1e-4 warmup_iters=100"
).split()
CORES = f"threads={len(os.sched_getaffinity(0))}"
LONG_BLOCK = ["block_size=256", "batch_size=8", "dropout=0.0", CORES]
SHAPES = {
    "CPU recipe": [*RECIPE, CORES],
    "CPU recipe, 1 thread": [*RECIPE, "threads=1"],
    "6 layers, width 384, block 256, batch 8": ["n_layer=6", "n_head=6", "n_embd=384", *LONG_BLOCK],
    "8 layers, width 512, block 256, batch 8": ["n_layer=8", "n_head=8", "n_embd=512", *LONG_BLOCK],
}
LONG = (
    "gradient_accumulation_steps=1 log_interval=50 eval_iters=20 eval_interval=250 "
    "always_save_checkpoint=False"
).split()
PRESET = "config/shakespeare_char_cpu_fast.py"
LONGER = ("--max_iters=400", "--muon_lr=0.02", "--learning_rate=1e-2")
PEER_LRS = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)


def flags(values: list[str]) -> list[str]:
    return [f"--{value}" for value in values]


# -- one step -----------------------------------------------------------------------------------
def step(name: str, dtype: str, peer: Path | None) -> dict[str, Any]:
    """Our median step at a shape, by turns with bare matrix products; then
    with the peer, eager and compiled."""
    typed = ["--dataset=shakespeare_char", "--kernels=fused", *flags(SHAPES[name])]
    sources = parse_arguments([*typed, f"--dtype={dtype}"])
    run = benchmark.live_run(benchmark.benchmark_of(sources, BenchOptions()))
    product, flops = product_step(run)
    medians = benchmark.measure({"ours": benchmark.our_step(run), "product": product})
    alone, best = medians["ours"], flops / medians["product"]
    beside = {}
    for mode in ("eager", "compiled") if peer else ():  # one at a time: an idle one disturbs too
        options = BenchOptions(peer=str(peer))
        what = benchmark.benchmark_of(parse_arguments(typed), options)
        job = benchmark.job_of(what, run) | {"compile": mode == "compiled"}
        with benchmark.peer_step(job) as theirs:
            medians = benchmark.measure({"ours": benchmark.our_step(run), "peer": theirs})
        beside[mode] = {who: 1000 * seconds for who, seconds in medians.items()}
    return {
        "shape": name,
        "dtype": dtype,
        "ms": 1000 * alone,
        "tokens_per_second": run.config.tokens_per_iter / alone,
        "of_peak": flops_per_iter(run.config) / alone / best,
        "peak_gflops": best / 1e9,
        "beside_ms": beside,
    }


def product_step(run: Run) -> tuple[benchmark.TimedStep, int]:
    """A step that is one bare matrix product after another, and the FLOPs in it."""
    n, times = 512, 40
    # float32's backend is what the run's own matmul precision picks
    a = torch.ones(n, n, dtype=run.numerics.torch_dtype)

    def step() -> float:
        started = time.perf_counter()
        for _ in range(times):
            a @ a
        return time.perf_counter() - started

    return step, 2 * n**3 * times


def steps(peer: Path | None) -> list[dict[str, Any]]:
    """Each shape and precision in a process of its own; the peer beside the faster one."""
    rows = []
    for name in SHAPES:
        for dtype in ("bfloat16", "float32"):
            beside = [f"--peer={peer}"] if peer and dtype == "bfloat16" else []
            command = [sys.executable, __file__, f"--step={name}", f"--dtype={dtype}", *beside]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(done.stdout.splitlines()[-1], flush=True)
    return rows


# -- a whole run --------------------------------------------------------------------------------
def seconds(command: list[str], cwd: Path) -> float:
    """The wall-clock of a command, start-up included."""
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1]}")
    return time.perf_counter() - started


def peer_folder(peer: Path, folder: Path) -> Path:
    """A folder from which the clone's train.py reads our data: it looks below where it runs."""
    for entry in peer.iterdir():
        if entry.name != "data" and not entry.name.startswith("."):
            (folder / entry.name).symlink_to(entry)
    (folder / "data").symlink_to(ROOT / "data")
    return folder


PEER_LOSS = """
import sys, numpy as np, torch
from model import GPT, GPTConfig
saved = torch.load("out/ckpt.pt", weights_only=True)
model = GPT(GPTConfig(**saved["model_args"])).eval()
model.load_state_dict({k.removeprefix("_orig_mod."): v for k, v in saved["model"].items()})
tokens = torch.from_numpy(np.fromfile("data/shakespeare_char/val.bin", np.uint16).astype(np.int64))
T = model.config.block_size
rows = tokens[: (len(tokens) - 1) // T * T + 1].unfold(0, T + 1, T)
with torch.no_grad():
    losses = [model(part[:, :-1], part[:, 1:])[1].item() * len(part) for part in rows.split(64)]
sys.stdout.write(f"loss={sum(losses) / len(rows)}")
"""


def peer_run(peer: Path, more: list[str]) -> dict[str, float]:
    """The clone's own training, and the loss of its checkpoint on the whole validation split."""
    with tempfile.TemporaryDirectory() as name:
        folder = peer_folder(peer, Path(name))
        command = [
            sys.executable,
            "train.py",
            "config/train_shakespeare_char.py",
            *flags(["device=cpu", "compile=False", "out_dir=out", *LONG, *RECIPE, *more]),
        ]
        took = seconds(command, folder)
        done = subprocess.run(
            [sys.executable, "-c", PEER_LOSS],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    return {"seconds": took, "val_loss": float(done.stdout.rpartition("loss=")[2])}


def our_run(seed: int, *more: str) -> dict[str, float]:
    """The preset's run, from the shell to its end."""
    with tempfile.TemporaryDirectory() as name:
        took = seconds(
            [sys.executable, "train.py", PRESET, f"--out_dir={name}/o", f"--seed={seed}", *more],
            ROOT,
        )
        metrics = json.loads((Path(name) / "o" / "metrics.json").read_text())
    return {
        "seconds": took,
        "val_loss": metrics["val_loss"],
        "seed": seed,
        "parameters": metrics["total_params"],
    }


def time_to_loss(peer: Path | None) -> dict[str, Any]:
    """Ours by three seeds and, in between, nanoGPT's 2,000 updates at its own and other LRs."""
    found: dict[str, Any] = {"ours": [], "peer": []}
    lrs = sorted(PEER_LRS, key=lambda lr: lr != 1e-3) if peer else [None] * 3
    for i, lr in enumerate(lrs):
        if i < 3:
            found["ours"].append(our_run(i + 1))
            print(json.dumps(found["ours"][-1]), flush=True)
        if lr:
            run = peer_run(
                peer,
                [
                    "max_iters=2000",
                    "lr_decay_iters=2000",
                    f"learning_rate={lr}",
                    f"min_lr={lr / 10}",
                ],
            )
            found["peer"].append(run | {"learning_rate": lr})
            print(json.dumps(found["peer"][-1]), flush=True)
    return found


def time_to_retuned_loss(peer: Path | None) -> dict[str, Any]:
    """The preset made longer, to meet the best of nanoGPT's LRs."""
    found = {"ours": [our_run(seed, *LONGER) for seed in (1, 2, 3)]}
    print(json.dumps(found), flush=True)
    return found


def sweep(peer: Path | None) -> dict[str, float]:
    """Twelve short runs: our grid from the shell, and the clone in a shell loop, by turns."""
    ours, peers = [], []
    for lr in (5e-4, 1e-3, 2e-3, 4e-3):
        if peer or not ours:
            with tempfile.TemporaryDirectory() as name:
                ours.append(
                    seconds(
                        [
                            sys.executable,
                            "-m",
                            "nanoscale",
                            "study",
                            "studies/sweep.toml",
                            f"--output_root={name}",
                        ],
                        ROOT,
                    )
                )
        for _ in range(3 if peer else 0):
            peers.append(
                peer_run(
                    peer,
                    [
                        "max_iters=300",
                        "lr_decay_iters=300",
                        f"learning_rate={lr}",
                        f"min_lr={lr / 10}",
                    ],
                )["seconds"]
            )
        print(json.dumps({"ours": ours, "peer": peers}), flush=True)
    return {"ours": median(ours), "all_ours": ours} | ({"peer": sum(peers)} if peer else {})


# -- the page -----------------------------------------------------------------------------------
def page(found: dict[str, Any]) -> str:
    """`speed.md`."""
    where, command = found["machine"], "make bench PEER=path/to/nanoGPT"
    lines = [
        f"{where['name']}, {where['threads']} threads, torch {where['torch']}, "
        f"{where['date']}. Remake: `{command if found['peer'] else 'make bench'}`.",
        "",
        "| shape | precision | ms per step | tokens/s | of the matrix-product peak | "
        "ms by turns: ours, nanoGPT in its fastest mode | times nanoGPT |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in found["steps"]:
        pair = min(r["beside_ms"].values(), key=lambda pair: pair["peer"], default=None)
        versus = (
            f"{pair['ours']:.1f}, {pair['peer']:.1f} | **{pair['peer'] / pair['ours']:.2f}**"
            if pair
            else "|"
        )
        lines.append(
            f"| {r['shape']} | {r['dtype']} | {r['ms']:.1f} | "
            f"{r['tokens_per_second']:,.0f} | {r['of_peak']:.0%} of "
            f"{r['peak_gflops']:.0f} GFLOP/s | {versus} |"
        )
    ours, peers = found["time_to_loss"]["ours"], found["time_to_loss"]["peer"]
    longer = found["time_to_retuned_loss"]["ours"]
    lines += [
        "",
        "| time to loss | seconds, start-up included | whole-validation loss |",
        "|---|---|---|",
    ]
    lines += [
        f"| `{PRESET}`, seed {r['seed']} | {r['seconds']:.1f} | {r['val_loss']:.4f} |" for r in ours
    ]
    lines += [
        f"| the same with `{' '.join(LONGER)}`, seed {r['seed']} | {r['seconds']:.1f} | "
        f"{r['val_loss']:.4f} |"
        for r in longer
    ]
    lines += [
        f"| nanoGPT, 2,000 updates, LR {r['learning_rate']:g} | {r['seconds']:.1f} | "
        f"{r['val_loss']:.4f} |"
        for r in peers
    ]
    if peers:
        slowest, theirs = max(r["seconds"] for r in ours), peers[0]["seconds"]
        best = min(peers, key=lambda r: r["val_loss"])
        lines += [
            "",
            f"Slowest of ours / nanoGPT's own recipe (LR {peers[0]['learning_rate']:g}): "
            f"**{slowest / theirs:.3f}**. Slowest of the longer ones / nanoGPT's best LR: "
            f"**{max(r['seconds'] for r in longer) / best['seconds']:.3f}**.",
        ]
    lines += [
        "",
        "| sweep: 4 LRs x 3 seeds, 300 updates each | seconds |",
        "|---|---|",
        f"| `nanoscale study studies/sweep.toml` | {found['sweep']['ours']:.1f} |",
    ]
    if "peer" in found["sweep"]:
        lines += [
            f"| nanoGPT twelve times from a shell | {found['sweep']['peer']:.1f} |",
            "",
            f"Ratio: **{found['sweep']['ours'] / found['sweep']['peer']:.3f}**.",
        ]
    return "\n".join(["# Speed", "", *lines, ""])


SECTIONS = {f.__name__: f for f in (time_to_loss, time_to_retuned_loss, sweep, steps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, help="a nanoGPT clone")
    parser.add_argument("--only", choices=SECTIONS, help="measure this alone, keep the rest")
    parser.add_argument("--step", choices=SHAPES, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    peer = asked.peer and benchmark.checked_clone(str(asked.peer))
    if asked.step:
        print(json.dumps(step(asked.step, asked.dtype, peer)))
        return
    file = HERE / "speed.json"
    found: dict[str, Any] = json.loads(file.read_text()) if asked.only else {"peer": bool(peer)}
    found["machine"] = {
        "name": device_name(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    for name in [asked.only] if asked.only else SECTIONS:
        found[name] = SECTIONS[name](peer)
    write_json(file, found)
    with atomic_write(HERE / "speed.md") as path:
        Path(path).write_text(page(found), encoding="utf-8")
    print(f"wrote {HERE / 'speed.md'}")


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
