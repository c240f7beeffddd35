"""The main job: a ladder, its law, a forecast that is sealed, and the run that judges it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
from forecasts import copy_of, forecast_study, run_in, seal_of

import nanoscale as ns
from nanoscale.__main__ import main
from nanoscale.errors import DONE, FAILURE, INCONCLUSIVE, UserError
from nanoscale.store.lease import Held, take
from nanoscale.studies.seals import seal_in, seal_once

STUDY = forecast_study(
    """tokens_per_param = 4
learning_rate = 3e-3""",
    """sizes = [{ n_embd = 4 }, { n_embd = 6 }, { n_embd = 8 }, { n_embd = 10 }, { n_embd = 12 },
         { n_embd = 14 }, { n_embd = 16 }, { n_embd = 20 }, { n_embd = 24 }]
held_out = { n_embd = 48 }""",
)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """A folder in which the study has run."""
    return run_in(tmp_path_factory.mktemp("study"), STUDY)


@pytest.fixture
def study(done, tmp_path, monkeypatch) -> Path:
    """A copy of it, to work in."""
    return copy_of(done, tmp_path, monkeypatch)


def held_out(study: Path) -> Path:
    record = json.loads(seal_of(study).read_text())
    return study.parent / "runs" / record["run"]["name"]


def changed(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.slow
def test_the_forecast_is_sealed_first_then_made_then_judged(study, capsys):
    record = json.loads(seal_of(study).read_text())
    run = held_out(study)
    assert json.loads((run / "config.json").read_text())["id"] == record["run"]["id"]
    rows = record["table"]["columns"]
    assert len(rows["run"]) == 9
    assert record["run"]["id"] not in rows["run"]
    assert {"wall_seconds", "tokens_per_second"}.isdisjoint(rows)
    assert record["run"]["flops"] >= 3 * max(rows["flops"])

    assert main(["verify", "f"]) == DONE
    said = capsys.readouterr().out
    assert "the same law, the same forecast" in said
    loss = json.loads((run / "metrics.json").read_text())["val_loss"]
    score = json.loads((study / "predictions" / "score.json").read_text())
    low, high = record["forecast"]["ci95"]
    assert score == {
        "observed": loss,
        "error": pytest.approx(loss / record["forecast"]["loss"] - 1),
        "inside": low <= loss <= high,
        "rivals": {
            rival["settings"]["law"]: pytest.approx(loss / rival["loss"] - 1)
            for rival in record["rivals"]
            if rival["loss"] is not None
        },
    }
    assert [rival["settings"]["law"] for rival in record["rivals"]] == ["pure-power", "chinchilla"]
    assert "N and D rise together" in record["rivals"][1]["reason"]

    said = ns.answer("f")
    assert said.verdict == ("pass" if score["inside"] else "fail")
    assert said.numbers["score"] == score
    assert said.numbers["law"] == json.loads((study / "fits" / "power.json").read_text())
    shutil.rmtree(run)
    assert ns.answer("f").verdict == "inconclusive"  # the seal waits for its run
    changed(seal_of(study), sealed="2020-01-01T00:00:00+00:00")
    assert ns.answer("f").verdict == "fail"


@pytest.mark.slow
def test_the_same_command_again_makes_nothing_anew(study, capsys):
    before = seal_of(study).read_bytes()
    assert main(["study", "f.toml"]) == DONE
    said = capsys.readouterr().out
    assert "10 cached" in said or "9 cached" in said
    assert " new" not in said
    assert "the 95 % interval" in said.replace("its 95 %", "the 95 %")
    assert seal_of(study).read_bytes() == before


@pytest.mark.soak
def test_stopped_after_the_seal_it_goes_on_to_the_same_run(study, capsys):
    before = seal_of(study).read_bytes()
    shutil.rmtree(held_out(study))
    assert main(["verify", "f"]) == DONE
    assert "observed" not in capsys.readouterr().out
    assert main(["study", "f.toml"]) == DONE
    assert seal_of(study).read_bytes() == before
    assert "observed" in capsys.readouterr().out


@pytest.mark.slow
def test_what_is_changed_afterwards_is_named(study, capsys):
    run = held_out(study)
    status = json.loads((run / "status.json").read_text())
    changed(run / "status.json", began=status["began"] - 1e5)
    assert main(["verify", "f"]) == FAILURE
    assert "before its forecast was sealed" in capsys.readouterr().out
    changed(run / "status.json", began=status["began"])

    smallest = next(study.parent.glob("runs/*-d4-*"))
    loss = json.loads((smallest / "metrics.json").read_text())["val_loss"]
    changed(smallest / "metrics.json", val_loss=loss + 1e-6)
    assert main(["verify", "f"]) == FAILURE
    assert "CHANGED: table f: it is another" in capsys.readouterr().out
    changed(smallest / "metrics.json", val_loss=loss)
    assert main(["verify", "f"]) == DONE

    path = seal_of(study)
    record = json.loads(path.read_text())
    record["forecast"]["loss"] *= 1.01
    path.write_text(json.dumps(record))
    capsys.readouterr()
    assert main(["verify", "f"]) == FAILURE
    said = capsys.readouterr().out
    assert "CHANGED: forecast.loss" in said
    assert re.search("CHANGED: the file: its name says SHA-256", said)


@pytest.mark.slow
def test_an_outcome_that_is_changed_afterwards_is_named_and_not_kept(study, capsys):
    score = (study / "predictions" / "score.json").read_bytes()
    metrics = held_out(study) / "metrics.json"
    changed(metrics, val_loss=json.loads(metrics.read_text())["val_loss"] - 0.1)
    assert main(["verify", "f"]) == FAILURE
    assert "CHANGED: experiments_out/f/predictions/score.json: " in capsys.readouterr().out
    assert main(["study", "f.toml"]) == FAILURE
    main(["report", "f"])
    assert (study / "predictions" / "score.json").read_bytes() == score


@pytest.mark.slow
def test_no_json_is_written_over_a_seal(study, capsys):
    sealed = seal_of(study)
    before = sealed.read_bytes()
    Path("link.json").symlink_to(sealed.resolve())
    for verb in (["verify", "f"], ["fit", "f"], ["report", "f"]):
        for target in (sealed, "link.json"):
            assert main([*verb, f"--json={target}"]) == 2
            assert "that is a sealed forecast" in capsys.readouterr().err
    assert sealed.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda record: record["run"].update(flops=7), "its run has 7 FLOPs"),
        (
            lambda record: record["run"]["config"].update(n_embd=64),
            "n_embd is 48, and was 64",
        ),
    ],
)
def test_a_seal_of_another_run_is_named(study, capsys, edit, said):
    path = seal_of(study)
    record = json.loads(path.read_text())
    edit(record)
    text = json.dumps(record)
    path.unlink()
    (path.parent / f"{hashlib.sha256(text.encode()).hexdigest()}.json").write_text(text)
    assert main(["verify", "f"]) == FAILURE
    assert said in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("began", [None, "x", 1e300, -1e30])
def test_a_run_that_does_not_say_when_it_began_is_not_blind(study, capsys, began):
    status = held_out(study) / "status.json"
    changed(status, began=began)
    assert main(["verify", "f"]) == FAILURE
    assert "it does not say when it began" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["x", [1], 0, -1, None])
def test_a_loss_that_is_none_is_one_line(study, capsys, loss):
    changed(held_out(study) / "metrics.json", val_loss=loss)
    assert main(["verify", "f"]) == 2
    said = capsys.readouterr().err
    assert "its val_loss is" in said or "metrics.json is gone or cannot be read" in said


@pytest.mark.slow
def test_a_seal_is_made_once_whoever_is_first(study):
    before = seal_of(study)
    assert seal_once(study, before.read_text()) is None
    assert seal_of(study) == before
    with take(study / "predictions"), pytest.raises(Held):
        seal_once(study, before.read_text())
    moved = before.rename(before.with_name("mine.json"))
    with pytest.raises(UserError, match="has its SHA-256 for a name"):
        seal_in(study)
    moved.rename(before)


@pytest.mark.slow
def test_a_run_held_out_that_diverged_is_a_miss(study, capsys):
    changed(held_out(study) / "status.json", state="DIVERGED")
    assert main(["report", "f"]) == DONE
    assert "was to judge it DIVERGED: the forecast missed" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("text", ["[]", "null", '{"verdict": 3}'])
def test_a_broken_verdict_is_one_line(study, capsys, text):
    (study / "check.json").write_text(text)
    assert main(["report", "f"]) == 2
    assert "no verdict of a coordinate check" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("text", ["null", '{"tune": 3}', '{"tune": {}}', '{"noise": {"sd": "x"}}'])
def test_broken_findings_are_one_line(study, capsys, text):
    (study / "stages.json").write_text(text)
    assert main(["report", "f"]) == 2
    assert "not what the stages leave" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_is_there_already_is_not_forecast(study, capsys):
    shutil.rmtree(study / "predictions")
    assert main(["study", "f.toml", "--dry-run"]) == DONE
    assert capsys.readouterr().out.count("not blind") == 1
    assert main(["study", "f.toml"]) == INCONCLUSIVE
    assert "not blind" in capsys.readouterr().out
    assert not (study / "predictions").exists()
    assert main(["verify", "f"]) == 2
    assert "nothing is sealed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("held_out = { n_embd = 48 }", "", "in [forecast.held_out]"),
        ("{ n_embd = 48 }", "{ n_embd = 24 }", "held_out is one of the sizes"),
        ("{ n_embd = 48 }", "3", "in [forecast.held_out]"),
        ("{ n_embd = 48 }", "{ n_embd = 48, tokens_per_param = 8 }", "held_out: tokens_per_param"),
        ("tokens_per_param = 4", "max_iters = 10", "tokens_per_param = 20"),
    ],
)
def test_bad_files_are_one_line(tmp_path, monkeypatch, capsys, old, new, said):
    monkeypatch.chdir(tmp_path)
    Path("f.toml").write_text(STUDY.replace(old, new))
    assert main(["study", "f.toml"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_run_that_is_hardly_bigger_is_refused(study, capsys):
    shutil.rmtree(study / "predictions")
    text = Path("f.toml").read_text()
    Path("f.toml").write_text(text.replace("{ n_embd = 48 }", "{ n_embd = 26 }"))
    assert main(["study", "f.toml"]) == 2
    assert "at least 3 times" in capsys.readouterr().err
