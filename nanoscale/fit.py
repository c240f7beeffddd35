"""`nanoscale fit`: a scaling law through a table of runs, with its certainty and its intervals.

Rows come from a CSV, JSON lines or Parquet file, or a study; columns are named or, for our own
tables, known. The fit is that of `laws.fit_law`; what is printed is made from the record that
`--json` writes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoscale.errors import DONE, INCONCLUSIVE, UserError
from nanoscale.options import usage_of
from nanoscale.records import COMPLETE, check_outputs, write_json
from nanoscale.transfer import STATES, column, number_at, read_rows

if TYPE_CHECKING:
    from pandas import DataFrame

    from nanoscale.laws import LawFit

OPTIONS = ("n", "d", "c", "loss", "law", "objective", "delta", "drop-worst", "bootstrap", "seed",
           "resample", "group", "holdout", "json", "output_root")
OURS = {"n": "total_params", "d": "tokens_seen", "c": "flops", "loss": "val_loss"}
DEFAULTS = {"delta": 1e-3, "drop-worst": 0, "bootstrap": 4000, "seed": 0}


def main(names: Sequence[str], options: Mapping[str, str]) -> int:
    """nanoscale fit TABLE|STUDY --n=COL --d=COL --loss=COL [--c=COL] [--law=chinchilla]
    [--objective=log-huber|lad|mse|envelope] [--delta=1e-3] [--drop-worst=K] [--bootstrap=4000]
    [--seed=0] [--resample=pairs|cluster|stratified|residual|wild|parametric] [--group=COL]
    [--holdout=FLOPS] [--json=OUT] [--output_root=DIR]"""
    if len(names) != 1:
        raise UserError(f"usage: {usage_of(main)}")
    check_outputs(options)
    settings = {key: number_of(key, options.get(key, default)) for key, default in DEFAULTS.items()}
    frame = read_rows(names, Path(options.get("output_root", "experiments_out")))
    fit, record = fitted(frame, options, settings)
    record |= {"table": names[0]}
    print("\n".join([*record["summary"], said(record["columns"]), *held_out(record),
                     *(f"warning: {w}" for w in record["warnings"])]))
    if "json" in options:
        write_json(Path(options["json"]), record)
    return DONE if fit.status == "converged" else INCONCLUSIVE


def fitted(frame: DataFrame, options: Mapping[str, str],
           settings: Mapping[str, float]) -> tuple[LawFit, dict[str, Any]]:
    """The fit of a table's rows, and its record."""
    from nanoscale.laws import fit_law, law_of, predict

    form = law_of(options.get("law", "chinchilla"))
    columns = columns_of(frame, options, form.predictors)
    kept, notes = finished(frame, columns["loss"])
    values = {key.upper(): numbers_of(kept, name) for key, name in columns.items()
              if key in ("n", "d", "c")}
    groups = [str(g) for g in kept[columns["group"]]] if "group" in columns else None
    loss, drop = numbers_of(kept, columns["loss"]), settings["drop-worst"]
    how = {"law": form, "objective": options.get("objective", "log-huber"),
           "delta": settings["delta"], "drop_worst": drop, "resamples": settings["bootstrap"],
           "resampling": options.get("resample", "pairs"), "groups": groups,
           "rng_seed": settings["seed"]}
    fit = fit_law(values, loss, **how)
    record = fit.to_json() | predict.Basis.of(fit, values, loss, drop).to_json()
    record["warnings"] = [*notes, *_same_run(kept, columns), *record["warnings"]]
    if "holdout" in options:
        threshold = number_of("holdout", options["holdout"], float)
        record["holdout"] = predict.holdout(values, loss, threshold, **how)
    return fit, record | {"columns": columns}


def said(columns: Mapping[str, str]) -> str:
    """Which columns were read, and what follows from which."""
    names = {"loss": "L", "group": "group"}
    read = ", ".join(f"{names.get(key, key.upper())} = {name}" for key, name in columns.items())
    missing = {"n": "N = C / 6D", "d": "D = C / 6N"}
    return "; ".join([read, *(rule for key, rule in missing.items()
                              if "c" in columns and len({"n", "d"} & columns.keys()) == 1
                              and key not in columns)])


def held_out(record: Mapping[str, Any]) -> list[str]:
    """The line of a hold-out, where there is one."""
    from nanoscale.laws import predict

    return [predict.said(record["holdout"])] if "holdout" in record else []


def number_of(key: str, text: str | float, kind: type | None = None) -> float:
    """A number of the command line; a whole one where its default is."""
    kind = kind or type(DEFAULTS[key])
    try:
        value = kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise UserError(f"--{key}={text}: expected {what}") from None
    if value < 0:
        raise UserError(f"--{key}={text}: must not be below 0")
    return value


# -- columns and rows ---------------------------------------------------------------------------
def columns_of(frame: DataFrame, options: Mapping[str, str],
               predictors: Sequence[str]) -> dict[str, str]:
    """Option -> column: as named, else those of our own tables."""
    if frame.empty:
        raise UserError("the table has no rows; it needs one per run")
    named = {key: column(key, options[key], frame)
             for key in ("n", "d", "c", "loss", "group") if key in options}
    usual = ("c",) if len(predictors) == 1 else ("n", "d")
    if not {"n", "d", "c"} & named.keys() and all(OURS[key] in frame for key in usual):
        named |= {key: OURS[key] for key in usual}
    if "loss" not in named and OURS["loss"] in frame:
        named["loss"] = OURS["loss"]
    if "loss" not in named:
        raise UserError(f"which column is the loss? say it, as in --loss={_guess(frame, 'loss')}")
    there = [f"--{key}" for key in ("n", "d", "c") if key in named]
    if len(predictors) == 1 and len(there) != 1:
        raise UserError("a law of one predictor needs one of --n, --d and --c, "
                        f"{f'not {chr(32).join(there)}' if there else 'as in --c=flops'}")
    if len(predictors) > 1 and len(there) != 2:
        raise UserError("which columns are N, D and C? give two of --n, --d and --c (C = 6 N D), "
                        f"{'not all three' if len(there) == 3 else 'as in --n=total_params'}"
                        f"{'' if len(there) == 3 else ' --d=tokens_seen'}; the table has "
                        f"{', '.join(map(str, frame.columns))}")
    return named


def _guess(frame: DataFrame, word: str) -> str:
    return next((str(c) for c in frame.columns if word in str(c).lower()), "final_loss")


def finished(frame: DataFrame, loss: str) -> tuple[DataFrame, list[str]]:
    """The rows with a result, and a word on those without: no loss, or a run that did not end."""
    there = frame[loss].notna()
    if "state" in frame and set(frame["state"]) <= STATES:
        there &= frame["state"] == COMPLETE
    if not there.any():
        raise UserError(f"no row has a {loss}")
    left = int((~there).sum())
    return frame[there], [f"{left} rows have no result and are left out"] * bool(left)


def numbers_of(frame: DataFrame, name: str) -> list[float]:
    """A column of numbers above 0; `UserError` naming the row of another."""
    values = []
    for row, value in zip(frame.index, frame[name], strict=True):
        number = number_at(row, name, value)
        if not 0 < number < math.inf:
            raise UserError(f"row {row + 1}: {name}={value}: expected a number above 0; leave "
                            "diverged and unfinished runs out")
        values.append(number)
    return values


def _same_run(frame: DataFrame, columns: Mapping[str, str]) -> list[str]:
    """A warning about points of one run that are resampled as if each were its own."""
    if "group" in columns or "run" not in frame or frame["run"].nunique() == len(frame):
        return []
    return [f"{len(frame)} points come from {frame['run'].nunique()} runs, and points of one run "
            "are not independent: resample runs, with --resample=cluster --group=run"]
