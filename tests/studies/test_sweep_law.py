"""`nanoscale sweep-law`: a planted law, what a table cannot say, refusals of one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from refusals import assert_refused

from nanoscale.__main__ import main
from nanoscale.errors import INCONCLUSIVE
from nanoscale.studies.sweep_laws import sweep_study

C, P, Q = 1.79, -0.713, 0.307  # Li et al. 2025


def sweeps(n_sizes=4, n_lengths=4, noise=0.0, first=-3):
    """Columns of sweeps in seven octaves, the optimum in the middle of them unless `first`."""
    rng = np.random.default_rng(0)
    rows = []
    for N in np.geomspace(1e7, 1e9, n_sizes):
        for D in np.geomspace(1e9, 3e10, n_lengths):
            best = C * N**P * D**Q
            for octave in range(first, first + 7):
                loss = 2.5 * np.exp(0.02 * octave**2 + noise * rng.standard_normal())
                rows.append((N, D, best * 2.0**octave, loss))
    names = ("total_params", "tokens_seen", "learning_rate", "val_loss")
    return dict(zip(names, np.array(rows).T.tolist(), strict=True))


def write(path, columns):
    lines = [",".join(columns)]
    lines += [",".join(map(str, row)) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def desk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "runs.csv", sweeps(noise=0.001))
    return tmp_path


def sweep_law(*arguments):
    code = main(["sweep-law", *arguments, "--json=out.json"])
    with open("out.json", encoding="utf-8") as file:
        return code, json.load(file)


def inside(value, ends):
    return ends[0] <= value <= ends[1]


def test_a_planted_law_is_found_in_columns_of_our_own(desk, capsys):
    code, record = sweep_law("runs.csv", "--at=N=2e9,D=1e11", "--figure=lr.png")
    assert (code, record["status"], record["reason"]) == (0, "identified", "")
    law = record["law"]
    assert law["exponents"] == pytest.approx({"N": P, "D": Q}, abs=0.01)
    assert inside(P, law["ci95"]["N"])
    assert inside(Q, law["ci95"]["D"])
    assert record["columns"] == {
        "N": "total_params",
        "D": "tokens_seen",
        "lr": "learning_rate",
        "loss": "val_loss",
    }
    best = C * 2e9**P * 1e11**Q
    assert record["prediction"]["optimum"] == pytest.approx(best, rel=0.05)
    assert inside(best, record["prediction"]["ci95"])
    assert len(record["sweeps"]) == 16
    assert record["table"] == "runs.csv"
    assert (desk / "lr.png").stat().st_size > 1000
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == law["equation"]
    assert f"at N=2e+09, D=1e+11: {record['prediction']['optimum']:.4g} [" in "\n".join(lines)


def test_columns_are_named_and_a_batch_has_a_law_of_its_own(desk):
    columns = sweeps(n_sizes=1, n_lengths=5)
    batch = 10 * np.array(columns["tokens_seen"]) ** 0.571
    octaves = np.tile(2.0 ** np.arange(-3, 4), 5)
    write(
        desk / "batches.csv",
        {"D": columns["tokens_seen"], "B": batch * octaves, "L": columns["val_loss"]},
    )
    code, record = sweep_law("batches.csv", "--d=D", "--batch=B", "--loss=L", "--bootstrap=0")
    assert code == INCONCLUSIVE  # without an interval nothing is identified
    assert record["law"]["swept"] == "batch"
    assert record["law"]["c"] == pytest.approx(10)
    assert record["law"]["exponents"] == {"D": pytest.approx(0.571)}
    assert record["law"]["ci95"] == {}
    assert record["columns"] == {"D": "D", "batch": "B", "loss": "L"}


def test_runs_that_diverged_are_left_out_and_counted(desk):
    columns = sweeps(noise=0.001)
    columns["val_loss"] = [
        "nan" if lr > 0.1 else loss
        for lr, loss in zip(columns["learning_rate"], columns["val_loss"], strict=True)
    ]
    diverged = columns["val_loss"].count("nan")
    columns["val_loss"][0] = ""
    write(desk / "diverged.csv", columns)
    code, record = sweep_law("diverged.csv")
    assert code == 0
    assert diverged > 0
    left_out = f"{diverged + 1} rows diverged or have no result, and are left out"
    assert record["warnings"][0] == left_out


def test_seeds_are_replicates_and_a_run_listed_twice_is_refused(desk, capsys):
    columns = sweeps(noise=0.001)
    seeds = {name: values * 2 for name, values in columns.items()}
    write(desk / "seeds.csv", seeds | {"seed": [1] * 112 + [2] * 112})
    _, record = sweep_law("seeds.csv")
    assert record["columns"]["seed"] == "seed"
    write(desk / "twice.csv", seeds | {"seed": [1] * 224})
    assert_refused(desk, capsys, lambda: main(["sweep-law", "twice.csv"]), "row 112 repeats")


def test_sweeps_without_an_optimum_say_no_law_and_where_to_go(desk, capsys):
    write(desk / "edge.csv", sweeps(first=0))
    code, record = sweep_law("edge.csv", "--figure=none.png")
    assert (code, record["status"], record["law"]) == (3, "not_identified", None)
    assert record["reason"].startswith("0 of 16 sweeps have an optimum inside them")
    best = C * 1e7**P * 1e9**Q
    assert record["sweeps"][0]["wanted"] == pytest.approx([best / 4, best / 2])
    said = capsys.readouterr().out
    assert f"none, lowest loss at the smallest value; add {best / 4:.3g} and {best / 2:.3g}" in said
    assert f"not identified: {record['reason']}" in said
    assert not (desk / "none.png").exists()


def test_two_sizes_are_no_law_of_size(desk):
    write(desk / "two.csv", sweeps(n_sizes=2))
    code, record = sweep_law("two.csv")
    assert code == 3
    assert "N has 2 values among the sweeps" in record["reason"]


def test_exponents_that_noise_leaves_open_are_not_identified(desk):
    write(desk / "loud.csv", sweeps(noise=0.1))
    code, record = sweep_law("loud.csv", "--at=N=1e9,D=1e10")
    assert (code, record["status"]) == (3, "not_identified")
    widths = [np.ptp(record["law"]["ci95"][name]) for name in ("N", "D")]
    assert max(widths) > np.log10(4)
    assert "its ends leave a factor" in record["reason"]
    assert record["prediction"]["optimum"] > 0  # said all the same


def test_a_scale_far_from_all_sweeps_is_warned_of(desk):
    _, near = sweep_law("runs.csv", "--at=N=1e10,D=1e8")
    assert near["warnings"] == []
    _, far = sweep_law("runs.csv", "--at=N=1.1e10,D=9e7")
    assert "N=1.1e+10 is 11 times beyond the sweeps" in far["warnings"][0]
    assert "D=9e+07 is 11.1 times beyond the sweeps" in far["warnings"][1]


def test_the_function_takes_a_table_and_gives_the_record(desk):
    import pandas as pd

    study = sweep_study(pd.DataFrame(sweeps()), resamples=0)
    assert study.law.c == pytest.approx(C)
    assert json.loads(json.dumps(study.to_json())) == study.to_json()


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("nanoscale sweep-law: TABLE|STUDY is missing", []),
        ("none.csv: no such table", ["none.csv"]),
        ("the table has no rows", ["empty.csv"]),
        ("at which scales are the sweeps? give one or two of --n, --d and --c", ["odd.csv"]),
        ("give one or two", ["runs.csv", "--n=total_params", "--d=tokens_seen", "--c=val_loss"]),
        ("no 'muon_lr' or 'learning_rate' varies; say it", ["odd.csv", "--n=a"]),
        ("which column is the loss? say it", ["odd.csv", "--n=a", "--lr=b"]),
        ("no row has a c", ["odd.csv", "--n=a", "--lr=b", "--loss=c"]),
        ("row 1: d='x' is not a number", ["odd.csv", "--n=a", "--lr=b", "--loss=d"]),
        ("row 1: e=-1: expected a number above 0", ["odd.csv", "--n=e", "--lr=b", "--loss=a"]),
        ("--n=params: the table has no such column", ["runs.csv", "--n=params"]),
        ("--at=N: expected names and numbers", ["runs.csv", "--at=N"]),
        (
            "--at=N=1e+09: the sweeps are at N, D, as in --at=N=1e9,D=1e9",
            ["runs.csv", "--at=N=1e9"],
        ),
        ("--at=N=0,D=1: the sweeps are at", ["runs.csv", "--at=N=0,D=1"]),
        ("--at=N=big,D=1: expected a number", ["runs.csv", "--at=N=big,D=1"]),
        ("10 resamples are too few", ["runs.csv", "--bootstrap=10"]),
        ("--bootstrap=2.5: expected a whole number", ["runs.csv", "--bootstrap=2.5"]),
        ("--figure=x.txt: end the name in", ["runs.csv", "--figure=x.txt"]),
        ("did you mean '--batch'?", ["runs.csv", "--batsh=x"]),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(desk, capsys, message, arguments):
    (desk / "empty.csv").write_text("total_params,val_loss\n", encoding="utf-8")
    (desk / "odd.csv").write_text("a,b,c,d,e\n1,2,,x,-1\n", encoding="utf-8")
    command = ["sweep-law", *arguments, "--json=out.json"]
    assert_refused(desk, capsys, lambda: main(command), message)
