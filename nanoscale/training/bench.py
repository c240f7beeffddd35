"""Time the training step, as nanoGPT's bench.py does: burn in, then the median of timed steps.

The step is `training.update` itself on a run that writes nothing. With `--peer=PATH` a nanoGPT
clone's step at the same shapes takes turns with it, so that both meet the same machine and minute.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from nanoscale.data.dataset import Dataset, open_dataset
from nanoscale.data.meta import GPT2_VOCAB_SIZE, Meta
from nanoscale.errors import DONE, UserError, did_you_mean, disk_errors
from nanoscale.spec.config import ExperimentConfig
from nanoscale.spec.counting import parameter_counts
from nanoscale.spec.identity import RunSpec
from nanoscale.spec.resolve import resolve
from nanoscale.spec.sources import FIELDS, Source, build, coerce, help_text, parse_arguments, typed
from nanoscale.store.folder import run_spec

if TYPE_CHECKING:
    from nanoscale.training.run import Run

BURN_IN = 10  # steps before the clock counts
TURN = 4  # timed steps in a row
MOST_TURNS = 25
PATIENCE = 20.0  # seconds: slow steps are timed for about this long, one turn at least
PROFILE_STEPS = 5  # each of: waiting, warming up, recording
TRACE_FOLDER = Path("bench_log")

DEFAULTS = Source("bench's defaults", {"gradient_accumulation_steps": 1})
OWN: dict[str, tuple[Any, Any, str]] = {
    "real_data": (True, bool, "False: random tokens, no dataset needed"),
    "profile": (False, bool, f"write a torch profiler trace to ./{TRACE_FOLDER} instead"),
    "peer": (None, str | None, "a nanoGPT clone, timed in alternation at the same shapes"),
}
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

Step = Callable[[], float]  # makes one update and returns its seconds


@dataclass(frozen=True)
class Request:
    """What to time: everything that was typed, checked; nothing of it needs torch."""

    spec: RunSpec
    dataset: Dataset
    real_data: bool
    profile: bool
    peer: Path | None


# -- what was typed -------------------------------------------------------------------------------
def requested(arguments: Sequence[str]) -> Request:
    """The flags of this module and the config that the others describe.

    Raises:
        UserError: a bad flag, config, dataset or clone.
    """
    own, rest = {key: default for key, (default, _, _) in OWN.items()}, []
    for argument in arguments:
        key, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or key in FIELDS:
            rest.append(argument)
        elif key in OWN and equals:
            own[key] = coerce(f"--{key}", value, OWN[key][1])
        elif key in OWN:
            raise UserError(f"{argument}: flags are written --key=value")
        else:
            raise UserError(
                f"--{key}: unknown key{did_you_mean(key, [*OWN, *FIELDS]) or '; --help lists all'}"
            )
    if own["profile"] and own["peer"]:
        raise UserError("--profile=True and --peer exclude each other; leave one out")
    peer = own["peer"] and checked_clone(own["peer"])
    sources = [DEFAULTS, *parse_arguments(rest)]
    config = build(sources)
    dataset = real_dataset(config) if own["real_data"] else random_dataset(config)
    spec = run_spec(resolve(config, dataset.vocab_size), dataset, typed(sources))
    return Request(spec, dataset, own["real_data"], own["profile"], peer)


def checked_clone(typed_path: str) -> Path:
    """The folder of a nanoGPT clone."""
    if not (Path(typed_path) / "model.py").is_file():
        raise UserError(f"--peer={typed_path}: no model.py there; name a nanoGPT clone's folder")
    return Path(typed_path).resolve()


def real_dataset(config: ExperimentConfig) -> Dataset:
    try:
        return open_dataset(config.dataset, config.data_root)
    except UserError as e:
        raise UserError(f"{e}; or time random tokens with --real_data=False") from e


def random_dataset(config: ExperimentConfig) -> Dataset:
    """A dataset in memory alone: uniformly random tokens of GPT-2's vocabulary or `vocab_size`."""
    import numpy as np

    size, shape = config.vocab_size or GPT2_VOCAB_SIZE, 2**20 + config.block_size
    tokens = np.random.default_rng(config.seed).integers(size, size=shape)
    return Dataset(
        "random",
        Path(),
        size,
        "random",
        {"train": tokens, "val": tokens},
        {"train": None, "val": None},
        Meta("ids", size),
    )


# -- the two steps --------------------------------------------------------------------------------
def build_run(what: Request) -> Run:
    """The run at its beginning; it has no folder, so nothing is written."""
    from nanoscale.model.distributed import Ranks
    from nanoscale.training.run import build as build_live

    return build_live(what.spec, what.dataset, Ranks())


def our_step(run: Run) -> Step:
    """`training.update`, waited for."""
    from nanoscale.training.loop import update

    def step() -> float:
        started = time.perf_counter()
        update(run)["train_loss"].item()  # waits for the device
        return time.perf_counter() - started

    return step


def job_of(what: Request, run: Run) -> dict[str, Any]:
    """What the peer's worker needs to know (`peer.py`)."""
    config = what.spec.config
    shape = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "dropout", "bias")
    same = ("batch_size", "learning_rate", "weight_decay", "grad_clip", "seed")
    return {
        "path": str(what.peer),
        "model": {key: getattr(config, key) for key in shape},
        **{key: getattr(config, key) for key in same},
        "betas": [config.beta1, config.beta2],
        "accumulation": config.gradient_accumulation_steps,
        "device": str(run.device),
        **{key: run.numerics[key] for key in ("dtype", "compile", "threads")},
        "train_bin": str((what.dataset.folder / "train.bin").resolve()) if what.real_data else None,
    }


@contextmanager
def peer_step(job: Mapping[str, Any]) -> Iterator[Step]:
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

        def ask(line: str) -> str:
            with suppress(BrokenPipeError):
                process.stdin.write(f"{line}\n".encode())
            answer = process.stdout.readline().decode()
            if not answer:
                errors.seek(0)
                said = errors.read().decode(errors="replace").strip().splitlines() or ["no reason"]
                raise UserError(f"--peer={job['path']}: its training step failed: {said[-1]}")
            return answer

        ask(json.dumps(job))  # answered once the clone's model stands
        yield lambda: float(ask("step"))


def differences(run: Run) -> list[str]:
    """The keys by which our step is other work than a nanoGPT clone's."""
    config = run.config
    lacking = [key for key, alike in PEER_LACKS.items() if getattr(config, key) != alike]
    lacking += ["n_kv_head"] if config.kv_heads != config.n_head else []
    half = run.numerics["dtype"] != "float32" and run.device.type != "cuda"
    return lacking + ([f"dtype={run.numerics['dtype']}"] if half else [])


# -- timing ---------------------------------------------------------------------------------------
def burn_in(step: Step) -> float:
    """Up to BURN_IN steps, the first (it compiles) and then as many as patience allows.

    Returns the seconds of the last one.
    """
    seconds, started = step(), time.perf_counter()
    for _ in range(BURN_IN - 1):
        seconds = step()
        if time.perf_counter() - started > PATIENCE:
            break
    return seconds


def measure(steps: Mapping[str, Step]) -> dict[str, float]:
    """The median seconds of each step; several take turns, never at the same time."""
    slowest = max([burn_in(step) for step in steps.values()])
    turns = min(max(int(PATIENCE / (TURN * slowest)), 1), MOST_TURNS)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(turns):
        for name, step in steps.items():
            if len(steps) > 1:
                step()  # not counted: it finds the caches as the other one left them
            times[name] += [step() for _ in range(TURN)]
    return {name: median(seconds) for name, seconds in times.items()}


def write_trace(step: Step) -> None:
    """A trace of a few steps in TRACE_FOLDER, for TensorBoard, Perfetto or chrome://tracing."""
    from torch.profiler import profile, schedule, tensorboard_trace_handler

    with disk_errors(TRACE_FOLDER):
        TRACE_FOLDER.mkdir(exist_ok=True)
        when = schedule(wait=PROFILE_STEPS, warmup=PROFILE_STEPS, active=PROFILE_STEPS, repeat=1)
        with profile(
            schedule=when,
            with_flops=True,
            on_trace_ready=tensorboard_trace_handler(str(TRACE_FOLDER)),
        ) as profiler:
            for _ in range(3 * PROFILE_STEPS):
                step()
                profiler.step()


def introduce(run: Run) -> None:
    """What is timed, in one line."""
    config, numerics = run.config, run.numerics
    print(
        f"{parameter_counts(config)['non_position'] / 1e6:.2f}M parameters, "
        f"{config.sequences_per_iter} x {config.block_size} tokens per iteration, "
        f"{'compiled' if numerics['compile'] else 'eager'}, {numerics['dtype']} on "
        f"{numerics['device_name']}"
        + (f", {numerics['threads']} threads" if numerics["threads"] else ""),
        flush=True,
    )


def compare(run: Run, medians: Mapping[str, float]) -> None:
    """Both medians and their ratio, and what makes the comparison an unequal one."""
    ours, peers = medians["nanoscale"], medians["peer"]
    if differences(run):
        print(f"note: the peer has no {', '.join(differences(run))}: not the same work")
    print(
        f"nanoscale {ours * 1000:.4f}ms, peer {peers * 1000:.4f}ms, "
        f"ratio {ours / peers:.3f} (below 1: nanoscale is faster)"
    )


def main(arguments: Sequence[str]) -> int:
    """Time what the arguments describe; nanoGPT's line comes last."""
    if any(a in ("--help", "-h") for a in arguments):
        own = "\n".join(
            f"  --{key}={default}".ljust(38) + f" {doc}" for key, (default, _, doc) in OWN.items()
        )
        print(
            help_text(
                "usage: bench [config.py ...] [--key=value ...], left to right; "
                f"gradient_accumulation_steps is 1 unless given\n\n{own}"
            )
        )
        return DONE
    what = requested(arguments)
    run = build_run(what)
    introduce(run)
    if what.profile:
        write_trace(our_step(run))
        print(f"wrote a trace to {TRACE_FOLDER}")
        return DONE
    with ExitStack() as stack:
        steps = {"nanoscale": our_step(run)}
        if what.peer:
            steps["peer"] = stack.enter_context(peer_step(job_of(what, run)))
        medians = measure(steps)
    if what.peer:
        compare(run, medians)
    mfu = run.meter.rates(medians["nanoscale"], 1)["mfu"]
    print(
        f"time per iteration: {medians['nanoscale'] * 1000:.4f}ms, "
        f"MFU: {'n/a' if mfu is None else f'{mfu:.2%}'}"
    )
    return DONE
