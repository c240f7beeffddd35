"""What a page says of a study beside its answer: its cost, its origin, what its best run writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from nanoscale.data.gauge import duration
from nanoscale.errors import counted
from nanoscale.experiments.results import STUDY, Study
from nanoscale.spec.sources import flatten_keys
from nanoscale.spec.values import Json
from nanoscale.store.files import read_json

ANSWER_FILE = "answer.json"
Writer: TypeAlias = Callable[[Path], str | None]
ORIGIN = ("git_commit", "git_dirty", "python", "packages", "platform", "device", "data")


def facts_of(study: Study) -> list[str]:
    """How many runs in which states, what they cost, when, by which commit."""
    worked = datetime.fromtimestamp((study.folder / STUDY).stat().st_mtime, UTC)
    flops = seconds = 0.0
    commits: dict[str, None] = {}
    for metrics in study.metrics():
        flops += metrics.get("flops") or 0
        seconds += metrics.get("wall_seconds") or 0
        provenance = metrics.get("provenance") or {}
        commits[provenance.get("git_commit") or ""] = None
    facts = [
        f"{counted(len(study), 'run')}: {study.counts()}",
        f"{flops:.3g} FLOPs, {duration(seconds)} of runs",
        f"{worked:%Y-%m-%d}",
    ]
    known = [commit[:7] for commit in commits if commit]
    if known:
        word = "commit" if len(known) == 1 else "commits"
        facts.append(f"{word} {', '.join(known)}")
    return facts


def provenance_of(study: Study) -> dict[str, Json]:
    """What the runs were made by, on and of, each with every value that a run has."""
    values: dict[str, dict[str, Json]] = {}
    for metrics in study.metrics():
        provenance = metrics.get("provenance") or {}
        origin = {key: provenance[key] for key in ORIGIN if key in provenance}
        origin["numerics"] = metrics.get("numerics") or {}
        for key, value in flatten_keys(origin).items():
            values.setdefault(key, {})[str(value)] = value
    told: dict[str, Json] = {}
    for key, seen in values.items():
        first, *others = seen.values()
        told[key] = ", ".join(seen) if others else first
    return told


def answer_in(folder: Path) -> Mapping[str, Any]:
    """The answer that a study's folder keeps; empty where it has none yet."""
    path = folder / ANSWER_FILE
    record: Any = read_json(path) if path.is_file() else None
    return record if isinstance(record, dict) else {}


def text_of(best: Path, kept: object, writer: Writer | None) -> dict[str, str] | None:
    """What a run writes, and its folder's name; None where it cannot, its data set gone, say.

    kept: what was said before, which stands as long as it is of that run. writer: of a text, by a
    run's folder.
    """
    if (
        isinstance(kept, dict)
        and kept.get("run") == best.name
        and isinstance(kept.get("text"), str)
    ):
        return kept
    text = writer(best) if writer is not None else None
    return None if text is None else {"run": best.name, "text": text}
