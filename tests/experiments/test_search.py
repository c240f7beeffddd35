"""Searches: proposals that depend on seed and results alone, rungs as branches, no run lost."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from drawn import dots
from fake_worker import CRASH, DIVERGE, TINY, VALLEY
from grids import a_runner, starts
from tiny import tiny_spec

from nanoscale.__main__ import main
from nanoscale.errors import UserError
from nanoscale.experiments import samplers
from nanoscale.experiments.records import SearchOutcome, TrialResult
from nanoscale.experiments.samplers import uniform
from nanoscale.experiments.search import Search, SearchPlan
from nanoscale.experiments.space import read_space
from nanoscale.experiments.trials import Trials, loss_of
from nanoscale.store.folder import RunFolder

LR = {"learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}}
SPACE = LR | {"weight_decay": {"low": 0.0, "high": 0.5}}
BASE = TINY | {"beta1": VALLEY}  # lowest at learning_rate 0.003
needs_optuna = pytest.mark.usefixtures("optuna")


@pytest.fixture
def optuna():
    return pytest.importorskip("optuna")


def octaves(lr: float) -> float:
    """How far a learning rate is from the fake worker's best."""
    return abs(math.log2(lr / 0.003))


def values(study) -> list[dict]:
    return [entry.values for entry, _ in study.runs()]


# -- spaces ---------------------------------------------------------------------------------------
def test_a_space_draws_from_its_measure():
    space = read_space(
        LR
        | {
            "n_layer": {"low": 1, "high": 3},
            "optimizer": ["adamw", "muon"],
            "parametrization": {"alpha": {"low": 0.5, "high": 1}},
        },
        "space",
    )
    assert list(space) == ["learning_rate", "n_layer", "optimizer", "parametrization.alpha"]
    drawn = [{k: d.at(uniform(7, i, k)) for k, d in space.items()} for i in range(3000)]
    lrs = sorted(math.log10(d["learning_rate"]) for d in drawn)
    assert lrs[0] >= -4
    assert lrs[-1] <= -1
    assert lrs[1500] == pytest.approx(-2.5, abs=0.1)
    counts = [[d["n_layer"] for d in drawn].count(n) for n in (1, 2, 3)]
    assert all(900 < n < 1100 for n in counts)
    assert {d["optimizer"] for d in drawn} == {"adamw", "muon"}
    assert all(d["learning_rate"] == float(f"{d['learning_rate']:.5g}") for d in drawn)
    ends = read_space({"n_layer": {"low": 1, "high": 8, "log": True}}, "s")["n_layer"]
    assert (ends.at(0.0), ends.at(1 - 1e-12)) == (1, 8)


@pytest.mark.parametrize(
    ("key", "space", "ends"),
    [
        ("learning_rate", {"low": 1e-4, "high": 1e-1, "log": True}, {1.2e-4: "low", 0.09: "high"}),
        ("learning_rate", {"low": 1e-4, "high": 1e-1, "log": True}, {2e-4: "", 0.05: ""}),
        ("weight_decay", {"low": 0.0, "high": 1.0}, {0.04: "low", 0.06: "", 0.97: "high"}),
        ("n_layer", [1, 4, 2], {1: "low", 2: "", 4: "high", None: ""}),
        ("optimizer", ["adamw", "muon"], {"adamw": "", "muon": ""}),
        ("bias", [False, True], {True: ""}),
    ],
)
def test_a_value_stands_at_an_end_of_its_range_or_numeric_choices(key, space, ends):
    axis = read_space({key: space}, "s")[key]
    assert {value: axis.edge(value) for value in ends} == ends


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({}, ["space: give at least one key"]),
        ({"learning_rte": [1, 2]}, ["learning_rte", "did you mean 'learning_rate'"]),
        ({"learning_rate": 1e-3}, ["learning_rate=0.001", "a list, or a range"]),
        ({"learning_rate": [1e-3]}, ["at least two"]),
        ({"learning_rate": {"low": 1e-3}}, ["a range needs 'high'"]),
        ({"learning_rate": {"low": 1, "high": 1}}, ["low < high"]),
        ({"learning_rate": {"low": 0, "high": 1, "log": True}}, ["both above 0 for log"]),
        ({"learning_rate": {"low": 1, "high": 2, "lgo": True}}, ["unknown 'lgo'"]),
        ({"learning_rate": {"low": 1, "high": 2, "log": "yes"}}, ["log='yes'"]),
        ({"learning_rate": {"low": "x", "high": 2}}, ["learning_rate=x", "a number"]),
        ({"use_rope": {"low": 0, "high": 1}}, ["no numbers; give a list"]),
        ({"out_dir": ["a", "b"]}, ["says where or how"]),
        ({"n_head": [2, 3]}, ["n_head=3", "not divisible"]),
        ({"n_head": [2, 2]}, ["n_head=[2, 2]", "twice"]),
        (LR | {"n_kv_head": [None, 2]}, ["n_kv_head changes no trial: its values are one run"]),
        (LR | {"muon_lr": [0.1, 0.2]}, ["muon_lr changes no trial", "optimizer=muon; set that"]),
        (LR | {"rope_theta": {"low": 10, "high": 100}}, ["rope_theta changes", "use_rope=True"]),
        (LR | {"cooldown_frac": [0.1, 0.2], "lr_schedule": ["cosine", "linear"]}, ["=wsd"]),
    ],
)
def test_a_bad_space_is_refused_before_anything_is_written(space, words):
    with pytest.raises(UserError) as refusal:
        a_runner().run_random("s", BASE, space, trials=2)
    for word in words:
        assert word in str(refusal.value)
    assert not Path("experiments_out").exists()


def test_a_key_that_changes_some_trials_only_is_said(capsys):
    space = LR | {"muon_lr": [0.1, 0.2], "optimizer": ["adamw", "muon"]}
    runner = a_runner()
    runner.run_random("s", BASE, space, trials=2, dry_run=True)
    said = "warning: muon_lr acts only with optimizer=muon; in other trials it changes nothing"
    assert said in capsys.readouterr().out
    for acting in (LR | {"muon_lr": [0.1, 0.2]}, LR):
        runner.run_random("s", BASE | {"optimizer": "muon"}, acting, trials=2, dry_run=True)
    rungs = {"cooldown_frac": [0.1, 0.2]}  # whose schedule has a cooldown
    base = BASE | {"warmup_iters": 1}
    runner.run_hpo("s", base, rungs, 2, "random", rungs=[10, 20], dry_run=True)
    assert "changes nothing" not in capsys.readouterr().out
    with pytest.raises(UserError, match="max_iters changes no trial"):
        runner.run_hpo("s", base, {"max_iters": [5, 6]}, 2, "random", rungs=[10, 20])


CONDITIONAL = {"n_head": [2, 3], "n_embd": [16, 24, 36]}
POSSIBLE = {(2, 16), (2, 24), (2, 36), (3, 24), (3, 36)}
NEVER = "combinations that make no run are never proposed, as space, cell n_head=3, n_embd=16"


def drawn(study) -> set[tuple[int, int]]:
    return {(entry.values["n_head"], entry.values["n_embd"]) for entry, _ in study.runs()}


@pytest.mark.parametrize("seed", range(6))
def test_a_conditional_space_is_accepted_whatever_the_seed(seed, capsys):
    a_runner().run_random("s", BASE, CONDITIONAL, trials=4, search_seed=seed, dry_run=True)
    said = capsys.readouterr().out
    assert said.count(f"warning: {NEVER}") == 1
    assert not Path("experiments_out").exists()


@pytest.mark.slow
@needs_optuna
@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "cma"])
def test_impossible_combinations_are_never_proposed_and_that_is_said(sampler, capsys):
    if sampler == "cma":
        pytest.importorskip("cmaes")
    study = a_runner().run_hpo("s", BASE, CONDITIONAL | LR, 12, sampler)
    said = capsys.readouterr().out
    assert said.count(NEVER) == 1
    assert "is none" not in said
    assert len(study) == 12
    assert drawn(study) <= POSSIBLE
    assert study.ok
    record = json.loads((study.folder / "study.json").read_text())
    assert [NEVER in line for line in record["warnings"]] == [True]
    again = a_runner().run_hpo("s", BASE, CONDITIONAL | LR, 13, sampler)
    assert again.entries[:12] == study.entries
    assert len(again) == 13
    assert all(len(starts(folder)) == 1 for _, folder in again.runs())


@pytest.mark.slow
def test_trials_with_rungs_and_a_target_are_possible_in_both_sizes():
    space = {"n_head": [2, 4], "n_kv_head": [1, 2, 4]}
    study = a_runner().run_random(
        "s", BASE | {"n_embd": 32}, space | LR, trials=12, proxy={"n_embd": 16}, seeds=[1]
    )
    assert len(study) == 13
    assert (2, 4) not in {(e.values["n_head"], e.values["n_kv_head"]) for e in study.entries}
    rungs = a_runner().run_hpo(
        "r", BASE | {"warmup_iters": 1}, CONDITIONAL | LR, 9, "random", rungs=[10, 20]
    )
    assert [sum(e.rung == r for e in rungs.entries) for r in (0, 1)] == [9, 3]
    assert drawn(rungs) <= POSSIBLE


def test_the_first_draw_of_a_space_of_possible_values_is_kept():
    plain, picky = (Search(SearchPlan(read_space(SPACE, "s"), 9, "random", 5)) for _ in range(2))
    refused = plain.draw(3)
    picky.possible = lambda values: values != refused
    assert [picky.draw(i) for i in (0, 1, 2)] == [plain.draw(i) for i in (0, 1, 2)]
    assert picky.draw(3) != refused
    assert picky.draw(3) == picky.draw(3)
    picky.possible = lambda values: False
    with pytest.raises(UserError, match="none of 300 points of the space makes a run"):
        picky.draw(0)


@pytest.mark.parametrize("seed", range(3))
def test_a_space_without_a_possible_combination_is_refused(seed):
    space = {"n_head": [5, 7], "n_embd": [16, 24]}
    words = r"^no combination makes a run: space, cell n_head=[57], n_embd=.*not divisible"
    with pytest.raises(UserError, match=words) as refusal:
        a_runner().run_random("s", BASE, space, search_seed=seed)
    assert "\n" not in str(refusal.value)
    assert not Path("experiments_out").exists()


@pytest.mark.parametrize("seed", range(3))
def test_a_value_that_goes_with_no_other_is_refused(seed):
    space = {"n_head": [2, 7], "n_embd": [16, 24]}
    with pytest.raises(UserError, match=r"^no combination with n_head=7 makes a run: space, cell"):
        a_runner().run_random("s", BASE, space, search_seed=seed)
    assert not Path("experiments_out").exists()


@pytest.mark.slow
def test_a_search_of_before_with_trials_that_were_none_goes_on(capsys):
    """Their numbers are kept: what it has run, it does not run again."""
    space = CONDITIONAL | LR
    study = a_runner().run_random("s", BASE, space, trials=8)
    record = json.loads((study.folder / "study.json").read_text())
    record["runs"] = [run for run in record["runs"] if run["trial"] not in (2, 5)]
    (study.folder / "study.json").write_text(json.dumps(record))
    again = a_runner().run_random("s", BASE, space, trials=9)
    assert [entry.trial for entry in again.entries] == [0, 1, 3, 4, 6, 7, 8]
    assert all(len(starts(folder)) == 1 for _, folder in again.runs())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": "tpee"}, "choose 'random', 'tpe'"),
        ({"trials": 0}, "at least 1"),
        ({"rungs": [5, 5]}, "growing numbers"),
        ({"promote": 1.5}, "between 0 and 1"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\]: one stands there twice"),
        ({"sampler": "gp", "rungs": [5, 10]}, "whole trials only"),
    ],
)
def test_a_bad_search_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        a_runner().run_hpo("s", BASE, LR, **options)
    assert not Path("experiments_out").exists()


def test_a_sampler_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(samplers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs optuna: pip install 'nanoscale\[hpo\]'"):
        a_runner().run_hpo("s", BASE, LR)


# -- random ---------------------------------------------------------------------------------------
@pytest.mark.slow
def test_random_trials_are_functions_of_seed_and_number_and_more_add_to_them():
    three = a_runner().run_random("s", BASE, SPACE, trials=3)
    again = a_runner().run_random("s", BASE, SPACE, trials=3)
    five = a_runner().run_random("s", BASE, SPACE, trials=5)
    assert values(three) == values(again) == values(five)[:3]
    assert len(five) == 5
    assert [len(starts(folder)) for _, folder in five.runs()] == [1] * 5
    other = a_runner().run_random("t", BASE, SPACE, trials=3, search_seed=1)
    assert values(other) != values(three)
    assert list(five.frame().columns[:2]) == ["learning_rate", "weight_decay"]
    assert five.best.val_loss == five.frame()["val_loss"].min()


def test_a_dry_search_writes_nothing_and_says_what_it_would_cost(capsys):
    a_runner().run_random("s", BASE, SPACE, trials=4, dry_run=True)
    assert "4 trials of learning_rate, weight_decay by random: about" in capsys.readouterr().out
    assert not Path("experiments_out").exists()


# -- samplers -------------------------------------------------------------------------------------
@needs_optuna
@pytest.mark.parametrize("sampler", ["tpe", pytest.param("gp", marks=pytest.mark.slow), "cma"])
def test_a_sampler_finds_the_valley_and_total_means_total(sampler):
    if sampler == "gp":
        pytest.importorskip("scipy")
    if sampler == "cma":
        pytest.importorskip("cmaes")
    study = a_runner(workers=2).run_hpo("s", BASE, SPACE, trials=24, sampler=sampler)
    assert len(study) == 24
    first, later = values(study)[:10], values(study)[10:]
    near = [sorted(octaves(v["learning_rate"]) for v in some) for some in (first, later)]
    assert near[1][len(later) // 2] < near[0][5], "no better than chance"
    assert octaves(study.best.values["learning_rate"]) < 0.8
    again = a_runner().run_hpo("s", BASE, SPACE, trials=24, sampler=sampler)
    assert values(again) == values(study)
    assert all(len(starts(folder)) == 1 for _, folder in again.runs())


@needs_optuna
def test_proposals_depend_on_seed_number_and_results_alone():
    plan = SearchPlan(read_space(SPACE, "s"), 40, "tpe", 3)

    def search() -> Search:
        made = Search(plan)
        for i in range(12):
            trial = made.add(made.draw(i))
            made.tell(trial, octaves(trial.values["learning_rate"]))
        return made

    one, two = search(), search()
    assert one.draw(12) == two.draw(12)
    assert one.draw(12) != one.draw(13)
    two.trials[3].losses = [99.0]
    two.trials[5].losses = [-99.0]
    assert one.draw(12) != two.draw(12)


@pytest.mark.slow
@needs_optuna
def test_a_killed_search_goes_on_with_the_trials_it_had(monkeypatch):
    whole = a_runner(workers=1).run_hpo("whole", BASE, SPACE, trials=14)
    cost = next(whole.runs())[0].flops
    part = a_runner(workers=1, budget=11 * cost, output_root="other").run_hpo(
        "whole", BASE, SPACE, trials=14
    )
    assert len(part) == 11
    rest = a_runner(workers=1, output_root="other").run_hpo("whole", BASE, SPACE, trials=14)
    assert values(rest) == values(whole)
    assert [len(starts(folder)) for _, folder in rest.runs()] == [1] * 14


@pytest.mark.slow
@needs_optuna
def test_what_other_studies_found_is_told_first(capsys):
    runner = a_runner()
    runner.run_grid("g", BASE, {"learning_rate": [0.002, 0.003, 0.004, 0.3], "weight_decay": [0.1]})
    runner.run_grid("h", BASE | {"n_layer": 2}, {"learning_rate": [0.01]})
    capsys.readouterr()
    study = runner.run_hpo("s", BASE, SPACE, trials=2)
    assert "3 runs of other studies are known, 0 of this one" in capsys.readouterr().out
    assert len(study) == 2
    runner.run_hpo("s", BASE, SPACE, trials=2)
    assert "3 runs of other studies are known, 2 of this one" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "grid", "space"),
    [
        ({"min_lr_frac": 0.1}, {"learning_rate": [0.001, 0.002]}, LR),
        ({"learning_rate": 1e-3}, {"min_lr_frac": [0.1, 0.2]}, {"min_lr_frac": [0.1, 0.2, 0.3]}),
        ({"tokens_per_param": 0.05}, {"n_embd": [16, 24]}, {"n_embd": {"low": 16, "high": 32}}),
    ],
)
def test_runs_are_known_whose_other_numbers_follow_from_those_of_the_space(
    base, grid, space, capsys
):
    base = {key: value for key, value in BASE.items() if key != "max_iters"} | base
    base.setdefault("tokens_per_param", 0.05)
    runner = a_runner()
    runner.run_grid("g", base, grid)
    runner.run_grid("other", base | {"n_layer": 2}, grid)
    runner.run_random("s", base, space, trials=1, dry_run=True)
    assert "2 runs of other studies are known" in capsys.readouterr().out


@pytest.mark.slow
def test_trials_that_are_added_or_cached_are_said_and_counted_right(capsys):
    runner = a_runner(workers=1)
    runner.run_random("s", BASE, LR, trials=3)
    capsys.readouterr()
    study = runner.run_random("s", BASE, LR, trials=5)
    said = capsys.readouterr().out
    to_do = f"{sum(entry.flops for entry in study.entries[3:]):.3g}"
    assert f"3 of 5 trials ended before; about {to_do} FLOPs to do" in said
    assert ["(1/2, " in said, "(2/2, " in said, said.count("/5, ")] == [True, True, 0]

    runner.run_random("t", BASE, LR, trials=5)
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("[t] cached trial ")]) == 5
    assert not [line for line in lines if "start trial" in line]


@pytest.mark.slow
def test_what_trials_of_other_sizes_cost_is_what_they_will(capsys):
    space = LR | {"n_embd": [16, 64], "n_layer": {"low": 1, "high": 6}}
    a_runner(workers=1).run_random("s", BASE, space, trials=6)
    said = capsys.readouterr().out
    about = said.partition("about ")[2].partition(" FLOPs")[0]
    assert f"6 trials, 6 runs, {about} FLOPs" in said


def test_what_is_left_of_a_search_follows_its_trials():
    search = Search(SearchPlan(read_space(LR, "s"), 9, "random", 0, (10, 20, 40)))
    costs = (1, 2, 4)
    left = [search.left(costs)]
    for k in range(9):
        trial = search.propose()
        left.append(search.left(costs))
        search.tell(trial, math.inf if k == 8 else float(k))
    assert [(e.runs, e.flops) for e in left] == [(13 - k, 19 - k) for k in range(10)]
    for loss in (1.0, None):
        search.tell(search.propose(), loss)
    assert (search.left(costs).runs, search.left(costs).flops) == (2, 6)  # another, then the last


@pytest.mark.slow
@needs_optuna
def test_diverged_and_failed_trials_are_told_as_such(optuna):
    study = a_runner(retries=0, workers=1).run_hpo(
        "s", TINY, LR | {"beta1": [VALLEY, DIVERGE, CRASH]}, trials=14
    )
    states = study.states()
    assert states["DIVERGED"] > 0
    assert states["FAILED"] > 0
    assert study.best.values["beta1"] == VALLEY
    told = shown(optuna, study)
    assert [t.number for t in told] == list(range(14))
    for trial, (entry, folder) in zip(told, study.runs(), strict=True):
        assert trial.params == entry.trial_values
        assert trial.user_attrs["run"] == entry.id
        assert trial.user_attrs["state"] == folder.state()
        assert trial.state.name == ("COMPLETE" if folder.state() == "COMPLETE" else "FAIL")
        assert trial.value == (folder.metrics() or {}).get("val_loss")


def shown(optuna, study):
    """The trials that Optuna's dashboard shows."""
    backend = optuna.storages.journal.JournalFileBackend(str(study.folder / "optuna.journal"))
    storage = optuna.storages.JournalStorage(backend)
    return optuna.load_study(study_name=study.name, storage=storage).trials


# -- rungs ----------------------------------------------------------------------------------------
def test_the_best_of_a_rung_go_on_and_the_others_cost_no_more():
    space = read_space(LR, "s")
    search = Search(SearchPlan(space, 9, "random", 0, (10, 20, 40), 1 / 3))
    order = []
    while (trial := search.propose()) is not None:
        order.append((trial.number, len(trial.losses)))
        search.tell(trial, octaves(trial.values["learning_rate"]) / (1 + len(trial.losses)))
    reached = sorted(len(t.losses) for t in search.trials)
    assert reached == [1] * 6 + [2, 2, 3]
    best = min(search.trials, key=lambda t: octaves(t.values["learning_rate"]))
    assert search.best() is best
    assert len(best.losses) == 3
    assert [n for n, rung in order if rung == 0] == list(range(9))
    assert [rung for _, rung in order] == [0] * 9 + [1] * 3 + [2]


def test_a_rung_is_won_by_its_own_losses_and_the_best_is_of_the_last_rung():
    """Losses rise from rung to rung, and the order of the trials turns round at the second."""
    search = Search(SearchPlan(read_space(LR, "s"), 8, "random", 0, (10, 20, 40), 1 / 2))
    order = []
    while (trial := search.propose()) is not None:
        rung = len(trial.losses)
        order.append((rung, trial.number))
        search.tell(trial, [1.0 + trial.number, 20.0 - trial.number, 30.0][rung])
    assert [number for rung, number in order if rung == 1] == [0, 1, 2, 3]
    assert [number for rung, number in order if rung == 2] == [3, 2]
    assert (
        search.best() is search.trials[2]
    )  # of equal ones the first; 1.0 at the first rung is 0's
    assert search.best().losses == [3.0, 18.0, 30.0]


@pytest.mark.slow
def test_the_best_is_of_lowest_val_loss_and_not_of_lowest_best_val_loss():
    def search():
        return a_runner(workers=1).run_hpo(
            "s", BASE | {"warmup_iters": 1}, LR, trials=4, sampler="random", rungs=[10, 20]
        )

    def grid():
        return a_runner().run_grid("g", BASE, {"learning_rate": [0.0003, 0.003, 0.03]})

    before = [search(), grid()]
    for study in before:
        for _, folder in study.runs():
            metrics = folder.metrics()
            metrics["best_val_loss"] = 1 / metrics["val_loss"]  # the other way round
            (folder / "metrics.json").write_text(json.dumps(metrics))
    for study, again in zip(before, [search(), grid()], strict=True):
        assert len(again) == len(study)
        assert again.best == study.best
    losses = {folder.path.name: folder.metrics()["val_loss"] for _, folder in before[1].runs()}
    assert before[1].best.folder == min(losses, key=losses.get)


def test_nobody_goes_on_before_a_rung_is_done():
    search = Search(SearchPlan(read_space(LR, "s"), 3, "random", 0, (10, 20), 0.5))
    first, second, third = search.propose(), search.propose(), search.propose()
    search.tell(first, 2.0)
    search.tell(second, 1.0)
    assert search.propose() is None
    search.tell(third, 3.0)
    assert search.propose() is second


@pytest.mark.parametrize(
    ("done", "share", "go_on"), [(100, 0.29, 29), (9, 1 / 3, 3), (8, 1 / 3, 2), (2, 0.1, 1)]
)
def test_the_share_that_goes_on_is_rounded_down_and_is_one_at_least(done, share, go_on):
    plan = SearchPlan(read_space(LR, "s"), done, "random", 0, (10, 20), share)
    assert plan.promoted(done) == go_on


def test_a_diverged_trial_is_told_as_worse_than_the_worst(monkeypatch):
    known = [({"learning_rate": 0.1}, math.inf)]
    search = Search(SearchPlan(read_space(LR, "s"), 3, "random"), known)
    heard = []
    monkeypatch.setattr(search.sampler, "tell", lambda number, loss: heard.append(loss))
    for loss in (2.0, math.inf, None):
        search.tell(search.propose(), loss)
    assert heard == [2.0, None, None]
    assert [told.losses for told in search.told()] == [[3.0], [2.0], [3.0]]


def test_the_importance_is_of_the_losses_that_all_trials_have(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "nanoscale.experiments.search.importance_of", lambda space, told: asked.extend(told) or {}
    )
    search = Search(SearchPlan(read_space(LR, "s"), 2, "random", 0, (10, 20), 0.5))
    for loss in (3.0, 2.0, 1.0):
        search.tell(search.propose(), loss)
    search.outcome()
    assert [loss for _, loss in asked] == [3.0, 2.0]  # at the first rung


def test_a_range_holds_its_ends_and_none_never():
    axis = read_space(LR, "s")["learning_rate"]
    held = [axis.holds(x) for x in (1e-4, 1e-1, 0.99e-4, 0.101, None, "0.01")]
    assert held == [True, True, False, False, False, False]


@pytest.mark.parametrize(
    ("state", "loss"), [("COMPLETE", 2.0), ("DIVERGED", math.inf), ("FAILED", None)]
)
def test_a_trials_loss_is_its_final_one_and_infinite_if_it_diverged(tmp_path, state, loss):
    folder = RunFolder(tmp_path / "run")
    folder.create(tiny_spec())
    (folder / "metrics.json").write_text('{"val_loss": 2.0, "best_val_loss": 1.0}')
    folder.set_status(state=state)
    assert loss_of(folder) == loss


def test_a_diverged_or_failed_trial_is_never_promoted():
    search = Search(SearchPlan(read_space(LR, "s"), 3, "random", 0, (10, 20), 0.9))
    for loss in (math.inf, None, 2.0):
        trial = search.propose()
        search.tell(trial, loss)
    assert search.propose() is search.trials[2]
    assert search.propose() is None

    lost = Search(SearchPlan(read_space(LR, "s"), 2, "random", 0, (10, 20), 0.5))
    for _ in range(2):
        lost.tell(lost.propose(), math.inf)
    assert lost.propose() is None

    again = Search(SearchPlan(read_space(LR, "s"), 2, "random", 0, (10, 20), 0.5))
    for loss in (1.0, 2.0, None):
        again.tell(again.propose(), loss)
    assert again.propose() is again.trials[1]  # it takes the place of who failed above


def test_a_trial_that_is_taken_back_is_as_if_it_had_not_begun():
    search = Search(SearchPlan(read_space(LR, "s"), 2, "random", 0, (10, 20), 0.5))
    first = search.propose()
    search.tell(first, 1.0)
    second = search.propose()
    study = SimpleNamespace(entries=["first", "second", "first again"])
    trials = SimpleNamespace(study=study, search=search, spent=7)
    first.running = True
    for trial, left in ((first, 4), (second, 1)):
        trials.underway = {trial.number: SimpleNamespace(flops=3)}
        Trials.take_back(trials, trial)
        assert (trials.spent, trials.underway, trial.running) == (left, {}, False)
    assert (search.trials, study.entries) == ([first], ["first"])


@pytest.mark.slow
def test_rungs_are_branches_off_the_trunk(capsys):
    study = a_runner(workers=1).run_hpo(
        "s", BASE | {"warmup_iters": 1}, LR, trials=9, sampler="random", rungs=[10, 20, 40]
    )
    entries = study.entries
    assert [sum(e.rung == r for e in entries) for r in range(3)] == [9, 3, 1]
    by_folder = {e.folder: e for e in entries}
    per_step = entries[0].flops // 10
    for entry, folder in study.runs():
        config = folder.spec().config
        rung = entry.rung
        length = (10, 20, 40)[rung]
        assert (config.lr_schedule, config.max_iters, config.lr_decay_iters) == (
            "wsd",
            length,
            length,
        )
        start = length - round(config.cooldown_frac * length)
        assert config.checkpoint_steps == (start,)
        if rung:
            parent, at = config.branch_from.rsplit("@", 1)
            below = by_folder[Path(parent).name]
            assert (below.trial, below.rung) == (entry.trial, rung - 1)
            assert int(at) == start // 2
            assert entry.flops == per_step * (length - int(at))
        else:
            assert entry.flops == per_step * 10
    said = capsys.readouterr().out
    work = f"{sum(e.flops for e in entries):.3g} FLOPs"
    assert f"about {work}" in said
    assert f"9 trials, 13 runs, {work}" in said
    assert study.best.val_loss == study.rows()[-1]["val_loss"]
    again = a_runner().run_hpo(
        "s", BASE | {"warmup_iters": 1}, LR, trials=9, sampler="random", rungs=[10, 20, 40]
    )
    assert len(again) == 13
    assert all(len(starts(folder)) == 1 for _, folder in again.runs())


@pytest.mark.slow
def test_rungs_share_one_warmup_and_refuse_pasts_that_differ():
    study = a_runner().run_hpo(
        "s", BASE | {"warmup_frac": 0.5}, LR, trials=3, sampler="random", rungs=[10, 30]
    )
    assert {folder.spec().config.warmup_iters for _, folder in study.runs()} == {5}
    for base, words in (
        ({"parametrization.wd_timescale": "fraction_of_run"}, "wd_timescale"),
        ({"warmup_iters": 8}, "the warmup of 8 updates leaves nothing of 10"),
    ):
        with pytest.raises(UserError, match=r"rungs=\[10, 30\]: .*" + words):
            a_runner().run_hpo(
                "t",
                BASE | {"warmup_iters": 1} | base,
                LR,
                trials=3,
                sampler="random",
                rungs=[10, 30],
            )


def test_nothing_here_needs_optuna_for_random(monkeypatch):
    monkeypatch.setattr(samplers, "quiet", None)
    study = a_runner().run_random("s", BASE, LR, trials=2)
    assert json.loads((study.folder / "study.json").read_text())["best"]["val_loss"] > 0


# -- what it found --------------------------------------------------------------------------------
@needs_optuna
def test_the_importance_names_the_key_that_matters():
    search = Search(SearchPlan(read_space(SPACE, "s"), 60, "random"))
    for i in range(60):
        trial = search.add(search.draw(i))
        search.tell(trial, 0.05 * octaves(trial.values["learning_rate"]) ** 2)
    shares = search.outcome().importance
    assert shares["learning_rate"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)
    assert Search(search.plan).outcome().importance is None


def test_a_surface_and_slices_are_drawn_from_the_trials():
    from nanoscale.report import contour_figure, search_figure
    from nanoscale.report.search_figures import smooth

    space = SPACE | {"optimizer": ["adamw", "muon"]}
    dimensions = read_space(space, "s")
    trials = []
    for i in range(30):
        values = {key: d.at(uniform(0, i, key)) for key, d in dimensions.items()}
        loss = math.inf if i == 3 else octaves(values["learning_rate"])
        trials.append(TrialResult(values, [loss]))
    plain = SearchPlan(dimensions, 30, "random").to_json()["space"]
    shares = {"optimizer": 0.1, "learning_rate": 0.6, "weight_decay": 0.3}
    outcome = SearchOutcome(trials, shares)
    panels = search_figure(outcome, plain).axes
    assert [axes.get_title(loc="left") for axes in panels] == [
        "learning_rate",
        "weight_decay",
        "optimizer",
    ]
    assert len(dots(panels[0])) == 29 + 1  # and the best again
    figure = contour_figure(outcome, plain)
    assert figure.axes[0].get_xlabel() == "learning_rate"
    assert contour_figure(outcome, {k: plain[k] for k in ("learning_rate", "optimizer")}) is None
    import numpy as np

    u, v = np.random.default_rng(0).uniform(size=(2, 400))
    surface = smooth(u, v, (u - 0.3) ** 2, np.linspace(0, 1, 21))  # rows: v, columns: u
    assert (np.abs(surface.argmin(1) - 6) <= 2).all()


def test_trials_are_lines_over_all_keys_on_axes_of_their_own():
    from nanoscale.report import parallel_figure

    space = {
        "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
        "beta2": {"low": 0.9, "high": 1.0},
        "optimizer": ["adamw", "muon"],
    }
    trials = []
    for k in range(20):
        values = {"learning_rate": 1e-3, "beta2": 0.95, "optimizer": "muon" if k else "adamw"}
        trials.append(TrialResult(values, [2.0 + 0.01 * k]))
    trials.append(TrialResult(values, [math.inf]))
    figure = parallel_figure(SearchOutcome(trials, {"beta2": 0.9, "optimizer": 0.1}), space)
    (axes,) = figure.axes
    lines = [line for line in axes.lines if len(line.get_xdata()) == 4]
    assert len(lines) == 20  # the diverged one has no loss
    best, second = lines[-1].get_ydata(), lines[-2].get_ydata()
    assert list(best) == pytest.approx([0.5, 0, 0.5, 1])  # beta2, optimizer, log of the LR, loss
    assert list(second[:3]) == pytest.approx([0.5, 1, 0.5])
    assert 0.8 < second[3] < 1
    assert min(line.get_ydata()[3] for line in lines) == 0
    said = {text.get_text() for text in axes.texts}
    assert {"beta2", "optimizer", "learning_rate", "validation loss", "muon", "2.000"} <= said
    assert parallel_figure(SearchOutcome(trials, None), {"beta2": space["beta2"]}) is None


# -- the best values anew, at the size they are for -----------------------------------------------
PROXY_BASE = BASE | {"n_embd": 64, "n_head": 4, "parametrization.mode": "muP"}
SMALL = {"n_embd": 16, "n_head": 2}


@pytest.mark.slow
def test_a_proxy_is_searched_and_its_best_values_are_trained_at_the_target(capsys):
    study = a_runner().run_hpo(
        "s", PROXY_BASE, LR, trials=6, sampler="random", proxy=SMALL, seeds=[7, 8]
    )
    trials = [(e, f) for e, f in study.runs() if not e.target]
    targets = [(e, f) for e, f in study.runs() if e.target]
    assert {f.spec().config.n_embd for _, f in trials} == {16}
    assert [(f.spec().config.n_embd, f.spec().config.seed) for _, f in targets] == [
        (64, 7),
        (64, 8),
    ]
    best = study.best.values["learning_rate"]
    assert best == min((e.trial_values["learning_rate"] for e, _ in trials), key=octaves)
    assert {f.spec().config.learning_rate for _, f in targets} == {best}
    frame = study.frame()
    assert frame["n_embd"].tolist() == [16] * 6 + [64] * 2
    assert study.target.val_loss == dict(zip([7, 8], frame["val_loss"][6:], strict=True))
    said = capsys.readouterr().out
    assert "warning" not in said
    assert f"target: val_loss {frame['val_loss'][6:].mean():.4f}, sd " in said
    again = a_runner().run_hpo(
        "s", PROXY_BASE, LR, trials=6, sampler="random", proxy=SMALL, seeds=[7, 8, 9]
    )
    assert [len(starts(folder)) for _, folder in again.runs()] == [1] * 9


@pytest.mark.slow
def test_the_target_of_rungs_is_as_long_as_the_last_one_and_has_no_past():
    study = a_runner().run_hpo(
        "s",
        BASE | {"warmup_frac": 0.2},
        LR,
        trials=3,
        sampler="random",
        rungs=[10, 20],
        seeds=[1, 5],
    )
    (_, first), (_, second) = [(e, f) for e, f in study.runs() if e.target]
    for folder in (first, second):
        c = folder.spec().config
        assert (c.max_iters, c.lr_schedule, c.warmup_iters, c.branch_from) == (20, "wsd", 2, None)
        assert not c.checkpoint_steps


def test_a_value_that_is_possible_at_the_proxy_alone_is_refused():
    with pytest.raises(UserError, match="no combination with n_head=3 makes a run"):
        a_runner().run_random(
            "s",
            PROXY_BASE,
            LR | {"n_head": [2, 3]},
            trials=2,
            proxy={"n_embd": 24},
            seeds=[1],
            dry_run=True,
        )


@pytest.mark.slow
def test_a_trial_that_is_a_target_too_stays_a_trial():
    def search(trials: int):
        return a_runner().run_random("s", BASE | {"seed": 3}, LR, trials=trials, seeds=range(3, 5))

    first = search(3)
    assert len(first) == 4
    assert list(first.target.val_loss) == [3, 4]
    again = search(4)
    assert [e.trial for e in again.entries if e.trial is not None] == [0, 1, 2, 3]
    assert [len(starts(folder)) for _, folder in again.runs()] == [1] * len(again)


@pytest.mark.slow
def test_trials_that_are_one_run_stay_trials_beside_a_target():
    study = a_runner().run_random("s", BASE | {"seed": 3}, CONDITIONAL, trials=8, seeds=[3, 4])
    assert [e.trial for e in study.entries if e.trial is not None] == list(range(8))
    assert len({e.id for e in study.entries if e.trial is not None}) < 8
    assert list(study.target.val_loss) == [3, 4]
    again = a_runner().run_random("s", BASE | {"seed": 3}, CONDITIONAL, trials=9, seeds=[3, 4])
    assert [e.trial_values for e in again.entries[:8]] == [
        e.trial_values for e in study.entries[:8]
    ]


@pytest.mark.parametrize(
    ("base", "proxy", "key"),
    [
        ({"parametrization.mode": "SP"}, SMALL, "n_embd"),
        ({}, SMALL | {"max_iters": 3}, "max_iters"),
        ({}, {"n_layer": 2}, "n_layer"),
        ({"parametrization.mode": "CompleteP"}, {"n_layer": 2}, ""),
        ({"parametrization.base_tokens": 80}, {"max_iters": 3}, ""),
    ],
)
def test_what_no_rule_carries_from_proxy_to_target_is_said(base, proxy, key, capsys):
    a_runner().run_random(
        "s", PROXY_BASE | base, LR, trials=2, proxy=proxy, seeds=[1], dry_run=True
    )
    said = [line for line in capsys.readouterr().out.splitlines() if "no rule of" in line]
    assert [f"carries the best values over {key}," in line for line in said] == [True] * bool(key)


@pytest.mark.slow
def test_the_best_run_is_one_that_the_budget_paid_for(capsys):
    space = {"learning_rate": [0.001, 0.003]}
    base = BASE | {"warmup_iters": 1}

    def found(budget: float | None):
        runner = a_runner(budget=budget, workers=1, output_root=f"o{budget}")
        return runner.run_hpo("s", base, space, trials=2, sampler="random", rungs=[10, 20])

    first, second, promoted = found(None).entries
    study = found(first.flops + second.flops + promoted.flops / 2)
    assert [entry.rung for entry in study.entries] == [0, 0]
    paid = f"2 trials, 2 runs, {first.flops + second.flops:.3g} FLOPs; the budget pays for no more"
    assert paid in capsys.readouterr().out
    best = study.entries[study.best.trial]
    assert study.best.folder == best.folder
    assert study.best.val_loss == study.rows()[study.best.trial]["val_loss"]


@pytest.mark.slow
def test_a_rung_that_is_gone_comes_before_the_one_that_went_on_from_it():
    def search():
        return a_runner(workers=1).run_hpo(
            "s", BASE | {"warmup_iters": 1}, LR, trials=2, sampler="random", rungs=[10, 20]
        )

    first = search()
    *_, promoted = first.entries
    (below,) = (e for e in first.entries if (e.trial, e.rung) == (promoted.trial, 0))
    shutil.rmtree(first.output_root / "runs" / below.folder)
    again = search()
    assert sorted((e.trial, e.rung) for e in again.entries) == [(0, 0), (1, 0), (promoted.trial, 1)]
    assert again.best == first.best


@pytest.mark.slow
def test_a_budget_keeps_what_the_target_costs():
    def spent(budget: float | None) -> list[int]:
        study = a_runner(budget=budget).run_random(
            f"s{budget}", PROXY_BASE, LR, trials=5, proxy=SMALL, seeds=[1]
        )
        return [e.flops for e in study.entries]

    *trials, target = spent(None)
    *fewer, same = spent(target + 2.5 * trials[0])
    assert same == target
    assert fewer == trials[:2]
    *exactly, _ = spent(target + sum(trials[:3]))
    assert exactly == trials[:3]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"proxy": SMALL}, "give the seeds"),
        ({"seeds": ["x"]}, "a list of whole numbers"),
        ({"seeds": 3}, "expected a list"),
        ({"proxy": {"learning_rate": 1}, "seeds": [1]}, "of the proxy and of the space"),
        ({"proxy": {"n_embed": 1}, "seeds": [1]}, "did you mean 'n_embd'"),
        ({"proxy": {"n_embd": 17}, "seeds": [1]}, "not divisible"),
    ],
)
def test_a_bad_proxy_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        a_runner().run_random("s", PROXY_BASE, LR, trials=2, **options)
    assert not Path("experiments_out").exists()


@pytest.mark.slow
@needs_optuna
def test_the_dashboards_trials_have_their_rungs_and_times(optuna, capsys):
    """A random search has its journal by `nanoscale table` alone; the fake runs take 0.01 s."""
    study = a_runner(workers=1).run_hpo(
        "s", BASE | {"warmup_iters": 1}, LR, trials=3, sampler="random", rungs=[10, 20]
    )
    assert not (study.folder / "optuna.journal").exists()
    assert main(["table", "s"]) == 0
    told = shown(optuna, study)
    assert sorted(t.state.name for t in told) == ["COMPLETE", "PRUNED", "PRUNED"]
    runs = list(study.runs())
    for trial in told:
        mine = [(entry, folder) for entry, folder in runs if entry.trial == trial.number]
        losses = {20 if e.rung else 10: f.metrics()["val_loss"] for e, f in mine}
        assert trial.intermediate_values == losses
        assert trial.user_attrs["runs"] == [entry.id for entry, _ in mine]
        first, last = mine[0][1].status().updated, mine[-1][1].status().updated
        assert trial.datetime_start.timestamp() == pytest.approx(first - 0.01, abs=1e-5)
        assert trial.datetime_complete.timestamp() == pytest.approx(last, abs=1e-5)
    assert max(told, key=lambda t: len(t.intermediate_values)).value == study.best.val_loss
    (study.folder / "optuna.journal").write_text("what a killed search left")
    assert main(["table", "s"]) == 0
    assert len(shown(optuna, study)) == 3
