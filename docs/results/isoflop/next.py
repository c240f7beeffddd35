"""How much cheaper does one run after another narrow N* than the whole grid again?

    python docs/results/isoflop/next.py docs/results/isoflop/next.csv

The worlds of worlds.py, one of each of three kinds: the interval of N* at ten times the largest
budget is to become a quarter narrower, in ln. By `nanoscale next`'s choice, the run that narrows it
most per FLOP, or by every run of the grid once more; a row per kind, with the FLOPs of each.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import pandas as pd
from worlds import BUDGETS, KINDS, NOISE, TRUTH, grid

from nanoscale.laws import LawFit, fit_law, law_of
from nanoscale.studies.narrowing import next_run

ASKED = 10 * BUDGETS[-1]
NARROWER = 0.75
MOST_RUNS = 400
TRIED = ("centred", "off centre", "drifting")


class World:
    """A grid's runs so far, and what they say."""

    def __init__(self, kind: str, seed: int) -> None:
        self.N, self.C = grid(KINDS[kind])
        self.places = np.array([self.N, self.C / (6 * self.N)])
        self.rng = np.random.default_rng(seed)
        self.x = np.empty((2, 0))
        self.loss = np.empty(0)
        self.add(self.places)

    def add(self, places: np.ndarray) -> None:
        """Train there."""
        losses = law_of("chinchilla").loss(TRUTH, *places)
        noise = np.exp(NOISE * self.rng.standard_normal(places.shape[1]))
        self.x = np.hstack([self.x, places])
        self.loss = np.append(self.loss, losses * noise)

    def fit(self) -> LawFit:
        columns = {"N": self.x[0], "D": self.x[1]}
        return fit_law(columns, self.loss, resampling="parametric", resamples=400)


def width(fit: LawFit) -> float:
    low, high = fit.optimum(ASKED).N_ci95 or (1.0, np.inf)
    return float(np.log(high / low))


def by_next(kind: str, aim: float, seed: int) -> float:
    """FLOPs of runs chosen one after another until the interval is as narrow."""
    world, spent = World(kind, seed), 0.0
    while width(fit := world.fit()) > aim and len(world.loss) < MOST_RUNS:
        best = next_run(fit, world.x, NOISE, f"N*@{ASKED}", world.places, world.C)
        world.add(np.array(best.x)[:, None])
        spent += best.cost
    return spent


def by_grid(kind: str, aim: float, seed: int) -> float:
    """FLOPs of the grid's own runs, all of them again and again, until it is as narrow."""
    world, spent = World(kind, seed), 0.0
    while width(world.fit()) > aim and len(world.loss) < MOST_RUNS:
        world.add(world.places)
        spent += float(world.C.sum())
    return spent


def main(seeds: Sequence[int] = (0, 1, 2)) -> None:
    rows = []
    for kind in TRIED:
        for seed in seeds:
            begun = width(World(kind, seed).fit())
            aim = NARROWER * begun
            one, all_of_it = by_next(kind, aim, seed), by_grid(kind, aim, seed)
            row = {"kind": kind, "seed": seed, "factor_at_first": f"{np.exp(begun):.3f}"}
            row |= {"next_flops": f"{one:.4g}", "grid_flops": f"{all_of_it:.4g}"}
            rows.append(row | {"ratio": f"{one / all_of_it:.3f}"})
            print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(sys.argv[1], index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
