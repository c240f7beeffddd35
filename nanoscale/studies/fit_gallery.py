"""The figures of a fit: which ones its table allows, what they show, and their files.

The one idea: laws compute and report draws, and neither knows the other; here a fit becomes the
arrays that figures take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nanoscale.errors import disk_errors
from nanoscale.laws import bootstrap
from nanoscale.laws.envelope import hull
from nanoscale.laws.ladder import CURVE_REACH
from nanoscale.laws.points import compute, kept, numbers, predictors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nanoscale.laws import LawFit

MESH, CURVE = 121, 97  # points of a surface's side, of a line
COUNTED = {
    "total_params": "total parameters",
    "non_embedding_params": "parameters without embeddings and head",
    "non_position_params": "parameters without positions",
    "matrices_and_head_params": "parameters of matrices and head",
}
NATS = {"val_loss": "validation loss (nats per token)"}
NAMES = {
    "alpha": "alpha, exponent of N",
    "beta": "beta, exponent of D",
    "E": "E, loss (floor)",
    "a": "a of N* ~ C^a",
    "g": "exponent g",
}


def figures_of(
    fit: LawFit,
    columns: Mapping[str, Sequence[float]],
    loss: Sequence[float],
    record: Mapping[str, Any],
    drop_worst: int = 0,
) -> dict[str, Figure]:
    """Name -> figure, of those that the fit and its record allow.

    columns: as `fit_law` takes them; record: the fit's, with `columns` (option -> column) and, if
    they were asked for, `isoflop`, `multiverse` and `rollout`.
    """
    from nanoscale import report

    loss = numbers(loss, "loss")
    names, x = predictors(fit.form, columns, len(loss))
    keep = kept(loss, drop_worst)
    x, loss = x[:, keep], loss[keep]
    points = {**dict(zip(names, x, strict=True)), "loss": loss}
    labels = labels_of(record["columns"], names)
    if {"N", "D"} <= points.keys():
        points["C"] = compute(points)
    sound = fit.status != "max_iter"
    found = _of_surface(report, fit, points, record, labels) if {"N", "D"} == set(names) else {}
    if len(names) == 1:
        path = _line(fit, names[0], x[0]) if sound else None
        found["law"] = report.frontier_figure(points, path, record, x=names[0], labels=labels)
    if sound:
        found["residuals"] = report.residuals_figure(points, fit(*x), labels=labels)
    found |= _of_resamples(report, fit)
    if record.get("rollout"):
        found["rollout"] = report.rollout_figure(record["rollout"], labels=labels)
    if record.get("multiverse"):
        own = {"a": fit.exponents["a"], "ci95": fit.ci95.get("a")}
        found["multiverse"] = report.multiverse_figure(record["multiverse"], own=own)
    return found


def _of_surface(report, fit: LawFit, points, record, labels) -> dict[str, Figure]:
    """Of laws of N and D alone."""
    path = frontier(fit, points["C"])
    runs = hull(np.log(points["C"]), np.log(points["loss"]))
    found = {"frontier": report.frontier_figure(points, path, record, hull=runs, labels=labels)}
    if fit.status != "max_iter":
        ends = [np.geomspace(points[k].min() / 1.6, points[k].max() * 2.5, MESH) for k in "ND"]
        n, d = np.meshgrid(*ends)
        surface = {"N": ends[0], "D": ends[1], "loss": fit(n, d)}
        known = fit.status == "converged"
        found["surface"] = report.surface_figure(
            points,
            surface,
            path if known else None,
            labels=labels,
            note="" if known else f"the law is {fit.status.replace('_', ' ')}: no N* is drawn",
        )
    for name in ("parabola", "cubic"):
        one = record.get("isoflop", {}).get(name, {})
        if one and "error" not in one:
            found[f"isoflop_{name}"] = report.valleys_figure(points, one, path, labels=labels)
    return found


def _of_resamples(report, fit: LawFit) -> dict[str, Figure]:
    draws = dict(zip(fit.form.names, fit.draws.T, strict=True)) | fit.form.exponents(fit.draws)
    pairs = [
        p for p in (("alpha", "beta"), ("a", "E"), ("g", "E"), ("aN", "aD")) if {*p} <= draws.keys()
    ]
    if len(fit.draws) < bootstrap.FEWEST or not pairs:
        return {}
    return {"resamples": report.cloud_figure(draws, fit.params | fit.exponents, pairs, names=NAMES)}


def frontier(fit: LawFit, C: np.ndarray) -> dict[str, np.ndarray] | None:
    """N* and the loss there over the budgets C and ten times beyond, with 95 % intervals.

    Keys C, N, N_lo, N_hi, loss, lo, hi, each (n,); None for a law without an optimum.
    """
    if not fit.exponents or fit.status == "max_iter":
        return None
    low, high = CURVE_REACH
    at = np.geomspace(low * C.min(), high * C.max(), CURVE)
    draws = np.vstack([list(fit.params.values()), fit.draws])  # the fit itself comes first
    with np.errstate(all="ignore"):
        n = np.stack([fit.form.optimum(draws, c)[0] for c in at], axis=1)  # (1 + R, n)
        losses = np.stack(
            [
                fit.form.loss(draws, v[:, None], (c / 6 / v)[:, None])[:, 0]
                for c, v in zip(at, n.T, strict=True)
            ],
            axis=1,
        )
    if not (np.isfinite(n[0]).all() and np.isfinite(losses[0]).all()):
        return None
    n_ends, ends = (_ends(values) for values in (n, losses))
    return {
        "C": at,
        "N": n[0],
        "N_lo": n_ends[0],
        "N_hi": n_ends[1],
        "loss": losses[0],
        "lo": ends[0],
        "hi": ends[1],
    }


def _line(fit: LawFit, name: str, x: np.ndarray) -> dict[str, np.ndarray]:
    """A law of one predictor, over its range and ten times beyond."""
    low, high = CURVE_REACH
    at = np.geomspace(low * x.min(), high * x.max(), CURVE)
    low, high = _ends(np.vstack([fit(at), fit.form.loss(fit.draws, at)]))
    return {name: at, "loss": fit(at), "lo": low, "hi": high}


def _ends(values: np.ndarray) -> np.ndarray:
    """(2, n): the 95 % of all rows but the first, which is the fit's; that one without others."""
    sound = values[1:][np.isfinite(values[1:]).all(axis=1)]
    return bootstrap.interval(sound) if len(sound) else np.stack([values[0]] * 2)


def labels_of(columns: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """What the axes say: which column is N, D, C and the loss, and what follows from which."""
    two = {"N", "D"} <= set(names)
    n, d, c = (columns.get(key) for key in ("n", "d", "c"))
    counted = COUNTED.get(n, "parameters")
    return {
        "N": f"N: {counted}{_column(n, 'N')}" if n else "N: parameters, C / 6 D",
        "D": f"D: training tokens{_column(d, 'D')}" if d else "D: training tokens, C / 6 N",
        "C": f"C: training FLOPs{_column(c, 'C')}{', 6 N D' * two}",
        "loss": NATS.get(columns["loss"], f"L: {columns['loss']}"),
    }


def _column(name: str | None, key: str) -> str:
    return "" if name in (None, key) else f" ({name})"


# -- files ----------------------------------------------------------------------------------------
def write_figures(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write every figure as NAME.png, each whole or not at all."""
    from nanoscale.report import save

    with disk_errors(folder):
        folder.mkdir(exist_ok=True)
    return [save(figure, folder / f"{name}.png") for name, figure in figures.items()]
