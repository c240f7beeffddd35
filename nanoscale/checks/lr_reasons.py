"""What a transfer verdict says of itself: its reason, what would decide it, and warnings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from nanoscale.checks.drift import LrGrid
from nanoscale.checks.lr_verdict import JudgedNumber, SizeOptimum
from nanoscale.checks.seed_shifts import Squares

_SIZES_NEEDED = 3
_MISFIT = 3.0  # residual over seed sd from which the curves are said to be no parabolas
MOST_SEEDS = 20  # a remedy that asks for more is none


@dataclass(frozen=True)
class Evidence:
    """All that a verdict rests on."""

    grid: LrGrid
    sizes: Sequence[SizeOptimum]
    judged: Mapping[str, JudgedNumber]
    scatter: float
    missing: int  # runs without a result
    size_name: str  # how the column of sizes is called

    # -- the verdict ------------------------------------------------------------------------
    def conclude(self) -> tuple[str, str]:
        """The verdict, and in one line its numbers and the remedy."""
        failed = []
        undecided = []
        within = []
        for name, number in self.judged.items():
            text = number.says(name)
            if number.verdict == "fail":
                failed.append(f"{text} is beyond {number.tolerance:g}")
            elif number.verdict == "pass":
                within.append(f"{text} is within {number.tolerance:g}")
            else:
                undecided.append(
                    f"{text} does not decide about {number.tolerance:g}: {self.remedy(name)}"
                )

        gaps = "; ".join(self.gaps())
        failures = "; ".join(failed)
        diverges = any(size.transferred_diverges for size in self.sizes)
        if gaps and failures and not diverges:
            return "inconclusive", f"{gaps}; what is known would fail: {failures}"
        if failures:
            known = f"{failures}: {self.way_out()}"
            return "fail", f"{known}; {gaps}" if gaps else known
        if gaps:
            return "inconclusive", gaps
        if undecided:
            return "inconclusive", "; ".join(undecided)
        return "pass", "; ".join(within)

    def gaps(self) -> list[str]:
        """What was not run and no verdict can do without."""
        name = self.size_name
        gaps = []
        for curve in self.grid.curves:
            if curve.problem:
                wanted = " and ".join(f"{2.0**x:.3g}" for x in curve.wanted)
                more = f"at LR {wanted}" if wanted else "with more seeds"
                gaps.append(
                    f"the optimum at {name} {curve.size:g} is not bracketed, {curve.problem}: "
                    f"run {name} {curve.size:g} {more}"
                )
        if len(self.sizes) < _SIZES_NEEDED:
            gaps.append(
                f"a drift needs {_SIZES_NEEDED} sizes, the runs have {len(self.sizes)}: run more, "
                "each twice the size"
            )
        return gaps

    def way_out(self) -> str:
        """What to do where the LR does not transfer."""
        name = self.size_name
        drift = self.judged["drift"]
        if drift.verdict == "fail":
            return (
                f"tune the LR at every {name}, let it follow {name}^{drift.value:+.2f}, "
                "or change the parametrization"
            )
        worst = max(self.sizes, key=lambda size: np.nan_to_num(size.regret))
        return f"tune the LR at {name} {worst.size:g} itself, or change the parametrization"

    def remedy(self, which: str) -> str:
        """What to run so that an undecided number is decided."""
        grid = self.grid
        number = self.judged[which]
        if grid.noise.source == "none":
            return "run 3 seeds at the LRs around every optimum, to measure the noise"
        unknown = [f"{size.size:g}" for size in self.sizes if math.isnan(size.regret)]
        if which == "max_regret" and unknown:
            sizes = ", ".join(unknown)
            lr = 2.0 ** grid.optimum[grid.base]
            return f"run {self.size_name} {sizes} at LR {lr:.3g}, beyond those with a finite loss"
        if which == "drift" and self.scatter > 0:
            return f"the sizes scatter by {self.scatter:.2f} octaves about a line, run more of them"

        # the interval falls with the root of the seeds
        seeds = min(curve.seeds.n_seeds for curve in grid.curves if curve.seeds)
        low, high = number.ci95
        room = abs(abs(number.value) - number.tolerance)
        wanted = math.inf
        if room:
            half = (high - low) / 2
            wanted = seeds * (half / room) ** 2
        if not wanted < MOST_SEEDS:
            return f"that would take over {MOST_SEEDS} seeds, so run more sizes"
        more = max(seeds + 1, math.ceil(wanted))
        return f"run about {more} seeds at the LRs around every optimum"

    # -- what a careful reader would ask about ----------------------------------------------
    def warnings(self) -> list[str]:
        name = self.size_name
        warnings = []
        if self.missing:
            warnings.append(f"{self.missing} run(s) without a result are left out")
        for size in self.sizes:
            if size.diverged_lrs:
                lrs = ", ".join(f"{lr:.3g}" for lr in size.diverged_lrs)
                warnings.append(f"diverged at {name} {size.size:g}: LR {lrs}")
        warnings += self.doubts_of_noise()
        if self.scatter > 0:
            warnings.append(
                f"the optima scatter about the line by {self.scatter:.2f} octaves more than their "
                "noise explains, which widens the drift's interval"
            )
        for smaller, larger in worse_steps(self.sizes):
            warnings.append(
                f"at the base's optimum LR {name} {larger.size:g} is worse than {smaller.size:g}"
            )
        return warnings

    def doubts_of_noise(self) -> list[str]:
        noise = self.grid.noise
        if noise.source == "none":
            return ["nothing measures the noise: no interval is known"]
        if noise.source == "residuals":
            return [
                "too few seeds to measure the noise: it is taken from the residuals of "
                f"the parabolas (sd {noise.sd:.4f}, {noise.dof} degrees of freedom)"
            ]
        misfit = Squares.pooled(curve.misfit for curve in self.grid.curves)
        if misfit.dof and misfit.mean > (_MISFIT * noise.sd) ** 2:
            return [
                f"the losses lie {math.sqrt(misfit.mean):.4f} off the parabolas, "
                f"their seeds only {noise.sd:.4f} apart: run LRs closer together"
            ]
        return []


def worse_steps(sizes: Sequence[SizeOptimum]) -> list[tuple[SizeOptimum, SizeOptimum]]:
    """Neighbouring sizes of which the larger is worse at the base's optimum by over 2 SE."""
    worse = []
    for a, b in pairwise(sizes):
        rise = b.transferred_loss - a.transferred_loss
        se = math.hypot(a.transferred_se, b.transferred_se)
        if b.transferred_diverges or rise > 2 * se:
            worse.append((a, b))
    return worse


def never_worse(sizes: Sequence[SizeOptimum]) -> bool | None:
    """Whether larger sizes do at least as well at the base's optimum; None where not known."""
    if worse_steps(sizes):
        return False
    known = all(math.isfinite(size.transferred_se) for size in sizes)
    if known and len(sizes) > 1:
        return True
    return None
