"""The training loop: exactly `max_iters` updates and a final evaluation, from a run folder.

Nothing in it is a stream: batch t is a function of (data_seed, t), a dropout mask of (seed, t,
micro-batch, rank), so a checkpoint holds no random state, evaluation never disturbs training, and a
resumed run equals its uninterrupted twin bit for bit.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoscale import checkpoint, telemetry
from nanoscale.config import ExperimentConfig, label, warnings
from nanoscale.counting import flops_per_iter, flops_per_token, parameter_counts, parameters_by_role
from nanoscale.data import Dataset, Sampler, evaluation_windows, open_dataset, windows
from nanoscale.distributed import Ranks, pick_device, session, wrap
from nanoscale.errors import DONE, INTERRUPTED, UserError
from nanoscale.errors import FAILED as EXIT_FAILED
from nanoscale.model import GPT
from nanoscale.optim import Optimizers
from nanoscale.provenance import provenance
from nanoscale.records import (
    BEST,
    CHECKPOINT,
    COMPLETE,
    DIVERGED,
    FAILED,
    METRICS,
    ROWS,
    RUNNING,
    SCHEMA,
    WAITING,
    WINDOWS,
    RunFolder,
    RunSpec,
    atomic_write,
    checkpoint_file,
    cut_rows,
    owner,
    parse_branch,
    write_json,
)
from nanoscale.resume import check_past, is_finished, open_folder
from nanoscale.schedule import lr_multiplier

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Run:
    """The live parts of one run."""

    spec: RunSpec
    folder: RunFolder
    ranks: Ranks
    device: torch.device
    numerics: dict[str, Any]
    dataset: Dataset
    sampler: Sampler
    model: GPT  # the bare model: evaluation, statistics, checkpoints
    trained: nn.Module  # the same, compiled and spread over ranks as asked
    optimizers: Optimizers
    scaler: torch.amp.GradScaler
    step: int = 0  # completed updates
    best_val_loss: float = math.inf
    spent_seconds: float = 0.0
    saved_at: float = field(default_factory=time.perf_counter)

    @property
    def config(self) -> ExperimentConfig:
        return self.spec.config

    def autocast(self) -> AbstractContextManager:
        """Products in the run's dtype; weights, norms' inputs and losses stay float32."""
        dtype = DTYPES[self.numerics["dtype"]]
        if dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=dtype)

    def to_device(self, *arrays: np.ndarray) -> list[Tensor]:
        found = [torch.from_numpy(a) for a in arrays]
        if self.device.type == "cuda":
            return [t.pin_memory().to(self.device, non_blocking=True) for t in found]
        return [t.to(self.device) for t in found]


# -- building -----------------------------------------------------------------------------------
def decide_numerics(config: ExperimentConfig, device: torch.device,
                    saved: dict[str, Any] | None) -> dict[str, Any]:
    """What bit equality depends on beside the config; a resumed run keeps what it began with."""
    saved = saved or {}
    dtype = config.dtype
    if dtype == "auto":
        gpu = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float16"
        dtype = saved.get("dtype") or (gpu if device.type == "cuda" else "float32")
    threads = config.threads or saved.get("threads")
    if device.type == "cpu" and threads:
        torch.set_num_threads(threads)
    compiles = saved.get("compile", config.compile)
    if compiles and device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        compiles = False
    return {"device": device.type, "device_name": telemetry.device_name(device), "dtype": dtype,
            "threads": torch.get_num_threads() if device.type == "cpu" else None,
            "attention": "sdpa", "compile": compiles,
            "matmul_precision": torch.get_float32_matmul_precision(),
            "torch": torch.__version__}


def build(spec: RunSpec, folder: RunFolder | None, ranks: Ranks) -> Run:
    """The run at its latest checkpoint, or at its parent's, or at its beginning."""
    config = spec.config
    dataset = open_dataset(config.dataset, config.data_root)
    if dataset.fingerprint != spec.data_fingerprint:
        raise UserError(f"dataset {config.dataset!r} has changed since this run was made "
                        f"({spec.data_fingerprint[:8]}, now {dataset.fingerprint[:8]}); restore it "
                        "or start a new run")
    device = pick_device(config, ranks.local)
    saved = load_start(spec, folder)
    numerics = decide_numerics(config, device, saved and saved["numerics"])
    model = GPT(config).to(device)
    optimizers = Optimizers(model, config)
    fp16 = numerics["dtype"] == "float16"
    trained = wrap(torch.compile(model) if numerics["compile"] else model, ranks, device)
    run = Run(spec, folder, ranks, device, numerics, dataset,
              Sampler(dataset.tokens["train"], config.block_size, config.data_seed,
                      config.data_order),
              model, trained, optimizers, torch.amp.GradScaler(device.type, enabled=fp16))
    if saved:
        restore(run, saved)
    return run


def load_start(spec: RunSpec, folder: RunFolder | None) -> dict[str, Any] | None:
    """The checkpoint to continue from, its past checked, or None at the beginning."""
    path = folder / CHECKPOINT if folder else None
    if path is None or not path.is_file():
        if spec.config.branch_from is None:
            return None
        parent, step = parse_branch(spec.config.branch_from)
        path = parent / checkpoint_file(step)
    saved = checkpoint.load(path)
    check_past(saved["spec"], spec, saved["step"], path)
    return saved


def restore(run: Run, saved: dict[str, Any]) -> None:
    """Put a checkpoint's content back."""
    try:
        run.model.load_state_dict(saved["model"])
        run.optimizers.load_state(saved["optimizer"])
    except (RuntimeError, KeyError) as e:
        raise UserError(f"{run.folder / CHECKPOINT}: its tensors do not fit this model") from e
    run.scaler.load_state_dict(saved["scaler"])
    run.step, run.spent_seconds = saved["step"], saved["seconds"]
    best = saved["best_val_loss"]
    run.best_val_loss = math.inf if best is None else best


def save(run: Run, name: str = CHECKPOINT) -> None:
    """Write the full state; the folder's rows up to this step are complete."""
    best = run.best_val_loss if math.isfinite(run.best_val_loss) else None
    checkpoint.save(
        run.folder / name, run.spec, step=run.step, best_val_loss=best, numerics=run.numerics,
        seconds=run.spent_seconds, model=run.model.state_dict(),
        optimizer=run.optimizers.state(), scaler=run.scaler.state_dict())
    if name == CHECKPOINT:
        run.folder.set_status(checkpoint_step=run.step, step=run.step)
        run.saved_at = time.perf_counter()


# -- one update ---------------------------------------------------------------------------------
def dropout_seed(seed: int, step: int, micro: int, rank: int) -> int:
    """A seed that depends on its four numbers alone."""
    text = f"{seed} {step} {micro} {rank}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def micro_batches(run: Run) -> Iterator[tuple[list[Tensor], float]]:
    """This rank's share of batch `step`, in pieces, each with its weight in the mean."""
    config = run.config
    share = config.sequences_per_iter // run.ranks.world
    first = run.step * config.sequences_per_iter + run.ranks.rank * share
    size = min(config.micro_batch_size or config.batch_size, share)
    for at in range(0, share, size):
        count = min(size, share - at)
        yield run.to_device(*run.sampler.batch(first + at, count)), count / share


def update(run: Run, with_statistics: bool) -> dict[str, Any]:
    """One update; returns the batch's loss and the gradient norm (tensors), and the statistics."""
    config = run.config
    multiplier = lr_multiplier(config, run.step)
    run.optimizers.set_lr(multiplier)
    total: Tensor | float = 0.0
    pieces = list(micro_batches(run))
    for micro, ((X, Y), weight) in enumerate(pieces):
        if config.dropout:
            torch.manual_seed(dropout_seed(config.seed, run.step, micro, run.ranks.rank))
        waits = run.ranks.world > 1 and micro < len(pieces) - 1
        with run.trained.no_sync() if waits else nullcontext():
            with run.autocast():
                loss = run.trained(X, Y)[1] * weight
            run.scaler.scale(loss).backward()
        total = total + loss.detach()
    for part in run.optimizers.parts:
        run.scaler.unscale_(part)
    statistics = Statistics(run, pieces[0][0][0]) if with_statistics else None
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), config.grad_clip or math.inf)
    for part in run.optimizers.parts:
        run.scaler.step(part)
    run.scaler.update()
    run.optimizers.zero_grad()
    run.step += 1
    row = {"train_loss": total, "grad_norm": norm, "lr": config.learning_rate * multiplier}
    return row | ({"statistics": statistics.after()} if statistics else {})


class Statistics:
    """Sizes around one update: gradients and activations before it, weights and change after."""

    def __init__(self, run: Run, X: Tensor) -> None:
        self.model, self.before = run.model, telemetry.weights(run.model)
        self.grad_rms = telemetry.rms_by_role(run.model, telemetry.gradients(run.model))
        with run.autocast():
            self.activations = telemetry.activation_statistics(run.model, X)

    def after(self) -> dict[str, Any]:
        now = telemetry.weights(self.model)
        change = {name: now[name] - self.before[name] for name in now}
        return {"grad_rms": self.grad_rms, "weight_rms": telemetry.rms_by_role(self.model, now),
                "update_rms": telemetry.rms_by_role(self.model, change)} | self.activations


# -- evaluation ---------------------------------------------------------------------------------
@torch.no_grad()
def window_losses(run: Run, split: str, limit: int, exact: bool = False) -> np.ndarray:
    """Mean loss in nats per token of up to `limit` fixed windows of a split, (n,) float64.

    `exact`: in float32, whatever the run trains in.
    """
    config, tokens = run.config, run.dataset.tokens[split]
    starts = evaluation_windows(len(tokens), config.block_size, limit)
    mine = np.arange(run.ranks.rank, len(starts), run.ranks.world)
    losses = torch.zeros(len(starts), dtype=torch.float64)
    size = config.micro_batch_size or config.batch_size
    run.model.eval()
    for at in range(0, len(mine), size):
        chosen = mine[at : at + size]
        X, Y = run.to_device(*windows(tokens, starts[chosen], config.block_size))
        with nullcontext() if exact else run.autocast():
            logits = run.model(X)[0]
        each = F.cross_entropy(logits.flatten(0, 1).float(), Y.flatten(), reduction="none")
        losses[chosen] = each.view(Y.shape).double().mean(dim=1).cpu()
    run.model.train()
    if run.ranks.world > 1:
        losses = run.ranks.sum(losses.to(run.device)).cpu()
    return losses.numpy()


def evaluate(run: Run, log: Any) -> dict[str, Any]:
    """An interval evaluation: as many windows of each split, at most `eval_iters` batches."""
    config = run.config
    limit = config.eval_iters * config.batch_size
    val = window_losses(run, "val", limit)
    train = window_losses(run, "train", min(limit, len(val)))
    row = {"val_loss": float(val.mean()), "eval_train_loss": float(train.mean())}
    log(f"step {run.step}: train loss {row['eval_train_loss']:.4f}, "
        f"val loss {row['val_loss']:.4f}")
    improved = row["val_loss"] < run.best_val_loss
    if improved:
        run.best_val_loss = row["val_loss"]
    if improved and run.step > 0 and run.ranks.is_master:
        checkpoint.save(run.folder / BEST, run.spec, step=run.step, val_loss=row["val_loss"],
                        model=run.model.state_dict())
    return row | {"improved": improved}


def bits_per_byte(run: Run, nats_per_token: float) -> float | None:
    """Loss over the validation split in bits per byte of its text; None where bytes are unknown."""
    per_token = run.dataset.bytes_per_token["val"]
    return nats_per_token / math.log(2) / per_token if per_token else None


# -- the loop -----------------------------------------------------------------------------------
@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event set by Ctrl-C or SIGTERM, so that the run stops between updates; twice: at once."""
    asked = threading.Event()

    def ask(number: int, frame: Any) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def loop(run: Run, rows: telemetry.Rows | None, log: Any, asked: threading.Event) -> str:
    """Train to the end; returns COMPLETE, DIVERGED, or WAITING when asked to stop."""
    config, meter = run.config, telemetry.Meter(run.spec, run_peak(run), run.spent_seconds)
    if run.step == 0 and config.eval_interval and config.max_iters:
        write_row(run, rows, meter, evaluate(run, log))
    while run.step < config.max_iters:
        started, at = time.perf_counter(), run.step + 1
        last = at == config.max_iters
        statistics_due = bool(config.stats_interval) and at % config.stats_interval == 0
        evaluation_due = bool(config.eval_interval) and at % config.eval_interval == 0 or last
        row_due = at == 1 or at % config.log_interval == 0 or statistics_due or evaluation_due
        row = update(run, statistics_due)
        finite = settle(run, row) if row_due or run.device.type == "cpu" else True
        meter.add(time.perf_counter() - started)
        run.spent_seconds = meter.wall_seconds()
        if not finite:
            log(f"iter {at}: loss is not finite: the run has diverged")
            write_row(run, rows, meter, row)
            return DIVERGED
        if row_due:
            if evaluation_due:
                row |= evaluate(run, log)
            row |= write_row(run, rows, meter, row)
            if at == 1 or at % config.log_interval == 0 or last:
                log(progress_line(run, row))
        stopping = asked_anywhere(run, asked) if row_due or run.ranks.world == 1 else False
        keep(run, row if evaluation_due else {}, last or stopping)
        if stopping and not last:
            return WAITING
    return COMPLETE


def asked_anywhere(run: Run, asked: threading.Event) -> bool:
    """Whether any rank was asked to stop, known to all of them."""
    if run.ranks.world == 1:
        return asked.is_set()
    return bool(run.ranks.sum(torch.tensor(float(asked.is_set()), device=run.device)).item())


def settle(run: Run, row: dict[str, Any]) -> bool:
    """Bring a row's loss and norm to this process, averaged over ranks; False: not finite."""
    row["train_loss"] = run.ranks.sum(row["train_loss"]).item() / run.ranks.world
    row["grad_norm"] = row["grad_norm"].item()
    return math.isfinite(row["train_loss"])


def run_peak(run: Run) -> float | None:
    """Peak FLOP/s of all the ranks together, or None where it is unknown."""
    peak = telemetry.peak(run.device, DTYPES[run.numerics["dtype"]])
    return peak and peak * run.ranks.world


def write_row(run: Run, rows: telemetry.Rows | None, meter: telemetry.Meter,
              values: dict[str, Any]) -> dict[str, Any]:
    """Complete a row and append it; the master's job alone."""
    config = run.config
    row = {"step": run.step, "tokens_seen": run.step * config.tokens_per_iter,
           "flops": run.step * flops_per_iter(config), "lr": None, "train_loss": None,
           "val_loss": None, "grad_norm": None}
    row |= {k: v for k, v in values.items() if k != "improved"} | meter.columns()
    if rows is not None:
        rows.write(row)
    return row


def progress_line(run: Run, row: dict[str, Any]) -> str:
    """nanoGPT's line, with tokens and the time left."""
    mfu = "" if row["mfu"] is None else f", mfu {100 * row['mfu']:.2f}%"
    left = (run.config.max_iters - run.step) * row["time_ms"] / 1000
    eta = f"{left / 3600:.1f}h" if left > 5400 else f"{left / 60:.1f}m" if left > 90 else f"{left:.0f}s"
    return (f"iter {run.step}: loss {row['train_loss']:.4f}, time {row['time_ms']:.2f}ms{mfu}, "
            f"tokens {row['tokens_seen']:,}, eta {eta}")


def keep(run: Run, evaluated: dict[str, Any], ending: bool) -> None:
    """Checkpoint when the run ends, at evaluations, at kept steps, and when long without one."""
    config = run.config
    if not run.ranks.is_master:
        return
    due = evaluated and (config.always_save_checkpoint or evaluated["improved"])
    late = 0 < config.checkpoint_seconds < time.perf_counter() - run.saved_at
    if ending or due or late:
        save(run)
    if run.step in config.checkpoint_steps:
        save(run, checkpoint_file(run.step))


# -- from folder to result ------------------------------------------------------------------------
def introduce(run: Run, log: Any) -> None:
    """nanoGPT's first lines, and what a reader should know before the first step."""
    config, n = run.config, parameter_counts(run.config)
    p = config.parametrization
    log(f"tokens per iteration will be: {config.tokens_per_iter:,}")
    log(f"found vocab_size = {run.dataset.vocab_size} (inside {run.dataset.folder})")
    log(f"number of parameters: {n['non_position'] / 1e6:.2f}M "
        f"({n['total']:,} in total, {n['non_embedding']:,} without embeddings)")
    if p.mode != "SP":
        log(f"{p.mode} relative to base_n_embd={p.base_n_embd}, base_n_layer={p.base_n_layer}, "
            f"base_head_dim={p.base_head_dim}")
    if config.compile and not run.numerics["compile"]:
        log("compile=True needs a C++ compiler and there is none: running eagerly")
    for warning in warnings(config):
        log(f"warning: {warning}")
    log(f"{label(config)} on {run.numerics['device_name']} in {run.numerics['dtype']}"
        + (f", continuing after step {run.step}" if run.step else ""))


def results(run: Run, state: str) -> dict[str, Any]:
    """`metrics.json`, but for what the final evaluation adds."""
    config, counts = run.config, parameter_counts(run.config)
    return {
        "schema": SCHEMA, "status": state, "id": run.spec.id, "best_val_loss": run.best_val_loss,
        "val_loss": None, "val_bits_per_byte": None, "train_loss": None, "iter_num": run.step,
        "tokens_seen": run.step * config.tokens_per_iter, "total_params": counts["total"],
        "params": {"by_role": parameters_by_role(config), "by_convention": counts},
        "flops": run.step * flops_per_iter(config), "flops_per_token": flops_per_token(config),
        "mfu": None, "tokens_per_second": None, "wall_seconds": run.spent_seconds,
        "config": config.to_dict(), "numerics": run.numerics,
        "provenance": provenance() | {"device": run.numerics["device_name"],
                                      "world_size": run.ranks.world,
                                      "data": {"name": run.spec.data_name,
                                               "fingerprint": run.spec.data_fingerprint}}}


def finish(run: Run, state: str, started: float, first: int, log: Any) -> None:
    """The final evaluation over the whole validation split, in float32, and `metrics.json`."""
    found = results(run, state)
    seconds = run.spent_seconds - started
    if run.step > first and seconds > 0:
        rate = (run.step - first) / seconds
        found["tokens_per_second"] = rate * run.config.tokens_per_iter
        peak = run_peak(run)
        found["mfu"] = rate * flops_per_iter(run.config) / peak if peak else None
    if state == COMPLETE:
        config = run.config
        limit = max(1, config.final_eval_tokens // config.block_size)
        losses = window_losses(run, "val", limit, exact=True)
        loss = float(losses.mean())
        rows = run.folder.rows() if run.ranks.is_master else []
        found |= {"val_loss": loss, "val_bits_per_byte": bits_per_byte(run, loss),
                  "train_loss": rows[-1].get("eval_train_loss") if rows else None}
        bpb = found["val_bits_per_byte"]
        log(f"final: val loss {loss:.4f}" + (f", {bpb:.4f} bits per byte" if bpb else "")
            + f" over {len(losses) * config.block_size:,} tokens")
        if run.ranks.is_master:
            with atomic_write(run.folder / WINDOWS) as path, open(path, "wb") as file:
                np.save(file, losses)
    if run.ranks.is_master:
        write_json(run.folder / METRICS, found)
        run.folder.set_status(state=state, step=run.step)


def take_over(run: Run) -> None:
    """Own the folder and cut its rows back to where the run stands; a branch copies its past."""
    folder, config = run.folder, run.config
    if not (folder / CHECKPOINT).is_file() and config.branch_from and run.step:
        parent, _ = parse_branch(config.branch_from)
        shutil.copyfile(parent / ROWS, folder / ROWS)
    if (folder / ROWS).is_file():
        cut_rows(folder / ROWS, run.step if run.step else -1)
    folder.set_status(state=RUNNING, step=run.step, **owner())


def train_ranks(spec: RunSpec, path: Path, resume: bool) -> int:
    """Train under torchrun: the master opens the folder, the others follow its decision."""
    with session(spec.config) as ranks:
        refusal = None
        if ranks.is_master:
            try:
                refusal = "finished" if is_finished(open_folder(path, spec, resume)) else None
            except UserError as e:
                refusal = str(e)
        refusal = ranks.broadcast(refusal)
        if refusal == "finished":
            return DONE
        if refusal:
            raise UserError(refusal)
        state = train(RunFolder(path), ranks)
    return {COMPLETE: DONE, WAITING: INTERRUPTED}.get(state, EXIT_FAILED)


def evaluate_only(spec: RunSpec, folder: RunFolder) -> int:
    """Evaluate the folder's latest checkpoint, or the untrained model, and write nothing."""
    resume = spec.config.init_from == "resume"
    if resume and not (folder / CHECKPOINT).is_file():
        raise UserError(f"init_from=resume: {folder.path} holds no checkpoint to evaluate")
    run = build(spec, folder if resume else None, Ranks())
    losses = window_losses(run, "val", max(1, spec.config.final_eval_tokens
                                           // spec.config.block_size), exact=True)
    print(f"step {run.step}: val loss {losses.mean():.4f}")
    return DONE


def train(folder: RunFolder, ranks: Ranks | None = None) -> str:
    """Run the folder's config to its end and return the state: COMPLETE, DIVERGED or WAITING.

    Raises:
        UserError: the data, a checkpoint or the disk refuses; the run stays WAITING.
    """
    spec = folder.spec()
    if ranks is None:
        with session(spec.config) as ranks:
            return train(folder, ranks)
    if spec.config.sequences_per_iter % ranks.world:
        raise UserError(f"{spec.config.sequences_per_iter} sequences per update do not divide over "
                        f"{ranks.world} processes; change batch_size or "
                        "gradient_accumulation_steps")
    run = build(spec, folder, ranks)
    rows, log = None, lambda line: None
    if ranks.is_master:
        take_over(run)
        rows, log = telemetry.Rows(folder, spec), telemetry.Log(folder)
    try:
        with stop_requests() as asked:
            introduce(run, log)
            started, first = run.spent_seconds, run.step
            state = loop(run, rows, log, asked)
            if state == WAITING:
                log(f"interrupted: saved after step {run.step}; the same command continues")
                folder.set_status(state=WAITING, step=run.step)
                return state
            finish(run, state, started, first, log)
            return state
    except BaseException as e:
        state = WAITING if isinstance(e, (UserError, KeyboardInterrupt)) else FAILED
        if ranks.is_master:
            with suppress(UserError, OSError):
                folder.set_status(state=state, reason=f"{type(e).__name__}: {e}")
        raise
    finally:
        if rows is not None:
            rows.close()
