"""Before training: seven designs of known widths, a fit of one's own world, warnings both ways."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from tiny import ROOT

from nanoscale.__main__ import main
from nanoscale.errors import UserError
from nanoscale.laws import LAWS, fit_law
from nanoscale.laws.design import (
    CHINCHILLA_TRUTH,
    Design,
    draw_worlds,
    seed_of,
    simulate,
    wilson,
)
from nanoscale.laws.information import lattice, next_runs, standard_error
from nanoscale.laws.questions import LawQuestion

LAW, TRUTH = LAWS["chinchilla"], np.array(CHINCHILLA_TRUTH)
ASKED = [LawQuestion.parse(q, LAW) for q in ("alpha", "beta", "a", "E", "N*@1e24", "L@1e24")]
A = ASKED[2]
# widths of a's interval in 100 worlds of an independent prototype
WIDTHS = {
    (4, 6, 0.002): 0.018,
    (4, 6, 0.01): 0.116,
    (6, 6, 0.002): 0.014,
    (6, 6, 0.01): 0.087,
    (6, 10, 0.002): 0.011,
    (6, 10, 0.01): 0.066,
}


def isoflop(budgets=4, sizes=6, noise=0.01, **how) -> Design:
    """Budgets of 1e17 to 1e20 FLOPs, sizes a factor of 4 to either side of the optimum."""
    C = np.geomspace(1e17, 1e20, budgets)[:, None]
    N = LAW.optimum(TRUTH, C)[0] * np.geomspace(1 / 4, 4, sizes)
    x = np.array([N.ravel(), (C / (6 * N)).ravel()])
    return Design(LAW, x, TRUTH, noise, **{"resamples": 200} | how)


def write(path, design, **columns):
    columns = {"N": design.x[0], "D": design.x[1]} | columns
    rows = "\n".join(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))
    path.write_text(f"{','.join(columns)}\n{rows}\n", encoding="utf-8")


# -- coverage and width -------------------------------------------------------------------------
@pytest.mark.soak
@pytest.mark.parametrize("case", WIDTHS, ids="{0[0]}x{0[1]}, sd {0[2]}".format)
def test_intervals_hold_the_truth_and_have_the_known_width(case):
    answers = simulate(isoflop(*case), ASKED, worlds=200)
    for answer in answers:
        assert answer.coverage >= 0.93
        assert answer.verdict == ("conservative" if answer.coverage_ci95[0] > 0.95 else "nominal")
        assert answer.not_identified <= 0.05
        assert abs(answer.bias) < 0.2 * answer.rmse + 1e-3
    a = answers[2]
    error = stats.norm.ppf(0.5 + 0.9975 / 2) * 1.2533 * a.width_sd * (1 / 200 + 1 / 100) ** 0.5
    assert abs(a.width / WIDTHS[case] - 1) < error + 0.0005 / WIDTHS[case]  # and its rounding


@pytest.mark.soak
def test_intervals_of_the_240_points_hold_the_truth(epoch):
    N, C, loss = epoch
    fit = fit_law({"N": N, "C": C}, loss, drop_worst=5, resamples=0)
    keep = np.argsort(loss)[:-5]
    x = np.array([N[keep], C[keep] / (6 * N[keep])])
    design = Design(LAW, x, list(fit.params.values()), np.log(loss[keep] / fit(*x)), resamples=200)
    assert all(a.coverage >= 0.93 for a in simulate(design, ASKED, worlds=200))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pairs", "parametric", "wild"])
def test_a_world_is_fitted_and_resampled_as_fit_law_does(method):
    design = isoflop(noise=0.004, resampling=method)
    loss = draw_worlds(design, 1, 7)
    answers = simulate(design, ASKED, worlds=1, rng_seed=7)
    fit = fit_law(
        dict(zip("ND", design.x, strict=True)),
        loss[0],
        resamples=200,
        resampling=method,
        rng_seed=seed_of(0, 7),
    )
    expected = fit.ci95 | {"N*@1e24": fit.optimum(1e24).N_ci95}
    for answer in answers[:-1]:
        assert answer.ends == pytest.approx(expected[answer.question], rel=1e-5)


@pytest.mark.soak
def test_intervals_that_are_too_narrow_are_called_so():
    wild, parametric = (
        simulate(isoflop(resampling=method), [A], worlds=100)[0]
        for method in ("wild", "parametric")
    )
    assert (wild.verdict, parametric.verdict) == ("too narrow", "nominal")
    assert wild.coverage < 0.9 < parametric.coverage


@pytest.mark.parametrize(("k", "n"), [(0, 50), (190, 200), (200, 200)])
def test_wilson(k, n):
    ends = stats.binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k, n) == pytest.approx([ends.low, ends.high], abs=1e-9)


# -- expected information -----------------------------------------------------------------------
@pytest.mark.soak
def test_expected_errors_are_those_of_worlds():
    design = isoflop(6, 10, 0.002, delta=0.00269)
    design = replace(design, resamples=100)
    for question, answer in zip(ASKED, simulate(design, ASKED, worlds=400), strict=True):
        assert answer.rmse == pytest.approx(standard_error(design, question), rel=0.12)


@pytest.mark.soak
def test_the_rank_one_update_is_the_design_with_that_run_and_worlds_agree():
    design = isoflop(noise=0.004, delta=0.00538)
    for question in (A, ASKED[4]):
        found = next_runs(design, question, *lattice(design, 1e20))
        for run in found[:: len(found) // 5]:
            more = design.with_points(np.array(run.x)[:, None])
            assert run.left == pytest.approx(
                standard_error(more, question) / standard_error(design, question), rel=1e-6
            )
    assert found[0].left < 0.97 < found[-1].left <= 1
    best, worst = (
        simulate(
            design.with_points(np.repeat(np.array(run.x)[:, None], 4, axis=1)),
            [question],
            worlds=100,
        )[0].rmse
        for run in (found[0], found[-1])
    )
    assert best < 0.95 * worst


# -- warnings -----------------------------------------------------------------------------------
def test_a_sound_design_is_not_warned_of():
    assert isoflop().warnings() == []
    assert isoflop().tied_delta == 0.0135
    assert isoflop(delta=0.0135).tied_delta is None


def test_faults_of_a_design_are_warned_of():
    N, D = np.meshgrid(np.geomspace(1e8, 1e10, 6), np.geomspace(1e9, 1e11, 3))
    three = Design(LAW, np.array([N.ravel(), D.ravel()]), TRUTH)
    assert "D has only 3 values" in three.warnings()[0]
    assert "pairs resamples of 18 points" in three.warnings()[1]
    tied = Design(LAW, np.array([N[0], 20 * N[0]]).repeat(4, 1), TRUTH)
    assert "N and D rise together" in tied.warnings()[0]
    with pytest.raises(UserError, match="D has 2 values; a law with an exponent of D needs"):
        Design(LAW, np.array([N[:2].ravel(), D[:2].ravel()]), TRUTH)


@pytest.mark.soak
def test_points_of_one_run_are_warned_of_and_their_clusters_are_honest():
    """Ten points a run share its noise: pairs take them for ten runs."""
    N, D = np.meshgrid(np.geomspace(1e8, 1e10, 16), np.geomspace(1e9, 1e11, 10), indexing="ij")
    runs = np.repeat(np.arange(16), 10)
    plan = Design(LAW, np.array([N.ravel(), D.ravel()]), TRUTH, groups=runs, resamples=100)
    assert "160 points come from 16 runs" in plan.warnings()[0]
    clusters = replace(plan, resampling="cluster")
    assert clusters.warnings() == []
    alpha = [simulate(one, [ASKED[0]], worlds=60)[0] for one in (plan, clusters)]
    assert alpha[0].verdict == "too narrow"
    assert alpha[0].coverage < alpha[1].coverage - 0.15


# -- the command --------------------------------------------------------------------------------
@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "plan.csv", isoflop())
    return "plan.csv"


def design(*arguments):
    code = main(["design", *arguments, "--worlds=50", "--bootstrap=100", "--json=out.json"])
    with open("out.json", encoding="utf-8") as file:
        return code, json.load(file)


@pytest.mark.soak
def test_what_is_said_of_a_table(table, capsys):
    code, record = design(table, "--noise=0.01", "--seed=3")
    said = capsys.readouterr().out
    assert (code, record["status"], record["warnings"]) == (0, "identified", [])
    assert list(record["answers"]) == ["a", "alpha", "beta", "E", "N*@1e21", "L@1e21"]
    a, run = record["answers"]["a"], record["next_run"]
    assert a["truth"] == pytest.approx(0.5138995, abs=1e-6)
    assert f"  a: {a['width']:.2g} wide (95 %), coverage {a['coverage']:.2f} [" in said
    assert f"cannot tell {a['ends'][0]:.3g} from {a['ends'][1]:.3g}" in said
    assert run["flops"] == pytest.approx(6 * run["N"] * run["D"])
    assert run["flops"] <= 1.0001e20
    assert run["then"]["width"] < a["width"]
    assert f"narrows a most: N={run['N']:.3g}, D={run['D']:.3g}" in said
    assert run["left"] <= record["next_run_per_flop"]["left"] < 1
    assert record["next_run_per_flop"]["per_flop"] >= run["per_flop"]
    assert 1 < record["answers"]["N*@1e21"]["width"] < 4  # a ratio
    assert record["tied_delta"]["delta"] == 0.0135
    assert record["tied_delta"]["then"]["width"] < a["width"]
    _, cheap = design(table, "--noise=0.01", "--extra=1e18", "--question=a;L@1e9,2e10")
    assert cheap["next_run"]["flops"] <= 1e18 * 1.0001
    assert list(cheap["answers"]) == ["a", "L@1e9,2e10"]


@pytest.mark.soak
def test_a_seed_is_all_that_chance_depends_on(table):
    records = [design(table, "--question=a", f"--seed={seed}")[1] for seed in (3, 3, 4)]
    assert records[0] == records[1]
    assert records[0]["answers"] != records[2]["answers"]


@pytest.mark.soak
def test_seeds_are_replicates_and_narrow_the_answer(table):
    _, one = design(table, "--question=a")
    _, four = design(table, "--question=a", "--seeds=4")
    assert (four["points"], four["cells"]) == (96, 24)
    assert four["flops"] == pytest.approx(4 * one["flops"])
    assert four["answers"]["a"]["width"] == pytest.approx(one["answers"]["a"]["width"] / 2, rel=0.3)


@pytest.mark.soak
def test_a_question_without_an_answer_exits_with_3(table, capsys):
    code, record = design(table, "--noise=0.2", "--delta=0.3", "--question=alpha")
    assert (code, record["status"]) == (3, "not_identified")
    assert record["answers"]["alpha"]["not_identified"] > 0.5
    assert "alpha: not identified in" in capsys.readouterr().out


@pytest.mark.slow
def test_a_stored_fit_is_the_truth_and_its_noise_that_of_a_run(table, tmp_path):
    loss = draw_worlds(isoflop(noise=0.003), 1)[0]
    write(tmp_path / "runs.csv", isoflop(), L=loss)
    assert (
        main(["fit", "runs.csv", "--n=N", "--d=D", "--loss=L", "--bootstrap=0", "--json=fit.json"])
        == 0
    )
    _, record = design(table, "--truth=fit.json", "--question=E")
    with open("fit.json", encoding="utf-8") as file:
        fit = json.load(file)
    assert record["truth"] == fit["params"]
    assert record["noise"] == fit["noise"]["used"] == pytest.approx(0.003, rel=0.5)


@pytest.mark.soak
def test_points_of_one_run_in_a_table(table, tmp_path):
    write(tmp_path / "grouped.csv", isoflop(), run=[f"r{i // 2}" for i in range(24)])
    _, record = design("grouped.csv", "--question=a")
    assert "24 points come from 12 runs" in record["warnings"][0]
    _, record = design("grouped.csv", "--question=a", "--resample=cluster")
    assert not any("come from" in w for w in record["warnings"])


STUDY = """
[study]
recipe = "{recipe}"
[base]
dataset = "tiny"
data_root = "{data}"
block_size = 8
batch_size = 4
gradient_accumulation_steps = 1
n_head = 2
{more}
"""
GRID = "[grid]\nn_embd = [8, 16, 32, 64]\nmax_iters = [10, 30, 90, 270]\n"
LADDER = "tokens_per_param = 20\n[ladder]\nseeds = [1, 2]\n" + "".join(
    f"[[ladder.sizes]]\nn_embd = {n}\nn_layer = 2\n" for n in (8, 16, 32, 64, 128)
)


@pytest.mark.soak
def test_a_study_file_is_a_plan_and_nothing_is_run(tmp_path, data_root, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = {"data": data_root, "recipe": "grid"}
    (tmp_path / "grid.toml").write_text(
        STUDY.format(**base, more=GRID + "seed = [1, 2]\nlearning_rate = [1e-3, 2e-3]\n")
    )
    _, record = design("grid.toml", "--question=a")
    assert (record["law"], record["points"], record["cells"]) == ("chinchilla", 32, 16)
    assert any("64 cells are 32 runs of different N, D and seed" in w for w in record["warnings"])
    assert any("the default truth is of models from" in w for w in record["warnings"])
    base["recipe"] = "ladder"
    (tmp_path / "ladder.toml").write_text(STUDY.format(**base, more=LADDER))
    (tmp_path / "power.json").write_text(
        (ROOT / "docs" / "results" / "shakespeare" / "power.json").read_text()
    )
    _, record = design("ladder.toml", "--truth=power.json", "--question=g")
    assert (record["law"], record["points"], record["cells"]) == ("power", 10, 5)
    assert record["resampling"] == "parametric"
    assert record["noise"] == pytest.approx(0.0059, abs=1e-4)
    assert record["next_run"]["flops"] == record["next_run"]["C"]
    assert {p.name for p in tmp_path.iterdir()} == {
        "grid.toml",
        "ladder.toml",
        "power.json",
        "out.json",
    }


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("nanoscale design: TABLE|STUDY.toml is missing", []),
        ("noise 2: expected the sd of ln L", ["plan.csv", "--noise=2"]),
        ("question 'gamma': the chinchilla law answers E, A", ["plan.csv", "--question=gamma"]),
        ("question 'L@x': expected numbers above 0", ["plan.csv", "--question=L@x"]),
        ("--extra=1000: no run is that cheap", ["plan.csv", "--extra=1e3"]),
        ("--seeds=0: must be at least 1", ["plan.csv", "--seeds=0"]),
        ("--worlds=3: must be at least 50", ["plan.csv", "--worlds=3"]),
        ("20 resamples are too few", ["plan.csv", "--bootstrap=20"]),
        ("--resample=pair: no such way; did you mean 'pairs'", ["plan.csv", "--resample=pair"]),
        ("--resample=cluster: every planned point is a run", ["plan.csv", "--resample=cluster"]),
        ("objective 'huber': no such objective", ["plan.csv", "--objective=huber"]),
        ("--truth=x.json: no such file", ["plan.csv", "--truth=x.json"]),
        ("odd.json: no fit of a law", ["plan.csv", "--truth=odd.json"]),
        ("did you mean '--noise'", ["plan.csv", "--noize=1"]),
        ("--n=M: the table has no such column", ["plan.csv", "--n=M"]),
        ("give two of --n, --d and --c", ["odd.csv"]),
        ("--n=M: 20 to 60 looks like millions", ["units.csv", "--n=M", "--d=tokens"]),
        ("--n=tokens: N is the parameters", ["units.csv", "--n=tokens", "--d=M"]),
        ("--d=steps: D is the tokens of a run", ["units.csv", "--n=M", "--d=steps"]),
        ("odd.toml: no such study file", ["odd.toml"]),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(table, tmp_path, capsys, message, arguments):
    (tmp_path / "odd.json").write_text('{"a": 1}', encoding="utf-8")
    (tmp_path / "odd.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    (tmp_path / "units.csv").write_text("M,tokens,steps\n20,1,9\n60,3,9\n", encoding="utf-8")
    before = sorted(p.name for p in tmp_path.iterdir())
    assert main(["design", *arguments, "--json=out.json"]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == before
