"""Does the interval of N* hold the best size of planted grids of equal compute?

    python docs/results/isoflop/worlds.py docs/results/isoflop/worlds.csv

Four budgets and six sizes of a law of small GPTs, noise 1 %: sizes centred on the best one, all a
factor of 1.8 too large, one budget whose sizes are all beyond its best one, and centres that
drift. A row per kind: how often the 95 % interval of the answer of recipe `isoflop` holds N* at
the largest budget and at ten times that, and how wide it is.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import pandas as pd

from nanoscale.data.gauge import each
from nanoscale.errors import UserError
from nanoscale.laws import law_of
from nanoscale.studies.isoflop_recipe import BestSize
from nanoscale.studies.table_fit import FitSettings, fit_table

WORLDS, NOISE = 200, 0.01
TRUTH = np.array([1.0, 60.0, 250.0, 0.30, 0.32])  # E, A, B, alpha, beta
BUDGETS = np.geomspace(1e12, 1e13, 4)
DECADES, SIZES = 0.9, 6  # of a budget's sizes
KINDS = {  # decades from a budget's best size to the middle of its sizes
    "centred": (0.0, 0.0, 0.0, 0.0),
    "off centre": (0.25, 0.25, 0.25, 0.25),
    "one unbracketed": (0.0, 0.0, 0.0, 0.6),
    "drifting": (0.3, 0.1, -0.1, -0.3),
}
SETTINGS = FitSettings(d="D", c="C", loss="loss", resamples=400, resampling="parametric")


def best(C: float) -> float:
    """N* of the planted law."""
    N, _ = law_of("chinchilla").optimum(TRUTH, C)
    return float(N)


def grid(offsets: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """N and C of every run."""
    steps = np.linspace(-DECADES / 2, DECADES / 2, SIZES)
    N = [best(C) * 10 ** (off + steps) for C, off in zip(BUDGETS, offsets, strict=True)]
    return np.concatenate(N), np.repeat(BUDGETS, SIZES)


def main() -> None:
    rows = []
    for kind, offsets in KINDS.items():
        N, C = grid(offsets)
        D = C / (6 * N)
        losses = law_of("chinchilla").loss(TRUTH, N, D)
        asked = (BUDGETS[-1], 10 * BUDGETS[-1])
        held, widths, unknown = [0, 0], [], 0
        for world in each(range(WORLDS), f"{kind} worlds"):
            noise = np.random.default_rng(world).standard_normal(len(N))
            table = pd.DataFrame({"D": D, "C": C, "loss": losses * np.exp(NOISE * noise)})
            try:
                result = fit_table(table, SETTINGS).ask(isoflop=True)
            except UserError:
                unknown += 1
                continue
            answers = [BestSize.of(result, at) for at in asked]
            for k, (answer, at) in enumerate(zip(answers, asked, strict=True)):
                if answer is not None and answer.optimum.N_ci95 is not None:
                    low, high = answer.optimum.N_ci95
                    held[k] += low <= best(at) <= high
                    widths += [high / low] * (k == 1)
                else:
                    unknown += k == 1
        rows.append(
            {
                "kind": kind,
                "worlds": WORLDS,
                "no_answer": unknown,
                "holds_at_largest": held[0],
                "holds_at_ten_times": held[1],
                "factor_at_ten_times": f"{np.median(widths) if widths else math.nan:.3g}",
            }
        )
    pd.DataFrame(rows).to_csv(sys.argv[1], index=False, lineterminator="\n")
    print(pd.read_csv(sys.argv[1]).to_string(index=False))


if __name__ == "__main__":
    main()
