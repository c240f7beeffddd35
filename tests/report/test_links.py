"""What a page's figures answer to: dots and curves lead to their run's row, series carry names."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from nanoscale.report import StudyPage, heatmap_figure, lines_figure, link_runs, loss_curves_figure
from nanoscale.report.symbols import symbols_in

LOSSES = {"a": 2.5, "b": 2.25, "c": 2.0}


def page(figure, table=None) -> str:
    return StudyPage(
        title="t",
        question="q",
        summary_lines=["answer"],
        figures=[("A figure.", figure)],
        tables=[("The runs.", runs() if table is None else table)],
        commands=[("This page", "nanoscale report t")],
    ).html()


def runs() -> pd.DataFrame:
    table = pd.DataFrame({"run": [*LOSSES], "loss": [*LOSSES.values()], "lr": [0.1, 0.2, 0.4]})
    return table.set_index("run", drop=False)


def linked(figure) -> list[str]:
    """The rows that a figure's points lead to, as the page has them."""
    link_runs(figure, {loss: run for run, loss in LOSSES.items()})
    text = page(figure)
    assert "_blank" not in text
    links = re.findall(r'<a xlink:href="#([^"]+)"', text)
    assert {*links} <= {*re.findall(r'<tr id="([^"]+)"', text)}
    return links


def test_a_dot_as_high_as_a_runs_loss_leads_to_its_row():
    assert linked(lines_figure(runs(), x="lr", y={"loss": "loss"})) == ["run-a", "run-b", "run-c"]


def test_a_dot_that_is_no_run_leads_nowhere():
    rows = [{"lr": lr, "loss": loss + 0.01} for lr, loss in ((0.1, 2.5), (0.2, 2.0))]
    assert linked(lines_figure(rows, x="lr", y={"loss": "loss"})) == []
    grid = [{"x": x, "y": y, "loss": 2.5} for x in (1, 2) for y in (1, 2)]
    assert linked(heatmap_figure(grid, "x", "y", "loss")) == []


def test_a_curve_and_its_end_lead_to_the_row_of_the_run_whose_they_are():
    rows = []
    for run in ("a", "b"):
        for tokens in (100, 200, 400):
            rows.append({"run": run, "tokens_seen": tokens, "val_loss": 3 - tokens / 1000})
    assert sorted(linked(loss_curves_figure(rows))) == ["run-a", "run-a", "run-b", "run-b"]


def test_what_is_drawn_of_a_series_carries_its_name_and_all_of_them_are_in_the_page():
    rows = []
    for size in ("1M", "2M"):
        for tokens in (100, 200):
            row = {"run": size, "size": size, "tokens_seen": tokens, "val_loss": 3 - tokens / 1e3}
            rows.append(row)
    text = page(loss_curves_figure(rows))
    found = re.findall(r'<g data-series="([^"]+)"', text)
    assert sorted(found) == ["1M"] * 4 + ["2M"] * 4  # curve, end, label and its leader
    assert "series:" not in text


def test_a_run_of_two_rows_is_a_place_once():
    twice = pd.concat([runs(), runs()])
    text = page(lines_figure(runs(), x="lr", y={"loss": "loss"}), twice)
    assert re.findall(r'<tr id="([^"]+)"', text) == ["run-a", "run-b", "run-c"]


@pytest.mark.parametrize(
    ("line", "symbols"),
    [
        ("L(C) = 1.5 + 100 / C^0.12", ["L", "C"]),
        ("C: training FLOPs, exact", []),  # what a line says of itself
        ("E: not identified (why)", ["E"]),
        ("best g 0.17; without the smallest 0.10", ["g"]),
        ("a ladder of GPTs, as good as any", []),
        ("at 1e14 the best size is N* = 1e6 on D* = 1e7 tokens (Approach 3)",
         ["N*", "D*", "Approach 3"]),
        ("muP: pass: drift 0.1 octaves per doubling", ["muP", "octave"]),
        ("DPO and CNN are none", []),
    ],
)  # fmt: skip
def test_symbols_are_named_where_the_answer_uses_them(line, symbols):
    assert [*symbols_in([line])] == symbols
