"""Fits as they would be, made by hand: what figures draw is what was planted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from nanoscale.laws import LAWS, LadderFit, LawFit
from nanoscale.laws.ladder import LawCurve
from nanoscale.laws.rivals import Rival

FIT = {
    "objective_name": "log-huber",
    "delta": 1e-3,
    "n_points": 28,
    "objective": 0.0,
    "status": "converged",
    "not_identified": {},
    "agreement_of_starts": 1.0,
    "n_starts": 32,
    "resamples": 2000,
    "rng_seed": 0,
    "warnings": [],
    "schema": 1,
    "condition_number": 1.0,
    "lost": 0,
    "dropped_worst": 0,
    "data": "",
}


def ladder_fit(x: np.ndarray, **changes: Any) -> LadderFit:
    """L = 1.5 + 100 / C^0.12 with a band of 2 %, from below the ladder `x` to ten times beyond."""
    at = np.geomspace(0.7 * x[0], 10 * x[-1], 121)
    loss = 1.5 + 100 * at**-0.12
    curve = {"x": at, "loss": loss, "lo": loss * 0.98, "hi": loss * 1.02}
    fit = LadderFit(
        **FIT,
        law="power",
        form=LAWS["power"],
        x_name="C",
        x_names=("C",),
        n_sizes=len(x),
        params={"E": 1.5, "K": 100.0, "g": 0.12},
        se={"E": 0.05, "K": 10.0, "g": 0.005},
        ci95={"E": [1.4, 1.6], "K": [80.0, 120.0], "g": [0.11, 0.13]},
        ci95_noise={},
        noise={},
        components=None,
        rival=None,
        shares=[1.0],
        predictors=["C"],
        exponents={},
        resampling="parametric",
        draws=np.empty((0, 3)),
        dropped=[],
        curve=LawCurve(**{key: values.tolist() for key, values in curve.items()}),
        points=[],
    )
    return replace(fit, **changes)


def law_fit(params: Mapping[str, float], **changes: Any) -> LawFit:
    """The chinchilla law of these parameters, its floor within 0.1, without resamples."""
    fit = LawFit(
        **FIT,
        law="chinchilla",
        form=LAWS["chinchilla"],
        x_names=("N", "D"),
        predictors=["N", "D"],
        params=dict(params),
        se={"E": 0.05, "A": 10.0, "B": 10.0, "alpha": 0.005, "beta": 0.005},
        ci95={"E": [params["E"] - 0.1, params["E"] + 0.1]},
        exponents={"a": 0.5, "b": 0.5},
        resampling="pairs",
        draws=np.empty((0, 5)),
    )
    return replace(fit, **changes)


def rival(law, aicc=-400.0, held_out=0.01, status="converged", ahead=2.0):
    return Rival(
        law=law,
        n_parameters=3,
        status=status,
        in_sample_error=0.002,
        aicc=aicc,
        holdout_error=held_out,
        loss_ahead=ahead,
    )
