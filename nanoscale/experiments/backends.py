"""Backends by name: the built-in ones, and those that users register."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from nanoscale.errors import UserError, did_you_mean, one_of
from nanoscale.experiments.clusters import Ray, Slurm
from nanoscale.experiments.local import Subprocess, local_backend
from nanoscale.experiments.worker import Backend
from nanoscale.spec.values import Json

MakeBackend = Callable[[Path, Mapping[str, Json]], Backend]  # (output root, options)

_MAKERS: dict[str, MakeBackend] = {
    "local": lambda output_root, options: local_backend(),
    "subprocess": lambda output_root, options: Subprocess(),
    "ray": lambda output_root, options: Ray(address=options.get("address")),
    "slurm": lambda output_root, options: Slurm(options=options, home=output_root / "slurm"),
}
_BUILT_IN = tuple(_MAKERS)
_OPTIONS = {"local": (), "subprocess": (), "ray": ("address",)}  # slurm's are sbatch's


def register_backend(name: str, make: MakeBackend) -> None:
    """Let `backend=name` stand for a backend of your own, in Python, study files and commands.

    Args:
        name: what a user writes; a second backend of a name replaces the first.
        make: called with the output root and `backend_options`; returns an object with the five
            verbs of `worker.Backend`. It starts `nanoscale run FOLDER`, or anything that fills the
            folder alike.

    Raises:
        UserError: the name is a built-in backend's or no name, or `make` is no function.

    Example:
        >>> import nanoscale as ns
        >>> from nanoscale.experiments.local import Subprocess
        >>> ns.register_backend("plain", lambda output_root, options: Subprocess())
        >>> runner = ns.ExperimentRunner(backend="plain")
    """
    if name in _BUILT_IN:
        raise UserError(f"backend {name!r} is built in; register yours under another name")
    if not isinstance(name, str) or not name.isidentifier():
        raise UserError(f"backend {name!r}: expected a name, as in 'mine'")
    if not callable(make):
        raise UserError(f"backend {name!r}: expected a function that makes one, got {make!r}")
    _MAKERS[name] = make


def registered_backends() -> dict[str, MakeBackend]:
    """Those that can be named, ours and users'."""
    return dict(_MAKERS)


def backend_of(name: str | Backend, output_root: Path, options: Mapping[str, Json]) -> Backend:
    """The backend of that name; an object that is one already is returned as it is.

    `options`: sbatch's for slurm; address for ray. Others are said to be of no use: a study file
    may be for a cluster and its command for here.

    Raises:
        UserError: nobody has registered that name, it says which are, and the nearest; or the
            options are not what the backend takes.
    """
    if not isinstance(options, Mapping):
        raise UserError(
            f"backend_options={options!r}: expected a table, as in {{partition = 'gpu'}}"
        )
    if not isinstance(name, str):
        return name
    if name not in _MAKERS:
        hint = did_you_mean(name, _MAKERS)
        raise UserError(f"backend={name!r}: choose {one_of(_MAKERS)}{hint}")
    idle = set(options).difference(_OPTIONS.get(name, options))
    if idle:
        which = ", ".join(sorted(idle))
        print(f"warning: backend={name!r} has no use for backend_options: {which}", file=sys.stderr)
    return _MAKERS[name](output_root, options)
