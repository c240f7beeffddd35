"""Whether and how a run goes on: the one resume rule, and what a folder is given to continue.

A run may continue from a checkpoint if and only if its past is equal: equal data, every key equal
but those of length and schedule, and equal schedule multipliers for every step already done. This
gives resuming, longer runs and cooldown branches.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from nanoscale.errors import UserError, disk_errors
from nanoscale.paths import in_a_shell
from nanoscale.spec.config import ResolvedConfig, all_fields, flatten
from nanoscale.spec.identity import RunSpec, heeded
from nanoscale.spec.schedule import Due, lr_multiplier
from nanoscale.spec.values import Json
from nanoscale.store.files import cut_rows, move_aside, row_line, write_json, write_text
from nanoscale.store.folder import (
    BEST,
    BEST_BEFORE,
    CHECKPOINT,
    COMPLETE,
    CONFIG,
    FINISHED,
    METRICS,
    ROWS,
    STATUS,
    WAITING,
    RunFolder,
    checkpoint_file,
    parse_branch,
)
from nanoscale.store.lease import NAME, Held
from nanoscale.store.run_records import FURTHER

ROUNDING_KEYS = ("device", "threads", "compile")  # once there is a checkpoint these stay
Row: TypeAlias = "dict[str, Any]"


# -- equal runs, equal pasts ----------------------------------------------------------------------
def past_difference(old: RunSpec, new: RunSpec, step: int) -> str | None:
    """What makes the past of `new` differ from `old`'s first `step` updates, or None."""
    same_data = old.data_fingerprint == new.data_fingerprint
    if same_data and new.config.max_iters < step:
        return f"it has made {step} updates already, more than max_iters={new.config.max_iters}"
    difference = _difference(old, new, free=("length", "schedule"))
    if difference is None and step:
        difference = _length_difference(old, new) or _schedule_difference(old, new, step)
    return difference


def _difference(old: RunSpec, new: RunSpec, free: Sequence[str] = ()) -> str | None:
    """The data, or the hashed keys that differ, but for those of the groups in `free`."""
    if old.data_fingerprint != new.data_fingerprint:
        if _its_sets(old, new):
            before, now = ", ".join(old.val_sets), ", ".join(new.val_sets)
            return f"the validation sets differ (val_sets={before}, now {now})"
        if changed := old.changed_sets(new.parts):
            return f"the tokens of the validation set {changed} are others now"
        return (
            f"the data differs ({old.data_name} {old.data_fingerprint[:8]}, now "
            f"{new.data_name} {new.data_fingerprint[:8]})"
        )
    if difference := _weights_difference(old, new):
        return difference
    if old.masks != new.masks and old.config.dropout:
        return f"its dropout masks were of version {old.masks}, now {new.masks}"
    return _keys_difference(old, new, {key.group for key in all_fields().values()} - set(free))


def _its_sets(old: RunSpec, new: RunSpec) -> str:
    """The flag by which `new` has the validation sets of `old`, where it has others."""
    same = old.tokens_fingerprint == new.tokens_fingerprint
    return f"--val_sets={','.join(old.val_sets)}" if same and old.val_sets != new.val_sets else ""


def _keys_difference(old: RunSpec, new: RunSpec, groups: Collection[str]) -> str | None:
    """`KEY was THIS, now THAT` of each hashed key of some groups that differs."""
    before = heeded(old.config)
    after = heeded(new.config)
    keys = sorted(all_fields().items(), key=lambda field: field[1].group != "length")
    different = [
        f"{name} was {before[name]}, now {after[name]}"
        for name, key in keys
        if key.hashed and key.group in groups and before[name] != after[name]
    ]
    return ", ".join(different) or None


def _weights_difference(old: RunSpec, new: RunSpec) -> str | None:
    """Other weights to begin with."""
    same = old.content.get("weights") == new.content.get("weights")
    before, after = old.weights or "none", new.weights or "none"
    return None if same else f"the weights it begins with were {before}, now {after}"


def _length_difference(old: RunSpec, new: RunSpec) -> str | None:
    """Another length, where a rule of the parametrization makes every update depend on it."""
    before, after = old.config.max_iters, new.config.max_iters
    p = new.config.parametrization
    if before == after or not (p.base_tokens or p.wd_timescale == "fraction_of_run"):
        return None
    key = "base_tokens" if p.base_tokens else "wd_timescale"
    return (
        f"parametrization.{key}={getattr(p, key)} makes every update depend on the length, "
        f"which was {before}, now {after}"
    )


def _schedule_difference(old: RunSpec, new: RunSpec, step: int) -> str | None:
    """The first of `step` updates whose LR multiplier differs, and the keys that make it."""
    update = _other_lr(old.config, new.config, step)
    if update is None:
        return None
    before, after = lr_multiplier(old.config, update), lr_multiplier(new.config, update)
    keys = _keys_difference(old, new, ("length", "schedule"))
    return (
        f"the LR multiplier of update {update + 1} was {before:.6g}, now {after:.6g}, as "
        f"{keys}{_same_again(old.config, new.config, step)}"
    )


def _same_again(old: ResolvedConfig, new: ResolvedConfig, step: int) -> str:
    """The fewest flags that would give `new` the LR of `old`; "" if these do not."""
    said = {
        "lr_decay_iters": f"--lr_decay_iters={old.lr_decay_iters}",
        "warmup_iters": f"--warmup_iters={old.warmup_iters} in place of warmup_frac",
    }
    for keys in (["lr_decay_iters"], ["warmup_iters"], list(said)):
        kept = {key: getattr(old, key) for key in keys}
        if _other_lr(old, replace(new, **kept), step) is None:
            return f" (with {' and '.join(said[key] for key in keys)} it would be the same)"
    return ""


def _other_lr(old: ResolvedConfig, new: ResolvedConfig, step: int) -> int | None:
    """The first of `step` updates, from 0, whose LR multiplier differs."""
    updates = range(step)
    return next((t for t in updates if lr_multiplier(old, t) != lr_multiplier(new, t)), None)


def check_past(old: RunSpec, new: RunSpec, step: int, where: object) -> None:
    """Refuse to continue the checkpoint at `where` as a run with another past."""
    if new.parent is not None and _weights_difference(old, new):
        before, after = old.weights or "scratch", new.weights or "scratch"
        raise UserError(
            f"branch_from={new.config.branch_from}: the run there began with init_from={before}, "
            f"this one would with init_from={after}; a branch shares its parent's beginning: give "
            "that, or leave branch_from out"
        )
    difference = past_difference(old, new, step)
    if difference:
        otherwise = "another out_dir" if new.parent is None else "no branch_from"
        same = _its_sets(old, new)
        past = f"the same past ({same})" if same else "the same past"
        raise UserError(
            f"{where}: cannot continue as this run: {difference}; give it {past}, or {otherwise} "
            "to start anew"
        )


def check_same(folder: RunFolder, spec: RunSpec) -> None:
    """Refuse a folder that bears the name of `spec` and holds another run.

    An id is 40 bits of a hash, so a folder found by its name is believed by its content alone.
    """
    if folder.record(CONFIG) is None:  # nothing says so
        return
    old = folder.spec()
    if old.content == spec.content:
        return
    branch = f"branch_from was {old.parent}, now {spec.parent}"
    difference = _difference(old, spec) or branch
    raise UserError(
        f"{folder.path}: another run has this folder's name: {difference}; "
        "move it away, or choose another output_root"
    )


# -- a folder for a run ---------------------------------------------------------------------------
def open_folder(path: Path, spec: RunSpec, resume: bool) -> RunFolder:
    """The folder at `path`, from which `spec` can run; its state says what is left to do.

    The same run continues with today's config, or is finished already; another run is moved aside,
    or, with `resume`, left as it is where the rule allows it to become `spec` (see `continue_as`);
    files that are no run are never touched.

    Raises:
        UserError: `resume` has nothing to continue, or other files, or another past.
        Held: another process trains there.
    """
    folder = RunFolder(path)
    if not folder.exists():
        if resume and os.path.isfile(folder / CHECKPOINT):
            raise UserError(
                f"init_from=resume: {path} holds a {CHECKPOINT} of another program; "
                f"--init_from={path} begins with nanoGPT's weights, in another out_dir"
            )
        if resume:
            raise UserError(
                f"init_from=resume: {path} holds no run; train one there first, or "
                "leave init_from out"
            )
        with disk_errors(path):
            foreign = path.exists() and (not path.is_dir() or not _is_ours(path))
        if foreign:
            raise UserError(f"out_dir={path} holds other files; choose a new or empty folder")
        folder.create(spec)
        return folder

    if running := folder.holder():
        raise Held(path, running)
    if folder.record(CONFIG) is None and spec.is_called(folder.id()):
        renew(folder, spec)
    old = folder.spec()
    if old.content == spec.content:
        if resume and not is_finished(folder) and start_of(folder, old) is None:
            raise UserError(_no_checkpoint(path))
        renew(folder, spec)
        return folder
    if resume:
        check_past(old, spec, folder.status().checkpoint_step or 0, path)
        if not (folder / CHECKPOINT).is_file():
            raise UserError(_no_checkpoint(path))
    else:
        branch_from = spec.config.branch_from
        if branch_from and parse_branch(branch_from)[0].resolve() == path.resolve():
            raise UserError(
                f"out_dir={path} is the run that branch_from={branch_from} names; "
                "choose another out_dir"
            )
        _make_room(folder, old, spec)
        folder.create(spec)
    return folder


def _make_room(folder: RunFolder, old: RunSpec, spec: RunSpec) -> None:
    """Move the run in the folder aside, and say why, and how one goes on with it instead."""
    why = _difference(old, spec) or f"branch_from was {old.parent}, now {spec.parent}"
    step = folder.status().checkpoint_step
    sets = _its_sets(old, spec)
    twin = replace(spec, data_fingerprint=old.data_fingerprint) if sets else spec
    goes_on = step and (folder / CHECKPOINT).is_file() and not past_difference(old, twin, step)
    aside = move_aside(folder.path)
    print(f"{folder.path} holds another run ({old.id}; {why}): moved to {aside}")
    if goes_on and old.parent == spec.parent:
        flags = f"{sets} --init_from=resume --out_dir={in_a_shell(aside)}".lstrip()
        print(f"this run starts anew; to go on with that one instead, add {flags}")


def _is_ours(path: Path) -> bool:
    """Whether a folder holds nothing but what was left where a run's maker was killed."""
    left = (NAME.pattern, r"\.(config|lease-\d+)\.json\..*\.tmp", r"\.clock\..*\.tmp")
    return all(re.fullmatch("|".join(left), file.name) for file in path.iterdir())


def _no_checkpoint(path: Path) -> str:
    return (
        f"init_from=resume: {path} holds no {CHECKPOINT} to continue; leave init_from out to "
        "start from the beginning (keep=all keeps it for a longer run)"
    )


def continue_as(folder: RunFolder, spec: RunSpec) -> None:
    """Make the folder's run `spec`, whose past is equal: longer, or with another end.

    The shorter run's results stay until the longer one's take their place.
    """
    if folder.holds(spec):
        return
    # in this order, so that a kill in between never takes the shorter run's results for these
    folder.set_status(id=spec.id, state=WAITING, max_iters=spec.config.max_iters)
    write_json(folder / CONFIG, spec.to_json())


def renew(folder: RunFolder, spec: RunSpec) -> None:
    """Give a run that is not finished today's config.

    A run whose records are damaged gets those, and goes on from what it has saved.

    Raises:
        UserError: another version wrote a record.
        Held: another process trains there.
    """
    folder.check_schemas(CONFIG, STATUS, METRICS)
    with folder.take():
        if folder.record(CONFIG) is None:
            write_json(folder / CONFIG, spec.to_json())
        if folder.record(STATUS) is None:
            _restore_status(folder)
        state = folder.status().state
        if state in FINISHED:
            return
        write_json(folder / CONFIG, renewed(folder, spec).to_json())
        if state != WAITING:
            folder.set_status(state=WAITING, reason=None)


def in_vain(old: RunSpec, new: RunSpec, numerics: Mapping[str, Json]) -> str:
    """What was typed of a finished run and changes nothing of it, in a line; "" if nothing was.

    `numerics` is how it was computed.
    """
    was, now = flatten(old.config), flatten(new.config)
    keys = []
    for key in new.typed:
        if key in ("out_dir", "init_from") or all_fields()[key].hashed:
            continue
        has = numerics.get(key, was[key])
        if now[key] != has and (now[key] != was[key] or key == "compile"):  # True: where it pays
            keys.append(f"{key}={now[key]} (it has {has})")
    if not keys:
        return ""
    return f"{', '.join(keys)} cannot change a finished run; choose another out_dir to train it so"


def lost_state(folder: RunFolder) -> str | None:
    """The state that the results of a run say it has, whose status is lost; None without them."""
    if folder.record(STATUS) is not None or folder.record(CONFIG) is None:
        return None
    results = folder.record(METRICS) or {}
    state = results.get("status")
    return state if state in FINISHED and folder.spec().is_called(results.get("id")) else None


def _restore_status(folder: RunFolder) -> None:
    """Say of a run whose status is lost that it has finished, if there are its results."""
    state = lost_state(folder)
    if state is not None:
        step = (folder.record(METRICS) or {})["iter_num"]
        saved = step if state == COMPLETE and (folder / CHECKPOINT).is_file() else None
        folder.set_status(state=state, step=step, checkpoint_step=saved, reason=None)


def renewed(folder: RunFolder, spec: RunSpec) -> RunSpec:
    """`spec` with what the folder's run must keep of its config to go on.

    Keys that are no part of the identity may be given anew; but a micro-batch that was halved
    stays so, and once there is a checkpoint what rounding depends on stays as it was.
    """
    old = folder.spec().config
    config = spec.config
    if config.micro_batch_size is None and "micro_batch_size" not in spec.typed:
        config = replace(config, micro_batch_size=old.micro_batch_size)
    if folder.status().checkpoint_step is not None or (folder / CHECKPOINT).is_file():
        config = replace(config, **{key: getattr(old, key) for key in ROUNDING_KEYS})
    return replace(spec, config=config)


def is_finished(folder: RunFolder, spec: RunSpec | None = None) -> bool:
    """Whether the run, which is `spec` if that is given, has its result."""
    return folder.state() in FINISHED and (spec is None or folder.holds(spec))


# -- from a checkpoint ----------------------------------------------------------------------------
def start_of(folder: RunFolder, spec: RunSpec) -> Path | None:
    """The checkpoint to continue from, the folder's or else the parent's; None: from scratch."""
    newest = folder / CHECKPOINT
    if newest.is_file():
        return newest
    if spec.config.branch_from is None:
        return None
    _, step = parse_branch(spec.config.branch_from)
    return parent_folder(folder, spec.config.branch_from) / checkpoint_file(step)


def parent_folder(folder: RunFolder, branch_from: str) -> Path:
    """Where a branch's parent lies: as it was named, else beside the branch, if both were moved."""
    parent, step = parse_branch(branch_from)
    beside = folder.path.absolute().parent / parent.name
    there = [path for path in (parent, beside) if (path / checkpoint_file(step)).is_file()]
    return there[0] if there else parent


def take_over_rows(folder: RunFolder, spec: RunSpec, step: int, saved: RunSpec | None) -> list[str]:
    """Cut the folder's rows back to `step`, where its run stands; a branch copies its past.

    The evaluation that a shorter run made at its end alone is no part of a longer one. `saved` is
    what the checkpoint was saved of. Returns what there is to warn of.
    """
    for torn in folder.path.glob(".*.tmp"):  # what a killed writer left
        torn.unlink(missing_ok=True)
    if step and spec.config.branch_from and not (folder / CHECKPOINT).is_file():
        parent = parent_folder(folder, spec.config.branch_from)
        past = RunFolder(parent).rows()
        write_text(folder / ROWS, "".join(map(row_line, past)))
    if not (folder / ROWS).is_file():
        return []

    cut_rows(folder / ROWS, step if step else -1)
    rows = folder.rows()
    if saved and (warning := missing_rows(rows, saved, spec, step)):
        return [warning]
    if rows and is_early_end(spec, rows[-1]["step"]):
        end = rows.pop()
        if Due(spec.config, end["step"]).row:
            rows.append(_without_evaluation(end))
        write_text(folder / ROWS, "".join(map(row_line, rows)))
    if step < spec.config.max_iters:
        _put_best_back(folder, spec, rows)
    return []


def _without_evaluation(row: Row) -> Row:
    """A row as an update alone leaves it."""
    kept = dict(row, val_loss=None)
    for key in row:
        if key in ("val_bits_per_byte", "eval_train_loss") or key.startswith(FURTHER):
            del kept[key]
    return kept


def missing_rows(rows: Sequence[Row], saved: RunSpec, spec: RunSpec, step: int) -> str:
    """A warning, if rows before the checkpoint at `step` were lost: a power cut can do that."""
    due = step
    while due and not (Due(saved.config, due).row and Due(spec.config, due).row):
        due -= 1
    last = rows[-1]["step"] if rows else 0
    if due <= last:
        return ""
    return (
        f"{ROWS} lacks the rows after step {last} and up to {due}, the checkpoint has those steps"
    )


def is_early_end(spec: RunSpec, step: int) -> bool:
    """Whether an evaluation after `step` updates could only be that of a shorter run's end."""
    return step > 0 and not Due(spec.config, step).evaluation


def own_best(spec: RunSpec, rows: Sequence[Row]) -> float | None:
    """The least validation loss of the evaluations since the run's own beginning."""
    began = int(spec.parent.rpartition("@")[2]) if spec.parent else -1
    losses = [row.get("val_loss") for row in rows if row["step"] > began]
    return min((loss for loss in losses if loss is not None), default=None)


def _put_best_back(folder: RunFolder, spec: RunSpec, rows: Sequence[Row]) -> None:
    """Have the best weights be those of an evaluation that the rows hold."""
    with disk_errors(folder.path):
        if (folder / BEST_BEFORE).is_file():
            (folder / BEST_BEFORE).replace(folder / BEST)
        untrained = [row for row in rows if row["step"] == 0]
        if own_best(spec, rows) == own_best(spec, untrained):  # none is better, so none was saved
            (folder / BEST).unlink(missing_ok=True)
