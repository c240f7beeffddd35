"""What a table of runs is that a law cannot be fitted to, or that changes what the fit says.

The one idea: a fault that makes the answer wrong is refused in one line; one that may be meant is
said in one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from nanoscale.errors import UserError, counted, cut, one_of
from nanoscale.experiments.tables import column

if TYPE_CHECKING:
    from pandas import DataFrame

    from nanoscale.laws.arrays import Array, Index

WITH_UNIT = re.compile(r"(\d+\.?\d*|\.\d+)\s*([kKmMbBtT])")
UNITS = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
SMALL, LARGE = 1e4, 1e6  # counts below the one beside counts above the other are in millions
DECIMALS_OF_SEEDS = 6  # of losses: equal rows of fewer may be seeds
FEW_VALUES, SEVERAL = 10, 3  # of a column that parts experiments; rows of each
ONE_EXPERIMENT = 1e-3  # at which residuals of one experiment pass for several
ROUNDING_ALONE = 1e-7  # sd: below, rounding is all there is
GOES_WITH = 0.05  # at which values of a column go with a predictor
RISING = 0.5  # rank correlation of an accuracy with the scale


# -- which rows -----------------------------------------------------------------------------------
def where(table: DataFrame, text: str) -> DataFrame:
    """The rows where COLUMN=VALUE, or several with commas; `UserError` where there are none."""
    for condition in text.split(","):
        name, equals, value = condition.partition("=")
        if not equals:
            raise UserError(f"--where={text}: expected COLUMN=VALUE, as in --where=dataset=c4")
        column("where", name, table)
        cells = [_plain(cell) for cell in table[name]]
        same = [cell == _plain(value) for cell in cells]
        if not any(same):
            there = one_of(sorted(set(map(str, cells)))[:FEW_VALUES])
            raise UserError(f"--where={text}: no row has it; {name} is {cut(there, 200)}")
        table = table[same]
    return table


def parts(table: DataFrame, name: str) -> dict[str, DataFrame]:
    """Value -> its rows, of each value of a column."""
    column("by", name, table)
    cells = [_plain(cell) for cell in table[name]]
    return {str(value): table[[c == value for c in cells]] for value in dict.fromkeys(cells)}


def _plain(cell: object) -> object:
    """A cell as it is compared: 64, 64.0 and `64` are one value."""
    try:
        number = float(str(cell))
    except ValueError:
        return str(cell)
    return f"{number:g}" if math.isfinite(number) else str(cell)


# -- columns --------------------------------------------------------------------------------------
def check_columns(columns: Mapping[str, str]) -> None:
    """`UserError` where one column is named twice, or the loss is an accuracy by its name."""
    seen: dict[str, str] = {}
    for key, name in columns.items():
        if key == "group":
            continue
        if name in seen:
            raise UserError(f"--{seen[name]} and --{key} both name {name}: give two columns")
        seen[name] = key
    if re.search(r"(^|[^a-z])acc(uracy)?($|[^a-z])", columns["loss"].lower()):
        raise UserError(
            f"--loss={columns['loss']}: an accuracy rises with scale, and these laws fall; give "
            "the column of a loss"
        )


def with_numbers(frame: DataFrame, columns: Mapping[str, str]) -> tuple[DataFrame, list[str]]:
    """The frame with cells such as 125M as numbers, where a whole column is so written; notes."""
    notes = []
    for key, name in columns.items():
        if key in ("loss", "group"):
            continue
        matches = [WITH_UNIT.fullmatch(str(cell).strip()) for cell in frame[name]]
        found = [match for match in matches if match is not None]
        if len(found) < len(matches) or not found:
            continue
        numbers = [float(match[1]) * UNITS[match[2].lower()] for match in found]
        notes.append(f"{name}: {found[0][0]} is read as {numbers[0]:g}")
        frame = frame.assign(**{name: numbers})
    return frame, notes


def check_values(
    columns: Mapping[str, str], values: Mapping[str, Sequence[float]], loss: Sequence[float]
) -> None:
    """`UserError` for counts in millions or billions beside others that are not, or accuracies."""
    import numpy as np

    for name, counts in values.items():
        others = [min(other) for key, other in values.items() if key != name]
        if others and max(counts) < SMALL and min(others) > LARGE:
            raise UserError(
                f"--{name.lower()}={columns[name.lower()]}: {min(counts):g} to {max(counts):g} "
                f"beside {min(others):.3g} and more looks like millions or billions: write them "
                "out, or with their unit, as in 125M"
            )
    if max(loss) > 1 or len(loss) < SEVERAL:
        return
    scale = np.sum([np.log(counts) for counts in values.values()], axis=0)
    ranks = [np.argsort(np.argsort(column)) for column in (loss, scale)]
    if np.corrcoef(ranks[0], ranks[1])[0, 1] > RISING:
        raise UserError(
            f"--loss={columns['loss']}: values of 0 to 1 that rise with scale look like an "
            "accuracy, and these laws fall; give the column of a loss"
        )


# -- rows -----------------------------------------------------------------------------------------
def once(frame: DataFrame, columns: Mapping[str, str]) -> tuple[DataFrame, list[str]]:
    """Without rows that repeat another's numbers to the last bit, and a note on them."""
    losses = [str(cell).partition(".")[2] for cell in frame[columns["loss"]]]
    if not any(len(decimals) > DECIMALS_OF_SEEDS for decimals in losses):
        return frame, []
    names = [name for key, name in columns.items() if key != "group"]
    twins = frame.duplicated(names)
    if not twins.any():
        return frame, []
    rows = counted(int(twins.sum()), "row")
    return frame[~twins], [f"{rows} equal to others to the last bit: such twins count once"]


def experiments_in(
    frame: DataFrame, read: Collection[str], residual: Array, x: Array, unit: Index
) -> list[str]:
    """A warning of each column by whose values the residuals (n,) fall into groups.

    read: columns of the law, which may. x: (P, n) predictors; a column that goes with one says
    nothing. unit: (n,) what is independent: the point, or its run.
    """
    import numpy as np

    first, of_unit = np.unique(unit, return_index=True, return_inverse=True)[1:]
    means = np.bincount(of_unit, residual) / np.bincount(of_unit)
    found = []
    for name in map(str, frame.columns):
        cells = np.array([str(cell) for cell in frame[name]])[first]
        value = np.unique(cells, return_inverse=True)[1]
        counts = np.bincount(value)
        if name in read or not 1 < len(counts) <= FEW_VALUES or counts.min() < SEVERAL:
            continue
        if min(_chance(predictor[first], value) for predictor in x) > GOES_WITH:
            found.append((_chance(means, value), name))
    return [
        f"residuals fall into groups by {name} (p = {p:.1g}): the table may be several "
        f"experiments; fit each with --by={name}"
        for p, name in sorted(found)
        if p * len(found) < ONE_EXPERIMENT
    ]


def check_sweeps(
    frame: DataFrame, columns: Mapping[str, str], loss: Array, place: Sequence[Sequence[float]]
) -> None:
    """`UserError` for a column that varies within sweeps and moves their losses (n,).

    place: scale and what was swept, n of each; runs that share them differ in that column alone.
    """
    import numpy as np

    cell = np.unique(np.array(place), axis=1, return_inverse=True)[1].ravel()
    off = np.log(loss)
    off -= (np.bincount(cell, off) / np.bincount(cell))[cell]
    shared = np.bincount(cell)[cell] > 1
    for name in map(str, frame.columns):
        cells = np.array([str(value) for value in frame[name]])[shared]
        values, value = np.unique(cells, return_inverse=True)
        if name in columns.values() or not 1 < len(values) <= FEW_VALUES:
            continue
        if np.bincount(value).min() >= SEVERAL and _chance(off[shared], value) < ONE_EXPERIMENT:
            raise UserError(
                f"{name} varies within sweeps ({one_of(values.tolist())}) and moves their losses: "
                f"take one value, as in --where={name}={values[0]}"
            )


def _chance(numbers: Array, value: Index) -> float:
    """That groups of one kind of numbers differ so; 1 where rounding is all there is."""
    from nanoscale.laws.structure import chance_of_levels

    return 1.0 if numbers.std() < ROUNDING_ALONE else chance_of_levels(numbers, value)
