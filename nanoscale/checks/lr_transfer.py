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
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from nanoscale.checks.drift import UNKNOWN, Drift, LrGrid, Transferred, drift_of, interval
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
from nanoscale.checks.seed_shifts import Interval
from nanoscale.errors import UserError


@dataclass(frozen=True)
class TransferLimits:
    """How far the optimum may move: octaves per doubling, octaves, nats; from which size."""

    tolerance: float = 0.25
    max_shift: float = 1.0
    max_regret: float = 0.02
    base: float | None = None  # the smallest

    def check(self) -> None:
        tolerances = {
            "drift": self.tolerance,
            "largest_shift": self.max_shift,
            "max_regret": self.max_regret,
        }
        for name, limit in tolerances.items():
            if not 0 < limit < math.inf:
                raise UserError(f"tolerance {limit} of {name}: expected a number above 0")


@dataclass(frozen=True)
class LrColumns:
    """How the columns are called."""

    size: str = "size"
    lr: str = "LR"
    loss: str = "loss"
    seed: str | None = "seed"


LIMITS = TransferLimits()
_NAMES = LrColumns()


def transfer_verdict(
    size: Sequence[float],
    lr: Sequence[float],
    loss: Sequence[float],
    seed: Sequence[object] | None = None,
    *,
    limits: TransferLimits = LIMITS,
    names: LrColumns = _NAMES,
    resamples: int = 4000,
    rng_seed: int = 0,
) -> TransferVerdict:
    """The verdict on one (size, LR, loss) per run; sizes and LRs are positive.

    `seed` tells the runs of one size and LR apart; runs of one size with one seed share its shift.

    Raises:
        UserError: the runs are no grid, or a tolerance is not positive.
    """
    limits.check()
    runs = _runs(size, lr, loss, seed, names)
    rng = np.random.default_rng(rng_seed)
    grid = _measured(runs, limits.base, names.size, resamples, rng)
    sizes = [size_optimum(grid, k) for k in range(len(grid.curves))]
    drift = drift_of(grid, rng)
    judged = _judged(drift, sizes, limits)
    missing = int(np.isnan(runs.loss).sum())
    evidence = Evidence(grid, sizes, judged, drift.scatter, missing, names.size)
    verdict, reason = evidence.conclude()
    noise = grid.noise
    base = sizes[grid.base]
    return TransferVerdict(
        verdict=verdict,
        reason=reason,
        **asdict(names),
        base=base.size,
        base_lr=base.optimum_lr,
        drift=judged["drift"],
        largest_shift=judged["largest_shift"],
        max_regret=judged["max_regret"],
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


def _judged(
    drift: Drift, sizes: Sequence[SizeOptimum], limits: TransferLimits
) -> dict[str, JudgedNumber]:
    shift = largest([(size.shift, size.shift_ci95) for size in sizes])
    regret = largest([(size.regret, size.regret_ci95) for size in sizes])
    return {
        "drift": JudgedNumber.of(drift.value, drift.ci95, limits.tolerance),
        "largest_shift": JudgedNumber.of(*shift, limits.max_shift),
        "max_regret": JudgedNumber.of(*regret, limits.max_regret),
    }


def _runs(
    size: Sequence[float],
    lr: Sequence[float],
    loss: Sequence[float],
    seed: Sequence[object] | None,
    names: LrColumns,
) -> LrRuns:
    """The columns as arrays, in the order given; a grid that can be judged."""
    if np.isnan(loss).all():
        raise UserError(f"no run has a {names.loss}: there is nothing to judge")
    labels = list(map(str, range(len(loss))) if seed is None else map(seed_name, seed))
    seen = set()
    for s, x, label, y in zip(size, lr, labels, loss, strict=True):
        if math.isnan(y):
            continue
        if (s, x, label) in seen:
            raise UserError(
                f"{names.size} {s:g}, {names.lr} {x:g}, seed {label} is there twice; "
                "keep one of them"
            )
        seen.add((s, x, label))
    seeds = np.unique(labels, return_inverse=True)[1]
    return LrRuns(np.asarray(size), np.asarray(lr), np.asarray(loss), seeds)


def seed_name(value: object) -> str:
    """`1` for 1, 1.0 and their texts: a table with an empty cell makes numbers of integers."""
    return re.sub(r"^(\d+)\.0*$", r"\1", str(value).strip())


def _measured(
    runs: LrRuns,
    base: float | None,
    size_name: str,
    resamples: int,
    rng: np.random.Generator,
) -> LrGrid:
    """Every size's curve and resamples of it."""
    done = runs.in_order()
    known = np.unique(done.size)
    base = float(known[0] if base is None else base)
    if base not in known:
        there = ", ".join(f"{size:g}" for size in known)
        raise UserError(f"base={base:g}: no run of that {size_name}; there are {there}")
    curves = []
    for size in known:
        rows = done.size == size
        x = np.log2(done.lr[rows])
        curve = curve_of(float(size), x, done.loss[rows], done.seed[rows])
        curves.append(curve)
    k = int(np.searchsorted(known, base))
    return LrGrid.of(curves, k, rng, resamples)


# -- numbers ------------------------------------------------------------------------------------
def size_optimum(grid: LrGrid, k: int) -> SizeOptimum:
    """What the record says of size k: LRs as they were typed, shifts in octaves, losses in nats."""
    curve = grid.curves[k]
    fit = curve.fit
    x = float(grid.optimum[k])
    draws = grid.optima[k]
    noise_sd = grid.noises[k].sd
    transferred = grid.at_base(k)
    low, high = interval(draws - grid.optima[grid.base])  # of the shift
    least, regret, regret_ci95 = _regret(grid, k, transferred)
    n_seeds = max(curve.runs, default=0)
    if curve.seeds:
        n_seeds = curve.seeds.n_seeds
    parabola = None
    if fit:
        window = _exp2((fit.low[0], fit.high[0]))
        parabola = FittedParabola(window, 2.0**fit.centre, fit.coef[:, 0].tolist())
    return SizeOptimum(
        size=curve.size,
        optimum_lr=2.0**x,
        ci95=_exp2(interval(draws)),
        log2_optimum=x,
        bracketed=not curve.problem,
        problem=curve.problem,
        n_lrs=curve.n_lrs,
        n_seeds=int(n_seeds),
        min_loss=least,
        transferred_loss=transferred.loss,
        transferred_se=transferred.se,
        transferred_diverges=math.isinf(transferred.loss),
        shift=abs(x - float(grid.optimum[grid.base])),
        shift_ci95=(max(0.0, low, -high), max(-low, high)),
        regret=regret,
        regret_ci95=regret_ci95,
        noise_sd=noise_sd,
        diverged_lrs=(2.0**curve.diverged).tolist(),
        cells=_cells(curve, noise_sd),
        parabola=parabola,
    )


def _regret(grid: LrGrid, k: int, transferred: Transferred) -> tuple[float, float, Interval]:
    """The least loss of size k, what training at the base's optimum costs beyond it, and the
    interval of that."""
    valley = grid.curves[k].valley
    draws = grid.draws[k]
    least = float(valley.parabola(grid.optimum[k])[0]) if valley else math.nan
    if math.isinf(transferred.loss):
        return least, math.inf, (math.inf, math.inf)
    if not draws or math.isnan(least) or math.isnan(transferred.loss):
        return least, math.nan, UNKNOWN
    regret = max(0.0, transferred.loss - least)
    excess = transferred.draws - draws.parabola(grid.optima[k])
    return least, regret, interval(np.maximum(excess, 0))


def _cells(curve: LrCurve, sd: float) -> list[LrCell]:
    cells = []
    columns = (curve.x.tolist(), curve.mean.tolist(), curve.runs.tolist())
    for x, loss, runs in zip(*columns, strict=True):
        se = sd / math.sqrt(runs)
        cells.append(LrCell(2.0**x, loss, se, runs))
    return cells


def _exp2(ends: Interval) -> Interval:
    low, high = ends
    return 2.0**low, 2.0**high


def largest(numbers: Sequence[tuple[float, Interval]]) -> tuple[float, Interval]:
    """The largest of a number over sizes, and its interval, up to the largest upper end.

    What is not known of one size leaves the upper end open; another may still show too much.
    """
    values = [value for value, _ in numbers]
    ends = [high for _, (_, high) in numbers]
    if np.isnan(values).all():
        return math.nan, UNKNOWN
    worst = int(np.nanargmax(values))
    value, (low, _) = numbers[worst]
    return value, (low, float(np.max(ends)))  # NaN where one is not known
