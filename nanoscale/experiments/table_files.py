"""Tables as people have them: text of any separator, JSON, Parquet and Excel's, gzipped or not.

What a number is in a text follows from all of its cells, never from one: `2,35` makes the commas
decimal, `2.35` makes that of `1,234` thousands, and `1,234` alone is refused. What a file is
follows from its first bytes before its name.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoscale.errors import UserError, counted, cut, did_you_mean
from nanoscale.spec.sources import flatten_keys
from nanoscale.spec.values import once_each

if TYPE_CHECKING:
    from pandas import DataFrame

TEXTS = (".csv", ".tsv", ".txt", ".dat")
JSONS = (".jsonl", ".ndjson", ".json")
TABLE_FILES = (*TEXTS, *JSONS, ".parquet", ".xlsx")
SEPARATORS = (",", ";", "\t", "|")
COMMENT = "#"
GZIP, COLUMNAR, ZIP = b"\x1f\x8b", b"PAR1", b"PK\x03\x04"  # how files begin; of Parquet the second
EXCEL = b"xl/workbook"  # in the zip that an .xlsx is
UTF16 = (b"\xff\xfe", b"\xfe\xff")  # as Excel's "Unicode text" is
EXCELS_HINT = re.compile(r"sep=.\s*", re.IGNORECASE)  # a first line that only Excel reads

SPACED = re.compile(r"[+-]?\d{1,3}([ \u00a0\u202f]\d{3})+([.,]\d+)?")  # 1 234 567
COMMAS = re.compile(r"[+-]?(\d+,\d+|[1-9]\d{0,2}(\.\d{3})+,\d+)(e[+-]?\d+)?", re.IGNORECASE)
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?")
DOTS = re.compile(r"[+-]?\d*\.\d+(e[+-]?\d+)?", re.IGNORECASE)
THOUSAND_DOTS = re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3})+")


@dataclass(frozen=True)
class Line:
    """The cells of a line, and where it stands in its file."""

    number: int
    cells: Sequence[str]


def is_table_file(path: Path) -> bool:
    """Whether the name ends as a table's does; that of `runs.csv.gz` does."""
    return _kind(path) in TABLE_FILES


def read_table_file(path: Path) -> DataFrame:
    """A table's rows, None where there is no value. The cells of a text stay text.

    Raises:
        UserError: naming the file, and the line where there is one.
    """
    if not path.is_file():
        near = did_you_mean(str(path), map(str, sorted(path.parent.glob(f"*{path.suffix}"))))
        raise UserError(f"{path}: no such table{near}")
    try:
        content = path.read_bytes()
        while content.startswith(GZIP):
            content = gzip.decompress(content)
        kind = _kind(path)
        if kind == ".parquet" or content.startswith(COLUMNAR):
            return _parquet(content)
        if kind == ".xlsx" or (content.startswith(ZIP) and EXCEL in content):
            kind = ".xlsx"
            return _of_lines(_excel_lines(content))
        text = _text_of(content)
        return frame_of(_json_rows(text)) if kind in JSONS else _of_text(text)
    except ImportError as e:
        extra = "excel" if kind == ".xlsx" else "parquet"
        raise UserError(f"{path}: reading it needs `pip install 'nanoscale[{extra}]'`") from e
    except (
        ValueError,
        AttributeError,
        OSError,
        EOFError,
        RecursionError,
        zlib.error,
        csv.Error,
    ) as e:
        said = (str(e) or type(e).__name__).splitlines()[0]
        raise UserError(f"{path}: cannot be read as a table: {cut(said, 200)}") from e


def frame_of(rows: Sequence[Mapping[str, Any]]) -> DataFrame:
    """Rows whose keys need not be the same, their values as they are."""
    import pandas as pd

    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [list(map(row.get, keys)) for row in rows]
    return pd.DataFrame(cells, columns=keys, dtype=object)


def _kind(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _text_of(content: bytes) -> str:
    try:
        text = content.decode("utf-16" if content.startswith(UTF16) else "utf-8-sig")
        if "\0" in text:
            raise ValueError("it has NUL bytes, which no text has")
    except ValueError as e:  # of decoding too
        raise ValueError(f"{e}; save it as UTF-8 text, .parquet or .xlsx") from e
    return text


def _numbered(text: str) -> list[tuple[int, str]]:
    """Its lines, from 1, which end at a newline of any system, and at no other character."""
    return list(enumerate(io.StringIO(text, newline=None), 1))


# -- lines ----------------------------------------------------------------------------------------
def _of_lines(lines: list[Line]) -> DataFrame:
    """A line of column names, then a line per run."""
    import pandas as pd

    if not lines:
        raise ValueError("empty; a table has a line of column names and a row per run")
    names = [name.strip() for name in lines[0].cells]
    if not any(names):
        raise ValueError(f"line {lines[0].number} is blank where the columns' names are wanted")
    while not names[-1]:
        names.pop()
    rows = [_of_width(line, len(names)) for line in lines[1:] if any(line.cells)]
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    if not names[0] and columns[0] == tuple(map(str, range(len(rows)))):  # pandas' own index
        names, columns = names[1:], columns[1:]
    if "" in names:
        raise ValueError(f"line {lines[0].number}: column {names.index('') + 1} has no name")
    table = once_each(zip(names, _plain_numbers(columns), strict=True))
    frame = pd.DataFrame(table, dtype=object)
    return frame.where(frame != "", None)


def _of_width(line: Line, width: int) -> Sequence[str]:
    """The cells of a line; a number that was cut in two, or cut off, must not pass for another."""
    cells = [cell.strip() for cell in line.cells]
    if len(cells) < width or any(cells[width:]):
        names = counted(width, "name")
        raise ValueError(
            f"line {line.number} has {counted(len(cells), 'cell')} where the first has {names}"
        )
    return cells[:width]


def _of_text(text: str) -> DataFrame:
    """A text's table; its notes say that lines like those of runs are comments."""
    lines, comments = _text_lines(text)
    frame = _of_lines(lines)
    of_runs = [line for line in comments if len(line.cells) >= frame.shape[1]]
    alike = [line for line in of_runs if any(map(_is_number, line.cells[1:]))]
    if alike:
        frame.attrs["notes"] = [
            f"{counted(len(alike), 'line')} after {COMMENT} (line {alike[0].number}) with the "
            "cells of a run: skipped, as comments are"
        ]
    return frame


def _text_lines(text: str) -> tuple[list[Line], list[Line]]:
    """The lines of a text that say something, and comments after the first of them.

    A header may stand in a comment.
    """
    numbered = _numbered(text)
    if numbered and EXCELS_HINT.fullmatch(numbered[0][1]):
        del numbered[0]
    numbered = [(number, line) for number, line in numbered if line.strip()]
    kept: list[tuple[int, str]] = []
    others: list[tuple[int, str]] = []
    for line in numbered:
        (others if line[1].lstrip().startswith(COMMENT) else kept).append(line)
    if not kept:
        return [], []
    separator = _separator([line for _, line in kept])
    lines = list(_split(kept, separator))
    comments = [Line(n, line.split(separator)) for n, line in others if n > kept[0][0]]
    if not any(map(_is_number, lines[0].cells)):
        return lines, comments
    before = [(n, line.lstrip(f" {COMMENT}")) for n, line in others if n < kept[0][0]]
    header = list(_split(before[-1:], separator))
    if header and len(header[0].cells) == len(lines[0].cells):
        return header + lines, comments
    if all(map(_is_number, lines[0].cells)):
        raise ValueError("its first line holds numbers; write the columns' names above them")
    return lines, comments


def _separator(lines: list[str]) -> str | None:
    """What parts the cells: the character that parts the first line most, or spaces (None)."""
    parts = {mark: len(next(csv.reader(lines[:1], delimiter=mark))) for mark in SEPARATORS}
    best = max(SEPARATORS, key=lambda mark: parts[mark])
    if parts[best] > 1:
        return best
    widths = {len(line.split()) for line in lines}
    return None if len(widths) == 1 and widths != {1} else best


def _split(numbered: list[tuple[int, str]], separator: str | None) -> Iterator[Line]:
    texts = [line for _, line in numbered]
    if separator is None:
        yield from (Line(number, line.split()) for number, line in numbered)
        return
    reader = csv.reader(texts, delimiter=separator, skipinitialspace=True, strict=True)
    for cells in reader:
        yield Line(numbered[reader.line_num - 1][0], cells)


def _excel_lines(content: bytes) -> list[Line]:
    """Those of the one sheet that holds anything."""
    import pandas as pd

    try:
        sheets = pd.read_excel(io.BytesIO(content), sheet_name=None, header=None, dtype=object)
    except ImportError:
        raise
    except Exception as e:  # a damaged file raises what zip, XML and openpyxl raise
        raise ValueError(f"not a whole Excel file ({e})") from e
    filled = {name: sheet for name, sheet in sheets.items() if len(sheet)}
    if len(filled) > 1:
        raise ValueError(f"it has the sheets {', '.join(filled)}; save the one with the runs")
    lines = []
    for sheet in filled.values():
        for number, cells in enumerate(sheet.itertuples(index=False), 1):
            words = ["" if pd.isna(cell) else str(cell) for cell in cells]
            lines.append(Line(number, words))
    return [line for line in lines if any(line.cells)]


# -- numbers --------------------------------------------------------------------------------------
def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _plain_numbers(columns: Sequence[Sequence[str]]) -> list[list[str]]:
    """The columns with each number as Python writes it; text that is no number stays."""
    cells = dict.fromkeys(cell for cell in chain(*columns) if not cell.isalnum())
    plain = {cell: re.sub(r"[ \u00a0\u202f]", "", cell) for cell in cells if SPACED.fullmatch(cell)}
    numbers = [plain.get(cell, cell) for cell in cells]
    if any("," in number for number in numbers):
        rewrite = _commas(numbers)
        plain |= {cell: rewrite(number) for cell, number in zip(cells, numbers, strict=True)}
    return [[plain.get(cell, cell) for cell in column] for column in columns]


def _commas(numbers: Sequence[str]) -> Callable[[str], str]:
    """How these numbers, some with commas, are written anew with a decimal point alone."""
    grouped = list(filter(THOUSANDS.fullmatch, numbers))
    decimal = [n for n in numbers if COMMAS.fullmatch(n) and not THOUSANDS.fullmatch(n)]
    points = [n for n in numbers if DOTS.fullmatch(n) and not THOUSAND_DOTS.fullmatch(n)]
    points += [n for n in grouped if "." in n or n.count(",") > 1]
    dotted = list(filter(THOUSAND_DOTS.fullmatch, numbers))
    if decimal and points:
        raise ValueError(
            f"{cut(decimal[0])} and {cut(points[0])} write numbers in two ways; keep to points"
        )
    if decimal:
        if dotted and not any(
            n.count(".") > 1 or "," in n for n in [*dotted, *decimal] if "." in n
        ):
            raise _either(dotted[0], ".")
        return lambda n: _with_point(n) if COMMAS.fullmatch(n) or n in dotted else n
    if grouped and not points:
        raise _either(grouped[0], ",")
    return lambda n: n.replace(",", "") if THOUSANDS.fullmatch(n) else n


def _with_point(number: str) -> str:
    return number.replace(".", "").replace(",", ".")


def _either(number: str, mark: str) -> ValueError:
    whole, part = number.replace(mark, ""), number.replace(mark, ".")
    return ValueError(f"{number} may be {whole} or {part}; write the one that is meant")


# -- JSON and Parquet -----------------------------------------------------------------------------
def _json_rows(text: str) -> list[Mapping[str, Any]]:
    """An array of rows, a row per line, columns of lists, or what pandas writes; nested or not."""
    try:
        values = [json.loads(text, object_pairs_hook=once_each)]
    except json.JSONDecodeError:
        values = [_json_line(number, line) for number, line in _numbered(text)]
        values = [value for value in values if value is not None]
    if len(values) == 1:
        values = _rows_of(values[0])
    if not all(isinstance(value, Mapping) for value in values):
        raise ValueError("every line of the table must be a JSON object, a row per run")
    return [flatten_keys(value) for value in values]


def _json_line(number: int, line: str) -> Any:
    if not line.strip():
        return None
    try:
        return json.loads(line, object_pairs_hook=once_each)
    except ValueError as e:
        raise ValueError(f"line {number}: {e}") from e


def _rows_of(value: Any) -> list[Any]:
    """The rows that one JSON value holds."""
    if isinstance(value, list):
        return value
    columns = list(value.values()) if isinstance(value, Mapping) else []
    if columns and all(isinstance(column, list) for column in columns):
        if len(set(map(len, columns))) > 1:
            raise ValueError("its columns differ in length")
        return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]
    if columns and all(_is_pandas_column(column) for column in columns):
        return [{name: value[name].get(key) for name in value} for key in columns[0]]
    return [value]


def _is_pandas_column(column: Any) -> bool:
    """A column as `DataFrame.to_json` writes it: by the number of the row."""
    return isinstance(column, Mapping) and list(column) == list(map(str, range(len(column))))


def _parquet(content: bytes) -> DataFrame:
    import pandas as pd

    table = pd.read_parquet(io.BytesIO(content))
    if any(table.index.names):  # `set_index` was called on it
        table = table.reset_index()
    rows = table.astype(object)
    rows = rows.where(rows.notna(), None)
    if any(isinstance(cell, Mapping) for cell in chain(*rows.head(1).to_numpy())):
        return frame_of([flatten_keys(row) for row in rows.to_dict("records")])
    return rows
