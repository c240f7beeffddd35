"""How the best learning rate or batch moves with scale, read from a table of sweeps.

A table says at which N, D or C its sweeps are, what was swept, and what came of it; the law through
their optima is that of `laws.sweeps`. Whether it is identified is judged here: a law whose
exponents leave a factor of four over a decade plans nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nanoscale.errors import UserError, one_of
from nanoscale.experiments.tables import number_at
from nanoscale.laws.joint_sweeps import JointCells, JointSweeps
from nanoscale.laws.predict import FAR
from nanoscale.laws.record import Record
from nanoscale.laws.result import RATIO
from nanoscale.laws.sweep_optima import Sweep
from nanoscale.laws.sweeps import SweepLaw, SweepOptimum, Sweeps
from nanoscale.studies.table_faults import check_columns, check_sweeps
from nanoscale.studies.table_fit import OURS, SCALES, columns_in, numbers_of, with_result

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

SWEPT = ("lr", "batch")
_OTHERS = (*SWEPT, "loss", "seed")  # columns that are read beside the scales
OUR_LR = ("muon_lr", "learning_rate")
DECADE = 10.0
_ROUNDED = 1 + 1e-6  # of scales, which are means


@dataclass(frozen=True, kw_only=True)
class SweepStudy(Record):
    """The law of a table's sweeps, or why there is none."""

    schema: int = 1
    status: str  # identified or not_identified
    reason: str  # why it is not, or nothing
    columns: dict[str, str]  # N, D or C, what was swept, loss and seed -> column of the table
    law: SweepLaw | None
    sweeps: list[Sweep]
    at: dict[str, float] | None  # a scale that was asked about
    prediction: SweepOptimum | None  # there
    warnings: list[str]


@dataclass(frozen=True, kw_only=True)
class JointSweepStudy(Record):
    """The laws of both that a table swept at once; its fields are those of `SweepStudy`."""

    schema: int = 1
    status: str
    reason: str
    columns: dict[str, str]
    joint: JointSweeps | None
    at: dict[str, float] | None
    predictions: dict[str, SweepOptimum] | None  # of each that was swept, there
    warnings: list[str]


def sweep_study(
    table: DataFrame,
    *,
    columns: Mapping[str, str] | None = None,
    at: Mapping[str, float] | None = None,
    resamples: int = 1000,
    rng_seed: int = 0,
) -> SweepStudy:
    """The best learning rate (or batch) of every scale in a table, as a power law of scale.

    Args:
        table: a row per run, as of `read_table`. Runs that diverged are left out.
        columns: which one is n, d, c (one or two of them, which the sweeps are at), lr or batch
            (which was swept; both: `joint_sweep_study`), loss and seed; where it does not say,
            those of our own tables.
        at: the scale of a run to come, as in {"N": 1e9, "D": 2e10}.
        resamples: of the runs' noise, for intervals; 0 for none.

    Raises:
        UserError: the table has no such columns, or what stands in them is no number.
    """
    read = columns_of(table, columns or {})
    if read.keys() >= {*SWEPT}:
        raise UserError("lr and batch are both named: a law of one alone takes one of them")
    rows, values, warnings = _numbers(table, read)
    sweeps = Sweeps.of(
        values,
        values.pop("loss"),
        "lr" if "lr" in read else "batch",
        seed=list(rows[read["seed"]]) if "seed" in read else None,
        resamples=resamples,
        rng_seed=rng_seed,
    )
    if at is not None:
        _check_scale(at, sweeps.names)

    law = None
    prediction = None
    reason = sweeps.why_no_law()
    if reason:
        warnings += sweeps.left_out()
    else:
        law = sweeps.law(rng_seed)
        warnings += law.warnings
        reason = _why_not_identified(law)
        if at is not None:
            prediction = law.predict(**at)
            warnings += _far(at, law)
    return SweepStudy(
        status="not_identified" if reason else "identified",
        reason=reason,
        columns=read,
        law=law,
        sweeps=sweeps.sweeps,
        at=None if at is None else dict(at),
        prediction=prediction,
        warnings=warnings,
    )


def joint_sweep_study(
    table: DataFrame,
    *,
    columns: Mapping[str, str],
    at: Mapping[str, float] | None = None,
    resamples: int = 1000,
    rng_seed: int = 0,
) -> JointSweepStudy:
    """The best learning rate and batch of every scale, swept at once, as power laws of scale.

    Args and errors: as of `sweep_study`; `columns` has both `lr` and `batch`.
    """
    read = columns_of(table, columns)
    rows, values, warnings = _numbers(table, read)
    loss = values.pop("loss")
    if min(values["batch"]) < 1:
        raise UserError(
            f"--batch={read['batch']}: {min(values['batch']):g} is no batch, of sequences or "
            f"tokens; are --lr={read['lr']} and it the wrong way round?"
        )
    seed = list(rows[read["seed"]]) if "seed" in read else None
    cells = JointCells.of(values, loss, SWEPT, seed=seed)
    if at is not None:
        _check_scale(at, cells.names)
    reason = cells.why_no_law()
    joint = predictions = None
    if not reason:
        joint = cells.laws(resamples, rng_seed)
        laws = joint.laws
        reason = "; ".join(filter(None, map(_why_not_identified, laws.values())))
        warnings += laws["lr"].warnings
        if at is not None:
            predictions = {name: law.predict(**at) for name, law in laws.items()}
            warnings += _far(at, laws["lr"])
    return JointSweepStudy(
        status="not_identified" if reason else "identified",
        reason=reason,
        columns=read,
        joint=joint,
        at=None if at is None else dict(at),
        predictions=predictions,
        warnings=warnings,
    )


def optima_figure(laws: Mapping[str, SweepLaw]) -> Figure:
    """The best of all that was swept, a panel each, over the first predictor; a line for each
    value of the second."""
    import pandas as pd

    from nanoscale.report import lines_figure

    first = next(iter(laws.values()))
    x, *groups = first.predictors
    group = groups[0] if groups else None
    lines = f", a line for each {group}" if group else ""
    panels = {name: f"log10 of the best {name}{lines}" for name in laws}
    rows = []
    for sweeps in zip(*(law.sweeps for law in laws.values()), strict=True):
        row = {name: float(f"{value:.4g}") for name, value in sweeps[0].at.items()}
        for name, sweep in zip(laws, sweeps, strict=True):
            row[panels[name]] = math.nan if sweep.optimum is None else math.log10(sweep.optimum)
        rows.append(row)
    y = {best: best for best in panels.values()}
    return lines_figure(pd.DataFrame(rows), x=x, y=y, group=group)


# -- columns and rows ---------------------------------------------------------------------------
def columns_of(table: DataFrame, columns: Mapping[str, str]) -> dict[str, str]:
    """N, D, C, lr or batch, loss and seed -> column: as named, else those of our own tables."""
    named = columns_in(table, columns)
    if named.keys().isdisjoint(SCALES):
        named |= {key: OURS[key] for key in ("n", "d") if _varies(table, OURS[key])}
    if len(named.keys() & SCALES) not in (1, 2):
        there = ", ".join(map(str, table.columns))
        raise UserError(
            "at which scales are the sweeps? give one or two of --n, --d and --c, as in "
            f"--n=total_params; the table has {there}"
        )
    if named.keys().isdisjoint(SWEPT):
        varying = [name for name in OUR_LR if _varies(table, name)]
        if not varying:
            there = ", ".join(map(str, table.columns))
            raise UserError(
                f"which column was swept? no {one_of(OUR_LR)} varies; say it, as in "
                f"--lr=learning_rate or --batch=batch_size; the table has {there}"
            )
        named["lr"] = varying[0]
    for key, usual in (("loss", OURS["loss"]), ("seed", "seed")):
        if usual in table:
            named.setdefault(key, usual)
    if "loss" not in named:
        raise UserError("which column is the loss? say it, as in --loss=final_loss")
    read = {key.upper(): named[key] for key in SCALES if key in named}
    return read | {key: named[key] for key in _OTHERS if key in named}


def _numbers(
    table: DataFrame, read: Mapping[str, str]
) -> tuple[DataFrame, dict[str, list[float]], list[str]]:
    """The rows with a result, their numbers by what they are of, and warnings; checked."""
    check_columns(read)
    rows, warnings = _with_result(table, read["loss"])
    values = {key: numbers_of(rows, name) for key, name in read.items() if key != "seed"}
    places = [v for key, v in values.items() if key != "loss"]
    check_sweeps(rows, read, np.array(values["loss"]), places)
    return rows, values, warnings


def _with_result(table: DataFrame, loss: str) -> tuple[DataFrame, list[str]]:
    """The rows with a finite loss, and a word on those without."""
    cells = zip(table.index, table[loss], strict=True)
    finite = np.isfinite([number_at(row, loss, value) for row, value in cells])
    return with_result(table, finite, loss, "diverged or have no result, and are left out")


def _varies(table: DataFrame, name: str) -> bool:
    return name in table and bool(table[name].notna().all() and table[name].nunique() > 1)


# -- what it is worth ---------------------------------------------------------------------------
def _check_scale(at: Mapping[str, float], names: Sequence[str]) -> None:
    if {*at} == {*names} and all(value > 0 for value in at.values()):
        return
    given = [f"{name}={value:g}" for name, value in at.items()]
    wanted = [f"{name}=1e9" for name in names]
    raise UserError(
        f"--at={','.join(given)}: the sweeps are at {', '.join(names)}, as in "
        f"--at={','.join(wanted)}"
    )


def _why_not_identified(law: SweepLaw) -> str:
    if not law.ci95:
        return "without resamples nothing says how well the exponents are known"
    for name in law.predictors:
        low, high = law.ci95.get(name, (0.0, 0.0))
        ratio = DECADE ** (high - low)
        if ratio > RATIO:
            return (
                f"the exponent of {name} has a 95 % interval of [{low:.3g}, {high:.3g}]: over a "
                f"decade of {name} its ends leave a factor {ratio:.3g} of {law.swept}*"
            )
    return ""


def _far(at: Mapping[str, float], law: SweepLaw) -> list[str]:
    """A warning of every predictor that is far from all sweeps of the law."""
    warnings = []
    for name, value in at.items():
        seen = [sweep.at[name] for sweep in law.sweeps if sweep.optimum is not None]
        distance = max(value / max(seen), min(seen) / value)
        if distance > _ROUNDED * FAR:
            warnings.append(
                f"{name}={value:.3g} is {distance:.3g} times beyond the sweeps, more than {FAR:g}: "
                "the interval does not hold that the law itself may bend"
            )
    return warnings
