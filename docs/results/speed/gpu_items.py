"""The items of `gpu_check.py`, a process each: answers go to standard output, a JSON line each.

An answer (row) says in words what was found, whether that is as it should be, and the numbers. What
libraries and runs print goes to standard error.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any
from xml.etree import ElementTree

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from nanoscale.data.prepare import prepare
from nanoscale.experiments import ExperimentRunner
from nanoscale.model.distributed import Ranks
from nanoscale.spec.memory import StepNumerics, memory_estimate
from nanoscale.spec.sources import build as built
from nanoscale.spec.sources import parse_arguments, typed
from nanoscale.spec.values import Json
from nanoscale.store.folder import CHECKPOINT, COMPLETE, RunFolder
from nanoscale.training import checkpoint
from nanoscale.training.bench import BenchOptions, benchmark_of, live_run
from nanoscale.training.hardware import device_name, multiplies_bfloat16
from nanoscale.training.loop import update
from nanoscale.training.records import RunResult
from nanoscale.training.run import train
from nanoscale.training.state import Run, build

ROOT = Path(__file__).resolve().parents[3]
WARM = 10  # updates before the clock counts; what they come to is compared between modes
TURN = 5  # updates of which nobody waits for any but the last, as between a run's rows
MOST_TURNS = 20
SECONDS = 3.0  # that are timed, a turn at least
SAME_LOSS, SAME_NORM = 0.01, 0.05  # relative, of two modes that round in different places
ROUNDING = 1e-3  # relative, of losses in float32 by other operations or ranks
LOSS_BOUND = 0.002  # nats, between precisions
MEMORY_BOUND = 0.1  # relative, of an estimate
PAIRS, PAIR_SECONDS = 12, 22.0
RANK_SECONDS = 30.0  # two processes that have not ended by then hang

GPT2 = ["--batch_size=12", "--block_size=1024"]  # bench's defaults are GPT-2's size
LLAMA = [
    "--use_rmsnorm=True",
    "--use_rope=True",
    "--use_swiglu=True",
    "--use_qk_norm=True",
    "--n_kv_head=4",
]
SMALL = [
    "--n_layer=4",
    "--n_head=4",
    "--n_embd=64",
    "--block_size=128",
    "--batch_size=16",
    "--vocab_size=65",
]
MIDDLE = [
    "--n_layer=6",
    "--n_head=6",
    "--n_embd=384",
    "--block_size=256",
    "--batch_size=32",
    "--vocab_size=65",
    "--dtype=float32",
]
# Of every step that is timed: from the first update at its full LR, and nothing evaluated.
PLAIN = ["--warmup_iters=0", "--eval_interval=0", "--final_eval_tokens=1"]
TINY = [
    "--n_layer=1",
    "--n_head=2",
    "--n_kv_head=2",
    "--n_embd=16",
    "--block_size=8",
    "--batch_size=2",
    "--vocab_size=65",
    "--threads=1",
    "--kernels=torch",
    "--compile=False",
]
EAGER, COMPILED = ["--compile=False"], ["--compile=True"]
GRAPHS = [*COMPILED, "--cuda_graphs=True"]

Row = dict[str, Json]
Rows = Iterator[Row]


def row(what: str, said: str, passed: bool | None = None, **numbers: Json) -> Row:
    return {"what": what, "said": said, "passed": passed, **numbers}


def tried(what: str, rows: Callable[[], Rows]) -> Rows:
    """Some rows of an item; one that says why, where they fail, and the item goes on."""
    try:
        yield from rows()
    except Exception as e:
        said = f"failed: {type(e).__name__}: {e}".splitlines()[0]
        yield row(what, said[:160], passed=False)


@dataclass(frozen=True)
class Place:
    """Where and in which size an item computes."""

    device: str
    tiny: bool
    folder: Path  # for what it writes

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    def flags(self, *flags: str) -> list[str]:
        """Flags, on this device and in this size."""
        return [*flags, *(TINY if self.tiny else []), f"--device={self.device}"]

    def modes(self) -> dict[str, list[str]]:
        """How a step may be launched here."""
        if self.tiny:
            return {"eager": EAGER}
        return {"eager": EAGER, "compiled": COMPILED, "CUDA graphs": GRAPHS}

    def dataset(self) -> Path:
        """The synthetic dataset, prepared once."""
        path = self.folder / "synthetic"
        if not path.is_dir():
            prepare("synthetic", out=path)
        return path


# -- a step, timed --------------------------------------------------------------------------------
@dataclass(frozen=True)
class Step:
    """A training step: its time, its memory, and what the last of the first few came to."""

    seconds: float
    tokens: int
    mfu: float | None
    loss: float
    grad_norm: float
    peak: int | None  # bytes of a GPU
    estimate: int  # of them

    def agrees(self, other: Step) -> bool:
        """Whether two ways of computing the same step came to the same."""
        by_loss = abs(self.loss / other.loss - 1)
        by_norm = abs(self.grad_norm / other.grad_norm - 1)
        return by_loss <= SAME_LOSS and by_norm <= SAME_NORM

    def told(self) -> str:
        parts = [f"{1000 * self.seconds:.2f} ms", f"{self.tokens / self.seconds:,.0f} tokens/s"]
        if self.mfu is not None:
            parts.append(f"MFU {self.mfu:.1%}")
        return ", ".join(parts)

    def numbers(self) -> dict[str, Json]:
        return {
            "ms": 1000 * self.seconds,
            "tokens_per_second": self.tokens / self.seconds,
            "mfu": self.mfu,
            "loss": self.loss,
            "grad_norm": self.grad_norm,
        }


def forget(at: Place) -> None:
    """Give back what the steps before have left."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    gc.collect()
    if at.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def step_of(at: Place, *flags: str) -> Step:
    """A run's training step on random tokens."""
    forget(at)
    before = torch.cuda.memory_allocated() if at.on_gpu else 0
    sources = parse_arguments([*PLAIN, *at.flags(*flags)])
    return timed(at, live_run(benchmark_of(sources, BenchOptions(real_data=False))), before)


def timed(at: Place, run: Run, before: int) -> Step:
    """The step of a run that stands; `before` are the bytes that were taken when it did not."""
    for _ in range(WARM):
        done = update(run)
    loss, norm = done.loss.item(), done.grad_norm.item()
    times: list[float] = []
    while len(times) < MOST_TURNS and (not times or sum(times) * TURN < SECONDS):
        began = time.perf_counter()
        for _ in range(TURN):
            done = update(run)
        done.loss.item()  # waits for the device
        times.append((time.perf_counter() - began) / TURN)

    how = run.numerics
    seconds = median(times)
    estimate = memory_estimate(run.config, StepNumerics(how.kernels, how.device, how.dtype))
    return Step(
        seconds=seconds,
        tokens=run.config.tokens_per_iter,
        mfu=run.meter.timing(seconds, 1).mfu,
        loss=loss,
        grad_norm=norm,
        peak=torch.cuda.max_memory_allocated() - before if at.on_gpu else None,
        estimate=estimate["total"],
    )


def step_rows(what: str, step: Step, like: Step | None = None, eager: bool = True) -> Rows:
    """The time of a step, equal to `like` in what it computes, and its memory by its estimate.

    Estimates are of eager steps; others need less, or as much.
    """
    agrees = None if like is None else step.agrees(like)
    told = step.told()
    if agrees is False and like is not None:
        told += (
            f"; loss {step.loss:.5g}, gradient {step.grad_norm:.5g}, "
            f"but eager {like.loss:.5g}, {like.grad_norm:.5g}"
        )
    yield row(what, told, agrees, **step.numbers())
    if step.peak is not None:
        off = step.estimate / step.peak - 1
        said = f"{step.peak / 1e9:.3f} GB, estimated {step.estimate / 1e9:.3f} ({off:+.1%})"
        within = abs(off) <= MEMORY_BOUND if eager else off >= -MEMORY_BOUND
        yield row(f"{what}, memory", said, within, peak=step.peak, estimate=step.estimate)


def modes(at: Place, flags: list[str]) -> Rows:
    """A step eager, compiled and by CUDA graphs: its time, and that it is the same step."""
    found: dict[str, Step] = {}
    for name, mode in at.modes().items():

        def rows(name: str = name, mode: list[str] = mode) -> Rows:
            found[name] = step_of(at, *flags, *mode)
            yield from step_rows(name, found[name], found.get("eager"), name == "eager")

        yield from tried(name, rows)


@contextmanager
def repeatable() -> Iterator[None]:
    """torch's deterministic operations; with warnings alone it would not take attention's."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # which costs, and hides nothing
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


# -- runs, from config to folder ------------------------------------------------------------------
def trained(at: Place, name: str, *flags: str, resume: bool = False) -> RunResult:
    """A run on the synthetic dataset, in a folder of that name, to its end."""
    fixed = [f"--dataset={at.dataset()}", f"--out_dir={at.folder / name}"]
    sources = parse_arguments([*at.flags(*flags), *fixed])
    result = train(built(sources), resume=resume, typed=typed(sources))
    if result.status != COMPLETE:
        raise RuntimeError(f"the run ended {result.status}")
    return result


def state_of(result: RunResult) -> str:
    """A digest of the weights and the optimizer's state that a run ended with."""
    content = checkpoint.load(result.folder / CHECKPOINT)
    return checkpoint.digest({key: content[key] for key in ("model", "optimizer")})


def losses_of(result: RunResult) -> list[float]:
    return [r["train_loss"] for r in result.folder.rows() if r["train_loss"] is not None]


# -- the items ------------------------------------------------------------------------------------
def machine(at: Place) -> Rows:
    """What there is."""
    if at.on_gpu and not torch.cuda.is_available():
        yield row("device", "no GPU: torch.cuda.is_available() is False", absent=True)
        return
    device = torch.device(at.device)
    parts = [device_name(device), f"torch {torch.__version__}"]
    if at.on_gpu:
        facts = torch.cuda.get_device_properties(device)
        parts += [f"CUDA {torch.version.cuda}", f"{facts.total_memory / 1e9:.0f} GB"]
        parts += [f"compute capability {facts.major}.{facts.minor}"]
        parts += ["bfloat16" if multiplies_bfloat16(device) else "no bfloat16"]
    yield row("device", ", ".join(parts), name=parts[0], torch=torch.__version__)


def gpt2(at: Place) -> Rows:
    """GPT-2's size, 12 x 1024 tokens: time, MFU and memory in every mode."""
    yield from modes(at, GPT2)

    def deterministic() -> Rows:
        with repeatable():
            step = step_of(at, *GPT2, *EAGER)
        yield row("eager, deterministic operations", step.told(), **step.numbers())

    yield from tried("eager, deterministic operations", deterministic)


def small(at: Place) -> Rows:
    """Width 64, 4 layers: steps per second, which launches bound."""
    for r in modes(at, SMALL):
        ms = r.get("ms")
        if isinstance(ms, float):
            r["said"] = f"{1000 / ms:,.0f} steps/s, {r['said']}"
        yield r

    last, mode = list(at.modes().items())[-1]
    parts = f"{last}, 2 micro-batches"  # whose gradients add up in memory that a graph owns

    def halves() -> Rows:
        half = [*SMALL, f"--micro_batch_size={1 if at.tiny else 8}"]
        like = step_of(at, *half, *EAGER)
        yield from step_rows(parts, step_of(at, *half, *mode), like, eager=False)

    yield from tried(parts, halves)

    def muon() -> Rows:
        step = step_of(at, *SMALL, "--optimizer=muon", *EAGER)
        yield from step_rows("eager, Muon", step)

    yield from tried("eager, Muon", muon)


def loss(at: Place) -> Rows:
    """What less memory costs at GPT-2's size, and whether estimates hold there."""
    whole = step_of(at, *GPT2, *EAGER)
    yield from step_rows("whole", whole)
    variants = {
        "loss_chunk=8192": ["--loss_chunk=8192"],
        "loss_chunk=2048": ["--loss_chunk=2048"],
        "recompute, loss_chunk=2048": ["--recompute=True", "--loss_chunk=2048"],
        "LLaMA's parts": LLAMA,
    }
    for name, flags in variants.items():

        def rows(name: str = name, flags: list[str] = flags) -> Rows:
            step = step_of(at, *GPT2, *EAGER, *flags)
            like = None if flags is LLAMA else whole
            for r in step_rows(name, step, like):
                if "ms" in r:
                    r["said"] = f"{step.seconds / whole.seconds:.2f} of the time: {r['said']}"
                elif whole.peak:
                    r["said"] = f"{(step.peak or 0) / whole.peak:.2f} of the memory: {r['said']}"
                yield r

        yield from tried(name, rows)


def presets(at: Place) -> Rows:
    """The presets for GPUs, as they stand."""
    files = {
        "gpt2_124m_fast, one batch of its 8": ["--gradient_accumulation_steps=1"],
        "shakespeare_char_fast": ["--vocab_size=65"],
    }
    for name, flags in files.items():
        file = str(ROOT / "config" / f"{name.partition(',')[0]}.py")

        def rows(name: str = name, flags: list[str] = flags, file: str = file) -> Rows:
            step = step_of(at, file, *flags)
            yield from step_rows(name, step, eager=False)

        yield from tried(name, rows)


def resume(at: Place) -> Rows:
    """Whether a run that was stopped ends with the bits of one that was not, and a twin too."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch's condition for the last
    middle = ["--n_layer=2", "--n_head=4", "--n_embd=256", "--batch_size=8", "--eval_iters=2"]
    middle += ["--lr_schedule=constant", "--warmup_iters=0", "--eval_interval=5"]
    middle += ["--final_eval_tokens=4096", "--gradient_accumulation_steps=1", "--threads=1"]
    short = [*middle, "--block_size=64", "--dropout=0.1", "--optimizer=muon"]
    cases = {
        "block 64, dropout, Muon": [*short, *EAGER],
        "block 512": [*middle, "--block_size=512", *EAGER],
        "block 512, float32": [*middle, "--block_size=512", "--dtype=float32", *EAGER],
        "block 512, deterministic operations": [*middle, "--block_size=512", *EAGER],
        "block 64, compiled": [*short, *COMPILED],
    }
    for number, (name, flags) in enumerate(cases.items()):

        def rows(number: int = number, name: str = name, flags: list[str] = flags) -> Rows:
            if "deterministic" not in name:
                yield resumed(at, f"resume{number}", name, flags)
                return
            with repeatable():
                yield resumed(at, f"resume{number}", name, flags)

        yield from tried(name, rows)


def resumed(at: Place, folder: str, name: str, flags: list[str]) -> Row:
    """A run of 20 updates, its twin, and one of 10 that was lengthened: all their bits."""
    once = state_of(trained(at, f"{folder}/once", *flags, "--max_iters=20"))
    twin = state_of(trained(at, f"{folder}/twin", *flags, "--max_iters=20"))
    trained(at, f"{folder}/again", *flags, "--max_iters=10")
    again = trained(at, f"{folder}/again", *flags, "--max_iters=20", resume=True)
    equal = state_of(again) == once
    said = "stopped and continued: the same bits"
    if not equal:
        said = "stopped and continued: OTHER bits"
    if twin != once:
        said += "; but two undisturbed runs differ: operations here do not repeat"
    return row(name, said, equal and twin == once, resume=equal, twins=twin == once)


def dtypes(at: Place) -> Rows:
    """The loss of runs in narrow types against float32's, by pairs of one seed."""
    flags = ["--n_layer=2", "--n_head=4", "--n_embd=128", "--block_size=64", "--batch_size=32"]
    flags += ["--learning_rate=2e-3", "--warmup_iters=10", "--lr_schedule=linear", "--min_lr=0"]
    flags += ["--gradient_accumulation_steps=1", "--eval_interval=0", "--log_interval=50", *EAGER]
    flags += [f"--max_iters={5 if at.tiny else 200}"]
    narrow = ["bfloat16", "float16"] if at.on_gpu else ["bfloat16"]
    apart: dict[str, list[float]] = {name: [] for name in narrow}
    until = time.monotonic() + (0 if at.tiny else PAIR_SECONDS)
    for seed in range(1, PAIRS + 1):
        seeded = [*flags, f"--seed={seed}"]
        exact = trained(at, f"dtypes/{seed}", *seeded, "--dtype=float32").val_loss
        for name, gaps in apart.items():
            other = trained(at, f"dtypes/{seed}-{name}", *seeded, f"--dtype={name}").val_loss
            assert exact is not None
            assert other is not None
            gaps.append(other - exact)
            gap = mean(gaps)
            spread = f", spread {stdev(gaps):.5f}" if len(gaps) > 1 else ""
            said = f"{gap:+.5f} nats from float32's ({len(gaps)} pairs{spread})"
            yield row(name, said, abs(gap) <= LOSS_BOUND, gap=gap, gaps=list(gaps))
        if time.monotonic() > until:
            return


# -- ranks ----------------------------------------------------------------------------------------
def ranks(at: Place) -> Rows:
    """DDP and FSDP on one device: in a world of one, and two processes that share it."""
    flags = [*PLAIN, *at.flags(*MIDDLE, *EAGER)]
    what = benchmark_of(parse_arguments(flags), BenchOptions(real_data=False))
    backend = "nccl" if at.on_gpu else "gloo"

    def alone() -> Run:
        return live_run(what)

    def ddp() -> Run:
        run = live_run(what)
        ids = [run.device.index] if at.on_gpu else None
        run.trained = DistributedDataParallel(run.trained, device_ids=ids)
        return run

    def fsdp() -> Run:
        return build(what.spec, what.dataset, Ranks(sharded=True))

    def step(make: Callable[[], Run]) -> Step:
        forget(at)
        before = torch.cuda.memory_allocated() if at.on_gpu else 0
        return timed(at, make(), before)

    like = step(alone)
    yield from step_rows("one process, alone", like)
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        for name, make in {"DDP": ddp, "FSDP": fsdp}.items():
            title = f"{name} of one process, {backend}"

            def rows(make: Callable[[], Run] = make, title: str = title) -> Rows:
                found = step(make)
                near = found.agrees(like) and abs(found.loss / like.loss - 1) <= ROUNDING
                yield row(title, found.told(), near, peak=found.peak, **found.numbers())

            yield from tried(title, rows)
    finally:
        gc.collect()  # DDP's reducer sits in a cycle and must go before its process group
        dist.destroy_process_group()
    if not at.tiny:
        yield from two_processes(at)


def two_processes(at: Place) -> Rows:
    """Runs over two processes on one device against one process's, where a backend takes that."""
    flags = [*MIDDLE, *EAGER, "--optimizer=muon", "--gradient_accumulation_steps=1"]
    flags += ["--vocab_size=32", "--max_iters=10", "--warmup_iters=0", "--eval_interval=0"]
    flags += ["--final_eval_tokens=4096"]
    like = losses_of(trained(at, "ranks/one", *flags))
    device = f"{at.device}:0" if at.on_gpu else at.device
    for backend in ["gloo", "nccl"] if at.on_gpu else ["gloo"]:
        for sharding in ("ddp", "fsdp"):
            name = f"{sharding.upper()} of two processes, {backend}"
            out = at.folder / "ranks" / f"{backend}-{sharding}"
            more = [f"--backend={backend}", f"--sharding={sharding}", f"--device={device}"]
            more += [f"--dataset={at.dataset()}", f"--out_dir={out}"]
            began = time.perf_counter()
            refusal = together(at, ["train.py", *at.flags(*flags), *more])
            if refusal:
                yield row(name, f"did not run on one device: {refusal}", possible=False)
                break  # the other kind of sharding would meet the same
            found = losses_of(RunResult.read(RunFolder(out)))
            apart = max(abs(a / b - 1) for a, b in zip(found, like, strict=True))
            seconds = time.perf_counter() - began
            said = f"losses within {apart:.1e} of one process's, {seconds:.0f} s with start-up"
            yield row(name, said, apart <= ROUNDING, apart=apart, possible=True)


def together(at: Place, command: list[str]) -> str | None:
    """Run a script as two ranks of one machine; why they failed, None if they did not."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    logs = [at.folder / f"rank{rank}.txt" for rank in (0, 1)]
    processes = []
    for rank, log in enumerate(logs):
        mine = os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, env=mine, stdout=file, stderr=file
            )
        processes.append(process)

    until = time.monotonic() + RANK_SECONDS
    try:
        while time.monotonic() < until:
            codes = [process.poll() for process in processes]
            if codes == [0, 0]:
                return None
            for code, log in zip(codes, logs, strict=True):
                if code:
                    return last_line(log.read_text(encoding="utf-8", errors="replace"))
            time.sleep(0.1)
        return f"no end after {RANK_SECONDS:.0f} s"
    finally:
        for process in processes:
            process.kill()
            process.wait()


def last_line(text: str) -> str:
    """The line of an error's output that says what it is."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if "Error" in line or "error:" in line or "Duplicate" in line]
    return (told or lines or ["no reason given"])[-1][:160]


# -- tests and the engine -------------------------------------------------------------------------
def tests(at: Place) -> Rows:
    """The tests marked gpu."""
    files = [
        path
        for path in sorted(ROOT.glob("tests/**/test_*.py"))
        if "mark.gpu" in path.read_text(encoding="utf-8")
    ]
    report = at.folder / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", f"--junitxml={report}"]
    done = subprocess.run(
        [*command, *map(str, files)], cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8"
    )
    print(done.stdout, file=sys.stderr)
    if not report.is_file():
        yield row("pytest", f"failed: exit code {done.returncode}", passed=False)
        return
    for case in ElementTree.parse(report).iter("testcase"):
        yield test_row(case)


def test_row(case: ElementTree.Element) -> Row:
    """A test as pytest's report has it."""
    name = case.get("name", "")
    for kind in ("failure", "error"):
        found = case.find(kind)
        if found is not None:
            message = found.get("message", "").splitlines() or [kind]
            return row(name, f"failed: {message[0][:140]}", passed=False)
    if case.find("skipped") is not None:
        return row(name, "skipped")
    return row(name, f"passed in {float(case.get('time', 0)):.1f} s", passed=True)


def engine(at: Place) -> Rows:
    """A grid of four runs by the pool, whose processes are forks, and a sample of one."""
    flags = typed(parse_arguments(at.flags(*SMALL, "--max_iters=50", "--eval_interval=0", *EAGER)))
    flags |= {"dataset": str(at.dataset()), "gradient_accumulation_steps": 1, "warmup_iters": 0}
    flags |= {"vocab_size": 32, "min_lr": 0.0, "final_eval_tokens": 4096}
    began = time.perf_counter()
    study = ExperimentRunner(output_root=at.folder / "grid").run_grid(
        "gpu_check", flags, {"learning_rate": [1e-3, 2e-3], "seed": [1, 2]}
    )
    seconds = time.perf_counter() - began
    records = [run for run in study.frame().to_dict("records") if run["state"] == COMPLETE]
    said = f"{len(records)} of 4 runs complete in {seconds:.1f} s"
    yield row("a grid of 4 runs", said, len(records) == 4, seconds=seconds)

    folder = next((at.folder / "grid" / "runs").iterdir())
    command = ["-m", "nanoscale", "sample", f"--out_dir={folder}", f"--device={at.device}"]
    command += ["--num_samples=1", "--max_new_tokens=20"]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    said = "drawn" if not done.returncode else last_line(done.stderr)
    yield row("a sample", said, not done.returncode)


ITEMS: Mapping[str, Callable[[Place], Rows]] = {
    f.__name__: f
    for f in (machine, gpt2, resume, small, tests, loss, ranks, dtypes, presets, engine)
}


def say(rows: Iterable[Row], to: Any) -> None:
    for r in rows:
        print(json.dumps(r), file=to, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("item", choices=ITEMS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--folder", type=Path, required=True)
    asked = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what runs print is no answer
    with suppress(BrokenPipeError):  # nobody listens any more
        say(ITEMS[asked.item](Place(asked.device, asked.tiny, asked.folder)), answers)


if __name__ == "__main__":
    main()
