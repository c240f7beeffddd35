"""A law through a table of runs: its columns chosen once, its rows cleaned once, one record of all.

The one idea: what is fitted, what is asked beside the fit and what is drawn all read the same
`FitRows`, and everything that is said afterwards is made from the `TableFit`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nanoscale.errors import UserError
from nanoscale.experiments.tables import STATES, column, number_at
from nanoscale.store.folder import COMPLETE

if TYPE_CHECKING:
    from pandas import DataFrame

    from nanoscale.laws import Influence, Law, LawFit, Profiles
    from nanoscale.laws.holdout import FitOptions, HoldOut, RolloutStep
    from nanoscale.laws.points import Points
    from nanoscale.laws.predict import Basis
    from nanoscale.studies.approaches import Approaches, TableMultiverse

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

    @property
    def columns(self) -> dict[str, str]:
        """Those that are named."""
        named = {key: getattr(self, key) for key in ("n", "d", "c", "u", "loss", "group")}
        return {key: name for key, name in named.items() if name is not None}

    @property
    def options(self) -> FitOptions:
        """Of `fit_law`, as far as they know no table."""
        return {
            "law": self.form,
            "objective": self.objective,
            "delta": self.delta,
            "resampling": self.resampling,
            "rng_seed": self.seed,
        }

    @property
    def n_resamples(self) -> int:
        """As told, else as many as the law has time for."""
        if self.resamples is not None:
            return self.resamples
        return RESAMPLES if self.form.terms else FEWER_RESAMPLES


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
    isoflop: Approaches | None = None
    multiverse: TableMultiverse | None = None
    profile: Profiles | None = None
    influence: Influence | None = None
    rollout: list[RolloutStep] | None = None

    @property
    def warnings(self) -> list[str]:
        """Of the rows, then of the fit."""
        return [*self.rows.notes, *self.fit.warnings]

    @property
    def points(self) -> Points:
        """What was fitted."""
        from nanoscale.laws.points import Points

        rows, drop = self.rows, self.settings.drop_worst
        return Points.of(self.fit.form, rows.values, rows.loss, drop)

    def ask(
        self,
        *,
        holdout: float | None = None,
        isoflop: bool = False,
        multiverse: bool = False,
        profile: bool = False,
        influence: bool = False,
        rollout: bool = False,
    ) -> TableFit:
        """The same with answers to more questions.

        Args:
            holdout: what would the runs below so many FLOPs have said of those above?
            isoflop: what do Approaches 1 and 2 say, and how are they biased on this grid?
            multiverse: how far is the exponent a choice?
            profile: how far can each parameter be pushed before the law is refuted?
            influence: which run decides?
            rollout: `holdout` at one budget after another.

        Raises:
            UserError: the table does not allow it.
        """
        from nanoscale.laws import influence_of, profile_law
        from nanoscale.studies.approaches import Approaches, TableMultiverse

        settings, rows, fit = self.settings, self.rows, self.fit
        groups, drop = rows.groups, settings.drop_worst
        answered = self
        if isoflop or multiverse:
            check_surface(settings.form, multiverse)
        if holdout is not None:
            answered = replace(answered, holdout=self._held_out(holdout))
        if isoflop:
            answered = replace(answered, isoflop=Approaches.of(fit, self.points))
        if multiverse:
            ways = TableMultiverse.of(rows.conventions(), rows.loss, settings.delta, drop)
            answered = replace(answered, multiverse=ways)
        if profile:
            ends = profile_law(
                fit, rows.values, rows.loss, groups=groups, drop_worst=drop, noise="own"
            )
            answered = replace(answered, profile=ends)
        if influence:
            owed = influence_of(fit, rows.values, rows.loss, groups=groups, drop_worst=drop)
            answered = replace(answered, influence=owed)
        if rollout:
            also = [] if holdout is None else [holdout]
            answered = replace(answered, rollout=self._rolled_out(also))
        return answered

    def _held_out(self, threshold: float) -> HoldOut:
        from nanoscale.laws.holdout import holdout

        return holdout(
            self.rows.values,
            self.rows.loss,
            threshold,
            drop_worst=self.settings.drop_worst,
            resamples=self.settings.n_resamples,
            groups=self.rows.groups,
            **self.settings.options,
        )

    def _rolled_out(self, also: Sequence[float]) -> list[RolloutStep]:
        from nanoscale.laws.holdout import rollout

        return rollout(
            self.rows.values,
            self.rows.loss,
            also=also,
            drop_worst=self.settings.drop_worst,
            resamples=self.settings.n_resamples,
            groups=self.rows.groups,
            **self.settings.options,
        )

    def to_json(self) -> dict[str, object]:
        """The record that `nanoscale fit --json` writes."""
        from nanoscale.laws.registry import digest_of

        record: dict[str, object] = {**self.fit.to_json(), **self.basis.to_json()}
        record["warnings"] = self.warnings
        if self.holdout is not None:
            record["holdout"] = self.holdout.to_json()
        record |= {"columns": self.rows.columns, "table": self.table}
        laws_digest = digest_of(self.fit.law)
        if laws_digest is not None:
            record["laws_digest"] = laws_digest
        for name in ("isoflop", "multiverse", "profile", "influence"):
            answer = getattr(self, name)
            if answer is not None:
                record[name] = answer.to_json()
        if self.rollout is not None:
            record["rollout"] = [step.to_json() for step in self.rollout]
        return record


def fit_table(table: DataFrame, settings: FitSettings | None = None, *, name: str = "") -> TableFit:
    """Fit a law to the rows of `table` that have a result.

    Args:
        table: one row per run, as `read_table` gives it.
        settings: which law, which columns, how.
        name: what to call the table.

    Raises:
        UserError: no law can be fitted to this table.
    """
    from nanoscale.laws import fit_law
    from nanoscale.laws.predict import Basis

    settings = settings or FitSettings()
    rows = FitRows.of(table, settings)
    fit = fit_law(
        rows.values,
        rows.loss,
        drop_worst=settings.drop_worst,
        resamples=settings.n_resamples,
        groups=rows.groups,
        **settings.options,
    )
    basis = Basis.of(fit, rows.values, rows.loss, settings.drop_worst)
    return TableFit(table=name, settings=settings, rows=rows, fit=fit, basis=basis)


def check_surface(form: Law, multiverse: bool) -> None:
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
    columns = {key: column(key, name, table) for key, name in settings.columns.items()}
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
