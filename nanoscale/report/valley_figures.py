"""Approach 2 in pictures: the valleys of equal compute, and N* against C through their floors.

The one idea: what is not known looks it. A budget without a minimum on its grid is hollow and in no
line, a minimum that the noise swallows is faint, and a budget too small for a curve is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nanoscale.errors import UserError
from nanoscale.report.laws import BEYOND, HALO, LABELS, MANY, Columns, checked, dots, narrow_axis
from nanoscale.report.style import (
    ACCENT,
    INK,
    MARGIN,
    MUTED,
    PAPER,
    RULE,
    canvas,
    headed,
    log_axis,
    place,
    quantities,
    size_colours,
    spread,
    styled,
)

MOST_NAMED = 9  # budgets that are named, of those drawn


def valleys_figure(
    points: Columns,
    record: Mapping[str, object],
    path: Columns | None = None,
    *,
    labels: Mapping[str, str] = LABELS,
    title: str = "",
) -> Figure:
    """Loss over N at each budget with the fitted curves; beside it N* against C.

    points: `N`, `loss`. record: of Approach 2 along N (valleys with C, vertex, ci95, loss, used,
    `rows` of points and, where fitted, `curve`: coefficients, highest first, in log10 N - centre;
    `line`: C, N, lo, hi). Budgets in no line are hollow; those with too few points for a curve are
    not drawn. path: `C`, `N` of the fitted surface, for comparison.
    """
    n, loss = checked(points, "N", "loss")
    fitted = [v for v in record["valleys"] if v.get("curve")]
    if not fitted:
        raise UserError("no budget has enough points for a curve: there is no valley to draw")
    with styled():
        figure = canvas(7.6, 4.5)
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        place(figure, title, wspace=0.52, left=MARGIN + 4, below=54)
        shown = np.concatenate([v["rows"] for v in fitted]).astype(int)
        narrow_axis(left, "x", n[shown].min() / 1.25, n[shown].max() * 1.15)
        low, high = loss[shown].min(), loss[shown].max()
        log_axis(left, "y", low / (high / low) ** 0.1, high * (high / low) ** 0.05)
        left.grid(axis="y", color=RULE, linewidth=0.6)
        for valley, colour in zip(fitted, size_colours(len(fitted)), strict=True):
            _valley(left, valley, n, loss, colour, len(shown))
        _names(left, fitted, n)
        headed(left, title, labels["loss"], left=MARGIN + 4)
        left.set_xlabel(labels["N"], labelpad=6)
        _vertices(right, fitted, record, path)
        headed(right, "", f"N*{labels['N'].removeprefix('N')}")
        right.set_xlabel(labels["C"], labelpad=6)
        _left_out(left, record["valleys"])
    return figure


def _faint(valley: Mapping) -> bool:
    """Whether a minimum is lost in the noise: its interval has no end."""
    return valley["used"] and not valley["ci95"]


def _valley(
    axes: Axes, valley: Mapping, n: np.ndarray, loss: np.ndarray, colour: str, drawn: int
) -> None:
    rows, used = valley["rows"], valley["used"]
    area, rim, alpha = dots(drawn)
    alpha *= 0.4 if _faint(valley) else 1
    axes.scatter(
        n[rows],
        loss[rows],
        s=area,
        color=colour if used else PAPER,
        alpha=alpha,
        edgecolors=PAPER if used else colour,
        linewidths=rim if used else 0.9,
        zorder=3,
    )
    at = np.geomspace(n[rows].min(), n[rows].max(), 61)
    axes.plot(
        at,
        _at(valley, at),
        color=colour,
        linewidth=1.3 if used else 0.9,
        zorder=2,
        linestyle="-" if used else BEYOND,
        alpha=0.4 if _faint(valley) else 1,
    )
    if not used:
        return
    if valley["ci95"]:
        axes.plot(
            valley["ci95"],
            [valley["loss"]] * 2,
            color=INK,
            linewidth=1.2,
            zorder=4,
            solid_capstyle="butt",
        )
    axes.plot(
        valley["vertex"],
        valley["loss"],
        "D",
        color=colour,
        zorder=5,
        markersize=5.5 if drawn <= MANY else 3.5,
        markeredgecolor=PAPER,
        markeredgewidth=0.8 if drawn <= MANY else 0.4,
        alpha=0.4 if _faint(valley) else 1,
    )


def _at(valley: Mapping, n: np.ndarray | float) -> np.ndarray:
    """A budget's curve at N."""
    return np.polyval(valley["curve"]["coefficients"], np.log10(n) - valley["curve"]["centre"])


def _names(axes: Axes, fitted: Sequence[Mapping], n: np.ndarray) -> None:
    """C of some budgets at the right, with a line to the end of each one's curve."""
    coloured = list(zip(fitted, size_colours(len(fitted)), strict=True))
    clear = [pair for pair in coloured if not _faint(pair[0])] or coloured
    places = np.linspace(0, len(clear) - 1, min(MOST_NAMED, len(clear)))
    chosen = [clear[i] for i in places.round().astype(int)]
    ends = [(n[v["rows"]].max(), float(_at(v, n[v["rows"]].max()))) for v, _ in chosen]
    places = axes.transAxes.inverted().transform(axes.transData.transform(ends))
    moved = spread(places[:, 1].tolist(), 11 / (axes.bbox.height / axes.figure.dpi * 72))
    labels = quantities([float(f"{v['C']:.1e}") for v, _ in chosen])
    for (_, colour), label, end, y in zip(chosen, labels, ends, moved, strict=True):
        axes.annotate(
            label,
            end,
            (1.03, y),
            textcoords="axes fraction",
            va="center",
            size=8,
            color=colour,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": RULE, "linewidth": 0.6, "shrinkB": 4},
        )
    axes.annotate(
        "C, FLOPs",
        (1.03, 1),
        (0, 9),
        xycoords="axes fraction",
        size=8,
        color=MUTED,
        textcoords="offset points",
        annotation_clip=False,
    )


def _vertices(axes: Axes, fitted: Sequence[Mapping], record: Mapping, path: Columns | None) -> None:
    there = [(v, c) for v, c in zip(fitted, size_colours(len(fitted)), strict=True) if v["vertex"]]
    c = [v["C"] for v, _ in there]
    on = np.array(
        [x for v, _ in there for x in (v["vertex"], *((v["ci95"] or ()) if v["used"] else ()))]
    )
    low, high = np.quantile([v["vertex"] for v, _ in there], [0, 1])
    line = {k: np.array(v, float) for k, v in record["line"].items()}
    narrow_axis(axes, "x", min(c) / 1.6, line["C"][-1])
    low, high = max(on.min(), low / 4), min(on.max(), high * 4)
    narrow_axis(axes, "y", min(low, line["N"][0]) / 1.3, max(high, line["N"][-1]) * 1.6, 7)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.fill_between(line["C"], line["lo"], line["hi"], color=ACCENT, alpha=0.16, linewidth=0)
    inside = line["C"] <= max(c) * 1.0001
    beyond = ~inside
    beyond[max(int(inside.sum()) - 1, 0)] = True
    for part, dash in ((inside, "-"), (beyond, BEYOND)):
        axes.plot(
            line["C"][part], line["N"][part], color=ACCENT, linewidth=1.4, linestyle=dash, zorder=3
        )
    if path:
        axes.plot(path["C"], path["N"], color=INK, linewidth=1.0, linestyle=(0, (1, 1.6)), zorder=3)
    for v, colour in there:
        if v["used"] and v["ci95"]:
            axes.plot([v["C"]] * 2, v["ci95"], color=colour, linewidth=1.1, zorder=4)
        axes.plot(
            v["C"],
            v["vertex"],
            "D",
            color=colour if v["used"] else PAPER,
            markersize=5.5,
            markeredgecolor=PAPER if v["used"] else colour,
            markeredgewidth=0.8,
            zorder=5,
            alpha=0.4 if _faint(v) else 1,
        )
    a, ends = record["exponents"]["a"], record["ci95"].get("a")
    interval = f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else ""
    said = [(f"N* ~ C^a, a = {a:.3f}{interval}", ACCENT)]
    said += [("dotted: the fitted surface's own", INK)] if path else []
    for row, (text, colour) in enumerate(said):
        axes.annotate(
            text,
            (0, 1),
            (6, -3 - 13 * row),
            xycoords="axes fraction",
            va="top",
            textcoords="offset points",
            size=8.5,
            color=colour,
            path_effects=HALO,
            zorder=8,
        )


def _left_out(axes: Axes, valleys: Sequence[Mapping]) -> None:
    """What hollow and faint marks mean, and how many budgets are not drawn at all."""
    few = sum(not v.get("curve") for v in valleys)
    hollow = sum(bool(v.get("curve")) and not v["used"] for v in valleys)
    faint = sum(map(_faint, valleys))
    said = [f"hollow: no minimum on its grid ({hollow})"] * bool(hollow)
    said += [f"faint: minimum lost in the noise ({faint})"] * bool(faint)
    said += [f"not drawn: too few points ({few} of {len(valleys)} budgets)"] * bool(few)
    axes.annotate(
        "; ".join(said),
        (0, 0),
        (0, -50),
        xycoords="axes fraction",
        size=8,
        color=MUTED,
        textcoords="offset points",
        annotation_clip=False,
    )
