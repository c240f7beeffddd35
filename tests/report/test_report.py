"""Figures are judged by what is drawn, the page by what a browser would have to read."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from base64 import b64encode
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pandas as pd
import pytest
from drawn import dots
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from tiny import ROOT

from nanoscale.errors import UserError
from nanoscale.report import (
    StudyPage,
    heatmap_figure,
    law_figure,
    lines_figure,
    loss_curves_figure,
    save,
    svg,
)
from nanoscale.report.style import (
    COLOURS,
    LIGHT,
    log_ticks,
    quantities,
    raised,
    size_colours,
    spread,
)

X = np.geomspace(1e14, 1e16, 6)


def fit(**changes):
    """L(C) = 1.5 + 100 / C^0.12 with a band of 2 %."""
    from planted_fits import ladder_fit  # needs the laws, which a page does not

    return ladder_fit(X, **changes)


def unknown(*names):
    return dict.fromkeys(names, "the runs do not say")


def ladder():
    """Eight runs at six sizes, the second with three seeds, each 1 % above the law."""
    x = X[[0, 1, 1, 1, 2, 3, 4, 5]]
    loss = 1.01 * (1.5 + 100 * x**-0.12)
    sizes = [f"{n}M" for n in (1, 2, 2, 2, 4, 8, 16, 32)]
    return pd.DataFrame({"x": x, "loss": loss, "size": sizes, "seed": [1, 1, 2, 3, 1, 1, 1, 1]})


def curves():
    t = np.geomspace(1e4, 1e6, 9)
    rows = []
    for name, size, end in (("a", "1M", 3.0), ("b", "1M", 3.01), ("c", "2M", 2.9)):
        losses = end + (t / t[-1]) ** -0.3 - 1
        rows += [
            {"run": name, "size": size, "tokens_seen": u, "val_loss": v}
            for u, v in zip(t, losses, strict=True)
        ]
    return [{"run": "a", "size": "1M", "tokens_seen": 0, "val_loss": 9.0}, *rows]


def grid(best=(1e-3, 0.1)):
    return [
        {"lr": lr, "wd": wd, "loss": 2.5 + abs(np.log10(lr / best[0])) + abs(wd - best[1])}
        for lr in (1e-4, 1e-3, 1e-2)
        for wd in (0.0, 0.1)
    ]


def texts(figure):
    return [t.get_text() for axes in figure.axes for t in axes.texts]


def dashed(axes):
    return [line for line in axes.lines if line.get_linestyle() == "--"]


def test_the_law_figure_shows_every_run_the_law_and_where_it_is_extrapolated():
    figure = law_figure(ladder(), fit(), title="Loss")
    top, bottom = figure.axes
    runs = sorted(zip(ladder()["x"], ladder()["loss"], strict=True))
    assert dots(top) == runs
    assert (top.get_xscale(), top.get_yscale()) == ("log", "log")
    assert {"1M", "2M\n3 seeds", "32M", "extrapolated", "Loss"} <= set(texts(figure))
    assert "L(C) = 1.50 + 100 / C⁰·¹²⁰" in texts(figure)
    assert bottom.get_xlabel() == "training compute C (FLOPs, exact, forward + backward)"
    assert "validation loss (nats per token)" in texts(figure)
    solid = max((line for line in top.lines if line.get_linestyle() == "-"),
                key=lambda line: len(line.get_xdata()))  # fmt: skip
    beyond = next(line for line in dashed(top) if len(line.get_xdata()) > 2)
    assert solid.get_xdata()[-1] == beyond.get_xdata()[0] <= X[-1] * 1.001
    assert beyond.get_xdata()[-1] == pytest.approx(10 * X[-1])
    bands = [a for a in top.collections if isinstance(a, PolyCollection)]
    assert len(bands) == 2  # inside and beyond


def test_the_law_figure_shows_how_far_each_run_is_from_the_law():
    bottom = law_figure(ladder(), fit()).axes[1]
    assert [y for _, y in dots(bottom)] == pytest.approx([1.0] * 8, abs=1e-3)


def test_E_is_a_labelled_line_only_where_it_is_identified():
    known = law_figure(ladder(), fit())
    lost = law_figure(ladder(), fit(not_identified=unknown("E")))
    at_E = [line for line in dashed(known.axes[0]) if set(line.get_ydata()) == {1.5}]
    assert len(at_E) == 1
    assert "E = 1.50 [1.40, 1.60]" in texts(known)
    assert len(dashed(lost.axes[0])) == 1
    assert "E not identified" in texts(lost)


def test_without_a_fit_or_with_none_that_converged_the_runs_stand_alone():
    from nanoscale.laws.ladder import LawCurve

    broken = fit(status="max_iter", curve=LawCurve([], [], [], []))
    for law in (None, broken):
        figure = law_figure(ladder(), law)
        assert len(figure.axes) == 1
        assert len(dots(figure.axes[0])) == 8


def test_a_run_without_a_loss_is_left_out_and_all_of_them_is_an_error():
    table = ladder().assign(loss=lambda t: t["loss"].where(t["size"] != "8M"))
    assert len(dots(law_figure(table, fit()).axes[0])) == 7
    with pytest.raises(UserError, match="no run has a positive finite 'loss'"):
        law_figure(table.assign(loss=None), None)


def test_loss_curves_are_labelled_once_per_size_at_their_ends():
    figure = loss_curves_figure(curves())
    axes = figure.axes[0]
    lines = [line for line in axes.lines if line.get_marker() == "None"]
    assert [len(line.get_xdata()) for line in lines] == [9, 9, 9]  # tokens 0 left out
    assert len({line.get_color() for line in lines}) == 2
    assert [t for t in texts(figure) if t.endswith("M")] == ["1M", "2M"]
    label = next(t for t in axes.texts if t.get_text() == "1M")
    assert label.xy == (pytest.approx(1e6), pytest.approx(3.0))


@pytest.mark.slow
def test_long_names_and_many_runs_leave_room_for_the_curves():
    rows = [
        {
            "run": str(i),
            "size": f"{'a key of some length=1, ' * 5}{i}",
            "tokens_seen": t,
            "val_loss": 3 - 0.1 * t + 0.01 * i,
        }
        for i in range(40)
        for t in (1, 2)
    ]
    figure = loss_curves_figure(rows)
    figure.canvas.draw()
    labels = [text for text in texts(figure) if text.startswith("a key")]
    assert len(labels) == 20
    assert all(len(label) == 40 for label in labels)
    assert figure.axes[0].get_position().width > 0.4


def test_the_heat_map_frames_the_best_cell_and_hatches_what_has_no_value():
    rows = [*grid(), {"lr": 1e-3, "wd": 0.0, "loss": 4.0}, grid()[3]]  # two second seeds
    rows[5]["loss"] = float("nan")
    axes = heatmap_figure(rows, "lr", "wd", "loss").axes[0]
    shown = {t.get_text() for t in axes.texts}
    assert {"2.500", "3.500", "3.600", "3.300"} <= shown  # 3.300: mean of 2.6 and 4
    assert len([p for p in axes.patches if p.get_hatch()]) == 1
    frame = axes.patches[-1]
    assert not frame.get_fill()
    assert (frame.get_x() + 0.5, frame.get_y() + 0.5) == (pytest.approx(1), pytest.approx(1))
    assert [t.get_text() for t in axes.get_xticklabels()] == ["10⁻⁴", "10⁻³", "10⁻²"]
    best = next(t for t in axes.texts if t.get_text() == "2.500")
    assert best.get_weight() == "bold"
    with pytest.raises(UserError, match="lower the learning rates"):
        heatmap_figure([{**row, "loss": None} for row in rows], "lr", "wd", "loss")


def test_the_best_cell_is_framed_and_what_is_tied_with_it_is_dotted():
    rows = []
    for row in grid():
        for seed in (1, 2, 3):
            noise = 0.3 * (seed - 2) * (row["wd"] or -1)
            rows.append({**row, "seed": seed, "loss": row["loss"] + noise})
    figure = heatmap_figure(rows, "lr", "wd", "loss")
    frames = [patch for patch in figure.axes[0].patches if not patch.get_fill()]
    places = {(p.get_x() + 0.5, p.get_y() + 0.5): p.get_linestyle() for p in frames}
    assert places == {(1, 1): "-", (1, 0): ":"}


def test_a_cell_with_one_diverged_seed_is_hatched():
    rows = [*grid(), {"lr": 1e-3, "wd": 0.0, "loss": float("inf")}]
    axes = heatmap_figure(rows, "lr", "wd", "loss").axes[0]
    assert len([p for p in axes.patches if p.get_hatch()]) == 1


def test_lines_join_means_and_ring_minima_in_every_panel():
    rows = [
        {"lr": lr, "batch": b, "loss": 2 + np.log10(lr / best) ** 2 + off, "tps": 10.0 * b}
        for b, best in ((8, 1e-3), (16, 1e-2))
        for lr in (1e-4, 1e-3, 1e-2)
        for off in (-0.1, 0.1)
    ]
    y = {"loss": "loss", "tps": "tokens per second"}
    figure = lines_figure(rows, x="lr", y=y, group="batch", mark_lowest=True)
    loss, tps = figure.axes
    rings = [line for line in loss.lines if line.get_markersize() > 8]
    lowest = [(r.get_xdata()[0], r.get_ydata()[0]) for r in rings]
    assert lowest == [(1e-3, pytest.approx(2.0)), (1e-2, pytest.approx(2.0))]
    assert len(dots(loss)) == 12
    assert {"8", "16", "tokens per second"} <= set(texts(figure))
    assert tps.get_xscale() == "log"
    assert not [a for a in lines_figure(rows, x="lr", y={"loss": "l"}).axes[0].lines
                if a.get_markersize() > 8]  # fmt: skip


def test_a_dollar_in_a_name_is_a_dollar(tmp_path):
    names = ["$a_{", "b$ at $5"]
    rows = [
        {"$x^{": i, "cost": float(i + k), "who$": n} for i in (1, 2) for k, n in enumerate(names)
    ]
    y = {"cost": "cost in $ of $run_{"}
    figure = lines_figure(rows, x="$x^{", y=y, group="who$", x_label="$x^{")
    drawn = save(figure, tmp_path / "f.svg").read_text(encoding="utf-8")
    for name in (*names, *y.values(), "$x^{"):
        assert f">{name}<" in drawn


def test_a_missing_column_is_named_with_the_nearest():
    with pytest.raises(UserError, match="no column 'loss'; did you mean 'los'"):
        law_figure(ladder().rename(columns={"loss": "los"}), None)


def all_figures():
    return [
        law_figure(ladder(), fit()),
        loss_curves_figure(curves()),
        heatmap_figure([*grid(), {"lr": 1e-2, "wd": 0.1, "loss": None}], "lr", "wd", "loss"),
        lines_figure(grid(), x="lr", y={"loss": "loss"}, group="wd", mark_lowest=True),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("index", range(4))
def test_every_colour_of_an_svg_has_a_dark_twin(index):
    text = svg(all_figures()[index])
    assert text.startswith("<svg")
    assert "viewBox" in text[:200]
    bare = re.sub(r"var\(--\w+, (#[0-9a-f]{6})\)", "", text)
    assert re.findall(r"#[0-9a-f]{6}\b", re.sub(r'"#[^"]*"|url\([^)]*\)', "", bare)) == []
    assert "var(--muted" in text
    assert "font-family" not in text


@pytest.mark.slow
def test_equal_figures_give_equal_text_whatever_the_settings_of_the_process():
    first = svg(law_figure(ladder(), fit()))
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "svg.fonttype": "path"}):
        before = dict(matplotlib.rcParams)
        assert svg(law_figure(ladder(), fit())) == first
        assert dict(matplotlib.rcParams) == before


def test_raised_digits_become_small_ones_of_the_page():
    text = svg(law_figure(ladder(), fit()))
    assert 'C<tspan dy="-.45em" font-size="72%">0.120</tspan></text>' in text
    assert '10<tspan dy="-.45em" font-size="72%">15</tspan></text>' in text
    assert '10<tspan dy="-.45em" font-size="72%">\u22124</tspan></text>' in svg(
        heatmap_figure(grid(), "lr", "wd", "loss")
    )


def luminance(colour):
    c = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in c)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("mode", [0, 1])
def test_colours_are_legible_and_ordered_by_lightness_in_both_modes(mode):
    c = {name: pair[mode] for name, pair in COLOURS.items()}
    for text in ("ink", "muted", "accent"):
        assert contrast(c[text], c["paper"]) >= 4.5
    sizes = [c[f"s{i}"] for i in range(1, 9)]
    assert min(contrast(s, c["paper"]) for s in sizes) >= 3
    for ramp in (sizes, [c[f"h{i}"] for i in range(1, 8)]):
        steps = np.diff([luminance(s) for s in ramp])
        assert len(set(np.sign(steps))) == 1
    for i in range(1, 8):
        assert contrast(c[f"h{i}"], c["ink" if i < 5 else "paper"]) >= 4.5
    assert len(set(LIGHT.values())) == len(LIGHT)


def test_colours_run_over_the_whole_ramp():
    assert size_colours(2) == [LIGHT["s1"], LIGHT["s8"]]
    assert len(size_colours(20)) == 20
    assert len(size_colours(1)) == 1


def test_ticks_are_few_round_and_in_one_notation():
    assert log_ticks(1e13, 1e17) == [1e13, 1e14, 1e15, 1e16, 1e17]
    assert log_ticks(2.9, 3.45) == pytest.approx([2.9, 3.0, 3.1, 3.2, 3.3, 3.4])
    for low, high in ((1, 6), (1e3, 3e4), (2e13, 3e16), (1e-5, 1e9)):
        ticks = log_ticks(low, high)
        assert 4 <= len(ticks) <= 8
        assert low <= ticks[0] < ticks[-1] <= high
    assert quantities([1e14, 3e14]) == ["10¹⁴", "3×10¹⁴"]
    assert quantities([1e-4, 0.0, 0.003]) == ["10⁻⁴", "0", "3×10⁻³"]
    assert quantities([0.01, 1, -2.5]) == ["0.01", "1", "\u22122.5"]
    assert quantities([16384, 131072]) == ["16\u202f384", "131\u202f072"]
    assert quantities(["a", 2]) == ["a", "2"]
    assert raised("L(N) = E + K / N^g") == "L(N) = E + K / Nᵍ"


def test_labels_that_would_touch_are_moved_apart():
    moved = spread([0.5, 0.5, 0.9, 0.51], 0.1)
    assert np.diff(sorted(moved)).min() >= 0.099
    assert moved[0] < moved[1] < moved[3] < moved[2]
    assert np.mean(moved) == pytest.approx(np.mean([0.5, 0.5, 0.9, 0.51]))
    assert spread([0.1, 0.5], 0.1) == [0.1, 0.5]


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_saving_writes_the_file_whole_and_the_same_each_time(tmp_path, ending):
    figure = law_figure(ladder(), fit())
    first = save(figure, tmp_path / f"a.{ending}").read_bytes()
    assert save(figure, tmp_path / f"a.{ending}").read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == [f"a.{ending}"]
    assert b"var(--" not in first


def test_saving_refuses_what_it_cannot_draw_or_write(tmp_path):
    figure = law_figure(ladder(), None)
    with pytest.raises(UserError, match=r"end the name in \.png"):
        save(figure, tmp_path / "a.jpeg")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        save(figure, tmp_path / "file" / "a.png")


NASTY = "<script>alert(\"1\")</script> & 'co'"


class Page(HTMLParser):
    """Checks that tags nest, and collects ids, links and text."""

    void = frozenset({"meta", "br", "hr"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.links, self.words = [], [], [], [], []
        self.labels = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [v for k, v in attrs if k == "id"]
        self.labels += [v for k, v in attrs if k == "aria-label"]
        self.links += [v for k, v in attrs if k in ("href", "src", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["script"]):
            self.words.append(data)


def law_and_curves():
    return [
        ("The law.", law_figure(ladder(), fit())),
        ("Curves.", loss_curves_figure(curves())),
    ]


def report(path, figures=None, **changes):
    table = pd.DataFrame(
        {
            "run": ["a", NASTY, "c"],
            "N": [93000, 1234567, 5],
            "C": [2.1e13, 3.456e15, None],
            "val_loss": [4.62719, 3.5, float("nan")],
            "mfu": [None, None, None],
            "decayed": [True, False, None],
        }
    )
    arguments = {
        "title": "How does loss fall?",
        "question": "Which law?",
        "summary_lines": ["L(C) = 1.5 [1.4, 1.6] + 100 / C^0.12", "E: not identified (why)"],
        "figures": law_and_curves() if figures is None else figures,
        "tables": [("The runs.", table)],
        "settings": {"dataset": "pysource", "parametrization": {"mode": "muP", "base": 64},
                     "betas": [0.9, 0.95]},
        "commands": [("The law", "nanoscale fit quick"), ("The page", "nanoscale report quick")],
        "facts": ["3 runs: 3 COMPLETE", "commit 1a2b3c4"],
        "text": ("run c", "To be, or"),
        "provenance": {"python": "3.11"},
        "warnings": ["seed noise is not measured"],
    }  # fmt: skip
    return StudyPage(**{**arguments, **changes}).write(path)


@pytest.mark.slow
def test_the_page_says_everything_in_order(tmp_path):
    page = Page(report(tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    text = " ".join(" ".join(page.words).split())
    order = [
        "How does loss fall?", "Which law?", "3 runs: 3 COMPLETE · commit 1a2b3c4",
        "L(C) = 1.5 [1.4, 1.6] + 100 / C 0.12", "not identified", "E the floor",
        "seed noise is not measured", "Figure 1. The law.", "Figure 2. Curves.",
        "Table 1. The runs.", "What run c writes To be, or", "Settings",
        "parametrization.mode muP", "Provenance python 3.11", "The law nanoscale fit quick",
        "The page nanoscale report quick",
    ]  # fmt: skip
    places = [text.find(words, text.find("Which law?") if i > 1 else 0)
              for i, words in enumerate(order)]  # fmt: skip
    assert -1 not in places
    assert places == sorted(places)
    assert page.tags.count("svg") == 2
    assert page.tags.count("sup") >= 2


@pytest.mark.slow
def test_a_line_begins_large_unless_with_a_key_or_a_path(tmp_path):
    words, others = ["noise of seeds", "best: 3"], ["g: 3", "n_embd=8: late", "out/f.json: sealed"]
    lines = ["0.9", *words, *others]
    text = report(tmp_path / "r.html", summary_lines=lines, warnings=lines[1:]).read_text("utf-8")
    for line in words:
        assert text.count(f'<li class="words">{line}</li>') == 2
    for line in others:
        assert text.count(f"<li>{line}</li>") == 2


@pytest.mark.slow
def test_the_page_needs_nothing_but_itself(tmp_path):
    text = report(tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {"img", "link", "iframe", "object"} & set(page.tags)
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert page.tags.count("script") == 1
    assert all(link.startswith("#") for link in page.links)
    assert all(link[1:] in page.ids for link in page.links)
    assert len(page.ids) == len(set(page.ids))
    assert "default-src 'none'" in text
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []
    addresses = {a for a in re.findall(r'https?://[^"<\s]*', text) if "www.w3.org" not in a}
    assert addresses == set()
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    for name in set(re.findall(r"var\(--(\w+)", text)) - {"share", "serif", "sans", "mono"}:
        assert text.count(f"--{name}: ") >= 3  # light, dark, print


def test_everything_is_escaped(tmp_path):
    figures = [(NASTY, law_figure(ladder().assign(size=NASTY), fit(), title=NASTY))]
    path = report(
        tmp_path / "report.html", title=NASTY, question=NASTY, summary_lines=[NASTY, NASTY],
        figures=figures, tables=[(NASTY, pd.DataFrame({NASTY: [NASTY, 1]}))],
        settings={NASTY: NASTY}, commands=[(NASTY, NASTY)], warnings=[NASTY],
    )  # fmt: skip
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("script") == 1  # the page's own
    assert page.open == []
    assert page.labels == [NASTY]
    assert " ".join(page.words).count(NASTY) >= 12


def cells(path):
    text = path.read_text(encoding="utf-8")
    rows = re.findall(r"<tr>(.*?)</tr>", text)
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in rows]


@pytest.mark.slow
def test_numbers_know_their_rank_however_they_are_written(tmp_path):
    table = pd.DataFrame({"C": [3.4e15, 2.1e13, None, 2.1e13], "name": ["b", "a", "c", "d"]})
    text = report(tmp_path / "r.html", tables=[("The runs.", table)]).read_text(encoding="utf-8")
    assert re.findall(r'data-sort="(\d)"', text) == ["2", "1", "0", "1"]


@pytest.mark.slow
def test_the_numbers_of_a_column_share_one_notation(tmp_path):
    head, first, second, third = cells(report(tmp_path / "report.html"))
    assert head == ["run", "N", "C", "val_loss", "mfu", "decayed"]
    assert first[1:] == ["93\u202f000", "2.100×10<sup>13</sup>", "4.6272", "\u2013", "yes"]
    assert second[1:] == ["1\u202f234\u202f567", "3.456×10<sup>15</sup>", "3.5000", "\u2013", "no"]
    assert third[1:] == ["5", "\u2013", "\u2013", "\u2013", "\u2013"]
    table = pd.DataFrame({
        "seed": np.array([1337, 1, 2]), "lr": [1e-5, 3e-3, 0.1], "delta": [-0.25, 0.125, 0.5],
        "seeds": [[1, 2], [3], []],
        "flag": pd.Series([np.True_, np.False_, np.True_], dtype=object),
    })  # fmt: skip
    rows = cells(report(tmp_path / "b.html", tables=[("", table)]))[1:]
    assert [row[0] for row in rows] == ["1337", "1", "2"]
    assert rows[0][1] == "1.000×10<sup>\u22125</sup>"
    assert [row[2] for row in rows] == ["\u22120.250", "0.125", "0.500"]
    assert [row[3] for row in rows] == ["[1, 2]", "[3]", "[]"]
    assert [row[4] for row in rows] == ["yes", "no", "yes"]


def test_a_page_without_a_fit_still_stands(tmp_path):
    path = report(tmp_path / "r.html", summary_lines=[], figures=[], settings={}, warnings=[])
    text = path.read_text(encoding="utf-8")
    assert Page(text).open == []
    assert 'class="answer"' not in text
    assert "<h2>Warnings" not in text
    assert "<h2>Settings" not in text


@pytest.mark.slow
def test_writing_leaves_the_page_or_nothing(tmp_path):
    assert report(tmp_path / "new" / "report.html").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        report(tmp_path / "file" / "report.html")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        report(tmp_path / "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder", "new"]


ELSEWHERE = """
import sys, hashlib, pathlib
sys.path.insert(0, {tests!r})
import nanoscale.report
loaded = [m for m in ("torch", "scipy", "matplotlib.pyplot", "nanoscale.laws") if m in sys.modules]
from test_report import ladder, law_figure, report
report(pathlib.Path({path!r}), figures=[("The runs.", law_figure(ladder(), None))])
late = [m for m in ("torch", "matplotlib.pyplot", "nanoscale.laws") if m in sys.modules]
page = report(pathlib.Path({path!r}))
print(loaded + late, hashlib.sha256(page.read_bytes()).hexdigest())
"""


@pytest.mark.slow
def test_another_process_writes_the_same_bytes_with_no_torch_pyplot_or_laws(tmp_path):
    tests = os.path.dirname(os.path.abspath(__file__))
    code = ELSEWHERE.format(tests=tests, path=str(tmp_path / "there.html"))
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": path}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True
    )
    here = hashlib.sha256(report(tmp_path / "here.html").read_bytes()).hexdigest()
    assert out.stdout.split() == ["[]", here]


def test_figures_belong_to_no_pyplot():
    for figure in all_figures():
        assert isinstance(figure, Figure)
        assert type(figure.canvas).__name__ == "FigureCanvasAgg"
        assert to_hex(figure.get_facecolor()) == LIGHT["paper"]
