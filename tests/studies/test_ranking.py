"""Grids judged by settings: means over seeds, ties, divergence, edges; no luckiest run."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest
from tiny import ROOT

import nanoscale as ns
from nanoscale.errors import UserError
from nanoscale.experiments.replicates import final_loss, seed_of
from nanoscale.studies.ranking import rank

# Equal means at 0.004 and 0.016; the luckiest run of all is at 0.032, whose other seed diverged.
LOSSES = {
    0.001: (3.40, 3.42, 3.38),
    0.004: (3.1102, 3.13, 3.15),
    0.008: (3.112, 3.131, 3.155),
    0.016: (3.12, 3.13, 3.1402),
    0.032: (3.0, 3.1, math.inf),
}


def grid(losses=LOSSES, seeds=3, **columns) -> pd.DataFrame:
    rows = []
    for lr, by_seed in losses.items():
        for seed, loss in enumerate(by_seed[:seeds], start=1):
            rows.append({"learning_rate": lr, "seed": seed, "val_loss": loss, **columns})
    return pd.DataFrame(rows)


def standings(ranking) -> dict[float, str]:
    return {s.values["learning_rate"]: s.standing for s in ranking.settings}


def test_the_best_is_a_setting_with_an_interval_and_what_is_tied_with_it():
    ranking = rank(grid())
    assert standings(ranking) == {
        0.004: "best",
        0.016: "tied",
        0.008: "tied",
        0.001: "worse",
        0.032: "diverges",
    }
    assert ranking.summary() == [
        "lowest mean val_loss 3.1301 [3.0806, 3.1795] (3 seeds) at learning_rate=0.004",
        "tied with it, not told apart at 5 %: learning_rate=0.016 (3.1301), learning_rate=0.008 "
        "(3.1327)",
        "diverges, so never the best: learning_rate=0.032 (in 1 of 3 seeds)",
    ]
    said = (ROOT / "docs" / "reference" / "experiments.md").read_text(encoding="utf-8")
    assert "```\n" + "\n".join(ranking.summary()) + "\n```" in said
    assert not ranking.warnings
    record = json.loads(json.dumps(ranking.to_json(), allow_nan=False))
    assert record["settings"][0]["ci95"] == pytest.approx([3.0806, 3.1795], abs=1e-4)
    assert record["settings"][-1]["mean"] is None
    assert ranking.frame()["standing"].tolist() == [s.standing for s in ranking.settings]


def test_copies_are_no_seeds_and_an_accuracy_is_no_loss():
    with pytest.raises(UserError, match="row 16 repeats another, its seed too: keep one of them"):
        rank(pd.concat([grid(), grid()[:2]]))
    assert standings(rank(pd.concat([grid(), grid().assign(val_loss=4.0)])))[0.004] == "best"
    with pytest.raises(UserError, match=r"^loss=val_acc: an accuracy rises"):
        rank(grid(val_acc=0.5), loss="val_acc")
    with pytest.raises(UserError, match=r"a dict is no table: give a frame of pandas"):
        rank({"learning_rate": [1e-3]})


def test_of_one_seed_there_is_no_interval_and_it_is_said_once():
    ranking = rank(grid(seeds=1))
    assert ranking.summary() == [
        "lowest val_loss 3.0000 at learning_rate=0.032: one seed, so no interval, and what is tied "
        "with it is not known"
    ]
    assert not ranking.tied
    assert not ranking.replicated


@pytest.mark.parametrize(
    ("lrs", "said"),
    [
        ((0.004, 0.001), ["the best has the highest learning_rate tried, 0.004"]),
        (
            (0.004, 0.008, 0.001),
            ["one tied with the best has the highest learning_rate tried, 0.008"],
        ),
        ((0.004, 0.008, 0.032, 0.001), []),
        (
            (0.004, 0.008, 0.016),
            [
                "the best has the lowest learning_rate tried, 0.004",
                "one tied with the best has the highest learning_rate tried, 0.016",
            ],
        ),
        ((0.004,), []),
    ],
)
def test_a_best_or_tied_setting_at_an_end_of_a_numeric_axis_is_warned_about(lrs, said):
    ranking = rank(grid({lr: LOSSES[lr] for lr in lrs}, optimizer="muon"))
    ends = [f"edge of the grid: {words}; better may lie beyond" for words in said]
    assert ranking.warnings == ends


def test_no_value_lies_beyond_the_bound_of_a_key():
    rows = pd.concat([grid().assign(weight_decay=decay) for decay in (0.0, 0.1, 0.2)])
    rows["val_loss"] += rows["weight_decay"]
    ranking = rank(rows)
    assert ranking.best.values["weight_decay"] == 0
    assert not ranking.warnings


def test_a_word_or_a_truth_value_has_no_edge():
    a, b = grid({0.004: LOSSES[0.004]}), grid({0.004: LOSSES[0.001]})
    both = pd.concat(
        [a.assign(optimizer="adamw", bias=True), b.assign(optimizer="muon", bias=False)]
    )
    ranking = rank(both)
    assert ranking.best.values["optimizer"] == "adamw"
    assert not ranking.warnings


def test_a_setting_of_fewer_seeds_is_not_judged_and_where_it_is_lower_that_is_said():
    table = grid().query("learning_rate != 0.032 and (learning_rate != 0.016 or seed == 1)")
    ranking = rank(table.assign(val_loss=table["val_loss"] - (table["learning_rate"] == 0.016)))
    assert standings(ranking)[0.016] == "too few seeds"
    assert ranking.best.values == {"learning_rate": 0.004}
    assert ranking.summary()[-1] == (
        "lower, but of too few seeds to be judged: learning_rate=0.016 (2.1200)"
    )


def test_where_every_setting_diverged_in_a_seed_none_is_the_best():
    ranking = rank(grid({0.032: LOSSES[0.032]}))
    assert ranking.best is None
    assert ranking.summary()[0] == "no setting without a diverged run"
    assert rank(grid({0.1: (math.inf, math.inf)})).summary()[0] == (
        "no run has finished with a loss"
    )


def test_any_table_is_ranked_by_its_columns_and_rows_without_seeds_are_replicates(tmp_path):
    frame = grid().rename(columns={"learning_rate": "lr", "val_loss": "loss"}).drop(columns="seed")
    ranking = rank(frame, keys=["lr"], loss="loss")
    assert ranking.best.values == {"lr": 0.004}
    assert len(ranking.best.losses) == 3
    frame.to_csv(tmp_path / "runs.csv", index=False)
    assert rank(tmp_path / "runs.csv", keys=["lr"], loss="loss").best.mean == ranking.best.mean
    with pytest.raises(ns.UserError, match="which columns make a setting"):
        rank(frame, loss="loss")
    with pytest.raises(ns.UserError, match="no such column; did you mean 'lr'"):
        rank(frame, keys=["lrr"], loss="loss")


@pytest.mark.parametrize(
    ("values", "seed"),
    [
        ({"seed": 3}, "3"),
        ({"seed": 3.0}, "3"),
        ({"data_seed": 2}, "2"),
        ({"seed": 1, "init_seed": 1, "data_seed": 2}, "1/1/2"),
        ({"seed": None}, ""),
        ({}, ""),
    ],
)
def test_a_seed_is_what_a_config_calls_one(values, seed):
    assert seed_of(values) == seed


def test_runs_of_two_kinds_of_seed_are_replicates_of_one_setting():
    rows = []
    for init in (1, 2):
        for data in (1, 2):
            for lr in (0.001, 0.002, 0.003):
                loss = 3 + lr + 0.01 * init + 0.02 * data
                seeds = {"init_seed": init, "data_seed": data}
                rows.append({"learning_rate": lr, "val_loss": loss, **seeds})
    ranking = rank(pd.DataFrame(rows))
    assert [len(setting.losses) for setting in ranking.settings] == [4, 4, 4]
    assert list(ranking.best.losses) == ["1", "1/2", "2/1", "2"]


@pytest.mark.parametrize(
    ("value", "state", "loss"),
    [
        (2.0, "COMPLETE", 2.0),
        (2.0, None, 2.0),
        (2.0, "DIVERGED", math.inf),
        (math.nan, "COMPLETE", math.inf),
        (2.0, "FAILED", math.nan),
        (None, "WAITING", math.nan),
    ],
)
def test_a_run_has_a_loss_has_diverged_or_has_no_result(value, state, loss):
    assert final_loss(value, state) == pytest.approx(loss, nan_ok=True)


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        (0, {}, "the table has no rows: there are no runs to rank"),
        (9, {"keys": "val_loss"}, "keys=val_loss: it is the loss; name what makes a setting"),
        (9, {"keys": "lr"}, "keys=lr: the table has no such column"),
        (9, {"loss": "los"}, "loss=los: the table has no such column"),
        (9, {"loss": "accuracy"}, "loss=accuracy: an accuracy rises"),
    ],
)
def test_what_cannot_be_ranked_is_refused_in_the_words_of_the_call(rows, options, says):
    with pytest.raises(UserError) as error:
        rank(grid(accuracy=0.5)[:rows], **options)
    assert str(error.value).startswith(says)


def test_one_key_is_a_name():
    one, several = (rank(grid(), keys=keys) for keys in ("learning_rate", ["learning_rate"]))
    assert repr(one) == repr(several)  # NaN is not NaN
