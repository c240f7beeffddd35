"""The coordinate check, run: right on right rules, no missing rule escapes; the verb."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from refusals import assert_refused
from tiny import ROOT, run_nanoscale

from nanoscale.__main__ import main
from nanoscale.checks.coordinate_verdict import CoordinateVerdict
from nanoscale.checks.coordinates import FAIL, PASS, UNSURE
from nanoscale.commands.coord_check import command, lines, plan_of
from nanoscale.model.distributed import Ranks
from nanoscale.report.activation_panels import coordinates_figure
from nanoscale.store.files import plain
from nanoscale.studies.coordinate_study import PROTOCOL, CoordinatePlan, coord_check
from nanoscale.training import loop as training
from nanoscale.training import statistics
from nanoscale.training.state import build, dataset_of

RULES = f"--parametrization.rules={ROOT / 'tests' / 'faulty_rules.py'}"
LLAMA = ["--use_rmsnorm=True", "--use_rope=True", "--use_swiglu=True"]


OF_THE_PLAN = ("arguments", "widths", "depths", "steps", "seeds")


def planned(arguments: Sequence[str]) -> CoordinatePlan:
    typed = command.make_context("coord-check", list(arguments)).params
    return plan_of(**{key: typed[key] for key in OF_THE_PLAN})


# -- statistics -----------------------------------------------------------------------------------
def test_changes_and_scores_against_a_model_probed_by_hand(data_root):
    plan = planned([f"--data_root={data_root}", "--dataset=tiny", "--widths=16,32,48"])
    run = build(plan.cells[0].spec, dataset_of(plan.cells[0].spec), Ranks())
    X = next(training.micro_batches(run)).X
    before, after = {}, {}
    run.model(X, probe=lambda name, x: before.__setitem__(name, x.detach().clone()))
    found = training.update(run, with_statistics=True).statistics
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
    monkeypatch.setattr(statistics, "CHANGE_TOKENS", 64)
    plan = planned([f"--data_root={data_root}", "--dataset=tiny", "--widths=16,32,48"])
    run = build(plan.cells[0].spec, dataset_of(plan.cells[0].spec), Ranks())
    kept: dict[str, torch.Tensor] = {}
    idx = torch.zeros(4, 64, dtype=torch.long)
    statistics.activation_statistics(run.model, idx, kept)
    assert {tuple(x.shape[:2]) for x in kept.values()} == {(1, 64)}
    assert set(statistics.activation_changes(run.model, idx, kept).values()) == {0.0}


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
SAMPLE = ("AdamW", "Muon", "AdamW, depth")  # the others wait for `make soak`
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


def small(data_root: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> CoordinateVerdict:
    """The check's verdict, without run folders: five steps on short sequences."""
    monkeypatch.setattr("nanoscale.training.state.peak", lambda *_: None)
    plan = planned(
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
        run = build(cell.spec, dataset_of(cell.spec), Ranks())
        rows = [training.update(run, with_statistics=True) for _ in range(plan.steps)]
        found.append(
            (
                cell.spec.config,
                [
                    training.record(run, row).to_json() | {"step": t}
                    for t, row in enumerate(rows, 1)
                ],
            )
        )
    return plan.judge(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.soak if case not in SAMPLE else ()) for case in RIGHT],
)
def test_right_rules_pass(data_root, monkeypatch, case):
    verdict = small(data_root, monkeypatch, *RIGHT[case])
    assert verdict.verdict == PASS, lines(verdict)[-1]


@pytest.mark.slow
@pytest.mark.parametrize("case", WRONG)
def test_every_missing_rule_is_caught_and_named(data_root, monkeypatch, case):
    arguments, named = WRONG[case]
    mode = case.split(",")[0]
    rules = [RULES] if "-no-" in mode or "-embedding-" in mode else []
    verdict = small(data_root, monkeypatch, f"--parametrization.mode={mode}", *rules, *arguments)
    assert verdict.verdict == FAIL
    assert verdict.rule.startswith(named) or named in verdict.rule.split(",")[0]


# -- the command ----------------------------------------------------------------------------------
TYPED = {
    "no sizes": ([], "give one of --widths and --depths"),
    "both": (["--widths", "32,64,128", "--depths=2,4,8"], "give one of"),
    "not numbers": (["--widths=wide"], "--widths=wide", "as in --widths 64,128,256"),
    "negative": (["--depths=-2,4,8"], "--depths=-2,4,8"),
    "too few": (["--widths", "64,128"], "--widths=64,128", "at least 3 sizes"),
    "twice the same": (["--widths=64,64,128"], "at least 3 sizes"),
    "no value": (["--widths"], "--widths", "a value is missing"),
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
    plan = planned(["c.py", "--batch_size=2", "--widths=32,64,128", "--seed=4", "--seeds=2"])
    configs = [cell.spec.config for cell in plan.cells]
    assert [(c.n_embd, c.n_head, c.seed) for c in configs] == [
        (d, d // 16, s) for d in (32, 64, 128) for s in (4, 5)
    ]
    assert {
        (c.learning_rate, c.batch_size, c.max_iters, c.n_layer, c.init_seed == c.seed)
        for c in configs
    } == {(PROTOCOL["learning_rate"], 2, 10, 12, True)}
    plan = planned(["--dataset=tiny", "--widths", "32,64,128", "--n_head=4"])
    assert {cell.spec.config.n_head for cell in plan.cells} == {4}
    plan = planned(["--dataset=tiny", "--depths", "2,4,8", "--n_head=2"])
    assert {(c.spec.config.n_embd, c.spec.config.n_head) for c in plan.cells} == {(64, 2)}


@pytest.mark.soak
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
    tiny = {"dataset": "tiny", "block_size": 16, "n_embd": 16, "n_head": 2}
    verdict = coord_check(widths=[16, 32, 64], keys=tiny, steps=3, seeds=2)  # cached
    assert printed[-len(lines(verdict)) :] == lines(verdict)
    assert record | {"asked": {}} == plain(verdict.to_json()) | {"asked": {}}
    assert printed[-1].startswith("fail: ")
    assert (desk / "out.png").stat().st_size > 10_000
    drawn = [text.get_text() for axes in coordinates_figure(verdict).axes for text in axes.texts]
    assert {"embedding", "MLP out", "last block", "step 1", "slopes to scale"} <= set(drawn)
    again = run_nanoscale(*common, "--widths=16,32,64", "--seeds=2", cwd=desk)
    assert again.stdout.splitlines()[0].endswith("6 runs: 6 cached")
    assert again.stdout.splitlines()[-len(lines(verdict)) :] == lines(verdict)
    right = [*common, "--parametrization.mode=CompleteP", "--depths=2,4,8"]
    passed = run_nanoscale(*right, cwd=desk)
    assert passed.returncode == 0, passed.stdout
    unsure = run_nanoscale(*right, "--seeds=1", cwd=desk)  # of those, cached
    assert unsure.returncode == 3, unsure.stdout
    assert json.loads((desk / "out.json").read_text())["verdict"] == UNSURE
