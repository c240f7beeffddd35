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
from dataclasses import asdict, dataclass

import numpy as np

from nanoscale.checks.drift import UNKNOWN, Drift, Interval, LrGrid, Transferred, drift_of, interval
from nanoscale.checks.lr_reasons import Evidence, never_worse
from nanoscale.checks.lr_verdict import (
    FittedParabola,
    JudgedNumber,
    LrCell,
    LrRuns,
    SizeOptimum,
    TransferVerdict,
)
from nanoscale.checks.optimum import LrCurve, curve_of
from nanoscale.errors import UserError

DRIFT, SHIFT, REGRET = 0.25, 1.0, 0.02  # tolerances: octaves per doubling, octaves, nats


@dataclass(frozen=True)
class LrColumns:
    """How the columns are called."""

    size: str = "size"
    lr: str = "LR"
    loss: str = "loss"
    seed: str | None = "seed"


_NAMES = LrColumns()


def transfer_verdict(
    size: Iterable[float | None],
    lr: Iterable[float | None],
    loss: Iterable[float | None],
    seed: Iterable[object] | None = None,
    *,
    base: float | None = None,
    tolerance: float = DRIFT,
    max_shift: float = SHIFT,
    max_regret: float = REGRET,
    names: LrColumns = _NAMES,
    resamples: int = 4000,
    rng_seed: int = 0,
) -> TransferVerdict:
    """The verdict on one (size, LR, loss) per run.

    `seed` tells the runs of one size and LR apart; runs of one size with one seed share its shift.
    `base` is the size whose optimum is transferred, the smallest by default.

    Raises:
        UserError: the runs are no grid, or a tolerance is not positive.
    """
    limits = {"drift": tolerance, "largest_shift": max_shift, "max_regret": max_regret}
    runs = read_runs(size, lr, loss, seed, names, limits)
    rng = np.random.default_rng(rng_seed)
    grid = _measured(runs, base, names, resamples, rng)
    sizes = [size_optimum(grid, k) for k in range(len(grid.curves))]
    drift = drift_of(grid, rng)
    evidence = Evidence(
        grid,
        sizes,
        _judged(drift, sizes, limits),
        drift.scatter,
        missing=int(np.isnan(runs.loss).sum()),
        size_name=names.size,
    )
    verdict, reason = evidence.conclude()
    noise = grid.noise
    return TransferVerdict(
        verdict=verdict,
        reason=reason,
        **asdict(names),
        base=sizes[grid.base].size,
        base_lr=sizes[grid.base].optimum_lr,
        drift=evidence.judged["drift"],
        largest_shift=evidence.judged["largest_shift"],
        max_regret=evidence.judged["max_regret"],
        larger_is_never_worse=never_worse(sizes),
        seed_sd=math.hypot(noise.sd, noise.shift_sd) if noise.source == "seeds" else None,
        noise=noise,
        scatter=drift.scatter,
        resamples=resamples,
        rng_seed=rng_seed,
        sizes=sizes,
        warnings=evidence.warnings(),
        runs=runs,
    )


def _measured(
    runs: LrRuns,
    base: float | None,
    names: LrColumns,
    resamples: int,
    rng: np.random.Generator,
) -> LrGrid:
    """Every size's curve and resamples of it."""
    done = runs.in_order()
    known = np.unique(done.size)
    base = float(known[0] if base is None else base)
    if base not in known:
        there = ", ".join(f"{size:g}" for size in known)
        raise UserError(f"base={base:g}: no run of that {names.size}; there are {there}")
    curves = []
    for size in known:
        rows = done.size == size
        x = np.log2(done.lr[rows])
        curves.append(curve_of(float(size), x, done.loss[rows], done.seed[rows]))
    return LrGrid.of(curves, int(np.searchsorted(known, base)), rng, resamples)


def _judged(
    drift: Drift, sizes: Sequence[SizeOptimum], limits: Mapping[str, float]
) -> dict[str, JudgedNumber]:
    shift, shift_ci95 = largest([(size.shift, size.shift_ci95) for size in sizes])
    regret, regret_ci95 = largest([(size.regret, size.regret_ci95) for size in sizes])
    return {
        "drift": JudgedNumber.of(drift.value, drift.ci95, limits["drift"]),
        "largest_shift": JudgedNumber.of(shift, shift_ci95, limits["largest_shift"]),
        "max_regret": JudgedNumber.of(regret, regret_ci95, limits["max_regret"]),
    }


# -- columns ------------------------------------------------------------------------------------
def read_runs(
    size: Iterable[float | None],
    lr: Iterable[float | None],
    loss: Iterable[float | None],
    seed: Iterable[object] | None,
    names: LrColumns,
    limits: Mapping[str, float],
) -> LrRuns:
    """The columns as arrays, in the order given; a grid that can be judged."""
    size = _numbers(names.size, size)
    lr = _numbers(names.lr, lr)
    loss = _numbers(names.loss, loss)
    labels = list(range(len(loss))) if seed is None else [str(s) for s in seed]
    if len({len(size), len(lr), len(loss), len(labels)}) > 1:
        raise UserError("the columns differ in length; give one value per run")
    _check_positive(names.size, size)
    _check_positive(names.lr, lr)
    for name, limit in limits.items():
        if not (math.isfinite(limit) and limit > 0):
            raise UserError(f"tolerance {limit} of {name}: expected a number above 0")
    if np.isnan(loss).all():
        raise UserError(f"no run has a {names.loss}: there is nothing to judge")

    seen = set()
    for run in zip(size, lr, labels, loss, strict=True):
        if math.isnan(run[3]):
            continue
        if run[:3] in seen:
            raise UserError(
                f"{names.size} {run[0]:g}, {names.lr} {run[1]:g}, seed {run[2]} is there twice; "
                "keep one of them"
            )
        seen.add(run[:3])
    seeds = np.unique(labels, return_inverse=True)[1]
    return LrRuns(size, lr, np.where(np.isinf(loss), math.inf, loss), seeds)


def _numbers(name: str, values: Iterable[float | None]) -> np.ndarray:
    try:
        return np.array([math.nan if value is None else value for value in values], float)
    except (TypeError, ValueError) as e:
        raise UserError(f"{name} must be a list of numbers, one per run ({e})") from e


def _check_positive(name: str, values: np.ndarray) -> None:
    bad = ~(np.isfinite(values) & (values > 0))
    if bad.any():
        raise UserError(
            f"{name}={values[bad][0]:g} in row {bad.argmax() + 1}: expected a number above 0"
        )


# -- numbers ------------------------------------------------------------------------------------
def size_optimum(grid: LrGrid, k: int) -> SizeOptimum:
    """What the record says of size k: LRs as they were typed, shifts in octaves, losses in nats."""
    curve, fit = grid.curves[k], grid.curves[k].fit
    x, draws = float(grid.optimum[k]), grid.optima[k]
    transferred = grid.at_base(k)
    low, high = interval(draws - grid.optima[grid.base])  # of the shift

    least, regret, regret_ci95 = _regret(grid, k, transferred)
    return SizeOptimum(
        size=curve.size,
        optimum_lr=2.0**x,
        ci95=_exp2(interval(draws)),
        log2_optimum=x,
        bracketed=not curve.problem,
        problem=curve.problem,
        n_lrs=curve.n_lrs,
        n_seeds=fit.n_seeds if fit else int(max(curve.runs, default=0)),
        min_loss=least,
        transferred_loss=transferred.loss,
        transferred_se=transferred.se,
        transferred_diverges=math.isinf(transferred.loss),
        shift=abs(x - float(grid.optimum[grid.base])),
        shift_ci95=(max(0.0, low, -high), max(-low, high)),
        regret=regret,
        regret_ci95=regret_ci95,
        noise_sd=grid.noises[k].sd,
        diverged_lrs=(2.0**curve.diverged).tolist(),
        cells=_cells(curve, grid.noises[k].sd),
        parabola=FittedParabola(_exp2(fit.window), 2.0**fit.centre, fit.coef.tolist())
        if fit
        else None,
    )


def _regret(grid: LrGrid, k: int, transferred: Transferred) -> tuple[float, float, Interval]:
    """The least loss of size k, what training at the base's optimum costs beyond it, and the
    interval of that."""
    valley = grid.curves[k].valley
    if not valley:
        return math.nan, math.nan, UNKNOWN
    least = float(valley.loss(valley.coef, float(grid.optimum[k])))
    if math.isnan(transferred.loss):
        return least, math.nan, UNKNOWN
    regret = max(0.0, transferred.loss - least)
    if math.isinf(regret):
        return least, regret, (regret, regret)
    excess = transferred.draws - valley.loss(grid.coefs[k], grid.optima[k])
    return least, regret, interval(np.maximum(excess, 0))


def _cells(curve: LrCurve, sd: float) -> list[LrCell]:
    cells = []
    for x, loss, runs in zip(
        *map(np.ndarray.tolist, (curve.x, curve.mean, curve.runs)), strict=True
    ):
        cells.append(LrCell(2.0**x, loss, sd / math.sqrt(runs), runs))
    return cells


def _exp2(ends: Interval) -> Interval:
    return 2.0 ** ends[0], 2.0 ** ends[1]


def largest(numbers: Sequence[tuple[float, Interval]]) -> tuple[float, Interval]:
    """The largest of a number over sizes, and its interval, up to the largest upper end.

    What is not known of one size leaves the upper end open; another may still show too much.
    """
    values = np.array([value for value, _ in numbers])
    if np.isnan(values).all():
        return math.nan, UNKNOWN
    value, (low, _) = numbers[int(np.nanargmax(values))]
    highest = np.max([high for _, (_, high) in numbers])  # NaN where one is not known
    return value, (low, float(highest))
