"""All studies at a glance: one HTML file beside their folders, with a link to each page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nanoscale.report.page import template
from nanoscale.report.style import COLOURS
from nanoscale.store.files import write_text


@dataclass(frozen=True)
class StudyLine:
    """What the index says of a study; `page`: its address from there, if it has one."""

    name: str
    question: str
    answer: str
    facts: Sequence[str]  # states, cost, date
    page: str


def write_index(path: Path, studies: Sequence[StudyLine]) -> Path:
    """Write the page, atomically, its studies in their order."""
    write_text(path, template("index.html.jinja").render(studies=studies, colours=COLOURS))
    return path
