"""A law through a table of runs: its columns chosen once, its rows cleaned once, one record of all.

The one idea: what is fitted, what is asked beside the fit and what is drawn all read the same
`FitRows`, and everything that is said afterwards is made from the `TableFit`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nanoscale.errors import UserError
from nanoscale.experiments.tables import STATES, column, number_at
from nanoscale.store.folder import COMPLETE

if TYPE_CHECKING:
    from pandas import DataFrame

    from nanoscale.laws import Influence, Law, LawFit, Profiles
    from nanoscale.laws.multiverse import Multiverse
    from nanoscale.laws.predict import Basis, HoldOut
    from nanoscale.laws.rollout import HeldOut
    from nanoscale.studies.approaches import Approaches

OURS = {"n": "total_params", "d": "tokens_seen", "c": "flops", "loss": "val_loss"}
OUR_N = ("total_params", "non_position_params", "non_embedding_params", "matrices_and_head_params")
RESAMPLES = 4000
FEWER_RESAMPLES = 400  # of a law without terms: each takes a hundred times as long


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How a law is fitted to a table. A column that is not named is looked for under our names.

    Attributes:
        n, d, c, u: columns of parameters, tokens, FLOPs and unique tokens; of the first three any
            two give the third, and a law of one predictor reads one.
        loss: its column; group: what the runs share that are resampled together.
        law: a name, or a law.
        objective, delta, drop_worst, resampling, seed: see `fit_law`.
        resamples: None for 4000, or 400 of a law whose fit takes a hundred times as long.
    """

    n: str | None = None
    d: str | None = None
    c: str | None = None
    u: str | None = None
    loss: str | None = None
    group: str | None = None
    law: str | Law = "chinchilla"
    objective: str = "log-huber"
    delta: float = 1e-3
    drop_worst: int = 0
    resamples: int | None = None
    resampling: str = "pairs"
    seed: int = 0

    @property
    def form(self) -> Law:
        """The law; `UserError` for none of that name."""
        from nanoscale.laws import law_of

        return law_of(self.law)

    def columns(self) -> dict[str, str]:
        """The columns that are named."""
        named = {key: getattr(self, key) for key in ("n", "d", "c", "u", "loss", "group")}
        return {key: name for key, name in named.items() if name is not None}


@dataclass(frozen=True)
class FitRows:
    """The rows of a table that have a result, in the columns that were chosen."""

    frame: DataFrame
    columns: dict[str, str]  # n, d, c, u, loss and group -> the table's, those that there are
    values: dict[str, list[float]]  # of N, D, C and U those that were chosen
    loss: list[float]
    groups: list[str] | None
    notes: list[str]  # on rows that are left out, or not independent

    @classmethod
    def of(cls, table: DataFrame, settings: FitSettings) -> FitRows:
        """Choose and clean; `UserError` for a table that the law cannot be fitted to."""
        columns = columns_of(table, settings)
        frame, notes = _finished(table, columns["loss"])
        predictors = [key for key in columns if key not in ("loss", "group")]
        values = {key.upper(): numbers_of(frame, columns[key]) for key in predictors}
        loss = numbers_of(frame, columns["loss"])
        groups = None
        if "group" in columns:
            groups = [str(label) for label in frame[columns["group"]]]
        elif "run" in frame and frame["run"].nunique() < len(frame):
            notes.append(
                f"{len(frame)} points come from {frame['run'].nunique()} runs, and points of one "
                "run are not independent: resample runs, with --resample=cluster --group=run"
            )
        return cls(frame, columns, values, loss, groups, notes)

    def conventions(self) -> dict[str, dict[str, list[float]]]:
        """Every way of counting N, D and C that the table has columns for, without equal ones.

        Two of the three are given each time: N and D have C = 6 N D, N and C have D = C / 6 N, D
        and C have N = C / 6 D.
        """
        known = [
            name
            for name in (*OUR_N, OURS["d"], OURS["c"])
            if name in self.frame and self.frame[name].notna().all()
        ]
        n = [self.columns.get("n"), *(name for name in OUR_N if name in known)]
        d, c = (
            self.columns.get(key, OURS[key] if OURS[key] in known else None) for key in ("d", "c")
        )
        pairs = [("N", name, "D", d) for name in n]
        pairs += [("N", name, "C", c) for name in n]
        pairs.append(("D", d, "C", c))

        ways: dict[str, dict[str, list[float]]] = {}
        for first, name, second, other in pairs:
            if name is not None and other is not None:
                way = {
                    first: numbers_of(self.frame, name),
                    second: numbers_of(self.frame, other),
                }
                if way not in ways.values():
                    ways[f"{first} = {name}, {second} = {other}"] = way
        return ways


@dataclass(frozen=True, kw_only=True)
class TableFit:
    """A law through a table, and what was asked beside it (None: was not)."""

    table: str  # what it is called
    settings: FitSettings
    rows: FitRows
    fit: LawFit
    basis: Basis
    holdout: HoldOut | None = None
    approaches: Approaches | None = None
    multiverse: Multiverse | None = None
    profile: Profiles | None = None
    influence: Influence | None = None
    rollout: list[HeldOut] | None = None

    @property
    def warnings(self) -> list[str]:
        """Of the rows, then of the fit."""
        return [*self.rows.notes, *self.fit.warnings]

    def to_json(self) -> dict[str, object]:
        """The record that `nanoscale fit --json` writes."""
        record = self.fit.to_json() | self.basis.to_json() | {"warnings": self.warnings}
        if self.holdout is not None:
            record["holdout"] = self.holdout.to_json()
        record |= {"columns": self.rows.columns, "table": self.table}
        if self.approaches is not None:
            record["isoflop"] = self.approaches.to_json()
        if self.multiverse is not None:
            conventions = dict.fromkeys(row.convention for row in self.multiverse.rows)
            record["multiverse"] = self.multiverse.to_json() | {"conventions": list(conventions)}
        if self.profile is not None:
            record["profile"] = self.profile.to_json()
        if self.influence is not None:
            record["influence"] = self.influence.to_json()
        if self.rollout is not None:
            record["rollout"] = [row.to_json() for row in self.rollout]
        return record


def fit_table(
    table: DataFrame,
    settings: FitSettings | None = None,
    *,
    name: str = "",
    holdout: float | None = None,
    isoflop: bool = False,
    multiverse: bool = False,
    profile: bool = False,
    influence: bool = False,
    rollout: bool = False,
) -> TableFit:
    """Fit a law to the rows of `table` that have a result.

    Args:
        table: one row per run, as `read_table` gives it.
        settings: which law, which columns, how.
        name: what to call the table.
        holdout: FLOPs from which runs are predicted and not fitted.
        isoflop, multiverse, profile, influence, rollout: what else to ask: Approaches 1 and 2;
            how far the exponent is choice; intervals by refitting; what each run decides; hold-outs
            at one budget after another.

    Raises:
        UserError: no law can be fitted to this table, or what is asked is not of this law.
    """
    from nanoscale.laws import fit_law, influence_of, predict, profile_law
    from nanoscale.laws.points import Points
    from nanoscale.laws.rollout import rollout_of
    from nanoscale.studies import approaches

    settings = settings or FitSettings()
    form = settings.form
    if isoflop or multiverse:
        _check_surface(form, multiverse)
    rows = FitRows.of(table, settings)
    drop = settings.drop_worst
    how = {
        "law": form,
        "objective": settings.objective,
        "delta": settings.delta,
        "drop_worst": drop,
        "resamples": resamples_of(settings),
        "resampling": settings.resampling,
        "groups": rows.groups,
        "rng_seed": settings.seed,
    }
    fit = fit_law(rows.values, rows.loss, **how)
    ...


def resamples_of(settings: FitSettings) -> int:
    """As told, else as many as the law has time for."""
    if settings.resamples is not None:
        return settings.resamples
    return RESAMPLES if settings.form.terms else FEWER_RESAMPLES


def _check_surface(form: Law, multiverse: bool) -> None:
    """Approaches 1 and 2, and the multiverse, ask for the best N and D at a budget."""
    if {*form.predictors} != {"N", "D"}:
        raise UserError(
            "--isoflop and --multiverse ask for the best N and D at a budget, and "
            f"law {form.name} reads {', '.join(form.predictors)}: leave them out, "
            "or take --law=chinchilla"
        )
    if multiverse and form.name != "chinchilla":
        raise UserError(f"--multiverse refits law chinchilla, not {form.name}: leave --law out")


# -- columns and cells --------------------------------------------------------------------------
def columns_of(table: DataFrame, settings: FitSettings) -> dict[str, str]:
    """Setting -> column: as named, else those of our own tables."""
    if table.empty:
        raise UserError("the table has no rows; it needs one per run")
    predictors = settings.form.predictors
    columns = {key: column(key, name, table) for key, name in settings.columns().items()}
    if ("U" in predictors) != ("u" in columns):
        remedy = (
            "give it, as in --u=unique_tokens"
            if "U" in predictors
            else "leave it out, or take --law=repetition"
        )
        raise UserError(
            "--u names the column of unique tokens, which laws of repeated data read: " + remedy
        )

    usual = ("c",) if len(predictors) == 1 else ("n", "d")
    if not {"n", "d", "c"} & columns.keys() and all(OURS[key] in table for key in usual):
        columns |= {key: OURS[key] for key in usual}
    if "loss" not in columns and OURS["loss"] in table:
        columns["loss"] = OURS["loss"]
    if "loss" not in columns:
        names = [str(name) for name in table.columns]
        guess = next((name for name in names if "loss" in name.lower()), "final_loss")
        raise UserError(f"which column is the loss? say it, as in --loss={guess}")
    _check_predictors(columns, len(predictors), table)
    return columns


def _check_predictors(columns: Mapping[str, str], wanted: int, table: DataFrame) -> None:
    given = [f"--{key}" for key in ("n", "d", "c") if key in columns]
    if wanted == 1 and len(given) != 1:
        said = f"not {' '.join(given)}" if given else "as in --c=flops"
        raise UserError(f"a law of one predictor needs one of --n, --d and --c, {said}")
    if wanted > 1 and len(given) != 2:
        said = "not all three" if len(given) == 3 else "as in --n=total_params --d=tokens_seen"
        raise UserError(
            f"which columns are N, D and C? give two of --n, --d and --c (C = 6 N D), {said}; "
            f"the table has {', '.join(map(str, table.columns))}"
        )


def _finished(table: DataFrame, loss: str) -> tuple[DataFrame, list[str]]:
    """The rows with a result, and a word on those without: no loss, or a run that did not end."""
    has_result = table[loss].notna()
    if "state" in table and set(table["state"]) <= STATES:
        has_result &= table["state"] == COMPLETE
    if not has_result.any():
        raise UserError(f"no row has a {loss}")
    left_out = int((~has_result).sum())
    notes = [f"{left_out} rows have no result and are left out"] if left_out else []
    return table[has_result], notes


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
