"""`nanoscale fit`: a planted law through a table, its record, and one line for every bad input."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted_runs import checkpoints
from planted_tables import TRUTH, rows, write

from nanoscale.__main__ import main
from nanoscale.commands.fit_options import settings_of
from nanoscale.data import gauge
from nanoscale.laws import LAWS, registry
from nanoscale.laws.holdout import holdout
from nanoscale.studies.table_fit import FitSettings, fit_table

KEYS = {
    "law",
    "objective_name",
    "delta",
    "n_points",
    "params",
    "objective",
    "status",
    "agreement_of_starts",
    "se",
    "ci95",
    "exponents",
    "warnings",
}


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
    code, record = fit(
        table,
        "--n=total_params",
        "--d",
        "tokens_seen",
        "--loss=val_loss",
        "--bootstrap=300",
        "--json=out.json",
    )
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


@pytest.mark.slow
def test_a_parameter_may_be_given_and_is_not_fitted(table, tmp_path, capsys):
    main(["fit", "runs.csv", "--hold=E=1.69", "--json=f.json", "--figures=figures"])
    assert "1.690 + " in capsys.readouterr().out
    record = json.loads((tmp_path / "f.json").read_text())
    assert "E" not in record["params"]
    assert record["params"]["alpha"] == pytest.approx(0.34, rel=0.1)
    for text, words in (
        ("F=1", "no F to hold"),
        ("E", "expected names and numbers, as in --hold=N=1e9"),
        ("E=x", "E=x"),
    ):
        assert main(["fit", "runs.csv", f"--hold={text}"]) == 2
        assert words in capsys.readouterr().err


def test_what_is_not_identified_exits_with_3(table, tmp_path, capsys):
    write(tmp_path / "noise.csv", rows(sd=0.3))
    code, record = fit("noise.csv", "--bootstrap=200", "--json=out.json")
    assert code == 3
    assert record["status"] in ("not_identified", "bound_hit")
    assert "not identified (" in capsys.readouterr().out
    assert any("24 points come from 12 runs" in w for w in record["warnings"])
    _, grouped = fit(
        "noise.csv", "--bootstrap=200", "--resample=cluster", "--group=run", "--json=out.json"
    )
    assert grouped["resampling"] == "cluster"
    assert not any("come from" in w for w in grouped["warnings"])


def test_runs_without_a_result_are_left_out_and_said(table, tmp_path):
    columns = rows() | {
        "run": [f"r{i}" for i in range(24)],
        "state": ["DIVERGED"] + ["COMPLETE"] * 23,
    }
    write(tmp_path / "runs.csv", columns, blank=(3, 7))
    _, record = fit("runs.csv", "--bootstrap=0", "--json=out.json")
    assert record["n_points"] == 21
    assert "3 rows have no result and are left out" in record["warnings"]


def test_json_lines_give_the_same_fit(table, tmp_path):
    _, one = fit(table, "--bootstrap=0", "--json=out.json")
    columns = rows()
    lines = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    (tmp_path / "runs.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8-sig")
    _, two = fit("runs.jsonl", "--bootstrap=0", "--json=out.json")
    assert two["params"] == one["params"]
    assert two["data"] == one["data"]


@pytest.mark.slow
def test_epochs_points_by_the_command_of_the_docs(epoch_table, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, record = fit(
        str(epoch_table),
        "--n",
        "Model Size",
        "--c",
        "Training FLOP",
        "--loss",
        "loss",
        "--drop-worst",
        "5",
        "--seed",
        "42",
        "--json",
        "out.json",
    )
    assert code == 0
    assert record["objective"] == pytest.approx(0.0010182740178006, rel=1e-9)
    assert record["se"]["beta"] == pytest.approx(0.020594, rel=1e-3)
    assert capsys.readouterr().out.splitlines()[0] == (
        "L(N, D) = 1.817 + 478 / N^0.347 + 2143 / D^0.367"
    )


@pytest.mark.parametrize(("message", "arguments"), [
    ("nanoscale fit: TABLE|STUDY is missing; see nanoscale fit --help", []),
    ("nanoscale fit: runs.csv: one argument too many", ["runs.csv", "runs.csv"]),
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
    ("--bootstrap=-5: must be at least 0", ["runs.csv", "--bootstrap=-5"]),
    ("20 resamples are too few", ["runs.csv", "--bootstrap=20"]),
    ("rng_seed = 4294967296: expected 0 to 4294967295", ["runs.csv", "--seed=4294967296"]),
    ("cluster needs groups", ["runs.csv", "--resample=cluster"]),
    ("did you mean 'wild'", ["runs.csv", "--resample=wyld"]),
    ("--bootstraps=5: unknown option; did you mean '--bootstrap'", ["runs.csv", "--bootstraps=5"]),
    ("end the name in '.json'", ["runs.csv", "--json=out.txt"]),
    ("there is no folder nowhere", ["runs.csv", "--json=nowhere/out.json"]),
    ("--figures=runs.csv: that is a file; name a folder", ["runs.csv", "--figures=runs.csv"]),
    ("there is no folder nowhere; make it first", ["runs.csv", "--figures=nowhere/figures"]),
    ("--isoflop=3: the option takes no value", ["runs.csv", "--isoflop=3"]),
    ("law power reads x: leave them out",
     ["runs.csv", "--law=power", "--c=flops", "--isoflop", "--figures=figures"]),
    ("--multiverse refits law chinchilla, not kaplan",
     ["runs.csv", "--law=kaplan", "--multiverse", "--figures=figures"]),
    ("5 different points are too few", ["five.csv", "--isoflop", "--figures=figures"]),
])  # fmt: skip
def test_bad_input_is_one_line_and_writes_nothing(table, tmp_path, capsys, message, arguments):
    if not any(a.startswith("--json") for a in arguments):
        arguments = [*arguments, "--json=out.json"]
    if "five.csv" in arguments:
        write(tmp_path / "runs.csv", {key: values[:5] for key, values in rows().items()})
        arguments = ["runs.csv", *arguments[1:]]
    assert main(["fit", *arguments]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert [p.name for p in tmp_path.iterdir()] == ["runs.csv"]


def test_the_published_hold_out_is_printed_and_stored(epoch_table, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _, record = fit(
        str(epoch_table),
        "--n=Model Size",
        "--c=Training FLOP",
        "--loss=loss",
        "--drop-worst=5",
        "--bootstrap=0",
        "--holdout=3e20",
        "--json=out.json",
    )
    row = record["holdout"]
    assert (row["n_fitted"], row["n_held_out"]) == (177, 63)
    assert row["mean_abs_error"] == pytest.approx(0.0100, abs=5e-5)
    assert record["reach"]["C"][1] == pytest.approx(1.2956e22, rel=1e-4)
    assert "are off by 1.00 % (largest 4.14 %, bias +0.51 %; 0.40 %" in capsys.readouterr().out


# -- beyond the fit -----------------------------------------------------------------------------
QUICK = ("--bootstrap=200", "--json=out.json")


@pytest.mark.slow
def test_the_approaches_stand_beside_the_surface_and_a_known_bias_is_taken_out(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    law, C = LAWS["chinchilla"], np.repeat(np.geomspace(1e17, 1e20, 4), 9)
    n = law.optimum(TRUTH, C)[0] * np.tile(np.geomspace(0.3, 30, 9), 4)  # off centre: biased
    d = C / (6 * n)
    write(
        tmp_path / "runs.csv",
        {"total_params": n, "tokens_seen": d, "val_loss": law.loss(TRUTH, n, d)},
    )
    code, record = fit("runs.csv", "--isoflop", *QUICK)
    found, true_n = record["isoflop"], float(law.optimum(TRUTH, 1e21)[0])
    assert code == 0
    assert found.keys() == {"envelope", "parabola", "cubic", "surface"}
    one = found["parabola"]
    assert one["bias"]["C"] == pytest.approx(1e21)  # ten times the largest
    assert abs(one["bias"]["bias"]["N"]) > 0.02
    assert one["bias"]["corrected"]["N"] == pytest.approx(true_n, rel=1e-5)
    assert one["bias"]["corrected"]["a"] == pytest.approx(0.28 / 0.62, abs=1e-6)
    assert found["cubic"]["bias"]["corrected"]["N"] == pytest.approx(true_n, rel=1e-5)
    assert found["surface"]["exponents"]["a"] == pytest.approx(0.28 / 0.62, abs=1e-6)
    for valley in one["valleys"]:  # its rows and its curve are those that its vertex is of
        curve = valley["curve"]
        assert np.allclose(C[valley["rows"]], valley["C"])
        assert np.polyval(
            curve["coefficients"], np.log10(valley["vertex"]) - curve["centre"]
        ) == pytest.approx(valley["loss"])
    assert one["line"]["N"][-1] == pytest.approx(
        10 ** (one["slope"] * 21 + one["intercept"]), rel=1e-6
    )
    said = capsys.readouterr().out
    assert f"Approach 2, parabola: a {one['exponents']['a']:.3f} [" in said
    assert "4 of 4 budgets (4 off-centre)" in said
    assert f"corrected: a {0.28 / 0.62:.3f}, N* {true_n:.3g}" in said
    assert "Approach 1: a 0." in said
    assert "Approach 3: a 0.452 [0.452, 0.452]" in said


@pytest.mark.slow
def test_an_approach_that_the_table_does_not_allow_says_why_and_the_fit_goes_on(
    table, tmp_path, capsys
):
    n = np.geomspace(1e6, 1e9, 24)
    d = 20 * n * np.tile([0.5, 2], 12)
    loss = LAWS["chinchilla"].loss(TRUTH, n, d)
    write_to = {"total_params": n, "tokens_seen": d, "val_loss": loss}
    write(tmp_path / "ladder.csv", write_to)
    _, record = fit(
        "ladder.csv", "--isoflop", "--figures=figures", "--bootstrap=0", "--json=out.json"
    )
    assert "better 3: add sizes" in record["isoflop"]["parabola"]["error"]
    said = capsys.readouterr().out
    assert "Approach 2, cubic: 0 of 24 budgets" in said
    assert "isoflop" not in said.splitlines()[-1]  # no figure of what is not there
    assert "frontier.png, surface.png, residuals.png" in said.splitlines()[-1]


def counted():
    """Our own table: positions are not counted apart, and N without embeddings bends alpha."""
    columns = rows(sd=0.0)
    n, d = columns["total_params"], columns["tokens_seen"]
    return columns | {
        "non_position_params": n,
        "non_embedding_params": n**1.25 * 1e-2,
        "flops": 6 * n * d * (1 + (1e8 / n) ** 0.3),
    }


@pytest.mark.soak
def test_the_multiverse_counts_in_every_way_that_the_table_allows_and_none_twice(
    table, tmp_path, capsys
):
    write(tmp_path / "runs.csv", counted())
    _, record = fit("runs.csv", "--multiverse", *QUICK)
    found = record["multiverse"]
    assert found["conventions"] == [
        "N = total_params, D = tokens_seen",
        "N = non_embedding_params, D = tokens_seen",
        "N = total_params, C = flops",
        "N = non_embedding_params, C = flops",
        "D = tokens_seen, C = flops",
    ]
    lad = {
        row["convention"]: row["a"]
        for row in found["rows"]
        if (row["approach"], row["objective"], row["dropped"]) == ("3", "lad", 0)
    }
    assert lad["N = total_params, D = tokens_seen"] == pytest.approx(0.28 / 0.62, abs=1e-5)
    bent = 0.34 / 1.25  # alpha of N^1.25
    assert lad["N = non_embedding_params, D = tokens_seen"] == pytest.approx(
        0.28 / (0.28 + bent), abs=1e-5
    )
    assert found["spread"]["convention"] > 0.04
    text = capsys.readouterr().out
    assert f"multiverse: {len(found['rows'])} analyses" in text
    assert f"a from {found['a']['lowest']:.3f} to {found['a']['highest']:.3f}" in text
    first = text[text.index("a moves by ") :]
    assert first.startswith(f"a moves by {max(v for v in found['spread'].values() if v):.3f}")


@pytest.mark.slow
def test_a_foreign_table_has_the_convention_it_was_given_and_the_fits_own_choices(table, tmp_path):
    columns = rows()
    write(
        tmp_path / "runs.csv",
        {"size": columns["total_params"], "work": columns["flops"], "loss": columns["val_loss"]},
    )
    _, record = fit(
        "runs.csv",
        "--n=size",
        "--c=work",
        "--loss=loss",
        "--multiverse",
        "--delta=0.02",
        "--drop-worst=3",
        *QUICK,
    )
    assert record["multiverse"]["conventions"] == ["N = size, C = work"]
    choices = record["multiverse"]["rows"]
    assert {row["delta"] for row in choices} == {None, 1e-4, 1e-3, 1e-2, 0.02}
    assert {row["dropped"] for row in choices} == {0, 1, 2, 3, 5}


PNG = b"\x89PNG"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "names"),
    [
        pytest.param(
            (), {"frontier", "surface", "residuals", "resamples", "rollout"}, marks=pytest.mark.soak
        ),
        (
            ("--isoflop",),
            {
                "frontier",
                "surface",
                "residuals",
                "resamples",
                "rollout",
                "isoflop_parabola",
                "isoflop_cubic",
            },
        ),
        (("--law=power", "--c=flops"), {"law", "residuals", "resamples"}),  # 3 budgets fit no law
        (("--law=power", "--n=total_params", "--bootstrap=0"), {"law", "residuals"}),
        pytest.param(
            ("--law=kaplan", "--bootstrap=0"),
            {"frontier", "surface", "residuals", "rollout"},
            marks=pytest.mark.soak,
        ),
    ],
)
def test_a_fit_draws_what_its_table_allows_and_leaves_no_scraps(
    table, tmp_path, capsys, options, names
):
    arguments = ("--bootstrap=200", *options, "--figures=figures")
    for _ in range(1 if options else 2):  # into a folder that is made, and one that is there
        assert main(["fit", table, *arguments]) in (0, 3)
        assert {p.name for p in (tmp_path / "figures").iterdir()} == {f"{n}.png" for n in names}
    assert all(p.read_bytes().startswith(PNG) for p in (tmp_path / "figures").iterdir())
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("figures in figures: ")
    assert all(f"{name}.png" in last for name in names)


@pytest.mark.soak
def test_a_rollout_is_hold_outs_with_intervals_and_holds_the_one_asked_for(table):
    _, record = fit(table, "--holdout=5e18", "--figures=figures", *QUICK)
    held = [row for row in record["rollout"] if row["threshold"] == 5e18]
    thresholds = [row["threshold"] for row in record["rollout"]]
    assert thresholds == pytest.approx([5e18, 10**19.5])  # in place of the edge at 10^18.5
    assert held[0]["bias"] == record["holdout"]["bias"]
    for row in record["rollout"]:
        low, high = row["bias_ci95"]
        assert low < row["bias"] < high
        assert low - 0.01 < 0 < high + 0.01  # the planted law predicts itself


def test_plan_knows_no_figures(table, capsys):
    assert main(["plan", table, "--budget=1e20", "--figures=figures"]) == 2
    assert "--figures=figures: unknown option" in capsys.readouterr().err


@pytest.mark.soak
def test_epochs_points_beyond_the_fit(epoch_table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, record = fit(
        str(epoch_table),
        "--n=Model Size",
        "--c=Training FLOP",
        "--loss=loss",
        "--drop-worst=5",
        "--seed=42",
        "--bootstrap=200",
        "--isoflop",
        "--multiverse",
        "--json=out.json",
    )
    assert len(record["isoflop"]["parabola"]["valleys"]) == 57
    assert sum(v["used"] for v in record["isoflop"]["parabola"]["valleys"]) == 20
    by_approach = {
        row["approach"]: row["a"] for row in record["multiverse"]["rows"] if row["dropped"] == 5
    }  # both leave out the same
    assert record["isoflop"]["parabola"]["exponents"]["a"] == by_approach["2"]
    assert record["isoflop"]["cubic"]["exponents"]["a"] == by_approach["2 cubic"]
    a = {
        row["dropped"]: round(row["a"], 4)
        for row in record["multiverse"]["rows"]
        if (row["objective"], row["delta"]) == ("log-huber", 1e-3)
    }
    assert a == {0: 0.5646, 1: 0.5441, 2: 0.5380, 5: 0.5139}  # published


def test_the_frontier_drawn_is_the_laws_optimum_with_its_interval():
    from nanoscale.laws import fit_law
    from nanoscale.studies.fit_gallery import frontier

    columns = rows()
    law = fit_law(
        {"N": columns["total_params"], "D": columns["tokens_seen"]},
        columns["val_loss"],
        resamples=200,
    )
    least, N = frontier(law, np.array(columns["flops"]))
    assert least.x[[0, -1]] == pytest.approx([0.7e17, 1e21])
    assert list(N.x) == list(least.x)
    for i in (0, 50, 96):
        best = law.optimum(N.x[i])
        assert N.y[i] == pytest.approx(best.N)
        assert [N.low[i], N.high[i]] == pytest.approx(best.N_ci95)
        at = law.predict(N=best.N, D=best.D)
        assert least.y[i] == pytest.approx(at.loss)
        assert least.low[i] < least.y[i] < least.high[i]
        assert least.high[i] <= at.loss_ci95[1] * 1.001  # each law's own least is no higher


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        (
            {"n": "total_params", "d": "tokens_seen", "loss": "val_loss"},
            {
                "N": "N: total parameters (total_params)",
                "D": "D: training tokens (tokens_seen)",
                "C": "C: training FLOPs, 6 N D",
                "loss": "validation loss (nats per token)",
            },
        ),
        (
            {"n": "non_embedding_params", "c": "flops", "loss": "final"},
            {
                "N": "N: parameters without embeddings and head (non_embedding_params)",
                "D": "D: training tokens, C / 6 N",
                "C": "C: training FLOPs (flops), 6 N D",
                "loss": "L: final",
            },
        ),
        ({"c": "C", "loss": "loss"}, {"C": "C: training FLOPs", "loss": "L: loss"}),
    ],
)
def test_axes_name_the_columns_and_what_follows_from_them(columns, wanted):
    from nanoscale.studies.fit_gallery import labels_of

    assert labels_of(columns).items() >= wanted.items()


@pytest.mark.soak
def test_profile_and_influence_are_said_and_recorded(epoch_table, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _, record = fit(
        str(epoch_table),
        "--n=Model Size",
        "--c=Training FLOP",
        "--loss=loss",
        "--drop-worst=5",
        "--bootstrap=200",
        "--profile",
        "--rivals",
        "--influence",
        "--json=out.json",
    )
    assert record["profile"]["ci"]["beta"] == pytest.approx([0.336, 0.401], abs=1e-3)
    assert record["profile"]["noise"] == "own"
    assert record["influence"]["single"][0]["units"] == [59]
    said = capsys.readouterr().out
    assert "profile intervals, 95 %:" in said
    assert "law against law: mean errors, of the runs above 6 budgets" in said
    assert record["rivals"]["law"] == "chinchilla"
    assert "influence: a = 0.5139: no single one moves it out of" in said


def test_a_law_of_repeated_tokens_reads_their_column(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    n, d, u = (
        np.array(v)
        for v in zip(
            *itertools.product((1e7, 1e8, 1e9), (1e9, 4e9, 1.6e10, 6.4e10), (1e9, 4e9)), strict=True
        )
    )
    keep = d >= u
    seen = u * (1 + 15.4 * (1 - np.exp(-(d / u - 1) / 15.4)))
    table = {"n": n, "d": d, "unique": u, "loss": 1.8 + 480 / n**0.35 + 2100 / seen**0.37}
    write(tmp_path / "t.csv", {key: values[keep] for key, values in table.items()})
    options = "t.csv", "--n=n", "--d=d", "--loss=loss", "--bootstrap=0", "--json=out.json"
    _, record = fit(*options, "--u=unique", "--law=repetition")
    assert record["params"]["R"] == pytest.approx(15.4, rel=1e-3)
    for more, words in (
        ("--law=repetition", "give it, as in --u="),
        ("--u=unique", "leave it out, or take --law=repetition"),
    ):
        assert main(["fit", *options, more]) == 2
        assert words in capsys.readouterr().err


def test_slow_laws_have_fewer_resamples_unless_told():
    for law, told, wanted in (
        ("chinchilla", {}, 4000),
        ("kaplan", {}, 400),
        ("kaplan", {"resamples": 7}, 7),
    ):
        assert settings_of({"law": law} | told).n_resamples == wanted


@pytest.mark.parametrize("verb", ["fit", "plan"])
def test_a_fit_that_lasts_shows_how_far_it_is_and_a_quick_one_nothing(
    verb, table, monkeypatch, capsys
):
    argv = [verb, table, "--bootstrap=100"]
    argv += ["--budget=1e20"] * (verb == "plan")
    for patience, lasts in ((3600, False), (-1, True)):
        monkeypatch.setattr(gauge, "UNSEEN_SECONDS", patience)
        assert main(argv) in (0, 3)
        said = capsys.readouterr()
        assert (f"[{verb}] 0 of 100 resamples" in said.err) == lasts
        assert "resamples, " not in said.out


TOY_LAW = """
import numpy as np

from nanoscale.laws import Law, Parameter, register_law

register_law(Law(
    name="no-floor",
    predictors=("N", "D"),
    parameters=(
        Parameter("A", "coefficient"), Parameter("B", "coefficient"),
        Parameter("alpha", "exponent"), Parameter("beta", "exponent"),
    ),
    formula="{A} / N^{alpha} + {B} / D^{beta}",
    function=lambda A, B, alpha, beta, N, D: A / N**alpha + B / D**beta,
    balance=lambda A, B, alpha, beta: (A, alpha, B, beta),
))
"""


@pytest.mark.slow
def test_a_law_of_ones_own_is_fitted_from_its_file_and_planned_with(table, monkeypatch, capsys):
    """The file's content is recorded, and a stored fit is planned with by that file alone."""
    monkeypatch.setattr(registry, "LAWS", {name: LAWS[name] for name in registry.BUILT_IN_LAWS})
    monkeypatch.setattr(registry, "_files", {})
    Path("mine.py").write_text(TOY_LAW, encoding="utf-8")
    quick = ("--bootstrap=0", "--json=out.json")
    _, ours = fit(table, *quick)
    _, beside = fit(table, "--laws=mine.py", *quick)
    assert beside == ours
    code, record = fit(table, "--laws=mine.py", "--law=no-floor", *quick)
    assert code in (0, 3)
    assert (record["law"], [*record["params"]]) == ("no-floor", ["A", "B", "alpha", "beta"])
    assert record["equation"].startswith("L(N, D) = ")
    assert record["laws_digest"] == hashlib.sha256(TOY_LAW.encode()).hexdigest()[:16]
    assert main(["plan", "out.json", "--budget=1e20", "--laws=mine.py"]) == code
    capsys.readouterr()
    Path("mine.py").write_text(TOY_LAW + "# another\n", encoding="utf-8")
    assert main(["plan", "out.json", "--budget=1e20", "--laws=mine.py"]) == 2
    assert "its file is not what it was when this was fitted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1 / 0", "laws file mine.py: ZeroDivisionError: division by zero"),
        ("x = 1", "laws file mine.py: registers no law; call"),
        (TOY_LAW.replace("no-floor", "kaplan"), "laws file mine.py: law 'kaplan' is built in"),
        (TOY_LAW.replace("N**alpha +", "M**alpha +"), "'no-floor', mine.py, line 14: NameError"),
    ],
)
def test_a_broken_file_of_laws_is_one_line_and_exit_2(table, text, says, capsys):
    Path("mine.py").write_text(text, encoding="utf-8")
    assert main(["fit", table, "--laws=mine.py", "--law=no-floor"]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_checkpoints_of_runs_are_found_and_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    N, D, loss, run = checkpoints(each=6)
    columns = {"size": N, "seen": D, "loss": loss, "job": [f"j{k}" for k in run]}
    write(tmp_path / "runs.csv", columns)
    code, record = fit("runs.csv", "--n=size", "--d=seen", "--loss=loss", *QUICK)
    assert code == (0 if record["status"] == "converged" else 3)
    assert (record["resampling"], record["runs"]["column"]) == ("wild-cluster", "job")
    assert record["runs"]["runs"] == 8
    assert "200 wild-cluster resamples of 8 runs (found by job, p = " in capsys.readouterr().out


def test_sizes_with_seeds_are_a_ladder_however_many_they_are():
    rng = np.random.default_rng(0)
    C = np.repeat(1e12 * 2.0 ** np.arange(18), 2)
    sizes = np.repeat(0.006 * rng.standard_normal(18), 2)
    loss = (1.5 + 2 * (C / 1e12) ** -0.15) * np.exp(sizes + 0.001 * rng.standard_normal(36))
    table = pd.DataFrame({"C": C, "loss": loss})
    settings = FitSettings(c="C", loss="loss", law="power", resamples=100)
    found = fit_table(table, settings).fit
    assert found.resampling == "parametric"
    assert found.components.size_sd > 0.003
    assert len(found.dropped) == 9  # down to half of the sizes
    assert fit_table(table[::2], settings).fit.resampling == "pairs"


def test_a_ladder_of_anybody_is_a_law_of_c_and_no_surface():
    N = np.geomspace(2e8, 1e10, 7).round()
    loss = 1.75 + 420 / N**0.34 + 1100 / (20 * N) ** 0.36
    table = pd.DataFrame({"size": N, "toks": 20 * N, "ce": loss})
    settings = FitSettings(n="size", d="toks", loss="ce", resamples=100)
    found = fit_table(table, settings)
    assert found.fit.law == "power"
    assert found.points.columns["C"] == pytest.approx(120 * N**2)
    assert "so the law is of C" in found.warnings[0]
    chinchilla = fit_table(table, replace(settings, law="chinchilla", resamples=0))
    assert "leave --law out" in " ".join(chinchilla.warnings)


def test_a_budget_is_meant_as_it_is_written(tmp_path):
    N = np.repeat(np.geomspace(1e7, 1e9, 5), 5).round()
    D = (np.tile(np.geomspace(1e17, 1e21, 5), 5) / (6 * N)).round() - 1  # 6 N D a little below
    loss = 1.75 + 420 / N**0.34 + 1100 / D**0.36
    found = holdout({"N": N, "D": D}, loss, 1e21)
    assert (found.n_fitted, found.n_held_out) == (20, 5)
