"""Time the training step, as nanoGPT's bench.py does: burn in, then the median of timed steps.

The step is `loop.update` itself on a run that writes nothing. With a peer a nanoGPT clone's step at
the same shapes takes turns with it, so that both meet the same machine and minute.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from nanoscale.data.dataset import Dataset, open_dataset
from nanoscale.data.meta import GPT2_VOCAB_SIZE, Meta
from nanoscale.errors import UserError, disk_errors
from nanoscale.spec.config import ExperimentConfig
from nanoscale.spec.counting import parameter_counts
from nanoscale.spec.identity import RunSpec
from nanoscale.spec.sources import Source, build, typed
from nanoscale.spec.values import Json
from nanoscale.spec.weights import begins_with_weights
from nanoscale.store.folder import TRACE, run_spec

if TYPE_CHECKING:
    from nanoscale.training.state import Run

BURN_IN = 10  # steps before the clock counts
TURN = 4  # timed steps in a row
MOST_TURNS = 25
PATIENCE = 20.0  # seconds: slow steps are timed for about this long, one turn at least
TRACE_FOLDER = Path("bench_log")

BENCH_DEFAULTS = Source("bench's defaults", {"gradient_accumulation_steps": 1})
WORKER = Path(__file__).with_name("bench_peer.py")
# The keys that change our step and not the peer's, with the values at which the two are alike.
PEER_LACKS = {
    "use_rmsnorm": False,
    "use_rope": False,
    "use_swiglu": False,
    "use_qk_norm": False,
    "tie_embeddings": True,
    "z_loss": 0.0,
    "optimizer": "adamw",
}

TimedStep = Callable[[], float]  # makes one update and returns its seconds


# -- what is timed --------------------------------------------------------------------------------
@dataclass(frozen=True)
class BenchOptions:
    """What to do with a config's training step."""

    real_data: bool = True  # False: random tokens, no dataset needed
    peer: str | None = None  # a nanoGPT clone, timed in alternation at the same shapes


@dataclass(frozen=True)
class Benchmark:
    """A run to time, everything checked that needs no torch."""

    spec: RunSpec
    dataset: Dataset
    options: BenchOptions


def benchmark_of(sources: Sequence[Source], options: BenchOptions) -> Benchmark:
    """The benchmark of the config that `sources` describe over bench's defaults.

    Raises:
        UserError: options that exclude each other, or a bad config, dataset or clone.
    """
    sources = [BENCH_DEFAULTS, *sources]
    config = build(sources)
    if config.profile and options.peer:
        raise UserError("--profile=True and --peer exclude each other; leave one out")
    if options.peer:
        options = replace(options, peer=checked_clone(options.peer))
    weights = None
    if begins_with_weights(config):
        from nanoscale.model.init_from import weights_of

        weights = weights_of(config.init_from)
        config = weights.fit(config, typed(sources))
    dataset = real_dataset(config) if options.real_data else random_dataset(config)
    spec = run_spec(config, dataset, typed(sources), weights)
    return Benchmark(spec, dataset, options)


def checked_clone(path: str) -> str:
    """The absolute path of a nanoGPT clone."""
    if not (Path(path) / "model.py").is_file():
        raise UserError(f"--peer={path}: no model.py there; name a nanoGPT clone's folder")
    return str(Path(path).resolve())


def real_dataset(config: ExperimentConfig) -> Dataset:
    try:
        return open_dataset(config.dataset, config.data_root)
    except UserError as e:
        raise UserError(f"{e}; or time random tokens with --real_data=False") from e


def random_dataset(config: ExperimentConfig) -> Dataset:
    """A dataset in memory alone: uniformly random tokens of GPT-2's vocabulary or `vocab_size`."""
    vocab_size = config.vocab_size or GPT2_VOCAB_SIZE
    length = 2**20 + config.block_size
    tokens = np.random.default_rng(config.seed).integers(vocab_size, size=length)
    return Dataset(
        name="random",
        folder=Path(),
        vocab_size=vocab_size,
        fingerprint="random",
        tokens={"train": tokens, "val": tokens},
        meta=Meta("ids", vocab_size),
    )


# -- the two steps --------------------------------------------------------------------------------
def live_run(what: Benchmark) -> Run:
    """The run at its beginning; it has no folder, so nothing is written."""
    from nanoscale.model.distributed import Ranks
    from nanoscale.training.state import build

    return build(what.spec, what.dataset, Ranks())


def our_step(run: Run) -> TimedStep:
    """`loop.update`, waited for."""
    from nanoscale.training.loop import update

    def step() -> float:
        started = time.perf_counter()
        update(run).loss.item()  # waits for the device
        return time.perf_counter() - started

    return step


def job_of(what: Benchmark, run: Run) -> dict[str, Json]:
    """What the peer's worker needs to know: our config and numerics, its folder and tokens."""
    train_bin = None
    if what.options.real_data:
        train_bin = str((what.dataset.folder / "train.bin").resolve())
    paths = {"path": what.options.peer, "train_bin": train_bin}
    return run.config.to_dict() | run.numerics.to_json() | paths


@contextmanager
def peer_step(job: Mapping[str, Json]) -> Iterator[TimedStep]:
    """The clone's step, in a process that works only while it is waited for."""
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [sys.executable, "-P", str(WORKER)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        requests, answers = process.stdin, process.stdout

        def ask(line: str) -> str:
            with suppress(BrokenPipeError):
                requests.write(f"{line}\n".encode())
            answer = answers.readline().decode()
            if not answer:
                errors.seek(0)
                lines = errors.read().decode(errors="replace").strip().splitlines()
                reason = lines[-1] if lines else "no reason"
                raise UserError(f"--peer={job['path']}: its training step failed: {reason}")
            return answer

        ask(json.dumps(job))  # answered once the clone's model stands
        yield lambda: float(ask("step"))


def differences(run: Run) -> list[str]:
    """The keys by which our step is other work than a nanoGPT clone's."""
    config = run.config
    keys = [key for key, alike in PEER_LACKS.items() if getattr(config, key) != alike]
    if config.kv_heads != config.n_head:
        keys.append("n_kv_head")
    if run.numerics.dtype != "float32" and run.device.type != "cuda":
        keys.append(f"dtype={run.numerics.dtype}")
    return keys


# -- timing ---------------------------------------------------------------------------------------
def burn_in(step: TimedStep) -> float:
    """Up to BURN_IN steps, the first (it compiles) and then as many as patience allows.

    Returns the seconds of the last one.
    """
    seconds, started = step(), time.perf_counter()
    for _ in range(BURN_IN - 1):
        seconds = step()
        if time.perf_counter() - started > PATIENCE:
            break
    return seconds


def measure(steps: Mapping[str, TimedStep]) -> dict[str, float]:
    """The median seconds of each step; several take turns, never at the same time."""
    slowest = max([burn_in(step) for step in steps.values()])
    affordable = max(int(PATIENCE / (TURN * slowest)), 1)
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(min(affordable, MOST_TURNS)):
        for name, step in steps.items():
            if len(steps) > 1:
                step()  # not counted: it finds the caches as the other one left them
            times[name] += [step() for _ in range(TURN)]
    return {name: median(seconds) for name, seconds in times.items()}


def profiled(run: Run) -> dict[str, Json]:
    """Where the run's step goes, told; its trace is in TRACE_FOLDER."""
    from nanoscale.training.profiling import MOST_UPDATES, WARM_UP, profiling

    step, updates = our_step(run), WARM_UP + MOST_UPDATES
    with disk_errors(TRACE_FOLDER):
        TRACE_FOLDER.mkdir(exist_ok=True)
    path = TRACE_FOLDER / TRACE
    with profiling(run, path, print, updates) as profiler:
        for _ in range(updates):
            with profiler.step():
                step()
    assert profiler.found is not None
    return {"trace": str(path), "profile": profiler.found.to_json()}


# -- as people call it ----------------------------------------------------------------------------
def bench(what: Benchmark) -> dict[str, Json]:
    """Time a run's step, or trace it; nanoGPT's line comes last. The medians, in seconds."""
    run = live_run(what)
    print(introduction(run), flush=True)
    if run.config.profile:
        return profiled(run)

    with ExitStack() as stack:
        steps = {"nanoscale": our_step(run)}
        if what.options.peer:
            steps["peer"] = stack.enter_context(peer_step(job_of(what, run)))
        medians = measure(steps)
    for line in lines(run, medians["nanoscale"], medians.get("peer")):
        print(line)
    return {
        "seconds": medians["nanoscale"],
        "peer_seconds": medians.get("peer"),
        "mfu": run.meter.timing(medians["nanoscale"], 1).mfu,
        "tokens_per_iter": run.config.tokens_per_iter,
        "config": run.config.to_dict(),
        "numerics": run.numerics.to_json(),
    }


def introduction(run: Run) -> str:
    """What is timed, in one line."""
    config = run.config
    numerics = run.numerics
    millions = parameter_counts(config)["non_position"] / 1e6
    mode = "compiled" if numerics.compile else "eager"
    line = (
        f"{millions:.2f}M parameters, {config.sequences_per_iter} x {config.block_size} tokens per "
        f"iteration, {mode}, {numerics.dtype} on {numerics.device_name}"
    )
    if numerics.threads:
        line += f", {numerics.threads} threads"
    return line


def lines(run: Run, seconds: float, peer_seconds: float | None) -> Iterator[str]:
    """Both medians, their ratio, and what makes the comparison an unequal one; nanoGPT's line."""
    ours = f"{seconds * 1000:.4f}ms"
    if peer_seconds is not None:
        lacking = differences(run)
        if lacking:
            yield f"note: the peer has no {', '.join(lacking)}: not the same work"
        yield (
            f"nanoscale {ours}, peer {peer_seconds * 1000:.4f}ms, "
            f"ratio {seconds / peer_seconds:.3f} (below 1: nanoscale is faster)"
        )
    mfu = run.meter.timing(seconds, 1).mfu
    share = "n/a" if mfu is None else f"{mfu:.2%}"
    yield f"time per iteration: {ours}, MFU: {share}"
