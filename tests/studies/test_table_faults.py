"""What a table is that no law can be fitted to, or that is several: refused or said in one line."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from planted_tables import rows, write

from nanoscale.__main__ import main
from nanoscale.errors import UserError
from nanoscale.experiments.tables import read_table
from nanoscale.studies.sweep_laws import sweep_study
from nanoscale.studies.table_faults import where
from nanoscale.studies.table_fit import FitSettings, fit_table

QUICK = FitSettings(resamples=0)


def frame(tmp_path, columns):
    write(tmp_path / "runs.csv", columns)
    return read_table(tmp_path / "runs.csv")


def two_sets(sd=0.002, off=1.05):
    """Every other run is of another text, whose losses are higher."""
    columns = rows(sd)
    loss = columns["val_loss"] * np.tile([1.0, off], 12)
    return columns | {"val_loss": loss, "text": ["c4", "code"] * 12}


def test_a_table_of_several_experiments_is_said_and_parted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table = frame(tmp_path, two_sets())
    (said,) = [w for w in fit_table(table, QUICK).warnings if "groups" in w]
    assert said.startswith("residuals fall into groups by text (p = ")
    assert said.endswith("fit each with --by=text")
    part = fit_table(table, FitSettings(resamples=0, where="text=code"))
    assert len(part.rows.loss) == 12
    assert main(["fit", "runs.csv", "--by=text", "--bootstrap=0", "--json=out.json"]) in (0, 3)
    record = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert record["fits"]["code"]["params"] == pytest.approx(part.fit.params)
    assert capsys.readouterr().out.startswith("text = c4:\n  L(N, D) = ")
    assert not any(
        "groups" in w for w in fit_table(frame(tmp_path, two_sets(off=1)), QUICK).warnings
    )


def test_twins_count_once(tmp_path):
    columns = {name: [*values, *values[:3]] for name, values in rows().items()}
    result = fit_table(frame(tmp_path, columns), QUICK)
    assert result.fit.n_points == 24
    assert "3 rows equal to others to the last bit: such twins count once" in result.warnings


def test_counts_with_a_unit_are_numbers(tmp_path):
    columns = rows()
    plain = fit_table(frame(tmp_path, columns), QUICK)
    written = [f"{n / 1e6!r}M" for n in columns["total_params"].tolist()]
    result = fit_table(frame(tmp_path, columns | {"total_params": written}), QUICK)
    assert result.fit.params == pytest.approx(plain.fit.params, rel=1e-6)
    assert any(w.startswith("total_params: ") and "M is read as " in w for w in result.warnings)


@pytest.mark.parametrize(("message", "changes", "arguments"), [
    ("--n and --d both name flops: give two columns", {}, ["--n=flops", "--d=flops"]),
    ("looks like millions or billions", {"size": rows()["total_params"] / 1e6},
     ["--n=size", "--d=tokens_seen"]),
    ("--loss=acc: an accuracy rises", {"acc": 1 - rows()["val_loss"] / 9}, ["--loss=acc"]),
    ("rise with scale look like an accuracy", {"score": 1 - rows()["val_loss"] / 9},
     ["--loss=score"]),
    ("--where=run: expected COLUMN=VALUE", {}, ["--where=run"]),
    ("--where=run=r99: no row has it; run is 'r0', 'r1'", {}, ["--where=run=r99"]),
    ("--by=rum: the table has no such column", {}, ["--by=rum"]),
])  # fmt: skip
def test_what_would_be_wrong_is_refused(tmp_path, monkeypatch, capsys, message, changes, arguments):
    monkeypatch.chdir(tmp_path)
    frame(tmp_path, rows() | changes)
    assert main(["fit", "runs.csv", "--bootstrap=0", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_sweeps_at_several_batches_are_refused_until_one_is_taken(tmp_path):
    rows = []
    noise = np.random.default_rng(0)
    for N, octave, batch in itertools.product((1e7, 1e8, 1e9), range(-3, 4), (32, 64)):
        loss = 2.5 * np.exp(0.02 * octave**2 + 1e-3 * noise.standard_normal()) + batch / 1e3
        rows.append((N, 1e-3 * 2.0**octave, batch, loss))
    names = ("total_params", "learning_rate", "batch_size", "val_loss")
    table = frame(tmp_path, dict(zip(names, np.array(rows).T, strict=True)))
    with pytest.raises(UserError, match=r"batch_size varies within sweeps.* --where=batch_size=32"):
        sweep_study(table, columns={"n": "total_params"}, resamples=0)
    one = where(table, "batch_size=32")
    assert len(one) == 21
    assert sweep_study(one, columns={"n": "total_params"}, resamples=0).law is not None
