"""The gallery of a fit: which figures its table allows, what they show, and their files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from nanoscale import report
from nanoscale.laws import LawFit, bootstrap
from nanoscale.laws.arrays import Array
from nanoscale.laws.band import Band
from nanoscale.laws.envelope import hull
from nanoscale.laws.ladder import CURVE_REACH

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nanoscale.studies.table_fit import TableFit

_CURVE = 97  # points of a line
COUNTED = {
    "total_params": "total parameters",
    "non_embedding_params": "parameters without embeddings and head",
    "non_position_params": "parameters without positions",
    "matrices_and_head_params": "parameters of matrices and head",
}
NATS = {"val_loss": "validation loss (nats per token)"}
_NAMES = {
    "alpha": "alpha, exponent of N",
    "beta": "beta, exponent of D",
    "E": "E, loss (floor)",
    "a": "a of N* ~ C^a",
    "g": "exponent g",
}
_PAIRS = (("alpha", "beta"), ("a", "E"), ("g", "E"), ("aN", "aD"))  # of parameters, in a cloud


def gallery(result: TableFit) -> dict[str, Figure]:
    """Name -> figure, of those that the fit and what was asked beside it allow."""
    fit, data = result.fit, result.points
    points = data.columns | {"loss": data.loss}
    names = set(points)
    labels = labels_of(result.rows.columns)
    if data.budgets is not None:
        points["C"] = data.budgets
    known = fit.status != "max_iter"
    figures: dict[str, Figure] = {}
    if names == {"N", "D", "loss"}:
        figures |= _of_surface(result, points, labels)
    if len(data.names) == 1:
        (name,) = data.names
        law = _line(fit, data.x[0]) if known else None
        figures["law"] = report.frontier_figure(points, law, fit, x=name, labels=labels)
    if known:
        figures["residuals"] = report.residuals_figure(points, fit, labels=labels)
    figures |= _of_resamples(fit)
    if result.rollout:
        figures["rollout"] = report.rollout_figure(result.rollout, labels=labels)
    if result.rivals is not None:
        figures["rivals"] = report.rivals_figure(result.rivals)
    if result.multiverse is not None:
        figures["multiverse"] = report.multiverse_figure(result.multiverse, fit)
    return figures


def _of_surface(
    result: TableFit, points: Mapping[str, Array], labels: Mapping[str, str]
) -> dict[str, Figure]:
    """Of laws of N and D alone."""
    fit = result.fit
    least, best = frontier(fit, points["C"]) or (None, None)
    runs = hull(np.log(points["C"]), np.log(points["loss"]))
    figures = {
        "frontier": report.frontier_figure(points, least, fit, hull=runs.tolist(), labels=labels)
    }
    if fit.status != "max_iter":
        figures["surface"] = report.surface_figure(points, fit, best, labels=labels)
    if result.isoflop is not None:
        for name in ("parabola", "cubic"):
            valleys = getattr(result.isoflop, name)
            if not isinstance(valleys, str):
                figures[f"isoflop_{name}"] = report.valleys_figure(
                    valleys.isoflop, valleys.loss, valleys.line, best, labels=labels
                )
    return figures


def _of_resamples(fit: LawFit) -> dict[str, Figure]:
    draws = dict(zip(fit.form.names, fit.draws.T, strict=True)) | fit.form.exponents(fit.draws)
    pairs = [pair for pair in _PAIRS if {*pair} <= draws.keys()]
    if len(fit.draws) < bootstrap.FEWEST or not pairs:
        return {}
    values = fit.params | fit.exponents
    return {"resamples": report.cloud_figure(draws, values, pairs, names=_NAMES)}


# -- lines --------------------------------------------------------------------------------------
def frontier(fit: LawFit, budgets: Array) -> tuple[Band, Band] | None:
    """The least loss and N* over the budgets (n,) and ten times beyond, with 95 % intervals.

    None for a law without an optimum.
    """
    if not fit.exponents or fit.status == "max_iter":
        return None
    C = _reach(budgets)
    draws = np.vstack([list(fit.params.values()), fit.draws])  # (1 + R, p), the fit itself first
    with np.errstate(all="ignore"):
        N = np.stack([fit.form.optimum(draws, c)[0] for c in C], axis=1)  # (1 + R, n)
        D = C / 6 / N
        at_each = [fit.form.loss(draws, N[:, [i]], D[:, [i]])[:, 0] for i in range(len(C))]
        loss = np.stack(at_each, axis=1)
    if not (np.isfinite(N[0]).all() and np.isfinite(loss[0]).all()):
        return None
    return _band(C, loss), _band(C, N)


def _line(fit: LawFit, x: Array) -> Band:
    """A law of one predictor, over its range and ten times beyond."""
    at = _reach(x)
    return _band(at, np.vstack([fit(at), fit.losses(at)]))


def _reach(x: Array) -> Array:
    low, high = CURVE_REACH
    return np.geomspace(low * x.min(), high * x.max(), _CURVE)


def _band(x: Array, values: Array) -> Band:
    """Of values (1 + R, n): the first row is the fit's, the others give its 95 % interval."""
    sound = values[1:][np.isfinite(values[1:]).all(axis=1)]
    low, high = bootstrap.interval(sound) if len(sound) else (values[0], values[0])
    return Band(x, values[0], low, high)


# -- words --------------------------------------------------------------------------------------
def labels_of(columns: Mapping[str, str]) -> dict[str, str]:
    """What the axes say: which column is N, D, C and the loss, and what follows from which."""
    n, d, c = (columns.get(key) for key in ("n", "d", "c"))
    of_both = ", 6 N D" if len({"n", "d", "c"} & columns.keys()) > 1 else ""
    counted = COUNTED.get(n or "", "parameters")
    return {
        "N": f"N: {counted}{_column(n, 'N')}" if n else "N: parameters, C / 6 D",
        "D": f"D: training tokens{_column(d, 'D')}" if d else "D: training tokens, C / 6 N",
        "C": f"C: training FLOPs{_column(c, 'C')}{of_both}",
        "loss": NATS.get(columns["loss"], f"L: {columns['loss']}"),
    }


def _column(name: str | None, key: str) -> str:
    return "" if name in (None, key) else f" ({name})"
