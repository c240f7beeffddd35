"""How far a law may be off, in pictures: its resamples, its hold-outs, and other analyses of it.

The one idea: an exponent is never shown alone. It stands in the cloud of its resamples, beside what
smaller budgets would have predicted, and among what other defensible analyses give.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import MaxNLocator

from nanoscale.errors import UserError
from nanoscale.report.laws import BEYOND, HALO, LABELS, Columns, checked, dots, notes
from nanoscale.report.style import (
    ACCENT,
    INK,
    MARGIN,
    MINUS,
    MUTED,
    PAPER,
    RULE,
    SIZES,
    THIN,
    TIMES,
    canvas,
    headed,
    log_axis,
    place,
    quantities,
    styled,
)

IN_95 = math.sqrt(-2 * math.log(0.05))  # sd of the ellipse that holds 95 % of a 2-D normal
SHOWN = (0.002, 0.998)  # quantiles of the resamples that a cloud's axes hold
FAR = 4.0  # times the usual error, from which a rollout's error or interval leaves its axes
FEW = 60  # analyses that have a dot with a rim each
CHOICES = {
    "convention": "counting of N, D and C",
    "approach": "approach",
    "objective": "objective",
    "delta": "delta",
    "dropped": "highest losses dropped",
}
APPROACHES = {"1": SIZES[0], "2": SIZES[2], "2 cubic": SIZES[4], "3": SIZES[7]}


def cloud_figure(
    draws: Columns,
    found: Mapping[str, float],
    pairs: Sequence[tuple[str, str]] = (("alpha", "beta"), ("a", "E")),
    *,
    names: Mapping[str, str] | None = None,
    title: str = "",
) -> Figure:
    """The fits of all resamples, two parameters to a panel, about the fit itself.

    draws: name -> one value per resample; found: name -> the fit's. The ellipse holds 95 % of a
    normal of their covariance: where points leave it, an interval must come from the points.
    """
    names = names or {}
    with styled():
        figure = canvas(7.6 if len(pairs) > 1 else 5.2, 4.1)
        grid = figure.subplots(1, len(pairs), squeeze=False)[0]
        place(figure, "two lines", wspace=0.24, left=MARGIN + 6)
        for i, (axes, (x, y)) in enumerate(zip(grid, pairs, strict=True)):
            u, v = checked(draws, x, y, positive=False)
            _cloud(axes, u, v)
            axes.plot(
                found[x], found[y], "D", color=ACCENT, markersize=7, markeredgecolor=PAPER, zorder=6
            )
            headed(axes, "" if i else title, names.get(y, y), left=MARGIN + 6)
            axes.set_xlabel(names.get(x, x), labelpad=6)
        notes(
            grid[-1],
            [
                (f"{len(u):,} resamples".replace(",", THIN), SIZES[4]),
                ("the fit", ACCENT),
                ("dashed: a normal's 95 % ellipse; bars: 95 % intervals", MUTED),
            ],
            above=True,
        )
    return figure


def _cloud(axes: Axes, u: np.ndarray, v: np.ndarray) -> None:
    size, _, alpha = dots(len(u))
    axes.scatter(u, v, s=size, color=SIZES[4], linewidths=0, alpha=0.5 * alpha, zorder=3)
    for values, set_lim in ((u, axes.set_xlim), (v, axes.set_ylim)):
        low, high = np.quantile(values, SHOWN)
        room = 0.1 * max(high - low, 1e-12)
        set_lim(low - room, high + room)
    spread, turn = np.linalg.eigh(np.cov(u, v))
    width, height = 2 * IN_95 * np.sqrt(np.maximum(spread, 0))
    axes.add_patch(
        Ellipse(
            (u.mean(), v.mean()),
            width,
            height,
            fill=False,
            edgecolor=INK,
            angle=math.degrees(math.atan2(turn[1, 0], turn[0, 0])),
            linewidth=1.1,
            linestyle=BEYOND,
            zorder=5,
        )
    )
    wide, bar = (
        np.quantile(u, (0.025, 0.975)),
        {"color": INK, "linewidth": 2.5, "zorder": 5, "solid_capstyle": "butt", "clip_on": False},
    )
    axes.plot(wide, [0, 0], transform=axes.get_xaxis_transform(), **bar)
    axes.plot([0, 0], np.quantile(v, (0.025, 0.975)), transform=axes.get_yaxis_transform(), **bar)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(color=RULE, linewidth=0.6)


def rollout_figure(
    rows: Sequence[Mapping[str, object]], *, labels: Mapping[str, str] = LABELS, title: str = ""
) -> Figure:
    """Fit below a budget, predict above it: the error, for one budget after another.

    rows: hold-outs (threshold, bias, bias_ci95 or None, mean_abs_error, in_sample_error, n_fitted,
    n_held_out, distance), in order of threshold.
    """
    if not rows:
        raise UserError("no budget leaves enough runs below and one above: there is no rollout")
    c = np.array([row["threshold"] for row in rows], float)
    with styled():
        figure = canvas(7.6, 4.3)
        axes = figure.add_subplot()
        place(figure, title, below=84)
        room = (c.max() / c.min()) ** 0.08 if len(c) > 1 else 2.0
        log_axis(axes, "x", c.min() / room, c.max() * room)
        axes.grid(axis="y", color=RULE, linewidth=0.6)
        axes.axhline(0, color=INK, linewidth=0.8, zorder=2)
        for key, colour in (("mean_abs_error", SIZES[2]), ("in_sample_error", MUTED)):
            axes.plot(
                c,
                [100 * row[key] for row in rows],
                "o-",
                color=colour,
                zorder=3,
                linewidth=1.0,
                markersize=3.5,
            )
        limit = _limit(rows)
        for at, row in zip(c, rows, strict=True):
            _error(axes, at, row, limit)
        axes.set_ylim(-limit, 1.35 * limit)
        _counts(axes, c, rows)
        notes(
            axes,
            [
                ("mean error of held-out runs, with the fit's 95 % interval", ACCENT),
                ("their mean size of error", SIZES[2]),
                ("that of the fitted runs", MUTED),
            ],
        )
        headed(axes, title, "law over run (%)")
        axes.set_xlabel(f"budget below which runs are fitted, {labels['C']}", labelpad=6)
    return figure


def _error(axes: Axes, at: float, row: Mapping, limit: float) -> None:
    """One mean error and its interval; what leaves the axes ends in an arrow, with its value."""
    ends, bias = [100 * e for e in row.get("bias_ci95") or ()], 100 * row["bias"]
    axes.plot(
        [at] * len(ends),
        np.clip(ends, -limit, limit),
        color=INK,
        linewidth=1.6,
        solid_capstyle="butt",
        zorder=4,
    )
    for end in ends:
        if abs(end) > limit:
            axes.plot(
                at,
                math.copysign(0.97 * limit, end),
                "^" if end > 0 else "v",
                color=INK,
                markersize=5,
                zorder=5,
            )
    shown = float(np.clip(bias, -0.88 * limit, 0.88 * limit))
    axes.plot(at, shown, "D", color=ACCENT, markersize=6.5, zorder=6, markeredgecolor=PAPER)
    if shown != bias:
        axes.annotate(
            f"{bias:+.3g} %".replace("-", MINUS),
            (at, shown),
            (8, 0),
            size=8,
            textcoords="offset points",
            va="center",
            color=ACCENT,
            path_effects=HALO,
        )


def _limit(rows: Sequence[Mapping]) -> float:
    """Per cent that the axes hold: all, but nothing beyond `FAR` times the usual size of error."""
    usual = FAR * float(np.median([row["mean_abs_error"] for row in rows]))
    means = max(abs(row["bias"]) for row in rows)
    ends = max((abs(end) for row in rows for end in row.get("bias_ci95") or ()), default=0)
    return 115 * max(min(means, usual), min(ends, usual), usual / FAR, 1e-6)


def _counts(axes: Axes, c: np.ndarray, rows: Sequence[Mapping]) -> None:
    """Under each budget, the runs that it rests on."""
    lines = (("n_fitted", "fitted"), ("n_held_out", "held out"), ("distance", "reach"))
    for line, (key, label) in enumerate(lines):
        at = {
            "xycoords": axes.get_xaxis_transform(),
            "textcoords": "offset points",
            "size": 7.5,
            "color": MUTED,
            "va": "top",
            "annotation_clip": False,
        }
        axes.annotate(label, (axes.get_xlim()[0], 0), (-4, -46 - 10 * line), ha="right", **at)
        for x, row in zip(c, rows, strict=True):
            number = quantities([float(f"{row[key]:.3g}")])[0] if key == "distance" else row[key]
            text = f"{number}{TIMES if key == 'distance' else ''}"
            axes.annotate(text, (x, 0), (0, -46 - 10 * line), ha="center", **at)


def multiverse_figure(
    record: Mapping[str, object], *, own: Mapping[str, object] | None = None, title: str = ""
) -> Figure:
    """The exponent a under every analysis, sorted, and below it which choices each one made.

    record: of the multiverse (rows, spread, a). At the right of each choice: by how much a moves
    with it, all else equal. own: `a` and, if known, `ci95` of the fit that was asked for.
    """
    rows = sorted((r for r in record["rows"] if r["a"] is not None), key=lambda r: r["a"])
    groups = [(key, _options(record["rows"], key)) for key in CHOICES]
    groups = [(key, options) for key, options in groups if len(options) > 1]
    lines = sum(len(options) + 1 for _, options in groups)
    names = [name for key, options in groups for name in _named(key, options)]
    room = 14 + 4.5 * max([*map(len, names), 22])
    with styled():
        figure = canvas(max(7.6, 4.6 + (room + 112) / 72), 3.2 + 0.155 * lines)
        top, below = figure.subplots(2, 1, sharex=True, height_ratios=(160, 11.2 * lines + 1))
        place(figure, title, left=room, right=112, below=14, hspace=0.06)
        _curve(top, rows, own)
        _matrix(below, rows, groups, record["spread"])
        headed(top, title, "a of N* ~ C^a, one mark per analysis, sorted", left=MARGIN)
        lost = len(record["rows"]) - len(rows)
        text = f"{len(rows)} analyses" + f"; {lost} have no fit" * bool(lost)
        top.annotate(
            text,
            (1, 0),
            (0, 5),
            xycoords="axes fraction",
            ha="right",
            size=8.5,
            textcoords="offset points",
            color=MUTED,
            path_effects=HALO,
        )
    return figure


def _curve(axes: Axes, rows: Sequence[Mapping], own: Mapping | None) -> None:
    a = [row["a"] for row in rows]
    if own:
        if own.get("ci95"):
            axes.axhspan(*own["ci95"], color=ACCENT, alpha=0.10, linewidth=0, zorder=0)
        axes.axhline(own["a"], color=ACCENT, linewidth=1.1, zorder=2)
        axes.annotate(
            "this fit" + "\nand its 95 % interval" * bool(own.get("ci95")),
            (1, own["a"]),
            (5, 0),
            xycoords=axes.get_yaxis_transform(),
            color=ACCENT,
            textcoords="offset points",
            size=8,
            va="center",
            annotation_clip=False,
        )
    area, rim = (30, 0.6) if len(a) <= FEW else (10, 0)
    axes.scatter(
        range(len(a)),
        a,
        s=area,
        c=[APPROACHES[row["approach"]] for row in rows],
        linewidths=rim,
        edgecolors=PAPER,
        zorder=3,
    )
    axes.set_xlim(-0.02 * len(a) - 0.6, 1.02 * len(a) - 0.4)
    axes.margins(y=0.1)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.tick_params(bottom=False, labelbottom=False)
    axes.spines["bottom"].set_visible(False)


def _matrix(
    axes: Axes,
    rows: Sequence[Mapping],
    groups: Sequence[tuple[str, list]],
    moved: Mapping[str, float | None],
) -> None:
    """A line per option with a mark under every analysis that took it."""
    y, largest = 0.0, max([v for v in moved.values() if v] or [1.0])
    for key, options in groups:
        y += 1
        width = axes.bbox.width / axes.figure.dpi * 72
        axes.annotate(
            CHOICES[key],
            (0, y - 0.9),
            (-6, 0),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            size=8,
            weight="bold",
            color=INK,
            va="center",
            ha="right",
            annotation_clip=False,
        )
        first = y - 0.9
        for option, name in zip(options, _named(key, options), strict=True):
            at = [i for i, row in enumerate(rows) if row[key] == option]
            axes.plot(
                at,
                [y] * len(at),
                "|",
                markersize=6.5,
                zorder=3,
                markeredgewidth=float(np.clip(0.5 * width / len(rows), 0.5, 3)),
                color=APPROACHES[option] if key == "approach" else MUTED,
            )
            axes.annotate(
                name,
                (0, y),
                (-6, 0),
                ha="right",
                va="center",
                size=8,
                xycoords=axes.get_yaxis_transform(),
                textcoords="offset points",
                color=MUTED,
                annotation_clip=False,
            )
            y += 1
        _worth(axes, first, moved.get(key), largest)
    axes.set_ylim(y, -0.6)
    axes.set_yticks([])
    axes.tick_params(bottom=False, labelbottom=False)
    for side in axes.spines.values():
        side.set_visible(False)


def _worth(axes: Axes, y: float, value: float | None, largest: float) -> None:
    text = "n/a" if value is None else f"moves a by {value:.3f}"
    axes.annotate(
        text,
        (1, y),
        (5, 0),
        xycoords=axes.get_yaxis_transform(),
        size=8,
        color=INK,
        textcoords="offset points",
        va="center",
        annotation_clip=False,
    )
    if value is not None:
        width = axes.bbox.width / axes.figure.dpi * 72
        axes.plot(
            [1 + 5 / width, 1 + (5 + 95 * value / largest) / width],
            [y + 0.9] * 2,
            color=ACCENT,
            linewidth=4,
            solid_capstyle="butt",
            clip_on=False,
            transform=axes.get_yaxis_transform(),
        )


def _options(rows: Sequence[Mapping], key: str) -> list:
    return list(dict.fromkeys(row[key] for row in rows if row[key] is not None))


def _named(key: str, options: Sequence) -> list[str]:
    if key == "approach":
        return [
            {"1": "1, envelope", "2": "2, parabola", "2 cubic": "2, cubic", "3": "3, surface"}[
                option
            ]
            for option in options
        ]
    return quantities(options) if key == "delta" else [str(option) for option in options]
