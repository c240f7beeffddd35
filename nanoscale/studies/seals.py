"""Sealed forecasts: written before the run that they forecast, judged when it has been made.

The one idea: a seal holds all that its forecast came from (the rows, how a law was fitted to them,
the versions), so whoever has the file can make the forecast again. What was promised is the SHA-256
of its bytes, which is printed when it is sealed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoscale.errors import UserError
from nanoscale.experiments.tables import read_table
from nanoscale.laws.forecast import Forecast, forecast
from nanoscale.laws.registry import digest_of
from nanoscale.spec.values import Json
from nanoscale.store.files import json_text, plain, read_json, write_text
from nanoscale.store.provenance import provenance
from nanoscale.studies.table_fit import FitSettings, TableFit, fit_table

if TYPE_CHECKING:
    from pandas import DataFrame

SEAL_SCHEMA = 1
KIND = "nanoscale forecast"
SAME = 1e-6  # relative: what another machine's rounding may move
NO_SEAL = "is no sealed forecast; `nanoscale forecast TABLE --at=... --seal=OUT.json` makes one"


def forecast_of(found: TableFit, at: Mapping[str, float]) -> Forecast:
    """The loss of a new run by a table's law, and an interval to be judged by."""
    fit, rows = found.fit, found.rows
    return forecast(
        fit,
        rows.values,
        rows.loss,
        at,
        drop_worst=found.settings.drop_worst,
        groups=rows.groups,
        objective=found.settings.objective,
        delta=found.settings.own_delta if fit.delta is None else fit.delta,
        resampling=None if rows.groups is None else fit.resampling,
        rng_seed=found.settings.seed,
    )


# -- sealing --------------------------------------------------------------------------------------
def seal_text(table: DataFrame, found: TableFit, made: Forecast) -> str:
    """What a seal's file holds, of a forecast by the law through `table`.

    Raises:
        UserError: a forecast without an interval, or by a law that is in no nanoscale.
    """
    if made.ci95 is None:
        raise UserError(f"there is nothing to seal: {made.refused[0]}")
    if digest_of(found.fit.law) is not None:
        raise UserError(
            f"law {found.fit.law} is of your own file, without which nobody could make its "
            "forecast again: seal one of a law that is built in"
        )
    rows = columns_of(table)
    where = provenance()
    return json_text(
        {
            "schema": SEAL_SCHEMA,
            "kind": KIND,
            "sealed": datetime.now(UTC).isoformat(timespec="seconds"),
            "forecast": made.to_json(),
            "law": {"name": found.fit.law, "params": found.fit.params},
            "settings": settings_json(found.settings),
            "table": {"name": found.table, "digest": digest(rows), "columns": rows},
            "versions": {key: where[key] for key in ("git_commit", "python", "packages")},
        }
    )


def write_seal(path: Path, text: str) -> str:
    """Write a seal, never over another; its SHA-256.

    Raises:
        UserError: there is a file already, or the disk refuses.
    """
    if path.exists():
        raise UserError(f"{path}: is there already, and a seal is never replaced; name another")
    write_text(path, text)
    return hashlib.sha256(text.encode()).hexdigest()


def columns_of(table: DataFrame) -> dict[str, list[Json]]:
    """A table's cells by column, in JSON's types."""
    import pandas as pd

    columns = {}
    for name in table.columns:
        cells = [None if pd.isna(cell) else cell for cell in table[name].tolist()]
        columns[str(name)] = plain(cells)
    return columns


def digest(columns: Mapping[str, list[Json]]) -> str:
    """SHA-256 of a table's cells, whatever the order of its columns."""
    text = json.dumps(columns, sort_keys=True, separators=(",", ":"), allow_nan=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def settings_json(settings: FitSettings) -> dict[str, Json]:
    """Those that are not the defaults, a law by its name."""
    usual = FitSettings()
    told = {}
    for each in fields(settings):
        value = getattr(settings, each.name)
        if value != getattr(usual, each.name):
            told[each.name] = value if each.name != "law" else settings.form.name
    return told


# -- judging --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Score:
    """A forecast against what was observed."""

    observed: float
    error: float  # (observed - forecast) / forecast
    inside: bool  # the sealed 95 % interval

    @classmethod
    def of(cls, made: Mapping[str, Any], observed: float) -> Score:
        low, high = made["ci95"]
        return cls(observed, observed / made["loss"] - 1, low <= observed <= high)


@dataclass(frozen=True)
class Verified:
    """A seal made again: what differs, and how it did."""

    path: Path
    sha256: str
    sealed: str
    made: Mapping[str, Any]  # the forecast that it holds
    rows: int
    problems: list[str]
    notes: list[str]
    score: Score | None

    def text(self) -> list[str]:
        """What a user reads."""
        lines = [f"{self.path}: sealed {self.sealed}, SHA-256 {self.sha256}"]
        if self.problems:
            lines += [f"CHANGED: {problem}" for problem in self.problems]
        else:
            lines.append(f"made again from its {self.rows} rows: the same law, the same forecast")
        lines += [f"note: {note}" for note in self.notes]
        if self.score is not None:
            lines.append(self.judged(self.score))
        return lines

    def judged(self, score: Score) -> str:
        """The score in a line."""
        low, high = self.made["ci95"]
        side = "above" if score.error > 0 else "below"
        where = "inside" if score.inside else "OUTSIDE"
        return (
            f"observed {score.observed:.4g}: {100 * abs(score.error):.2f} % {side} the forecast "
            f"{self.made['loss']:.4g}, {where} its 95 % interval [{low:.4g}, {high:.4g}]"
        )

    def to_json(self) -> dict[str, Json]:
        score = None if self.score is None else vars(self.score)
        return {
            "seal": str(self.path),
            "sha256": self.sha256,
            "sealed": self.sealed,
            "forecast": dict(self.made),
            "problems": list(self.problems),
            "notes": list(self.notes),
            "score": score,
        }


def read_seal(path: Path) -> dict[str, Any]:
    """A seal's record; `UserError` for a file that is none."""
    record = read_json(path, "it is no seal, or has been cut short")
    if not isinstance(record, dict) or record.get("kind") != KIND:
        raise UserError(f"{path}: {NO_SEAL}")
    if record.get("schema") != SEAL_SCHEMA:
        raise UserError(f"{path}: sealed by a newer nanoscale; update this one")
    return record


def verify(path: Path, observed: float | None = None) -> Verified:
    """Make a sealed forecast again, from its own rows, and judge it by the loss that was observed.

    Raises:
        UserError: the file is no seal, or a loss is no number above 0.
    """
    record = read_seal(path)
    if observed is not None and not 0 < observed < math.inf:
        raise UserError(f"--observed={observed:g}: expected a loss above 0")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        made, table = record["forecast"], record["table"]
        problems = [*of_name(path, sha256), *of_rows(table), *of_forecast(record)]
        notes = of_table(table, problems)
        score = None if observed is None else Score.of(made, observed)
        columns = table["columns"]
        rows = len(next(iter(columns.values())))
        return Verified(path, sha256, record["sealed"], made, rows, problems, notes, score)
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as e:
        raise UserError(f"{path}: {NO_SEAL} ({type(e).__name__}: {e})") from e


def of_name(path: Path, sha256: str) -> Iterable[str]:
    """Where the name is a digest, it is the file's."""
    if re.fullmatch(r"[0-9a-f]{64}", path.stem) and path.stem != sha256:
        yield f"the file: its name says SHA-256 {path.stem}"


def of_rows(table: Mapping[str, Any]) -> Iterable[str]:
    """The rows have the digest that was sealed with them."""
    if digest(table["columns"]) != table["digest"]:
        yield f"the table's rows: their digest is not the sealed {table['digest'][:12]}"


def of_table(table: Mapping[str, Any], problems: list[str]) -> list[str]:
    """The table is still what it was: told among the problems, or noted where it is not here."""
    name = table["name"]
    try:
        now = digest(columns_of(read_table(name)))
    except UserError as e:
        if not Path(name).exists():
            return [f"table {name} is not here: this is by the rows in the seal"]
        problems.append(f"table {name}: it can be read no more ({e})")
        return []
    if now != table["digest"]:
        problems.append(f"table {name}: it is another than when the forecast was sealed")
    return []


def of_forecast(record: Mapping[str, Any]) -> Iterable[str]:
    """The law and the forecast, made again from the rows."""
    import pandas as pd

    table, made = record["table"], record["forecast"]
    try:
        found = fit_table(
            pd.DataFrame(table["columns"]), FitSettings(**record["settings"]), name=table["name"]
        )
        again = forecast_of(found, made["at"])
    except UserError as e:
        yield f"the forecast: it cannot be made again ({e})"
        return
    yield from differing("law", record["law"], {"name": found.fit.law, "params": found.fit.params})
    yield from differing("forecast", made, again.to_json())


def differing(name: str, sealed: Any, again: Any) -> Iterable[str]:
    """Each number and word that is another now, by its place."""
    if isinstance(sealed, Mapping) and isinstance(again, Mapping):
        for key in {**sealed, **again}:
            yield from differing(f"{name}.{key}", sealed.get(key), again.get(key))
    elif isinstance(sealed, list) and isinstance(again, list) and len(sealed) == len(again):
        for i, (one, other) in enumerate(zip(sealed, again, strict=True)):
            yield from differing(f"{name}[{i}]", one, other)
    elif isinstance(sealed, float) and isinstance(again, float):
        if not math.isclose(sealed, again, rel_tol=SAME):
            yield f"{name}: {sealed:.8g} is sealed, {again:.8g} made again"
    elif sealed != again:
        yield f"{name}: {sealed} is sealed, {again} made again"
