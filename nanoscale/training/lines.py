"""What a run says to people, line by line: nanoGPT's lines, and what they should know."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from nanoscale.model import kernels
from nanoscale.spec.config import ResolvedConfig
from nanoscale.spec.counting import flops_per_iter, parameter_counts
from nanoscale.spec.identity import label
from nanoscale.spec.resolve import warnings
from nanoscale.spec.sources import coerce, small_run
from nanoscale.training.evaluation import SetLoss
from nanoscale.training.numerics import change
from nanoscale.training.records import MetricsRow
from nanoscale.training.state import Checkpoint, Run

LEAST_SHARED = 0.9  # of a vocabulary: what a model's is padded by is less


def introduction(run: Run) -> Iterator[str]:
    """nanoGPT's first lines, and what a reader should know before the first step."""
    config = run.config
    n = parameter_counts(config)
    yield f"tokens per iteration will be: {config.tokens_per_iter:,}"
    yield f"found vocab_size = {run.dataset.vocab_size} (inside {run.dataset.folder})"
    yield (
        f"number of parameters: {n['non_position'] / 1e6:.2f}M "
        f"({n['total']:,} in total, {n['non_embedding']:,} without embeddings)"
    )
    p = config.parametrization
    if p.mode != "SP":
        yield (
            f"{p.mode} relative to base_n_embd={p.base_n_embd}, base_n_layer={p.base_n_layer}, "
            f"base_head_dim={p.base_head_dim}"
        )
    if run.device.type == "cpu" and config.kernels == "auto" and kernels.library() is None:
        yield (
            "our kernels need Linux or macOS and a C++ compiler (`nanoscale doctor` says which): "
            "on torch's operations, about half as fast"
        )
    if run.device.type == "cpu" and run.meter.peak:
        yield from too_long(config, run.step, run.meter.peak)
    weights = run.spec.weights
    told = weights.warnings if weights else ()
    for warning in (few_tokens(run), change(run.history, run.step), *warnings(config), *told):
        if warning:
            yield f"warning: {warning}"
    yield how(run)


def few_tokens(run: Run) -> str:
    """A question, where the weights that a run begins with know many tokens that its data lacks."""
    weights = run.spec.weights
    known, there = run.config.vocab_size, run.dataset.vocab_size
    if weights is None or weights.tokens is not None or there >= LEAST_SHARED * known:
        return ""
    return f"the weights know {known:,} tokens, the dataset has {there:,}; are its tokens theirs?"


def unheeded(run: Run, saved: Checkpoint | None, kept: Collection[int]) -> list[str]:
    """What the user typed of how the run computes and is saved and does not apply, in lines.

    `kept` are the steps whose checkpoint is there already.
    """
    typed, config = run.spec.typed, run.config
    began = saved.spec.config if saved else config
    lines = []
    for key in ("device", "threads", "compile", "kernels"):
        now = getattr(run.numerics, key)
        if key not in typed or now is None:
            continue
        asked = coerce(key, typed[key])
        any_will_do = asked in (None, "auto") or key == "device"  # which of several GPUs
        if asked == now or (any_will_do and asked == getattr(began, key)):
            continue
        why = f"it is {now} here: torch.compile takes kernels=torch and, on a CPU, g++"
        if saved:
            why = (
                f"the run began with {key}={now} and keeps it, as its results depend on it; "
                "choose another out_dir to start anew"
            )
        lines.append(f"{key}={asked} does not apply, {why}")

    past = [
        step
        for step in config.checkpoint_steps
        if step not in kept and not run.step < step <= config.max_iters
    ]
    if "checkpoint_steps" in typed and past:
        goes = f"the run goes on from step {run.step} to {config.max_iters}"
        lines.append(f"checkpoint_steps={past} are not reached: {goes}")
    return lines


def too_long(config: ResolvedConfig, step: int, peak: float) -> Iterator[str]:
    """A warning where a CPU's `peak` FLOP/s mean days for what is left of a run after `step`."""
    left = config.max_iters - step
    flops = flops_per_iter(config)
    days = left * flops / peak / 86400
    if days > 1:
        yield (
            f"warning: {left:,} updates of {config.tokens_per_iter:,} tokens, {flops:.2g} FLOPs "
            f"each, take at least {days:,.0f} days even at this CPU's peak; a run for a CPU is "
            f"`{small_run()}`"
        )


def how(run: Run) -> str:
    """Which model, on what, and how it is computed."""
    numerics = run.numerics
    operations = "compiled" if numerics.compile else f"{numerics.kernels} kernels"
    line = f"{label(run.config)} on {numerics.device_name} in {numerics.dtype}, {operations}"
    if run.ranks.world > 1:
        line += f", {numerics.sharding} over {run.ranks.world} processes"
    if run.step:
        line += f", continuing after step {run.step}"
    return line


def progress(run: Run, row: MetricsRow) -> str:
    """nanoGPT's line of an update, with tokens and the time left."""
    ms = row.timing.time_ms
    assert row.update is not None
    assert ms is not None
    line = f"iter {row.step}: loss {row.update.batch_loss:.4f}, time {ms:.2f}ms"
    if row.timing.mfu is not None:
        line += f", mfu {100 * row.timing.mfu:.2f}%"
    left = (run.config.max_iters - row.step) * ms / 1000
    return f"{line}, tokens {row.tokens_seen:,}, eta {duration(left)}"


def duration(seconds: float) -> str:
    """In the largest unit of which there are more than one and a half."""
    if seconds > 1.5 * 3600:
        return f"{seconds / 3600:.1f}h"
    if seconds > 1.5 * 60:
        return f"{seconds / 60:.1f}m"
    return f"{seconds:.0f}s"


def final(found: SetLoss, name: str = "val") -> str:
    """The line of a final evaluation, of one validation set."""
    line = f"final: {name} loss {found.loss:.4f}"
    if found.bits_per_byte:
        line += f", {found.bits_per_byte:.4f} bits per byte"
    return f"{line} over {found.tokens:,} tokens"
