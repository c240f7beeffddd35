"""`nanoscale plan`: the published plan, models against their own count, refusals of one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from planted_tables import TRUTH, rows, write
from refusals import refusal

from nanoscale.__main__ import main
from nanoscale.laws import LAWS, fit_law
from nanoscale.laws.plan import buildable
from nanoscale.spec.config import ExperimentConfig
from nanoscale.spec.counting import flops_per_token, parameter_counts
from nanoscale.studies import next_run
from nanoscale.studies.table_fit import FitSettings

COLUMNS = ("--n", "Model Size", "--c", "Training FLOP", "--loss", "loss", "--drop-worst", "5")
LAW = LAWS["chinchilla"]


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(
        tmp_path / "runs.csv",
        rows() | {"run": [f"r{i}" for i in range(24)], "vocab_size": ["256"] * 24},
    )
    return "runs.csv"


def plan(*arguments):
    code = main(["plan", *arguments, "--json=out.json"])
    with open("out.json", encoding="utf-8") as file:
        return code, json.load(file)


@pytest.mark.slow
def test_the_published_plan_of_chinchillas_budget(epoch_table, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, record = plan(str(epoch_table), *COLUMNS, "--bootstrap=300", "--budget=5.76e23")
    assert code == 0
    assert (record["N"], record["D"]) == pytest.approx((7.319e10, 1.312e12), rel=5e-4)
    assert record["tokens_per_param"] == pytest.approx(17.92, abs=0.005)
    assert record["N_ci95"][0] < 7e10 < record["N_ci95"][1]
    low, high = record["run_ci95"]
    assert low < record["loss_ci95"][0] < record["loss"] < record["loss_ci95"][1] < high
    assert record["distance"] == pytest.approx(44.46, abs=0.01)
    stray, far = record["warnings"][:2]
    assert stray.startswith("row 6 lies 5.15 % above the law")
    assert "44.5 times the largest fitted, beyond 10" in far
    assert abs(record["run"]["N_off"]) < 0.01
    assert "44.5 times the largest fitted" in capsys.readouterr().out.splitlines()[0]


@pytest.mark.slow
def test_the_run_is_what_its_config_says_at_the_budget(table):
    code, record = plan(
        table,
        "--bootstrap=200",
        "--budget=1e20",
        "--tokens-per-second=1e6",
        "--batch-tokens=65536",
        "--block_size=256",
    )
    n, d = LAW.optimum(TRUTH, 1e20)
    assert code == 0
    assert record["N_ci95"][0] < n < record["N_ci95"][1]
    assert record["D_ci95"][0] < d < record["D_ci95"][1]
    assert record["warnings"] == []
    run = record["run"]
    config = ExperimentConfig(**run["config"])
    assert (config.vocab_size, config.use_swiglu, config.tokens_per_iter) == (256, True, 65536)
    assert parameter_counts(config)["total"] == run["N"] == pytest.approx(record["N"], rel=0.02)
    assert run["iterations"] * 65536 == run["D"] == pytest.approx(1e20 / 6 / run["N"], rel=1e-3)
    assert run["flops"] == pytest.approx(flops_per_token(config)["exact"] * run["D"])
    assert run["hours"] == pytest.approx(run["D"] / 1e6 / 3600)
    assert run["loss"] == pytest.approx(record["loss"], abs=1e-3)
    _, other = plan(table, "--bootstrap=200", "--budget=1e20", "--flops-per-second=1e14")
    assert other["run"]["hours"] == pytest.approx(other["run"]["flops"] / 1e14 / 3600)


@pytest.mark.soak
def test_models_of_every_size_are_near_and_of_a_sensible_shape():
    for N in np.geomspace(1e6, 1e12, 25):
        config = buildable(N, vocab_size=256, block_size=256)
        assert parameter_counts(config)["total"] == pytest.approx(N, rel=0.05 if N < 1e8 else 0.02)
        assert 16 <= config.n_embd / config.n_layer <= 128
        assert config.head_dim == next(
            head
            for width, head in ((256, 16), (512, 32), (2048, 64), (10**6, 128))
            if config.n_embd <= width
        )
        assert config.n_layer >= 2
    assert buildable(3e5, 256, 256).n_layer == 2  # no model of one wide block
    config = buildable(124e6, 50304)
    assert abs(parameter_counts(config)["total"] / 124e6 - 1) < 0.01
    assert 512 <= config.n_embd <= 1024


@pytest.mark.slow
def test_a_stored_fit_gives_the_point_and_says_so_or_its_draws(table, capsys):
    assert main(["fit", table, "--bootstrap=200", "--json=fit.json"]) == 0
    _, refit = plan(table, "--bootstrap=200", "--budget=1e22")
    code, record = plan("fit.json", "--budget=1e22")
    assert code == 0
    assert (record["N"], record["loss"]) == (refit["N"], refit["loss"])
    assert (record["N_ci95"], record["run_ci95"]) == (None, None)
    assert record["distance"] == refit["distance"] == pytest.approx(100)
    assert "fit.json holds no draws" in record["warnings"][0]
    assert "give the table (runs.csv)" in record["warnings"][0]
    with open("fit.json", encoding="utf-8") as file:
        stored = json.load(file)
    from nanoscale.laws import fit_law

    columns = rows()
    fit = fit_law(
        {"N": columns["total_params"], "D": columns["tokens_seen"]},
        columns["val_loss"],
        resamples=200,
    )
    with open("fit.json", "w", encoding="utf-8") as file:
        json.dump(stored | {"draws": fit.draws.tolist()}, file)
    _, drawn = plan("fit.json", "--budget=1e22")
    assert drawn["N_ci95"] == refit["N_ci95"]
    assert drawn["run_ci95"] == refit["run_ci95"]


@pytest.mark.slow
def test_a_law_that_is_not_identified_exits_with_3(table, tmp_path):
    write(tmp_path / "noise.csv", rows(sd=0.3))
    code, record = plan("noise.csv", "--bootstrap=200", "--budget=1e20")
    assert code == 3
    assert record["status"] in ("not_identified", "bound_hit")
    assert any("is not identified: " in w for w in record["warnings"])


def test_the_batch_follows_the_tokens_and_small_budgets_are_warned_of(table):
    _, record = plan(table, "--bootstrap=0", "--budget=1e15")
    assert record["run"]["batch_tokens"] == pytest.approx(
        0.58 * record["run"]["D"] ** 0.571, rel=0.3
    )
    assert any("100 times below the smallest fitted" in w for w in record["warnings"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("nanoscale plan: FIT.json|TABLE|STUDY is missing", ["--budget=1e20"]),
        ("how many FLOPs? say it, as in --budget=1e20", ["runs.csv"]),
        ("--budget=0: must be above 0", ["runs.csv", "--budget=0"]),
        ("--budget=big: expected a number", ["runs.csv", "--budget=big"]),
        ("--budget=nan: expected a number", ["runs.csv", "--budget=nan"]),
        (
            "give one of them",
            ["runs.csv", "--budget=1e20", "--tokens-per-second=1", "--flops-per-second=1"],
        ),
        (
            "--vocab_size=2.5: expected a whole number",
            ["runs.csv", "--budget=1e20", "--vocab_size=2.5"],
        ),
        (
            "a law of C alone says no N* and D*",
            ["runs.csv", "--law=power", "--c=flops", "--bootstrap=0", "--budget=1e20"],
        ),
        ("no fit of a law; write one with nanoscale fit", ["odd.json", "--budget=1e20"]),
        ("no study 'odd.jso' in experiments_out", ["odd.jso", "--budget=1e20"]),
        ("did you mean '--budget'", ["runs.csv", "--budgets=1e20"]),
        (
            "fit.json is a stored fit; --law is of a table",
            ["fit.json", "--budget=1e20", "--law=kaplan"],
        ),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(table, tmp_path, capsys, message, arguments):
    (tmp_path / "odd.json").write_text('{"a": 1}', encoding="utf-8")
    (tmp_path / "fit.json").write_text(
        json.dumps({key: [] for key in ("law", "params", "predictors", "reasons")}),
        encoding="utf-8",
    )
    before = sorted(p.name for p in tmp_path.iterdir())
    assert main(["plan", *arguments, "--json=out.json"]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_budget_beyond_what_a_law_can_say_is_refused(table):
    columns = rows()
    least, most = min(columns["flops"]), max(columns["flops"])
    grounds = next_run.grounds_of(table, FitSettings(resamples=200))
    made = next_run.plan(grounds, budget=9e3 * most)
    low, high = made.tokens_per_param_ci95
    assert low < made.tokens_per_param < high
    assert f"[{low:.3g}, {high:.3g}] per parameter" in made.summary()[2]
    for budget, way in ((1.1e4 * most, "far beyond"), (least / 1.1e4, "far below")):
        refused = refusal(next_run.plan, grounds, budget=budget)
        assert f"{way} the runs fitted, over 10,000 times" in refused
    millions = np.array(columns["total_params"]) / 1e6
    fit = fit_law({"N": millions, "D": columns["tokens_seen"]}, columns["val_loss"], resamples=0)
    assert "in millions" in refusal(next_run.plan, fit, budget=most / 1e6)
