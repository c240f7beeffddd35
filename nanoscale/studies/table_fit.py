"""A law through a table of runs: its columns chosen once, its rows cleaned once, one record of all.

The one idea: what is fitted, what is asked beside the fit and what is drawn all read the same
`FitRows`, and everything that is said afterwards is made from the `TableFit`.
"""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from nanoscale.errors import UserError, counted, cut
from nanoscale.experiments.results import STAGE_COLUMN
from nanoscale.experiments.tables import STATES, column, notes_of, number_at, row_of_frame
from nanoscale.spec.values import Json
from nanoscale.store.folder import COMPLETE
from nanoscale.studies import table_faults

if TYPE_CHECKING:
    from pandas import DataFrame

    from nanoscale.laws import Influence, LadderFit, Law, LawFit, Profiles
    from nanoscale.laws.arrays import Mask
    from nanoscale.laws.holdout import HoldOut, RolloutStep
    from nanoscale.laws.points import Points
    from nanoscale.laws.predict import Basis
    from nanoscale.laws.rivals import Rivals
    from nanoscale.laws.structure import RunsFound
    from nanoscale.studies.approaches import Approaches, TableMultiverse

SCALES = ("n", "d", "c")
OURS = {"n": "total_params", "d": "tokens_seen", "c": "flops", "loss": "val_loss"}
OUR_N = ("total_params", "non_position_params", "non_embedding_params", "matrices_and_head_params")
RESAMPLES = 4000
DELTA = 1e-3  # of the Huber loss (Hoffmann et al. 2022)
LADDER_RESAMPLES = 2000  # as many as a study's
LADDER_STAGE, BRANCH_STAGE = "ladder", "branches"  # of a forecast's study
LADDER, MOST_SIZES = "power", 16  # a table of few sizes is a ladder: `fit_power_law`

_T = TypeVar("_T")
FEWER_RESAMPLES = 400  # of a law without terms: each takes a hundred times as long


def named(settings: object, keys: Sequence[str]) -> dict[str, str]:
    """Key -> column, of those that the settings name."""
    columns = {key: getattr(settings, key) for key in keys}
    return {key: name for key, name in columns.items() if name is not None}


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How a law is fitted to a table. A column that is not named is looked for under our names.

    Attributes:
        n, d, c, u: columns of parameters, tokens, FLOPs and unique tokens; of the first three any
            two give the third, and a law of one predictor reads one.
        loss: its column; group: what the runs share that are resampled together.
        law: a name, or a law; None for power where N and D of our own table rise together, else
            chinchilla.
        objective, delta, drop_worst, resampling, seed: see `fit_law`; delta None is 1e-3, and of a
            ladder that of its replicates.
        where: COLUMN=VALUE, or several with commas: of the rows these alone.
        resamples: None for 4000, or 400 of a law whose fit takes a hundred times as long.
    """

    n: str | None = None
    d: str | None = None
    c: str | None = None
    u: str | None = None
    loss: str | None = None
    group: str | None = None
    law: str | Law | None = None
    objective: str = "log-huber"
    delta: float | None = None
    drop_worst: int = 0
    resamples: int | None = None
    resampling: str | None = None
    seed: int = 0
    where: str | None = None

    @property
    def form(self) -> Law:
        """The law; `UserError` for none of that name."""
        from nanoscale.laws import law_of

        return law_of(self.law or "chinchilla")

    @property
    def own_delta(self) -> float:
        """That of `fit_law`."""
        return DELTA if self.delta is None else self.delta

    @property
    def as_ladder(self) -> bool:
        """Whether a table of few sizes is fitted as a ladder study fits its own."""
        asked = (self.resampling, self.group, self.drop_worst or None)
        plain = self.objective == "log-huber" and asked == (None, None, None)
        return plain and self.form.name == LADDER and self.resamples != 0

    @property
    def columns(self) -> dict[str, str]:
        """Those that are named."""
        return named(self, ("n", "d", "c", "u", "loss", "group"))

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
    notes: list[str]  # on rows that are left out

    @classmethod
    def of(cls, table: DataFrame, settings: FitSettings) -> FitRows:
        """Choose and clean; `UserError` for a table that the law cannot be fitted to."""
        import numpy as np

        columns = columns_of(table, settings)
        known = table[columns["loss"]].notna().to_numpy()
        lacking = "have no result and are left out"
        frame, notes = with_result(table, known, columns["loss"], lacking)
        frame, units = table_faults.with_numbers(frame, columns)
        notes += units
        values = {}
        for key, name in columns.items():
            if key not in ("loss", "group"):
                values[key.upper()] = numbers_of(frame, name)
        loss = numbers_of(frame, columns["loss"])
        copies = table_faults.twins([*table_faults.called(frame, columns), *values.values()], loss)
        if any(copies):
            notes.append(
                f"{counted(sum(copies), 'row')} equal to others to the last bit: such twins count "
                "once"
            )
            kept = np.flatnonzero(~np.array(copies))
            frame, loss = frame.iloc[kept], [loss[k] for k in kept]
            values = {name: [column[k] for k in kept] for name, column in values.items()}
        table_faults.check_values(columns, values, loss)
        notes += table_faults.doubts(columns, values, loss)
        notes += table_faults.odd_compute(frame, OURS | columns, OURS)
        groups = None
        if "group" in columns:
            groups = list(map(str, frame[columns["group"]]))
        return cls(frame, columns, values, loss, groups, notes)

    @property
    def labels(self) -> dict[str, list[str]]:
        """Columns that may name runs of several points: the group's, or all with few values."""
        if self.groups is not None:
            return {self.columns["group"]: self.groups}
        labels = {}
        for name in map(str, self.frame.columns):
            values = list(map(str, self.frame[name]))
            if name not in self.columns.values() and 1 < len(set(values)) < len(values):
                labels[name] = values
        return labels

    def of_runs(self, found: RunsFound) -> FitRows:
        """The same, its groups the runs that were found in it."""
        import numpy as np

        from nanoscale.laws.points import with_compute
        from nanoscale.laws.structure import size_of

        groups = self.labels.get(found.column)
        if groups is None:
            columns = with_compute({name: np.array(v) for name, v in self.values.items()})
            groups = list(map(str, size_of(columns["N"])))
        return replace(self, groups=groups)

    def dependent(self) -> list[str]:
        """A warning where points of one run are resampled apart."""
        points = len(self.frame)
        runs = self.frame["run"].nunique() if "run" in self.frame else points
        if self.groups is not None or runs == points:
            return []
        return [
            f"{points} points come from {runs} runs, and points of one run are not "
            "independent: resample runs, with --resample=cluster --group=run"
        ]

    def answer(
        self, ask: Callable[..., _T], settings: FitSettings, *args: object, **more: object
    ) -> _T:
        """What `fit_law`, `holdout` or `rollout` says of the rows, by the settings."""
        return ask(
            self.values,
            self.loss,
            *args,
            drop_worst=settings.drop_worst,
            resamples=settings.n_resamples,
            groups=self.groups,
            law=settings.form,
            objective=settings.objective,
            delta=settings.own_delta,
            resampling=settings.resampling,
            rng_seed=settings.seed,
            **more,
        )

    def ladder(self, settings: FitSettings) -> LadderFit | None:
        """What a ladder study says of the same runs; None of many sizes without seeds, and of
        checkpoints."""
        import numpy as np

        from nanoscale.laws import fit_power_law
        from nanoscale.laws.bootstrap import DOF_NEEDED
        from nanoscale.laws.structure import find_runs

        ((name, x),) = self.values.items()
        seeds = len(x) - self.n_sizes
        if self.n_sizes > MOST_SIZES and seeds < DOF_NEEDED:
            return None
        fit = fit_power_law(
            x,
            self.loss,
            x_name=name,
            delta=settings.delta,
            resamples=settings.resamples or LADDER_RESAMPLES,
            rng_seed=settings.seed,
        )
        points = {name: np.array(x)}
        off = np.log(np.array(self.loss) / fit(points[name]))
        return None if find_runs(points, off, self.labels) else fit

    @property
    def ratio(self) -> float | None:
        """D / N where the two rise together, which then tell no best one; of our own columns where
        the table's are not named."""
        import numpy as np

        from nanoscale.laws.points import LEVELS_NEEDED, rise_together, with_compute

        names = {key: self.columns[key] for key in SCALES if key in self.columns}
        if len(names) < 2:
            names = {key: OURS[key] for key in ("n", "d")}
        read = [*names.values()]
        if not {*read} <= {*self.frame.columns} or self.frame[read].isna().any(axis=None):
            return None
        given = {key.upper(): np.array(numbers_of(self.frame, name)) for key, name in names.items()}
        columns = with_compute(given)
        N, D = columns["N"], columns["D"]
        together = len({*N.tolist()}) >= LEVELS_NEEDED and rise_together(np.log([N, D]))
        return float(np.median(D / N)) if together else None

    @property
    def n_sizes(self) -> int:
        """How many values the first predictor has."""
        return len({*next(iter(self.values.values()))})

    def conventions(self) -> dict[str, dict[str, list[float]]]:
        """Every way of counting N, D and C that the table has columns for, without equal ones.

        Two of the three are given each time: N and D have C = 6 N D, N and C have D = C / 6 N, D
        and C have N = C / 6 D.
        """
        names = {
            "N": [self.columns.get("n", OURS["n"]), *OUR_N],
            "D": [self.columns.get("d", OURS["d"])],
            "C": [self.columns.get("c", OURS["c"])],
        }
        complete = self.frame.columns[self.frame.notna().all()]
        ways: dict[str, dict[str, list[float]]] = {}
        for first, second in itertools.combinations(names, 2):
            for name, other in itertools.product(names[first], names[second]):
                if name in complete and other in complete:
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
    rivals: Rivals | None = None
    influence: Influence | None = None
    rollout: list[RolloutStep] | None = None

    @property
    def warnings(self) -> list[str]:
        """Of the rows, then of the fit."""
        warnings = [*self.rows.notes, *self.rows.dependent(), *self.fit.warnings]
        return warnings if self.rivals is None else warnings + self.rivals.warnings

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
        rivals: bool = False,
        influence: bool = False,
        rollout: bool = False,
    ) -> TableFit:
        """The same with answers to more questions.

        Args:
            holdout: what would the runs below so many FLOPs have said of those above?
            isoflop: what do Approaches 1 and 2 say, and how are they biased on this grid?
            multiverse: how far is the exponent a choice?
            profile: how far can each parameter be pushed before the law is refuted?
            rivals: how do other forms of law do on the same runs?
            influence: which run decides?
            rollout: `holdout` at one budget after another.

        Raises:
            UserError: the table does not allow it.
        """
        from nanoscale.laws import holdout as past
        from nanoscale.laws import influence_of, profile_law, rivals_of
        from nanoscale.studies.approaches import Approaches, TableMultiverse

        settings, rows, fit = self.settings, self.rows, self.fit
        delta = settings.own_delta if fit.delta is None else fit.delta
        settings = replace(settings, resampling=fit.resampling, delta=delta)
        groups, drop = rows.groups, settings.drop_worst
        answers: dict[str, Any] = {}
        if isoflop or multiverse:
            check_surface(settings.form, multiverse)
        if holdout is not None:
            answers["holdout"] = rows.answer(past.holdout, settings, holdout)
        if isoflop:
            answers["isoflop"] = Approaches.of(fit, self.points)
        if multiverse:
            ways = rows.conventions()
            answers["multiverse"] = TableMultiverse.of(ways, rows.loss, settings.own_delta, drop)
        if profile:
            answers["profile"] = profile_law(
                fit, rows.values, rows.loss, groups=groups, drop_worst=drop, noise="own"
            )
        if rivals:
            answers["rivals"] = rivals_of(
                fit, rows.values, rows.loss, groups=groups, drop_worst=drop
            )
        if influence:
            answers["influence"] = influence_of(
                fit, rows.values, rows.loss, groups=groups, drop_worst=drop
            )
        if rollout:
            also = [] if holdout is None else [holdout]
            answers["rollout"] = rows.answer(past.rollout, settings, also=also)
        return replace(self, **answers)

    def to_json(self) -> dict[str, Json]:
        """The record that `nanoscale fit --json` writes."""
        from nanoscale.laws.registry import digest_of

        record: dict[str, Any] = {**self.fit.to_json(), **self.basis.to_json()}
        record["warnings"] = self.warnings
        if self.holdout is not None:
            record["holdout"] = self.holdout.to_json()
        record |= {"columns": self.rows.columns, "table": self.table}
        laws_digest = digest_of(self.settings.form.registered)
        if laws_digest is not None:
            record["laws_digest"] = laws_digest
        for name in ("isoflop", "multiverse", "profile", "rivals", "influence"):
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
    if settings.where is not None:
        table = table_faults.where(table, settings.where)
    else:
        table, settings = _of_stages(table, settings)
    settings, rows = _by_structure(table, settings, FitRows.of(table, settings))
    fit: LawFit | None = rows.ladder(settings) if settings.as_ladder else None
    if fit is None:
        fit = rows.answer(fit_law, settings, labels=rows.labels)
    if fit.runs_found is not None:
        rows = rows.of_runs(fit.runs_found)
    rows = replace(rows, notes=[*rows.notes, *_of_residuals(rows, fit, settings)])
    basis = Basis.of(fit, rows.values, rows.loss, settings.drop_worst)
    return TableFit(table=name, settings=settings, rows=rows, fit=fit, basis=basis)


def ratio_of(table: DataFrame, settings: FitSettings) -> float | None:
    """Tokens per parameter of what would be fitted, where all runs share it."""
    table, settings = _of_stages(table, settings)
    return FitRows.of(table, settings).ratio


def _of_stages(table: DataFrame, settings: FitSettings) -> tuple[DataFrame, FitSettings]:
    """Of a study with stages the ladder, and for a law of N and D its branches too."""
    if STAGE_COLUMN not in table or LADDER_STAGE not in {*table[STAGE_COLUMN]}:
        return table, settings
    if settings.law is None and not settings.columns:
        settings = replace(settings, law=LADDER)
    stages = [LADDER_STAGE]
    if len(settings.form.predictors) > 1:
        stages.append(BRANCH_STAGE)
    return table[table[STAGE_COLUMN].isin(stages)], settings


def _by_structure(
    table: DataFrame, settings: FitSettings, rows: FitRows
) -> tuple[FitSettings, FitRows]:
    """Where no law is asked for and D is a share of N, which shows no surface: the law of C."""
    import numpy as np

    from nanoscale.laws.points import compute

    ratio = None if settings.law is not None or len(rows.values) != 2 else rows.ratio
    C = compute({name: np.array(values) for name, values in rows.values.items()})
    if ratio is None or C is None:
        return settings, rows
    settings = replace(settings, law=LADDER)
    if not settings.columns and OURS["c"] in table:
        rows = FitRows.of(table, settings)
    else:
        rows = replace(rows, values={"C": C.tolist()})
    note = (
        f"N and D rise together ({ratio:.3g} tokens per parameter), so the law is of C; "
        "--law=chinchilla reads both"
    )
    return settings, replace(rows, notes=[*rows.notes, note])


def _of_residuals(rows: FitRows, fit: LawFit, settings: FitSettings) -> list[str]:
    """Warnings of groups and courses that the residuals fall into, and of rows far off."""
    import numpy as np

    from nanoscale.laws import fit_law
    from nanoscale.laws.points import Points

    if fit.status == "max_iter":
        return []
    points = Points.of(fit.form, rows.values, rows.loss, settings.drop_worst)
    frame = rows.frame[points.keep]
    off = np.log(points.loss / fit(*points.x))
    unit = np.arange(len(off))
    if fit.runs_found is not None:
        unit = points.groups(rows.groups or range(len(rows.loss)))
    read = {*rows.columns.values()}
    said = table_faults.experiments_in(frame, read, off, points.x, unit)
    if rows.groups is None and settings.resampling is None:
        said += table_faults.courses(dict(zip(points.names, points.x, strict=True)), off)
    usual = replace(settings, objective="log-huber", delta=None, resamples=0, resampling=None)
    if (settings.objective, settings.own_delta) != (usual.objective, usual.own_delta):
        # another objective may go after the row that is far off
        off = np.log(points.loss / rows.answer(fit_law, usual)(*points.x))
    return said + table_faults.strays(frame, off, len(fit.params))


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
    predictors = settings.form.predictors
    columns = columns_in(table, settings.columns)
    if ("U" in predictors) != ("u" in columns):
        remedy = "leave it out, or take --law=repetition"
        if "U" in predictors:
            remedy = "give it, as in --u=unique_tokens"
        raise UserError(
            f"--u names the column of unique tokens, which laws of repeated data read: {remedy}"
        )

    usual = {"c": OURS["c"]}
    if len(predictors) > 1:
        usual = {"n": OURS["n"], "d": OURS["d"]}
    if columns.keys().isdisjoint(SCALES) and {*usual.values()} <= {*table.columns}:
        columns |= usual
    if "loss" not in columns and OURS["loss"] in table:
        columns["loss"] = OURS["loss"]
    if "loss" not in columns:
        columns["loss"] = table_faults.loss_of(table)
    _check_predictors(columns, len(predictors), table)
    table_faults.check_columns(columns)
    return columns


def _options_for(columns: Mapping[str, str], table: DataFrame) -> list[str]:
    """What to type for N, D and C: those that are named, then the others that the table has."""
    likely = {key: columns[key] for key in SCALES if key in columns}
    likely |= table_faults.scales_in(table) | likely
    return [f"--{key}={shlex.quote(name)}" for key, name in likely.items()]


def _check_predictors(columns: Mapping[str, str], wanted: int, table: DataFrame) -> None:
    given = [f"--{key}" for key in SCALES if key in columns]
    options = _options_for(columns, table)
    if wanted == 1 and len(given) != 1:
        said = f"not {' '.join(given)}" if given else f"as in {[*options, '--c=flops'][0]}"
        raise UserError(f"a law of one predictor needs one of --n, --d and --c, {said}")
    if wanted > 1 and len(given) != 2:
        said = "as in --n=total_params --d=tokens_seen"
        if len(given) == 3:
            said = "not all three"
        elif len(options) == 1:
            said = f"or, of one alone, --law={LADDER} {options[0]}"
        elif options:
            said = f"as in {' '.join(options[:2])}"
        raise UserError(
            f"which columns are N, D and C? give two of --n, --d and --c (C = 6 N D), {said}; "
            f"the table has {', '.join(map(str, table.columns))}"
        )


def columns_in(table: DataFrame, columns: Mapping[str, str]) -> dict[str, str]:
    """Those that are named; `UserError` for one that the table does not have, or no rows."""
    if table.empty:
        raise UserError("the table has no rows; it needs one per run")
    return {key: column(key, name, table) for key, name in columns.items()}


def with_result(table: DataFrame, known: Mask, loss: str, why: str) -> tuple[DataFrame, list[str]]:
    """The rows of runs that ended with a loss that is known, and a word on the others."""
    if "state" in table and set(table["state"]) <= STATES:
        known = known & (table["state"] == COMPLETE).to_numpy()
    if not known.any():
        raise UserError(f"no row has a {loss}")
    left_out = int((~known).sum())
    notes = [f"{left_out} rows {why}"] if left_out else []
    return table[known], [*notes_of(table), *notes]


def numbers_of(frame: DataFrame, name: str) -> list[float]:
    """A column of numbers above 0; `UserError` naming the row of another."""
    values = []
    for row, value in zip(frame.index, frame[name], strict=True):
        number = number_at(row, name, value)
        if not 0 < number < math.inf:
            empty = math.isnan(number) and not isinstance(value, str)
            said = f"{name} is empty" if empty else f"{name}={cut(str(value))}"
            raise UserError(
                f"{row_of_frame(row)}: {said}: expected a number above 0; leave diverged and "
                "unfinished runs out"
            )
        values.append(number)
    return values
