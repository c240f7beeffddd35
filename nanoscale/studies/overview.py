"""All studies of a store at a glance: what each asks, what it says, where it stands."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoscale.data.gauge import duration
from nanoscale.errors import UserError, counted
from nanoscale.experiments.results import STUDY, Study, study_names
from nanoscale.store.files import read_json
from nanoscale.studies.stages import ANSWER_FILE, REPORT

if TYPE_CHECKING:
    from nanoscale.report import StudyLine

INDEX_PAGE = "index.html"


def write_overview(output_root: Path) -> tuple[Path, list[StudyLine]]:
    """Write the index of the studies there, the one that was worked on last first.

    Raises:
        UserError: there is none.
    """
    from nanoscale.report import write_index

    names = study_names(output_root)
    if not names:
        raise UserError(f"no studies in {output_root}; nanoscale study FILE makes one")
    names.sort(key=lambda name: -(output_root / name / STUDY).stat().st_mtime)
    studies = [line_of(Study.open(output_root / name)) for name in names]
    return write_index(output_root / INDEX_PAGE, studies), studies


def line_of(study: Study) -> StudyLine:
    """What the index says of one study."""
    from nanoscale.report import StudyLine

    states = ", ".join(f"{count} {state}" for state, count in sorted(study.states().items()))
    worked = datetime.fromtimestamp((study.folder / STUDY).stat().st_mtime, UTC)
    flops = sum(metrics.get("flops") or 0 for metrics in study.metrics())
    seconds = sum(metrics.get("wall_seconds") or 0 for metrics in study.metrics())
    facts = [
        f"{counted(len(study), 'run')}: {states}",
        f"{flops:.3g} FLOPs, {duration(seconds)} of runs",
        f"{worked:%Y-%m-%d}",
    ]
    page = f"{study.name}/{REPORT}" if (study.folder / REPORT).is_file() else ""
    return StudyLine(study.name, study.asked.question, answer_of(study), facts, page)


def answer_of(study: Study) -> str:
    """The first line of its answer; empty where it has none yet."""
    path = study.folder / ANSWER_FILE
    record: Any = read_json(path) if path.is_file() else None
    lines = record.get("lines") if isinstance(record, dict) else None
    return str(lines[0]) if lines else ""
