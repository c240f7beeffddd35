"""How fast is nanoscale here? A training step, the time to a loss, a sweep; nanoGPT beside it.

    make bench                          our own figures
    make bench PEER=path/to/nanoGPT     and the ratios, everything measured in alternation

Writes `speed.json` and `speed.md` here. 3 minutes alone, 20 with a peer; leave the machine to it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from nanoscale import benchmark
from nanoscale.counting import flops_per_iter
from nanoscale.records import atomic_write, write_json
from nanoscale.telemetry import device_name, peak

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
RECIPE = ("n_layer=4 n_head=4 n_embd=128 block_size=64 batch_size=12 dropout=0.0 beta2=0.99 "
          "learning_rate=1e-3 min_lr=1e-4 warmup_iters=100").split()
SHAPES = {
    "CPU recipe": RECIPE,
    "CPU recipe, 1 thread": [*RECIPE, "threads=1"],
    "6 layers, width 384, block 256, batch 8":
        "n_layer=6 n_head=6 n_embd=384 block_size=256 batch_size=8 dropout=0.0".split(),
    "8 layers, width 512, block 256, batch 8":
        "n_layer=8 n_head=8 n_embd=512 block_size=256 batch_size=8 dropout=0.0".split(),
}
OURS = {"bfloat16": ["dtype=bfloat16"], "float32": ["dtype=float32"]}
LONG = ("gradient_accumulation_steps=1 log_interval=50 eval_iters=20 eval_interval=250 "
        "always_save_checkpoint=False").split()
PRESET = "config/shakespeare_char_cpu_fast.py"
PEER_LRS = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)


def flags(values: list[str]) -> list[str]:
    return [f"--{value}" for value in values]


# -- one step -----------------------------------------------------------------------------------
def steps(peer: Path | None) -> list[dict[str, Any]]:
    """Per shape: our median step in each precision and the peer's, eager and compiled."""
    rows = []
    for name, shape in SHAPES.items():
        runs, timed = {}, {}
        typed = ["--dataset=shakespeare_char", "--kernels=fused", *flags(shape)]
        with ExitStack() as stack:
            for dtype, more in OURS.items():
                what = benchmark.requested([*typed, *flags(more)])
                runs[dtype] = run = benchmark.build_run(what)
                timed[dtype] = benchmark.our_step(run)
            for mode in ("eager", "compiled") if peer else ():
                what = benchmark.requested([*typed, f"--peer={peer}"])
                job = benchmark.job_of(what, run) | {"compile": mode == "compiled"}
                timed[f"peer {mode}"] = stack.enter_context(benchmark.peer_step(job))
            medians = benchmark.measure(timed)
        row: dict[str, Any] = {"shape": name, "ms": {k: 1000 * s for k, s in medians.items()}}
        peers = [s for k, s in medians.items() if k.startswith("peer")]
        for dtype, run in runs.items():
            # float32's best backend is what the run's own matmul precision picks
            best = max(peak(run.device, getattr(torch, dtype)) for _ in range(5))
            row[dtype] = {"of_peak": flops_per_iter(run.config) / medians[dtype] / best,
                          "peak_gflops": best / 1e9,
                          "tokens_per_second": run.config.tokens_per_iter / medians[dtype]}
            if peers:
                row[dtype]["times_peer"] = min(peers) / medians[dtype]
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


# -- a whole run --------------------------------------------------------------------------------
def seconds(command: list[str], cwd: Path) -> float:
    """The wall-clock of a command, start-up included."""
    started = time.perf_counter()
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
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
        command = [sys.executable, "train.py", "config/train_shakespeare_char.py",
                   *flags(["device=cpu", "compile=False", "out_dir=out", *LONG, *RECIPE, *more])]
        took = seconds(command, folder)
        done = subprocess.run([sys.executable, "-c", PEER_LOSS], cwd=folder, capture_output=True,
                              text=True, check=True)
    return {"seconds": took, "val_loss": float(done.stdout.rpartition("loss=")[2])}


def our_run(seed: int) -> dict[str, float]:
    """The preset's run, from the shell to its end."""
    with tempfile.TemporaryDirectory() as name:
        took = seconds([sys.executable, "train.py", PRESET, f"--out_dir={name}/o",
                        f"--seed={seed}"], ROOT)
        metrics = json.loads((Path(name) / "o" / "metrics.json").read_text())
    return {"seconds": took, "val_loss": metrics["val_loss"], "seed": seed,
            "parameters": metrics["total_params"]}


def time_to_loss(peer: Path | None) -> dict[str, Any]:
    """Ours by three seeds and, in between, nanoGPT's 2,000 updates at its own and other LRs."""
    found: dict[str, Any] = {"ours": [], "peer": []}
    lrs = sorted(PEER_LRS, key=lambda lr: lr != 1e-3) if peer else [None] * 3
    for i, lr in enumerate(lrs):
        if i < 3:
            found["ours"].append(our_run(i + 1))
            print(json.dumps(found["ours"][-1]), flush=True)
        if lr:
            run = peer_run(peer, ["max_iters=2000", "lr_decay_iters=2000",
                                  f"learning_rate={lr}", f"min_lr={lr / 10}"])
            found["peer"].append(run | {"learning_rate": lr})
            print(json.dumps(found["peer"][-1]), flush=True)
    return found


def sweep(peer: Path | None) -> dict[str, float]:
    """Twelve short runs: our grid from the shell, and the clone in a shell loop."""
    with tempfile.TemporaryDirectory() as name:
        found = {"ours": seconds([sys.executable, "-m", "nanoscale", "study", "studies/sweep.toml",
                                  f"--output_root={name}"], ROOT)}
    if peer:
        found["peer"] = sum(
            peer_run(peer, ["max_iters=300", "lr_decay_iters=300", f"learning_rate={lr}",
                            f"min_lr={lr / 10}"])["seconds"]
            for lr in (5e-4, 1e-3, 2e-3, 4e-3) for _ in range(3))
    print(json.dumps(found), flush=True)
    return found


# -- the page -----------------------------------------------------------------------------------
def page(found: dict[str, Any]) -> str:
    """`speed.md`."""
    where, command = found["machine"], "make bench PEER=path/to/nanoGPT"
    lines = [f"{where['name']}, {where['threads']} threads, torch {where['torch']}, "
             f"{where['date']}. Remake: `{command if found['peer'] else 'make bench'}`.", "",
             "| shape | precision | ms per step | tokens/s | of the matrix-product peak | "
             "nanoGPT's step, in its fastest mode | times nanoGPT |", "|---|---|---|---|---|---|---|"]
    for row in found["steps"]:
        theirs = min((ms for k, ms in row["ms"].items() if k.startswith("peer")), default=None)
        for dtype in OURS:
            r, ms = row[dtype], row["ms"][dtype]
            versus = f"{theirs:.1f} ms | **{theirs / ms:.2f}**" if theirs else "|"
            lines.append(
                f"| {row['shape']} | {dtype} | {ms:.1f} | {r['tokens_per_second']:,.0f} | "
                f"{r['of_peak']:.0%} of {r['peak_gflops']:.0f} GFLOP/s | {versus} |")
    ours, peers = found["time_to_loss"]["ours"], found["time_to_loss"]["peer"]
    lines += ["", "| time to loss | seconds, start-up included | whole-validation loss |",
              "|---|---|---|"]
    lines += [f"| `{PRESET}`, seed {r['seed']} | {r['seconds']:.1f} | {r['val_loss']:.4f} |"
              for r in ours]
    lines += [f"| nanoGPT, 2,000 updates, LR {r['learning_rate']:g} | {r['seconds']:.1f} | "
              f"{r['val_loss']:.4f} |" for r in peers]
    if peers:
        slowest, theirs = max(r["seconds"] for r in ours), peers[0]["seconds"]
        lines += ["", f"Slowest of ours / nanoGPT's own recipe: **{slowest / theirs:.3f}**."]
    lines += ["", "| sweep: 4 LRs x 3 seeds, 300 updates each | seconds |", "|---|---|",
              f"| `nanoscale study studies/sweep.toml` | {found['sweep']['ours']:.1f} |"]
    if "peer" in found["sweep"]:
        lines += [f"| nanoGPT twelve times from a shell | {found['sweep']['peer']:.1f} |", "",
                  f"Ratio: **{found['sweep']['ours'] / found['sweep']['peer']:.3f}**."]
    return "\n".join(["# Speed", "", *lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, help="a nanoGPT clone")
    peer = parser.parse_args().peer
    peer = peer and benchmark.checked_clone(str(peer))
    found: dict[str, Any] = {
        "peer": bool(peer),
        "machine": {"name": device_name(torch.device("cpu")), "threads": torch.get_num_threads(),
                    "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")},
        "time_to_loss": time_to_loss(peer), "sweep": sweep(peer), "steps": steps(peer)}
    write_json(HERE / "speed.json", found)
    with atomic_write(HERE / "speed.md") as path:
        Path(path).write_text(page(found), encoding="utf-8")
    print(f"wrote {HERE / 'speed.md'}; median of ours to the loss: "
          f"{statistics.median(r['seconds'] for r in found['time_to_loss']['ours']):.1f} s")


if __name__ == "__main__":
    main()
