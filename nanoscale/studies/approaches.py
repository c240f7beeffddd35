"""What `nanoscale fit` says beyond its fit: Approaches 1 and 2, profiles, influence, the
multiverse.

The one idea: each answer is a record, and what is printed and drawn is made from it. An approach
that the table does not allow stays in the record, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nanoscale.errors import UserError
from nanoscale.laws import influence_of, isoflop, predict, profile_law
from nanoscale.laws.envelope import envelope
from nanoscale.laws.multiverse import multiverse
from nanoscale.laws.points import kept, numbers
from nanoscale.store.files import plain

if TYPE_CHECKING:
    from nanoscale.laws import LawFit

DEGREES = {"parabola": 2, "cubic": 3}
MULTIVERSE = {
    "objectives": ("log-huber", "lad", "mse"),
    "deltas": (1e-4, 1e-3, 1e-2),
    "dropped": (0, 1, 2, 5),
}
CURVE = 61  # points of a line that is drawn
Columns = Mapping[str, Sequence[float]]


# -- Approaches 1 and 2 ---------------------------------------------------------------------------
def isoflop_record(
    fit: LawFit, columns: Columns, loss: Sequence[float], drop_worst: int = 0
) -> dict[str, Any]:
    """Approaches 1 (`envelope`) and 2 (`parabola`, `cubic`) beside `fit`, Approach 3.

    Each has `exponents` and `ci95`, or the `error` for which it has none. Those of Approach 2 also
    hold the `bias` that the fitted surface predicts on this grid, at ten times the largest budget,
    and what is left without it (`corrected`); each valley its `rows` of the points that were kept
    and its curve. The highest losses are left out first, as in the fit.
    """
    keep = kept(numbers(loss, "loss"), drop_worst)
    columns = {name: np.asarray(values, float)[keep] for name, values in columns.items()}
    loss = np.asarray(loss, float)[keep]
    record = {"envelope": _tried(lambda: envelope(columns, loss).to_json())}
    for name, degree in DEGREES.items():
        record[name] = _tried(lambda degree=degree: _approach_2(fit, columns, loss, degree))
    return plain(
        record | {"surface": {"exponents": fit.exponents, "ci95": fit.ci95, "status": fit.status}}
    )


def _tried(made: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return made()
    except UserError as e:
        return {"error": str(e)}


def _approach_2(fit: LawFit, columns: Columns, loss: np.ndarray, degree: int) -> dict[str, Any]:
    found = isoflop.isoflop(columns, loss, degree=degree)
    grid, record = found.grid, found.to_json()
    curves = grid.coefficients(loss[None])
    for valley, rows, curve in zip(record["valleys"], grid.rows, curves, strict=True):
        known = np.isfinite(curve).all()
        valley |= {
            "rows": rows.tolist(),
            "curve": None
            if not known
            else {"centre": float(grid.x[rows].mean()), "coefficients": curve[0].tolist()},
        }
    used = [v["C"] for v in record["valleys"] if v["used"]]
    c = np.geomspace(min(used) / 1.5, predict.FAR * max(used), CURVE)
    at = [found.optimum(value) for value in c]
    ends = [best.N_ci95 or [best.N] * 2 for best in at]
    record["line"] = {
        "C": c.tolist(),
        "N": [best.N for best in at],
        "lo": [low for low, _ in ends],
        "hi": [high for _, high in ends],
    }
    if fit.exponents:
        largest = float((6 * grid.N * grid.D).max())
        record["bias"] = isoflop.bias(found, fit, predict.FAR * largest).to_json()
    return record


def isoflop_lines(record: Mapping[str, Any]) -> list[str]:
    """What it says, for a terminal."""
    found = [
        "Approach 1: "
        + (
            record["envelope"].get("error")
            or f"{_a(record['envelope'])}, {len(record['envelope']['runs'])} runs on the envelope"
        )
    ]
    for name in DEGREES:
        one = record[name]
        if "error" in one:
            found.append(f"Approach 2, {name}: {one['error']}")
            continue
        flags = [flag for v in one["valleys"] for flag in v["flags"]]
        counted = ", ".join(f"{flags.count(flag)} {flag}" for flag in dict.fromkeys(flags))
        found.append(
            f"Approach 2, {name}: {_a(one)}, {sum(v['used'] for v in one['valleys'])} of "
            f"{len(one['valleys'])} budgets{f' ({counted})' if counted else ''}"
        )
        lost = one["lost"]
        if lost > isoflop.MOST_LOST * one["resamples"]:
            found.append(
                f"  {lost} of {one['resamples']} resamples have a budget without a minimum"
                ": flat valleys beside the noise"
            )
        found += _bias_lines(one.get("bias"))
    status = record["surface"]["status"]
    doubt = "" if status == "converged" else f" (the surface is {status})"
    return [*found, f"Approach 3: {_a(record['surface'])}{doubt}"]


def _bias_lines(bias: Mapping[str, Any] | None) -> list[str]:
    if bias is None or bias["bias"]["N"] is None:
        return [
            "  its bias is not known: "
            + "; ".join((bias or {}).get("warnings") or ["the law has no optimum"])
        ]
    a, n = (round(v, 3) + 0.0 for v in (bias["bias"]["a"], bias["bias"]["N"]))
    return [
        f"  on the fitted surface this grid errs by {a:+.3f} in a and {100 * n:+.1f} % in N* "
        f"at {bias['C']:.2g} FLOPs; corrected: a {bias['corrected']['a']:.3f}, N* "
        f"{bias['corrected']['N']:.3g}",
        *(f"  {warning}" for warning in bias["warnings"]),
    ]


def _a(record: Mapping[str, Any]) -> str:
    if "a" not in record["exponents"]:
        return "no exponent a"
    ends = record["ci95"].get("a")
    return f"a {record['exponents']['a']:.3f}" + (
        f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else ""
    )


# -- what one parameter, and one run, may do ------------------------------------------------------
def profile(
    fit: LawFit,
    columns: Columns,
    loss: Sequence[float],
    *,
    drop_worst: int = 0,
    groups: Sequence[str] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Profile intervals as a record, and its lines; every point's (or group's) noise its own."""
    found = profile_law(fit, columns, loss, drop_worst=drop_worst, groups=groups, noise="own")
    return found.to_json(), [
        "profile intervals, 95 %:",
        *found.text(),
        *(f"  {warning}" for warning in found.warnings),
    ]


def influence(
    fit: LawFit,
    columns: Columns,
    loss: Sequence[float],
    *,
    drop_worst: int = 0,
    groups: Sequence[str] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """What leaving out each point (or group) does as a record, and its line."""
    found = influence_of(fit, columns, loss, drop_worst=drop_worst, groups=groups)
    return found.to_json(), [f"influence: {found.text()}"]


# -- the multiverse -------------------------------------------------------------------------------
def multiverse_record(
    conventions: Mapping[str, Columns],
    loss: Sequence[float],
    *,
    delta: float = 1e-3,
    drop_worst: int = 0,
) -> dict[str, Any]:
    """The exponent a under every choice, the fit's own delta and outliers among them."""
    choices = {
        key: sorted({*values}) if key != "objectives" else values
        for key, values in (
            MULTIVERSE
            | {
                "deltas": (*MULTIVERSE["deltas"], delta),
                "dropped": (*MULTIVERSE["dropped"], int(drop_worst)),
            }
        ).items()
    }
    choices["dropped"] = [k for k in choices["dropped"] if k < len(loss)]
    record = multiverse(conventions, loss, **choices).to_json()
    return record | {"conventions": list(conventions)}


def multiverse_lines(record: Mapping[str, Any]) -> list[str]:
    """What it says, for a terminal."""
    without = sum(row["a"] is None for row in record["rows"])
    a = record["a"]
    moved = sorted(
        ((value, key) for key, value in record["spread"].items() if value is not None), reverse=True
    )
    return [
        f"multiverse: {len(record['rows'])} analyses"
        f"{f', {without} without a fit' if without else ''}: a from {a['lowest']:.3f} to "
        f"{a['highest']:.3f}, median {a['median']:.3f}",
        "  all else equal a moves by " + ", ".join(f"{v:.3f} with {k}" for v, k in moved),
    ]
