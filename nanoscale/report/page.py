"""The report: one self-contained HTML file, made from strings, tables and figures.

The one idea: the page needs nothing but itself. No request (its own policy forbids them), no script
but the one that it holds, which sorts tables and nothing is lost without; one style sheet for
screen, dark screen and paper; and equal input gives equal bytes. How it reads is in
`page.html.jinja`, how it looks in `page.css`; here are the words and numbers.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nanoscale.errors import make_folder
from nanoscale.report.figure_files import svg
from nanoscale.report.links import ROW
from nanoscale.report.style import COLOURS, TIMES, WIDTH, is_number, printed
from nanoscale.report.symbols import symbols_in
from nanoscale.spec.values import Json
from nanoscale.store.files import write_text

if TYPE_CHECKING:
    from jinja2 import Template

MISSING = "\u2013"
SCRIPTS = ("tablesort.min.js", "page.js")  # the first by Tristen Brown, MIT licence
INTERVAL = re.compile(r"(\[[^\][]*\])")
MARKED = re.compile(
    r"\^(?P<power>-?\d[\d.]*|\w)|(?P<unknown>not identified)|(?<=\d)e(?P<exponent>[+-]\d\d)\b"
)
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")  # but tabs and line ends
Piece = tuple[str, str]  # what a piece of text is (power, unknown, or nothing special), and it


@dataclass(frozen=True)
class StudyPage:
    """What a page says, in its order.

    facts: of the study, in a few words each. summary_lines: the first is the answer and stands
    alone. figures, tables: with their captions; a table
    whose index is called `run` has the rows that figures lead to (`link_runs`). text: what a model
    writes, and which. settings, provenance: what is nested is shown with dots. commands: what each
    makes, and itself. refresh: after how many seconds the page of a study that runs asks for itself
    again.
    """

    title: str
    question: str
    summary_lines: Sequence[str]
    figures: Sequence[tuple[str, Figure]]
    tables: Sequence[tuple[str, pd.DataFrame]]
    commands: Sequence[tuple[str, str]]
    facts: Sequence[str] = ()
    warnings: Sequence[str] = ()
    text: tuple[str, str] | None = None
    settings: Mapping[str, Json] = field(default_factory=dict)
    provenance: Mapping[str, Json] = field(default_factory=dict)
    refresh: int | None = None

    def write(self, path: Path) -> Path:
        """Write the page, atomically."""
        make_folder(path.parent)
        write_text(path, self.html())
        return path

    def html(self) -> str:
        """The page's text."""
        script = "".join(map(_beside, SCRIPTS))
        text = template("page.html.jinja").render(
            script=script,
            script_digest=b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            title=self.title,
            question=self.question,
            refresh=self.refresh,
            colours=COLOURS,
            answer=[_Line.of(line) for line in self.summary_lines],
            warnings=[_Line.of(line) for line in self.warnings],
            figures=[_drawn(i, *figure) for i, figure in enumerate(self.figures, start=1)],
            tables=[_table(*table) for table in self.tables],
            facts=[_Line.of(fact) for fact in self.facts],
            symbols=symbols_in(self.summary_lines),
            text=self.text,
            lists=[
                (heading, [(name, _words(value)) for name, value in _flat(values)])
                for heading, values in (
                    ("Settings", self.settings),
                    ("Provenance", self.provenance),
                )
            ],
            commands=self.commands,
        )
        return UNPRINTABLE.sub("\ufffd", text)


def _beside(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def template(name: str) -> Template:
    """A page's template, which stands beside this file."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # only who writes a page pays

    environment = Environment(
        loader=PackageLoader("nanoscale.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name)


@dataclass(frozen=True)
class _Line:
    """A line in parts, each with whether it is an interval, and its pieces."""

    text: str
    parts: list[tuple[bool, list[Piece]]]
    begins_with_a_word: bool  # and not with a key, a path or a symbol, which stay as they are

    @classmethod
    def of(cls, text: str) -> _Line:
        parts = INTERVAL.split(text)  # every second one is an interval
        pieces = [(i % 2 == 1, _pieces(part)) for i, part in enumerate(parts)]
        first = text.split(" ")[0].rstrip(",:")
        return cls(text, pieces, first.isalpha() and len(first) > 1)


def _pieces(text: str) -> list[Piece]:
    """Exponents, which are raised, and `not identified`, which is set apart, among the rest."""
    pieces, end = [], 0
    for match in MARKED.finditer(text):
        kind = match.lastgroup or ""
        before, marked = text[end : match.start()], match[kind]
        if kind == "exponent":
            before, kind, marked = f"{before}{TIMES}10", "power", printed(str(int(marked)))
        pieces += [("", before), (kind, marked)]
        end = match.end()
    return [*pieces, ("", text[end:])]


@dataclass(frozen=True)
class _Drawn:
    caption: str
    share: str  # of the text's width
    svg: str  # what follows `<svg`


def _drawn(number: int, caption: str, figure: Figure) -> _Drawn:
    share = figure.get_size_inches()[0] / WIDTH
    drawing = svg(figure, prefix=f"f{number}-")
    return _Drawn(caption, f"{share:.4f}", drawing.removeprefix("<svg"))


# -- tables -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Cell:
    text: str
    power: str = ""  # of ten, after the text
    rank: str = ""  # of a number in its column, of digits as many as any other's has


@dataclass(frozen=True)
class _Column:
    name: str
    numeric: bool
    cells: list[_Cell]


@dataclass(frozen=True)
class _Table:
    caption: str
    columns: list[_Column]
    rows: list[tuple[str, tuple[_Cell, ...]]]  # the id of each, or nothing


def _table(caption: str, table: pd.DataFrame) -> _Table:
    columns = [_column(str(name), series) for name, series in table.items()]
    ids = [""] * len(table)
    if table.index.name == "run":
        again = table.index.duplicated()
        ids = ["" if a else f"{ROW}{run}" for run, a in zip(table.index, again, strict=True)]
    rows = zip(ids, zip(*(column.cells for column in columns), strict=True), strict=True)
    return _Table(caption, columns, list(rows))


def _column(name: str, series: pd.Series) -> _Column:
    """One notation per column, so that numbers line up."""
    values = [v.item() if isinstance(v, np.generic) else v for v in series]
    present = [v for v in values if not _missing(v)]
    numeric = bool(present) and all(map(is_number, present))
    if not numeric:
        texts = [MISSING if _missing(value) else _words(value) for value in values]
        return _Column(name, numeric, [_Cell(text) for text in texts])

    form = _form(present)
    order = sorted({float(value) for value in present})
    ranks = {value: f"{rank:0{len(str(len(order)))}d}" for rank, value in enumerate(order, start=1)}
    cells = []
    for value in values:
        if _missing(value):
            cells.append(_Cell(MISSING, rank="0"))
        else:
            cells.append(replace(_number(value, form), rank=ranks[float(value)]))
    return _Column(name, numeric, cells)


def _missing(value: object) -> bool:
    return value is None or value is pd.NA or (is_number(value) and not math.isfinite(value))


def _form(values: Sequence[float]) -> str:
    """The format of every number of one column."""
    sizes = [abs(float(value)) for value in values if value] or [1.0]
    low, high = min(sizes), max(sizes)
    whole = all(float(value).is_integer() for value in values)
    if high >= 1e10 or (not whole and (low < 1e-4 or high >= 1e7 * low)):
        return ".3e"
    if whole:
        return ",d" if high >= 1e4 else "d"
    digits = max(len(f"{size:.6g}".partition(".")[2]) for size in sizes)
    decimals = min(digits, max(0, 4 - math.floor(math.log10(high))))
    return f",.{decimals}f"


def _number(value: float, form: str) -> _Cell:
    value = int(value) if form.endswith("d") else float(value)
    mantissa, _, exponent = f"{value:{form}}".partition("e")
    text = printed(mantissa)
    if exponent:
        return _Cell(f"{text}{TIMES}10", printed(str(int(exponent))))
    return _Cell(text)


# -- settings -----------------------------------------------------------------------------------
def _words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _flat(settings: Mapping[str, Json], prefix: str = "") -> list[tuple[str, Json]]:
    pairs: list[tuple[str, Json]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            pairs += _flat(value, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", value))
    return pairs
