"""Coverage and width of 95 % intervals on seven designs, in table.csv.

    python docs/results/design/measure.py [svg_extracted_data.csv]

The argument is Epoch AI's table of the points in Hoffmann et al.'s figure; without it their design
is left as it is in the table. What the table has already is not measured again.
"""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from nanoscale.laws import LAWS, fit_law
from nanoscale.laws.design import CHINCHILLA_TRUTH, Design, simulate
from nanoscale.laws.information import standard_error
from nanoscale.laws.ladder import HUBER
from nanoscale.laws.questions import LawQuestion
from nanoscale.store.files import write_text

RESAMPLES = 300
WORLDS, FEWER = 1000, 300  # what is recommended; what is there for comparison
QUESTIONS = ("alpha", "beta", "a", "E", "N*@1e24", "L@1e24")
TABLE = Path(__file__).with_name("table.csv")
KEYS = ("design", "noise", "delta", "resampling", "question")
LAW = LAWS["chinchilla"]


def isoflop(budgets: int, sizes: int, noise: float) -> Design:
    """Budgets of 1e17 to 1e20 FLOPs, sizes a factor of 4 to either side of the optimum."""
    C = np.geomspace(1e17, 1e20, budgets)[:, None]
    N = LAW.optimum(np.array(CHINCHILLA_TRUTH), C)[0] * np.geomspace(1 / 4, 4, sizes)
    return Design(
        LAW,
        np.array([N.ravel(), (C / (6 * N)).ravel()]),
        CHINCHILLA_TRUTH,
        noise,
        resamples=RESAMPLES,
    )


def epoch(path: str) -> Design:
    """The 240 points, and the residuals about their own law."""
    with open(path, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    N, C, loss = (
        np.array([float(row[key]) for row in rows])
        for key in ("Model Size", "Training FLOP", "loss")
    )
    fit = fit_law({"N": N, "C": C}, loss, drop_worst=5, resamples=0)
    keep = np.argsort(loss, kind="stable")[:-5]
    x = np.array([N[keep], C[keep] / (6 * N[keep])])
    return Design(
        LAW, x, list(fit.params.values()), np.log(loss[keep] / fit(*x)), resamples=RESAMPLES
    )


def designs(path: str | None) -> Iterator[tuple[str, Design]]:
    for budgets, sizes in ((4, 6), (6, 6), (6, 10)):
        for noise in (0.002, 0.01):
            yield f"{budgets}x{sizes}", isoflop(budgets, sizes, noise)
    if path:
        yield "epoch", epoch(path)


def variants(path: str | None) -> Iterator[tuple[str, Design, int]]:
    """Every design with every resampling, at the usual delta and at the noise's own; worlds."""
    plans = list(designs(path))
    for method in ("pairs", "parametric", "wild", "residual"):
        worlds = WORLDS if method in ("pairs", "parametric") else FEWER
        yield from (
            (name, replace(plan, resampling=method), worlds)
            for name, plan in plans
            if method != "residual" or name == "epoch"
        )
    for method in ("pairs", "parametric", "wild"):
        yield from (
            (
                name,
                replace(plan, resampling=method, delta=HUBER * plan.noise),
                FEWER if method == "wild" else WORLDS,
            )
            for name, plan in plans
            if name != "epoch"
        )


def rows_of(name: str, design: Design, worlds: int) -> list[dict[str, str]]:
    noise = "residuals" if np.ndim(design.noise) else f"{design.noise:g}"
    questions, began = [LawQuestion.parse(text, LAW) for text in QUESTIONS], time.perf_counter()
    answers = simulate(design, questions, worlds=worlds)
    seconds = time.perf_counter() - began
    return [
        {
            "design": name,
            "noise": noise,
            "delta": f"{design.delta:g}",
            "resampling": design.resampling,
            "question": a.question,
            "coverage": f"{a.coverage:.3f}",
            "low": f"{a.coverage_ci95[0]:.4f}",
            "high": f"{a.coverage_ci95[1]:.4f}",
            "verdict": a.verdict,
            "width": f"{a.width:.4g}",
            "width_is": "ratio" if a.ratio else "difference",
            "width_sd_ln": f"{a.width_sd:.3f}",
            "bias": f"{a.bias:.2g}",
            "rmse": f"{a.rmse:.4g}",
            "expected_se": f"{standard_error(design, q):.4g}",
            "not_identified": f"{a.not_identified:.3f}",
            "worlds": str(a.worlds),
            "resamples": str(design.resamples),
            "seconds": f"{seconds:.1f}",
        }
        for a, q in zip(answers, questions, strict=True)
    ]


def main(path: str | None = None) -> None:
    rows = list(csv.DictReader(TABLE.open(encoding="utf-8"))) if TABLE.is_file() else []
    there = {tuple(row[key] for key in KEYS[:4]) for row in rows}
    for name, design, worlds in variants(path):
        noise = "residuals" if np.ndim(design.noise) else f"{design.noise:g}"
        if (name, noise, f"{design.delta:g}", design.resampling) in there:
            continue
        rows += rows_of(name, design, worlds)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(TABLE, text.getvalue())
        print(name, noise, design.resampling, f"{design.delta:g}", rows[-1]["seconds"], "s")


if __name__ == "__main__":
    main(*sys.argv[1:2])
