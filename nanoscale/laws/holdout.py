"""How a law would have done before: fit the runs below a budget, predict those from there on.

The one idea: no interval of a fit holds that its form is wrong further out; of the past that can be
asked, at one budget or at one after another.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack

import numpy as np

from nanoscale.data.gauge import each
from nanoscale.errors import UserError
from nanoscale.laws import bootstrap
from nanoscale.laws.arrays import Array, Mask
from nanoscale.laws.fit import LawFit, fit_law
from nanoscale.laws.forms import Law
from nanoscale.laws.points import Points, RowLabels, TableColumns, by_budget
from nanoscale.laws.predict import Basis, new_runs
from nanoscale.laws.record import Record
from nanoscale.laws.registry import law_of

MOST_BUDGETS, MOST_RESAMPLES = 6, 400  # of a rollout
RUNS_PER_PARAMETER = 2  # of the runs below a budget of a rollout
ROUNDED = 1e-3  # by which 6 N D of whole numbers may miss the budget that was meant
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
    resampling: str | None
    rng_seed: int


def holdout(
    columns: TableColumns,
    loss: Iterable[float],
    threshold: float,
    *,
    drop_worst: int = 0,
    resamples: int = 0,
    groups: RowLabels | None = None,
    **options: Unpack[FitOptions],
) -> HoldOut:
    """Fit the runs below `threshold` FLOPs (C = 6 N D), predict those from there on.

    The highest losses are dropped first, of all runs. Raises `UserError` where too few runs are
    below, or none is above.
    """
    past = Past.of(columns, loss, drop_worst, groups, options)
    budgets = past.points.budgets
    if budgets is None:
        only = past.points.names[0]
        raise UserError(f"a hold-out by largest budgets needs C, or N and D; there is only {only}")
    return past.held_out(budgets, threshold, resamples)


def rollout(
    columns: TableColumns,
    loss: Iterable[float],
    *,
    also: Sequence[float] = (),
    drop_worst: int = 0,
    resamples: int = MOST_RESAMPLES,
    groups: RowLabels | None = None,
    **options: Unpack[FitOptions],
) -> list[RolloutStep]:
    """Hold-outs at up to six budgets and those in `also`, in order.

    Of the resamples at most 400 are drawn. Budgets that leave too few runs below or a fit without a
    result are left out; so is every one of a law that reads no C.
    """
    past = Past.of(columns, loss, drop_worst, groups, options)
    budgets = past.points.budgets
    if budgets is None:
        return []
    steps = []
    least = RUNS_PER_PARAMETER * len(past.form.names)
    for threshold in each(thresholds(budgets, least, also), "hold-outs"):
        try:
            row = past.held_out(budgets, threshold, 0)
            bias = past.biases(_below(budgets, threshold), min(MOST_RESAMPLES, resamples))
        except UserError:
            continue
        ends = bootstrap.interval(bias).tolist() if len(bias) else None
        steps.append(RolloutStep(**vars(row), bias_ci95=ends))
    return steps


def _below(budgets: Array, threshold: float) -> Mask:
    """(n,): the runs that are fitted, which one that is meant to be at the threshold is not."""
    below: Mask = budgets < threshold * (1 - ROUNDED)
    return below


def thresholds(budgets: Array, least: int, also: Sequence[float] = ()) -> list[float]:
    """Between budgets (n,), evenly spread in ln C, with at least `least` runs below.

    Those of `also` as they are, and none but them within a factor 2 of one.
    """
    edges = _edges(budgets, least)
    if not edges:
        return sorted(also)

    wanted = np.geomspace(edges[0], edges[-1], MOST_BUDGETS)
    ratios = np.array(edges) / wanted[:, None]  # (wanted, edges)
    chosen = {*also}
    for i in np.abs(np.log(ratios)).argmin(1):
        edge = edges[i]
        if all(abs(np.log(edge / at)) > APART for at in also):
            chosen.add(edge)
    return sorted(chosen)


def _edges(budgets: Array, least: int) -> list[float]:
    """Between each budget and the next, where enough runs are below."""
    edges = []
    for low, high in itertools.pairwise(by_budget(budgets)):
        between = budgets[low].max() * budgets[high].min()
        edge = float(np.sqrt(between))
        if (budgets < edge).sum() >= least:
            edges.append(edge)
    return edges


@dataclass(frozen=True)
class Past:
    """The points of a table, of which the law is fitted to some."""

    form: Law
    points: Points
    labels: list[object] | None  # of the points
    options: FitOptions

    @classmethod
    def of(
        cls,
        columns: TableColumns,
        loss: Iterable[float],
        drop_worst: int,
        groups: RowLabels | None,
        options: FitOptions,
    ) -> Past:
        """What `fit_law` would fit with these options."""
        form = law_of(options.get("law", "chinchilla"))
        points = Points.of(form, columns, loss, drop_worst)
        labels = None if groups is None else points.labels(groups)
        return cls(form, points, labels, options)

    def fit(self, rows: Mask, resamples: int) -> LawFit:
        """To some of the points."""
        points = self.points.part(rows)
        groups = None
        if self.labels is not None:
            groups = list(itertools.compress(self.labels, rows))
        return fit_law(
            points.columns, points.loss, resamples=resamples, groups=groups, **self.options
        )

    def held_out(self, budgets: Array, threshold: float, resamples: int) -> HoldOut:
        """The law of the runs below a budget against those above; `UserError` for no such runs."""
        below = _below(budgets, threshold)
        n_fitted = int(below.sum())
        n_held_out = len(below) - n_fitted
        if not n_fitted or not n_held_out:
            raise UserError(
                f"a hold-out at {threshold:g} FLOPs leaves {n_fitted} runs to fit and "
                f"{n_held_out} to predict; budgets reach from {budgets.min():.3g} to "
                f"{budgets.max():.3g}"
            )
        try:
            fit = self.fit(below, resamples)
        except UserError as e:
            raise UserError(f"the {n_fitted} runs below {threshold:g} FLOPs: {e}") from e

        error = fit(*self.points.x) / self.points.loss - 1
        ahead = error[~below]
        return HoldOut(
            threshold=float(threshold),
            law=fit.law,
            n_fitted=n_fitted,
            n_held_out=n_held_out,
            status=fit.status,
            mean_abs_error=float(np.abs(ahead).mean()),
            max_abs_error=float(np.abs(ahead).max()),
            bias=float(ahead.mean()),
            in_sample_error=float(np.abs(error[below]).mean()),
            distance=float(budgets[~below].max() / budgets[below].max()),
            covered=self.covered(fit, below),
            exponents=fit.exponents,
            params=fit.params,
        )

    def biases(self, below: Mask, resamples: int) -> Array:
        """(R,): the mean error of the resamples' laws at the runs above."""
        fit = self.fit(below, resamples)
        above = self.points.part(~below)
        predicted = fit.losses(*above.x)  # (R, runs)
        biases: Array = (predicted / above.loss - 1).mean(1)
        return biases

    def covered(self, fit: LawFit, below: Mask) -> float | None:
        """Share of the runs above that the interval of a run holds."""
        if not len(fit.draws):
            return None
        seen = self.points.part(below)
        above = self.points.part(~below)
        noise = Basis.of(fit, seen.columns, seen.loss).noise
        laws = fit.losses(*above.x)
        low, high = bootstrap.interval(new_runs(laws, noise, fit.rng_seed))
        held = (low <= above.loss) & (above.loss <= high)
        return float(held.mean())
