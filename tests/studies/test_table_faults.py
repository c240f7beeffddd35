"""What a table is that no law can be fitted to, or that is several: refused or said in one line."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pytest
from planted_runs import checkpoints
from planted_tables import rows, write

from nanoscale.__main__ import main
from nanoscale.errors import UserError
from nanoscale.experiments.tables import read_table
from nanoscale.studies.sweep_laws import sweep_study
from nanoscale.studies.table_faults import _chance_of_parts, twins, where
from nanoscale.studies.table_fit import FitRows, FitSettings, fit_table

QUICK = FitSettings(resamples=0)


def frame(tmp_path, columns):
    write(tmp_path / "runs.csv", columns)
    return read_table(tmp_path / "runs.csv")


def unnamed():
    """The planted runs without the column that puts two into one."""
    return {name: values for name, values in rows().items() if name != "run"}


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


@pytest.mark.parametrize(("decimals", "doubled"), [(4, 24), (4, 3), (None, 24)])
def test_copies_count_once_however_losses_are_rounded(tmp_path, decimals, doubled):
    columns = rows()
    loss = columns["val_loss"]
    columns["val_loss"] = loss if decimals is None else loss.round(decimals)
    table = {name: [*values, *values[:doubled]] for name, values in columns.items()}
    if decimals is None:  # as another program wrote them
        table["val_loss"] = [*loss, *loss.astype(np.float32).astype(float)]
    table["total_params"][-1] *= 1 + 1e-15
    assert fit_table(frame(tmp_path, table), QUICK).fit.n_points == 24


def test_equal_losses_among_seeds_are_no_copies(tmp_path):
    columns = {name: [*values, *values] for name, values in rows().items()}
    columns["val_loss"] = np.round(columns["val_loss"] + 1e-3 * (np.arange(48) > 36), 4)
    assert fit_table(frame(tmp_path, columns), QUICK).fit.n_points == 48


@pytest.mark.parametrize("name", ["seed", "Run", "run_name"])
@pytest.mark.parametrize("constant", [False, True])
def test_equal_losses_of_rows_that_are_called_otherwise_are_no_copies(tmp_path, name, constant):
    columns = {key: np.tile(values, 3) for key, values in unnamed().items()}
    columns["val_loss"] = np.full(72, 2.5) if constant else columns["val_loss"].round(1)
    called = [f"{seed}000000{i}" for seed in (1, 2, 3) for i in range(24)]
    assert FitRows.of(frame(tmp_path, columns | {name: called}), QUICK).notes == []
    (said,) = FitRows.of(frame(tmp_path, columns), QUICK).notes
    assert said.startswith("48 rows equal to others")


@pytest.mark.parametrize(("columns", "said"), [
    ({"n": 1e-3, "d": 1.0}, "half of the runs have more than "),  # N in thousands
    ({"n": 1.0, "d": 1 / 524288}, "half of the runs have fewer than "),  # updates
    ({"n": 1.0, "c": 1e-15}, "half of the runs have fewer than "),  # PFLOPs
])  # fmt: skip
def test_counts_that_are_seldom_meant_are_said(tmp_path, columns, said):
    table = unnamed()
    ours = {"n": table["total_params"], "d": table["tokens_seen"], "c": table["flops"]}
    scaled = {f"{key}_": ours[key] * unit for key, unit in columns.items()}
    settings = FitSettings(resamples=0, **{key: f"{key}_" for key in columns})
    (warning,) = fit_table(frame(tmp_path, table | scaled), settings).warnings
    assert warning.startswith(said)
    assert "tokens per parameter" in warning


def test_a_sound_table_is_not_doubted(tmp_path):
    assert fit_table(frame(tmp_path, unnamed()), QUICK).warnings == []


def test_a_training_loss_and_a_perplexity_are_said(tmp_path):
    columns = rows()
    table = frame(
        tmp_path, columns | {"train_loss": columns["val_loss"], "p": np.exp(columns["val_loss"])}
    )
    of_training = fit_table(table, FitSettings(resamples=0, loss="train_loss"))
    assert "loss of training" in of_training.warnings[0]
    assert any(
        "perplexities" in w for w in fit_table(table, FitSettings(resamples=0, loss="p")).warnings
    )


def test_a_run_far_off_the_law_is_named(tmp_path):
    columns = unnamed()
    columns["val_loss"][7] *= 1.3
    (said,) = fit_table(frame(tmp_path, columns), QUICK).warnings
    assert re.match(r"row 8 lies 30.* % above the law, .* leave it out of the table", said)


@pytest.mark.parametrize("how", [{}, {"drop_worst": 1}, {"objective": "mse"}, {"delta": 1e3}])
def test_a_run_far_off_is_named_while_it_is_there(tmp_path, how):
    columns = unnamed()
    columns["val_loss"][20] *= 1.18
    (said,) = fit_table(frame(tmp_path, columns), FitSettings(resamples=0, **how)).warnings
    assert re.match(r"row 21 lies 1[78].* % above the law, .* or with --where", said)
    assert "drop-worst" not in said
    columns["val_loss"][20] *= 9  # the highest of all, which is what is then left out
    table = frame(tmp_path, columns)
    assert fit_table(table, FitSettings(resamples=0, drop_worst=1)).warnings == []


def test_experiments_of_another_exponent_or_of_many_groups_are_said(tmp_path):
    columns = unnamed()
    turn = (columns["tokens_seen"] / 1e9) ** 0.03
    text = np.tile(["c4", "code"], 12)
    turned = columns | {
        "val_loss": columns["val_loss"] * np.where(text == "c4", 1, turn),
        "text": text,
    }
    assert any("groups by text" in w for w in fit_table(frame(tmp_path, turned), QUICK).warnings)

    many = {name: np.tile(values, 12) for name, values in columns.items()}
    noise = np.random.default_rng(0).standard_normal(24 * 12)
    sweep = np.repeat([f"s{i}" for i in range(12)], 24)
    many["val_loss"] *= np.exp(2e-3 * noise + np.repeat(np.linspace(0, 0.05, 12), 24))
    said = fit_table(frame(tmp_path, many | {"sweep": sweep}), QUICK).warnings
    assert any("groups by sweep" in w for w in said)


def test_groups_of_one_experiment_are_seldom_said():
    """At 5 %: 300 tables of heavy-tailed noise, five groups each."""
    rng = np.random.default_rng(0)
    scales = np.log([rows()["total_params"], rows()["tokens_seen"]])
    chances = [
        _chance_of_parts(1e-3 * rng.standard_t(3, 24), scales, rng.permutation(np.arange(24) % 5))
        for _ in range(300)
    ]
    assert 0.01 < np.mean(np.array(chances) < 0.05) < 0.09


def test_checkpoints_in_no_order_are_said(tmp_path):
    N, D, loss, _ = checkpoints()
    turn = np.random.default_rng(1).permutation(len(N))
    table = frame(tmp_path, {"n": N[turn], "d": D[turn], "loss": loss[turn]})
    result = fit_table(table, FitSettings(n="n", d="d", loss="loss", resamples=0))
    assert any("residuals of one N go together" in w for w in result.warnings)


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
    ("--n=p: 20 to 160 looks like millions",
     {"p": [20, 40, 80, 160] * 6, "q": rows()["tokens_seen"] / 1e9}, ["--n=p", "--d=q"]),
    ("--n=tokens_seen: N is the parameters", {}, ["--n=tokens_seen", "--d=total_params"]),
    ("--d=total_params: D is the tokens", {}, ["--n=flops", "--d=total_params"]),
    ("--d=steps: D is the tokens of a run", {"steps": rows()["tokens_seen"] / 5e5},
     ["--n=total_params", "--d=steps"]),
    ("--loss=val_ppl: a perplexity", {"val_ppl": np.exp(rows()["val_loss"])}, ["--loss=val_ppl"]),
    ("--by=val_loss: no value of it has 3 rows", {}, ["--by=val_loss"]),
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
    with pytest.raises(UserError, match="--n and --lr both name learning_rate"):
        sweep_study(one, columns={"n": "learning_rate"}, resamples=0)


@pytest.mark.filterwarnings("error")
def test_rows_beyond_the_range_of_a_float32_are_no_twins():
    C = [1e40, 1e60, 1e60 * (1 + 1e-9), 1e200, 1e-60]
    assert twins([C], [1.5] * 5) == [False, False, True, False, False]


def test_a_column_called_loss_is_the_loss_and_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table = unnamed()
    loss = table["val_loss"]
    C, seed = table["flops"], np.arange(24)
    for names in (["loss", "train_loss"], ["Eval/Loss (final)"]):
        frame(tmp_path, {"flops": C, **dict.fromkeys(names, loss), "seed": seed})
        assert main(["fit", "runs.csv", "--law=power", "--c=flops", "--bootstrap=0"]) in (0, 3)
        assert f"C = flops, L = {names[0]}" in capsys.readouterr().out


@pytest.mark.parametrize(("names", "arguments", "said"), [
    (["flops", "loss", "seed"], [], "of one alone, --law=power --c=flops; the table has flops, "),
    (["C", "loss", "d_model"], [], "of one alone, --law=power --c=C; the table has "),
    (["D", "loss", "seed"], ["--d=D"], "of one alone, --law=power --d=D; the table has "),
    (["C", "loss", "Model (params)"], ["--c=C"], "as in --c=C --n='Model (params)'; the table"),
    (["Training FLOP", "loss", "seed"], ["--law=power"], "--c, as in --c='Training FLOP'"),
    (["C", "eval/loss (final)", "loss_2"], ["--law=power"], "as in --loss='eval/loss (final)'"),
])  # fmt: skip
def test_which_columns_to_type_is_said(tmp_path, names, arguments, said):
    table = frame(tmp_path, dict(zip(names, [unnamed()["flops"]] * 3, strict=True)))
    options = dict(argument.removeprefix("--").split("=") for argument in arguments)
    with pytest.raises(UserError, match=re.escape(said)):
        fit_table(table, FitSettings(resamples=0, **options))


def test_an_empty_cell_among_those_with_units_is_named(tmp_path):
    columns = rows()
    written = [f"{d / 1e9!r}B" for d in columns["tokens_seen"].tolist()]
    written[4] = ""
    with pytest.raises(UserError, match="row 5: tokens_seen is empty: expected"):
        fit_table(frame(tmp_path, columns | {"tokens_seen": written}), QUICK)


@pytest.mark.parametrize("unit", [1e-15, 1e-3, 1e3])
def test_flops_far_from_those_of_n_and_d_are_said(tmp_path, unit):
    columns = unnamed()
    table = frame(tmp_path, columns | {"flops": columns["flops"] * unit})
    (said,) = fit_table(table, QUICK).warnings
    assert f"have flops of {unit:.2g} times 6 N D" in said
    for near in (0.02, 50):
        table = frame(tmp_path, columns | {"flops": columns["flops"] * near})
        assert fit_table(table, QUICK).warnings == []


@pytest.mark.parametrize(
    ("sd", "decimals", "said"), [(2e-3, 4, False), (2e-3, 2, True), (0, 4, True)]
)
def test_rounding_is_said_where_it_matters(tmp_path, sd, decimals, said):
    columns = rows(sd)
    columns["val_loss"] = columns["val_loss"].round(decimals)
    warnings = fit_table(frame(tmp_path, columns), QUICK).warnings
    assert any("losses look rounded" in w for w in warnings) == said
