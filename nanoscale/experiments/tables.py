"""Tables of runs, one row each: read from a file, a study or run folders, and asked for a column.

A table is a DataFrame of Python's own values, where None is no value. What a study's file calls an
arm stands in a column of its own. Everything that judges or fits runs begins here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoscale.errors import UserError, cut, did_you_mean
from nanoscale.experiments.records import RunEntry
from nanoscale.experiments.results import Study, mixed_sets, row_of, study_folder
from nanoscale.experiments.table_files import frame_of, is_table_file, read_table_file
from nanoscale.spec.config import flatten
from nanoscale.spec.values import Json
from nanoscale.store.folder import CONFIG, FAILED, FINISHED, RUNNING, WAITING, RunFolder

if TYPE_CHECKING:
    from pandas import DataFrame

STATES = frozenset({*FINISHED, RUNNING, WAITING, FAILED})  # that a row's `state` may name
ARM = "arm"  # the column of a study's arms


def read_table(*names: str | Path, output_root: str | Path = "experiments_out") -> DataFrame:
    """One row per run, of a table's file, of a study, or of run folders.

    Args:
        names: one file (text of any separator, JSON, .parquet or .xlsx; .gz too), one study (its
            name below `output_root`, or its folder), or any number of run folders.
        output_root: where a study is looked for by its name.

    Returns:
        A DataFrame with None where there is no value. The cells of a text stay text.

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
        folders = list(map(RunFolder, names))
        return _noted(frame_of([_folder_row(folder) for folder in folders]), folders)
    if path.is_file() or (is_table_file(path) and not path.is_dir()):
        return read_table_file(path)
    return study_table(Study.open(study_folder(path, output_root)))


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
    return _noted(frame_of(rows), [folder for _, folder in study.runs()])


def _noted(frame: DataFrame, folders: Sequence[RunFolder]) -> DataFrame:
    """The table, with what its reader should say of its runs (see `notes_of`)."""
    frame.attrs["notes"] = mixed_sets(folders)
    return frame


def notes_of(frame: DataFrame) -> list[str]:
    """Warnings about the runs of a table, of which a file says none."""
    return list(frame.attrs.get("notes", []))


def column(option: str, name: str, frame: DataFrame, dashes: str = "--") -> str:
    """`name`, a column of the table; `UserError` with the nearest for another.

    dashes: those of the option where it was typed; none in Python.
    """
    if name not in frame:
        columns = [str(key) for key in frame.columns]
        hint = did_you_mean(name, columns) or f"; there are {', '.join(columns)}"
        raise UserError(f"{dashes}{option}={name}: the table has no such column{hint}")
    return name


def row_of_frame(label: object) -> str:
    """How a row is called: from 1, or by its label in a frame that has labels."""
    return f"row {label + 1}" if isinstance(label, Integral) else f"row {cut(str(label))}"


def number_at(row: object, name: str, value: Any) -> float:
    """A cell of a table as a number, NaN for none; `UserError` naming its row."""
    if value is None:
        return math.nan
    try:
        if isinstance(value, bool):
            raise ValueError("no number")
        return float(value)
    except (TypeError, ValueError):
        said = f"{name}={cut(repr(value))} is not a number"
        raise UserError(f"{row_of_frame(row)}: {said}") from None


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
