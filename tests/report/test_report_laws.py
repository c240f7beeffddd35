"""The figures of laws: what is drawn is what was given, and no label hides another."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
from drawn import diamonds
from matplotlib.colors import to_hex
from matplotlib.patches import Ellipse
from planted_fits import law_fit, rival

from nanoscale.checks.worth import Worth, WorthAt
from nanoscale.errors import UserError
from nanoscale.laws.band import Band
from nanoscale.laws.holdout import RolloutStep
from nanoscale.laws.isoflop import IsoFlop, IsoflopGrid, Valley
from nanoscale.laws.multiverse import Analysis, Multiverse
from nanoscale.laws.rivals import Rivals
from nanoscale.report import (
    cloud_figure,
    frontier_figure,
    multiverse_figure,
    residuals_figure,
    rivals_figure,
    rollout_figure,
    save,
    surface_figure,
    svg,
    valleys_figure,
    worth_figure,
)
from nanoscale.report.marks import BEYOND, dots
from nanoscale.report.style import ACCENT, INK, LIGHT, PAPER, canvas, log_axis, sheet

G, A = 0.1, 0.5  # N* = G C^A of the planted law
LABELS = {
    "N": "N: total parameters",
    "D": "D: training tokens",
    "C": "C: training FLOPs, 6 N D",
    "loss": "validation loss (nats per token)",
}


def law(n, d):
    return 1.5 + 300 * n**-0.3 + 300 * d**-0.3


def points(budgets=4, sizes=7):
    """Runs at each budget over a factor 4 about N* = sqrt(C / 6), 1 % above the law."""
    c = np.repeat(np.geomspace(1e16, 1e19, budgets), sizes)
    n = np.sqrt(c / 6) * np.tile(np.geomspace(0.25, 4, sizes), budgets)
    d = c / 6 / n
    return {"N": n, "D": d, "C": c, "loss": 1.01 * law(n, d)}


BUDGETS = np.geomspace(1e16, 1e20, 41)  # the runs' are the first three quarters


def frontier():
    """The least loss at C, within 1 %."""
    n = np.sqrt(BUDGETS / 6)
    return Band(BUDGETS, law(n, n), 0.99 * law(n, n), 1.01 * law(n, n))


def best():
    """N* at C, within a factor 1.5."""
    n = np.sqrt(BUDGETS / 6)
    return Band(BUDGETS, n, n / 1.5, n * 1.5)


def fit(**changes):
    """`law`, fitted."""
    params = {"E": 1.5, "A": 300.0, "B": 300.0, "alpha": 0.3, "beta": 0.3}
    return law_fit(params, **changes)


def unknown(*names):
    return dict.fromkeys(names, "the runs do not say")


def with_two_runs_of_another_budget(given):
    """Too few for a curve."""
    n, c = np.array([1e9, 2e9]), np.full(2, 3e19)
    d = c / 6 / n
    more = {"N": n, "D": d, "C": c, "loss": law(n, d)}
    return {key: np.append(values, more[key]) for key, values in given.items()}


def valleys(given, hollow=1, faint=None):
    """Approach 2 with true parabolas in log10 N, one hollow, and budgets of too few points."""
    grid = IsoflopGrid(given["N"], given["D"], "N", 2)
    found = [valley(given, rows, used=i != hollow) for i, rows in enumerate(grid.rows)]
    if faint is not None:
        found[faint] = replace(found[faint], ci95=None)
    return IsoFlop(
        axis="N",
        degree=2,
        valleys=found,
        slope=A,
        intercept=0.0,
        exponents={"a": A, "b": 1 - A},
        ci95={"a": [0.48, 0.53]},
        noise=0.0,
        resamples=0,
        lost=0,
        warnings=[],
        grid=grid,
        used=np.array([v.used for v in found]),
        lines=np.empty((0, 2)),
    )


def valley(given, rows, used):
    """The minimum at one budget, known within a factor 1.3."""
    C = given["C"][rows[0]]
    if len(rows) < 4:
        return Valley(C=C, n_points=len(rows), flags=["too few points"], used=False)
    x, loss = np.log10(given["N"][rows]), given["loss"][rows]
    second, first, _ = np.polyfit(x - x.mean(), loss, 2)
    vertex = 10 ** (x.mean() - first / (2 * second))
    ends = [vertex / 1.3, vertex * 1.3]
    return Valley(
        C=C, n_points=len(rows), vertex=vertex, ci95=ends, loss=loss.min(), flags=[], used=used
    )


def valley_line():
    """N* at C through the valleys, within a factor 1.2."""
    n = np.sqrt(BUDGETS / 6)
    return Band(BUDGETS, n, n / 1.2, n * 1.2)


def rivals():
    laws = [
        rival("chinchilla", held_out=0.003, ahead=2.18),
        rival("power", held_out=None, ahead=2.12),
        rival("broken", held_out=0.01, status="max_iter"),
    ]
    return Rivals(
        law="chinchilla",
        ahead={"N": 3.16e9, "D": 3.16e11},
        budgets=[1e18],
        n_units=30,
        rivals=laws,
        reasons={},
        loss_ci95=[2.15, 2.2],
        preferred=None,
    )


def test_laws_without_a_fit_are_not_drawn():
    missed, ahead = rivals_figure(rivals()).axes
    assert [t.get_text() for t in missed.get_yticklabels()] == ["chinchilla", "power"]
    assert len(ahead.lines) == 2


def holdouts(**last):
    steps = [
        RolloutStep(
            threshold=t,
            law="chinchilla",
            n_fitted=n,
            n_held_out=30 - n,
            status="converged",
            mean_abs_error=0.012,
            max_abs_error=0.02,
            bias=b,
            in_sample_error=0.004,
            distance=10.0,
            covered=None,
            exponents={},
            params={},
            bias_ci95=[b - 0.01, b + 0.01],
        )
        for t, b, n in ((1e17, -0.008, 7), (1e18, 0.006, 14), (1e19, 0.004, 21))
    ]
    return [*steps[:-1], replace(steps[-1], **last)]


def analyses():
    """Eight fits and one without: a is 0.5 + 0.1 for the convention `bent`, + 0.01 per outlier."""
    rows = [
        Analysis(
            convention=c,
            approach=approach,
            objective=o,
            delta=delta,
            dropped=k,
            a=0.5 + 0.1 * (c == "bent") + 0.01 * k,
            status="converged",
        )
        for c in ("total", "bent")
        for k in (0, 1)
        for approach, o, delta in (("1", None, None), ("3", "log-huber", 1e-3))
    ]
    rows.append(replace(rows[0], approach="2", a=None, status="no budgets"))
    return Multiverse(
        rows=rows,
        a={"lowest": 0.5, "median": 0.555, "highest": 0.61},
        spread={
            "convention": 0.1,
            "approach": 0.0,
            "objective": None,
            "delta": None,
            "dropped": 0.01,
        },
    )


def draws(n=4000):
    u, v = np.random.default_rng(0).multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], n).T
    return {
        "alpha": 0.34 + 0.01 * u,
        "beta": 0.36 + 0.02 * v,
        "a": 0.51 + 0.01 * v,
        "E": 1.8 + 0.02 * u,
    }


PAIRS = (("alpha", "beta"), ("a", "E"))
FOUND = {"alpha": 0.34, "beta": 0.36, "a": 0.51, "E": 1.8}


def draw_valleys(given, surface=None, **how):
    return valleys_figure(
        valleys(given, **how), given["loss"], valley_line(), surface, labels=LABELS
    )


def worths():
    found = {}
    for name, value in (("learned positions in place of RoPE", 1.4), ("an untied head", 0.97)):
        at = []
        for flops in (2e11, 5e11, 1e12, 2e12):
            moved = value * (flops / 1e12) ** 0.05
            at.append(WorthAt(flops, flops, moved, (moved / 1.1, moved * 1.1), 2))
        found[name] = Worth(
            value, (value / 1.1, value * 1.1), 0.05, (0, 0.1), "holds", 0.005, 4, at
        )
    return found


FIGURES = {
    "frontier": lambda: frontier_figure(
        points(), frontier(), fit(), hull=[3, 10, 17, 24], labels=LABELS
    ),
    "bare": lambda: frontier_figure({"C": [1e16, 1e17], "loss": [3.0, 2.5]}, None, labels=LABELS),
    "surface": lambda: surface_figure(points(), fit(), best(), labels=LABELS),
    "residuals": lambda: residuals_figure(points(), fit(), labels=LABELS),
    "cloud": lambda: cloud_figure(draws(300), FOUND, PAIRS, names={}),
    "rollout": lambda: rollout_figure(holdouts(), labels=LABELS),
    "rivals": lambda: rivals_figure(rivals()),
    "valleys": lambda: draw_valleys(with_two_runs_of_another_budget(points()), best()),
    "multiverse": lambda: multiverse_figure(
        analyses(), fit(exponents={"a": 0.5}, ci95={"a": [0.45, 0.55]})
    ),
    "worth": lambda: worth_figure(worths()),
}


def texts(figure):
    return [t.get_text() for axes in figure.axes for t in axes.texts]


def lines(axes, colour, style=None):
    return [
        line
        for line in axes.lines
        if line.get_color() == colour
        and (style is None or line.get_linestyle() == style)
        and len(line.get_xdata()) > 1
    ]


def scattered(axes):
    """(x, y) of every dot inside the axes' data."""
    return np.concatenate(
        [
            np.asarray(c.get_offsets())
            for c in axes.collections
            if len(c.get_offsets())
            and c.get_transform() is not None
            and c.get_offset_transform() == axes.transData
        ]
    )


# -- what holds for every figure ----------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_no_label_hides_another(name):
    figure = FIGURES[name]()
    figure.canvas.draw()
    boxes = {}
    for axes in figure.axes:
        if not axes.get_visible():
            continue
        ticks = [
            t
            for i, (axis, ends) in enumerate(
                ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim()))
            )
            for t in axis.get_majorticklabels()
            if min(ends) <= t.get_position()[i] <= max(ends)
        ]
        for text in (*axes.texts, axes.xaxis.label, axes.yaxis.label, *ticks):
            if text.get_text().strip() and text.get_visible():
                boxes[text] = text.get_window_extent()
    found = list(boxes.items())
    hidden = [
        (a.get_text(), b.get_text())
        for i, (a, first) in enumerate(found)
        for b, second in found[i + 1 :]
        if first.shrunk(0.9, 0.7).overlaps(second.shrunk(0.9, 0.7))
    ]
    assert not hidden


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_every_label_is_in_the_file_and_every_colour_has_a_dark_twin(name, tmp_path):
    figure = FIGURES[name]()
    figure.canvas.draw()
    tight = figure.get_tightbbox()
    for axes in figure.axes:
        for text in [t for t in axes.texts if t.get_text()]:
            box = text.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
            assert tight.x0 - 0.01 <= box.x0 <= box.x1 <= tight.x1 + 0.01
            assert tight.y0 - 0.01 <= box.y0 <= box.y1 <= tight.y1 + 0.01
    text = svg(figure)
    bare = re.sub(r"var\(--\w+, (#[0-9a-f]{6})\)", "", text)
    assert re.findall(r"#[0-9a-f]{6}\b", re.sub(r'"#[^"]*"|url\([^)]*\)', "", bare)) == []
    assert save(figure, tmp_path / "a.png").stat().st_size > 5000


@pytest.mark.parametrize(
    "name", [n for n in FIGURES if n not in ("cloud", "multiverse", "rivals", "worth")]
)
def test_axes_say_their_convention(name):
    figure = FIGURES[name]()
    said = [*texts(figure), *(axes.get_xlabel() for axes in figure.axes)]
    wanted = {
        "surface": ["N", "D"],
        "valleys": ["N", "C", "loss"],
        "bare": ["C", "loss"],
        "residuals": ["C", "N", "D"],
        "rollout": ["C"],
    }.get(name, ["C", "N", "loss"])
    assert all(any(LABELS[key] in text for text in said) for key in wanted)


# -- each of them -------------------------------------------------------------------------------
def test_the_frontier_has_every_run_the_envelope_and_a_law_that_is_dashed_beyond_the_runs():
    given = points()
    axes = FIGURES["frontier"]().axes[0]
    drawn = scattered(axes)
    assert sorted(map(tuple, drawn)) == sorted(zip(given["C"], given["loss"], strict=True))
    solid, beyond = lines(axes, INK, "-")[0], lines(axes, INK, "--")[0]
    assert solid.get_xdata()[-1] == beyond.get_xdata()[0] <= 1e19 * 1.0001
    assert beyond.get_xdata()[-1] == pytest.approx(1e20)
    assert list(solid.get_ydata()) == list(frontier().y[: len(solid.get_ydata())])
    envelope = lines(axes, ACCENT)[0]
    assert list(envelope.get_xdata()) == list(given["C"][[3, 10, 17, 24]])
    assert {
        "E = 1.50 [1.40, 1.60]",
        "extrapolated",
        "envelope of the runs",
        "law: least loss at C, 95 % band",
    } <= set(texts(axes.figure))


def test_the_frontier_says_what_is_not_identified_and_draws_no_floor_then():
    law = fit(not_identified=unknown("E", "beta"))
    figure = frontier_figure(points(), frontier(), law, labels=LABELS)
    assert "not identified: E, beta" in texts(figure)
    assert not [t for t in texts(figure) if t.startswith("E = ")]


def test_the_surface_has_the_path_at_equal_compute_and_a_band_along_it():
    axes = FIGURES["surface"]().axes[0]
    solid = next(line for line in lines(axes, ACCENT, "-") if line.get_linewidth() > 1)
    n, d = solid.get_data()
    assert n == pytest.approx(d)  # the planted optimum: N* = D* = sqrt(C / 6)
    assert (6 * n * d).max() <= 1e19 * 1.0001
    band = axes.patches[0].get_xy()
    assert 6 * band[0, 0] * band[0, 1] == pytest.approx(BUDGETS[0])
    assert band[0, 0] == pytest.approx(best().y[0] / 1.5)
    assert list(band[41]) == pytest.approx([1.5 * best().y[-1], best().y[-1] / 1.5])
    for line in axes.lines:
        if line.get_linewidth() == 0.6 and line.get_color() != ACCENT:
            x, y = line.get_data()
            assert x[0] * y[0] == pytest.approx(x[1] * y[1])  # equal compute
    noted = surface_figure(points(), fit(status="not_identified"), best(), labels=LABELS)
    assert "the law is not identified: no N* is drawn" in texts(noted)
    assert not lines(noted.axes[0], ACCENT)


def test_the_shades_of_the_surface_are_the_laws_and_share_the_plane():
    axes = FIGURES["surface"]().axes[0]
    bands = axes.collections[0]
    shades = [to_hex(c) for c in bands.get_facecolor()]
    assert shades == [LIGHT[f"h{i}"] for i in range(6, 0, -1)]
    levels = [float(t.get_text()) for t in axes.texts if re.fullmatch(r"\d\.\d+", t.get_text())]
    n, d = (np.geomspace(*ends, 41) for ends in (axes.get_xlim(), axes.get_ylim()))
    inside = np.digitize(law(n[None], d[:, None]), sorted(set(levels)))
    assert len(set(levels)) == 5
    assert np.bincount(inside.ravel()).min() > 0.1 * inside.size


def test_residuals_are_per_cent_over_the_law_against_c_n_d_and_the_law():
    given = points()
    predicted = law(given["N"], given["D"])
    panels = residuals_figure(given, fit(), labels=LABELS).axes
    for axes, x in zip(panels, (given["C"], given["N"], given["D"], predicted), strict=True):
        drawn = scattered(axes)
        assert drawn[:, 1] == pytest.approx(np.ones(28))
        assert drawn[:, 0] == pytest.approx(x)
    assert panels[3].get_xlabel() == "loss of the law"
    assert not lines(panels[0], ACCENT)  # too few for a running median
    many = points(10, 40)
    panel = residuals_figure(many, fit(), labels=LABELS).axes[0]
    assert lines(panel, ACCENT)[0].get_ydata() == pytest.approx(np.ones(12))


def test_the_ellipse_holds_95_per_cent_of_a_normal_and_bars_are_the_intervals():
    figure = cloud_figure(draws(), FOUND, PAIRS, names={})
    for axes, (x, y) in zip(figure.axes, PAIRS, strict=True):
        ellipse = next(p for p in axes.patches if isinstance(p, Ellipse))
        inside = ellipse.get_path().contains_points(
            np.stack([draws()[x], draws()[y]], 1), ellipse.get_patch_transform()
        )
        assert inside.mean() == pytest.approx(0.95, abs=0.01)
        bar = next(line for line in lines(axes, INK) if list(line.get_ydata()) == [0, 0])
        assert list(bar.get_xdata()) == list(np.quantile(draws()[x], [0.025, 0.975]))
        (diamond,) = diamonds(axes)
        assert diamond.get_offsets().tolist() == [[FOUND[x], FOUND[y]]]
    assert "4\u202f000 resamples" in texts(figure)


def test_the_rollout_has_every_error_its_interval_and_what_it_rests_on():
    figure = FIGURES["rollout"]()
    axes = figure.axes[0]
    errors = [d.get_offsets()[0, 1] for d in diamonds(axes)]
    assert errors == pytest.approx([-0.8, 0.6, 0.4])
    bars = [list(line.get_ydata()) for line in lines(axes, INK, "-") if line.get_linewidth() == 1.6]
    assert np.array(bars) == pytest.approx(np.array([[-1.8, 0.2], [-0.4, 1.6], [-0.6, 1.4]]))
    assert {"fitted", "held out", "reach", "7", "23", "10×"} <= set(texts(figure))
    with pytest.raises(UserError, match="there is no rollout"):
        rollout_figure([], labels=LABELS)


def test_one_wild_budget_of_a_rollout_leaves_the_others_legible_and_says_its_value():
    figure = rollout_figure(
        holdouts(bias=-0.9, bias_ci95=[-3.0, 2.0], mean_abs_error=0.9), labels=LABELS
    )
    low, high = figure.axes[0].get_ylim()
    assert -8 < low < high < 10
    assert "\u221290 %" in texts(figure)
    assert {line.get_marker() for line in figure.axes[0].lines} >= {"^", "v"}


def test_valleys_show_fitted_curves_hollow_ones_and_count_those_left_out():
    given = with_two_runs_of_another_budget(points())
    found = valleys(given)
    left, right = draw_valleys(given, best()).axes
    curves = [line for line in left.lines if len(line.get_xdata()) == 61]
    assert [line.get_linestyle() for line in curves] == ["-", "--", "-", "-"]
    for curve, rows in zip(curves, found.grid.rows, strict=False):
        x, y = curve.get_data()
        log_n = np.log10(given["N"][rows])
        parabola = np.polyfit(log_n - log_n.mean(), given["loss"][rows], 2)
        assert y == pytest.approx(np.polyval(parabola, np.log10(x) - log_n.mean()))
    runs = [a for a in left.collections if a not in diamonds(left)]
    faces = [to_hex(a.get_facecolor()[0]) for a in runs]
    assert [face == PAPER for face in faces] == [False, True, False, False]
    marks = {d.get_offsets()[0, 0]: to_hex(d.get_facecolor()[0]) for d in diamonds(right)}
    assert [marks[v.C] == PAPER for v in found.valleys[:4]] == [False, True, False, False]
    bars = [
        list(line.get_ydata())
        for line in right.lines
        if len(line.get_xdata()) == 2 and line.get_xdata()[0] == line.get_xdata()[1]
    ]
    assert bars == [v.ci95 for v in found.valleys if v.used]
    assert (
        "hollow: no minimum on its grid (1); not drawn: too few points (1 of 5 budgets)"
        in texts(left.figure)
    )
    assert "N* ~ C^a, a = 0.500 [0.480, 0.530]" in texts(left.figure)


def test_a_minimum_lost_in_the_noise_is_faint_and_no_valley_at_all_is_an_error():
    left = draw_valleys(points(), hollow=None, faint=2).axes[0]
    curves = [line for line in left.lines if len(line.get_xdata()) == 61]
    assert [line.get_alpha() for line in curves] == [1, 1, 0.4, 1]
    assert "faint: minimum lost in the noise (1)" in texts(left.figure)
    with pytest.raises(UserError, match="there is no valley"):
        draw_valleys({key: values[:3] for key, values in points().items()})


def test_the_multiverse_marks_the_choices_of_every_exponent_in_order():
    figure = FIGURES["multiverse"]()
    top, below = figure.axes
    drawn = scattered(top)
    assert drawn[:, 1] == pytest.approx([0.5, 0.5, 0.51, 0.51, 0.6, 0.6, 0.61, 0.61])
    marks = [list(line.get_xdata()) for line in below.lines if line.get_marker() == "|"]
    assert marks == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [0, 2, 4, 6],
        [1, 3, 5, 7],
        [],
        [0, 1, 4, 5],
        [2, 3, 6, 7],
    ]  # total, bent; approaches 1, 3 and, without fits, 2; dropped
    said = texts(figure)
    assert {
        "8 analyses; 1 have no fit",
        "moves a by 0.100",
        "moves a by 0.010",
        "1, envelope",
        "2, parabola",
        "3, surface",
    } <= set(said)
    assert "objective" not in said  # it never varies
    bars = [line for line in below.lines if line.get_linewidth() == 4]
    widths = [np.ptp(line.get_xdata()) for line in bars]
    assert widths[0] == pytest.approx(10 * widths[2])
    assert widths[0] * below.bbox.width / figure.dpi * 72 == pytest.approx(95)


# -- few and many -------------------------------------------------------------------------------
def test_five_thousand_dots_are_small_and_five_are_not():
    assert dots(5)[0] > 5 * dots(5000)[0]
    assert dots(5000)[1] == 0
    given = points(50, 100)
    axes = residuals_figure(given, fit(), labels=LABELS).axes[0]
    assert len(scattered(axes)) == 5000


@pytest.mark.slow
def test_one_value_or_five_runs_make_every_figure():
    few = points(5, 1)
    frontier_figure(few, frontier(), fit(), hull=range(5), labels=LABELS)
    surface_figure(few, fit(), best(), labels=LABELS)
    residuals_figure(few, fit(), labels=LABELS)
    frontier_figure({"C": [1e16], "N": [1e6], "loss": [3.0]}, None, labels=LABELS)


@pytest.mark.parametrize("width", [1.6, 2.4, 3.8, 7.6])
def test_labels_of_a_log_axis_never_touch(width):
    for low in (1.0, 4.4e4, 6.1e9):
        for ratio in (1.3, 3, 6, 12, 80, 1e4, 1e20):
            figure, (axes,) = sheet(width, 3)
            log_axis(axes, "x", low, low * ratio)
            figure.canvas.draw()
            boxes = [label.get_window_extent() for label in axes.xaxis.get_majorticklabels()]
            assert len(boxes) >= 1
            for first, second in itertools.pairwise(boxes):
                assert first.x1 < second.x0, (low, ratio)


def test_ticks_of_a_narrow_axis_are_few():
    axes = canvas(3, 3).add_subplot()
    for low, high in ((1, 2), (2.9, 5.8), (3e7, 4e10), (1e3, 1e30)):
        log_axis(axes, "x", low, high, most=5)
        ticks = axes.xaxis.get_ticklocs()
        assert 2 <= len(ticks) <= 5
        assert low <= ticks[0] < ticks[-1] <= high


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"C": [], "loss": []}, "nothing to draw"),
        ({"C": [1.0, 2.0], "loss": [1.0]}, "nothing to draw"),
        ({"C": [1.0, -2.0], "loss": [1.0, 2.0]}, "not a positive finite number"),
        ({"C": [1.0, 2.0], "loss": [1.0, float("nan")]}, "not a positive finite number"),
    ],
)
def test_what_cannot_be_drawn_is_refused(columns, message):
    with pytest.raises(UserError, match=message):
        frontier_figure(columns, None, labels=LABELS)


def test_the_dash_of_the_unknown_is_one():
    axes = FIGURES["surface"]().axes[0]
    assert BEYOND == (0, (4, 3))
    assert lines(axes, ACCENT, "--")
