"""The one resume rule: a run may continue from a checkpoint if and only if its past is equal.

Equal past: equal data, every key equal but those of length and schedule, and equal schedule
multipliers for every step already done. This gives resuming, longer runs and cooldown branches.
"""

from __future__ import annotations

from pathlib import Path

from nanoscale.errors import UserError, disk_errors
from nanoscale.spec.config import all_fields, flatten
from nanoscale.spec.identity import RunSpec
from nanoscale.spec.schedule import lr_multiplier
from nanoscale.store.files import move_aside
from nanoscale.store.folder import FINISHED, RunFolder
from nanoscale.store.lease import Held


def past_difference(old: RunSpec, new: RunSpec, step: int) -> str | None:
    """What makes the past of `new` differ from `old`'s first `step` updates, or None."""
    if old.data_fingerprint != new.data_fingerprint:
        return (
            f"the data differs ({old.data_name} {old.data_fingerprint[:8]}, now "
            f"{new.data_name} {new.data_fingerprint[:8]})"
        )
    if new.config.max_iters < step:
        return f"it has made {step} updates already, more than max_iters={new.config.max_iters}"
    before, after = flatten(old.config), flatten(new.config)
    for name, key in all_fields().items():
        fixed = key.hashed and key.group not in ("length", "schedule")
        if fixed and before[name] != after[name]:
            return f"{name} was {before[name]}, now {after[name]}"
    p, lengths = new.config.parametrization, (old.config.max_iters, new.config.max_iters)
    if step and lengths[0] != lengths[1] and (p.base_tokens or p.wd_timescale == "fraction_of_run"):
        key = "base_tokens" if p.base_tokens else "wd_timescale"
        return (
            f"parametrization.{key}={getattr(p, key)} makes every update depend on the length, "
            f"which was {lengths[0]}, now {lengths[1]}"
        )
    for t in range(step):
        was, now = lr_multiplier(old.config, t), lr_multiplier(new.config, t)
        if was != now:
            return f"the LR multiplier of update {t + 1} was {was:.6g}, now {now:.6g}"
    return None


def check_past(old: RunSpec, new: RunSpec, step: int, where: object) -> None:
    """Refuse to continue the checkpoint at `where` as a run with another past."""
    difference = past_difference(old, new, step)
    if difference:
        raise UserError(
            f"{where}: cannot continue as this run: {difference}; give it the same "
            "past, or another out_dir to start anew"
        )


def open_folder(path: Path, spec: RunSpec, resume: bool) -> RunFolder:
    """The folder at `path`, ready to run `spec`; its state says whether anything is left to do.

    The same run continues, or is finished already; another run is moved aside, or, with `resume`,
    continued as `spec` where the rule allows it; files that are no run are never touched.
    """
    folder = RunFolder(path)
    if not folder.exists():
        if resume:
            raise UserError(
                f"init_from=resume: {path} holds no run; train one there first, or "
                "leave init_from out"
            )
        with disk_errors(path):
            foreign = path.exists() and (not path.is_dir() or any(path.iterdir()))
        if foreign:
            raise UserError(f"out_dir={path} holds other files; choose a new or empty folder")
        folder.create(spec)
        return folder
    if running := folder.holder():
        raise Held(path, running)
    old = folder.spec()
    if old.id == spec.id:
        return folder
    if resume:
        check_past(old, spec, folder.status()["checkpoint_step"] or 0, path)
        folder.become(spec)
    else:
        print(f"{path} holds another run ({old.id}): moved to {move_aside(path)}")
        folder.create(spec)
    return folder


def is_finished(folder: RunFolder) -> bool:
    """Whether the run has its result (COMPLETE, PRUNED or DIVERGED)."""
    return folder.state() in FINISHED
