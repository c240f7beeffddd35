"""Plans before money is spent: what is left to do, why, at what cost, and within what budget."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fake_worker import CRASH, ENDLESS, SLOW, TINY
from grids import TESTS, a_runner, begun, jump, starts

from nanoscale.errors import UserError
from nanoscale.experiments import ExperimentRunner, Study
from nanoscale.experiments.planning import read_budget
from nanoscale.spec.sources import Source
from nanoscale.store.folder import RunFolder


def lines(capsys, *words: str) -> list[str]:
    """What was printed since the last call, the lines with all of `words`."""
    return [
        line for line in capsys.readouterr().out.splitlines() if all(word in line for word in words)
    ]


# -- idle keys ------------------------------------------------------------------------------------
def as_before(study: Study, which: int = 0) -> RunFolder:
    """The study's first run, and its record, as made while idle keys (all, some) named runs."""
    entry, folder = next(study.runs())
    spec = folder.spec()
    old = RunFolder(folder.path.with_name(spec.spelled_names[which]))
    for path in (*folder.path.glob("*.json"), study.folder / "study.json"):
        path.write_text(path.read_text().replace(entry.id, spec.spelled_ids[which]))
    folder.path.rename(old.path)
    return old


@pytest.mark.slow
@pytest.mark.parametrize(("state", "which"), [("COMPLETE", 0), ("WAITING", 0), ("COMPLETE", 1)])
def test_a_run_begun_under_the_old_spelling_is_the_same_run(state, which):
    base = TINY | {"muon_lr": 0.5, "parametrization.base_n_embd": 128}  # AdamW and SP have none
    grid = {"learning_rate": [0.001, 0.002]}
    first = a_runner().run_grid("first", base, grid)
    assert len(first) == 2
    old = as_before(first, which)
    assert len({old.spec().id, *old.spec().spelled_ids}) == 3
    assert old.spec().id != old.spec().spelled_ids[which] == old.status().id
    old.set_status(state=state)

    again = a_runner().run_grid("again", base, grid)
    assert list(again.plan.values())[1] == "cached"
    assert again.ok
    assert next(again.runs())[1].path == old.path
    assert len(starts(old)) == (1 if state == "COMPLETE" else 2)
    assert len(list(old.path.parent.iterdir())) == 2
    both = [Study.open(Path("experiments_out") / name).rows() for name in ("first", "again")]
    assert [row["val_loss"] for row in both[0]] == [row["val_loss"] for row in both[1]]
    assert len(a_runner().load_metrics()) == 2


@pytest.mark.slow
def test_rungs_go_on_from_a_run_of_the_old_spelling():
    space = {"learning_rate": [0.001, 0.003]}
    base = TINY | {"warmup_iters": 1, "muon_lr": 0.5}
    search = {"trials": 2, "sampler": "random", "rungs": [10, 20]}
    first = a_runner(workers=1).run_hpo("first", base, space, **search)
    old = as_before(first)
    again = a_runner(workers=1).run_hpo("again", base, space, **search)
    assert again.entries[0].folder == old.path.name
    assert len(starts(old)) == 1
    assert len(again) == len(first) == 3
    assert again.best.val_loss == first.best.val_loss
    assert again.best.folder in [entry.folder for entry in again.entries]


# -- why ------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_dry_run_says_of_every_cell_what_and_why(capsys):
    runner = a_runner(retries=0)
    runner.run_grid("g", TINY, {"n_layer": [1], "beta1": [0.9, CRASH]})
    waiting = next(runner.run_grid("w", TINY, {"n_layer": [5]}).runs())[1]
    waiting.set_status(state="WAITING", checkpoint_step=3)
    capsys.readouterr()
    runner.run_grid("g", TINY, {"n_layer": [1, 2, 5], "beta1": [0.9, CRASH]}, dry_run=True)
    said = lines(capsys, "FLOPs", "GiB")
    whys = [line[line.rindex("(") + 1 : -1] for line in said]
    assert [line.split()[1] for line in said] == ["cached", "retry", "new", "new", "resume", "new"]
    assert whys[0].startswith("COMPLETE, val_loss ")
    assert whys[1] == "failed: RuntimeError: this run crashes"
    assert re.fullmatch(r"as toy-L(1|5)-\S+ but n_layer 2 for \1", whys[2])
    assert whys[4] == "after step 3 of 5"
    assert "n_layer 5 for 1" in whys[5] or "beta1 0.11 for default" in whys[5]


@pytest.mark.slow
def test_the_nearest_run_is_the_one_with_the_fewest_other_keys(capsys):
    runner = a_runner()
    runner.run_grid("g", TINY | {"n_head": 1}, {"n_layer": [4]})
    near = next(runner.run_grid("h", TINY | {"n_head": 4}, {"n_layer": [2]}).runs())[1].path.name
    capsys.readouterr()
    runner.run_grid("i", TINY | {"n_head": 4, "weight_decay": 0.3}, {"n_layer": [3]}, dry_run=True)
    assert lines(capsys, f"(as {near} but n_layer 3 for 2, weight_decay 0.3 for default)")
    other = dict.fromkeys(("eval_iters", "seed"), 7) | {"n_embd": 32, "block_size": 4}
    runner.run_grid("i", TINY | other, {"weight_decay": [0.3]}, dry_run=True)
    assert lines(capsys, "and", "more keys)")


def test_the_first_run_and_runs_of_another_version(capsys, monkeypatch):
    a_runner().run_grid("g", TINY, {"n_layer": [1]}, dry_run=True)
    assert lines(capsys, "(the first run here)")
    a_runner().run_grid("g", TINY, {"n_layer": [1]})
    monkeypatch.setattr("nanoscale.spec.identity.NUMERICS_VERSION", 999)
    a_runner().run_grid("g", TINY, {"n_layer": [1]}, dry_run=True)
    assert lines(capsys, "which another version made)")


@pytest.mark.slow
def test_a_folder_of_that_name_that_holds_another_run_is_no_hit():
    """An id is 40 bits: of 100,000 runs of one label, two may share it."""
    study = a_runner().run_grid("g", TINY, {"n_layer": [1]})
    folder = next(study.runs())[1]
    other = next(a_runner().run_grid("h", TINY, {"n_layer": [2]}).runs())[1]
    text = (other / "config.json").read_text()
    (folder / "config.json").write_text(text)  # as if both had the first one's name
    with pytest.raises(UserError, match="another run has this folder's name: n_layer was 2, now 1"):
        a_runner().run_grid("g", TINY, {"n_layer": [1]})
    assert a_runner().run_grid("h", TINY, {"n_layer": [2]}, dry_run=True).plan.popitem()[1] == (
        "cached"
    )


# -- time ---------------------------------------------------------------------------------------
@pytest.mark.slow
def test_time_follows_from_the_speed_of_the_nearest_sizes(capsys):
    runner = a_runner(workers=2)
    runner.run_grid("g", TINY, {"n_layer": [1]}, dry_run=True)
    assert lines(capsys, "at most 0.3 s on 2 workers")
    study = runner.run_grid("g", TINY, {"n_layer": [1, 8], "seed": range(5)})
    for entry, folder in study.runs():
        metrics = folder.metrics()
        speed = 1e3 if entry.values["n_layer"] == 1 else 1e5  # FLOP/s
        metrics["wall_seconds"] = metrics["flops"] / speed
        (folder / "metrics.json").write_text(json.dumps(metrics))
    capsys.readouterr()
    plan = runner.run_grid("g", TINY, {"n_layer": [1, 7], "seed": [1, 100]}, dry_run=True)
    cells = {(e.values["n_layer"], e.values["seed"]): e.flops for e, _ in plan.runs()}
    seconds = cells[1, 100] / 1e3 + 2 * cells[7, 1] / 1e5
    minutes, rest = divmod(round(seconds / 2), 60)
    hours, minutes = divmod(minutes, 60)
    said = f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
    assert lines(capsys, f"about {said} on 2 workers")
    runner.run_grid("g", TINY, {"n_layer": [40]}, dry_run=True)  # five times the largest
    assert lines(capsys, "at most", "on 2 workers, too little to measure")


# -- budgets --------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_budget_of_flops_pays_for_the_cheapest_runs_and_says_what_it_leaves_out(capsys):
    grid = {"n_layer": [4, 1, 3, 2]}
    whole = a_runner().run_grid("g", TINY, grid, dry_run=True)
    cost = {e.values["n_layer"]: e.flops for e, _ in whole.runs()}
    budget = cost[1] + cost[2] + cost[3] / 2
    study = a_runner(budget=budget).run_grid("g", TINY, grid)
    assert study.frame()["state"].tolist() == ["WAITING", "COMPLETE", "WAITING", "COMPLETE"]
    assert study.frame()["plan"].tolist() == ["left out", "new", "left out", "new"]
    assert study.ok
    assert lines(capsys, "4 runs: 2 new, 2 left out", f"{cost[1] + cost[2]:.3g} FLOPs to do")
    again = a_runner(budget=budget).run_grid("g", TINY, grid)
    assert again.frame()["plan"].tolist() == ["left out", "cached", "left out", "cached"]
    more = a_runner(budget=str(sum(cost.values()))).run_grid("g", TINY, grid)
    assert more.frame()["state"].tolist() == ["COMPLETE"] * 4


@pytest.mark.slow
def test_a_budget_of_time_starts_with_the_cheapest_and_the_last_ones_save(
    capsys, monkeypatch, tmp_path
):
    jump(monkeypatch, when=lambda: len(begun(tmp_path / "experiments_out")) == 2)
    base = Source("base", TINY | {"max_iters": ENDLESS})
    kinds = {3: SLOW, 1: 0.9, 2: SLOW}
    rows = [{"n_layer": n_layer, "beta1": beta1} for n_layer, beta1 in kinds.items()]
    study = a_runner(budget="1000 s", workers=1).run_rows("g", base, rows, "rows")
    assert study.frame()["state"].tolist() == ["WAITING", "COMPLETE", "WAITING"]
    assert not study.ok
    assert lines(capsys, "stopped: the budget of 1000 seconds is spent; the same command goes on")
    dear, _, half = (RunFolder(folder) for folder in study.frame()["folder"])
    assert dear.status().checkpoint_step is None
    assert 0 <= half.status().step < ENDLESS
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setenv("SLOW_SECONDS", "0")
    assert a_runner(budget="2 h").run_rows("g", base, rows, "rows").ok


@pytest.mark.parametrize(
    ("budget", "read"),
    [
        (1e15, (1e15, None)),
        ("1e15", (1e15, None)),
        ("90min", (None, 5400.0)),
        (None, (None, None)),
        ("1.5 h", (None, 5400.0)),
        ("2d", (None, 172800.0)),
        (" 30 s ", (None, 30.0)),
    ],
)
def test_budgets_are_flops_or_times(budget, read):
    assert read_budget(budget) == read


@pytest.mark.parametrize("budget", ["", "0", "-1", "1e999", "five", "5 weeks", "1.2.3", "1e15 h x"])
def test_other_budgets_are_refused(budget):
    with pytest.raises(UserError, match=r"budget=.*expected training FLOPs, as in 1e15, or a time"):
        ExperimentRunner(budget=budget)
