"""How fast is nanoscale here? A training step, the time to a loss, a sweep; nanoGPT beside it.

    make bench                          our own figures
    make bench PEER=path/to/nanoGPT     and the ratios, everything measured in alternation

Writes this machine's record here, such as `amd-epyc-avx512_bf16.json`, and `speed.md` of all
machines' records. Leave the machine to it: it takes many minutes with a peer.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from nanoscale.errors import exit_code_of
from nanoscale.processes import allowed_cpus
from nanoscale.spec.counting import flops_per_iter
from nanoscale.spec.sources import parse_arguments
from nanoscale.store.files import atomic_write, write_json
from nanoscale.training import bench as benchmark
from nanoscale.training.bench import BenchOptions
from nanoscale.training.hardware import device_name, instructions, multiplies_bfloat16
from nanoscale.training.state import Run

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
RECIPE = (
    "n_layer=4 n_head=4 n_embd=128 block_size=64 batch_size=12 dropout=0.0 beta2=0.99 "
    "learning_rate=1e-3 min_lr=1e-4 warmup_iters=100"
).split()
CORES = f"threads={len(allowed_cpus())}"
# Of instructions, the widest that a step is written for; a record is named after it.
WIDEST = ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "asimd")
LONG_BLOCK = ["block_size=256", "batch_size=8", "dropout=0.0", CORES]
SHAPES = {
    "CPU recipe": [*RECIPE, CORES],
    "CPU recipe, 1 thread": [*RECIPE, "threads=1"],
    "6 layers, width 384, block 256, batch 8": ["n_layer=6", "n_head=6", "n_embd=384", *LONG_BLOCK],
    "8 layers, width 512, block 256, batch 8": ["n_layer=8", "n_head=8", "n_embd=512", *LONG_BLOCK],
    "first size of `studies/quick.toml`, 1 thread": (
        "n_layer=2 n_head=2 n_embd=32 block_size=128 batch_size=16 dropout=0.0 optimizer=muon "
        "use_rmsnorm=True use_rope=True use_swiglu=True threads=1"
    ).split(),
}
PEER_LACKS = {"first size of `studies/quick.toml`, 1 thread"}
LONG = (
    "gradient_accumulation_steps=1 log_interval=50 eval_iters=20 eval_interval=250 "
    "always_save_checkpoint=False"
).split()
NOISE = 0.95  # of two medians
PRESET = "config/shakespeare_char_cpu_fast.py"
LONGER = ("--max_iters=400", "--muon_lr=0.02", "--learning_rate=1e-2")
PEER_LRS = (1e-3, 4e-3)  # its own, and its best of 5e-4, 1e-3, ... 8e-3 (amd-epyc-avx512_bf16)


def flags(values: list[str]) -> list[str]:
    return [f"--{value}" for value in values]


# -- one step -----------------------------------------------------------------------------------
def step(name: str, kernels: str, dtype: str, peer: Path | None) -> dict[str, Any]:
    """Our median step at a shape, by turns with bare matrix products; then
    with the peer, eager and compiled."""
    shape = ["--dataset=shakespeare_char", *flags(SHAPES[name])]
    typed = [*shape, f"--kernels={kernels}"]
    run = live_run([*typed, f"--dtype={dtype}"])
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
        "kernels": kernels,
        "dtype": dtype,
        "ms": 1000 * alone,
        "tokens_per_second": run.config.tokens_per_iter / alone,
        "of_peak": flops_per_iter(run.config) / alone / best,
        "peak_gflops": best / 1e9,
        "beside_ms": beside,
    }


def live_run(typed: list[str]) -> Run:
    """The run whose step is timed."""
    return benchmark.live_run(benchmark.benchmark_of(parse_arguments(typed), BenchOptions()))


def choices() -> list[tuple[str, str]]:
    """The kernels and types that this machine can choose between."""
    found = [("step", "float32"), ("fused", "float32")]
    if multiplies_bfloat16(torch.device("cpu")):
        found += [("step", "bfloat16"), ("fused", "bfloat16")]
    return found


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
    """Each shape and choice in a process of its own; the peer beside the automatic choice."""
    rows = []
    for name in SHAPES:
        numerics = live_run(["--dataset=shakespeare_char", *flags(SHAPES[name])]).numerics
        chosen = numerics.kernels, numerics.dtype
        for kernels, dtype in choices():
            automatic = (kernels, dtype) == chosen
            compared = peer and automatic and name not in PEER_LACKS
            command = [
                sys.executable,
                __file__,
                f"--step={name}",
                f"--kernels={kernels}",
                f"--dtype={dtype}",
                *([f"--peer={peer}"] if compared else []),
            ]
            done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]) | {"automatic": automatic})
            print(json.dumps(rows[-1]), flush=True)
    return rows


# -- a whole run --------------------------------------------------------------------------------
def seconds(command: list[str], cwd: Path) -> float:
    """The wall-clock of a command, start-up included."""
    started = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONPATH": str(ROOT)},
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
            encoding="utf-8",
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
        metrics = json.loads((Path(name) / "o" / "metrics.json").read_text(encoding="utf-8"))
    return {
        "seconds": took,
        "val_loss": metrics["val_loss"],
        "seed": seed,
        "parameters": metrics["total_params"],
    }


def time_to_loss(peer: Path | None) -> dict[str, Any]:
    """Ours by three seeds and, in between, nanoGPT's 2,000 updates at its own and other LRs."""
    found: dict[str, Any] = {"ours": [], "peer": []}
    for i in range(3):
        found["ours"].append(our_run(i + 1))
        print(json.dumps(found["ours"][-1]), flush=True)
        if peer and i < len(PEER_LRS):
            lr = PEER_LRS[i]
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
def page(records: list[dict[str, Any]]) -> str:
    """`speed.md`: each machine's tables, the newest first."""
    records = sorted(records, key=lambda found: found["machine"]["date"], reverse=True)
    return "\n".join(["# Speed", "", *(line for found in records for line in section(found))])


def section(found: dict[str, Any]) -> list[str]:
    """A machine's tables."""
    where, command = found["machine"], "make bench PEER=path/to/nanoGPT"
    lines = [
        f"## {where['name']} ({where['widest']})",
        "",
        f"{where['threads']} threads, torch {where['torch']}, "
        f"{where['date']}. Remake: `{command if found['peer'] else 'make bench'}`.",
        "",
        "| shape | kernels, precision | ms per step | tokens/s | of the matrix-product peak | "
        "ms by turns: ours, nanoGPT in its fastest mode | times nanoGPT |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in found.get("steps", ()):
        pair = min(r["beside_ms"].values(), key=lambda pair: pair["peer"], default=None)
        versus = (
            f"{pair['ours']:.1f}, {pair['peer']:.1f} | **{pair['peer'] / pair['ours']:.2f}**"
            if pair
            else "|"
        )
        lines.append(
            f"| {r['shape']} | {choice_of(r)} | {r['ms']:.1f} | "
            f"{r['tokens_per_second']:,.0f} | {r['of_peak']:.0%} of "
            f"{r['peak_gflops']:.0f} GFLOP/s | {versus} |"
        )
    for told, name in ((times_to_loss, "time_to_loss"), (sweeps, "sweep")):
        if name in found:
            lines += told(found)
    return [*lines, ""]


def times_to_loss(found: dict[str, Any]) -> list[str]:
    """The table of whole runs."""
    ours, peers = found["time_to_loss"]["ours"], found["time_to_loss"]["peer"]
    longer = found.get("time_to_retuned_loss", {"ours": []})["ours"]
    lines = [
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
        lines += [
            "",
            f"Slowest of ours / nanoGPT's own recipe (LR {peers[0]['learning_rate']:g}): "
            f"**{slowest / theirs:.3f}**.",
        ]
    if peers and longer:
        best = min(peers, key=lambda r: r["val_loss"])
        lines[-1] += (
            " Slowest of the longer ones / nanoGPT's best LR: "
            f"**{max(r['seconds'] for r in longer) / best['seconds']:.3f}**."
        )
    return lines


def sweeps(found: dict[str, Any]) -> list[str]:
    """The table of twelve runs."""
    lines = [
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
    return lines


def choice_of(row: dict[str, Any]) -> str:
    """The kernels and precision of a row; the automatic choice stands out."""
    choice = f"{row['kernels']}, {row['dtype']}"
    return f"**{choice}**" if row["automatic"] else choice


def advice(rows: list[dict[str, Any]]) -> list[str]:
    """Whether the automatic choice is the fastest here, a line for each shape where it is not."""
    peaks = {}  # of each type, at the machine's fastest: it drifts, and the product beside shows it
    for row in rows:
        peaks[row["dtype"]] = max(row["peak_gflops"], peaks.get(row["dtype"], 0.0))

    def ms(row: dict[str, Any]) -> float:
        return float(row["ms"] * row["peak_gflops"] / peaks[row["dtype"]])

    lines = []
    for name in SHAPES:
        of_shape = [row for row in rows if row["shape"] == name]
        best = min(of_shape, key=ms)
        (chosen,) = [row for row in of_shape if row["automatic"]]
        if ms(best) < NOISE * ms(chosen):
            lines.append(
                f"{name}: kernels={best['kernels']} dtype={best['dtype']} takes "
                f"{ms(best) / ms(chosen):.2f} of the automatic choice's time"
            )
    return lines or ["the automatic choice is the fastest, or within noise of it, at every shape"]


def machine() -> dict[str, Any]:
    """What the figures are of."""
    known = (instructions() or "").split()
    return {
        "name": re.sub(r"\(R\)|\(TM\)", "", device_name(torch.device("cpu"))).strip(),
        "widest": next((name for name in WIDEST if name in known), "plain"),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def record_of(where: dict[str, Any]) -> Path:
    """A machine's file."""
    name = re.sub(r"[^a-z0-9]+", "-", where["name"].lower()).strip("-")
    return HERE / f"{name}-{where['widest']}.json"


def records() -> list[dict[str, Any]]:
    """Every machine's; `gpu.json` beside them is another script's."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in HERE.glob("*-*.json")]


SECTIONS = {f.__name__: f for f in (time_to_loss, time_to_retuned_loss, sweep, steps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, help="a nanoGPT clone")
    parser.add_argument("--only", choices=SECTIONS, help="measure this alone, keep the rest")
    parser.add_argument("--step", choices=SHAPES, help=argparse.SUPPRESS)
    parser.add_argument("--kernels", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    peer = asked.peer and Path(benchmark.checked_clone(str(asked.peer)))
    if asked.step:
        print(json.dumps(step(asked.step, asked.kernels, asked.dtype, peer)))
        return
    where = machine()
    file = record_of(where)
    found: dict[str, Any] = {"peer": bool(peer)}
    if asked.only and file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
    found["machine"] = where
    for name in [asked.only] if asked.only else SECTIONS:
        found[name] = SECTIONS[name](peer)
        write_json(file, found)
    with atomic_write(HERE / "speed.md") as path:
        Path(path).write_text(page(records()), encoding="utf-8")
    if "steps" in found:
        print(*advice(found["steps"]), sep="\n")
    print(f"wrote {file} and {HERE / 'speed.md'}")


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
