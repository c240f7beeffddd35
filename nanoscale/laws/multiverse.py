"""How much of a conclusion is choice: one table refitted under every defensible analysis.

The one idea: the exponent a of N* ~ C^a is a column, a row per choice of counting convention,
objective, delta, outlier rule and approach; what spreads within one choice, all others fixed, is
what that choice decides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from nanoscale.data.gauge import each
from nanoscale.errors import UserError
from nanoscale.laws.arrays import Array
from nanoscale.laws.envelope import Envelope, envelope
from nanoscale.laws.fit import fit_law
from nanoscale.laws.influence import USUAL_DELTA
from nanoscale.laws.isoflop import IsoFlop, isoflop
from nanoscale.laws.points import TableColumns, kept, numbers
from nanoscale.laws.record import Record

_APPROACHES = ("1", "2", "2 cubic", "3")
_CHOICES = ("convention", "approach", "objective", "delta", "dropped")
# an approach or objective brings its own objective and delta
MOVES_TOO = {"approach": ("objective", "delta"), "objective": ("delta",)}
WITH_DELTA = ("log-huber", "envelope")


@dataclass(frozen=True)
class Analysis:
    """One combination of choices, and the exponent that it gives; None: no fit, as `status` says.

    objective: of Approach 3 alone; delta: of an objective that has one.
    """

    convention: str
    approach: str
    objective: str | None
    delta: float | None
    dropped: int
    a: float | None = None
    status: str = ""

    def choices(self, without: Sequence[str]) -> tuple[object, ...]:
        """All but some."""
        return tuple(getattr(self, choice) for choice in _CHOICES if choice not in without)


@dataclass(frozen=True)
class Multiverse(Record):
    """Every analysis, the mean range of a over each choice, and the range of a over all."""

    rows: list[Analysis]
    spread: dict[str, float | None]  # all other choices equal; None where a never varies
    a: dict[str, float]  # lowest, median and highest


def multiverse(
    conventions: Mapping[str, TableColumns],
    loss: Iterable[float],
    *,
    approaches: Sequence[str] = _APPROACHES,
    objectives: Sequence[str] = ("log-huber", "lad", "mse"),
    deltas: Sequence[float] = (1e-4, 1e-3, 1e-2),
    dropped: Sequence[int] = (0, 1, 2, 5),
) -> Multiverse:
    """The exponent a under every combination, and its spread.

    conventions: name -> two of the columns N, D and C, as `parameter_counts` and `flops_per_token`
    name them. dropped: numbers of highest losses that are left out. A combination that has no fit
    stays, with the reason. Raises `UserError` where none has one.
    """
    losses = numbers(loss, "loss")
    for approach in approaches:
        if approach not in _APPROACHES:
            raise UserError(f"approach {approach!r}: choose of {', '.join(_APPROACHES)}")

    tables = {}
    for convention, columns in conventions.items():
        tables[convention] = {name: np.asarray(v, float) for name, v in columns.items()}
    analyses = []
    for convention, approach, count in product(tables, approaches, dropped):
        for objective, delta in _objectives(approach, objectives, deltas):
            analyses.append(Analysis(convention, approach, objective, delta, count))
    rows = []
    for choices in each(analyses, "analyses"):
        rows.append(_analysed(choices, tables[choices.convention], losses))
    exponents = [row.a for row in rows if row.a is not None]
    if not exponents:
        raise UserError(f"no combination has a fit; the first says: {rows[0].status}")

    spread = {choice: _spread(rows, choice) for choice in _CHOICES}
    lowest, median, highest = np.quantile(exponents, [0, 0.5, 1]).tolist()
    return Multiverse(rows, spread, {"lowest": lowest, "median": median, "highest": highest})


def _objectives(
    approach: str, objectives: Sequence[str], deltas: Sequence[float]
) -> list[tuple[str | None, float | None]]:
    """What an approach is fitted by: each objective, at each delta where it has one."""
    if approach != "3":
        return [(None, None)]
    pairs: list[tuple[str | None, float | None]] = []
    for objective in objectives:
        has = deltas if objective in WITH_DELTA else [None]
        pairs += product([objective], has)
    return pairs


def _analysed(choices: Analysis, columns: Mapping[str, Array], loss: Array) -> Analysis:
    """The same, with what comes of it."""
    keep = kept(loss, choices.dropped)
    columns = {name: values[keep] for name, values in columns.items()}
    try:
        a, status = _exponent(choices, columns, loss[keep])
    except UserError as e:
        return replace(choices, status=str(e))
    return replace(choices, a=a, status=status)


def _exponent(choices: Analysis, columns: Mapping[str, Array], loss: Array) -> tuple[float, str]:
    """a, and how sound it is."""
    if choices.objective is not None:
        delta = choices.delta or USUAL_DELTA
        fit = fit_law(columns, loss, objective=choices.objective, delta=delta, resamples=0)
        return fit.exponents["a"], fit.status
    if choices.approach == "1":
        line: Envelope | IsoFlop = envelope(columns, loss, resamples=0)
    else:
        degree = 3 if choices.approach == "2 cubic" else 2
        line = isoflop(columns, loss, degree=degree, resamples=0)
    return line.exponents["a"], "; ".join(line.warnings) or "converged"


def _spread(rows: Sequence[Analysis], choice: str) -> float | None:
    """Mean range of a over one choice with all others equal; None where it never varies."""
    moving = (choice, *MOVES_TOO.get(choice, ()))
    groups = defaultdict(list)
    for row in rows:
        if row.a is not None:
            others = row.choices(without=moving)
            groups[others].append(row.a)
    ranges = []
    for values in groups.values():
        if len(values) > 1:
            ranges.append(np.ptp(values))
    if not ranges:
        return None
    return float(np.mean(ranges))
