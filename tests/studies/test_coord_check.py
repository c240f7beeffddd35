"""The coordinate check: exact on planted rows, right on right rules, no missing rule escapes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import assert_refused
from scipy import stats
from tiny import ROOT, run_nanoscale

from nanoscale.checks import coordinates as checks
from nanoscale.checks.coordinates import DEPTH, FAIL, PASS, UNSURE, WIDTH, Facts, Run
from nanoscale.commands.main import main
from nanoscale.report.activation_panels import coordinates_figure
from nanoscale.studies import coord_check
from nanoscale.studies.coord_check import Plan, lines, record_of
from nanoscale.training import loop as training
from nanoscale.training import telemetry
from nanoscale.training.run import build, dataset_of

SIZES = {WIDTH: (64, 128, 256), DEPTH: (2, 4, 8, 16)}
RULES = f"--parametrization.rules={ROOT / 'tests' / 'faulty_rules.py'}"
LLAMA = ["--use_rmsnorm=True", "--use_rope=True", "--use_swiglu=True"]


# -- arithmetic on planted rows -------------------------------------------------------------------
def planted(sweep: str, steps: int = 4, noise: float = 0.0, **exponents: float) -> list[Run]:
    """Runs whose quantities are powers of the size: `size_attn=1.0`, `change_mlp=0.5`, ..."""
    rng, runs = np.random.default_rng(0), []
    for seed in (1, 2, 3):
        for size in SIZES[sweep]:

            def power(name: str, size: int = size) -> float:
                return 0.3 * size ** exponents.get(name, 0.0) * 2 ** rng.normal(0, noise)

            rows = []
            for t in range(1, steps + 1):
                sizes = {k: power(f"size_{k}") for k in checks.SPREAD}
                moved = {k: power(f"change_{k}") for k in checks.SPREAD}
                roles = {
                    "hidden": 1e-3 / size * power("pace_hidden"),
                    "embedding": power("update_embedding"),
                }
                rows.append(
                    {
                        "step": t,
                        "lr": 0.5,
                        "train_loss": 3.0,
                        "statistics": {
                            "activation_rms": sizes,
                            "activation_change_rms": moved,
                            "update_rms": roles,
                            "logit_rms": power("size_logits"),
                            "attention_logit_rms": power("size_scores"),
                        },
                    }
                )
            lr = {
                "hidden": 2e-3 / size,
                "embedding": 2e-3 * size ** exponents.get("update_embedding", 0.0),
            }
            runs.append(Run(size, seed, rows, lr, 1.0))
    return runs


def of_planted(facts: Facts, **options: Any) -> dict[str, Any]:
    runs = planted(facts.sweep, **options)
    return record_of(facts.sweep, SIZES[facts.sweep], runs, facts, len(runs[0].rows))


def test_planted_slopes_are_found_exactly():
    record = of_planted(Facts(WIDTH), size_attn=0.75, change_mlp=-0.5)
    found = {(f["quantity"], f["window"]): f["slope"] for f in record["findings"]}
    for window in (checks.START, checks.LATER):
        assert found["size: attn", window] == pytest.approx(0.75, abs=1e-12)
    assert found["change: mlp", checks.FIRST] == pytest.approx(-0.5, abs=1e-12)
    assert found["update / LR: hidden", checks.START] == pytest.approx(0, abs=1e-12)
    assert record["slopes"]["size: attn"]["3"]["slope"] == pytest.approx(0.75)
    assert record["values"]["size: attn"][2][0] == pytest.approx(0.3 * 256**0.75)


def test_windows_are_means_over_the_steps_that_every_run_has():
    logs = np.tile(np.arange(1.0, 9.0), (2, 3, 1))
    means = {w: checks.window_mean(logs, w) for w in (checks.START, checks.LATER, checks.FIRST)}
    assert {w: set(m.ravel()) for w, m in means.items()} == {
        checks.START: {1.0},
        checks.LATER: {5.0},
        checks.FIRST: {3.0},
    }
    logs[1, 2, 2] = math.nan
    assert set(checks.window_mean(logs, checks.FIRST).ravel()) == {3.0}  # of 1, 2, 4, 5
    assert checks.window_mean(logs, checks.LATER) == pytest.approx(np.full((2, 3), 32 / 6))
    assert checks.window_mean(logs[..., 2:3], checks.START) is None


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_interval_is_that_of_a_regression_with_an_intercept_per_seed(seeds):
    rng, sizes = np.random.default_rng(5), (32, 64, 256, 512)
    logs = rng.normal(size=(seeds, 4))
    X = np.hstack(
        [np.kron(np.eye(seeds), np.ones((4, 1))), np.tile(np.log2(sizes), seeds)[:, None]]
    )
    b, ss = np.linalg.lstsq(X, logs.ravel(), rcond=None)[:2]
    dof = X.shape[0] - X.shape[1]
    half = stats.t.ppf(0.975, dof) * math.sqrt(ss[0] / dof * np.linalg.inv(X.T @ X)[-1, -1])
    found = checks.slope(sizes, logs)
    assert (found.mean, found.low, found.high) == pytest.approx((b[-1], b[-1] - half, b[-1] + half))


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.1, 0.2, PASS),
        (-0.3, 0.3, PASS),
        (0.31, 0.9, FAIL),
        (-0.9, -0.31, FAIL),
        (0.2, 0.4, UNSURE),
        (-0.4, 0.4, UNSURE),
        (0.3, 0.5, UNSURE),
    ],
)
def test_a_verdict_comes_from_the_whole_interval(low, high, verdict):
    band = checks.Band(WIDTH, checks.SIZE, ("mlp",), checks.START, -0.3, 0.3, "")
    slope = checks.Slope((low + high) / 2, low, high)
    assert checks.Finding((checks.SIZE, "mlp"), slope, band).verdict == verdict


PLANTED = {  # what is wrong -> (facts, exponents, what is named)
    "nothing": (Facts(WIDTH), {}, None),
    "nothing, heads grow": (Facts(WIDTH, heads_grow=True), {"size_scores": -0.5}, None),
    "nothing, untied": (Facts(WIDTH, tied=False), {"size_logits": -0.5}, None),
    "nothing, depth": (Facts(DEPTH), {"size_last_block": -0.4}, None),
    "init of hidden": (
        Facts(WIDTH),
        {"size_scores": 1, "size_attn": 0.5, "size_mlp": 0.5, "change_mlp": 0.9},
        "the init rule of hidden",
    ),
    "init of the last": (
        Facts(WIDTH),
        {"size_attn": 0.5, "size_mlp": 0.5},
        "the init rule of residual_out",
    ),
    "both": (
        Facts(WIDTH),
        {"size_scores": 1, "size_attn": 1, "size_mlp": 1, "size_logits": 1},
        "the init rule of hidden and residual_out",
    ),
    "embedding's": (Facts(WIDTH), {"size_embedding": -0.5}, "the init rule of embedding"),
    "attention": (Facts(WIDTH, heads_grow=True), {}, "the attention scale"),
    "LR": (Facts(WIDTH), {"change_mlp": 1, "size_logits": 1}, "the LR rule of hidden and residual"),
    "Muon": (Facts(WIDTH, muon_scale="match_rms"), {"change_mlp": 0.5}, "muon_scale=match_rms"),
    "eps": (Facts(WIDTH), {"pace_hidden": -0.3, "change_mlp": -0.4}, "the eps rule of hidden"),
    "a vector's LR": (
        Facts(WIDTH),
        {"update_embedding": 0.5, "change_embedding": 0.5},
        "the LR rule of embedding",
    ),
    "output": (Facts(WIDTH), {"size_logits": 0.6}, "the output multiplier"),
    "no residual multiplier": (Facts(DEPTH), {"size_last_block": 0.5}, "the residual multiplier"),
    "depth factor": (
        Facts(DEPTH, residual_varies=True),
        {"change_last_block": 0.5},
        "the depth factor of the LR",
    ),
}


@pytest.mark.parametrize("case", PLANTED)
def test_each_planted_fault_is_named(case):
    facts, exponents, named = PLANTED[case]
    record = of_planted(facts, noise=0.02, **exponents)
    if named is None:
        assert (record["verdict"], record["rule"]) == (PASS, None)
    else:
        assert record["verdict"] == FAIL
        assert named in record["rule"]
        assert lines(record)[-1].startswith("fail: ")
        assert record["rule"] in lines(record)[-1]


def test_wide_intervals_are_no_verdict():
    record = of_planted(Facts(WIDTH), noise=1.0)
    assert record["verdict"] == UNSURE
    assert lines(record)[-1].startswith("inconclusive: the intervals of ")


def test_a_zero_activation_is_not_judged_and_a_diverged_size_fails():
    runs = planted(WIDTH)
    for run in runs:  # a zero-initialised readout
        run.rows[0]["statistics"]["logit_rms"] = 0.0
    record = record_of(WIDTH, SIZES[WIDTH], runs, Facts(WIDTH), 4)
    assert record["verdict"] == PASS
    assert ("size: logits", checks.START) not in [
        (f["quantity"], f["window"]) for f in record["findings"]
    ]
    cut = [Run(r.size, r.seed, r.rows[:2] if r.size == 256 else r.rows, r.lr, 1.0) for r in runs]
    record = record_of(WIDTH, SIZES[WIDTH], cut, Facts(WIDTH), 4)
    assert (record["verdict"], record["says"].split(";")[0]) == (
        FAIL,
        "training diverged at width 256",
    )
    short = [Run(r.size, r.seed, r.rows[:2], r.lr, 1.0) for r in runs]
    assert record_of(WIDTH, SIZES[WIDTH], short, Facts(WIDTH), 4)["verdict"] == UNSURE


# -- statistics -----------------------------------------------------------------------------------
def test_changes_and_scores_against_a_model_probed_by_hand(data_root):
    plan, _ = Plan.of([f"--data_root={data_root}", "--dataset=tiny", "--widths=16,32,48"])
    run = build(plan.cells[0].spec, dataset_of(plan.cells[0].spec), training.Ranks())
    X = next(training.micro_batches(run))[0][0]
    before, after = {}, {}
    run.model(X, probe=lambda name, x: before.__setitem__(name, x.detach().clone()))
    found = training.update(run, with_statistics=True)["statistics"]
    run.model(X, probe=lambda name, x: after.__setitem__(name, x.detach().clone()))
    size = lambda x: x.double().square().mean().sqrt().item()  # noqa: E731
    changes = found["activation_change_rms"]
    assert changes.keys() == found["activation_rms"].keys()
    mlps = [size(after[f"h.{i}.mlp"] - before[f"h.{i}.mlp"]) for i in range(2)]
    assert changes["mlp"] == pytest.approx(sum(mlps) / 2, rel=1e-4)
    assert changes["last_block"] == pytest.approx(
        size(after["h.1.out"] - before["h.1.out"]), rel=1e-4
    )
    scores = [before[f"h.{i}.attn.scores"] for i in range(2)]
    shown = [size(s[torch.isfinite(s)]) for s in scores]
    assert found["attention_logit_rms"] == pytest.approx(sum(shown) / 2, rel=1e-6)
    assert found["max_attention_logit"] == max(s.max().item() for s in scores)


def test_changes_are_measured_on_few_tokens(data_root, monkeypatch):
    monkeypatch.setattr(telemetry, "CHANGE_TOKENS", 64)
    plan, _ = Plan.of([f"--data_root={data_root}", "--dataset=tiny", "--widths=16,32,48"])
    run = build(plan.cells[0].spec, dataset_of(plan.cells[0].spec), training.Ranks())
    kept: dict[str, torch.Tensor] = {}
    telemetry.activation_statistics(run.model, torch.zeros(4, 64, dtype=torch.long), kept)
    assert {tuple(x.shape[:2]) for x in kept.values()} == {(1, 64)}
    assert set(
        telemetry.activation_changes(run.model, torch.zeros(4, 64, dtype=torch.long), kept).values()
    ) == {0.0}


# -- the real thing, small and in this process ----------------------------------------------------
WIDTHS, DEPTHS = "--widths=32,64,128", "--depths=1,2,4,8"
MUP, MUON = "--parametrization.mode=muP", "--optimizer=muon"
COMPLETEP = "--parametrization.mode=CompleteP"
RIGHT = {
    "AdamW": [MUP, "--widths=64,128,256"],
    "AdamW, LLaMA, GQA, untied": [MUP, WIDTHS, *LLAMA, "--n_kv_head=2", "--tie_embeddings=False"],
    "AdamW, heads grow": [MUP, "--widths=64,128,256", "--n_head=4"],
    "Muon": [MUP, WIDTHS, *LLAMA, MUON],
    "AdamW, depth": [COMPLETEP, DEPTHS],
    "Muon, depth": [COMPLETEP, DEPTHS, MUON],
}
WRONG = {
    "muP-no-init": ([WIDTHS], "the init rule of hidden and residual_out"),
    "muP-no-init-hidden": ([WIDTHS], "the init rule of hidden"),
    "muP-no-init-out": ([WIDTHS], "the init rule of residual_out"),
    "muP-no-lr": ([WIDTHS], "the LR rule of hidden and residual_out"),
    "muP-embedding-lr": ([WIDTHS], "the LR rule of embedding"),
    "muP-no-eps": ([WIDTHS, "--adam_eps=1e-2"], "the eps rule of"),
    "muP-no-attention": ([WIDTHS, "--n_head=4"], "the attention scale"),
    "muP-no-output": ([WIDTHS], "the output multiplier"),
    "CompleteP-no-residual": ([DEPTHS], "the residual multiplier"),
    "muP": ([WIDTHS, *LLAMA, MUON, "--muon_scale=match_rms"], "muon_scale=match_rms"),
    "SP": ([WIDTHS], "the init rule of hidden and residual_out"),
    "SP, depth": ([DEPTHS], "the residual multiplier"),
}


def small(data_root: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    """The check's record, without run folders: five steps on short sequences."""
    monkeypatch.setattr("nanoscale.training.run.peak", lambda *_: None)
    plan, _ = Plan.of(
        [
            f"--data_root={data_root}",
            "--dataset=tiny",
            "--block_size=32",
            "--steps=5",
            "--seeds=3",
            *arguments,
        ]
    )
    found = []
    for cell in plan.cells:
        run = build(cell.spec, dataset_of(cell.spec), training.Ranks())
        rows = [training.update(run, with_statistics=True) for _ in range(plan.steps)]
        found.append(
            (
                cell.spec.config,
                [
                    row | {"step": t, "train_loss": float(row["train_loss"])}
                    for t, row in enumerate(rows, 1)
                ],
            )
        )
    return plan.record(found)


@pytest.mark.parametrize("case", RIGHT)
def test_right_rules_pass(data_root, monkeypatch, case):
    record = small(data_root, monkeypatch, *RIGHT[case])
    assert record["verdict"] == PASS, lines(record)[-1]


@pytest.mark.parametrize("case", WRONG)
def test_every_missing_rule_is_caught_and_named(data_root, monkeypatch, case):
    arguments, named = WRONG[case]
    mode = case.split(",")[0]
    rules = [RULES] if "-no-" in mode or "-embedding-" in mode else []
    record = small(data_root, monkeypatch, f"--parametrization.mode={mode}", *rules, *arguments)
    assert record["verdict"] == FAIL
    assert record["rule"].startswith(named) or named in record["rule"].split(",")[0]


# -- the command ----------------------------------------------------------------------------------
TYPED = {
    "no sizes": ([], "give one of --widths and --depths"),
    "both": (["--widths", "32,64,128", "--depths=2,4,8"], "give one of"),
    "not numbers": (["--widths=wide"], "--widths=wide", "as in --widths 64,128,256"),
    "negative": (["--depths=-2,4,8"], "--depths=-2,4,8"),
    "too few": (["--widths", "64,128"], "--widths=64,128", "at least 3 sizes"),
    "twice the same": (["--widths=64,64,128"], "at least 3 sizes"),
    "no value": (["--widths"], "--widths", "needs a value"),
    "misspelt option": (["--widhts=1,2,3"], "--widhts", "'widths'"),
    "misspelt key": (["--widths=32,64,128", "--n_layr=2"], "--n_layr", "'n_layer'"),
    "bad width": (["--widths=32,72,128"], "72 is not a multiple of 16", "--n_head=4"),
    "bad width for GQA": (["--widths=48,64,128", "--n_kv_head=2"], "48 is not a multiple of 32"),
    "no steps": (["--widths=32,64,128", "--steps=0"], "--steps=0"),
    "half a seed": (["--widths=32,64,128", "--seeds=1.5"], "seeds=1.5", "whole number"),
    "length": (["--widths=32,64,128", "--max_iters=5"], "--max_iters", "--steps"),
    "a fixed start": (["--widths=32,64,128", "--init_seed=5"], "--init_seed", "--seed"),
    "odd file": (["--widths=32,64,128", "--json=out.txt"], "--json=out.txt", "'.json'"),
    "no folder": (["--widths=32,64,128", "--figure=x/y.png"], "--figure=x/y.png", "no folder x"),
}


@pytest.mark.parametrize("case", TYPED)
def test_typed_nonsense(desk, capsys, case):
    arguments, *words = TYPED[case]
    assert_refused(
        desk, capsys, lambda: main(["coord-check", "--dataset=tiny", *arguments]), *words
    )


def test_files_lie_under_the_checks_settings_and_flags_over_them(desk):
    Path("c.py").write_text(
        "n_embd = 48\nn_head = 3\nlearning_rate = 1e-5\nbatch_size = 64\n"
        "dataset = 'tiny'\nmax_iters = 7\nmin_lr = 0.0\ninit_seed = 9\n"
    )
    plan, _ = Plan.of(["c.py", "--batch_size=2", "--widths=32,64,128", "--seed=4", "--seeds=2"])
    configs = [cell.spec.config for cell in plan.cells]
    assert [(c.n_embd, c.n_head, c.seed) for c in configs] == [
        (d, d // 16, s) for d in (32, 64, 128) for s in (4, 5)
    ]
    assert {
        (c.learning_rate, c.batch_size, c.max_iters, c.n_layer, c.init_seed == c.seed)
        for c in configs
    } == {(coord_check.PROTOCOL["learning_rate"], 2, 10, 12, True)}
    plan, _ = Plan.of(["--dataset=tiny", "--widths", "32,64,128", "--n_head=4"])
    assert {cell.spec.config.n_head for cell in plan.cells} == {4}
    plan, _ = Plan.of(["--dataset=tiny", "--depths", "2,4,8", "--n_head=2"])
    assert {(c.spec.config.n_embd, c.spec.config.n_head) for c in plan.cells} == {(64, 2)}


def test_the_command_from_end_to_end(desk):
    common = [
        "coord-check",
        "--dataset=tiny",
        "--block_size=16",
        "--steps=3",
        "--json=out.json",
        "--n_embd=16",
        "--n_head=2",
    ]
    failed = run_nanoscale(
        *common, "--widths", "16,32,64", "--seeds=2", "--figure", "out.png", cwd=desk
    )
    assert failed.returncode == 1, failed.stderr
    record = json.loads((desk / "out.json").read_text())
    printed = failed.stdout.splitlines()
    assert printed[-len(lines(record)) :] == lines(record)
    assert printed[-1].startswith("fail: ")
    assert (desk / "out.png").stat().st_size > 10_000
    drawn = [text.get_text() for axes in coordinates_figure(record).axes for text in axes.texts]
    assert {"embedding", "MLP out", "last block", "step 1", "slopes to scale"} <= set(drawn)
    again = run_nanoscale(*common, "--widths=16,32,64", "--seeds=2", cwd=desk)
    assert again.stdout.splitlines()[0].endswith("6 runs: 6 cached")
    assert again.stdout.splitlines()[-len(lines(record)) :] == lines(record)
    right = [*common, "--parametrization.mode=CompleteP", "--depths=2,4,8"]
    passed = run_nanoscale(*right, cwd=desk)
    assert passed.returncode == 0, passed.stdout
    unsure = run_nanoscale(*right, "--seeds=1", cwd=desk)  # of those, cached
    assert unsure.returncode == 3, unsure.stdout
    assert json.loads((desk / "out.json").read_text())["verdict"] == UNSURE
