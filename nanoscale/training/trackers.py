"""Trackers: what shows a run elsewhere, while it goes on or later; registered by name.

`metrics.jsonl` is the record, and what a tracker shows a function of it: whoever opens one, a run
that begins or goes on or `nanoscale sync`, tells it every row from the first, and each tracker
leaves out what it has. So a kill loses nothing and repeats nothing there. A tracker may refuse
before the first row; later its failure is a warning, and never the end of a run.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec

from nanoscale.errors import UserError, one_of, program, registered_in
from nanoscale.spec.config import ExperimentConfig
from nanoscale.spec.values import Json
from nanoscale.store.files import plain, write_json
from nanoscale.store.folder import SENT
from nanoscale.store.run_records import further_key
from nanoscale.training.known_trackers import TensorBoardTracker, TrackioTracker, WandbTracker
from nanoscale.training.tracked_run import MakeTracker, TrackedRun, Tracker, flat_numbers

_NOT_SHOWN = (  # of `metrics.json`: what follows from the config, and how it was computed
    "schema",
    "params",
    "flops_per_token",
    "config",
    "numerics",
    "numerics_history",
    "provenance",
)


TRACKERS: dict[str, MakeTracker] = {
    "wandb": WandbTracker,
    "tensorboard": TensorBoardTracker,
    "trackio": TrackioTracker,
}
BUILT_IN_TRACKERS = tuple(TRACKERS)


# -- a user's own ---------------------------------------------------------------------------------
def register_tracker(name: str, make: MakeTracker) -> None:
    """Have every run of this process tell a tracker of your own too.

    A file that calls this is named by the config key `trackers` (`docs/howto/my_tracker.py` is
    one), and by `nanoscale sync --trackers`. `make` is called with a `TrackedRun`.

    Raises:
        UserError: the name is a built-in's or no name, or `make` is no function.

    >>> import nanoscale as ns
    >>> class Printer:
    ...     def __init__(self, run):
    ...         self.name = run.name
    ...     def row(self, step, numbers):
    ...         print(self.name, step, numbers["lr"])
    ...     def final(self, results):
    ...         print(self.name, results["final/status"])
    ...     def close(self): ...
    >>> ns.register_tracker("printer", Printer)
    >>> from nanoscale.training.trackers import TRACKERS
    >>> TRACKERS.pop("printer") is Printer
    True
    """
    if name in BUILT_IN_TRACKERS:
        raise UserError(f"tracker {name!r} is built in; register yours under another name")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][\w.-]*", name):
        raise UserError(f"tracker {name!r}: choose another name, of letters, digits and -_.")
    if not callable(make):
        raise UserError(f"tracker {name!r}: expected a function that makes one, got {make!r}")
    TRACKERS[name] = make


@functools.cache
def registered_by(file: str) -> dict[str, MakeTracker]:
    """The trackers that a user's Python file registers."""
    how = "registers no tracker; call nanoscale.register_tracker(name, make) in it"
    return registered_in(file, TRACKERS, f"trackers={file}", how)


def known_trackers(file: str | None) -> dict[str, MakeTracker]:
    """All that can be named, with those of a user's file."""
    return TRACKERS | (registered_by(file) if file else {})


def wanted(config: ExperimentConfig) -> dict[str, MakeTracker]:
    """The trackers that a config asks for; W&B first, as it may refuse.

    Raises:
        UserError: the user's file fails.
    """
    asked = {
        "wandb": config.wandb_log,
        "tensorboard": config.tensorboard_log,
        "trackio": config.trackio_log,
    }
    known = known_trackers(config.trackers)
    return {name: make for name, make in known.items() if asked.get(name, True)}


def need_package(name: str, typed: str) -> None:
    """Refuse a tracker whose package is not here; messages begin with what was typed."""
    if name in BUILT_IN_TRACKERS and find_spec(name) is None:
        raise UserError(f"{typed} needs {name}: pip install 'nanoscale[{name}]', or leave it out")


# -- the trackers of one run ----------------------------------------------------------------------
class Trackers:
    """The open trackers of a run: what one of them raises is a warning, once, and closes it.

    Raises:
        UserError: one cannot begin, and the run has no row yet, or a tracker was `typed` for it.
    """

    def __init__(
        self,
        run: TrackedRun,
        makers: Mapping[str, MakeTracker],
        warn: Callable[[str], None],
        typed: str = "",
    ) -> None:
        self.run = run
        self.warn = warn
        self.failed: list[str] = []
        self.urls: list[str] = []  # where those that have one show the run
        self._open: dict[str, Tracker] = {}
        self._ended = False
        rows = run.folder.rows() if makers else []
        for name, make in makers.items():
            try:
                tracker = self._open[name] = make(run)
                if url := getattr(tracker, "url", None):
                    self.urls.append(f"{name}: {url}")
            except Exception as error:  # which it may be is the tracker's alone
                if typed or not rows:
                    self.close()
                    raise UserError(f"{typed or asked_by(name)}: {in_words(error)}") from error
                self._drop(name, error)
        for row in rows:
            self.row(row["step"], row)

    def row(self, step: int, row: Mapping[str, Json]) -> None:
        if self._open:
            numbers = flat_numbers(plain(row))  # as they are read from the file
            self._tell(lambda tracker: tracker.row(step, numbers))

    def final(self, record: Mapping[str, Json]) -> None:
        """Tell the results, a `metrics.json`."""
        results = final_results(record)
        self._ended = True
        self._tell(lambda tracker: tracker.final(results))

    def close(self) -> None:
        """Close those that are open; those that have all of a run are written down."""
        closed = []
        while self._open:
            name, tracker = self._open.popitem()
            try:
                tracker.close()
                closed.append(name)
            except Exception as error:
                self._drop(name, error)
        if self._ended and closed:
            try:
                note_sent(self.run, closed)
            except UserError as error:
                self.warn(str(error))

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                what(tracker)
            except Exception as error:  # nothing that a tracker does ends a run
                self._drop(name, error)

    def _drop(self, name: str, error: Exception) -> None:
        """Go on without a tracker."""
        self.failed.append(name)
        tracker = self._open.pop(name, None)
        self.warn(
            f"{name} has failed ({in_words(error)}) and is told no more; the rows are in "
            f"metrics.jsonl: {program()} sync {self.run.folder.path} --to={name} sends them later"
        )
        if tracker is not None:
            with suppress(Exception):
                tracker.close()


def asked_by(name: str) -> str:
    """What was typed for a tracker."""
    return f"{name}_log=True" if name in BUILT_IN_TRACKERS else f"the tracker {name}"


def in_words(error: Exception) -> str:
    """An error of a tracker as part of a line."""
    said = " ".join(str(error).split())
    return said if isinstance(error, UserError) else f"{type(error).__name__}: {said}"


def note_sent(run: TrackedRun, names: list[str]) -> None:
    """Write down that trackers have all of a finished run."""
    sent = run.folder.record(SENT) or {}
    for name in names:
        sent[name] = {"id": run.spec.id, "study": run.study, "cell": run.cell, "at": time.time()}
    write_json(run.folder / SENT, sent)


def is_sent(run: TrackedRun, name: str) -> bool:
    """Whether a tracker has all of a finished run, under whatever study."""
    note = (run.folder.record(SENT) or {}).get(name)
    return isinstance(note, dict) and run.spec.is_called(note.get("id"))


# -- numbers --------------------------------------------------------------------------------------
def final_results(record: Mapping[str, Json]) -> dict[str, Json]:
    """The results in a `metrics.json` under names that no row has: `final/val_loss` and so on."""
    shown = {key: value for key, value in plain(record).items() if key not in _NOT_SHOWN}
    _, *further = shown.pop("val_sets", {None: {}}).items()  # the first is `val_loss` already
    for name, found in further:
        shown[further_key(name)] = found["loss"]
        shown[f"val_bits_per_byte_{name}"] = found["bits_per_byte"]
    return {"final/status": record["status"], **flat_numbers(shown, "final/")}


def tracker_of(name: str, file: str | None) -> MakeTracker:
    """The tracker of that name, from a user's file too.

    Raises:
        UserError: there is none.
    """
    known = known_trackers(file)
    if name not in known:
        own = "" if file else "; --trackers=FILE registers one of yours"
        raise UserError(f"--to={name}: choose {one_of(known)}{own}")
    return known[name]
