"""A forecast in all its stages: what each leaves, what the next makes of it, and where it ends."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from pathlib import Path

import pytest
from forecasts import begin_in, copy_of, forecast_study, run_in

from nanoscale.__main__ import main
from nanoscale.errors import DONE, FAILURE
from nanoscale.experiments import ExperimentRunner
from nanoscale.spec.counting import parameter_counts
from nanoscale.spec.resolve import resolve
from nanoscale.spec.sources import load_config
from nanoscale.store.folder import RunFolder
from nanoscale.studies.row_runs import DEFAULTS
from nanoscale.studies.tuning import LrRule

STUDY = forecast_study(
    """tokens_per_param = 8
learning_rate = 1.6e-2
lr_schedule = "wsd"
parametrization.mode = "muP"
parametrization.base_n_embd = 8""",
    """sizes = [{ n_embd = 6, seeds = [1, 2], branches = [4, 12, 16] },
         { n_embd = 8, branches = [4, 16] }, { n_embd = 10 },
         { n_embd = 12 }, { n_embd = 14 }, { n_embd = 16 }, { n_embd = 20 }]
held_out = { n_embd = 32 }
[forecast.check]
widths = [32, 64, 128]
seeds = 2
[forecast.noise]
seeds = [1, 2, 3]
[forecast.tune]
lrs = [8e-3, 1.6e-2, 3.2e-2, 6.4e-2]
middle = { n_embd = 10 }""",
)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """A folder in which the study has run to its forecast's seal."""
    return run_in(tmp_path_factory.mktemp("stages"), STUDY, "--until=seal")


@pytest.fixture
def study(done, tmp_path, monkeypatch) -> Path:
    """A copy of it, to work in."""
    return copy_of(done, tmp_path, monkeypatch)


def table(study: Path) -> list[dict[str, str]]:
    with open(study / "table.csv") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_each_stage_leaves_what_it_found(study):
    stages = [row["stage"] for row in table(study)]
    assert stages.count("ladder") == 8
    assert stages.count("branches") == 5  # 3 and 2 lengths but for the ladder's own
    assert {"noise", "tune"} <= {*stages}
    found = json.loads((study / "stages.json").read_text())
    assert 0 < found["noise"]["sd"] < 0.05
    rule = found["tune"]["rule"]
    assert 4e-3 < rule["lr"] < 0.2
    for row in table(study):
        if row["stage"] == "ladder" and row["n_embd"] == "6":
            assert float(row["learning_rate"]) == pytest.approx(rule["lr"], rel=0.01)
    assert json.loads((study / "check.json").read_text())["verdict"] == "pass"


@pytest.mark.slow
def test_a_branch_of_the_ladder_is_the_run_in_one_go(study):
    (row,) = (
        r
        for r in table(study)
        if r["stage"] == "ladder" and r["branch_from"] and r["n_embd"] == "8"
    )
    branch = RunFolder(study.parent / row["folder"])
    config = branch.spec().config
    typed = DEFAULTS | dict(branch.spec().typed)
    for key in ("branch_from", "checkpoint_steps", "out_dir"):
        typed.pop(key, None)
    whole = ExperimentRunner(output_root="whole").run_experiment(typed, "whole")
    (_, folder), *_ = whole.runs()
    assert folder.spec().config.max_iters == config.max_iters
    assert folder.metrics()["val_loss"] == branch.metrics()["val_loss"]
    assert folder.metrics()["train_loss"] == branch.metrics()["train_loss"]
    assert branch.metrics()["tokens_seen"] == folder.metrics()["tokens_seen"]


@pytest.mark.slow
def test_branches_cost_their_cooldowns_alone(study, capsys):
    planned = {"whole": 0.0, "spent": 0.0}
    for row in table(study):
        if row["warmup_iters"]:
            planned["whole"] += float(row["flops"])
            planned["spent"] += float(row["planned_flops"])
    assert planned["spent"] < 0.65 * planned["whole"]


@pytest.mark.soak
def test_it_goes_on_from_stage_to_stage_and_again_makes_nothing(study, capsys):
    before = (study / "stages.json").read_bytes()
    (seal,) = (study / "predictions").iterdir()
    sealed = seal.read_bytes()
    seal.unlink()
    main(["study", "f.toml", "--until=forecast"])
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "[f] next: nanoscale study f.toml"
    assert "[f] no forecast is sealed" in said
    assert "law pure-power says" in said
    assert "law chinchilla" in said
    assert not list((study / "predictions").iterdir())
    seal.write_bytes(sealed)

    assert main(["study", "f.toml"]) == DONE
    said = capsys.readouterr().out
    assert "1 new" in said
    assert "off other laws by" in said
    assert main(["study", "f.toml"]) == DONE
    said = capsys.readouterr().out
    assert " new" not in said
    assert seal.read_bytes() == sealed
    assert (study / "stages.json").read_bytes() == before
    assert main(["verify", "f"]) == DONE
    capsys.readouterr()
    main(["fit", "f"])
    law = capsys.readouterr().out.splitlines()[:2]
    assert all(f"[f] {line}" in said for line in law)


@pytest.mark.slow
def test_a_rival_that_is_edited_is_named(study, capsys):
    (path,) = (study / "predictions").iterdir()
    record = json.loads(path.read_text())
    record["rivals"][0]["loss"] *= 1.01
    path.write_text(json.dumps(record))
    capsys.readouterr()
    assert main(["verify", "f"]) == FAILURE
    assert "CHANGED: rivals[0].loss" in capsys.readouterr().out


@pytest.mark.slow
def test_a_study_that_is_changed_after_its_seal_trains_nothing_else(study, capsys):
    text = Path("f.toml").read_text()
    Path("f.toml").write_text(text.replace("{ n_embd = 32 }", "{ n_embd = 34 }"))
    capsys.readouterr()
    assert main(["study", "f.toml"]) == FAILURE
    assert "it was changed since" in capsys.readouterr().out


@pytest.mark.slow
def test_a_check_that_fails_ends_the_study(tmp_path, monkeypatch, capsys):
    begin_in(tmp_path, monkeypatch, STUDY.replace('mode = "muP"', 'mode = "SP"'))
    assert main(["study", "f.toml"]) == FAILURE
    assert "[f-check] fail: " in capsys.readouterr().out
    assert not Path("experiments_out/f/table.csv").exists()


@pytest.mark.slow
def test_a_dry_run_shows_every_stage_and_starts_nothing(tmp_path, monkeypatch, capsys):
    begin_in(tmp_path, monkeypatch, STUDY)
    assert main(["study", "f.toml", "--dry-run"]) == DONE
    said = capsys.readouterr().out
    for stage in ("tune: ", "branches: ", "ladder: ", "confirm: ", "[f-check]"):
        assert stage in said
    assert "the law's loss to" in said
    assert main(["study", "f.toml", "--dry-run", "--until=tune"]) == DONE
    said = capsys.readouterr().out
    assert "tune: " in said
    assert "ladder: n_embd=20" not in said
    assert not Path("experiments_out").exists()


@pytest.mark.slow
def test_a_plan_goes_on_with_the_tuned_rate_and_no_trunk(study, capsys):
    main(["plan", "f", "--budget=3e10"])
    (command,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("next: "))
    flags = dict(word[2:].split("=", 1) for word in shlex.split(command) if word[:2] == "--")
    assert {"warmup_iters", "checkpoint_steps", "branch_from"}.isdisjoint(flags)
    assert flags["warmup_frac"] == "0.05"
    rule = LrRule(**json.loads((study / "stages.json").read_text())["tune"]["rule"])
    run = resolve(load_config(*(f"--{key}={value}" for key, value in flags.items())), 32)
    lr = rule.at(parameter_counts(run)["total"], run.max_iters * run.tokens_per_iter)
    assert run.learning_rate == pytest.approx(lr, rel=0.02)


@pytest.mark.slow
def test_a_ladder_that_was_changed_since_its_seal_trains_nothing_more(study, capsys):
    changed = STUDY.replace("{ n_embd = 14 }, ", "")
    assert changed != STUDY
    Path("f.toml").write_text(changed)
    runs = sorted((study.parent / "runs").iterdir())
    assert main(["study", "f.toml"]) == FAILURE
    said = capsys.readouterr().out
    assert said.count("the run held out is not trained") == 1
    assert sorted((study.parent / "runs").iterdir()) == runs


@pytest.mark.slow
def test_a_dry_run_says_that_there_will_be_no_interval(tmp_path, monkeypatch, capsys):
    larger = "{ n_embd = 12 }, { n_embd = 14 }, { n_embd = 16 }, "
    assert larger in STUDY
    begin_in(tmp_path, monkeypatch, STUDY.replace(larger, ""))
    assert main(["study", "f.toml", "--dry-run"]) == DONE
    assert "foreseen: no interval: what this law foresaw" in capsys.readouterr().out


@pytest.mark.slow
def test_a_study_without_a_forecast_says_what_it_lacks(study, capsys):
    shutil.rmtree(study / "predictions")
    (largest,) = (row["folder"] for row in table(study) if row["n_embd"] == "20")
    status = study.parent / largest / "status.json"
    status.write_text(json.dumps(json.loads(status.read_text()) | {"state": "WAITING"}))
    assert main(["report", "f"]) == DONE
    assert "nothing is forecast yet: the ladder waits for 1 run" in capsys.readouterr().out
    record = json.loads((study / "study.json").read_text())
    kept = [run for run in record["runs"] if run["stage"] != "ladder"]
    (study / "study.json").write_text(json.dumps(record | {"runs": kept}))
    assert main(["report", "f"]) == DONE
    assert "nothing is forecast yet: the ladder has not begun" in capsys.readouterr().out


@pytest.mark.slow
def test_a_budget_that_ends_in_the_tuning_ends_the_study_there(tmp_path, monkeypatch, capsys):
    check = "[forecast.check]\nwidths = [32, 64, 128]\nseeds = 2\n"
    begin_in(tmp_path, monkeypatch, STUDY.replace(check, ""))
    main(["study", "f.toml", "--budget=4e7"])
    said = capsys.readouterr().out
    assert "the budget ends in stage" in said
    assert main(["study", "f.toml", "--dry-run", "--until=noise"]) == DONE
    assert main(["study", "f.toml", "--dry-run", "--until=noise", "--budget=4e7"]) == DONE


def plans(said: str) -> list[tuple[str, str]]:
    """(plan, stage) of each run that a dry run of the study shows."""
    lines = [line.split() for line in said.splitlines() if line.startswith("[f]   ")]
    stages = [next(word for word in words if word.endswith(":")) for words in lines]
    return [(words[1], stage[:-1]) for words, stage in zip(lines, stages, strict=True)]


@pytest.mark.soak
def test_a_dry_run_goes_on_from_what_has_run(study, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        begin_in(tmp_path, patch, STUDY)
        assert main(["study", "f.toml", "--dry-run"]) == DONE
    foreseen = capsys.readouterr().out.splitlines()[-1]
    assert "the law's loss to" in foreseen

    before = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    assert main(["study", "f.toml", "--dry-run"]) == DONE
    said = capsys.readouterr().out
    assert [plan for plan in plans(said) if plan[0] != "cached"] == [("new", "confirm")]
    assert "confirm: n_embd=32, learning_rate=" in said
    sd = json.loads((study / "stages.json").read_text())["noise"]["sd"]
    assert f"noise {100 * sd:.2g} %" in said
    assert said.splitlines()[-1].split(":")[0] == foreseen.split(":")[0]
    assert before == {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}

    (largest,) = (row for row in table(study) if row["n_embd"] == "20")
    remove_run(study, stage="ladder", n_embd="20")
    main(["study", "f.toml", "--dry-run"])
    said = capsys.readouterr().out
    assert f"ladder: n_embd=20, seed=1337, learning_rate={largest['learning_rate']}" in said
    assert ("new", "ladder") in plans(said)

    remove_run(study, stage="tune", tokens_per_param="", n_embd="6", learning_rate="0.016")
    main(["study", "f.toml", "--dry-run"])
    said = capsys.readouterr().out
    assert "ladder: n_embd=20, seed=1337  " in said  # at the base's, as the best is unknown


def remove_run(study: Path, **values: str) -> None:
    """The folder of the one run whose row of the table has these values."""
    entries = json.loads((study / "study.json").read_text())["runs"]
    (place,) = (
        place
        for place, row in enumerate(table(study))
        if all(row[key] == value for key, value in values.items())
    )
    shutil.rmtree(study.parent / "runs" / entries[place]["folder"])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("held_out = { n_embd = 32 }", "held_out = { n_embd = 22 }", "at least 3 times"),
        ('lr_schedule = "wsd"\n', "", "branches share a trunk"),
        ("branches = [4, 16]", "branches = [-4]", "branches=[-4]: expected tokens per parameter"),
        ("lrs = [8e-3, 1.6e-2, 3.2e-2, 6.4e-2]", "lrs = [1e-3]", "give at least 4 learning rates"),
        ("1.6e-2, 3.2e-2, 6.4e-2]", "8e-3, 8e-3, 8e-3]", "give at least 4 learning rates"),
        ("1.6e-2, 3.2e-2, 6.4e-2]", "true, 2e-2, 3e-2]", "give at least 4 learning rates"),
        (
            "branches = [4, 16]",
            "branches = [true]",
            "branches=[True]: expected tokens",
        ),
        ("branches = [4, 16]", "branches = [4], lr_schedule = 'cosine'", "branches share a trunk"),
        ("{ n_embd = 12 }", "{ n_embd = 10 }", "n_embd=10 is given twice"),
        ("middle = {", "shorter = 9\nmiddle = {", "shorter=9: expected tokens per parameter below"),
        ("widths = [32, 64, 128]", "widths = [32]", "give 3 or more widths or depths"),
        ("[forecast.check]\nwidths", "[forecast.check]\nwidhts", "did you mean 'widths'"),
        ("[forecast.check]\n", "[forecast.check]\nsteps = 0\n", "steps=0: expected a whole number"),
        ("lrs = [8e-3", "lr = 'rate'\nlrs = [8e-3", "lr='rate': choose 'muon_lr' or"),
        ("lrs = [8e-3", "lrss = [8e-3", "did you mean 'lrs'"),
        ("middle = { n_embd = 10 }", "middle = 3", "middle=3: expected a size"),
        ("middle = { n_embd = 10 }", "middle = { n_embed = 10 }", "did you mean 'n_embd'"),
        ("[forecast.noise]\nseeds = [1, 2, 3]", "[forecast.noise]\nseeds = 1", "expected a list"),
        ("[forecast.noise]\nseeds = [1, 2, 3]", "[forecast.noise]\nseeds = [1]", "shows no noise"),
    ],
)
def test_bad_stages_are_one_line_before_anything_starts(
    tmp_path, monkeypatch, capsys, old, new, said
):
    assert old in STUDY
    begin_in(tmp_path, monkeypatch, STUDY.replace(old, new))
    capsys.readouterr()
    assert main(["study", "f.toml"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not Path("experiments_out").exists()


@pytest.mark.parametrize(
    ("verb", "said"),
    [
        ("--until=chekc", "choose 'check', 'noise', 'tune', 'branches', 'ladder'"),
        ("--until=report", "no stage of recipe 'forecast'"),
    ],
)
def test_a_stage_that_is_none_is_one_line(tmp_path, monkeypatch, capsys, verb, said):
    monkeypatch.chdir(tmp_path)
    Path("f.toml").write_text(STUDY)
    assert main(["study", "f.toml", verb]) == 2
    assert said in capsys.readouterr().err
