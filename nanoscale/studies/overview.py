"""All studies of a store at a glance: what each asks, what it says, where it stands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nanoscale.errors import UserError
from nanoscale.experiments.results import STUDY, Study, study_names
from nanoscale.studies.conclusion import REPORT
from nanoscale.studies.study_facts import answer_in, facts_of

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

    page = f"{study.name}/{REPORT}" if (study.folder / REPORT).is_file() else ""
    lines = answer_in(study.folder).get("lines")
    answer = str(lines[0]) if lines else ""
    return StudyLine(study.name, study.asked.question, answer, facts_of(study), page)
