"""Predictions of runs not yet made, and how earlier ones would have fared.

The one idea: a new run misses the law by two things, the law's own uncertainty (its resamples) and
the noise of a run (seeds or residuals, whichever is larger); a prediction's interval holds both.
What neither holds, that the form itself is wrong further out, is asked of the past: fit the
smaller budgets, predict the larger ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from nanoscale.errors import UserError
from nanoscale.laws import bootstrap
from nanoscale.laws.fit import LawFit, fit_law
from nanoscale.laws.forms import law_of
from nanoscale.laws.points import compute, kept, numbers, predictors
from nanoscale.store.files import plain

FAR = 10.0  # times beyond the budgets fitted: there the form of the law decides, not the runs


@dataclass(frozen=True)
class Basis:
    """What a prediction needs beside the fit: the noise of a run, and how far the runs reach."""

    noise: bootstrap.Noise
    reach: dict[str, list[float]]  # predictor, and C of N and D -> smallest and largest

    @classmethod
    def of(
        cls,
        fit: LawFit,
        columns: Mapping[str, Iterable[float]],
        loss: Iterable[float],
        drop_worst: int = 0,
    ) -> Basis:
        """Of the points that `fit` was made of; runs at the same predictors are seeds."""
        loss = numbers(loss, "loss")
        names, x = predictors(fit.form, columns, len(loss))
        keep = kept(loss, drop_worst)
        x, loss = x[:, keep], loss[keep]
        cell = np.unique(x, axis=1, return_inverse=True)[1].ravel()
        noise = bootstrap.noise_of(np.log(loss), cell, np.log(fit(*x)), len(fit.params))
        values = dict(zip(names, x, strict=True))
        values |= {} if (C := compute(values)) is None else {"C": C}
        return cls(noise, {k: [float(v.min()), float(v.max())] for k, v in values.items()})

    @classmethod
    def read(cls, record: Mapping[str, object]) -> Basis:
        """Of a record's `noise` and `reach`."""
        known = {k: v for k, v in record["noise"].items() if k not in ("used", "dof")}
        return cls(bootstrap.Noise(**known), dict(record["reach"]))

    def to_json(self) -> dict[str, object]:
        """The keys that `nanoscale fit` adds to its record."""
        return plain({"noise": self.noise.to_json(), "reach": self.reach})

    def distance(self, C: float) -> float | None:
        """How many times the largest budget C FLOPs are; None for a law of neither."""
        return float(C / self.reach["C"][1]) if "C" in self.reach else None


def predict(
    fit: LawFit, noise: bootstrap.Noise | None, *, rng_seed: int = 0, **x: float
) -> dict[str, float | list[float]]:
    """The loss of one new run at e.g. N=1e9, D=2e10.

    `loss_ci95`: of the law there; `run_ci95`: of a run, the law's and the run's noise together.
    Neither without the fit's draws.
    """
    record = fit.predict(**x)
    if noise is None or not len(fit.draws):
        return record
    at = [np.array([float(x[name])]) for name in fit.form.predictors]
    runs = new_runs(fit.form.loss(fit.draws, *at), noise, rng_seed)
    return record | {"run_ci95": bootstrap.interval(runs)[:, 0].tolist()}


def new_runs(laws: np.ndarray, noise: bootstrap.Noise, rng_seed: int) -> np.ndarray:
    """(R, n): one run about each of the losses `laws` (R, n) of every resample."""
    draws = bootstrap.resampled(np.zeros(laws.shape[1]), noise, len(laws), rng_seed)
    return laws * np.exp(draws)


def holdout(
    columns: Mapping[str, Iterable[float]],
    loss: Iterable[float],
    threshold: float,
    *,
    drop_worst: int = 0,
    resamples: int = 0,
    groups: Iterable[object] | None = None,
    **options,
) -> dict[str, object]:
    """Fit the runs below `threshold` FLOPs (C = 6 N D), predict those from there on.

    Errors are relative, (law - loss) / loss, over held-out runs: mean and largest of their size,
    and their mean (bias). The highest losses are dropped first, of all runs. `covered`: the share
    within the 95 % interval of a run, with resamples. options: those of `fit_law`. Raises
    `UserError` where too few runs are below, or none is above.
    """
    loss = numbers(loss, "loss")
    form = law_of(options.get("law", "chinchilla"))
    names, x = predictors(form, columns, len(loss))
    keep, C = kept(loss, drop_worst), compute(dict(zip(names, x, strict=True)))
    if C is None:
        raise UserError(
            f"a hold-out by largest budgets needs C, or N and D; there is only {names[0]}"
        )
    below, above = keep & (threshold > C), keep & (threshold <= C)
    if not (below.any() and above.any()):
        raise UserError(
            f"a hold-out at {threshold:g} FLOPs leaves {below.sum()} runs to fit and "
            f"{above.sum()} to predict; budgets reach from {C[keep].min():.3g} to "
            f"{C[keep].max():.3g}"
        )
    labels = None if groups is None else np.array(list(groups), dtype=object)
    try:
        fit = fit_law(
            dict(zip(names, x[:, below], strict=True)),
            loss[below],
            resamples=resamples,
            groups=None if labels is None else labels[below],
            **options,
        )
    except UserError as e:
        raise UserError(f"the {below.sum()} runs below {threshold:g} FLOPs: {e}") from e
    error = fit(*x[:, keep]) / loss[keep] - 1
    held = above[keep]
    return plain(
        {
            "threshold": float(threshold),
            "law": fit.law,
            "n_fitted": int(below.sum()),
            "n_held_out": int(above.sum()),
            "status": fit.status,
            "mean_abs_error": np.abs(error[held]).mean(),
            "max_abs_error": np.abs(error[held]).max(),
            "bias": error[held].mean(),
            "in_sample_error": np.abs(error[~held]).mean(),
            "distance": C[above].max() / C[below].max(),
            "covered": _covered(fit, names, x, loss, below, above),
            "exponents": fit.exponents,
            "params": fit.params,
        }
    )


def _covered(fit: LawFit, names, x, loss, below, above) -> float | None:
    """Share of the runs above that the interval of a run holds."""
    if not len(fit.draws):
        return None
    noise = Basis.of(fit, dict(zip(names, x[:, below], strict=True)), loss[below]).noise
    low, high = bootstrap.interval(
        new_runs(fit.form.loss(fit.draws, *x[:, above]), noise, fit.rng_seed)
    )
    return float(((low <= loss[above]) & (loss[above] <= high)).mean())


def said(row: Mapping[str, object]) -> str:
    """A hold-out in one line."""
    covered = (
        ""
        if row["covered"] is None
        else (f"; {100 * row['covered']:.0f} % within a run's 95 % interval")
    )
    doubt = "" if row["status"] == "converged" else f" (the fit is {row['status']})"
    return (
        f"hold-out: fitted to the {row['n_fitted']} runs below {row['threshold']:.3g} FLOPs"
        f"{doubt}, the {row['n_held_out']} above, to {row['distance']:.3g} times the largest "
        f"fitted, are off by {100 * row['mean_abs_error']:.2f} % (largest "
        f"{100 * row['max_abs_error']:.2f} %, bias {100 * row['bias']:+.2f} %; "
        f"{100 * row['in_sample_error']:.2f} % in sample){covered}"
    )
