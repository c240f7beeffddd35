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

from nanoscale.commands.options import usage_of
from nanoscale.errors import DONE, INCONCLUSIVE, UserError
from nanoscale.experiments.tables import STATES, column, number_at, read_table
from nanoscale.store.files import check_outputs, write_json
from nanoscale.store.folder import COMPLETE

if TYPE_CHECKING:
    from pandas import DataFrame

    from nanoscale.laws import LawFit

OPTIONS = (
    "n",
    "d",
    "c",
    "u",
    "loss",
    "law",
    "objective",
    "delta",
    "drop-worst",
    "bootstrap",
    "seed",
    "resample",
    "group",
    "holdout",
    "json",
    "output_root",
)
FIGURES = "figures"  # of this command alone, as these are
SWITCHES = ("isoflop", "multiverse", "profile", "influence")
OURS = {"n": "total_params", "d": "tokens_seen", "c": "flops", "loss": "val_loss"}
OUR_N = ("total_params", "non_position_params", "non_embedding_params", "matrices_and_head_params")
DEFAULTS = {"delta": 1e-3, "drop-worst": 0, "bootstrap": 4000, "seed": 0}
FEWER = 400  # resamples of a law without terms unless told: each takes a hundred times as long


def main(names: Sequence[str], options: Mapping[str, str]) -> int:
    """nanoscale fit TABLE|STUDY --n=COL --d=COL --loss=COL [--c=COL] [--u=COL] [--law=chinchilla]
    [--objective=log-huber|lad|mse|envelope] [--delta=1e-3] [--drop-worst=K] [--bootstrap=4000]
    [--seed=0] [--resample=pairs|cluster|stratified|residual|wild|parametric] [--group=COL]
    [--holdout=FLOPS] [--isoflop] [--multiverse] [--profile] [--influence] [--figures=DIR]
    [--json=OUT] [--output_root=DIR]"""
    if len(names) != 1:
        raise UserError(f"usage: {usage_of(main)}")
    check_outputs(options)
    check_beyond(options)
    settings = settings_of(options)
    frame = read_table(*names, output_root=options.get("output_root", "experiments_out"))
    fit, record = fitted(frame, options, settings)
    record |= {"table": names[0]}
    lines, figures = beyond(fit, frame, options, settings, record)
    print(
        "\n".join(
            [
                *record["summary"],
                said(record["columns"]),
                *held_out(record),
                *lines,
                *(f"warning: {w}" for w in record["warnings"]),
            ]
        )
    )
    if "json" in options:
        if "holdout" in record:
            record["holdout"] = record["holdout"].to_json()
        write_json(Path(options["json"]), record)
    if figures:
        from nanoscale.studies.law_figures import write_figures

        written = write_figures(figures, Path(options[FIGURES]))
        print(f"figures in {options[FIGURES]}: {', '.join(path.name for path in written)}")
    return DONE if fit.status == "converged" else INCONCLUSIVE


def fitted(
    frame: DataFrame, options: Mapping[str, str], settings: Mapping[str, float]
) -> tuple[LawFit, dict[str, Any]]:
    """The fit of a table's rows, and its record."""
    from nanoscale.laws import fit_law, law_of, predict
    from nanoscale.laws.holdout import holdout

    form = law_of(options.get("law", "chinchilla"))
    columns = columns_of(frame, options, form.predictors)
    kept, notes = finished(frame, columns["loss"])
    values, loss = points_of(kept, columns)
    how = how_of(kept, columns, options, settings) | {"law": form}
    fit = fit_law(values, loss, **how)
    record = fit.to_json() | predict.Basis.of(fit, values, loss, how["drop_worst"]).to_json()
    record["warnings"] = [*notes, *_same_run(kept, columns), *record["warnings"]]
    if "holdout" in options:
        threshold = number_of("holdout", options["holdout"], float)
        record["holdout"] = holdout(values, loss, threshold, **how)
    return fit, record | {"columns": columns}


def settings_of(options: Mapping[str, str]) -> dict[str, float]:
    """The numbers of the command line."""
    from nanoscale.laws import law_of

    few = {} if law_of(options.get("law", "chinchilla")).terms else {"bootstrap": FEWER}
    return {
        key: number_of(key, options.get(key, default)) for key, default in (DEFAULTS | few).items()
    }


def how_of(
    kept: DataFrame,
    columns: Mapping[str, str],
    options: Mapping[str, str],
    settings: Mapping[str, float],
) -> dict[str, Any]:
    """The options of `fit_law`, but for the law."""
    groups = [str(g) for g in kept[columns["group"]]] if "group" in columns else None
    return {
        "objective": options.get("objective", "log-huber"),
        "delta": settings["delta"],
        "drop_worst": settings["drop-worst"],
        "resamples": settings["bootstrap"],
        "resampling": options.get("resample", "pairs"),
        "groups": groups,
        "rng_seed": settings["seed"],
    }


# -- beyond the fit -----------------------------------------------------------------------------
def check_beyond(options: Mapping[str, str]) -> None:
    """Refuse what a law does not allow, and a folder that cannot be, before any work."""
    if "isoflop" in options or "multiverse" in options:
        from nanoscale.laws import law_of

        form = law_of(options.get("law", "chinchilla"))
        if {*form.predictors} != {"N", "D"}:
            raise UserError(
                "--isoflop and --multiverse ask for the best N and D at a budget, and "
                f"law {form.name} reads {', '.join(form.predictors)}: leave them out, "
                "or take --law=chinchilla"
            )
        if "multiverse" in options and form.name != "chinchilla":
            raise UserError(f"--multiverse refits law chinchilla, not {form.name}: leave --law out")
    folder = Path(options.get(FIGURES, "."))
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--figures={folder}: that is a file; name a folder")
    if not folder.parent.is_dir():
        raise UserError(f"--figures={folder}: there is no folder {folder.parent}; make it first")


def beyond(
    fit: LawFit,
    frame: DataFrame,
    options: Mapping[str, str],
    settings: Mapping[str, float],
    record: dict[str, Any],
) -> tuple[list[str], Mapping[str, Any]]:
    """What was asked for beside the fit: its lines and figures; its records go into `record`."""
    asked = {*SWITCHES, FIGURES} & options.keys()
    if not asked:
        return [], {}
    from nanoscale.studies import approaches

    columns, lines, drop = record["columns"], [], settings["drop-worst"]
    kept, _ = finished(frame, columns["loss"])
    values, loss = points_of(kept, columns)
    if "isoflop" in asked:
        record["isoflop"] = approaches.isoflop_record(fit, values, loss, drop)
        lines += approaches.isoflop_lines(record["isoflop"])
    if "multiverse" in asked:
        record["multiverse"] = approaches.multiverse_record(
            conventions_of(kept, columns), loss, delta=settings["delta"], drop_worst=drop
        )
        lines += approaches.multiverse_lines(record["multiverse"])
    units = {"drop_worst": drop, "groups": how_of(kept, columns, options, settings)["groups"]}
    for name in ("profile", "influence"):
        if name in asked:
            record[name], more = getattr(approaches, name)(fit, values, loss, **units)
            lines += more
    if FIGURES not in asked:
        return lines, {}
    from nanoscale.laws.holdout import rollout
    from nanoscale.studies.law_figures import figures_of

    held = [record["holdout"].threshold] if "holdout" in record else []
    how = how_of(kept, columns, options, settings) | {"law": fit.form}
    record["rollout"] = [step.to_json() for step in rollout(values, loss, also=held, **how)]
    return lines, figures_of(fit, values, loss, record, drop)


def points_of(kept: DataFrame, columns: Mapping[str, str]) -> tuple[dict[str, list], list[float]]:
    """N, D, C and U, those of them that were given, and the loss."""
    values = {
        key.upper(): numbers_of(kept, name)
        for key, name in columns.items()
        if key in ("n", "d", "c", "u")
    }
    return values, numbers_of(kept, columns["loss"])


def conventions_of(kept: DataFrame, columns: Mapping[str, str]) -> dict[str, dict[str, list]]:
    """Every way of counting N, D and C that the table has columns for, without equal ones.

    Two of the three are given each time: N and D have C = 6 N D, N and C have D = C / 6 N, D and C
    have N = C / 6 D.
    """
    there = [
        name for name in (*OUR_N, OURS["d"], OURS["c"]) if name in kept and kept[name].notna().all()
    ]
    n = dict.fromkeys([columns["n"]] * ("n" in columns) + [k for k in OUR_N if k in there])
    d, c = (columns.get(key) or (OURS[key] if OURS[key] in there else None) for key in "dc")
    pairs = [("N", name, "D", d) for name in n] * bool(d)
    pairs += [("N", name, "C", c) for name in n] * bool(c) + [("D", d, "C", c)] * bool(d and c)
    found: dict[tuple, tuple[str, dict[str, list]]] = {}
    for first, name, second, other in pairs:
        one = {first: numbers_of(kept, name), second: numbers_of(kept, other)}
        found.setdefault(
            tuple(map(tuple, one.values())), (f"{first} = {name}, {second} = {other}", one)
        )
    return dict(found.values())


def said(columns: Mapping[str, str]) -> str:
    """Which columns were read, and what follows from which."""
    names = {"loss": "L", "group": "group"}
    read = ", ".join(f"{names.get(key, key.upper())} = {name}" for key, name in columns.items())
    missing = {"n": "N = C / 6D", "d": "D = C / 6N"}
    return "; ".join(
        [
            read,
            *(
                rule
                for key, rule in missing.items()
                if "c" in columns and len({"n", "d"} & columns.keys()) == 1 and key not in columns
            ),
        ]
    )


def held_out(record: Mapping[str, Any]) -> list[str]:
    """The line of a hold-out, where there is one."""
    return [record["holdout"].text()] if "holdout" in record else []


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
def columns_of(
    frame: DataFrame, options: Mapping[str, str], predictors: Sequence[str]
) -> dict[str, str]:
    """Option -> column: as named, else those of our own tables."""
    if frame.empty:
        raise UserError("the table has no rows; it needs one per run")
    named = {
        key: column(key, options[key], frame)
        for key in ("n", "d", "c", "u", "loss", "group")
        if key in options
    }
    if ("U" in predictors) != ("u" in named):
        raise UserError(
            "--u names the column of unique tokens, which laws of repeated data read: "
            + (
                "give it, as in --u=unique_tokens"
                if "U" in predictors
                else "leave it out, or take --law=repetition"
            )
        )
    usual = ("c",) if len(predictors) == 1 else ("n", "d")
    if not {"n", "d", "c"} & named.keys() and all(OURS[key] in frame for key in usual):
        named |= {key: OURS[key] for key in usual}
    if "loss" not in named and OURS["loss"] in frame:
        named["loss"] = OURS["loss"]
    if "loss" not in named:
        raise UserError(f"which column is the loss? say it, as in --loss={_guess(frame, 'loss')}")
    there = [f"--{key}" for key in ("n", "d", "c") if key in named]
    if len(predictors) == 1 and len(there) != 1:
        raise UserError(
            "a law of one predictor needs one of --n, --d and --c, "
            f"{f'not {chr(32).join(there)}' if there else 'as in --c=flops'}"
        )
    if len(predictors) > 1 and len(there) != 2:
        raise UserError(
            "which columns are N, D and C? give two of --n, --d and --c (C = 6 N D), "
            f"{'not all three' if len(there) == 3 else 'as in --n=total_params'}"
            f"{'' if len(there) == 3 else ' --d=tokens_seen'}; the table has "
            f"{', '.join(map(str, frame.columns))}"
        )
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
            raise UserError(
                f"row {row + 1}: {name}={value}: expected a number above 0; leave "
                "diverged and unfinished runs out"
            )
        values.append(number)
    return values


def _same_run(frame: DataFrame, columns: Mapping[str, str]) -> list[str]:
    """A warning about points of one run that are resampled as if each were its own."""
    if "group" in columns or "run" not in frame or frame["run"].nunique() == len(frame):
        return []
    return [
        f"{len(frame)} points come from {frame['run'].nunique()} runs, and points of one run "
        "are not independent: resample runs, with --resample=cluster --group=run"
    ]
