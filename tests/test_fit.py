"""`nanoscale fit`: a planted law through a table, its record, and one line for every bad input."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nanoscale.cli import main
from nanoscale.laws import LAWS

TRUTH = np.array([1.69, 406.4, 410.7, 0.34, 0.28])
KEYS = {"law", "objective_name", "delta", "n_points", "params", "objective", "status",
        "agreement_of_starts", "se", "ci95", "exponents", "warnings"}


def rows(sd=0.002):
    """Columns of 24 runs of a planted law: four budgets, six sizes each."""
    law, C = LAWS["chinchilla"], np.repeat(np.geomspace(1e17, 1e20, 4), 6)
    n = law.optimum(TRUTH, C)[0] * np.tile(np.geomspace(0.25, 4, 6), 4)
    d = C / (6 * n)
    loss = law.loss(TRUTH, n, d) * np.exp(sd * np.random.default_rng(0).standard_normal(24))
    return {"total_params": n, "tokens_seen": d, "flops": C, "val_loss": loss,
            "run": [f"r{i // 2}" for i in range(24)]}


def write(path, columns, blank=()):
    """A CSV whose rows in `blank` have no loss."""
    lines = [",".join(columns)]
    for i, row in enumerate(zip(*columns.values(), strict=True)):
        cells = [v if isinstance(v, str) else repr(float(v)) for v in row]
        if i in blank:
            cells[list(columns).index("val_loss")] = ""
        lines.append(",".join(cells))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "runs.csv", rows() | {"run": [f"r{i}" for i in range(24)]})
    return "runs.csv"


def fit(*arguments):
    code = main(["fit", *arguments])
    try:
        with open("out.json", encoding="utf-8") as file:
            return code, json.load(file)
    except FileNotFoundError:
        return code, None


def test_a_planted_law_is_found_and_recorded(table, capsys):
    code, record = fit(table, "--n=total_params", "--d", "tokens_seen", "--loss=val_loss",
                       "--bootstrap=300", "--json=out.json")
    assert code == 0
    assert record.keys() >= KEYS
    assert (record["law"], record["status"], record["n_points"]) == ("chinchilla", "converged", 24)
    assert (record["objective_name"], record["delta"]) == ("log-huber", 1e-3)
    assert record["warnings"] == []
    for name, value in zip(LAWS["chinchilla"].names, TRUTH, strict=True):
        low, high = record["ci95"][name]
        assert low < record["params"][name] < high
        assert abs(record["params"][name] - value) < 4 * record["se"][name] < value
    assert record["exponents"]["a"] == pytest.approx(0.28 / 0.62, abs=0.02)
    text = capsys.readouterr().out.splitlines()
    assert text[0] == record["equation"]
    assert text[-1] == "N = total_params, D = tokens_seen, L = val_loss"
    assert any(line.startswith("  alpha  0.3") for line in text)
    assert text[-2].startswith("24 points; log-huber, delta 0.001: objective ")
    assert "from 300 pairs resamples; converged, 64 of 64 starts agree" in text[-2]


def test_two_of_n_d_and_c_give_the_third_and_ours_are_known(table, capsys):
    quick = ("--bootstrap=0", "--json=out.json")
    _, named = fit(table, "--n=total_params", "--d=tokens_seen", "--loss=val_loss", *quick)
    for columns in (("--n=total_params", "--c=flops"), ("--d=tokens_seen", "--c=flops"), ()):
        _, other = fit(table, *columns, *quick)
        assert other["params"] == pytest.approx(named["params"], rel=1e-9)
    assert other["ci95"] == {}
    assert "; N = C / 6D" in capsys.readouterr().out


def test_a_power_law_of_one_column(table):
    code, record = fit(table, "--law=power", "--c=flops", "--bootstrap=300", "--json=out.json")
    assert record["law"] == "power"
    assert record["equation"].startswith("L(C) = ")
    assert record["exponents"] == {}
    assert code == (0 if record["status"] == "converged" else 3)


def test_what_is_not_identified_exits_with_3(table, tmp_path, capsys):
    write(tmp_path / "noise.csv", rows(sd=0.3))
    code, record = fit("noise.csv", "--bootstrap=200", "--json=out.json")
    assert code == 3
    assert record["status"] in ("not_identified", "bound_hit")
    assert "not identified (" in capsys.readouterr().out
    assert any("24 points come from 12 runs" in w for w in record["warnings"])
    _, grouped = fit("noise.csv", "--bootstrap=200", "--resample=cluster", "--group=run",
                     "--json=out.json")
    assert grouped["resampling"] == "cluster"
    assert not any("come from" in w for w in grouped["warnings"])


def test_runs_without_a_result_are_left_out_and_said(table, tmp_path):
    columns = rows() | {"run": [f"r{i}" for i in range(24)],
                        "state": ["DIVERGED"] + ["COMPLETE"] * 23}
    write(tmp_path / "runs.csv", columns, blank=(3, 7))
    _, record = fit("runs.csv", "--bootstrap=0", "--json=out.json")
    assert record["n_points"] == 21
    assert "3 rows have no result and are left out" in record["warnings"]


def test_json_lines_give_the_same_fit(table, tmp_path):
    _, one = fit(table, "--bootstrap=0", "--json=out.json")
    columns = rows()
    lines = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    (tmp_path / "runs.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    _, two = fit("runs.jsonl", "--bootstrap=0", "--json=out.json")
    assert two["params"] == one["params"]
    assert two["data"] == one["data"]


def test_epochs_points_by_the_command_of_the_docs(epoch_table, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, record = fit(str(epoch_table), "--n", "Model Size", "--c", "Training FLOP", "--loss",
                       "loss", "--drop-worst", "5", "--seed", "42", "--json", "out.json")
    assert code == 0
    assert record["objective"] == pytest.approx(0.0010182740178006, rel=1e-9)
    assert record["se"]["beta"] == pytest.approx(0.020594, rel=1e-3)
    assert capsys.readouterr().out.splitlines()[0] == (
        "L(N, D) = 1.817 + 478 / N^0.347 + 2143 / D^0.367")


@pytest.mark.parametrize(("message", "arguments"), [
    ("usage: nanoscale fit TABLE", []),
    ("usage: nanoscale fit TABLE", ["runs.csv", "runs.csv"]),
    ("run.csv: no such table; did you mean 'runs.csv'", ["run.csv"]),
    ("--n=total_param: the table has no such column; did you mean 'total_params'",
     ["runs.csv", "--n=total_param"]),
    ("give two of --n, --d and --c", ["runs.csv", "--n=total_params"]),
    ("not all three", ["runs.csv", "--n=total_params", "--d=tokens_seen", "--c=flops"]),
    ("needs one of --n, --d and --c, not --n --d",
     ["runs.csv", "--law=power", "--n=total_params", "--d=tokens_seen"]),
    ("row 1: run='r0' is not a number", ["runs.csv", "--loss=run"]),
    ("did you mean 'chinchilla'", ["runs.csv", "--law=chinchila"]),
    ("did you mean 'envelope'", ["runs.csv", "--objective=envelop"]),
    ("--delta=small: expected a number", ["runs.csv", "--delta=small"]),
    ("--drop-worst=1.5: expected a whole number", ["runs.csv", "--drop-worst=1.5"]),
    ("--bootstrap=-5: must not be below 0", ["runs.csv", "--bootstrap=-5"]),
    ("20 resamples are too few", ["runs.csv", "--bootstrap=20"]),
    ("rng_seed = 4294967296: expected 0 to 4294967295", ["runs.csv", "--seed=4294967296"]),
    ("cluster needs groups", ["runs.csv", "--resample=cluster"]),
    ("did you mean 'wild'", ["runs.csv", "--resample=wyld"]),
    ("--bootstraps=5: unknown option; did you mean 'bootstrap'", ["runs.csv", "--bootstraps=5"]),
    ("end the name in '.json'", ["runs.csv", "--json=out.txt"]),
    ("there is no folder nowhere", ["runs.csv", "--json=nowhere/out.json"]),
])  # fmt: skip
def test_bad_input_is_one_line_and_writes_nothing(table, tmp_path, capsys, message, arguments):
    if not any(a.startswith("--json") for a in arguments):
        arguments = [*arguments, "--json=out.json"]
    assert main(["fit", *arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert [p.name for p in tmp_path.iterdir()] == ["runs.csv"]


def test_the_published_hold_out_is_printed_and_stored(epoch_table, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _, record = fit(str(epoch_table), "--n=Model Size", "--c=Training FLOP", "--loss=loss",
                    "--drop-worst=5", "--bootstrap=0", "--holdout=3e20", "--json=out.json")
    row = record["holdout"]
    assert (row["n_fitted"], row["n_held_out"]) == (177, 63)
    assert row["mean_abs_error"] == pytest.approx(0.0100, abs=5e-5)
    assert record["reach"]["C"][1] == pytest.approx(1.2956e22, rel=1e-4)
    assert "are off by 1.00 % (largest 4.14 %, bias +0.51 %; 0.40 %" in capsys.readouterr().out
