"""How much of a conclusion is choice: one table refitted under every defensible analysis.

The one idea: the exponent a of N* ~ C^a is a column, a row per choice of counting convention,
objective, delta, outlier rule and approach; what spreads within one choice, all others fixed, is
what that choice decides.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from nanoscale.errors import UserError
from nanoscale.laws import isoflop
from nanoscale.laws.fit import fit_law
from nanoscale.laws.points import kept, numbers
from nanoscale.store.files import plain

APPROACHES = ("1", "2", "2 cubic", "3")
CHOICES = ("convention", "approach", "objective", "delta", "dropped")
WITH_DELTA = ("log-huber", "envelope")


def multiverse(
    conventions: Mapping[str, Mapping[str, Iterable[float]]],
    loss: Iterable[float],
    *,
    approaches: Sequence[str] = APPROACHES,
    objectives: Sequence[str] = ("log-huber", "lad", "mse"),
    deltas: Sequence[float] = (1e-4, 1e-3, 1e-2),
    dropped: Sequence[int] = (0, 1, 2, 5),
) -> dict[str, object]:
    """The exponent a under every combination, and its spread.

    conventions: name -> two of the columns N, D and C, as `parameter_counts` and `flops_per_token`
    name them. Objectives and deltas are of Approach 3 alone; delta, of those that have one. A
    combination that has no fit stays, with the reason. Returns `rows` (the choices, a, status),
    `a` (lowest, median, highest of those with one), and `spread`: for every choice, the mean over
    all else of the largest minus the smallest a.
    """
    loss = numbers(loss, "loss")
    unknown = [a for a in approaches if a not in APPROACHES]
    if unknown:
        raise UserError(f"approach {unknown[0]!r}: choose of {', '.join(APPROACHES)}")
    rows = [
        _row(convention, dict(columns), loss, approach, objective, delta, k)
        for (convention, columns), approach, k in itertools.product(
            conventions.items(), approaches, dropped
        )
        for objective, delta in _objectives(approach, objectives, deltas)
    ]
    found = [row["a"] for row in rows if row["a"] is not None]
    if not found:
        raise UserError(f"no combination has a fit; the first says: {rows[0]['status']}")
    return plain(
        {
            "rows": rows,
            "spread": {choice: _spread(rows, choice) for choice in CHOICES},
            "a": dict(
                zip(
                    ("lowest", "median", "highest"),
                    np.quantile(found, [0, 0.5, 1]).tolist(),
                    strict=True,
                )
            ),
        }
    )


def _objectives(approach, objectives, deltas) -> list[tuple[str | None, float | None]]:
    if approach != "3":
        return [(None, None)]
    return [
        (name, delta) for name in objectives for delta in (deltas if name in WITH_DELTA else [None])
    ]


def _row(convention, columns, loss, approach, objective, delta, k) -> dict[str, object]:
    keep = kept(loss, k)
    some = {name: np.asarray(values, float)[keep] for name, values in columns.items()}
    row = {
        "convention": convention,
        "approach": approach,
        "objective": objective,
        "delta": delta,
        "dropped": k,
    }
    try:
        if approach == "3":
            fit = fit_law(some, loss[keep], objective=objective, delta=delta or 1e-3, resamples=0)
            return row | {"a": fit.exponents["a"], "status": fit.status}
        if approach == "1":
            found = isoflop.envelope(some, loss[keep], resamples=0)
        else:
            degree = 3 if approach == "2 cubic" else 2
            found = isoflop.isoflop(some, loss[keep], degree=degree, resamples=0)
    except UserError as e:
        return row | {"a": None, "status": str(e)}
    return row | {"a": found.exponents["a"], "status": "; ".join(found.warnings) or "converged"}


def _spread(rows: Sequence[Mapping[str, object]], choice: str) -> float | None:
    """Mean range of a over one choice with all others equal; None where it never varies."""
    groups: dict[tuple, list[float]] = {}
    for row in rows:
        if row["a"] is not None:
            rest = tuple(row[c] for c in CHOICES if c not in _moving(choice))
            groups.setdefault(rest, []).append(row["a"])
    ranges = [max(values) - min(values) for values in groups.values() if len(values) > 1]
    return float(np.mean(ranges)) if ranges else None


def _moving(choice: str) -> tuple[str, ...]:
    """What changes with a choice: an approach or objective brings its own objective and delta."""
    return {
        "approach": ("approach", "objective", "delta"),
        "objective": ("objective", "delta"),
    }.get(choice, (choice,))
