"""Learning rate and batch swept at once: planted laws, cells without an optimum, refusals."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from refusals import assert_refused

from nanoscale.__main__ import main
from nanoscale.errors import INCONCLUSIVE, UserError
from nanoscale.laws.joint_sweeps import joint_sweep_laws
from nanoscale.laws.sweep_optima import NOT_BENT, OUTSIDE, TOO_FEW_VALUES
from nanoscale.studies.sweep_laws import sweep_study

LR = {"c": 1.8, "N": -0.71, "D": 0.31}  # Li et al. 2025
BATCH = {"c": 0.6, "N": 0.0, "D": 0.57}
TILT = 0.6  # of the valley: a larger batch wants a larger LR


def best(law, N, D):
    return law["c"] * N ** law["N"] * D ** law["D"]


def table(noise=0.0, shift=0.0, seed=0, sizes=3, lengths=3) -> pd.DataFrame:
    """Grids of factors of 1.41 about the optima, `shift` octaves from their middle."""
    rng = np.random.default_rng(seed)
    rows = []
    for N in np.geomspace(1e8, 1e9, sizes):
        for D in np.geomspace(2e9, 5e10, lengths):
            off_grid = rng.uniform(-0.25, 0.25, 2)
            for i in np.arange(-2, 2.1, 0.5):
                for j in np.arange(-2, 2.1, 0.5):
                    u, w = i + shift + off_grid[0], j + shift + off_grid[1]
                    valley = 0.004 * u**2 + 0.003 * w**2 - TILT * 0.006 * u * w
                    loss = 2.5 * np.exp(valley + noise * rng.standard_normal())
                    rows.append((N, D, best(LR, N, D) * 2**u, best(BATCH, N, D) * 2**w, loss))
    return pd.DataFrame(rows, columns=["N", "D", "lr", "batch", "loss"])


def laws(frame, **how):
    columns = {name: frame[name].tolist() for name in ("N", "D", "lr", "batch")}
    return joint_sweep_laws(columns, frame["loss"], **how)


def test_planted_laws_are_found_between_the_points_of_the_grids():
    found = laws(table(), resamples=0)
    for name, planted in (("lr", LR), ("batch", BATCH)):
        law = found.laws[name]
        assert law.exponents == pytest.approx({k: planted[k] for k in "ND"}, abs=1e-6)
        assert law.predict(N=3e8, D=1e10).optimum == pytest.approx(best(planted, 3e8, 1e10))
        assert law.scatter == pytest.approx(0, abs=1e-6)
        assert found.lowest[name].scatter > 0.05  # on the grid, and so off the law


def test_intervals_hold_the_planted_exponents_and_optima_are_nearer_than_the_lowest_runs():
    held, off, off_lowest = 0, [], []
    for seed in range(20):
        found = laws(table(0.001, seed=seed, sizes=4, lengths=4), resamples=200)
        for name, planted in (("lr", LR), ("batch", BATCH)):
            for key in "ND":
                low, high = found.laws[name].ci95[key]
                held += low <= planted[key] <= high
                off.append(found.laws[name].exponents[key] - planted[key])
                off_lowest.append(found.lowest[name].exponents[key] - planted[key])
    assert held >= 0.85 * 80  # cells drawn anew, sixteen of them
    assert np.std(off) < 0.6 * np.std(off_lowest)


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        (lambda f: f[f["batch"].round(3).isin(sorted({*f["batch"].round(3)})[:2])], TOO_FEW_VALUES),
        (lambda f: f.assign(loss=2.5 * (f["loss"] / 2.5) ** -0.1), NOT_BENT),
    ],
)
def test_a_cell_without_an_optimum_is_flagged(change, flag):
    frame = table(sizes=3, lengths=3)
    first = (frame["N"] == frame["N"].min()) & (frame["D"] == frame["D"].min())
    found = laws(pd.concat([change(frame[first]), frame[~first]]), resamples=0)
    flags = [sweep.flag for sweep in found.laws["lr"].sweeps]
    assert flags.count("") == 8
    assert {*flags} == {"", flag}
    assert found.laws["lr"].exponents["N"] == pytest.approx(LR["N"], abs=1e-6)


def test_optima_outside_what_was_swept_are_no_law():
    with pytest.raises(UserError, match=rf"0 of 9 sweeps have both optima.*{OUTSIDE}"):
        laws(table(shift=2.6))


def test_the_command_says_both_laws_and_what_the_lowest_runs_alone_would(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    table(0.001).to_csv("runs.csv", index=False)
    names = ["--n=N", "--d=D", "--lr=lr", "--batch=batch", "--loss=loss"]
    asked = ["sweep-law", "runs.csv", *names, "--at=N=1e9,D=1e11", "--json=o.json"]
    assert main([*asked, "--figure=lr.png"]) == 0
    said = capsys.readouterr().out
    record = json.loads((tmp_path / "o.json").read_text())
    for name, planted in (("lr", LR), ("batch", BATCH)):
        law = record["joint"]["laws"][name]
        assert law["exponents"]["D"] == pytest.approx(planted["D"], abs=0.05)
        assert law["equation"] in said
        at = record["predictions"][name]["optimum"]
        assert f"at N=1e+09, D=1e+11: {name} {at:.4g} [" in said
    assert said.count("by the lowest run of each alone: ") == 2
    assert "9 of 9 sweeps have an optimum" in said
    assert (tmp_path / "lr.png").stat().st_size > 10_000


def test_both_are_no_law_of_one_alone_and_a_scale_must_be_that_of_the_sweeps(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    frame = table()
    frame.to_csv("runs.csv", index=False)
    with pytest.raises(UserError, match="lr and batch are both named"):
        sweep_study(
            frame, columns={"n": "N", "d": "D", "lr": "lr", "batch": "batch", "loss": "loss"}
        )
    names = ["--n=N", "--d=D", "--lr=lr", "--batch=batch", "--loss=loss"]
    asked = ["sweep-law", "runs.csv", *names, "--at=N=1e9"]
    assert_refused(tmp_path, capsys, lambda: main(asked), "--at=N=1e+09: the sweeps are at N, D")


def rising(sizes=6):
    """N and D that rise together."""
    frame = table(sizes=sizes, lengths=sizes)
    ratio = frame["D"] / frame["N"]
    return frame[(ratio > 0) & (frame["N"].rank(method="dense") == frame["D"].rank(method="dense"))]


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (rising(), "N and D rise together"),
        (table(sizes=1, lengths=8), "N has 1 value among the sweeps"),
        (table(sizes=2, lengths=4), "N has 2 values among the sweeps"),
        (table(sizes=2, lengths=2), "4 of 4 sweeps have both optima inside them (there are no"),
    ],
)
def test_what_the_scales_do_not_say_is_no_law(frame, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    frame.to_csv("runs.csv", index=False)
    names = ["--n=N", "--d=D", "--lr=lr", "--batch=batch", "--loss=loss"]
    assert main(["sweep-law", "runs.csv", *names, "--figure=x.png"]) == INCONCLUSIVE
    said = capsys.readouterr().out
    assert f"not identified: {reason}" in said
    assert "no figure in x.png" in said
    with pytest.raises(UserError, match=re.escape(reason)):
        laws(frame)


def test_few_scales_are_warned_about_and_copies_refused():
    assert any("only 9 sweeps" in warning for warning in laws(table()).laws["lr"].warnings)
    assert not laws(table(sizes=4, lengths=4)).laws["lr"].warnings
    twice = pd.concat([table(), table()])
    columns = {name: twice[name].tolist() for name in ("N", "D", "lr", "batch")}
    with pytest.raises(UserError, match="repeats an earlier one"):
        joint_sweep_laws(columns, twice["loss"], seed=[1] * len(twice))


@pytest.mark.parametrize(("resamples", "code"), [("0", INCONCLUSIVE), ("5", 2), ("9" * 11, 2)])
def test_without_enough_resamples_nothing_is_identified(
    resamples, code, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    table().to_csv("runs.csv", index=False)
    for swept in (["--lr=lr", "--batch=batch"], ["--lr=lr", "--where=batch=1"]):
        if "--where=batch=1" in swept:
            table().assign(batch=1).drop_duplicates(["N", "D", "lr"]).to_csv("one.csv", index=False)
            name, swept = "one.csv", ["--lr=lr"]
        else:
            name = "runs.csv"
        asked = ["sweep-law", name, "--n=N", "--d=D", *swept, "--loss=loss"]
        assert main([*asked, f"--bootstrap={resamples}"]) == code
        said = capsys.readouterr()
        assert "95 % intervals from 0" not in said.out
        assert len(said.err.splitlines()) == (code == 2)


def test_the_wrong_way_round_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table().to_csv("runs.csv", index=False)
    asked = ["sweep-law", "runs.csv", "--n=N", "--d=D", "--lr=batch", "--batch=lr", "--loss=loss"]
    assert_refused(tmp_path, capsys, lambda: main(asked), "are --lr=batch and it the wrong way")
