"""Does the best learning rate hold over sizes? A verdict on a table of runs, or on each setting's.

Columns are named or, for our own tables, known; one verdict per setting (an arm of a study, a value
of another column), each from `checks.lr_transfer`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nanoscale.checks.coordinates import FAIL, PASS, UNSURE
from nanoscale.checks.lr_transfer import (
    LIMITS,
    LrColumns,
    TransferLimits,
    seed_name,
    transfer_verdict,
)
from nanoscale.checks.lr_verdict import TRANSFER_SCHEMA, TransferVerdict
from nanoscale.errors import UserError, cut, did_you_mean, one_of
from nanoscale.experiments.replicates import SEED_KEYS, final_loss
from nanoscale.experiments.results import RESULTS, Study
from nanoscale.experiments.tables import (
    ARM,
    STATES,
    column,
    notes_of,
    number_at,
    read_table,
    row_of_frame,
    study_table,
)
from nanoscale.spec.sources import FIELDS
from nanoscale.spec.values import Json, Overrides
from nanoscale.store.folder import COMPLETE
from nanoscale.studies.table_faults import check_columns, check_sweeps
from nanoscale.studies.table_faults import twins as twins_among

if TYPE_CHECKING:
    from pandas import DataFrame

SIZE_KEYS, LR_KEYS = ("n_embd", "n_layer"), ("muon_lr", "learning_rate")
NO_SETTING = {*SEED_KEYS, "state", "run", "folder", *RESULTS}
ENOUGH_STEPS, ENOUGH_TOKENS = 1000, 500_000  # below, optima of small models move by themselves
Verdicts = Mapping[str, TransferVerdict]  # by the names of their settings


def transfer(
    table: DataFrame | Study | str | Path,
    *,
    size: str | None = None,
    lr: str | None = None,
    loss: str | None = None,
    seed: str | None = None,
    by: str | None = None,
    only: str | None = None,
    limits: TransferLimits = LIMITS,
    output_root: str | Path = "experiments_out",
) -> TransferVerdict:
    """Whether the best learning rate holds over sizes: a verdict with intervals.

    Args:
        table: one row per run: a DataFrame, a study, or what `read_table` reads.
        size, lr, loss, seed: columns; those of our own tables are known.
        by, only: a column that tells settings apart (a study's arms are), and the one to judge.
        limits: what is tolerated.
        output_root: where a study is looked for by its name.

    Raises:
        UserError: there is no such column, the runs are no grid, or they are of several settings.

    Example:
        >>> import nanoscale as ns
        >>> import pandas
        >>> runs = []
        >>> for width in (64, 128, 256):
        ...     for k in range(-3, 4):
        ...         for seed in (1, 2, 3):
        ...             loss = 3 + 0.03 * k**2 + 0.001 * ((seed * k) % 3)
        ...             runs.append({"width": width, "lr": 0.01 * 2**k, "loss": loss, "seed": seed})
        >>> verdict = ns.transfer(pandas.DataFrame(runs), size="width", lr="lr", loss="loss")
        >>> verdict.verdict
        'pass'
    """
    frame = runs_of(table, output_root)
    named = {
        "size": size,
        "lr": lr,
        "loss": loss,
        "seed": seed,
    }
    columns = {option: name for option, name in named.items() if name is not None}
    verdicts = transfer_verdicts(frame, columns, by=by, only=only, limits=limits)
    if len(verdicts) > 1:
        raise UserError(f"the runs are of several settings: choose only={one_of(verdicts)}")
    return next(iter(verdicts.values()))


def usual_lr(keys: Overrides) -> str:
    """The LR that one searches, by a config's own keys: that of its matrices."""
    muon, adamw = LR_KEYS
    return muon if keys.get("optimizer") == "muon" else adamw


def runs_of(table: DataFrame | Study | str | Path, output_root: str | Path) -> DataFrame:
    """One row per run, with None where there is no value."""
    if isinstance(table, (str, Path)):
        return read_table(table, output_root=output_root)
    if isinstance(table, Study):
        return study_table(table)
    if not hasattr(table, "notna"):
        raise UserError(
            f"a {type(table).__name__} is no table: give a frame of pandas, as table.to_pandas()"
        )
    return table.astype(object).where(table.notna(), None)


def transfer_verdicts(
    frame: DataFrame,
    columns: Mapping[str, str],
    *,
    by: str | None = None,
    only: str | None = None,
    limits: TransferLimits = LIMITS,
) -> dict[str, TransferVerdict]:
    """The verdict of every setting, by its name."""
    verdicts = {}
    for name, rows in settings_of(frame, by, only):
        verdicts[name] = verdict_of(rows, columns, limits)
    return verdicts


def study_verdicts(study: Study) -> dict[str, TransferVerdict]:
    """The verdict of every arm of a transfer study.

    Raises:
        UserError: an arm has no run with a loss.
    """
    asked = study.asked.extras
    frame = study_table(study)
    lrs = {arm["name"]: arm["lr"] for arm in asked["arms"]}
    size = asked["size"]
    verdicts = {}
    for name, rows in settings_of(frame, ARM, None):
        columns = {"size": size, "lr": lrs[name]}
        verdicts[name] = verdict_of(rows, columns, LIMITS)
    return verdicts


def joint_verdict(verdicts: Verdicts) -> str:
    """The worst of them."""
    return max((verdict.verdict for verdict in verdicts.values()), key=[PASS, UNSURE, FAIL].index)


def joint_record(verdicts: Verdicts) -> dict[str, Json]:
    """What `--json` holds: a record, or several by the names of their settings."""
    records = {name: verdict.to_json() for name, verdict in verdicts.items()}
    if len(records) == 1:
        (record,) = records.values()
        return record
    return {
        "schema": TRANSFER_SCHEMA,
        "check": "transfer",
        "verdicts": records,
    }


# -- settings -----------------------------------------------------------------------------------
def settings_of(
    frame: DataFrame, by: str | None, only: str | None
) -> Iterator[tuple[str, DataFrame]]:
    """(name, its rows) of every setting that is judged by itself: all rows unless there is `by`."""
    if not by and ARM in frame:
        by = ARM
    if frame.empty:
        raise UserError("the table has no rows; it needs one per run")
    if not by:
        if only is not None:
            raise UserError(f"--only={only}: say of which column, as in --by=parametrization.mode")
        yield "", frame
        return
    keys = [column("by", key, frame) for key in by.split(",")]
    labels = frame[keys].map(str).agg(", ".join, axis=1)
    known = list(dict.fromkeys(labels))
    if only is not None and only not in known:
        hint = did_you_mean(only, known) or f"; choose {one_of(known)}"
        raise UserError(f"--only={only}: no such {by}{hint}")
    for label in known:
        if only in (None, label):
            yield label, frame[labels == label]


# -- columns ------------------------------------------------------------------------------------
def columns_of(frame: DataFrame, named: Mapping[str, str]) -> LrColumns:
    """The columns of size, LR, loss and seed: as named, else those of our own tables that vary."""
    columns = {option: column(option, name, frame) for option, name in named.items()}
    if "loss" not in columns and "val_loss" in frame:
        columns["loss"] = "val_loss"
    size = columns.get("size") or _size_column(frame)
    lr = columns.get("lr") or _lr_column(frame)
    if "loss" not in columns:
        raise UserError(
            "which column is the loss? there is no 'val_loss'; say it, as in --loss=final_loss"
        )
    seed = columns.get("seed")
    if seed is None and "seed" in frame:
        seed = "seed"
    return LrColumns(size, lr, columns["loss"], seed)


def _size_column(frame: DataFrame) -> str:
    sizes = [key for key in SIZE_KEYS if _varies(frame, key)]
    if len(sizes) != 1:
        what = f"no {one_of(SIZE_KEYS)} varies"
        if sizes:
            what = f"both {' and '.join(sizes)} vary"
        raise UserError(f"which column is the size? {what}; say it, as in --size=total_params")
    return sizes[0]


def _lr_column(frame: DataFrame) -> str:
    rates = [key for key in LR_KEYS if _varies(frame, key)]
    if not rates:
        raise UserError(
            f"which column is the LR? no {one_of(LR_KEYS)} varies; say it, as in --lr=learning_rate"
        )
    lr = rates[0]
    if frame[lr].isna().any():
        words = []
        for key in frame.columns:
            if key in FIELDS and frame[key].nunique() > 1 and not _varies(frame, key):
                words.append(key)
        raise UserError(
            f"some runs have no {lr}, so they are of several settings: judge each by itself, as "
            f"in --by={','.join(words) or 'optimizer'}"
        )
    return lr


def _varies(frame: DataFrame, key: str) -> bool:
    import pandas as pd

    return key in frame and pd.to_numeric(frame[key], errors="coerce").nunique() > 1


# -- one setting --------------------------------------------------------------------------------
def verdict_of(
    frame: DataFrame, named: Mapping[str, str], limits: TransferLimits
) -> TransferVerdict:
    """The verdict on one setting's rows."""
    columns = columns_of(frame, named)
    check_columns({"size": columns.size, "lr": columns.lr, "loss": columns.loss})
    size = _positive(frame, columns.size)
    lr = _positive(frame, columns.lr)
    losses = _losses(frame, columns.loss)
    seeds = None if columns.seed is None else frame[columns.seed].map(seed_name).tolist()
    twins = list(map(str, zip(size, lr, seeds or lr, strict=True)))
    _check_one_setting(frame, twins, columns)
    _check_runs(frame, columns, [size, lr], losses)
    verdict = transfer_verdict(size, lr, losses, seeds, limits=limits, names=columns)
    return replace(verdict, warnings=[*verdict.warnings, *notes_of(frame), *_short_runs(frame)])


def _positive(frame: DataFrame, name: str) -> list[float]:
    values = []
    for row, value in zip(frame.index, frame[name], strict=True):
        number = number_at(row, name, value)
        if not 0 < number < math.inf:
            said = f"{name}={cut(str(value))}: expected a number above 0"
            raise UserError(f"{row_of_frame(row)}: {said}")
        values.append(number)
    return values


def _losses(frame: DataFrame, name: str) -> list[float]:
    """Losses: inf where a run diverged, NaN where it has no result."""
    states = [COMPLETE] * len(frame)
    if "state" in frame and set(frame["state"]) <= STATES:
        states = list(frame["state"])
    losses = []
    rows = zip(frame.index, frame[name], states, strict=True)
    for row, value, state in rows:
        loss = None if value is None else number_at(row, name, value)
        losses.append(final_loss(loss, state))
    return losses


def _check_one_setting(frame: DataFrame, twins: list[str], columns: LrColumns) -> None:
    """Runs of one size, LR and seed (a text each) that differ in another key are of several
    settings."""
    chosen = {columns.size, columns.lr, columns.loss, columns.seed} | NO_SETTING
    differ = []
    for key in frame.columns:
        tells = key in FIELDS or 1 < frame[key].nunique() <= len(frame) / 2
        if key not in chosen and tells:
            values = frame[key].map(str).reset_index(drop=True)
            if (values.groupby(twins).nunique() > 1).any():
                differ.append(key)
    differ = [key for key in differ if key in FIELDS] or differ
    if differ:
        raise UserError(
            f"runs of one {columns.size}, {columns.lr} and seed differ in {', '.join(differ)}: "
            f"judge each by itself, as in --by={','.join(differ)}"
        )


def _check_runs(
    frame: DataFrame, columns: LrColumns, place: list[list[float]], losses: list[float]
) -> None:
    """`UserError` for runs that are there twice, and for a key that moves losses beside size and
    LR."""
    ended = np.isfinite(losses) & (np.array(losses) > 0)
    frame, loss = frame[ended], np.array(losses)[ended]
    place = [np.array(values)[ended].tolist() for values in place]
    if not ended.any():
        return
    if columns.seed is None and any(copies := twins_among(place, loss.tolist())):
        row = row_of_frame(frame.index[copies.index(True)])
        raise UserError(
            f"{row} repeats another of its {columns.size}, {columns.lr} and {columns.loss}: "
            "keep one of them, or say which seeds they are of, as in --seed=seed"
        )
    named = {key: name for key, name in asdict(columns).items() if name is not None}
    keys = [key for key in frame.columns if key not in NO_SETTING or key in named.values()]
    check_sweeps(frame[keys], named, loss, place, "judge each value by itself, as in --by={}")


def _short_runs(frame: DataFrame) -> Iterator[str]:
    """A warning about runs so short that their optima say little about longer ones."""
    import pandas as pd

    for key, enough, what in (
        ("iter_num", ENOUGH_STEPS, "updates"),
        ("tokens_seen", ENOUGH_TOKENS, "tokens"),
    ):
        if key in frame:
            most = pd.to_numeric(frame[key], errors="coerce").max()
            if most < enough:
                yield (
                    f"the runs have {most:,.0f} {what}; the optima of runs with fewer than "
                    f"{enough:,} move by themselves"
                )
