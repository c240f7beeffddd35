"""Whether the best LR transfers, judged from tables, run folders and studies; what is printed."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from drawn import diamonds
from lr_grids import diverging, grid, noisy, valley, verdict_of
from tiny import run_nanoscale, run_python, tiny_spec

from nanoscale.checks.lr_transfer import LrColumns, TransferLimits
from nanoscale.commands.main import dispatch
from nanoscale.commands.transfer import lines
from nanoscale.errors import DONE, FAILURE, INCONCLUSIVE, UserError
from nanoscale.experiments.tables import read_table
from nanoscale.report import transfer_figure
from nanoscale.store.files import write_json
from nanoscale.store.folder import COMPLETE, DIVERGED, METRICS, WAITING, RunFolder
from nanoscale.studies.transfer_table import transfer, transfer_verdicts


# -- the command --------------------------------------------------------------------------------
def write(path, table, header="width,lr,loss,seed"):
    rows = [",".join(f"{v:.17g}" for v in row) for row in table]
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def run(*arguments):
    return dispatch(["transfer", *arguments])


NAMED = ("--size", "width", "--lr=lr", "--loss", "loss")
COLUMNS = {"size": "width", "lr": "lr", "loss": "loss"}


@pytest.mark.parametrize(
    ("optima", "code"),
    [([0, 0, 0, 0], DONE), ([0, -0.7, -1.4, -2.1], FAILURE), ([0, 0], INCONCLUSIVE)],
)
def test_the_exit_code_is_the_verdict_and_the_record_is_printed(tmp_path, capsys, optima, code):
    path = write(tmp_path / "t.csv", noisy(optima))
    assert run(path, *NAMED, f"--json={tmp_path / 'v.json'}") == code
    record = json.loads((tmp_path / "v.json").read_text())
    printed = capsys.readouterr().out.splitlines()
    (verdict,) = transfer_verdicts(read_table(path), COLUMNS).values()
    assert printed == lines(verdict)
    assert record == verdict.to_json()
    assert printed[-1] == f"{record['verdict']}: {record['reason']}"
    assert (record["schema"], record["size"], record["seed"]) == (1, "width", "seed")


def test_a_blank_is_a_run_that_is_missing_and_inf_or_nan_one_that_diverged(tmp_path):
    table = grid([0.1, 0.1, 0.1], lrs=np.arange(-4, 1.5, 0.5))
    last = diverging(table, 256, 0.5)
    path = tmp_path / "t.csv"
    for text, bracketed in (("inf", True), ("nan", True), ("", False)):
        write(path, last)
        path.write_text(path.read_text().replace(",inf,", f",{text},"))
        run(str(path), *NAMED, f"--json={tmp_path / 'v.json'}")
        sizes = json.loads((tmp_path / "v.json").read_text())["sizes"]
        assert sizes[2]["bracketed"] is bracketed
    keys = ("width", "lr", "loss", "seed")
    rows = [dict(zip(keys, row, strict=True)) for row in last.tolist()]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run(str(tmp_path / "t.jsonl"), *NAMED, f"--json={tmp_path / 'v.json'}")
    assert json.loads((tmp_path / "v.json").read_text())["sizes"][2]["bracketed"]


def test_every_value_of_by_is_judged_by_itself_and_the_worst_counts(tmp_path, capsys):
    good, bad = noisy([0, 0, 0, 0]), noisy([0, -0.7, -1.4, -2.1])
    both = [(*row, mode) for mode, rows in ((0, good), (1, bad)) for row in rows]
    path = write(tmp_path / "t.csv", both, "width,lr,loss,seed,mode")
    with pytest.raises(UserError, match="differ in mode: judge each by itself, as in --by=mode"):
        run(path, *NAMED)
    assert run(path, *NAMED, "--by=mode", f"--json={tmp_path / 'v.json'}") == FAILURE
    verdicts = json.loads((tmp_path / "v.json").read_text())["verdicts"]
    assert [v["verdict"] for v in verdicts.values()] == ["pass", "fail"]
    assert run(path, *NAMED, "--by=mode", "--only=0") == DONE


def test_a_key_that_moves_losses_among_the_seeds_is_refused(tmp_path):
    table = noisy([0, 0, 0, 0])
    decay = np.random.default_rng(1).integers(0, 2, len(table))
    table[:, 2] += 0.05 * decay
    path = write(tmp_path / "t.csv", np.column_stack([table, decay]), "width,lr,loss,seed,decay")
    with pytest.raises(UserError, match=r"decay varies within sweeps.* as in --by=decay"):
        run(path, *NAMED)


def test_copies_are_no_seeds(tmp_path):
    table = noisy([0, 0, 0, 0])
    path = write(tmp_path / "t.csv", [*table, *table])
    with pytest.raises(UserError, match="is there twice; keep one"):
        run(path, *NAMED)
    path = write(tmp_path / "t.csv", [*table[:, :3], *table[:5, :3]], "width,lr,loss")
    with pytest.raises(UserError, match=f"row {len(table) + 1} repeats another of its width, lr"):
        run(path, *NAMED)


def test_a_frame_is_judged_as_its_file_is(tmp_path):
    table = diverging(noisy([0, 0.1, -0.1, 0]), 512, 2)
    path = write(tmp_path / "t.csv", table)
    frame = pd.DataFrame(table, columns=["width", "lr", "loss", "seed"])
    verdict = transfer(frame, **COLUMNS)
    assert verdict == transfer(path, **COLUMNS)
    assert transfer(frame, **COLUMNS, limits=TransferLimits(base=128)).base == 128
    frame.loc[0, "loss"] = math.nan  # in a frame of numbers this is a run without a result
    assert "1 run(s) without a result are left out" in transfer(frame, **COLUMNS).warnings
    frame["mode"] = "SP"
    both = pd.concat([frame, frame.assign(mode="muP")])
    with pytest.raises(UserError, match="several settings: choose only='SP' or 'muP'"):
        transfer(both, **COLUMNS, by="mode")
    assert transfer(both, **COLUMNS, by="mode", only="muP").verdict == verdict.verdict


def folders(root, optima):
    """(spec, run folder) as runs leave them, a WAITING and a DIVERGED one of each size."""
    made = []
    for k, optimum in enumerate(optima):
        for x in np.arange(-3.0, 4):
            spec = tiny_spec(n_embd=16 * 2**k, learning_rate=2.0 ** (x - 7), seed=1)
            folder = RunFolder(root / spec.name)
            folder.path.parent.mkdir(parents=True, exist_ok=True)
            folder.create(spec)
            state = {2.0: DIVERGED, 3.0: WAITING}.get(x, COMPLETE)
            loss = 3 + 0.03 * (x - optimum) ** 2 if state == COMPLETE else None
            folder.set_status(state=state)
            if state != WAITING:
                write_json(folder / METRICS, {"val_loss": loss, "iter_num": 10, "tokens_seen": 160})
            made.append((spec, folder))
    return made


def test_run_folders_and_studies_need_no_columns_named(tmp_path, capsys):
    made = folders(tmp_path / "runs", [0.1, 0.0, -0.1])
    paths = [str(folder.path) for _, folder in made]
    assert run(*paths) == DONE
    printed = capsys.readouterr().out
    assert "size n_embd, LR learning_rate, loss val_loss, seed seed" in printed
    assert "warning: 3 run(s) without a result" in printed
    assert "warning: diverged at n_embd 64: LR 0.0312" in printed
    assert "the runs have 10 updates" in printed
    entries = [
        {
            "id": s.id,
            "folder": s.name,
            "flops": 1,
            "values": {
                "optimizer": "adamw",
                "n_embd": s.config.n_embd,
                "learning_rate": s.config.learning_rate,
            },
        }
        for s, _ in made
    ]
    arms = [
        {"name": name, "lr": "learning_rate", "values": values}
        for name, values in (("any", {}), ("mine", {"optimizer": "adamw"}))
    ]
    (tmp_path / "width").mkdir()
    write_json(
        tmp_path / "width" / "study.json",
        {"name": "width", "runs": entries, "asked": {"arms": arms}},
    )
    assert run("width", f"--output_root={tmp_path}") == DONE
    by_name = capsys.readouterr().out
    assert by_name.splitlines()[0] == "== mine"
    assert by_name.splitlines()[2:] == printed.replace(", seed seed", "").splitlines()[1:]
    assert run(str(tmp_path / "width")) == DONE
    assert capsys.readouterr().out == by_name
    with pytest.raises(UserError, match=r"no study 'with' in .*did you mean 'width'"):
        run("with", f"--output_root={tmp_path}")


def edit(text, old, new):
    assert old in text
    return text.replace(old, new, 1)


GOOD = "width,lr,loss,seed\n" + "".join(
    f"{w},{lr},{2 + (i - 2) ** 2 / 30},1\n"
    for w in (8, 16, 32)
    for i, lr in enumerate((0.001, 0.002, 0.004, 0.008, 0.016))
)


@pytest.mark.parametrize(("text", "options", "message"), [
    (None, NAMED, r"t\.csv: no such table"),
    ("", NAMED, "empty; a table has a line of column names"),
    ("width,lr,loss,seed\n", NAMED, "the table has no rows"),
    (GOOD, ("--size=widht", *NAMED[2:]), "--size=widht: the table has no such column; did you"),
    (GOOD, ("--size=lr", *NAMED[2:]), "--size and --lr both name lr: give two columns"),
    (edit(GOOD, "loss", "ppl"), (*NAMED[:3], "--loss=ppl"), "--loss=ppl: a perplexity is exp"),
    (GOOD, NAMED[2:], "which column is the size?.*--size=total_params"),
    (GOOD, NAMED[:3], "which column is the loss?.*--loss="),
    (edit(GOOD, "2.0333", "x2.0333"), NAMED, r"row 2: loss='x2.0333\d*' is not a number"),
    (edit(GOOD, "8,0.001", "0,0.001"), NAMED, "row 1: width=0: expected a number above 0"),
    (edit(GOOD, "8,0.002", "8,-0.002"), NAMED, "row 2: lr=-0.002: expected a number above 0"),
    (edit(GOOD, "8,0.002", "8,"), NAMED, "row 2: lr=None"),
    (edit(GOOD, "8,0.002", "8,0.001"), NAMED, "width 8, lr 0.001, seed 1 is there twice"),
    (GOOD, (*NAMED, "--base=9"), "base=9: no run of that width; there are 8, 16, 32"),
    (GOOD, (*NAMED, "--tolerance=0"), "tolerance 0.0 of drift: expected a number above 0"),
    (GOOD, (*NAMED, "--max-regret=x"), "--max-regret=x: expected a number"),
    (GOOD, (*NAMED, "--only=3"), "--only=3: say of which column"),
    (GOOD, (*NAMED, "--by=widt"), "--by=widt: the table has no such column; did you mean 'width'"),
    (GOOD, (*NAMED, "--json=no/v.json"), "--json=no/v.json: there is no folder no"),
    (GOOD, (*NAMED, "--figure=v.gif"), "--figure=v.gif: end the name in '.png'"),
    (GOOD, (*NAMED, "--sizes=3"), "--sizes=3: unknown option; did you mean '--size'"),
    ("width,lr,loss\n1,2,3\n1,2,3,4,5\n", NAMED, "line 3 has 5 cells where the first has 3"),
])  # fmt: skip
def test_bad_input_is_refused_in_one_line(tmp_path, text, options, message):
    path = tmp_path / "t.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        run(str(path), *options)
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ([] if text is None else ["t.csv"])


@pytest.mark.slow
def test_the_verb_is_there_and_loads_no_torch(tmp_path):
    done = run_nanoscale("transfer", "none.csv", *NAMED, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: none.csv: no such table\n"
    script = (
        "import sys, nanoscale.commands.transfer\n"
        "print({'torch', 'pandas', 'matplotlib', 'scipy'} & set(sys.modules))"
    )
    assert run_python("-c", script).stdout == "set()\n"


# -- the figure ---------------------------------------------------------------------------------
def test_the_figure_marks_every_optimum_and_the_bases_lr():
    table = diverging(noisy([0, 0.1, -0.1, 0], curve=valley), 512, 2)
    verdict = verdict_of(table, names=LrColumns("width", "lr", "loss", "seed"))
    record = verdict.to_json()
    figure = transfer_figure({"one": verdict, "two": verdict})
    one, two = figure.axes
    assert one.get_ylim() == two.get_ylim()
    at = {(x, y) for mark in diamonds(one) for x, y in mark.get_offsets().tolist()}
    assert at == {(s["optimum_lr"], s["min_loss"]) for s in record["sizes"]}
    assert any(list(line.get_xdata()) == [record["base_lr"]] * 2 for line in one.lines)
    crosses = [x for line in one.lines if line.get_marker() == "x" for x in line.get_xdata()]
    assert crosses == record["sizes"][3]["diverged_lrs"]
    texts = [t.get_text() for t in one.texts]
    assert {"64", "128", "256", "512", "one", "diverged", "best LR at\nwidth 64"} <= set(texts)
    assert {record["verdict"], "two"} <= {t.get_text() for t in two.texts}
    assert [t for t in texts if t.startswith("drift")]
    low, high = one.get_ylim()
    assert all(low < s["min_loss"] < high for s in record["sizes"])


def test_the_figure_bears_what_is_not_known():
    table = grid([0, 0, 0, -9], lrs=[-1, 0, 1], seeds=1)
    table[table[:, 0] == 128, 2] = math.inf
    axes = transfer_figure({"": verdict_of(table)}).axes[0]
    assert len(diamonds(axes)) == 2
