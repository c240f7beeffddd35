"""Studies: from a file to a law and a report, with a worker that needs no torch; once for real."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import fake_worker
import pytest
from fake_worker import CRASH, DIVERGE, TINY, VALLEY
from tiny import PATIENCE, ROOT

import nanoscale as ns
from nanoscale.__main__ import main as cli_main
from nanoscale.commands.main import dispatch
from nanoscale.errors import UserError, program
from nanoscale.experiments import ExperimentRunner, Study
from nanoscale.experiments.local import ForkServer
from nanoscale.experiments.worker import Worker
from nanoscale.spec.config import ExperimentConfig, flatten
from nanoscale.spec.counting import flops_per_iter
from nanoscale.spec.resolve import resolve
from nanoscale.spec.sources import Source, build
from nanoscale.studies import conclusion, ladder_recipe
from nanoscale.studies.recipe import FileTable
from nanoscale.studies.row_runs import DEFAULTS
from nanoscale.studies.stages import run_study
from nanoscale.studies.study_file import read_study
from nanoscale.studies.transfer_recipe import StudyArm, read_arms


def verb(name: str) -> Callable[[Sequence[str]], int]:
    """`nanoscale NAME ARGUMENTS`, whose refusals are raised."""
    return lambda arguments: dispatch([name, *arguments])


main, status_main, table_main = verb("study"), verb("status"), verb("table")
report_main, retry, watch_study = verb("report"), verb("retry"), verb("watch")

TESTS = ROOT / "tests"
QUICK = ROOT / "studies" / "quick.toml"
BASE = "\n".join(f"{k} = {json.dumps(v)}" for k, v in TINY.items() if k != "max_iters")
LADDER = f"""
[study]
name = "toy"
question = "How does it fall?"
recipe = "ladder"
[base]
{BASE}
tokens_per_param = 0.1
[ladder]
seeds = [1]
[[ladder.sizes]]
n_embd = 16
seeds = [1, 2, 3]
[[ladder.sizes]]
n_embd = 24
[[ladder.sizes]]
n_embd = 32
seeds = [1, 2, 3]
[[ladder.sizes]]
n_embd = 48
[[ladder.sizes]]
n_embd = 64
"""
GRID = f"""
[study]
recipe = "grid"
[base]
{BASE}
max_iters = 5
[grid]
learning_rate = [1e-3, 2e-3]
"""

TRANSFER = """
[study]
name = "shift"
recipe = "transfer"

[base]
dataset = "toy"
block_size = 8
n_layer = 1
max_iters = 10

[transfer]
size = "n_embd"
seeds = [1, 2]

[[transfer.sizes]]
n_embd = 16
n_head = 1

[[transfer.sizes]]
n_embd = 32
n_head = 2

[[transfer.sizes]]
n_embd = 64
n_head = 4

[[transfer.arms]]
name = "SP"
lrs = [1e-3, 2e-3, 4e-3, 8e-3, 16e-3]

[[transfer.arms]]
name = "muP, Muon"
optimizer = "muon"
parametrization.mode = "muP"
lrs = [0.01, 0.02, 0.04, 0.08, 0.16]
"""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Every test works in an empty folder with a toy dataset and the fake worker."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    fake_worker.make_dataset(tmp_path)
    fake = ForkServer(Worker(entry="fake_worker:main", preload=()))
    monkeypatch.setattr("nanoscale.experiments.backends.local_backend", lambda: fake)


def write(text: str, name: str = "s.toml") -> Path:
    Path(name).write_text(text)
    return Path(name)


def arms(text: str) -> list[StudyArm]:
    """The arms of a transfer study."""
    path = write(text)
    tables = tomllib.loads(path.read_text())
    return read_arms(FileTable(path, "transfer", tables["transfer"], tables["base"]))


def attempts(study: Study) -> int:
    """Processes that have ever worked on the study's runs."""
    return sum(len((folder / "starts.txt").read_text().splitlines()) for _, folder in study.runs())


# -- files --------------------------------------------------------------------------------------
def test_a_ladder_has_a_row_per_size_and_seed():
    study = read_study(write(LADDER))
    assert [(row["n_embd"], row["seed"]) for row in study.question.rows] == [
        (16, 1),
        (16, 2),
        (16, 3),
        (24, 1),
        (32, 1),
        (32, 2),
        (32, 3),
        (48, 1),
        (64, 1),
    ]
    assert (study.name, study.recipe_name, study.base["tokens_per_param"]) == ("toy", "ladder", 0.1)


@pytest.mark.parametrize(
    ("base", "table", "size", "seeds"),
    [
        ("", "", "", [1337]),
        ("seed = 5", "", "", [5]),
        ("seed = 5", "seeds = [1]", "", [1]),
        ("seed = 5", "seeds = [1]", "seed = 7", [7]),
        ("seed = 5", "", "seeds = [1, 2]", [1, 2]),
    ],
)
def test_a_sizes_seeds_are_the_nearest_that_are_written(base, table, size, seeds):
    text = LADDER.replace("seeds = [1]\n", f"{table}\n").replace(
        "n_embd = 24", f"n_embd = 24\n{size}"
    )
    study = read_study(write(text.replace("[base]", f"[base]\n{base}")))
    assert [row["seed"] for row in study.question.rows if row["n_embd"] == 24] == seeds


def test_a_grid_has_every_combination_and_the_files_name():
    study = read_study(write(GRID + "parametrization.mode = ['SP', 'muP']\n", "lrs.toml"))
    assert study.name == "lrs"
    assert study.question.rows[1] == {"learning_rate": 1e-3, "parametrization.mode": "muP"}
    assert len(study.question.rows) == 4


def test_a_study_file_may_begin_with_a_mark():
    assert read_study(write(f"\ufeff{GRID}")).recipe_name == "grid"


def test_a_transfer_study_begins_with_every_arms_lrs_at_every_size():
    study = read_study(write(TRANSFER))
    assert len(study.question.rows) == 2 * 3 * 5
    assert study.question.rows[0] == {"n_embd": 16, "n_head": 1, "learning_rate": 1e-3, "seed": 1}
    assert study.question.rows[-1] == {
        "optimizer": "muon",
        "parametrization.mode": "muP",
        "n_embd": 64,
        "n_head": 4,
        "muon_lr": 0.16,
        "seed": 1,
    }


def test_an_arm_searches_the_lr_of_the_optimizer_it_has():
    muon = TRANSFER.replace("[base]", '[base]\noptimizer = "muon"')
    assert [arm.lr for arm in arms(muon)] == ["muon_lr", "muon_lr"]
    other = muon.replace('name = "SP"', 'name = "SP"\nlr = "learning_rate"')
    assert arms(other)[0].lr == "learning_rate"


@pytest.mark.parametrize("optimum", [1.5e-4, 1.1e-3, 5e-3, 0.04])
def test_an_arm_refines_until_the_octave_around_the_best_is_there(optimum):
    arm = arms(TRANSFER)[0]
    size, losses = arm.sizes[0], {}
    rows = [row for row in arm.first_rows() if row["n_embd"] == 16]
    for _ in range(20):
        losses |= {
            row["learning_rate"]: math.log2(row["learning_rate"] / optimum) ** 2
            if row["learning_rate"] < 0.1
            else math.inf
            for row in rows
        }
        more = [row for row in arm.finer_rows(size, losses) if row not in rows]
        if not more:
            break
        rows += more
    best = min(losses, key=losses.get)
    assert abs(math.log2(best / optimum)) <= 0.25
    for k in range(-2, 3):
        at = [row for row in rows if abs(row["learning_rate"] / (best * 2 ** (k / 2)) - 1) < 1e-3]
        assert [row["seed"] for row in sorted(at, key=lambda row: row["seed"])] == [1, 2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LADDER.replace("[study]", "[studdy]"), ["no table [studdy]", "'study'"]),
        (LADDER.replace("question", "qestion"), ["[study]: unknown key 'qestion'", "'question'"]),
        (LADDER.replace("[ladder]", "[ladder]\nseed = 1"), ["[ladder]: unknown key", "'seeds'"]),
        (LADDER.replace('"ladder"', '"lader"'), ["recipe='lader'", "'isoflop' or 'ablation'"]),
        (LADDER.replace('"ladder"', '"grid"'), ["[ladder] belongs to recipe"]),
        (LADDER.replace("tokens_per_param", "max_iters"), ["[base]", "tokens_per_param = 20"]),
        (
            LADDER.replace("n_embd = 24", "n_embd = 24\nmax_iters = 3"),
            ["max_iters", "all sizes share"],
        ),
        (LADDER.split("[[ladder.sizes]]\nn_embd = 48")[0], ["3 sizes are too few", "at least 4"]),
        (LADDER.replace("[ladder]", "[ladder]\nmin_sizes = 2"), ["min_sizes=2", "at least 4"]),
        (
            LADDER.replace("[ladder]", "[ladder]\nmin_sizes = 9"),
            ["5 sizes are too few", "at least 9"],
        ),
        (LADDER.replace("seeds = [1]", "seeds = 3"), ["seeds=3", "a list"]),
        (LADDER.split("[[ladder")[0] + "sizes = [16]", ["write each as [[ladder.sizes]]"]),
        (LADDER.replace("n_layer = 1", "n_layr = 1"), ["s.toml, [base]: n_layr", "'n_layer'"]),
        (
            LADDER.replace("n_embd = 24", "n_embd = 25"),
            ["[[ladder.sizes]], cell n_embd=25, seed=1", "not divisible"],
        ),
        (LADDER.replace("n_embd = 24", "width = 24"), ["[[ladder.sizes]]: width: unknown key"]),
        (GRID.split("[grid]")[0], ["[grid]: give at least one key"]),
        (GRID.replace("[1e-3, 2e-3]", "1e-3"), ["[grid]: learning_rate=0.001", "as in [0.001]"]),
        (GRID.replace("[study]", '[study]\nname = "a/b"'), ["study name 'a/b'"]),
        (GRID.replace("[study]", "study = 3\n[x]"), ["study is a table"]),
        (GRID + "]", ["s.toml: not valid TOML"]),
        (
            TRANSFER.replace('size = "n_embd"', 'size = "n_layer"'),
            ["size='n_layer'", "size = 'n_embd'"],
        ),
        (
            TRANSFER.replace("[[transfer.sizes]]\nn_embd = 64\nn_head = 4\n", ""),
            ["2 sizes show no"],
        ),
        (TRANSFER.replace('name = "SP"', 'name = "muP, Muon"'), ["each with a name of its own"]),
        (TRANSFER.replace('name = "SP"', ""), ["every arm has a name"]),
        (
            TRANSFER.replace("[1e-3, 2e-3, 4e-3, 8e-3, 16e-3]", "[1e-3]"),
            ["SP: lrs=[0.001]", "at least 5"],
        ),
        (TRANSFER.replace("[0.01,", "[-1,"), ["muP, Muon: lrs=[-1"]),
        (
            TRANSFER.replace("[transfer]", "[transfer]\nlrs = [1]"),
            ["[transfer]: unknown key 'lrs'"],
        ),
    ],
)
def test_a_bad_file_is_one_line_with_the_place_and_the_remedy(text, words):
    with pytest.raises(UserError) as refusal:
        run_study(write(text))
    for word in words:
        assert word in str(refusal.value)
    assert "s.toml" in str(refusal.value) or "study name" in words[0]
    assert "\n" not in str(refusal.value)
    assert not Path("experiments_out").exists()


def test_a_missing_file_names_the_nearest():
    write(GRID, "quick.toml")
    with pytest.raises(UserError, match=r"no such study file; did you mean 'quick\.toml'"):
        run_study("quik.toml")


# -- a ladder -----------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_ladder_runs_fits_and_reports(capsys):
    assert main([str(write(LADDER))]) == 0
    out = capsys.readouterr().out
    folder = Path("experiments_out/toy")
    law = json.loads((folder / "fits" / "power.json").read_text())
    assert law["params"]["g"] == pytest.approx(0.3, rel=0.05)
    assert law["ci95"]["E"][0] < 1.502 < law["ci95"]["E"][1]
    assert (law["n_points"], law["n_sizes"], len(law["runs"])) == (9, 5, 9)
    assert "all parameters (total)" in law["conventions"][1]
    answer = ns.answer("toy")
    assert (answer.question, answer.verdict) == ("How does it fall?", "")
    assert answer.numbers == law
    page = (folder / "report.html").read_text()
    for text in ("How does it fall?", "nanoscale study s.toml", "Figure 1", "exact", "epoch"):
        assert text in page
    assert len((folder / "table.csv").read_text().splitlines()) == 10
    asked = json.loads((folder / "study.json").read_text())["asked"]
    assert "tokens_per_param = 0.1" in asked["file"]
    lines = out.splitlines()
    assert law["equation"].split(" = ")[0] in out
    assert lines[-2] == f"[toy] report: {folder / 'report.html'}"
    assert f"{program()} sample --out_dir=experiments_out/runs/toy-L1-d64" in lines[-1]
    assert cli_main(["fit", "toy"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [f"[toy] {line}" for line in said[:4]] == lines[-8:-4]
    for source in ("toy", "experiments_out/toy/fits/power.json"):
        assert cli_main(["plan", source, f"--budget={10 * law['points'][-1]['x']}"]) == 0
        plan = capsys.readouterr().out
        assert "10 times the largest fitted" in plan
        assert "the ladder's 0.1 per parameter" in plan
        assert f"next: {program()} train" in plan


@pytest.mark.soak
def test_a_transfer_study_refines_judges_each_arm_and_again_runs_nothing(capsys):
    path = write(TRANSFER.replace("[base]", f"[base]\nbeta1 = {VALLEY}"))
    study, out = run_study(path), capsys.readouterr().out
    folder = Path("experiments_out/shift")
    found = json.loads((folder / "transfer.json").read_text())["verdicts"]
    assert [record["verdict"] for record in found.values()] == ["fail", "pass"]
    answer = ns.answer("shift")
    assert answer.verdict == "fail"
    assert answer.numbers["verdicts"] == found
    assert found["SP"]["drift"]["value"] == pytest.approx(-1, abs=0.05)
    assert found["muP, Muon"]["drift"]["value"] == pytest.approx(0, abs=0.05)
    for record in found.values():
        assert all(size["n_seeds"] == 2 for size in record["sizes"])
        assert all(size["bracketed"] for size in record["sizes"])
    assert "[shift] SP: fail: drift -1.0" in out
    assert "[shift] muP, Muon: pass" in out
    assert (folder / "figures" / "transfer.png").is_file()
    assert cli_main(["transfer", "shift"]) == 1
    assert cli_main(["transfer", "shift", "--only=muP, Muon"]) == 0
    tries = attempts(study)
    assert attempts(run_study(path)) == tries == len(study) > 2 * 3 * 5


@pytest.mark.slow
def test_a_study_again_runs_nothing_and_rebuilds_the_report():
    path = write(LADDER)
    first = run_study(path)
    tries, report = attempts(first), first.folder / "report.html"
    before = report.read_bytes()
    report.unlink()
    second = run_study(path)
    assert set(second.plan.values()) == {"cached"}
    assert attempts(second) == tries
    assert report.read_bytes() == before


@pytest.mark.slow
def test_relative_schedules_are_the_default_and_the_file_has_the_last_word():
    config = next(run_study(write(GRID)).runs())[1].spec().config
    assert (config.data_order, config.lr_decay_iters, config.compile) == ("epoch", 5, False)
    assert config.min_lr == pytest.approx(0.1 * config.learning_rate)
    assert (config.warmup_iters, config.threads) == (0, 1)
    text = GRID.replace(
        "max_iters = 5",
        "max_iters = 5\nmin_lr = 1e-5\ndata_order = 'random'\nthreads = 2\nlr_decay_iters = 4",
    )
    study = run_study(write(text, "two.toml"))
    config = next(study.runs())[1].spec().config
    assert (config.min_lr, config.data_order, config.threads) == (1e-5, "random", 2)
    assert config.lr_decay_iters == 4
    assert any("set min_lr_frac=0.1" in text for text in study.warnings)
    assert conclusion.settings_of(study)["min_lr"] == 1e-5
    assert "min_lr_frac" not in conclusion.settings_of(study)


@pytest.mark.slow
def test_a_failed_run_is_left_out_of_the_law_and_said(capsys):
    text = LADDER.replace("n_embd = 64", f"n_embd = 64\nbeta1 = {CRASH}")
    assert main([str(write(text))]) == 1
    assert "RuntimeError: this run crashes" in capsys.readouterr().out
    folder = Path("experiments_out/toy")
    assert json.loads((folder / "fits" / "power.json").read_text())["n_sizes"] == 4
    assert "RuntimeError: this run crashes" in (folder / "report.html").read_text()

    worse = text.replace("n_embd = 24", f"n_embd = 24\nbeta1 = {CRASH}")
    assert main([str(write(worse))]) == 1
    assert "no law: 3 sizes have finished, 4 are needed" in capsys.readouterr().out
    assert ns.answer("toy").verdict == "inconclusive"


@pytest.mark.slow
def test_a_diverged_run_is_a_result_but_no_point_of_the_law():
    text = LADDER.replace("n_embd = 64", f"n_embd = 64\nbeta1 = {DIVERGE}")
    assert main([str(write(text))]) == 0
    fit = json.loads(Path("experiments_out/toy/fits/power.json").read_text())
    assert (fit["n_sizes"], fit["n_points"]) == (4, 8)


@pytest.mark.soak
def test_sizes_of_equal_n_keep_apart():
    text = LADDER.replace("n_embd = 24", "n_embd = 16\nblock_size = 16")
    frame = Study.open(run_study(write(text)).folder).frame()
    labels = ladder_recipe.size_labels(Study.open(Path("experiments_out/toy")), frame)
    assert len(set(labels)) == 5


# -- grids --------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize(
    ("axes", "figures"),
    [
        ("", 1),
        ("weight_decay = [0.1, 0.2]", 1),
        ("optimizer = ['adamw', 'muon']", 1),
        ("weight_decay = [0.1, 0.2]\nn_layer = [1, 2]", 0),
    ],
)
def test_a_grid_reports_its_best_run_and_draws_one_or_two_knobs(axes, figures, capsys):
    assert main([str(write(GRID + axes))]) == 0
    assert "lowest val_loss" in capsys.readouterr().out
    assert Path("experiments_out/s/report.html").read_text().count("<figure>\n<div") == figures


# -- commands -----------------------------------------------------------------------------------
def test_a_dry_run_plans_and_writes_nothing(capsys):
    assert main([str(write(LADDER)), "--dry-run"]) == 0
    assert "9 runs: 9 new" in capsys.readouterr().out
    assert not Path("experiments_out").exists()


def test_a_dry_run_needs_no_data_that_the_study_itself_would_make(capsys):
    text = LADDER.replace('dataset = "toy"', 'dataset = "pysource"')
    assert main([str(write(text)), "--dry-run"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("[toy] 9 runs: 9 new; ")
    assert " by a calibration of " in said[-1]
    assert {path.name for path in Path().rglob("*.*")} == {
        "s.toml",
        "meta.json",
        "train.bin",
        "val.bin",
    }
    assert not Path("data/pysource").exists()


@pytest.mark.slow
def test_status_table_and_report_read_the_folders(capsys):
    assert status_main([]) == 0
    assert "no studies in experiments_out" in capsys.readouterr().out
    assert main([str(write(LADDER)), "--output_root=out", "--workers=1"]) == 0
    ExperimentRunner(output_root="out").run_grid("lr", TINY, {"learning_rate": [1e-3, 2e-3]})
    capsys.readouterr()
    assert status_main(["--output_root=out"]) == 0
    assert capsys.readouterr().out == "lr: 2 runs: 2 COMPLETE\ntoy: 9 runs: 9 COMPLETE\n"
    assert status_main(["toy", "--output_root=out"]) == 0
    assert capsys.readouterr().out.count("COMPLETE") == 10
    Path("out/toy/table.csv").unlink()
    assert table_main(["toy", "--output_root=out"]) == 0
    assert len(Path("out/toy/table.csv").read_text().splitlines()) == 10
    for name in ("toy", "lr"):
        assert report_main([name, "--output_root=out"]) == 0
        assert Path(f"out/{name}/report.html").is_file()
    assert "lowest val_loss" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        (main, [], "nanoscale study: FILE is missing; see nanoscale study --help"),
        (main, ["a.toml", "--dry-rnu"], "did you mean '--dry-run'"),
        (main, ["a.toml", "--workers=two"], "--workers=two: expected"),
        (main, ["a.toml", "--output_root"], "--output_root: a value is missing"),
        (main, ["a.toml", "--dry-run=yes"], "--dry-run=yes: the option takes no value"),
        (main, ["a.toml", "b.toml"], "b.toml: one argument too many"),
        (table_main, [], "nanoscale table: STUDY is missing"),
        (report_main, ["toi"], "no study 'toi' in experiments_out"),
        (status_main, ["--root=x"], "unknown option"),
    ],
)
def test_bad_arguments_are_refused(command, arguments, words):
    with pytest.raises(UserError, match=words):
        command(arguments)


@pytest.mark.slow
def test_missing_pysource_is_prepared_and_nothing_else(monkeypatch):
    made = []

    def prepare(name, *, out, **_):
        made.append((name, out))
        fake_worker.make_dataset(Path.cwd() / "x")
        (Path.cwd() / "x/data/toy").rename(out)

    monkeypatch.setattr("nanoscale.data.prepare.prepare", prepare)
    monkeypatch.setattr("nanoscale.data.dataset.CLONE", Path.cwd())
    text = GRID.replace('dataset = "toy"', 'dataset = "pysource"')
    run_study(write(text), dry_run=True)  # times a little text in its place
    assert not Path("data/pysource").exists()
    made.clear()
    run_study(write(text))
    run_study(write(text))
    assert made == [("pysource", Path("data/pysource"))]
    with pytest.raises(UserError, match="nanoscale data prepare shakespeare_char"):
        run_study(write(text.replace("pysource", "shakespeare_char")))


@pytest.mark.slow
def test_neither_torch_nor_drawing_is_imported_to_refuse():
    code = (
        "import sys; from nanoscale.commands.main import dispatch\n"
        "try: dispatch(['study', 'no.toml'])\n"
        "except Exception as e: print(e)\n"
        "print({'torch', 'matplotlib', 'pandas', 'rich'} & set(sys.modules))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.splitlines() == [
        "no.toml: no such study file; 'quick' is one",
        "set()",
    ]


# -- the study that is shipped ------------------------------------------------------------------
def test_the_quick_study_is_a_ladder_one_can_defend():
    study = read_study(QUICK)
    base = build([Source("defaults", DEFAULTS), Source("base", study.base)])
    assert all(getattr(base, part) for part in ("use_rmsnorm", "use_rope", "use_swiglu"))
    compute: dict[float, list[int]] = {}
    for row in study.question.fitted:
        config = resolve(build([Source("base", flatten(base) | row)]), 256)
        assert config.max_iters >= 300
        compute.setdefault(flops_per_iter(config) * config.max_iters, []).append(row["seed"])
    C = sorted(compute)
    ratios = [b / a for a, b in itertools.pairwise(C)]
    assert len(C) >= 6
    assert math.log10(C[-1] / C[0]) >= 1.3
    assert 1.4 < min(ratios) <= max(ratios) < 2.4
    assert sorted(len(set(seeds)) for seeds in compute.values()) == [2, 2, 2, 2, 3, 3]
    assert study.stages == [
        "check",
        "noise",
        "tune",
        *"branches ladder fit forecast seal confirm".split(),
    ]
    assert sum(c * len(seeds) for c, seeds in compute.items()) < 2.2e13
    assert replace(base, lr_decay_iters=None) == base
    assert base.min_lr_frac == 0.1
    assert isinstance(base, ExperimentConfig)


@pytest.mark.soak
def test_a_small_ladder_for_real(tmp_path):
    text = LADDER.replace("n_embd = 64\n", "n_embd = 40\n").replace("seeds = [1, 2, 3]\n", "")
    write(text)
    command = [sys.executable, "-m", "nanoscale", "study", "s.toml"]
    done = subprocess.run(
        command,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        text=True,
        capture_output=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "[toy] 5 COMPLETE" in done.stdout
    assert "[toy] report: experiments_out/toy/report.html" in done.stdout
    frame = Study.open(tmp_path / "experiments_out" / "toy").frame()
    assert frame["val_loss"].between(1, 4).all()
    assert (frame["flops"] == frame["planned_flops"]).all()


def test_how_a_study_runs_can_be_said_on_the_command_line(capsys):
    Path("toy.toml").write_text(GRID)
    with pytest.raises(UserError, match="--retries=two: expected a number"):
        main(["toy.toml", "--retries=two"])
    with pytest.raises(UserError, match="budget=1 parsec: expected training FLOPs"):
        main(["toy.toml", "--budget", "1 parsec"])
    assert main(["toy.toml", "--budget=1", "--retries=0", "--time_limit=9.5", "--dry-run"]) == 0
    assert "left out" in capsys.readouterr().out
    text = GRID.replace("[base]", "[run]\nbackend = 'subprocess'\nbudget = 1\n[base]")
    Path("toy.toml").write_text(text)
    assert main(["toy.toml", "--dry-run"]) == 0
    assert "left out" in capsys.readouterr().out
    assert main(["toy.toml", "--dry-run", "--budget=1e15"]) == 0
    assert "left out" not in capsys.readouterr().out
    for right, wrong in (("subprocess", "subproces"), ("budget", "budgt")):
        Path("toy.toml").write_text(text.replace(right, wrong))
        with pytest.raises(UserError, match=f"did you mean '{right}'"):
            main(["toy.toml", "--dry-run"])


SEARCH = GRID.split("[grid]")[0].replace('"grid"', '"search"').replace("= 5", "= 5\nbeta1 = 0.66")


@pytest.mark.slow
def test_a_search_is_a_study_file_too(capsys):
    Path("s.toml").write_text(
        SEARCH.replace("= 5", "= 5\nparametrization.mode = 'CompleteP'")
        + """
        [search]
        trials = 4
        sampler = "random"
        [search.space]
        learning_rate = {low = 1e-4, high = 1e-1, log = true}
        parametrization.alpha = [0.5, 1]
        """
    )
    assert main(["s.toml"]) == 0
    study = Study.open(Path("experiments_out/s"))
    assert len(study) == 4
    assert (study.folder / "figures" / "search.png").is_file()
    assert "the diamond is the best trial" in (study.folder / "report.html").read_text()
    assert (study.folder / "report.html").is_file()
    said = f"lowest val_loss {study.best.val_loss:.4f} at learning_rate="
    assert said in capsys.readouterr().out
    assert main(["s.toml", "--dry-run"]) == 0
    Path("s.toml").write_text(
        SEARCH.replace("= 5", "= 5\nparametrization.mode = 'muP'")
        + """
        [search]
        trials = 4
        sampler = "random"
        seeds = [5, 6]
        proxy = {n_embd = 32}
        [search.space]
        learning_rate = {low = 1e-4, high = 1e-1, log = true}
        """
    )
    assert main(["s.toml"]) == 0
    assert Study.open(Path("experiments_out/s")).frame()["n_embd"].tolist() == [32] * 4 + [16] * 2
    assert "target: val_loss" in (study.folder / "report.html").read_text()
    for bad, words in (
        ("trials = 0", "at least 1"),
        ("rungs = 5", "expected a list"),
        ("triels = 5", "did you mean 'trials'"),
        ("seeds = 5", "expected a list"),
        ("proxy = {n_embd = 8}", "give the seeds"),
        ('sampler = "x"', "choose"),
    ):
        Path("s.toml").write_text(SEARCH + f"[search]\n{bad}\n[search.space]\nseed = [1, 2]")
        with pytest.raises(UserError, match=words):
            main(["s.toml"])


@pytest.mark.slow
def test_retry_runs_again_what_failed_from_the_folders_alone(capsys):
    runner = ExperimentRunner(retries=0)
    first = runner.run_grid("g", TINY, {"n_layer": [1, 2], "beta1": [0.9, CRASH]})
    for entry, folder in first.runs():  # mended: what crashed is an ordinary run now
        if entry.values["beta1"] == CRASH:
            (folder / "mended").touch()
    assert retry(["g", "--retries=0"]) == 0
    out = capsys.readouterr().out
    assert "4 runs: 2 cached, 2 retry" in out
    again = Study.open(Path("experiments_out/g"))
    assert again.states() == {"COMPLETE": 4}
    assert [run.id for run in again.entries] == [e.id for e, _ in first.runs()]
    assert again.asked == first.asked
    with pytest.raises(UserError, match="no study 'h'"):
        retry(["h"])


DAMAGE = {  # file -> what a torn write, or a hand, leaves of it; None: nothing
    "status.json": ["", '{"state": "COMP', "[]", None],
    "metrics.json": ["", None],
    "config.json": [""],
}


@pytest.mark.slow
def test_a_damaged_run_stops_no_verb_of_its_study_and_is_mended(capsys):
    lists = {"n_layer": [1, 2, 3]}
    study = ExperimentRunner().run_grid("g", TINY, lists)
    table = (study.folder / "table.csv").read_text()
    folder = list(study.runs())[1][1]
    for name, contents in DAMAGE.items():
        for content in contents:
            (folder / name).unlink()
            if content is not None:
                (folder / name).write_text(content)
            capsys.readouterr()
            for main in (status_main, table_main, report_main, watch_study):
                assert main(["g"]) == (main is watch_study)
                said = capsys.readouterr().err
                assert f"warning: {folder.path}: {name}" in said
                remedy = "the command" if name == "config.json" else "nanoscale retry g mends it"
                assert remedy in said
            assert study.states() == {"COMPLETE": 2, "FAILED": 1}
            assert retry(["g"]) == (name == "config.json")  # which nothing in the folder has
            said = capsys.readouterr().out
            assert name != "status.json" or "3 runs: 3 cached\n" in said  # its result is there
            if name == "config.json":
                assert ExperimentRunner().run_grid("g", TINY, lists).ok
            assert (study.folder / "table.csv").read_text() == table
    assert len((folder / "starts.txt").read_text().splitlines()) == 1 + len(DAMAGE["metrics.json"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["metrics.json", "status.json"])
def test_a_search_whose_best_run_is_damaged_has_one_best_and_says_so(capsys, name):
    space = {"learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}}
    study = ExperimentRunner().run_random("s", TINY | {"beta1": VALLEY}, space, trials=3)
    (study.output_root / "runs" / study.best.folder / name).unlink()
    capsys.readouterr()
    assert report_main(["s"]) == 0
    said = capsys.readouterr().out.splitlines()
    found = f"lowest val_loss {study.best.val_loss:.4f} at learning_rate="
    assert said[0].startswith(found)
    assert "(its run is damaged: " + name in said[0]
    assert said[-1] == f"next: {program()} retry s"
    assert retry(["s"]) == 0
    assert report_main(["s"]) == 0
    assert "damaged" not in (said := capsys.readouterr().out)
    assert f"runs/{study.best.folder}" in said.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("rows", ['{"step": 3, "val_loss": 2.0}\n{"step"', "{\n"])
def test_lost_rows_are_said_by_every_verb_and_the_result_stands(capsys, rows):
    study = ExperimentRunner().run_grid("g", TINY, {"n_layer": [1, 2]})
    table = (study.folder / "table.csv").read_text()
    folder = list(study.runs())[1][1]
    folder.set_status(step=7)
    (folder / "metrics.jsonl").write_text(rows)
    capsys.readouterr()
    for main in (status_main, table_main, report_main):
        assert main(["g"]) == 0
        said = capsys.readouterr().err
        assert f"warning: {folder.path}: metrics.jsonl " in said
        assert "the results stand" in said
    assert study.states() == {"COMPLETE": 2}
    assert (study.folder / "table.csv").read_text() == table
    assert "the results stand" in (study.folder / "report.html").read_text()


@pytest.mark.slow
def test_watch_shows_runs_that_others_run(monkeypatch, capsys):
    monkeypatch.setattr("nanoscale.experiments.watching.IDLE_SECONDS", 1.5)
    study = ExperimentRunner().run_grid("g", TINY, {"n_layer": [1, 2, 3]})
    folders = [folder for _, folder in study.runs()]
    folders[1].set_status(state="RUNNING")
    folders[2].set_status(state="WAITING")

    def work() -> None:
        with folders[1].take():
            time.sleep(0.6)
            folders[1].set_status(state="COMPLETE")

    other = threading.Thread(target=work)
    capsys.readouterr()
    other.start()
    assert watch_study(["g"]) == 1
    other.join()
    said = capsys.readouterr().out
    assert "3 runs, 1 have ended" in said
    assert "start n_layer=2" in said
    assert "COMPLETE n_layer=2: val_loss" in said
    assert f"1 run waits and nobody runs it: {program()} retry g" in said
    folders[2].set_status(state="COMPLETE")
    assert watch_study(["g"]) == 0


def test_a_table_can_go_anywhere_as_csv_or_parquet(capsys):
    study = ExperimentRunner().run_grid("g", TINY, {"n_layer": [1, 2]})
    assert table_main(["g", "--out=t.csv"]) == 0
    import pandas as pd

    assert pd.read_csv("t.csv")["n_layer"].tolist() == [1, 2]
    with pytest.raises(UserError, match=r"--out=t.xls: end the name in '.csv' or '.parquet'"):
        table_main(["g", "--out", "t.xls"])
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"needs pyarrow: pip install 'nanoscale\[parquet\]'"):
            table_main(["g", "--out=t.parquet"])
        return
    assert table_main(["g", "--out=t.parquet"]) == 0
    read = pd.read_parquet("t.parquet")
    assert read["val_loss"].tolist() == study.frame()["val_loss"].tolist()
