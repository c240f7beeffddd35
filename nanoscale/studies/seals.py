"""Sealed forecasts: written before the run that they forecast, judged when it has been made.

The one idea: a seal holds all that its forecast came from (the rows, how a law was fitted to them,
the versions), so whoever has the file can make the forecast again. What was promised is the SHA-256
of its bytes, which is printed when it is sealed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoscale.checks.coordinates import FAIL, PASS, UNSURE
from nanoscale.errors import UserError, make_folder
from nanoscale.experiments.results import STAGE_COLUMN, STUDY, Study
from nanoscale.experiments.tables import read_table
from nanoscale.laws.forecast import Forecast, ForecastPoint, forecast
from nanoscale.laws.predict import predict
from nanoscale.laws.record import Record
from nanoscale.laws.registry import digest_of
from nanoscale.spec.config import all_fields
from nanoscale.spec.identity import idle_keys
from nanoscale.spec.sources import flatten_keys
from nanoscale.spec.values import Json
from nanoscale.store.files import json_text, read_json, write_text
from nanoscale.store.folder import COMPLETE, DIVERGED, FINISHED, RunFolder
from nanoscale.store.lease import NAME as LEASE
from nanoscale.store.lease import take
from nanoscale.store.provenance import provenance
from nanoscale.studies.table_fit import FitSettings, TableFit, fit_table, ratio_of

if TYPE_CHECKING:
    from pandas import DataFrame

    from nanoscale.spec.identity import RunSpec

SEAL_SCHEMA = 2
PREDICTIONS, SCORE = "predictions", "score.json"  # of a study
# What is fitted of its runs: no timings, which differ between machines.
SEALED_COLUMNS = (STAGE_COLUMN, "run", "state", "total_params", "tokens_seen", "flops", "val_loss")
KIND = "nanoscale forecast"
SAME = 1e-6  # relative: what another machine's rounding may move
LADDER_LAW = FitSettings(law="power", c="flops", loss="val_loss")  # of a study
RIVALS = (
    FitSettings(law="pure-power", c="flops", loss="val_loss", resamples=400),
    FitSettings(
        law="chinchilla", n="total_params", d="tokens_seen", loss="val_loss", resamples=400
    ),
)
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
@dataclass(frozen=True)
class SealedRun:
    """The run that a study forecasts."""

    id: str
    name: str  # of its folder
    flops: int
    config: Mapping[str, Json]


@dataclass(frozen=True)
class RivalForecast(Record):
    """What another law says of the same run, by the same table; no interval is judged."""

    settings: dict[str, Json]
    at: dict[str, float]
    loss: float | None
    run_ci95: list[float] | None  # of the law and a run's noise
    reason: str | None  # why there is none

    @classmethod
    def of(cls, table: DataFrame, settings: FitSettings, at: Mapping[str, float]) -> RivalForecast:
        """By `settings`, of a run that is `at` where their law reads."""
        told = settings_json(settings)
        read = ["C"] if settings.form.predictors == ("x",) else settings.form.predictors
        place: dict[str, Any] = {name: at[name] for name in read}
        try:
            if len(read) > 1 and (ratio := ratio_of(table, settings)):
                raise UserError(f"N and D rise together, at {ratio:.3g} tokens per parameter")
            found = fit_table(table, settings)
            if found.fit.not_identified:
                raise UserError(f"not identified: {', '.join(found.fit.not_identified)}")
            foreseen = predict(found.fit, found.basis.noise, **place)
        except UserError as e:
            return cls(told, place, None, None, str(e))
        return cls(told, place, foreseen.loss, foreseen.run_ci95, None)

    @property
    def line(self) -> str:
        """What a user reads."""
        law = f"law {self.settings['law']}"
        if self.loss is None:
            return f"{law} says nothing: {self.reason}"
        if self.run_ci95 is None:
            return f"{law} says {self.loss:.4g}"
        low, high = self.run_ci95
        return f"{law} says {self.loss:.4g} [{low:.4g}, {high:.4g}]"


@dataclass(frozen=True)
class Sealing:
    """A forecast by the law through a table, with all that it came from.

    `settings` are those that were asked for, of which `found` is.
    """

    table: DataFrame
    settings: FitSettings
    found: TableFit
    made: Forecast
    rivals: Sequence[RivalForecast] = ()

    @classmethod
    def of_study(cls, study: Study, at: Mapping[str, float]) -> Sealing:
        """By a study's ladder: the loss of a run of `at` N, D and C, and what rivals say of it."""
        table = fitted(study)
        found = fit_table(table, LADDER_LAW, name=study.name)
        made = forecast_of(found, {"C": at["C"]})
        rivals = [RivalForecast.of(table, settings, at) for settings in RIVALS]
        return cls(table, LADDER_LAW, found, made, rivals)

    def lines(self) -> list[str]:
        """What a user reads."""
        return [*self.made.text(), *(rival.line for rival in self.rivals)]

    def text(self, run: SealedRun | None = None) -> str:
        """What the seal's file holds; `run`: of a study.

        Raises:
            UserError: a forecast without an interval, or by a law that is in no nanoscale.
        """
        made, fit = self.made, self.found.fit
        if made.ci95 is None:
            raise UserError(f"there is nothing to seal: {made.refused[0]}")
        law = self.settings.form.registered
        if digest_of(law) is not None:
            raise UserError(
                f"law {law} is of your own file, without which nobody could make its "
                "forecast again: seal one of a law that is built in"
            )
        rows = columns_of(self.table)
        where = provenance()
        return json_text(
            {
                "schema": SEAL_SCHEMA,
                "kind": KIND,
                "sealed": datetime.now(UTC).isoformat(timespec="seconds"),
                "run": None if run is None else vars(run),
                "forecast": made.to_json(),
                "rivals": [rival.to_json() for rival in self.rivals],
                "law": {"name": fit.law, "params": fit.params},
                "settings": settings_json(self.settings),
                "table": {"name": self.found.table, "digest": digest(rows), "columns": rows},
                "versions": {key: where[key] for key in ("git_commit", "python", "packages")},
            }
        )


def write_seal(path: Path, text: str) -> tuple[Path, str]:
    """Write a seal, never over another, in a folder under its digest; its file, and its SHA-256.

    Raises:
        UserError: there is a file already, or the disk refuses.
    """
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    if path.is_dir():
        path /= f"{sha256}.json"
    if os.path.lexists(path):
        raise UserError(f"{path}: is there already, and a seal is never replaced; name another")
    write_text(path, text)
    return path, sha256


def is_seal(path: Path) -> bool:
    """Whether a file begins as a seal does."""
    with path.open("rb") as file:
        return KIND.encode() in file.read(200)


def seal_once(folder: Path, text: str) -> tuple[Path, str] | None:
    """Write a study's one seal; None if another process has just made it.

    Raises:
        Held: another process is about to.
    """
    place = folder / PREDICTIONS
    make_folder(place)
    with take(place):
        return None if seal_in(folder) is not None else write_seal(place, text)


# -- of a study -----------------------------------------------------------------------------------
@dataclass(frozen=True)
class SealFound:
    """The seal in a study's folder."""

    path: Path
    run_id: str
    sealed: datetime


def seal_in(folder: Path) -> SealFound | None:
    """A study's seal, if it has one; `UserError` for several, of which one was made afterwards."""
    seals = sorted((folder / PREDICTIONS).glob("*.json"))
    seals = [path for path in seals if path.name != SCORE and not LEASE.fullmatch(path.name)]
    if len(seals) > 1:
        raise UserError(
            f"{folder / PREDICTIONS}: {len(seals)} seals, and a study forecasts one run; give it "
            "another name, or delete what is no seal of it"
        )
    for path in seals:
        if not re.fullmatch(r"[0-9a-f]{64}", path.stem):
            raise UserError(
                f"{path}: a study's seal has its SHA-256 for a name; give it that again"
            )
        record = read_seal(path)
        try:
            at = datetime.fromisoformat(record["sealed"])
            return SealFound(path, record["run"]["id"], at)
        except (KeyError, TypeError, ValueError) as e:
            raise UserError(f"{path}: {NO_SEAL} ({type(e).__name__}: {e})") from e
    return None


def is_of(sealed: SealFound, study: Study) -> bool:
    """Whether a seal is of the study's runs as they are."""
    now = columns_of(fitted(without_run(study, sealed.run_id)))
    return bool(digest(now) == read_seal(sealed.path)["table"]["digest"])


def without_run(study: Study, run_id: str) -> Study:
    """The study without one of its runs."""
    return replace(study, entries=[entry for entry in study.entries if entry.id != run_id])


def fitted(study: Study) -> DataFrame:
    """The runs that a forecast is of, with their configs."""
    import pandas as pd

    rows = []
    for (_, folder), row in zip(study.runs(), study.rows(), strict=True):
        kept = {name: row.get(name) for name in SEALED_COLUMNS}
        config = json.dumps(config_of(folder.spec()), sort_keys=True)
        rows.append(kept | {"config": config})
    return pd.DataFrame(rows)


def config_of(spec: RunSpec) -> dict[str, Json]:
    """A run's resolved config, as its folder keeps it."""
    record: Any = spec.to_json()["config"]
    return dict(record)


def observed_of(run: RunFolder | None) -> float | None:
    """The loss of the run held out; None until it has finished."""
    if run is None:
        return None
    damage = run.damage()
    if damage:
        raise UserError(f"{run.path}: {damage}")
    if run.state() != COMPLETE:
        return None
    loss = (run.metrics() or {}).get("val_loss")
    if not isinstance(loss, int | float) or not 0 < loss < math.inf:
        raise UserError(f"{run.path}: its val_loss is {loss!r}; delete the run to train it again")
    return float(loss)


def judging_run(folder: Path, sealed: SealFound) -> RunFolder | None:
    """The folder of the run held out, once it is there."""
    for entry, run in Study.open(folder).runs():
        if entry.id == sealed.run_id and run.exists():
            return run
    return None


def verify_study(folder: Path) -> Verified:
    """A study's seal made again, from its file and from the run folders, and judged.

    Raises:
        UserError: the study has sealed nothing.
    """
    sealed = seal_in(folder)
    if sealed is None:
        raise UserError(f"{folder}: nothing is sealed in {folder / PREDICTIONS}")
    run = judging_run(folder, sealed)
    found = verify(sealed.path, observed_of(run))
    changed = [*of_score(folder, sealed, found.score)]
    if run is not None:
        changed += [*of_order(run, sealed), *of_run(run, read_seal(sealed.path)["run"])]
    diverged = run is not None and run.state() == DIVERGED
    return replace(found, problems=[*found.problems, *changed], diverged=diverged)


def forecast_point(folder: Path) -> ForecastPoint | None:
    """A study's forecast as it is drawn; None while none is sealed."""
    sealed = seal_in(folder)
    if sealed is None:
        return None
    made = read_seal(sealed.path)["forecast"]
    low, high = made["ci95"]
    observed = observed_of(judging_run(folder, sealed))
    return ForecastPoint(made["at"]["C"], made["loss"], (low, high), observed)


def of_order(run: RunFolder, sealed: SealFound) -> Iterable[str]:
    """The run began after its forecast was sealed."""
    began = run.status().began
    if not isinstance(began, int | float) or not 0 <= began <= time.time():
        if run.state() in FINISHED:
            yield f"run {sealed.run_id}: it does not say when it began, so it may not be blind"
    elif began < sealed.sealed.timestamp():
        at = datetime.fromtimestamp(began, UTC).isoformat(timespec="seconds")
        yield f"run {sealed.run_id}: it began at {at}, before its forecast was sealed"


def of_run(run: RunFolder, sealed: Mapping[str, Any]) -> Iterable[str]:
    """The run is the one that was forecast."""
    config = run.spec().config
    idle = idle_keys(config)
    was = flatten_keys(sealed["config"])
    for key, value in flatten_keys(config_of(run.spec())).items():
        if all_fields()[key].hashed and key not in idle and was.get(key) != value:
            yield f"run {sealed['id']}: {key} is {value}, and was {was.get(key)} in its forecast"


def of_score(folder: Path, sealed: SealFound, score: Score | None) -> Iterable[str]:
    """The run held out came to what it was judged by, and the score is still that."""
    path = folder / PREDICTIONS / SCORE
    if not path.is_file():
        return
    if score is None:
        if all(entry.id != sealed.run_id for entry in Study.open(folder).entries):
            yield f"{path}: the run that it judges, {sealed.run_id}, is none of the study's now"
        return
    kept = read_json(path, "it is no score, or has been cut short; delete it")
    if kept != json.loads(json_text(score.to_json())):
        yield f"{path}: it is not by the loss of the run held out, {score.observed:.6g}"


def columns_of(table: DataFrame) -> dict[str, list[Json]]:
    """A table's cells by column, in JSON's types."""
    return {str(name): [*map(cell_of_json, table[name].tolist())] for name in table.columns}


def cell_of_json(cell: Any) -> Json:
    """A cell as JSON has it: a number, a truth value, None, or else its text."""
    if cell is None or isinstance(cell, bool | int):
        return cell
    if isinstance(cell, float):
        return cell if math.isfinite(cell) else None
    text = str(cell).encode("utf-8", "backslashreplace").decode()
    lacks = not isinstance(cell, str) and text in ("NaT", "<NA>")
    return None if lacks else text


def digest(columns: Mapping[str, list[Json]]) -> str:
    """SHA-256 of a table's cells, whatever the order of its columns."""
    text = json.dumps(columns, sort_keys=True, separators=(",", ":"), allow_nan=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def settings_json(settings: FitSettings) -> dict[str, Json]:
    """Those that are not the defaults, a law by its name and what of it was given."""
    usual = FitSettings()
    told: dict[str, Json] = {}
    for each in fields(settings):
        value = getattr(settings, each.name)
        if value != getattr(usual, each.name):
            told[each.name] = value if each.name != "law" else settings.form.registered
    if settings.form.given:
        told["hold"] = settings.form.given
    return told


def settings_of(record: Mapping[str, Any]) -> FitSettings:
    """The same of what a seal keeps."""
    told = dict(record)
    given = told.pop("hold", {})
    settings = FitSettings(**told)
    return replace(settings, law=settings.form.hold(**given)) if given else settings


# -- judging --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Score(Record):
    """A forecast against what was observed."""

    observed: float
    error: float  # (observed - forecast) / forecast
    inside: bool  # the sealed 95 % interval
    rivals: dict[str, float]  # law -> its error

    @classmethod
    def of(cls, record: Mapping[str, Any], observed: float) -> Score:
        made = record["forecast"]
        low, high = made["ci95"]
        rivals = {}
        for rival in record["rivals"]:
            if rival["loss"] is not None:
                rivals[rival["settings"]["law"]] = observed / rival["loss"] - 1
        return cls(observed, observed / made["loss"] - 1, low <= observed <= high, rivals)


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
    diverged: bool = False  # the run that was to judge it

    @property
    def verdict(self) -> str:
        """Whether the loss came inside the interval; it is no forecast any more if it changed."""
        if self.problems or self.diverged:
            return FAIL
        if self.score is None:
            return UNSURE
        return PASS if self.score.inside else FAIL

    def text(self) -> list[str]:
        """What a user reads."""
        lines = self.grounds()
        if self.score is not None:
            lines.append(self.judged(self.score))
        return lines

    def grounds(self) -> list[str]:
        """When it was sealed, and whether it can be made again."""
        lines = [f"{self.path}: sealed {self.sealed}, SHA-256 {self.sha256}"]
        if self.problems:
            lines += [f"CHANGED: {problem}" for problem in self.problems]
        else:
            lines.append(f"made again from its {self.rows} rows: the same law, the same forecast")
        return lines + [f"note: {note}" for note in self.notes]

    def headline(self) -> str:
        """The forecast, and what came of it."""
        if self.score is not None:
            return self.judged(self.score)
        low, high = self.made["ci95"]
        place = ", ".join(f"{name}={value:.3g}" for name, value in self.made["at"].items())
        line = f"forecast {self.made['loss']:.4g} [{low:.4g}, {high:.4g}] at {place}; the run that "
        if self.diverged:
            return f"{line}was to judge it DIVERGED: the forecast missed"
        return f"{line}will judge it has not finished"

    def judged(self, score: Score) -> str:
        """The score in a line."""
        low, high = self.made["ci95"]
        side = "above" if score.error > 0 else "below"
        where = "inside" if score.inside else "OUTSIDE"
        line = (
            f"observed {score.observed:.4g}: {100 * abs(score.error):.2f} % {side} the forecast "
            f"{self.made['loss']:.4g}, {where} its 95 % interval [{low:.4g}, {high:.4g}]"
        )
        others = [f"{law} {100 * error:+.2f} %" for law, error in score.rivals.items()]
        return f"{line}; off other laws by {', '.join(others)}" if others else line

    def to_json(self) -> dict[str, Json]:
        score = None if self.score is None else self.score.to_json()
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
    if not path.exists():
        raise UserError(f"{path}: there is no such file, and no study of that name")
    record = read_json(path, "it is no seal, or has been cut short")
    if not isinstance(record, dict) or record.get("kind") != KIND:
        raise UserError(f"{path}: {NO_SEAL}")
    if record.get("schema") != SEAL_SCHEMA:
        raise UserError(f"{path}: schema {record.get('schema')}, this version reads {SEAL_SCHEMA}")
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
        datetime.fromisoformat(record["sealed"])
        problems = [*of_name(path, sha256), *of_rows(table)]
        problems += [*of_forecast(record), *of_place(record)]
        notes = of_table(path, record, problems)
        score = None if observed is None else Score.of(record, observed)
        columns = table["columns"]
        rows = len(next(iter(columns.values())))
        return Verified(path, sha256, record["sealed"], made, rows, problems, notes, score)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, StopIteration) as e:
        raise UserError(f"{path}: {NO_SEAL} ({type(e).__name__}: {e})") from e


def of_name(path: Path, sha256: str) -> Iterable[str]:
    """Where the name is a digest, it is the file's."""
    if re.fullmatch(r"[0-9a-f]{64}", path.stem) and path.stem != sha256:
        yield f"the file: its name says SHA-256 {path.stem}"


def of_place(record: Mapping[str, Any]) -> Iterable[str]:
    """The forecast of a study is at its run's FLOPs."""
    run, at = record["run"], record["forecast"]["at"]
    if run is not None and at["C"] != run["flops"]:
        yield f"the forecast: it is at C={at['C']:.6g}, and its run has {run['flops']:.6g} FLOPs"


def of_rows(table: Mapping[str, Any]) -> Iterable[str]:
    """The rows have the digest that was sealed with them."""
    if digest(table["columns"]) != table["digest"]:
        yield f"the table's rows: their digest is not the sealed {table['digest'][:12]}"


def of_table(path: Path, record: Mapping[str, Any], problems: list[str]) -> list[str]:
    """The table is still what it was: told among the problems, or noted where it is not here."""
    table, run = record["table"], record["run"]
    name = table["name"]
    try:
        if run is not None:
            now = fitted(without_run(Study.open(path.parent.parent), run["id"]))
        else:
            now = read_table(name)
    except UserError as e:
        folder = path.parent.parent
        is_here = Path(name).exists() if run is None else (folder / STUDY).is_file()
        if not is_here:
            return [f"table {name} is not here: this is by the rows in the seal"]
        problems.append(f"table {name}: it can be read no more ({e})")
        return []
    columns = columns_of(now)
    if digest(columns) == table["digest"]:
        return []
    if run is None and holds(columns, table["columns"]):
        return [f"table {name}: rows were added since; the sealed ones are as they were"]
    problems.append(f"table {name}: it is another than when the forecast was sealed")
    return []


def holds(now: Mapping[str, list[Json]], sealed: Mapping[str, list[Json]]) -> bool:
    """Whether a table has all rows of another, whose columns it has."""
    if not sealed.keys() <= now.keys():
        return False
    rows = Counter(map(repr, zip(*(now[name] for name in sealed), strict=True)))
    return rows >= Counter(map(repr, zip(*sealed.values(), strict=True)))


def of_forecast(record: Mapping[str, Any]) -> Iterable[str]:
    """The law and the forecast, made again from the rows."""
    import pandas as pd

    table, made = record["table"], record["forecast"]
    frame = pd.DataFrame(table["columns"])
    try:
        found = fit_table(frame, settings_of(record["settings"]), name=table["name"])
        again = forecast_of(found, made["at"])
    except UserError as e:
        yield f"the forecast: it cannot be made again ({e})"
        return
    yield from differing("law", record["law"], {"name": found.fit.law, "params": found.fit.params})
    yield from differing("forecast", made, again.to_json())
    for k, rival in enumerate(record["rivals"]):
        one = RivalForecast.of(frame, settings_of(rival["settings"]), rival["at"])
        yield from differing(f"rivals[{k}]", rival, one.to_json())


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
