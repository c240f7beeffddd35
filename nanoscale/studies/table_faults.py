"""What a table of runs is that a law cannot be fitted to, or that changes what the fit says.

The one idea: a fault that makes the answer wrong is refused in one line; one that may be meant is
said in one.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from nanoscale.errors import UserError, counted, cut, one_of
from nanoscale.experiments.tables import column, row_of_frame

if TYPE_CHECKING:
    from pandas import DataFrame

    from nanoscale.laws.arrays import Array, Index

WITH_UNIT = re.compile(r"(\d+\.?\d*|\.\d+)\s*([kKmMbBtT])")
UNITS = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
SMALL, LARGE = 1e4, 1e6  # counts below the one beside counts above the other are in millions
OUR_COUNTS = ("total_params", "tokens_seen")  # whose unit is known, of tiny runs too
LEAST_COUNTS = {"N": 1e3, "D": 1e4}  # parameters of the smallest run, tokens of the longest
SCALE_WORDS = {
    "n": "params?|parameters?",
    "d": "tok(en)?s?",
    "c": "flops?|compute",
}  # beside n, d and c
OFF_COMPUTE = 100.0  # times 6 N D, either way
FEW_TOKENS, MANY_TOKENS = 0.1, 2e3  # per parameter, of half the runs
MOST_NATS = 13.0  # of a guess among 440,000 tokens
FEW_VALUES, SEVERAL = 10, 3  # of a column that parts experiments; rows of each
NAMING = "seed|run|name"  # in the names of columns that tell runs apart
DECIMALS_OF_SEEDS = 6  # of losses: among seeds, equal ones of fewer are no copies
MOST_GROUPS = 50
OF_COURSES = 1e-9  # where nothing but N tells runs; the Chinchilla points have 1e-6
FAR_OFF, OFF_AT_ALL = 10.0, 0.01  # times the usual residual, and of ln L
CLIPPED = 3.0  # usual residuals
MEDIAN_OF_NORMAL = 0.6745  # of its size, in standard deviations
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
    if max(map(cells.count, {*cells})) < SEVERAL:
        raise UserError(f"--by={name}: no value of it has {SEVERAL} rows, so none has a law")
    return {str(value): table[[c == value for c in cells]] for value in dict.fromkeys(cells)}


def _plain(cell: object) -> object:
    """A cell as it is compared: 64, 64.0 and `64` are one value."""
    try:
        number = float(str(cell))
    except ValueError:
        return str(cell)
    return f"{number:g}" if math.isfinite(number) else str(cell)


# -- columns --------------------------------------------------------------------------------------
def loss_of(table: DataFrame) -> str:
    """The column called `loss`, or the only one of numbers that has it in its name.

    Raises:
        UserError: there is none, or there are several.
    """
    names = [name for name in map(str, table.columns) if "loss" in name.lower()]
    numbered = [name for name in names if _has_numbers(table, name)]
    found = ["loss"] if "loss" in numbered else numbered
    if len(found) == 1:
        return found[0]
    guess = shlex.quote([*numbered, *names, "final_loss"][0])
    raise UserError(f"which column is the loss? say it, as in --loss={guess}")


def scales_in(table: DataFrame) -> dict[str, str]:
    """n, d or c -> the first column of numbers that is so called."""
    found: dict[str, str] = {}
    for name in map(str, table.columns):
        keys = [
            key for key in SCALE_WORDS if name.lower() == key or _is_word(SCALE_WORDS[key], name)
        ]
        if len(keys) == 1 and not _is_word("per", name) and _has_numbers(table, name):
            found.setdefault(keys[0], name)
    return {key: found[key] for key in SCALE_WORDS if key in found}


def _has_numbers(table: DataFrame, name: str) -> bool:
    """Whether all its cells that are not empty are numbers, with a unit or without."""
    import pandas as pd

    cells = table[name].dropna().astype(str).str.strip()
    numbers = pd.to_numeric(cells, errors="coerce").notna()
    return not cells.empty and bool((numbers | cells.str.fullmatch(WITH_UNIT.pattern)).all())


def check_columns(columns: Mapping[str, str]) -> None:
    """`UserError` where one column is named twice, or one is by its name another thing."""
    columns = {key.lower(): name for key, name in columns.items()}
    seen: dict[str, str] = {}
    for key, name in columns.items():
        if key == "group":
            continue
        if name in seen:
            raise UserError(f"--{seen[name]} and --{key} both name {name}: give two columns")
        seen[name] = key
    check_loss(columns["loss"])
    check_counts(columns)


def check_counts(columns: Mapping[str, str]) -> None:
    """`UserError` where N or D is by its name another thing."""
    of_n, of_d = (columns.get(key, "").lower() for key in ("n", "d"))
    if re.search("tok", of_n) and not re.search("param", of_n):
        raise UserError(f"--n={columns['n']}: N is the parameters: are --n and --d swapped?")
    if re.search("param", of_d) and not re.search("tok", of_d):
        raise UserError(f"--d={columns['d']}: D is the tokens: are --n and --d swapped?")
    if of_n and re.search(r"(^|_)(steps?|iters?|iter_num|max_iters|updates?|epochs?)$", of_d):
        raise UserError(
            f"--d={columns['d']}: D is the tokens of a run, of which C = 6 N D: give a column of "
            "updates times their tokens"
        )


def check_loss(name: str, option: str = "--loss") -> None:
    """`UserError` where the column is no loss by its name."""
    if _is_word("acc|accuracy", name):
        raise UserError(
            f"{option}={name}: an accuracy rises with scale, and these laws fall; give "
            "the column of a loss"
        )
    if _is_word("ppl|perplexity", name):
        raise UserError(
            f"{option}={name}: a perplexity is exp(loss), of which nothing here is in nats: give "
            "its logarithm"
        )


def doubts(
    columns: Mapping[str, str], values: Mapping[str, Sequence[float]], loss: Sequence[float]
) -> list[str]:
    """Warnings of numbers that may be meant, and seldom are."""
    import numpy as np

    said = []
    if _is_word("train|training", columns["loss"]):
        said.append(
            f"{columns['loss']} looks like a loss of training, which tells nothing of held-out "
            "text where data repeat or the model is fine-tuned: give one of validation"
        )
    median = float(np.median(loss))
    if median > MOST_NATS:
        said.append(
            f"half of the losses are above {median:.3g}, which is no loss in nats per token: of "
            "perplexities give the logarithm"
        )
    if len({"N", "D", "C"} & values.keys()) == 2:
        said += odd_ratio({name: np.array(counts) for name, counts in values.items()})
    return said


def odd_ratio(values: Mapping[str, Array]) -> list[str]:
    """A warning of tokens per parameter that hardly any run has; values: two of N, D and C."""
    import numpy as np

    from nanoscale.laws.points import with_compute

    known = with_compute(values)
    ratio = known["D"] / known["N"]
    half = float(np.median(ratio))
    if FEW_TOKENS < half < MANY_TOKENS:
        return []
    return [
        f"half of the runs have {'fewer' if half < 1 else 'more'} than {half:.2g} tokens per "
        f"parameter ({ratio.min():.2g} to {ratio.max():.2g}): are N, D and C in one unit, and "
        "not swapped?"
    ]


def odd_compute(frame: DataFrame, columns: Mapping[str, str], ours: Mapping[str, str]) -> list[str]:
    """A warning of FLOPs far from 6 N D, where a frame has numbers of all three in our columns."""
    import numpy as np
    import pandas as pd

    names = [columns[key] for key in SCALE_WORDS]
    if names != [ours[key] for key in SCALE_WORDS] or not {*names} <= {*frame.columns}:
        return []
    n, d, c = (pd.to_numeric(frame[name], errors="coerce") for name in names)
    ratio = np.array(c / (6 * n * d), float)
    half = float(np.median(ratio))
    if not 0 < half < math.inf or 1 / OFF_COMPUTE < half < OFF_COMPUTE:
        return []
    return [
        f"half of the runs have {names[2]} of {half:.2g} times 6 N D and more, where N is "
        f"{names[0]} and D {names[1]}: are all three in one unit, FLOPs not in PFLOPs?"
    ]


def _is_word(pattern: str, name: str) -> bool:
    return re.search(f"(^|[^a-z])({pattern})($|[^a-z])", name.lower()) is not None


def with_numbers(frame: DataFrame, columns: Mapping[str, str]) -> tuple[DataFrame, list[str]]:
    """The frame with cells such as 125M as numbers, where a whole column is so written; notes."""
    notes = []
    for key, name in columns.items():
        if key in ("loss", "group"):
            continue
        written = frame[name].dropna()
        matches = [WITH_UNIT.fullmatch(str(cell).strip()) for cell in written]
        found = [match for match in matches if match is not None]
        if len(found) < len(matches) or not found:
            continue
        numbers = [float(match[1]) * UNITS[match[2].lower()] for match in found]
        notes.append(f"{name}: {found[0][0]} is read as {numbers[0]:g}")
        following = iter(numbers)
        cells = [next(following) if there else math.nan for there in frame[name].notna()]
        frame = frame.assign(**{name: cells})
    return frame, notes


def check_values(
    columns: Mapping[str, str], values: Mapping[str, Sequence[float]], loss: Sequence[float]
) -> None:
    """`UserError` for counts in millions or billions, or accuracies."""
    check_units(columns, values)
    if max(loss) <= 1 and len(loss) >= SEVERAL:
        _check_falls(columns["loss"], values, loss)


def check_units(columns: Mapping[str, str], values: Mapping[str, Sequence[float]]) -> None:
    """`UserError` for counts in millions or billions, by themselves or by the others."""
    for name, counts in values.items():
        others = [min(other) for key, other in values.items() if key != name]
        if not others:
            continue
        # the smallest of N and the largest of D: of models and runs that no one would train
        few = min(counts) if name == "N" else max(counts)
        beside = ""
        if max(counts) < SMALL and min(others) > LARGE:
            beside = f" beside {min(others):.3g} and more"
        column = columns[name.lower()]
        ours = column in OUR_COUNTS
        if beside or (few < LEAST_COUNTS.get(name, 0) and not ours):
            raise UserError(
                f"--{name.lower()}={column}: {min(counts):g} to {max(counts):g}"
                f"{beside} looks like millions or billions: write them out, or with their unit, as "
                "in 125M"
            )


def _check_falls(name: str, values: Mapping[str, Sequence[float]], loss: Sequence[float]) -> None:
    import numpy as np

    scale = np.sum([np.log(counts) for counts in values.values()], axis=0)
    ranks = [np.argsort(np.argsort(column)) for column in (loss, scale)]
    if np.corrcoef(ranks[0], ranks[1])[0, 1] > RISING:
        raise UserError(
            f"--loss={name}: values of 0 to 1 that rise with scale look like an "
            "accuracy, and these laws fall; give the column of a loss"
        )


# -- rows -----------------------------------------------------------------------------------------
def called(frame: DataFrame, columns: Mapping[str, str]) -> list[list[float]]:
    """A number for each text, of each column of seeds, runs or names beside those of numbers."""
    import numpy as np

    read = [name for key, name in columns.items() if key != "group"]
    names = [name for name in map(str, frame.columns) if _is_word(NAMING, name)]
    texts = [list(map(str, frame[name])) for name in names if name not in read]
    return [np.unique(cells, return_inverse=True)[1].tolist() for cells in texts]


def twins(columns: Sequence[Sequence[float]], loss: Sequence[float]) -> list[bool]:
    """Whether each row repeats an earlier one: its numbers, to the rounding of a float32.

    Seeds end apart: rows of equal columns are copies where none of them has another loss.
    """
    import numpy as np

    mantissa, exponent = np.frexp(np.array([*columns, loss], float))
    rounded = np.ldexp(mantissa.astype(np.float32).astype(float), exponent)  # beyond its range too
    row = np.unique(rounded[:-1], axis=1, return_inverse=True)[1].ravel()
    first = np.unique(rounded, axis=1, return_index=True)[1]
    copies = np.ones(len(row), bool)
    copies[first] = False
    seeds = len(first) > row.max() + 1
    full = any(len(str(value).partition(".")[2]) > DECIMALS_OF_SEEDS for value in loss)
    return copies.tolist() if full or not seeds else [False] * len(row)


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
    scales = np.log([predictor[first] for predictor in x])
    found = []
    for name in map(str, frame.columns):
        cells = np.array([str(cell) for cell in frame[name]])[first]
        value = np.unique(cells, return_inverse=True)[1]
        counts = np.bincount(value)
        if name in read or not 1 < len(counts) <= MOST_GROUPS or counts.min() < SEVERAL:
            continue
        if min(_chance(scale, value) for scale in scales) > GOES_WITH:
            found.append((_chance_of_parts(means, scales, value), name))
    return [
        f"residuals fall into groups by {name} (p = {p:.1g}): the table may be several "
        f"experiments; fit each with --by={name}"
        for p, name in sorted(found)
        if p * len(found) < ONE_EXPERIMENT
    ]


def _chance_of_parts(residual: Array, scales: Array, value: Index) -> float:
    """That rows (n,) of one experiment differ so in level or slope by `value`; of both, doubled.

    F tests beside a quadratic in the scales (P, n), which holds what a fit takes from the groups
    and where the law is amiss. A residual beyond three usual ones counts as three.
    """
    import numpy as np

    if residual.std() < ROUNDING_ALONE:
        return 1.0
    most = CLIPPED * np.median(np.abs(residual)) / MEDIAN_OF_NORMAL
    clipped = residual.clip(-most, most)
    centred = scales - scales.mean(axis=1, keepdims=True)
    smooth = [np.ones(len(residual)), *centred, *centred**2, centred.prod(axis=0)]
    levels = list((value == np.arange(value.max() + 1)[:, None]).astype(float))
    slopes = [level * scale for level in levels for scale in centred]
    chances = [_f_test(clipped, smooth, more) for more in (levels, levels + slopes)]
    return min(1.0, 2 * min(chances))


def _f_test(numbers: Array, columns: list[Array], more: list[Array]) -> float:
    """The chance that columns (n,) which say nothing lower the squares left by as much."""
    import numpy as np
    from scipy.special import fdtrc

    left, free = [], []
    for beside in (columns, columns + more):
        matrix = np.array(beside).T
        solution, _, rank, _ = np.linalg.lstsq(matrix, numbers)
        left.append(float(((numbers - matrix @ solution) ** 2).sum()))
        free.append(len(numbers) - int(rank))
    tested = free[0] - free[1]
    if free[1] < SEVERAL or tested < 1 or left[1] <= 0:
        return 1.0
    return float(fdtrc(tested, free[1], (left[0] - left[1]) / tested / (left[1] / free[1])))


def courses(points: Mapping[str, Array], residual: Array) -> list[str]:
    """A warning where points (n,) of one size go together, though the rows name no run of them."""
    from nanoscale.laws.structure import find_runs, size_of

    if not {"N", "D"} <= points.keys():
        return []
    found = find_runs(points, residual, {"N": size_of(points["N"]).tolist()})
    if found is None or found.p_value > OF_COURSES:
        return []
    return [
        f"residuals of one N go together (p = {found.p_value:.1g}): where points are checkpoints "
        "of one run, name a column that says which, as in --group=run --resample=cluster"
    ]


def strays(frame: DataFrame, residual: Array, parameters: int) -> list[str]:
    """A warning of rows far off the law: residual (n,) of ln L, beyond any noise of the others.

    The usual residual is the median of those beyond the `parameters` that a law of so many goes
    through, as a normal's standard deviation.
    """
    import numpy as np

    off = np.abs(residual)
    if len(off) < 2 * parameters + SEVERAL:
        return []
    usual = float(np.median(np.sort(off)[parameters:])) / MEDIAN_OF_NORMAL
    far = np.flatnonzero(off > max(FAR_OFF * usual, OFF_AT_ALL))
    if not len(far) or len(far) > len(off) / SEVERAL:
        return []
    worst = far[off[far].argmax()]
    share = 100 * math.expm1(residual[worst])
    where = "above" if share > 0 else "below"
    others = f", and {counted(len(far) - 1, 'row')} more" if len(far) > 1 else ""
    return [
        f"{row_of_frame(frame.index[worst])} lies {abs(share):.3g} % {where} the law, beyond "
        f"{FAR_OFF:g} times what is usual{others}: is it a run like the others? leave it out of "
        "the table, or with --where"
    ]


def check_sweeps(
    frame: DataFrame,
    columns: Mapping[str, str],
    loss: Array,
    place: Sequence[Sequence[float]],
    remedy: str = "take one value, as in --where={}={}",
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
                + remedy.format(name, values[0])
            )


def _chance(numbers: Array, value: Index) -> float:
    """That groups of one kind of numbers differ so; 1 where rounding is all there is."""
    from nanoscale.laws.structure import chance_of_levels

    return 1.0 if numbers.std() < ROUNDING_ALONE else chance_of_levels(numbers, value)
