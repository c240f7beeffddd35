"""One run: folder in, folder filled. Started from a config, from a folder, or under torchrun.

torch is imported once all that was asked for is checked, so a refusal comes at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nanoscale.data.dataset import open_dataset
from nanoscale.errors import UserError, program
from nanoscale.model.launch import launched
from nanoscale.paths import in_a_shell
from nanoscale.signals import answered, stop_requests
from nanoscale.spec.config import ExperimentConfig, flatten
from nanoscale.spec.identity import MASKS_VERSION, RunSpec
from nanoscale.spec.parametrization import scheme_of
from nanoscale.spec.values import Json
from nanoscale.spec.weights import Weights
from nanoscale.store.folder import (
    CHECKPOINT,
    COMPLETE,
    CONFIG,
    DAMAGED,
    DIVERGED,
    METRICS,
    ROWS,
    RUNNING,
    WAITING,
    RunFolder,
    kept_steps,
    run_spec,
)
from nanoscale.store.lease import Lease
from nanoscale.store.refusal import check_writable, taken_back
from nanoscale.store.resume import (
    continue_as,
    in_vain,
    is_finished,
    open_folder,
    renew,
    renewed,
    take_over_rows,
)
from nanoscale.training.records import RunResult
from nanoscale.training.trackers import asked_by, need_package, wanted

if TYPE_CHECKING:
    from nanoscale.model.distributed import Ranks


# -- from a config --------------------------------------------------------------------------------
def train(
    config: ExperimentConfig,
    out_dir: Path | str | None = None,
    *,
    resume: bool = False,
    typed: Mapping[str, Json] | None = None,
) -> RunResult:
    """Train the run that a config describes, in `out_dir` or else the config's own.

    A folder that holds the same run continues it, or has its result already; one that holds
    another is moved aside, or continued as this run with `resume`, where their pasts are equal.
    `typed` are the keys that the user set, for the record; else those that differ from defaults.

    >>> import nanoscale as ns
    >>> data = ns.prepare("synthetic", out="synthetic")  # doctest: +ELLIPSIS
    vocab size: 32
    ...
    >>> config = ns.ExperimentConfig(
    ...     dataset=str(data), n_layer=1, n_head=2, n_embd=32, block_size=32, batch_size=8,
    ...     gradient_accumulation_steps=1, max_iters=20, warmup_iters=0, eval_interval=0,
    ...     final_eval_tokens=1000, device="cpu",
    ... )
    >>> result = ns.train(config, "run")  # doctest: +ELLIPSIS
    tokens per iteration will be: 256
    ...
    >>> result.status, result.iter_num, result.val_loss < 5
    ('COMPLETE', 20, True)
    >>> result.folder.rows()[-1]["step"]
    20

    Raises:
        UserError: the config, the data, the device, a checkpoint or the disk refuses.
        Held: another process trains there.
    """
    if out_dir is not None:
        config = replace(config, out_dir=str(out_dir))
    if resume:
        config = replace(config, init_from="resume")
    path = Path(config.out_dir)
    source = Path(config.init_from)
    if path.resolve() == (source.parent if source.is_file() else source).resolve():
        raise UserError(
            f"init_from={config.init_from} is in out_dir={path} itself: go on with that run by "
            "init_from=resume, or begin a new one with its weights in another out_dir"
        )
    spec = described(config, typed)
    resume = config.init_from == "resume"
    if launched().world > 1:
        return train_ranks(spec, path, resume)
    with taken_back(path):
        return train_folder(open_folder(path, spec, resume), spec)


def evaluate(config: ExperimentConfig, *, typed: Mapping[str, Json] | None = None) -> float:
    """The final evaluation of what `out_dir` holds, or of an untrained model; writes nothing."""
    spec = described(config, typed)
    folder = RunFolder(config.out_dir)

    from nanoscale.model.distributed import Ranks
    from nanoscale.training.evaluation import final_losses
    from nanoscale.training.state import build, dataset_of, load_start

    saved = None
    if config.init_from == "resume":
        if not (folder / CHECKPOINT).is_file():
            raise UserError(f"init_from=resume: {folder.path} holds no checkpoint to evaluate")
        saved = load_start(spec, folder)
    run = build(spec, dataset_of(spec), Ranks(), saved)
    loss = float(final_losses(run).mean())
    if launched().rank == 0:
        for warning in spec.weights.warnings if spec.weights else ():
            print(f"warning: {warning}")
        print(f"step {run.step}: val loss {loss:.4f}")
    return loss


def described(config: ExperimentConfig, typed: Mapping[str, Json] | None) -> RunSpec:
    """The run that a config describes on its dataset; everything that can be refused now is."""
    if typed is None:
        defaults = flatten(ExperimentConfig())
        typed = {key: value for key, value in flatten(config).items() if value != defaults[key]}
    try:
        dataset = open_dataset(config.dataset, config.data_root, config.val_sets)
    except UserError as e:
        own = began_on(config)
        if own in (None, config.dataset):
            raise
        raise UserError(
            f"init_from=resume: the run in {config.out_dir} is of dataset {own!r}: give the config "
            f"that it was begun with, as in --dataset={own} ({e})"
        ) from e
    weights = beginning(config)
    if weights is not None:  # which one that goes on began with
        config = replace(config, init_from=weights.source)
    spec = run_spec(config, dataset, typed, weights)
    dataset.require_block(spec.config.block_size)
    scheme_of(spec.config)  # a user's own file of rules may refuse
    check_machine(config)
    return spec


def began_on(config: ExperimentConfig) -> str | None:
    """The dataset of the run that a config resumes."""
    folder = RunFolder(config.out_dir)
    if config.init_from != "resume" or not folder.record(CONFIG):
        return None
    return folder.spec().config.dataset


def beginning(config: ExperimentConfig) -> Weights | None:
    """The weights that the run begins with; a run that goes on needs their source no more."""
    if config.init_from == "scratch":
        return None
    folder = RunFolder(config.out_dir)
    known = folder.spec().weights if folder.record(CONFIG) else None
    if config.init_from == "resume":
        return known

    from nanoscale.model.init_from import weights_of

    try:
        return weights_of(config.init_from, config.data_root)
    except UserError:
        if known is None or known.source != config.init_from:
            raise
        return known


def check_machine(config: ExperimentConfig) -> None:
    """Refuse a device or a tracker that is not here, before anything is written."""
    for name in wanted(config):
        need_package(name, asked_by(name))
    if config.device not in ("auto", "cpu"):
        from nanoscale.training.hardware import pick_device

        pick_device(config)


# -- from a folder --------------------------------------------------------------------------------
def train_folder(folder: RunFolder, longer: RunSpec | None = None) -> RunResult:
    """Train what is left to train; say where the result is and what to try next.

    `longer` is the run that the folder's is to become, if it is not that already (see `fill`).
    """
    spec = longer or folder.spec()
    if longer is None and folder.status().kind == DAMAGED:  # results may say that it has finished
        renew(folder, spec)
    if is_finished(folder, longer):
        return already(folder, spec)

    from nanoscale.model.distributed import session
    from nanoscale.training.hardware import pick_device

    with session(spec.config, pick_device) as ranks:
        result = fill(folder, ranks, longer)
    tell_end(folder, result)
    return result


def already(folder: RunFolder, asked: RunSpec) -> RunResult:
    """The result of a finished run, told, with what was asked of it in vain."""
    result = RunResult.read(folder)
    print(f"{folder.path}: this run is {result.status} already; see {folder / METRICS}")
    for line in (in_vain(folder.spec(), asked, result.numerics or {}), folder.lost_rows()):
        if line:
            print(f"{folder.path}: {line}")
    return result


def tell_end(folder: RunFolder, result: RunResult) -> None:
    """Where a run's result is, and what to try next."""
    if result.status == COMPLETE:
        following = f"keep={result.config['keep']} left no weights to sample from"
        if folder.weights():
            following = f"next: {program()} sample --out_dir={in_a_shell(folder.path)}"
        print(f"COMPLETE: results in {folder / METRICS}; {following}")
    elif result.status == DIVERGED:
        print(f"DIVERGED: see {folder / ROWS}; try a lower learning_rate")


def fill(folder: RunFolder, ranks: Ranks, longer: RunSpec | None = None) -> RunResult:
    """Run the folder's config to its end, as one of `ranks`, of which the master owns the folder.

    The folder's run becomes `longer`, whose past is equal, once its checkpoint is known to be good.

    Raises:
        UserError: the data, a checkpoint or the disk refuses; the run stays WAITING.
        Held: another process trains there.
    """
    from nanoscale.training import lines
    from nanoscale.training.loop import loop
    from nanoscale.training.numerics import require_kept
    from nanoscale.training.recorder import recording
    from nanoscale.training.state import build, dataset_of, load_start

    spec = folder.spec()
    if longer is not None and spec.content != longer.content:
        spec = renewed(folder, longer)
    if spec.config.dropout and spec.masks != MASKS_VERSION:
        raise UserError(
            f"{folder.path}: begun with the dropout masks of an older nanoscale, which this one "
            "cannot draw; start it anew in another folder"
        )
    if spec.config.sequences_per_iter % ranks.world:
        raise UserError(
            f"{spec.config.sequences_per_iter} sequences per update do not divide over "
            f"{ranks.world} processes; change batch_size or "
            "gradient_accumulation_steps"
        )
    answer = answered() if ranks.is_master else nullcontext()
    with answer, stop_requests() as asked, owned(folder, ranks) as lease:
        if is_finished(folder, longer):  # by another process, while this one was starting
            return RunResult.read(folder)
        saved = load_start(spec, folder)
        run = build(spec, dataset_of(spec), ranks, saved)
        if saved:
            require_kept(saved.numerics, run.numerics, spec.typed)
        warnings = lines.unheeded(run, saved, kept_steps(folder))
        if ranks.is_master:
            check_writable(folder)
            continue_as(folder, spec)
            warnings += take_over_rows(folder, spec, run.step, saved.spec if saved else None)
            folder.set_status(state=RUNNING, step=run.step, reason=None)
        with recording(run, folder, lease) as recorder:
            recorder.introduce()
            for warning in warnings:
                recorder.say(f"warning: {warning}")
            state = loop(run, recorder, asked)
            if state == WAITING:
                return recorder.interrupted()
            return recorder.finish(state)


def owned(folder: RunFolder, ranks: Ranks) -> AbstractContextManager[Lease | None]:
    """The master's lease of the folder, with a heartbeat."""
    return folder.take().beat() if ranks.is_master else nullcontext()


# -- under torchrun -------------------------------------------------------------------------------
def train_ranks(spec: RunSpec, path: Path, resume: bool) -> RunResult:
    """Train over ranks: the master opens the folder, the others follow its decision."""
    from nanoscale.model.distributed import session
    from nanoscale.training.hardware import pick_device

    folder = RunFolder(path)
    owner = taken_back(path) if launched().rank == 0 else nullcontext()
    with owner, session(spec.config, pick_device) as ranks:
        refusal = None
        if ranks.is_master:
            try:
                open_folder(path, spec, resume)
            except UserError as e:
                refusal = str(e)
        refusal = ranks.broadcast(refusal)
        if refusal is not None:
            raise UserError(refusal)
        if is_finished(folder, spec):
            return already(folder, spec) if ranks.is_master else RunResult.read(folder)
        result = fill(folder, ranks, spec)
        if ranks.is_master:
            tell_end(folder, result)
        return result
