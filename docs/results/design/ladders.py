"""What a ladder's 95 % intervals hold in planted worlds, in ladders.csv.

    python docs/results/design/ladders.py [WORLDS]

Seven sizes of 1e11 to 1e14 FLOPs, three seeds each, 0.3 % of noise between seeds; the truth is
L = 1.4 + 125 / C^0.21 but for what the world's name says. `make soak` holds the table to its word.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nanoscale.laws import fit_power_law

FLOOR, K, G = 1.4, 125.0, 0.21
LADDER = np.geomspace(1e11, 1e14, 7)
SEEDS, SEED_SD = 3, 0.003
RESAMPLES = 400
TABLE = Path(__file__).with_name("ladders.csv")
Curve = Callable[[Any], Any]


def power(C: Any) -> Any:
    return FLOOR + K / C**G


def steepening(C: Any) -> Any:
    """The exponent grows by .06 past 1e12."""
    return FLOOR + K / C**G * np.maximum(C / 1e12, 1) ** -0.06


def two_powers(C: Any) -> Any:
    """The second is a fifth of the first at the smallest size."""
    return power(C) + 8e5 / C**0.62


@dataclass(frozen=True)
class World:
    """A law, and what its sizes have beside it that their seeds do not show, in ln L."""

    law: Curve = power
    untuned: float = 0.0  # sd over sizes
    small: tuple[float, ...] = ()  # of the smallest sizes

    def losses(self, rng: np.random.Generator) -> np.ndarray:
        """(sizes, seeds) of one study."""
        off = self.untuned * rng.standard_normal(len(LADDER))
        off[: len(self.small)] += self.small
        seeds = SEED_SD * rng.standard_normal((len(LADDER), SEEDS))
        return np.exp(np.log(self.law(LADDER))[:, None] + off[:, None] + seeds)


WORLDS = {
    "independent noise": World(),
    "sizes not tuned alike, 1 %": World(untuned=0.01),
    "the two smallest sizes off by 3 % and 1.5 %": World(small=(0.03, 0.015)),
    "the exponent steepens by .06 past 1e12": World(law=steepening),
    "a second power": World(law=two_powers),
}


@dataclass(frozen=True)
class Coverage:
    """Shares of a world's studies, and median widths."""

    world: str
    studies: int
    floor: float  # that hold E
    loss: float  # the loss at ten times the compute
    silent: float  # that call the law converged and warn of nothing
    floor_if_silent: float | None
    loss_if_silent: float | None
    warned: float
    floor_width: float
    loss_width: float


def coverage(name: str, studies: int) -> Coverage:
    """Of so many studies in a world."""
    world = WORLDS[name]
    held, warned, silent, widths = [], [], [], []
    for seed in range(studies):
        loss = world.losses(np.random.default_rng(seed))
        fit = fit_power_law(
            np.repeat(LADDER, SEEDS),
            loss.ravel(),
            seed=list(range(SEEDS)) * len(LADDER),
            resamples=RESAMPLES,
        )
        floor = fit.ci95["E"]
        far = [fit.curve.lo[-1], fit.curve.hi[-1]]
        truth = world.law(fit.curve.x[-1])
        held.append((floor[0] <= FLOOR <= floor[1], far[0] <= truth <= far[1]))
        widths.append((floor[1] - floor[0], far[1] - far[0]))
        warned.append(bool(fit.warnings))
        silent.append(fit.status == "converged" and not fit.warnings)
    share = np.mean(held, axis=0)
    quiet = np.array(held)[silent].mean(axis=0).tolist() if any(silent) else [None, None]
    width = np.median(widths, axis=0)
    return Coverage(
        name,
        studies,
        float(share[0]),
        float(share[1]),
        float(np.mean(silent)),
        *quiet,
        float(np.mean(warned)),
        float(width[0]),
        float(width[1]),
    )


def main(studies: int) -> None:
    rows = []
    for name in WORLDS:
        row = {
            key: round(value, 4) if isinstance(value, float) else value
            for key, value in asdict(coverage(name, studies)).items()
        }
        print(*row.values(), sep=", ", flush=True)
        rows.append(row)
    with open(TABLE, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
