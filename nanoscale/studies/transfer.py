"""`nanoscale transfer`: whether the best learning rate holds over sizes, from a table or from runs.

Rows come from a CSV, JSON lines or Parquet file, a study, or run folders; columns are named or, for
our own tables, found. One verdict per setting (an arm of a study, a value of `--by`), each from
`checks.transfer`; what is printed is made from the record that `--json` writes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoscale.checks.lr_transfer import says, transfer_verdict
from nanoscale.commands.options import number
from nanoscale.errors import DONE, FAILED, INCONCLUSIVE, UserError, did_you_mean, one_of
from nanoscale.experiments.results import RESULTS, Study
from nanoscale.experiments.tables import ARM, STATES, column, number_at, read_table, study_table
from nanoscale.spec.sources import FIELDS
from nanoscale.store.files import check_outputs, write_json
from nanoscale.store.folder import COMPLETE, DIVERGED

if TYPE_CHECKING:
    from pandas import DataFrame

LIMITS = {
    "tolerance": "tolerance",
    "max-shift": "max_shift",
    "max-regret": "max_regret",
    "base": "base",
}
OPTIONS = ("size", "lr", "loss", "seed", "by", "only", *LIMITS, "json", "figure", "output_root")
SIZE_KEYS, LR_KEYS = ("n_embd", "n_layer"), ("muon_lr", "learning_rate")
SEEDS = ("seed", "init_seed", "data_seed")
EXIT_CODES = {"pass": DONE, "inconclusive": INCONCLUSIVE, "fail": FAILED}  # the worst comes last
Judged = tuple[str, dict[str, Any], "DataFrame"]  # a setting's name, its record, its runs
ENOUGH_STEPS, ENOUGH_TOKENS = 1000, 500_000  # below, optima of small models move by themselves


def main(names: Sequence[str], options: Mapping[str, str]) -> int:
    """nanoscale transfer TABLE|STUDY|RUN... [--size=COL] [--lr=COL] [--loss=COL] [--seed=COL]
    [--by=COL,COL] [--only=VALUE] [--base=SIZE] [--tolerance=0.25] [--max-shift=1]
    [--max-regret=0.02] [--json=FILE] [--figure=FILE.png] [--output_root=DIR]"""
    if not names:
        raise UserError(f"usage: {main.__doc__}")
    check_outputs(options)
    limits = {
        LIMITS[key]: float(number(key, value)) for key, value in options.items() if key in LIMITS
    }
    frame = read_table(*names, output_root=options.get("output_root", "experiments_out"))
    found = [
        (name, *verdict_of(rows, options, limits))
        for name, rows in settings(frame, options.get("by"), options.get("only"))
    ]
    for name, record, _ in found:
        print("\n".join([f"== {name}"] * bool(name) + lines(record)))
    records = {name: record for name, record, _ in found}
    if "json" in options:
        write_json(Path(options["json"]), joint_record(found))
    if "figure" in options:
        from nanoscale.report import save, transfer_figure

        save(transfer_figure(found), options["figure"])
    worst = max((record["verdict"] for record in records.values()), key=list(EXIT_CODES).index)
    return EXIT_CODES[worst]


def study_verdicts(study: Study) -> list[Judged]:
    """The verdict of every arm of a transfer study.

    Raises:
        UserError: an arm has no run with a loss.
    """
    asked, rows = study.asked.extras, study_table(study)
    lrs = {arm["name"]: arm["lr"] for arm in asked["arms"]}
    return [
        (name, *verdict_of(own, {"size": asked["size"], "lr": lrs[name]}, {}))
        for name, own in settings(rows, ARM, None)
    ]


def joint_record(found: Sequence[Judged]) -> dict[str, Any]:
    """What `--json` holds: a record, or several by the names of their settings."""
    records = {name: record for name, record, _ in found}
    one = found[0][1]
    return (
        one
        if len(records) == 1
        else {"schema": one["schema"], "check": "transfer", "verdicts": records}
    )


# -- settings -----------------------------------------------------------------------------------
def settings(frame: DataFrame, by: str | None, only: str | None) -> Iterator[tuple[str, DataFrame]]:
    """(name, its rows) of every setting that is judged by itself: all rows unless there is `by`."""
    by = by or (ARM if ARM in frame else None)
    if frame.empty:
        raise UserError("the table has no rows; it needs one per run")
    if by is None:
        if only is not None:
            raise UserError(f"--only={only}: say of which column, as in --by=parametrization.mode")
        yield "", frame
        return
    parts = [frame[column("by", key, frame)].map(str) for key in by.split(",")]
    labels = parts[0].str.cat(parts[1:], sep=", ")
    known = list(dict.fromkeys(labels))
    if only is not None and only not in known:
        hint = did_you_mean(only, known) or f"; choose {one_of(known)}"
        raise UserError(f"--only={only}: no such {by}{hint}")
    for label in known if only is None else [only]:
        yield label, frame[labels == label]


# -- columns ------------------------------------------------------------------------------------
def columns_of(frame: DataFrame, options: Mapping[str, str]) -> dict[str, str | None]:
    """The columns of size, LR, loss and seed: as named, else those of our own tables that vary."""
    named = {
        key: column(key, options[key], frame)
        for key in ("size", "lr", "loss", "seed")
        if key in options
    }
    if "size" not in named:
        sizes = [key for key in SIZE_KEYS if _varies(frame, key)]
        if len(sizes) != 1:
            what = f"both {' and '.join(sizes)} vary" if sizes else f"no {one_of(SIZE_KEYS)} varies"
            raise UserError(f"which column is the size? {what}; say it, as in --size=total_params")
        named["size"] = sizes[0]
    if "lr" not in named:
        named["lr"] = next((key for key in LR_KEYS if _varies(frame, key)), None)
        if named["lr"] and frame[named["lr"]].isna().any():
            words = [
                key
                for key in frame.columns
                if key in FIELDS and frame[key].nunique() > 1 and not _varies(frame, key)
            ]
            raise UserError(
                f"some runs have no {named['lr']}, so they are of several settings: "
                f"judge each by itself, as in --by={','.join(words) or 'optimizer'}"
            )
        if named["lr"] is None:
            raise UserError(
                f"which column is the LR? no {one_of(LR_KEYS)} varies; say it, as in "
                "--lr=learning_rate"
            )
    for key, usual in (("loss", "val_loss"), ("seed", "seed")):
        if key not in named and usual in frame:
            named[key] = usual
    if "loss" not in named:
        raise UserError(
            "which column is the loss? there is no 'val_loss'; say it, as in --loss=final_loss"
        )
    return {key: named.get(key) for key in ("size", "lr", "loss", "seed")}


def _varies(frame: DataFrame, key: str) -> bool:
    import pandas as pd

    return key in frame and pd.to_numeric(frame[key], errors="coerce").nunique() > 1


def _values(frame: DataFrame, name: str, positive: bool = True) -> list[float]:
    """A column as numbers; NaN for no value, inf for one that is not finite."""
    values = []
    for row, value in zip(frame.index, frame[name], strict=True):
        found = number_at(row, name, value)
        if positive and not 0 < found < math.inf:
            raise UserError(f"row {row + 1}: {name}={value}: expected a number above 0")
        values.append(found if value is None or math.isfinite(found) else math.inf)
    return values


def _losses(frame: DataFrame, name: str) -> list[float]:
    """Losses: inf where a run diverged, NaN where it has no result."""
    losses = _values(frame, name, positive=False)
    if "state" not in frame or not set(frame["state"]) <= STATES:
        return losses
    other = {COMPLETE: None, DIVERGED: math.inf}
    return [
        loss if state == COMPLETE else other.get(state, math.nan)
        for loss, state in zip(losses, frame["state"], strict=True)
    ]


def verdict_of(
    frame: DataFrame, options: Mapping[str, str], limits: Mapping[str, float]
) -> tuple[dict[str, Any], DataFrame]:
    """The record of one setting's rows, and the table of its runs that a figure needs."""
    import pandas as pd

    columns = columns_of(frame, options)
    table = pd.DataFrame({columns[key]: _values(frame, columns[key]) for key in ("size", "lr")})
    table[columns["loss"]] = _losses(frame, columns["loss"])
    seed = None if columns["seed"] is None else list(frame[columns["seed"]])
    _check_one_setting(frame, table, columns)
    record = transfer_verdict(
        *(table[columns[key]] for key in ("size", "lr", "loss")), seed, names=columns, **limits
    )
    record["warnings"] += _short(frame)
    return record, table


def _check_one_setting(frame: DataFrame, table: DataFrame, columns: Mapping[str, Any]) -> None:
    """Runs of one size, LR and seed that differ in another key are of several settings."""
    keys = table[[columns["size"], columns["lr"]]].astype(str).agg("|".join, axis=1)
    keys = keys + "|" + ("" if columns["seed"] is None else frame[columns["seed"]].map(str).values)
    chosen = {*columns.values(), *RESULTS, *SEEDS, "state", "run", "folder"}
    differ = [
        key
        for key in frame.columns
        if key not in chosen
        and (key in FIELDS or 1 < frame[key].nunique() <= len(frame) / 2)
        and (frame[key].map(str).groupby(keys.values).nunique() > 1).any()
    ]
    differ = [key for key in differ if key in FIELDS] or differ
    if differ:
        raise UserError(
            f"runs of one {columns['size']}, {columns['lr']} and seed differ in "
            f"{', '.join(differ)}: judge each by itself, as in --by={','.join(differ)}"
        )


def _short(frame: DataFrame) -> list[str]:
    """A warning about runs so short that their optima say little about longer ones."""
    import pandas as pd

    found = []
    for key, enough, what in (
        ("iter_num", ENOUGH_STEPS, "updates"),
        ("tokens_seen", ENOUGH_TOKENS, "tokens"),
    ):
        most = pd.to_numeric(frame[key], errors="coerce").max() if key in frame else math.nan
        if most < enough:
            found.append(
                f"the runs have {most:,.0f} {what}; the optima of runs with fewer than "
                f"{enough:,} move by themselves"
            )
    return found


# -- print --------------------------------------------------------------------------------------
def lines(record: Mapping[str, Any]) -> list[str]:
    """What the record says, for a terminal."""
    seed = f", seed {record['seed']}" if record["seed"] else ""
    base_lr = "the base's LR" if record["base_lr"] is None else f"{record['base_lr']:.3g}"
    rows = [[record["size"], "best LR", "95 % interval", "loss", f"loss at {base_lr}", "regret"]]
    rows += [_cells(size) for size in record["sizes"]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    worse = {True: "yes, within 2 standard errors", False: "no", None: "not known"}
    return [
        f"size {record['size']}, LR {record['lr']}, loss {record['loss']}{seed}",
        *table,
        *(says(key, record[key]) for key in ("drift", "largest_shift", "max_regret")),
        f"larger is never worse at {base_lr}: {worse[record['larger_is_never_worse']]}",
        *(f"warning: {warning}" for warning in record["warnings"]),
        f"{record['verdict']}: {record['reason']}",
    ]


def _cells(size: Mapping[str, Any]) -> list[str]:
    def text(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    moved = text(size["transferred_loss"], ".4f")
    if size["transferred_se"] is not None:
        moved += f" ± {size['transferred_se']:.4f}"
    return [
        f"{size['size']:g}",
        text(size["optimum_lr"], ".3g"),
        f"[{', '.join(text(end, '.3g') for end in size['ci95'])}]",
        text(size["min_loss"], ".4f"),
        "diverges" if size["transferred_diverges"] else moved,
        text(size["regret"], ".4f"),
    ]
