"""Finished runs shown elsewhere afterwards, once each: what `nanoscale sync` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from nanoscale.errors import counted
from nanoscale.spec.values import Json
from nanoscale.store.lease import Held
from nanoscale.training.tracked_run import MakeTracker, TrackedRun
from nanoscale.training.trackers import Trackers, is_sent, need_package, tracker_of


@dataclass
class Sending:
    """What came of sending runs to a tracker, by their folders."""

    to: str
    sent: list[str] = field(default_factory=list)
    there: list[str] = field(default_factory=list)  # all of it, from before
    unfinished: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)  # by another process, which may be sending it
    failed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = [f"{counted(len(self.sent), 'run')} sent to {self.to}"]
        others = {
            "there already": self.there,
            "unfinished": self.unfinished,
            "in another process": self.held,
            "not sent whole": self.failed,
        }
        counts += [f"{len(runs)} {what}" for what, runs in others.items() if runs]
        return ", ".join(counts)

    def to_json(self) -> dict[str, Json]:
        return asdict(self)


def send(
    runs: Sequence[TrackedRun],
    to: str,
    file: str | None = None,
    again: bool = False,
    say: Callable[[str], None] = print,
) -> Sending:
    """Tell the tracker called `to`, perhaps of a user's `file`, every row and result of the runs
    that have finished. What it has all of is left out, unless `again`.

    A kill loses nothing: what was sent is written down in the run's folder, and what had begun is
    told anew, of which a tracker leaves out what it has. Two at once send a run once, as either
    holds its folder meanwhile. A run whose rows are gone is not sent.

    Raises:
        UserError: there is no such tracker, or it refuses to begin.
    """
    make = tracker_of(to, file)
    need_package(to, f"--to={to}")
    sending = Sending(to)
    for run in runs:
        name = str(run.folder.path)
        metrics = run.folder.metrics()
        if metrics is None:
            sending.unfinished.append(name)
            continue
        try:
            with run.folder.take().beat():
                if is_sent(run, to) and not again:
                    sending.there.append(name)
                else:
                    whole = send_one(run, metrics, {to: make}, say)
                    (sending.sent if whole else sending.failed).append(name)
        except Held:
            sending.held.append(name)
    return sending


def send_one(
    run: TrackedRun,
    metrics: Mapping[str, Json],
    to: Mapping[str, MakeTracker],
    say: Callable[[str], None],
) -> bool:
    """Send a finished run to the tracker; whether it has all of it."""
    if lost := run.folder.lost_rows():
        say(f"not sent: {run.name}: {lost}")
        return False
    trackers = Trackers(run, to, say, typed=f"--to={','.join(to)}")
    trackers.final(metrics)
    trackers.close()
    if trackers.failed:
        return False
    say(f"sent {run.name}" + "".join(f", {url}" for url in trackers.urls))
    return True
