"""Forecasts that are sealed before a run is made: made again from their file, and judged."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from nanoscale.__main__ import main
from nanoscale.errors import DONE, FAILURE, INCONCLUSIVE
from nanoscale.laws import registry

LINE = "nanoscale: "


@pytest.fixture
def table(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    lines = ["params,tokens,loss,name"]
    for i in range(7):
        for j in range(4):
            N, D = 1e6 * 3**i, 2e7 * 3**i * 2**j
            wobble = 1 + 0.002 * ((7 * i + 3 * j) % 5 - 2)
            loss = (1.7 + 400 / N**0.34 + 400 / D**0.28) * wobble
            lines.append(f"{N:.6g},{D:.6g},{loss:.6f},run-{i}-{j}")
    Path("runs.csv").write_text("\n".join(lines) + "\n")
    return Path("runs.csv")


SEAL = "forecast runs.csv --n=params --d=tokens --bootstrap=200 --at=N=1e10,D=2e11 --seal=f.json"


def run(line: str) -> int:
    return main(line.split())


def test_a_seal_is_made_again_from_its_file_alone_and_judged(table, capsys):
    assert run(SEAL) == DONE
    said = capsys.readouterr().out
    sha256 = re.search("SHA-256 ([0-9a-f]{64})", said)[1]

    assert run("verify f.json --observed=2.42 --json=v.json") == DONE
    said = capsys.readouterr().out
    assert sha256 in said
    assert "the same law, the same forecast" in said
    found = json.loads(Path("v.json").read_text())
    low, high = found["forecast"]["ci95"]
    assert found["score"]["inside"] == (low <= 2.42 <= high)
    assert found["score"]["error"] == pytest.approx(2.42 / found["forecast"]["loss"] - 1)

    table.unlink()
    assert run("verify f.json --observed=9") == DONE  # a miss is said, and no change
    said = capsys.readouterr().out
    assert "OUTSIDE" in said
    assert "runs.csv is not here" in said


SOAK = pytest.mark.soak


def changed(**parts: object) -> None:
    """f.json with other values at places as `forecast.loss`."""
    record = json.loads(Path("f.json").read_text())
    for place, value in parts.items():
        *path, last = place.split("__")
        inner = record
        for key in path:
            inner = inner[key]
        inner[last] = value(inner[last]) if callable(value) else value
    Path("f.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"forecast__loss": lambda x: x * 1.001}, "forecast.loss"),
        pytest.param(
            {"forecast__ci95": lambda x: [x[0], x[1] * 1.01]}, r"forecast.ci95\[1\]", marks=SOAK
        ),
        pytest.param({"forecast__drift__median": 0.0}, "forecast.drift.median", marks=SOAK),
        pytest.param({"forecast__at": {"N": 1e9, "D": 2e11}}, "forecast.distance", marks=SOAK),
        pytest.param({"law__params__E": 1.0}, "law.params.E", marks=SOAK),
        ({"settings__resamples": 100}, "forecast.ci95"),
        ({"table__columns__loss": lambda x: ["2.0", *x[1:]]}, "the table's rows"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_whatever_is_changed_after_sealing_is_named(table, capsys, parts, said):
    assert run(SEAL) == DONE
    changed(**parts)
    capsys.readouterr()
    assert run("verify f.json") == FAILURE
    assert re.search(f"CHANGED: {said}", capsys.readouterr().out)


@SOAK
def test_a_table_that_was_changed_is_named(table, capsys):
    assert run(SEAL) == DONE
    table.write_text(table.read_text().replace("run-6-3", "run-6-4"))
    assert run("verify f.json") == FAILURE
    assert "CHANGED: table runs.csv: it is another" in capsys.readouterr().out
    table.write_text("")
    assert run("verify f.json") == FAILURE
    assert "it can be read no more" in capsys.readouterr().out


def test_a_name_that_is_a_digest_is_the_files(table, capsys):
    assert run(SEAL) == DONE
    sha256 = re.search("SHA-256 ([0-9a-f]{64})", capsys.readouterr().out)[1]
    own = Path("f.json").rename(f"{sha256}.json")
    assert run(f"verify {own}") == DONE
    own.write_text(own.read_text() + "\n")
    assert run(f"verify {own}") == FAILURE
    assert f"its name says SHA-256 {sha256}" in capsys.readouterr().out


def test_a_seal_is_never_replaced(table, capsys):
    assert run(SEAL) == DONE
    before = Path("f.json").read_bytes()
    assert run(SEAL) == 2
    assert "a seal is never replaced" in capsys.readouterr().err
    assert run("verify f.json --json=f.json") == 2
    assert "that is a sealed forecast" in capsys.readouterr().err
    Path("link.json").symlink_to("nowhere.json")
    assert run(SEAL.replace("f.json", "link.json")) == 2
    assert Path("f.json").read_bytes() == before


def test_without_an_interval_nothing_is_sealed(table, capsys):
    assert run(SEAL.replace("--bootstrap=200", "--bootstrap=0")) == INCONCLUSIVE
    assert "no interval: the fit has no resamples" in capsys.readouterr().out
    assert not Path("f.json").exists()


def test_the_numbers_of_at_are_what_the_law_reads(table, capsys):
    assert run(SEAL.replace("N=1e10,D=2e11", "1e10,2e11").replace(" --seal=f.json", "")) == DONE
    assert "at N=1e+10, D=2e+11" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not valid JSON"),
        ("[]", "no sealed forecast"),
        ("{}", "no sealed forecast"),
        ('{"kind": "nanoscale forecast", "schema": 99}', "schema 99, this version reads 2"),
        ('{"kind": "nanoscale forecast", "schema": 2}', "no sealed forecast"),
        ('{"kind": "nanoscale forecast", "schema": 2, "forecast": 3, "table": 4}', "no sealed"),
    ],
)
def test_what_is_no_seal_is_one_line(tmp_path, capsys, text, said):
    path = tmp_path / "f.json"
    path.write_text(text)
    assert main(["verify", str(path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("forecast runs.csv --n=params --d=tokens", "say it, as in --at=N=1e9,D=2e10"),
        ("forecast runs.csv --n=params --d=tokens --at=7", "as in --at=N=1e9"),
        ("forecast runs.csv --n=params --d=tokens --at=N=1e9", "the law reads N, D"),
        ("forecast runs.csv --n=params --d=tokens --at=N=1e9,D=-1", "D=-1"),
        ("forecast runs.csv --n=params --d=tokens --at=N=1,D=2 --seal=f.txt", ".json"),
        ("verify nothing.json", "there is no such file"),
        ("forecast runs.csv --n=params --d=tokens --at=N=1,D=2,N=3", "N is given twice"),
        ("forecast runs.csv --n=params --d=tokens --at=N=1e99,D=2e99", "nothing beyond 10,000"),
        ("forecast runs.csv --n=params --d=tokens --at=N=1e-99,D=1e-9", "nothing beyond 10,000"),
        ("forecast runs.csv --n=params --d=tokens --at=1,2 --seal=a.json --json=a.json", "--json="),
        ("verify . --observed=2", "cannot be read"),
    ],
)
def test_bad_input_is_one_line(table, capsys, line, said):
    assert run(line) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@SOAK
def test_rows_that_were_added_are_no_change(table, capsys):
    assert run(SEAL) == DONE
    table.write_text(table.read_text() + "1e10,2e11,2.4,the-run\n")
    assert run("verify f.json --observed=2.4") == DONE
    assert "rows were added since" in capsys.readouterr().out


def test_a_seal_of_a_law_that_was_chosen_by_the_table_is_made_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = ["params,tokens,loss"]
    for i in range(12):
        N = 1e6 * 2**i
        lines.append(f"{N},{20 * N},{1.7 + 400 / N**0.34 + 100 / N**0.28 + 1e-3 * (i % 3)}")
    Path("r.csv").write_text("\n".join(lines))
    line = "forecast r.csv --n=params --d=tokens --bootstrap=200 --at=C=1e21 --seal=r.json"
    assert run(line) == DONE
    assert run("verify r.json") == DONE
    assert "the same law" in capsys.readouterr().out


def test_a_seal_of_a_law_of_which_some_is_given_is_made_again(table, capsys):
    assert run(f"{SEAL} --hold=E=1.7,alpha=0.34") == DONE
    assert json.loads(Path("f.json").read_text())["settings"]["hold"] == {"E": 1.7, "alpha": 0.34}
    capsys.readouterr()
    assert run("verify f.json --observed=2.42") == DONE
    assert "the same law, the same forecast" in capsys.readouterr().out


def test_a_law_of_ones_own_is_not_sealed_whatever_of_it_is_given(table, capsys, monkeypatch):
    monkeypatch.setattr(registry, "LAWS", dict(registry.LAWS))
    monkeypatch.setattr(registry, "_files", {})
    Path("mine.py").write_text(
        "from dataclasses import replace\n"
        "from nanoscale.laws import LAWS, register_law\n"
        "register_law(replace(LAWS['chinchilla'], name='mine'))\n"
    )
    for hold in ("", " --hold=E=1.7"):
        assert run(f"{SEAL} --laws=mine.py --law=mine{hold}") == 2
        assert "is of your own file, without which" in capsys.readouterr().err
        assert not Path("f.json").exists()
    assert run("fit runs.csv --laws=mine.py --law=mine --hold=E=1.7 --n=params --d=tokens "
               "--bootstrap=0 --json=fit.json") == DONE  # fmt: skip
    assert len(json.loads(Path("fit.json").read_text())["laws_digest"]) == 16


def test_cells_that_json_does_not_have_are_sealed_as_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    C = [1e15 * 2**i for i in range(14)]
    frame = pd.DataFrame({"flops": C, "val_loss": [1.5 + 900 / c**0.2 for c in C]})
    frame["when"] = pd.date_range("2026-01-01", periods=len(C))
    frame["tags"] = [["a", str(i)] for i in range(len(C))]
    frame.loc[3, "when"] = pd.NaT
    frame.to_parquet("t.parquet")
    assert run("forecast t.parquet --law=power --at=C=1e20 --bootstrap=200 --seal=t.json") == DONE
    assert run("verify t.json") == DONE
