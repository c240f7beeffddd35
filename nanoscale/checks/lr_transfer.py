"""Does the best learning rate stay where it is as models grow? A verdict from an LR x size grid.

Three numbers are judged, each by its 95 % interval: the drift of the optimum (octaves per doubling
of size), its largest shift (octaves from the base size's) and the largest regret (nats lost by
training a size at the base's optimum). A check fails when its whole interval lies beyond the
tolerance, passes when the whole interval lies within, and is inconclusive otherwise.

The verdict is `inconclusive` when an optimum is not bracketed or there are fewer than 3 sizes; else
`fail` when a check fails, `pass` when all pass, and `inconclusive` otherwise. A loss of inf is a
diverged run: no optimum, and a bound of the curve. A loss of NaN is a run without a result.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from nanoscale.checks.drift import Grid, drift_of, interval
from nanoscale.checks.optimum import curve_of
from nanoscale.errors import UserError
from nanoscale.store.files import plain

SCHEMA = 1
SIZES_NEEDED = 3
MISFIT = 3.0  # residual over seed sd from which the curves are said to be no parabolas
MANY_SEEDS = 20  # a remedy that asks for more is none
NAMES = {"size": "size", "lr": "LR", "loss": "loss", "seed": "seed"}
DRIFT, SHIFT, REGRET = 0.25, 1.0, 0.02  # tolerances: octaves per doubling, octaves, nats
UNKNOWN = (math.nan, math.nan)
Rows = Sequence[Mapping[str, Any]]


def transfer_verdict(
    size: Iterable[float], lr: Iterable[float], loss: Iterable[float],
    seed: Iterable[object] | None = None, *, base: float | None = None, tolerance: float = DRIFT,
    max_shift: float = SHIFT, max_regret: float = REGRET, names: Mapping[str, str] = NAMES,
    resamples: int = 4000, rng_seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """The verdict on one (size, LR, loss) per run, as plain JSON types (schema 1).

    `seed` tells the runs of one size and LR apart; runs of one size with one seed share its shift.
    `base` is the size whose optimum is transferred, the smallest by default. `names` are how the
    columns are called. Raises `UserError` for runs that are no grid.
    """
    limits = {"drift": tolerance, "largest_shift": max_shift, "max_regret": max_regret}
    size, lr, loss, seed = _columns(size, lr, loss, seed, names, limits)
    done = ~np.isnan(loss)
    sizes = np.unique(size[done])
    base = float(sizes[0] if base is None else base)
    if base not in sizes:
        known = ", ".join(f"{s:g}" for s in sizes)
        raise UserError(f"base={base:g}: no run of that {names['size']}; there are {known}")
    curves = [
        curve_of(float(k), np.log2(lr[rows]), loss[rows], seed[rows])
        for k in sizes
        for rows in [done & (size == k)]
    ]
    rng = np.random.default_rng(rng_seed)
    grid = Grid.of(curves, int(np.searchsorted(sizes, base)), rng, resamples)
    rows, (*drift, scatter) = [size_row(grid, k) for k in range(len(curves))], drift_of(grid, rng)
    found = {
        "drift": drift,
        "largest_shift": largest(rows, "shift"),
        "max_regret": largest(rows, "regret"),
    }
    judged = {name: judge(*number, limits[name]) for name, number in found.items()}
    verdict, reason = conclude(grid, judged, rows, scatter, names["size"])
    noise = grid.noise
    return plain(
        {
            "schema": SCHEMA,
            "check": "transfer",
            "verdict": verdict,
            "reason": reason,
            **names,
            "base": base,
            "base_lr": rows[grid.base]["optimum_lr"],
            **judged,
            "larger_is_never_worse": never_worse(rows),
            "seed_sd": math.hypot(noise.sd, noise.shift_sd) if noise.source == "seeds" else None,
            "noise": {
                "sd": noise.sd,
                "dof": noise.dof,
                "source": noise.source,
                "shift_sd": noise.shift_sd,
            },
            "scatter": scatter,
            "resamples": resamples,
            "rng_seed": rng_seed,
            "sizes": rows,
            "warnings": warnings_of(grid, rows, scatter, names["size"], int((~done).sum())),
        }
    )


def _columns(size, lr, loss, seed, names, limits) -> tuple[np.ndarray, ...]:
    """The columns as arrays (n,): size and LR positive, loss finite, inf or NaN, seed 0, 1, ..."""
    columns = {}
    for name, values in (("size", size), ("lr", lr), ("loss", loss)):
        try:
            columns[name] = np.array([math.nan if v is None else v for v in values], float)
        except (TypeError, ValueError) as e:
            raise UserError(f"{names[name]} must be a list of numbers, one per run ({e})") from e
    size, lr, loss = columns.values()
    labels = list(range(len(loss))) if seed is None else [str(s) for s in seed]
    if len({len(size), len(lr), len(loss), len(labels)}) > 1:
        raise UserError("the columns differ in length; give one value per run")
    for name in ("size", "lr"):
        bad = ~(np.isfinite(columns[name]) & (columns[name] > 0))
        if bad.any():
            raise UserError(
                f"{names[name]}={columns[name][bad][0]:g} in row {bad.argmax() + 1}: "
                "expected a number above 0"
            )
    for name, limit in limits.items():
        if not (math.isfinite(limit) and limit > 0):
            raise UserError(f"tolerance {limit} of {name}: expected a number above 0")
    if np.isnan(loss).all():
        raise UserError(f"no run has a {names['loss']}: there is nothing to judge")
    runs = [r[:3] for r in zip(size, lr, labels, loss, strict=True) if not math.isnan(r[3])]
    if len(set(runs)) < len(runs):
        twice = next(run for i, run in enumerate(runs) if run in runs[:i])
        raise UserError(
            f"{names['size']} {twice[0]:g}, {names['lr']} {twice[1]:g}, seed "
            f"{twice[2]} is there twice; keep one of them"
        )
    seed, loss = np.unique(labels, return_inverse=True)[1], np.where(np.isinf(loss), math.inf, loss)
    order = np.lexsort((loss, seed, lr, size))  # so that no order of rows changes a digit
    return size[order], lr[order], loss[order], seed[order]


# -- numbers ------------------------------------------------------------------------------------
def size_row(grid: Grid, k: int) -> dict[str, Any]:
    """What the record says of size k: LRs as they were typed, shifts in octaves, losses in nats."""
    curve, x, draws = grid.curves[k], float(grid.optimum[k]), grid.optima[k]
    loss, se, moved = grid.at_base(k)
    least, regret, regret_ends = math.nan, math.nan, UNKNOWN
    if not curve.problem:
        least = float(curve.parabola(curve.fit.coef, x))
        regret = max(0.0, loss - least) if not math.isnan(loss) else math.nan
        excess = np.maximum(moved - curve.parabola(grid.coefs[k], draws), 0)
        regret_ends = interval(excess) if math.isfinite(regret) else (regret, regret)
    signed = interval(draws - grid.optima[grid.base])
    fit = curve.fit
    return {
        "size": curve.size,
        "optimum_lr": 2.0**x,
        "ci95": [2.0**e for e in interval(draws)],
        "log2_optimum": x,
        "bracketed": not curve.problem,
        "problem": curve.problem,
        "n_lrs": curve.n_lrs,
        "n_seeds": fit.n_seeds if fit else int(max(curve.runs, default=0)),
        "min_loss": least,
        "transferred_loss": loss,
        "transferred_se": se,
        "transferred_diverges": math.isinf(loss),
        "shift": abs(x - float(grid.optimum[grid.base])),
        "shift_ci95": [max(0.0, signed[0], -signed[1]), max(-signed[0], signed[1])],
        "regret": regret,
        "regret_ci95": list(regret_ends),
        "noise_sd": grid.noises[k].sd,
        "diverged_lrs": (2.0**curve.diverged).tolist(),
        "cells": [
            {"lr": 2.0**a, "loss": b, "se": grid.noises[k].sd / math.sqrt(n), "runs": n}
            for a, b, n in zip(
                *(v.tolist() for v in (curve.x, curve.mean, curve.runs)), strict=True
            )
        ],
        "parabola": {
            "window": [2.0**e for e in fit.window],
            "centre_lr": 2.0**fit.centre,
            "coefficients": fit.coef.tolist(),
        }
        if fit
        else None,
    }


def largest(rows: Rows, name: str) -> tuple[float, tuple[float, float]]:
    """The largest of a number over sizes, and its interval, up to the largest upper end.

    What is not known of one size leaves the upper end open; another may still show too much.
    """
    values = np.array([row[name] for row in rows])
    if np.isnan(values).all():
        return math.nan, UNKNOWN
    low, high = np.array([row[f"{name}_ci95"] for row in rows]).T
    worst = int(np.nanargmax(values))
    return float(values[worst]), (float(low[worst]), float(high.max()))


def judge(value: float, ends: tuple[float, float], limit: float) -> dict[str, Any]:
    """A number with its interval against +-limit: pass inside, fail beyond, else inconclusive."""
    low, high = ends
    verdict = "pass" if -limit <= low and high <= limit else "inconclusive"
    verdict = "fail" if low > limit or high < -limit else verdict
    return {"value": value, "ci95": [low, high], "tolerance": limit, "verdict": verdict}


def worse_steps(rows: Rows) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Neighbouring sizes of which the larger is worse at the base's optimum by over 2 SE."""
    return [
        (a, b)
        for a, b in pairwise(rows)
        if b["transferred_diverges"]
        or b["transferred_loss"] - a["transferred_loss"]
        > 2 * math.hypot(a["transferred_se"], b["transferred_se"])
    ]


def never_worse(rows: Rows) -> bool | None:
    """Whether larger sizes do at least as well at the base's optimum; None where not known."""
    known = all(math.isfinite(row["transferred_se"]) for row in rows)
    return False if worse_steps(rows) else (True if known and len(rows) > 1 else None)


# -- words --------------------------------------------------------------------------------------
def conclude(
    grid: Grid, judged: Mapping[str, Any], rows: Rows, scatter: float, name: str
) -> tuple[str, str]:
    """The verdict, and in one line its numbers and the remedy."""
    failed = [
        f"{says(k, v)} is beyond {v['tolerance']:g}"
        for k, v in judged.items()
        if v["verdict"] == "fail"
    ]
    gaps = [
        f"the optimum at {name} {c.size:g} is not bracketed, {c.problem}: run "
        f"{name} {c.size:g} at LR {' and '.join(f'{2.0**x:.3g}' for x in c.wanted)}"
        for c in grid.curves
        if c.problem
    ]
    if len(rows) < SIZES_NEEDED:
        gaps.append(
            f"a drift needs {SIZES_NEEDED} sizes, the runs have {len(rows)}: run more, "
            "each twice the size"
        )
    if gaps:
        known = f"; what is known would fail: {'; '.join(failed)}" if failed else ""
        return "inconclusive", "; ".join(gaps) + known
    if failed:
        return "fail", f"{'; '.join(failed)}: {_follow(judged, rows, name)}"
    open_ = [k for k, v in judged.items() if v["verdict"] == "inconclusive"]
    if open_:
        return "inconclusive", "; ".join(
            f"{says(k, judged[k])} does not decide about {judged[k]['tolerance']:g}: "
            f"{remedy(k, judged[k], grid, rows, scatter, name)}"
            for k in open_
        )
    return "pass", "; ".join(
        f"{says(k, v)} is within {v['tolerance']:g}" for k, v in judged.items()
    )


def says(name: str, number: Mapping[str, Any]) -> str:
    """`drift -0.71 [-0.80, -0.62] octaves per doubling`."""
    label, form, unit = {
        "drift": ("drift", "+.2f", "octaves per doubling"),
        "largest_shift": ("largest shift", ".2f", "octaves"),
        "max_regret": ("largest regret", ".4f", "nats"),
    }[name]
    numbers = [math.nan if v is None else v for v in (number["value"], *number["ci95"])]
    if number["verdict"] == "fail" and not math.isfinite(numbers[0]):  # null in a record
        return f"{label} without bound, as the base's optimum LR diverges,"
    value, low, high = ("?" if math.isnan(v) else format(v, form) for v in numbers)
    return f"{label} {value} [{low}, {high}] {unit}"


def _follow(judged: Mapping[str, Any], rows: Rows, name: str) -> str:
    if judged["drift"]["verdict"] == "fail":
        return (
            f"tune the LR at every {name}, let it follow {name}^"
            f"{judged['drift']['value']:+.2f}, or change the parametrization"
        )
    worst = max(rows, key=lambda row: np.nan_to_num(row["regret"]))
    return f"tune the LR at {name} {worst['size']:g} itself, or change the parametrization"


def remedy(
    which: str, number: Mapping[str, Any], grid: Grid, rows: Rows, scatter: float, name: str
) -> str:
    """What to run so that an undecided number is decided."""
    if grid.noise.source == "none":
        return "run 3 seeds at the LRs around every optimum, to measure the noise"
    unknown = [f"{row['size']:g}" for row in rows if math.isnan(row["regret"])]
    if which == "max_regret" and unknown:
        lr = 2.0 ** grid.optimum[grid.base]
        return f"run {name} {', '.join(unknown)} at LR {lr:.3g}, beyond those with a finite loss"
    if which == "drift" and scatter > 0:
        return f"the sizes scatter by {scatter:.2f} octaves about a line, run more of them"
    seeds = min(c.fit.n_seeds for c in grid.curves)
    low, high = number["ci95"]
    room = abs(abs(number["value"]) - number["tolerance"])
    wanted = seeds * ((high - low) / 2 / room) ** 2 if room else math.inf
    if not wanted < MANY_SEEDS:
        return f"that would take over {MANY_SEEDS} seeds, so run more sizes"
    return f"run about {max(seeds + 1, math.ceil(wanted))} seeds at the LRs around every optimum"


def warnings_of(grid: Grid, rows: Rows, scatter: float, name: str, missing: int) -> list[str]:
    """What a careful reader would ask about."""
    found = [f"{missing} run(s) without a result are left out"] if missing else []
    found += [
        f"diverged at {name} {row['size']:g}: LR "
        f"{', '.join(f'{lr:.3g}' for lr in row['diverged_lrs'])}"
        for row in rows
        if row["diverged_lrs"]
    ]
    noise = grid.noise
    found += {
        "seeds": [],
        "none": ["nothing measures the noise: no interval is known"],
        "residuals": [
            "too few seeds to measure the noise: it is taken from the residuals of "
            f"the parabolas (sd {noise.sd:.4f}, {noise.dof} degrees of freedom)"
        ],
    }[noise.source]
    total, dof = (sum(c.fit.misfit[i] for c in grid.curves if c.fit) for i in (0, 1))
    if noise.source == "seeds" and dof and total / dof > (MISFIT * noise.sd) ** 2:
        found.append(
            f"the losses lie {math.sqrt(total / dof):.4f} off the parabolas, their seeds "
            f"only {noise.sd:.4f} apart: run LRs closer together"
        )
    if scatter > 0:
        found.append(
            f"the optima scatter about the line by {scatter:.2f} octaves more than their "
            "noise explains, which widens the drift's interval"
        )
    found += [
        f"at the base's optimum LR {name} {b['size']:g} is worse than {a['size']:g}"
        for a, b in worse_steps(rows)
    ]
    return found
