"""Tables of runs, one row each: read from a file, a study or run folders, and asked for a column.

A table is a DataFrame of Python's own values, where None is no value. What a study's file calls an
arm stands in a column of its own. Everything that judges or fits runs begins here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoscale.errors import UserError, did_you_mean
from nanoscale.experiments.records import RunEntry
from nanoscale.experiments.results import STUDY, Study, row_of
from nanoscale.spec.config import flatten
from nanoscale.spec.values import Json, once_each
from nanoscale.store.folder import CONFIG, FAILED, FINISHED, RUNNING, WAITING, RunFolder

if TYPE_CHECKING:
    from pandas import DataFrame

STATES = frozenset({*FINISHED, RUNNING, WAITING, FAILED})  # that a row's `state` may name
JSON_LINES = (".jsonl", ".ndjson", ".json")
TABLE_FILES = (".csv", *JSON_LINES, ".parquet")
ARM = "arm"  # the column of a study's arms


def read_table(*names: str | Path, output_root: str | Path = "experiments_out") -> DataFrame:
    """One row per run, of a table's file, of a study, or of run folders.

    Args:
        names: one file (.csv, .jsonl or .parquet), one study (its name below `output_root`, or its
            folder), or any number of run folders.
        output_root: where a study is looked for by its name.

    Returns:
        A DataFrame with None where there is no value. The cells of a CSV stay text, as written.

    Raises:
        UserError: there is no such table, or it cannot be read as one.

    Example:
        >>> import nanoscale as ns
        >>> from pathlib import Path
        >>> _ = Path("runs.csv").write_text("n_embd,val_loss\\n64,2.5\\n128,2.25\\n256,\\n")
        >>> table = ns.read_table("runs.csv")
        >>> table["val_loss"].tolist()
        ['2.5', '2.25', None]
        >>> float(table["val_loss"].astype(float).min())
        2.25
    """
    path = Path(names[0])
    if len(names) > 1 or (path / CONFIG).is_file():
        return _frame([_folder_row(RunFolder(name)) for name in names])
    if (path / STUDY).is_file():
        return study_table(Study.open(path))
    if path.suffix in TABLE_FILES or path.is_file():
        return _read_file(path)
    return study_table(Study.open(Path(output_root) / path))


def study_table(study: Study) -> DataFrame:
    """The study's runs, with the arm each belongs to: of those it matches, the most particular."""
    arms = study.asked.extras.get("arms", [])
    rows = []
    for entry, folder in study.runs():
        row = row_of(entry, folder)
        matching = [arm for arm in arms if arm["values"].items() <= entry.values.items()]
        if matching:
            row[ARM] = max(matching, key=lambda arm: len(arm["values"]))["name"]
        rows.append(row)
    return _frame(rows)


def column(option: str, name: str, frame: DataFrame) -> str:
    """`name`, a column of the table; `UserError` with the nearest for another."""
    if name not in frame:
        columns = [str(key) for key in frame.columns]
        hint = did_you_mean(name, columns) or f"; there are {', '.join(columns)}"
        raise UserError(f"--{option}={name}: the table has no such column{hint}")
    return name


def number_at(row: int, name: str, value: Any) -> float:
    """A cell of a table as a number, NaN for none; `UserError` naming its row."""
    if value is None:
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UserError(f"row {row + 1}: {name}={value!r} is not a number") from None


# -- where rows come from -----------------------------------------------------------------------
def _folder_row(folder: RunFolder) -> dict[str, Json]:
    if not folder.exists():
        raise UserError(
            f"{folder.path}: no run folder (it has no {CONFIG}); name one table, one "
            "study, or run folders"
        )
    spec = folder.spec()
    entry = RunEntry(spec.id, folder.path.name, flatten(spec.config), flops=0)
    return row_of(entry, folder) | {"planned_flops": None}  # no study planned it


def _read_file(path: Path) -> DataFrame:
    """A table's rows. A blank is no value; in text `nan` and `inf` are what they say."""
    if not path.is_file():
        near = did_you_mean(str(path), map(str, sorted(path.parent.glob(f"*{path.suffix}"))))
        raise UserError(f"{path}: no such table{near}")
    import pandas as pd

    try:
        if path.suffix == ".parquet":
            rows = pd.read_parquet(path).astype(object)
            return rows.where(rows.notna(), None)
        if path.suffix in JSON_LINES:
            text = path.read_text(encoding="utf-8-sig").splitlines()
            return _frame(
                [json.loads(line, object_pairs_hook=once_each) for line in text if line.strip()]
            )
        rows = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
    except pd.errors.EmptyDataError:
        raise UserError(
            f"{path}: empty; a table has a line of column names and a row per run"
        ) from None
    except (ValueError, ImportError, AttributeError, OSError, RecursionError) as e:
        raise UserError(f"{path}: cannot be read as a table: {str(e).splitlines()[0]}") from e
    if not isinstance(rows.index, pd.RangeIndex):  # pandas takes the first cells for an index
        raise UserError(f"{path}: its rows have more cells than its first line has names")
    return rows.astype(object).where(rows != "", None)


def _frame(rows: Sequence[Mapping[str, Any]]) -> DataFrame:
    """Rows whose keys need not be the same, their values as they are."""
    import pandas as pd

    if not all(isinstance(row, Mapping) for row in rows):
        raise UserError("every line of the table must be a JSON object, a row per run")
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [list(map(row.get, keys)) for row in rows]
    return pd.DataFrame(cells, columns=keys, dtype=object)
