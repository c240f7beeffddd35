"""Studies of equal compute: valleys that are bracketed, the best size of a budget, what is refused.

The worker is one without torch, whose losses are a law of N = C / 6 D and D.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import fake_worker
import pytest
from fake_worker import SURFACE, TINY

import nanoscale as ns
from nanoscale.__main__ import main
from nanoscale.errors import DONE
from nanoscale.experiments import Study
from nanoscale.spec.counting import parameter_counts
from nanoscale.studies import approaches

KEYS = {"n_layer": 2, "batch_size": 4, "beta1": SURFACE, "eval_interval": 0}
BASE = {key: value for key, value in (TINY | KEYS).items() if key != "max_iters"}
WIDTHS = (48, 64, 80, 96, 112, 128)
BUDGETS = (2e10, 5e10, 1e11)
SIZES = "".join(f"\n[[isoflop.sizes]]\nn_embd = {width}" for width in WIDTHS)


def study_of(table: str = f"budgets = {[*BUDGETS]}", sizes: str = SIZES, **base: object) -> Path:
    """The file of a study."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in (BASE | base).items()]
    head = '[study]\nname = "valleys"\nrecipe = "isoflop"\n[base]\n'
    Path("s.toml").write_text(head + "\n".join(lines) + f"\n[isoflop]\n{table}{sizes}\n")
    return Path("s.toml")


def best_size(C: float) -> float:
    """N* of the planted law, 60 / N^.5 + 40 / D^.5, whose terms are equal there."""
    return math.sqrt(60**2 / 40**2 * C / 6)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    fake_worker.stand_in(tmp_path, monkeypatch)
    monkeypatch.setattr(approaches, "DELTAS", (1e-3,))  # a smaller multiverse
    monkeypatch.setattr(approaches, "DROPPED", (0,))


def sizes_at(budget: float) -> list[int]:
    """Total parameters of the runs there."""
    study = Study.open("experiments_out/valleys")
    of_budget = [folder for entry, folder in study.runs() if entry.values["max_flops"] == budget]
    return sorted(parameter_counts(folder.spec().config)["total"] for folder in of_budget)


@pytest.mark.slow
def test_valleys_are_bracketed_and_the_best_size_is_the_planted_one(capsys):
    assert main(["study", str(study_of())]) == DONE
    said = capsys.readouterr().out
    record = json.loads(Path("experiments_out/valleys/fits/isoflop.json").read_text())
    assert ns.answer("valleys").numbers == record
    best = record["best"]
    assert best["C"] == 10 * BUDGETS[-1]
    low, high = best["N_ci95"]
    assert low < best_size(1e12) < high < 1.5 * low
    low, high = record["ci95"]["a"]
    assert low < 0.5 < high
    assert f"at 1e+12 FLOPs the best size is N* = {best['N']:.3g}" in said
    for words in ("Approach 1: a", "Approach 2, parabola: a", "Approach 3: a", "multiverse: "):
        assert words in said

    # of the smallest budget the second size is best, and one more is trained below
    given = sizes_at(BUDGETS[-1])
    assert len(given) == len(WIDTHS)
    small = sizes_at(BUDGETS[0])
    assert small[1:] == given
    assert small[0] < given[0]
    page = Path("experiments_out/valleys/report.html").read_text()
    for words in ("The valleys", "The fitted surface", "every defensible choice"):
        assert words in page

    assert main(["study", str(study_of())]) == DONE
    again = capsys.readouterr().out
    assert f"{len(small) + 2 * len(given)} runs: " not in said.splitlines()[0]
    assert " start " not in again


@pytest.mark.soak
def test_a_valley_without_an_end_names_the_run_that_it_lacks(capsys):
    table = f"budgets = {[*BUDGETS]}\nrefine = false"
    large = "".join(f"\n[[isoflop.sizes]]\nn_embd = {width}" for width in WIDTHS[2:])
    assert main(["study", str(study_of(table, large))]) == DONE
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if "has no end" in line]
    assert [line.split()[4] for line in lines] == ["2e+10", "5e+10", "1e+11"]
    lacking = [int(line.split("(")[1].split(" ")[0].replace(",", "")) for line in lines]
    assert max(lacking) < min(sizes_at(BUDGETS[0]))


def test_a_dry_run_says_how_well_the_best_size_will_be_known(capsys):
    assert main(["study", str(study_of()), "--dry-run"]) == DONE
    said = capsys.readouterr().out
    assert "18 runs" in said
    assert "foreseen: N* at 1e+12 FLOPs within a factor of " in said


@pytest.mark.parametrize(
    ("table", "sizes", "base", "words"),
    [
        ("", SIZES, {}, "budgets=None: give the FLOPs of each"),
        ("budgets = 1e10", SIZES, {}, "budgets=10000000000.0: give the FLOPs of each"),
        ("budgets = [0, 1e10]", SIZES, {}, "give the FLOPs of each"),
        ("budgets = [true, 1e10]", SIZES, {}, "give the FLOPs of each"),
        ("budgets = [1e10]", SIZES, {}, "give at least 2, better 3"),
        ("budgets = [1e10, 1.1e10]", SIZES, {}, "each at least 1.2 times the one before"),
        ("budgets = [1e10, 2e10]\nat = 0", SIZES, {}, "at=0: expected FLOPs above 0"),
        ("budgets = [1e10, 2e10]\nrefine = 1", SIZES, {}, "refine=1: expected true or false"),
        ("budgets = [1e10, 2e10]\nrefined = 1", SIZES, {}, "did you mean 'refine'"),
        ("budgets = [1e10, 2e10]", "", {}, "0 sizes show no valley; give at least 4"),
        ("budgets = [1e10, 2e10]", SIZES + "\nmax_iters = 5", {}, "the budgets say how long"),
        ("budgets = [1e10, 2e10]", SIZES, {"max_iters": 5}, "[base]: max_iters: the budgets say"),
        ("budgets = [1e10, 2e10]", SIZES.replace("64", "48"), {}, "n_embd=48 is given twice"),
    ],
)
def test_a_table_that_asks_for_no_valleys_is_refused(table, sizes, base, words, capsys):
    assert main(["study", str(study_of(table, sizes, **base))]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1
    assert not Path("experiments_out").exists()
