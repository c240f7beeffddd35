"""Predictions of runs not yet made.

The one idea: a new run misses the law by two things, the law's own uncertainty (its resamples) and
the noise of a run (seeds or residuals, whichever is larger); a prediction's interval holds both.
What neither holds, that the form itself is wrong further out, is asked of the past (`holdout`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nanoscale.laws import bootstrap
from nanoscale.laws.arrays import Array
from nanoscale.laws.fit import LawFit
from nanoscale.laws.points import Points, TableColumns
from nanoscale.laws.record import PredictedLoss, Record

FAR = 10.0  # times beyond the budgets fitted: there the form of the law decides, not the runs


@dataclass(frozen=True)
class Basis(Record):
    """What a prediction needs beside the fit: the noise of a run, and how far the runs reach.

    Its JSON are the keys that `nanoscale fit` adds to its record.
    """

    noise: bootstrap.Noise
    reach: dict[str, list[float]]  # predictor, and C of N and D -> smallest and largest

    @classmethod
    def of(
        cls,
        fit: LawFit,
        columns: TableColumns,
        loss: Iterable[float],
        drop_worst: int = 0,
    ) -> Basis:
        """Of the points that `fit` was made of; runs at the same predictors are seeds."""
        points = Points.of(fit.form, columns, loss, drop_worst)
        cell = np.unique(points.x, axis=1, return_inverse=True)[1].ravel()
        fitted = np.log(fit(*points.x))
        measured = np.log(points.loss)
        noise = bootstrap.noise_of(measured, cell, fitted, len(fit.params))

        values = points.columns
        budgets = points.budgets
        if budgets is not None:
            values["C"] = budgets
        return cls(noise, {name: [float(v.min()), float(v.max())] for name, v in values.items()})

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Basis:
        """Of a record's `noise` and `reach`."""
        derived = ("used", "dof")
        known = {key: value for key, value in record["noise"].items() if key not in derived}
        return cls(bootstrap.Noise(**known), dict(record["reach"]))

    def distance(self, C: float) -> float | None:
        """How many times the largest budget C FLOPs are; None for a law of neither."""
        return float(C / self.reach["C"][1]) if "C" in self.reach else None


def predict(
    fit: LawFit, noise: bootstrap.Noise | None, *, rng_seed: int = 0, **x: float
) -> PredictedLoss:
    """The loss of one new run at e.g. N=1e9, D=2e10.

    `loss_ci95`: of the law there; `run_ci95`: of a run, the law's and the run's noise together,
    never narrower at an end.
    Neither without the fit's draws.
    """
    prediction = fit.predict(**x)
    if noise is None or not len(fit.draws):
        return prediction
    ends = bootstrap.interval(new_runs(fit.losses(*fit.place(x)), noise, rng_seed))
    of_law = np.array([prediction.loss_ci95], float).T
    ends = bootstrap.widened(ends, of_law)
    return replace(prediction, run_ci95=ends[:, 0].tolist())


def new_runs(laws: Array, noise: bootstrap.Noise, rng_seed: int) -> Array:
    """(R, n): one run about each of the losses `laws` (R, n) of every resample."""
    draws = bootstrap.resampled(np.zeros(laws.shape[1]), noise, len(laws), rng_seed)
    return laws * np.exp(draws)
