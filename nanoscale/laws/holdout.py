"""How a law would have done before: fit the runs below a budget, predict those from there on.

The one idea: no interval of a fit holds that its form is wrong further out; of the past that can be
asked, at one budget or at one after another.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack

import numpy as np

from nanoscale.errors import UserError
from nanoscale.laws import bootstrap, isoflop
from nanoscale.laws.arrays import Array, Mask
from nanoscale.laws.fit import LawFit, fit_law
from nanoscale.laws.forms import Law
from nanoscale.laws.points import Points
from nanoscale.laws.predict import Basis, new_runs
from nanoscale.laws.record import Record
from nanoscale.laws.registry import law_of

MOST_BUDGETS, MOST_RESAMPLES = 6, 400  # of a rollout
_POINTS_PER_PARAMETER = 2  # of the runs below a budget of a rollout
APART = np.log(2)  # of a budget that was asked for, others are


@dataclass(frozen=True, kw_only=True)
class HoldOut(Record):
    """A law of the smaller runs against the larger ones; errors are (law - loss) / loss."""

    threshold: float  # FLOPs
    law: str
    n_fitted: int
    n_held_out: int
    status: str
    mean_abs_error: float
    max_abs_error: float
    bias: float  # mean error
    in_sample_error: float  # mean size of the error of the runs fitted
    distance: float  # largest budget over the largest fitted
    covered: float | None  # share within the 95 % interval of a run; None without resamples
    exponents: dict[str, float]
    params: dict[str, float]

    def text(self) -> str:
        """In one line."""
        doubt = "" if self.status == "converged" else f" (the fit is {self.status})"
        covered = ""
        if self.covered is not None:
            covered = f"; {100 * self.covered:.0f} % within a run's 95 % interval"
        return (
            f"hold-out: fitted to the {self.n_fitted} runs below {self.threshold:.3g} FLOPs"
            f"{doubt}, the {self.n_held_out} above, to {self.distance:.3g} times the largest "
            f"fitted, are off by {100 * self.mean_abs_error:.2f} % (largest "
            f"{100 * self.max_abs_error:.2f} %, bias {100 * self.bias:+.2f} %; "
            f"{100 * self.in_sample_error:.2f} % in sample){covered}"
        )


@dataclass(frozen=True, kw_only=True)
class RolloutStep(HoldOut):
    """One of several hold-outs, with a 95 % interval of its bias over resamples of the fit."""

    bias_ci95: list[float] | None


class FitOptions(TypedDict, total=False):
    """Those of `fit_law` that say how."""

    law: str | Law
    objective: str
    delta: float
    resampling: str
    rng_seed: int


def holdout(
    columns: Mapping[str, Iterable[float]],
    loss: Iterable[float],
    threshold: float,
    *,
    drop_worst: int = 0,
    resamples: int = 0,
    groups: Iterable[object] | None = None,
    **options: Unpack[FitOptions],
) -> HoldOut:
    """Fit the runs below `threshold` FLOPs (C = 6 N D), predict those from there on.

    The highest losses are dropped first, of all runs. Raises `UserError` where too few runs are
    below, or none is above.
    """
    points = Points.of(law_of(options.get("law", "chinchilla")), columns, loss, drop_worst)
    budgets = points.budgets
    if budgets is None:
        raise UserError(
            f"a hold-out by largest budgets needs C, or N and D; there is only {points.names[0]}"
        )
    below = budgets < threshold
    if below.all() or not below.any():
        raise UserError(
            f"a hold-out at {threshold:g} FLOPs leaves {below.sum()} runs to fit and "
            f"{(~below).sum()} to predict; budgets reach from {budgets.min():.3g} to "
            f"{budgets.max():.3g}"
        )
    labels = None if groups is None else points.labels(groups)
    try:
        fit = _fit_some(points, below, labels, resamples, options)
    except UserError as e:
        raise UserError(f"the {below.sum()} runs below {threshold:g} FLOPs: {e}") from e

    error = fit(*points.x) / points.loss - 1
    return HoldOut(
        threshold=float(threshold),
        law=fit.law,
        n_fitted=int(below.sum()),
        n_held_out=int((~below).sum()),
        status=fit.status,
        mean_abs_error=float(np.abs(error[~below]).mean()),
        max_abs_error=float(np.abs(error[~below]).max()),
        bias=float(error[~below].mean()),
        in_sample_error=float(np.abs(error[below]).mean()),
        distance=float(budgets[~below].max() / budgets[below].max()),
        covered=_covered(fit, points, below),
        exponents=fit.exponents,
        params=fit.params,
    )


def rollout(
    columns: Mapping[str, Iterable[float]],
    loss: Iterable[float],
    *,
    also: Sequence[float] = (),
    drop_worst: int = 0,
    resamples: int = MOST_RESAMPLES,
    groups: Iterable[object] | None = None,
    **options: Unpack[FitOptions],
) -> list[RolloutStep]:
    """Hold-outs at up to six budgets and those in `also`, in order.

    Of the resamples at most 400 are drawn. Budgets that leave too few runs below or a fit without a
    result are left out; so is every one of a law that reads no C.
    """
    form = law_of(options.get("law", "chinchilla"))
    columns = {name: list(values) for name, values in columns.items()}
    losses = list(loss)
    groups = None if groups is None else list(groups)
    points = Points.of(form, columns, losses, drop_worst)
    budgets = points.budgets
    if budgets is None:
        return []
    labels = None if groups is None else points.labels(groups)
    steps = []
    for threshold in thresholds(budgets, _POINTS_PER_PARAMETER * len(form.names), also):
        below = budgets < threshold
        try:
            row = holdout(
                columns, losses, threshold, drop_worst=drop_worst, groups=groups, **options
            )
            fit = _fit_some(points, below, labels, min(MOST_RESAMPLES, resamples), options)
        except UserError:
            continue
        predicted = fit.form.loss(fit.draws, *points.x[:, ~below])  # (resamples, runs)
        bias = (predicted / points.loss[~below] - 1).mean(1)
        ends = bootstrap.interval(bias).tolist() if len(bias) else None
        steps.append(RolloutStep(**vars(row), bias_ci95=ends))
    return steps


def thresholds(budgets: Array, least: int, also: Sequence[float] = ()) -> list[float]:
    """Between budgets (n,), evenly spread in ln C, with at least `least` runs below.

    Those of `also` as they are, and none but them within a factor 2 of one.
    """
    groups = isoflop.budgets(budgets)
    edges = []
    for low, high in itertools.pairwise(groups):
        edge = float(np.sqrt(budgets[low].max() * budgets[high].min()))
        if (budgets < edge).sum() >= least:
            edges.append(edge)
    if not edges:
        return sorted(also)

    wanted = np.geomspace(edges[0], edges[-1], MOST_BUDGETS)
    distance = np.abs(np.log(np.array(edges) / wanted[:, None]))  # (wanted, edges)
    chosen = {edges[i] for i in distance.argmin(1)}
    free = [edge for edge in chosen if all(abs(np.log(edge / at)) > APART for at in also)]
    return sorted({*also, *free})


def _fit_some(
    points: Points,
    rows: Mask,
    labels: Sequence[object] | None,
    resamples: int,
    options: FitOptions,
) -> LawFit:
    """The law of some of the points; labels: of all of them."""
    groups = None
    if labels is not None:
        groups = list(itertools.compress(labels, rows))
    columns = {name: values[rows] for name, values in points.columns.items()}
    return fit_law(columns, points.loss[rows], resamples=resamples, groups=groups, **options)


def _covered(fit: LawFit, points: Points, below: Mask) -> float | None:
    """Share of the runs above that the interval of a run holds."""
    if not len(fit.draws):
        return None
    columns = {name: values[below] for name, values in points.columns.items()}
    noise = Basis.of(fit, columns, points.loss[below]).noise
    laws = fit.form.loss(fit.draws, *points.x[:, ~below])
    low, high = bootstrap.interval(new_runs(laws, noise, fit.rng_seed))
    losses = points.loss[~below]
    return float(((low <= losses) & (losses <= high)).mean())
