"""What a page says of a study beside its answer: its cost, its origin, what its best run writes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nanoscale.data.gauge import duration
from nanoscale.errors import UserError, counted
from nanoscale.experiments.results import STUDY, Study
from nanoscale.spec.sources import flatten_keys
from nanoscale.spec.values import Json
from nanoscale.store.files import read_json

ANSWER_FILE = "answer.json"
LETTERS = 400  # of a text, about
ORIGIN = ("git_commit", "git_dirty", "python", "packages", "platform", "device", "data")


def facts_of(study: Study) -> list[str]:
    """How many runs in which states, what they cost, when, by which commit."""
    states = ", ".join(f"{count} {state}" for state, count in sorted(study.states().items()))
    worked = datetime.fromtimestamp((study.folder / STUDY).stat().st_mtime, UTC)
    metrics = study.metrics()
    flops = sum(one.get("flops") or 0 for one in metrics)
    seconds = sum(one.get("wall_seconds") or 0 for one in metrics)
    facts = [
        f"{counted(len(study), 'run')}: {states}",
        f"{flops:.3g} FLOPs, {duration(seconds)} of runs",
        f"{worked:%Y-%m-%d}",
    ]
    commits = {(one.get("provenance") or {}).get("git_commit"): None for one in metrics}
    known = [commit[:7] for commit in commits if commit]
    if known:
        facts.append(f"commit{'s' * (len(known) > 1)} {', '.join(known)}")
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


def text_by(best: Path, kept: object) -> dict[str, str] | None:
    """What a run writes, and its folder's name; None where it cannot, its data set gone, say.

    kept: what was said before, which stands as long as it is of that run.
    """
    if isinstance(kept, dict) and kept.get("run") == best.name:
        return kept
    from nanoscale.training.sample import sample
    from nanoscale.training.sample_options import SampleOptions

    options = SampleOptions(out_dir=str(best), num_samples=1, max_new_tokens=LETTERS, device="cpu")
    try:
        (text,) = sample(options)
    except UserError:
        return None
    return {"run": best.name, "text": text.strip()[:LETTERS]}
